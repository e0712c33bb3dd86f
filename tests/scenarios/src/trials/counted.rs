//! What the observer outside counted, as numbers that a judge can ask for.

use serde_json::Value;

use crate::Evidence;

/// Windows that the beginning and the end of a series are judged by.
const EDGE: usize = 5;
/// Windows that a series must have: the edges are a small part of it.
const LEAST: usize = 4 * EDGE;

/// The tagged accesses of one VM's workload over time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Counted {
    /// By window, node of the CPU, node of the memory.
    windows: Vec<Vec<Vec<u64>>>,
}

impl Counted {
    /// What was counted behind `tag`; `None` if that code never ran.
    ///
    /// # Errors
    /// The observer's report is missing, incomplete or not to be trusted.
    pub(crate) fn of(evidence: &Evidence, tag: u64) -> Result<Option<Self>, String> {
        let report = evidence
            .plugin
            .as_ref()
            .ok_or("the observer outside wrote no report")?;
        if report["version"] != 1 || report["complete"] != true || report["shared_thread"] != false
        {
            return Err("the observer's report is incomplete, or CPUs shared a host thread".into());
        }
        let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
        let Some(found) = list(&report["tags"]).into_iter().find(|t| t["tag"] == tag) else {
            return Ok(None);
        };
        if found["outside"] != 0 {
            return Err(format!(
                "accesses went to no node's memory: {}",
                found["outside"]
            ));
        }
        let number = |cell: &Value| {
            cell.as_u64()
                .ok_or_else(|| format!("{cell} is not a count"))
        };
        let row = |row: &Value| {
            list(row)
                .iter()
                .map(number)
                .collect::<Result<Vec<u64>, String>>()
        };
        let window = |w: &Value| {
            list(&w["matrix"])
                .iter()
                .map(row)
                .collect::<Result<Vec<_>, String>>()
        };
        let windows = list(&found["windows"])
            .iter()
            .map(window)
            .collect::<Result<_, _>>()?;
        Ok(Some(Self { windows }))
    }

    /// The same, for a workload that must have run long enough to have a beginning and an end.
    ///
    /// # Errors
    /// As [`Counted::of`], or too little was counted.
    pub(crate) fn enough(evidence: &Evidence, tag: u64) -> Result<Self, String> {
        let counted =
            Self::of(evidence, tag)?.ok_or("the observer outside saw no access of the workload")?;
        match counted.windows.len() {
            LEAST.. => Ok(counted),
            few => Err(format!(
                "the observer outside counted {few} windows only, {LEAST} are needed"
            )),
        }
    }

    /// Percentage of accesses at the beginning from a CPU node to a memory node that `which` accepts.
    pub(crate) fn first(&self, which: impl Fn(usize, usize) -> bool) -> u64 {
        percent(self.windows.iter().take(EDGE), which)
    }

    /// The same at the end.
    pub(crate) fn last(&self, which: impl Fn(usize, usize) -> bool) -> u64 {
        percent(
            self.windows
                .iter()
                .rev()
                .take(EDGE.max(self.windows.len() / 10)),
            which,
        )
    }

    /// The same of each window.
    pub(crate) fn by_window(&self, which: impl Fn(usize, usize) -> bool) -> Vec<u64> {
        let windows = self.windows.iter();
        windows
            .map(|w| percent(core::iter::once(w), &which))
            .collect()
    }

    /// The same in all.
    pub(crate) fn all(&self, which: impl Fn(usize, usize) -> bool) -> u64 {
        percent(self.windows.iter(), which)
    }
}

/// Rounded down.
fn percent<'a>(
    windows: impl Iterator<Item = &'a Vec<Vec<u64>>>,
    which: impl Fn(usize, usize) -> bool,
) -> u64 {
    let (mut part, mut whole) = (0, 0);
    for (cpu, row) in windows.flat_map(|w| w.iter().enumerate()) {
        for (memory, count) in row.iter().enumerate() {
            whole += count;
            part += count * u64::from(which(cpu, memory));
        }
    }
    (part * 100_u64).checked_div(whole).unwrap_or(0)
}

/// Accesses within a node.
pub(crate) fn local(cpu: usize, memory: usize) -> bool {
    cpu == memory
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::Machine;
    use serde_json::json;

    /// A report of two nodes whose windows go from CPU node and to memory node as listed.
    pub(crate) fn report(tag: u64, nodes: usize, windows: &[(usize, usize)]) -> Value {
        let window = |&(cpu, memory): &(usize, usize)| {
            let mut matrix = vec![vec![0; nodes]; nodes];
            matrix[cpu][memory] = 1000;
            json!({"start_ms": 0, "accesses": 1000, "matrix": matrix})
        };
        let windows: Vec<Value> = windows.iter().map(window).collect();
        json!({"version": 1, "complete": true, "shared_thread": false,
               "tags": [{"tag": tag, "outside": 0, "windows": windows}]})
    }

    pub(crate) fn evidence(plugin: Value) -> Evidence {
        Evidence {
            machine: Machine::row(4, 2, 512),
            plugin: Some(plugin),
            ..Evidence::clean(&[], &[])
        }
    }

    #[test]
    fn beginning_and_end_are_told_apart() {
        let windows = [[(0, 1); 30], [(1, 1); 30]].concat();
        let counted = Counted::enough(&evidence(report(2, 2, &windows)), 2).expect("a good report");
        assert_eq!(
            (
                counted.first(local),
                counted.last(local),
                counted.all(local)
            ),
            (0, 100, 50)
        );
        assert_eq!(counted.first(|cpu, memory| (cpu, memory) == (0, 1)), 100);
    }

    #[test]
    fn a_report_that_proves_nothing_is_refused() {
        let good = report(2, 2, &[(0, 0); 30]);
        let refused = |change: fn(&mut Value)| {
            let mut bad = good.clone();
            change(&mut bad);
            Counted::enough(&evidence(bad), 2).is_err()
        };
        assert!(!refused(|_| ()));
        assert!(refused(|r| r["complete"] = false.into()));
        assert!(refused(|r| r["shared_thread"] = true.into()));
        assert!(refused(|r| r["tags"][0]["outside"] = 1.into()));
        assert!(refused(|r| r["tags"][0]["tag"] = 3.into()));
        assert!(refused(|r| r["tags"][0]["windows"] = json!([])));
        assert!(refused(
            |r| r["tags"][0]["windows"][0]["matrix"][0][0] = "x".into()
        ));
    }
}
