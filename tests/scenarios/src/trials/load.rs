//! How busy memories and links are, as the operator is told: counted where caches count (injected ones, as no emulator's do:
//! [`config::Sabotage`], `inject-counters`), else estimated, and unknown where firmware does not say what could be carried.

use std::time::Duration;

use units::PerMille;

use crate::{Evidence, Machine, Scenario, Vm};

const BEAT: &str = "[beat] COUNT ms=";
/// Seconds until a rate that remembers about one is what was injected.
const SETTLES: usize = 8;
/// What CPUs of node 0 are said to move, and how much of it to and from node 1, in MB/s.
const ALL: u64 = 10_000;
const FAR: u64 = 4_000;

/// The trials of this file.
pub fn scenarios() -> Vec<Scenario> {
    vec![counted(), estimated(), unknown()]
}

fn counted() -> Scenario {
    let trial = Scenario::quick(
        "load-is-counted",
        "counted traffic shows as load of memory and link, rises and falls with what goes through, and its source is named",
        follows_what_is_counted,
    )
    .on(Machine::row(2, 1, 512))
    // Its CPUs say that they share a cache, which tells traffic of one node only.
    .on_bochs(Machine::row(1, 2, 384))
    .sabotaged("inject-counters")
    .vm(Vm::probe("beat", &format!("count seconds={}", 2 * SETTLES + 6))
        .set("memory", "\"34M\"")
        .set("start_node", "0")
        .set("mode", "\"off\""))
    .within(Duration::from_secs(300));
    let rise = format!("load\rinject node 0 mb-s={ALL} far-mb-s={FAR}\r");
    let trial = trial.wait_for(BEAT, 1).type_after(BEAT, &rise);
    let trial = trial.wait_for(BEAT, SETTLES - 1);
    let trial = trial.type_after(BEAT, "load\rinject node 0 mb-s=0\r");
    trial.wait_for(BEAT, SETTLES - 1).type_after(BEAT, "load\r")
}

fn estimated() -> Scenario {
    Scenario::quick(
        "load-is-estimated",
        "without counts a VM's traffic is estimated from what it touches, where it goes, and that is said",
        says_that_it_estimates,
    )
    .on(Machine::row(2, 1, 512))
    .on_bochs(Machine::row(2, 1, 256))
    .vm(Vm::probe("probe", "touch layout=hot seed=7 mib=16 seconds=8")
        .set("memory_nodes", "[1]")
        .set("start_node", "0")
        .set("mode", "\"off\""))
    // The probe goes on touching until it gets its key.
    .type_after("PROBE window closed", "load\r\u{1}1g\u{1}0")
    .within(Duration::from_secs(300))
}

fn unknown() -> Scenario {
    Scenario::quick(
        "load-is-unknown",
        "where firmware does not say what memory could carry there is no load, and that is said",
        |e| {
            let row = look(e, 0, &["node0"])?;
            let told = row.source.starts_with("unknown: no bandwidth known");
            if row.of.is_some() || row.load.is_some() || !told {
                return Err(format!("nobody can know a load: {row:?}"));
            }
            e.every_guest_is_well(1)
        },
    )
    .on(Machine::row(1, 1, 256).without_srat())
    .vm(Vm::micro("alpha", "hostile", "attack=count seconds=3"))
    .type_after("[alpha] GUEST-UP", "load\r")
}

/// A line of the answer to `load`.
#[derive(Clone, Debug)]
struct Row {
    mb_s: u64,
    of: Option<u64>,
    load: Option<PerMille>,
    source: String,
}

/// What the operator was told at the n-th look about a node, or about the way from one to another.
fn look(e: &Evidence, number: usize, of: &[&str]) -> Result<Row, String> {
    let mut rows = e.console.iter().filter_map(|line| row(&line.what, of));
    let missing = || format!("look {number} at the load of {of:?} was not answered");
    rows.nth(number).ok_or_else(missing)
}

/// Columns are two spaces apart or more; where the second of a node's is the use of its CPUs.
fn row(line: &str, of: &[&str]) -> Option<Row> {
    let cells = line.split("  ").map(str::trim);
    let cells: Vec<&str> = cells.filter(|cell| !cell.is_empty()).collect();
    let [first, second, mb_s, capacity, load, source] = cells.as_slice() else {
        return None;
    };
    let asked = match of {
        [node] => first == node && !second.starts_with("node"),
        [from, to] => first == from && second == to,
        _ => false,
    };
    let load = load.strip_suffix(" %").and_then(|percent| {
        let (whole, tenth) = percent.split_once('.')?;
        Some(PerMille(
            10 * whole.parse::<u16>().ok()? + tenth.parse::<u16>().ok()?,
        ))
    });
    Some(Row {
        mb_s: mb_s.parse().ok()?,
        of: capacity.parse().ok(),
        load,
        source: (*source).to_owned(),
    })
    .filter(|_| asked)
}

impl Row {
    /// Whether it is about `mb_s`, a part of what can be carried, and somebody who `says` so.
    fn tells(&self, mb_s: u64, says: &str) -> Result<(), String> {
        let load = self.load.zip(self.of);
        // Both are rounded.
        let right =
            load.is_some_and(|(load, of)| load.0.abs_diff(PerMille::ratio(self.mb_s, of).0) <= 1);
        if self.mb_s.abs_diff(mb_s) > mb_s / 20 + 50 || !right || !self.source.starts_with(says) {
            return Err(format!(
                "{says} {mb_s} MB/s should be told, with their part of what there could be: {self:?}"
            ));
        }
        Ok(())
    }
}

const NODE0: &[&str] = &["node0"];
const NODE1: &[&str] = &["node1"];
const LINK: &[&str] = &["node0", "node1"];

fn follows_what_is_counted(e: &Evidence) -> Result<(), String> {
    e.every_guest_is_well(1)?;
    for (number, (near, far)) in [(0, 0), (ALL - FAR, FAR), (0, 0)].into_iter().enumerate() {
        if e.machine.nodes.len() == 1 {
            // There is nowhere else.
            look(e, number, NODE0)?.tells(near + far, "counted (")?;
            continue;
        }
        look(e, number, NODE0)?.tells(near, "counted (")?;
        look(e, number, NODE1)?.tells(far, "counted (")?;
        look(e, number, LINK)?.tells(far, "counted (")?;
    }
    let counts = "last-level caches counts bytes to all memory and to near memory";
    e.line(counts)
        .map(|_| ())
        .ok_or_else(|| format!("the operator was not told {counts:?}"))
}

fn says_that_it_estimates(e: &Evidence) -> Result<(), String> {
    e.every_guest_is_well(1)?;
    // 128 MB/s are assumed of a virtual CPU that runs all the time (`migrate::Tunables`), nearly all of it to where its memory is.
    let (near, far) = (look(e, 0, NODE0)?, look(e, 0, NODE1)?);
    let link = look(e, 0, LINK)?;
    if !(20..=130).contains(&link.mb_s) || near.mb_s > 10 {
        return Err(format!(
            "the VM runs on node 0 and touches node 1: {near:?}, {link:?}"
        ));
    }
    far.tells(link.mb_s, "estimated from accessed bits")?;
    link.tells(link.mb_s, "estimated from accessed bits")?;
    let absent = "memory bandwidth is not counted: CPUID offers no monitoring";
    e.line(absent)
        .map(|_| ())
        .ok_or_else(|| format!("the operator was not told {absent:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Stamped;
    use crate::trials::counted::tests::evidence;

    fn said(lines: &[&str]) -> Evidence {
        let mut e = evidence(serde_json::json!(null));
        e.machine = Machine::row(2, 1, 512);
        let stamped = |line: &&str| Stamped {
            at: Duration::ZERO,
            what: (*line).into(),
        };
        e.console = lines.iter().map(stamped).collect();
        e
    }

    const COUNTS: &str = "memory bandwidth: each of 2 last-level caches counts bytes to all memory and to near memory, in units of 64";

    #[test]
    fn a_load_that_follows_its_counts_convinces() {
        let quiet = [
            "  node0    3.1 %            0    40960   0.0 %  counted (APM 2 19.3.3)",
            "  node1  100.0 %            0    40960   0.0 %  counted (APM 2 19.3.3)",
            "  node0  node1          0    20480   0.0 %  counted (APM 2 19.3.3)",
        ];
        let busy = [
            "  node0    3.1 %         5990    40960  14.6 %  counted (APM 2 19.3.3)",
            "  node1  100.0 %         3993    40960   9.7 %  counted (APM 2 19.3.3)",
            "  node0  node1       3993    20480  19.5 %  counted (APM 2 19.3.3)",
        ];
        let run = |second: [&str; 3], last: &[&str]| {
            let looks = [&quiet[..], &second[..], last, &[COUNTS][..]].concat();
            follows_what_is_counted(&said(&looks))
        };
        assert_eq!(run(busy, &quiet), Ok(()));
        let refused = |verdict: Result<(), String>, why: &str| {
            assert!(
                verdict.as_ref().is_err_and(|said| said.contains(why)),
                "{verdict:?}"
            );
        };
        refused(run(quiet, &quiet), "6000 MB/s");
        refused(run(busy, &busy), " 0 MB/s");
        refused(run(busy, &[]), "look 2");
        let mut wrong = busy;
        wrong[2] = "  node0  node1       3993    20480  9.5 %  counted (APM 2 19.3.3)";
        refused(run(wrong, &quiet), "4000 MB/s");
        wrong[2] = "  node0  node1       3993    20480  19.5 %  estimated from accessed bits";
        refused(run(wrong, &quiet), "counted (");
        wrong[2] = "  node0  node1       3993    -  -  unknown: no bandwidth known; traffic counted (APM 2 19.3.3)";
        refused(run(wrong, &quiet), "4000 MB/s");
    }

    #[test]
    fn an_estimate_that_goes_where_the_memory_is_convinces() {
        let absent = "memory bandwidth is not counted: CPUID offers no monitoring of the L3 cache";
        let run = |link: &str| {
            let near =
                "  node0  100.0 %            0    40960   0.0 %  estimated from accessed bits";
            let far =
                "  node1    0.0 %          120    40960   0.3 %  estimated from accessed bits";
            says_that_it_estimates(&said(&[near, far, link, absent]))
        };
        assert_eq!(
            run("  node0  node1        120    20480   0.6 %  estimated from accessed bits"),
            Ok(())
        );
        assert!(
            run("  node0  node1          0    20480   0.0 %  estimated from accessed bits")
                .is_err()
        );
        assert!(run("  node0  node1        120    20480   0.6 %  counted (APM 2 19.3.3)").is_err());
    }
}
