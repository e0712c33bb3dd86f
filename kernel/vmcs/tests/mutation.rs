//! Random mistakes: the valid forms are valid, a seed tells the series, and what is rejected is blamed on the mistake.

use std::collections::BTreeMap;
use vmcs::mutation::{Base, Mutation, Random};
use vmcs::*;

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

fn form(base: Base) -> Form {
    let mut form = Form::default();
    let caps = facts().caps;
    let settings = Settings::choose(&caps);
    base.guest(0x1000).write(&mut form);
    Host {
        cr0: 0x8001_0033,
        cr4: 0x2020,
        rip: 0xffff_ffff_8000_0000,
        cs: 8,
        tr: 24,
        pat: 0x0007_0406_0007_0406,
        efer: 0xd00,
        ..Host::default()
    }
    .write(&mut form);
    Controls {
        pin: settings.pin,
        primary: settings.primary,
        secondary: settings.secondary,
        exit: settings.exit,
        entry: settings.entry | base.entry(),
        ept_pointer: caps.ept_pointer(0x2000),
        vpid: 1,
        ..Controls::default()
    }
    .write(&mut form);
    form
}

#[test]
fn the_bases_are_valid() {
    for base in Base::ALL {
        assert_eq!(check(&form(base), &facts()), Ok(()), "{base}");
    }
}

#[test]
fn a_seed_tells_the_series() {
    let series = |seed| {
        let mut random = Random::new(seed);
        let draw = |_| Mutation::draw(&mut random, |_| 0);
        (0..50).map(draw).collect::<Vec<_>>()
    };
    assert_eq!(series(5), series(5));
    assert_ne!(series(5), series(6));
}

/// A mistake may make another field wrong (a limit its granularity, a mode the controls), which the manual's rule then names;
/// most are blamed on the field they are in.
#[test]
fn the_culprit_is_the_mistake() {
    let (mut rejected, mut blamed) = (0_u32, 0_u32);
    let mut random = Random::new(1);
    for _ in 0..4_000 {
        let base = Base::ALL[random.below(3) as usize];
        let mut form = form(base);
        let mutation = Mutation::draw(&mut random, |e| form.read_raw(e));
        form.write_raw(mutation.encoding, mutation.value);
        if let Err(violation) = check(&form, &facts()) {
            rejected += 1;
            blamed += u32::from(violation.field == mutation.name);
        }
    }
    assert!((1_000..3_000).contains(&rejected), "{rejected}");
    assert!(blamed * 100 >= rejected * 85, "{blamed} of {rejected}");
}

#[test]
fn the_other_event_is_recognized_by_its_type_and_its_valid_bit() {
    let (encoding, name) = (
        field::ENTRY_EVENT.encoding(),
        "VM-entry interruption information",
    );
    let injects = |value, encoding| {
        let mutation = Mutation {
            encoding,
            name,
            value,
        };
        mutation.injects_other_event()
    };
    assert!(injects(0x8000_0700, encoding) && injects(0x8000_0f07, encoding));
    assert!(!injects(0x0000_0700, encoding) && !injects(0x8000_0302, encoding));
    assert!(!injects(0x8000_0700, field::GUEST_ACTIVITY.encoding()));
}
