//! Thresholds that follow the load, for the operator.

use super::table::Table;
use crate::arch::time;
use crate::virt::Backend;
use crate::vm::Hypervisor;
use alloc::format;
use alloc::string::{String, ToString};
use migrate::Planner;
use migrate::adapt::{CPU, MEMORY};
use telemetry::Dial;

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
