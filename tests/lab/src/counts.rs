//! Counting without races and almost without sharing.
//!
//! Each vCPU has cells of its own, written by its thread only. Every [`BATCH`] accesses of a tag it adds
//! what is new to that tag's series of windows, under the tag's lock. A reader adds the rest
//! of all vCPUs first, so that totals and windows agree.

use crate::args::{Args, Range};
use crate::tag::TAGS;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Accesses that a vCPU keeps to itself.
const BATCH: u64 = 1000;
/// Most windows of a tag; beyond, neighbours are merged and windows become twice as long.
const MAX_WINDOWS: usize = 1024;

/// One data access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// Memory at a physical address was read.
    Load(u64),
    /// Memory at a physical address was written.
    Store(u64),
    /// A device was read or written.
    Device,
}

/// A stretch of a tag's accesses; rows are CPU nodes, columns memory nodes, the last one for
/// addresses outside of the map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Window {
    pub(crate) start_ms: u64,
    pub(crate) accesses: u64,
    pub(crate) matrix: Vec<u64>,
}

/// The windows of one tag.
#[derive(Debug)]
struct Series {
    size: u64,
    windows: Vec<Window>,
    /// What each vCPU's columns had when they were last added.
    added: Vec<Vec<u64>>,
}

/// The cells of one vCPU; apart from each other by more than two cache lines.
#[derive(Debug)]
#[repr(align(256))]
struct Vcpu {
    node: usize,
    /// By tag, column, load or store.
    cells: Vec<AtomicU64>,
    /// By tag: accesses in all.
    totals: [AtomicU64; TAGS],
    devices: AtomicU64,
}

/// All counts.
#[derive(Debug)]
pub(crate) struct Counts {
    map: Vec<Range>,
    nodes: usize,
    vcpus: Vec<Vcpu>,
    series: Vec<Mutex<Series>>,
}

/// Loads and stores of a tag, by CPU node and column.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Totals {
    pub(crate) loads: Vec<Vec<u64>>,
    pub(crate) stores: Vec<Vec<u64>>,
}

impl Counts {
    pub(crate) fn new(args: &Args) -> Self {
        let columns = args.nodes + 1;
        let vcpu = |node: &usize| Vcpu {
            node: *node,
            cells: (0..TAGS * columns * 2).map(|_| AtomicU64::new(0)).collect(),
            totals: Default::default(),
            devices: AtomicU64::new(0),
        };
        let series = || Series {
            size: args.window,
            windows: Vec::new(),
            added: vec![vec![0; columns]; args.cpus.len()],
        };
        Self {
            map: args.map.clone(),
            nodes: args.nodes,
            vcpus: args.cpus.iter().map(vcpu).collect(),
            series: (0..TAGS).map(|_| Mutex::new(series())).collect(),
        }
    }

    /// Number of nodes.
    pub(crate) fn nodes(&self) -> usize {
        self.nodes
    }

    fn columns(&self) -> usize {
        self.nodes + 1
    }

    /// Notes an access of `vcpu` behind `tag`, from that vCPU's thread. Whether a batch was completed
    /// by it; `now_ms` is asked only then.
    pub(crate) fn record(
        &self,
        vcpu: usize,
        tag: usize,
        access: Access,
        now_ms: impl Fn() -> u64,
    ) -> bool {
        let Some(cpu) = self.vcpus.get(vcpu) else {
            return false;
        };
        let (address, store) = match access {
            Access::Load(address) => (address, 0),
            Access::Store(address) => (address, 1),
            Access::Device => {
                bump(&cpu.devices);
                return false;
            }
        };
        let cell = (tag * self.columns() + self.column(address)) * 2 + store;
        let (Some(cell), Some(total)) = (cpu.cells.get(cell), cpu.totals.get(tag)) else {
            return false;
        };
        bump(cell);
        let full = bump(total).is_multiple_of(BATCH);
        if full && let Some(series) = self.lock(tag) {
            self.add(series, vcpu, tag, now_ms());
        }
        full
    }

    /// The node that holds a physical address; nothing if the map does not name it.
    pub(crate) fn node_of(&self, address: u64) -> Option<usize> {
        Some(self.column(address)).filter(|column| *column < self.nodes)
    }

    fn column(&self, address: u64) -> usize {
        let behind = self.map.partition_point(|range| range.start <= address);
        let range = behind.checked_sub(1).and_then(|index| self.map.get(index));
        range
            .filter(|range| address < range.end)
            .map_or(self.nodes, |range| range.node)
    }

    fn lock(&self, tag: usize) -> Option<MutexGuard<'_, Series>> {
        Some(
            self.series
                .get(tag)?
                .lock()
                .unwrap_or_else(PoisonError::into_inner),
        )
    }

    /// Adds what `vcpu` counted since the last time to the tag's windows.
    fn add(&self, mut series: MutexGuard<'_, Series>, vcpu: usize, tag: usize, now_ms: u64) {
        let columns = self.columns();
        let Some(cpu) = self.vcpus.get(vcpu) else {
            return;
        };
        let Series {
            size,
            windows,
            added,
        } = &mut *series;
        if windows.last().is_none_or(|window| window.accesses >= *size) {
            if windows.len() == MAX_WINDOWS {
                merge(windows);
                *size *= 2;
            }
            windows.push(Window {
                start_ms: now_ms,
                accesses: 0,
                matrix: vec![0; self.nodes * columns],
            });
        }
        let (Some(window), Some(added)) = (windows.last_mut(), added.get_mut(vcpu)) else {
            return;
        };
        let row = window.matrix.iter_mut().skip(cpu.node * columns);
        let cells = cpu.cells.iter().skip(tag * columns * 2);
        let sums: Vec<u64> = cells
            .take(columns * 2)
            .map(|cell| cell.load(Relaxed))
            .collect();
        for ((sum, added), cell) in sums.chunks_exact(2).zip(added).zip(row) {
            let sum = sum.iter().sum::<u64>();
            // The owner may have counted on while another thread reads for a report: never backwards.
            let new = sum.saturating_sub(*added);
            *added += new;
            *cell += new;
            window.accesses += new;
        }
    }

    /// The windows of a tag, the last one perhaps short; `None` for a tag that never ran.
    pub(crate) fn windows(&self, tag: usize, now_ms: u64) -> Option<Vec<Window>> {
        let counted = self
            .vcpus
            .iter()
            .filter_map(|cpu| cpu.totals.get(tag))
            .any(|total| total.load(Relaxed) > 0);
        if !counted {
            return None;
        }
        for vcpu in 0..self.vcpus.len() {
            self.add(self.lock(tag)?, vcpu, tag, now_ms);
        }
        let mut windows = self.lock(tag)?.windows.clone();
        windows.retain(|window| window.accesses > 0);
        Some(windows)
    }

    /// Loads and stores of a tag.
    pub(crate) fn totals(&self, tag: usize) -> Totals {
        let zero = vec![vec![0; self.columns()]; self.nodes];
        let mut totals = Totals {
            loads: zero.clone(),
            stores: zero,
        };
        for cpu in &self.vcpus {
            let cells = cpu
                .cells
                .iter()
                .skip(tag * self.columns() * 2)
                .take(self.columns() * 2);
            for (index, cell) in cells.enumerate() {
                let rows = if index % 2 == 0 {
                    &mut totals.loads
                } else {
                    &mut totals.stores
                };
                if let Some(sum) = rows
                    .get_mut(cpu.node)
                    .and_then(|row| row.get_mut(index / 2))
                {
                    *sum += cell.load(Relaxed);
                }
            }
        }
        totals
    }

    /// Accesses to devices behind any tag.
    pub(crate) fn devices(&self) -> u64 {
        self.vcpus.iter().map(|cpu| cpu.devices.load(Relaxed)).sum()
    }
}

/// Adds one to a cell that this thread alone writes; the new value.
fn bump(cell: &AtomicU64) -> u64 {
    let value = cell.load(Relaxed) + 1;
    cell.store(value, Relaxed);
    value
}

fn merge(windows: &mut Vec<Window>) {
    let pairs = windows.chunks(2).map(|pair| {
        let mut pair = pair.iter();
        let mut merged = pair.next().cloned()?;
        if let Some(second) = pair.next() {
            merged.accesses += second.accesses;
            merged
                .matrix
                .iter_mut()
                .zip(&second.matrix)
                .for_each(|(sum, more)| *sum += more);
        }
        Some(merged)
    });
    *windows = pairs.flatten().collect();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(window: u64) -> Counts {
        let range = |node| Range {
            start: node as u64 * 0x1000,
            end: (node as u64 + 1) * 0x1000,
            node,
        };
        Counts::new(&Args {
            out: "x".into(),
            cpus: vec![0, 1, 1],
            map: vec![range(0), range(1)],
            window,
            nodes: 2,
            pages: crate::args::Scope::Nobody,
            linear_end: 0,
            host: false,
            profile: false,
            clock: None,
        })
    }

    #[test]
    fn each_access_lands_in_its_cell() {
        let counts = counts(100);
        for (vcpu, tag, access) in [
            (0, 1, Access::Load(0x10)),
            (0, 1, Access::Store(0x1010)),
            (1, 1, Access::Load(0x1fff)),
            (2, 1, Access::Load(0x2000)),
            (2, 2, Access::Store(0xfff)),
            (2, 2, Access::Device),
            (9, 2, Access::Load(0)),
        ] {
            assert!(!counts.record(vcpu, tag, access, || 0));
        }
        assert_eq!(
            counts.totals(1),
            Totals {
                loads: vec![vec![1, 0, 0], vec![0, 1, 1]],
                stores: vec![vec![0, 1, 0], vec![0, 0, 0]]
            }
        );
        assert_eq!(counts.totals(2).stores, [[0, 0, 0], [1, 0, 0]]);
        assert_eq!(counts.devices(), 1);
        assert_eq!(
            counts.windows(1, 5),
            Some(vec![Window {
                start_ms: 5,
                accesses: 4,
                matrix: vec![1, 1, 0, 0, 1, 1]
            }])
        );
        assert_eq!(counts.windows(3, 5), None);
    }

    #[test]
    fn windows_follow_time_and_lose_nothing() {
        let counts = counts(2 * BATCH);
        for n in 0..5 * BATCH + 7 {
            let address = if n < 3 * BATCH { 0 } else { 0x1000 };
            assert_eq!(
                counts.record(0, 1, Access::Load(address), || n),
                (n + 1).is_multiple_of(BATCH)
            );
        }
        let windows = counts.windows(1, 99_999).expect("counted");
        let shapes: Vec<_> = windows
            .iter()
            .map(|w| (w.accesses, w.matrix[0], w.matrix[1]))
            .collect();
        assert_eq!(
            shapes,
            [(2000, 2000, 0), (2000, 1000, 1000), (1007, 0, 1007)]
        );
        assert_eq!(windows[1].start_ms, 3 * BATCH - 1);
        assert_eq!(
            counts.windows(1, 99_999),
            Some(windows),
            "reading twice adds nothing"
        );
    }

    #[test]
    fn the_series_is_bounded() {
        let counts = counts(BATCH);
        let accesses = BATCH * (2 * MAX_WINDOWS as u64 + 3);
        for n in 0..accesses {
            counts.record(1, 4, Access::Store(n % 0x2000), || n);
        }
        let windows = counts.windows(4, 0).expect("counted");
        assert!(windows.len() <= MAX_WINDOWS);
        assert_eq!(windows.iter().map(|w| w.accesses).sum::<u64>(), accesses);
    }

    #[test]
    fn threads_lose_no_access() {
        let counts = counts(5000);
        std::thread::scope(|scope| {
            for vcpu in 0..3 {
                let counts = &counts;
                scope.spawn(move || {
                    for n in 0..50_000 {
                        counts.record(vcpu, 1, Access::Load(n % 0x2000), || n);
                    }
                });
            }
            for _ in 0..50 {
                counts.windows(1, 0);
            }
        });
        let windows = counts.windows(1, 0).expect("counted");
        assert_eq!(windows.iter().map(|w| w.accesses).sum::<u64>(), 150_000);
        let loads: u64 = counts.totals(1).loads.iter().flatten().sum();
        assert_eq!(loads, 150_000);
    }
}
