//! Hardware task switches: the guest's state and memory for [`guest::task_switch`], which does them.

use super::{After, Context, control, decode, event};
use crate::virt::{
    Backend, ControlRegister, EventKind, Gpr, NmiBlocking, SegmentName, TaskSource, VcpuState,
};
use crate::vm::GuestRam;
use guest::GuestMemory;
use guest::mmio;
use guest::task_switch::{self, Cause, Done, LinearMemory, Refusal, Stop, TaskState, TaskSwitch};
use guest::walk::{self, Access, AccessKind, PagingState, Privilege, WalkError};
use units::Gpa;

const RFLAGS_RF: u32 = 1 << 16;
/// DR6: a task switch.
const DR6_BT: u64 = 1 << 15;
/// #BP and #OF come from INT3 and INTO.
const BREAKPOINT: u8 = 3;
const OVERFLOW: u8 = 4;

/// Segments in the order of [`task_switch::place`].
const SEGMENTS: [SegmentName; 6] = [
    SegmentName::Es,
    SegmentName::Cs,
    SegmentName::Ss,
    SegmentName::Ds,
    SegmentName::Fs,
    SegmentName::Gs,
];

/// Switches to the task of this TSS.
pub fn handle<B: Backend>(ctx: &mut Context<'_, B>, selector: u16, source: TaskSource) -> After {
    let event = ctx.interrupted.filter(|_| source == TaskSource::Gate);
    let cause = match (source, event) {
        (TaskSource::Call, _) => Cause::Call,
        (TaskSource::Jump, _) => Cause::Jump,
        (TaskSource::Iret, _) => Cause::Iret,
        (TaskSource::Gate, Some(event)) => match (event.kind, event.vector) {
            (EventKind::SoftwareInterrupt, _) | (EventKind::Exception, BREAKPOINT | OVERFLOW) => {
                Cause::SoftwareInterrupt
            }
            _ => Cause::Event,
        },
        (TaskSource::Gate, None) => Cause::Event,
    };
    // The task goes on behind the instruction that switched, or at the one that an event met.
    let length = match cause {
        Cause::Event => 0,
        _ => match decode::instruction(ctx) {
            Ok(instruction) => instruction.len() as u64,
            Err(after) => return after,
        },
    };
    let mut state = gather(ctx);
    state.eip = (ctx.core.hw.rip().wrapping_add(length)) as u32;
    state.eflags &= !RFLAGS_RF;
    if event.is_some_and(|e| e.kind == EventKind::Exception) && cause == Cause::Event {
        // A fault's instruction runs again, and its breakpoint is not to strike twice (SDM 3B 18.3.1.1).
        state.eflags |= RFLAGS_RF;
    }
    let order = TaskSwitch {
        selector,
        cause,
        error_code: event.and_then(|e| e.error),
    };
    let mut memory = TaskMemory {
        ram: &ctx.vm.ram,
        paging: decode::paging(ctx),
    };
    let outcome = task_switch::switch(&mut state, &order, &mut memory);
    if let Err(Refusal::Before(stop)) = outcome {
        return stopped(ctx, stop);
    }
    if event.is_some_and(|e| e.kind == EventKind::Nmi) {
        ctx.core.hw.set_nmi_blocking(NmiBlocking::Blocked);
    }
    if cause == Cause::Iret {
        ctx.core.hw.set_nmi_blocking(NmiBlocking::Open);
    }
    // The event has been delivered.
    ctx.interrupted = None;
    if !put_back(ctx, &state) {
        return super::general_protection(ctx);
    }
    match outcome {
        Ok(Done::Run) => After::Resume,
        Ok(Done::DebugTrap) => {
            let hw = &mut ctx.core.hw;
            hw.set_dr6(hw.dr6() | DR6_BT);
            event::raise(ctx, event::VECTOR_DEBUG, None)
        }
        Err(Refusal::After(stop) | Refusal::Before(stop)) => stopped(ctx, stop),
    }
}

fn stopped<B: Backend>(ctx: &mut Context<'_, B>, stop: Stop<WalkError>) -> After {
    match stop {
        Stop::Exception(e) => event::raise(ctx, e.vector, e.error_code),
        Stop::Memory(error) => decode::walk_failed(ctx, error),
    }
}

fn gather<B: Backend>(ctx: &mut Context<'_, B>) -> TaskState {
    let hw = &mut ctx.core.hw;
    let dr7 = hw.dr7();
    TaskState {
        eip: hw.rip() as u32,
        eflags: hw.rflags() as u32,
        gpr: core::array::from_fn(|i| hw.regs().get32(Gpr(i as u8))),
        segments: SEGMENTS.map(|name| hw.segment(name)),
        ldtr: hw.segment(SegmentName::Ldtr),
        tr: hw.segment(SegmentName::Tr),
        gdtr: hw.gdtr(),
        cr0: hw.cr(ControlRegister::Cr0),
        cr3: hw.cr(ControlRegister::Cr3),
        dr7,
        cpl: hw.cpl(),
    }
}

/// The incoming task's registers; `false` if PAE paging does not take its page-directory pointers.
fn put_back<B: Backend>(ctx: &mut Context<'_, B>, state: &TaskState) -> bool {
    let hw = &mut ctx.core.hw;
    for (i, value) in (0..).zip(state.gpr) {
        hw.regs_mut().set32(Gpr(i), value);
    }
    hw.set_rip(state.eip.into());
    hw.set_rflags(state.eflags.into());
    for (name, segment) in SEGMENTS.into_iter().zip(state.segments) {
        hw.set_segment(name, segment);
    }
    hw.set_segment(SegmentName::Ldtr, state.ldtr);
    hw.set_segment(SegmentName::Tr, state.tr);
    hw.set_cpl(state.cpl);
    hw.set_dr7(state.dr7);
    hw.clear_interrupt_shadow();
    hw.set_cr(ControlRegister::Cr0, state.cr0);
    let changed = hw.cr(ControlRegister::Cr3) != state.cr3;
    hw.set_cr(ControlRegister::Cr3, state.cr3);
    let cr4 = hw.cr(ControlRegister::Cr4);
    !changed || control::pdptes_are_accepted(ctx, state.cr0, cr4)
}

/// The guest's memory by linear addresses, for its supervisor.
struct TaskMemory<'r, F: memory::table::TableFormat<Address = Gpa>> {
    ram: &'r GuestRam<F>,
    paging: PagingState,
}

impl<F: memory::table::TableFormat<Address = Gpa>> TaskMemory<'_, F> {
    /// Calls `work` for each page's part of an access, all of which are translated before the first.
    fn parts(
        &mut self,
        address: u32,
        length: usize,
        kind: AccessKind,
        mut work: impl FnMut(&GuestRam<F>, Gpa, core::ops::Range<usize>) -> bool,
    ) -> Result<(), WalkError> {
        let access = Access {
            kind,
            privilege: Privilege::Supervisor,
        };
        // No structure here is longer than a page, so there are two parts at most.
        let (first, second) = mmio::split_at_page(address.into(), length.min(255) as u8);
        let at = walk::translate(self.ram, &self.paging, address.into(), access)?.gpa;
        let (first, second) = (usize::from(first), usize::from(second));
        let next = if second == 0 {
            at
        } else {
            let next = address.wrapping_add(first as u32);
            walk::translate(self.ram, &self.paging, next.into(), access)?.gpa
        };
        let outside = |gpa| WalkError::TableOutsideMemory { gpa };
        if !work(self.ram, at, 0..first) {
            return Err(outside(at));
        }
        if second != 0 && !work(self.ram, next, first..first + second) {
            return Err(outside(next));
        }
        Ok(())
    }
}

impl<F: memory::table::TableFormat<Address = Gpa>> LinearMemory for TaskMemory<'_, F> {
    type Error = WalkError;

    fn read(&mut self, address: u32, bytes: &mut [u8]) -> Result<(), WalkError> {
        self.parts(address, bytes.len(), AccessKind::Read, |ram, gpa, range| {
            bytes
                .get_mut(range)
                .is_some_and(|part| ram.read(gpa, part).is_ok())
        })
    }

    fn write(&mut self, address: u32, bytes: &[u8]) -> Result<(), WalkError> {
        self.parts(
            address,
            bytes.len(),
            AccessKind::Write,
            |ram, gpa, range| {
                bytes
                    .get(range)
                    .is_some_and(|part| ram.write(gpa, part).is_ok())
            },
        )
    }

    fn use_cr3(&mut self, cr3: u32) {
        self.paging.cr3 = cr3.into();
    }
}
