//! Breaking the kernel on purpose, to see tests fail that would otherwise never show that they can.
//!
//! The code that breaks something asks [`on`] with one of the names that `config` lists. Without
//! the feature `sabotage` the answer is a constant `false` and the compiler removes the question and
//! all that depends on it; the configuration's key is then refused ([`check`]).

use crate::arch::{percpu, time};
use crate::virt::Backend;
use crate::vm::Vm;
use config::{HostConfig, Sabotage};
use memory::table::Lookup;
use units::{Frame, Gpa, Nanos, PAGE_BYTES, PageSize};

/// Whether the kernel is to be broken in this way.
#[cfg(not(feature = "sabotage"))]
#[inline(always)]
pub const fn on(_: Sabotage) -> bool {
    false
}

#[cfg(feature = "sabotage")]
static ON: core::sync::atomic::AtomicU64 = core::sync::atomic::AtomicU64::new(0);

/// Whether the kernel is to be broken in this way.
#[cfg(feature = "sabotage")]
pub fn on(what: Sabotage) -> bool {
    ON.load(core::sync::atomic::Ordering::Relaxed) & 1 << what as u64 != 0
}

/// Refuses a configuration that wants this kernel broken.
///
/// # Errors
/// A sentence for the operator.
#[cfg(not(feature = "sabotage"))]
pub fn check(config: &HostConfig) -> Result<(), &'static str> {
    if config.host.sabotage.is_empty() {
        Ok(())
    } else {
        Err(
            "`sabotage` is obeyed only by kernels that were built for tests (feature `sabotage`), and this is none",
        )
    }
}

/// Notes in which ways this kernel is broken from now on, and says so.
///
/// # Errors
/// None: this kernel was built for it.
#[cfg(feature = "sabotage")]
pub fn check(config: &HostConfig) -> Result<(), &'static str> {
    const { assert!(Sabotage::ALL.len() <= 64) };
    for what in &config.host.sabotage {
        ON.fetch_or(1 << *what as u64, core::sync::atomic::Ordering::Relaxed);
        log::error!("THIS KERNEL IS SABOTAGED: {what} is broken on purpose");
    }
    if config.host.sabotage.is_empty() {
        log::warn!("this kernel was built for tests and can be sabotaged; nothing is for now");
    }
    Ok(())
}

/// [`Sabotage::ForeignFrame`]: a page from the middle of the first VM's memory appears in every other VM, at the first
/// 2 MiB boundary behind the end of its memory below 4 GiB.
pub fn share_a_frame<B: Backend>(vms: &mut [Vm<B>]) {
    let Some((victim, others)) = vms.split_first_mut() else {
        return;
    };
    let middle = Gpa(victim.config.memory_bytes / 2).align_down(PageSize::Size4K);
    let Ok(Lookup::Mapped(leaf)) = victim.ram.with_table(|table| table.translate(middle)) else {
        return log::error!("sabotage: {middle} of {} is not mapped", victim.name);
    };
    let frame = Frame(leaf.frame.0 + (middle.0 - leaf.at.0) / PAGE_BYTES);
    for vm in others {
        let regions = vm.shape.memory.regions();
        let end = regions
            .iter()
            .map(|r| r.end().0)
            .filter(|end| *end < 4 << 30);
        let at = Gpa(end
            .max()
            .unwrap_or(0)
            .next_multiple_of(PageSize::Size2M.bytes()));
        match vm.ram.map(at, frame, PageSize::Size4K) {
            Ok(()) => log::error!(
                "sabotage: {at} of {} is {middle} of {}",
                vm.name,
                victim.name
            ),
            Err(why) => log::error!("sabotage: {at} of {}: {why}", vm.name),
        }
    }
}

/// [`Sabotage::HangCpu`]: the last CPU never returns from here once `now` is ten seconds after the start.
#[inline(never)]
pub fn hang_if_last(now: Nanos) {
    let last = percpu::online().last().map(|c| c.cpu);
    if now > Nanos::from_secs(10) && last == Some(percpu::current().cpu) {
        log::error!("sabotage: {} hangs from now on", percpu::current().cpu);
        loop {
            core::hint::spin_loop();
        }
    }
}

/// [`Sabotage::SlowMoves`]: between two steps of a page's move.
pub fn linger() {
    const A_WHILE: Nanos = Nanos::from_micros(300);
    if on(Sabotage::SlowMoves) {
        let began = time::now();
        while time::now().since(began) < A_WHILE {
            core::hint::spin_loop();
        }
    }
}

/// [`Sabotage::MutateVmcs`]: on the boot CPU, before it runs anything.
#[cfg(feature = "sabotage")]
pub fn try_out<B: Backend>(hv: &crate::vm::Hypervisor<B>, hw: &mut B::Cpu) {
    let here = percpu::current();
    if on(Sabotage::MutateVmcs) && here.cpu == units::CpuId(0) {
        B::try_out(hw, here.node, hv.config.host.seed);
    }
}

/// [`Sabotage::BreakVmcs`]: whether the virtual CPU that was made first has come to its last good entry.
#[cfg(feature = "sabotage")]
pub fn breaks_at(serial: u64, entries: u64) -> bool {
    const LAST: u64 = 5_000;
    on(Sabotage::BreakVmcs) && serial == 1 && entries == LAST
}
