//! The counts of one L3 cache made of memory, with the manuals' rules.

use alloc::vec::Vec;
use units::Nanos;

use super::{ERROR, Event, L3, LEAST_WIDTH, LOCAL, PQM, TOTAL, UNAVAILABLE};
use crate::port::{Fault, MsrPort};
use crate::registers::{IA32_PQR_ASSOC, IA32_QM_CTR, IA32_QM_EVTSEL};
use crate::unit::{CpuidLeaf, CpuidValues};

/// The largest RMID.
const MAX_RMID: u64 = 143;
/// Bits of [`IA32_QM_EVTSEL`] and [`IA32_PQR_ASSOC`] that may be written: an event or nothing, an RMID, a class.
const EVTSEL_BITS: u64 = 0x3ff << 32 | 0xff;
const PQR_BITS: u64 = 0xf << 32 | 0x3ff;

/// One L3 cache, as all of its CPUs see it.
#[derive(Clone, Debug)]
pub struct SimulatedCache {
    /// Bytes that 1 stands for.
    pub factor: u32,
    /// Bits of a count.
    pub width: u8,
    /// Bits of CPUID leaf 0xF.1 EDX: which events there are.
    pub events: u32,
    /// Whether there is no count at present.
    pub unavailable: bool,
    /// Registers that fault from now on.
    pub broken: Vec<u32>,
    /// Class and RMID of the CPU that asks.
    pub association: u64,
    selected: u64,
    /// Bytes so far: total, local.
    bytes: [u128; 2],
}

impl SimulatedCache {
    /// A cache that counts both events, in units of so many bytes and with so many bits.
    pub const fn new(factor: u32, width: u8) -> Self {
        Self {
            factor,
            width,
            events: TOTAL | LOCAL,
            unavailable: false,
            broken: Vec::new(),
            association: 0,
            selected: 0,
            bytes: [0; 2],
        }
    }

    /// Adds to CPUID what tells of it.
    pub fn describe(&self, cpuid: &mut CpuidValues) {
        cpuid.leaf_7.ebx |= PQM;
        cpuid.leaf_f = CpuidLeaf {
            ebx: MAX_RMID as u32,
            edx: L3,
            ..CpuidLeaf::default()
        };
        cpuid.leaf_f_1 = CpuidLeaf {
            eax: u32::from(self.width.saturating_sub(LEAST_WIDTH)),
            ebx: self.factor,
            ecx: MAX_RMID as u32,
            edx: self.events,
        };
    }

    /// Bytes go to memory: so many, and those of them that go to the node's own.
    pub fn pass(&mut self, total: u128, local: u128) {
        // Only who has RMID 0 counts as 0.
        if self.association as u32 == 0 {
            let [all, near] = &mut self.bytes;
            *all = all.wrapping_add(total);
            *near = near.wrapping_add(local);
        }
    }

    /// The same at a rate, in bytes per second, for `time`.
    pub fn run(&mut self, time: Nanos, total_per_s: u64, local_per_s: u64) {
        let bytes = |per_s: u64| u128::from(per_s) * u128::from(time.0) / 1_000_000_000;
        self.pass(bytes(total_per_s), bytes(local_per_s));
    }

    fn count(&self) -> u64 {
        let (event, rmid) = (self.selected & 0xff, self.selected >> 32);
        let offered = |bit: u32| self.events & bit != 0;
        let [total, local] = self.bytes;
        let bytes = match event {
            e if e == Event::Total as u64 && offered(TOTAL) => total,
            e if e == Event::Local as u64 && offered(LOCAL) => local,
            _ => return ERROR,
        };
        match (rmid, self.unavailable) {
            (rmid, _) if rmid > MAX_RMID => ERROR,
            (_, true) => UNAVAILABLE,
            (0, false) => (bytes / u128::from(self.factor.max(1))) as u64 & ((1 << self.width) - 1),
            _ => 0,
        }
    }
}

impl MsrPort for SimulatedCache {
    fn read(&mut self, register: u32) -> Result<u64, Fault> {
        match register {
            r if self.broken.contains(&r) => Err(Fault { register }),
            IA32_QM_EVTSEL => Ok(self.selected),
            IA32_QM_CTR => Ok(self.count()),
            IA32_PQR_ASSOC => Ok(self.association),
            _ => Err(Fault { register }),
        }
    }

    fn write(&mut self, register: u32, value: u64) -> Result<(), Fault> {
        let (place, bits) = match register {
            r if self.broken.contains(&r) => return Err(Fault { register }),
            IA32_QM_EVTSEL => (&mut self.selected, EVTSEL_BITS),
            IA32_PQR_ASSOC => (&mut self.association, PQR_BITS),
            _ => return Err(Fault { register }),
        };
        if value & !bits != 0 {
            return Err(Fault { register });
        }
        *place = value;
        Ok(())
    }
}
