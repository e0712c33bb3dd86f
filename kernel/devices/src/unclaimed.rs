//! Port accesses that no device claims: counted, and the first of each kind reported.

use crate::access::AccessSize;
use alloc::vec::Vec;
use arrayvec::ArrayVec;

/// How many kinds of access are remembered and so reported; the rest is only counted.
const REPORT_LIMIT: usize = 64;

/// A port access that no device claimed. It read all ones, or was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnclaimedAccess {
    /// The port.
    pub port: u16,
    /// The width.
    pub size: AccessSize,
    /// The value written, or `None` for a read.
    pub written: Option<u32>,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Unclaimed {
    count: u64,
    known: ArrayVec<(u16, bool), REPORT_LIMIT>,
    waiting: Vec<UnclaimedAccess>,
}

impl Unclaimed {
    pub(crate) fn note(&mut self, port: u16, size: AccessSize, written: Option<u32>) {
        self.count = self.count.saturating_add(1);
        let kind = (port, written.is_some());
        if !self.known.contains(&kind) && self.known.try_push(kind).is_ok() {
            self.waiting.push(UnclaimedAccess {
                port,
                size,
                written,
            });
        }
    }

    /// Reports come out oldest first.
    pub(crate) fn take(&mut self) -> Option<UnclaimedAccess> {
        (!self.waiting.is_empty()).then(|| self.waiting.remove(0))
    }

    pub(crate) const fn count(&self) -> u64 {
        self.count
    }
}
