//! Pages to their new node, a few at a time, between two picks of a CPU of that node.
//!
//! Who ordered what, who carries it out, and what came of it: how a page moves is in [`carry`].

use super::carry::{self, Done, Moved};
use super::record;
use crate::arch::percpu;
use crate::arch::time;
use crate::run::WORK;
use crate::timers::{self, Timer};
use crate::virt::Backend;
use crate::vm::{Hypervisor, Vm, VmState};
use alloc::collections::VecDeque;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;
use migrate::{MoveOutcome, MoveResult, PageOrder, Tally};
use spin::{LazyLock, Mutex};
use telemetry::Event;
use units::{CpuId, Nanos, NodeId, PAGE_BYTES, PageSize, VmId};

/// Leaves that move together, small ones and large ones: as many as a guest may wait for at once.
const SMALL: usize = 128;
/// See [`SMALL`].
const LARGE: usize = 4;

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
    tour: Option<Tour>,
}

/// The operator's order to bring all pages from node to node, again and again.
#[derive(Clone, Copy, Debug)]
pub struct Tour {
    /// Nodes that are still to be visited.
    pub stops: u32,
    /// Leaves that moved so far.
    pub leaves: u64,
    /// Of them, how many were written meanwhile.
    pub written: u64,
    /// Leaves that could not be moved.
    pub failed: u64,
}

static QUEUE: Mutex<VecDeque<PageWork>> = Mutex::new(VecDeque::new());
/// What moves have cost since the machine began.
static TALLY: LazyLock<Mutex<Tally>> = LazyLock::new(Mutex::default);

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
            tour: None,
        }
    }

    /// The same as a part of a tour.
    pub fn on(self, tour: Tour) -> Self {
        Self {
            tour: Some(tour),
            ..self
        }
    }

    /// Takes out the next leaves, all of one size.
    fn next(&mut self) -> Vec<PageOrder> {
        let Some(first) = self.leaves.front().copied() else {
            return Vec::new();
        };
        let most = match first.size {
            PageSize::Size4K => SMALL,
            PageSize::Size2M => LARGE,
            PageSize::Size1G => 1,
        };
        let alike = |order: &&PageOrder| order.size == first.size;
        let count = self.leaves.iter().take(most).take_while(alike).count();
        self.leaves.drain(..count).collect()
    }

    /// The tour with what this stop added to it.
    fn tour_so_far(&self) -> Option<Tour> {
        let written = self.done.iter().filter(|done| done.again > 0).count();
        self.tour.map(|tour| Tour {
            leaves: tour.leaves + self.done.len() as u64,
            written: tour.written + written as u64,
            failed: tour.failed + u64::from(self.failed),
            ..tour
        })
    }

    /// Takes down what became of a leaf.
    fn note<B: Backend>(&mut self, vm: &Vm<B>, size: PageSize, moved: Moved) -> MoveOutcome {
        match moved {
            Ok(done) => {
                if let Some(done) = &done {
                    TALLY.lock().moved(done.size, done.pause, done.again);
                }
                // Without anything done it is there already.
                self.done.extend(done);
                MoveOutcome::Moved
            }
            Err(unmoved) => {
                self.failed += 1;
                TALLY.lock().failed(size);
                log::debug!("{}: {}", vm.name, unmoved.why);
                MoveOutcome::Failed
            }
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

/// What moves have cost since the machine began.
pub fn tally() -> Tally {
    TALLY.lock().clone()
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

/// Moves a batch of leaves whose target is this CPU's node. The next follow after as long a rest as
/// these took, so that copying never takes more than half of a CPU from its guests.
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
    let orders = work.next();
    let outcomes = match vm.state() {
        VmState::Off(_) | VmState::Starting => vec![MoveOutcome::Gone; orders.len()],
        VmState::Running | VmState::Paused => {
            let size = orders.first().map_or(PageSize::Size4K, |order| order.size);
            let moved = carry::carry_out(vm, &orders, work.to);
            let took = time::now().since(began);
            TALLY.lock().took(size, took);
            super::tell(hv, sched::Event::Overhead { vm: vm.id, took });
            moved.into_iter().map(|m| work.note(vm, size, m)).collect()
        }
    };
    for (order, outcome) in orders.into_iter().zip(outcomes) {
        let vm = vm.id;
        super::sample::moved(hv, MoveResult { vm, order, outcome });
    }
    if work.leaves.is_empty() {
        let (to, tour) = (work.to, work.tour_so_far());
        finish(vm, work);
        if let Some(tour) = tour {
            super::sample::travel(hv, vm, to, tour);
        }
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
        let these = |d: &&Done| d.from == from && d.size == leaf;
        let mut pauses: Vec<Nanos> = work.done.iter().filter(these).map(|d| d.pause).collect();
        pauses.sort_unstable();
        let again = || work.done.iter().filter(these).map(|d| d.again);
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
            written: again().map(|pages| u32::from(pages > 0)).sum(),
            copied_again: again().sum::<u64>() * PAGE_BYTES,
            pause_p50: pauses.get(pauses.len() / 2).copied().unwrap_or_default(),
            pause_max: pauses.last().copied().unwrap_or_default(),
            reason: work.reason.clone(),
        });
    }
}
