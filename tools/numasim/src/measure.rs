//! What a run is judged by.

use serde::Serialize;

use crate::workload::Kind;
use crate::world::World;

/// Counters of a run.
#[derive(Clone, Debug)]
pub struct Measure {
    local: Vec<f64>,
    all: Vec<f64>,
    bursts: Vec<u64>,
    moves: Vec<u64>,
    pages: u64,
    /// Wake-up latencies in buckets of a quarter of an octave of ns.
    wakes: Vec<u64>,
    /// Work and rounds at the end of the warm-up.
    from: Vec<f64>,
    ran_from: Vec<u64>,
    from_time: u64,
}

/// A run's result.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    /// The policy.
    pub policy: String,
    /// Throughput of each VM: ns of work, bursts, or rounds, in a second.
    pub throughput: Vec<f64>,
    /// CPUs that each VM used, on average.
    pub cpus: Vec<f64>,
    /// Part of the accesses that went to the node where they came from.
    pub local: f64,
    /// Node changes of vCPUs in a minute, of all VMs.
    pub moves_per_minute: f64,
    /// Pages moved in a minute.
    pub pages_per_minute: f64,
    /// Median wake-up latency in us.
    pub wake_p50_us: f64,
    /// The 99th percentile.
    pub wake_p99_us: f64,
}

const PER_OCTAVE: f64 = 4.0;

impl Measure {
    /// Nothing counted.
    pub fn new(w: &World) -> Self {
        let n = w.vms.len();
        Self {
            local: vec![0.0; n],
            all: vec![0.0; n],
            bursts: vec![0; n],
            moves: vec![0; n],
            pages: 0,
            wakes: vec![0; 160],
            from: vec![0.0; n],
            ran_from: vec![0; n],
            from_time: 0,
        }
    }

    /// The warm-up is over: what was counted is forgotten.
    pub fn begin(&mut self, w: &World) {
        *self = Self::new(w);
        self.from = (0..w.vms.len()).map(|vm| progress(w, vm)).collect();
        self.ran_from = (0..w.vms.len()).map(|vm| ran(w, vm)).collect();
        self.from_time = w.now;
    }

    pub(crate) fn accesses(&mut self, vm: usize, count: f64, local: f64) {
        self.all[vm] += count;
        self.local[vm] += count * local;
    }
    pub(crate) fn burst_done(&mut self, vm: usize) {
        self.bursts[vm] += 1;
    }
    pub(crate) fn node_move(&mut self, vm: usize) {
        self.moves[vm] += 1;
    }
    pub(crate) fn page_moved(&mut self) {
        self.pages += 1;
    }
    pub(crate) fn wake_latency(&mut self, _vm: usize, kind: Kind, ns: u64) {
        if kind.rhythm().is_some() {
            let bucket = ((ns.max(1) as f64).log2() * PER_OCTAVE) as usize;
            let last = self.wakes.len() - 1;
            self.wakes[bucket.min(last)] += 1;
        }
    }

    fn wake_percentile(&self, part: f64) -> f64 {
        let all: u64 = self.wakes.iter().sum();
        let mut seen = 0;
        for (bucket, count) in self.wakes.iter().enumerate() {
            seen += count;
            if all > 0 && seen as f64 >= part * all as f64 {
                return ((bucket + 1) as f64 / PER_OCTAVE).exp2() / 1000.0;
            }
        }
        0.0
    }

    /// The counts as a result.
    pub fn outcome(&self, policy: &str, w: &World) -> Outcome {
        let seconds = (w.now - self.from_time) as f64 / 1e9;
        let throughput = (0..w.vms.len()).map(|vm| {
            let done = if w.vms[vm].kind.rhythm().is_some() {
                self.bursts[vm] as f64
            } else {
                progress(w, vm) - self.from[vm]
            };
            done / seconds
        });
        let cpus =
            (0..w.vms.len()).map(|vm| (ran(w, vm) - self.ran_from[vm]) as f64 / 1e9 / seconds);
        let sum = |of: &[f64]| of.iter().sum::<f64>();
        let minutes = seconds / 60.0;
        Outcome {
            policy: policy.into(),
            throughput: throughput.collect(),
            cpus: cpus.collect(),
            local: sum(&self.local) / sum(&self.all).max(1e-9),
            moves_per_minute: self.moves.iter().sum::<u64>() as f64 / minutes,
            pages_per_minute: self.pages as f64 / minutes,
            wake_p50_us: self.wake_percentile(0.5),
            wake_p99_us: self.wake_percentile(0.99),
        }
    }
}

/// Time that a VM's vCPUs have run since the start.
fn ran(w: &World, vm: usize) -> u64 {
    w.vms[vm].vcpus.iter().map(|v| w.vcpus[*v].ran).sum()
}

/// What a VM has done since the start.
fn progress(w: &World, vm: usize) -> f64 {
    let vcpus = w.vms[vm].vcpus.iter().map(|v| &w.vcpus[*v]);
    if w.vms[vm].kind.lock().is_some() {
        vcpus.map(|v| v.rounds as f64).sum()
    } else {
        vcpus.map(|v| v.work).sum()
    }
}

/// Geometric mean of the ratios of two lists, of which each counts by its entry in `parts`; throughputs of zero count
/// as a millionth.
pub fn geomean_ratio(a: &[f64], b: &[f64], parts: &[f64]) -> f64 {
    let ratios = a.iter().zip(b).map(|(a, b)| a.max(1e-6) / b.max(1e-6));
    let logs = ratios.zip(parts).map(|(ratio, part)| part * ratio.ln());
    (logs.sum::<f64>() / parts.iter().sum::<f64>().max(1e-9)).exp()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_shares_nobody_gains_by_giving_one_what_is_anothers() {
        // Weights 1 and 3 on one CPU: as they say, and half and half.
        let (fair, unfair) = ([0.25, 0.75], [0.5, 0.5]);
        assert!(geomean_ratio(&fair, &unfair, &[1.0, 1.0]) < 0.9);
        assert!(geomean_ratio(&fair, &unfair, &[1.0, 3.0]) > 1.1);
        for other in [0.1, 0.2, 0.3, 0.6] {
            let other = [other, 1.0 - other];
            assert!(geomean_ratio(&fair, &other, &[1.0, 3.0]) > 1.0);
        }
    }
}
