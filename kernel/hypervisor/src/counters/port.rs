//! Which registers a CPU's counters are: the processor's, or in kernels built for tests those that are injected.

use crate::arch::pmu::{self as processor, Registers};
use pmu::{CpuidValues, Fault, MsrPort};

#[cfg(feature = "sabotage")]
use pmu::simulated::SimulatedPmu;

/// The calling CPU's registers.
#[derive(Debug)]
pub enum Port {
    /// Its own.
    Processor(Registers),
    /// Simulated ones.
    #[cfg(feature = "sabotage")]
    Injected(spin::MutexGuard<'static, SimulatedPmu>),
}

/// The way to the calling CPU's counters.
pub fn here() -> Port {
    #[cfg(feature = "sabotage")]
    if let Some(pmu) = super::injected::here() {
        return Port::Injected(pmu);
    }
    Port::Processor(Registers)
}

/// What CPUID says of them.
pub fn cpuid() -> CpuidValues {
    #[cfg(feature = "sabotage")]
    if let Some(pmu) = super::injected::here() {
        return pmu.cpuid();
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
        }
    }

    fn write(&mut self, register: u32, value: u64) -> Result<(), Fault> {
        match self {
            Self::Processor(registers) => registers.write(register, value),
            #[cfg(feature = "sabotage")]
            Self::Injected(pmu) => pmu.write(register, value),
        }
    }
}
