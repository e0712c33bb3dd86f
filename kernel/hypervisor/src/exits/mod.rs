//! What the hypervisor does for a guest that stopped, one file for each class of exit.
//!
//! A handler sees the virtual CPU through [`Context`], changes it, and says how to go on: an
//! [`After`]. It never blocks, never loops longer than a small constant, and nothing that the guest
//! put into a register, a table or an instruction makes it panic: what cannot be honoured becomes
//! the exception that hardware would raise, or stops this VM with a sentence.

#[cfg(feature = "sabotage")]
pub mod absent;
mod control;
mod cpuid;
mod decode;
mod event;
mod io;
mod mmio;
mod msr;
pub mod operands;
mod rejected;
mod task;

use crate::virt::{Backend, Event, Exit, VcpuState};
use crate::vm::{Hypervisor, Vcpu, VcpuCore, Vm};
use alloc::format;
use alloc::string::String;

/// A virtual CPU that stopped, with all that its handler may need.
pub struct Context<'a, B: Backend> {
    /// Everything.
    pub hv: &'a Hypervisor<B>,
    /// Its machine.
    pub vm: &'a Vm<B>,
    /// Its shared part.
    pub vcpu: &'a Vcpu<B>,
    /// Its registers.
    pub core: &'a mut VcpuCore<B>,
    /// The event whose delivery the exit interrupted, until somebody deals with it.
    pub interrupted: Option<Event>,
}

/// How to go on.
#[derive(Debug)]
pub enum After {
    /// Enter the guest again.
    Resume,
    /// It waits for an interrupt.
    Halt,
    /// It spins; somebody else should run.
    Yield,
    /// The VM must stop; the sentence says why.
    Fault(String),
}

/// Handles an exit.
pub fn handle<B: Backend>(ctx: &mut Context<'_, B>, exit: Exit) -> After {
    ctx.interrupted = ctx.core.hw.take_interrupted_event();
    let after = dispatch(ctx, exit);
    event::redeliver(ctx);
    after
}

fn dispatch<B: Backend>(ctx: &mut Context<'_, B>, exit: Exit) -> After {
    match exit {
        // The host's own interrupt is taken when the run loop opens its window, which also looks at the time.
        Exit::Interrupt
        | Exit::TimeUp
        | Exit::LogFull
        | Exit::Nmi
        | Exit::InterruptWindow
        | Exit::NmiWindow => After::Resume,
        Exit::Io(access) => io::handle(ctx, access),
        Exit::Msr(direction) => msr::handle(ctx, direction),
        Exit::Cpuid => cpuid::handle(ctx),
        Exit::Halt => complete(ctx, After::Halt),
        Exit::Pause => complete(ctx, After::Yield),
        Exit::NestedFault(fault) => mmio::handle(ctx, fault),
        Exit::Cr {
            register,
            direction,
            source,
        } => control::register(ctx, register, direction, source),
        Exit::Xsetbv => control::xsetbv(ctx),
        Exit::CacheFlush => complete(ctx, After::Resume),
        Exit::Hypercall => {
            // No hypercall is offered; the public ABI's answer to an unknown one is -KVM_ENOSYS.
            const ENOSYS: i64 = -1000;
            ctx.core
                .hw
                .regs_mut()
                .set(crate::virt::Gpr::RAX, ENOSYS as u64);
            complete(ctx, After::Resume)
        }
        Exit::Exception { vector, error } => event::intercepted(ctx, vector, error),
        Exit::NotOffered(what) => {
            note_refusal(ctx, what, "#UD");
            event::raise(ctx, UNDEFINED_OPCODE, None)
        }
        Exit::NotAllowed(what) => {
            note_refusal(ctx, what, "#GP");
            general_protection(ctx)
        }
        Exit::TaskSwitch { selector, source } => task::handle(ctx, selector, source),
        Exit::Shutdown => After::Fault(String::from("the guest triple-faulted")),
        Exit::PlatformEvent(what) => {
            log::debug!(
                "{} arrived for the host while {} ran; it was left to the platform",
                what,
                ctx.vcpu.id
            );
            After::Resume
        }
        Exit::InvalidState { detail, culprit } => rejected::handle(ctx, detail, culprit),
        Exit::Unexpected { code, info1, info2 } => After::Fault(format!(
            "an exit that nobody asked for: code {code:#x}, information {info1:#x} and {info2:#x}"
        )),
    }
}

/// Tells the operator of an instruction that guests do not have: the first time, the second, the fourth, and so on, since a guest
/// can do it as often as it likes.
fn note_refusal<B: Backend>(ctx: &mut Context<'_, B>, what: &str, exception: &str) {
    let times = ctx.core.refusals.saturating_add(1);
    ctx.core.refusals = times;
    if times.is_power_of_two() {
        log::debug!(
            "{}: {what} is not for guests; the guest gets {exception} ({times} such refusals so far)",
            ctx.vcpu.id
        );
    }
}

/// The instruction that exited is done: goes past it.
fn complete<B: Backend>(ctx: &mut Context<'_, B>, after: After) -> After {
    match decode::advance(ctx) {
        Ok(()) => after,
        Err(stop) => stop,
    }
}

/// The instruction is refused with #GP(0).
fn general_protection<B: Backend>(ctx: &mut Context<'_, B>) -> After {
    event::raise(ctx, GENERAL_PROTECTION, Some(0))
}

const UNDEFINED_OPCODE: u8 = 6;
const GENERAL_PROTECTION: u8 = 13;
const PAGE_FAULT: u8 = 14;
