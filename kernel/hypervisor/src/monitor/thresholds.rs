//! Thresholds that follow the load, and what page moves cost, for the operator.

use super::table::Table;
use crate::arch::time;
use crate::drive;
use crate::virt::Backend;
use crate::vm::Hypervisor;
use alloc::format;
use alloc::string::{String, ToString};
use migrate::Planner;
use migrate::adapt::{CPU, MEMORY};
use telemetry::Dial;
use units::PageSize;

/// Each threshold with what it follows and its last change; then the use that moves of each VM's pages were of.
pub fn report<B: Backend>(hv: &Hypervisor<B>) -> String {
    let tracking = hv.tracking.lock();
    let planner = tracking.planner();
    let mut text = match planner.tunables().adapt {
        true => format!("now: {}\n", planner.adapter().situation()),
        false => {
            String::from("thresholds stay as they are: `adapt = false` in the configuration\n")
        }
    };
    text.push_str(&format!(
        "CPUs are busy from above {} until below {}, memory and links from above {} until below {}\n",
        CPU.open, CPU.close, MEMORY.open, MEMORY.close
    ));
    text.push_str(&dials(planner).to_string());
    let mut useful = Table::new(["VM", "moved pages that were of use", "followed so far"]);
    for vm in &hv.vms {
        if let Some((part, followed)) = planner.usefulness(vm.id).filter(|(_, n)| *n > 0) {
            useful.row([vm.name.clone(), part.to_string(), followed.to_string()]);
        }
    }
    text.push_str(&useful.to_string());
    text
}

fn dials(planner: &Planner) -> Table {
    let (adapter, now) = (planner.adapter(), time::now());
    let settings = adapter.settings();
    let mut table = Table::new(["threshold", "is", "last change"]);
    for dial in Dial::ALL {
        let value = settings.of(dial);
        let last = match adapter.last_change(dial) {
            Some((at, why)) => format!("{} ago: {why}", now.since(at)),
            None => String::from("none"),
        };
        table.row([dial.to_string(), dial.show(value), last]);
    }
    table
}

/// Pauses, pages a second and failures by the size of the leaf; and what may be copied.
pub fn moves<B: Backend>(hv: &Hypervisor<B>) -> String {
    let tally = drive::tally();
    let mut table = Table::new([
        "leaf",
        "moved",
        "a second",
        "written meanwhile",
        "KiB copied again",
        "failed",
        "pause p50",
        "p99",
        "longest",
    ]);
    for size in [PageSize::Size4K, PageSize::Size2M] {
        let of = tally.of(size);
        table.row([
            size.to_string(),
            of.moved.to_string(),
            of.per_second().to_string(),
            of.written.to_string(),
            (of.copied_again >> 10).to_string(),
            of.failed.to_string(),
            of.pauses.quantile(500).to_string(),
            of.pauses.quantile(990).to_string(),
            of.pauses.longest().to_string(),
        ]);
    }
    let tracking = hv.tracking.lock();
    let part = tracking.planner().adapter().settings().budget;
    let most = tracking.copy_budget() >> 20;
    format!(
        "{table}a VM may copy {part} of {most} MiB/s between two nodes for the planner; what the operator orders is not limited\n"
    )
}
