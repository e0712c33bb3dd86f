//! Frames of each node.
//!
//! Until [`init_nodes`] frames come from [`super::early`]; afterwards from `memory::buddy::Frames`, one buddy
//! allocator for each stretch of each node's memory. What is given out reads as zeros (but to page
//! moves, which overwrite it) and what comes back is scrubbed before anybody else can get it; both happen
//! outside the lock.
#![expect(
    unsafe_code,
    reason = "frames are zeroed and copied, and their metadata lie, in the direct map"
)]

use crate::sabotage;
use alloc::vec::Vec;
use config::Sabotage;
use core::fmt;

use core::slice;
use core::sync::atomic::{AtomicU64, Ordering};

use handoff::MemoryKind;
use memory::buddy::{
    Allocation, Claim, FrameError, FrameMeta, Frames, NodeCounters, Order, OutOfFrames, Want,
};
use memory::inventory::{FrameRange, Inventory, NodeSpan, Ready, Source};
use memory::page_move::Displaced;
use spin::{Mutex, Once};
use topology::{Machine, PhysRange};
use units::{Frame, NodeId, PAGE_BYTES, PageSize};

use super::{direct, early, heap, memory_map, mtrr, pci, streaming};

/// Frames below 1 MiB, where starting processors execute their first instructions in real mode.
const LOW_FRAMES: FrameRange = FrameRange {
    start: Frame(0),
    end: Frame(256),
};
/// End of the low memory that is memory on every PC; above it are screens and firmware.
const CONVENTIONAL_END: u64 = 0xa_0000;

static FRAMES: Mutex<Option<Frames<'static>>> = Mutex::new(None);
/// For each node all nodes with memory, nearest first.
static NEAREST: Once<Vec<Vec<NodeId>>> = Once::new();
/// What boot occupies, in pieces of one zone each.
static LATER: Mutex<Vec<Source>> = Mutex::new(Vec::new());
/// Node of the boot processor: the heap grows there.
static BOOT_NODE: AtomicU64 = AtomicU64::new(0);
/// The next frame that [`low_frame`] may give.
static NEXT_LOW: AtomicU64 = AtomicU64::new(1);

/// One node's figures.
#[derive(Clone, Copy, Debug)]
pub struct NodeStats {
    /// The node.
    pub node: NodeId,
    /// Its allocator's counters, in frames of 4 KiB.
    pub counters: NodeCounters,
}

impl fmt::Display for NodeStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |frames: u64| (frames * PAGE_BYTES) >> 20;
        let c = &self.counters;
        write!(
            f,
            "{}: {} of {} MiB free, {} blocks given, {} spilled to other nodes, {} refused",
            self.node,
            mib(c.free),
            mib(c.total),
            c.allocations,
            c.fallbacks,
            c.failures
        )
    }
}

/// Builds the allocators of all nodes and stops the early one. Firmware's devices are stopped first.
///
/// Called once, on the boot processor, before the others are started. Needs the direct map over all
/// memory of the map.
pub fn init_nodes(machine: &Machine) {
    let stopped = pci::stop_bus_masters();
    log::info!(
        "PCI: {} functions, bus mastering switched off in {}{}",
        stopped.functions,
        stopped.stopped,
        if stopped.stubborn > 0 {
            ", and REFUSED by some: their firmware may still write to memory"
        } else {
            ""
        }
    );
    // Nothing may need to grow the heap between the end of the early frames and the first of the nodes'.
    heap::reserve();
    let sources = sources();
    let uncached = mtrr::not_write_back(&sources);
    let mut excluded = uncached.clone();
    excluded.extend([LOW_FRAMES, early::close()]);
    let inventory = Inventory::new(&sources, &excluded, &spans(machine));
    report(&inventory, &uncached);
    let (frames, later) = build(inventory);
    NEAREST.call_once(|| {
        machine
            .nodes
            .iter()
            .map(|node| machine.nearest(node.id))
            .collect()
    });
    if let Some(boot) = machine.cpus.first() {
        BOOT_NODE.store(u64::from(boot.node.0), Ordering::Relaxed);
    }
    *LATER.lock() = later;
    *FRAMES.lock() = Some(frames);
}

/// What is free, and what will be.
fn sources() -> Vec<Source> {
    let ready = |kind| match kind {
        MemoryKind::Usable => Some(Ready::Now),
        MemoryKind::Handoff | MemoryKind::Module | MemoryKind::AcpiReclaim => {
            Some(Ready::Later(kind as u32))
        }
        MemoryKind::Kernel
        | MemoryKind::AcpiNvs
        | MemoryKind::Runtime
        | MemoryKind::Mmio
        | MemoryKind::Reserved => None,
    };
    memory_map()
        .iter()
        .filter_map(|r| {
            Some(Source {
                range: FrameRange::inside(r.base, r.bytes),
                ready: ready(r.kind())?,
            })
        })
        .collect()
}

/// Which node the machine's memory belongs to.
fn spans(machine: &Machine) -> Vec<NodeSpan> {
    let span = |memory: &topology::MemoryRange| NodeSpan {
        range: FrameRange::around(memory.range.start.0, memory.range.bytes()),
        node: memory.node,
    };
    machine.memory.iter().map(span).collect()
}

/// All memory that is or will be free, for `topology::discover`.
pub fn ram() -> Vec<PhysRange> {
    let range = |source: &Source| PhysRange {
        start: source.range.start.address(),
        end: source.range.end.address(),
    };
    sources().iter().map(range).collect()
}

fn report(inventory: &Inventory, uncached: &[FrameRange]) {
    let show = |range: &FrameRange| (range.start.address(), range.end.address());
    for (start, end) in uncached.iter().map(show) {
        log::warn!(
            "memory {start}..{end} is not write-back by its MTRRs: it is not used. Update the firmware"
        );
    }
    for (start, end) in inventory.homeless.iter().map(show) {
        log::warn!(
            "memory {start}..{end} belongs to no node by SRAT: it counts to the nearest one"
        );
    }
    for (start, end) in inventory.lost.iter().map(show) {
        log::warn!("memory {start}..{end} is not used: there is no room for its metadata");
    }
}

/// Allocators over an inventory, and what is released to them later.
fn build(inventory: Inventory) -> (Frames<'static>, Vec<Source>) {
    let mut frames = Frames::new();
    let mut later = Vec::new();
    for zone in inventory.zones {
        // SAFETY: the inventory took these frames out of usable memory for this zone alone; they lie in the
        // direct map, are page-aligned, suffice for one entry a frame, and every bit pattern is a `FrameMeta`.
        let metadata = unsafe {
            let first = direct(zone.metadata.start.address()).cast::<FrameMeta>();
            slice::from_raw_parts_mut(first, zone.range.frames() as usize)
        };
        if let Err(error) = frames.add_zone(zone.node, zone.range.start, metadata) {
            log::error!("{error}");
            continue;
        }
        for piece in zone.pieces {
            match piece.ready {
                Ready::Later(_) => later.push(piece),
                Ready::Now => {
                    complain(frames.release(piece.range.start, piece.range.frames()));
                }
            }
        }
    }
    (frames, later)
}

fn complain<T>(result: Result<T, FrameError>) -> Option<T> {
    result
        .inspect_err(|error| log::error!("frame allocator: {error}"))
        .ok()
}

/// Hands what boot occupied to the nodes: the loader's tables and stack, the modules, the ACPI tables.
/// Returns how many bytes that were.
///
/// To be called once all CPUs run on the kernel's tables and stacks, and configuration, guest images and ACPI
/// tables have been copied or are no longer needed. The kernel's own ELF file stays.
pub fn release_boot_memory() -> u64 {
    let pieces = core::mem::take(&mut *LATER.lock());
    let mut released = 0;
    for piece in pieces {
        let done = match FRAMES.lock().as_mut() {
            Some(frames) => frames.release(piece.range.start, piece.range.frames()),
            None => return released,
        };
        if complain(done).is_some() {
            released += piece.range.frames() * PAGE_BYTES;
        }
    }
    log::debug!(
        "released {} KiB of boot memory; heap: {}",
        released >> 10,
        heap::heap_stats()
    );
    released
}

/// A frame of zeros of `node`, else of the nearest node that has one.
///
/// # Errors
/// [`OutOfFrames`] if no node has a block of that size.
pub fn alloc(node: NodeId, size: PageSize) -> Result<Frame, OutOfFrames> {
    let given = match FRAMES.lock().as_mut() {
        Some(frames) => frames
            .allocate(node, size, nearest(node))
            .map(Allocation::into_frame),
        None => before_nodes(node, size),
    };
    given.inspect(|frame| zero(*frame, size.pages()))
}

fn before_nodes(node: NodeId, size: PageSize) -> Result<Frame, OutOfFrames> {
    let free = early::left() / PAGE_BYTES;
    early::take(size.pages(), size.pages()).ok_or(OutOfFrames {
        node,
        order: size.into(),
        count: 1,
        free,
    })
}

/// Frames of exactly `node`, with whatever bytes are in them, for a page move, which overwrites all of them;
/// give them back by [`free_allocation`].
///
/// # Errors
/// [`OutOfFrames`] if `node` has no block of that size, whatever the others have; always before
/// [`init_nodes`].
pub fn allocate_on(node: NodeId, size: PageSize) -> Result<Allocation, OutOfFrames> {
    let nothing = OutOfFrames {
        node,
        order: size.into(),
        count: 1,
        free: 0,
    };
    let mut frames = FRAMES.lock();
    frames.as_mut().ok_or(nothing)?.allocate(node, size, &[])
}

/// Every one of `wants`, or nothing, in one critical section. What is not drawn by [`draw`] must be given
/// back by [`return_claim`].
///
/// # Errors
/// [`OutOfFrames`] for the first that a node cannot give; always before [`init_nodes`].
pub fn claim_all(wants: &[Want]) -> Result<Vec<Claim>, OutOfFrames> {
    // The list of claims is made under the allocator's lock, which the heap needs to grow.
    heap::reserve();
    match (FRAMES.lock().as_mut(), wants.first()) {
        (Some(frames), _) => frames.claim_all(wants),
        (None, None) => Ok(Vec::new()),
        (None, Some(first)) => Err(OutOfFrames {
            node: first.node,
            order: first.order,
            count: first.count,
            free: 0,
        }),
    }
}

/// The next block of a claim, of zeros; `None` when all are drawn.
pub fn draw(claim: &mut Claim) -> Option<Allocation> {
    let drawn = FRAMES.lock().as_mut().map(|frames| frames.draw(claim))?;
    let block = complain(drawn).flatten()?;
    if !sabotage::on(Sabotage::DirtyFrames) {
        zero(block.frame(), block.order().frames());
    }
    Some(block)
}

/// Gives back what was not drawn of a claim.
pub fn return_claim(claim: Claim) {
    if let Some(frames) = FRAMES.lock().as_mut() {
        frames.return_claim(claim);
    }
}

/// Scrubs a block from [`alloc`] and gives it back. A frame that is not an allocated block of this size
/// is left alone and logged; one from before [`init_nodes`] stays with the kernel.
pub fn free(frame: Frame, size: PageSize) {
    let block = FRAMES
        .lock()
        .as_mut()
        .map(|frames| frames.take_back(frame, size));
    if let Some(block) = block.and_then(complain) {
        free_allocation(block);
    }
}

/// Scrubs a block and gives it back.
pub fn free_allocation(block: Allocation) {
    let clean = block.scrub(|frame, frames| {
        if !sabotage::on(Sabotage::DirtyFrames) {
            zero(frame, frames);
        }
    });
    if let Some(freed) = FRAMES.lock().as_mut().map(|frames| frames.free(clean)) {
        complain(freed);
    }
}

/// Scrubs and frees what a page move has left behind.
pub fn free_displaced(old: Displaced) {
    free(old.frame, old.size);
}

/// A block as single frames, each to be freed by itself.
pub fn into_pages(block: Allocation) -> impl Iterator<Item = Frame> {
    let (order, first) = (block.order(), block.into_frame());
    let split = FRAMES
        .lock()
        .as_mut()
        .map(|frames| frames.split(first, order, PageSize::Size4K));
    let pages = split.and_then(complain).map_or(0, |()| order.frames());
    (first.0..first.0 + pages).map(Frame)
}

/// The 2 MiB block at `frame` is mapped by pages now: each of them is a block that is freed by itself.
pub fn split_block(frame: Frame) {
    let split = |frames: &mut Frames<'_>| frames.split(frame, PageSize::Size2M, PageSize::Size4K);
    FRAMES.lock().as_mut().map(split).and_then(complain);
}

/// The 512 pages from `frame` on are mapped by one leaf now: they are one block again.
pub fn join_block(frame: Frame) {
    let join = |frames: &mut Frames<'_>| frames.join(frame, PageSize::Size4K, PageSize::Size2M);
    FRAMES.lock().as_mut().map(join).and_then(complain);
}

/// Copies `frames` frames of 4 KiB from `from` on to those from `to` on, which must be different ones. Guests may write
/// to the source meanwhile: of each word the target gets some value that it had.
pub fn copy_frames(from: Frame, to: Frame, frames: u64) {
    let (source, target) = (direct(from.address()), direct(to.address()));
    if source.is_null() || target.is_null() {
        log::error!("frames {from} or {to} are not in the direct map: nothing was copied");
        return;
    }
    // SAFETY: both are frames of the allocator, so the direct map covers them. Only the caller knows the target. The
    // source is a guest's memory, to which no Rust reference exists; that guests, and the hypervisor for them, may
    // write it meanwhile is a race with hardware, and any bytes are valid.
    unsafe { streaming::copy(target, source, frames) };
}

fn zero(frame: Frame, frames: u64) {
    let start = direct(frame.address());
    if !start.is_null() {
        // SAFETY: the block was just allocated, or is about to be freed and nobody else uses it; the
        // direct map covers all memory of the allocators, writable.
        unsafe { streaming::zero(start, frames) };
    }
}

/// A frame below 1 MiB for the code that starting processors execute; another one at each call.
pub fn low_frame() -> Option<Frame> {
    let first = NEXT_LOW.load(Ordering::Relaxed);
    let is_free = |frame: u64| {
        let at = frame * PAGE_BYTES;
        memory_map()
            .iter()
            .any(|r| r.kind() == MemoryKind::Usable && r.base <= at && at + PAGE_BYTES <= r.end())
    };
    let found = (first..CONVENTIONAL_END / PAGE_BYTES).find(|frame| is_free(*frame))?;
    NEXT_LOW.store(found + 1, Ordering::Relaxed);
    Some(Frame(found))
}

/// The node whose memory the frame is; `None` if it is no memory of the map.
pub fn node_of(frame: Frame) -> Option<NodeId> {
    FRAMES.lock().as_ref()?.node_of(frame)
}

/// Bytes that are free on a node.
pub fn free_bytes(node: NodeId) -> u64 {
    let counters = FRAMES
        .lock()
        .as_ref()
        .and_then(|frames| frames.counters(node));
    counters.map_or(0, |c| c.free * PAGE_BYTES)
}

/// Bytes that are free on a node in blocks of at least `size`.
pub fn free_bytes_in(node: NodeId, size: PageSize) -> u64 {
    let smallest = Order::from(size);
    let frames = FRAMES.lock();
    let memory = frames
        .as_ref()
        .and_then(|frames| frames.nodes().iter().find(|n| n.node() == node));
    let Some(memory) = memory else { return 0 };
    let orders = (0..)
        .map_while(Order::new)
        .filter(|order| *order >= smallest);
    orders
        .map(|order| memory.free_blocks(order) * order.bytes())
        .sum()
}

/// Every node's figures; empty before [`init_nodes`].
pub fn stats() -> Vec<NodeStats> {
    let nodes = NEAREST.get().map_or(0, Vec::len);
    let figures = |node| {
        FRAMES
            .lock()
            .as_ref()?
            .counters(node)
            .map(|counters| NodeStats { node, counters })
    };
    (0..nodes)
        .filter_map(|node| figures(NodeId(u16::try_from(node).ok()?)))
        .collect()
}

/// A block for the heap, at its place in the direct map, and its bytes; never given back.
pub(super) fn heap_block(order: Order) -> Option<(*mut u8, usize)> {
    let node = NodeId(BOOT_NODE.load(Ordering::Relaxed) as u16);
    let frame = match FRAMES.lock().as_mut() {
        Some(frames) => frames
            .allocate(node, order, nearest(node))
            .ok()?
            .into_frame(),
        None => early::take(order.frames(), 1)?,
    };
    Some((
        direct(frame.address()),
        usize::try_from(order.bytes()).ok()?,
    ))
}

fn nearest(node: NodeId) -> &'static [NodeId] {
    NEAREST
        .get()
        .and_then(|all| all.get(node.index()))
        .map_or(&[], Vec::as_slice)
}
