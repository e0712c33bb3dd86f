//! What the operator is told about the load of nodes and links.

use super::table::Table;
use crate::arch::time;
use crate::counters::bandwidth;
use crate::drive::load;
use crate::virt::Backend;
use crate::vm::Hypervisor;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use footprint::load::{Capacities, Source, Traffic};
use topology::Machine;
use units::PerMille;

/// Bytes in a MB, as HMAT counts them.
const MB: u64 = 1_000_000;
/// What stands in place of a load that nobody knows.
const UNKNOWN: &str = "unknown: no bandwidth known; traffic ";

/// CPUs, memory and links of each node: what they do, of what they could, and who says so.
pub fn load<B: Backend>(hv: &Hypervisor<B>) -> String {
    let now = time::now();
    let tracking = hv.tracking.lock();
    let traffic = load::traffic(hv, &tracking, now);
    let capacities = &tracking.capacities;
    let mut nodes = Table::new(["node", "CPUs", "memory MB/s", "of MB/s", "load", "source"]);
    for view in load::node_views(hv, &traffic, capacities) {
        let cpus = view.use_with(0).map(u16::try_from);
        let sources = traffic.sources_at(view.node).into_iter().map(cited);
        nodes.row([
            view.node.to_string(),
            or_dash(cpus.map(|used| PerMille(used.unwrap_or(u16::MAX)))),
            (traffic.at(view.node) / MB).to_string(),
            or_dash(capacities.at(view.node).map(|bytes| bytes / MB)),
            or_dash(view.memory_load),
            told(view.memory_load, &sources.collect::<Vec<_>>().join(", ")),
        ]);
    }
    let assumed = tracking.planner().tunables().accesses_per_s;
    format!(
        "{nodes}{}where accessed bits alone say: with {assumed} accesses assumed in a second of a virtual CPU\n{}\n{}",
        links(hv.machine, &traffic, capacities),
        bandwidth::describe(),
        bandwidth::troubles(now)
    )
}

/// The way from each node with CPUs to each other one with memory, if there are any.
fn links(machine: &Machine, traffic: &Traffic, capacities: &Capacities) -> String {
    let mut table = Table::new(["from", "to", "link MB/s", "of MB/s", "load", "source"]);
    let mut any = false;
    for (from, to) in load::pairs(machine) {
        let used = capacities.link_load(traffic, from, to);
        let mut source = cited(traffic.source(from));
        if traffic.source(from) == Source::Counted && machine.nodes.len() > 2 {
            source.push_str(" for all far nodes, divided by accessed bits");
        }
        table.row([
            from.to_string(),
            to.to_string(),
            (traffic.between(from, to) / MB).to_string(),
            or_dash(capacities.between(from, to).map(|bytes| bytes / MB)),
            or_dash(used),
            told(used, &source),
        ]);
        any = true;
    }
    if any {
        table.to_string()
    } else {
        String::new()
    }
}

/// A source with the document that describes what was counted.
fn cited(source: Source) -> String {
    let counted = matches!(
        source,
        Source::Counted | Source::CountedTotal | Source::CountedLocal
    );
    match bandwidth::source().filter(|_| counted) {
        Some(document) => format!("{source} ({document})"),
        None => source.to_string(),
    }
}

fn told(load: Option<PerMille>, source: &str) -> String {
    match load {
        Some(_) => String::from(source),
        None => format!("{UNKNOWN}{source}"),
    }
}

fn or_dash<T: ToString>(known: Option<T>) -> String {
    known.map_or(String::from("-"), |known| known.to_string())
}
