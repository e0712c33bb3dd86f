//! Commands that an operator types. Whatever is typed, the answer is text.

use super::report;
use crate::console;
use crate::drive;
use crate::virt::Backend;
use crate::vm::{Hypervisor, Vm};
use units::NodeId;

const HELP: &str = "\
help                       this list
topology                   nodes, CPUs, distances
memory                     free memory of each node, fallbacks
vm [NAME]                  virtual machines
vm NAME stop|pause|resume  ends, holds, releases one
cpu                        what each CPU runs
footprint [NAME]           who touches which node's memory
proximity [NAME]           how near each CPU is to what a VM touches
why [NAME[.VCPU]]          the scheduler's sum for each vCPU, and the planner's last word
migrate NAME NODE          moves a VM's pages to a node
log error|warn|info|debug|trace
shutdown                   stops all VMs and powers off
Ctrl-A 0..9                input to Perigee or to a VM
";

/// Executes one line.
pub fn execute<B: Backend>(hv: &Hypervisor<B>, line: &str) {
    let mut words = line.split_whitespace();
    let Some(command) = words.next() else { return };
    let rest: alloc::vec::Vec<&str> = words.collect();
    match (command, rest.as_slice()) {
        ("help", []) => console::print(format_args!("{HELP}")),
        ("topology", []) => report::topology(hv),
        ("memory", []) => report::memory(),
        ("vm", []) => hv.vms.iter().for_each(|vm| report::vm(vm)),
        ("vm", [name]) => with_vm(hv, name, report::vm),
        ("vm", [name, verb]) => with_vm(hv, name, |vm| control(hv, vm, verb)),
        ("cpu", []) => report::cpus(hv),
        ("footprint", []) => hv.vms.iter().for_each(|vm| report::footprint(hv, vm)),
        ("footprint", [name]) => with_vm(hv, name, |vm| report::footprint(hv, vm)),
        ("proximity", []) => hv.vms.iter().for_each(|vm| report::proximity(hv, vm)),
        ("proximity", [name]) => with_vm(hv, name, |vm| report::proximity(hv, vm)),
        ("why", []) => hv.vms.iter().for_each(|vm| report::why(hv, vm, None)),
        ("why", [what]) => {
            let (name, vcpu) = what.split_once('.').unwrap_or((what, ""));
            match (vcpu, vcpu.parse::<u16>()) {
                ("", _) => with_vm(hv, name, |vm| report::why(hv, vm, None)),
                (_, Ok(index)) => with_vm(hv, name, |vm| report::why(hv, vm, Some(index))),
                (_, Err(_)) => say(format_args!("{vcpu:?} is no number of a vCPU; try: why {name}.0")),
            }
        }
        ("migrate", [name, node]) => with_vm(hv, name, |vm| migrate(hv, vm, node)),
        ("log", [level]) => match level.parse::<log::LevelFilter>() {
            Ok(level) => {
                log::set_max_level(level);
                say(format_args!("messages down to {level} are shown"));
            }
            Err(_) => say(format_args!("{level:?} is no level; they are error, warn, info, debug, trace")),
        },
        ("shutdown", []) => {
            hv.vms.iter().for_each(|vm| vm.stop(hv));
            crate::start::shutdown(hv)
        }
        (known, _) if HELP.lines().any(|l| l.split_whitespace().next() == Some(known)) => {
            say(format_args!("{known} does not take these words; see help"));
        }
        (unknown, _) => say(format_args!("{unknown:?} is no command; see help")),
    }
}

fn say(text: core::fmt::Arguments<'_>) {
    console::print(format_args!("perigee: {text}\n"));
}

fn with_vm<B: Backend>(hv: &Hypervisor<B>, name: &str, work: impl FnOnce(&Vm<B>)) {
    match hv.vms.iter().find(|vm| vm.name == name) {
        Some(vm) => work(vm),
        None => {
            say(format_args!("there is no VM {name:?}; there are:"));
            hv.vms.iter().for_each(|vm| console::print(format_args!("  {}\n", vm.name)));
        }
    }
}

fn control<B: Backend>(hv: &Hypervisor<B>, vm: &Vm<B>, verb: &str) {
    let done = match verb {
        "stop" => {
            vm.stop(hv);
            Ok(())
        }
        "pause" => vm.set_paused(hv, true),
        "resume" => vm.set_paused(hv, false),
        other => return say(format_args!("{other:?} is not done to a VM; stop, pause and resume are")),
    };
    match done {
        Ok(()) => say(format_args!("{} is {}", vm.name, vm.state())),
        Err(why) => say(format_args!("{why}")),
    }
}

fn migrate<B: Backend>(hv: &Hypervisor<B>, vm: &Vm<B>, node: &str) {
    let number = node.strip_prefix("node").unwrap_or(node);
    let node = number.parse::<u16>().ok().map(NodeId).filter(|n| n.index() < hv.machine.nodes.len());
    match node {
        Some(node) => {
            let leaves = drive::migrate_all(hv, vm, node);
            say(format_args!("{leaves} leaves of {} are on their way to {node}", vm.name));
        }
        None => say(format_args!("{number:?} is no node; they are 0 to {}", hv.machine.nodes.len().saturating_sub(1))),
    }
}
