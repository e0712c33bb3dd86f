//! Commands that an operator types. Whatever is typed, the answer is text.

use super::{counters, latency, load, report, thresholds, touched};
use crate::console;
use crate::drive;
use crate::virt::Backend;
use crate::vm::{Hypervisor, Vm, VmState};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use config::model::{Keyword, Mode};
use log::LevelFilter;
use units::NodeId;

/// One command: its name, the words behind it, what it does.
type Entry = (&'static str, &'static str, &'static str);

#[rustfmt::skip] // a table, a line each
const COMMANDS: &[Entry] = &[
    ("help", "", "this list"),
    ("topology", "", "nodes with their memory and CPUs, latencies between them"),
    ("memory", "", "free memory of each node"),
    ("load", "", "what CPUs, memory and links of each node do, of what they could"),
    ("vm", "[NAME]", "all VMs, or one and its vCPUs"),
    ("vm", "NAME start|stop|pause|resume", "starts a VM that is off, ends it, holds it, lets it go on"),
    ("vm", "NAME dump", "shows the registers and last exits of its vCPUs"),
    ("vm", "NAME mode MODE", "what may move of a VM from now on"),
    ("cpu", "", "what each CPU does"),
    ("latency", "", "how long vCPUs waited for a CPU after they woke, and CPUs for the scheduler's lock"),
    ("footprint", "[NAME]", "who touches which node's memory"),
    ("proximity", "[NAME]", "how near each CPU is to what a VM touches"),
    ("where", "NAME ADDRESS", "where a VM's memory at an address lies, and how hot it is"),
    ("why", "[NAME[.VCPU]]", "the planner's last word, and the scheduler's sum for each vCPU; of one, its last decisions too"),
    ("thresholds", "", "thresholds that follow the load: what they are, what they follow, when they changed last"),
    ("donate", "[on|off]", "shows or sets whether a vCPU that waits for a lock leaves its slice to a preempted one of its VM"),
    ("moves", "", "what page moves have cost so far: pauses, pages a second, failures, and the copy budget"),
    ("migrate", "NAME NODE", "moves all pages of a VM to a node"),
    ("migrate", "NAME around STOPS", "moves them from node to node, so many times"),
    ("hot", "NAME", "records the pages that a VM touches most, for tools"),
    ("touched", "NAME begin|end", "records exactly what a VM reads and writes between the two"),
    ("split", "NAME MIB MIB", "maps memory of a VM, from there, so much, by pages of 4 KiB"),
    ("security", "", "measures against leaks by speculation: needed, taken, how often"),
    ("counters", "[NAME]", "performance counters: what they count by which event, or what they counted of a VM"),
    ("log", "[error|warn|info|debug|trace]", "shows or sets which messages are shown"),
];
/// Of kernels that were built for tests.
const FOR_TESTS: &[Entry] = match cfg!(feature = "sabotage") {
    true => &[
        (
            "inject",
            "NAME KIND=N ...",
            "injected counters count so much in a second of a VM's run time",
        ),
        (
            "inject",
            "node N mb-s=N [far-mb-s=N]",
            "what a node's CPUs move to and from memory while one is awake, and how much of it to other nodes",
        ),
    ],
    false => &[],
};
/// The last command stands apart: what it does cannot be undone.
const SHUTDOWN: Entry = ("shutdown", "", "stops all VMs and powers the machine off");
/// Column in which help explains.
const HELP_COLUMN: usize = 36;

/// Executes one line.
pub fn execute<B: Backend>(hv: &Hypervisor<B>, line: &str) {
    let mut words = line.split_whitespace();
    let Some(command) = words.next() else { return };
    let rest: Vec<&str> = words.collect();
    let every = |report: fn(&Hypervisor<B>, &Vm<B>) -> String| {
        hv.vms.iter().map(|vm| report(hv, vm)).collect()
    };
    let answer: String = match (command, rest.as_slice()) {
        ("help", []) => help(),
        ("topology", []) => report::topology(hv),
        ("memory", []) => report::memory(),
        ("load", []) => load::load(hv),
        ("vm", []) => report::vms(hv),
        ("vm", [name]) => with_vm(hv, name, |vm| report::vm(hv, vm)),
        ("vm", [name, "dump"]) => with_vm(hv, name, |vm| dump(hv, vm)),
        ("vm", [name, verb]) => with_vm(hv, name, |vm| control(hv, vm, verb)),
        ("vm", [name, "mode", mode]) => with_vm(hv, name, |vm| set_mode(hv, vm, mode)),
        ("cpu", []) => report::cpus(hv),
        ("latency", []) => latency::report(hv),
        ("footprint", []) => every(report::footprint),
        ("footprint", [name]) => with_vm(hv, name, |vm| report::footprint(hv, vm)),
        ("proximity", []) => every(report::proximity),
        ("proximity", [name]) => with_vm(hv, name, |vm| report::proximity(hv, vm)),
        ("where", [name, at]) => with_vm(hv, name, |vm| touched::place(hv, vm, at)),
        ("why", []) => every(|hv, vm| report::why(hv, vm, None)),
        ("why", [what]) => why(hv, what),
        ("donate", []) => donation(drive::donates(hv)),
        ("donate", [word @ ("on" | "off")]) => {
            drive::set_donation(hv, *word == "on");
            donation(drive::donates(hv))
        }
        ("moves", []) => thresholds::moves(hv),
        ("thresholds", []) => thresholds::report(hv),
        ("migrate", [name, "around", stops]) => with_vm(hv, name, |vm| around(hv, vm, stops)),
        ("migrate", [name, node]) => with_vm(hv, name, |vm| migrate(hv, vm, node)),
        ("hot", [name]) => with_vm(hv, name, |vm| touched::hot(hv, vm)),
        ("touched", [name, "begin"]) => with_vm(hv, name, touched::begin),
        ("touched", [name, "end"]) => with_vm(hv, name, touched::end),
        ("split", [name, at, mib]) => with_vm(hv, name, |vm| touched::split(vm, at, mib)),
        ("counters", []) => counters::events(),
        ("counters", [name]) => with_vm(hv, name, |vm| counters::of_vm(hv, vm)),
        #[cfg(feature = "sabotage")]
        ("inject", ["node", node, words @ ..]) => {
            crate::counters::injected::caches::set(node, words)
        }
        #[cfg(feature = "sabotage")]
        ("inject", [name, words @ ..]) => with_vm(hv, name, |vm| {
            crate::counters::injected::set(vm.id, &vm.name, words)
        }),
        ("security", []) => report::security(hv),
        ("log", []) => format!(
            "messages down to {} are shown\n",
            level_name(log::max_level())
        ),
        ("log", [level]) => set_level(level),
        ("shutdown", []) => {
            console::print(format_args!(
                "all VMs are stopped, the machine is switched off\n"
            ));
            hv.vms.iter().for_each(|vm| vm.stop(hv));
            crate::start::shutdown(hv)
        }
        (name, _) => misunderstood(name),
    };
    console::print(format_args!("{answer}"));
}

fn entries() -> impl Iterator<Item = Entry> {
    COMMANDS
        .iter()
        .copied()
        .chain(FOR_TESTS.iter().copied())
        .chain([SHUTDOWN])
}

fn help() -> String {
    let mut text = String::new();
    for (name, words, about) in entries() {
        let usage = format!("{name} {words}");
        text.push_str(&format!("  {usage:<HELP_COLUMN$}{about}\n"));
    }
    for (key, about) in super::KEYS {
        text.push_str(&format!("  {key:<HELP_COLUMN$}{about}\n"));
    }
    text
}

/// Nothing that can be executed: what would have been possible instead.
fn misunderstood(command: &str) -> String {
    let usages: Vec<String> = entries()
        .filter(|(name, ..)| *name == command)
        .map(|(name, words, _)| String::from(format!("{name} {words}").trim_end()))
        .collect();
    if !usages.is_empty() {
        return format!("{command} is used like this: {}\n", usages.join(" or "));
    }
    let mut names: Vec<&str> = entries().map(|(name, ..)| name).collect();
    names.dedup();
    format!(
        "{command:?} is no command; there are: {}\n",
        names.join(" ")
    )
}

fn with_vm<B: Backend>(
    hv: &Hypervisor<B>,
    name: &str,
    work: impl FnOnce(&Vm<B>) -> String,
) -> String {
    match hv.vms.iter().find(|vm| vm.name == name) {
        Some(vm) => work(vm),
        None if hv.vms.is_empty() => format!("there is no VM {name:?}; there is none at all\n"),
        None => {
            let names: Vec<&str> = hv.vms.iter().map(|vm| vm.name.as_str()).collect();
            format!("there is no VM {name:?}; there are: {}\n", names.join(" "))
        }
    }
}

fn control<B: Backend>(hv: &Hypervisor<B>, vm: &Vm<B>, verb: &str) -> String {
    let done = match (verb, vm.state()) {
        ("start", _) => vm.start(hv),
        ("stop", off @ VmState::Off(_)) => {
            Err(format!("{} is {off} already; nothing was done", vm.name))
        }
        ("stop", _) => {
            vm.stop(hv);
            Ok(())
        }
        ("pause", _) => vm.set_paused(hv, true),
        ("resume", _) => vm.set_paused(hv, false),
        (other, _) => Err(format!(
            "{other:?} cannot be done to a VM; start, stop, pause, resume and dump can"
        )),
    };
    match done {
        Ok(()) => format!("{} is {}\n", vm.name, vm.state()),
        Err(why) => format!("{why}\n"),
    }
}

fn dump<B: Backend>(hv: &Hypervisor<B>, vm: &Vm<B>) -> String {
    crate::vm::dump_all(hv, vm);
    String::new()
}

fn set_mode<B: Backend>(hv: &Hypervisor<B>, vm: &Vm<B>, word: &str) -> String {
    match Mode::from_word(word) {
        Some(mode) => {
            crate::drive::set_mode(hv, vm, mode);
            format!("the mode of {} is {mode}\n", vm.name)
        }
        None => format!("{word:?} is no mode; they are: {}\n", Mode::WORDS.join(" ")),
    }
}

fn donation(on: bool) -> String {
    let word = if on { "on" } else { "off" };
    format!("donation of slices is {word}\n")
}

fn why<B: Backend>(hv: &Hypervisor<B>, what: &str) -> String {
    // A VM's name may hold no dot, so what follows one is a vCPU.
    let (name, vcpu) = match what.split_once('.') {
        Some((name, vcpu)) => (name, Some(vcpu)),
        None => (what, None),
    };
    match vcpu.map(str::parse::<u16>) {
        None => with_vm(hv, name, |vm| report::why(hv, vm, None)),
        Some(Ok(index)) => with_vm(hv, name, |vm| report::why(hv, vm, Some(index))),
        Some(Err(_)) => format!(
            "{what:?} names no vCPU; it is a VM's name, a dot and a number, like {name}.0\n"
        ),
    }
}

fn around<B: Backend>(hv: &Hypervisor<B>, vm: &Vm<B>, stops: &str) -> String {
    if vm.state() != VmState::Running {
        return format!(
            "{} is {}; its pages stay where they are\n",
            vm.name,
            vm.state()
        );
    }
    let Ok(stops) = stops.parse::<u32>() else {
        return format!("{stops:?} should be a number of stops, such as 4\n");
    };
    let tour = drive::Tour {
        stops,
        leaves: 0,
        written: 0,
        failed: 0,
    };
    drive::travel(hv, vm, NodeId::default(), tour);
    format!(
        "the pages of {} go from node to node, {stops} times\n",
        vm.name
    )
}

fn migrate<B: Backend>(hv: &Hypervisor<B>, vm: &Vm<B>, node: &str) -> String {
    if let off @ VmState::Off(_) = vm.state() {
        return format!("{} is {off}; it has no pages to move\n", vm.name);
    }
    let number = node.strip_prefix("node").unwrap_or(node);
    let found = number
        .parse::<u16>()
        .ok()
        .and_then(|n| hv.machine.node(NodeId(n)));
    match found {
        Some(node) if node.memory_bytes() > 0 => report::migrate(hv, vm, node.id),
        Some(node) => format!("{} has no memory; nothing was moved\n", node.id),
        None => format!(
            "{node:?} is no node; they are 0 to {}\n",
            hv.machine.nodes.len().saturating_sub(1)
        ),
    }
}

/// Levels as the operator types them.
const LEVELS: [(&str, LevelFilter); 5] = [
    ("error", LevelFilter::Error),
    ("warn", LevelFilter::Warn),
    ("info", LevelFilter::Info),
    ("debug", LevelFilter::Debug),
    ("trace", LevelFilter::Trace),
];

fn level_name(level: LevelFilter) -> &'static str {
    LEVELS
        .iter()
        .find(|(_, l)| *l == level)
        .map_or("none", |(name, _)| name)
}

fn set_level(word: &str) -> String {
    match LEVELS.iter().find(|(name, _)| *name == word) {
        Some((name, level)) => {
            log::set_max_level(*level);
            format!("messages down to {name} are shown from now on\n")
        }
        None => {
            let names: Vec<&str> = LEVELS.iter().map(|(name, _)| *name).collect();
            format!("{word:?} is no level; they are: {}\n", names.join(" "))
        }
    }
}
