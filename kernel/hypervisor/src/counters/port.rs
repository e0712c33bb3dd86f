//! Which registers a CPU's counters are: the processor's, or in kernels built for tests those that are injected.

use crate::arch::pmu::{self as processor, Registers};
use pmu::{CpuidValues, Fault, MsrPort};

#[cfg(feature = "sabotage")]
use pmu::{bandwidth::simulated::SimulatedCache, simulated::SimulatedPmu};

/// The calling CPU's registers.
#[derive(Debug)]
pub enum Port {
    /// Its own.
    Processor(Registers),
    /// Simulated ones.
    #[cfg(feature = "sabotage")]
    Injected(spin::MutexGuard<'static, SimulatedPmu>),
    /// Simulated ones of its last-level cache.
    #[cfg(feature = "sabotage")]
    InjectedCache(spin::MutexGuard<'static, SimulatedCache>),
}

/// The way to the calling CPU's counters.
pub fn here() -> Port {
    #[cfg(feature = "sabotage")]
    if let Some(pmu) = super::injected::here() {
        return Port::Injected(pmu);
    }
    Port::Processor(Registers)
}

/// The way to the counts of the calling CPU's last-level cache.
pub fn cache_here() -> Port {
    #[cfg(feature = "sabotage")]
    if let Some(cache) = super::injected::caches::here() {
        return Port::InjectedCache(cache);
    }
    Port::Processor(Registers)
}

/// What CPUID says of them.
pub fn cpuid() -> CpuidValues {
    #[cfg(feature = "sabotage")]
    if let Some(pmu) = super::injected::here() {
        let mut values = pmu.cpuid();
        super::injected::caches::describe(&mut values);
        return values;
    }
    processor::cpuid()
}

/// Whether they are simulated: those want to be told of each entry, whatever their style.
pub fn is_injected() -> bool {
    #[cfg(feature = "sabotage")]
    return super::injected::is_on();
    #[cfg(not(feature = "sabotage"))]
    false
}

impl MsrPort for Port {
    fn read(&mut self, register: u32) -> Result<u64, Fault> {
        match self {
            Self::Processor(registers) => registers.read(register),
            #[cfg(feature = "sabotage")]
            Self::Injected(pmu) => pmu.read(register),
            #[cfg(feature = "sabotage")]
            Self::InjectedCache(cache) => cache.read(register),
        }
    }

    fn write(&mut self, register: u32, value: u64) -> Result<(), Fault> {
        match self {
            Self::Processor(registers) => registers.write(register, value),
            #[cfg(feature = "sabotage")]
            Self::Injected(pmu) => pmu.write(register, value),
            #[cfg(feature = "sabotage")]
            Self::InjectedCache(cache) => cache.write(register, value),
        }
    }
}
