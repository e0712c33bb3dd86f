use super::*;
use alloc::vec;
use alloc::vec::Vec;
use proptest::prelude::*;

/// Flat memory; addresses past its end fault.
struct Flat {
    bytes: Vec<u8>,
    cr3: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Missing(u32);

impl LinearMemory for Flat {
    type Error = Missing;
    fn read(&mut self, address: u32, bytes: &mut [u8]) -> Result<(), Missing> {
        let at = address as usize;
        let from = self
            .bytes
            .get(at..at + bytes.len())
            .ok_or(Missing(address))?;
        bytes.copy_from_slice(from);
        Ok(())
    }
    fn write(&mut self, address: u32, bytes: &[u8]) -> Result<(), Missing> {
        let at = address as usize;
        let to = self
            .bytes
            .get_mut(at..at + bytes.len())
            .ok_or(Missing(address))?;
        to.copy_from_slice(bytes);
        Ok(())
    }
    fn use_cr3(&mut self, cr3: u32) {
        self.cr3 = cr3;
    }
}

const GDT: u32 = 0x1000;
const OLD_TSS: u32 = 0x2000;
const NEW_TSS: u32 = 0x3000;
const STACK: u32 = 0x8000;
/// Selectors: flat code and data of the supervisor, of the user, an LDT, the two TSS, one of 16 bits.
const CODE: u16 = 0x08;
const DATA: u16 = 0x10;
const USER_CODE: u16 = 0x1B;
const USER_DATA: u16 = 0x23;
const LDT: u16 = 0x28;
const OLD: u16 = 0x30;
const NEW: u16 = 0x38;
const SMALL: u16 = 0x40;
const CONFORMING: u16 = 0x48;

fn descriptor(base: u32, limit: u32, access: u64, flags: u64) -> u64 {
    u64::from(limit & 0xFFFF)
        | u64::from(base & 0xFF_FFFF) << 16
        | access << 40
        | u64::from(limit >> 16 & 0xF) << 48
        | flags << 52
        | u64::from(base >> 24) << 56
}

struct World {
    memory: Flat,
    state: TaskState,
}

impl World {
    fn new() -> Self {
        let mut memory = Flat {
            bytes: vec![0; 0x1_0000],
            cr3: 0,
        };
        let table = [
            0,
            descriptor(0, 0xF_FFFF, 0x9B, 0xC),
            descriptor(0, 0xF_FFFF, 0x93, 0xC),
            descriptor(0, 0xF_FFFF, 0xFA, 0xC),
            descriptor(0, 0xF_FFFF, 0xF2, 0xC),
            descriptor(0x4000, 0xFF, 0x82, 0),
            descriptor(OLD_TSS, 0x67, 0x8B, 0),
            descriptor(NEW_TSS, 0x67, 0x89, 0),
            descriptor(0x5000, 0x2B, 0x81, 0),
            descriptor(0, 0xF_FFFF, 0x9E, 0xC),
        ];
        for (i, word) in table.iter().enumerate() {
            memory
                .write(GDT + 8 * i as u32, &word.to_le_bytes())
                .expect("inside");
        }
        let gdtr = TableRegister {
            base: GDT.into(),
            limit: (table.len() * 8 - 1) as u16,
        };
        let of = |selector: u16| Descriptor(table[usize::from(selector >> 3)]).segment(selector);
        let state = TaskState {
            eip: 0x1234_5678,
            eflags: 0x246,
            gpr: [1, 2, 3, 4, STACK, 6, 7, 8],
            segments: [DATA, CODE, DATA, DATA, DATA, 0].map(|s| match s {
                0 => Segment::NULL,
                s => of(s),
            }),
            ldtr: Segment::NULL,
            tr: of(OLD),
            gdtr,
            cr0: 0x8000_0011,
            cr3: 0x9000,
            dr7: 0x7FF,
            cpl: 0,
        };
        let mut world = Self { memory, state };
        world.incoming(&[
            (0x1C, 0xA000),
            (0x20, 0x4444),
            (0x24, 0x202),
            (0x38, STACK),
            (0x48, DATA.into()),
            (0x4C, CODE.into()),
            (0x50, DATA.into()),
            (0x54, DATA.into()),
        ]);
        world
    }

    fn word(&mut self, at: u32, value: u32) {
        self.memory.write(at, &value.to_le_bytes()).expect("inside");
    }
    fn get(&mut self, at: u32) -> u32 {
        let mut bytes = [0; 4];
        self.memory.read(at, &mut bytes).expect("inside");
        u32::from_le_bytes(bytes)
    }
    fn incoming(&mut self, fields: &[(u32, u32)]) {
        for (offset, value) in fields {
            self.word(NEW_TSS + offset, *value);
        }
    }
    fn describe(&mut self, selector: u16, descriptor: u64) {
        let at = GDT + u32::from(selector & !7);
        self.memory
            .write(at, &descriptor.to_le_bytes())
            .expect("inside");
    }
    fn busy(&mut self, selector: u16) -> bool {
        self.get(GDT + u32::from(selector & !7) + 4) & 1 << 9 != 0
    }
    fn go(&mut self, selector: u16, cause: Cause) -> Result<Done, Refusal<Missing>> {
        self.go_with(selector, cause, None)
    }
    fn go_with(
        &mut self,
        selector: u16,
        cause: Cause,
        error_code: Option<u32>,
    ) -> Result<Done, Refusal<Missing>> {
        let order = TaskSwitch {
            selector,
            cause,
            error_code,
        };
        switch(&mut self.state, &order, &mut self.memory)
    }
}

fn exception(vector: u8, code: u32) -> Stop<Missing> {
    Stop::Exception(Exception::new(vector, Some(code)))
}

#[test]
fn a_call_saves_loads_links_and_marks() {
    let mut w = World::new();
    let before = w.state;
    assert_eq!(w.go(NEW, Cause::Call), Ok(Done::Run));
    assert_eq!((w.state.eip, w.state.eflags), (0x4444, 0x4202), "NT");
    assert_eq!(
        (w.state.tr.selector, w.state.tr.attributes & 0xF),
        (NEW, 0xB)
    );
    assert_eq!((w.state.cr3, w.memory.cr3), (0xA000, 0xA000));
    assert_eq!(w.state.cr0, before.cr0 | 8, "TS");
    assert_eq!(w.state.dr7, 0x7FF & !0x155);
    assert_eq!((w.busy(OLD), w.busy(NEW)), (true, true));
    assert_eq!(w.get(NEW_TSS) & 0xFFFF, u32::from(OLD), "link");
    assert_eq!(
        (w.get(OLD_TSS + 0x20), w.get(OLD_TSS + 0x24)),
        (0x1234_5678, 0x246)
    );
    assert_eq!((w.get(OLD_TSS + 0x28), w.get(OLD_TSS + 0x44)), (1, 8));
    assert_eq!(w.get(OLD_TSS + 0x4C), u32::from(CODE));
    assert_eq!(
        (w.get(OLD_TSS + 0x1C), w.get(OLD_TSS + 0x60)),
        (0, 0),
        "not saved"
    );

    // And back, with NT gone from the image that is left behind.
    assert_eq!(w.go(OLD, Cause::Iret), Ok(Done::Run));
    assert_eq!((w.state.eip, w.state.eflags), (0x1234_5678, 0x246));
    assert_eq!(w.get(NEW_TSS + 0x24), 0x202);
    assert_eq!((w.busy(OLD), w.busy(NEW)), (true, false));
    assert_eq!(w.state.segments, before.segments);
}

#[test]
fn a_jump_leaves_no_trace_of_the_old_task() {
    let mut w = World::new();
    assert_eq!(w.go(NEW, Cause::Jump), Ok(Done::Run));
    assert_eq!((w.busy(OLD), w.busy(NEW)), (false, true));
    assert_eq!(w.state.eflags, 0x202, "no NT");
    assert_eq!(w.get(NEW_TSS) & 0xFFFF, 0, "no link");
    assert_eq!(w.go(OLD, Cause::Jump), Ok(Done::Run));
    assert_eq!(w.state.eip, 0x1234_5678);
}

#[test]
fn an_exception_pushes_its_error_code() {
    let mut w = World::new();
    assert_eq!(w.go_with(NEW, Cause::Event, Some(0xABCD)), Ok(Done::Run));
    assert_eq!(w.state.gpr[ESP], STACK - 4);
    assert_eq!(w.get(STACK - 4), 0xABCD);
    // A stack that ends below.
    let mut w = World::new();
    w.incoming(&[(0x38, 2)]);
    w.describe(DATA, descriptor(0, 0xFFF, 0x93, 4));
    assert_eq!(
        w.go_with(NEW, Cause::Event, Some(1)),
        Err(Refusal::After(exception(SS, 1)))
    );
    assert_eq!(w.state.tr.selector, NEW);
}

#[test]
fn a_small_task_has_sixteen_bits() {
    let mut w = World::new();
    let halves = [
        (0x0E, 0x7000),
        (0x10, 0x202),
        (0x12, 0xAAAA),
        (0x1A, 0x9000),
        (0x22, DATA),
        (0x24, CODE),
        (0x26, DATA),
        (0x28, DATA),
    ];
    for (offset, value) in halves {
        w.memory
            .write(0x5000 + offset, &value.to_le_bytes())
            .expect("inside");
    }
    assert_eq!(
        w.go_with(SMALL, Cause::Event, Some(0x1_0007)),
        Ok(Done::Run)
    );
    assert_eq!((w.state.eip, w.state.gpr[0]), (0x7000, 0xAAAA));
    assert_eq!(w.state.cr3, 0x9000, "stays");
    assert_eq!(w.state.segments[place::GS], Segment::NULL);
    assert_eq!(w.state.gpr[ESP], 0x8FFE);
    assert_eq!(w.get(0x8FFE) & 0xFFFF, 7);
    assert_eq!(w.go(OLD, Cause::Iret), Ok(Done::Run));
    assert_eq!(w.state.eip, 0x1234_5678);
    assert_eq!(w.get(0x500E) & 0xFFFF, 0x7000);
    assert_eq!(
        w.get(0x502A) & 0xFFFF,
        0,
        "the LDT is not saved, nor what lies there"
    );
}

#[test]
fn what_the_gdt_refuses_leaves_everything_as_it_was() {
    let not_present = descriptor(NEW_TSS, 0x67, 0x09, 0);
    let short = descriptor(NEW_TSS, 0x66, 0x89, 0);
    for (selector, cause, change, wanted) in [
        (
            NEW | 4,
            Cause::Call,
            None,
            exception(GP, u32::from(NEW | 4)),
        ),
        (0x100, Cause::Jump, None, exception(GP, 0x100)),
        (OLD, Cause::Call, None, exception(GP, u32::from(OLD))),
        (DATA, Cause::Event, None, exception(GP, u32::from(DATA) | 1)),
        (NEW, Cause::Iret, None, exception(TS, u32::from(NEW))),
        (0x100, Cause::Iret, None, exception(TS, 0x100)),
        (
            NEW,
            Cause::Call,
            Some(not_present),
            exception(NP, u32::from(NEW)),
        ),
        (NEW, Cause::Call, Some(short), exception(TS, u32::from(NEW))),
        (
            NEW,
            Cause::Call,
            Some(descriptor(0xFFC0, 0x67, 0x89, 0)),
            Stop::Memory(Missing(0xFFC0)),
        ),
    ] {
        let mut w = World::new();
        if let Some(descriptor) = change {
            w.describe(NEW, descriptor);
        }
        let (state, memory) = (w.state, w.memory.bytes.clone());
        assert_eq!(w.go(selector, cause), Err(Refusal::Before(wanted)));
        assert_eq!(w.state, state);
        assert!(w.memory.bytes == memory, "{selector:#x} {cause:?}");
    }
}

/// Words of the TSS that differ (offset, value), and what becomes of the switch.
type Case = (&'static [(u32, u32)], Result<Done, Stop<Missing>>);

#[test]
fn segments_are_held_to_the_rules() {
    let cases: &[Case] = &[
        (&[(0x4C, 0)], Err(exception(TS, 0))),
        (&[(0x50, 0)], Err(exception(TS, 0))),
        (&[(0x4C, DATA as u32)], Err(exception(TS, DATA as u32))),
        (&[(0x50, CODE as u32)], Err(exception(TS, CODE as u32))),
        (&[(0x50, USER_DATA as u32)], Err(exception(TS, 0x20))),
        (&[(0x48, NEW as u32)], Err(exception(TS, NEW as u32))),
        (&[(0x48, 0x108)], Err(exception(TS, 0x108))),
        (&[(0x48, 0x0C)], Err(exception(TS, 0x0C))), // in an LDT that there is not
        (&[(0x60, DATA as u32)], Err(exception(TS, DATA as u32))),
        (&[(0x60, 0x2C)], Err(exception(TS, 0x2C))),
        (&[(0x60, LDT as u32)], Ok(Done::Run)),
        (&[(0x58, 0), (0x5C, 0)], Ok(Done::Run)),
        (&[(0x48, USER_DATA as u32)], Ok(Done::Run)),
        (&[(0x48, CODE as u32)], Ok(Done::Run)),
        (&[(0x64, 1)], Ok(Done::DebugTrap)),
        (
            &[
                (0x4C, USER_CODE as u32),
                (0x50, USER_DATA as u32),
                (0x48, 0),
                (0x54, 0),
            ],
            Ok(Done::Run),
        ),
        // A user may not keep the supervisor's data, but conforming code.
        (
            &[
                (0x4C, USER_CODE as u32),
                (0x50, USER_DATA as u32),
                (0x48, 0),
            ],
            Err(exception(TS, DATA as u32)),
        ),
        (
            &[
                (0x4C, (CONFORMING | 3) as u32),
                (0x50, USER_DATA as u32),
                (0x48, CONFORMING as u32),
                (0x54, 0),
            ],
            Ok(Done::Run),
        ),
    ];
    for (fields, wanted) in cases {
        let mut w = World::new();
        w.incoming(fields);
        assert_eq!(
            w.go(NEW, Cause::Call),
            wanted.map_err(Refusal::After),
            "{fields:x?}"
        );
        assert_eq!(w.state.tr.selector, NEW, "the incoming task meets it");
    }
    // Not present: #NP for data, #SS for a stack, with the accessed bit left alone.
    for (field, vector) in [(0x48, NP), (0x50, SS)] {
        let mut w = World::new();
        w.describe(0x20, descriptor(0, 0xF_FFFF, 0x12, 0xC));
        w.incoming(&[(field, 0x20)]);
        assert_eq!(
            w.go(NEW, Cause::Call),
            Err(Refusal::After(exception(vector, 0x20)))
        );
        assert_eq!(w.get(GDT + 0x24) & 1 << 8, 0);
    }
    let mut w = World::new();
    w.incoming(&[(0x48, u32::from(USER_DATA))]);
    assert_eq!(w.go(NEW, Cause::Call), Ok(Done::Run));
    assert_eq!(w.get(GDT + 0x24) & 1 << 8, 1 << 8, "accessed");
    assert_eq!(w.state.segments[place::ES].attributes, 0xCF3);
}

#[test]
fn a_virtual_8086_task_has_real_mode_segments() {
    let mut w = World::new();
    w.incoming(&[
        (0x24, 0x2_0002),
        (0x20, 0x10),
        (0x4C, 0x4200),
        (0x54, 0x1234),
        (0x50, 0),
    ]);
    assert_eq!(w.go(NEW, Cause::Jump), Ok(Done::Run));
    assert_eq!(w.state.cpl, 3);
    let ds = w.state.segments[place::DS];
    assert_eq!((ds.base, ds.limit, ds.attributes), (0x1_2340, 0xFFFF, 0xF3));
    assert_eq!(w.state.segments[place::CS].base, 0x4_2000);
}

#[test]
fn without_paging_cr3_stays() {
    let mut w = World::new();
    w.state.cr0 = 0x11;
    assert_eq!(w.go(NEW, Cause::Jump), Ok(Done::Run));
    assert_eq!((w.state.cr3, w.memory.cr3), (0x9000, 0));
}

/// What a single step must not be put on: the processor saves RFLAGS with the task that is left.
#[test]
fn an_iret_switches_where_nt_says_so() {
    let (nested, protected, long) = (0x4002, 1, 0x500);
    assert!(iret_switches(nested, protected, 0));
    assert!(!iret_switches(2, protected, 0), "not nested");
    assert!(
        !iret_switches(nested | 0x2_0000, protected, 0),
        "virtual-8086 mode"
    );
    assert!(!iret_switches(nested, 0, 0), "real mode");
    assert!(
        !iret_switches(nested, protected, long),
        "there are no tasks there"
    );
}

proptest! {
    /// Whatever a task's registers are, calling another and returning brings them back.
    #[test]
    fn a_round_trip_restores_the_task(gpr: [u32; 8], eip: u32, flags in 0_u32..0x1000, small: bool) {
        let mut w = World::new();
        w.state.gpr = gpr;
        w.state.eip = eip;
        w.state.eflags = flags | 2;
        let before = w.state;
        if small {
            // IP, FLAGS, SP, ES, CS, SS and DS of a task that does nothing.
            for (offset, value) in [(0x10, 2), (0x22, DATA), (0x24, CODE), (0x26, DATA), (0x28, DATA)] {
                w.memory.write(0x5000 + offset, &value.to_le_bytes()).expect("inside");
            }
        }
        w.word(OLD_TSS + 0x1C, 0x9000);
        prop_assert_eq!(w.go(if small { SMALL } else { NEW }, Cause::SoftwareInterrupt), Ok(Done::Run));
        prop_assert_eq!(w.go(OLD, Cause::Iret), Ok(Done::Run));
        let expected = TaskState { cr0: before.cr0 | 8, dr7: before.dr7 & !0x155, ..before };
        prop_assert_eq!(w.state, expected);
    }

    /// No memory and no order makes it panic; a refusal before the point of no return changes no register.
    #[test]
    fn nothing_makes_it_panic(
        noise in proptest::collection::vec((0_u32..0x5100, any::<u8>()), 0..80),
        selector: u16,
        cause in prop::sample::select(&[Cause::Jump, Cause::Call, Cause::Iret, Cause::SoftwareInterrupt, Cause::Event]),
        error_code: Option<u32>,
        tr_limit in prop::sample::select(&[0_u32, 0x2B, 0x67, u32::MAX]),
        near: bool,
    ) {
        let mut w = World::new();
        for (at, byte) in noise {
            w.memory.write(at.max(GDT), &[byte]).expect("inside");
        }
        w.state.tr.limit = tr_limit;
        let selector = if near { [NEW, SMALL, OLD][usize::from(selector) % 3] } else { selector };
        let before = w.state;
        if let Err(Refusal::Before(_)) = w.go_with(selector, cause, error_code) {
            prop_assert_eq!(w.state, before);
        }
    }
}
