//! What goes through a last-level cache to memory, counted by the processor: Intel's RDT memory bandwidth monitoring, AMD's platform
//! quality of service.
//!
//! Both have the same CPUID leaf, registers and events (SDM 3B 18.18, in the numbering where 16 is machine checks; APM 2 19.3; AMD 56375).
//! Each L3 cache counts bytes to any memory (event 2) and to its own node's (event 3) for each RMID, a number that software may
//! give to a CPU. Nobody here tells CPUs apart, so all have RMID 0 ([`take_part`]) and its counts are everything. On Intel that is what the
//! cache misses and writes back; on AMD reads, from the third generation on with non-temporal writes (APM 2 table 19-8).
//!
//! Counts are read on a CPU of that cache, at any time, by one CPU after the other: AMD's first versions share the selecting
//! register among them (APM 2 19.3). A [`Meter`] turns them into bytes per second. Nothing that is doubtful becomes a rate: not
//! an interval in which a count may have wrapped twice, nor one at whose ends the processor did not answer. What was known
//! before stays, with [`Trouble`] that says why.

use core::fmt;
use units::Nanos;

use crate::port::{Fault, MsrPort};
use crate::registers::{IA32_PQR_ASSOC, IA32_QM_CTR, IA32_QM_EVTSEL};
use crate::unit::{CpuidValues, Vendor};

#[cfg(feature = "simulated")]
pub mod simulated;

/// CPUID leaf 7 EBX: monitoring exists (RDT-M; PQM).
const PQM: u32 = 1 << 12;
/// CPUID leaf 0xF EDX: of the L3 cache.
const L3: u32 = 1 << 1;
/// CPUID leaf 0xF, subleaf 1, EDX: which events.
const TOTAL: u32 = 1 << 1;
const LOCAL: u32 = 1 << 2;
/// Bits of a count, to which subleaf 1 EAX 7:0 adds (SDM 2A CPUID; APM 2 19.3.1.3).
const LEAST_WIDTH: u8 = 24;
/// Bits that IA32_QM_CTR has for one.
const MOST_WIDTH: u8 = 62;
/// AMD's where CPUID does not say, from version 2.0 on. Version 1.0 has 62, of which 44 do as well: a difference is right as long as
/// less than a turn passes (APM 2 table 19-7).
const AMD_WIDTH: u8 = 44;
/// Hygon's, as Linux has it (resctrl, MBM_CNTR_WIDTH_OFFSET_HYGON): its manuals are not public.
const HYGON_WIDTH: u8 = 32;
/// Of [`IA32_QM_CTR`]: there is no such event or RMID.
const ERROR: u64 = 1 << 63;
/// Of [`IA32_QM_CTR`]: there is no count now.
const UNAVAILABLE: u64 = 1 << 62;

/// Counts of [`LEAST_WIDTH`] bits that are read so often wrap at most once in between (SDM 3B 18.18.8; APM 2 19.3.3).
const OFTEN_ENOUGH: Nanos = Nanos::from_secs(1);
/// More bytes per second than go through any L3 cache: what wider counts are trusted by.
const MOST_BYTES_PER_S: u128 = 1 << 41;
/// A CPU that is awake reads more often than this.
const ASLEEP: Nanos = Nanos::from_secs(1);
/// For so long a rate is taken for what it was last known to be.
const BELIEVED: Nanos = Nanos::from_secs(10);
/// A rate is what went on about so long.
const MEMORY: Nanos = Nanos::from_secs(1);

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Bytes to memory of any node.
    Total = 2,
    /// Bytes to memory of the node itself.
    Local = 3,
}

/// Both, as [`Meter`] keeps them.
const EVENTS: [Event; 2] = [Event::Total, Event::Local];

/// What a processor can count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Monitoring {
    /// Bytes that 1 stands for.
    pub factor: u32,
    /// Bits of a count.
    pub width: u8,
    /// Whether it counts [`Event::Total`].
    pub total: bool,
    /// Whether it counts [`Event::Local`].
    pub local: bool,
    /// The document that says so.
    pub source: &'static str,
}

/// Why nothing is counted, as a sentence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Absent {
    /// No monitoring of the L3 cache.
    NotOffered,
    /// Monitoring, but of occupancy only.
    NoEvents,
    /// A count stands for nothing, or has more bits than there is room for.
    Nonsense {
        /// Bytes that 1 stands for.
        factor: u32,
        /// What is added to the least width.
        offset: u8,
    },
}

impl fmt::Display for Absent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotOffered => f.write_str("CPUID offers no monitoring of the L3 cache (leaf 7 EBX bit 12, leaf 0xF EDX bit 1)"),
            Self::NoEvents => {
                f.write_str("CPUID offers monitoring of the L3 cache without its bandwidth (leaf 0xF.1 EDX bits 1 and 2)")
            }
            Self::Nonsense { factor, offset } => write!(
                f,
                "CPUID offers counts in units of {factor} bytes and {offset} bits more than 24 (leaf 0xF.1), which cannot be"
            ),
        }
    }
}

/// What the processor has.
///
/// # Errors
/// Why it has nothing that can be used.
pub fn detect(cpuid: &CpuidValues) -> Result<Monitoring, Absent> {
    if cpuid.leaf_7.ebx & PQM == 0 || cpuid.leaf_f.edx & L3 == 0 {
        return Err(Absent::NotOffered);
    }
    let leaf = cpuid.leaf_f_1;
    let (total, local) = (leaf.edx & TOTAL != 0, leaf.edx & LOCAL != 0);
    if !total && !local {
        return Err(Absent::NoEvents);
    }
    let offset = leaf.eax as u8;
    let vendor = cpuid.vendor();
    let width = match (offset, vendor) {
        (0, Some(Vendor::Amd)) => AMD_WIDTH,
        (0, Some(Vendor::Hygon)) => HYGON_WIDTH,
        _ => LEAST_WIDTH.saturating_add(offset),
    };
    if leaf.ebx == 0 || width > MOST_WIDTH {
        let factor = leaf.ebx;
        return Err(Absent::Nonsense { factor, offset });
    }
    Ok(Monitoring {
        factor: leaf.ebx,
        width,
        total,
        local,
        source: match vendor {
            Some(Vendor::Amd | Vendor::Hygon) => "APM 2 19.3.3",
            _ => "SDM 3B 18.18.5.2",
        },
    })
}

impl Monitoring {
    fn counts(&self, event: Event) -> bool {
        match event {
            Event::Total => self.total,
            Event::Local => self.local,
        }
    }

    const fn mask(&self) -> u64 {
        (1 << self.width) - 1
    }

    /// The longest interval in which no count wraps twice.
    pub fn longest(&self) -> Nanos {
        let turn = u128::from(self.factor) << self.width;
        let ns = turn.saturating_mul(1_000_000_000) / MOST_BYTES_PER_S;
        Nanos(u64::try_from(ns).unwrap_or(u64::MAX)).max(OFTEN_ENOUGH)
    }
}

/// Makes all that the calling CPU does count, as RMID 0; which part of the cache it may use stays as it is.
///
/// # Errors
/// The register refuses.
pub fn take_part(port: &mut impl MsrPort) -> Result<(), Fault> {
    let class = port.read(IA32_PQR_ASSOC)? & !u64::from(u32::MAX);
    port.write(IA32_PQR_ASSOC, class)
}

/// Why a rate is not of the last interval.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// The processor knows no such event, whatever CPUID says.
    Error(Event),
    /// It has no count at present.
    Unavailable(Event),
    /// The last count is from too long ago.
    TooLong,
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Error(event) => write!(f, "event {} is an error", *event as u8),
            Self::Unavailable(event) => write!(f, "event {} is not available", *event as u8),
            Self::TooLong => f.write_str("counts are too far apart"),
        }
    }
}

/// Bytes per second as far as they are known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rates {
    /// To memory of any node.
    pub total: Option<u64>,
    /// To memory of the node itself.
    pub local: Option<u64>,
    /// When it was last tried to know.
    pub tried: Nanos,
    /// When it was last known.
    pub known: Nanos,
    /// What was in the way the last time.
    pub trouble: Option<Trouble>,
}

/// One event of one cache.
#[derive(Clone, Copy, Debug, Default)]
struct Gauge {
    /// When it was read last, and what it was.
    last: Option<(Nanos, u64)>,
    rate: Option<u64>,
}

/// The counts of one L3 cache. One CPU at a time may read it, of those that have the cache.
#[derive(Clone, Debug)]
pub struct Meter {
    monitoring: Monitoring,
    gauges: [Gauge; EVENTS.len()],
    tried: Nanos,
    known: Nanos,
    trouble: Option<Trouble>,
}

impl Meter {
    /// Of a cache that was not read yet.
    pub const fn new(monitoring: Monitoring) -> Self {
        let gauge = Gauge {
            last: None,
            rate: None,
        };
        Self {
            monitoring,
            gauges: [gauge; EVENTS.len()],
            tried: Nanos::ZERO,
            known: Nanos::ZERO,
            trouble: None,
        }
    }

    /// Reads the counts, on a CPU of the cache.
    ///
    /// # Errors
    /// A register refuses; nothing was read.
    pub fn read(&mut self, port: &mut impl MsrPort, now: Nanos) -> Result<(), Fault> {
        self.tried = now;
        self.trouble = None;
        let monitoring = self.monitoring;
        for (gauge, event) in self.gauges.iter_mut().zip(EVENTS) {
            if !monitoring.counts(event) {
                continue;
            }
            port.write(IA32_QM_EVTSEL, event as u64)?;
            let value = port.read(IA32_QM_CTR)?;
            if let Err(trouble) = gauge.take(&monitoring, event, value, now) {
                self.trouble = Some(trouble);
            }
        }
        if self.trouble.is_none() {
            self.known = now;
        }
        Ok(())
    }

    /// What is known at `now`.
    ///
    /// Whose counts nobody tried to read for a while has no CPU that is awake, and one that sleeps uses no memory. What could not be known for
    /// longer is not known.
    pub fn rates(&self, now: Nanos) -> Rates {
        let asleep = self.tried > Nanos::ZERO && now.since(self.tried) > ASLEEP;
        let lost = now.since(self.known) > BELIEVED;
        let known = |gauge: Gauge, event| match (asleep, lost) {
            (true, _) => self.monitoring.counts(event).then_some(0),
            (false, true) => None,
            (false, false) => gauge.rate,
        };
        let [total, local] = self.gauges;
        Rates {
            total: known(total, Event::Total),
            local: known(local, Event::Local),
            tried: self.tried,
            known: self.known,
            trouble: self.trouble,
        }
    }
}

impl Gauge {
    /// Takes in what the register said at `now`.
    fn take(
        &mut self,
        monitoring: &Monitoring,
        event: Event,
        value: u64,
        now: Nanos,
    ) -> Result<(), Trouble> {
        if value & (ERROR | UNAVAILABLE) != 0 {
            // What was counted meanwhile may be missing from the next count.
            self.last = None;
            return Err(match value & ERROR {
                0 => Trouble::Unavailable(event),
                _ => Trouble::Error(event),
            });
        }
        let count = value & monitoring.mask();
        let Some((then, before)) = self.last.replace((now, count)) else {
            return Ok(());
        };
        let passed = now.since(then);
        if passed > monitoring.longest() {
            return Err(Trouble::TooLong);
        }
        let turned = count.wrapping_sub(before) & monitoring.mask();
        let bytes = u128::from(turned) * u128::from(monitoring.factor);
        if let Some(rate) = (bytes * 1_000_000_000).checked_div(passed.0.into()) {
            let rate = u64::try_from(rate).unwrap_or(u64::MAX);
            self.rate = Some(self.rate.map_or(rate, |old| mixed(old, rate, passed)));
        }
        Ok(())
    }
}

/// What went on before, and `new` for the time that passed, as parts of [`MEMORY`].
fn mixed(old: u64, new: u64, passed: Nanos) -> u64 {
    let (whole, part) = (u128::from(MEMORY.0), u128::from(passed.0.min(MEMORY.0)));
    let sum = u128::from(old) * (whole - part) + u128::from(new) * part;
    u64::try_from(sum / whole).unwrap_or(u64::MAX)
}
