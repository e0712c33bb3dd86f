//! `perigee.toml`: what the operator wants, checked before anything runs.
//!
//! The loader puts the file beside the kernel as a module; the kernel turns it into a
//! [`HostConfig`] with [`parse`], and `cargo xtask` writes such files with
//! [`HostConfig::to_toml`]. Both use this crate, so a file that one of them writes the other
//! one understands.
//!
//! A configuration is either wholly right or rejected with everything that is wrong about it:
//! [`parse`] does not stop at the first mistake. Each [`ConfigError`] carries line, column and
//! a sentence, with the nearest known word where one was mistyped. Nothing here knows
//! the machine: whether node 3 exists is for the kernel to say once it has found its nodes.
//!
//! | `[host]` key | value | default | meaning |
//! |---|---|---|---|
//! | `mode` | `"auto"` `"dry-run"` `"vcpu-only"` `"pages-only"` `"off"` | `"auto"` | what the planner may move; `dry-run` only says what it would do |
//! | `log` | `"error"` `"warn"` `"info"` `"debug"` `"trace"` | `"info"` | least severe message shown |
//! | `poweroff` | boolean | `true` | power the machine off when all VMs are off |
//! | `quantum_ms` | 1 to 1000 | 10 | scheduler's time slice |
//! | `sample_ms` | 1 to 60000 | 100 | interval between two looks at accessed bits |
//! | `plan_ms` | 10 to 600000 | 1000 | interval between two planner passes |
//! | `console` | `"auto"` `"serial"` `"framebuffer"` `"none"` | `"auto"` | where messages go; `auto` is every device found |
//! | `sabotage` | list of names ([`Sabotage`]) | `[]` | breaks the kernel on purpose; for tests, and refused by every ordinary kernel |
//! | `seed` | number | `0` | what the random choices of such tests begin with |
//! | `donate` | boolean | `true` | a spinning virtual CPU leaves its slice to a preempted neighbour of its VM |
//! | `share_cores` | boolean | `false` | hardware threads of one core may run different VMs at a time, which can leak (L1TF, MDS) |
//! | `counters` | 0 to 8 | 4 | how many of each CPU's performance counters may be used to see what memory accesses cost |
//! | `roots` | `"auto"` `"one"` `"every"` | `"auto"` | which nodes have page tables of a VM's own: those that run it, its home, or all |
//! | `looks` | 0 to 10000 | 1000 | how often a second a running virtual CPU is stopped to see what its next instructions touch: more tell pages apart better and cost it more time; with 0 accessed bits alone say what is hot |
//! | `adapt` | boolean | `true` | thresholds follow the load and the use that moves were of; else they stay where they begin |
//! | `trace` | boolean | `false` | record every step of the scheduler on the telemetry port, for a replay |
//!
//! | `[[vm]]` key | value | default | meaning |
//! |---|---|---|---|
//! | `name` | 1 to 16 of `a-z 0-9 -` | required | unique name |
//! | `cpus` | 1 to 64 | required | virtual CPUs |
//! | `memory` | `"256M"`, `"1G"`; a multiple of 2 MiB | required | guest memory |
//! | `kernel` | path | required | kernel below `/perigee` on the boot medium |
//! | `initrd` | path | none | initial RAM disk, same place; Multiboot modules, see below |
//! | `append` | text | `""` | kernel command line |
//! | `memory_nodes` | `[3]`, `[{ node = 3, size = "192M" }, { node = 1 }]` | near home | where pages start, in guest-physical order |
//! | `start_node` | node number | the planner's choice | where the vCPUs start |
//! | `cpu_affinity` | `"auto"`, `{ nodes = [0] }`, `{ cpus = [0, 1] }` | `"auto"` | where the vCPUs may run at all |
//! | `weight` | 1 to 65535 | 256 | share of CPU time under contention |
//! | `cap` | percent of one CPU (100 is one whole CPU) | 0 | upper bound of the CPU time of all vCPUs together; 0 is none |
//! | `priority` | `"low"` `"normal"` `"high"` | `"normal"` | scheduling class |
//! | `mode` | as in `[host]` | the host's | what the planner may move of this VM |
//! | `vnuma` | boolean | `false` | show the guest one node per entry of `memory_nodes` |
//! | `boot` | `"linux"` `"multiboot"` | `"linux"` | what `kernel` is: a bzImage, or a Multiboot 1 image |
//! | `test_devices` | boolean | `false` | give the VM the devices of test kernels (below) |
//! | `on_poweroff` | `"off"` `"restart"` | `"off"` | what follows when the guest switches itself off |
//! | `on_reset` | as `on_poweroff` | `"restart"` | what follows when the guest asks for a reset |
//! | `on_fault` | as `on_poweroff` | `"off"` | what follows when it did what cannot be continued, such as a triple fault |
//!
//! Multiboot modules stand in `initrd` as QEMU has them: files separated by commas, each with
//! the words of its command line behind it (`"guests/a.bin first,guests/b.bin"`; two commas are one).
//!
//! Test devices are an exit port (0xF4, whose value becomes the VM's outcome), `fw_cfg` (0x510) with the
//! number of CPUs and the memory's size, and QEMU's `pc-testdev`: see `devices::test`.
//!
//! Entries of `memory_nodes` without a `size` share what the others leave, equally and in units of
//! 2 MiB; the sizes add up to `memory`.
//!
//! Read next: [`model`] for the structures, `read.rs` for how a table is checked, `vm.rs` for
//! the rules between keys.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod error;
mod host;
pub mod model;
mod read;
mod sabotage;
mod size;
mod suggest;
mod vm;
mod write;

pub use error::ConfigError;
pub use model::{
    Affinity, AtEnd, BootProtocol, Console, Host, HostConfig, LogLevel, Mode, NodeShare, Priority,
    Roots, Vm,
};
pub use sabotage::Sabotage;
pub use size::{parse_size, size_text};

use alloc::format;
use alloc::vec::Vec;
use read::{Issues, TableReader};
use toml::de::{DeTable, DeValue};

/// Most VMs that one configuration may name.
pub const MAX_VMS: usize = 64;

/// Reads a configuration.
///
/// # Errors
/// Everything that is wrong with `text`, in the order of the lines; never an empty list.
pub fn parse(text: &str) -> Result<HostConfig, Vec<ConfigError>> {
    let mut issues = Issues::new(text);
    let (document, syntax) = DeTable::parse_recoverable(text);
    for error in syntax {
        let span = error.span().unwrap_or(0..0);
        issues.report(
            span,
            format!(
                "this is not valid TOML: {}.",
                error.message().trim_end_matches('.')
            ),
        );
    }
    // What follows a syntax error is a guess of the parser's; complaints about it would mislead.
    issues.stop_if_any()?;

    let root = TableReader::new(
        "the top level",
        document.get_ref(),
        document.span(),
        &["host", "vm"],
    );
    root.reject_unknown(&mut issues);
    let host = match root.table("host", "[host]", host::KEYS, &mut issues) {
        Some(table) => host::read(&table, &mut issues),
        None => Host::default(),
    };
    let mut vms: Vec<Vm> = Vec::new();
    if let Some(value) = root.get("vm") {
        match value.get_ref() {
            DeValue::Array(entries) => {
                for entry in entries.iter() {
                    match entry.get_ref() {
                        DeValue::Table(table) => {
                            let reader = TableReader::new("[[vm]]", table, entry.span(), vm::KEYS);
                            let vm = vm::read(&reader, &vms, &mut issues);
                            vms.push(vm);
                        }
                        other => issues.report(
                            entry.span(),
                            format!(
                                "each entry of `vm` must be a table, but this is {}.",
                                read::kind(other)
                            ),
                        ),
                    }
                }
                if vms.len() > MAX_VMS {
                    issues.report(
                        value.span(),
                        format!(
                            "{} VMs are configured, but at most {MAX_VMS} are supported.",
                            vms.len()
                        ),
                    );
                }
            }
            _ => issues.report(
                value.span(),
                "`vm` must be a list of tables: write the header as [[vm]], with two brackets."
                    .into(),
            ),
        }
    }
    issues.stop_if_any()?;
    Ok(HostConfig { host, vms })
}

#[cfg(test)]
mod tests;
