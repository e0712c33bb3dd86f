//! What every policy looks like to the engine: Perigee's own crates and the baselines alike.

use crate::world::World;

/// Why a CPU left a vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Left {
    /// Its slice is over or the CPU was called.
    Preempted,
    /// It sleeps.
    Slept,
    /// It spun on a lock until a PAUSE-loop exit.
    Spun,
}

/// What a CPU does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Run this vCPU for this long.
    Run(usize, u64),
    /// Nothing, but ask again at that time.
    Idle(Option<u64>),
}

/// What a policy wants done.
#[derive(Debug, Default)]
pub struct Acts {
    /// CPUs to be interrupted.
    pub kicks: Vec<usize>,
    /// Pages to be moved: VM, page, node.
    pub pages: Vec<(usize, usize, usize)>,
    /// Time that a vCPU loses to the policy's own work (hint faults), in ns.
    pub charges: Vec<(usize, f64)>,
}

/// A policy. Times are ns since the start; vCPUs and CPUs are numbers in [`World`].
pub trait Policy {
    /// Its name in reports.
    fn name(&self) -> &'static str;
    /// All vCPUs exist and sleep.
    fn start(&mut self, w: &World, acts: &mut Acts);
    /// A vCPU has work.
    fn wake(&mut self, w: &World, vcpu: usize, acts: &mut Acts);
    /// A CPU has left a vCPU after it ran for `ran`.
    fn left(&mut self, w: &World, cpu: usize, vcpu: usize, ran: u64, how: Left, acts: &mut Acts);
    /// A CPU wants work. It is inside no vCPU.
    fn pick(&mut self, w: &World, cpu: usize, acts: &mut Acts) -> Next;
    /// Its own timer; returns when it wants the next one.
    fn tick(&mut self, w: &World, acts: &mut Acts) -> u64;
    /// A page has come to its node.
    fn page_moved(&mut self, _w: &World, _vm: usize, _page: usize, _from: usize) {}
}
