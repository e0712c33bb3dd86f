//! A configuration as text, for the tools that generate one.

use crate::model::{Affinity, HostConfig, Vm};
use crate::size::size_text;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt::{self, Write};

impl HostConfig {
    /// The configuration as TOML that [`crate::parse`] reads back to the same structures.
    pub fn to_toml(&self) -> String {
        self.to_string()
    }
}

impl fmt::Display for HostConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let host = &self.host;
        writeln!(f, "[host]")?;
        writeln!(f, "mode = \"{}\"", host.mode)?;
        writeln!(f, "log = \"{}\"", host.log)?;
        writeln!(f, "poweroff = {}", host.poweroff)?;
        writeln!(f, "quantum_ms = {}", host.quantum_ms)?;
        writeln!(f, "sample_ms = {}", host.sample_ms)?;
        writeln!(f, "plan_ms = {}", host.plan_ms)?;
        writeln!(f, "console = \"{}\"", host.console)?;
        if !host.sabotage.is_empty() {
            let names = host.sabotage.iter().map(|s| alloc::format!("\"{s}\""));
            let names: Vec<String> = names.collect();
            writeln!(f, "sabotage = [{}]", names.join(", "))?;
            writeln!(f, "seed = {}", host.seed)?;
        }
        writeln!(f, "donate = {}", host.donate)?;
        writeln!(f, "share_cores = {}", host.share_cores)?;
        writeln!(f, "counters = {}", host.counters)?;
        writeln!(f, "roots = \"{}\"", host.roots)?;
        writeln!(f, "looks = {}", host.looks)?;
        writeln!(f, "adapt = {}", host.adapt)?;
        writeln!(f, "trace = {}", host.trace)?;
        self.vms.iter().try_for_each(|vm| vm_table(f, vm))
    }
}

fn vm_table(f: &mut fmt::Formatter<'_>, vm: &Vm) -> fmt::Result {
    writeln!(f, "\n[[vm]]")?;
    writeln!(f, "name = {}", Quoted(&vm.name))?;
    writeln!(f, "cpus = {}", vm.cpus)?;
    writeln!(f, "memory = \"{}\"", size_text(vm.memory_bytes))?;
    writeln!(f, "kernel = {}", Quoted(&vm.kernel))?;
    if let Some(initrd) = &vm.initrd {
        writeln!(f, "initrd = {}", Quoted(initrd))?;
    }
    if !vm.append.is_empty() {
        writeln!(f, "append = {}", Quoted(&vm.append))?;
    }
    if !vm.memory_nodes.is_empty() {
        let entry = |share: &crate::NodeShare| {
            alloc::format!(
                "{{ node = {}, size = \"{}\" }}",
                share.node.0,
                size_text(share.bytes)
            )
        };
        let entries: Vec<String> = vm.memory_nodes.iter().map(entry).collect();
        writeln!(f, "memory_nodes = [{}]", entries.join(", "))?;
    }
    if let Some(node) = vm.start_node {
        writeln!(f, "start_node = {}", node.0)?;
    }
    let list = |numbers: &mut dyn Iterator<Item = u64>| {
        numbers
            .map(|n| n.to_string())
            .collect::<Vec<_>>()
            .join(", ")
    };
    match &vm.affinity {
        Affinity::Auto => {}
        Affinity::Nodes(nodes) => writeln!(
            f,
            "cpu_affinity = {{ nodes = [{}] }}",
            list(&mut nodes.iter().map(|n| n.0.into()))
        )?,
        Affinity::Cpus(cpus) => writeln!(
            f,
            "cpu_affinity = {{ cpus = [{}] }}",
            list(&mut cpus.iter().map(|c| c.0.into()))
        )?,
    }
    writeln!(f, "weight = {}", vm.weight)?;
    writeln!(f, "cap = {}", vm.cap_percent)?;
    writeln!(f, "priority = \"{}\"", vm.priority)?;
    if let Some(mode) = vm.mode {
        writeln!(f, "mode = \"{mode}\"")?;
    }
    writeln!(f, "vnuma = {}", vm.vnuma)?;
    writeln!(f, "boot = \"{}\"", vm.boot)?;
    writeln!(f, "test_devices = {}", vm.test_devices)?;
    writeln!(f, "on_poweroff = \"{}\"", vm.on_poweroff)?;
    writeln!(f, "on_reset = \"{}\"", vm.on_reset)?;
    writeln!(f, "on_fault = \"{}\"", vm.on_fault)
}

/// A TOML basic string (TOML 1.0, "String").
struct Quoted<'a>(&'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_char('"')?;
        for c in self.0.chars() {
            match c {
                '"' | '\\' => write!(f, "\\{c}")?,
                c if c.is_control() => write!(f, "\\u{:04X}", u32::from(c))?,
                c => f.write_char(c)?,
            }
        }
        f.write_char('"')
    }
}
