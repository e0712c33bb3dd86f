//! Memory of the machine: which frames exist, whose they are, and the kernel's heap.
//!
//! The room has two lives. From its first instruction the kernel needs frames for page tables and
//! for the heap, long before it knows about nodes: [`early`] cuts them from memory that firmware never
//! used. Once topology is known, [`init_nodes`] builds the allocators of `memory::buddy`, one for
//! each node, with their metadata on their own node. From then on [`alloc`] gives a frame of the
//! wanted node or, counted, of the nearest one that has any.
//!
//! What may be handed out is decided in `memory::inventory`, on the host under test: usable memory
//! from the start; what the loader, modules and ACPI tables occupy after [`release_boot_memory`];
//! only memory that the MTRRs make write-back; nothing below 1 MiB, where processors start. Firmware's
//! buffers are handed out only after [`pci`] has stopped every device that could still write there.
//!
//! # Locks
//! Two, in this order: the heap's, then that of the frames. Nothing that runs under the frames' lock
//! allocates from the heap, and nothing under either waits for another CPU. Interrupt handlers take
//! neither. Zeroing happens outside of both.
//!
//! Read [`boot_memory`] for what the loader handed over, then [`frames`], then [`heap`].

mod boot_memory;
mod direct_map;
mod early;
mod frames;
mod heap;
mod mtrr;
mod pci;
mod streaming;

pub use boot_memory::{boot_info, init_early, memory_map, modules};
pub use direct_map::{device, direct, hpa_of};
pub use frames::{
    alloc, allocate_on, claim_all, copy_frames, draw, free, free_allocation, free_bytes,
    free_bytes_in, free_displaced, init_nodes, into_pages, join_block, low_frame, node_of, ram,
    release_boot_memory, return_claim, split_block, stats,
};
