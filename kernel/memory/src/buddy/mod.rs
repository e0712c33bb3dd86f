//! Frames of each node, in power-of-two blocks.
//!
//! [`Frames`] is the machine: a list of [`NodeMemory`], one for each NUMA node. A node owns
//! [`Zone`]s, contiguous spans of physical memory, and a zone is a binary buddy allocator with one
//! 8-byte [`FrameMeta`] for each 4 KiB frame (0.2 % of memory), which the caller provides: the
//! kernel cuts it out of the zone itself, so that each node's bookkeeping is local to it.
//!
//! A zone starts with all of its frames absent. [`Frames::release`] turns absent frames into free ones, a
//! range at a time; memory that boot still uses comes later, by the same call.
//!
//! ```
//! use memory::buddy::{FrameMeta, Frames};
//! use units::{Frame, NodeId, PageSize};
//!
//! let (near, far) = (NodeId(0), NodeId(1));
//! let mut frames = Frames::new();
//! for (node, base) in [(near, 0), (far, 0x1000)] {
//!     let metadata = vec![FrameMeta::default(); 0x1000].leak();
//!     frames.add_zone(node, Frame(base), metadata)?;
//!     frames.release(Frame(base), 0x1000)?;
//! }
//! let page = frames.allocate(near, PageSize::Size2M, &[far])?;
//! assert_eq!((page.node(), page.fell_back()), (near, false));
//! frames.free(page.scrub(|_frame, _pages| { /* zero it through the direct map */ }))?;
//! assert_eq!(frames.counters(near).map(|c| c.free), Some(0x1000));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod claim;
mod error;
mod frames;
mod meta;
mod zone;

pub use claim::{Claim, Want};
pub use error::{FrameError, OutOfFrames};
pub use frames::{Allocation, Frames, NodeCounters, NodeMemory, Scrubbed};
pub use meta::{FrameMeta, FrameState, Order};
pub use zone::Zone;
