//! What the plugin tells: one JSON object.

use crate::counts::Counts;
use crate::host::{Host, Lap};
use crate::pages::{Count, PAGE_SHIFT, Pages};
use crate::tag::TAGS;
use serde::Serialize;
use std::io;
use std::path::Path;

/// The whole report. Matrices have one row per CPU node and one column per memory node.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Report {
    /// Layout of this object.
    pub(crate) version: u32,
    /// Milliseconds since QEMU loaded the plugin.
    pub(crate) elapsed_ms: u64,
    /// Whether QEMU was at its end; otherwise more may have followed.
    pub(crate) complete: bool,
    /// Whether vCPUs shared a host thread: then CPU nodes are not to be trusted.
    pub(crate) shared_thread: bool,
    /// Nodes of the machine.
    pub(crate) nodes: usize,
    /// Accesses to devices behind tags.
    pub(crate) devices: u64,
    /// Every tag that was executed.
    pub(crate) tags: Vec<Tag>,
    /// The windows that were closed, with their pages.
    pub(crate) page_windows: Vec<PageWindow>,
    /// What the hypervisor executed, if that was counted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) host: Option<HostReport>,
}

/// The pages that were touched while a window was open.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct PageWindow {
    /// When it was opened, in ms since the plugin was loaded.
    pub(crate) opened_ms: u64,
    /// When it was closed.
    pub(crate) closed_ms: u64,
    /// By physical address.
    pub(crate) machine: Vec<Page>,
    /// By linear address, as far as those are counted.
    pub(crate) linear: Vec<Page>,
}

/// Accesses to one page of 4 KiB: its number, its node (physical pages only), and for each CPU that touched it
/// the CPU, loads, stores.
pub(crate) type Page = (u64, Option<usize>, Vec<(usize, u64, u64)>);

/// What the hypervisor executed.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct HostReport {
    /// Until the first guest began: by CPU, instructions of firmware and loader, and of the hypervisor.
    pub(crate) boot: Option<Vec<(u64, u64)>>,
    /// The CPU that entered the first guest.
    pub(crate) boot_cpu: Option<usize>,
    /// Operations that were left out because the guest moved to another CPU meanwhile.
    pub(crate) moved: u64,
    /// By class.
    pub(crate) classes: Vec<Class>,
    /// Class, address of an instruction, how often it was executed; empty unless asked for.
    pub(crate) profile: Vec<(usize, u64, u64)>,
}

/// The operations of one class.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Class {
    /// Its number.
    pub(crate) class: usize,
    /// How many operations were counted.
    pub(crate) operations: usize,
    /// Host instructions on the operation's CPU.
    pub(crate) own: Spread,
    /// Host instructions on all CPUs that ran guests.
    pub(crate) all: Spread,
    /// Exits.
    pub(crate) exits: Spread,
}

/// How a figure is spread over the operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Spread {
    pub(crate) least: u64,
    pub(crate) median: u64,
    pub(crate) p90: u64,
    pub(crate) most: u64,
    pub(crate) total: u64,
}

/// What a report is made from.
#[derive(Debug)]
pub(crate) struct State<'a> {
    pub(crate) counts: &'a Counts,
    pub(crate) pages: &'a Pages,
    pub(crate) host: Option<&'a Host>,
    pub(crate) elapsed_ms: u64,
    pub(crate) complete: bool,
    pub(crate) shared_thread: bool,
}

/// What happened behind one tag.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Tag {
    /// Its number.
    pub(crate) tag: usize,
    /// Accesses to memory.
    pub(crate) accesses: u64,
    /// Those from a CPU of a node to memory of the same node.
    pub(crate) local: u64,
    /// Those to addresses that the map does not name; neither local nor in a matrix.
    pub(crate) outside: u64,
    /// Loads.
    pub(crate) loads: Vec<Vec<u64>>,
    /// Stores.
    pub(crate) stores: Vec<Vec<u64>>,
    /// The same over time, in order.
    pub(crate) windows: Vec<Window>,
}

/// A stretch of a tag's accesses.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Window {
    /// When it began, in ms since the plugin was loaded.
    pub(crate) start_ms: u64,
    /// Accesses to memory.
    pub(crate) accesses: u64,
    /// Those within a node.
    pub(crate) local: u64,
    /// Loads and stores.
    pub(crate) matrix: Vec<Vec<u64>>,
}

impl Report {
    pub(crate) fn new(state: &State<'_>) -> Self {
        let counts = state.counts;
        let tags = (1..TAGS).filter_map(|tag| tag_report(counts, tag, state.elapsed_ms));
        let node = |page: u64| counts.node_of(page << PAGE_SHIFT);
        let windows = state.pages.closed().into_iter().map(|window| PageWindow {
            opened_ms: window.opened_ms,
            closed_ms: window.closed_ms,
            machine: by_page(&window.machine, node),
            linear: by_page(&window.linear, |_| None),
        });
        Self {
            version: 1,
            elapsed_ms: state.elapsed_ms,
            complete: state.complete,
            shared_thread: state.shared_thread,
            nodes: counts.nodes(),
            devices: counts.devices(),
            tags: tags.collect(),
            page_windows: windows.collect(),
            host: state.host.map(host_report),
        }
    }

    /// Puts the report at `path`, whole or not at all.
    pub(crate) fn write(&self, path: &Path) -> io::Result<()> {
        let mut new = path.as_os_str().to_owned();
        new.push(".new");
        let text = serde_json::to_string(self).map_err(io::Error::other)?;
        std::fs::write(&new, text)?;
        std::fs::rename(&new, path)
    }
}

/// One entry for each page from one for each page and CPU.
fn by_page(counts: &[Count], node: impl Fn(u64) -> Option<usize>) -> Vec<Page> {
    let pages = counts.chunk_by(|a, b| a.page == b.page);
    pages
        .filter_map(|counts| {
            let page = counts.first()?.page;
            let cpus = counts.iter().map(|c| (c.cpu, c.loads, c.stores)).collect();
            Some((page, node(page), cpus))
        })
        .collect()
}

fn host_report(host: &Host) -> HostReport {
    let class = |(class, laps): (usize, Vec<Lap>)| Class {
        class,
        operations: laps.len(),
        own: spread(laps.iter().map(|lap| lap.own)),
        all: spread(laps.iter().map(|lap| lap.all)),
        exits: spread(laps.iter().map(|lap| lap.exits)),
    };
    HostReport {
        boot: host.boot().map(|boot| boot.cpus.clone()),
        boot_cpu: host.boot().map(|boot| boot.first),
        moved: host.moved(),
        classes: host.classes().into_iter().map(class).collect(),
        profile: host.profile(),
    }
}

fn spread(figures: impl Iterator<Item = u64>) -> Spread {
    let mut sorted: Vec<u64> = figures.collect();
    sorted.sort_unstable();
    let at = |tenths: usize| {
        let index = sorted.len().saturating_sub(1) * tenths / 10;
        sorted.get(index).copied().unwrap_or(0)
    };
    Spread {
        least: at(0),
        median: at(5),
        p90: at(9),
        most: at(10),
        total: sorted.iter().sum(),
    }
}

fn tag_report(counts: &Counts, tag: usize, now_ms: u64) -> Option<Tag> {
    let nodes = counts.nodes();
    let windows = counts.windows(tag, now_ms)?;
    let totals = counts.totals(tag);
    let both = || totals.loads.iter().chain(&totals.stores);
    let within = |rows: &[Vec<u64>]| -> Vec<Vec<u64>> {
        rows.iter()
            .map(|row| row.iter().take(nodes).copied().collect())
            .collect()
    };
    Some(Tag {
        tag,
        accesses: both().flatten().sum(),
        local: diagonal(&totals.loads) + diagonal(&totals.stores),
        outside: both().filter_map(|row| row.get(nodes)).sum(),
        loads: within(&totals.loads),
        stores: within(&totals.stores),
        windows: windows
            .into_iter()
            .map(|window| {
                let rows: Vec<Vec<u64>> = window
                    .matrix
                    .chunks(nodes + 1)
                    .map(<[u64]>::to_vec)
                    .collect();
                Window {
                    start_ms: window.start_ms,
                    accesses: window.accesses,
                    local: diagonal(&rows),
                    matrix: within(&rows),
                }
            })
            .collect(),
    })
}

fn diagonal(rows: &[Vec<u64>]) -> u64 {
    rows.iter()
        .enumerate()
        .filter_map(|(node, row)| row.get(node))
        .sum()
}
