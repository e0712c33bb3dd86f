use super::*;
use alloc::collections::BTreeMap;
use alloc::string::ToString;
use alloc::vec::Vec;
use proptest::prelude::*;

struct Cpu {
    regs: [u64; 16],
    flags: u64,
    bases: [u64; 6],
}

impl CpuState for Cpu {
    fn reg(&self, index: u8) -> u64 {
        self.regs[usize::from(index)]
    }
    fn set_reg(&mut self, index: u8, value: u64) {
        self.regs[usize::from(index)] = value;
    }
    fn rflags(&self) -> u64 {
        self.flags
    }
    fn set_rflags(&mut self, value: u64) {
        self.flags = value;
    }
    fn segment_base(&self, segment: SegmentRegister) -> u64 {
        self.bases[segment as usize]
    }
}

/// A device register that records what is written, and linear memory; fails after `budget` accesses.
#[derive(Default)]
struct Bus {
    register: u64,
    written: Vec<(u8, u64)>,
    memory: BTreeMap<u64, (u8, u64)>,
    budget: Option<u32>,
}

impl Bus {
    fn spend(&mut self) -> Result<(), &'static str> {
        match &mut self.budget {
            Some(0) => Err("fault"),
            Some(n) => {
                *n -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }
}

impl MmioBus for Bus {
    type Error = &'static str;
    fn read(&mut self, size: u8) -> Result<u64, Self::Error> {
        self.spend()?;
        Ok(if size == 8 {
            self.register
        } else {
            self.register & ((1 << (8 * size)) - 1)
        })
    }
    fn write(&mut self, size: u8, value: u64) -> Result<(), Self::Error> {
        self.spend()?;
        self.written.push((size, value));
        Ok(())
    }
    fn read_linear(&mut self, address: u64, size: u8) -> Result<u64, Self::Error> {
        self.spend()?;
        Ok(self
            .memory
            .get(&address)
            .filter(|(s, _)| *s == size)
            .map_or(0, |(_, v)| *v))
    }
    fn write_linear(&mut self, address: u64, size: u8, value: u64) -> Result<(), Self::Error> {
        self.spend()?;
        self.memory.insert(address, (size, value));
        Ok(())
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

fn cpu() -> Cpu {
    Cpu {
        regs: REGS,
        flags: 2,
        bases: [0; 6],
    }
}

fn run(bytes: &[u8], register: u64) -> (Cpu, Bus, MmioInstruction) {
    let i = decode(bytes, CodeSize::Bits64).expect("decodes");
    assert_eq!(usize::from(i.length), bytes.len());
    let (mut cpu, mut bus) = (
        cpu(),
        Bus {
            register,
            ..Bus::default()
        },
    );
    assert_eq!(execute(&i, &mut cpu, &mut bus), Ok(Completion::Advance));
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
        assert_eq!(cpu.regs, expected, "{i:?}");
        assert!(bus.written.is_empty());
        assert_eq!(cpu.flags, 2);
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
        assert_eq!((cpu.regs, cpu.flags), (REGS, 2));
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
        assert_eq!(cpu.flags, 2 | flags, "{i:?}");
        assert_eq!(cpu.regs, REGS);
    }
    // The memory operand on the right.
    let (cpu, bus, _) = run(&[0x03, 0x0F], 0xFFFF_FFFF); // add ecx, [rdi]
    assert_eq!(
        (cpu.regs[1], cpu.flags, bus.written.len()),
        (0x0101_0101, 2 | CF | AF, 0)
    );
    let (cpu, ..) = run(&[0x3B, 0x0F], 0x0101_0102); // cmp ecx, [rdi]
    assert_eq!((cpu.regs, cpu.flags), (REGS, 2 | ZF | PF));
    let (cpu, bus, _) = run(&[0x87, 0x0F], 7); // xchg [rdi], ecx
    assert_eq!((cpu.regs[1], bus.written), (7, [(4, 0x0101_0102)].to_vec()));
}

#[test]
fn inc_and_dec_leave_the_carry_alone() {
    for (bytes, register) in [([0xFE, 0x07], 0xFF), ([0xFE, 0x0F], 0x01)] {
        for carry in [0, CF] {
            let i = decode(&bytes, CodeSize::Bits64).expect("inc or dec byte [rdi]");
            let (mut c, mut bus) = (
                cpu(),
                Bus {
                    register,
                    ..Bus::default()
                },
            );
            c.flags |= carry;
            execute(&i, &mut c, &mut bus).expect("no fault");
            assert_eq!(bus.written, [(1, 0)]);
            assert_eq!(c.flags & (CF | ZF), carry | ZF);
        }
    }
}

/// What ADC and SBB do to bytes, by the definition over whole numbers.
#[test]
fn byte_arithmetic_agrees_with_whole_numbers() {
    let adc = decode(&[0x10, 0x0F], CodeSize::Bits64).expect("adc [rdi], cl");
    let sbb = decode(&[0x18, 0x0F], CodeSize::Bits64).expect("sbb [rdi], cl");
    for a in 0..=255u8 {
        for b in [0u8, 1, 15, 16, 127, 128, 200, 255] {
            for carry in [0u8, 1] {
                for (i, sign) in [(&adc, 1i16), (&sbb, -1)] {
                    let (mut c, mut bus) = (
                        cpu(),
                        Bus {
                            register: a.into(),
                            ..Bus::default()
                        },
                    );
                    c.regs[1] = b.into();
                    c.flags = 2 | u64::from(carry);
                    execute(i, &mut c, &mut bus).expect("no fault");
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
                    assert_eq!(c.flags, 2 | expected, "{a} {b} {carry} {sign}");
                }
            }
        }
    }
}

#[test]
fn a_repeated_move_goes_element_by_element() {
    let i = decode(&[0xF3, 0xA5], CodeSize::Bits64).expect("rep movsd");
    let (mut c, mut bus) = (cpu(), Bus::default());
    c.regs[1] = 2;
    bus.memory.insert(0x6000, (4, 0xAAAA));
    bus.memory.insert(0x6004, (4, 0xBBBB));
    assert_eq!(execute(&i, &mut c, &mut bus), Ok(Completion::Repeat));
    assert_eq!((c.regs[1], c.regs[6], c.regs[7]), (1, 0x6004, 0x7004));
    assert_eq!(execute(&i, &mut c, &mut bus), Ok(Completion::Advance));
    assert_eq!(
        (bus.memory[&0x7000], bus.memory[&0x7004]),
        ((4, 0xAAAA), (4, 0xBBBB))
    );
    let before = c.regs;
    assert_eq!(
        execute(&i, &mut c, &mut bus),
        Ok(Completion::Advance),
        "a count of zero does nothing"
    );
    assert_eq!(c.regs, before);
}

#[test]
fn strings_honour_direction_address_size_and_segments() {
    let (mut c, mut bus) = (cpu(), Bus::default());
    c.flags |= 1 << 10;
    let stosb = decode(&[0xF3, 0xAA], CodeSize::Bits64).expect("rep stosb");
    assert_eq!(execute(&stosb, &mut c, &mut bus), Ok(Completion::Repeat));
    assert_eq!(
        (c.regs[7], c.regs[6], &bus.written[..]),
        (0x6FFF, 0x6000, &[(1, 0x80)][..])
    );

    // 32-bit addresses in 64-bit code: the counter's and the pointers' upper halves are cleared.
    let (mut c, mut bus) = (cpu(), Bus::default());
    let small =
        decode(&[0x67, 0xF3, 0xAB], CodeSize::Bits64).expect("rep stosd with 32-bit addresses");
    c.regs[1] = 0xFFFF_0000_0000_0001;
    c.regs[7] = 0x1234_0000_FFFF_FFFC;
    assert_eq!(execute(&small, &mut c, &mut bus), Ok(Completion::Advance));
    assert_eq!((c.regs[1], c.regs[7]), (0, 0));

    // fs movsb in 16-bit code: DS is replaced, ES has its base, the pointers wrap at 64 KiB.
    let (mut c, mut bus) = (cpu(), Bus::default());
    c.bases = [0x10_0000, 0, 0, 0x1, 0x20_0000, 0];
    c.regs[6] = 0xABCD_FFFF;
    c.regs[7] = 0x5;
    bus.memory.insert(0x20_FFFF, (1, 0x5A));
    let fs = decode(&[0x64, 0xA4], CodeSize::Bits16).expect("fs movsb");
    assert_eq!(execute(&fs, &mut c, &mut bus), Ok(Completion::Advance));
    assert_eq!(bus.memory[&0x10_0005], (1, 0x5A));
    assert_eq!((c.regs[6], c.regs[7]), (0xABCD_0000, 6));

    let (mut c, mut bus) = (
        cpu(),
        Bus {
            register: 0x77,
            ..Bus::default()
        },
    );
    let lods = decode(&[0xAC], CodeSize::Bits64).expect("lodsb");
    assert_eq!(execute(&lods, &mut c, &mut bus), Ok(Completion::Advance));
    assert_eq!((c.regs[0] & 0xFF, c.regs[6]), (0x77, 0x6001));
}

#[test]
fn what_is_not_emulated_is_named() {
    let text = |bytes: &[u8]| {
        decode(bytes, CodeSize::Bits64)
            .expect_err("not emulated")
            .to_string()
    };
    assert!(
        text(&[0x0F, 0x28, 0x07]).contains("0f 28 07 are a Movaps"),
        "{}",
        text(&[0x0F, 0x28, 0x07])
    );
    assert!(text(&[0x8B]).contains("end before"));
    assert!(text(&[0x0F, 0x0B]).contains("Ud2"));
    assert!(text(&[0x8B, 0xC1]).contains("Mov"), "no memory operand");
    assert!(text(&[0x8E, 0x1F]).contains("Mov"), "a segment register");
    let invalid = decode(&[0x06; 15], CodeSize::Bits64).expect_err("push es in 64-bit code");
    assert!(invalid.is_invalid_opcode());
    assert!(decode(&[], CodeSize::Bits32).is_err());
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
        match decode(&bytes, code) {
            Err(e) => prop_assert!(e.to_string().ends_with("not executed")),
            Ok(i) => {
                prop_assert!((1..=15).contains(&i.length) && usize::from(i.length) <= bytes.len());
                let mut c = Cpu { regs, flags, bases: [1, 2, 3, 4, 5, 6] };
                let mut bus = Bus { budget: Some(budget), ..Bus::default() };
                if execute(&i, &mut c, &mut bus).is_err() {
                    prop_assert_eq!((c.regs, c.flags), (regs, flags));
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
