//! Selectors from a device with their descriptors, and what else foreign test kernels try on a device.

use super::*;
use crate::entry::TableRegister;
use crate::inject::{DE, GP, MF, NM, NP, SS};
use alloc::vec;

const GDT: u64 = 0x9000;

/// A TestBus whose device reads as `register` and whose GDT holds these descriptors.
fn bus(register: u64, gdt: &[u64]) -> TestBus {
    let entries = (GDT..).step_by(8).zip(gdt.iter().map(|d| (8, *d)));
    TestBus {
        register,
        memory: entries.collect(),
        ..TestBus::default()
    }
}

fn tables(entries: u16) -> Tables {
    Tables {
        gdtr: TableRegister {
            base: GDT,
            limit: entries * 8 - 1,
        },
        ldtr: Segment::NULL,
        long_mode: true,
    }
}

const CODE64: u64 = 0x00AF_9A00_0000_FFFF;
const CODE32: u64 = 0x00CF_9A00_0000_FFFF;
const BOTH: u64 = 0x00EF_9A00_0000_FFFF;
const DATA: u64 = 0x00CF_9200_0000_FFFF;
const DATA3: u64 = 0x00CF_F200_0000_FFFF;
const ABSENT: u64 = 0x00CF_1200_0000_FFFF;
const READ_ONLY: u64 = 0x00CF_9000_0000_FFFF;
/// A 64-bit TSS at 0x1_2233_4455 in two halves.
const TSS: [u64; 2] = [0x2200_8933_4455_0067, 1];
const ALL: [u64; 10] = [
    0, CODE64, DATA, DATA3, ABSENT, READ_ONLY, TSS[0], TSS[1], CODE32, BOTH,
];

/// Executes both halves with a device that holds `selector`.
fn loaded(bytes: &[u8], selector: u64, cpl: u8) -> (Result<Loaded, Refusal>, TestBus) {
    let mut c = CpuState { cpl, ..cpu() };
    let mut bus = bus(selector, &ALL);
    let i = decoded(bytes, CodeSize::Bits64).expect("decodes");
    let outcome = match step(&i, &mut c, &mut bus) {
        Ok(Completion::System(what)) => load_descriptor(&c, &tables(10), what, &mut bus),
        Ok(other) => panic!("{other:?}"),
        Err(refusal) => Err(refusal),
    };
    (outcome, bus)
}

fn raised(vector: u8, code: u32) -> Result<Loaded, Refusal> {
    Err(Exception::new(vector, Some(code)).into())
}

/// MOV SS, [RDI]; MOV DS, [RDI]; LTR [RDI].
const MOV_SS: &[u8] = &[0x8E, 0x17];
const MOV_DS: &[u8] = &[0x8E, 0x1F];
const LTR: &[u8] = &[0x0F, 0x00, 0x1F];

#[test]
fn a_stack_segment_from_a_device_is_checked() {
    use SegmentRegister::Ss;
    let of = |selector, cpl| loaded(MOV_SS, selector, cpl).0;
    let null = |selector, attributes| Segment {
        selector,
        attributes,
        ..Segment::NULL
    };
    // Null is right for a supervisor of 64-bit code, at its own level only.
    assert_eq!(of(0, 0), Ok(Loaded::Segment(Ss, null(0, 0))));
    assert_eq!(of(2, 2), Ok(Loaded::Segment(Ss, null(2, 2 << 5))));
    assert_eq!(of(3, 0), raised(GP, 0));
    assert_eq!(of(3, 3), raised(GP, 0));
    let Ok(Loaded::Segment(Ss, data)) = of(0x10, 0) else {
        panic!("{:?}", of(0x10, 0));
    };
    assert_eq!(
        (data.selector, data.base, data.limit, data.attributes),
        (0x10, 0, u32::MAX, 0xC93),
        "accessed now"
    );
    assert_eq!(of(0x13, 0), raised(GP, 0x10), "another level's selector");
    assert_eq!(of(0x18, 0), raised(GP, 0x18), "another level's descriptor");
    assert_eq!(of(0x08, 0), raised(GP, 0x08), "code");
    assert_eq!(of(0x28, 0), raised(GP, 0x28), "read-only");
    assert_eq!(of(0x20, 0), raised(SS, 0x20), "absent");
    assert_eq!(of(0x50, 0), raised(GP, 0x50), "beyond the table");
    assert_eq!(of(0x14, 0), raised(GP, 0x14), "no LDT");
}

#[test]
fn a_data_segment_from_a_device_is_checked_and_marked() {
    use SegmentRegister::Ds;
    let (outcome, bus) = loaded(MOV_DS, 0x1B, 3);
    assert!(matches!(outcome, Ok(Loaded::Segment(Ds, s)) if s.selector == 0x1B));
    assert_eq!(bus.memory[&(GDT + 0x18)].1, DATA3 | 1 << 40);
    assert_eq!(
        loaded(MOV_DS, 0, 3).0,
        Ok(Loaded::Segment(Ds, Segment::NULL))
    );
    assert_eq!(loaded(MOV_DS, 0x13, 3).0, raised(GP, 0x10));
    assert_eq!(loaded(MOV_DS, 0x20, 0).0, raised(NP, 0x20));
    assert_eq!(loaded(MOV_DS, 0x30, 0).0, raised(GP, 0x30), "a TSS");
    // MOV CS does not exist.
    assert!(decoded(&[0x8E, 0x0F], CodeSize::Bits64).is_err());
}

#[test]
fn a_task_from_a_device_is_busy_then() {
    let (outcome, bus) = loaded(LTR, 0x30, 0);
    let Ok(Loaded::Task(tr)) = outcome else {
        panic!("{outcome:?}");
    };
    assert_eq!(
        (tr.base, tr.limit, tr.attributes),
        (0x1_2233_4455, 0x67, 0x8B)
    );
    assert_eq!(bus.memory[&(GDT + 0x30)].1, TSS[0] | 1 << 41);
    assert_eq!(loaded(LTR, 0, 0).0, raised(GP, 0));
    assert_eq!(loaded(LTR, 0x10, 0).0, raised(GP, 0x10), "no TSS");
    assert_eq!(
        loaded(LTR, 0x48, 0).0,
        raised(GP, 0x48),
        "half of it is beyond"
    );
    let (outcome, bus) = loaded(LTR, 0x30, 3);
    assert_eq!(outcome, raised(GP, 0));
    assert!(bus.written.is_empty());
}

#[test]
fn a_far_jump_through_a_device_goes_where_the_processor_would() {
    let at = |tables: &Tables, cpl, selector, offset| {
        let what = SystemLoad::Jump { selector, offset };
        let c = CpuState { cpl, ..cpu() };
        load_descriptor(&c, tables, what, &mut bus(0, &ALL))
    };
    let jump = |selector, offset| at(&tables(10), 0, selector, offset);
    let to = |jumped: Result<Loaded, Refusal>| match jumped {
        Ok(Loaded::Jump { code, rip }) => (code.selector, code.attributes, rip),
        other => panic!("{other:?}"),
    };
    let high = 0xFFFF_8000_0000_0000;
    assert_eq!(to(jump(0x08, high)), (0x08, 0xA9B, high));
    assert_eq!(jump(0x08, 1 << 47), raised(GP, 0), "not canonical");
    assert_eq!(to(jump(0x40, 0x1234)), (0x40, 0xC9B, 0x1234), "32-bit code");
    assert_eq!(jump(0x40, 1 << 32), raised(GP, 0), "beyond its limit");
    for (selector, offset) in [(0x08, 1 << 47), (0x40, 1 << 32)] {
        let mut bus = bus(0, &ALL);
        let what = SystemLoad::Jump { selector, offset };
        let jumped = load_descriptor(&cpu(), &tables(10), what, &mut bus);
        assert_eq!(jumped, raised(GP, 0));
        let (at, index) = (GDT + u64::from(selector), usize::from(selector / 8));
        assert_eq!(bus.memory[&at].1, ALL[index], "nothing is marked");
    }
    assert_eq!(jump(0, 0), raised(GP, 0));
    assert_eq!(jump(0x10, 0), raised(GP, 0x10), "data");
    assert_eq!(jump(0x48, 0), raised(GP, 0x48), "L and D at once");
    assert_eq!(
        at(&tables(10), 3, 0x08, 0),
        raised(GP, 0x08),
        "another level"
    );
    assert_eq!(
        at(&tables(1), 0, 0x08, 0),
        raised(GP, 0x08),
        "beyond the table"
    );
    assert_eq!(jump(0x30, 0), raised(GP, 0x30), "no tasks in long mode");
    assert_eq!(jump(0x38, 0), raised(GP, 0x38), "nothing");
    let through = load_descriptor(
        &cpu(),
        &tables(2),
        SystemLoad::Jump {
            selector: 8,
            offset: 0,
        },
        &mut bus(0, &[0, 0x0000_8C00_0008_1234]),
    );
    assert_eq!(through, Err(Refusal::Ordinary), "a call gate");
    // JMP FAR [RDI] with REX.W, without, and with the operand-size prefix.
    for (bytes, size) in [
        (&[0x48, 0xFF, 0x2F][..], 8),
        (&[0xFF, 0x2F], 4),
        (&[0x66, 0xFF, 0x2F], 2),
    ] {
        let i = decoded(bytes, CodeSize::Bits64).expect("decodes");
        assert_eq!(i.operation, Operation::FarJump { size });
        let mut bus = TestBus {
            register: 0x1122_3344_5566_7788,
            ..TestBus::default()
        };
        let all = 0x1122_3344_5566_7788 & (u64::MAX >> (64 - 8 * u32::from(size)));
        let Ok(Completion::System(SystemLoad::Jump { offset, .. })) =
            step(&i, &mut cpu(), &mut bus)
        else {
            panic!("{bytes:x?}");
        };
        assert_eq!(offset, all, "{bytes:x?}");
    }
    // In real mode a selector is all there is.
    let real = CpuState {
        cr0: 0,
        code: CodeSize::Bits16,
        ..cpu()
    };
    let what = SystemLoad::Jump {
        selector: 0xF000,
        offset: 0xFFF0,
    };
    let Ok(Loaded::Jump { code, rip }) =
        load_descriptor(&real, &tables(10), what, &mut bus(0, &[]))
    else {
        panic!("no descriptor is needed");
    };
    assert_eq!((code.base, rip), (0xF_0000, 0xFFF0));
}

#[test]
fn division_by_a_device_and_its_errors() {
    // DIV QWORD [RDI], as a test kernel does it.
    let div = |bytes: &[u8], divisor, low, high| {
        let (mut c, mut bus) = (cpu(), bus(divisor, &[]));
        (c.gpr[0], c.gpr[2]) = (low, high);
        let i = decoded(bytes, CodeSize::Bits64).expect("decodes");
        step(&i, &mut c, &mut bus).map(|_| (c.gpr[0], c.gpr[2]))
    };
    let error = Err(Exception::new(DE, None).into());
    let n = 0x7048_860D_DF79;
    assert_eq!(
        div(&[0x48, 0xF7, 0x37], 987_654_321_098_765, n, n),
        Ok((0x1FFF_FFFB_1B96_3B33, 0x2_73BA_4384_EDE2))
    );
    assert_eq!(div(&[0x48, 0xF7, 0x37], 0, 1, 2), error);
    assert_eq!(div(&[0x48, 0xF7, 0x37], 2, 1, 2), error, "no room");
    // IDIV DWORD [RDI]: -7 by 2 is -3, and -1 is left; the most negative number by -1 has no room.
    assert_eq!(
        div(&[0xF7, 0x3F], 2, 0xFFFF_FFF9, 0xFFFF_FFFF),
        Ok((0xFFFF_FFFD, 0xFFFF_FFFF))
    );
    assert_eq!(
        div(&[0xF7, 0x3F], 0xFFFF_FFFF, 0x8000_0000, 0xFFFF_FFFF),
        error
    );
    // DIV BYTE [RDI]: AX into AL and AH.
    assert_eq!(div(&[0xF6, 0x37], 7, 0xAB_0064, 5), Ok((0xAB_020E, 5)));
    let most = u64::MAX >> 1;
    assert_eq!(div(&[0x48, 0xF7, 0x3F], u64::MAX, !most, u64::MAX), error);
}

#[test]
fn the_status_word_is_for_whom_it_is_for() {
    let smsw = &[0x0F, 0x01, 0x27];
    let store = |cpl, cr4| {
        let mut c = CpuState {
            cpl,
            cr4,
            cr0: 0x8001_0031,
            ..cpu()
        };
        let mut bus = TestBus::default();
        let i = decoded(smsw, CodeSize::Bits64).expect("decodes");
        step(&i, &mut c, &mut bus).map(|_| bus.written)
    };
    assert_eq!(store(3, 0), Ok(vec![(2, 0x31)]));
    assert_eq!(store(0, 1 << 11), Ok(vec![(2, 0x31)]));
    assert_eq!(store(3, 1 << 11), Err(FAULT));
}

#[test]
fn frames_on_a_device() {
    // ENTER 0x1238, 0; LEAVE
    let (c, bus, _) = run(&[0xC8, 0x38, 0x12, 0], 0);
    assert_eq!((c.gpr[5], c.gpr[4]), (0x443C, 0x443C - 0x1238));
    assert_eq!(bus.memory[&0x443C], (8, 0x5555));
    let (c, ..) = run(&[0xC9], 0x77_8899);
    assert_eq!((c.gpr[4], c.gpr[5]), (0x555D, 0x77_8899));
    // Frames within frames are not emulated.
    assert!(decoded(&[0xC8, 0, 0, 1], CodeSize::Bits64).is_err());
}

/// MM registers, with or without an exception that waits.
#[derive(Default)]
struct Mmx([u64; 8], bool);

impl Vectors for Mmx {
    fn get(&self, _: u8) -> [u8; 32] {
        [0; 32]
    }
    fn set(&mut self, _: u8, _: &[u8; 32], _: VectorEncoding) {}
    fn x87_error(&self) -> bool {
        self.1
    }
    fn get_mmx(&mut self, index: u8) -> u64 {
        self.0[usize::from(index)]
    }
    fn set_mmx(&mut self, index: u8, value: u64) {
        self.0[usize::from(index)] = value;
    }
}

#[test]
fn mmx_registers_move() {
    let with = |bytes: &[u8], cr0, mut mmx: Mmx| {
        let mut c = CpuState { cr0, ..cpu() };
        let mut bus = bus(0x8070_6050_4030_2010, &[]);
        let i = decoded(bytes, CodeSize::Bits64).expect("decodes");
        execute(&i, &mut c, &mut mmx, &mut bus).map(|_| (mmx.0[1], bus.written))
    };
    let held = || Mmx([0, 0x0102_0304_0506_0708, 0, 0, 0, 0, 0, 0], false);
    let (load, store) = (&[0x0F, 0x6F, 0x0F], &[0x0F, 0x7F, 0x0F]);
    assert_eq!(with(load, 1, held()), Ok((0x8070_6050_4030_2010, vec![])));
    let stored = Ok((held().0[1], vec![(8, 0x0102_0304_0506_0708)]));
    assert_eq!(with(store, 1, held()), stored);
    // MOVD MM1, [RDI]
    assert_eq!(
        with(&[0x0F, 0x6E, 0x0F], 1, held()),
        Ok((0x4030_2010, vec![]))
    );
    assert_eq!(with(load, 5, held()), Err(Exception::UD.into()));
    assert_eq!(with(load, 9, held()), Err(Exception::new(NM, None).into()));
    let error = Err(Exception::new(MF, None).into());
    assert_eq!(with(store, 1, Mmx([0; 8], true)), error);
}

/// XMM registers.
struct Xmm([[u8; 32]; 2]);

impl Vectors for Xmm {
    fn get(&self, index: u8) -> [u8; 32] {
        self.0[usize::from(index)]
    }
    fn set(&mut self, index: u8, value: &[u8; 32], _: VectorEncoding) {
        self.0[usize::from(index)] = *value;
    }
    fn x87_error(&self) -> bool {
        false
    }
    fn get_mmx(&mut self, _: u8) -> u64 {
        0
    }
    fn set_mmx(&mut self, _: u8, _: u64) {}
}

#[test]
fn a_masked_store_writes_what_is_chosen_and_nothing_for_an_empty_mask() {
    let value = core::array::from_fn(|n| n as u8);
    let with = |chosen: &[usize], cr4| {
        let mut mask = [0x7f; 32];
        chosen.iter().for_each(|n| mask[*n] = 0x80);
        let mut c = CpuState { cr4, ..cpu() };
        let mut bus = bus(0, &[]);
        // MASKMOVDQU XMM0, XMM1
        let i = decoded(&[0x66, 0x0F, 0xF7, 0xC1], CodeSize::Bits64).expect("decodes");
        let done = execute(&i, &mut c, &mut Xmm([value, mask]), &mut bus);
        done.map(|_| bus.written)
    };
    const OSFXSR: u64 = 1 << 9;
    assert_eq!(with(&[], OSFXSR), Ok(vec![]));
    let bytes = vec![(1, 0), (1, 3), (1, 15)];
    assert_eq!(with(&[0, 3, 15], OSFXSR), Ok(bytes));
    assert_eq!(with(&[0], 0), Err(Exception::UD.into()));
}
