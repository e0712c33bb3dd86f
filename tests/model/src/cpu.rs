//! One processor that runs a guest.

use crate::Machine;
use memory::table::{Flush, Level, Rights, TableFormat, TableMemory};
use memory::written::Written;
use shuttle::rand::{Rng, thread_rng};
use shuttle::sync::atomic::Ordering;
use shuttle::thread;
use std::cell::RefCell;
use std::marker::PhantomData;
use std::sync::Arc;
use units::{Frame, Gpa, PageSize};

/// What an instruction does with memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// A load.
    Read,
    /// A store.
    Write,
}

/// A cached translation. `tag` is the VPID or ASID under which it was made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Translation {
    tag: u16,
    at: u64,
    size: PageSize,
    frame: Frame,
    writable: bool,
    dirty: bool,
}

/// A cached upper entry: the table of `level` that translates `span` bytes from `at`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Upper {
    tag: u16,
    at: u64,
    level: Level,
    table: Frame,
}

/// A processor: it belongs to one `shuttle` thread.
#[derive(Debug)]
pub struct Cpu<F> {
    machine: Arc<Machine>,
    id: usize,
    root: Frame,
    tag: u16,
    tlb: Vec<Translation>,
    uppers: Vec<Upper>,
    /// Addresses that it may fetch translations for without being asked.
    speculates_on: Vec<Gpa>,
    /// Its log of writes.
    log: Option<Log>,
    format: PhantomData<fn() -> F>,
}

/// A log of writes: addresses whose D it has changed from 0 to 1.
#[derive(Debug)]
struct Log {
    entries: RefCell<Vec<Gpa>>,
    room: usize,
    on: bool,
    written: Arc<Written>,
    hands_on: bool,
}

impl Log {
    fn is_full(&self) -> bool {
        self.entries.borrow().len() >= self.room
    }
}

/// The levels of a walk, from the root.
const LEVELS: [Level; 4] = [
    Level::ROOT,
    Level::of(PageSize::Size1G),
    Level::of(PageSize::Size2M),
    Level::LOWEST,
];

impl<F: TableFormat<Address = Gpa>> Cpu<F> {
    /// CPU number `id`, about to run the guest whose table is at `root` under `tag`; it may fetch
    /// translations of `speculates_on` at any time.
    pub fn new(
        machine: &Arc<Machine>,
        id: usize,
        root: Frame,
        tag: u16,
        speculates_on: &[Gpa],
    ) -> Self {
        Self {
            machine: Arc::clone(machine),
            id,
            root,
            tag,
            tlb: Vec::new(),
            uppers: Vec::new(),
            speculates_on: speculates_on.to_vec(),
            log: None,
            format: PhantomData,
        }
    }

    /// It can log what it writes, in `room` entries. Whenever it leaves the guest, which it does to take a flush request and
    /// when the log is full, it hands on what it has (or, by a defect, does not); whether it logs is
    /// decided when it enters again.
    pub fn logs_to(&mut self, written: &Arc<Written>, room: usize, hands_on: bool) {
        self.log = Some(Log {
            entries: RefCell::default(),
            on: written.is_kept(),
            written: Arc::clone(written),
            room,
            hands_on,
        });
    }

    /// Leaves the guest and enters it again.
    pub fn pass_outside(&mut self) {
        if let Some(log) = &mut self.log {
            let entries = log.entries.take();
            if log.hands_on {
                entries.into_iter().for_each(|at| log.written.note(at));
            }
            log.on = log.written.is_kept();
        }
    }

    /// Adds 1 to the word at `gpa` by one locked instruction; waits while the page is absent.
    pub fn increment(&mut self, gpa: Gpa) -> u64 {
        let frame = self.wait_for(gpa, Access::Write);
        self.machine.word(frame).fetch_add(1, Ordering::SeqCst) + 1
    }

    /// Loads the word at `gpa`; waits while the page is absent.
    pub fn load(&mut self, gpa: Gpa) -> u64 {
        let frame = self.wait_for(gpa, Access::Read);
        self.machine.word(frame).load(Ordering::SeqCst)
    }

    /// Serves flush requests until the machine stops. A vCPU that touches nothing keeps its
    /// translations, and goes on speculating.
    pub fn idle(&mut self) {
        while !self.machine.is_stopped() {
            self.serve();
            self.misbehave();
            thread::yield_now();
        }
        self.serve();
    }

    /// Between two instructions: takes a pending flush request.
    pub fn serve(&mut self) {
        let Some((flushes, number)) = self.machine.requests(self.id) else {
            return;
        };
        self.pass_outside();
        for flush in flushes {
            self.flush(flush);
        }
        self.machine.done(self.id, number);
    }

    /// Leaves the guest for one of another tag: nothing is dropped.
    pub fn switch(&mut self, root: Frame, tag: u16) {
        (self.root, self.tag) = (root, tag);
    }

    /// Drops everything that was cached under every tag, as an entry with a flush does.
    pub fn forget_all(&mut self) {
        self.flush(Flush::All);
    }

    fn wait_for(&mut self, gpa: Gpa, access: Access) -> Frame {
        loop {
            self.serve();
            if self.log.as_ref().is_some_and(Log::is_full) {
                self.pass_outside();
            }
            match self.translate(gpa, access) {
                Some(frame) => return frame,
                None => thread::yield_now(),
            }
        }
    }

    /// The frame that the next access to `gpa` goes to; `None` is a nested fault.
    pub fn translate(&mut self, gpa: Gpa, access: Access) -> Option<Frame> {
        self.misbehave();
        let hit = self
            .tlb
            .iter()
            .position(|t| t.tag == self.tag && covers(t.at, t.size.bytes(), gpa.0));
        if let Some(hit) = hit {
            let found = self.tlb[hit];
            // A store needs the right and D in the cached entry; else the entry goes and the walk decides.
            if access == Access::Read || found.writable && found.dirty {
                return Some(frame_in(found, gpa));
            }
            self.tlb.swap_remove(hit);
        }
        self.walk(gpa, access).map(|found| frame_in(found, gpa))
    }

    /// What the manuals permit at any time: fetch what was not asked for, forget what was cached.
    fn misbehave(&mut self) {
        let mut random = thread_rng();
        if !self.speculates_on.is_empty() && random.gen_range(0..3) == 0 {
            let at = self.speculates_on[random.gen_range(0..self.speculates_on.len())];
            // Also what it has already: a processor may hold one address twice.
            self.walk(at, Access::Read);
        }
        if !self.tlb.is_empty() && random.gen_range(0..6) == 0 {
            let victim = random.gen_range(0..self.tlb.len());
            self.tlb.swap_remove(victim);
        }
    }

    /// Walks from the root or from a cached upper entry, sets A and D, and caches what it used.
    fn walk(&mut self, gpa: Gpa, access: Access) -> Option<Translation> {
        let mut start = (Level::ROOT, self.root);
        for upper in &self.uppers {
            let spans = upper.level.span().saturating_mul(512);
            if upper.tag == self.tag
                && covers(upper.at, spans, gpa.0)
                && thread_rng().gen_range(0..4) != 0
            {
                start = start.min((upper.level, upper.table));
            }
        }
        let (first, mut table) = start;
        for level in LEVELS.into_iter().filter(|level| *level <= first) {
            let index = (gpa.0 / level.span()) as usize % memory::table::ENTRIES;
            let at = gpa.0 & !(level.span() - 1);
            let (entry, size) = self.use_entry(table, index, level, (gpa, access))?;
            if let Some(size) = size {
                let found = Translation {
                    tag: self.tag,
                    at,
                    size,
                    frame: F::leaf_frame(entry, size),
                    writable: F::attributes(entry, size).rights.contains(Rights::WRITE),
                    dirty: entry & F::DIRTY != 0,
                };
                self.insert(found);
                return Some(found);
            }
            table = F::table_frame(entry);
            let below = LEVELS.into_iter().find(|below| *below < level)?;
            let upper = Upper {
                tag: self.tag,
                at,
                level: below,
                table,
            };
            self.uppers
                .retain(|u| (u.tag, u.at, u.level) != (upper.tag, upper.at, upper.level));
            self.uppers.push(upper);
        }
        None
    }

    /// Uses one entry by locked updates that recheck presence; `None` is a fault.
    fn use_entry(
        &self,
        table: Frame,
        index: usize,
        level: Level,
        (gpa, access): (Gpa, Access),
    ) -> Option<(u64, Option<PageSize>)> {
        let mut entry = self.machine.walk(table, index);
        loop {
            if !F::is_present(entry) {
                return None;
            }
            let size = level.leaf_size().filter(|_| F::is_leaf(entry, level));
            let mut used = entry | F::ACCESSED;
            if let Some(size) = size
                && access == Access::Write
            {
                if !F::attributes(entry, size).rights.contains(Rights::WRITE) {
                    return None;
                }
                used |= F::DIRTY;
            }
            if used == entry {
                return Some((entry, size));
            }
            match self.machine.compare_exchange(table, index, entry, used) {
                Ok(_) => {
                    if used & !entry & F::DIRTY != 0
                        && size.is_some()
                        && let Some(log) = self.log.as_ref().filter(|log| log.on)
                    {
                        log.entries.borrow_mut().push(gpa);
                    }
                    return Some((used, size));
                }
                Err(other) => entry = other,
            }
        }
    }

    fn insert(&mut self, new: Translation) {
        let overlaps = |old: &Translation| {
            old.tag == new.tag
                && old.at < new.at + new.size.bytes()
                && new.at < old.at + old.size.bytes()
        };
        if let Some(old) = self
            .tlb
            .iter()
            .find(|old| overlaps(old) && old.size != new.size)
        {
            panic!(
                "machine check: {:#x} is cached as {} and as {}",
                new.at, old.size, new.size
            );
        }
        self.tlb.retain(|old| !overlaps(old));
        self.tlb.push(new);
    }

    /// Drops exactly what the flush covers, upper entries on the way included.
    fn flush(&mut self, flush: Flush) {
        let (first, bytes) = match flush {
            Flush::None => return,
            Flush::All => (0, u64::MAX),
            Flush::Range { first, bytes } => (first, bytes),
        };
        let meets = |at: u64, span: u64| {
            at < first.saturating_add(bytes) && first < at.saturating_add(span)
        };
        self.tlb.retain(|t| !meets(t.at, t.size.bytes()));
        self.uppers
            .retain(|u| !meets(u.at, u.level.span().saturating_mul(512)));
    }
}

fn covers(at: u64, bytes: u64, address: u64) -> bool {
    address >= at && address - at < bytes
}

/// The 4 KiB frame that `gpa` falls into.
fn frame_in(found: Translation, gpa: Gpa) -> Frame {
    Frame(found.frame.0 + ((gpa.0 - found.at) >> 12))
}
