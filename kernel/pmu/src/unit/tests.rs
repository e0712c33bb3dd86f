use super::*;
use crate::bandwidth;
use alloc::string::ToString;
use proptest::prelude::*;
use units::Nanos;

fn vendor(name: &[u8; 12], max: u32) -> CpuidLeaf {
    let word = |i: usize| u32::from_le_bytes([name[i], name[i + 1], name[i + 2], name[i + 3]]);
    CpuidLeaf {
        eax: max,
        ebx: word(0),
        edx: word(4),
        ecx: word(8),
    }
}

fn skylake() -> CpuidValues {
    CpuidValues {
        leaf_0: vendor(b"GenuineIntel", 0x16),
        leaf_1: CpuidLeaf {
            eax: 0x0005_0654,
            ecx: PDCM,
            ..CpuidLeaf::default()
        },
        leaf_a: CpuidLeaf {
            eax: 0x0730_0404,
            ..CpuidLeaf::default()
        },
        ..CpuidValues::default()
    }
}

fn zen(eax: u32) -> CpuidValues {
    CpuidValues {
        leaf_0: vendor(b"AuthenticAMD", 0x10),
        leaf_1: CpuidLeaf {
            eax,
            ..CpuidLeaf::default()
        },
        leaf_8000_0001: CpuidLeaf {
            ecx: PERF_CTR_EXT_CORE,
            ..CpuidLeaf::default()
        },
        ..CpuidValues::default()
    }
}

#[test]
fn processors_are_known_by_what_they_say() {
    let unit = detect(&skylake()).expect("a Xeon");
    assert_eq!((unit.counters, unit.width, unit.events.len()), (4, 48, 6));
    assert!(unit.has_capabilities && unit.style == Style::Intel);
    // Rome: family 0x17, model 0x31.
    let unit = detect(&zen(0x0083_0f10)).expect("an EPYC");
    assert_eq!(
        (unit.family, unit.counters, unit.width),
        ("AMD Zen 2", 6, 48)
    );
    assert_eq!(unit.style, Style::Amd { global: false });
    // Genoa: family 0x19, model 0x11, PerfMonV2.
    let mut genoa = zen(0x00a1_0f11);
    genoa.leaf_8000_0022 = CpuidLeaf {
        eax: 1,
        ebx: 0x10_4106,
        ..CpuidLeaf::default()
    };
    let unit = detect(&genoa).expect("an EPYC");
    assert_eq!(
        (unit.family, unit.style),
        ("AMD Zen 4", Style::Amd { global: true })
    );
}

#[test]
fn absence_has_a_reason() {
    let why = |values: CpuidValues| detect(&values).expect_err("absent").to_string();
    let mut v = skylake();
    v.leaf_a.eax = 0;
    assert!(why(v).contains("leaf 0xA"), "{}", why(v));
    v.leaf_a.eax = 0x0728_0201;
    assert!(why(v).contains("version 1"));
    v.leaf_a.eax = 0x0730_0004;
    assert!(why(v).contains("no counter"));
    v.leaf_a.eax = 0x0740_0404;
    assert!(why(v).contains("no counter"), "64 bits");
    let mut v = zen(0x0083_0f10);
    v.leaf_8000_0001.ecx = 0;
    assert!(why(v).contains("bit 23"));
    assert!(why(zen(0x0060_0f20)).contains("family 0x15"));
    assert!(why(CpuidValues::default()).contains("neither"));
}

#[test]
fn events_that_a_processor_lacks_are_left_out() {
    let mut v = skylake();
    v.leaf_1.eax = 0x0003_06c3;
    v.leaf_a = CpuidLeaf {
        eax: 0x0730_0402,
        ebx: 1 << 4,
        ..CpuidLeaf::default()
    };
    let kinds = |v: &CpuidValues| -> Vec<_> {
        detect(v)
            .map(|u| u.events.iter().map(|e| e.kind.as_str()).collect())
            .unwrap_or_default()
    };
    assert_eq!(kinds(&v), ["instructions", "cycles"]);
    // EBX says something about the first two events only.
    v.leaf_a = CpuidLeaf {
        eax: 0x0230_0402,
        ..CpuidLeaf::default()
    };
    assert_eq!(kinds(&v), ["instructions", "cycles"]);
    v.leaf_a.ebx = 3;
    assert_eq!(detect(&v).expect_err("nothing left"), Absent::NoEvents);
}

#[test]
fn only_leaves_that_exist_are_asked_for() {
    let mut asked = Vec::new();
    let values = CpuidValues::ask(|leaf, _| {
        asked.push(leaf);
        match leaf {
            0 => vendor(b"GenuineIntel", 7),
            0x8000_0000 => CpuidLeaf {
                eax: 0x8000_0008,
                ..CpuidLeaf::default()
            },
            _ => CpuidLeaf {
                eax: leaf,
                ..CpuidLeaf::default()
            },
        }
    });
    assert_eq!(asked, [0, 0x8000_0000, 1, 7, 0x8000_0001]);
    assert_eq!(values.leaf_a, CpuidLeaf::default());
    assert_eq!(values.leaf_f_1, CpuidLeaf::default());
}

proptest! {
    #[test]
    fn no_answer_of_cpuid_makes_it_panic(words in proptest::collection::vec(any::<u32>(), 32), vendor_of in 0u8..3) {
        let leaf = |i: usize| CpuidLeaf { eax: words[i], ebx: words[i + 1], ecx: words[i + 2], edx: words[i + 3] };
        let leaf_0 = match vendor_of {
            0 => vendor(b"GenuineIntel", 1),
            1 => vendor(b"AuthenticAMD", 1),
            _ => leaf(0),
        };
        let values = CpuidValues {
            leaf_0, leaf_1: leaf(4), leaf_a: leaf(8), leaf_8000_0001: leaf(12), leaf_8000_0022: leaf(16),
            leaf_7: leaf(20), leaf_f: leaf(24), leaf_f_1: leaf(28),
        };
        if let Ok(monitoring) = bandwidth::detect(&values) {
            prop_assert!(monitoring.factor > 0 && (24..=62).contains(&monitoring.width));
            prop_assert!(monitoring.longest() >= Nanos::from_secs(1));
        }
        match detect(&values) {
            Ok(unit) => prop_assert!(unit.counters > 0 && unit.mask() >= u64::from(u32::MAX)),
            Err(why) => prop_assert!(!why.to_string().is_empty()),
        }
    }

    #[test]
    fn differences_are_exact_over_one_wrap(start: u64, counted: u64, width in 32u8..64) {
        let mut unit = detect(&skylake()).expect("a Xeon");
        unit.width = width;
        let start = start & unit.mask();
        // Up to where a second wrap would begin.
        let counted = u64::try_from(u128::from(counted) % ((2u128 << width) - u128::from(start))).unwrap_or(0);
        let sum = u128::from(start) + u128::from(counted);
        let overflowed = sum >> width != 0;
        let end = (sum & u128::from(unit.mask())) as u64;
        prop_assert_eq!(unit.difference(start, end, overflowed), counted);
        if counted <= unit.mask() {
            prop_assert_eq!(unit.difference(start, end, overflowed && end < start), counted);
        }
    }
}
