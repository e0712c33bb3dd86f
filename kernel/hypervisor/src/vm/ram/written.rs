//! What the guest has written, by the processors' log where they keep one ([`memory::written`]).
//!
//! A log is kept only while somebody wants to know, and costs nothing before: [`GuestRam::keep_log`] begins,
//! [`GuestRam::take_written`] asks, [`GuestRam::end_log`] ends. Without a log the same question is a search.

use super::GuestRam;
use crate::sabotage;
use config::Sabotage;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use memory::harvest::{Bit, Cursor, Descend, Options, Progress, Touched};
use memory::table::{Flush, Shootdown, TableFormat};
use memory::written::{Source, Written};
use units::Gpa;

/// Every bit, once.
const FORGET: Options = Options {
    accessed: Bit::Clear,
    dirty: Bit::Clear,
    descend: Descend::Everywhere,
};
/// One name in so many is lost by [`Sabotage::LoseWrites`].
const LOST: u64 = 1000;

impl<F: TableFormat<Address = Gpa>> GuestRam<F> {
    /// From the next entry on processors log, where they can, what is written below `end`; nothing if there is no
    /// memory to keep it in. To be followed by [`Self::forget_touches`].
    pub fn keep_log(&self, end: Gpa) {
        let Ok(log) = self.written.try_call_once(|| Written::over(end.0)) else {
            log::warn!("there is no memory for a log of writes; they are searched for");
            return;
        };
        log.keep();
        // Who is inside without logging comes out.
        self.expel();
    }

    /// Clears A and D everywhere, and makes every CPU forget what it knows.
    pub fn forget_touches(&self) {
        self.change_table(|table, shootdown| {
            // Before D is cleared: what is written meanwhile is named anew.
            if let Some(log) = self.written.get() {
                log.trust();
            }
            for replica in table.all() {
                let mut cursor = Cursor::ALL;
                while replica.harvest(&mut cursor, FORGET, u64::MAX, |_| ()) == Progress::Paused {}
            }
            shootdown.shoot_down(Flush::All);
        });
    }

    /// Visits each leaf that was written since [`Self::forget_touches`], in order of address, and clears its D. CPUs may
    /// still hold translations with D = 1: to ask again, make them forget.
    pub fn take_written(&self, visit: impl FnMut(Touched<Gpa>)) -> Source {
        let Some(log) = self.written.get().filter(|log| log.is_kept()) else {
            return self.with_table(|table| Written::searched().take(table.all(), visit));
        };
        // Whoever leaves the guest hands on what he has logged.
        self.expel();
        self.with_table(|table| log.take(table.all(), visit))
    }

    /// Nobody asks any more.
    pub fn end_log(&self) {
        if let Some(log) = self.written.get() {
            log.drop_log();
        }
    }

    /// Whether processors are to log.
    pub fn logs_writes(&self) -> bool {
        self.written.get().is_some_and(Written::is_kept)
    }

    /// A processor has logged this page.
    pub fn name_written(&self, at: Gpa) {
        static NAMED: AtomicU64 = AtomicU64::new(0);
        if sabotage::on(Sabotage::LoseWrites) && NAMED.fetch_add(1, Relaxed).is_multiple_of(LOST) {
            return;
        }
        if let Some(log) = self.written.get() {
            log.note(at);
        }
    }

    /// The hypervisor has written this page and set its D.
    pub(super) fn note_written(&self, at: Gpa) {
        if let Some(log) = self.written.get() {
            log.note(at);
        }
    }

    /// The table changes: D may be 1 where no processor has set it.
    pub(super) fn doubt_log(&self) {
        if let Some(log) = self.written.get() {
            log.doubt();
        }
    }
}
