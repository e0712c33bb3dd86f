//! What an operator types, and what becomes of it.
//!
//! Steps wait for lines of the console, so commands are typed at known moments of the guests' lives (on a
//! busy machine a guest may skip a second, so nothing waits for a certain one). An
//! answer is judged by its words; what a command did is judged by the guests' own lines and by the
//! kernel's records.

use std::time::Duration;

use telemetry::{Event, OffReason, VmEvent};
use units::NodeId;

use crate::{Evidence, Machine, Outcome, Scenario, Vm};

const PROMPT: &str = "perigee> ";
/// Ctrl-A and the key of the first VM; Ctrl-A and Perigee's key.
const TO_FIRST: &str = "\u{1}1";
const TO_PERIGEE: &str = "\u{1}0";

/// What is typed one after the other, and words that the answer must have.
#[rustfmt::skip] // a table, a line each
const QUESTIONS: [(&str, &[&str]); 33] = [
    ("help", &["topology", "vm NAME start|stop|pause|resume", "Ctrl-A 0"]),
    ("topology", &["node0", "node1", "MiB", "latency in ns", "performance counters: absent, CPUID offers "]),
    ("memory", &["free", "node1"]),
    ("load", &["memory MB/s", "link MB/s", "estimated from accessed bits", "memory bandwidth is not counted: CPUID offers no "]),
    ("vm", &["alpha", "running", "128 MiB"]),
    ("vm alpha", &["alpha.0", "alpha.1", "exits"]),
    ("cpu", &["cpu0", "cpu1", "load"]),
    ("latency", &["wake-ups", "p50", "p99", "longest", "class normal", "lock was taken"]),
    ("footprint", &["memory on", "node0", "passes"]),
    ("footprint alpha", &["of its accesses", " large pages and ", "ended early as their pages moved", "performance counters are absent: CPUID offers "]),
    ("proximity", &["proximity", "node1"]),
    ("why", &["alpha.0", "deadline", "credit", "key"]),
    ("why alpha.1", &["alpha.1", "machine-wide", "    at ", " runs vm0.1 for "]),
    ("donate off", &["donation of slices is off"]),
    ("donate on", &["donation of slices is on"]),
    ("donate maybe", &["donate [on|off]"]),
    ("security", &["IBPB between VMs", "return stack filled", "active", "one VM to a core"]),
    ("counters", &["performance counters: absent, CPUID offers "]),
    ("counters alpha", &["alpha: performance counters: absent"]),
    ("where alpha 0x3000000", &["is on node", "in a leaf of", "its region was", "its page"]),
    ("where alpha 2097152", &["0x200000 is on node"]),
    ("log", &["messages down to info"]),
    ("log warn", &["messages down to warn"]),
    ("vmm", &["no command", "topology", "shutdown"]),
    ("vm gamma", &["no VM \"gamma\"", "alpha"]),
    ("vm alpha jump", &["stop, pause"]),
    ("where alpha 0x8000000000", &["has no memory at 0x8000000000", "it has 0x0 to"]),
    ("where alpha there", &["is no address", "like 0x2f000"]),
    ("where alpha", &["where NAME ADDRESS"]),
    ("migrate alpha 9", &["no node", "0 to 1"]),
    ("migrate alpha", &["migrate NAME NODE"]),
    ("why alpha.7", &["no vCPU 7"]),
    ("log loud", &["no level", "debug"]),
];

/// The trials of this file.
pub fn scenarios() -> Vec<Scenario> {
    let questions: String = QUESTIONS
        .map(|(question, _)| format!("{question}\r"))
        .concat();
    vec![
        Scenario::quick(
            "operator-asks",
            "every command answers, and a mistyped one is told what would have worked",
            |e| {
                QUESTIONS.iter().try_for_each(|(question, words)| answered(e, question, words))?;
                wakes_were_counted(e)?;
                the_lock_was_counted(e)?;
                e.every_guest_is_well(2)
            },
        )
        .on(Machine::row(2, 1, 512))
        .vm(Vm::linux("alpha").set("memory", "\"128M\"").workload("--mib 32 --seconds 8"))
        .type_after("WORKLOAD t=", &questions),
        paused_for(
            4,
            Scenario::quick(
                "operator-pauses",
                "a paused VM makes no progress, another one does, and after resuming nothing of the first is lost",
                |e| pauses(e, Duration::from_secs(2)),
            ),
        ),
        paused_for(
            28,
            Scenario::full(
                "operator-pauses-long",
                "a pause longer than the patience of Linux' watchdogs does not alarm them",
                |e| pauses(e, Duration::from_secs(22)),
            ),
        ),
        Scenario::full(
            "operator-stops-and-migrates",
            "stopping a VM leaves the other alone; migrating that one moves every page and changes none",
            stops_and_migrates,
        )
        .vm(Vm::linux("alpha").workload("--mib 16 --seconds 60"))
        .vm(Vm::linux("beta")
            .set("mode", "\"off\"")
            .set("start_node", "0")
            .set("memory", "\"96M\"")
            .workload("--mib 16 --seconds 60"))
        .type_after("[beta] WORKLOAD t=", "vm alpha stop\r")
        .type_after("alpha is off", "migrate beta 2\r")
        .type_after("moved from node0 to node2", "vm beta\r"),
        Scenario::quick(
            "operator-splits",
            "memory that the operator had mapped by small pages comes back when its VM ends, page by page",
            splits,
        )
        .on(Machine::row(1, 2, 384))
        .vm(Vm::micro("alpha", "hostile", "attack=count seconds=5"))
        // The machine goes off with its last VM; this one keeps it on until alpha's memory is back.
        .vm(Vm::micro("beta", "hostile", "attack=count seconds=10"))
        .type_after("[alpha] GUEST-UP", "split alpha 0 32\r"),
        Scenario::quick(
            "operator-types-into-a-guest",
            "Ctrl-A brings keys to a guest's shell and back to Perigee, and shutdown ends all",
            types_into_a_guest,
        )
        .on(Machine::row(1, 2, 512))
        .vm(Vm::linux("alpha").append("console=ttyS0 quiet perigee.stay").workload("--mib 8 --seconds 1"))
        .type_after("GUEST-SHELL", &format!("{TO_FIRST}echo the sum is $((600+66))\r"))
        .type_after("[alpha] the sum is 666", &format!("{TO_PERIGEE}vm\r"))
        .type_after("Ctrl-A and the key", "shutdown\r"),
    ]
}

/// Two VMs, of which the first is paused while the second reports progress so many times.
fn paused_for(reports: u8, scenario: Scenario) -> Scenario {
    let linux = |name, seconds: u64| {
        let warnings_too = "console=ttyS0 loglevel=5 panic=1";
        let workload = format!("--mib 16 --seconds {seconds}");
        Vm::linux(name).append(warnings_too).workload(&workload)
    };
    let paused = scenario
        .on(Machine::row(2, 2, 512))
        .vm(linux("alpha", u64::from(reports) + 10))
        .vm(linux("beta", u64::from(reports) + 10))
        .type_after("[alpha] WORKLOAD t=", "vm alpha pause\r")
        .type_after("alpha is paused", "");
    let waited = paused.wait_for("[beta] WORKLOAD t=", usize::from(reports) - 1);
    waited
        .type_after("[beta] WORKLOAD t=", "vm alpha\r")
        .type_after("alpha is paused", "vm alpha resume\r")
}

/// The lines between the echo of a command and the next prompt, without what guests and the log say.
fn answer<'e>(e: &'e Evidence, command: &str) -> Result<Vec<&'e str>, String> {
    let echo = format!("{PROMPT}{command}");
    let echoes = e
        .console
        .iter()
        .enumerate()
        .filter(|(_, line)| line.what == echo);
    let answers: Vec<Vec<&str>> = echoes.map(|(at, _)| lines_after(e, at)).collect();
    // A message that comes while a longer command is typed leaves the beginning of it on a line, without an answer.
    let said = answers.iter().find(|lines| !lines.is_empty());
    let said = said.or_else(|| answers.first());
    said.cloned()
        .ok_or_else(|| format!("{command:?} was not taken as a command"))
}

fn lines_after(e: &Evidence, at: usize) -> Vec<&str> {
    let lines = e.console.iter().skip(at + 1).map(|line| line.what.as_str());
    // A prompt that is drawn again stands by itself; one with the next command ends the answer.
    let answer =
        lines.take_while(|line| line.trim_end() == PROMPT.trim_end() || !line.starts_with(PROMPT));
    answer
        .filter(|line| !line.starts_with('[') && line.trim_end() != PROMPT.trim_end())
        .collect()
}

fn answered(e: &Evidence, command: &str, words: &[&str]) -> Result<(), String> {
    let lines = answer(e, command)?;
    match words
        .iter()
        .find(|word| !lines.iter().any(|line| line.contains(**word)))
    {
        None => Ok(()),
        Some(word) => Err(format!(
            "the answer to {command:?} lacks {word:?}: {lines:?}"
        )),
    }
}

/// How often the vCPUs of a VM or a class woke, by the answer to `latency`, and how long they waited then, in nanoseconds: the
/// median, the longest of 99 of 100, and the longest.
pub(super) fn waits(e: &Evidence, of: &str) -> Result<(f64, [f64; 3]), String> {
    latencies(e, of)
}

/// A count and so many times in nanoseconds, of the line of the answer to `latency` that begins with a name.
fn latencies<const N: usize>(e: &Evidence, of: &str) -> Result<(f64, [f64; N]), String> {
    let lines = answer(e, "latency")?;
    let line = lines
        .iter()
        .find(|line| line.trim_start().starts_with(of))
        .ok_or_else(|| format!("no latencies of {of}: {lines:?}"))?;
    let words = line.split_whitespace();
    let words = words.map(|word| word.trim_end_matches([',', ';']));
    let numbers: Vec<f64> = words.clone().filter_map(|word| word.parse().ok()).collect();
    let unit = |word| match word {
        "ns" => Some(1.0),
        "us" => Some(1e3),
        "ms" => Some(1e6),
        "s" => Some(1e9),
        _ => None,
    };
    let units: Vec<f64> = words.filter_map(unit).collect();
    let said = numbers.split_first().and_then(|(count, times)| {
        let ns = times.iter().zip(&units).map(|(n, unit)| n * unit);
        let ns: Vec<f64> = ns.collect();
        let as_many = times.len() == units.len();
        Some((*count, ns.try_into().ok().filter(|_| as_many)?))
    });
    said.ok_or_else(|| format!("not a count and {N} times: {line:?}"))
}

/// Each wake-up takes the scheduler's lock, and so does the CPU that answers; and nobody holds it for no time.
fn the_lock_was_counted(e: &Evidence) -> Result<(), String> {
    let (wakes, _) = waits(e, "class normal")?;
    let (taken, ns) = latencies::<6>(e, "the scheduler's lock was taken")?;
    let (waited, held) = ns.split_at(3);
    let rise = waited.is_sorted() && held.is_sorted();
    match taken >= 2.0 * wakes && rise && held.first().is_some_and(|p50| *p50 > 0.0) {
        true => Ok(()),
        false => Err(format!(
            "the lock was taken {taken} times for {wakes} wake-ups, waited for {waited:?} and held {held:?} ns"
        )),
    }
}

/// A Linux guest ticks and sleeps, so its vCPUs woke, and waited for their CPU for some time each.
fn wakes_were_counted(e: &Evidence) -> Result<(), String> {
    let ((count, ns), (all, _)) = (waits(e, "alpha")?, waits(e, "class normal")?);
    let rises = ns.iter().all(|t| *t > 0.0) && ns.is_sorted();
    match count >= 100.0 && all >= count && rises {
        true => Ok(()),
        false => Err(format!(
            "alpha woke {count} times of {all}, waits of {ns:?} ns"
        )),
    }
}

/// When a VM's record of this kind arrived.
fn vm_event(e: &Evidence, vm: &str, is: impl Fn(&VmEvent) -> bool) -> Result<Duration, String> {
    let found = e.records.iter().find(|r| match &r.what.event {
        Event::Vm { name, what, .. } => name == vm && is(what),
        _ => false,
    });
    found
        .map(|r| r.at)
        .ok_or_else(|| format!("the kernel's records lack an event of {vm}"))
}

/// When the guest's workload reported progress.
fn progress(e: &Evidence, vm: &str) -> Vec<Duration> {
    let is_progress = |line: &str| line.starts_with("WORKLOAD t=");
    e.guest_lines(vm)
        .filter(|line| is_progress(line.what))
        .map(|line| line.at)
        .collect()
}

/// What was on its way over the serial line when the VM was stopped.
const IN_FLIGHT: Duration = Duration::from_millis(500);
/// Linux' complaints about time that it did not see.
const COMPLAINTS: [&str; 4] = ["soft lockup", "stall", "blocked for more", "watchdog"];

fn pauses(e: &Evidence, at_least: Duration) -> Result<(), String> {
    let paused = vm_event(e, "alpha", |what| matches!(what, VmEvent::Paused))?;
    let resumed = vm_event(e, "alpha", |what| matches!(what, VmEvent::Resumed))?;
    if resumed.saturating_sub(paused) < at_least {
        return Err(format!(
            "the pause lasted from {paused:?} to {resumed:?} only"
        ));
    }
    let meanwhile = |vm: &str| {
        progress(e, vm)
            .iter()
            .filter(|at| **at > paused + IN_FLIGHT && **at < resumed)
            .count()
    };
    if meanwhile("alpha") > 0 {
        return Err("alpha reported progress while it was paused".into());
    }
    if meanwhile("beta") == 0 {
        return Err("beta reported no progress while alpha was paused".into());
    }
    if !progress(e, "alpha").iter().any(|at| *at > resumed) {
        return Err("alpha reported no progress after it was resumed".into());
    }
    answered(e, "vm alpha", &["alpha is paused"])?;
    for vm in ["alpha", "beta"] {
        if let Some(line) = e
            .guest_lines(vm)
            .filter(|line| line.at > paused)
            .find(|line| COMPLAINTS.iter().any(|c| line.what.contains(c)))
        {
            return Err(format!("{vm}'s kernel complains: {}", line.what));
        }
    }
    // The workload counts steps back of its clock as failures.
    e.every_guest_is_well(2)
}

fn splits(e: &Evidence) -> Result<(), String> {
    e.every_guest_is_well(1)?;
    // Of 32 MiB a leaf or two are small from the start: there are holes below 1 MiB.
    let said = e.line("pages of 2 MiB of alpha are mapped by 4 KiB now");
    let split = said.and_then(|l| l.what.split_whitespace().next()?.parse().ok());
    if split.is_none_or(|leaves: u32| leaves < 14) {
        return Err(format!(
            "most of alpha's 16 leaves should be split: {said:?}"
        ));
    }
    e.line("alpha: its memory is free again")
        .ok_or("alpha's memory did not come back while the machine was on")?;
    e.keeps_its_frames()
}

fn stops_and_migrates(e: &Evidence) -> Result<(), String> {
    let stopped = vm_event(e, "alpha", |what| {
        matches!(what, VmEvent::Off(OffReason::Stopped))
    })?;
    if progress(e, "alpha")
        .iter()
        .any(|at| *at > stopped + IN_FLIGHT)
    {
        return Err("alpha reported progress after it was stopped".into());
    }
    let beta = e.guest("beta");
    if beta.ok != Some(true) {
        return Err(format!(
            "beta is not well after its pages moved: {:?} {}",
            beta.ok, beta.details
        ));
    }
    let created = e.events().find_map(|event| match event {
        Event::Vm {
            name,
            what: VmEvent::Created { memory_by_node, .. },
            ..
        } if name == "beta" => Some(memory_by_node),
        _ => None,
    });
    let created = created.ok_or("the kernel did not record where beta's memory was")?;
    let away: u64 = created
        .iter()
        .enumerate()
        .filter(|(node, _)| *node != 2)
        .map(|(_, bytes)| bytes)
        .sum();
    let mut moved = 0;
    for event in e.events() {
        if let Event::PagesMoved {
            name,
            to,
            bytes,
            failed,
            reason,
            ..
        } = event
        {
            if name != "beta" || *to != NodeId(2) || *failed > 0 || !reason.contains("operator") {
                return Err(format!("a move that was not ordered, or not made: {event}"));
            }
            moved += bytes;
        }
    }
    if away == 0 || moved != away {
        return Err(format!("{moved} of {away} bytes moved"));
    }
    answered(e, "vm beta", &["lie on node2"])?;
    clean(e)
}

fn types_into_a_guest(e: &Evidence) -> Result<(), String> {
    if !e
        .guest_lines("alpha")
        .any(|line| line.what == "the sum is 666")
    {
        return Err("the guest's shell did not get its line".into());
    }
    answered(e, "vm", &["alpha", "running"])?;
    vm_event(e, "alpha", |what| {
        matches!(what, VmEvent::Off(OffReason::Stopped))
    })?;
    clean(e)
}

fn clean(e: &Evidence) -> Result<(), String> {
    match &e.outcome {
        Outcome::Clean => Ok(()),
        other => Err(format!("the run ended otherwise than cleanly: {other}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn evidence(lines: &[&str]) -> Evidence {
        Evidence::clean(&["alpha"], lines)
    }

    #[test]
    fn a_command_that_a_message_broke_off_is_no_question() {
        let e = evidence(&[
            "perigee> log",
            "[   1.0] alpha stays",
            "perigee> log warn",
            "messages down to warn are shown from now on",
            "perigee> log",
            "messages down to warn are shown",
            "perigee> ",
        ]);
        assert_eq!(
            answer(&e, "log"),
            Ok(vec!["messages down to warn are shown"])
        );
        assert!(answer(&e, "help").is_err());
    }

    #[test]
    fn an_answer_ends_at_the_next_command_and_holds_nothing_of_others() {
        let e = evidence(&[
            "perigee> vm",
            "  alpha running",
            "[alpha] vm halted",
            "perigee> ",
            "[   1.000] log",
            "  beta running",
            "perigee> memory",
            "  node0",
        ]);
        assert_eq!(
            answer(&e, "vm"),
            Ok(vec!["  alpha running", "  beta running"])
        );
        assert_eq!(answer(&e, "memory"), Ok(vec!["  node0"]));
        assert!(answer(&e, "cpu").is_err());
        assert!(answered(&e, "vm", &["beta", "halted"]).is_err_and(|why| why.contains("halted")));
    }

    #[test]
    fn a_run_without_the_records_convinces_nobody() {
        let e = evidence(&["[alpha] GUEST-RESULT ok"]);
        assert!(
            pauses(&e, Duration::ZERO).is_err()
                && stops_and_migrates(&e).is_err()
                && types_into_a_guest(&e).is_err()
        );
    }
}
