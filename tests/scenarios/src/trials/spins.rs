//! What it is worth that a virtual CPU which waits for a lock leaves its slice to one of its VM that was preempted.
//!
//! One run, in turns with donation and without, so that each turn is held against its neighbours on the same machine. The
//! guest counts what it does under its lock (`tests/guests/locks`). It has three vCPUs for each CPU: whom a yielding one makes
//! room for is seldom the holder of the lock.
//!
//! QEMU tells no guest's PAUSE loops: its AMD-V has no PAUSE filter (CPUID Fn8000_000A EDX bit 10), and an exit for each PAUSE
//! would cost more than any lock. Bochs' VT-x counts them, at privilege level 0.

use std::time::Duration;

use crate::{Evidence, Machine, Scenario, Vm};

const NAME: &str = "locks";
/// Its vCPUs, on two CPUs.
const CPUS: u32 = 6;
/// Words of a report, and of the operator's two answers.
const REPORT: &str = "[locks] LOCKS ms=";
const ON: &str = "donation of slices is on";
const OFF: &str = "donation of slices is off";
/// Turns with donation, each followed by one without.
const TURNS: usize = 4;
/// Reports in a turn.
const REPORTS: usize = 4;
/// What is done under the lock with donation is at least this, in percent of what is done without.
const LEAST: u64 = 125;
/// How long the guest goes on: the turns take about 25 seconds.
const SECONDS: u64 = 35;

/// The trials of this file.
pub fn scenarios() -> Vec<Scenario> {
    vec![donation()]
}

fn donation() -> Scenario {
    let trial = Scenario::full(
        "donation-helps-locks",
        "a guest that contends for a lock, with three times as many vCPUs as CPUs, gets on better when who spins leaves its slice",
        judge,
    )
    .on(Machine::row(1, 2, 384))
    .in_bochs_only()
    .vm(Vm::micro(NAME, "locks", &format!("seconds={SECONDS}")).set("cpus", &CPUS.to_string()))
    .within_in_bochs(Duration::from_secs(1800));
    // The first reports are of the start.
    (0..TURNS).fold(trial.wait_for(REPORT, REPORTS), |trial, _| {
        let with = trial.type_after(REPORT, "donate on\r").wait_for(ON, 1);
        let with = with.wait_for(REPORT, REPORTS);
        let without = with.type_after(REPORT, "donate off\r").wait_for(OFF, 1);
        without.wait_for(REPORT, REPORTS)
    })
}

/// What a turn was, with donation or without, and what was done in a second of it, times 1000.
type Turn = (bool, u64);

/// The turns, each from its first report to its last.
fn turns(e: &Evidence) -> Result<Vec<Turn>, String> {
    let mut turns: Vec<(bool, Vec<(u64, u64)>)> = Vec::new();
    for line in &e.console {
        let said = line.what.as_str();
        if said.contains(ON) || said.contains(OFF) {
            turns.push((said.contains(ON), Vec::new()));
        } else if let Some(report) = said.strip_prefix(REPORT).and_then(figures)
            && let Some((_, reports)) = turns.last_mut()
        {
            reports.push(report);
        }
    }
    let rate = |(on, reports): (bool, Vec<(u64, u64)>)| match (reports.first(), reports.last()) {
        (Some((from, n)), Some((to, all))) if to > from => {
            Ok((on, (all - n) * 1_000_000 / (to - from)))
        }
        _ => Err("a turn had no two reports".to_owned()),
    };
    turns.into_iter().map(rate).collect()
}

/// Milliseconds, and how often the lock was taken until then.
fn figures(text: &str) -> Option<(u64, u64)> {
    let (ms, n) = text.split_once(" n=")?;
    Some((ms.parse().ok()?, n.trim().parse().ok()?))
}

fn judge(e: &Evidence) -> Result<(), String> {
    e.every_guest_is_well(CPUS)?;
    let turns = turns(e)?;
    if turns.len() != 2 * TURNS {
        return Err(format!("{} turns are not {}", turns.len(), 2 * TURNS));
    }
    let sum = |which: bool| -> u64 {
        let of_it = turns.iter().filter(|(on, _)| *on == which);
        of_it.map(|(_, rate)| rate).sum()
    };
    let (on, off) = (sum(true), sum(false));
    if on * 100 < off * LEAST {
        return Err(format!(
            "with donation {NAME} did {} % of what it did without: {turns:?}",
            on * 100 / off.max(1)
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Turns in which so much is done between two reports.
    fn evidence(with: u64, without: u64) -> Evidence {
        let (mut n, mut ms, mut lines) = (
            7,
            100,
            vec![
                format!("[{NAME}] GUEST-UP cpus={CPUS} kernel=locks"),
                format!("{REPORT}100 n=7"),
            ],
        );
        for turn in 0..2 * TURNS {
            let (answer, done) = if turn % 2 == 0 {
                (ON, with)
            } else {
                (OFF, without)
            };
            lines.push(answer.to_owned());
            for _ in 0..REPORTS {
                (n, ms) = (n + done, ms + 500);
                lines.push(format!("{REPORT}{ms} n={n}"));
            }
        }
        lines.push(format!("[{NAME}] GUEST-RESULT ok n={n}"));
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        Evidence::clean(&[NAME], &lines)
    }

    #[test]
    fn only_a_clear_gain_convinces() {
        assert_eq!(turns(&evidence(50, 40)).expect("told")[0], (true, 100_000));
        assert_eq!(judge(&evidence(50, 40)), Ok(()));
        assert!(judge(&evidence(43, 40)).is_err_and(|why| why.contains("did 107 %")));
        assert!(judge(&evidence(30, 40)).is_err());
    }

    #[test]
    fn what_shows_nothing_is_refused() {
        let mut e = evidence(50, 40);
        // Its beginning, the first turn, and its end.
        e.console.drain(7..e.console.len() - 1);
        assert!(judge(&e).is_err_and(|why| why.contains("turns are not")));
        e.console.pop();
        assert!(judge(&e).is_err_and(|why| why.contains("no result")));
    }
}
