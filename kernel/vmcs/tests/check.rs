//! The entry checks against forms that are right, wrong in one field, and random.
//!
//! Three valid forms are the base: a guest after reset, a 64-bit kernel, and a 32-bit one with PAE paging. Each
//! row of the table breaks one rule in one of them, and the checker must name exactly that field. Random
//! forms must never do worse than being rejected.

use proptest::prelude::*;
use std::collections::BTreeMap;
use vmcs::control::{EntryControls, Primary, Secondary};
use vmcs::field::*;
use vmcs::*;

/// Fields without a processor.
#[derive(Clone, Debug, Default)]
struct Form(BTreeMap<u32, u64>);

impl Fields for Form {
    fn read_raw(&self, encoding: u32) -> u64 {
        self.0.get(&encoding).copied().unwrap_or(0)
    }
    fn write_raw(&mut self, encoding: u32, value: u64) {
        self.0.insert(encoding, value);
    }
}

fn facts() -> Facts {
    let registers = |register: u32| {
        Some(match register {
            0x3a => 5,
            0x480 => 1 << 55 | 6 << 50 | 0x1000 << 32 | 1,
            0x48d => 0x0000_007f_0000_0016,
            0x48e => 0xf7f9_fffe_0400_6172,
            0x48b => 0x0017_7fff_0000_0000,
            0x48f => 0x00ff_ffff_0003_6dfb,
            0x490 => 0x0003_ffff_0000_11fb,
            0x485 => 0x0004_01e0,
            0x486 => 0x8000_0021,
            0x487 => 0xffff_ffff,
            0x488 => 0x2000,
            0x489 => 0x0037_67ff,
            0x48c => 0x0f01_0633_4141,
            _ => return None,
        })
    };
    Facts {
        caps: Capabilities::read(true, &registers).expect("everything is there"),
        physical_bits: 40,
        linear_bits: 48,
        has_transactions: false,
    }
}

fn segment(selector: u16, base: u64, limit: u32, rights: u32) -> Segment {
    Segment {
        selector,
        base,
        limit,
        rights,
    }
}

/// After reset (SDM 3A table 10-1), with the bits that VMX operation fixes.
fn real_mode() -> Form {
    let data = segment(0, 0, 0xffff, 0x93);
    let mut form = Form::default();
    Guest {
        cr0: 0x30,
        cr4: 0x2000,
        dr7: 0x400,
        rip: 0xfff0,
        rflags: 2,
        pat: 0x0007_0406_0007_0406,
        link: Guest::NO_LINK,
        cs: segment(0xf000, 0xffff_0000, 0xffff, 0x9b),
        ss: data,
        ds: data,
        es: data,
        fs: data,
        gs: data,
        ldtr: segment(0, 0, 0xffff, 0x82),
        tr: segment(0, 0, 0xffff, 0x8b),
        gdtr: Table {
            base: 0,
            limit: 0xffff,
        },
        idtr: Table {
            base: 0,
            limit: 0xffff,
        },
        ..Guest::default()
    }
    .write(&mut form);
    Host {
        cr0: 0x8001_0033,
        cr3: 0x10_0000,
        cr4: 0x2020,
        rsp: 0xffff_8000_0000_1000,
        rip: 0xffff_ffff_8000_0000,
        cs: 8,
        ss: 16,
        tr: 24,
        gs_base: 0xffff_8000_0000_0000,
        pat: 0x0007_0406_0007_0406,
        efer: 0xd00,
        ..Host::default()
    }
    .write(&mut form);
    let caps = facts().caps;
    let settings = Settings::choose(&caps);
    Controls {
        pin: settings.pin,
        primary: settings.primary,
        secondary: settings.secondary,
        exit: settings.exit,
        entry: settings.entry,
        io_bitmap_a: 0x1000,
        io_bitmap_b: 0x2000,
        msr_bitmap: 0x3000,
        ept_pointer: caps.ept_pointer(0x4000),
        vpid: 1,
        ..Controls::default()
    }
    .write(&mut form);
    form
}

/// A 64-bit kernel.
fn long_mode() -> Form {
    let mut form = real_mode();
    let flat = segment(0x18, 0, u32::MAX, 0xc093);
    let mut guest = Guest::read(&form);
    guest.cr0 = 0x8001_0031;
    guest.cr3 = 0x9000;
    guest.cr4 = 0x2020;
    guest.efer = 0x500;
    guest.rip = 0xffff_ffff_8100_0000;
    guest.rflags = 0x202;
    guest.cs = segment(0x10, 0, u32::MAX, 0xa09b);
    (guest.ss, guest.ds, guest.es) = (flat, flat, flat);
    guest.write(&mut form);
    let entry = form.read(ENTRY_CONTROLS) | EntryControls::IA32E_GUEST.bits();
    form.write(ENTRY_CONTROLS, entry);
    form
}

/// A 32-bit kernel with PAE paging.
fn pae() -> Form {
    let mut form = real_mode();
    let flat = segment(0x18, 0, u32::MAX, 0xc093);
    let mut guest = Guest::read(&form);
    guest.cr0 = 0x8001_0031;
    guest.cr4 = 0x2020;
    guest.rflags = 0x202;
    guest.cs = segment(0x10, 0, u32::MAX, 0xc09b);
    (guest.ss, guest.ds, guest.es) = (flat, flat, flat);
    guest.set_pdptes([0x5001, 0, 0x7001, 0x8009]);
    guest.write(&mut form);
    form
}

#[test]
fn valid_forms_pass() {
    for form in [real_mode(), long_mode(), pae()] {
        assert_eq!(check(&form, &facts()), Ok(()));
    }
}

#[test]
fn areas_survive_the_way_through_fields() {
    let form = long_mode();
    let mut copy = Form::default();
    Guest::read(&form).write(&mut copy);
    Host::read(&form).write(&mut copy);
    Controls::read(&form).write(&mut copy);
    assert_eq!(copy.0, form.0);
}

fn rejected(base: &Form, field: u32, value: u64) -> Violation {
    let mut form = base.clone();
    form.write_raw(field, value);
    let name = ALL.iter().find(|(e, _)| *e == field).map(|(_, name)| *name);
    check(&form, &facts()).expect_err(&format!("{name:?} = {value:#x} breaks a rule"))
}

#[test]
fn the_field_that_breaks_a_rule_is_named() {
    let (real, long, pae) = (real_mode(), long_mode(), pae());
    let io = CR3_TARGET_COUNT.encoding();
    // Form, field, value; the field that must be named is the same.
    let rows: &[(&Form, u32, u64)] = &[
        (&real, PIN_CONTROLS.encoding(), 0),
        (&real, PIN_CONTROLS.encoding(), 0x36),
        (&real, io, 5),
        (&real, IO_BITMAP_A.encoding(), 0x1001),
        (&real, IO_BITMAP_B.encoding(), 1 << 40),
        (&real, MSR_BITMAP.encoding(), 0x800),
        (&real, VPID.encoding(), 0),
        (&real, EPT_POINTER.encoding(), 0x405f),
        (&real, EPT_POINTER.encoding(), 0x4056),
        (&real, EPT_POINTER.encoding(), 0x415e),
        (&real, EPT_POINTER.encoding(), 1 << 40 | 0x405e),
        (&real, EXIT_CONTROLS.encoding(), 0),
        (&real, ENTRY_CONTROLS.encoding(), 1 << 31),
        (&real, ENTRY_EVENT.encoding(), 0x8000_0121),
        (&real, ENTRY_EVENT.encoding(), 0x8000_0203),
        (&real, ENTRY_EVENT.encoding(), 0x8000_0320),
        (&real, ENTRY_EVENT.encoding(), 0x8000_0b0d),
        (&long, ENTRY_EVENT.encoding(), 0x8000_030d),
        (&long, ENTRY_EVENT.encoding(), 0x8000_0b06),
        (&long, HOST_CR0.encoding(), 0x8001_0013),
        (&long, HOST_CR4.encoding(), 0x20),
        (&long, HOST_CR3.encoding(), 1 << 41),
        (&long, HOST_PAT.encoding(), 2),
        (&long, HOST_EFER.encoding(), 0x100),
        (&long, HOST_EFER.encoding(), 0x1d00),
        (&long, HOST_TR_SELECTOR.encoding(), 0),
        (&long, HOST_CS_SELECTOR.encoding(), 0xb),
        (&long, HOST_GS_BASE.encoding(), 1 << 47),
        (&long, HOST_RIP.encoding(), 1 << 50),
        (&real, GUEST_CR0.encoding(), 0x10),
        (&long, GUEST_CR0.encoding(), 0x8000_0030),
        (&long, GUEST_CR0.encoding(), 0x31),
        (&long, GUEST_CR4.encoding(), 0x20),
        (&long, GUEST_CR4.encoding(), 0x2000),
        (&pae, GUEST_CR4.encoding(), 0x2_2020),
        (&long, GUEST_CR3.encoding(), 1 << 44),
        (&long, GUEST_DR7.encoding(), 1 << 32),
        (&long, GUEST_DEBUGCTL.encoding(), 1 << 2),
        (&long, GUEST_SYSENTER_EIP.encoding(), 1 << 63),
        (&long, GUEST_PAT.encoding(), 3 << 8),
        (&long, GUEST_EFER.encoding(), 0x100),
        (&long, GUEST_EFER.encoding(), 0x400),
        (&long, GUEST_EFER.encoding(), 0x1500),
        (&long, GUEST_RIP.encoding(), 1 << 60),
        (&pae, GUEST_RIP.encoding(), 1 << 32),
        (&long, GUEST_RFLAGS.encoding(), 0x200),
        (&long, GUEST_RFLAGS.encoding(), 0x20a),
        (&long, GUEST_RFLAGS.encoding(), 0x2_0202),
        (&long, GUEST_CS_RIGHTS.encoding(), 0xe09b),
        (&long, GUEST_CS_RIGHTS.encoding(), 0xa093 & !1),
        (&long, GUEST_CS_RIGHTS.encoding(), 0xa01b),
        (&long, GUEST_CS_RIGHTS.encoding(), 0xa0fb),
        (&long, GUEST_CS_BASE.encoding(), 1 << 32),
        (&long, GUEST_SS_RIGHTS.encoding(), 0xc091),
        (&long, GUEST_DS_RIGHTS.encoding(), 0xc092),
        (&long, GUEST_DS_RIGHTS.encoding(), 0xc193),
        (&long, GUEST_ES_RIGHTS.encoding(), 0x4093),
        (&long, GUEST_FS_BASE.encoding(), 1 << 48),
        (&real, GUEST_GS_RIGHTS.encoding(), 0x83),
        (&real, GUEST_FS_RIGHTS.encoding(), 0x8093 | 1 << 8),
        (&long, GUEST_TR_RIGHTS.encoding(), 0x1_008b),
        (&long, GUEST_TR_RIGHTS.encoding(), 0x83),
        (&real, GUEST_TR_RIGHTS.encoding(), 0x89),
        (&long, GUEST_TR_SELECTOR.encoding(), 4),
        (&long, GUEST_LDTR_RIGHTS.encoding(), 0x92),
        (&long, GUEST_LDTR_BASE.encoding(), 1 << 52),
        (&long, GUEST_GDTR_LIMIT.encoding(), 0x1_0000),
        (&long, GUEST_IDTR_BASE.encoding(), 1 << 47),
        (&long, GUEST_ACTIVITY.encoding(), 4),
        (&long, GUEST_INTERRUPTIBILITY.encoding(), 1 << 5),
        (&long, GUEST_INTERRUPTIBILITY.encoding(), 3),
        (&real, GUEST_INTERRUPTIBILITY.encoding(), 1),
        (&long, GUEST_INTERRUPTIBILITY.encoding(), 4),
        (&long, GUEST_PENDING_DEBUG.encoding(), 1 << 15),
        (&long, GUEST_LINK.encoding(), 0x123),
        (&pae, GUEST_PDPTE2.encoding(), 0x7003),
        (&pae, GUEST_PDPTE0.encoding(), 1 << 40 | 1),
    ];
    for (form, field, value) in rows {
        let violation = rejected(form, *field, *value);
        let name = ALL.iter().find(|(e, _)| e == field).expect("a field").1;
        assert_eq!(violation.field, name, "{name} = {value:#x}: {violation}");
    }
}

#[test]
fn rules_that_join_two_fields() {
    let named = |form: &Form| check(form, &facts()).expect_err("a rule is broken").field;
    // An interrupt while RFLAGS.IF is 0, behind STI, and an NMI inside an NMI handler.
    let mut form = long_mode();
    form.write(ENTRY_EVENT, 0x8000_0030);
    assert_eq!(check(&form, &facts()), Ok(()));
    form.write(GUEST_RFLAGS, 2);
    assert_eq!(named(&form), "guest RFLAGS");
    form.write(GUEST_RFLAGS, 0x202);
    form.write(GUEST_INTERRUPTIBILITY, Guest::BLOCKING_BY_STI);
    assert_eq!(named(&form), "guest interruptibility state");
    form.write(ENTRY_EVENT, 0x8000_0202);
    form.write(GUEST_INTERRUPTIBILITY, Guest::BLOCKING_BY_NMI);
    assert_eq!(named(&form), "guest interruptibility state");

    // A single step behind STI must be pending.
    let mut form = long_mode();
    form.write(GUEST_INTERRUPTIBILITY, Guest::BLOCKING_BY_STI);
    form.write(GUEST_RFLAGS, 0x302);
    assert_eq!(named(&form), "guest pending debug exceptions");
    form.write(GUEST_PENDING_DEBUG, Guest::PENDING_STEP);
    assert_eq!(check(&form, &facts()), Ok(()));

    // A debug exception from within a transaction, on a processor that has them, with nothing beside it.
    let judged = |pending: u64, blocking: u32, has_transactions| {
        let mut form = long_mode();
        form.write(GUEST_PENDING_DEBUG, pending);
        form.write(GUEST_INTERRUPTIBILITY, blocking);
        let facts = Facts {
            has_transactions,
            ..facts()
        };
        check(&form, &facts).map_err(|violation| violation.field)
    };
    let refused = Err("guest pending debug exceptions");
    assert_eq!(judged(0x1_1000, 0, true), Ok(()));
    assert_eq!(judged(0x1_1000, 0, false), refused);
    assert_eq!(judged(0x1_1001, 0, true), refused);
    assert_eq!(judged(0x1_1000, Guest::BLOCKING_BY_MOV_SS, true), refused);

    // Without unrestricted guest no real mode; without EPT no unrestricted guest.
    let mut form = real_mode();
    let secondary = form.read(SECONDARY_CONTROLS);
    form.write(
        SECONDARY_CONTROLS,
        secondary & !Secondary::UNRESTRICTED.bits(),
    );
    assert_eq!(named(&form), "guest CR0");
    form.write(SECONDARY_CONTROLS, secondary & !Secondary::EPT.bits());
    assert_eq!(named(&form), "secondary processor-based controls");

    // The log of written pages is a page, where it is used.
    let mut form = real_mode();
    let secondary = form.read(SECONDARY_CONTROLS);
    form.write(PML_ADDRESS, 0x5008);
    assert_eq!(check(&form, &facts()), Ok(()));
    form.write(SECONDARY_CONTROLS, secondary | Secondary::PML.bits());
    assert_eq!(named(&form), "PML address");
    form.write(PML_ADDRESS, 0x5000);
    assert_eq!(check(&form, &facts()), Ok(()));

    // Secondary controls that are not in use count as 0.
    let mut form = long_mode();
    let primary = form.read(PRIMARY_CONTROLS);
    form.write(PRIMARY_CONTROLS, primary & !Primary::SECONDARY.bits());
    form.write(EPT_POINTER, u64::MAX);
    assert_eq!(check(&form, &facts()), Ok(()));

    // Virtual-8086 mode has one shape only.
    let mut form = pae();
    form.write(GUEST_RFLAGS, 0x2_0202);
    assert_eq!(named(&form), "guest CS base");
    let mut guest = Guest::read(&form);
    let v86 = segment(0x1234, 0x1_2340, 0xffff, 0xf3);
    (guest.cs, guest.ss, guest.ds) = (v86, v86, v86);
    (guest.es, guest.fs, guest.gs) = (v86, v86, v86);
    guest.rip = 0x100;
    guest.write(&mut form);
    assert_eq!(check(&form, &facts()), Ok(()));
}

#[test]
fn an_unusable_segment_is_not_judged() {
    let mut form = long_mode();
    form.write(GUEST_DS_RIGHTS, Segment::UNUSABLE);
    form.write(GUEST_DS_BASE, 0);
    form.write(GUEST_LDTR_RIGHTS, Segment::UNUSABLE);
    form.write(GUEST_SS_RIGHTS, Segment::UNUSABLE);
    assert_eq!(check(&form, &facts()), Ok(()));
}

#[test]
fn a_violation_is_a_sentence() {
    let violation = rejected(&long_mode(), GUEST_CR0.encoding(), 0x31);
    assert_eq!(
        violation.to_string(),
        "guest CR0 is 0x31, but IA-32e mode needs paging (bit 31) (SDM 3C 27.3.1.1)"
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever a field holds, the verdict is a verdict.
    #[test]
    fn random_forms_are_judged(changes in prop::collection::vec((0..ALL.len(), any::<u64>()), 1..8)) {
        for base in [real_mode(), long_mode(), pae()] {
            let mut form = base;
            for (index, value) in &changes {
                form.write_raw(ALL[*index].0, *value);
            }
            if let Err(violation) = check(&form, &facts()) {
                prop_assert!(ALL.iter().any(|(_, name)| *name == violation.field), "{violation}");
            }
        }
    }
}
