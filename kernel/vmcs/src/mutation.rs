//! Valid forms, and forms with one random mistake: questions for the checker and for a processor.
//!
//! Both are asked whether a form would be accepted; where their answers differ, one of them is wrong. Nothing here
//! runs a guest: the forms have no memory behind them, so a guest that is entered stops at its first fetch.

use crate::area::{Guest, Segment, Table};
use crate::control::EntryControls;
use crate::event;
use crate::field::{self, ALL};
use core::fmt;

/// A small generator of random numbers (splitmix64), so that a seed tells the whole series.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The series of this seed.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }
    /// The next number.
    pub const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }
    /// A number below `limit`, which is not 0.
    pub const fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}

/// The valid form that a mistake is made in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Base {
    /// A processor after reset.
    RealMode,
    /// A 64-bit kernel.
    Long,
    /// A 32-bit kernel with PAE paging.
    Pae,
}

impl fmt::Display for Base {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::RealMode => "real-mode",
            Self::Long => "64-bit",
            Self::Pae => "PAE",
        })
    }
}

const PE: u64 = 1 << 0;
const NE: u64 = 1 << 5;
const WP: u64 = 1 << 16;
const PG: u64 = 1 << 31;
const ET: u64 = 1 << 4;
const PAE: u64 = 1 << 5;
const VMXE: u64 = 1 << 13;
const LME_LMA: u64 = 1 << 8 | 1 << 10;
/// Set in every form, so that a host whose EFER an exit does not restore keeps it.
const NXE: u64 = 1 << 11;

impl Base {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::RealMode, Self::Long, Self::Pae];

    /// The guest; `cr3` is the address of a page of zeros.
    #[must_use]
    pub fn guest(self, cr3: u64) -> Guest {
        let segment = |selector, base, limit, rights| Segment {
            selector,
            base,
            limit,
            rights,
        };
        let table = Table {
            base: 0,
            limit: 0xffff,
        };
        let (data, code) = match self {
            Self::RealMode => (
                segment(0, 0, 0xffff, 0x93),
                segment(0xf000, 0xffff_0000, 0xffff, 0x9b),
            ),
            Self::Long => (
                segment(0x18, 0, u32::MAX, 0xc093),
                segment(0x10, 0, u32::MAX, 0xa09b),
            ),
            Self::Pae => (
                segment(0x18, 0, u32::MAX, 0xc093),
                segment(0x10, 0, u32::MAX, 0xc09b),
            ),
        };
        let (cr0, cr4, efer, rip) = match self {
            Self::RealMode => (NE | ET, VMXE, NXE, 0xfff0),
            Self::Long => (
                PE | ET | NE | WP | PG,
                PAE | VMXE,
                LME_LMA | NXE,
                0xffff_ffff_8100_0000,
            ),
            Self::Pae => (PE | ET | NE | WP | PG, PAE | VMXE, NXE, 0x10_0000),
        };
        Guest {
            cr0,
            cr3,
            cr4,
            efer,
            rip,
            dr7: 0x400,
            rflags: if self == Self::RealMode { 2 } else { 0x202 },
            pat: 0x0007_0406_0007_0406,
            link: Guest::NO_LINK,
            cs: code,
            ss: data,
            ds: data,
            es: data,
            fs: data,
            gs: data,
            ldtr: segment(0, 0, 0xffff, 0x82),
            tr: segment(0, 0, 0xffff, 0x8b),
            gdtr: table,
            idtr: table,
            ..Guest::default()
        }
    }

    /// What it adds to the VM-entry controls.
    #[must_use]
    pub const fn entry(self) -> u32 {
        match self {
            Self::Long => EntryControls::IA32E_GUEST.bits(),
            Self::RealMode | Self::Pae => 0,
        }
    }
}

/// A field with its new value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mutation {
    /// Encoding of the field.
    pub encoding: u32,
    /// Its name.
    pub name: &'static str,
    /// What it holds now.
    pub value: u64,
}

/// Bits 11:10 of an encoding: what kind of field it is (SDM 3C table 25-21).
const fn kind(encoding: u32) -> u32 {
    encoding >> 10 & 3
}
const READ_ONLY: u32 = 1;
const HOST: u32 = 3;

/// The field's width in bits (bits 14:13 of the encoding).
const fn bits(encoding: u32) -> u32 {
    match encoding >> 13 & 3 {
        0 => 16,
        2 => 32,
        _ => 64,
    }
}

impl Mutation {
    /// A random one; `held` says what a field holds in the valid form.
    pub fn draw(random: &mut Random, held: impl Fn(u32) -> u64) -> Self {
        loop {
            let index = random.below(ALL.len() as u64) as usize;
            let Some(&(encoding, name)) = ALL.get(index) else {
                continue;
            };
            if kind(encoding) == READ_ONLY {
                continue;
            }
            let old = held(encoding);
            let mask = u64::MAX >> (64 - bits(encoding));
            let bit = |random: &mut Random| 1 << random.below(u64::from(bits(encoding)));
            let value = mask
                & match random.below(8) {
                    0 => random.next(),
                    1 => 0,
                    2 => mask,
                    3 => random.below(16),
                    // An event's word is worth a look only with its valid bit.
                    4 if encoding == field::ENTRY_EVENT.encoding() => {
                        1 << 31 | random.below(1 << 12)
                    }
                    4 | 5 => old ^ bit(random) ^ bit(random),
                    _ => old ^ bit(random),
                };
            if value != old & mask {
                return Self {
                    encoding,
                    name,
                    value,
                };
            }
        }
    }

    /// Whether it has the entry deliver "another event" (type 7 of SDM 3C 25.8.3).
    #[must_use]
    pub fn injects_other_event(&self) -> bool {
        self.encoding == field::ENTRY_EVENT.encoding()
            && event::is_valid(self.value as u32)
            && self.value >> 8 & 7 == 7
    }

    /// Whether a form with this mistake may be tried although it counts as valid. Not what leads the processor to memory
    /// that is not the trial's, what decides how the host goes on, and states that nothing would end.
    #[must_use]
    pub fn is_harmless(&self) -> bool {
        let is = |encoding: u32| self.encoding == encoding;
        let points = is(field::EPT_POINTER.encoding())
            || is(field::EXIT_MSR_STORE.encoding())
            || is(field::EXIT_MSR_LOAD.encoding())
            || is(field::ENTRY_MSR_LOAD.encoding())
            || is(field::EXIT_MSR_STORE_COUNT.encoding())
            || is(field::EXIT_MSR_LOAD_COUNT.encoding())
            || is(field::ENTRY_MSR_LOAD_COUNT.encoding());
        let host = kind(self.encoding) == HOST || is(field::EXIT_CONTROLS.encoding());
        let sleeps = is(field::GUEST_ACTIVITY.encoding()) && self.value > 1;
        !(points || host || sleeps)
    }
}

impl fmt::Display for Mutation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} = {:#x}", self.name, self.value)
    }
}
