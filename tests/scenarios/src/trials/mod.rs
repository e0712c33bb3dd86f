//! The trials, one file a subject.

pub mod boot;
mod counted;
pub mod ends;
pub mod guests;
pub mod locality;
pub mod operator;
mod random;
pub mod sabotage;
pub mod starved;
pub mod topology;

use crate::Scenario;

/// Every trial, in the order in which they run.
pub(crate) fn all(seed: u64) -> Vec<Scenario> {
    [
        boot::scenarios(),
        ends::scenarios(),
        guests::scenarios(),
        operator::scenarios(),
        locality::scenarios(),
        sabotage::scenarios(),
        starved::scenarios(),
        topology::scenarios(seed),
    ]
    .into_iter()
    .flatten()
    .collect()
}
