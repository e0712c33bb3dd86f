//! The hypervisor's own leaves (Linux: Documentation/virt/kvm/x86/cpuid.rst).
//!
//! Guests know KVM's paravirtual clock and steal time; those two interfaces are what is announced
//! under KVM's signature, and nothing else of KVM's.

use super::{CpuidResult, TscFacts, TscSync};
use devices::layout::LAPIC_BUS_HZ;

/// Leaf 6 EAX: the APIC timer runs in every sleep state.
pub(super) const ARAT: u32 = 1 << 2;

/// First leaf, with the signature.
const SIGNATURE: u32 = 0x4000_0000;
/// Features.
const FEATURES: u32 = 0x4000_0001;
/// TSC and bus frequency, a convention that VMware began.
const TIMING: u32 = 0x4000_0010;

/// KVM_FEATURE_NOP_IO_DELAY: no need to write port 0x80 for a delay.
const NOP_IO_DELAY: u32 = 1 << 1;
/// KVM_FEATURE_CLOCKSOURCE2: the clock at its present MSR numbers.
const CLOCKSOURCE2: u32 = 1 << 3;
/// KVM_FEATURE_STEAL_TIME.
const STEAL_TIME: u32 = 1 << 5;
/// KVM_FEATURE_CLOCKSOURCE_STABLE_BIT: the clock's stable flag can be relied upon.
const CLOCKSOURCE_STABLE: u32 = 1 << 24;

pub(super) fn leaf(leaf: u32, tsc: TscFacts) -> CpuidResult {
    match leaf {
        SIGNATURE => CpuidResult {
            eax: TIMING,
            ebx: u32::from_le_bytes(*b"KVMK"),
            ecx: u32::from_le_bytes(*b"VMKV"),
            edx: u32::from_le_bytes(*b"M\0\0\0"),
        },
        FEATURES => CpuidResult {
            eax: NOP_IO_DELAY
                | CLOCKSOURCE2
                | STEAL_TIME
                | if tsc.sync == TscSync::Synchronised {
                    CLOCKSOURCE_STABLE
                } else {
                    0
                },
            ..CpuidResult::default()
        },
        TIMING => CpuidResult {
            eax: u32::try_from(tsc.hz / 1000).unwrap_or(0),
            ebx: u32::try_from(LAPIC_BUS_HZ / 1000).unwrap_or(0),
            ..CpuidResult::default()
        },
        _ => CpuidResult::default(),
    }
}
