//! What the processors share: tables, memory, and the mailboxes for flush requests.

use memory::buddy::{Order, OutOfFrames};
use memory::table::{ENTRIES, Flush, Shootdown, TableMemory};
use shuttle::sync::atomic::{AtomicU64, Ordering};
use shuttle::thread;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use units::{Frame, NodeId, PageSize};

/// Number of the first table frame.
const FIRST_TABLE: u64 = 0x10_0000;

/// Entries that were ever written; the others are zero.
type Entries = BTreeMap<usize, Arc<Word>>;

/// An entry.
#[derive(Debug)]
enum Word {
    /// Processors walk it: each access is a scheduling point.
    Walked(AtomicU64),
    /// No processor walks it, so it does not matter when it changes ([`Machine::walking`]).
    Quiet(std::sync::atomic::AtomicU64),
}

/// The same operation on either.
macro_rules! on {
    ($word:expr, $atomic:ident => $operation:expr) => {
        match $word {
            Word::Walked($atomic) => $operation,
            Word::Quiet($atomic) => $operation,
        }
    };
}

/// A CPU's mailbox: flushes to carry out, how many were asked for and how many are done.
#[derive(Debug, Default)]
struct Mailbox {
    requests: Mutex<Vec<Flush>>,
    asked: AtomicU64,
    done: AtomicU64,
}

/// A machine with a word of memory in each of a few frames.
///
/// The `std` locks inside are never held across a scheduling point; every access that processors
/// could see is a `shuttle` atomic.
#[derive(Debug)]
pub struct Machine {
    tables: Mutex<BTreeMap<Frame, Entries>>,
    next_table: Mutex<u64>,
    ram: BTreeMap<Frame, AtomicU64>,
    mailboxes: Vec<Mailbox>,
    stopped: AtomicU64,
    /// The indices of entries that processors walk; all if there is none.
    walked: Vec<usize>,
}

impl Machine {
    /// `cpus` processors, and a word in each of `frames`.
    pub fn new(cpus: usize, frames: impl IntoIterator<Item = Frame>) -> Arc<Self> {
        Self::walking(cpus, frames, &[])
    }

    /// The same, of whose tables processors walk the entries with these indices only: to change the others is no
    /// scheduling point, which makes whole tables affordable. A processor that walks another panics.
    pub fn walking(
        cpus: usize,
        frames: impl IntoIterator<Item = Frame>,
        walked: &[usize],
    ) -> Arc<Self> {
        Arc::new(Self {
            walked: walked.into(),
            tables: Mutex::default(),
            next_table: Mutex::new(FIRST_TABLE),
            ram: frames
                .into_iter()
                .map(|frame| (frame, AtomicU64::new(0)))
                .collect(),
            mailboxes: (0..cpus).map(|_| Mailbox::default()).collect(),
            stopped: AtomicU64::new(0),
        })
    }

    /// The word in `frame`.
    ///
    /// # Panics
    /// If the frame is none of the machine's.
    pub fn word(&self, frame: Frame) -> &AtomicU64 {
        self.ram
            .get(&frame)
            .expect("an access goes to a frame of the machine")
    }

    /// Tables that are allocated.
    pub fn tables_in_use(&self) -> usize {
        self.tables.lock().expect("no poison").len()
    }

    /// The mechanism that asks CPUs to flush, with the defects of `reach`.
    pub fn shootdown(&self, reach: Reach) -> Broadcast<'_> {
        Broadcast {
            machine: self,
            reach,
        }
    }

    /// Lets CPUs that only serve their mailbox leave.
    pub fn stop(&self) {
        self.stopped.store(1, Ordering::SeqCst);
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::SeqCst) != 0
    }

    /// Takes the flushes that `cpu` was asked for, and the number to acknowledge with [`Machine::done`].
    pub(crate) fn requests(&self, cpu: usize) -> Option<(Vec<Flush>, u64)> {
        let mailbox = self.mailboxes.get(cpu)?;
        let asked = mailbox.asked.load(Ordering::SeqCst);
        if asked == mailbox.done.load(Ordering::SeqCst) {
            return None;
        }
        Some((
            std::mem::take(&mut *mailbox.requests.lock().expect("no poison")),
            asked,
        ))
    }

    pub(crate) fn done(&self, cpu: usize, number: u64) {
        if let Some(mailbox) = self.mailboxes.get(cpu) {
            mailbox.done.store(number, Ordering::SeqCst);
        }
    }

    /// An entry, for a processor's walk.
    ///
    /// # Panics
    /// If it was said that no processor walks it.
    pub(crate) fn walk(&self, table: Frame, index: usize) -> u64 {
        let walked = self.walked.is_empty() || self.walked.contains(&index);
        assert!(
            walked,
            "a processor walks entry {index}, which was said to be quiet"
        );
        self.load(table, index)
    }

    fn word_of(&self, index: usize) -> Arc<Word> {
        Arc::new(if self.walked.is_empty() || self.walked.contains(&index) {
            Word::Walked(AtomicU64::default())
        } else {
            Word::Quiet(std::sync::atomic::AtomicU64::default())
        })
    }

    /// The entry, created if it is to be written.
    fn entry(&self, table: Frame, index: usize, create: bool) -> Option<Arc<Word>> {
        assert!(index < ENTRIES, "an index below 512");
        let mut tables = self.tables.lock().expect("no poison");
        let entries = tables.get_mut(&table);
        let entries = entries.unwrap_or_else(|| panic!("table {table} is used after it was freed"));
        if create {
            let entry = entries.entry(index).or_insert_with(|| self.word_of(index));
            return Some(Arc::clone(entry));
        }
        entries.get(&index).map(Arc::clone)
    }
}

impl TableMemory for Machine {
    fn load(&self, table: Frame, index: usize) -> u64 {
        self.entry(table, index, false)
            .map_or(0, |entry| on!(&*entry, word => word.load(Ordering::SeqCst)))
    }
    fn store(&self, table: Frame, index: usize, value: u64) {
        if let Some(entry) = self.entry(table, index, true) {
            on!(&*entry, word => word.store(value, Ordering::SeqCst));
        }
    }
    fn compare_exchange(
        &self,
        table: Frame,
        index: usize,
        current: u64,
        new: u64,
    ) -> Result<u64, u64> {
        match self.entry(table, index, true) {
            Some(entry) => {
                let (yes, no) = (Ordering::SeqCst, Ordering::SeqCst);
                on!(&*entry, word => word.compare_exchange(current, new, yes, no))
            }
            None => Err(0),
        }
    }
    fn swap(&self, table: Frame, index: usize, new: u64) -> u64 {
        self.entry(table, index, true).map_or(
            0,
            |entry| on!(&*entry, word => word.swap(new, Ordering::SeqCst)),
        )
    }
    fn fetch_and(&self, table: Frame, index: usize, mask: u64) -> u64 {
        self.entry(table, index, true).map_or(
            0,
            |entry| on!(&*entry, word => word.fetch_and(mask, Ordering::SeqCst)),
        )
    }
    /// Never the same frame twice, so that a stale walk into a freed table is always noticed.
    fn allocate_table(&self, node: NodeId) -> Result<Frame, OutOfFrames> {
        let mut next = self.next_table.lock().expect("no poison");
        let frame = Frame(*next);
        *next += 1;
        if frame.0 >= FIRST_TABLE + ENTRIES as u64 {
            let order = Order::from(PageSize::Size4K);
            return Err(OutOfFrames {
                node,
                order,
                count: 1,
                free: 0,
            });
        }
        self.tables
            .lock()
            .expect("no poison")
            .insert(frame, Entries::new());
        Ok(frame)
    }
    fn free_table(&self, table: Frame) {
        let freed = self.tables.lock().expect("no poison").remove(&table);
        assert!(freed.is_some(), "table {table} is freed twice");
    }
}

/// A shootdown and its defects: which CPUs it reaches and what it tells them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reach {
    /// Every CPU, as it must be.
    Everyone,
    /// Every CPU but the first.
    AllButOne,
    /// Every CPU, without waiting for their acknowledgements.
    Impatient,
    /// Every CPU, but told to forget the wrong page.
    WrongRange,
    /// Nobody.
    Nobody,
}

/// The shootdown of a machine; see [`Machine::shootdown`].
#[derive(Clone, Copy, Debug)]
pub struct Broadcast<'m> {
    machine: &'m Machine,
    reach: Reach,
}

impl Shootdown for Broadcast<'_> {
    fn shoot_down(&self, flush: Flush) {
        let Self { machine, reach } = *self;
        let skipped = match reach {
            Reach::Nobody => return,
            Reach::AllButOne => 1,
            Reach::Everyone | Reach::Impatient | Reach::WrongRange => 0,
        };
        let flush = match (reach, flush) {
            (Reach::WrongRange, Flush::Range { first, bytes }) => Flush::Range {
                first: first + bytes,
                bytes,
            },
            _ => flush,
        };
        let asked: Vec<(&Mailbox, u64)> = machine
            .mailboxes
            .iter()
            .skip(skipped)
            .map(|mailbox| {
                mailbox.requests.lock().expect("no poison").push(flush);
                (mailbox, mailbox.asked.fetch_add(1, Ordering::SeqCst) + 1)
            })
            .collect();
        if reach != Reach::Impatient {
            for (mailbox, number) in asked {
                while mailbox.done.load(Ordering::SeqCst) < number {
                    thread::yield_now();
                }
            }
        }
    }
}
