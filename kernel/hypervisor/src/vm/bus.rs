//! Interrupts between devices and local APICs, and the one door to a VM's board.

use super::{Hypervisor, NOWHERE, Vcpu, Vm};
use crate::arch;
use crate::arch::time;
use crate::timers::Timer;
use crate::virt::Backend;
use core::sync::atomic::Ordering::{AcqRel, Relaxed, SeqCst};
use devices::{Board, DeliveryMode, InterruptMessage, Now, lowest_priority};
use units::{CpuId, Nanos};

/// Works with the VM's devices, then carries out what they ask for: interrupts, output, timers, power.
///
/// The caller holds no lock below [`Vm::board`] in the order of the chapter.
pub fn with_board<B: Backend, R>(
    hv: &Hypervisor<B>,
    vm: &Vm<B>,
    work: impl FnOnce(&mut Board, Nanos) -> R,
) -> R {
    let now = vm.guest_time(time::now());
    let mut board = vm.board.lock();
    let result = work(&mut board, now);
    while let Some(message) = board.take_message() {
        deliver(hv, vm, &message);
    }
    let pic = board.pic_pending();
    let mut output = [0_u8; 64];
    loop {
        let taken = board.serial_output(&mut output);
        let Some(bytes) = output.get(..taken).filter(|b| !b.is_empty()) else {
            break;
        };
        vm.console.lock().write(bytes);
    }
    while let Some(unclaimed) = board.take_unclaimed() {
        log::debug!(
            "{}: port {:#x} ({:?}) belongs to no device; reads give all ones",
            vm.name,
            unclaimed.port,
            unclaimed.size
        );
    }
    let power = board.power_event();
    arm_board(hv, vm, board.next_deadline());
    // Under the lock: of two callers the later one's view must be the one that stays.
    let was = vm.pic_line.swap(pic, AcqRel);
    drop(board);

    if pic
        && !was
        && let Some(vcpu) = vm.vcpus.first()
    {
        notify(hv, vm, vcpu);
    }
    if let Some(event) = power {
        vm.power_event(hv, event);
    }
    result
}

/// Shortest time between two polls of a board for its timers' sake. A guest may program a period of two microseconds, and
/// whoever runs on the CPU that looks after it would pay; ticks that come faster are counted at the next poll.
const BOARD_REST: Nanos = Nanos::from_micros(100);

/// Makes sure that some CPU polls the board at `deadline` (guest time).
fn arm_board<B: Backend>(hv: &Hypervisor<B>, vm: &Vm<B>, deadline: Option<Nanos>) {
    let deadline = deadline.unwrap_or(Nanos::MAX);
    if deadline.0 >= vm.board_deadline.load(Relaxed) {
        return; // an earlier poll is armed and will arm the next
    }
    vm.board_deadline.store(deadline.0, Relaxed);
    let at = vm.host_time(deadline).max(time::now() + BOARD_REST);
    crate::timers::arm(hv, at, Timer::Board(vm.id));
}

/// Polls the board because its time has come.
pub fn board_due<B: Backend>(hv: &Hypervisor<B>, vm: &Vm<B>) {
    vm.board_deadline.store(u64::MAX, Relaxed);
    with_board(hv, vm, |board, now| board.poll(now));
}

/// Brings a message to the virtual CPUs it addresses.
pub fn deliver<B: Backend>(hv: &Hypervisor<B>, vm: &Vm<B>, message: &InterruptMessage) {
    if message.delivery == DeliveryMode::LowestPriority {
        let winner = lowest_priority(message, vm.vcpus.iter().map(|v| (v, v.apic.lock())));
        if let Some(vcpu) = winner {
            receive(hv, vm, vcpu, message);
        }
        return;
    }
    for vcpu in &vm.vcpus {
        if vcpu.apic.lock().matches(message) {
            receive(hv, vm, vcpu, message);
        }
    }
}

fn receive<B: Backend>(hv: &Hypervisor<B>, vm: &Vm<B>, vcpu: &Vcpu<B>, message: &InterruptMessage) {
    let needs_attention = vcpu.apic.lock().receive(message);
    if needs_attention {
        notify(hv, vm, vcpu);
    }
}

/// The virtual CPU has something to look at: wakes it if it waits, interrupts it if it runs elsewhere.
///
/// Its local APIC was changed before this call; the runner looks at the APIC after it publishes
/// `running_on`, and after it has blocked. So one of the two sees the other.
pub fn notify<B: Backend>(hv: &Hypervisor<B>, vm: &Vm<B>, vcpu: &Vcpu<B>) {
    core::sync::atomic::fence(SeqCst);
    let running_on = vcpu.running_on.load(SeqCst);
    let here = arch::percpu::current().cpu;
    if running_on != NOWHERE && running_on != here.0 {
        arch::apic::kick(CpuId(running_on));
    }
    if running_on == NOWHERE && vcpu.has_reason_to_wake(vm) {
        crate::run::wake(hv, vcpu);
    }
}

/// The present as this virtual CPU's local APIC sees it.
pub fn apic_now<B: Backend>(vm: &Vm<B>, tsc_offset: u64) -> Now {
    let now = time::now();
    Now {
        nanos: vm.guest_time(now),
        tsc: arch::tsc::read().wrapping_add(tsc_offset),
    }
}
