//! Guests that mean no good, beside one that only counts: the host goes on, answers, and the neighbour does not suffer.
//!
//! A neighbour's pace is its own count per second of its own clock. Most attacks go in turns with honest work of the
//! same guest on the same CPU, so its pace under attack is compared with its pace a second later or earlier; the
//! median of each keeps a busy host out of it.

use std::time::Duration;

use telemetry::{Event, OffReason, VmEvent};

use crate::{Evidence, Machine, Outcome, Scenario, Stamped, Vm};

/// The neighbour's pace under attack may fall by this much, in percent.
const MAY_FALL: u64 = 10;
/// What is counted this soon after a turn began or before it ended belongs to neither.
const BORDER: Duration = Duration::from_millis(400);
/// Fewer samples of a kind show nothing.
const FEWEST_SAMPLES: usize = 8;

/// Attacks that go in turns and leave their VM alive.
const IN_TURNS: [&str; 11] = [
    "xsetbv",
    "hypercalls",
    "cpuid",
    "mmio",
    "beyond-memory",
    "self-ipi",
    "nmi",
    "level",
    "timer",
    "console",
    "code",
];

/// Attacks that end their VM, with words of the sentence that says why.
const FATAL: [(&str, &str); 4] = [
    ("triple-fault", "triple-faulted"),
    ("mmio-execute", "executes at"),
    ("mmio-tables", "page tables lie at"),
    ("mmio-stack", "mallory"),
];

/// The trials of this file; `seed` makes the random ports and registers.
pub fn scenarios(seed: u64) -> Vec<Scenario> {
    let mut all = vec![
        several(seed),
        endless(),
        everything(seed),
        isolation(),
        isolation_broken(),
    ];
    all.extend(IN_TURNS.map(in_turns));
    all.extend(FATAL.map(|(attack, why)| fatal(attack, why)));
    all
}

fn machine() -> Machine {
    Machine::row(1, 2, 512)
}

fn mallory(words: &str) -> Vm {
    Vm::micro("mallory", "hostile", words).set("cpu_affinity", "{ cpus = [0] }")
}

/// Counts for so many seconds on the other CPU.
fn neighbour(seconds: u32) -> Vm {
    Vm::micro(
        "neighbour",
        "hostile",
        &format!("attack=count seconds={seconds}"),
    )
    .set("cpu_affinity", "{ cpus = [1] }")
}

/// Several at once: a storm, a spinner, a flooder and one that ends itself.
fn several(seed: u64) -> Scenario {
    Scenario::full(
        "hostile-guests",
        "a guest that tries all ports, one that never exits, one that floods the console and one that faults to \
         death leave the host and a counting neighbour alone",
        move |e| {
            survived(e, "mallory")?;
            ended(e, "dies", "triple-faulted")?;
            answered(e)?;
            counted(e, "neighbour", 20)?;
            well(e, &["dies"])
        },
    )
    .on(Machine::row(2, 2, 256))
    .vm(Vm::micro("mallory", "hostile", &format!("attack=xsetbv,hypercalls,mmio,ports seconds=1 seed={seed}")))
    .vm(Vm::micro("flood", "hostile", "attack=console seconds=10"))
    .vm(Vm::micro("spin", "hostile", "attack=spin"))
    .vm(Vm::micro("dies", "hostile", "attack=triple-fault"))
    .vm(Vm::micro("neighbour", "hostile", "attack=count seconds=20"))
    .type_after("[neighbour] COUNT", "cpu\rvm\r")
    .type_after("[mallory] GUEST-RESULT", "")
    .type_after("[neighbour] GUEST-RESULT", "vm spin stop\r")
    .seeded(seed)
    .within(Duration::from_secs(500))
}

/// One attack by turns.
fn in_turns(attack: &'static str) -> Scenario {
    Scenario::full(
        &format!("hostile-{attack}"),
        "an attack by turns with honest work costs a neighbour on another CPU at most a tenth of its pace",
        move |e| {
            survived(e, "mallory")?;
            answered(e)?;
            let (honest, attacked) = paces(e, "mallory", "neighbour")?;
            if attacked * 100 < honest * (100 - MAY_FALL) {
                return Err(format!("the neighbour's pace fell from {honest} to {attacked}"));
            }
            well(e, &[])
        },
    )
    .on(machine())
    .vm(mallory(&format!("attack={attack} seconds=24")))
    .vm(neighbour(40))
    .type_after("PHASE attack", "cpu\rvm\r")
    .within(Duration::from_secs(400))
}

/// One that ends its VM.
fn fatal(attack: &'static str, why: &'static str) -> Scenario {
    Scenario::full(
        &format!("hostile-{attack}"),
        "an attack that cannot be honoured ends its own VM with a sentence and a dump, and no other",
        move |e| {
            ended(e, "mallory", why)?;
            if e.line("rip ").is_none() {
                return Err("no registers of the stopped VM were shown".into());
            }
            counted(e, "neighbour", 20)?;
            well(e, &["mallory"])
        },
    )
    .on(machine())
    .vm(mallory(&format!("attack={attack}")))
    .vm(neighbour(15))
    .within(Duration::from_secs(300))
}

/// Those that never end by themselves: the operator ends them.
fn endless() -> Scenario {
    Scenario::full(
        "hostile-endless",
        "guests that spin with interrupts off, never exit or deliver debug exceptions for ever share a CPU with a \
         neighbour, are listed, and are stopped by the operator",
        |e| {
            answered(e)?;
            counted(e, "neighbour", 20)?;
            for vm in ["spin", "never", "loops"] {
                let stopped = off_reason(e, vm) == Some(&OffReason::Stopped);
                if !stopped {
                    return Err(format!("{vm} was not stopped by the operator: {:?}", off_reason(e, vm)));
                }
            }
            well(e, &[])
        },
    )
    .on(machine())
    .vm(Vm::micro("spin", "hostile", "attack=spin"))
    .vm(Vm::micro("never", "hostile", "attack=never-exits").set("cpus", "2"))
    .vm(Vm::micro("loops", "hostile", "attack=debug-loop"))
    .vm(Vm::micro("neighbour", "hostile", "attack=count seconds=20"))
    .type_after("[loops] the loop begins", "cpu\rvm\r")
    .type_after("[neighbour] GUEST-RESULT", "vm spin stop\rvm never stop\rvm loops stop\r")
    .within(Duration::from_secs(400))
}

/// All ports and registers, to their end.
fn everything(seed: u64) -> Scenario {
    Scenario::full(
        "hostile-ports-and-registers",
        "all ports in all sizes, all model-specific registers of the bitmaps and the hypervisor's range and 100,000 \
         random ones are read and written; the VM lives",
        |e| {
            survived(e, "mallory")?;
            for words in ["PORTS 196608 read", "MSRS from 0x40000000"] {
                if !e.guest_lines("mallory").any(|line| line.what.contains(words)) {
                    return Err(format!("mallory never said {words:?}"));
                }
            }
            let tried = e.guest_lines("mallory").find_map(|line| {
                line.what.strip_prefix("MSRS ")?.split_once(" tried")?.0.parse::<u64>().ok()
            });
            if tried.unwrap_or(0) < 200_000 {
                return Err(format!("only {tried:?} registers were tried"));
            }
            counted(e, "neighbour", 40)?;
            well(e, &[])
        },
    )
    .on(machine())
    .vm(mallory(&format!("attack=ports,msrs seed={seed}")))
    .vm(neighbour(30))
    .seeded(seed)
    .within(Duration::from_secs(900))
}

/// A VM that keeps a secret, and one that looks everywhere for it.
fn isolated(name: &str, about: &str, judge: fn(&Evidence) -> Result<(), String>) -> Scenario {
    Scenario::full(name, about, judge)
        .on(machine())
        .vm(Vm::micro("keeper", "hostile", "attack=keep seconds=400"))
        .vm(Vm::micro("mallory", "hostile", "attack=scan gib=256"))
        .type_after("[mallory] GUEST-RESULT", "vm keeper stop\r")
        .within(Duration::from_secs(900))
}

fn isolation() -> Scenario {
    isolated(
        "isolation",
        "a guest looks at every page of its memory and one of each 2 MiB elsewhere, and finds neither another VM's \
         secret nor the kernel's words nor a page that is not zero",
        |e| {
            survived(e, "mallory")?;
            let scanned = |words: &str| e.guest_lines("mallory").any(|l| l.what.contains(words));
            if !scanned("SCAN 8192 pages of memory") || !scanned("0 of them answered") {
                return Err("mallory did not look everywhere".into());
            }
            if !e
                .guest_lines("keeper")
                .any(|l| l.what.starts_with("KEEPS "))
            {
                return Err("there was no secret".into());
            }
            well(e, &[])
        },
    )
}

/// The same with a kernel that shows a page of the keeper's to everybody: the guest must find it.
fn isolation_broken() -> Scenario {
    isolated(
        "isolation-broken",
        "the same guest finds the secret when the kernel is made to map one page of it elsewhere",
        |e| match survived(e, "mallory") {
            Err(why) if why.contains("secrets found") && !why.contains(": 0 secrets") => Ok(()),
            other => Err(format!("the mapped page was not found: {other:?}")),
        },
    )
    .sabotaged("foreign-frame")
}

/// How often a neighbour reported its count.
fn counted(e: &Evidence, vm: &str, at_least: usize) -> Result<(), String> {
    let count = e
        .guest_lines(vm)
        .filter(|l| l.what.starts_with("COUNT "))
        .count();
    if count < at_least {
        return Err(format!(
            "{vm} reported its count {count} times, not {at_least}"
        ));
    }
    survived(e, vm)
}

/// The VM came to its own good end.
fn survived(e: &Evidence, vm: &str) -> Result<(), String> {
    let guest = e.guest(vm);
    match guest.ok {
        Some(true) => Ok(()),
        Some(false) => Err(format!("{vm} reports: {}", guest.details)),
        None => Err(format!(
            "{vm} did not come to its end: {:?}",
            off_reason(e, vm)
        )),
    }
}

fn off_reason<'e>(e: &'e Evidence, vm: &str) -> Option<&'e OffReason> {
    e.events().find_map(|event| match event {
        Event::Vm {
            name,
            what: VmEvent::Off(reason),
            ..
        } if name == vm => Some(reason),
        _ => None,
    })
}

/// The VM was stopped with a sentence that has these words.
fn ended(e: &Evidence, vm: &str, words: &str) -> Result<(), String> {
    let console = || {
        e.console
            .iter()
            .filter(|line| line.what.contains(vm))
            .any(|l| l.what.contains(words))
    };
    match off_reason(e, vm) {
        Some(OffReason::Fault { what }) if what.contains(words) || console() => Ok(()),
        other => Err(format!("{vm} was not stopped for {words:?}: {other:?}")),
    }
}

/// The operator's two questions were answered.
fn answered(e: &Evidence) -> Result<(), String> {
    for word in ["cpu0", "cpu1"] {
        let said = |line: &Stamped<String>| !line.what.starts_with('[') && line.what.contains(word);
        if !e.console.iter().any(said) {
            return Err(format!(
                "the operator's questions were not answered: {word:?} is missing"
            ));
        }
    }
    Ok(())
}

/// Nothing failed but the VMs that should.
fn well(e: &Evidence, may_fail: &[&str]) -> Result<(), String> {
    match &e.outcome {
        Outcome::Clean if may_fail.is_empty() => Ok(()),
        Outcome::GuestFailed(why) if may_fail.iter().all(|vm| why.contains(vm)) => Ok(()),
        other => Err(format!("the run ended otherwise than it should: {other}")),
    }
}

/// The neighbour's median pace while the attacker was honest, and while it attacked.
fn paces(e: &Evidence, attacker: &str, neighbour: &str) -> Result<(u64, u64), String> {
    let turns: Vec<(Duration, &str)> = e
        .guest_lines(attacker)
        .filter_map(|l| Some((l.at, l.what.trim().strip_prefix("PHASE ")?)))
        .collect();
    let mut honest = Vec::new();
    let mut attacked = Vec::new();
    for line in e.guest_lines(neighbour) {
        let Some(pace) = line
            .what
            .trim()
            .strip_prefix("COUNT ")
            .and_then(|n| n.parse::<u64>().ok())
        else {
            continue;
        };
        let turn = turns.windows(2).find(|pair| {
            matches!(pair, [(from, _), (to, _)] if line.at > *from + BORDER && line.at + BORDER < *to)
        });
        match turn {
            Some([(_, "honest"), _]) => honest.push(pace),
            Some([(_, "attack"), _]) => attacked.push(pace),
            _ => {}
        }
    }
    let few = honest.len().min(attacked.len());
    if few < FEWEST_SAMPLES {
        return Err(format!(
            "only {few} samples of the neighbour's pace belong to a turn"
        ));
    }
    Ok((median(honest), median(attacked)))
}

fn median(mut of: Vec<u64>) -> u64 {
    of.sort_unstable();
    of.get(of.len() / 2).copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Emulator;

    fn evidence(pace_under_attack: u64) -> Evidence {
        let mut console = Vec::new();
        let mut say = |ms: u64, what: String| {
            console.push(Stamped {
                at: Duration::from_millis(ms),
                what,
            });
        };
        for turn in 0..6_u64 {
            let (word, pace) = if turn % 2 == 0 {
                ("honest", 1000)
            } else {
                ("attack", pace_under_attack)
            };
            say(turn * 2000, format!("[mallory] PHASE {word}"));
            (1..8).for_each(|n| say(turn * 2000 + n * 250, format!("[neighbour] COUNT {pace}")));
        }
        say(12_000, "[mallory] PHASE over".into());
        say(12_001, "[mallory] GUEST-RESULT ok xsetbv".into());
        say(12_002, "cpu0 runs, cpu1 idles".into());
        Evidence {
            emulator: Emulator::Qemu,
            machine: machine(),
            vms: vec!["mallory".into(), "neighbour".into()],
            outcome: Outcome::Clean,
            console,
            records: Vec::new(),
            torn_records: 0,
            plugin: None,
            seed: None,
        }
    }

    #[test]
    fn a_neighbour_that_suffers_is_noticed() {
        let judge = |pace| in_turns("xsetbv").judge(&evidence(pace));
        assert_eq!(judge(1000), Ok(()));
        assert_eq!(judge(910), Ok(()));
        assert!(judge(890).is_err_and(|why| why.contains("fell from 1000 to 890")));
        let mut silent = evidence(1000);
        silent.console.retain(|l| !l.what.contains("COUNT"));
        assert!(
            in_turns("xsetbv")
                .judge(&silent)
                .is_err_and(|why| why.contains("samples"))
        );
        let mut dead = evidence(1000);
        dead.console.retain(|l| !l.what.contains("RESULT"));
        assert!(in_turns("xsetbv").judge(&dead).is_err());
    }
}
