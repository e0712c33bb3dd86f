//! vCPUs of one VM that work on memory of their own end beside it.

use numasim::compare;
use numasim::engine::Engine;
use numasim::perigee::Options;
use numasim::scenario::Scenario;
use numasim::world::World;

/// Two nodes with so many cores each, and a VM with two vCPUs of which each has its own memory on a node of its own: the
/// first one's is on the first of these nodes. Both begin on node 0, if that has a core for each.
fn two(cores: usize, nodes: [usize; 2]) -> Scenario {
    let text = format!(
        "seconds = 6\nwarm_up = 6\n[machine]\nshape = \"two-socket\"\ncores = {cores}\n[[vm]]\nkind = \"memory\"\nvcpus = 2\nmemory = 128\nmemory_nodes = {nodes:?}\n"
    );
    Scenario::parse("test", &text).expect("a right scenario")
}

/// Part of accesses that were local once it had time to settle, moves of vCPUs a minute since then, and the world at the end.
fn run(s: &Scenario, policy: &str) -> (f64, f64, World) {
    let mut policy = compare::policy(policy, Options::default()).expect("a known policy");
    let world = World::new(s.machine.clone(), &s.vms);
    let name = policy.name();
    let mut engine = Engine::new(world, policy.as_mut(), s.seed);
    engine.run(s.warm_up);
    engine.measure.begin(&engine.world);
    engine.run(s.warm_up + s.time);
    let outcome = engine.measure.outcome(name, &engine.world);
    (outcome.local, outcome.moves_per_minute, engine.world)
}

#[test]
fn each_on_the_others_node_change_places() {
    // A fifth of their accesses goes to pages that both use, which lie on both nodes: nine tenths is all there is.
    let swapped = two(1, [1, 0]);
    let straight = two(1, [0, 1]);
    let off = |s: &Scenario| run(s, "perigee-off").0;
    let (s, other) = match off(&swapped) < off(&straight) {
        true => (swapped, straight),
        false => (straight, swapped),
    };
    assert!(off(&s) < 0.2, "nothing moves, and each is far: {}", off(&s));
    let (local, moves, world) = run(&s, "perigee");
    assert!(local > 0.85, "{local}");
    assert!(moves < 1.0, "they change places once: {moves} a minute");
    assert!(
        world.vms[0]
            .pages
            .iter()
            .zip(&s.vms[0].pages)
            .all(|(p, n)| p.node == *n),
        "and no page moves"
    );
    let (local, moves, _) = run(&other, "perigee");
    assert!(
        local > 0.85 && moves < 1.0,
        "who is near stays: {local}, {moves}"
    );
}

#[test]
fn one_goes_where_there_is_room() {
    let s = two(2, [1, 0]);
    assert!(run(&s, "perigee-off").0 < 0.7);
    let (local, moves, _) = run(&s, "perigee");
    assert!(local > 0.85, "{local}");
    assert!(moves < 1.0, "{moves} a minute");
}

#[test]
fn who_shares_memory_stays_together() {
    let mut s = two(2, [1, 0]);
    s.vms[0].shared = 0.9;
    let (_, moves, world) = run(&s, "perigee");
    assert!(moves < 1.0, "{moves} a minute");
    let on: Vec<_> = world
        .vcpus
        .iter()
        .map(|v| v.last.map(|cpu| world.node_of(cpu)))
        .collect();
    assert_eq!(on[0], on[1], "they work on the same pages");
}
