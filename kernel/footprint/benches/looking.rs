//! What looking costs: `cargo xtask bench looking`. Figures and ratios, no verdict: hosts differ.
//!
//! * Reading and clearing the accessed bits of leaves through the table, in a harvest and in close looks, against the same over
//!   a flat array.
//! * An interval of the sampler over 64 GiB mapped by leaves of 2 MiB, with everything touched all the time: the share of
//!   one CPU that it takes at its shortest interval, close looks and their splits included; and its notes.

use footprint::Sampler;
use footprint::sampler::{Eyes, Mapped, Seen, Sight, Touched, Tunables};
use memory::buddy::OutOfFrames;
use memory::harvest::{Bit, Cursor, Descend, Options, Progress};
use memory::probe::Probe;
use memory::table::{
    Attributes, ENTRIES, LINE, LINES, NoProcessor, NptFormat, RadixTable, TableFormat, TableMemory,
};
use memory::testing::{Access, touch};
use std::hint::black_box;
use std::sync::Mutex;
use std::sync::atomic::{
    AtomicU64,
    Ordering::{AcqRel, Acquire, Relaxed, Release},
};
use std::time::{Duration, Instant};
use units::{Frame, Gpa, NodeId, PageSize};

type Table<'m> = RadixTable<NptFormat, &'m Flat>;

/// Tables one behind the other, found by arithmetic as in the kernel's direct map.
struct Flat {
    entries: Vec<AtomicU64>,
    free: Mutex<Vec<Frame>>,
}

impl Flat {
    fn new(tables: usize) -> Self {
        Self {
            entries: (0..tables * ENTRIES).map(|_| AtomicU64::new(0)).collect(),
            free: Mutex::new((1..=tables as u64).rev().map(Frame).collect()),
        }
    }
    fn entry(&self, table: Frame, index: usize) -> &AtomicU64 {
        &self.entries[(table.0 as usize - 1) * ENTRIES + index % ENTRIES]
    }
}

impl TableMemory for Flat {
    fn load(&self, table: Frame, index: usize) -> u64 {
        self.entry(table, index).load(Acquire)
    }
    fn load_line(&self, table: Frame, line: usize) -> [u64; LINE] {
        let first = (table.0 as usize - 1) * ENTRIES + line % LINES * LINE;
        let line = &self.entries[first..first + LINE];
        std::array::from_fn(|i| line[i].load(Acquire))
    }
    fn store(&self, table: Frame, index: usize, value: u64) {
        self.entry(table, index).store(value, Release);
    }
    fn compare_exchange(
        &self,
        table: Frame,
        index: usize,
        current: u64,
        new: u64,
    ) -> Result<u64, u64> {
        self.entry(table, index)
            .compare_exchange(current, new, AcqRel, Acquire)
    }
    fn swap(&self, table: Frame, index: usize, new: u64) -> u64 {
        self.entry(table, index).swap(new, AcqRel)
    }
    fn fetch_and(&self, table: Frame, index: usize, mask: u64) -> u64 {
        self.entry(table, index).fetch_and(mask, AcqRel)
    }
    fn allocate_table(&self, _: NodeId) -> Result<Frame, OutOfFrames> {
        let table = self
            .free
            .lock()
            .expect("one thread")
            .pop()
            .expect("enough tables");
        (0..ENTRIES).for_each(|i| self.store(table, i, 0));
        Ok(table)
    }
    fn free_table(&self, table: Frame) {
        self.free.lock().expect("one thread").push(table);
    }
}

const LARGE: PageSize = PageSize::Size2M;
const ACCESSED: u64 = NptFormat::ACCESSED;

fn table(memory: &Flat, bytes: u64, largest: PageSize) -> Table<'_> {
    let mut table = Table::new(memory, NodeId(0)).expect("room");
    let pages = bytes / PageSize::Size4K.bytes();
    let flush = table.map_range(
        Gpa(0),
        Frame(1 << 20),
        pages,
        Attributes::GUEST_MEMORY,
        largest,
    );
    flush.expect("room").carry_out(&NoProcessor);
    table
}

/// The shortest of several runs, each after `prepare`.
fn best(mut prepare: impl FnMut(), mut run: impl FnMut()) -> Duration {
    let once = |_| {
        prepare();
        let began = Instant::now();
        run();
        began.elapsed()
    };
    (0..40).map(once).min().unwrap_or_default()
}

fn harvest_against_flat(share: u64) {
    // Small enough to be read in one of the host's time slices: a busy host interrupts longer runs.
    let leaves = 1u64 << 16;
    let memory = Flat::new(leaves as usize / 512 + 16);
    let table = table(&memory, leaves << 12, PageSize::Size4K);
    let flat: Vec<AtomicU64> = (0..leaves).map(|i| AtomicU64::new(i << 12 | 7)).collect();
    let used = |i: &u64| i % 100 < share;
    let tree = best(
        || {
            for i in (0..leaves).filter(used) {
                touch::<NptFormat>(&&memory, table.root(), Gpa(i << 12), Access::Read);
            }
        },
        || {
            let mut found = 0u64;
            let options = Options {
                accessed: Bit::Clear,
                dirty: Bit::Read,
                descend: Descend::WhereAccessed,
            };
            let mut cursor = Cursor::ALL;
            let progress = table.harvest(&mut cursor, options, u64::MAX, |_| found += 1);
            assert_eq!(progress, Progress::Finished);
            black_box(found);
        },
    );
    let close = best(
        || {
            for i in (0..leaves).filter(used) {
                touch::<NptFormat>(&&memory, table.root(), Gpa(i << 12), Access::Read);
            }
        },
        || {
            let granules = (0..leaves / 512).map(|granule| Gpa(granule << 21));
            let sets = granules.filter_map(|at| table.probe_pages(at));
            black_box(sets.map(|set| set.iter().count()).sum::<usize>());
        },
    );
    let floor = best(
        || {
            for i in (0..leaves).filter(used) {
                flat[i as usize].fetch_or(ACCESSED, Relaxed);
            }
        },
        || {
            let mut found = 0u64;
            for word in &flat {
                if word.load(Relaxed) & ACCESSED != 0 {
                    found += u64::from(word.fetch_and(!ACCESSED, Relaxed) & ACCESSED != 0);
                }
            }
            black_box(found);
        },
    );
    let each = |time: Duration| time.as_nanos() as f64 / leaves as f64;
    println!(
        "harvest, {share:3} % touched: {:.2} ns a leaf, flat array {:.2} ns, ratio {:.2}; {:.2} ms/GiB at 4 KiB",
        each(tree),
        each(floor),
        each(tree) / each(floor),
        each(tree) * 262_144.0 / 1e6
    );
    println!(
        "close look, {share:3} % touched: {:.2} ns a leaf, ratio {:.2}",
        each(close),
        each(close) / each(floor)
    );
}

struct Bits<'t, 'm>(&'t Table<'m>);

impl Eyes for Bits<'_, '_> {
    fn granule(&mut self, at: Gpa) -> Seen {
        match self.0.probe(at) {
            Probe::Accessed => Seen::by(NodeId(0)),
            Probe::Idle | Probe::Absent => Seen::UNTOUCHED,
        }
    }
    fn pages(&mut self, at: Gpa, touched: &mut Touched) -> Mapped {
        let pages = self.0.probe_pages(at).expect("mapped by small pages");
        touched.add(Seen::by(NodeId(0)), pages);
        Mapped::Pages
    }
}

fn sampler_over_64_gib() {
    let bytes = 64u64 << 30;
    let memory = Flat::new(256);
    let mut table = table(&memory, bytes, LARGE);
    let mut sampler = Sampler::new(std::iter::once(0..bytes), 1, Tunables::default());
    let (mut looks, mut maps, mut passes) = (Vec::new(), Vec::new(), Vec::new());
    let intervals = 200u32;
    for i in 0..intervals {
        for granule in 0..bytes >> 21 {
            touch::<NptFormat>(&&memory, table.root(), Gpa(granule << 21), Access::Read);
        }
        for at in sampler.looks().collect::<Vec<_>>() {
            for page in 0..512 {
                touch::<NptFormat>(
                    &&memory,
                    table.root(),
                    Gpa(at.0 + (page << 12)),
                    Access::Read,
                );
            }
        }
        let began = Instant::now();
        let orders = sampler.tick(Sight::Fresh, true, &mut Bits(&table));
        looks.push(began.elapsed());
        let began = Instant::now();
        for at in orders.join {
            let ready = table
                .begin_collapse(at, LARGE)
                .expect("split")
                .shoot_down(&NoProcessor);
            table
                .finish_collapse(ready)
                .expect("frozen")
                .carry_out(&NoProcessor);
        }
        for at in orders.split {
            let ready = table
                .begin_split(at, LARGE)
                .expect("whole")
                .shoot_down(&NoProcessor);
            table.finish_split(ready).expect("frozen");
        }
        maps.push(began.elapsed());
        if i % 10 == 9 {
            let began = Instant::now();
            black_box(sampler.pass());
            passes.push(began.elapsed());
        }
    }
    // Of each the middle one: a busy host interrupts some. Mapping anew is rare and counts with its mean.
    let middle = |times: &mut Vec<Duration>| {
        times.sort_unstable();
        times[times.len() / 2].as_secs_f64() * 1e6
    };
    let mapping = maps.iter().sum::<Duration>().as_secs_f64() * 1e6 / f64::from(intervals);
    let (looking, pass) = (middle(&mut looks), middle(&mut passes));
    println!(
        "sampler over 64 GiB, all touched: {looking:.0} us an interval, {mapping:.0} us to map anew, {pass:.0} us a pass: \
         {:.3} % of a CPU at 100 ms; {} KiB of notes, {:.5} % of memory",
        (looking + mapping + pass / 10.0) / 1000.0,
        sampler.metadata_bytes() >> 10,
        sampler.metadata_bytes() as f64 * 100.0 / bytes as f64
    );
}

fn main() {
    for share in [0, 10, 100] {
        harvest_against_flat(share);
    }
    sampler_over_64_gib();
}
