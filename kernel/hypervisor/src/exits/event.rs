//! Exceptions for the guest, and events whose delivery an exit interrupted.
//!
//! An exit during delivery means that the event was not delivered (APM 2 15.7.2). If the handler
//! raises nothing, the event is given again at the next entry; if it raises an exception, the two
//! combine as in hardware: one after the other, a double fault, or a triple fault.

use super::{After, Context};
use crate::virt::{Backend, Event, EventKind, VcpuState};
use alloc::format;
use alloc::string::String;
use guest::inject::{Delivery, Exception, Interrupted, combine};

pub const VECTOR_DEBUG: u8 = 1;
const VECTOR_ALIGNMENT: u8 = 17;
const VECTOR_MACHINE_CHECK: u8 = 18;

/// Raises an exception in the guest.
pub fn raise<B: Backend>(ctx: &mut Context<'_, B>, vector: u8, error: Option<u32>) -> After {
    let first = ctx.interrupted.take().and_then(interrupted);
    match combine(first, Exception::new(vector, error)) {
        Delivery::Exception { now, then } => {
            ctx.core.hw.inject(exception(now));
            // One that waits already stays: nobody else would deliver it.
            let then = then.and_then(postponed);
            ctx.core.postponed = ctx.core.postponed.or(then);
            After::Resume
        }
        Delivery::DoubleFault => {
            ctx.core.hw.inject(exception(Exception::DF0));
            After::Resume
        }
        Delivery::Shutdown => After::Fault(String::from("the guest triple-faulted")),
    }
}

/// The handler is done: an event that is still undelivered is given again.
pub fn redeliver<B: Backend>(ctx: &mut Context<'_, B>) {
    let Some(event) = ctx.interrupted.take() else {
        return;
    };
    if !interrupted(event).is_some_and(Interrupted::repeats_by_itself) {
        ctx.core.hw.inject(event);
    }
}

/// #DB and #AC go to the guest; #MC is the host's affair.
pub fn intercepted<B: Backend>(ctx: &mut Context<'_, B>, vector: u8, error: u32) -> After {
    match vector {
        VECTOR_DEBUG => raise(ctx, VECTOR_DEBUG, None),
        VECTOR_ALIGNMENT => raise(ctx, VECTOR_ALIGNMENT, Some(error)),
        // The exit has used it up: the host's handler, which reports the banks, is called instead.
        VECTOR_MACHINE_CHECK => crate::arch::trap::take_machine_check(),
        other => After::Fault(format!(
            "an exception with vector {other} was intercepted without being asked for"
        )),
    }
}

fn exception(e: Exception) -> Event {
    Event {
        kind: EventKind::Exception,
        vector: e.vector,
        error: e.error_code,
    }
}

fn interrupted(event: Event) -> Option<Interrupted> {
    Some(match event.kind {
        EventKind::Interrupt => Interrupted::External(event.vector),
        EventKind::Nmi => Interrupted::Nmi,
        EventKind::Exception => Interrupted::exception(Exception::new(event.vector, event.error)),
        EventKind::SoftwareInterrupt => Interrupted::Software(event.vector),
    })
}

fn postponed(event: Interrupted) -> Option<Event> {
    match event {
        Interrupted::External(vector) => Some(Event::interrupt(vector)),
        Interrupted::Nmi => Some(Event::NMI),
        Interrupted::Exception(e) => Some(exception(e)),
        Interrupted::Software(_) => None,
    }
}
