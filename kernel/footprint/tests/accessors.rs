//! Who touches what, with page tables of each node's own: told by bits alone, without looks at stopped guests.

use footprint::lens::PAGES;
use footprint::sampler::{Eyes, Heat, Mapped, Seen, Sight, Touched, Tunables};
use footprint::*;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use units::*;

const GRANULE: u64 = PageSize::Size2M.bytes();
const SECOND: Nanos = Nanos::from_secs(1);

/// A machine of several nodes: accessed bits by page, in the tables of each node that has its own.
struct Machine {
    sampler: Sampler,
    /// By node, whose tables it walks.
    root_of: Vec<NodeId>,
    granules: BTreeMap<u64, Seen>,
    pages: BTreeMap<u64, Seen>,
    split: BTreeSet<u64>,
}

impl Machine {
    fn new(mib: u64, root_of: &[u16]) -> Self {
        let mut machine = Self {
            sampler: Sampler::new(std::iter::once(0..mib << 20), 7, Tunables::default()),
            root_of: Vec::new(),
            granules: BTreeMap::new(),
            pages: BTreeMap::new(),
            split: BTreeSet::new(),
        };
        machine.give_roots(root_of);
        machine
    }

    fn give_roots(&mut self, root_of: &[u16]) {
        self.root_of = root_of.iter().map(|node| NodeId(*node)).collect();
        self.sampler.set_roots(self.root_of.iter().copied());
    }

    fn touch(&mut self, node: usize, page: u64) {
        self.note(Seen::by(self.root_of[node]), page);
    }

    fn note(&mut self, seen: Seen, page: u64) {
        for (bits, at) in [
            (&mut self.granules, page / PAGES as u64),
            (&mut self.pages, page),
        ] {
            let bit = bits.entry(at).or_default();
            *bit = bit.and(seen);
        }
    }

    /// Lets the sampler watch for so many intervals, with a pass every ten; what the last one found.
    fn watch(&mut self, intervals: u32, mut touch: impl FnMut(&mut Self, u32)) -> Vec<Heat> {
        let mut heats = Vec::new();
        for i in 0..intervals {
            touch(self, i);
            let mut bits = Bits(
                core::mem::take(&mut self.granules),
                core::mem::take(&mut self.pages),
                &self.split,
            );
            let orders = self.sampler.tick(Sight::Fresh, true, &mut bits);
            for at in orders.join {
                self.split.remove(&at.0);
            }
            self.split.extend(orders.split.iter().map(|at| at.0));
            if i % 10 == 9 {
                heats = self.sampler.pass();
            }
        }
        heats
    }

    /// What a pass makes of it, with all memory on node `on(granule)`, and where it ran.
    fn record(&self, heats: &[Heat], on: impl Fn(u64) -> u16, run: &[u64]) -> Footprint {
        let mut samples = Vec::new();
        for heat in heats {
            let node = NodeId(on(heat.gpa.0 / GRANULE));
            let leaf = LeafSample::sampled(heat.gpa, PageSize::Size2M, node, heat.heat, heat.hits);
            self.sampler.told_apart(heat.gpa, leaf, &mut samples);
        }
        let mut footprint = Footprint::new(self.root_of.len(), footprint::Tunables::default());
        record(&mut footprint, samples, attribution(&self.root_of), run);
        footprint
    }
}

struct Bits<'m>(BTreeMap<u64, Seen>, BTreeMap<u64, Seen>, &'m BTreeSet<u64>);

impl Eyes for Bits<'_> {
    fn granule(&mut self, at: Gpa) -> Seen {
        self.0.remove(&(at.0 / GRANULE)).unwrap_or_default()
    }
    fn pages(&mut self, at: Gpa, touched: &mut Touched) -> Mapped {
        if !self.2.contains(&at.0) {
            return Mapped::Whole;
        }
        let first = at.0 / PageSize::Size4K.bytes();
        for (page, seen) in self.1.range(first..first + PAGES as u64) {
            touched.add(*seen, PageSet::from_iter([(page - first) as u16]));
        }
        Mapped::Pages
    }
}

fn attribution(root_of: &[NodeId]) -> Attribution<'_> {
    match root_of.iter().collect::<BTreeSet<_>>().len() {
        1 => Attribution::ByRunTime,
        _ => Attribution::ByRoot { root_of },
    }
}

fn record(
    footprint: &mut Footprint,
    samples: Vec<LeafSample>,
    attribution: Attribution<'_>,
    run_ms: &[u64],
) {
    let run_time: Vec<Nanos> = run_ms.iter().map(|ms| Nanos::from_millis(*ms)).collect();
    let window = Window {
        length: SECOND,
        run_time: &run_time,
        attribution,
        coverage: Coverage::TouchedLeaves { resident: &[1; 4] },
        operands: None,
    };
    footprint.record(&window, samples);
}

/// Thousandths of all touches, by accessor and memory.
fn shares(footprint: &Footprint) -> Vec<Vec<u64>> {
    let rows = footprint.matrix().rows();
    let all: u64 = rows.iter().flatten().sum();
    let share = |cell: &u64| cell * 1000 / all.max(1);
    rows.iter()
        .map(|row| row.iter().map(share).collect())
        .collect()
}

/// Node 0 works on the first half of 64 MiB and node 1 on the second, each all the time.
fn halves(machine: &mut Machine, _: u32) {
    for page in 0..8192u64 {
        machine.touch(0, page);
        machine.touch(1, 8192 + page);
    }
}

#[test]
fn disjoint_halves_are_told_apart_by_bits_alone_and_not_without_roots() {
    let on = |granule| u16::from(granule >= 16);
    let mut own = Machine::new(64, &[0, 1]);
    let heats = own.watch(60, halves);
    let found = shares(&own.record(&heats, on, &[500, 500]));
    assert!(found[0][0] >= 490 && found[1][1] >= 490, "{found:?}");
    assert_eq!((found[0][1], found[1][0]), (0, 0));
    let mut one = Machine::new(64, &[0, 0]);
    let heats = one.watch(60, halves);
    let found = shares(&one.record(&heats, on, &[500, 500]));
    assert!(
        found.iter().flatten().all(|c| c.abs_diff(250) < 5),
        "{found:?}"
    );
}

#[test]
fn what_is_hot_does_not_depend_on_who_is_told() {
    let (mut own, mut one) = (Machine::new(64, &[0, 1]), Machine::new(64, &[0, 0]));
    let (heats, same) = (own.watch(60, halves), one.watch(60, halves));
    assert_eq!(heats, same);
    let on = |granule| u16::from(granule % 3 == 0);
    let (by_root, by_time) = (
        own.record(&heats, on, &[900, 100]),
        one.record(&same, on, &[900, 100]),
    );
    assert_eq!(by_root.matrix().by_memory(), by_time.matrix().by_memory());
    assert_eq!(by_root.hot(|_| true), by_time.hot(|_| true));
    assert_eq!(by_root.confidence(), by_time.confidence());
    // With one root a sample stays as it is.
    let sample = LeafSample::sampled(Gpa(0), PageSize::Size2M, NodeId(0), 77, 5);
    let mut samples = Vec::new();
    one.sampler.told_apart(Gpa(0), sample, &mut samples);
    assert_eq!(samples, [sample]);
}

#[test]
fn a_node_that_reads_one_page_of_anothers_granule_gets_one_pages_part() {
    let mut machine = Machine::new(16, &[0, 1]);
    let mixed = |machine: &mut Machine, _| {
        (0..512).for_each(|page| machine.touch(1, page));
        machine.touch(0, 9);
    };
    let heats = machine.watch(60, mixed);
    let found = machine.record(&heats, |_| 0, &[500, 500]).matrix().rows();
    let parts = found[1][0] / found[0][0];
    assert!((490..530).contains(&parts), "{found:?}");
    // Mapped by small pages, page 9 is of both and all others of node 1.
    let of_page = |page: u64| {
        let at = Gpa(page << 12);
        let sample = LeafSample::sampled(at, PageSize::Size4K, NodeId(0), 1000, 2);
        let mut samples = Vec::new();
        machine.sampler.told_apart(at, sample, &mut samples);
        samples
            .iter()
            .map(|s| (s.accessed, s.heat, s.hits))
            .collect::<Vec<_>>()
    };
    assert_eq!(of_page(9), [(1, 500, 1), (2, 500, 1)]);
    assert_eq!(of_page(10), [(2, 1000, 2)]);
}

#[test]
fn rates_weigh_and_not_bits() {
    let mut machine = Machine::new(16, &[0, 1]);
    let heats = machine.watch(80, |machine, i| {
        (0..64).for_each(|page| machine.touch(1, page));
        if i % 10 == 0 {
            (0..64).for_each(|page| machine.touch(0, page));
        }
    });
    let found = machine.record(&heats, |_| 0, &[500, 500]).matrix().rows();
    // A tenth of the intervals is one touch a second; always is 21.3 at least.
    let times = found[1][0] as f64 / found[0][0] as f64;
    assert!((16.0..32.0).contains(&times), "{times}: {found:?}");
}

#[test]
fn nodes_without_tables_of_their_own_share_by_run_time() {
    let mut machine = Machine::new(64, &[0, 0, 2]);
    let heats = machine.watch(60, |machine, _| {
        (0..8192).for_each(|page| machine.touch(1, page));
        (8192..16384).for_each(|page| machine.touch(2, page));
    });
    let on = |granule| u16::from(granule >= 16);
    let found = shares(&machine.record(&heats, on, &[300, 100, 900]));
    assert!(
        found[0][0].abs_diff(375) < 5 && found[1][0].abs_diff(125) < 5,
        "{found:?}"
    );
    assert!(found[2][1] >= 490 && found[2][0] == 0, "{found:?}");
    // Nobody who uses them ran of late: whose they are.
    let found = shares(&machine.record(&heats, on, &[0, 0, 900]));
    assert!(
        found[0][0] >= 490 && found[1][0] == 0 && found[2][1] >= 490,
        "{found:?}"
    );
}

#[test]
fn new_tables_make_old_bits_mean_nothing() {
    let mut machine = Machine::new(64, &[0, 0]);
    machine.watch(60, halves);
    machine.give_roots(&[0, 1]);
    // The interval in which tables came: all that was touched before them stands in the first ones.
    machine.root_of = vec![NodeId(0); 2];
    machine.watch(1, halves);
    machine.give_roots(&[0, 1]);
    let heats = machine.watch(10, halves);
    let on = |granule| u16::from(granule >= 16);
    let found = shares(&machine.record(&heats, on, &[500, 500]));
    assert_eq!((found[0][1], found[1][0]), (0, 0), "{found:?}");
    // And when they go, run time is all that is left.
    machine.give_roots(&[0, 0]);
    let heats = machine.watch(10, halves);
    let found = shares(&machine.record(&heats, on, &[500, 500]));
    assert!(
        found.iter().flatten().all(|c| c.abs_diff(250) < 5),
        "{found:?}"
    );
}

#[test]
fn large_machines_are_told_apart_by_the_granules_that_speak_for_their_regions() {
    let mut machine = Machine::new(16 << 10, &[0, 1]);
    let heats = machine.watch(200, |machine, _| {
        for granule in 1024..3072u64 {
            let node = usize::from(granule >= 2048);
            (0..4).for_each(|page| machine.touch(node, granule * PAGES as u64 + page * 7));
        }
    });
    let on = |granule| u16::from(granule < 2048);
    let found = shares(&machine.record(&heats, on, &[500, 500]));
    assert_eq!((found[0][0], found[1][1]), (0, 0), "{found:?}");
    assert!(found[0][1].abs_diff(found[1][0]) < 60, "{found:?}");
}

#[test]
fn notes_take_a_small_part_of_memory_however_many_nodes_there_are() {
    for nodes in [2u16, 4, 8, 63] {
        let root_of: Vec<u16> = (0..nodes).collect();
        let mut machine = Machine::new(64, &root_of);
        let all = (0..nodes).fold(Seen::UNTOUCHED, |all, n| all.and(Seen::by(NodeId(n))));
        machine.watch(60, |machine, _| {
            (0..16384).for_each(|page| machine.note(all, page))
        });
        let bytes = machine.sampler.metadata_bytes() as u64;
        assert!(bytes * 500 <= 64 << 20, "{nodes} nodes: {bytes} bytes");
        // There is no room for the pages of so many; the granules' own bits still say that all take part.
        let sample = LeafSample::sampled(Gpa(0), PageSize::Size2M, NodeId(0), 1 << 20, 1 << 10);
        let mut samples = Vec::new();
        machine.sampler.told_apart(Gpa(0), sample, &mut samples);
        let even = (1 << 20) / u64::from(nodes);
        assert_eq!(samples.len(), usize::from(nodes));
        assert!(
            samples.iter().all(|s| s.heat.abs_diff(even) < 2),
            "{samples:?}"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(256) })]
    #[test]
    fn the_sums_over_accessors_are_what_was_touched(
        touches in proptest::collection::vec((0u64..40, 0u16..5, any::<u64>(), 0u64..1 << 32), 0..120),
        run in proptest::collection::vec(0u64..2000, 4),
        root_of in proptest::collection::vec(0u16..4, 4),
    ) {
        let root_of: Vec<NodeId> = root_of.into_iter().map(NodeId).collect();
        let mut sums = [0u64; 4];
        let (mut seen, mut home) = (BTreeSet::new(), BTreeMap::new());
        let mut samples = Vec::new();
        for (granule, node, accessed, heat) in touches {
            let node = *home.entry(granule).or_insert(node);
            if seen.insert((granule, accessed)) {
                let gpa = Gpa(granule * GRANULE);
                let sample = LeafSample::sampled(gpa, PageSize::Size2M, NodeId(node), heat, 1);
                samples.push(LeafSample { accessed, ..sample });
                if let Some(sum) = sums.get_mut(usize::from(node)) {
                    *sum += if accessed == 0 { 0 } else { heat };
                }
            }
        }
        for attribution in [Attribution::ByRunTime, Attribution::ByRoot { root_of: &root_of }] {
            let mut footprint = Footprint::new(4, footprint::Tunables::default());
            record(&mut footprint, samples.clone(), attribution, &run);
            if !footprint.is_idle() {
                prop_assert_eq!(footprint.matrix().by_memory(), sums);
                let hot: u64 = footprint.hot(|n| n.0 < 4).iter().map(|p| p.heat).sum();
                prop_assert_eq!(hot, sums.iter().sum::<u64>());
            }
        }
    }
}
