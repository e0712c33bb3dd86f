//! Processors and interrupt controllers: MADT (ACPI 6.5, 5.2.12).

use devices::layout;

use super::table::Table;
use crate::shape::VmShape;

/// Highest identifier of an 8-bit entry: 255 means "all".
pub(super) const LAST_XAPIC_ID: u32 = 254;
/// Two 8259A are there besides.
const PCAT_COMPAT: u32 = 1;
/// Entry flag: the processor is usable.
const ENABLED: u32 = 1;
/// NMI at LINT1, as the bus specifies (edge, active high).
const NMI_LINT: u8 = 1;

/// Whether a processor is described by an 8-bit local APIC entry. Its ACPI identifier is the number
/// of the vCPU and has 8 bits there as well.
pub(super) fn fits_xapic(vcpu: u16, apic_id: u32) -> bool {
    apic_id <= LAST_XAPIC_ID && u32::from(vcpu) <= LAST_XAPIC_ID
}

pub(super) fn madt(shape: &VmShape) -> Table {
    let mut t = Table::new(*b"APIC", 5);
    t.u32(layout::LAPIC_BASE.0 as u32);
    t.u32(PCAT_COMPAT);

    let mut any_x2apic = false;
    for vcpu in 0..shape.vcpus {
        let apic_id = shape.apic_id(vcpu);
        if fits_xapic(vcpu, apic_id) {
            t.bytes(&[0, 8, vcpu as u8, apic_id as u8]);
            t.u32(ENABLED);
        } else {
            any_x2apic = true;
            t.bytes(&[9, 16, 0, 0]);
            t.u32(apic_id);
            t.u32(ENABLED);
            t.u32(u32::from(vcpu));
        }
    }

    t.bytes(&[1, 12, layout::IOAPIC_ID, 0]);
    t.u32(layout::IOAPIC_BASE.0 as u32);
    t.u32(0); // its first global system interrupt
    for o in layout::ISA_OVERRIDES {
        t.bytes(&[2, 10, 0, o.irq]);
        t.u32(u32::from(o.pin));
        t.u16(o.flags);
    }

    // On all processors.
    t.bytes(&[4, 6, 0xFF, 0, 0, NMI_LINT]);
    if any_x2apic {
        t.bytes(&[10, 12, 0, 0]);
        t.u32(u32::MAX);
        t.bytes(&[NMI_LINT, 0, 0, 0]);
    }
    t
}
