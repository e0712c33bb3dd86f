//! Many blocks or none: what a placement or a batch of page moves takes before it starts.

use super::meta::{Link, NIL};
use super::{Allocation, FrameError, Frames, Order, OutOfFrames};
use alloc::vec::Vec;
use units::NodeId;

/// A wish: `count` blocks of `order` on exactly `node`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Want {
    /// The node; a claim never falls back.
    pub node: NodeId,
    /// Size of each block.
    pub order: Order,
    /// How many.
    pub count: u64,
}

/// Blocks that were taken off the free lists for one purpose and wait to be drawn.
///
/// They are chained through the frame metadata, so a claim of any size costs no heap. What is
/// not drawn goes back by [`Frames::return_claim`].
#[must_use = "the claimed frames are lost unless they are drawn or returned"]
#[derive(Debug)]
pub struct Claim {
    pub(super) want: Want,
    pub(super) remaining: u64,
    /// Zone and index of the first block of the chain.
    pub(super) first: (Link, Link),
}

impl Claim {
    /// Node of the blocks.
    pub fn node(&self) -> NodeId {
        self.want.node
    }
    /// Size of each block.
    pub fn order(&self) -> Order {
        self.want.order
    }
    /// Blocks left to draw.
    pub fn remaining(&self) -> u64 {
        self.remaining
    }
}

impl Frames<'_> {
    /// Takes `count` blocks of `order` from `node` itself, or nothing.
    ///
    /// # Errors
    /// [`OutOfFrames`] if the node cannot give all of them, or does not exist.
    pub fn claim(
        &mut self,
        node: NodeId,
        order: impl Into<Order>,
        count: u64,
    ) -> Result<Claim, OutOfFrames> {
        let want = Want {
            node,
            order: order.into(),
            count,
        };
        let mut claim = Claim {
            want,
            remaining: 0,
            first: (NIL, NIL),
        };
        let free = self.free_on(node);
        let refusal = OutOfFrames {
            node,
            order: want.order,
            count,
            free,
        };
        if count
            .checked_mul(want.order.frames())
            .is_none_or(|frames| frames > free)
        {
            self.count_failure(node);
            return Err(refusal);
        }
        while claim.remaining < count {
            let extended = self
                .node_mut(node)
                .and_then(|memory| memory.claim_block(want.order, claim.first));
            match extended {
                Some(first) => claim.first = first,
                None => {
                    self.return_claim(claim);
                    self.count_failure(node);
                    return Err(refusal);
                }
            }
            claim.remaining += 1;
        }
        Ok(claim)
    }

    /// Every one of `wants`, or nothing: memory for a VM on several nodes.
    ///
    /// # Errors
    /// [`OutOfFrames`] for the first wish that cannot be met; all others are returned.
    pub fn claim_all(&mut self, wants: &[Want]) -> Result<Vec<Claim>, OutOfFrames> {
        let mut claims = Vec::with_capacity(wants.len());
        for want in wants {
            match self.claim(want.node, want.order, want.count) {
                Ok(claim) => claims.push(claim),
                Err(refusal) => {
                    for claim in claims {
                        self.return_claim(claim);
                    }
                    return Err(refusal);
                }
            }
        }
        Ok(claims)
    }

    /// The next block of a claim, or `None` when all are drawn.
    ///
    /// # Errors
    /// [`FrameError`] if the claim came from another [`Frames`]; its rest is forfeited.
    pub fn draw(&mut self, claim: &mut Claim) -> Result<Option<Allocation>, FrameError> {
        if claim.remaining == 0 {
            return Ok(None);
        }
        let want = claim.want;
        let drawn = match self.node_mut(want.node) {
            Some(memory) => memory.unclaim_block(want.order, claim.first),
            None => Err(FrameError::Foreign {
                frame: units::Frame(u64::from(claim.first.1)),
            }),
        };
        match drawn {
            Ok((frame, next)) => {
                claim.remaining -= 1;
                claim.first = next;
                Ok(Some(Allocation::new(frame, want.order, want.node, false)))
            }
            Err(error) => {
                claim.remaining = 0;
                Err(error)
            }
        }
    }

    /// Puts the blocks that were not drawn back on the free lists.
    pub fn return_claim(&mut self, mut claim: Claim) {
        let (node, order) = (claim.want.node, claim.want.order);
        while claim.remaining > 0 {
            claim.remaining -= 1;
            let returned = self
                .node_mut(node)
                .and_then(|memory| memory.return_block(order, claim.first));
            match returned {
                Some(next) => claim.first = next,
                None => return,
            }
        }
    }
}
