//! What an operator, a medium or firmware can get wrong, in a whole machine: each gets its sentence, and what can go on
//! goes on. What needs no machine is tested where it lives (`config`, `topology`, `guest`, `boot`).

use telemetry::{Event, OffReason, VmEvent};
use topology::build;

use super::boot::topology_matches;
use crate::{Evidence, FileChange, Machine, Outcome, Scenario, Vm, tiny};

/// A configuration with one mistake a line.
const MISTAKES: &str = "\
[host]
mdoe = \"auto\"
sample_ms = \"often\"

[[vm]]
name = \"alpha\"
cpus = 0
memory = \"96 M\"
kernal = \"guests/vmlinuz\"
memory_nodes = [{ node = 0, size = \"1G\" }]
";

/// What the kernel must say about it.
const SENTENCES: [&str; 6] = [
    "perigee.toml: line 2, column 1: unknown key `mdoe` in [host]; did you mean `mode`?",
    "perigee.toml: line 3, column 13: `sample_ms` must be a whole number from 1 to 60000, but it is a string.",
    "perigee.toml: line 5, column 1: [[vm]] has no `kernel`",
    "perigee.toml: line 7, column 8: `cpus` must be a whole number from 1 to 64, but it is 0.",
    "perigee.toml: line 9, column 1: unknown key `kernal` in [[vm]]; did you mean `kernel`?",
    "perigee.toml has mistakes; no VM is started",
];

/// The trials of this file.
pub fn scenarios() -> Vec<Scenario> {
    let tiny_machine = || Machine::row(1, 1, 256);
    vec![
        Scenario::quick(
            "bad-configuration",
            "every mistake in the configuration is named with line, column and the nearest known key",
            |e| said(e, &SENTENCES),
        )
        .on(tiny_machine())
        .file("perigee/perigee.toml", FileChange::Put(MISTAKES.into())),
        Scenario::quick(
            "bad-tables",
            "damaged SRAT, SLIT and MADT are named, what was done instead is said, and the machine runs",
            damaged_tables,
        )
        .on(Machine::row(2, 1, 256))
        .table("madt.aml", damaged_madt())
        .table("srat.aml", damaged_srat())
        .table("slit.aml", damaged_slit()),
        Scenario::quick(
            "no-srat",
            "without an SRAT the kernel says so and takes all processors and memory as one node, where a Linux does its work",
            one_node,
        )
        .on(Machine::row(1, 4, 512).without_srat())
        .vm(Vm::linux("well").workload("--mib 8 --seconds 3"))
        .type_after("[well] GUEST-UP", "topology\r"),
        Scenario::quick(
            "bad-guests",
            "guests that are truncated, no kernels, triple-fault or leave their memory end alone, with a dump; a neighbour does its work",
            bad_guests,
        )
        .on(Machine::row(2, 1, 384))
        .file("perigee/guests/cut", cut_kernel())
        .file("perigee/guests/text", FileChange::Put(b"no kernel at all\n".repeat(100)))
        .file("perigee/guests/triple", FileChange::Put(tiny::triple_faults()))
        .file("perigee/guests/leaps", FileChange::Put(tiny::leaps()))
        .vm(Vm::of_file("cut", "guests/cut", 32))
        .vm(Vm::of_file("text", "guests/text", 32))
        .vm(Vm::of_file("triple", "guests/triple", 32))
        .vm(Vm::of_file("leaps", "guests/leaps", 32))
        .vm(Vm::linux("well").set("cpus", "1").set("memory", "\"128M\"").workload("--mib 8 --seconds 1")),
        Scenario::quick(
            "loader-names-a-damaged-kernel",
            "a kernel file that was copied by half is refused by the loader with a sentence",
            |e| gave_up(e, &["kernel.elf", "Copy kernel.elf of this Perigee release"]),
        )
        .on(tiny_machine())
        .file("perigee/kernel.elf", FileChange::Cut(100_000)),
        Scenario::full(
            "loader-names-a-missing-kernel",
            "a medium without a kernel is refused by the loader with a sentence",
            |e| gave_up(e, &["kernel.elf", "is missing"]),
        )
        .on(tiny_machine())
        .file("perigee/kernel.elf", FileChange::Remove),
        Scenario::full(
            "loader-names-a-missing-configuration",
            "a medium without a configuration is refused by the loader with a sentence",
            |e| gave_up(e, &["perigee.toml", "is missing"]),
        )
        .on(tiny_machine())
        .file("perigee/perigee.toml", FileChange::Remove),
    ]
}

fn said(e: &Evidence, sentences: &[&str]) -> Result<(), String> {
    match sentences.iter().find(|sentence| e.line(sentence).is_none()) {
        None => Ok(()),
        Some(sentence) => Err(format!("nobody said {sentence:?}")),
    }
}

fn gave_up(e: &Evidence, words: &[&str]) -> Result<(), String> {
    let Outcome::HypervisorPanic(why) = &e.outcome else {
        return Err(format!("the loader did not give up: {}", e.outcome));
    };
    match words.iter().find(|word| !why.contains(**word)) {
        None => Ok(()),
        Some(word) => Err(format!("the loader's sentence lacks {word:?}: {why}")),
    }
}

/// With a checksum that is wrong: the loader leaves it out.
fn damaged_madt() -> Vec<u8> {
    let mut table = build::madt(&[]);
    table[9] = table[9].wrapping_add(1);
    table
}

/// Two processors and the memory of both nodes, then an entry that says it has no bytes.
fn damaged_srat() -> Vec<u8> {
    use build::Affinity::{Memory, X2Cpu};
    let half = 256 << 20;
    let affinities = [
        X2Cpu { apic: 0, domain: 0 },
        X2Cpu { apic: 1, domain: 1 },
        Memory {
            start: 0,
            bytes: half,
            domain: 0,
        },
        Memory {
            start: half,
            bytes: half,
            domain: 1,
        },
        X2Cpu { apic: 9, domain: 0 },
    ];
    let mut table = build::srat(&affinities);
    let last = table.len() - 24; // an x2APIC affinity has 24 bytes (ACPI 6.5, 5.2.16.3)
    table[last + 1] = 0;
    build::seal(&mut table);
    table
}

/// Nearer to the other node than to itself.
fn damaged_slit() -> Vec<u8> {
    build::slit(2, |from, to| if from == to { 10 } else { 5 })
}

fn damaged_tables(e: &Evidence) -> Result<(), String> {
    said(
        e,
        &["madt.aml is skipped, firmware's table stays: its checksum is wrong"],
    )?;
    let quirks = &e
        .topology()
        .ok_or("the kernel recorded no topology")?
        .quirks;
    for table in ["SRAT, offset", "SLIT"] {
        if !quirks.iter().any(|q| q.starts_with(table)) {
            return Err(format!("no sentence about {table} among {quirks:?}"));
        }
    }
    let seen = e.topology().map_or(0, |t| t.nodes.len());
    match (&e.outcome, seen) {
        (Outcome::Clean, 2) => Ok(()),
        (outcome, nodes) => Err(format!("{nodes} nodes, and it ended as: {outcome}")),
    }
}

/// What was missing and what was done instead is said, on the console, in the record and to the operator who asks.
fn one_node(e: &Evidence) -> Result<(), String> {
    const SENTENCE: &str = "Firmware has no SRAT; all processors and memory are node 0.";
    said(e, &[&format!("topology: {SENTENCE}")])?;
    let seen = e.topology().ok_or("the kernel recorded no topology")?;
    let quirks: Vec<_> = seen.quirks.iter().filter(|q| q.contains("SRAT")).collect();
    if quirks != [SENTENCE] {
        return Err(format!("the record says about the SRAT: {quirks:?}"));
    }
    topology_matches(&e.machine, seen)?;
    let rows = e
        .console
        .iter()
        .map(|l| l.what.split_whitespace().collect::<Vec<_>>());
    let rows: Vec<_> = rows
        .filter(|r| matches!(r[..], [_, pxm, _, "MiB", _] if pxm.starts_with("pxm")))
        .collect();
    if !matches!(rows[..], [ref row] if row[0] == "node0" && row[4] == "0-3") {
        return Err(format!("the operator was shown these nodes: {rows:?}"));
    }
    e.every_guest_is_well(2)
}

/// A kernel of which the end is missing.
fn cut_kernel() -> FileChange {
    let whole = tiny::triple_faults();
    FileChange::Put(whole[..whole.len() - 300].to_vec())
}

fn bad_guests(e: &Evidence) -> Result<(), String> {
    fault(e, "cut", &["truncated", "was not started"])?;
    fault(e, "text", &["not a Linux bzImage", "was not started"])?;
    fault(e, "triple", &["triple-faulted"])?;
    fault(e, "leaps", &["executes at", "0xb0000000"])?;
    said(
        e,
        &[
            "triple: vCPU 0 had stopped by",
            "leaps: vCPU 0 had stopped by",
            "bytes at rip",
        ],
    )?;
    if e.guest("well").ok != Some(true) {
        return Err("the neighbour did not do its work".into());
    }
    match &e.outcome {
        Outcome::GuestFailed(_) => Ok(()),
        other => Err(format!("it ended as: {other}")),
    }
}

/// The sentence by which a VM ended.
fn fault(e: &Evidence, vm: &str, words: &[&str]) -> Result<(), String> {
    let mut ends = e.events().filter_map(|event| match event {
        Event::Vm {
            name,
            what: VmEvent::Off(OffReason::Fault { what }),
            ..
        } if name == vm => Some(what),
        _ => None,
    });
    let what = ends
        .next()
        .ok_or_else(|| format!("{vm} did not end by a fault"))?;
    match words.iter().find(|word| !what.contains(**word)) {
        None => Ok(()),
        Some(word) => Err(format!("the sentence for {vm} lacks {word:?}: {what}")),
    }
}
