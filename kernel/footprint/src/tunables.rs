//! The constants of this room, each a starting value that may be changed at run time.

use units::{Nanos, PerMille};

/// What a [`Footprint`](crate::Footprint) decides by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tunables {
    /// A machine whose vCPUs together ran less than this share of one CPU is idle.
    ///
    /// A tickless Linux guest at rest needs well under 1 % on hardware and up to a few per cent
    /// where every exit is emulated.
    pub idle_run: PerMille,
    /// Touches below which there is no opinion (MECHANISMS section 2: N >= 20).
    pub min_touches: u32,
    /// Time in which what was seen comes to weigh half.
    ///
    /// Longer than a pass, so that the shares rest on several seconds; short enough that what a machine did ten
    /// seconds ago weighs a tenth.
    pub half_life: Nanos,
}

impl Default for Tunables {
    fn default() -> Self {
        Self {
            idle_run: PerMille(80),
            min_touches: 20,
            half_life: Nanos::from_millis(3000),
        }
    }
}
