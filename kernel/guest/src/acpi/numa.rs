//! Virtual nodes: SRAT (ACPI 6.5, 5.2.16) and SLIT (5.2.17).

use super::madt::fits_xapic;
use super::table::Table;
use crate::shape::{RegionKind, VmShape};

/// Entry flag: in use.
const ENABLED: u32 = 1;

/// Which node each processor and each range of RAM belongs to. Proximity domains are node numbers.
pub(super) fn srat(shape: &VmShape) -> Table {
    let mut t = Table::new(*b"SRAT", 3);
    t.u32(1); // reserved, 1 for compatibility
    t.u64(0);
    for vcpu in 0..shape.vcpus {
        let domain = u32::from(shape.node_of(vcpu));
        let apic_id = shape.apic_id(vcpu);
        if fits_xapic(vcpu, apic_id) {
            let [d0, d1, d2, d3] = domain.to_le_bytes();
            t.bytes(&[0, 16, d0, apic_id as u8]);
            t.u32(ENABLED);
            t.bytes(&[0, d1, d2, d3]);
            t.u32(0); // clock domain
        } else {
            t.bytes(&[2, 24, 0, 0]);
            t.u32(domain);
            t.u32(apic_id);
            t.u32(ENABLED);
            t.u64(0); // clock domain, reserved
        }
    }
    for r in shape
        .memory
        .regions()
        .iter()
        .filter(|r| r.kind == RegionKind::Ram)
    {
        t.bytes(&[1, 40]);
        t.u32(u32::from(r.node));
        t.u16(0);
        t.u64(r.gpa.0);
        t.u64(r.bytes);
        t.u32(0);
        t.u32(ENABLED);
        t.u64(0);
    }
    t
}

/// Relative distances between nodes.
pub(super) fn slit(shape: &VmShape) -> Table {
    let mut t = Table::new(*b"SLIT", 1);
    t.u64(shape.nodes.len() as u64);
    for row in &shape.distances {
        t.bytes(row);
    }
    t
}
