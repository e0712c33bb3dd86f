//! RDMSR and WRMSR: the VM's policy says which registers exist; here they act.

use super::{After, Context, complete, general_protection};
use crate::arch;
use crate::sabotage;
use crate::virt::speculation;
use crate::virt::{Backend, ControlRegister, Direction, Gpr, VcpuState};
use crate::vm::{self, clock};
use config::Sabotage;
use core::sync::atomic::Ordering::Relaxed;
use devices::{Effect, LocalApic};
use guest::msr::{self, EmulatedMsr, MsrAction, StoredMsr};
use units::Gpa;

const CR0_PG: u64 = 1 << 31;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;

/// The access is illegal.
struct Refused;

/// Reads or writes.
pub fn handle<B: Backend>(ctx: &mut Context<'_, B>, direction: Direction) -> After {
    let number = ctx.core.hw.regs().get32(Gpr::RCX);
    let result = match direction {
        Direction::Read => read(ctx, number).map(|value| ctx.core.hw.regs_mut().set_edx_eax(value)),
        Direction::Write => {
            let value = ctx.core.hw.regs().edx_eax();
            write(ctx, number, value)
        }
    };
    match result {
        Ok(()) => complete(ctx, After::Resume),
        Err(Refused) => general_protection(ctx),
    }
}

fn read<B: Backend>(ctx: &mut Context<'_, B>, number: u32) -> Result<u64, Refused> {
    if LocalApic::claims_msr(number) {
        let now = vm::apic_now(ctx.vm, ctx.core.tsc_offset);
        return ctx
            .vcpu
            .apic
            .lock()
            .msr_read(number, now)
            .map_err(|_| Refused);
    }
    let emulated = match ctx.vm.msr_policy.classify(number, msr::Direction::Read) {
        MsrAction::ReadConst(value) => return Ok(value),
        MsrAction::Emulate(emulated) => emulated,
        MsrAction::IgnoreWrite | MsrAction::Passthrough | MsrAction::Deny => {
            return Err(unknown(ctx, number, msr::Direction::Read));
        }
    };
    let guest_tsc = arch::tsc::read().wrapping_add(ctx.core.tsc_offset);
    Ok(match emulated {
        EmulatedMsr::Tsc => guest_tsc,
        EmulatedMsr::TscAdjust => ctx.vcpu.tsc_adjust.load(Relaxed),
        EmulatedMsr::Efer => ctx.core.hw.efer(),
        EmulatedMsr::Pat => ctx.core.msrs.read(StoredMsr::Pat),
        EmulatedMsr::Xss => ctx.core.xss,
        EmulatedMsr::TscAux => ctx.core.hw.tsc_aux(),
        EmulatedMsr::Stored(stored) => ctx.core.msrs.read(stored),
        EmulatedMsr::KvmSystemTime => ctx.core.clock.map_or(0, |page| page.gpa.0 | 1),
        EmulatedMsr::KvmStealTime => ctx.core.steal.map_or(0, |page| page.gpa.0 | 1),
        EmulatedMsr::SpecCtrl => ctx.core.spec_ctrl,
        EmulatedMsr::KvmWallClock | EmulatedMsr::PredCmd => 0,
        EmulatedMsr::ApicBase | EmulatedMsr::X2Apic(_) | EmulatedMsr::TscDeadline => {
            return Err(Refused);
        } // claimed above
    })
}

fn write<B: Backend>(ctx: &mut Context<'_, B>, number: u32, value: u64) -> Result<(), Refused> {
    if LocalApic::claims_msr(number) {
        let now = vm::apic_now(ctx.vm, ctx.core.tsc_offset);
        let effect = ctx
            .vcpu
            .apic
            .lock()
            .msr_write(number, value, now)
            .map_err(|_| Refused)?;
        apic_effect(ctx, effect);
        return Ok(());
    }
    let emulated = match ctx.vm.msr_policy.classify(number, msr::Direction::Write) {
        MsrAction::IgnoreWrite => return Ok(()),
        MsrAction::Emulate(emulated) => emulated,
        MsrAction::ReadConst(_) | MsrAction::Passthrough | MsrAction::Deny => {
            return Err(unknown(ctx, number, msr::Direction::Write));
        }
    };
    match emulated {
        EmulatedMsr::Tsc => {
            let guest_tsc = arch::tsc::read().wrapping_add(ctx.core.tsc_offset);
            adjust_tsc(ctx, value.wrapping_sub(guest_tsc));
        }
        EmulatedMsr::TscAdjust => {
            let delta = value.wrapping_sub(ctx.vcpu.tsc_adjust.load(Relaxed));
            adjust_tsc(ctx, delta);
        }
        EmulatedMsr::Efer => return write_efer(ctx, value),
        EmulatedMsr::Pat => {
            ctx.core
                .msrs
                .write(StoredMsr::Pat, value)
                .map_err(|_| Refused)?;
            ctx.core.hw.set_pat(value);
        }
        EmulatedMsr::Xss => {
            if value & !ctx.vm.cpuid.allowed_xss() != 0 {
                return Err(Refused);
            }
            ctx.core.xss = value;
        }
        EmulatedMsr::TscAux => ctx.core.hw.set_tsc_aux(value & u64::from(u32::MAX)),
        EmulatedMsr::Stored(stored) => ctx.core.msrs.write(stored, value).map_err(|_| Refused)?,
        EmulatedMsr::KvmSystemTime => {
            clock::set_clock_page(ctx.hv, ctx.vm, ctx.vcpu, ctx.core, value)
                .map_err(|_| Refused)?;
        }
        EmulatedMsr::KvmStealTime => {
            clock::set_steal_page(ctx.vm, ctx.core, value).map_err(|_| Refused)?
        }
        EmulatedMsr::KvmWallClock => clock::write_wall_clock(ctx.hv, ctx.vm, Gpa(value)),
        EmulatedMsr::SpecCtrl => {
            if value & !ctx.vm.msr_policy.spec_ctrl_mask() != 0 {
                return Err(Refused);
            }
            ctx.core.spec_ctrl = value;
        }
        EmulatedMsr::PredCmd => match value {
            0 => {}
            1 => speculation::barrier(),
            _ => return Err(Refused),
        },
        EmulatedMsr::ApicBase | EmulatedMsr::X2Apic(_) | EmulatedMsr::TscDeadline => {
            return Err(Refused);
        } // claimed above
    }
    Ok(())
}

/// Carries out what a local APIC register asked for.
pub fn apic_effect<B: Backend>(ctx: &Context<'_, B>, effect: Option<Effect>) {
    match effect {
        Some(Effect::Ipi(message)) => vm::deliver(ctx.hv, ctx.vm, &message),
        Some(Effect::EoiBroadcast(_)) if sabotage::on(Sabotage::LostEoi) => {}
        Some(Effect::EoiBroadcast(vector)) => {
            vm::with_board(ctx.hv, ctx.vm, |board, _| board.eoi(vector))
        }
        None => {}
    }
}

/// The guest's TSC jumps by `delta`.
fn adjust_tsc<B: Backend>(ctx: &mut Context<'_, B>, delta: u64) {
    ctx.vcpu.tsc_adjust.fetch_add(delta, Relaxed); // wraps, as the register does
    clock::arrive(ctx.hv, ctx.vm, ctx.vcpu, ctx.core);
}

/// EFER: only offered bits; LME cannot change while paging is on; LMA is not the guest's to write (APM 2 3.1.7).
fn write_efer<B: Backend>(ctx: &mut Context<'_, B>, value: u64) -> Result<(), Refused> {
    let hw = &ctx.core.hw;
    let old = hw.efer();
    if value & !(ctx.vm.cpuid.allowed_efer() | EFER_LMA) != 0 {
        return Err(Refused);
    }
    if (value ^ old) & EFER_LME != 0 && hw.cr(ControlRegister::Cr0) & CR0_PG != 0 {
        return Err(Refused);
    }
    ctx.core.hw.set_efer(value & !EFER_LMA | old & EFER_LMA);
    Ok(())
}

/// A register that this VM does not have; the first of each is worth a line.
fn unknown<B: Backend>(ctx: &Context<'_, B>, number: u32, direction: msr::Direction) -> Refused {
    if ctx.vm.first_seen.lock().insert(number, direction) {
        log::info!(
            "{}: MSR {number:#x} ({direction:?}) is not offered; the guest gets #GP",
            ctx.vm.name
        );
    }
    Refused
}
