//! The machine around the processors: what ACPI says of it, and how it is switched off.
//!
//! [`tables`] collects bytes; crate `topology` makes a [`Machine`] of them; [`power`] keeps what is
//! needed when everything else has stopped. After [`discover`] only copies are in use, so the memory of
//! firmware's tables can be given away.

mod power;
mod tables;

pub use power::{PmTimer, pm_timer, power_off};
pub use tables::{Tables, module_bytes};

use alloc::string::ToString;
use spin::Once;
use topology::measured::{self, Measurements};
use topology::{Discovery, Severity};

use crate::arch::cpu;
use crate::mm;

/// Reads firmware's tables and the overrides of the boot medium.
pub fn read_tables() -> Tables {
    let tables = Tables::collect(mm::boot_info().rsdp, mm::modules());
    log::info!("ACPI tables:{}", tables.describe());
    power::init(&tables);
    tables
}

/// Makes a machine of the tables, and says what was odd about them.
pub fn discover(tables: &Tables) -> &'static Discovery {
    let bytes = topology::Tables {
        madt: tables.get(b"APIC"),
        srat: tables.get(b"SRAT"),
        slit: tables.get(b"SLIT"),
        hmat: tables.get(b"HMAT"),
        pptt: tables.get(b"PPTT"),
    };
    let discovery = topology::discover(&bytes, &cpu::shape(), &mm::ram());
    for quirk in &discovery.quirks {
        match quirk.severity() {
            Severity::Note => log::info!("topology: {quirk}"),
            Severity::Warning => log::warn!("topology: {quirk}"),
        }
    }
    for node in &discovery.machine.nodes {
        log::info!(
            "{} ({}): {} CPUs, {} MiB",
            node.id,
            node.domain,
            node.cpus.len(),
            node.memory_bytes() >> 20
        );
    }
    DISCOVERY.call_once(|| discovery)
}

/// The machine with what its processors measured, as far as that is believed; says what is believed and why.
pub fn refine(found: &'static Discovery, measured: &Measurements) -> &'static Discovery {
    let machine = &found.machine;
    if machine.nodes.len() < 2 {
        return found;
    }
    let verdict = measured::judge(machine, measured);
    log::info!("topology: {verdict}");
    let objections = verdict.doubts.iter().map(ToString::to_string);
    let measured = core::iter::once(verdict.to_string()).chain(objections);
    REFINED.call_once(|| Discovery {
        measured: measured.collect(),
        machine: verdict.machine,
        quirks: found.quirks.clone(),
    })
}

/// What [`discover`] and [`refine`] found; `None` before the first of them has run.
pub fn discovery() -> Option<&'static Discovery> {
    REFINED.get().or_else(|| DISCOVERY.get())
}

static DISCOVERY: Once<Discovery> = Once::new();
static REFINED: Once<Discovery> = Once::new();
