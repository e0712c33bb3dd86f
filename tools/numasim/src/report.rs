//! The comparison of many seeds, as numbers, a table and plots.

use anyhow::{Result, bail};
use serde::Serialize;
use std::fmt::Write as _;

use crate::measure::{Outcome, geomean_ratio};

/// One seed.
#[derive(Clone, Debug, Serialize)]
pub struct Trial {
    /// The scenario's name.
    pub scenario: String,
    /// Its seed.
    pub seed: u64,
    /// What each VM is entitled to: its weight times its vCPUs.
    pub entitled: Vec<f64>,
    /// What each policy did, Perigee first.
    pub outcomes: Vec<Outcome>,
    /// Throughputs at the best static placement, where it was searched.
    pub optimum: Option<Vec<f64>>,
}

/// Perigee against one other.
///
/// A trial's ratio is the geometric mean over VMs of the ratios of their throughputs, each VM counted by its
/// weight times its vCPUs. Of all ways to divide a host's time, that mean is largest where each has
/// the share that its weight says (proportional fairness; Kelly, Maulloo and Tan 1998). Counted by
/// heads, a policy would gain by ignoring weights: who gives a VM of weight 1 what belongs to one of weight 4 doubles
/// one and takes a quarter from the other. The mean by heads is told beside it.
#[derive(Clone, Debug, Serialize)]
pub struct Against {
    /// The other.
    pub other: String,
    /// Trials compared.
    pub trials: usize,
    /// Geometric mean over trials.
    pub geomean: f64,
    /// The same, and the worst trial's, if each VM counts the same whatever its weight.
    pub by_heads: (f64, f64),
    /// The worst trial: ratio and scenario.
    pub worst: (f64, String),
    /// The best trial.
    pub best: (f64, String),
    /// Trials in which Perigee loses more than 2 %.
    pub regressions: usize,
    /// Ratio of each trial, in order of seed.
    pub ratios: Vec<f64>,
}

/// A report.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Comparisons.
    pub against: Vec<Against>,
    /// Means over trials of each policy's figures.
    pub policies: Vec<Figures>,
    /// All trials.
    pub trials: Vec<Trial>,
}

/// A policy's figures, averaged over trials.
#[derive(Clone, Debug, Serialize)]
pub struct Figures {
    /// The policy.
    pub policy: String,
    /// Part of accesses that are local.
    pub local: f64,
    /// Median over trials of the 99th percentile of wake-up latency, us.
    pub wake_p99_us: f64,
    /// The largest of them.
    pub wake_p99_worst_us: f64,
    /// Node changes of vCPUs a minute.
    pub moves_per_minute: f64,
    /// Pages moved a minute.
    pub pages_per_minute: f64,
}

fn against(
    trials: &[Trial],
    other: &str,
    of: impl Fn(&Trial) -> Option<Vec<f64>>,
) -> Option<Against> {
    let ratio = |t: &Trial, parts: &[f64]| {
        let ours = &t.outcomes.first()?.throughput;
        Some(geomean_ratio(ours, &of(t)?, parts))
    };
    let by_shares = |t: &Trial| Some((ratio(t, &t.entitled)?, t.scenario.clone()));
    let ratios: Vec<(f64, String)> = trials.iter().filter_map(by_shares).collect();
    let heads = |t: &Trial| ratio(t, &vec![1.0; t.entitled.len()]);
    let heads: Vec<f64> = trials.iter().filter_map(heads).collect();
    let mean = |logs: &mut dyn Iterator<Item = f64>| {
        (logs.sum::<f64>() / ratios.len().max(1) as f64).exp()
    };
    let by = |a: &&(f64, String), b: &&(f64, String)| a.0.total_cmp(&b.0);
    Some(Against {
        other: other.into(),
        trials: ratios.len(),
        geomean: mean(&mut ratios.iter().map(|r| r.0.ln())),
        by_heads: (
            mean(&mut heads.iter().map(|r| r.ln())),
            heads.iter().copied().fold(f64::INFINITY, f64::min),
        ),
        worst: ratios.iter().min_by(by)?.clone(),
        best: ratios.iter().max_by(by)?.clone(),
        regressions: ratios.iter().filter(|r| r.0 < 0.98).count(),
        ratios: ratios.into_iter().map(|r| r.0).collect(),
    })
}

impl Report {
    /// Whether Perigee reached so many per cent of each other policy in every trial.
    ///
    /// # Errors
    /// The policy and the trial in which it did not.
    pub fn holds(&self, per_cent: f64) -> Result<()> {
        for a in &self.against {
            let (ratio, trial) = &a.worst;
            if ratio * 100.0 < per_cent {
                bail!(
                    "{:.1} % of {} in {trial} are less than {per_cent} %",
                    ratio * 100.0,
                    a.other
                );
            }
        }
        Ok(())
    }

    /// Of these trials, each with the same policies in the same order.
    pub fn of(trials: Vec<Trial>) -> Self {
        let names: Vec<String> = trials
            .first()
            .map(|t| t.outcomes.iter().map(|o| o.policy.clone()).collect())
            .unwrap_or_default();
        let mut list = Vec::new();
        for (i, name) in names.iter().enumerate().skip(1) {
            list.extend(against(&trials, name, |t| {
                Some(t.outcomes.get(i)?.throughput.clone())
            }));
        }
        list.extend(against(&trials, "optimum", |t| t.optimum.clone()));
        let n = trials.len().max(1) as f64;
        let figures = |(i, name): (usize, &String)| {
            let mean = |of: &dyn Fn(&Outcome) -> f64| {
                trials
                    .iter()
                    .filter_map(|t| t.outcomes.get(i))
                    .map(of)
                    .sum::<f64>()
                    / n
            };
            let mut p99: Vec<f64> = trials
                .iter()
                .filter_map(|t| Some(t.outcomes.get(i)?.wake_p99_us))
                .collect();
            p99.sort_by(f64::total_cmp);
            Figures {
                policy: name.clone(),
                local: mean(&|o| o.local),
                wake_p99_us: p99.get(p99.len() / 2).copied().unwrap_or(0.0),
                wake_p99_worst_us: p99.last().copied().unwrap_or(0.0),
                moves_per_minute: mean(&|o| o.moves_per_minute),
                pages_per_minute: mean(&|o| o.pages_per_minute),
            }
        };
        Self {
            policies: names.iter().enumerate().map(figures).collect(),
            against: list,
            trials,
        }
    }

    /// As a table for a terminal.
    pub fn table(&self) -> String {
        let mut text = String::from(
            "throughput of perigee, geometric mean over VMs by weight, and over trials\n",
        );
        for a in &self.against {
            let _ = writeln!(
                text,
                "  against {:<13} x{:.3} in {} trials, {} below 0.98; worst x{:.3} ({}); best x{:.3}; by heads x{:.3}, worst x{:.3}",
                a.other,
                a.geomean,
                a.trials,
                a.regressions,
                a.worst.0,
                a.worst.1,
                a.best.0,
                a.by_heads.0,
                a.by_heads.1
            );
        }
        let _ = writeln!(
            text,
            "{:<14} {:>8} {:>12} {:>12} {:>12} {:>12}",
            "policy", "local", "wake p99 us", "worst us", "moves/min", "pages/min"
        );
        for p in &self.policies {
            let _ = writeln!(
                text,
                "{:<14} {:>7.1}% {:>12.0} {:>12.0} {:>12.1} {:>12.0}",
                p.policy,
                p.local * 100.0,
                p.wake_p99_us,
                p.wake_p99_worst_us,
                p.moves_per_minute,
                p.pages_per_minute
            );
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trial(seed: u64, theirs: f64) -> Trial {
        let outcome = |policy: &str, throughput: f64| Outcome {
            policy: policy.into(),
            throughput: vec![throughput, 5.0],
            cpus: vec![1.0, 1.0],
            local: 1.0,
            moves_per_minute: 0.0,
            pages_per_minute: 0.0,
            wake_p50_us: 0.0,
            wake_p99_us: 0.0,
        };
        Trial {
            scenario: format!("seed {seed}"),
            seed,
            entitled: vec![1.0, 1.0],
            outcomes: vec![outcome("perigee", 4.0), outcome("other", theirs)],
            optimum: None,
        }
    }

    #[test]
    fn a_bound_holds_only_if_it_does_in_every_trial() {
        // The second: the root of 4 / 4.41 is 0.952.
        let report = Report::of(vec![trial(1, 4.0), trial(2, 4.41), trial(3, 1.0)]);
        assert!(report.holds(95.0).is_ok());
        let why = report.holds(96.0).expect_err("seed 2 is below").to_string();
        assert!(why.contains("95.2 % of other in seed 2"), "{why}");
    }
}
