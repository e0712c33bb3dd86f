//! Guest time: the KVM-compatible clock and steal time (their layouts: `guest::pvclock`).
//!
//! A virtual CPU's clock page says: at this TSC it was this time, and so many ticks are a
//! nanosecond. It is rewritten whenever the virtual CPU comes to another processor, with that
//! processor's TSC. Time at the page's moment is the kernel's own clock, which never goes back on
//! any CPU and between CPUs; so neither does the guest's, as long as the two rates agree.

use super::{GuestRam, Hypervisor, Vcpu, VcpuCore, Vm};
use crate::arch;
use crate::arch::time;
use crate::virt::{Backend, VcpuState};
use core::sync::atomic::Ordering::{Acquire, Relaxed};
use guest::GuestMemory;
use guest::pvclock::{
    ClockScale, FLAG_GUEST_STOPPED, FLAG_TSC_STABLE, Preempted, SharedPage, StealTime, TimeInfo,
    WallClock,
};
use units::{Gpa, Nanos};

/// Where a virtual CPU's clock lies.
#[derive(Clone, Copy, Debug)]
pub struct ClockPage {
    /// Guest-physical address of the structure.
    pub gpa: Gpa,
    version: u32,
}

/// Where a virtual CPU's steal time lies.
#[derive(Clone, Copy, Debug)]
pub struct StealPage {
    /// Guest-physical address of the structure.
    pub gpa: Gpa,
    version: u32,
    stolen: Nanos,
}

/// The guest wrote a value that the public ABI calls malformed.
#[derive(Clone, Copy, Debug)]
pub struct Malformed;

/// The guest wrote MSR_KVM_SYSTEM_TIME.
pub fn set_clock_page<B: Backend>(
    hv: &Hypervisor<B>,
    vm: &Vm<B>,
    vcpu: &Vcpu<B>,
    core: &mut VcpuCore<B>,
    value: u64,
) -> Result<(), Malformed> {
    core.clock = match SharedPage::decode_system_time(value).ok_or(Malformed)? {
        SharedPage::Disabled => None,
        SharedPage::At(gpa) => Some(ClockPage { gpa, version: 0 }),
    };
    update_clock(hv, vm, vcpu, core);
    Ok(())
}

/// The guest wrote MSR_KVM_STEAL_TIME.
pub fn set_steal_page<B: Backend>(
    vm: &Vm<B>,
    core: &mut VcpuCore<B>,
    value: u64,
) -> Result<(), Malformed> {
    core.steal = match SharedPage::decode_steal_time(value).ok_or(Malformed)? {
        SharedPage::Disabled => None,
        SharedPage::At(gpa) => Some(StealPage {
            gpa,
            version: 0,
            stolen: Nanos::ZERO,
        }),
    };
    publish_steal(vm, core, Preempted::No);
    Ok(())
}

/// The guest wrote MSR_KVM_WALL_CLOCK.
pub fn write_wall_clock<B: Backend>(hv: &Hypervisor<B>, vm: &Vm<B>, gpa: Gpa) {
    let now = time::now();
    let unix_now = Nanos::from_secs(hv.unix_at_start_s) + now;
    let (writes, _) = WallClock::at_boot(unix_now, vm.guest_time(now)).updates(0);
    apply(&vm.ram, gpa, &writes);
}

/// The virtual CPU is on this processor from now on: its TSC offset and its clock follow.
pub fn arrive<B: Backend>(hv: &Hypervisor<B>, vm: &Vm<B>, vcpu: &Vcpu<B>, core: &mut VcpuCore<B>) {
    let offset = tsc_offset_here(hv, vm, vcpu);
    if offset != core.tsc_offset {
        core.tsc_offset = offset;
        core.hw.set_tsc_offset(offset);
        vcpu.apic
            .lock()
            .tsc_changed(super::bus::apic_now(vm, offset));
    }
    update_clock(hv, vm, vcpu, core);
}

/// What the virtual CPU's TSC is ahead of the calling processor's.
pub fn tsc_offset_here<B: Backend>(hv: &Hypervisor<B>, vm: &Vm<B>, vcpu: &Vcpu<B>) -> u64 {
    // Ticks since the VM started, from the kernel's clock where TSCs disagree, and by plain
    // subtraction where they agree: that is exact, and the same on every processor.
    let host = arch::tsc::read();
    let offset = if hv.tsc_synchronised {
        0_u64.wrapping_sub(vm.tsc_at_start.load(Relaxed))
    } else {
        let elapsed = vm.guest_time(time::now());
        let ticks = (u128::from(elapsed.0) * u128::from(hv.tsc_hz) / 1_000_000_000) as u64;
        ticks.wrapping_sub(host)
    };
    offset.wrapping_add(vcpu.tsc_adjust.load(Relaxed))
}

/// Rewrites the clock page from the present.
pub fn update_clock<B: Backend>(
    hv: &Hypervisor<B>,
    vm: &Vm<B>,
    vcpu: &Vcpu<B>,
    core: &mut VcpuCore<B>,
) {
    write_clock(hv, vm, vcpu, core, 0);
}

/// The virtual CPU is about to enter the guest: after a pause of the VM its clock says so, which quiets
/// Linux' watchdogs for once.
pub fn resumed<B: Backend>(hv: &Hypervisor<B>, vm: &Vm<B>, vcpu: &Vcpu<B>, core: &mut VcpuCore<B>) {
    let resumes = vm.resumes.load(Acquire);
    if core.seen_resumes != resumes {
        core.seen_resumes = resumes;
        write_clock(hv, vm, vcpu, core, FLAG_GUEST_STOPPED);
    }
}

fn write_clock<B: Backend>(
    hv: &Hypervisor<B>,
    vm: &Vm<B>,
    vcpu: &Vcpu<B>,
    core: &mut VcpuCore<B>,
    news: u8,
) {
    let (Some(page), Some(scale)) = (core.clock.as_mut(), ClockScale::from_tsc_hz(hv.tsc_hz))
    else {
        return;
    };
    let flags = news | unread(&vm.ram, page.gpa);
    let info = if hv.tsc_synchronised {
        // One line through guest time zero for all virtual CPUs: two pages made at different moments
        // would differ by the rounding of `scale`, and time could go back between virtual CPUs.
        TimeInfo {
            tsc_timestamp: vcpu.tsc_adjust.load(Relaxed),
            system_time: Nanos::ZERO,
            scale,
            flags: flags | FLAG_TSC_STABLE,
        }
    } else {
        let tsc_timestamp = arch::tsc::read().wrapping_add(core.tsc_offset);
        TimeInfo {
            tsc_timestamp,
            system_time: vm.guest_time(time::now()),
            scale,
            flags,
        }
    };
    let (writes, version) = info.updates(page.version);
    page.version = version;
    apply(&vm.ram, page.gpa, &writes);
}

/// "You were stopped", if the guest has not read it yet: it takes the flag back when it does.
fn unread<F: memory::table::TableFormat<Address = Gpa>>(ram: &GuestRam<F>, page: Gpa) -> u8 {
    let mut flags = [0];
    let read = page
        .checked_add(TimeInfo::FLAGS_OFFSET)
        .map(|at| ram.read(at, &mut flags));
    match (read, flags) {
        (Some(Ok(())), [flags]) => flags & FLAG_GUEST_STOPPED,
        _ => 0,
    }
}

/// The virtual CPU gets a processor again after `waited` runnable.
pub fn resume_steal<B: Backend>(vm: &Vm<B>, core: &mut VcpuCore<B>, waited: Nanos) {
    if let Some(page) = core.steal.as_mut() {
        page.stolen += waited;
    }
    publish_steal(vm, core, Preempted::No);
}

/// The virtual CPU lost its processor although it could have used it.
pub fn lose_processor<B: Backend>(vm: &Vm<B>, core: &mut VcpuCore<B>) {
    publish_steal(vm, core, Preempted::Yes);
}

fn publish_steal<B: Backend>(vm: &Vm<B>, core: &mut VcpuCore<B>, preempted: Preempted) {
    let Some(page) = core.steal.as_mut() else {
        return;
    };
    let (writes, version) = StealTime {
        stolen: page.stolen,
        preempted,
    }
    .updates(page.version);
    page.version = version;
    apply(&vm.ram, page.gpa, &writes);
}

/// Writes in order; a page outside of memory is the guest's own mistake and stays without a clock.
fn apply<F: memory::table::TableFormat<Address = Gpa>>(
    ram: &GuestRam<F>,
    gpa: Gpa,
    writes: &[guest::pvclock::PageWrite],
) {
    for write in writes {
        let Some(at) = gpa.checked_add(write.offset) else {
            return;
        };
        if ram.write(at, write.data()).is_err() {
            return;
        }
        core::sync::atomic::fence(core::sync::atomic::Ordering::Release);
    }
}
