//! One `[[vm]]` table, and the rules between its keys.

use crate::model::{Affinity, AtEnd, NodeShare, Vm};
use crate::read::{Issues, TableReader, kind, number};
use crate::size::{GRANULE, parse_size, size_text};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use toml::Spanned;
use toml::de::{DeArray, DeValue};
use units::{CpuId, NodeId};

pub(crate) const KEYS: &[&str] = &[
    "name",
    "cpus",
    "memory",
    "kernel",
    "initrd",
    "append",
    "memory_nodes",
    "start_node",
    "cpu_affinity",
    "weight",
    "cap",
    "priority",
    "mode",
    "vnuma",
    "boot",
    "test_devices",
    "on_poweroff",
    "on_reset",
    "on_fault",
];

/// Longest name of a VM, in characters.
const NAME_MAX: usize = 16;
/// Longest kernel command line, in bytes: what x86 Linux keeps (COMMAND_LINE_SIZE less its terminator).
const APPEND_MAX: usize = 2047;
const NODE_MAX: u64 = u16::MAX as u64;
const CPU_MAX: u64 = u32::MAX as u64;

/// Reads the table; what is wrong goes to `issues` and is replaced by something harmless.
pub(crate) fn read(table: &TableReader<'_>, others: &[Vm], issues: &mut Issues<'_>) -> Vm {
    table.reject_unknown(issues);
    for (key, example) in [
        ("name", "\"web\""),
        ("cpus", "2"),
        ("memory", "\"256M\""),
        ("kernel", "\"vmlinuz\""),
    ] {
        table.require(key, example, issues);
    }
    let memory = table
        .string("memory", issues)
        .and_then(|text| memory_size(table, "memory", text, issues));
    let vm = Vm {
        name: name(table, others, issues),
        cpus: table.number("cpus", 1..=64, 1, issues) as u16,
        memory_bytes: memory.unwrap_or(GRANULE),
        kernel: path(table, "kernel", issues).unwrap_or_default(),
        initrd: path(table, "initrd", issues),
        append: append(table, issues),
        memory_nodes: memory_nodes(table, memory, issues),
        start_node: table
            .get("start_node")
            .and_then(|value| node(value, "`start_node`", issues)),
        affinity: affinity(table, issues),
        weight: table.number("weight", 1..=65_535, 256, issues) as u16,
        cap_percent: table.number("cap", 0..=6_400, 0, issues) as u32,
        priority: table.keyword("priority", issues).unwrap_or_default(),
        mode: table.keyword("mode", issues),
        vnuma: table.boolean("vnuma", false, issues),
        boot: table.keyword("boot", issues).unwrap_or_default(),
        test_devices: table.boolean("test_devices", false, issues),
        on_poweroff: table.keyword("on_poweroff", issues).unwrap_or(AtEnd::Off),
        on_reset: table.keyword("on_reset", issues).unwrap_or(AtEnd::Restart),
        on_fault: table.keyword("on_fault", issues).unwrap_or(AtEnd::Off),
    };
    if let (Some(start), Affinity::Nodes(allowed)) = (vm.start_node, &vm.affinity)
        && !allowed.contains(&start)
    {
        let span = table.get("start_node").map_or(table.span(), Spanned::span);
        issues.report(
            span,
            format!(
                "`start_node` is {}, but `cpu_affinity` does not allow that node.",
                start.0
            ),
        );
    }
    vm
}

fn name(table: &TableReader<'_>, others: &[Vm], issues: &mut Issues<'_>) -> String {
    let Some(name) = table.string("name", issues) else {
        return String::new();
    };
    let span = table.get("name").map_or(table.span(), Spanned::span);
    let right = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if name.is_empty() || name.len() > NAME_MAX || !name.chars().all(right) {
        issues.report(span, format!("`name` must be 1 to {NAME_MAX} small letters, digits or hyphens, but it is {name:?}."));
    } else if others.iter().any(|other| other.name == name) {
        issues.report(
            span,
            format!("the name \"{name}\" is taken by an earlier VM; each VM needs its own."),
        );
    }
    name.into()
}

fn path(table: &TableReader<'_>, key: &str, issues: &mut Issues<'_>) -> Option<String> {
    let path = table.string(key, issues)?;
    if path.is_empty() || path.chars().any(char::is_control) {
        let span = table.get(key).map_or(table.span(), Spanned::span);
        issues.report(
            span,
            format!("`{key}` must be the path of a file, but it is {path:?}."),
        );
    }
    Some(path.into())
}

fn append(table: &TableReader<'_>, issues: &mut Issues<'_>) -> String {
    let Some(text) = table.string("append", issues) else {
        return String::new();
    };
    let span = table.get("append").map_or(table.span(), Spanned::span);
    if text.contains('\0') {
        issues.report(
            span,
            "`append` holds a NUL character, at which the guest would stop reading.".into(),
        );
    } else if text.len() > APPEND_MAX {
        issues.report(
            span,
            format!(
                "`append` has {} bytes, but a command line may have {APPEND_MAX}.",
                text.len()
            ),
        );
    }
    text.into()
}

/// Bytes of a size that is a multiple of the granule and not zero.
fn memory_size(
    table: &TableReader<'_>,
    key: &str,
    text: &str,
    issues: &mut Issues<'_>,
) -> Option<u64> {
    let problem = match parse_size(text) {
        Ok(0) => format!("must not be zero, but it is {text:?}."),
        Ok(bytes) if bytes % GRANULE != 0 => {
            format!("must be a multiple of 2M, but it is {text:?}.")
        }
        Ok(bytes) => return Some(bytes),
        Err(problem) => problem,
    };
    let span = table.get(key).map_or(table.span(), Spanned::span);
    issues.report(span, format!("`{key}` {problem}"));
    None
}

fn node(value: &Spanned<DeValue<'_>>, what: &str, issues: &mut Issues<'_>) -> Option<NodeId> {
    number(value, what, 0..=NODE_MAX, issues).map(|node| NodeId(node as u16))
}

fn memory_nodes(
    table: &TableReader<'_>,
    memory: Option<u64>,
    issues: &mut Issues<'_>,
) -> Vec<NodeShare> {
    let Some(value) = table.get("memory_nodes") else {
        return Vec::new();
    };
    let DeValue::Array(entries) = value.get_ref() else {
        let is = kind(value.get_ref());
        issues.report(value.span(), format!("`memory_nodes` must be a list such as [3] or [{{ node = 3, size = \"64M\" }}], but it is {is}."));
        return Vec::new();
    };
    if entries.is_empty() {
        issues.report(
            value.span(),
            "`memory_nodes` is empty; leave the key out to let Perigee choose.".into(),
        );
        return Vec::new();
    }
    let mut shares = Vec::new();
    for entry in entries.iter() {
        let (node, size) = match entry.get_ref() {
            DeValue::Table(inner) => {
                let inner = TableReader::new(
                    "an entry of `memory_nodes`",
                    inner,
                    entry.span(),
                    &["node", "size"],
                );
                inner.reject_unknown(issues);
                inner.require("node", "3", issues);
                let size = match inner.string("size", issues) {
                    Some(text) => match memory_size(&inner, "size", text, issues) {
                        Some(bytes) => Some(bytes),
                        None => return Vec::new(),
                    },
                    None if inner.get("size").is_some() => return Vec::new(),
                    None => None,
                };
                (
                    inner
                        .get("node")
                        .and_then(|value| node(value, "`node`", issues)),
                    size,
                )
            }
            _ => (node(entry, "a node in `memory_nodes`", issues), None),
        };
        match node {
            Some(node) => shares.push((node, size)),
            None => return Vec::new(),
        }
    }
    let Some(memory) = memory else {
        return Vec::new();
    };
    deal_out(&shares, memory).unwrap_or_else(|problem| {
        issues.report(value.span(), problem);
        Vec::new()
    })
}

/// Gives every share its size: those without one divide what the others leave.
fn deal_out(shares: &[(NodeId, Option<u64>)], memory: u64) -> Result<Vec<NodeShare>, String> {
    let named = shares
        .iter()
        .try_fold(0u64, |sum, (_, size)| sum.checked_add(size.unwrap_or(0)))
        .ok_or("the sizes in `memory_nodes` add up to more than 64 bits can count.")?;
    let open = shares.iter().filter(|(_, size)| size.is_none()).count() as u64;
    let Some(rest) = memory.checked_sub(named) else {
        return Err(format!(
            "the sizes in `memory_nodes` add up to {}, more than `memory` = \"{}\".",
            size_text(named),
            size_text(memory)
        ));
    };
    if open == 0 && rest != 0 {
        return Err(format!(
            "the sizes in `memory_nodes` add up to {}, but `memory` is \"{}\"; {} is in no node.",
            size_text(named),
            size_text(memory),
            size_text(rest)
        ));
    }
    let granules = rest / GRANULE;
    if granules < open {
        return Err(format!(
            "`memory_nodes` leaves {} for {open} entries without a size; each needs at least 2M.",
            size_text(rest)
        ));
    }
    let mut larger = granules.checked_rem(open).unwrap_or(0);
    let mut bytes_of = |size: Option<u64>| {
        size.unwrap_or_else(|| {
            let extra = u64::from(larger > 0);
            larger = larger.saturating_sub(1);
            (granules / open.max(1) + extra) * GRANULE
        })
    };
    Ok(shares
        .iter()
        .map(|(node, size)| NodeShare {
            node: *node,
            bytes: bytes_of(*size),
        })
        .collect())
}

fn affinity(table: &TableReader<'_>, issues: &mut Issues<'_>) -> Affinity {
    let Some(value) = table.get("cpu_affinity") else {
        return Affinity::Auto;
    };
    match value.get_ref() {
        DeValue::String(word) if word == "auto" => return Affinity::Auto,
        DeValue::Table(inner) => {
            let inner = TableReader::new("`cpu_affinity`", inner, value.span(), &["nodes", "cpus"]);
            inner.reject_unknown(issues);
            match (inner.get("nodes"), inner.get("cpus")) {
                (Some(nodes), None) => {
                    let nodes = numbers(nodes, "nodes", NODE_MAX, issues);
                    return Affinity::Nodes(
                        nodes.into_iter().map(|node| NodeId(node as u16)).collect(),
                    );
                }
                (None, Some(cpus)) => {
                    let cpus = numbers(cpus, "cpus", CPU_MAX, issues);
                    return Affinity::Cpus(cpus.into_iter().map(|cpu| CpuId(cpu as u32)).collect());
                }
                _ => {}
            }
        }
        _ => {}
    }
    issues.report(
        value.span(),
        "`cpu_affinity` must be \"auto\", { nodes = [..] } or { cpus = [..] }.".into(),
    );
    Affinity::Auto
}

/// A list of different numbers that is not empty.
fn numbers(value: &Spanned<DeValue<'_>>, key: &str, max: u64, issues: &mut Issues<'_>) -> Vec<u64> {
    let empty = DeArray::new();
    let entries = match value.get_ref() {
        DeValue::Array(entries) => entries,
        _ => &empty,
    };
    if entries.is_empty() {
        issues.report(
            value.span(),
            format!("`{key}` must be a list with at least one number, such as [0]."),
        );
    }
    let mut found: Vec<u64> = Vec::new();
    for entry in entries.iter() {
        let Some(number) = number(entry, &format!("each entry of `{key}`"), 0..=max, issues) else {
            continue;
        };
        if found.contains(&number) {
            issues.report(entry.span(), format!("{number} stands in `{key}` twice."));
        }
        found.push(number);
    }
    found
}
