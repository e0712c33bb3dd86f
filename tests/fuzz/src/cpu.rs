//! CPUID and MSR policy: on any host, nothing is shown that the host lacks, nothing stored that it refuses.

use crate::Input;
use guest::VmShape;
use guest::cpuid::{CpuidPolicy, CpuidResult, CpuidSource, TscFacts, TscSync, VcpuDynamic};
use guest::msr::{Direction, EmulatedMsr, MsrAction, MsrPolicy, MsrState, StoredMsr, pat_is_valid};
use std::collections::BTreeMap;

/// A processor that says anything.
struct Host {
    vendor: &'static [u8; 12],
    leaves: BTreeMap<u32, CpuidResult>,
}

impl CpuidSource for Host {
    fn leaf(&self, eax: u32, ecx: u32) -> CpuidResult {
        let word = |i: usize| {
            u32::from_le_bytes([
                self.vendor[i],
                self.vendor[i + 1],
                self.vendor[i + 2],
                self.vendor[i + 3],
            ])
        };
        let said = self.leaves.get(&(eax ^ ecx << 8)).copied();
        match eax {
            0 => CpuidResult {
                eax: 0x1F,
                ebx: word(0),
                ecx: word(8),
                edx: word(4),
            },
            _ => said.unwrap_or_default(),
        }
    }
}

const LEAVES: [u32; 12] = [
    1,
    2,
    4,
    6,
    7,
    0xB,
    0xD,
    0xD ^ 1 << 8,
    0x8000_0000,
    0x8000_0001,
    0x8000_0008,
    0x8000_0021,
];

/// The host's leaves, the VM, then accesses.
pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let vendor = input.choice(&[b"AuthenticAMD", b"GenuineIntel", b"CentaurHauls"]);
    let leaves = LEAVES
        .into_iter()
        .map(|leaf| {
            let result = CpuidResult {
                eax: input.u32(),
                ebx: input.u32(),
                ecx: input.u32(),
                edx: input.u32(),
            };
            (leaf, result)
        })
        .collect();
    let host = Host { vendor, leaves };
    let Ok(shape) = VmShape::simple(1 + u16::from(input.u8() % 64), 64 << 20) else {
        return;
    };
    let tsc = TscFacts {
        hz: input.u64(),
        sync: input.choice(&[TscSync::Synchronised, TscSync::Unsynchronised]),
    };
    let cpuid = CpuidPolicy::new(&host, &shape, tsc);
    let state = VcpuDynamic {
        apic_id: input.u8().into(),
        apic_base: input.u64(),
        cr4: input.u64(),
        xcr0: input.u64(),
        xss: input.u64(),
    };
    // SMEP, SMAP, FSGSBASE, PKU, UMIP and the rest: never invented.
    let (shown, has) = (cpuid.lookup(7, 0, &state), host.leaf(7, 0));
    assert_eq!(shown.ebx & !has.ebx, 0, "{shown:x?} of {has:x?}");
    let ospke = 1 << 4;
    assert_eq!(shown.ecx & !(has.ecx | ospke), 0, "{shown:x?} of {has:x?}");
    let xsave = cpuid.lookup(1, 0, &state).ecx >> 26 & 1 != 0;
    assert_eq!(cpuid.xcr0_is_valid(1), xsave);
    assert!(!cpuid.xcr0_is_valid(0));
    for leaf in 0..0x40 {
        for leaf in [leaf, 0x4000_0000 + leaf, 0x8000_0000 + leaf] {
            let _ = cpuid.lookup(leaf, input.u8().into(), &state);
        }
    }
    accesses(&mut input, &MsrPolicy::new(&cpuid), MsrState::new(&cpuid));
}

fn accesses(input: &mut Input<'_>, policy: &MsrPolicy, mut state: MsrState) {
    let mut steps = 0;
    while !input.is_empty() && steps < 2000 {
        steps += 1;
        let step = input.u8();
        let msr = match step & 3 {
            0 => u32::from(input.u16()),
            1 => 0xC000_0000 + u32::from(input.u16()),
            2 => 0x200 + u32::from(input.u8()),
            _ => input.u32(),
        };
        let direction = if step & 4 != 0 {
            Direction::Write
        } else {
            Direction::Read
        };
        let value = input.u64() >> (step >> 3);
        let stored = match policy.classify(msr, direction) {
            MsrAction::Emulate(EmulatedMsr::Stored(stored)) => stored,
            MsrAction::Emulate(EmulatedMsr::Pat) => StoredMsr::Pat,
            _ => continue,
        };
        let before = state.read(stored);
        if direction == Direction::Read {
            continue;
        }
        let accepted = state.write(stored, value).is_ok();
        if !accepted {
            assert_eq!(
                state.read(stored),
                before,
                "a refused write changes nothing"
            );
        }
        if stored == StoredMsr::Pat {
            assert_eq!(accepted, pat_is_valid(value));
            assert!(pat_is_valid(state.read(stored)));
        }
    }
}
