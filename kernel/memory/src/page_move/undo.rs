//! Giving up a move that has been begun: one way for every state that has left traces in the tables.

use super::{PageMove, State};
use crate::buddy::Allocation;
use crate::table::{RadixTable, TableFormat, TableMemory};
use units::Gpa;

/// A state that has left traces in the tables.
pub trait Begun: State {
    /// What they are.
    fn traces(&self) -> &impl GiveUp;
}

/// Traces that can be taken back.
pub trait GiveUp {
    /// Leaves the page as it was before the move.
    fn give_up<F, M>(&self, at: Gpa, replicas: &mut [RadixTable<F, M>])
    where
        F: TableFormat<Address = Gpa>,
        M: TableMemory;
}

impl<S: Begun> PageMove<S> {
    /// Ends the move: the page is as it was before, and the target is given back.
    pub fn abort<F, M>(self, replicas: &mut [RadixTable<F, M>]) -> Allocation
    where
        F: TableFormat<Address = Gpa>,
        M: TableMemory,
    {
        self.state.traces().give_up(self.at, replicas);
        self.target
    }
}
