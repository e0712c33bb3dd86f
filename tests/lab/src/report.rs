//! What the plugin tells: one JSON object.

use crate::counts::Counts;
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
    pub(crate) fn new(
        counts: &Counts,
        elapsed_ms: u64,
        complete: bool,
        shared_thread: bool,
    ) -> Self {
        let tags = (1..TAGS)
            .filter_map(|tag| tag_report(counts, tag, elapsed_ms))
            .collect();
        Self {
            version: 1,
            elapsed_ms,
            complete,
            shared_thread,
            nodes: counts.nodes(),
            devices: counts.devices(),
            tags,
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
