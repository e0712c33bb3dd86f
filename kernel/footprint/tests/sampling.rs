//! The sampler against synthetic machines that are known exactly.

use footprint::Sampler;
use footprint::lens::PAGES;
use footprint::sampler::{Eyes, Heat, Mapped, Orders, Seen, Sight, Touched, Tunables};
use proptest::prelude::*;
use std::collections::BTreeSet;
use units::{Gpa, Nanos, PageSize};

const GRANULE: u64 = PageSize::Size2M.bytes();

/// A machine's accessed bits, by page; granules are mapped whole unless split.
#[derive(Default)]
struct Machine {
    accessed: BTreeSet<u64>,
    split: BTreeSet<u64>,
}

impl Machine {
    fn touch(&mut self, page: u64) {
        self.accessed.insert(page);
    }
    fn obey(&mut self, orders: &Orders) {
        for at in &orders.split {
            assert!(self.split.insert(at.0), "{at} is split already");
        }
        for at in &orders.join {
            assert!(self.split.remove(&at.0), "{at} was not split");
        }
    }
}

/// One interval's look: pages of split granules keep their bits when the granule's own is cleared.
struct Look<'m> {
    pages: &'m mut Machine,
    granules: BTreeSet<u64>,
}

impl<'m> Look<'m> {
    fn at(pages: &'m mut Machine) -> Self {
        let granules = pages.accessed.iter().map(|p| p / PAGES as u64).collect();
        Self { pages, granules }
    }
}

impl Drop for Look<'_> {
    fn drop(&mut self) {
        self.pages.accessed.clear();
    }
}

impl Eyes for Look<'_> {
    fn granule(&mut self, at: Gpa) -> Seen {
        match self.granules.remove(&(at.0 / GRANULE)) {
            true => Seen::TOUCHED,
            false => Seen::UNTOUCHED,
        }
    }
    fn pages(&mut self, at: Gpa, touched: &mut Touched) -> Mapped {
        if !self.pages.split.contains(&at.0) {
            return Mapped::Whole;
        }
        let first = at.0 / PageSize::Size4K.bytes();
        let pages = self.pages.accessed.range(first..first + PAGES as u64);
        let pages = pages.map(|page| (page - first) as u16).collect();
        touched.add(Seen::TOUCHED, pages);
        Mapped::Pages
    }
}

fn dice(seed: u64) -> impl FnMut(u64) -> u64 {
    let mut state = seed | 1;
    move |n| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % n.max(1)
    }
}

/// Lets the sampler watch for so many intervals, with a pass every ten; the last pass is returned.
fn watch(
    sampler: &mut Sampler,
    intervals: u32,
    mut touch: impl FnMut(&mut Machine, u32),
) -> Vec<Heat> {
    let mut machine = Machine::default();
    for at in sampler.looks() {
        machine.split.insert(at.0);
    }
    let mut last = Vec::new();
    for i in 0..intervals {
        touch(&mut machine, i);
        let orders = sampler.tick(Sight::Fresh, true, &mut Look::at(&mut machine));
        machine.obey(&orders);
        if i % 10 == 9 {
            last = sampler.pass();
        }
    }
    last
}

fn sampler(mib: u64) -> Sampler {
    Sampler::new(std::iter::once(0..mib << 20), 7, Tunables::default())
}

fn heat_in(heats: &[Heat], range: std::ops::Range<u64>) -> u64 {
    heats
        .iter()
        .filter(|h| range.contains(&(h.gpa.0 >> 20)))
        .map(|h| h.heat)
        .sum()
}

/// The case that counting touched granules gets wrong: a small working set of 16 MiB, and a guest kernel that
/// grazes a few pages in each of 30 granules at every tick.
#[test]
fn a_small_working_set_outweighs_scattered_pages_that_every_tick_grazes() {
    let mut sampler = sampler(320);
    let mut random = dice(3);
    let heats = watch(&mut sampler, 80, |machine, _| {
        for granule in 0..30u64 {
            for page in 0..4 {
                machine.touch(granule * PAGES as u64 + page * 100);
            }
        }
        // 2000 visits of 4096 pages in each interval.
        for _ in 0..2000 {
            machine.touch((200 << 8) + random(4096));
        }
    });
    assert!(sampler.settled());
    let (kernel, program) = (heat_in(&heats, 0..60), heat_in(&heats, 200..216));
    assert!(program > 4 * kernel, "{program} and {kernel}");
}

#[test]
fn what_is_grazed_once_a_second_hardly_weighs() {
    let mut sampler = sampler(64);
    let heats = watch(&mut sampler, 80, |machine, i| {
        machine.touch(0);
        if i % 10 == 0 {
            machine.touch(16 * PAGES as u64);
        }
    });
    let (always, seldom) = (heat_in(&heats, 0..2), heat_in(&heats, 32..34));
    assert!(seldom > 0 && always > 20 * seldom, "{always} and {seldom}");
}

#[test]
fn untouched_memory_has_no_heat_and_no_look() {
    let mut sampler = sampler(1024);
    let heats = watch(&mut sampler, 60, |_, _| {});
    assert!(heats.is_empty() && !sampler.settled());
    assert_eq!(sampler.looks().count(), 0);
    assert_eq!(
        sampler.interval(),
        Nanos::from_millis(500),
        "nothing to see: look seldom"
    );
    sampler.awake();
    assert_eq!(sampler.interval(), Nanos::from_millis(100));
}

#[test]
fn looking_takes_a_small_part_of_the_time_however_slow_it_is() {
    for (took_us, interval_ms, looks) in [(100, 100, 64), (5_000, 160, 64), (40_000, 500, 21)] {
        let mut sampler = sampler(1024);
        watch(&mut sampler, 1, |_, _| {});
        for _ in 0..3 {
            sampler.charge(Nanos::from_micros(took_us));
            sampler.pass();
        }
        let every =
            |machine: &mut Machine, _| (0..512).for_each(|g| machine.touch(g * PAGES as u64));
        // Without a charge it would be forgotten at the next pass.
        let mut machine = Machine::default();
        for _ in 0..9 {
            every(&mut machine, 0);
            let orders = sampler.tick(Sight::Fresh, true, &mut Look::at(&mut machine));
            machine.obey(&orders);
            sampler.charge(Nanos::from_micros(took_us));
        }
        assert_eq!(sampler.looks().count(), looks, "{took_us} us");
        sampler.pass();
        assert_eq!(
            sampler.interval(),
            Nanos::from_millis(interval_ms),
            "{took_us} us"
        );
    }
}

#[test]
fn a_stale_interval_is_not_a_cold_one() {
    let mut sampler = sampler(8);
    let mut machine = Machine::default();
    for i in 0..80 {
        let stale = i % 2 == 1;
        // What is touched through cached translations leaves no bit.
        if !stale {
            machine.touch(0);
        }
        let sight = if stale { Sight::Stale } else { Sight::Fresh };
        let orders = sampler.tick(sight, true, &mut Look::at(&mut machine));
        machine.obey(&orders);
    }
    let first = &sampler.regions()[0];
    assert_eq!(first.hits, first.observed, "{first:?}");
    assert!(first.observed >= 20);
}

#[test]
fn pages_of_a_look_are_known_one_by_one() {
    let mut sampler = sampler(16);
    let hot = [3u64, 77, 500];
    watch(&mut sampler, 40, |machine, i| {
        hot.iter().for_each(|p| machine.touch(2 * PAGES as u64 + p));
        if i % 10 == 0 {
            machine.touch(2 * PAGES as u64 + 9);
        }
    });
    let pages = sampler.pages(Gpa(2 * GRANULE)).expect("it was looked at");
    assert!(pages.observed() >= 20);
    for (page, hits) in pages.hits().iter().enumerate() {
        let expected = match page as u64 {
            p if hot.contains(&p) => pages.observed(),
            9 => 2,
            _ => 0,
        };
        assert_eq!(*hits, expected, "page {page}");
    }
    assert_eq!(sampler.pages(Gpa(3 * GRANULE)), None);
    assert_eq!(sampler.pages(Gpa(1 << 40)), None);
}

#[test]
fn ending_looks_joins_what_was_split() {
    let mut sampler = sampler(16);
    let mut machine = Machine::default();
    for i in 1..22 {
        machine.touch(0);
        let orders = sampler.tick(Sight::Fresh, i < 20, &mut Look::at(&mut machine));
        machine.obey(&orders);
        assert_eq!(
            machine.split.is_empty(),
            !(10..20).contains(&i),
            "interval {i}"
        );
    }
    assert_eq!(sampler.looks().count(), 0);
}

#[test]
fn a_look_that_a_move_ends_is_forgotten_and_begun_anew() {
    let (mut sampler, mut machine) = (sampler(8), Machine::default());
    let mut begun = 0;
    for _ in 0..1000 {
        (0..PAGES as u64).for_each(|page| machine.touch(page));
        // The granule is put together again at its new place before the look is through; `obey` refuses to join it once
        // more, or to take it apart twice.
        let orders = sampler.tick(Sight::Fresh, true, &mut Look::at(&mut machine));
        machine.obey(&orders);
        begun += orders.split.len();
        assert!(sampler.pages(Gpa(0)).is_none(), "it was never seen");
        machine.split.clear();
    }
    assert!(begun > 10, "only {begun} looks");
    // And when it rests, it is looked at.
    watch(&mut sampler, 200, |machine, _| machine.touch(3));
    let hits = sampler.pages(Gpa(0)).expect("it was looked at").hits();
    assert!(hits[3] > 10 && hits[4] == 0, "{hits:?}");
}

#[test]
fn holes_in_memory_are_passed_over() {
    let runs = [0..0x9f000, 0x10_0000..0x1000_0000, (4 << 30)..(5 << 30)];
    let mut sampler = Sampler::new(runs, 1, Tunables::default());
    assert_eq!(sampler.regions().len(), 128 + 512);
    let page = (4u64 << 30) / 4096 + 700;
    let heats = watch(&mut sampler, 40, |machine, _| machine.touch(page));
    assert_eq!(
        heats.iter().map(|h| h.gpa).collect::<Vec<_>>(),
        [Gpa((4 << 30) + GRANULE)]
    );
    assert!(sampler.pages(Gpa((4 << 30) + GRANULE)).is_some());
}

#[test]
fn a_large_machine_is_watched_at_the_same_cost() {
    let mut sampler = sampler(256 << 10);
    let mut random = dice(11);
    // 16 GiB of 256 that are touched all the time, wholly.
    let (first, hot) = (100u64 << 9, 16u64 << 9);
    let mut asked = 0;
    struct Count<'a>(u64, std::ops::Range<u64>, &'a mut dyn FnMut(u64) -> u64);
    impl Eyes for Count<'_> {
        fn granule(&mut self, at: Gpa) -> Seen {
            self.0 += 1;
            match self.1.contains(&(at.0 / GRANULE)) {
                true => Seen::TOUCHED,
                false => Seen::UNTOUCHED,
            }
        }
        fn pages(&mut self, _: Gpa, touched: &mut Touched) -> Mapped {
            let pages = (0..PAGES as u16).filter(|_| (self.2)(2) == 0).collect();
            touched.add(Seen::TOUCHED, pages);
            Mapped::Pages
        }
    }
    let mut last = Vec::new();
    for i in 0..600 {
        let mut eyes = Count(0, first..first + hot, &mut random);
        sampler.tick(Sight::Fresh, true, &mut eyes);
        asked = asked.max(eyes.0);
        if i % 10 == 9 {
            last = sampler.pass();
        }
    }
    assert!(asked <= 2048, "{asked} granules in one interval");
    let all: u64 = last.iter().map(|h| h.heat).sum();
    let inside = heat_in(&last, first * 2..(first + hot) * 2);
    assert!(inside * 100 > all * 98, "{inside} of {all}");
    // Per granule: as if all were looked at.
    let one = footprint::rate::at_least(20, 20, Nanos::from_millis(100));
    assert!(all > hot * one && sampler.settled());
    assert!(
        sampler.metadata_bytes() < 4 << 20,
        "{} bytes",
        sampler.metadata_bytes()
    );
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(24) })]
    #[test]
    fn any_touches_are_survived_and_orders_are_in_pairs(
        seed: u64, mib in 1u64..3000, most in 1u32..2000, lenses in 0usize..20, per_interval in 0u64..60,
    ) {
        let mut tunables = Tunables { lenses, ..Tunables::default() };
        tunables.regions.most = most;
        let mut sampler = Sampler::new(std::iter::once(0..mib << 20), seed, tunables);
        let mut random = dice(seed);
        let mut machine = Machine::default();
        for i in 0..150 {
            for _ in 0..per_interval {
                let page = random(mib << 8);
                machine.touch(page);
            }
            let sight = if random(5) == 0 { Sight::Stale } else { Sight::Fresh };
            let look = random(20) != 0;
            let orders = sampler.tick(sight, look, &mut Look::at(&mut machine));
            machine.obey(&orders);
            prop_assert!(machine.split.len() <= lenses);
            prop_assert_eq!(machine.split.len(), sampler.looks().count());
            if i % 7 == 0 {
                for heat in sampler.pass() {
                    prop_assert!(heat.gpa.0 < (mib << 20).next_multiple_of(GRANULE));
                }
            }
        }
    }
}
