//! What the kernel hands in: one pass over the accessed and dirty bits of one machine.

use crate::operands::Operands;
use units::{Gpa, Nanos, NodeId, PageSize};

/// One present leaf of a machine's nested tables, as a pass found it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeafSample {
    /// First guest address that the leaf maps, aligned to its size.
    pub gpa: Gpa,
    /// Size of the leaf.
    pub size: PageSize,
    /// Node that holds the memory.
    pub node: NodeId,
    /// Who touched it since the last pass. With [`Attribution::ByRunTime`] any bit means touched;
    /// with [`Attribution::ByRoot`] bit `k` means that node `k` touched it.
    pub accessed: u64,
    /// How often pages of it are touched, in units of [`TOUCH`](crate::TOUCH): what it weighs.
    pub heat: u64,
    /// How many observations found it touched since the last pass: what the weight rests on.
    pub hits: u32,
    /// Whether somebody wrote to it since the last pass. Kept for write ratios, never for heat.
    pub dirty: bool,
}

impl LeafSample {
    /// A leaf seen once through the machine's only nested root: if it was touched, it weighs one touch.
    pub const fn shared(
        gpa: Gpa,
        size: PageSize,
        node: NodeId,
        accessed: bool,
        dirty: bool,
    ) -> Self {
        Self {
            gpa,
            size,
            node,
            accessed: accessed as u64,
            heat: if accessed { crate::TOUCH } else { 0 },
            hits: accessed as u32,
            dirty,
        }
    }

    /// A leaf whose rate a [`Sampler`](crate::Sampler) found, seen through the machine's only nested root.
    pub const fn sampled(gpa: Gpa, size: PageSize, node: NodeId, heat: u64, hits: u32) -> Self {
        Self {
            gpa,
            size,
            node,
            accessed: 1,
            heat,
            hits,
            dirty: false,
        }
    }
}

/// How touches find the node that made them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attribution {
    /// One nested root: in proportion to where the machine's vCPUs ran.
    ByRunTime,
    /// One nested root per node: the root's own bit tells.
    ByRoot,
}

/// Which leaves a pass hands in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coverage<'a> {
    /// Every present leaf. What lies on each node is counted, moved pages are noticed.
    EveryLeaf,
    /// Those with an accessed or dirty bit, as a harvest that prunes untouched subtrees finds them.
    TouchedLeaves {
        /// Bytes of the machine on each node, by node number.
        resident: &'a [u64],
    },
}

/// The time between two passes.
#[derive(Clone, Copy, Debug)]
pub struct Window<'a> {
    /// Time since the last pass cleared the bits.
    pub length: Nanos,
    /// For how long the machine's vCPUs ran on each node in it, by node number.
    pub run_time: &'a [Nanos],
    /// How touches find their node.
    pub attribution: Attribution,
    /// Which leaves the pass hands in.
    pub coverage: Coverage<'a>,
    /// What looks at stopped guests found, where there were any.
    pub operands: Option<&'a Operands>,
}

impl Window<'_> {
    /// Run time over all nodes.
    pub fn total_run(&self) -> Nanos {
        self.run_time.iter().fold(Nanos::ZERO, |sum, t| sum + *t)
    }
}
