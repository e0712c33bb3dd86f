//! Pages to their new node, one leaf at a time, between two picks of a CPU of that node.
//!
//! Each move is the chain of type states of [`memory::page_move`]: freeze, shoot down, copy,
//! commit. The VM's access lock is held for writing throughout, so the hypervisor's own accesses to
//! the page wait as the guest's do.

use super::record;
use crate::arch::percpu;
use crate::arch::time;
use crate::mm;
use crate::run::WORK;
use crate::timers::{self, Timer};
use crate::virt::Backend;
use crate::vm::{Hypervisor, Vm, VmState};
use alloc::collections::VecDeque;
use alloc::string::String;
use alloc::vec::Vec;
use memory::page_move::PageMove;
use migrate::{MoveOutcome, MoveResult, PageOrder};
use spin::Mutex;
use telemetry::Event;
use units::{CpuId, Gpa, Nanos, NodeId, PageSize, VmId};

/// An order to bring leaves to a node.
#[derive(Debug)]
pub struct PageWork {
    /// Whose.
    pub vm: VmId,
    /// Where to.
    pub to: NodeId,
    /// Leaves still to move.
    pub leaves: VecDeque<PageOrder>,
    /// Why.
    pub reason: String,
    done: Vec<Done>,
    failed: u32,
}

#[derive(Clone, Copy, Debug)]
struct Done {
    from: NodeId,
    size: PageSize,
    pause: Nanos,
}

static QUEUE: Mutex<VecDeque<PageWork>> = Mutex::new(VecDeque::new());

impl PageWork {
    /// An order.
    pub fn new(vm: VmId, to: NodeId, leaves: VecDeque<PageOrder>, reason: String) -> Self {
        Self {
            vm,
            to,
            leaves,
            reason,
            done: Vec::new(),
            failed: 0,
        }
    }
}

/// Accepts an order; a CPU of the target node carries it out.
pub fn order<B: Backend>(hv: &Hypervisor<B>, work: PageWork) {
    let to = work.to;
    QUEUE.lock().push_back(work);
    let worker = workers(hv, to).min().unwrap_or(CpuId(0));
    if let Some(cpu) = percpu::of(worker) {
        cpu.defer(WORK);
        crate::arch::apic::kick(worker);
    }
}

/// Leaves of this VM that wait to be moved.
pub fn queued(vm: VmId) -> usize {
    QUEUE
        .lock()
        .iter()
        .filter(|w| w.vm == vm)
        .map(|w| w.leaves.len())
        .sum()
}

/// Moves one leaf whose target is this CPU's node. The next one follows after as long a rest as this one
/// took, so that copying never takes more than half of a CPU from its guests.
pub fn work<B: Backend>(hv: &Hypervisor<B>) {
    let here = percpu::current();
    let began = time::now();
    let mine = {
        let mut queue = QUEUE.lock();
        let position = queue
            .iter()
            .position(|w| serves(hv, here.cpu, here.node, w.to));
        position.and_then(|p| queue.remove(p))
    };
    let Some(mut work) = mine else { return };
    let Some(vm) = hv.vm(work.vm) else { return };
    if let Some(order) = work.leaves.pop_front() {
        let outcome = match vm.state() {
            VmState::Off(_) | VmState::Starting => MoveOutcome::Gone,
            VmState::Running | VmState::Paused => carry_out(vm, order, &mut work),
        };
        super::sample::moved(
            hv,
            MoveResult {
                vm: vm.id,
                order,
                outcome,
            },
        );
    }
    if work.leaves.is_empty() {
        finish(vm, work);
    } else {
        QUEUE.lock().push_front(work);
    }
    let now = time::now();
    timers::arm(hv, now + now.since(began), Timer::Pages);
}

/// CPUs of a node, without those that did not come up.
fn workers<B: Backend>(hv: &Hypervisor<B>, node: NodeId) -> impl Iterator<Item = CpuId> {
    let online = |cpu: &CpuId| percpu::of(*cpu).is_some_and(|c| c.is_online());
    let mine = hv.machine.cpus.iter().filter(move |c| c.node == node);
    mine.map(|c| c.id).filter(online)
}

/// Whether this CPU copies for that node: its own node, or any node without CPUs if it is the first CPU.
fn serves<B: Backend>(hv: &Hypervisor<B>, cpu: CpuId, node: NodeId, to: NodeId) -> bool {
    node == to || cpu == CpuId(0) && workers(hv, to).next().is_none()
}

fn carry_out<B: Backend>(vm: &Vm<B>, order: PageOrder, work: &mut PageWork) -> MoveOutcome {
    match move_leaf(vm, order.gpa, order.size, order.to) {
        Ok(Some(done)) => {
            work.done.push(done);
            MoveOutcome::Moved
        }
        Ok(None) => MoveOutcome::Moved, // it is there already
        Err(why) => {
            work.failed += 1;
            log::debug!("{}: {why}", vm.name);
            MoveOutcome::Failed
        }
    }
}

/// Moves one leaf. `None` if it lies there already.
fn move_leaf<B: Backend>(
    vm: &Vm<B>,
    at: Gpa,
    size: PageSize,
    to: NodeId,
) -> Result<Option<Done>, String> {
    use alloc::string::ToString;
    let from = vm
        .ram
        .node_of(at)
        .ok_or_else(|| alloc::format!("{at} is not mapped; it was not moved"))?;
    if from == to {
        return Ok(None);
    }
    let (at, size) = match (size, vm.ram.leaf(at)) {
        // It is mapped by small pages for a close look, which ends here.
        (PageSize::Size2M, Some((_, PageSize::Size4K))) => {
            vm.ram.remap(&[], &[at]);
            (at, size)
        }
        // The close look under which it was ordered is over, and the other orders for its pages find them moved.
        (ordered, Some((_, mapped))) if mapped > ordered => (at.align_down(mapped), mapped),
        _ => (at, size),
    };
    let target = mm::allocate_on(to, size).map_err(|e| e.to_string())?;
    let mut pause = Nanos::ZERO;
    let moved = vm.ram.change_table(|table, shootdown| {
        let tables = core::slice::from_mut(table);
        let began = time::now();
        let frozen = PageMove::plan(at, size, target)?.freeze(tables)?;
        let moved = frozen
            .shoot_down(shootdown)
            .copy(mm::copy_frames)
            .commit(tables);
        pause = time::now().since(began);
        moved
    });
    match moved {
        Ok(old) => {
            mm::free_displaced(old);
            vm.ram.relocated(size, from, to);
            Ok(Some(Done { from, size, pause }))
        }
        Err((why, target)) => {
            mm::free_allocation(target);
            Err(why.to_string())
        }
    }
}

/// Reports an order that is through, by the node that each leaf came from.
fn finish<B: Backend>(vm: &Vm<B>, work: PageWork) {
    let mut sources: Vec<(NodeId, PageSize)> = work.done.iter().map(|d| (d.from, d.size)).collect();
    sources.sort_unstable();
    sources.dedup();
    if sources.is_empty() && work.failed > 0 {
        log::warn!(
            "{}: none of {} leaves could be moved to {}",
            vm.name,
            work.failed,
            work.to
        );
    }
    for (from, leaf) in sources {
        let mut pauses: Vec<Nanos> = work
            .done
            .iter()
            .filter(|d| d.from == from && d.size == leaf)
            .map(|d| d.pause)
            .collect();
        pauses.sort_unstable();
        let leaves = u32::try_from(pauses.len()).unwrap_or(u32::MAX);
        record(Event::PagesMoved {
            vm: vm.id,
            name: vm.name.clone(),
            from,
            to: work.to,
            leaves,
            leaf,
            bytes: u64::from(leaves) * leaf.bytes(),
            failed: work.failed,
            pause_p50: pauses.get(pauses.len() / 2).copied().unwrap_or_default(),
            pause_max: pauses.last().copied().unwrap_or_default(),
            reason: work.reason.clone(),
        });
    }
}
