//! vCPUs that work on the same memory are found together, and others apart.

use footprint::groups::{AGREE, ENOUGH};
use footprint::{Groups, Latencies};
use layouts::Random;
use proptest::prelude::*;
use units::{Gpa, Nanos, NodeId, PageSize, Score};

const GRANULE: u64 = 2 << 20;
/// As long as the kernel's passes.
const PASS: Nanos = Nanos::from_secs(1);

/// Granules that a vCPU touches: its own alike, and in so many of a thousand touches those from 0 on that all share.
#[derive(Clone, Copy, Debug)]
struct Works {
    first: u64,
    granules: u64,
    shared: u64,
}

impl Works {
    const fn on(first: u64, granules: u64) -> Self {
        Self {
            first,
            granules,
            shared: 0,
        }
    }

    fn next(self, dice: &mut Random) -> Gpa {
        let granule = if dice.below(1000) < self.shared {
            dice.below(8)
        } else {
            self.first + dice.below(self.granules)
        };
        Gpa(granule * GRANULE + dice.below(512) * 4096)
    }
}

/// Granule 100 and up is on node 1.
fn node_of(gpa: Gpa) -> NodeId {
    NodeId(u16::from(gpa.0 / GRANULE >= 100))
}

/// Some passes with so many looks at each vCPU; vCPU `i` runs on node `i % 2`.
fn watch(groups: &mut Groups, works: &[Works], passes: u32, looks: u64, dice: &mut Random) {
    for _ in 0..passes {
        for (vcpu, works) in (0u16..).zip(works) {
            for _ in 0..looks {
                let gpa = works.next(dice);
                groups.look(vcpu, NodeId(vcpu % 2), &[(gpa, node_of(gpa), 256)]);
            }
        }
        groups.pass(PASS);
    }
}

fn seen(works: &[Works], seed: u64) -> Groups {
    let mut groups = Groups::new(2);
    watch(&mut groups, works, 8, 200, &mut Random::new(seed | 1, 0));
    groups
}

fn members(groups: &Groups) -> Vec<Vec<u16>> {
    let groups = groups.groups().iter();
    groups.map(|g| g.vcpus.clone()).collect()
}

/// Two nodes, far from one another.
fn far() -> Latencies {
    Latencies::from_fn(2, |k, n| if k == n { 80 } else { 180 })
}

#[test]
fn each_groups_matrix_says_where_its_memory_is_and_who_touches_it() {
    let groups = seen(&[Works::on(100, 10), Works::on(8, 10)], 3);
    assert_eq!(members(&groups), [vec![0], vec![1]]);
    assert_eq!(groups.proximity(0, &far()), [Score::ZERO, Score::ONE]);
    assert_eq!(groups.proximity(1, &far()), [Score::ONE, Score::ZERO]);
    let cells: Vec<Vec<Vec<bool>>> = (0..2)
        .map(|g| groups.matrix(g).rows())
        .map(|rows| {
            rows.iter()
                .map(|r| r.iter().map(|c| *c > 0).collect())
                .collect()
        })
        .collect();
    assert_eq!(cells[0], [[false, true], [false, false]]);
    assert_eq!(cells[1], [[false, false], [true, false]]);
    assert!(groups.confidence(0).0 > 950, "{}", groups.confidence(0));
}

#[test]
fn little_that_is_shared_leaves_them_apart_and_much_joins_them() {
    let works = |shared| {
        let own = |first| Works {
            first,
            granules: 10,
            shared,
        };
        [own(10), own(30), own(50)]
    };
    assert_eq!(members(&seen(&works(200), 5)).len(), 3);
    assert!(members(&seen(&works(500), 5)).is_empty());
}

#[test]
fn similar_to_one_of_a_group_is_similar_to_the_group() {
    // The second shares half with each of the others, which share nothing.
    let works = [
        Works::on(0, 10),
        Works::on(5, 10),
        Works::on(10, 10),
        Works::on(100, 10),
    ];
    assert_eq!(members(&seen(&works, 9)), [vec![0, 1, 2], vec![3]]);
}

#[test]
fn groups_change_only_after_some_comparisons_agree() {
    let (mut groups, mut dice) = (Groups::new(2), Random::new(7, 0));
    let works = [Works::on(100, 4), Works::on(8, 4)];
    for pass in 1..=u32::from(AGREE) {
        assert!(groups.groups().is_empty(), "before pass {pass}");
        watch(&mut groups, &works, 1, 2 * ENOUGH, &mut dice);
    }
    assert_eq!(groups.groups().len(), 2);
}

#[test]
fn those_apart_join_at_a_third_and_part_again_below_a_quarter() {
    let own = |first, shared| Works {
        first,
        granules: 10,
        shared,
    };
    let (mut groups, mut dice) = (Groups::new(2), Random::new(11, 0));
    let mut now = |shared: u64| {
        let works = [own(10, shared), own(30, shared)];
        watch(&mut groups, &works, 40, 400, &mut dice);
        groups.groups().len()
    };
    assert_eq!(now(290), 2, "less than a third");
    assert_eq!(now(400), 0);
    assert_eq!(now(290), 0, "still more than a quarter");
    assert_eq!(now(200), 2);
}

#[test]
fn who_is_not_seen_any_more_loses_its_group() {
    let (mut groups, mut dice) = (Groups::new(2), Random::new(13, 0));
    let works = [Works::on(100, 4), Works::on(8, 4), Works::on(50, 4)];
    watch(&mut groups, &works, 8, 200, &mut dice);
    assert_eq!(groups.groups().len(), 3);
    watch(&mut groups, &works[..2], 60, 200, &mut dice);
    assert_eq!(members(&groups), [vec![0], vec![1]]);
    assert_eq!(groups.of(2), None);
}

#[test]
fn a_page_that_moves_takes_its_weight_along() {
    let mut groups = seen(&[Works::on(100, 10), Works::on(8, 10)], 17);
    for granule in 100..110 {
        let gpa = Gpa(granule * GRANULE);
        groups.relocated(gpa, PageSize::Size2M, NodeId(1), NodeId(0));
    }
    let share = groups.matrix(0).by_memory();
    assert!(share[1] * 50 < share[0], "{share:?}");
    assert_eq!(
        groups.proximity(1, &far())[0],
        Score::ONE,
        "the other's stays"
    );
}

#[test]
fn few_looks_at_much_memory_make_nobody_a_stranger() {
    for looks in (20..200).step_by(10) {
        let (mut groups, mut dice) = (Groups::new(2), Random::new(looks, 0));
        watch(&mut groups, &[Works::on(0, 600); 2], 8, looks, &mut dice);
        assert!(groups.groups().is_empty(), "{looks} a pass");
    }
}

#[test]
fn few_looks_at_a_granule_say_little_of_whose_it_is() {
    let mut groups = seen(&[Works::on(100, 10), Works::on(8, 10)], 19);
    groups.look(0, NodeId(0), &[(Gpa(50 * GRANULE), NodeId(0), 1)]);
    let touchers = groups.touchers();
    let share = |granule: u64| {
        let weights = &touchers[&Gpa(granule * GRANULE)];
        weights[0] * 100 / weights.iter().sum::<u64>()
    };
    assert!(share(100) > 90 && share(8) < 10);
    assert!((50..65).contains(&share(50)), "one look: {}", share(50));
}

#[test]
fn opinions_are_told_only_where_groups_want_different_places() {
    let mut apart = seen(&[Works::on(100, 10), Works::on(8, 10)], 19);
    let told = apart.opinions(&[Score(1 << 15), Score(1 << 15)], &far());
    assert_eq!(
        told,
        [
            (0, vec![Score::ZERO, Score::ONE]),
            (1, vec![Score::ONE, Score::ZERO])
        ]
    );
    let again = apart.opinions(&[Score(1 << 15), Score(1 << 15)], &far());
    assert!(again.is_empty(), "nothing has changed: {again:?}");
    assert_eq!(apart.retract(), [(0, vec![]), (1, vec![])]);
    assert!(apart.retract().is_empty());
    let mut alike = seen(&[Works::on(100, 10), Works::on(120, 10)], 19);
    assert_eq!(alike.groups().len(), 2);
    let mut told = |whole: [Score; 2]| alike.opinions(&whole, &far());
    assert!(told([Score::ZERO, Score::ONE]).is_empty());
    let other = told([Score::ONE, Score::ZERO]);
    assert!(other.is_empty(), "what both want the planner sees");
}

#[test]
fn notes_stay_within_their_share_of_memory() {
    // Sixteen vCPUs that all touch all of 8 GiB.
    let works = [Works::on(0, 4096); 16];
    let groups = seen(&works, 23);
    let bytes = groups.metadata_bytes() as u64;
    assert!(bytes > 0 && bytes <= (8 << 30) / 500, "{bytes}");
    assert!(
        bytes <= 16 * 1100 * 32,
        "about a thousand granules each: {bytes}"
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn those_with_the_same_memory_are_one(
        seed in 1u64.., granules in 1u64..150, vcpus in 1usize..6, looks in 1u64..300,
    ) {
        let (mut groups, mut dice) = (Groups::new(2), Random::new(seed, 0));
        watch(&mut groups, &vec![Works::on(0, granules); vcpus], 12, looks, &mut dice);
        prop_assert!(groups.groups().is_empty(), "{:?}", members(&groups));
    }

    #[test]
    fn those_with_other_memory_are_apart(
        seed in 1u64.., granules in 1u64..40, vcpus in 2u64..6,
    ) {
        let works: Vec<Works> = (0..vcpus).map(|i| Works::on(i * granules, granules)).collect();
        let groups = seen(&works, seed);
        prop_assert_eq!(groups.groups().len() as u64, vcpus);
    }

    #[test]
    fn it_does_not_matter_in_which_order_vcpus_are_seen(seed in 1u64.., granules in 1u64..40) {
        let works = [Works::on(0, granules), Works::on(100, granules), Works::on(0, granules)];
        let mut dice = [Random::new(seed, 0), Random::new(seed ^ 77, 0), Random::new(seed ^ 777, 0)];
        let (mut forth, mut mixed) = (Groups::new(2), Groups::new(2));
        for _ in 0..6 {
            let looks: Vec<Vec<Gpa>> = works
                .iter()
                .zip(&mut dice)
                .map(|(w, dice)| (0..150).map(|_| w.next(dice)).collect())
                .collect();
            for (vcpu, looks) in (0u16..).zip(&looks) {
                looks.iter().for_each(|g| forth.look(vcpu, NodeId(0), &[(*g, node_of(*g), 9)]));
            }
            for i in 0..150 {
                for (vcpu, looks) in (0u16..3).zip(&looks).rev() {
                    mixed.look(vcpu, NodeId(0), &[(looks[i], node_of(looks[i]), 9)]);
                }
            }
            forth.pass(PASS);
            mixed.pass(PASS);
        }
        prop_assert_eq!(forth.groups(), mixed.groups());
        for group in 0..forth.groups().len() {
            prop_assert_eq!(forth.matrix(group), mixed.matrix(group));
        }
    }

    #[test]
    fn no_input_panics_and_no_vcpu_is_in_two_groups(
        nodes in 0usize..4,
        steps in proptest::collection::vec(
            (any::<u16>(), any::<u16>(), proptest::collection::vec((any::<u64>(), 0u16..5, any::<u32>()), 0..4), any::<u64>()),
            0..60,
        ),
    ) {
        let mut groups = Groups::new(nodes);
        for (vcpu, accessor, pages, time) in steps {
            for _ in 0..80 {
                let pages = pages.iter().map(|(gpa, node, weight)| (Gpa(*gpa), NodeId(*node), *weight)).collect::<Vec<_>>();
                groups.look(vcpu % 5, NodeId(accessor % 5), &pages);
            }
            let size = [PageSize::Size4K, PageSize::Size2M, PageSize::Size1G][(time % 3) as usize];
            groups.relocated(Gpa(time), size, NodeId(accessor), NodeId(vcpu));
            groups.pass(Nanos(time));
            let all: Vec<u16> = members(&groups).concat();
            let mut once = all.clone();
            once.sort_unstable();
            once.dedup();
            prop_assert_eq!(once.len(), all.len());
            prop_assert!(groups.groups().len() != 1 && groups.groups().iter().all(|g| !g.vcpus.is_empty()));
            prop_assert!(all.iter().all(|v| groups.of(*v).is_some()));
            let told = groups.opinions(&[], &Latencies::from_fn(nodes, |k, n| u32::from(k != n)));
            prop_assert!(told.iter().all(|(v, scores)| scores.is_empty() || all.contains(v) && scores.len() == nodes));
            prop_assert!(groups.touchers().values().all(|w| w.len() == groups.groups().len()));
        }
    }
}
