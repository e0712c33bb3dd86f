//! Each baseline reproduces a behaviour that was published of its original, and a run repeats.

use numasim::compare;
use numasim::engine::Engine;
use numasim::measure::Outcome;
use numasim::perigee::Options;
use numasim::scenario::Scenario;
use numasim::world::World;

fn scenario(text: &str) -> Scenario {
    Scenario::parse("test", text).expect("a right scenario")
}

fn outcome(s: &Scenario, policy: &str) -> Outcome {
    let mut policy = compare::policy(policy, Options::default()).expect("a known policy");
    compare::run(s, policy.as_mut())
}

/// The world at the end of a run.
fn end(s: &Scenario, policy: &str) -> World {
    let mut policy = compare::policy(policy, Options::default()).expect("a known policy");
    let world = World::new(s.machine.clone(), &s.vms);
    let mut engine = Engine::new(world, policy.as_mut(), s.seed);
    engine.run(s.time);
    engine.world
}

const FOUR: &str = "seconds = 4\nwarm_up = 1\n[machine]\nshape = \"ring\"\nnodes = 4\ncores = 2\n";

#[test]
fn without_nodes_and_under_credit_most_accesses_are_remote() {
    // vProbe (2014): more than 80 % remote under Xen's credit; (n-1)/n = 75 % on four nodes by chance.
    let text = format!("{FOUR}[[vm]]\nkind = \"bursty\"\ncount = 14\nstart = 1\n");
    let s = scenario(&text);
    for policy in ["no-numa", "credit"] {
        let local = outcome(&s, policy).local;
        assert!((0.15..0.40).contains(&local), "{policy}: {local}");
    }
}

#[test]
fn credit_wakes_a_sleeper_at_once_and_makes_one_that_computes_wait() {
    // Ongaro, Cox and Rixner (2008): BOOST serves who mostly sleeps; who computes too loses it at the tick.
    let hogs = "seconds = 6\nwarm_up = 1\n[machine]\nshape = \"single\"\ncores = 2\n[[vm]]\nkind = \"cpu\"\ncount = 4\n";
    let sleeper = scenario(&format!("{hogs}[[vm]]\nkind = \"sleeper\"\n"));
    let mixed = scenario(&format!("{hogs}[[vm]]\nkind = \"bursty\"\nweight = 64\n"));
    let (sleeper, mixed) = (outcome(&sleeper, "credit"), outcome(&mixed, "credit"));
    assert!(sleeper.wake_p99_us < 100.0, "{}", sleeper.wake_p99_us);
    assert!(mixed.wake_p99_us > 10_000.0, "{}", mixed.wake_p99_us);
}

#[test]
fn credit2_keeps_soft_affinity_while_there_is_room_and_spills_rather_than_wait() {
    let two = "seconds = 3\nwarm_up = 1\n[machine]\nshape = \"two-socket\"\ncores = 2\n";
    let room = scenario(&format!(
        "{two}[[vm]]\nkind = \"memory\"\ncount = 2\nstart = 1\n"
    ));
    assert!(
        outcome(&room, "credit2-soft").local > 0.99,
        "both stay at home"
    );
    let full = scenario(&format!(
        "{two}[[vm]]\nkind = \"memory\"\ncount = 4\nstart = 1\n"
    ));
    let world = end(&full, "credit2-soft");
    let ran: u64 = world.vcpus.iter().map(|v| v.ran).sum();
    assert!(
        ran > 4 * full.time * 9 / 10,
        "all four CPUs are used: {ran}"
    );
}

#[test]
fn linux_brings_a_process_and_its_memory_together_and_leaves_what_one_touch_shows() {
    let text =
        format!("{FOUR}[[vm]]\nkind = \"memory\"\nvcpus = 2\nstart = 0\nmemory_nodes = [2]\n");
    let s = Scenario {
        time: 15_000_000_000,
        ..scenario(&text)
    };
    let world = end(&s, "linux-numa");
    let v = &world.vcpus[0];
    let home = v.last.map(|cpu| world.node_of(cpu)).expect("it ran");
    let there = world.vms[0].pages.iter().filter(|p| p.node == home).count();
    assert!(
        there * 10 > world.vms[0].pages.len() * 9,
        "{there} pages with the vCPU"
    );
}

#[test]
fn perigee_brings_them_together_as_well_and_at_least_as_near_as_blind_ones() {
    let text =
        format!("{FOUR}[[vm]]\nkind = \"memory\"\nvcpus = 2\nstart = 0\nmemory_nodes = [2]\n");
    let s = Scenario {
        warm_up: 4_000_000_000,
        ..scenario(&text)
    };
    assert!(outcome(&s, "perigee").local > 0.95);
    assert!(outcome(&s, "no-numa").local < 0.1);
}

#[test]
fn a_run_repeats_exactly() {
    let s = Scenario::random(5, 1.0);
    for policy in compare::POLICIES {
        let (a, b) = (outcome(&s, policy), outcome(&s, policy));
        assert_eq!(a.throughput, b.throughput, "{policy}");
        assert_eq!(a.moves_per_minute, b.moves_per_minute, "{policy}");
    }
}
