use super::*;
use crate::inject::{Exception, GP, UD};
use crate::shape::VirtualNode;
use alloc::collections::BTreeMap;
use alloc::vec;
use proptest::prelude::*;

const SYNCED: TscFacts = TscFacts {
    hz: 2_500_000_000,
    sync: TscSync::Synchronised,
};
const DRIFTING: TscFacts = TscFacts {
    hz: 2_500_000_000,
    sync: TscSync::Unsynchronised,
};

/// A host that answers from a list, and otherwise with the same word everywhere.
struct Host {
    leaves: BTreeMap<(u32, u32), CpuidResult>,
    other: u32,
}

impl CpuidSource for Host {
    fn leaf(&self, eax: u32, ecx: u32) -> CpuidResult {
        let o = self.other;
        self.leaves
            .get(&(eax, ecx))
            .copied()
            .unwrap_or(CpuidResult {
                eax: o,
                ebx: o,
                ecx: o,
                edx: o,
            })
    }
}

const fn answer(eax: u32, ebx: u32, ecx: u32, edx: u32) -> CpuidResult {
    CpuidResult { eax, ebx, ecx, edx }
}

fn vendor_leaf(max: u32, name: &[u8; 12]) -> CpuidResult {
    let word = |i: usize| u32::from_le_bytes([name[i], name[i + 1], name[i + 2], name[i + 3]]);
    answer(max, word(0), word(8), word(4))
}

/// Sizes and offsets of XSAVE components on real processors.
fn xsave_leaves(leaves: &mut BTreeMap<(u32, u32), CpuidResult>, xcr0: u32) {
    leaves.insert((0xD, 0), answer(xcr0, 0, 0, 0));
    leaves.insert((0xD, 1), answer(0xF, 0, 0, 0));
    for (i, size, offset, ecx) in [
        (2, 256, 576, 0),
        (5, 64, 1088, 0),
        (6, 512, 1152, 0),
        (7, 1024, 1664, 0),
        (9, 8, 2688, 0),
    ] {
        leaves.insert((0xD, i), answer(size, offset, ecx, 0));
    }
}

/// Every bit of every leaf set, but for what makes a processor of that vendor.
fn everything(vendor: &[u8; 12]) -> Host {
    let mut leaves = BTreeMap::new();
    leaves.insert((0, 0), vendor_leaf(0x20, vendor));
    leaves.insert((0x8000_0000, 0), vendor_leaf(0x8000_0026, vendor));
    leaves.insert(
        (0x8000_0008, 0),
        answer(0x3030, u32::MAX, u32::MAX, u32::MAX),
    );
    xsave_leaves(&mut leaves, 0x2E7);
    for leaf in [4, 0x8000_001D] {
        for (i, eax) in [(0, 0x121), (1, 0x122), (2, 0x143), (3, 0x163), (4, 0)] {
            leaves.insert((leaf, i), answer(eax, 0x1C0_003F, 63, 0));
        }
    }
    Host {
        leaves,
        other: u32::MAX,
    }
}

fn amd() -> Host {
    everything(b"AuthenticAMD")
}

fn intel() -> Host {
    everything(b"GenuineIntel")
}

const VCPU: VcpuDynamic = VcpuDynamic {
    apic_id: 0,
    apic_base: 0xFEE0_0900,
    cr4: 0,
    xcr0: 1,
    xss: 0,
};

fn shape(vcpus: u16) -> VmShape {
    VmShape::simple(vcpus, 64 << 20).expect("a valid shape")
}

#[test]
fn what_is_not_emulated_is_hidden_whatever_the_host_has() {
    for host in [amd(), intel()] {
        let p = CpuidPolicy::new(&host, &shape(1), SYNCED);
        let leaf = |l, s| p.lookup(l, s, &VCPU);
        let one = leaf(1, 0);
        for (bit, name) in [
            (2, "DTES64"),
            (3, "MONITOR"),
            (5, "VMX"),
            (6, "SMX"),
            (7, "EIST"),
            (8, "TM2"),
            (15, "PDCM"),
            (18, "DCA"),
            (27, "OSXSAVE"),
        ] {
            assert_eq!(one.ecx >> bit & 1, 0, "{name}");
        }
        for (bit, name) in [
            (18, "PSN"),
            (21, "DS"),
            (22, "ACPI"),
            (28, "HTT"),
            (29, "TM"),
            (31, "PBE"),
        ] {
            assert_eq!(one.edx >> bit & 1, 0, "{name}");
        }
        let seven = leaf(7, 0);
        for (bit, name) in [
            (2, "SGX"),
            (4, "HLE"),
            (11, "RTM"),
            (12, "PQM"),
            (14, "MPX"),
            (25, "PT"),
        ] {
            assert_eq!(seven.ebx >> bit & 1, 0, "{name}");
        }
        for (bit, name) in [
            (4, "OSPKE"),
            (5, "WAITPKG"),
            (7, "CET_SS"),
            (13, "TME"),
            (24, "BUS_LOCK"),
            (29, "ENQCMD"),
            (31, "PKS"),
        ] {
            assert_eq!(seven.ecx >> bit & 1, 0, "{name}");
        }
        for (bit, name) in [
            (5, "UINTR"),
            (20, "CET_IBT"),
            (22, "AMX"),
            (28, "FLUSH_CMD"),
            (29, "ARCH_CAP"),
        ] {
            assert_eq!(seven.edx >> bit & 1, 0, "{name}");
        }
        let extended = leaf(0x8000_0001, 0);
        for (bit, name) in [
            (2, "SVM"),
            (3, "EXTAPIC"),
            (9, "OSVW"),
            (10, "IBS"),
            (12, "SKINIT"),
            (15, "LWP"),
            (19, "NODEID_MSR"),
            (23, "PERFCTR"),
            (29, "MWAITX"),
        ] {
            assert_eq!(extended.ecx >> bit & 1, 0, "{name}");
        }
        for (l, name) in [
            (5, "MONITOR"),
            (9, "DCA"),
            (0xA, "PMU"),
            (0xF, "QOS"),
            (0x12, "SGX"),
            (0x14, "PT"),
            (0x15, "TSC"),
            (0x8000_000A, "SVM"),
            (0x8000_001B, "IBS"),
            (0x8000_001F, "SEV"),
            (0x8000_0022, "PMU"),
        ] {
            assert_eq!(leaf(l, 0), CpuidResult::default(), "{name}");
        }
        assert_eq!(leaf(6, 0), answer(4, 0, 0, 0), "ARAT alone");
        assert_eq!((p.allowed_efer(), p.allowed_xss()), (0x4D01, 0));
        assert_eq!(
            p.allowed_cr4() & (1 << 13 | 1 << 14 | 1 << 23 | 1 << 24),
            0,
            "VMXE, SMXE, CET, PKS"
        );
    }
}

#[test]
fn what_is_emulated_is_shown_whatever_the_host_lacks() {
    let mut leaves = BTreeMap::new();
    leaves.insert((0, 0), vendor_leaf(1, b"AuthenticAMD"));
    leaves.insert((0x8000_0000, 0), vendor_leaf(0x8000_0001, b"AuthenticAMD"));
    let host = Host { leaves, other: 0 };
    let p = CpuidPolicy::new(&host, &shape(2), SYNCED);
    let one = p.lookup(1, 0, &VCPU);
    assert_eq!(
        one.ecx,
        1 << 21 | 1 << 24 | 1 << 31,
        "x2APIC, TSC deadline, hypervisor"
    );
    assert_eq!(p.lookup(0, 0, &VCPU).eax, 0xD);
    assert_ne!(p.lookup(0xB, 1, &VCPU).ebx, 0);
    assert_eq!(
        p.lookup(0xD, 0, &VCPU),
        CpuidResult::default(),
        "no XSAVE, no sizes"
    );
    assert_eq!((p.allowed_xcr0(), p.allowed_cr4()), (0, 0x7FF));
    assert_eq!(p.physical_bits(), 36);
}

#[test]
fn registers_of_the_vcpu_show() {
    let p = CpuidPolicy::new(&intel(), &shape(3), SYNCED);
    let with = |cr4: u64, apic_base: u64| VcpuDynamic {
        apic_id: 2,
        cr4,
        apic_base,
        ..VCPU
    };
    let off = with(0, 0);
    let on = with(1 << 18 | 1 << 22, 0xFEE0_0800);
    assert_eq!(
        (
            p.lookup(1, 0, &off).ecx >> 27 & 1,
            p.lookup(1, 0, &on).ecx >> 27 & 1
        ),
        (0, 1)
    );
    assert_eq!(
        (
            p.lookup(1, 0, &off).edx >> 9 & 1,
            p.lookup(1, 0, &on).edx >> 9 & 1
        ),
        (0, 1)
    );
    assert_eq!(
        (
            p.lookup(7, 0, &off).ecx >> 4 & 1,
            p.lookup(7, 0, &on).ecx >> 4 & 1
        ),
        (0, 1)
    );
    assert_eq!(p.lookup(7, 1, &on).ecx, 0, "OSPKE is subleaf 0's");
    assert_eq!(p.lookup(1, 0, &on).ebx >> 24, 2);
}

#[test]
fn the_topology_leaves_agree_with_the_apic_identifiers() {
    let nodes = vec![
        VirtualNode {
            memory_bytes: 64 << 20,
            vcpus: (0..6).collect(),
        },
        VirtualNode {
            memory_bytes: 64 << 20,
            vcpus: (6..12).collect(),
        },
    ];
    let shape = VmShape::new(nodes, vec![vec![10, 20], vec![20, 10]], 2).expect("a valid shape");
    for host in [amd(), intel()] {
        let p = CpuidPolicy::new(&host, &shape, SYNCED);
        for v in 0..12 {
            let apic_id = shape.apic_id(v);
            let vcpu = VcpuDynamic { apic_id, ..VCPU };
            let (smt, core) = (p.lookup(0xB, 0, &vcpu), p.lookup(0xB, 1, &vcpu));
            assert_eq!((smt.ebx, smt.ecx, smt.edx), (2, 0x100, apic_id));
            assert_eq!((core.ebx, core.ecx, core.edx), (6, 0x201, apic_id));
            assert_eq!(p.lookup(0xB, 2, &vcpu), answer(0, 0, 2, apic_id));
            // The same package and core for the leaf as for the shape.
            assert_eq!(apic_id >> core.eax, u32::from(v / 6));
            assert_eq!(
                (apic_id & ((1 << core.eax) - 1)) >> smt.eax,
                u32::from(v % 6 / 2)
            );
            let caches = if p.vendor() == Vendor::Amd {
                0x8000_001D
            } else {
                4
            };
            let sharing = |i| (p.lookup(caches, i, &vcpu).eax >> 14 & 0xFFF) + 1;
            assert_eq!(
                (sharing(0), sharing(2), sharing(3)),
                (2, 2, 8),
                "a core's, a core's, the package's"
            );
            assert_eq!(p.lookup(caches, 4, &vcpu), CpuidResult::default());
            assert_eq!(p.lookup(1, 0, &vcpu).edx >> 28 & 1, 1, "HTT");
        }
    }
    let p = CpuidPolicy::new(&amd(), &shape, SYNCED);
    let last = VcpuDynamic {
        apic_id: shape.apic_id(11),
        ..VCPU
    };
    assert_eq!(p.lookup(0x8000_001E, 0, &last), answer(13, 0x102, 1, 0));
    assert_eq!(p.lookup(0x8000_0008, 0, &last).ecx, 3 << 12 | 5);
    assert_eq!(
        p.lookup(4, 0, &last),
        CpuidResult::default(),
        "Intel's leaf"
    );
}

#[test]
fn xsave_sizes_follow_xcr0() {
    let p = CpuidPolicy::new(&intel(), &shape(1), SYNCED);
    assert_eq!(p.allowed_xcr0(), 0x2E7);
    let ebx = |subleaf, xcr0| p.lookup(0xD, subleaf, &VcpuDynamic { xcr0, ..VCPU }).ebx;
    // Standard: the end of the last component; compact: packed.
    for (xcr0, standard, compact) in [
        (1, 576, 576),
        (3, 576, 576),
        (7, 832, 832),
        (0xE7, 2688, 576 + 256 + 1600),
        (0x203, 2696, 584),
    ] {
        assert_eq!(
            (ebx(0, xcr0), ebx(1, xcr0)),
            (standard, compact),
            "{xcr0:#x}"
        );
    }
    assert_eq!(p.lookup(0xD, 0, &VCPU).ecx, 2696);
    assert_eq!(p.lookup(0xD, 3, &VCPU), CpuidResult::default(), "MPX");
    assert_eq!(p.lookup(0xD, u32::MAX, &VCPU), CpuidResult::default());
    assert_eq!(p.xsave_bytes(), 2696);
    for (value, valid) in [
        (0, false),
        (1, true),
        (3, true),
        (5, false),
        (7, true),
        (0x27, false),
        (0xE7, true),
        (0xE3, false),
        (0x203, true),
        (0x407, false),
    ] {
        assert_eq!(p.xcr0_is_valid(value), valid, "{value:#x}");
    }
}

#[test]
fn without_osxsave_there_is_no_xsetbv_and_with_it_its_operands_count() {
    let avx512 = CpuidPolicy::new(&intel(), &shape(1), SYNCED);
    let good = Xsetbv {
        cr4: avx512.allowed_cr4(),
        cpl: 0,
        register: 0,
        value: 7,
    };
    let off = Xsetbv {
        cr4: good.cr4 & !(1 << 18),
        ..good
    };
    let (undefined, refused) = (
        Err(Exception::new(UD, None)),
        Err(Exception::new(GP, Some(0))),
    );
    for (x, answer) in [
        (good, Ok(7)),
        (off, undefined),
        (Xsetbv { cpl: 3, ..off }, undefined),
        (Xsetbv { register: 1, ..off }, undefined),
        (Xsetbv { value: 0, ..off }, undefined),
        (Xsetbv { cpl: 3, ..good }, refused),
        (
            Xsetbv {
                register: 1,
                ..good
            },
            refused,
        ),
        (Xsetbv { value: 0, ..good }, refused),
        (Xsetbv { value: 5, ..good }, refused),
    ] {
        assert_eq!(avx512.xsetbv(x), answer, "{x:x?}");
    }
    let mut host = intel();
    xsave_leaves(&mut host.leaves, 0);
    let none = CpuidPolicy::new(&host, &shape(1), SYNCED);
    assert_eq!(none.xsetbv(good), undefined, "the guest has no XSAVE");
}

#[test]
fn an_aligned_component_starts_on_64_bytes_in_the_compact_format() {
    let mut host = intel();
    host.leaves.insert((0xD, 2), answer(200, 576, 0, 0));
    host.leaves.insert((0xD, 9), answer(8, 2688, 0b10, 0));
    let p = CpuidPolicy::new(&host, &shape(1), SYNCED);
    let vcpu = VcpuDynamic {
        xcr0: 0x207,
        ..VCPU
    };
    assert_eq!(p.lookup(0xD, 1, &vcpu).ebx, 832 + 8);
    assert_eq!(p.lookup(0xD, 9, &vcpu), answer(8, 2688, 0b10, 0));
}

#[test]
fn features_without_their_state_are_hidden() {
    let mut host = intel();
    xsave_leaves(&mut host.leaves, 3);
    let p = CpuidPolicy::new(&host, &shape(1), SYNCED);
    assert_eq!(p.allowed_xcr0(), 3);
    let (one, seven) = (p.lookup(1, 0, &VCPU), p.lookup(7, 0, &VCPU));
    assert_eq!(one.ecx & (1 << 12 | 1 << 28 | 1 << 29), 0, "FMA, AVX, F16C");
    assert_eq!(seven.ebx & (1 << 5 | 1 << 16), 0, "AVX2, AVX512F");
    assert_eq!(seven.ecx & (1 << 3 | 1 << 9), 0, "PKU, VAES");
    assert_eq!(p.allowed_cr4() >> 22 & 1, 0, "PKE");
    assert_ne!(one.ecx >> 26 & 1, 0, "XSAVE itself stays");
}

#[test]
fn the_hypervisor_leaves_speak_kvm_s_language() {
    let p = CpuidPolicy::new(&amd(), &shape(1), SYNCED);
    let s = p.lookup(0x4000_0000, 0, &VCPU);
    let mut name = [0u8; 12];
    for (i, word) in [s.ebx, s.ecx, s.edx].iter().enumerate() {
        name[i * 4..i * 4 + 4].copy_from_slice(&word.to_le_bytes());
    }
    assert_eq!(&name, b"KVMKVMKVM\0\0\0");
    assert_eq!(
        p.lookup(0x4000_0001, 0, &VCPU).eax,
        1 << 1 | 1 << 3 | 1 << 5 | 1 << 24
    );
    assert_eq!(
        p.lookup(s.eax, 0, &VCPU),
        answer(2_500_000, 1_000_000, 0, 0)
    );
    assert_eq!(p.lookup(0x8000_0007, 0, &VCPU).edx, 1 << 8);
    let p = CpuidPolicy::new(&amd(), &shape(1), DRIFTING);
    assert_eq!(
        p.lookup(0x4000_0001, 0, &VCPU).eax >> 24,
        0,
        "the clock is not announced as stable"
    );
    assert_eq!(p.lookup(0x8000_0007, 0, &VCPU).edx, 0, "nor is the TSC");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// No host and no request makes it panic, and CR4, EFER and XCR0 never allow what is not shown.
    #[test]
    fn any_host_gives_a_consistent_policy(words: Vec<u32>, leaf: u32, subleaf: u32, apic_id: u32, xcr0: u64, amd_host: bool) {
        let mut host = if amd_host { amd() } else { intel() };
        let keys: Vec<_> = host.leaves.keys().copied().collect();
        for (i, w) in words.iter().enumerate() {
            let key = keys[*w as usize % keys.len()];
            let turned = w.rotate_left(i as u32);
            host.leaves.insert(key, answer(turned, *w, !turned, w.wrapping_mul(0x9E37_79B9)));
            host.other = *w;
        }
        let p = CpuidPolicy::new(&host, &shape(5), DRIFTING);
        let vcpu = VcpuDynamic { apic_id, xcr0, ..VCPU };
        for l in [leaf, leaf % 0x22, 0x8000_0000 + leaf % 0x28] {
            let _ = p.lookup(l, subleaf, &vcpu);
        }
        prop_assert!(p.physical_bits() >= 32 && p.physical_bits() <= 52);
        let xsave = p.lookup(1, 0, &vcpu).ecx >> 26 & 1 == 1;
        prop_assert_eq!(xsave, p.allowed_cr4() >> 18 & 1 == 1);
        prop_assert_eq!(xsave, p.allowed_xcr0() != 0);
        prop_assert!(p.allowed_xcr0() == 0 || p.xcr0_is_valid(p.allowed_xcr0()));
        prop_assert_eq!(p.lookup(7, 0, &vcpu).ecx >> 3 & 1 == 1, p.allowed_cr4() >> 22 & 1 == 1);
        prop_assert!(p.xsave_bytes() >= 576 && p.xsave_bytes() <= 0x2_0000);
    }
}
