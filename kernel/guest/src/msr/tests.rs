use super::*;
use crate::cpuid::{CpuidResult, CpuidSource, TscFacts, TscSync};
use crate::shape::VmShape;
use proptest::prelude::*;

/// A processor that has every feature.
struct Everything(&'static [u8; 12]);

impl CpuidSource for Everything {
    fn leaf(&self, eax: u32, _: u32) -> CpuidResult {
        let word =
            |i: usize| u32::from_le_bytes([self.0[i], self.0[i + 1], self.0[i + 2], self.0[i + 3]]);
        let all = CpuidResult {
            eax: u32::MAX,
            ebx: u32::MAX,
            ecx: u32::MAX,
            edx: u32::MAX,
        };
        match eax {
            0 => CpuidResult {
                eax: 0x1F,
                ebx: word(0),
                ecx: word(8),
                edx: word(4),
            },
            0x8000_0000 => CpuidResult {
                eax: 0x8000_0021,
                ..all
            },
            0x8000_0008 => CpuidResult { eax: 0x3028, ..all },
            0xD => CpuidResult {
                eax: 0xF,
                ebx: 576,
                ecx: 0,
                edx: 0,
            },
            _ => all,
        }
    }
}

struct Bare(&'static [u8; 12]);

impl CpuidSource for Bare {
    fn leaf(&self, eax: u32, ecx: u32) -> CpuidResult {
        if eax == 0 {
            Everything(self.0).leaf(0, ecx)
        } else {
            CpuidResult::default()
        }
    }
}

const AMD: &[u8; 12] = b"AuthenticAMD";
const INTEL: &[u8; 12] = b"GenuineIntel";

fn cpuid(host: &impl CpuidSource) -> CpuidPolicy {
    let shape = VmShape::simple(1, 64 << 20).expect("a valid shape");
    CpuidPolicy::new(
        host,
        &shape,
        TscFacts {
            hz: 1_000_000_000,
            sync: TscSync::Unsynchronised,
        },
    )
}

fn policy(host: &impl CpuidSource) -> MsrPolicy {
    MsrPolicy::new(&cpuid(host))
}

use Direction::{Read, Write};

#[test]
fn the_default_is_denied() {
    for p in [policy(&Everything(AMD)), policy(&Everything(INTEL))] {
        // Power, thermal, PMU, machine-check banks' neighbours, nested virtualization, SEV, Hyper-V, tracing.
        for msr in [
            0xC1,
            0x186,
            0x19C,
            0x1FC,
            0x345,
            0x38E,
            0x38F,
            0x390,
            0x4C1,
            0xC000_0300,
            0xC000_0301,
            0xC001_0200,
            0xC001_0201,
            0x480,
            0x570,
            0x606,
            0x10A,
            0x4000_0000,
            0xC001_0114,
            0xC001_0117,
            0xC001_0131,
            0xC001_1020,
            0xC000_0104,
            0xFFFF_FFFF,
        ] {
            assert_eq!(
                (p.classify(msr, Read), p.classify(msr, Write)),
                (MsrAction::Deny, MsrAction::Deny),
                "{msr:#x}"
            );
        }
    }
}

#[test]
fn linux_finds_what_it_reads_without_being_ready_for_a_fault() {
    let common = [
        0x10,
        0x1B,
        0x179,
        0x17A,
        0xFE,
        0x2FF,
        0x200,
        0x20F,
        0x250,
        0x26F,
        0x277,
        0x6E0,
        0x802,
        0x1D9,
        0xC000_0080,
        0x4B56_4D00,
        0x4B56_4D01,
        0x4B56_4D03,
    ];
    let amd = [
        0x8B,
        0xC001_0000,
        0xC001_0007,
        0xC001_0010,
        0xC001_0015,
        0xC001_1029,
    ];
    let intel = [0x8B, 0x17, 0x34, 0x3A, 0x1A0];
    for (p, own) in [
        (policy(&Everything(AMD)), &amd[..]),
        (policy(&Everything(INTEL)), &intel[..]),
    ] {
        for msr in common.iter().chain(own) {
            assert_ne!(p.classify(*msr, Read), MsrAction::Deny, "{msr:#x}");
        }
    }
    let p = policy(&Everything(AMD));
    assert_eq!(
        p.classify(0xC001_0015, Read),
        MsrAction::ReadConst(1 << 24),
        "HWCR.TscFreqSel"
    );
    assert_eq!(
        p.classify(0xC001_1029, Read),
        MsrAction::ReadConst(2),
        "LFENCE serialises"
    );
    assert_eq!(p.classify(0xC001_1029, Write), MsrAction::IgnoreWrite);
    assert_eq!(p.classify(0x1A0, Read), MsrAction::Deny, "Intel's");
    let p = policy(&Everything(INTEL));
    assert_eq!(p.classify(0xC001_0015, Read), MsrAction::Deny, "AMD's");
    assert_eq!(p.classify(0xC001_0000, Read), MsrAction::Deny, "AMD's");
    assert_eq!(
        p.classify(0x8B, Write),
        MsrAction::IgnoreWrite,
        "Linux clears it before it asks for the revision"
    );
    assert_eq!(p.classify(0xFE, Write), MsrAction::Deny);
}

#[test]
fn registers_follow_the_features_that_are_shown() {
    let (full, bare) = (policy(&Everything(AMD)), policy(&Bare(AMD)));
    for (msr, emulated) in [
        (0x3B, EmulatedMsr::TscAdjust),
        (0x277, EmulatedMsr::Pat),
        (0xC000_0103, EmulatedMsr::TscAux),
        (0x2FF, EmulatedMsr::Stored(StoredMsr::MtrrDefType)),
        (0x203, EmulatedMsr::Stored(StoredMsr::MtrrPhysMask(1))),
        (0x268, EmulatedMsr::Stored(StoredMsr::MtrrFixed(3))),
    ] {
        assert_eq!(
            full.classify(msr, Write),
            MsrAction::Emulate(emulated),
            "{msr:#x}"
        );
        assert_eq!(bare.classify(msr, Write), MsrAction::Deny, "{msr:#x}");
    }
    for (msr, emulated) in [(0x48, EmulatedMsr::SpecCtrl), (0x49, EmulatedMsr::PredCmd)] {
        assert_eq!(full.classify(msr, Write), MsrAction::Emulate(emulated));
        assert_eq!(bare.classify(msr, Write), MsrAction::Deny);
    }
    assert_eq!(
        (full.classify(0x49, Read), bare.spec_ctrl_mask()),
        (MsrAction::Deny, 0),
        "a command cannot be read, and nothing may be set that was not shown"
    );
    assert_eq!(
        full.classify(0x83F, Write),
        MsrAction::Emulate(EmulatedMsr::X2Apic(0x3F))
    );
}

#[test]
fn every_passthrough_register_is_classified_as_such() {
    let p = policy(&Everything(AMD));
    for msr in p.passthrough() {
        assert_eq!(
            (p.classify(*msr, Read), p.classify(*msr, Write)),
            (MsrAction::Passthrough, MsrAction::Passthrough)
        );
    }
    assert_eq!(
        p.classify(0xC000_0080, Write),
        MsrAction::Emulate(EmulatedMsr::Efer),
        "EFER is never passed through"
    );
}

#[test]
fn writes_are_checked_as_hardware_checks_them() {
    let mut s = MsrState::new(&cpuid(&Everything(AMD)));
    let cases = [
        (StoredMsr::Pat, 0x0007_0406_0007_0406, true),
        (StoredMsr::Pat, 0x0007_0106_0007_0106, true),
        (StoredMsr::Pat, 2, false),
        (StoredMsr::Pat, 0x08 << 56, false),
        (StoredMsr::MtrrDefType, 0xC06, true),
        (StoredMsr::MtrrDefType, 0x106, false),
        (StoredMsr::MtrrDefType, 2, false),
        (StoredMsr::MtrrPhysBase(7), 0xFF_FFFF_F006, true),
        (StoredMsr::MtrrPhysBase(7), 0x100_0000_0006, false),
        (StoredMsr::MtrrPhysBase(0), 0x106, false),
        (StoredMsr::MtrrPhysBase(8), 6, false),
        (StoredMsr::MtrrPhysMask(7), 0xFF_8000_0800, true),
        (StoredMsr::MtrrPhysMask(7), 0x400, false),
        (StoredMsr::MtrrFixed(10), 0x0606_0606_0505_0100, true),
        (StoredMsr::MtrrFixed(10), 0x0706_0606_0606_0606, false),
        (StoredMsr::MtrrFixed(11), 0, false),
        (StoredMsr::McgStatus, 8, false),
        (StoredMsr::DebugCtl, 2, true),
        (StoredMsr::DebugCtl, 1 << 6, false),
    ];
    for (msr, value, valid) in cases {
        let before = s.read(msr);
        assert_eq!(s.write(msr, value).is_ok(), valid, "{msr:?} {value:#x}");
        assert_eq!(s.read(msr), if valid { value } else { before });
    }
}

#[test]
fn the_mtrrs_start_as_firmware_leaves_them() {
    let s = MsrState::new(&cpuid(&Everything(AMD)));
    assert_eq!(s.read(StoredMsr::MtrrDefType), 0xC06);
    assert_eq!(s.read(StoredMsr::MtrrPhysBase(0)), 0xC000_0000);
    assert_eq!(s.read(StoredMsr::MtrrPhysMask(0)), 0xFF_C000_0800);
    assert_eq!(s.read(StoredMsr::MtrrFixed(2)), 0, "the video range");
    // Each is a value that may be written back.
    let mut copy = s.clone();
    for msr in (0..8)
        .flat_map(|n| [StoredMsr::MtrrPhysBase(n), StoredMsr::MtrrPhysMask(n)])
        .chain((0..11).map(StoredMsr::MtrrFixed))
    {
        assert_eq!(copy.write(msr, s.read(msr)), Ok(()), "{msr:?}");
    }
}

#[test]
fn a_flood_of_unknown_registers_is_logged_in_bounds() {
    let mut f = FirstSeen::new();
    assert!(f.insert(1, Read));
    assert!(!f.insert(1, Read));
    assert!(f.insert(1, Write));
    let logged = (0..10_000).filter(|m| f.insert(0x1_0000 + m, Read)).count();
    assert_eq!(logged, 62);
    assert_eq!(f.suppressed(), 1 + 10_000 - 62);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn reads_are_never_answered_as_writes(msr: u32, near in 0u32..0x1_0000, base in 0usize..4) {
        let near = [0, 0xC000_0000, 0xC001_0000, 0x4B56_0000][base] + near;
        for p in [policy(&Everything(AMD)), policy(&Everything(INTEL))] {
            for m in [msr, near] {
                prop_assert!(!matches!(p.classify(m, Read), MsrAction::IgnoreWrite));
                prop_assert!(!matches!(p.classify(m, Write), MsrAction::ReadConst(_)));
            }
        }
    }
}
