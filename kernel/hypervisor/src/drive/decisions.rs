//! What was decided lately, so that somebody who asks why a virtual CPU is where it is can be told how it came there.
//!
//! Each CPU keeps the picks that it made and the moves that it carried out, with all their terms, in a ring of its own, and
//! writes to no other. Only who asks reads them all.

use crate::arch::percpu;
use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::fmt;
use spin::Mutex;
use telemetry::{MoveReason, Pick};
use units::{CpuId, Nanos, VcpuId};

/// Decisions that a CPU keeps.
const KEPT: usize = 128;

/// One decision about a virtual CPU.
#[derive(Clone, Copy, Debug)]
pub enum Decision {
    /// It was picked.
    Pick(Pick),
    /// It went to another CPU.
    Move {
        /// Which.
        vcpu: VcpuId,
        /// From where.
        from: CpuId,
        /// Where to.
        to: CpuId,
        /// Why.
        reason: MoveReason,
    },
}

impl Decision {
    const fn vcpu(&self) -> VcpuId {
        match self {
            Self::Pick(pick) => pick.vcpu,
            Self::Move { vcpu, .. } => *vcpu,
        }
    }
}

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pick(pick) => write!(f, "{pick}"),
            Self::Move {
                vcpu,
                from,
                to,
                reason,
            } => write!(f, "{vcpu} goes from {from} to {to}: {reason}"),
        }
    }
}

/// The rings of all CPUs, by number.
#[derive(Debug)]
pub struct Decisions(Vec<Mutex<VecDeque<(Nanos, Decision)>>>);

impl Decisions {
    /// Empty ones for so many CPUs.
    pub fn new(cpus: usize) -> Self {
        let ring = || Mutex::new(VecDeque::with_capacity(KEPT));
        Self(core::iter::repeat_with(ring).take(cpus).collect())
    }

    /// Notes one in this CPU's ring; the oldest goes.
    pub fn note(&self, at: Nanos, decision: Decision) {
        let Some(ring) = self.0.get(percpu::current().cpu.index()) else {
            return;
        };
        let mut ring = ring.lock();
        if ring.len() >= KEPT {
            ring.pop_front();
        }
        ring.push_back((at, decision));
    }

    /// The latest about a virtual CPU, at most so many, oldest first.
    pub fn about(&self, vcpu: VcpuId, most: usize) -> Vec<(Nanos, Decision)> {
        let mut found: Vec<(Nanos, Decision)> = Vec::new();
        for ring in &self.0 {
            let ring = ring.lock();
            let of_it = ring.iter().rev().filter(|(_, d)| d.vcpu() == vcpu);
            found.extend(of_it.take(most).copied());
        }
        found.sort_by_key(|(at, _)| *at);
        found.split_off(found.len().saturating_sub(most))
    }
}
