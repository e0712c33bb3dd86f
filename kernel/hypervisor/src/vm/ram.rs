//! A guest's memory: its nested tables, and who may change them when.
//!
//! * There is a table for each node that runs the guest ([`roots`]); all say the same, and change together.
//! * Whoever changes the tables holds their lock for writing while he does, and for no longer: CPUs are made to forget,
//!   and pages are copied, with the lock free.
//! * The hypervisor's own accesses ([`access`]) hold it for reading from the translation to the last byte.
//! * A page that is being moved is absent meanwhile ([`memory::page_move`]). Who finds it so waits for its
//!   [`arrival`], holding nothing.
//! * What small pages map for a while stays together meanwhile ([`apart`]).
//! * Memory is torn down when no move is under way ([`GuestRam::moving`]).

mod access;
mod apart;
mod roots;
mod written;

pub use apart::Remapped;
pub use roots::RootChange;

use super::arrival;
use super::tables::DirectTables;
use crate::mm;
use crate::shootdown;
use alloc::vec::Vec;
use core::cell::Cell;
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::Relaxed;
use memory::apart::Apart;
use memory::entry::Generations;
use memory::replica::Replicas;
use memory::table::{
    Attributes, Flush, LargeLeaves, Lookup, NoProcessor, Rights, Shootdown, TableError, TableFormat,
};
use memory::written::Written;
use spin::{Mutex, Once, RwLock, RwLockReadGuard};
use units::{Frame, Gpa, NodeId, PageSize, VmId};

/// Numbers of roots: none is used twice.
static ROOTS: AtomicU64 = AtomicU64::new(1);

/// A guest's memory.
#[derive(Debug)]
pub struct GuestRam<F: TableFormat<Address = Gpa>> {
    vm: VmId,
    /// Bytes on each node, so that asking costs nothing however large it is.
    by_node: Vec<AtomicU64>,
    /// For each node the root that its CPUs walk.
    roots: Vec<AtomicU64>,
    table: RwLock<Replicas<F, DirectTables>>,
    /// Held for reading by moves that are under way.
    moving: RwLock<()>,
    /// What small pages map for a while; changed under the table's lock.
    apart: Mutex<Apart>,
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
    /// CPUs that it has interrupted.
    interrupted: Cell<u64>,
}

impl Shootdown for VmShootdown<'_> {
    fn shoot_down(&self, _flush: Flush) {
        self.generations.changed();
        let more = shootdown::expel(self.vm);
        self.interrupted.set(self.interrupted.get() + more);
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
        let table = Replicas::new(DirectTables, node, large)?;
        let root = table.first().root();
        Ok(Self {
            vm,
            by_node: (0..nodes).map(|_| AtomicU64::new(0)).collect(),
            roots: (0..nodes).map(|_| AtomicU64::new(root.0)).collect(),
            table: RwLock::new(table),
            moving: RwLock::new(()),
            apart: Mutex::default(),
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
        let flush =
            self.table
                .write()
                .map(gpa, frame, size, Attributes::memory(rights), &NoProcessor)?;
        flush.carry_out(&NoProcessor);
        if let Some(sum) = self.sum(mm::node_of(frame)) {
            sum.fetch_add(size.bytes(), Relaxed);
        }
        Ok(())
    }

    /// Accessed bits were cleared: translations that still say "accessed" go at the next entries, those that see the
    /// generation that is returned.
    pub fn sampled(&self) -> u64 {
        self.generations.sampled()
    }

    /// The node that holds an address, and the size of the leaf that maps it.
    pub fn leaf(&self, at: Gpa) -> Option<(NodeId, PageSize)> {
        match self.table.read().first().translate(at) {
            Ok(Lookup::Mapped(leaf)) => Some((mm::node_of(leaf.frame)?, leaf.size)),
            _ => None,
        }
    }

    /// The tables, to read.
    pub fn with_table<R>(&self, work: impl FnOnce(&Replicas<F, DirectTables>) -> R) -> R {
        work(&self.table.read())
    }

    /// The tables, to change, with what makes CPUs forget.
    pub fn change_table<R>(
        &self,
        work: impl FnOnce(&mut Replicas<F, DirectTables>, &VmShootdown<'_>) -> R,
    ) -> R {
        let mut table = self.table.write();
        self.doubt_log();
        work(&mut table, &self.shootdown())
    }

    /// What makes CPUs forget.
    pub fn shootdown(&self) -> VmShootdown<'_> {
        VmShootdown {
            vm: self.vm,
            generations: &self.generations,
            interrupted: Cell::new(0),
        }
    }

    /// Every CPU that is inside has been outside once when this returns.
    fn expel(&self) {
        self.generations.changed();
        shootdown::expel(self.vm);
    }

    /// A move is under way as long as this lives: the memory is not torn down.
    pub fn moving(&self) -> RwLockReadGuard<'_, ()> {
        self.moving.read()
    }

    /// The page at this address is no longer away.
    pub fn arrived(&self, at: Gpa) {
        arrival::tell(self.vm, at);
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
        self.wait_while_away(gpa);
        match self.table.read().first().translate(gpa)? {
            Lookup::Mapped(_) | Lookup::Frozen { .. } => Ok(()),
            Lookup::NotMapped { .. } => Err(TableError::NotMapped { at: gpa.0 }),
        }
    }

    /// A guest was kept from executing at `gpa`: waits until a move is over, and where large leaves may not be executed
    /// makes the leaf small ones that may, or this small one executable.
    pub fn permit_fetch(&self, gpa: Gpa) -> Result<(), TableError> {
        self.wait_until_mapped(gpa)?;
        self.change_table(|table, shootdown| {
            let leaf = match table.first().translate(gpa)? {
                Lookup::Mapped(leaf) => leaf,
                // It went away again: the guest comes back.
                Lookup::Frozen { .. } => return Ok(()),
                Lookup::NotMapped { .. } => return Err(TableError::NotMapped { at: gpa.0 }),
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
                more.carry_out(&NoProcessor);
                // Taken apart for a while, it would have been one leaf again, which may not be executed.
                let granule = leaf.at.align_down(PageSize::Size2M);
                let more = u64::from(self.apart.lock().forget(granule));
                self.fetched.fetch_add(more, Relaxed);
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

    /// Waits until a page that is on the move has arrived. The caller holds no lock of the table.
    fn wait_while_away(&self, gpa: Gpa) {
        let away = || {
            matches!(
                self.table.read().first().translate(gpa),
                Ok(Lookup::Frozen { .. })
            )
        };
        arrival::wait(self.vm, gpa, away);
    }

    /// Whether all frames have been given back.
    pub fn is_empty(&self) -> bool {
        self.table.read().all_leaves().next().is_none()
    }

    /// Takes leaves of about `bytes` out of the table, for the frames to be freed. The VM is off and runs
    /// nowhere, or was never started.
    pub fn take_leaves(&self, bytes: u64) -> Vec<(Frame, PageSize)> {
        let _nothing_moves = self.moving.write();
        self.change_table(|table, shootdown| {
            self.apart.lock().clear();
            let mut sum = 0_u64;
            let some = table.all_leaves().take_while(|leaf| {
                let more = sum < bytes;
                sum = sum.saturating_add(leaf.size.bytes());
                more
            });
            let leaves: Vec<_> = some.collect();
            let mut frames = Vec::with_capacity(leaves.len());
            for leaf in leaves {
                let unmapped = table.unmap(leaf.at, leaf.size).ok();
                let gone = unmapped.and_then(|leaf| leaf.finish(shootdown, &DirectTables));
                if let Some(gone) = gone {
                    if let Some(sum) = self.sum(mm::node_of(gone.frame)) {
                        sum.fetch_sub(gone.size.bytes(), Relaxed);
                    }
                    frames.push((gone.frame, gone.size));
                }
            }
            frames
        })
    }
}
