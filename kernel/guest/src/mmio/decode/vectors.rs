//! SSE and AVX moves.

use super::super::{Fill, Operation, Part, VectorEncoding};
use super::operand::operand_segment;
use iced_x86::{Code, Instruction, OpKind, Register};

/// Whether the address must be aligned to the operand's size.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Aligned {
    Yes,
    No,
}

/// Which part of the register moves.
#[derive(Clone, Copy)]
enum Lane {
    /// The low bytes; a load clears the rest.
    Whole,
    /// Bits 63:0; a load keeps the rest.
    Low,
    /// Bits 127:64; a load keeps the rest.
    High,
}

pub(super) fn operation(i: &Instruction) -> Option<Operation> {
    if let Some(mmx) = mmx(i) {
        return Some(mmx);
    }
    if let Some(masked) = masked(i) {
        return Some(masked);
    }
    let (size, aligned, lane, encoding) = shape(i.code())?;
    let alignment = if aligned == Aligned::Yes { size } else { 1 };
    if let Some(to) = register(i.op0_register()) {
        // By VEX the other half comes from a register of its own.
        let kept = match encoding {
            VectorEncoding::Legacy => to,
            VectorEncoding::Vex => register(i.op1_register()).unwrap_or(to),
        };
        let fill = match lane {
            Lane::Whole => Fill::Zero,
            Lane::Low => Fill::LowOf(kept),
            Lane::High => Fill::HighOf(kept),
        };
        let last = i.op_count().checked_sub(1)?;
        return memory(i, last).then_some(Operation::VectorLoad {
            to,
            size,
            fill,
            encoding,
            alignment,
        });
    }
    let from = register(i.op1_register())?;
    memory(i, 0).then_some(Operation::VectorStore {
        from,
        first: if matches!(lane, Lane::High) { 8 } else { 0 },
        size,
        encoding,
        alignment,
    })
}

/// MOVD, MOVQ and MOVNTQ with an MMX register.
fn mmx(i: &Instruction) -> Option<Operation> {
    use Code as C;
    let number = |r: Register| {
        let n = (r as usize).checked_sub(Register::MM0 as usize)?;
        u8::try_from(n).ok().filter(|n| *n < 8)
    };
    let size = match i.code() {
        C::Movd_mm_rm32 | C::Movd_rm32_mm => 4,
        C::Movq_mm_rm64 | C::Movq_rm64_mm | C::Movq_mm_mmm64 | C::Movq_mmm64_mm => 8,
        C::Movntq_m64_mm => 8,
        _ => return None,
    };
    if memory(i, 1) {
        let to = number(i.op0_register())?;
        return Some(Operation::MmxLoad { to, size });
    }
    let from = number(i.op1_register())?;
    memory(i, 0).then_some(Operation::MmxStore { from, size })
}

/// MASKMOVDQU.
fn masked(i: &Instruction) -> Option<Operation> {
    let encoding = match i.code() {
        Code::Maskmovdqu_rDI_xmm_xmm => VectorEncoding::Legacy,
        Code::VEX_Vmaskmovdqu_rDI_xmm_xmm => VectorEncoding::Vex,
        _ => return None,
    };
    let address = match i.op0_kind() {
        OpKind::MemorySegDI => Part::Word,
        OpKind::MemorySegEDI => Part::Dword,
        OpKind::MemorySegRDI => Part::Qword,
        _ => return None,
    };
    Some(Operation::MaskedStore {
        from: register(i.op1_register())?,
        chosen: register(i.op2_register())?,
        address,
        segment: operand_segment(i)?,
        encoding,
    })
}

fn memory(i: &Instruction, operand: u32) -> bool {
    i.try_op_kind(operand)
        .is_ok_and(|kind| kind == iced_x86::OpKind::Memory)
}

fn register(r: Register) -> Option<u8> {
    let n = r as usize;
    [Register::XMM0, Register::YMM0]
        .into_iter()
        .find_map(|first| n.checked_sub(first as usize).filter(|n| *n < 16))
        .map(|n| n as u8)
}

/// Bytes, alignment, part and encoding of the moves that are emulated.
const fn shape(code: Code) -> Option<(u8, Aligned, Lane, VectorEncoding)> {
    use Aligned::{No, Yes};
    use Code as C;
    use Lane::{High, Low, Whole};
    use VectorEncoding::{Legacy, Vex};
    Some(match code {
        C::Movups_xmm_xmmm128
        | C::Movups_xmmm128_xmm
        | C::Movupd_xmm_xmmm128
        | C::Movupd_xmmm128_xmm
        | C::Movdqu_xmm_xmmm128
        | C::Movdqu_xmmm128_xmm
        | C::Lddqu_xmm_m128 => (16, No, Whole, Legacy),
        C::Movaps_xmm_xmmm128
        | C::Movaps_xmmm128_xmm
        | C::Movapd_xmm_xmmm128
        | C::Movapd_xmmm128_xmm
        | C::Movdqa_xmm_xmmm128
        | C::Movdqa_xmmm128_xmm
        | C::Movntps_m128_xmm
        | C::Movntpd_m128_xmm
        | C::Movntdq_m128_xmm
        | C::Movntdqa_xmm_m128 => (16, Yes, Whole, Legacy),
        C::Movss_xmm_xmmm32 | C::Movss_xmmm32_xmm | C::Movd_xmm_rm32 | C::Movd_rm32_xmm => {
            (4, No, Whole, Legacy)
        }
        C::Movsd_xmm_xmmm64
        | C::Movsd_xmmm64_xmm
        | C::Movq_xmm_rm64
        | C::Movq_rm64_xmm
        | C::Movq_xmm_xmmm64
        | C::Movq_xmmm64_xmm => (8, No, Whole, Legacy),
        C::Movlps_xmm_m64 | C::Movlps_m64_xmm | C::Movlpd_xmm_m64 | C::Movlpd_m64_xmm => {
            (8, No, Low, Legacy)
        }
        C::Movhps_xmm_m64 | C::Movhps_m64_xmm | C::Movhpd_xmm_m64 | C::Movhpd_m64_xmm => {
            (8, No, High, Legacy)
        }
        C::VEX_Vmovups_xmm_xmmm128
        | C::VEX_Vmovups_xmmm128_xmm
        | C::VEX_Vmovupd_xmm_xmmm128
        | C::VEX_Vmovupd_xmmm128_xmm
        | C::VEX_Vmovdqu_xmm_xmmm128
        | C::VEX_Vmovdqu_xmmm128_xmm
        | C::VEX_Vlddqu_xmm_m128 => (16, No, Whole, Vex),
        C::VEX_Vmovaps_xmm_xmmm128
        | C::VEX_Vmovaps_xmmm128_xmm
        | C::VEX_Vmovapd_xmm_xmmm128
        | C::VEX_Vmovapd_xmmm128_xmm
        | C::VEX_Vmovdqa_xmm_xmmm128
        | C::VEX_Vmovdqa_xmmm128_xmm
        | C::VEX_Vmovntps_m128_xmm
        | C::VEX_Vmovntpd_m128_xmm
        | C::VEX_Vmovntdq_m128_xmm
        | C::VEX_Vmovntdqa_xmm_m128 => (16, Yes, Whole, Vex),
        C::VEX_Vmovups_ymm_ymmm256
        | C::VEX_Vmovups_ymmm256_ymm
        | C::VEX_Vmovupd_ymm_ymmm256
        | C::VEX_Vmovupd_ymmm256_ymm
        | C::VEX_Vmovdqu_ymm_ymmm256
        | C::VEX_Vmovdqu_ymmm256_ymm
        | C::VEX_Vlddqu_ymm_m256 => (32, No, Whole, Vex),
        C::VEX_Vmovaps_ymm_ymmm256
        | C::VEX_Vmovaps_ymmm256_ymm
        | C::VEX_Vmovapd_ymm_ymmm256
        | C::VEX_Vmovapd_ymmm256_ymm
        | C::VEX_Vmovdqa_ymm_ymmm256
        | C::VEX_Vmovdqa_ymmm256_ymm
        | C::VEX_Vmovntps_m256_ymm
        | C::VEX_Vmovntpd_m256_ymm
        | C::VEX_Vmovntdq_m256_ymm
        | C::VEX_Vmovntdqa_ymm_m256 => (32, Yes, Whole, Vex),
        C::VEX_Vmovss_xmm_m32
        | C::VEX_Vmovss_m32_xmm
        | C::VEX_Vmovd_xmm_rm32
        | C::VEX_Vmovd_rm32_xmm => (4, No, Whole, Vex),
        C::VEX_Vmovsd_xmm_m64
        | C::VEX_Vmovsd_m64_xmm
        | C::VEX_Vmovq_xmm_rm64
        | C::VEX_Vmovq_rm64_xmm
        | C::VEX_Vmovq_xmm_xmmm64
        | C::VEX_Vmovq_xmmm64_xmm => (8, No, Whole, Vex),
        C::VEX_Vmovlps_xmm_xmm_m64
        | C::VEX_Vmovlps_m64_xmm
        | C::VEX_Vmovlpd_xmm_xmm_m64
        | C::VEX_Vmovlpd_m64_xmm => (8, No, Low, Vex),
        C::VEX_Vmovhps_xmm_xmm_m64
        | C::VEX_Vmovhps_m64_xmm
        | C::VEX_Vmovhpd_xmm_xmm_m64
        | C::VEX_Vmovhpd_m64_xmm => (8, No, High, Vex),
        _ => return None,
    })
}
