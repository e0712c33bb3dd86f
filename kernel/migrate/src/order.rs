//! What comes out of the planner, and what comes back.

use alloc::vec::Vec;
use telemetry::Hold;
use units::{Gpa, NodeId, PageSize, VmId};

/// One page to be moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageOrder {
    /// First guest address of the leaf.
    pub gpa: Gpa,
    /// Its size; 4 KiB or 2 MiB.
    pub size: PageSize,
    /// Node that holds it.
    pub from: NodeId,
    /// Node that shall hold it.
    pub to: NodeId,
}

/// What is to be done for a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Tell the scheduler that its vCPUs belong on this node.
    PreferNode(NodeId),
    /// Move these pages, in this order.
    MovePages(Vec<PageOrder>),
    /// Nothing.
    Stay(Hold),
}

/// One decision of the planner.
#[derive(Clone, Debug, PartialEq)]
pub struct Decision {
    /// For this machine.
    pub vm: VmId,
    /// What is to be done.
    pub action: Action,
    /// Where the scheduler shall hold its vCPUs from now on, if [`Decision::acts`]: the node they
    /// are ordered to, or the one they are on and get their pages to; None withdraws an older wish.
    pub preferred: Option<NodeId>,
    /// The decision with its numbers and its sentence: [`telemetry::Event::Plan`] or
    /// [`telemetry::Event::Held`].
    pub event: telemetry::Event,
}

impl Decision {
    /// Whether anything is to be done.
    pub fn acts(&self) -> bool {
        !matches!(self.action, Action::Stay(_))
    }
}

/// What became of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MoveOutcome {
    /// It is where it should be.
    Moved,
    /// It stayed; trying later may work (the guest wrote all the time, a pin, no frame).
    Failed,
    /// It is no such leaf any more.
    Gone,
}

/// The result of one [`PageOrder`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MoveResult {
    /// Whose page.
    pub vm: VmId,
    /// The order.
    pub order: PageOrder,
    /// What became of it.
    pub outcome: MoveOutcome,
}

/// What the planner is told between two plans.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A page move ended.
    Moved(MoveResult),
    /// A machine is gone; what is remembered of it is dropped.
    VmGone(VmId),
}
