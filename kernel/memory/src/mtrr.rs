//! Which memory the processor caches write-back, by its memory type range registers.
//!
//! Memory under any other type works, fifty times slower, and a guest on it looks broken. Firmware
//! that forgets a range is not rare. [`Mtrrs::not_write_back`] finds such ranges so that they are
//! never handed out (SDM 3A 12.11, APM 2 7.7).

use crate::inventory::FrameRange;
use alloc::vec::Vec;
use units::{Frame, PAGE_BYTES};

const UNCACHED: u8 = 0;
const WRITE_THROUGH: u8 = 4;
const WRITE_BACK: u8 = 6;
const ADDRESS_BITS: u32 = 52;

/// The registers, as read.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Mtrrs {
    /// IA32_MTRR_DEF_TYPE (SDM 3A 12.11.2.1).
    pub def_type: u64,
    /// IA32_MTRR_PHYSBASEn and IA32_MTRR_PHYSMASKn (12.11.2.3).
    pub variable: Vec<(u64, u64)>,
    /// Bits of a physical address (CPUID 8000_0008h EAX 7:0).
    pub address_bits: u32,
    /// AMD's TOM2 when SYSCFG says that memory from 4 GiB up to it is write-back by default (APM 2,
    /// 7.9.4): host-physical address of its end.
    pub write_back_below: Option<u64>,
}

impl Mtrrs {
    /// Whether the registers are in force. When they are not, everything would be uncached: that is
    /// a machine that emulates no memory types, and nothing can be concluded.
    pub fn enabled(&self) -> bool {
        self.def_type >> 11 & 1 != 0
    }

    /// The parts of `range` that are not write-back, ascending. The first MiB, which has
    /// fixed-range registers of its own, is judged by the others only.
    pub fn not_write_back(&self, range: FrameRange) -> Vec<FrameRange> {
        let mut found: Vec<FrameRange> = Vec::new();
        if !self.enabled() {
            return found;
        }
        let spans: Vec<(FrameRange, u8)> =
            self.variable.iter().filter_map(|v| self.span(*v)).collect();
        let high = self
            .write_back_below
            .map(|end| FrameRange::inside(4 << 30, end.saturating_sub(4 << 30)));
        let edges = spans.iter().map(|(span, _)| *span).chain(high);
        let mut cuts: Vec<Frame> = edges.flat_map(|span| [span.start, span.end]).collect();
        cuts.extend([range.start, range.end]);
        cuts.retain(|cut| (range.start..=range.end).contains(cut));
        cuts.sort_unstable();
        cuts.dedup();
        for pair in cuts.windows(2) {
            let &[start, end] = pair else { continue };
            if self.type_of(start, &spans, high) == Some(WRITE_BACK) {
                continue;
            }
            match found.last_mut() {
                Some(last) if last.end == start => last.end = end,
                _ => found.push(FrameRange { start, end }),
            }
        }
        found
    }

    /// Type at one frame; `None` where the manual leaves it undefined (SDM 3A 12.11.4.1).
    fn type_of(
        &self,
        frame: Frame,
        spans: &[(FrameRange, u8)],
        high: Option<FrameRange>,
    ) -> Option<u8> {
        let covers = |span: &FrameRange| span.start <= frame && frame < span.end;
        let default = match high {
            Some(high) if covers(&high) => WRITE_BACK,
            _ => (self.def_type & 0xff) as u8,
        };
        let mut covering = spans
            .iter()
            .filter(|(span, _)| covers(span))
            .map(|(_, kind)| *kind);
        let Some(first) = covering.next() else {
            return Some(default);
        };
        covering.try_fold(first, |so_far, next| match (so_far, next) {
            (a, b) if a == b => Some(a),
            (UNCACHED, _) | (_, UNCACHED) => Some(UNCACHED),
            (WRITE_THROUGH, WRITE_BACK) | (WRITE_BACK, WRITE_THROUGH) => Some(WRITE_THROUGH),
            _ => None,
        })
    }

    /// The range of one pair of registers. A mask with holes covers many ranges: the smallest one around
    /// all of them stands for it, and if it would grant write-back it is left out.
    fn span(&self, (base, mask): (u64, u64)) -> Option<(FrameRange, u8)> {
        const VALID: u64 = 1 << 11;
        if mask & VALID == 0 {
            return None;
        }
        let bits = self.address_bits.clamp(32, ADDRESS_BITS);
        let address = ((1 << bits) - 1) & !(PAGE_BYTES - 1);
        let (mask, kind) = (mask & address, (base & 0xff) as u8);
        let hole = address & !mask;
        let start = base & mask;
        let contiguous = (hole | (PAGE_BYTES - 1)).wrapping_add(1).is_power_of_two();
        if !contiguous && kind == WRITE_BACK {
            return None;
        }
        let bytes = hole.checked_add(PAGE_BYTES)?;
        Some((FrameRange::inside(start, bytes), kind))
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::vec;

    const ENABLED: u64 = 1 << 11;
    const VALID: u64 = 1 << 11;
    const GIB: u64 = 1 << 30;

    fn frames(base: u64, end: u64) -> FrameRange {
        FrameRange::inside(base, end - base)
    }
    fn pair(base: u64, bytes: u64, kind: u8) -> (u64, u64) {
        (
            base | u64::from(kind),
            ((1 << 40) - 1) & !(bytes - 1) | VALID,
        )
    }
    fn mtrrs(default: u8, variable: &[(u64, u64)]) -> Mtrrs {
        Mtrrs {
            def_type: ENABLED | u64::from(default),
            variable: variable.to_vec(),
            address_bits: 40,
            write_back_below: None,
        }
    }

    #[test]
    fn a_write_back_default_with_an_uncached_window() {
        let usual = mtrrs(
            WRITE_BACK,
            &[pair(2 * GIB, 2 * GIB, UNCACHED), pair(0, GIB, WRITE_BACK)],
        );
        assert_eq!(usual.not_write_back(frames(0, 2 * GIB)), []);
        assert_eq!(
            usual.not_write_back(frames(GIB, 6 * GIB)),
            [frames(2 * GIB, 4 * GIB)]
        );
    }

    #[test]
    fn an_uncached_default_with_memory_that_firmware_forgot() {
        let forgetful = mtrrs(
            UNCACHED,
            &[
                pair(0, 2 * GIB, WRITE_BACK),
                pair(4 * GIB, 4 * GIB, WRITE_BACK),
            ],
        );
        assert_eq!(
            forgetful.not_write_back(frames(0, 16 * GIB)),
            [frames(2 * GIB, 4 * GIB), frames(8 * GIB, 16 * GIB)]
        );
        let amd = Mtrrs {
            write_back_below: Some(12 * GIB),
            ..forgetful
        };
        assert_eq!(
            amd.not_write_back(frames(0, 16 * GIB)),
            [frames(2 * GIB, 4 * GIB), frames(12 * GIB, 16 * GIB)]
        );
    }

    #[test]
    fn overlaps_follow_the_manual() {
        let write_combining = 1;
        let over = |a, b| {
            let found = mtrrs(WRITE_BACK, &[pair(0, GIB, a), pair(0, GIB, b)]);
            !found.not_write_back(frames(0, GIB)).is_empty()
        };
        assert!(!over(WRITE_BACK, WRITE_BACK));
        assert!(over(WRITE_BACK, UNCACHED));
        assert!(over(WRITE_THROUGH, WRITE_BACK));
        assert!(
            over(write_combining, WRITE_BACK),
            "undefined is not write-back"
        );
    }

    #[test]
    fn registers_that_are_off_or_strange_give_nothing_away() {
        let off = Mtrrs {
            def_type: 0,
            ..mtrrs(UNCACHED, &[])
        };
        assert_eq!(off.not_write_back(frames(0, GIB)), []);
        let invalid = mtrrs(WRITE_BACK, &[(0, 0)]);
        assert_eq!(invalid.not_write_back(frames(0, GIB)), []);
        let holes = (u64::from(UNCACHED), 0xff_4000_0000 | VALID);
        let strange = mtrrs(WRITE_BACK, &[holes]);
        assert_eq!(
            strange.not_write_back(frames(0, 8 * GIB)),
            [frames(0, 3 * GIB)]
        );
        let generous = mtrrs(UNCACHED, &[(u64::from(WRITE_BACK), 0xff_4000_0000 | VALID)]);
        assert_eq!(
            generous.not_write_back(frames(0, GIB)),
            vec![frames(0, GIB)]
        );
    }
}
