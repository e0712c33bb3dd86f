//! Exact counts for each page of 4 KiB, while a window is open.
//!
//! Each CPU has counters of its own for loads and stores of each page, written by its own thread only and
//! made for 2 MiB at a time when the first of its pages is touched. So nothing is shared, and memory is bounded
//! by that of the machine: 8 KiB for each 2 MiB that a CPU touches. A window's counts are what the
//! counters gained while it was open; they are read by whoever closes it.
//!
//! Pages are counted by physical address, which is what the hypervisor moves, and, below a bound that the
//! arguments set, by linear address as well: a guest that maps its memory one to one has its own
//! physical addresses there.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};
use std::sync::{Mutex, OnceLock, PoisonError};

/// Bytes of a page, as a shift.
pub(crate) const PAGE_SHIFT: u32 = 12;
/// Pages of a chunk, as a shift.
const CHUNK_SHIFT: u32 = 9;
const CHUNK: usize = 1 << CHUNK_SHIFT;
/// Windows whose pages are kept.
const MAX_WINDOWS: usize = 32;

type Cells = Box<[AtomicU64]>;

/// Loads and stores of the pages of one address space, by one CPU.
#[derive(Debug)]
struct Space {
    chunks: Vec<OnceLock<Cells>>,
}

impl Space {
    fn up_to(bytes: u64) -> Self {
        let chunks = bytes.div_ceil(1 << (PAGE_SHIFT + CHUNK_SHIFT));
        Self {
            chunks: (0..chunks).map(|_| OnceLock::new()).collect(),
        }
    }

    fn count(&self, address: u64, store: bool) {
        let page = address >> PAGE_SHIFT;
        let Some(chunk) = self.chunks.get((page >> CHUNK_SHIFT) as usize) else {
            return;
        };
        let cells = chunk.get_or_init(|| (0..2 * CHUNK).map(|_| AtomicU64::new(0)).collect());
        let cell = (page as usize % CHUNK) * 2 + usize::from(store);
        if let Some(cell) = cells.get(cell) {
            cell.store(cell.load(Relaxed) + 1, Relaxed);
        }
    }

    /// All cells: chunk by chunk, nothing for those that were never touched.
    fn read(&self) -> Vec<Option<Vec<u64>>> {
        let chunk = |chunk: &OnceLock<Cells>| {
            Some(chunk.get()?.iter().map(|cell| cell.load(Relaxed)).collect())
        };
        self.chunks.iter().map(chunk).collect()
    }
}

/// Accesses of one CPU to one page in a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Count {
    /// Number of the page: its address divided by 4096.
    pub(crate) page: u64,
    /// The CPU.
    pub(crate) cpu: usize,
    pub(crate) loads: u64,
    pub(crate) stores: u64,
}

/// A window that was closed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Window {
    pub(crate) opened_ms: u64,
    pub(crate) closed_ms: u64,
    /// By physical address, ascending; a page has an entry for each CPU that touched it.
    pub(crate) machine: Vec<Count>,
    /// By linear address.
    pub(crate) linear: Vec<Count>,
}

type Snapshot = Vec<[Vec<Option<Vec<u64>>>; 2]>;

#[derive(Debug, Default)]
struct Windows {
    /// When the open one was opened, and what the counters had then.
    open: Option<(u64, Snapshot)>,
    closed: Vec<Window>,
}

/// All counters.
#[derive(Debug)]
pub(crate) struct Pages {
    /// By CPU: physical, linear.
    cpus: Vec<[Space; 2]>,
    open: AtomicBool,
    windows: Mutex<Windows>,
}

impl Pages {
    /// For a machine whose memory ends at `memory_end`; linear addresses below `linear_end` are counted, too.
    pub(crate) fn new(vcpus: usize, memory_end: u64, linear_end: u64) -> Self {
        let cpu = |_| [Space::up_to(memory_end), Space::up_to(linear_end)];
        Self {
            cpus: (0..vcpus).map(cpu).collect(),
            open: AtomicBool::new(false),
            windows: Mutex::default(),
        }
    }

    /// Whether a window is open.
    pub(crate) fn is_open(&self) -> bool {
        self.open.load(Relaxed)
    }

    /// Notes an access, from the thread of its CPU.
    pub(crate) fn record(&self, vcpu: usize, physical: u64, linear: u64, store: bool) {
        if let Some([by_physical, by_linear]) = self.cpus.get(vcpu) {
            by_physical.count(physical, store);
            by_linear.count(linear, store);
        }
    }

    /// Opens a window; one that is open is closed first.
    pub(crate) fn open(&self, now_ms: u64) {
        let mut windows = self.windows.lock().unwrap_or_else(PoisonError::into_inner);
        self.finish(&mut windows, now_ms);
        windows.open = Some((now_ms, self.read()));
        self.open.store(true, SeqCst);
    }

    /// Closes the window, if one is open.
    pub(crate) fn close(&self, now_ms: u64) {
        let mut windows = self.windows.lock().unwrap_or_else(PoisonError::into_inner);
        self.finish(&mut windows, now_ms);
    }

    fn finish(&self, windows: &mut Windows, now_ms: u64) {
        self.open.store(false, SeqCst);
        let Some((opened_ms, before)) = windows.open.take() else {
            return;
        };
        if windows.closed.len() == MAX_WINDOWS {
            windows.closed.remove(0);
        }
        let after = self.read();
        windows.closed.push(Window {
            opened_ms,
            closed_ms: now_ms,
            machine: gained(&before, &after, 0),
            linear: gained(&before, &after, 1),
        });
    }

    fn read(&self) -> Snapshot {
        self.cpus
            .iter()
            .map(|cpu| [cpu[0].read(), cpu[1].read()])
            .collect()
    }

    /// The windows that were closed, oldest first.
    pub(crate) fn closed(&self) -> Vec<Window> {
        self.windows
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .closed
            .clone()
    }
}

/// What each CPU counted between two snapshots, by page.
fn gained(before: &Snapshot, after: &Snapshot, space: usize) -> Vec<Count> {
    let mut counts = Vec::new();
    for (cpu, (before, after)) in before.iter().zip(after).enumerate() {
        for (number, (old, new)) in before[space].iter().zip(&after[space]).enumerate() {
            let Some(new) = new else { continue };
            for (page, cells) in new.chunks_exact(2).enumerate() {
                let was = |which: usize| {
                    old.as_ref()
                        .and_then(|old| old.get(page * 2 + which))
                        .copied()
                        .unwrap_or(0)
                };
                let (loads, stores) = (cells[0] - was(0), cells[1] - was(1));
                if loads + stores > 0 {
                    let page = (number << CHUNK_SHIFT | page) as u64;
                    counts.push(Count {
                        page,
                        cpu,
                        loads,
                        stores,
                    });
                }
            }
        }
    }
    counts.sort_by_key(|count| (count.page, count.cpu));
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_has_what_was_counted_in_it() {
        let pages = Pages::new(2, 8 << 20, 2 << 20);
        pages.record(0, 0x1000, 0x5000, false);
        assert!(!pages.is_open());
        pages.open(10);
        assert!(pages.is_open());
        for _ in 0..3 {
            pages.record(0, 0x1fff, 0x5fff, false);
        }
        pages.record(1, 0x1000, 0x30_0000, true);
        pages.record(1, 7 << 20, 0, true);
        pages.record(1, 9 << 20, 0, true);
        pages.record(5, 0, 0, true);
        pages.close(20);
        pages.record(0, 0x1000, 0, false);
        let count = |page, cpu, loads, stores| Count {
            page,
            cpu,
            loads,
            stores,
        };
        assert_eq!(
            pages.closed(),
            [Window {
                opened_ms: 10,
                closed_ms: 20,
                machine: vec![count(1, 0, 3, 0), count(1, 1, 0, 1), count(0x700, 1, 0, 1)],
                linear: vec![count(0, 1, 0, 2), count(5, 0, 3, 0)],
            }]
        );
        pages.open(30);
        pages.open(40);
        pages.close(50);
        pages.close(60);
        let closed: Vec<_> = pages
            .closed()
            .iter()
            .map(|w| (w.opened_ms, w.closed_ms))
            .collect();
        assert_eq!(closed, [(10, 20), (30, 40), (40, 50)]);
        assert!(pages.closed()[2].machine.is_empty());
    }

    #[test]
    fn windows_are_bounded_and_threads_lose_nothing() {
        let pages = Pages::new(2, 4 << 20, 0);
        for n in 0..MAX_WINDOWS as u64 + 3 {
            pages.open(n);
            pages.close(n);
        }
        assert_eq!(pages.closed().len(), MAX_WINDOWS);
        pages.open(1);
        std::thread::scope(|scope| {
            for cpu in 0..2 {
                let pages = &pages;
                scope.spawn(move || {
                    (0..40_000).for_each(|n| pages.record(cpu, n % (4 << 20), 0, n % 4 == 0));
                });
            }
        });
        pages.close(2);
        let last = pages.closed().pop().expect("closed");
        assert_eq!(
            last.machine.iter().map(|c| c.loads + c.stores).sum::<u64>(),
            80_000
        );
        assert!(last.linear.is_empty());
    }
}
