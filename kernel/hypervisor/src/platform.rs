//! The machine around the processors: what ACPI says of it, and how it is switched off.
//!
//! [`tables`] collects bytes; crate `topology` makes a [`Machine`] of them; [`power`] keeps what is
//! needed when everything else has stopped. After [`discover`] only copies are in use, so the memory of
//! firmware's tables can be given away.

mod power;
mod tables;

pub use power::{PmTimer, pm_timer, power_off};
pub use tables::{Tables, module_bytes};

use spin::Once;
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

/// What [`discover`] found; `None` before it has run.
pub fn discovery() -> Option<&'static Discovery> {
    DISCOVERY.get()
}

static DISCOVERY: Once<Discovery> = Once::new();
