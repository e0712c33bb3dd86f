//! Pages as the observer outside counted them, and how well somebody else's opinion of them agrees.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use telemetry::touched::HotRange;

use crate::{Evidence, Machine};

/// Loads and stores of one page.
pub(crate) type Touches = (u64, u64);

/// What was touched while a window was open.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Observed {
    /// By number of the page in the guest's linear addresses.
    pub(crate) linear: BTreeMap<u64, Touches>,
    /// By number of the machine's page.
    pub(crate) machine: BTreeMap<u64, Touches>,
    /// Accesses by node of the CPU (row) and of the memory.
    pub(crate) matrix: Vec<Vec<u64>>,
}

impl Observed {
    /// All windows of a run, oldest first.
    ///
    /// # Errors
    /// The observer's report is missing, incomplete, or not what it should be.
    pub(crate) fn windows(evidence: &Evidence) -> Result<Vec<Self>, String> {
        let report = evidence
            .plugin
            .as_ref()
            .ok_or("the observer outside wrote no report")?;
        if report["complete"] != true || report["shared_thread"] != false {
            return Err("the observer's report is incomplete, or CPUs shared a host thread".into());
        }
        let windows = report["page_windows"].as_array();
        let windows = windows.ok_or("the observer's report has no windows")?;
        windows
            .iter()
            .map(|w| Self::read(w, &evidence.machine))
            .collect()
    }

    /// The only window of a run that must have one.
    ///
    /// # Errors
    /// As [`Observed::windows`], or there are none or several.
    pub(crate) fn only(evidence: &Evidence) -> Result<Self, String> {
        let mut windows = Self::windows(evidence)?;
        match (windows.pop(), windows.len()) {
            (Some(window), 0) => Ok(window),
            (last, before) => Err(format!(
                "the guest should have opened one window, not {}",
                before + usize::from(last.is_some())
            )),
        }
    }

    fn read(window: &Value, machine: &Machine) -> Result<Self, String> {
        let node_of_cpu: Vec<usize> = machine
            .nodes
            .iter()
            .enumerate()
            .flat_map(|(node, n)| (0..n.cpus).map(move |_| node))
            .collect();
        let nodes = machine.nodes.len();
        let mut matrix = vec![vec![0; nodes]; nodes];
        let mut pages = |key: &str| -> Result<BTreeMap<u64, Touches>, String> {
            let wrong = || format!("the observer's {key} pages are not what they should be");
            type Page = (u64, Option<usize>, Vec<(usize, u64, u64)>);
            let pages: Vec<Page> =
                serde_json::from_value(window[key].clone()).map_err(|_| wrong())?;
            let mut by_page = BTreeMap::new();
            for (page, node, cpus) in pages {
                let touches = cpus
                    .iter()
                    .fold((0, 0), |sum, c| (sum.0 + c.1, sum.1 + c.2));
                by_page.insert(page, touches);
                let Some(node) = node else { continue };
                for (cpu, loads, stores) in cpus {
                    let row = node_of_cpu.get(cpu).and_then(|row| matrix.get_mut(*row));
                    let cell = row.and_then(|row| row.get_mut(node)).ok_or_else(wrong)?;
                    *cell += loads + stores;
                }
            }
            Ok(by_page)
        };
        let (linear, by_frame) = (pages("linear")?, pages("machine")?);
        Ok(Self {
            linear,
            machine: by_frame,
            matrix,
        })
    }
}

/// The smallest set of pages that takes 80 % of the accesses.
pub(crate) fn hot_set(pages: &BTreeMap<u64, Touches>) -> BTreeSet<u64> {
    let mut sorted: Vec<(u64, u64)> = pages.iter().map(|(page, t)| (t.0 + t.1, *page)).collect();
    sorted.sort_unstable_by(|a, b| b.cmp(a));
    let total: u128 = sorted.iter().map(|(count, _)| u128::from(*count)).sum();
    let mut sum = 0;
    let hot = sorted.into_iter().take_while(|(count, _)| {
        let more = sum * 5 < total * 4;
        sum += u128::from(*count);
        more
    });
    hot.map(|(_, page)| page).collect()
}

/// The same, where which pages make it the smallest is a matter of chance: of pages that were touched as often as the last
/// one of the set, but for a twentieth, those that are believed come first. A program that walks a buffer touches all of its
/// pages alike, and a window that begins a moment later has others of them.
pub(crate) fn hot_set_as_believed(
    pages: &BTreeMap<u64, Touches>,
    belief: &BTreeSet<u64>,
) -> BTreeSet<u64> {
    let count = |page: &u64| pages.get(page).map_or(0, |t| t.0 + t.1);
    let smallest = hot_set(pages);
    let last = smallest.iter().map(count).min().unwrap_or(0);
    let alike = |page: &&u64| count(page).abs_diff(last) <= last / 20;
    let mut hot: BTreeSet<u64> = smallest.iter().filter(|p| !alike(p)).copied().collect();
    let believed_first = |page: &&u64| (!belief.contains(page), **page);
    let mut others: Vec<&u64> = pages.keys().filter(alike).collect();
    others.sort_unstable_by_key(believed_first);
    let missing = smallest.len() - hot.len();
    hot.extend(others.into_iter().take(missing));
    hot
}

/// The first `hot` pages of what Perigee believes, hottest first; `number` names a range's first page as the observer does.
///
/// # Errors
/// More is said to be hot than was told.
pub(crate) fn believed(
    ranges: &[HotRange],
    hot: u64,
    number: impl Fn(&HotRange) -> u64,
) -> Result<BTreeSet<u64>, String> {
    let pages = ranges.iter().flat_map(|range| {
        let first = number(range);
        first..first + range.pages
    });
    let told = ranges.iter().map(|range| range.pages).sum::<u64>();
    if told < hot {
        return Err(format!(
            "{hot} pages are said to be hot, and {told} were told"
        ));
    }
    Ok(pages.zip(0..hot).map(|(page, _)| page).collect())
}

/// Precision, recall and their harmonic mean, in thousandths.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Agreement {
    pub(crate) precision: u64,
    pub(crate) recall: u64,
    pub(crate) f1: u64,
}

/// How well a belief agrees with the truth.
pub(crate) fn agreement(truth: &BTreeSet<u64>, belief: &BTreeSet<u64>) -> Agreement {
    let both = truth.intersection(belief).count() as u64;
    let share = |of: u64| (both * 1000).checked_div(of).unwrap_or(0);
    let (t, b) = (truth.len() as u64, belief.len() as u64);
    Agreement {
        precision: share(b),
        recall: share(t),
        f1: (2000 * both).checked_div(t + b).unwrap_or(0),
    }
}

/// The sum of |F - truth| over the sum of the truth, both as shares of their totals, in thousandths.
pub(crate) fn attribution_error(truth: &[Vec<u64>], believed: &[Vec<u64>]) -> u64 {
    let total = |m: &[Vec<u64>]| m.iter().flatten().map(|n| *n as f64).sum::<f64>().max(1.0);
    let (all, all_believed) = (total(truth), total(believed));
    let cell = |m: &[Vec<u64>], k: usize, n: usize| {
        m.get(k).and_then(|row| row.get(n)).copied().unwrap_or(0) as f64
    };
    let size = truth.len().max(believed.len());
    let error: f64 = (0..size)
        .flat_map(|k| (0..size).map(move |n| (k, n)))
        .map(|(k, n)| (cell(truth, k, n) / all - cell(believed, k, n) / all_believed).abs())
        .sum();
    (error * 1000.0).round() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hot_set_is_the_smallest_that_takes_four_fifths() {
        let pages = BTreeMap::from([(1, (40, 0)), (2, (1, 39)), (3, (10, 0)), (4, (0, 10))]);
        assert_eq!(hot_set(&pages), BTreeSet::from([1, 2]));
        let flat: BTreeMap<u64, Touches> = (0..10).map(|p| (p, (7, 0))).collect();
        assert_eq!(hot_set(&flat).len(), 8);
        assert!(hot_set(&BTreeMap::new()).is_empty());
    }

    fn range(first: u64, pages: u64, heat: u64) -> HotRange {
        HotRange {
            first,
            frame: first + 1000,
            pages,
            heat,
        }
    }

    #[test]
    fn of_pages_that_are_touched_alike_the_hot_set_has_those_that_are_believed() {
        let counts = [
            (1, 400),
            (2, 200),
            (3, 101),
            (4, 100),
            (5, 99),
            (6, 60),
            (7, 40),
        ];
        let pages: BTreeMap<u64, Touches> = counts.map(|(p, n)| (p, (n, 0))).into();
        assert_eq!(hot_set(&pages), BTreeSet::from([1, 2, 3, 4]));
        let as_believed = |belief: &[u64]| {
            let belief = belief.iter().copied().collect();
            hot_set_as_believed(&pages, &belief)
                .into_iter()
                .collect::<Vec<_>>()
        };
        assert_eq!(as_believed(&[1, 2, 5, 4]), [1, 2, 4, 5]);
        assert_eq!(
            as_believed(&[1, 5, 6]),
            [1, 2, 3, 5],
            "and no page that is colder"
        );
        assert_eq!(as_believed(&[]), [1, 2, 3, 4]);
    }

    #[test]
    fn belief_is_as_many_of_the_first_pages_as_are_said_to_be_hot() {
        let ranges = [range(7, 1, 45), range(20, 2, 45), range(512, 512, 10)];
        let first = |r: &HotRange| r.first;
        let set = |pages: &[u64]| Ok(pages.iter().copied().collect());
        assert_eq!(believed(&ranges, 3, first), set(&[7, 20, 21]));
        assert_eq!(believed(&ranges, 2, |r| r.frame), set(&[1007, 1020]));
        assert_eq!(believed(&ranges, 0, first), set(&[]));
        assert!(
            believed(&ranges, 516, first).is_err(),
            "too much was not told"
        );
    }

    #[test]
    fn agreement_is_what_textbooks_say() {
        let (truth, belief) = (BTreeSet::from([1, 2, 3, 4]), BTreeSet::from([3, 4, 5]));
        let expected = Agreement {
            precision: 666,
            recall: 500,
            f1: 571,
        };
        assert_eq!(agreement(&truth, &belief), expected);
        assert_eq!(agreement(&truth, &truth).f1, 1000);
        assert_eq!(agreement(&truth, &BTreeSet::new()).f1, 0);
        let diagonal = [vec![50, 0], vec![0, 50]];
        assert_eq!(attribution_error(&diagonal, &[vec![7, 0], vec![0, 7]]), 0);
        assert_eq!(
            attribution_error(&diagonal, &[vec![1, 1], vec![1, 1]]),
            1000
        );
        assert_eq!(attribution_error(&diagonal, &[]), 1000);
    }

    #[test]
    fn windows_are_read_by_page_and_by_node() {
        let window = serde_json::json!({
            "machine": [[5, 0, [[0, 3, 1], [1, 2, 0]]], [9, 1, [[1, 0, 4]]]],
            "linear": [[1, null, [[0, 3, 1]]]],
        });
        let machine = Machine::row(2, 1, 256);
        let observed = Observed::read(&window, &machine).expect("as it should be");
        assert_eq!(observed.machine, BTreeMap::from([(5, (5, 1)), (9, (0, 4))]));
        assert_eq!(observed.linear, BTreeMap::from([(1, (3, 1))]));
        assert_eq!(observed.matrix, [vec![4, 0], vec![2, 4]]);
        assert!(Observed::read(&serde_json::json!({"machine": 1}), &machine).is_err());
    }
}
