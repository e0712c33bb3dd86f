//! What the scheduler says about itself: CPUs, vCPUs, and why one runs or waits.

use core::fmt;
use telemetry::{Pick, Terms};
use units::{CpuId, Credits, Nanos, NodeId, Score, VcpuId};

use crate::scheduler::Scheduler;

/// A CPU as the scheduler sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuReport {
    /// Which.
    pub cpu: CpuId,
    /// Its node.
    pub node: NodeId,
    /// Whom it runs.
    pub running: Option<VcpuId>,
    /// vCPUs in its queue that do not run.
    pub waiting: u16,
    /// How often it had somebody to run and stayed idle because a thread of its core ran another machine
    /// ([`share_cores`](crate::Tunables::share_cores)).
    pub kept_idle: u64,
    /// CPU time that its vCPUs ask for: 65536 = one CPU; more is overcommitment.
    pub demand: u64,
}

/// A vCPU as the scheduler sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VcpuReport {
    /// Which.
    pub vcpu: VcpuId,
    /// Its CPU.
    pub cpu: CpuId,
    /// Its CPU's node.
    pub node: NodeId,
    /// Whether it is running.
    pub running: bool,
    /// Whether it wants to run.
    pub runnable: bool,
    /// Credit in its queue (its lag).
    pub credit: Credits,
    /// Entitled minus received over the whole machine: the operator's credits.
    pub account: Credits,
    /// Part of time in which it wants to run.
    pub demand: Score,
    /// Run time since it was added.
    pub ran: Nanos,
}

/// Why a vCPU runs or does not run: the sum's terms and its rival's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// The vCPU.
    pub report: VcpuReport,
    /// Its sum on its CPU.
    pub terms: Terms,
    /// What it is doing.
    pub state: State,
    /// Whom its CPU runs, if it is another.
    pub rival: Option<(VcpuId, Terms)>,
    /// The node where it wants to be: its own wish, else the one that the planner named for its machine.
    pub preferred: Option<NodeId>,
}

/// What a vCPU is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It runs.
    Running,
    /// It waits for its CPU.
    Waiting {
        /// For this long.
        for_: Nanos,
    },
    /// It halted.
    Halted,
    /// It used up its cap.
    Capped,
    /// Its machine is paused.
    Paused,
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let r = &self.report;
        match self.state {
            State::Running => write!(f, "{} runs on {} ({})", r.vcpu, r.cpu, r.node)?,
            State::Waiting { for_ } => {
                write!(f, "{} has waited {for_} for {} ({})", r.vcpu, r.cpu, r.node)?;
            }
            State::Halted => write!(f, "{} is halted; it last ran on {}", r.vcpu, r.cpu)?,
            State::Capped => write!(f, "{} has used up its cap on {}", r.vcpu, r.cpu)?,
            State::Paused => write!(f, "{} is paused on {}", r.vcpu, r.cpu)?,
        }
        write!(f, ": {}", self.terms)?;
        if let Some((rival, terms)) = &self.rival {
            write!(f, "; {rival} runs there: {terms}")?;
        }
        if r.credit.0 < 0 {
            f.write_str("; not eligible until its credit is paid back")?;
        }
        write!(
            f,
            "; machine-wide it is owed {}, wants {} of a CPU",
            r.account, r.demand
        )?;
        if let Some(node) = self.preferred {
            write!(f, ", and the node preferred for it is {node}")?;
        }
        Ok(())
    }
}

impl Scheduler {
    /// Every CPU, by number.
    pub fn cpus(&self) -> impl Iterator<Item = CpuReport> + '_ {
        self.cpus.iter().map(|(cpu, c)| CpuReport {
            cpu,
            node: c.place.node,
            running: c.current,
            waiting: c.members().filter(|v| Some(*v) != c.current).count() as u16,
            kept_idle: c.kept_idle,
            demand: self.demand_on(cpu),
        })
    }

    /// Every vCPU, by number.
    pub fn vcpus(&self) -> impl Iterator<Item = VcpuReport> + '_ {
        self.vcpus.ids().filter_map(|id| self.vcpu(id))
    }

    /// One vCPU.
    pub fn vcpu(&self, vcpu: VcpuId) -> Option<VcpuReport> {
        let v = self.vcpus.get(vcpu)?;
        Some(VcpuReport {
            vcpu,
            cpu: v.cpu,
            node: self.cpus.get(v.cpu)?.place.node,
            running: v.on_cpu.is_some(),
            runnable: v.runnable(),
            credit: Credits(v.credit),
            account: Credits(v.account),
            demand: v.demand,
            ran: v.ran,
        })
    }

    /// Why a vCPU runs or waits, with the terms of the sum; None if it does not exist.
    pub fn why(&self, now: Nanos, vcpu: VcpuId) -> Option<Explanation> {
        let v = self.vcpus.get(vcpu)?;
        let state = if v.on_cpu.is_some() {
            State::Running
        } else if v.paused {
            State::Paused
        } else if v.throttled {
            State::Capped
        } else if v.queued {
            State::Waiting {
                for_: now.since(v.waiting_since),
            }
        } else {
            State::Halted
        };
        let current = self
            .cpus
            .get(v.cpu)
            .and_then(|c| c.current)
            .filter(|c| *c != vcpu);
        Some(Explanation {
            report: self.vcpu(vcpu)?,
            terms: self.terms_on(vcpu, v.cpu)?,
            state,
            rival: current.and_then(|c| Some((c, self.terms_on(c, v.cpu)?))),
            preferred: self.wish(vcpu),
        })
    }

    /// The decision that `cpu` would explain now, without changing anything.
    pub fn running(&self, cpu: CpuId) -> Option<Pick> {
        let c = self.cpus.get(cpu)?;
        let vcpu = c.current?;
        self.explain_pick(cpu, vcpu, self.vcpus.get(vcpu)?.remaining)
    }
}
