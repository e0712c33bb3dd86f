//! What is counted, and by which event of which family. Each entry names the document that gives its encoding.
//!
//! Only events whose meaning a document gives are listed. Where a family's documents name none, the kind is missing there, and
//! whatever builds on it does without.

use core::fmt;

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Instructions that retired.
    Instructions,
    /// Clock cycles in which the processor was not halted.
    Cycles,
    /// Accesses that missed the last-level cache.
    CacheMisses,
    /// Reads whose data came from memory of the CPU's own node.
    LocalDram,
    /// Reads whose data came from memory of another node.
    RemoteDram,
    /// Cycles in which nothing could be executed because a read waited for memory.
    StallCycles,
}

impl Kind {
    /// All, in the order of their numbers.
    pub const ALL: [Self; 6] = [
        Self::Instructions,
        Self::Cycles,
        Self::CacheMisses,
        Self::LocalDram,
        Self::RemoteDram,
        Self::StallCycles,
    ];

    /// As an operator reads it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Instructions => "instructions",
            Self::Cycles => "cycles",
            Self::CacheMisses => "llc-misses",
            Self::LocalDram => "local-dram",
            Self::RemoteDram => "remote-dram",
            Self::StallCycles => "stall-cycles",
        }
    }

    /// The kind with this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == name)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// One event of one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// What it counts.
    pub kind: Kind,
    /// Event number: 8 bits at Intel, 12 at AMD.
    pub select: u16,
    /// Unit mask.
    pub umask: u8,
    /// Counter mask: cycles with so many events at least, 0 for every event.
    pub cmask: u8,
    /// Counters that can count it, a bit each.
    pub counters: u32,
    /// Its name in the manual.
    pub name: &'static str,
    /// The document.
    pub source: &'static str,
}

/// Any counter.
const ANY: u32 = u32::MAX;
/// Counters 0 to 3.
const FIRST_FOUR: u32 = 0xf;

const fn event(
    kind: Kind,
    select: u16,
    umask: u8,
    name: &'static str,
    source: &'static str,
) -> Event {
    Event {
        kind,
        select,
        umask,
        cmask: 0,
        counters: ANY,
        name,
        source,
    }
}

/// The table of a family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Catalog {
    /// The family, as an operator knows it.
    pub family: &'static str,
    /// Its events.
    pub events: &'static [Event],
}

const ARCHITECTURAL: &str = "SDM 3B 20.2.1.2, table 20-1";

/// Cycles and instructions by the architectural events. Which of them a processor has, CPUID leaf 0xA says (EBX).
const UNHALTED: Event = event(
    Kind::Cycles,
    0x3c,
    0x00,
    "UnHalted Core Cycles",
    ARCHITECTURAL,
);
const RETIRED: Event = event(
    Kind::Instructions,
    0xc0,
    0x00,
    "Instructions Retired",
    ARCHITECTURAL,
);
const LLC_MISSES: Event = event(Kind::CacheMisses, 0x2e, 0x41, "LLC Misses", ARCHITECTURAL);

/// Intel processors without a table of their own.
pub static INTEL_ARCHITECTURAL: Catalog = Catalog {
    family: "Intel, architectural events",
    events: &[RETIRED, UNHALTED, LLC_MISSES],
};

/// Bits of CPUID leaf 0xA EBX that say that an architectural event is missing (SDM 3B table 20-1).
pub const fn missing_bit(event: &Event) -> Option<u32> {
    match (event.select, event.umask) {
        (0x3c, 0x00) => Some(0),
        (0xc0, 0x00) => Some(1),
        (0x2e, 0x41) => Some(4),
        _ => None,
    }
}

macro_rules! intel_server {
    ($name:ident, $family:literal, $list:literal) => {
        #[doc = concat!("Intel ", $family, ".")]
        pub static $name: Catalog = Catalog {
            family: concat!("Intel ", $family),
            events: &[
                RETIRED,
                UNHALTED,
                LLC_MISSES,
                Event {
                    counters: FIRST_FOUR,
                    ..event(
                        Kind::LocalDram,
                        0xd3,
                        0x01,
                        "MEM_LOAD_L3_MISS_RETIRED.LOCAL_DRAM",
                        concat!("Intel performance monitoring events, ", $list),
                    )
                },
                Event {
                    counters: FIRST_FOUR,
                    ..event(
                        Kind::RemoteDram,
                        0xd3,
                        0x02,
                        "MEM_LOAD_L3_MISS_RETIRED.REMOTE_DRAM",
                        concat!("Intel performance monitoring events, ", $list),
                    )
                },
                Event {
                    counters: FIRST_FOUR,
                    cmask: 6,
                    ..event(
                        Kind::StallCycles,
                        0xa3,
                        0x06,
                        "CYCLE_ACTIVITY.STALLS_L3_MISS",
                        concat!("Intel performance monitoring events, ", $list),
                    )
                },
            ],
        };
    };
}

intel_server!(
    SKYLAKE_SP,
    "Skylake-SP and Cascade Lake",
    "SKX and CLX core"
);
intel_server!(ICE_LAKE_SP, "Ice Lake-SP", "ICX core");
intel_server!(
    SAPPHIRE_RAPIDS,
    "Sapphire Rapids and Emerald Rapids",
    "SPR and EMR core"
);

const PPR_ZEN1: &str =
    "PPR Family 17h Models 00h-0Fh (AMD 54945), core performance monitor counters";
const PPR_ZEN2: &str = "PPR Family 17h Model 31h B0 (AMD 55803), core performance monitor counters";
const PPR_ZEN3: &str = "PPR Family 19h Model 01h B1 (AMD 55898), core performance monitor counters";
const PPR_ZEN4: &str = "PPR Family 19h Model 11h B1 (AMD 55901), core performance monitor counters";
const PPR_ZEN5: &str = "PPR Family 1Ah Model 02h C1 (AMD 57238), core performance monitor counters";

macro_rules! zen {
    ($name:ident, $family:literal, $source:ident, $local:literal, $remote:literal, $both:literal) => {
        #[doc = concat!("AMD ", $family, ". The data cache's demand fills by where they came from.")]
        pub static $name: Catalog = Catalog {
            family: concat!("AMD ", $family),
            events: &[
                event(
                    Kind::Instructions,
                    0xc0,
                    0x00,
                    "PMCx0C0 ExRetInstr",
                    $source,
                ),
                event(Kind::Cycles, 0x76, 0x00, "PMCx076 LsNotHaltedCyc", $source),
                event(Kind::CacheMisses, 0x43, 0x48, $both, $source),
                event(Kind::LocalDram, 0x43, 0x08, $local, $source),
                event(Kind::RemoteDram, 0x43, 0x40, $remote, $source),
            ],
        };
    };
}

/// AMD Zen and Zen+, and Hygon Dhyana, whose documents name no event that tells near memory from far.
pub static ZEN1: Catalog = Catalog {
    family: "AMD Zen",
    events: &[
        event(
            Kind::Instructions,
            0xc0,
            0x00,
            "PMCx0C0 ExRetInstr",
            PPR_ZEN1,
        ),
        event(Kind::Cycles, 0x76, 0x00, "PMCx076 LsNotHaltedCyc", PPR_ZEN1),
    ],
};

zen!(
    ZEN2,
    "Zen 2",
    PPR_ZEN2,
    "PMCx043 LsRefillsFromSys: DRAM or IO from this thread's die",
    "PMCx043 LsRefillsFromSys: DRAM or IO from a different die",
    "PMCx043 LsRefillsFromSys: DRAM or IO"
);
zen!(
    ZEN3,
    "Zen 3",
    PPR_ZEN3,
    "PMCx043 LsDmndFillsFromSys: DRAM or IO connected in same node",
    "PMCx043 LsDmndFillsFromSys: DRAM or IO connected in different node",
    "PMCx043 LsDmndFillsFromSys: DRAM or IO"
);
zen!(
    ZEN4,
    "Zen 4",
    PPR_ZEN4,
    "PMCx043 LsDmndFillsFromSys: DramIO_Near",
    "PMCx043 LsDmndFillsFromSys: DramIO_Far",
    "PMCx043 LsDmndFillsFromSys: DramIO_Near and DramIO_Far"
);
zen!(
    ZEN5,
    "Zen 5",
    PPR_ZEN5,
    "PMCx043 LsDmndFillsFromSys: DramIO_Near",
    "PMCx043 LsDmndFillsFromSys: DramIO_Far",
    "PMCx043 LsDmndFillsFromSys: DramIO_Near and DramIO_Far"
);

/// The table of an Intel processor.
pub fn intel(family: u32, model: u32) -> &'static Catalog {
    match (family, model) {
        (6, 0x55) => &SKYLAKE_SP,
        (6, 0x6a | 0x6c) => &ICE_LAKE_SP,
        (6, 0x8f | 0xcf) => &SAPPHIRE_RAPIDS,
        _ => &INTEL_ARCHITECTURAL,
    }
}

/// The table of an AMD processor, if its family has one.
pub fn amd(family: u32, model: u32) -> Option<&'static Catalog> {
    Some(match (family, model) {
        (0x17, 0..0x30) | (0x18, _) => &ZEN1,
        (0x17, _) => &ZEN2,
        (0x19, 0x00..0x10 | 0x20..0x60) => &ZEN3,
        (0x19, _) => &ZEN4,
        (0x1a, _) => &ZEN5,
        _ => return None,
    })
}

/// Every table.
pub static ALL: [&Catalog; 9] = [
    &INTEL_ARCHITECTURAL,
    &SKYLAKE_SP,
    &ICE_LAKE_SP,
    &SAPPHIRE_RAPIDS,
    &ZEN1,
    &ZEN2,
    &ZEN3,
    &ZEN4,
    &ZEN5,
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_event_cites_its_source_and_each_kind_stands_once_in_a_table() {
        for catalog in ALL {
            for (i, event) in catalog.events.iter().enumerate() {
                assert!(!event.name.is_empty(), "{event:?}");
                let cited = [
                    "SDM ",
                    "PPR Family ",
                    "Intel performance monitoring events, ",
                ];
                assert!(
                    cited.iter().any(|c| event.source.starts_with(c)),
                    "{event:?}"
                );
                assert!(
                    catalog.events[..i].iter().all(|e| e.kind != event.kind),
                    "{}",
                    catalog.family
                );
            }
        }
    }

    #[test]
    fn names_are_found_again() {
        for kind in Kind::ALL {
            assert_eq!(Kind::named(kind.as_str()), Some(kind));
        }
        assert_eq!(Kind::named("misses"), None);
        for (i, kind) in Kind::ALL.into_iter().enumerate() {
            assert_eq!(kind as usize, i);
        }
    }

    #[test]
    fn families_are_told_apart() {
        assert_eq!(intel(6, 0x55).family, "Intel Skylake-SP and Cascade Lake");
        assert_eq!(intel(6, 0x3c).family, "Intel, architectural events");
        assert_eq!(amd(0x17, 0x01).map(|c| c.family), Some("AMD Zen"));
        assert_eq!(amd(0x17, 0x31).map(|c| c.family), Some("AMD Zen 2"));
        assert_eq!(amd(0x19, 0x01).map(|c| c.family), Some("AMD Zen 3"));
        assert_eq!(amd(0x19, 0x11).map(|c| c.family), Some("AMD Zen 4"));
        assert_eq!(amd(0x19, 0x61).map(|c| c.family), Some("AMD Zen 4"));
        assert_eq!(amd(0x1a, 0x02).map(|c| c.family), Some("AMD Zen 5"));
        assert_eq!(amd(0x15, 0x02), None);
    }
}
