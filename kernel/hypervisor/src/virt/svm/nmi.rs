//! One NMI at a time (APM 2 8.1.3), which SVM leaves to software.
//!
//! From the delivery of an NMI to the end of the handler's IRET no other may come. The IRET is intercepted, but the exit comes
//! before it: another NMI now would overwrite the frame that it returns by. So the guest executes just that
//! instruction, by a single step of ours, and the door is open again. Without the step the next NMI would come at
//! whatever exit is next, which a guest with interrupts off may not have for long.
//!
//! The step must not show. TF is set only for an entry that starts at the IRET and delivers nothing, and taken back if the IRET was
//! not executed; meanwhile all exceptions exit, so that none of the IRET's own pushes flags with our TF. A guest that
//! steps itself needs no step of ours: its trap is an exit behind the IRET. Nor is there one where the IRET returns to
//! another task: the processor would save our TF with the task that is left. Its switch is an exit, and opens the door.
//! QEMU, which switches by itself (10.0), opens it at the next exit.

use super::vcpu::{EXCEPTIONS, SvmVcpu};
use super::vmcb::{EVENT_VALID, code};
use crate::virt::{Event, EventKind, VcpuState};
use guest::{inject, task_switch};

const RFLAGS_TF: u64 = 1 << 8;
/// DR6: a single step.
const DR6_BS: u64 = 1 << 14;
/// All exceptions; vector 2 is none.
const ALL_EXCEPTIONS: u32 = !(1 << 2);

/// Where a virtual CPU is between an NMI and the end of its handler.
#[derive(Debug, Default)]
pub struct NmiGate {
    blocked: bool,
    /// Where the IRET is, from its interception until it has been executed.
    iret_at: Option<u64>,
    /// A step of ours is under way; what DR6.BS was before.
    step: Option<u64>,
}

impl NmiGate {
    /// Whether another NMI must wait.
    pub fn is_closed(&self) -> bool {
        self.blocked
    }
}

impl SvmVcpu {
    /// An NMI is delivered at the next entry.
    pub(super) fn close_nmi_gate(&mut self) {
        self.nmi.blocked = true;
        self.nmi.iret_at = None;
        self.intercept_iret(true);
    }

    pub(super) fn open_nmi_gate(&mut self) {
        self.nmi.iret_at = None;
        self.nmi.blocked = false;
    }

    /// As after a reset.
    pub(super) fn forget_nmi(&mut self) {
        self.nmi = NmiGate::default();
        self.intercept_iret(false);
    }

    /// The guest is about to be entered.
    pub(super) fn begin_step(&mut self) {
        let at_iret = self.nmi.iret_at == Some(self.rip());
        let vmcb = self.vmcb_mut();
        let (control, save) = (&mut vmcb.control, &mut vmcb.save);
        let switches = task_switch::iret_switches(save.rflags, save.cr0, save.efer);
        if !at_iret
            || switches
            || control.event_injection & EVENT_VALID != 0
            || save.rflags & RFLAGS_TF != 0
        {
            return;
        }
        let before = save.dr6 & DR6_BS;
        save.dr6 &= !DR6_BS;
        save.rflags |= RFLAGS_TF;
        control.intercept_exceptions = ALL_EXCEPTIONS;
        self.nmi.step = Some(before);
    }

    /// The guest was left.
    pub(super) fn end_step(&mut self) {
        let rip = self.rip();
        let exit = self.vmcb().control.exit_code;
        if let Some(before) = self.nmi.step.take() {
            self.vmcb_mut().control.intercept_exceptions = EXCEPTIONS;
            let stepped =
                exit == code::EXCEPTION_FIRST + u64::from(inject::DB) && self.dr6() & DR6_BS != 0;
            let save = &mut self.vmcb_mut().save;
            save.dr6 = save.dr6 & !DR6_BS | before;
            if stepped {
                self.open_nmi_gate();
                return self.nothing_for_the_guest();
            }
            if self.nmi.iret_at == Some(rip) {
                self.vmcb_mut().save.rflags &= !RFLAGS_TF;
                self.give_back_exception();
            }
        } else if exit == code::IRET {
            self.intercept_iret(false);
            self.nmi.iret_at = Some(rip);
            return;
        }
        if self.nmi.iret_at.is_some_and(|at| at != rip) {
            self.open_nmi_gate();
        }
    }

    /// An exception of the IRET's own that exited only because of the step goes to the guest after all. The handler is not
    /// left: it is the IRET of that exception's handler, or the same one again, that opens the door.
    fn give_back_exception(&mut self) {
        let control = &self.vmcb().control;
        let (info1, info2) = (control.exit_info1, control.exit_info2);
        let Some(vector) = control
            .exit_code
            .checked_sub(code::EXCEPTION_FIRST)
            .and_then(|vector| u8::try_from(vector).ok())
            .filter(|vector| *vector < 32 && EXCEPTIONS >> vector & 1 == 0)
        else {
            return;
        };
        if vector == inject::PF {
            self.vmcb_mut().save.cr2 = info2;
        }
        self.inject(Event {
            kind: EventKind::Exception,
            vector,
            error: inject::pushes_error_code(vector).then_some(info1 as u32),
        });
        self.close_nmi_gate();
        self.nothing_for_the_guest();
    }

    /// Nobody but this file needs to know of the exit: it becomes that of an IRET, which asks for nothing.
    fn nothing_for_the_guest(&mut self) {
        self.vmcb_mut().control.exit_code = code::IRET;
    }
}
