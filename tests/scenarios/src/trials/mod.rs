//! The trials, one file a subject.

pub mod boot;
pub mod ends;

use crate::Scenario;

/// Every trial, in the order in which they run.
pub(crate) fn all(_seed: u64) -> Vec<Scenario> {
    [boot::scenarios(), ends::scenarios()]
        .into_iter()
        .flatten()
        .collect()
}
