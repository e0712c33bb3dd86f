//! The comparison of many seeds, as numbers, a table and plots.

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
    /// What each policy did, Perigee first.
    pub outcomes: Vec<Outcome>,
    /// Throughputs at the best static placement, where it was searched.
    pub optimum: Option<Vec<f64>>,
}

/// Perigee against one other.
#[derive(Clone, Debug, Serialize)]
pub struct Against {
    /// The other.
    pub other: String,
    /// Trials compared.
    pub trials: usize,
    /// Geometric mean over trials of the geometric mean over VMs of throughput ratios.
    pub geomean: f64,
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
    let ratio = |t: &Trial| {
        Some((
            geomean_ratio(&t.outcomes.first()?.throughput, &of(t)?),
            t.scenario.clone(),
        ))
    };
    let ratios: Vec<(f64, String)> = trials.iter().filter_map(ratio).collect();
    let by = |a: &&(f64, String), b: &&(f64, String)| a.0.total_cmp(&b.0);
    Some(Against {
        other: other.into(),
        trials: ratios.len(),
        geomean: (ratios.iter().map(|r| r.0.ln()).sum::<f64>() / ratios.len().max(1) as f64).exp(),
        worst: ratios.iter().min_by(by)?.clone(),
        best: ratios.iter().max_by(by)?.clone(),
        regressions: ratios.iter().filter(|r| r.0 < 0.98).count(),
        ratios: ratios.into_iter().map(|r| r.0).collect(),
    })
}

impl Report {
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
        let mut text = String::from("throughput of perigee, geometric mean over VMs and trials\n");
        for a in &self.against {
            let _ = writeln!(
                text,
                "  against {:<13} x{:.3} in {} trials, {} below 0.98; worst x{:.3} ({}); best x{:.3}",
                a.other, a.geomean, a.trials, a.regressions, a.worst.0, a.worst.1, a.best.0
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
