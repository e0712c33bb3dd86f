//! What the kernel hands in: one pass over the accessed and dirty bits of one machine.

use crate::operands::Operands;
use crate::port::Seen;
use crate::tracker::HEAT_LIMIT;
use units::{Gpa, Nanos, NodeId, PageSize};

/// One present leaf of a machine's nested tables, as a pass found it; or what one set of nodes did to it: of a leaf that
/// nodes touch at different rates there is a sample for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeafSample {
    /// First guest address that the leaf maps, aligned to its size.
    pub gpa: Gpa,
    /// Size of the leaf.
    pub size: PageSize,
    /// Node that holds the memory.
    pub node: NodeId,
    /// Through whose root it was touched since the last pass: bit `k` is for that of node `k`; all bits where that is not
    /// known. With [`Attribution::ByRunTime`] any bit means touched, no more.
    pub accessed: u64,
    /// How often these nodes together touch pages of it, in units of [`TOUCH`](crate::TOUCH): what it weighs.
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
            accessed: if accessed { UNKNOWN } else { 0 },
            heat: if accessed { crate::TOUCH } else { 0 },
            hits: accessed as u32,
            dirty,
        }
    }

    /// A leaf whose rate a [`Sampler`](crate::Sampler) found; by whom it was touched is not known yet
    /// ([`Sampler::told_apart`](crate::Sampler::told_apart)).
    pub const fn sampled(gpa: Gpa, size: PageSize, node: NodeId, heat: u64, hits: u32) -> Self {
        Self {
            gpa,
            size,
            node,
            accessed: UNKNOWN,
            heat,
            hits,
            dirty: false,
        }
    }
}

impl LeafSample {
    /// What it weighs, if it was touched.
    pub(crate) fn touched_heat(&self) -> u64 {
        match self.accessed {
            0 => 0,
            _ => self.heat.min(HEAT_LIMIT),
        }
    }

    /// Takes in what others did to the same leaf.
    pub(crate) fn absorb(&mut self, more: &Self) -> bool {
        let touched = |s: &Self| if s.accessed == 0 { 0 } else { s.hits };
        self.heat = self.touched_heat().saturating_add(more.touched_heat());
        self.hits = touched(self).saturating_add(touched(more));
        self.accessed |= more.accessed;
        self.dirty |= more.dirty;
        true
    }
}

/// Touched, but through whose root is not known.
const UNKNOWN: u64 = Seen::TOUCHED.bits();

/// How touches find the node that made them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attribution<'a> {
    /// One nested root: in proportion to where the machine's vCPUs ran.
    ByRunTime,
    /// Several nested roots: what was touched through one is divided among the nodes that use it, in proportion to
    /// where the machine's vCPUs ran.
    ByRoot {
        /// By node number: the node whose root its CPUs use.
        root_of: &'a [NodeId],
    },
}

impl Attribution<'_> {
    /// The nodes that may have touched what a sample says in [`LeafSample::accessed`], of so many, by number.
    pub(crate) fn nodes(self, accessed: u64, nodes: usize) -> impl Iterator<Item = usize> {
        (0..nodes).filter(move |node| match self {
            Self::ByRunTime => true,
            Self::ByRoot { root_of } => root_of
                .get(*node)
                .is_some_and(|root| accessed & Seen::by(*root).bits() != 0),
        })
    }

    /// Whether a node's CPUs use its own root.
    pub(crate) fn owns_root(self, node: usize) -> bool {
        match self {
            Self::ByRunTime => true,
            Self::ByRoot { root_of } => root_of.get(node).is_some_and(|root| root.index() == node),
        }
    }
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
    pub attribution: Attribution<'a>,
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
