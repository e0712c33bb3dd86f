#![expect(
    unsafe_code,
    reason = "copies between the kernel and guest memory that running guests change at any moment"
)]
//! A guest's memory: its nested table, and the hypervisor's own accesses to what it maps.
//!
//! Accesses by the hypervisor (instruction emulation, clocks, software walks) neither set A/D
//! bits in the nested table nor obey a shootdown. So each holds the access lock for reading from
//! the translation to the last byte, and a page move holds it for writing from the moment the
//! page is frozen until its new frame is in place: no access ever lands in a frame that has
//! been left. The mover waits only for CPUs to leave the guest, which takes no lock.

mod written;

use super::tables::DirectTables;
use crate::mm;
use crate::shootdown;
use alloc::vec::Vec;
use core::cell::Cell;
use core::sync::atomic::Ordering::{Relaxed, SeqCst};
use core::sync::atomic::{AtomicU32, AtomicU64};
use guest::memory::Width;
use guest::{GuestMemory, OutOfRange};
use memory::entry::{Generation, Generations};
use memory::table::{
    Attributes, Flush, LargeLeaves, Lookup, RadixTable, Rights, Shootdown, TableError, TableFormat,
};
use memory::written::Written;
use spin::{Once, RwLock};
use units::{Frame, Gpa, Hpa, NodeId, PageSize, VmId};

/// Numbers of roots: none is used twice.
static ROOTS: AtomicU64 = AtomicU64::new(1);

/// A guest's memory.
#[derive(Debug)]
pub struct GuestRam<F: TableFormat<Address = Gpa>> {
    vm: VmId,
    /// Bytes on each node, so that asking costs nothing however large it is.
    by_node: Vec<AtomicU64>,
    root: Frame,
    table: RwLock<RadixTable<F, DirectTables>>,
    generations: Generations<AtomicU64>,
    /// Large leaves that were split since the guest executed there.
    fetched: AtomicU64,
    /// What processors log; made when somebody asks for the first time.
    written: Once<Written>,
}

/// Makes every CPU forget what the old table said, for one VM.
#[derive(Debug)]
pub struct VmShootdown<'r> {
    vm: VmId,
    generations: &'r Generations<AtomicU64>,
}

impl Shootdown for VmShootdown<'_> {
    fn shoot_down(&self, _flush: Flush) {
        self.generations.changed();
        shootdown::expel(self.vm);
    }
}

/// One shootdown for several changes that were all made before the first asks for it: it makes CPUs forget
/// everything of the VM, so the others have nothing left to do.
#[derive(Debug)]
struct Together<'s, 'r> {
    inner: &'s VmShootdown<'r>,
    done: Cell<bool>,
}

impl<'s, 'r> Together<'s, 'r> {
    fn new(inner: &'s VmShootdown<'r>) -> Self {
        Self {
            inner,
            done: Cell::new(false),
        }
    }
}

impl Shootdown for Together<'_, '_> {
    fn shoot_down(&self, flush: Flush) {
        if !self.done.replace(true) {
            self.inner.shoot_down(flush);
        }
    }
}

impl<F: TableFormat<Address = Gpa>> GuestRam<F> {
    /// An empty table whose own frames come from `node`, on a host with `nodes` nodes.
    pub fn new(
        vm: VmId,
        node: NodeId,
        nodes: usize,
        large: LargeLeaves,
    ) -> Result<Self, memory::buddy::OutOfFrames> {
        let table = RadixTable::new(DirectTables, node)?.with_large_leaves(large);
        Ok(Self {
            vm,
            by_node: (0..nodes).map(|_| AtomicU64::new(0)).collect(),
            root: table.root(),
            table: RwLock::new(table),
            generations: Generations::of_root(
                ROOTS.fetch_add(1, Relaxed),
                AtomicU64::new(1),
                AtomicU64::new(1),
            ),
            fetched: AtomicU64::new(0),
            written: Once::new(),
        })
    }

    /// Maps a frame, before the guest starts.
    pub fn map(&self, gpa: Gpa, frame: Frame, size: PageSize) -> Result<(), TableError> {
        let rights = Rights::READ | Rights::WRITE | Rights::EXECUTE;
        let flush = self
            .table
            .write()
            .map(gpa, frame, size, Attributes::memory(rights))?;
        flush.carry_out(&memory::table::NoProcessor);
        if let Some(sum) = self.sum(mm::node_of(frame)) {
            sum.fetch_add(size.bytes(), Relaxed);
        }
        Ok(())
    }

    /// Root of the nested table.
    pub fn root(&self) -> Frame {
        self.root
    }

    /// What an entry compares with what its tag has seen.
    pub fn generation(&self) -> Generation {
        self.generations.now()
    }

    /// Accessed bits were cleared: translations that still say "accessed" go at the next entries, those that see the
    /// generation that is returned.
    pub fn sampled(&self) -> u64 {
        self.generations.sampled()
    }

    /// Maps each granule of `split` by pages of 4 KiB if one leaf of 2 MiB maps it, and each of `join` by one leaf
    /// where 512 pages still form one; says which were split and how many were joined. One shootdown for all.
    pub fn remap(&self, split: &[Gpa], join: &[Gpa]) -> (Vec<Gpa>, usize) {
        self.change_table(|table, shootdown| {
            let together = Together::new(shootdown);
            let size = PageSize::Size2M;
            // All are frozen before the first shootdown.
            let begin = |at: &Gpa| Some((*at, table.begin_collapse(*at, size).ok()?));
            let joins: Vec<_> = join.iter().filter_map(begin).collect();
            let begin = |at: &Gpa| Some((*at, table.begin_split(*at, size).ok()?));
            let splits: Vec<_> = split.iter().filter_map(begin).collect();
            let joined = joins.len();
            let mut done = Vec::with_capacity(splits.len());
            // What the table maps as one or as many, the allocator must know as one block or as many.
            for (at, join) in joins {
                match table.finish_collapse(join.shoot_down(&together)) {
                    Ok(flush) => {
                        flush.carry_out(shootdown);
                        if let Some(first) = first_frame(table, at) {
                            mm::join_block(first);
                        }
                    }
                    Err(why) => log::error!("a granule could not be mapped by one leaf: {why}"),
                }
            }
            for (at, split) in splits {
                match table.finish_split(split.shoot_down(&together)) {
                    Ok(()) => {
                        if let Some(first) = first_frame(table, at) {
                            mm::split_block(first);
                        }
                        done.push(at);
                    }
                    Err(why) => log::error!("a granule could not be mapped by small pages: {why}"),
                }
            }
            (done, joined)
        })
    }

    /// The node that holds an address, and the size of the leaf that maps it.
    pub fn leaf(&self, at: Gpa) -> Option<(NodeId, PageSize)> {
        match self.table.read().translate(at) {
            Ok(Lookup::Mapped(leaf)) => Some((mm::node_of(leaf.frame)?, leaf.size)),
            _ => None,
        }
    }

    /// Whether somebody changes the table just now.
    pub fn is_held(&self) -> bool {
        self.table.try_read().is_none()
    }

    /// The table, to read.
    pub fn with_table<R>(&self, work: impl FnOnce(&RadixTable<F, DirectTables>) -> R) -> R {
        work(&self.table.read())
    }

    /// The table, to change, with what makes CPUs forget.
    pub fn change_table<R>(
        &self,
        work: impl FnOnce(&mut RadixTable<F, DirectTables>, &VmShootdown<'_>) -> R,
    ) -> R {
        let mut table = self.table.write();
        self.doubt_log();
        work(
            &mut table,
            &VmShootdown {
                vm: self.vm,
                generations: &self.generations,
            },
        )
    }

    /// The node that holds an address.
    pub fn node_of(&self, at: Gpa) -> Option<NodeId> {
        match self.table.read().translate(at) {
            Ok(Lookup::Mapped(leaf)) => mm::node_of(leaf.frame),
            _ => None,
        }
    }

    /// Every CPU that is inside has been outside once when this returns.
    fn expel(&self) {
        self.generations.changed();
        shootdown::expel(self.vm);
    }

    /// Bytes on each node.
    pub fn bytes_by_node(&self) -> Vec<u64> {
        self.by_node.iter().map(|sum| sum.load(Relaxed)).collect()
    }

    /// A leaf was moved.
    pub fn relocated(&self, size: PageSize, from: NodeId, to: NodeId) {
        if let (Some(from), Some(to)) = (self.sum(Some(from)), self.sum(Some(to))) {
            from.fetch_sub(size.bytes(), Relaxed);
            to.fetch_add(size.bytes(), Relaxed);
        }
    }

    fn sum(&self, node: Option<NodeId>) -> Option<&AtomicU64> {
        self.by_node.get(node?.index())
    }

    /// A guest hit an address of its RAM that was not mapped: waits until the move is over.
    pub fn wait_until_mapped(&self, gpa: Gpa) -> Result<(), TableError> {
        // Getting the lock means that no move is under way.
        match self.table.read().translate(gpa)? {
            Lookup::Mapped(_) => Ok(()),
            _ => Err(TableError::NotMapped { at: gpa.0 }),
        }
    }

    /// A guest was kept from executing at `gpa`: waits until a move is over, and where large leaves may not be executed
    /// makes the leaf small ones that may, or this small one executable.
    pub fn permit_fetch(&self, gpa: Gpa) -> Result<(), TableError> {
        self.wait_until_mapped(gpa)?;
        self.change_table(|table, shootdown| {
            let Lookup::Mapped(leaf) = table.translate(gpa)? else {
                return Err(TableError::NotMapped { at: gpa.0 });
            };
            let mut attributes = leaf.attributes;
            if attributes.rights.contains(Rights::EXECUTE) {
                return Ok(());
            }
            if leaf.size == PageSize::Size4K {
                attributes.rights |= Rights::EXECUTE;
                // Nothing need be forgotten: the fault has dropped what this CPU knew of the page (SDM 3C 29.4.3.1), and
                // another that does not know of the new right faults, comes here, and finds it.
                let more = table.protect(leaf.at, leaf.size, attributes)?;
                more.carry_out(&memory::table::NoProcessor);
                return Ok(());
            }
            let split = table.begin_split(leaf.at, leaf.size)?.to_execute();
            table.finish_split(split.shoot_down(shootdown))?;
            mm::split_block(leaf.frame);
            self.fetched.fetch_add(1, Relaxed);
            Ok(())
        })
    }

    /// Large leaves that are small ones since the guest executed there.
    pub fn fetched(&self) -> u64 {
        self.fetched.load(Relaxed)
    }

    /// Whether all frames have been given back.
    pub fn is_empty(&self) -> bool {
        self.table.read().all_leaves().next().is_none()
    }

    /// Takes leaves of about `bytes` out of the table, for the frames to be freed. The VM is off and runs
    /// nowhere, or was never started.
    pub fn take_leaves(&self, bytes: u64) -> Vec<(Frame, PageSize)> {
        self.change_table(|table, shootdown| {
            let mut sum = 0_u64;
            let some = table.all_leaves().take_while(|leaf| {
                let more = sum < bytes;
                sum = sum.saturating_add(leaf.size.bytes());
                more
            });
            let leaves: Vec<_> = some.collect();
            let mut frames = Vec::with_capacity(leaves.len());
            for leaf in leaves {
                if let Ok(unmapped) = table.unmap(leaf.at, leaf.size) {
                    let gone = unmapped.finish(shootdown, &DirectTables);
                    if let Some(sum) = self.sum(mm::node_of(gone.frame)) {
                        sum.fetch_sub(gone.size.bytes(), Relaxed);
                    }
                    frames.push((gone.frame, gone.size));
                }
            }
            frames
        })
    }

    /// Calls `work` with each contiguous piece of `gpa..gpa + bytes` in the direct map. The access lock is
    /// held throughout; nothing is called unless all of the range is memory.
    fn pieces(
        &self,
        gpa: Gpa,
        bytes: usize,
        mut work: impl FnMut(*mut u8, core::ops::Range<usize>),
    ) -> Result<(), OutOfRange> {
        let fault = OutOfRange {
            gpa,
            bytes: bytes as u64,
        };
        let table = self.table.read();
        let locate = |offset: usize| -> Result<(Hpa, usize), OutOfRange> {
            let at = gpa.checked_add(offset as u64).ok_or(fault)?;
            let Ok(Lookup::Mapped(leaf)) = table.translate(at) else {
                return Err(fault);
            };
            let inside = at.0 - leaf.at.0;
            let left = (leaf.size.bytes() - inside).min((bytes - offset) as u64);
            Ok((Hpa(leaf.frame.address().0 + inside), left as usize))
        };
        let mut offset = 0;
        while offset < bytes {
            offset += locate(offset)?.1;
        }
        let mut offset = 0;
        while offset < bytes {
            let (hpa, length) = locate(offset)?;
            work(mm::direct(hpa), offset..offset + length);
            offset += length;
        }
        Ok(())
    }
}

impl<F: TableFormat<Address = Gpa>> GuestMemory for GuestRam<F> {
    fn read(&self, gpa: Gpa, buf: &mut [u8]) -> Result<(), OutOfRange> {
        self.pieces(gpa, buf.len(), |from, range| {
            let Some(to) = buf.get_mut(range) else { return };
            // SAFETY: `from` is the direct map of guest frames that the access lock keeps mapped, valid for the
            // piece's length. A running guest may change the bytes meanwhile, which is a race with hardware and not
            // with Rust code: the copy is volatile and byte-wise as far as the abstract machine knows, and any
            // value is a valid u8. `to` is the kernel's own and does not overlap guest frames.
            unsafe { copy(to.as_mut_ptr(), from, to.len()) };
        })
    }

    fn write(&self, gpa: Gpa, bytes: &[u8]) -> Result<(), OutOfRange> {
        self.pieces(gpa, bytes.len(), |to, range| {
            let Some(from) = bytes.get(range) else { return };
            // SAFETY: as in `read`, the other way round; no Rust reference to guest memory exists anywhere.
            unsafe { copy(to, from.as_ptr(), from.len()) };
        })
    }

    fn compare_exchange(
        &self,
        gpa: Gpa,
        width: Width,
        current: u64,
        new: u64,
    ) -> Result<u64, OutOfRange> {
        let bytes = match width {
            Width::Bits32 => 4,
            Width::Bits64 => 8,
        };
        if !gpa.0.is_multiple_of(bytes as u64) {
            return Err(OutOfRange {
                gpa,
                bytes: bytes as u64,
            });
        }
        let mut held = 0;
        self.pieces(gpa, bytes, |at, _| {
            // SAFETY: `at` is aligned to the width (checked above, and frames are page-aligned), so the word lies
            // in one frame; the direct map is valid for it. Guests and the kernel access it atomically.
            held = unsafe {
                match width {
                    Width::Bits32 => AtomicU32::from_ptr(at.cast())
                        .compare_exchange(current as u32, new as u32, SeqCst, SeqCst)
                        .map_or_else(u64::from, u64::from),
                    Width::Bits64 => AtomicU64::from_ptr(at.cast())
                        .compare_exchange(current, new, SeqCst, SeqCst)
                        .unwrap_or_else(|held| held),
                }
            };
        })?;
        Ok(held)
    }

    /// In one piece where it is aligned, as page-table entries are: another CPU may be writing it.
    fn read_u64(&self, gpa: Gpa) -> Result<u64, OutOfRange> {
        if !gpa.0.is_multiple_of(8) {
            let mut b = [0; 8];
            self.read(gpa, &mut b)?;
            return Ok(u64::from_le_bytes(b));
        }
        let mut held = 0;
        self.pieces(gpa, 8, |at, _| {
            // SAFETY: `at` is aligned and its word in one frame, as in `compare_exchange`.
            held = unsafe { AtomicU64::from_ptr(at.cast()) }.load(SeqCst);
        })?;
        Ok(held)
    }

    /// As [`GuestMemory::read_u64`].
    fn read_u32(&self, gpa: Gpa) -> Result<u32, OutOfRange> {
        if !gpa.0.is_multiple_of(4) {
            let mut b = [0; 4];
            self.read(gpa, &mut b)?;
            return Ok(u32::from_le_bytes(b));
        }
        let mut held = 0;
        self.pieces(gpa, 4, |at, _| {
            // SAFETY: `at` is aligned and its word in one frame, as in `compare_exchange`.
            held = unsafe { AtomicU32::from_ptr(at.cast()) }.load(SeqCst);
        })?;
        Ok(held)
    }

    fn holds(&self, gpa: Gpa) -> bool {
        matches!(self.table.read().translate(gpa), Ok(Lookup::Mapped(_)))
    }

    fn size(&self) -> u64 {
        self.bytes_by_node().iter().sum()
    }
}

/// The frame that `at`, a leaf's first address, is mapped to.
fn first_frame<F: TableFormat<Address = Gpa>>(
    table: &RadixTable<F, DirectTables>,
    at: Gpa,
) -> Option<Frame> {
    match table.translate(at) {
        Ok(Lookup::Mapped(leaf)) => Some(leaf.frame),
        _ => None,
    }
}

/// Copies bytes that others may change meanwhile.
///
/// # Safety
/// `to` is valid for writes and `from` for reads of `length` bytes; they do not overlap.
unsafe fn copy(to: *mut u8, from: *const u8, length: usize) {
    // SAFETY: the caller's. `rep movsb` is opaque to the compiler, which therefore assumes nothing about the
    // bytes being stable.
    unsafe {
        core::arch::asm!("rep movsb", inout("rcx") length => _, inout("rdi") to => _, inout("rsi") from => _, options(nostack));
    }
}
