//! A PMU made of memory, with the manuals' rules: what is reserved faults, counters wrap and say so.
//!
//! Host tests drive [`crate::Bank`] with it, and kernels built for tests can have it in place of their processors'.

use alloc::vec;
use alloc::vec::Vec;
use units::Nanos;

use crate::events::{Event, Kind};
use crate::port::{Fault, MsrPort};
use crate::registers::{
    EN, FW_WRITE, GUEST_ONLY, IA32_A_PMC0, IA32_PERF_CAPABILITIES, IA32_PERFEVTSEL0, IA32_PMC0,
    INT, OS, PERF_CTL0, Style, USR,
};
use crate::unit::{Absent, CpuidLeaf, CpuidValues, Unit, detect};

/// An event as its select register names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Code {
    /// Event number.
    pub select: u16,
    /// Unit mask.
    pub umask: u8,
    /// Counter mask.
    pub cmask: u8,
}

/// Who runs on the processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// A guest.
    Guest,
    /// The hypervisor.
    Host,
}

/// Whether a simulated Intel processor has IA32_A_PMC0 and its kin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Writes {
    /// It has not: 32 bits can be written, with their sign.
    Low,
    /// It has.
    Full,
}

/// The counters of one simulated CPU.
#[derive(Clone, Debug)]
pub struct SimulatedPmu {
    style: Style,
    writes: Writes,
    width: u8,
    signature: u32,
    selects: Vec<u64>,
    counters: Vec<u64>,
    /// The global registers.
    control: u64,
    status: u64,
    /// What it can count.
    events: Vec<Event>,
    /// What the last [`Self::run`] left over of each kind, in events x ns / s.
    rest: [u64; Kind::ALL.len()],
    /// Writes of registers so far.
    pub writes_seen: u64,
    /// Registers that fault from now on.
    pub broken: Vec<u32>,
}

impl SimulatedPmu {
    fn new(style: Style, signature: u32, counters: u8, width: u8) -> Self {
        let n = usize::from(counters);
        let mut pmu = Self {
            style,
            writes: Writes::Low,
            width,
            signature,
            selects: vec![0; n],
            counters: vec![0; n],
            control: if style == Style::Intel {
                (1 << counters) - 1
            } else {
                0
            },
            status: 0,
            events: Vec::new(),
            rest: [0; Kind::ALL.len()],
            writes_seen: 0,
            broken: Vec::new(),
        };
        pmu.events = pmu.unit().map(|unit| unit.events).unwrap_or_default();
        pmu
    }

    /// A Skylake-SP with so many counters of so many bits.
    pub fn skylake_sp(counters: u8, width: u8, writes: Writes) -> Self {
        Self {
            writes,
            ..Self::new(Style::Intel, 0x0005_0654, counters, width)
        }
    }

    /// A Zen 2, which has no global registers.
    pub fn zen2() -> Self {
        Self::new(Style::Amd { global: false }, 0x0083_0f10, 6, 48)
    }

    /// A Zen 4, which has them.
    pub fn zen4() -> Self {
        Self::new(Style::Amd { global: true }, 0x00a1_0f11, 6, 48)
    }

    /// What its CPUID says.
    pub fn cpuid(&self) -> CpuidValues {
        let vendor = |ebx: u32, edx: u32, ecx: u32| CpuidLeaf {
            eax: 0x16,
            ebx,
            ecx,
            edx,
        };
        let n = self.counters.len() as u32;
        let mut values = CpuidValues::default();
        values.leaf_1.eax = self.signature;
        match self.style {
            Style::Intel => {
                values.leaf_0 = vendor(0x756e_6547, 0x4965_6e69, 0x6c65_746e);
                values.leaf_1.ecx = 1 << 15;
                values.leaf_a.eax = 4 | n << 8 | u32::from(self.width) << 16 | 7 << 24;
            }
            Style::Amd { global } => {
                values.leaf_0 = vendor(0x6874_7541, 0x6974_6e65, 0x444d_4163);
                values.leaf_8000_0001.ecx = 1 << 23;
                values.leaf_8000_0022 = CpuidLeaf {
                    eax: global.into(),
                    ebx: if global { n } else { 0 },
                    ..CpuidLeaf::default()
                };
            }
        }
        values
    }

    /// What [`detect`] makes of that.
    ///
    /// # Errors
    /// As there.
    pub fn unit(&self) -> Result<Unit, Absent> {
        detect(&self.cpuid())
    }

    fn mask(&self) -> u64 {
        (1 << self.width) - 1
    }

    /// Lets events happen: `happened` says how many of each.
    pub fn advance(&mut self, side: Side, mut happened: impl FnMut(Code) -> u64) {
        let mask = self.mask();
        let global = self.style.global().is_some();
        for (i, (select, counter)) in self.selects.iter().zip(&mut self.counters).enumerate() {
            let runs = select & EN != 0 && (!global || self.control >> i & 1 == 1);
            let amd = self.style != Style::Intel;
            let here = !amd || side == Side::Guest || select & GUEST_ONLY == 0;
            if !runs || !here || select & (USR | OS) != USR | OS {
                continue;
            }
            let high = if amd { select >> 32 & 0xf } else { 0 };
            let code = Code {
                select: (select & 0xff | high << 8) as u16,
                umask: (select >> 8) as u8,
                cmask: (select >> 24) as u8,
            };
            let sum = u128::from(*counter) + u128::from(happened(code));
            if sum > u128::from(mask) {
                self.status |= 1 << i;
            }
            *counter = (sum & u128::from(mask)) as u64;
        }
    }

    /// Lets time pass in which each kind of event happens so often in a second.
    pub fn run(&mut self, side: Side, time: Nanos, per_second: &[u64; Kind::ALL.len()]) {
        const SECOND: u128 = 1_000_000_000;
        let mut now = [0u64; Kind::ALL.len()];
        for ((now, rest), rate) in now.iter_mut().zip(&mut self.rest).zip(per_second) {
            let sum = u128::from(*rate) * u128::from(time.0) + u128::from(*rest);
            *now = u64::try_from(sum / SECOND).unwrap_or(u64::MAX);
            *rest = (sum % SECOND) as u64;
        }
        let events = core::mem::take(&mut self.events);
        self.advance(side, |code| {
            let known = events
                .iter()
                .find(|e| (e.select, e.umask, e.cmask) == (code.select, code.umask, code.cmask));
            known
                .and_then(|e| now.get(e.kind as usize))
                .copied()
                .unwrap_or(0)
        });
        self.events = events;
    }

    /// Whether any counter would interrupt.
    pub fn interrupts(&self) -> bool {
        self.selects.iter().any(|select| select & INT != 0)
    }

    /// A counter's value.
    pub fn counter(&self, counter: usize) -> u64 {
        self.counters.get(counter).copied().unwrap_or(0)
    }

    /// The register as a place, with the value that a write of `value` leaves there.
    fn place(&mut self, register: u32, value: u64) -> Option<(&mut u64, Option<u64>)> {
        let mask = self.mask();
        let n = self.counters.len() as u32;
        let inside = |first: u32, step: u32| {
            let index = register.checked_sub(first).filter(|i| i % step == 0)? / step;
            (index < n).then_some(index as usize)
        };
        // Global bits: general counters, and the four fixed ones.
        let bits = ((1 << n) - 1) | 0xf << 32;
        if self.style == Style::Intel {
            if let Some(i) = inside(IA32_PERFEVTSEL0, 1) {
                return Some((
                    self.selects.get_mut(i)?,
                    (value >> 32 == 0).then_some(value),
                ));
            }
            if let Some(i) = inside(IA32_PMC0, 1) {
                let signed = value as u32 as i32 as i64 as u64;
                return Some((self.counters.get_mut(i)?, Some(signed & mask)));
            }
            if let Some(i) = inside(IA32_A_PMC0, 1).filter(|_| self.writes == Writes::Full) {
                return Some((self.counters.get_mut(i)?, (value <= mask).then_some(value)));
            }
        } else {
            if let Some(i) = inside(PERF_CTL0, 2) {
                return Some((
                    self.selects.get_mut(i)?,
                    (value >> 42 == 0).then_some(value),
                ));
            }
            if let Some(i) = inside(PERF_CTL0 + 1, 2) {
                return Some((self.counters.get_mut(i)?, Some(value & mask)));
            }
        }
        let global = self.style.global()?;
        let allowed = value & !bits == 0;
        match register {
            r if r == global.control => Some((&mut self.control, allowed.then_some(value))),
            r if r == global.status => Some((&mut self.status, None)),
            r if r == global.clear => {
                let left = self.status & !value;
                Some((&mut self.status, allowed.then_some(left)))
            }
            _ => None,
        }
    }
}

impl MsrPort for SimulatedPmu {
    fn read(&mut self, register: u32) -> Result<u64, Fault> {
        let fault = Fault { register };
        if self.broken.contains(&register) {
            return Err(fault);
        }
        if register == IA32_PERF_CAPABILITIES && self.style == Style::Intel {
            return Ok(if self.writes == Writes::Full {
                FW_WRITE
            } else {
                0
            });
        }
        self.place(register, 0)
            .map(|(place, _)| *place)
            .ok_or(fault)
    }

    fn write(&mut self, register: u32, value: u64) -> Result<(), Fault> {
        let fault = Fault { register };
        self.writes_seen += 1;
        if self.broken.contains(&register) {
            return Err(fault);
        }
        match self.place(register, value) {
            Some((place, Some(value))) => {
                *place = value;
                Ok(())
            }
            _ => Err(fault),
        }
    }
}
