//! The trials, one file a subject.

pub mod adapts;
pub mod bad_input;
pub mod boot;
pub mod controls;
pub mod converge;
mod counted;
pub mod counters;
pub mod crowded;
pub mod ends;
pub mod exact;
pub mod foreign;
pub mod groups;
pub mod guests;
pub mod hostile;
pub mod load;
pub mod locality;
pub mod looking;
pub mod moves;
mod observed;
pub mod operator;
mod random;
pub mod restarts;
pub mod roots;
pub mod sabotage;
pub mod schedule;
pub mod selftests;
pub mod simulated;
pub mod spins;
pub mod starved;
pub mod topology;
pub mod truth;
pub mod vmcs;
mod wakes;

use crate::Scenario;

/// Input goes to the first guest, a key for it, and input goes to Perigee again.
pub(crate) const GO: &str = "\u{1}1g\u{1}0";

/// Every trial, in the order in which they run.
pub(crate) fn all(seed: u64) -> Vec<Scenario> {
    [
        boot::scenarios(),
        ends::scenarios(),
        guests::scenarios(),
        foreign::scenarios(),
        operator::scenarios(),
        locality::scenarios(),
        converge::scenarios(),
        groups::scenarios(),
        moves::scenarios(seed),
        roots::scenarios(),
        adapts::scenarios(),
        schedule::scenarios(),
        simulated::scenarios(seed),
        spins::scenarios(),
        wakes::scenarios(),
        sabotage::scenarios(),
        counters::scenarios(),
        load::scenarios(),
        looking::scenarios(seed),
        starved::scenarios(),
        vmcs::scenarios(seed),
        controls::scenarios(),
        bad_input::scenarios(),
        restarts::scenarios(),
        crowded::scenarios(),
        selftests::scenarios(),
        hostile::scenarios(seed),
        topology::scenarios(seed),
        exact::scenarios(seed),
        truth::scenarios(seed),
    ]
    .into_iter()
    .flatten()
    .collect()
}
