//! Which leaves were written since somebody asked last, by whichever means the processor has.
//!
//! Dirty bits are the truth everywhere, but the upper entries of a table have none: to find the few that are set, all
//! leaves are read. Some processors also keep a log of the pages whose D they set (VT-x' page-modification logging);
//! AMD's do not. [`Written`] asks the same question of both, and who asks does not learn which it was: with a log only
//! the leaves that it names are looked at, without one all of them.
//!
//! The log never replaces the bits, it saves the search. That is sound under one invariant:
//!
//! > While the log is kept, each leaf whose D has become 1 since the last [`Written::take`] is named in it, or the log is
//! > in doubt.
//!
//! * Processors name a page when they change its D from 0 to 1, and at no other store. So `take` clears D, and who
//!   calls it makes processors forget translations, as after every clearing of D.
//! * They write to buffers of their own. Before `take` is asked, each must have handed on what it has: it does
//!   that whenever it leaves the guest, before it counts as outside, so a shootdown before the question is enough.
//! * Whoever else makes D 1 or a dirty leaf another leaf (a move that installs one, a split, a store by the
//!   hypervisor) names it or brings the log into doubt ([`Written::doubt`]). Then the next question is answered by a search.
//! * D that a watcher keeps as evidence ([`crate::table`]) is not cleared, so no later store is logged: doubt as well.

use crate::harvest::{Bit, Descend, Options, Touched};
use crate::replica::harvest_all;
use crate::table::{RadixTable, TableAddress, TableFormat, TableMemory};
use alloc::collections::TryReserveError;
use alloc::vec::Vec;
use core::sync::atomic::AtomicU8;
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::{Relaxed, SeqCst};
use units::{PAGE_BYTES, PageSize};

/// How the question was answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Source {
    /// The leaves that the log names were looked at.
    Log,
    /// All leaves were.
    Search,
}

/// Nobody asks, or no processor logs.
const OFF: u8 = 0;
/// The log names every leaf that was written.
const COMPLETE: u8 = 1;
/// It may lack some.
const DOUBTFUL: u8 = 2;

const BITS: u64 = u64::BITS as u64;

/// The pages that were named since the last question: a bit each, so that it never overflows.
#[derive(Debug)]
pub struct Written {
    state: AtomicU8,
    pages: Vec<AtomicU64>,
}

impl Written {
    /// Without a log: every question is answered by a search.
    pub const fn searched() -> Self {
        Self {
            state: AtomicU8::new(OFF),
            pages: Vec::new(),
        }
    }

    /// Over addresses from 0 to `end`, 32 KiB for each GiB. Nothing is kept yet.
    ///
    /// # Errors
    /// There is no memory for that.
    pub fn over(end: u64) -> Result<Self, TryReserveError> {
        let words = end.div_ceil(PAGE_BYTES).div_ceil(BITS);
        let words = usize::try_from(words).unwrap_or(usize::MAX);
        let mut pages = Vec::new();
        pages.try_reserve_exact(words)?;
        pages.extend((0..words).map(|_| AtomicU64::new(0)));
        Ok(Self {
            state: AtomicU8::new(OFF),
            pages,
        })
    }

    /// Processors are to log from now on. Before the first question each must have left the guest once and D must have
    /// been cleared everywhere.
    pub fn keep(&self) {
        self.forget();
        self.state.store(COMPLETE, SeqCst);
    }

    /// Nobody asks any more.
    pub fn drop_log(&self) {
        self.state.store(OFF, SeqCst);
    }

    /// Whether processors are to log.
    pub fn is_kept(&self) -> bool {
        self.state.load(SeqCst) != OFF
    }

    /// D is about to be cleared everywhere: what was named so far means nothing then, and the log is complete again.
    pub fn trust(&self) {
        if self.is_kept() {
            self.keep();
        }
    }

    /// D may have become 1 in a leaf that nobody names.
    pub fn doubt(&self) {
        let _nobody_asks = self
            .state
            .compare_exchange(COMPLETE, DOUBTFUL, SeqCst, SeqCst);
    }

    /// A processor has set D of the leaf that translates `at`. What lies beyond the end brings doubt.
    pub fn note<A: TableAddress>(&self, at: A) {
        let page = at.to_offset().map(|offset| offset / PAGE_BYTES);
        let word = page.and_then(|page| {
            let index = usize::try_from(page / BITS).ok()?;
            Some((self.pages.get(index)?, 1 << (page % BITS)))
        });
        match word {
            Some((word, bit)) => {
                word.fetch_or(bit, Relaxed);
            }
            None => self.doubt(),
        }
    }

    fn forget(&self) {
        self.pages.iter().for_each(|word| word.store(0, Relaxed));
    }

    /// Visits each leaf that was written since the last time, in order of address, and clears its D. Every processor has
    /// handed on what it logged.
    pub fn take<F: TableFormat, M: TableMemory>(
        &self,
        replicas: &[RadixTable<F, M>],
        mut visit: impl FnMut(Touched<F::Address>),
    ) -> Source {
        let mut evidence = false;
        let mut written = |leaf: Touched<F::Address>| {
            if leaf.dirty {
                let keeps = |table: &RadixTable<F, M>| table.keeps_dirty(leaf.at, leaf.size);
                evidence |= replicas.iter().any(keeps);
                visit(leaf);
            }
        };
        let complete = self.state.load(SeqCst) == COMPLETE;
        if complete {
            // The names go before D does: a page that is written in between is seen now and named again.
            for (word, pages) in (0..).zip(&self.pages) {
                let named = pages.swap(0, SeqCst);
                let each = (0..BITS).filter(|bit| named >> bit & 1 == 1);
                each.for_each(|bit| {
                    let at = F::Address::from_offset((word * BITS + bit) * PAGE_BYTES);
                    harvest_all(replicas, at, PAGE_BYTES, DIRTY, &mut written);
                });
            }
        } else {
            self.trust();
            harvest_all(
                replicas,
                F::Address::from_offset(0),
                1 << 48,
                DIRTY,
                &mut written,
            );
        }
        if evidence {
            self.doubt();
        }
        match complete {
            true => Source::Log,
            false => Source::Search,
        }
    }
}

/// D alone.
const DIRTY: Options = Options {
    accessed: Bit::Read,
    dirty: Bit::Clear,
    descend: Descend::Everywhere,
};

impl<F: TableFormat, M: TableMemory> RadixTable<F, M> {
    /// Whether a harvest leaves D of this leaf alone, because it is somebody's evidence.
    fn keeps_dirty(&self, at: F::Address, size: PageSize) -> bool {
        at.to_offset()
            .is_some_and(|offset| self.is_evidence(offset, size))
    }
}
