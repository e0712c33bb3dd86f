//! The processor's performance counters as [`pmu`] wants to reach them, and what CPUID says of them.
#![expect(unsafe_code, reason = "WRMSR")]

use super::msr;
use pmu::{CpuidLeaf, CpuidValues, Fault, MsrPort, registers};
use raw_cpuid::CpuId;

/// The calling CPU's registers.
#[derive(Debug)]
pub struct Registers;

impl MsrPort for Registers {
    fn read(&mut self, register: u32) -> Result<u64, Fault> {
        msr::read_checked(register).ok_or(Fault { register })
    }

    fn write(&mut self, register: u32, value: u64) -> Result<(), Fault> {
        if !registers::may_be_written(register, value) {
            return Err(Fault { register });
        }
        // SAFETY: a counter, what one counts, or for whom: no memory, no code path and no interrupt depends on it.
        let written = unsafe { msr::write_checked(register, value) };
        written.then_some(()).ok_or(Fault { register })
    }
}

/// What CPUID says of counters and of monitoring.
pub fn cpuid() -> CpuidValues {
    CpuidValues::ask(|leaf, subleaf| {
        let r = core::arch::x86_64::__cpuid_count(leaf, subleaf);
        CpuidLeaf {
            eax: r.eax,
            ebx: r.ebx,
            ecx: r.ecx,
            edx: r.edx,
        }
    })
}

/// Bytes of the last-level cache, 0 if CPUID does not say (SDM 2A CPUID leaf 4, APM 3 E.4.16).
pub fn last_level_cache_bytes() -> u64 {
    let caches = CpuId::new().get_cache_parameters();
    let last = caches.into_iter().flatten().max_by_key(|c| c.level());
    last.map_or(0, |c| {
        let ways = c.associativity() as u64 * c.physical_line_partitions() as u64;
        ways * c.coherency_line_size() as u64 * c.sets() as u64
    })
}
