//! What processors must forget after a change.

/// Translations that processors may still hold although the table no longer says so.
///
/// It cannot be dropped unnoticed: hand it to [`Flush::carry_out`], or [`Flush::merge`] several and
/// carry out one. Nothing that the change took away (a frame, a right) may be relied upon before.
#[must_use = "processors go on using the old translation until they are flushed"]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Flush {
    /// The change took nothing away: no processor caches an absent entry (SDM 3A 4.10.2.3, 3C 29.4.2;
    /// APM 2 5.5).
    None,
    /// Everything translated through `bytes` bytes from the address `first`, paging-structure
    /// caches included.
    Range {
        /// First address of the table's input, as a plain number.
        first: u64,
        /// Length in bytes.
        bytes: u64,
    },
    /// Everything that came from this table.
    All,
}

impl Flush {
    /// One flush that does for both. Ranges that do not touch become [`Flush::All`].
    pub fn merge(self, other: Self) -> Self {
        match (self, other) {
            (Self::None, flush) | (flush, Self::None) => flush,
            (Self::All, _) | (_, Self::All) => Self::All,
            (
                Self::Range {
                    first: a,
                    bytes: la,
                },
                Self::Range {
                    first: b,
                    bytes: lb,
                },
            ) => {
                let (end_a, end_b) = (a.saturating_add(la), b.saturating_add(lb));
                if a <= end_b && b <= end_a {
                    let first = a.min(b);
                    Self::Range {
                        first,
                        bytes: end_a.max(end_b) - first,
                    }
                } else {
                    Self::All
                }
            }
        }
    }

    /// Makes processors forget; returns when they have.
    pub fn carry_out(self, by: &(impl Shootdown + ?Sized)) {
        if self != Self::None {
            by.shoot_down(self);
        }
    }
}

/// The mechanism that makes processors forget translations.
///
/// For a VM's tables: bump its map generation, full fence, interrupt the CPUs that are inside the
/// guest, wait for them; all others compare generations before they enter.
///
/// Never call it while holding a lock that an exit handler takes: the CPU that is waited for may be
/// spinning on that lock.
pub trait Shootdown {
    /// Returns only when no CPU holds or can still obtain a translation that `flush` covers and that was read from
    /// the table before this call. [`Flush::None`] is never passed.
    fn shoot_down(&self, flush: Flush);
}

impl<S: Shootdown + ?Sized> Shootdown for &S {
    fn shoot_down(&self, flush: Flush) {
        (**self).shoot_down(flush);
    }
}

/// The [`Shootdown`] of a table that no processor has ever loaded: there is nothing to forget.
#[derive(Clone, Copy, Debug)]
pub struct NoProcessor;

impl Shootdown for NoProcessor {
    fn shoot_down(&self, _flush: Flush) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merging_never_covers_less() {
        let range = |first, bytes| Flush::Range { first, bytes };
        assert_eq!(Flush::None.merge(Flush::None), Flush::None);
        assert_eq!(Flush::None.merge(range(1, 2)), range(1, 2));
        assert_eq!(range(0, 10).merge(range(10, 10)), range(0, 20));
        assert_eq!(range(10, 10).merge(range(0, 12)), range(0, 20));
        assert_eq!(range(0, 10).merge(range(11, 10)), Flush::All);
        assert_eq!(range(0, 10).merge(Flush::All), Flush::All);
    }
}
