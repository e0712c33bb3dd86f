//! How long vCPUs waited for a CPU after they woke, and what the scheduler's lock costs, for the operator.

use super::table::Table;
use crate::virt::Backend;
use crate::vm::Hypervisor;
use alloc::format;
use alloc::string::{String, ToString};
use telemetry::{Class, Histogram};

/// Each VM's waits, then each class's, then the lock's.
pub fn report<B: Backend>(hv: &Hypervisor<B>) -> String {
    let mut table = Table::new(["of", "wake-ups", "p50", "p99", "longest"]);
    let mut row = |of: String, waits: &Histogram| {
        table.row([
            of,
            waits.count().to_string(),
            waits.quantile(500).to_string(),
            waits.quantile(990).to_string(),
            waits.longest().to_string(),
        ]);
    };
    let times = hv.sched.times();
    let sched = hv.sched.lock();
    for vm in &hv.vms {
        if let Some(waits) = sched.wake_latency(vm.id) {
            row(vm.name.clone(), waits);
        }
    }
    for class in Class::ALL {
        let waits = sched.wake_latency_of(class);
        if waits.count() > 0 {
            row(format!("class {class}"), waits);
        }
    }
    drop(sched);
    format!("{table}{times}\n")
}
