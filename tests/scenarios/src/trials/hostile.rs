//! Guests that mean no good, beside one that only counts: the host goes on, answers, and the neighbour does not suffer.
//!
//! What an attack costs a neighbour is judged without a clock, which would judge the load of the host (`pace.rs`).

mod isolation;
mod pace;

use std::time::Duration;

use telemetry::{Event, OffReason, VmEvent};

use crate::{Evidence, Machine, Outcome, Scenario, Stamped, Tier, Vm};

/// Attacks that leave their VM alive.
const STORMS: [&str; 11] = [
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
const FATAL: [(&str, &str); 5] = [
    ("triple-fault", "triple-faulted"),
    ("mmio-execute", "executes at"),
    ("mmio-tables", "page tables lie at"),
    ("mmio-stack", "the delivery of vector 6 reached"),
    ("mmio-descriptors", "the delivery of vector 6 reached"),
];

/// The trials of this file; `seed` makes the random ports and registers.
pub fn scenarios(seed: u64) -> Vec<Scenario> {
    let mut all = vec![
        several(seed),
        endless(),
        loops(),
        debug_loop(),
        refused(),
        everything(seed),
    ];
    all.extend(isolation::scenarios());
    all.push(quick_storms());
    all.extend(STORMS.map(|attack| storm(attack, attack, 16, 10)));
    all.extend(FATAL.map(|(attack, why)| fatal(attack, why)));
    all
}

fn machine() -> Machine {
    Machine::row(1, 2, 512)
}

fn mallory(words: &str) -> Vm {
    Vm::micro("mallory", "hostile", words).set("cpu_affinity", "{ cpus = [0] }")
}

/// Counts for so many seconds on the other CPU; the operator looks at it when it is done.
fn neighbour(seconds: u32) -> Vm {
    counting(seconds).set("cpu_affinity", "{ cpus = [1] }")
}

fn counting(seconds: u32) -> Vm {
    let words = format!("attack=count seconds={seconds}");
    Vm::micro("neighbour", "hostile", &words)
}

/// After this line of the neighbour's the operator looks at it.
const COUNTED: &str = "[neighbour] COUNTED";

/// Several at once: a storm, a spinner, a flooder and one that ends itself, on one CPU; the neighbour has the other.
///
/// Not more CPUs than the emulator's host has cores, or a lock's holder loses its core and whoever waits for the lock
/// loses its pace: with four on two cores it was 89 to 92 %.
fn several(seed: u64) -> Scenario {
    let attacker =
        |name, words: &str| Vm::micro(name, "hostile", words).set("cpu_affinity", "{ cpus = [0] }");
    Scenario::full(
        "hostile-guests",
        "a guest that tries all ports, one that never exits, one that floods the console and one that faults to \
         death leave the host alone, and cost a counting neighbour at most a tenth of its pace",
        move |e| {
            survived(e, "mallory")?;
            ended(e, "dies", "triple-faulted")?;
            answered(e)?;
            pace::meanwhile(e, "mallory", "neighbour")?;
            counted(e, "neighbour", 20)?;
            pace::kept(e, "neighbour")?;
            well(e, &["dies"])
        },
    )
    .on(Machine::row(2, 1, 384))
    .observed(pace::OBSERVER)
    .vm(attacker("mallory", &format!("attack=xsetbv,hypercalls,mmio,ports seconds=8 seed={seed}")))
    .vm(attacker("flood", "attack=console seconds=10"))
    .vm(attacker("spin", "attack=spin"))
    .vm(attacker("dies", "attack=triple-fault"))
    // It begins a little before the attackers, who share a CPU for that too.
    .vm(neighbour(24))
    .type_after("[neighbour] COUNT", "cpu\rvm\r")
    .type_after(COUNTED, "vm\r")
    .type_after("[neighbour] GUEST-RESULT", "vm spin stop\r")
    .seeded(seed)
    .within(Duration::from_secs(500))
}

/// All of them for a moment each.
fn quick_storms() -> Scenario {
    let attacks = STORMS.join(",");
    let seconds = STORMS.len() as u32 * 2;
    let mut trial = storm("storms", &attacks, 2, seconds - 4);
    trial.tier = Tier::Quick;
    trial
}

/// Attacks of so many seconds each, for longer than their neighbour counts.
fn storm(name: &str, attacks: &str, seconds: u32, counts: u32) -> Scenario {
    Scenario::full(
        &format!("hostile-{name}"),
        "an attack without pause costs a neighbour on another CPU at most a tenth of its pace",
        |e| {
            survived(e, "mallory")?;
            answered(e)?;
            pace::meanwhile(e, "mallory", "neighbour")?;
            counted(e, "neighbour", 20)?;
            pace::kept(e, "neighbour")?;
            well(e, &[])
        },
    )
    .on(machine())
    .observed(pace::OBSERVER)
    .vm(mallory(&format!("attack={attacks} seconds={seconds}")))
    .vm(neighbour(counts))
    .type_after("[mallory] ATTACK", "cpu\rvm\r")
    .type_after(COUNTED, "vm\r")
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
            pace::kept(e, "neighbour")?;
            well(e, &["mallory"])
        },
    )
    .on(machine())
    .observed(pace::OBSERVER)
    .vm(mallory(&format!("attack={attack}")))
    .vm(neighbour(10))
    .type_after(COUNTED, "vm\r")
    .within(Duration::from_secs(300))
}

/// Instructions that nobody executes on a device: each ends its VM.
fn refused() -> Scenario {
    const NAMES: [&str; 5] = ["fld", "fistp", "fxsave", "ldmxcsr", "sgdt"];
    let trial = Scenario::full(
        "hostile-mmio-refused",
        "an instruction on device memory that is not emulated ends its VM with a sentence that names it, and no other",
        |e| {
            for vm in NAMES {
                ended(e, vm, "which is not emulated on device memory; it was not executed")?;
                ended(e, vm, &format!("are a {}{},", vm[..1].to_uppercase(), &vm[1..]))?;
            }
            counted(e, "neighbour", 20)?;
            pace::kept(e, "neighbour")?;
            well(e, &NAMES)
        },
    )
    .on(machine())
    .observed(pace::OBSERVER)
    .vm(neighbour(10))
    .type_after(COUNTED, "vm\r")
    .within(Duration::from_secs(300));
    NAMES.into_iter().fold(trial, |trial, name| {
        let words = format!("attack=mmio-refused instruction={name}");
        trial.vm(Vm::micro(name, "hostile", &words).set("cpu_affinity", "{ cpus = [0] }"))
    })
}

/// Those that never end by themselves: the operator ends them.
fn endless() -> Scenario {
    Scenario::full(
        "hostile-endless",
        "guests that spin with interrupts off or never exit share two CPUs with a neighbour, which gets its share; \
         they are listed, and stopped by the operator",
        |e| {
            answered(e)?;
            counted(e, "neighbour", 20)?;
            // Four virtual CPUs on two CPUs.
            pace::ran(e, "neighbour", 50)?;
            stopped(e, &["spin", "never"])?;
            well(e, &[])
        },
    )
    .on(machine())
    .vm(Vm::micro("spin", "hostile", "attack=spin"))
    .vm(Vm::micro("never", "hostile", "attack=never-exits").set("cpus", "2"))
    .vm(counting(20))
    .type_after("[neighbour] COUNT", "cpu\rvm\r")
    .type_after(COUNTED, "vm\r")
    .type_after("[neighbour] GUEST-RESULT", "vm spin stop\rvm never stop\r")
    .within(Duration::from_secs(400))
}

/// Exceptions without end. QEMU checks no alignment; what the hypervisor must do for a processor that does shows
/// in Bochs.
fn loops() -> Scenario {
    exceptions(
        "exception-loops",
        "guests whose alignment check raises itself anew, or that step for ever, are listed and stopped by the \
         operator, and cost a neighbour at most a tenth of its pace",
        ["alignment-loop", "debug-storm"],
    )
}

/// A debug exception whose delivery meets a data breakpoint: not in QEMU, which ends itself by an assertion there
/// (10.0: `cpu_check_watchpoint` takes the global lock that whoever delivers the exception holds).
fn debug_loop() -> Scenario {
    exceptions(
        "debug-loop",
        "a guest whose debug exception raises itself anew is listed and stopped by the operator, and costs a \
         neighbour at most a tenth of its pace",
        ["debug-loop"],
    )
    .in_bochs_only()
}

/// These attacks, each in a VM of its name, beside a neighbour.
fn exceptions<const N: usize>(name: &str, about: &str, attacks: [&'static str; N]) -> Scenario {
    let trial = Scenario::full(&format!("hostile-{name}"), about, move |e| {
        answered(e)?;
        for vm in attacks {
            if !e.guest_lines(vm).any(|line| line.what.starts_with("the ")) {
                return Err(format!("{vm} never began"));
            }
        }
        counted(e, "neighbour", 20)?;
        pace::kept(e, "neighbour")?;
        stopped(e, &attacks)?;
        well(e, &[])
    })
    .on(machine())
    .observed(pace::OBSERVER)
    .vm(neighbour(12))
    .type_after("[neighbour] COUNT", "cpu\rvm\r")
    .type_after(COUNTED, "vm\r")
    .within(Duration::from_secs(300));
    let stops: String = attacks.iter().map(|vm| format!("vm {vm} stop\r")).collect();
    let trial = trial.type_after("[neighbour] GUEST-RESULT", &stops);
    attacks.into_iter().fold(trial, |trial, attack| {
        let words = format!("attack={attack}");
        trial.vm(Vm::micro(attack, "hostile", &words).set("cpu_affinity", "{ cpus = [0] }"))
    })
}

/// The operator stopped them.
fn stopped(e: &Evidence, vms: &[&str]) -> Result<(), String> {
    for vm in vms {
        let reason = off_reason(e, vm);
        if reason != Some(&OffReason::Stopped) {
            return Err(format!("{vm} was not stopped by the operator: {reason:?}"));
        }
    }
    Ok(())
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
            counted(e, "neighbour", 20)?;
            pace::kept(e, "neighbour")?;
            well(e, &[])
        },
    )
    .on(machine())
    .observed(pace::OBSERVER)
    .vm(mallory(&format!("attack=ports,msrs seed={seed}")))
    .vm(neighbour(12))
    .type_after(COUNTED, "vm\r")
    .seeded(seed)
    .within(Duration::from_secs(900))
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
