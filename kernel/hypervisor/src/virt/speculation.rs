#![expect(
    unsafe_code,
    reason = "predictor barriers and buffer flushes are MSRs and instructions"
)]
//! Carries out what [`guest::speculation`] decides: around each entry, and when another VM comes to a CPU.
//!
//! The return stack is filled in the world switch itself ([`fill_return_stack`]), before the first
//! return after an exit. Guests' writes to IA32_SPEC_CTRL and IA32_PRED_CMD exit, so the register
//! needs to be written only where guest and host differ.

use crate::arch::{msr, percpu};
use core::arch::asm;
use core::sync::atomic::Ordering::Relaxed;
use core::sync::atomic::{AtomicU32, AtomicU64};
use guest::cpuid::{CpuidResult, CpuidSource, Vendor};
use guest::speculation::{ARCH_CAPABILITIES, Facts, Plan};
use spin::Once;
use units::VmId;

const MSR_SPEC_CTRL: u32 = 0x48;
const MSR_PRED_CMD: u32 = 0x49;
const MSR_ARCH_CAPABILITIES: u32 = 0x10a;
const MSR_FLUSH_CMD: u32 = 0x10b;
const MSR_EFER: u32 = 0xc000_0080;
/// EFER.AIBRSE (APM 2 3.1.7).
const EFER_AUTO_IBRS: u64 = 1 << 21;
/// [`PerCpuState::last_vm`] before any VM.
const NO_VM: u32 = u32::MAX;

/// Fills the return stack: 32 calls whose return addresses lead to a trap for speculation. For naked functions; uses
/// 256 bytes of stack and changes the flags.
macro_rules! fill_return_stack {
    () => {
        ".rept 32\n call 7f\n 8: pause\n lfence\n jmp 8b\n 7:\n .endr\n add rsp, 256"
    };
}
pub(super) use fill_return_stack;

static PLAN: Once<Plan> = Once::new();

/// What one CPU has done, and for whom last.
#[derive(Debug)]
pub struct PerCpuState {
    last_vm: AtomicU32,
    counts: [AtomicU64; COUNTED],
}

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counted {
    /// IBPBs, those that guests asked for included.
    Ibpb,
    /// Writes of SPEC_CTRL.
    SpecCtrl,
    /// Fills of the return stack.
    ReturnStack,
    /// VERW.
    Verw,
    /// Flushes of the first-level cache.
    L1d,
}

const COUNTED: usize = 5;

impl PerCpuState {
    /// Nothing yet.
    pub const fn new() -> Self {
        Self {
            last_vm: AtomicU32::new(NO_VM),
            counts: [const { AtomicU64::new(0) }; COUNTED],
        }
    }

    fn count(&self, what: Counted) {
        if let Some(counter) = self.counts.get(what as usize) {
            // The CPU's own: nobody else adds.
            counter.store(counter.load(Relaxed) + 1, Relaxed);
        }
    }
}

/// How often all CPUs together have done it.
pub fn total(what: Counted) -> u64 {
    let counts = percpu::all().iter();
    counts
        .filter_map(|cpu| cpu.speculation.counts.get(what as usize))
        .map(|counter| counter.load(Relaxed))
        .sum()
}

struct Host;

impl CpuidSource for Host {
    fn leaf(&self, eax: u32, ecx: u32) -> CpuidResult {
        let r = core::arch::x86_64::__cpuid_count(eax, ecx);
        CpuidResult {
            eax: r.eax,
            ebx: r.ebx,
            ecx: r.ecx,
            edx: r.edx,
        }
    }
}

/// The decision for this machine; made at the first call.
pub fn plan() -> &'static Plan {
    PLAN.call_once(|| {
        let vendor = Vendor::of(&Host);
        Plan::decide(&Facts::of(&Host, vendor, arch_capabilities()))
    })
}

/// IA32_ARCH_CAPABILITIES of the calling CPU, 0 where there is none.
pub fn arch_capabilities() -> u64 {
    let vendor = Vendor::of(&Host);
    let listed = Facts::of(&Host, vendor, 0).leaf7_edx & ARCH_CAPABILITIES != 0;
    match listed {
        true => msr::read_checked(MSR_ARCH_CAPABILITIES).unwrap_or(0),
        false => 0,
    }
}

/// The calling CPU is about to host guests: its own SPEC_CTRL, and automatic IBRS.
pub fn prepare_cpu() {
    let plan = plan();
    // SAFETY: both exist where the plan says so, and restrict speculation of the host only.
    let done = unsafe {
        (!plan.spec_ctrl.is_active() || msr::write_checked(MSR_SPEC_CTRL, plan.host_spec_ctrl))
            && (!plan.auto_ibrs
                || msr::write_checked(MSR_EFER, msr::read(MSR_EFER) | EFER_AUTO_IBRS))
    };
    if !done {
        log::error!(
            "{} refuses SPEC_CTRL or automatic IBRS although CPUID lists it",
            percpu::current().cpu
        );
    }
}

/// A virtual CPU of `vm` comes to the calling CPU.
pub fn vm_comes(vm: VmId) {
    let state = &percpu::current().speculation;
    let before = state.last_vm.swap(u32::from(vm.0), Relaxed);
    if before != u32::from(vm.0) && before != NO_VM {
        barrier();
    }
}

/// An IBPB, if the processor has one.
pub fn barrier() {
    if plan().ibpb.is_active() {
        // SAFETY: CPUID lists IBPB; the command forgets predictions and nothing else (SDM 4 2.1).
        unsafe { msr::write(MSR_PRED_CMD, 1) };
        percpu::current().speculation.count(Counted::Ibpb);
    }
}

/// Right before a guest with this SPEC_CTRL is entered.
pub fn before_entry(spec_ctrl: u64) {
    let Some(plan) = PLAN.get() else { return };
    let state = &percpu::current().speculation;
    if plan.l1d_flush.is_active() {
        // SAFETY: CPUID lists the register; the command writes back and invalidates the first-level cache (SDM 4 2.1).
        unsafe { msr::write(MSR_FLUSH_CMD, 1) };
        state.count(Counted::L1d);
    }
    if plan.spec_ctrl.is_active() && spec_ctrl != plan.host_spec_ctrl {
        // SAFETY: the value was checked against the bits that CPUID lists, when the guest wrote it.
        unsafe { msr::write(MSR_SPEC_CTRL, spec_ctrl) };
        state.count(Counted::SpecCtrl);
    }
    if plan.verw.is_active() {
        static DATA: u16 = crate::arch::gdt::DATA.0;
        // SAFETY: reads a selector and sets ZF; with MD_CLEAR it clears buffers besides.
        unsafe { asm!("verw word ptr [{}]", in(reg) &raw const DATA, options(nostack, readonly)) };
        state.count(Counted::Verw);
    }
}

/// Right after a guest with this SPEC_CTRL has exited.
pub fn after_exit(spec_ctrl: u64) {
    let Some(plan) = PLAN.get() else { return };
    let state = &percpu::current().speculation;
    if plan.spec_ctrl.is_active() && spec_ctrl != plan.host_spec_ctrl {
        // SAFETY: the host's own value.
        unsafe { msr::write(MSR_SPEC_CTRL, plan.host_spec_ctrl) };
        state.count(Counted::SpecCtrl);
    }
    state.count(Counted::ReturnStack);
}
