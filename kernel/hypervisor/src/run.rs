//! The loop that every CPU runs for ever: deferred work, pick, enter, classify, handle.
//!
//! Interrupts are off all the time but in one place, [`window`]: what an interrupt handler has to
//! say it says through the CPU's word of deferred work, which is looked at before every entry. So
//! no handler runs between two instructions of anything written here, and nothing here needs to be
//! reentrant.
//!
//! Who may run whom is the scheduler's decision ([`sched`], policy); this file carries it out and
//! verifies it: a virtual CPU that is already running elsewhere is refused, loudly.

use crate::arch;
use crate::arch::percpu::{self, Activity};
use crate::arch::time;
use crate::counters;
use crate::exits::operands::{Entry, Looking};
use crate::exits::{self, After, Context};
use crate::sabotage;
use crate::shootdown;
use crate::timers::{self, Timer};
use crate::virt::speculation;
use crate::virt::{Backend, Event, EventKind, Exit, TlbState, VcpuState};
use crate::vm::history::What;
use crate::vm::{self, Hypervisor, NOWHERE, Vcpu, VcpuCore, Vm, VmState, clock};
use config::Sabotage;
use core::sync::atomic::Ordering::{Relaxed, SeqCst};
use sched::Next;
use units::{CpuId, Nanos};

const RFLAGS_IF: u64 = 1 << 9;
/// Deferred-work bit: the scheduler wants this CPU to pick again.
pub const RESCHEDULE: u64 = 1 << percpu::DEFER_FIRST_FREE;
/// Deferred-work bit: pages wait to be moved by this CPU.
pub const WORK: u64 = 1 << (percpu::DEFER_FIRST_FREE + 1);

/// Runs guests on this CPU until the machine is switched off.
pub fn cpu_main<B: Backend>(hv: &Hypervisor<B>, mut hw: B::Cpu) -> ! {
    let cpu = percpu::current().cpu;
    timers::watch(hv, time::now());
    loop {
        let asked = window();
        let now = time::now();
        percpu::current().come_round();
        percpu::current().beat(now);
        counters::bandwidth::poll(now);
        if sabotage::on(Sabotage::HangCpu) {
            sabotage::hang_if_last(now);
        }
        timers::run_due(hv, now);
        crate::monitor::poll(hv, cpu);
        if asked & WORK != 0 {
            crate::drive::work(hv);
        }
        let next = crate::drive::pick(hv, cpu);
        match next {
            Next::Run { vcpu, slice, .. } => match hv.vcpu(vcpu) {
                Some((vm, vcpu)) => run_slice(hv, &mut hw, cpu, vm, vcpu, time::now() + slice),
                None => log::error!(
                    "the scheduler chose {vcpu} for {cpu}, which does not exist; it was refused"
                ),
            },
            Next::Idle { until } => idle(hv, cpu, until),
        }
    }
}

/// Lets pending interrupts in; what they and other CPUs asked for is returned.
fn window() -> u64 {
    arch::interrupts::window();
    percpu::current().take_deferred()
}

/// Nothing to run: waits for an interrupt.
fn idle<B: Backend>(hv: &Hypervisor<B>, cpu: CpuId, until: Option<Nanos>) {
    let queued = hv
        .timers
        .get(cpu.index())
        .and_then(|queue| queue.lock().next());
    let console = crate::monitor::next_poll(cpu);
    let wake_at = [until, queued, console].into_iter().flatten().min();
    match wake_at {
        Some(at) => arch::timer::arm(at),
        None => arch::timer::disarm(),
    }
    arch::interrupts::wait();
}

/// Runs one virtual CPU until its slice ends, it waits, or somebody calls this CPU.
fn run_slice<B: Backend>(
    hv: &Hypervisor<B>,
    hw: &mut B::Cpu,
    cpu: CpuId,
    vm: &Vm<B>,
    vcpu: &Vcpu<B>,
    slice_end: Nanos,
) {
    let Some(mut core) = vcpu.core.try_lock() else {
        log::error!(
            "the scheduler chose {} for {cpu} while it runs elsewhere; it was refused",
            vcpu.id
        );
        return crate::drive::refused(hv, cpu, vcpu.id);
    };
    vcpu.running_on.store(cpu.0, SeqCst);
    percpu::current().set_running(Activity::Guest(vcpu.id));
    let began = time::now();
    arrive(hv, vm, vcpu, &mut core, cpu, began);
    speculation::vm_comes(vm.id);
    B::load(hw, &mut core.hw);
    counters::arrive(&mut core.course, began);

    let end = slice(hv, hw, cpu, vm, vcpu, &mut core, slice_end);

    B::unload(hw, &mut core.hw);
    let now = time::now();
    counters::leave(&vcpu.counted, &mut core.course, now, now.since(began));
    if matches!(end, End::Preempted) {
        clock::lose_processor(vm, &mut core);
        core.runnable_since = Some(now);
    }
    drop(core);
    vcpu.running_on.store(NOWHERE, SeqCst);
    account(vcpu, now.since(began));
    if matches!(end, End::Waits) {
        arm_wake(hv, vm, vcpu);
    }
    percpu::current().set_running(Activity::Hypervisor);
    crate::drive::slice_ended(hv, cpu, vcpu, &end, now.since(began));
    match end {
        End::Waits => {
            // It is off the run queue now; an interrupt may have come in between.
            if vcpu.has_reason_to_wake(vm) {
                wake(hv, vcpu);
            }
        }
        End::Fault(sentence) => vm.fault(hv, vcpu.id, sentence),
        End::Preempted | End::Spins | End::Gone => {}
    }
    vm::dump_if_wanted(vm, vcpu);
}

/// Why a slice ended.
#[derive(Debug)]
pub enum End {
    /// Its time is over or the CPU is needed.
    Preempted,
    /// It spins.
    Spins,
    /// It waits for an interrupt.
    Waits,
    /// Its VM is paused or off.
    Gone,
    /// Its VM must be stopped.
    Fault(alloc::string::String),
}

fn slice<B: Backend>(
    hv: &Hypervisor<B>,
    hw: &mut B::Cpu,
    cpu: CpuId,
    vm: &Vm<B>,
    vcpu: &Vcpu<B>,
    core: &mut VcpuCore<B>,
    slice_end: Nanos,
) -> End {
    loop {
        let asked = window();
        let now = time::now();
        percpu::current().beat(now);
        if now >= slice_end || asked & RESCHEDULE != 0 {
            percpu::current().defer(asked & WORK); // the outer loop's
            return End::Preempted;
        }
        if asked & WORK != 0 {
            crate::drive::work(hv);
        }
        timers::run_due(hv, now);
        crate::monitor::poll(hv, cpu);
        if vm.state() != VmState::Running {
            return End::Gone;
        }
        match prepare(hv, vm, vcpu, core) {
            Prepared::Enter => {}
            Prepared::Waits => return End::Waits,
        }
        let next_look = core.look.at(now, Looking::at(hv, vm));
        let latest = next_look.map_or(slice_end, |look| slice_end.min(look));
        arm_timer(hv, cpu, vm, vcpu, core, latest);
        let given = core.hw.pending_event();
        let entered_at = core.hw.rip();
        let entry = Entry {
            at: now,
            rip: (given.is_none()).then_some(entered_at),
        };
        #[cfg(feature = "sabotage")]
        let hidden = exits::absent::hide(&mut Context {
            hv,
            vm,
            vcpu,
            core,
            interrupted: None,
        });
        let exit = enter(hw, vm, vcpu, core);
        #[cfg(feature = "sabotage")]
        {
            let interrupted = None;
            let mut ctx = Context {
                hv,
                vm,
                vcpu,
                core,
                interrupted,
            };
            exits::absent::show(&mut ctx, hidden, exit.as_ref());
        }
        let Some(exit) = exit else {
            continue;
        };
        if let Some(event) = given {
            core.history.add(now, entered_at, What::Event(event));
        }
        let now = time::now();
        core.history.add(now, core.hw.rip(), What::Exit(exit));
        vcpu.exits.fetch_add(1, Relaxed);
        match exit {
            Exit::TimeUp => vcpu.times_up.fetch_add(1, Relaxed),
            Exit::LogFull => vcpu.logs_full.fetch_add(1, Relaxed),
            _ => 0,
        };
        note_task_priority(vcpu, core);
        let mut ctx = Context {
            hv,
            vm,
            vcpu,
            core,
            interrupted: None,
        };
        exits::operands::look(&mut ctx, exit, entry, now);
        match exits::handle(&mut ctx, exit) {
            After::Resume => {}
            After::Yield => return End::Spins,
            // A trap that HLT left behind, a single step, ends the wait at once.
            After::Halt if core.hw.event_pending() => {}
            After::Halt => {
                let deaf = core.hw.rflags() & RFLAGS_IF == 0;
                vcpu.deaf.store(deaf, SeqCst);
                if !vcpu.has_reason_to_wake(vm) {
                    return End::Waits;
                }
            }
            After::Fault(sentence) => return End::Fault(sentence),
        }
    }
}

/// Where a guest changes its task priority without an exit, its local APIC learns of it now. Only the
/// class can have changed: what TPR holds besides stays.
fn note_task_priority<B: Backend>(vcpu: &Vcpu<B>, core: &VcpuCore<B>) {
    let mut apic = vcpu.apic.lock();
    if apic.cr8() != core.hw.cr8() {
        // The backend's field has four bits, which is all that is checked.
        let _taken = apic.set_cr8(u64::from(core.hw.cr8()));
    }
}

/// The virtual CPU comes to this CPU.
fn arrive<B: Backend>(
    hv: &Hypervisor<B>,
    vm: &Vm<B>,
    vcpu: &Vcpu<B>,
    core: &mut VcpuCore<B>,
    cpu: CpuId,
    now: Nanos,
) {
    if core.last_cpu != Some(cpu) {
        if core.last_cpu.is_some() {
            vcpu.moves.fetch_add(1, Relaxed);
        }
        core.last_cpu = Some(cpu);
        // What it flushed elsewhere may still be cached here from an earlier stay.
        core.seen.forget();
        clock::arrive(hv, vm, vcpu, core);
    }
    clock::resumed(hv, vm, vcpu, core);
    if let Some(since) = core.runnable_since.take() {
        clock::resume_steal(vm, core, now.since(since));
    }
}

enum Prepared {
    Enter,
    Waits,
}

/// Brings INIT, SIPI, NMI and interrupts to the virtual CPU.
fn prepare<B: Backend>(
    hv: &Hypervisor<B>,
    vm: &Vm<B>,
    vcpu: &Vcpu<B>,
    core: &mut VcpuCore<B>,
) -> Prepared {
    let mut apic = vcpu.apic.lock();
    apic.poll(vm::apic_now(vm, core.tsc_offset));
    let signature = vm.cpuid.signature();
    if apic.take_init() {
        core.hw.reset(&guest::entry::reset_state(signature));
        core.postponed = None;
    }
    if apic.activity() == devices::Activity::WaitForSipi {
        match apic.take_sipi() {
            Some(vector) => core.hw.reset(&guest::entry::sipi_state(vector, signature)),
            None => return Prepared::Waits,
        }
    }
    core.hw.set_cr8(apic.cr8());
    if core.hw.event_pending() {
        core.hw.want_interrupt_window(apic.pending().is_some());
        return Prepared::Enter;
    }
    if let Some(event) = core.postponed {
        // It was accepted before the exception that it gave way to, whose handler may have closed the
        // door: it waits, and nothing may overtake it.
        let may = event.kind != EventKind::Interrupt || core.hw.interruptible();
        if may {
            core.postponed = None;
            core.hw.inject(event);
        }
        core.hw
            .want_interrupt_window(!may || apic.pending().is_some());
        return Prepared::Enter;
    }
    if core.hw.nmi_blocked() {
        apic.merge_nmis();
    }
    let nmi_allowed = core.hw.nmi_allowed() || sabotage::on(Sabotage::NestedNmi);
    if apic.nmi_pending() && nmi_allowed && apic.take_nmi() {
        core.hw.inject(Event::NMI);
        core.hw.want_interrupt_window(apic.pending().is_some());
        return Prepared::Enter;
    }
    let from_pic = vm.pic_line.load(SeqCst) && apic.extint_enabled();
    if !core.hw.interruptible() {
        // An NMI that must wait waits for an IRET or the end of a shadow: both open the window, too.
        let waits = from_pic || apic.pending().is_some() || apic.nmi_pending();
        core.hw.want_interrupt_window(waits);
        return Prepared::Enter;
    }
    if let Some(vector) = apic.accept() {
        core.hw.inject(Event::interrupt(vector));
        core.hw
            .want_interrupt_window(from_pic || apic.pending().is_some());
        return Prepared::Enter;
    }
    drop(apic);
    if from_pic {
        let vector = vm::with_board(hv, vm, |board, _| {
            board.pic_pending().then(|| board.pic_vector())
        });
        if let Some(vector) = vector {
            core.hw.inject(Event::interrupt(vector));
        }
    }
    core.hw.want_interrupt_window(false);
    Prepared::Enter
}

/// Sees to it that the guest stops when whatever comes first is due, `latest` at the latest.
fn arm_timer<B: Backend>(
    hv: &Hypervisor<B>,
    cpu: CpuId,
    vm: &Vm<B>,
    vcpu: &Vcpu<B>,
    core: &mut VcpuCore<B>,
    latest: Nanos,
) {
    let own = vcpu.apic.lock().next_deadline().map(|at| vm.host_time(at));
    let queued = hv
        .timers
        .get(cpu.index())
        .and_then(|queue| queue.lock().next());
    let console = crate::monitor::next_poll(cpu);
    let at = [own, queued, console]
        .into_iter()
        .flatten()
        .min()
        .unwrap_or(latest)
        .min(latest);
    core.hw.stop_at(at);
}

/// Enters the guest, unless something came up; keeps the promise of [`shootdown`].
fn enter<B: Backend>(
    hw: &mut B::Cpu,
    vm: &Vm<B>,
    vcpu: &Vcpu<B>,
    core: &mut VcpuCore<B>,
) -> Option<Exit> {
    let inside = shootdown::Inside::publish(vcpu.id.vm);
    if percpu::current().has_deferred() {
        return None;
    }
    let (root, generation) = vm.ram.way_in(percpu::current().node);
    let another = core.hw.walk_from(root);
    let tlb = if core.seen.is_current(generation) && !another {
        TlbState::Current
    } else {
        vcpu.flushes.fetch_add(1, Relaxed);
        TlbState::Stale
    };
    vcpu.flushed.store(generation.sample, SeqCst);
    core.hw.log_writes(vm.ram.logs_writes());
    speculation::before_entry(core.spec_ctrl);
    counters::before_entry(vcpu.id.vm);
    let exit = B::enter(hw, &mut core.hw, tlb);
    counters::after_exit(vcpu.id.vm);
    speculation::after_exit(core.spec_ctrl);
    core.hw.take_log(|page| vm.ram.name_written(page));
    drop(inside);
    Some(exit)
}

/// A halted virtual CPU's own timer must be able to wake it.
fn arm_wake<B: Backend>(hv: &Hypervisor<B>, vm: &Vm<B>, vcpu: &Vcpu<B>) {
    let deadline = vcpu.apic.lock().next_deadline();
    if let Some(at) = deadline {
        timers::arm(hv, vm.host_time(at), Timer::Vcpu(vcpu.id));
    }
}

/// Puts a waiting virtual CPU back on a run queue; one that does not wait is left alone.
pub fn wake<B: Backend>(hv: &Hypervisor<B>, vcpu: &Vcpu<B>) {
    if vcpu.blocked.swap(false, SeqCst) {
        crate::drive::woken(hv, vcpu.id);
    }
}

fn account<B: Backend>(vcpu: &Vcpu<B>, ran: Nanos) {
    vcpu.ran_ns.fetch_add(ran.0, Relaxed);
    if let Some(on_node) = vcpu.ran_on_node_ns.get(percpu::current().node.index()) {
        on_node.fetch_add(ran.0, Relaxed);
    }
}
