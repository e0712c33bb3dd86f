//! All policies on the same scenario.

use crate::baseline::blind::Blind;
use crate::baseline::credit::Credit;
use crate::baseline::credit2::Credit2;
use crate::baseline::linux::Linux;
use crate::engine::Engine;
use crate::measure::Outcome;
use crate::perigee::{Knows, Options, Perigee};
use crate::policy::Policy;
use crate::scenario::Scenario;
use crate::world::World;

/// Names of all policies, Perigee first.
pub const POLICIES: [&str; 7] = [
    "perigee",
    "perigee-off",
    "perigee-flat",
    "no-numa",
    "credit",
    "credit2-soft",
    "linux-numa",
];

/// A fresh policy by name.
pub fn policy(name: &str, options: Options) -> Option<Box<dyn Policy>> {
    let perigee = |knows| Box::new(Perigee::new(Options { knows, ..options }));
    Some(match name {
        "perigee" => perigee(options.knows),
        "perigee-off" => perigee(Knows::Places),
        "perigee-flat" => perigee(Knows::Nothing),
        "no-numa" => Box::new(Blind::default()),
        "credit" => Box::new(Credit::default()),
        "credit2-soft" => Box::new(Credit2::default()),
        "linux-numa" => Box::new(Linux::default()),
        _ => return None,
    })
}

/// One policy on a scenario.
pub fn run(s: &Scenario, policy: &mut dyn Policy) -> Outcome {
    let world = World::new(s.machine.clone(), &s.vms);
    let name = policy.name();
    let mut engine = Engine::new(world, policy, s.seed);
    engine.run(s.warm_up);
    engine.measure.begin(&engine.world);
    engine.run(s.warm_up + s.time);
    engine.measure.outcome(name, &engine.world)
}

/// All policies on a scenario.
pub fn all(s: &Scenario, options: Options) -> Vec<Outcome> {
    those(s, &POLICIES, options)
}

/// Those of these names, in their order.
pub fn those(s: &Scenario, names: &[&str], options: Options) -> Vec<Outcome> {
    names
        .iter()
        .filter_map(|name| policy(name, options))
        .map(|mut p| run(s, p.as_mut()))
        .collect()
}
