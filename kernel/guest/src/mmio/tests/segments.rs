//! Segments, limits and faults, which no test process can try natively.

use super::*;
use crate::inject::{GP, NM, SS, UD};

fn with_segment(limit: u32, attributes: u16) -> CpuState {
    let mut c = cpu();
    c.code = CodeSize::Bits32;
    for segment in &mut c.segments {
        *segment = Segment {
            selector: 8,
            base: 0x10_0000,
            limit,
            attributes,
        };
    }
    c
}

fn at(c: &CpuState, segment: SegmentRegister, offset: u64, kind: AccessKind) -> Result<u64, u8> {
    linear(c, segment, offset, 4, kind).map_err(|e| {
        assert_eq!(e.error_code, Some(0));
        e.vector
    })
}

use AccessKind::{Read, Write};
use SegmentRegister::{Cs, Ds, Fs, Ss};

#[test]
fn limits_hold_for_the_last_byte() {
    let c = with_segment(0xFFF, 0xC93);
    assert_eq!(at(&c, Ds, 0xFFC, Read), Ok(0x10_0FFC));
    assert_eq!(at(&c, Ds, 0xFFD, Read), Err(GP));
    assert_eq!(at(&c, Ss, 0xFFD, Read), Err(SS));
    // Expand-down: what is above the limit, up to 4 GiB or 64 KiB.
    let down = with_segment(0xFFF, 0xC97);
    assert_eq!(at(&down, Ds, 0xFFF, Read), Err(GP));
    assert_eq!(at(&down, Ds, 0x1000, Write), Ok(0x10_1000));
    assert_eq!(at(&down, Ds, 0xFFFF_FFFC, Write), Ok(0xF_FFFC));
    let small = with_segment(0xFFF, 0x097);
    assert_eq!(at(&small, Ds, 0xFFFC, Read), Ok(0x10_FFFC));
    assert_eq!(at(&small, Ds, 0xFFFD, Read), Err(GP));
    // A flat segment wraps.
    let flat = with_segment(u32::MAX, 0xC93);
    assert_eq!(at(&flat, Ds, 0xFFFF_FFFE, Read), Ok(0xF_FFFE));
}

#[test]
fn types_hold_in_protected_mode_only() {
    let read_only = with_segment(u32::MAX, 0xC91);
    assert_eq!(at(&read_only, Ds, 0, Read), Ok(0x10_0000));
    assert_eq!(at(&read_only, Ds, 0, Write), Err(GP));
    let code = with_segment(u32::MAX, 0xC9B);
    assert_eq!(at(&code, Cs, 0, Read), Ok(0x10_0000));
    assert_eq!(at(&code, Cs, 0, Write), Err(GP));
    let execute_only = with_segment(u32::MAX, 0xC99);
    assert_eq!(at(&execute_only, Cs, 0, Read), Err(GP));
    let absent = with_segment(u32::MAX, 0xC13);
    assert_eq!(at(&absent, Ss, 0, Read), Err(SS));

    let mut real = with_segment(0xFFFF, 0x99);
    real.cr0 = 0;
    assert_eq!(at(&real, Cs, 0xFFFC, Write), Ok(0x10_FFFC));
    assert_eq!(at(&real, Cs, 0xFFFD, Write), Err(GP));
    // Virtual-8086 mode is no protected mode in this respect.
    let mut virtual86 = with_segment(0xFFFF, 0x99);
    virtual86.rflags |= 1 << 17;
    assert_eq!(at(&virtual86, Cs, 0xFFFC, Write), Ok(0x10_FFFC));
}

#[test]
fn addresses_of_64_bit_code_are_canonical() {
    let mut c = with_segment(0, 0);
    c.code = CodeSize::Bits64;
    assert_eq!(at(&c, Ds, 0x7FFF_FFFF_FFFC, Read), Ok(0x7FFF_FFFF_FFFC));
    assert_eq!(at(&c, Ds, 0x7FFF_FFFF_FFFD, Read), Err(GP));
    assert_eq!(at(&c, Ss, 0x8000_0000_0000, Read), Err(SS));
    assert_eq!(
        at(&c, Fs, 0xFFFF_8000_0000_0000 - 0x10_0000, Read),
        Ok(0xFFFF_8000_0000_0000)
    );
    c.cr4 = 1 << 12;
    assert_eq!(at(&c, Ss, 0x8000_0000_0000, Read), Ok(0x8000_0000_0000));
}

#[test]
fn sixteen_bit_addresses_wrap() {
    // mov [bx+si+5], eax
    let i = decoded(&[0x66, 0x89, 0x40, 0x05], CodeSize::Bits16).expect("16-bit code");
    let address = i.address.expect("memory");
    let mut c = with_segment(0xFFFF, 0x93);
    c.code = CodeSize::Bits16;
    c.gpr[3] = 0xABCD_FFFF;
    c.gpr[6] = 0x1_0003;
    assert_eq!(address.offset(&c), 7);
    // mov eax, [bp+di]: the stack's segment; with an override DS.
    let i = decoded(&[0x66, 0x8B, 0x03], CodeSize::Bits16).expect("16-bit code");
    assert_eq!(i.address.map(|a| a.segment), Some(Ss));
    let i = decoded(&[0x3E, 0x66, 0x8B, 0x03], CodeSize::Bits16).expect("16-bit code");
    assert_eq!(i.address.map(|a| a.segment), Some(Ds));
    // mov [0x1234], al and, with 32-bit addresses, [0x89abcdef].
    let i = decoded(&[0xA2, 0x34, 0x12], CodeSize::Bits16).expect("16-bit code");
    assert_eq!(i.address.map(|a| a.offset(&c)), Some(0x1234));
    let i = decoded(&[0x67, 0xA2, 0xEF, 0xCD, 0xAB, 0x89], CodeSize::Bits16).expect("67h");
    assert_eq!(i.address.map(|a| a.offset(&c)), Some(0x89AB_CDEF));
    // In 64-bit code 67h makes 32 bits of the sum: mov [eax-1], cl.
    let i = decoded(&[0x67, 0x88, 0x48, 0xFF], CodeSize::Bits64).expect("67h");
    c.gpr[0] = 0;
    assert_eq!(i.address.map(|a| a.offset(&c)), Some(0xFFFF_FFFF));
    // mov eax, [rip+0x10], at 0x1000.
    let i = decoded(&[0x8B, 0x05, 0x10, 0, 0, 0], CodeSize::Bits64).expect("RIP");
    assert_eq!(i.address.map(|a| a.offset(&c)), Some(0x1016));
}

#[test]
fn the_stack_has_the_width_of_its_segment() {
    // push dword [0x7000] in 32-bit code, on a 16-bit stack.
    let i = decoded(&[0xFF, 0x35, 0, 0x70, 0, 0], CodeSize::Bits32).expect("push");
    let mut c = with_segment(0xFFFF, 0x93);
    c.gpr[4] = 0xABCD_0002;
    let mut bus = TestBus::default();
    assert_eq!(
        step(&i, &mut c, &mut bus),
        Err(Refusal::Exception(Exception::new(SS, Some(0))))
    );
    assert_eq!(c.gpr[4], 0xABCD_0002);
    c.gpr[4] = 0xABCD_0000;
    bus.register = 0x1234_5678;
    assert_eq!(step(&i, &mut c, &mut bus), Ok(Completion::Advance));
    assert_eq!(
        (c.gpr[4], bus.memory[&0x10_FFFC]),
        (0xABCD_FFFC, (4, 0x1234_5678))
    );
}

#[test]
fn a_jump_out_of_the_code_segment_faults() {
    let i = decoded(&[0xFF, 0x25, 0, 0x70, 0, 0], CodeSize::Bits32).expect("jmp [0x7000]");
    let mut c = with_segment(0xFFFF, 0x93);
    let mut bus = TestBus {
        register: 0xFFFF,
        ..TestBus::default()
    };
    assert_eq!(step(&i, &mut c, &mut bus), Ok(Completion::Jump(0xFFFF)));
    bus.register = 0x1_0000;
    assert_eq!(step(&i, &mut c, &mut bus), Err(FAULT));
    // call [0x7000] pushes nothing then.
    let i = decoded(&[0xFF, 0x15, 0, 0x70, 0, 0], CodeSize::Bits32).expect("call [0x7000]");
    c.gpr[4] = 0x100;
    assert_eq!(step(&i, &mut c, &mut bus), Err(FAULT));
    assert!(bus.written.is_empty() && c.gpr[4] == 0x100);
}

#[test]
fn vector_moves_need_what_switches_them_on() {
    let sse = decoded(&[0x0F, 0x11, 0x07], CodeSize::Bits64).expect("movups [rdi], xmm0");
    let avx = decoded(&[0xC5, 0xFC, 0x11, 0x07], CodeSize::Bits64).expect("vmovups [rdi], ymm0");
    let try_with = |i: &MmioInstruction, cr0, cr4, xcr0| {
        let mut c = CpuState {
            cr0,
            cr4,
            xcr0,
            ..cpu()
        };
        match step(i, &mut c, &mut TestBus::default()) {
            Ok(_) => None,
            Err(Refusal::Exception(e)) => Some(e.vector),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(try_with(&sse, 1, 1 << 9, 1), None);
    assert_eq!(try_with(&sse, 1, 0, 1), Some(UD));
    assert_eq!(try_with(&sse, 1 | 1 << 2, 1 << 9, 1), Some(UD));
    assert_eq!(try_with(&sse, 1 | 1 << 3, 1 << 9, 1), Some(NM));
    assert_eq!(try_with(&avx, 1, 1 << 18, 7), None);
    assert_eq!(try_with(&avx, 1, 1 << 18, 3), Some(UD));
    assert_eq!(try_with(&avx, 1, 1 << 9, 7), Some(UD));
    assert_eq!(try_with(&avx, 1 | 1 << 3, 1 << 18, 7), Some(NM));
    // movaps [rdi+1], xmm0
    let aligned = decoded(&[0x0F, 0x29, 0x47, 0x01], CodeSize::Bits64).expect("movaps");
    assert_eq!(try_with(&aligned, 1, 1 << 9, 1), Some(GP));
}
