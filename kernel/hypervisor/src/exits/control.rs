//! Control registers and XCR0: checked against what the guest's CPUID offers.

use super::{After, Context, complete, decode, event, general_protection};
use crate::virt::{Backend, ControlRegister, CrSource, Direction, Gpr, VcpuState};
use guest::GuestMemory;
use guest::cpuid::Xsetbv;
use iced_x86::{Code, Instruction, Register};
use units::Gpa;

const CR0_PE: u64 = 1 << 0;
const CR0_MP: u64 = 1 << 1;
const CR0_EM: u64 = 1 << 2;
const CR0_TS: u64 = 1 << 3;
const CR0_ET: u64 = 1 << 4;
const CR0_NW: u64 = 1 << 29;
const CR0_CD: u64 = 1 << 30;
const CR0_PG: u64 = 1 << 31;
/// All bits of CR0 that are defined (APM 2 3.1.1).
const CR0_DEFINED: u64 = 0xe005_003f;
const CR4_PSE: u64 = 1 << 4;
const CR4_PAE: u64 = 1 << 5;
const CR4_PGE: u64 = 1 << 7;
const CR4_PCIDE: u64 = 1 << 17;
const CR4_SMEP: u64 = 1 << 20;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
/// Segment attribute L.
const ATTRIBUTE_LONG: u16 = 1 << 9;

/// A control register was read or written.
pub fn register<B: Backend>(
    ctx: &mut Context<'_, B>,
    register: ControlRegister,
    direction: Direction,
    source: CrSource,
) -> After {
    if direction == Direction::Read {
        return read(ctx, register, source);
    }
    let operand = match source {
        CrSource::Mov(gpr) => Ok(Operand::Gpr(gpr)),
        CrSource::Value(value) => Ok(Operand::Value(value)),
        CrSource::Undecoded => decode::instruction(ctx).and_then(|i| operand(ctx, &i)),
    };
    let value = match operand {
        Ok(Operand::Gpr(gpr)) => ctx.core.hw.regs().get(gpr),
        Ok(Operand::Value(value)) => value,
        Err(after) => return after,
    };
    let accepted = match register {
        ControlRegister::Cr0 => write_cr0(ctx, value),
        ControlRegister::Cr4 => write_cr4(ctx, value),
        ControlRegister::Cr8 => ctx.vcpu.apic.lock().set_cr8(value).is_ok(),
        ControlRegister::Cr2 | ControlRegister::Cr3 => {
            ctx.core.hw.set_cr(register, value);
            true
        }
    };
    if accepted {
        complete(ctx, After::Resume)
    } else {
        general_protection(ctx)
    }
}

/// MOV from a control register, or SMSW.
fn read<B: Backend>(
    ctx: &mut Context<'_, B>,
    register: ControlRegister,
    source: CrSource,
) -> After {
    let done = match source {
        CrSource::Mov(gpr) => {
            let value = ctx.core.hw.cr(register);
            ctx.core.hw.regs_mut().set(gpr, value);
            Ok(())
        }
        CrSource::Value(_) => Ok(()),
        CrSource::Undecoded => decode::instruction(ctx).and_then(|i| store(ctx, &i)),
    };
    match done {
        Ok(()) => complete(ctx, After::Resume),
        Err(after) => after,
    }
}

/// Puts a control register where the instruction wants it. `Err` says how to go on if it cannot.
///
/// Which register it is, the instruction says: QEMU calls a read of any of them a read of CR0.
fn store<B: Backend>(ctx: &mut Context<'_, B>, instruction: &Instruction) -> Result<(), After> {
    let from = match instruction.op1_register() {
        Register::CR2 => ControlRegister::Cr2,
        Register::CR3 => ControlRegister::Cr3,
        Register::CR4 => ControlRegister::Cr4,
        Register::CR8 => ControlRegister::Cr8,
        _ => ControlRegister::Cr0,
    };
    let value = ctx.core.hw.cr(from);
    let regs = ctx.core.hw.regs_mut();
    match (instruction.code(), gpr(instruction.op0_register())) {
        // SMSW stores a word in memory, and as much of a register as it names (APM 3, SMSW).
        (Code::Smsw_rm16 | Code::Smsw_r32m16 | Code::Smsw_r64m16, None) => {
            decode::store_word(ctx, instruction, value as u16)?;
        }
        (Code::Smsw_rm16, Some(to)) => {
            let kept = regs.get(to) & !0xffff;
            regs.set(to, kept | value & 0xffff);
        }
        (Code::Smsw_r32m16 | Code::Mov_r32_cr, Some(to)) => regs.set32(to, value as u32),
        (Code::Smsw_r64m16 | Code::Mov_r64_cr, Some(to)) => regs.set(to, value),
        // Another CPU rewrote the instruction meanwhile.
        _ => return Err(After::Resume),
    }
    Ok(())
}

enum Operand {
    Gpr(Gpr),
    Value(u64),
}

/// What a MOV to a control register, LMSW or CLTS loads. `Err` says how to go on without one.
fn operand<B: Backend>(
    ctx: &mut Context<'_, B>,
    instruction: &Instruction,
) -> Result<Operand, After> {
    let cr0 = ctx.core.hw.cr(ControlRegister::Cr0);
    let register = match instruction.code() {
        Code::Mov_cr_r32 | Code::Mov_cr_r64 => instruction.op1_register(),
        Code::Clts => return Ok(Operand::Value(cr0 & !CR0_TS)),
        Code::Lmsw_rm16 | Code::Lmsw_r32m16 | Code::Lmsw_r64m16 => {
            let word = match gpr(instruction.op0_register()) {
                Some(from) => ctx.core.hw.regs().get(from),
                None => u64::from(decode::word_operand(ctx, instruction)?),
            };
            let word = word & 0xf;
            // LMSW loads bits 3:0 and cannot clear PE (APM 3, LMSW).
            return Ok(Operand::Value(cr0 & !(CR0_MP | CR0_EM | CR0_TS) | word));
        }
        _ => Register::None,
    };
    // Another CPU rewrote the instruction meanwhile: the guest executes what is there now.
    gpr(register).map(Operand::Gpr).ok_or(After::Resume)
}

/// The number of a general-purpose register of 16, 32 or 64 bits.
fn gpr(register: Register) -> Option<Gpr> {
    let number = register as u32;
    [
        Register::AX as u32,
        Register::EAX as u32,
        Register::RAX as u32,
    ]
    .into_iter()
    .find_map(|first| number.checked_sub(first).filter(|n| *n < 16))
    .map(|n| Gpr(n as u8))
}

/// MOV to CR0 (APM 2 3.1.1, 14.6): the faults hardware would raise, and long mode's activation.
fn write_cr0<B: Backend>(ctx: &mut Context<'_, B>, value: u64) -> bool {
    let hw = &ctx.core.hw;
    let (old, cr4, efer) = (
        hw.cr(ControlRegister::Cr0),
        hw.cr(ControlRegister::Cr4),
        hw.efer(),
    );
    if value >> 32 != 0
        || value & CR0_PG != 0 && value & CR0_PE == 0
        || value & CR0_NW != 0 && value & CR0_CD == 0
    {
        return false;
    }
    let value = value & CR0_DEFINED | CR0_ET;
    let (paging, was_paging) = (value & CR0_PG != 0, old & CR0_PG != 0);
    if paging && !was_paging && efer & EFER_LME != 0 {
        let long_cs = hw.segment(crate::virt::SegmentName::Cs).attributes & ATTRIBUTE_LONG != 0;
        if cr4 & CR4_PAE == 0 || long_cs {
            return false;
        }
        ctx.core.hw.set_efer(efer | EFER_LMA);
    }
    if !paging && was_paging {
        let long_code = efer & EFER_LMA != 0
            && ctx.core.hw.segment(crate::virt::SegmentName::Cs).attributes & ATTRIBUTE_LONG != 0;
        if cr4 & CR4_PCIDE != 0 || long_code {
            return false;
        }
        ctx.core.hw.set_efer(efer & !EFER_LMA);
    }
    let reloads = (value ^ old) & (CR0_PG | CR0_CD | CR0_NW) != 0;
    if reloads && !pdptes_are_accepted(ctx, value, cr4) {
        return false;
    }
    ctx.core.hw.set_cr(ControlRegister::Cr0, value);
    true
}

/// MOV to CR4: bits that CPUID does not offer are reserved (APM 2 3.1.3).
fn write_cr4<B: Backend>(ctx: &mut Context<'_, B>, value: u64) -> bool {
    let hw = &ctx.core.hw;
    let (old, cr3, efer) = (
        hw.cr(ControlRegister::Cr4),
        hw.cr(ControlRegister::Cr3),
        hw.efer(),
    );
    if value & !ctx.vm.cpuid.allowed_cr4() != 0 {
        return false;
    }
    let long = efer & EFER_LMA != 0;
    if long && value & CR4_PAE == 0 {
        return false;
    }
    if value & CR4_PCIDE != 0 && old & CR4_PCIDE == 0 && (!long || cr3 & 0xfff != 0) {
        return false;
    }
    let cr0 = ctx.core.hw.cr(ControlRegister::Cr0);
    let reloads = (value ^ old) & (CR4_PSE | CR4_PAE | CR4_PGE | CR4_SMEP) != 0;
    if reloads && !pdptes_are_accepted(ctx, cr0, value) {
        return false;
    }
    ctx.core.hw.set_cr(ControlRegister::Cr4, value);
    true
}

/// With PAE paging a MOV to CR0 or CR4 loads four page-directory pointers (SDM 3A 4.4.1).
pub(super) fn pdptes_are_accepted<B: Backend>(
    ctx: &mut Context<'_, B>,
    cr0: u64,
    cr4: u64,
) -> bool {
    /// Bits 31:5 of CR3.
    const TABLE: u64 = 0xffff_ffe0;
    if cr0 & CR0_PG == 0 || cr4 & CR4_PAE == 0 || ctx.core.hw.efer() & EFER_LMA != 0 {
        return true;
    }
    let at = Gpa(ctx.core.hw.cr(ControlRegister::Cr3) & TABLE);
    let mut bytes = [0_u8; 32];
    // Where no memory is, nothing is present.
    let _ = ctx.vm.ram.read(at, &mut bytes);
    let mut pdptes = [0; 4];
    for (pdpte, word) in pdptes.iter_mut().zip(bytes.as_chunks().0) {
        *pdpte = u64::from_le_bytes(*word);
    }
    ctx.core.hw.accept_pdptes(pdptes)
}

/// XSETBV: loads XCR0, or raises what [`guest::cpuid::CpuidPolicy::xsetbv`] says.
pub fn xsetbv<B: Backend>(ctx: &mut Context<'_, B>) -> After {
    let hw = &ctx.core.hw;
    let asked = Xsetbv {
        cr4: hw.cr(ControlRegister::Cr4),
        cpl: hw.cpl(),
        register: hw.regs().get32(Gpr::RCX),
        value: hw.regs().edx_eax(),
    };
    match ctx.vm.cpuid.xsetbv(asked) {
        Ok(value) => {
            ctx.core.hw.set_xcr0(value);
            complete(ctx, After::Resume)
        }
        Err(exception) => event::raise(ctx, exception.vector, exception.error_code),
    }
}
