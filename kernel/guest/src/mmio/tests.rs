use super::*;
use alloc::collections::BTreeMap;
use alloc::string::ToString;
use alloc::vec::Vec;
use proptest::prelude::*;

use crate::entry::Segment;
use crate::walk::AccessKind;
use units::Gpa;

struct NoVectors;

impl Vectors for NoVectors {
    fn get(&self, _: u8) -> [u8; 32] {
        [0; 32]
    }
    fn set(&mut self, _: u8, _: &[u8; 32], _: VectorEncoding) {}
    fn x87_error(&self) -> bool {
        false
    }
    fn get_mmx(&mut self, _: u8) -> u64 {
        0
    }
    fn set_mmx(&mut self, _: u8, _: u64) {}
}

/// A device register that records what is written, and memory that remembers it; the access after
/// `budget` faults.
#[derive(Default)]
struct TestBus {
    register: u64,
    written: Vec<(u8, u64)>,
    memory: BTreeMap<u64, (u8, u64)>,
    budget: Option<u32>,
    ordinary: bool,
}

const FAULT: Refusal = Refusal::Exception(Exception::GP0);

impl Bus for TestBus {
    fn reach(&mut self, linear: u64, bytes: u8, _: AccessKind) -> Result<Place, Refusal> {
        match &mut self.budget {
            Some(0) => return Err(FAULT),
            Some(n) => *n -= 1,
            None => {}
        }
        Ok(Place {
            pieces: [(Gpa(linear), bytes), (Gpa(linear), 0)],
            device: !self.ordinary,
        })
    }
    fn read(&mut self, place: &Place, bytes: &mut [u8]) {
        let (at, size) = place.pieces[0];
        let held = self.memory.get(&at.0).filter(|(s, _)| *s == size);
        let value = held.map_or(self.register, |(_, v)| *v);
        for (to, from) in bytes.iter_mut().zip(value.to_le_bytes()) {
            *to = from;
        }
    }
    fn write(&mut self, place: &Place, bytes: &[u8]) {
        let (at, size) = place.pieces[0];
        let value = bytes.iter().rev().fold(0, |w, b| w << 8 | u64::from(*b));
        self.written.push((size, value));
        self.memory.insert(at.0, (size, value));
    }
}

const REGS: [u64; 16] = [
    0x1111_2222_3333_4480,
    0x0101_0101_0101_0102,
    0x2222_2222_2222_2222,
    0xBBBB_BBBB_BBBB_B7BB,
    0x4444,
    0x5555,
    0x6000,
    0x7000,
    0x8888_8888_8888_8888,
    9,
    10,
    11,
    12,
    13,
    14,
    0xFFFF_FFFF_FFFF_FFFF,
];

fn cpu() -> CpuState {
    let flat = Segment {
        selector: 0x10,
        base: 0,
        limit: u32::MAX,
        attributes: 0xC93,
    };
    CpuState {
        gpr: REGS,
        rip: 0x1000,
        rflags: 2,
        segments: [flat; 6],
        code: CodeSize::Bits64,
        cpl: 0,
        cr0: 1,
        cr4: 0,
        xcr0: 1,
    }
}

fn decoded(bytes: &[u8], code: CodeSize) -> Result<MmioInstruction, DecodeError> {
    decode(bytes, code, 0x1000)
}

fn step(i: &MmioInstruction, cpu: &mut CpuState, bus: &mut TestBus) -> Result<Completion, Refusal> {
    execute(i, cpu, &mut NoVectors, bus)
}

fn run(bytes: &[u8], register: u64) -> (CpuState, TestBus, MmioInstruction) {
    let i = decoded(bytes, CodeSize::Bits64).expect("decodes");
    assert_eq!(usize::from(i.length), bytes.len());
    let (mut cpu, mut bus) = (
        cpu(),
        TestBus {
            register,
            ..TestBus::default()
        },
    );
    assert_eq!(step(&i, &mut cpu, &mut bus), Ok(Completion::Advance));
    (cpu, bus, i)
}

const DEVICE: u64 = 0xFEDC_BA98_8765_F4E1;

#[test]
fn loads_fill_the_register_as_the_manual_says() {
    // Bytes, register number, its value afterwards.
    let cases: &[(&[u8], usize, u64)] = &[
        (&[0x8B, 0x07], 0, 0x8765_F4E1),                 // mov eax, [rdi]
        (&[0x48, 0x8B, 0x07], 0, DEVICE),                // mov rax, [rdi]
        (&[0x66, 0x8B, 0x07], 0, 0x1111_2222_3333_F4E1), // mov ax, [rdi]
        (&[0x8A, 0x07], 0, 0x1111_2222_3333_44E1),       // mov al, [rdi]
        (&[0x8A, 0x3F], 3, 0xBBBB_BBBB_BBBB_E1BB),       // mov bh, [rdi]
        (&[0x40, 0x8A, 0x3E], 7, 0x70E1),                // mov dil, [rsi]
        (&[0x44, 0x8B, 0x87, 0xB0, 0, 0, 0], 8, 0x8765_F4E1), // mov r8d, [rdi+0xb0]
        (&[0x0F, 0xB6, 0x0F], 1, 0xE1),                  // movzx ecx, byte [rdi]
        (&[0x0F, 0xB7, 0x0F], 1, 0xF4E1),                // movzx ecx, word [rdi]
        (&[0x0F, 0xBE, 0x0F], 1, 0xFFFF_FFE1),           // movsx ecx, byte [rdi]
        (&[0x48, 0x0F, 0xBF, 0x0F], 1, 0xFFFF_FFFF_FFFF_F4E1), // movsx rcx, word [rdi]
        (&[0x48, 0x63, 0x0F], 1, 0xFFFF_FFFF_8765_F4E1), // movsxd rcx, dword [rdi]
        (&[0xA1, 0x20, 0, 0xE0, 0xFE, 0, 0, 0, 0], 0, 0x8765_F4E1), // mov eax, [0xfee00020]
        (&[0x8B, 0x04, 0x25, 0x00, 0xA3, 0x5F, 0xFF], 0, 0x8765_F4E1), // mov eax, [0xffffffffff5fa300]
    ];
    for (bytes, index, value) in cases {
        let (cpu, bus, i) = run(bytes, DEVICE);
        let mut expected = REGS;
        expected[*index] = *value;
        assert_eq!(cpu.gpr, expected, "{i:?}");
        assert!(bus.written.is_empty());
        assert_eq!(cpu.rflags, 2);
    }
}

#[test]
fn stores_write_the_right_bytes() {
    let cases: &[(&[u8], u8, u64)] = &[
        (&[0x89, 0x07], 4, 0x3333_4480),                   // mov [rdi], eax
        (&[0x48, 0x89, 0x07], 8, 0x1111_2222_3333_4480),   // mov [rdi], rax
        (&[0x66, 0x89, 0x07], 2, 0x4480),                  // mov [rdi], ax
        (&[0x88, 0x07], 1, 0x80),                          // mov [rdi], al
        (&[0x88, 0x27], 1, 0x44),                          // mov [rdi], ah
        (&[0x44, 0x89, 0x07], 4, 0x8888_8888),             // mov [rdi], r8d
        (&[0xC7, 0x07, 0xFF, 0, 0, 0x80], 4, 0x8000_00FF), // mov dword [rdi], 0x800000ff
        (
            &[0x48, 0xC7, 0x07, 0xFF, 0, 0, 0x80],
            8,
            0xFFFF_FFFF_8000_00FF,
        ), // mov qword [rdi], ...
        (&[0xC6, 0x07, 0xFE], 1, 0xFE),                    // mov byte [rdi], 0xfe
        (&[0x66, 0xC7, 0x07, 0x34, 0x12], 2, 0x1234),      // mov word [rdi], 0x1234
        (&[0x0F, 0xC3, 0x07], 4, 0x3333_4480),             // movnti [rdi], eax
        (&[0xA3, 0xB0, 0, 0xE0, 0xFE, 0, 0, 0, 0], 4, 0x3333_4480), // mov [0xfee000b0], eax
    ];
    for (bytes, size, value) in cases {
        let (cpu, bus, i) = run(bytes, DEVICE);
        assert_eq!(bus.written, [(*size, *value)], "{i:?}");
        assert_eq!((cpu.gpr, cpu.rflags), (REGS, 2));
    }
}

const CF: u64 = 1;
const PF: u64 = 4;
const AF: u64 = 0x10;
const ZF: u64 = 0x40;
const SF: u64 = 0x80;
const OF: u64 = 0x800;

/// Bytes, device register, what is written, flags.
type Case = (&'static [u8], u64, Option<(u8, u64)>, u64);

#[test]
fn arithmetic_changes_memory_registers_and_flags() {
    let cases: &[Case] = &[
        (
            &[0x81, 0x0F, 0, 0, 1, 0],
            0x8000_0001,
            Some((4, 0x8001_0001)),
            SF,
        ), // or dword [rdi], 0x10000
        (
            &[0x83, 0x27, 0xFE],
            0x8000_0001,
            Some((4, 0x8000_0000)),
            SF | PF,
        ), // and dword [rdi], -2
        (&[0x31, 0x07], 0x3333_4480, Some((4, 0)), ZF | PF), // xor [rdi], eax
        (&[0x80, 0x07, 0x01], 0x7F, Some((1, 0x80)), SF | OF | AF), // add byte [rdi], 1
        (
            &[0x80, 0x2F, 0x01],
            0x00,
            Some((1, 0xFF)),
            CF | SF | PF | AF,
        ), // sub byte [rdi], 1
        (&[0xF6, 0x07, 0x10], 0x1F, None, 0),                // test byte [rdi], 0x10
        (&[0xF7, 0x07, 0, 0x10, 0, 0], 0xEFFF, None, ZF | PF), // test dword [rdi], 0x1000
        (&[0x83, 0x3F, 0xFF], 0xFFFF_FFFF, None, ZF | PF),   // cmp dword [rdi], -1
        (&[0x39, 0x07], 0x3333_447F, None, CF | SF | PF),    // cmp [rdi], eax
        (
            &[0xFF, 0x07],
            0x7FFF_FFFF,
            Some((4, 0x8000_0000)),
            SF | OF | AF | PF,
        ), // inc dword [rdi]
        (&[0xF0, 0xFF, 0x0F], 1, Some((4, 0)), ZF | PF),     // lock dec dword [rdi]
        (&[0xF7, 0x17], 0x0F, Some((4, 0xFFFF_FFF0)), 0),    // not dword [rdi]
        (&[0xF6, 0x1F], 0x80, Some((1, 0x80)), CF | SF | OF), // neg byte [rdi]
    ];
    for (bytes, register, written, flags) in cases {
        let (cpu, bus, i) = run(bytes, *register);
        assert_eq!(
            bus.written,
            written.iter().copied().collect::<Vec<_>>(),
            "{i:?}"
        );
        assert_eq!(cpu.rflags, 2 | flags, "{i:?}");
        assert_eq!(cpu.gpr, REGS);
    }
    // The memory operand on the right.
    let (cpu, bus, _) = run(&[0x03, 0x0F], 0xFFFF_FFFF); // add ecx, [rdi]
    assert_eq!(
        (cpu.gpr[1], cpu.rflags, bus.written.len()),
        (0x0101_0101, 2 | CF | AF, 0)
    );
    let (cpu, ..) = run(&[0x3B, 0x0F], 0x0101_0102); // cmp ecx, [rdi]
    assert_eq!((cpu.gpr, cpu.rflags), (REGS, 2 | ZF | PF));
    let (cpu, bus, _) = run(&[0x87, 0x0F], 7); // xchg [rdi], ecx
    assert_eq!((cpu.gpr[1], bus.written), (7, [(4, 0x0101_0102)].to_vec()));
}

#[test]
fn inc_and_dec_leave_the_carry_alone() {
    for (bytes, register) in [([0xFE, 0x07], 0xFF), ([0xFE, 0x0F], 0x01)] {
        for carry in [0, CF] {
            let i = decoded(&bytes, CodeSize::Bits64).expect("inc or dec byte [rdi]");
            let (mut c, mut bus) = (
                cpu(),
                TestBus {
                    register,
                    ..TestBus::default()
                },
            );
            c.rflags |= carry;
            step(&i, &mut c, &mut bus).expect("no fault");
            assert_eq!(bus.written, [(1, 0)]);
            assert_eq!(c.rflags & (CF | ZF), carry | ZF);
        }
    }
}

/// What ADC and SBB do to bytes, by the definition over whole numbers.
#[test]
fn byte_arithmetic_agrees_with_whole_numbers() {
    let adc = decoded(&[0x10, 0x0F], CodeSize::Bits64).expect("adc [rdi], cl");
    let sbb = decoded(&[0x18, 0x0F], CodeSize::Bits64).expect("sbb [rdi], cl");
    for a in 0..=255u8 {
        for b in [0u8, 1, 15, 16, 127, 128, 200, 255] {
            for carry in [0u8, 1] {
                for (i, sign) in [(&adc, 1i16), (&sbb, -1)] {
                    let (mut c, mut bus) = (
                        cpu(),
                        TestBus {
                            register: a.into(),
                            ..TestBus::default()
                        },
                    );
                    c.gpr[1] = b.into();
                    c.rflags = 2 | u64::from(carry);
                    step(i, &mut c, &mut bus).expect("no fault");
                    let unsigned = i16::from(a) + sign * (i16::from(b) + i16::from(carry));
                    let signed =
                        i16::from(a as i8) + sign * (i16::from(b as i8) + i16::from(carry));
                    let nibble = i16::from(a & 15) + sign * (i16::from(b & 15) + i16::from(carry));
                    let result = unsigned as u8;
                    assert_eq!(bus.written, [(1, u64::from(result))]);
                    let when = |set: bool, bit: u64| if set { bit } else { 0 };
                    let expected = when(!(0..256).contains(&unsigned), CF)
                        | when(result.count_ones().is_multiple_of(2), PF)
                        | when(!(0..16).contains(&nibble), AF)
                        | when(result == 0, ZF)
                        | when(result > 127, SF)
                        | when(!(-128..128).contains(&signed), OF);
                    assert_eq!(c.rflags, 2 | expected, "{a} {b} {carry} {sign}");
                }
            }
        }
    }
}

#[test]
fn a_repeated_move_goes_element_by_element() {
    let i = decoded(&[0xF3, 0xA5], CodeSize::Bits64).expect("rep movsd");
    let (mut c, mut bus) = (cpu(), TestBus::default());
    c.gpr[1] = 2;
    bus.memory.insert(0x6000, (4, 0xAAAA));
    bus.memory.insert(0x6004, (4, 0xBBBB));
    assert_eq!(step(&i, &mut c, &mut bus), Ok(Completion::Advance));
    assert_eq!((c.gpr[1], c.gpr[6], c.gpr[7]), (0, 0x6008, 0x7008));
    assert_eq!(
        (bus.memory[&0x7000], bus.memory[&0x7004]),
        ((4, 0xAAAA), (4, 0xBBBB))
    );
    let before = c.gpr;
    assert_eq!(
        step(&i, &mut c, &mut bus),
        Ok(Completion::Advance),
        "a count of zero does nothing"
    );
    assert_eq!(c.gpr, before);

    // No more than an exit may cost, and what a fault leaves are whole elements.
    c.gpr[1] = 100;
    assert_eq!(step(&i, &mut c, &mut bus), Ok(Completion::Repeat));
    assert_eq!(c.gpr[1], 100 - u64::from(ELEMENTS));
    let (source, count) = (c.gpr[6], c.gpr[1]);
    bus.budget = Some(5);
    assert_eq!(step(&i, &mut c, &mut bus), Err(FAULT));
    assert_eq!((c.gpr[1], c.gpr[6]), (count - 2, source + 8));
    // A single step ends each element.
    bus.budget = None;
    c.rflags |= 1 << 8;
    assert_eq!(step(&i, &mut c, &mut bus), Ok(Completion::Repeat));
    assert_eq!(c.gpr[1], count - 3);
    c.rflags &= !(1 << 8);
    // Once neither operand is in a device the processor goes on.
    bus.budget = None;
    bus.ordinary = true;
    assert_eq!(step(&i, &mut c, &mut bus), Err(Refusal::Ordinary));
    assert_eq!(c.gpr[1], count - 3);
}

#[test]
fn strings_honour_direction_address_size_and_segments() {
    let (mut c, mut bus) = (cpu(), TestBus::default());
    c.rflags |= 1 << 10;
    let stosb = decoded(&[0xF3, 0xAA], CodeSize::Bits64).expect("rep stosb");
    c.gpr[1] = 1;
    assert_eq!(step(&stosb, &mut c, &mut bus), Ok(Completion::Advance));
    assert_eq!(
        (c.gpr[7], c.gpr[6], &bus.written[..]),
        (0x6FFF, 0x6000, &[(1, 0x80)][..])
    );

    // 32-bit addresses in 64-bit code: the counter's and the pointers' upper halves are cleared.
    let (mut c, mut bus) = (cpu(), TestBus::default());
    let small =
        decoded(&[0x67, 0xF3, 0xAB], CodeSize::Bits64).expect("rep stosd with 32-bit addresses");
    c.gpr[1] = 0xFFFF_0000_0000_0001;
    c.gpr[7] = 0x1234_0000_FFFF_FFFC;
    assert_eq!(step(&small, &mut c, &mut bus), Ok(Completion::Advance));
    assert_eq!((c.gpr[1], c.gpr[7]), (0, 0));

    // fs movsb in 16-bit code: DS is replaced, ES has its base, the pointers wrap at 64 KiB.
    let (mut c, mut bus) = (cpu(), TestBus::default());
    c.code = CodeSize::Bits16;
    c.cr0 = 0;
    for (segment, base) in c
        .segments
        .iter_mut()
        .zip([0x10_0000, 0, 0, 1, 0x20_0000, 0])
    {
        *segment = Segment {
            base,
            limit: 0xFFFF,
            ..*segment
        };
    }
    c.gpr[6] = 0xABCD_FFFF;
    c.gpr[7] = 0x5;
    bus.memory.insert(0x20_FFFF, (1, 0x5A));
    let fs = decoded(&[0x64, 0xA4], CodeSize::Bits16).expect("fs movsb");
    assert_eq!(step(&fs, &mut c, &mut bus), Ok(Completion::Advance));
    assert_eq!(bus.memory[&0x10_0005], (1, 0x5A));
    assert_eq!((c.gpr[6], c.gpr[7]), (0xABCD_0000, 6));

    let (mut c, mut bus) = (
        cpu(),
        TestBus {
            register: 0x77,
            ..TestBus::default()
        },
    );
    let lods = decoded(&[0xAC], CodeSize::Bits64).expect("lodsb");
    assert_eq!(step(&lods, &mut c, &mut bus), Ok(Completion::Advance));
    assert_eq!((c.gpr[0] & 0xFF, c.gpr[6]), (0x77, 0x6001));
}

#[test]
fn what_is_not_emulated_is_named() {
    let text = |bytes: &[u8]| {
        decoded(bytes, CodeSize::Bits64)
            .expect_err("not emulated")
            .to_string()
    };
    assert!(
        text(&[0x0F, 0x58, 0x07]).contains("0f 58 07 are a Addps"),
        "{}",
        text(&[0x0F, 0x58, 0x07])
    );
    assert!(text(&[0x8B]).contains("end before"));
    assert!(text(&[0x0F, 0x0B]).contains("Ud2"));
    assert!(text(&[0x8B, 0xC1]).contains("Mov"), "no memory operand");
    assert!(text(&[0x0F, 0x01, 0x17]).contains("Lgdt"));
    let invalid = decoded(&[0x06; 15], CodeSize::Bits64).expect_err("push es in 64-bit code");
    assert!(invalid.is_invalid_opcode());
    assert!(decoded(&[], CodeSize::Bits32).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2048))]

    /// Any bytes decode to something that executes, or to a sentence; a fault changes nothing.
    #[test]
    fn any_bytes_are_executed_or_refused(
        bytes in proptest::collection::vec(any::<u8>(), 0..18),
        mode in 0usize..3,
        regs: [u64; 16],
        flags: u64,
        budget in 0u32..3,
    ) {
        let code = [CodeSize::Bits16, CodeSize::Bits32, CodeSize::Bits64][mode];
        match decoded(&bytes, code) {
            Err(e) => prop_assert!(e.to_string().ends_with("not executed")),
            Ok(i) => {
                prop_assert!((1..=15).contains(&i.length) && usize::from(i.length) <= bytes.len());
                let mut c = CpuState { gpr: regs, rflags: flags, code, ..cpu() };
                let mut bus = TestBus { budget: Some(budget), ..TestBus::default() };
                let strings = matches!(i.operation, Operation::String { .. });
                if step(&i, &mut c, &mut bus).is_err() && !strings {
                    prop_assert_eq!((c.gpr, c.rflags), (regs, flags));
                    prop_assert!(bus.written.is_empty());
                }
            }
        }
    }
}

#[test]
fn an_access_is_split_where_its_page_ends() {
    assert_eq!(split_at_page(0x1000, 8), (8, 0));
    assert_eq!(split_at_page(0x1ff8, 8), (8, 0));
    assert_eq!(split_at_page(0x1ff9, 8), (7, 1));
    assert_eq!(split_at_page(0x1fff, 1), (1, 0));
    assert_eq!(split_at_page(0x1fff, 8), (1, 7));
    assert_eq!(split_at_page(u64::MAX, 2), (1, 1));
    for size in [1, 2, 4, 8] {
        for address in 0xff0..0x1010 {
            let (first, second) = split_at_page(address, size);
            assert_eq!(first + second, size);
            let last = address + u64::from(size) - 1;
            assert_eq!(second == 0, address / 4096 == last / 4096);
            assert_eq!(
                (address + u64::from(first)) % 4096 == 0,
                second > 0 || last % 4096 == 4095
            );
        }
    }
}

mod guest_bus;
mod segments;
mod system;
