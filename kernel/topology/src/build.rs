//! Writes ACPI tables: overrides for machines whose firmware has none, and input for tests.

use alloc::vec::Vec;

/// A table of any kind: header, `body`, right length and checksum.
pub fn table(signature: &[u8; 4], revision: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(36 + body.len());
    bytes.extend(signature);
    bytes.extend([0; 4]);
    bytes.extend([revision, 0]);
    bytes.extend(b"PERIGEPERIGEE \x01\0\0\0PRGE\x01\0\0\0");
    bytes.extend(body);
    seal(&mut bytes);
    bytes
}

/// Sets length and checksum of a table that was changed.
pub fn seal(table: &mut [u8]) {
    let length = u32::try_from(table.len()).unwrap_or(u32::MAX).to_le_bytes();
    if let Some(field) = table.get_mut(4..8) {
        field.copy_from_slice(&length);
    }
    if let Some(field) = table.get_mut(9) {
        *field = 0;
    }
    let sum = table.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    if let Some(field) = table.get_mut(9) {
        *field = sum.wrapping_neg();
    }
}

/// A structure of the MADT.
#[derive(Clone, Copy, Debug)]
#[expect(missing_docs, reason = "the fields are those of the specification")]
pub enum Interrupt {
    /// Processor Local APIC.
    Cpu { apic: u8, uid: u8, flags: u32 },
    /// Processor Local x2APIC.
    X2Cpu { apic: u32, uid: u32, flags: u32 },
    /// I/O APIC.
    IoApic { id: u8, address: u32, gsi_base: u32 },
    /// Interrupt Source Override.
    Override { irq: u8, gsi: u32, flags: u16 },
    /// NMI Source.
    NmiSource { gsi: u32, flags: u16 },
    /// Local APIC NMI.
    LocalNmi { uid: u8, lint: u8, flags: u16 },
    /// Local x2APIC NMI.
    X2LocalNmi { uid: u32, lint: u8, flags: u16 },
    /// Local APIC Address Override.
    LapicAddress { address: u64 },
}

/// A MADT with the PC/AT flag set (ACPI 6.5, 5.2.12).
pub fn madt(structures: &[Interrupt]) -> Vec<u8> {
    let mut body = Vec::new();
    body.extend(0xfee0_0000u32.to_le_bytes());
    body.extend(1u32.to_le_bytes());
    for structure in structures {
        match *structure {
            Interrupt::Cpu { apic, uid, flags } => {
                body.extend([0, 8, uid, apic]);
                body.extend(flags.to_le_bytes());
            }
            Interrupt::X2Cpu { apic, uid, flags } => {
                body.extend([9, 16, 0, 0]);
                body.extend([apic, flags, uid].into_iter().flat_map(u32::to_le_bytes));
            }
            Interrupt::IoApic {
                id,
                address,
                gsi_base,
            } => {
                body.extend([1, 12, id, 0]);
                body.extend([address, gsi_base].into_iter().flat_map(u32::to_le_bytes));
            }
            Interrupt::Override { irq, gsi, flags } => {
                body.extend([2, 10, 0, irq]);
                body.extend(gsi.to_le_bytes());
                body.extend(flags.to_le_bytes());
            }
            Interrupt::NmiSource { gsi, flags } => {
                body.extend([3, 8]);
                body.extend(flags.to_le_bytes());
                body.extend(gsi.to_le_bytes());
            }
            Interrupt::LocalNmi { uid, lint, flags } => {
                body.extend([4, 6, uid]);
                body.extend(flags.to_le_bytes());
                body.push(lint);
            }
            Interrupt::X2LocalNmi { uid, lint, flags } => {
                body.extend([10, 12]);
                body.extend(flags.to_le_bytes());
                body.extend(uid.to_le_bytes());
                body.extend([lint, 0, 0, 0]);
            }
            Interrupt::LapicAddress { address } => {
                body.extend([5, 12, 0, 0]);
                body.extend(address.to_le_bytes());
            }
        }
    }
    table(b"APIC", 5, &body)
}

/// A structure of the SRAT; all but [`Affinity::Disabled`] are enabled.
#[derive(Clone, Copy, Debug)]
#[expect(missing_docs, reason = "the fields are those of the specification")]
pub enum Affinity {
    /// Processor Local APIC/SAPIC Affinity.
    Cpu { apic: u8, domain: u32 },
    /// Processor Local x2APIC Affinity.
    X2Cpu { apic: u32, domain: u32 },
    /// Memory Affinity.
    Memory { start: u64, bytes: u64, domain: u32 },
    /// Generic Initiator Affinity of a PCI device.
    Initiator { domain: u32 },
    /// Generic Port Affinity.
    Port { domain: u32 },
    /// A memory structure whose enabled flag is clear.
    Disabled { domain: u32 },
}

/// A SRAT of revision 3 (ACPI 6.5, 5.2.16).
pub fn srat(structures: &[Affinity]) -> Vec<u8> {
    let mut body = Vec::new();
    body.extend(1u32.to_le_bytes());
    body.extend([0; 8]);
    let memory = |body: &mut Vec<u8>, domain: u32, start: u64, bytes: u64, flags: u32| {
        body.extend([1, 40]);
        body.extend(domain.to_le_bytes());
        body.extend([0; 2]);
        body.extend([start, bytes].into_iter().flat_map(u64::to_le_bytes));
        body.extend([0; 4]);
        body.extend(flags.to_le_bytes());
        body.extend([0; 8]);
    };
    let device = |body: &mut Vec<u8>, kind: u8, domain: u32| {
        body.extend([kind, 32, 0, 1]);
        body.extend(domain.to_le_bytes());
        body.extend([0; 16]);
        body.extend(1u32.to_le_bytes());
        body.extend([0; 4]);
    };
    for structure in structures {
        match *structure {
            Affinity::Cpu { apic, domain } => {
                let [low, high @ ..] = domain.to_le_bytes();
                body.extend([0, 16, low, apic]);
                body.extend(1u32.to_le_bytes());
                body.push(0);
                body.extend(high);
                body.extend([0; 4]);
            }
            Affinity::X2Cpu { apic, domain } => {
                body.extend([2, 24, 0, 0]);
                body.extend(
                    [domain, apic, 1, 0, 0]
                        .into_iter()
                        .flat_map(u32::to_le_bytes),
                );
            }
            Affinity::Memory {
                start,
                bytes,
                domain,
            } => memory(&mut body, domain, start, bytes, 1),
            Affinity::Disabled { domain } => memory(&mut body, domain, 0, 0, 0),
            Affinity::Initiator { domain } => device(&mut body, 5, domain),
            Affinity::Port { domain } => device(&mut body, 6, domain),
        }
    }
    table(b"SRAT", 3, &body)
}

/// A SLIT with the distance of every pair of localities below `localities` (ACPI 6.5, 5.2.17).
pub fn slit(localities: u32, distance: impl Fn(u32, u32) -> u8) -> Vec<u8> {
    let mut body = Vec::new();
    body.extend(u64::from(localities).to_le_bytes());
    for from in 0..localities {
        body.extend((0..localities).map(|to| distance(from, to)));
    }
    table(b"SLIT", 1, &body)
}

/// A structure of the HMAT.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "the fields are those of the specification")]
pub enum Attributes {
    /// Memory Proximity Domain Attributes with an attached initiator.
    Domain { memory: u32, initiator: u32 },
    /// System Locality Latency and Bandwidth Information; `unit` in ps or MB/s, `values` row by row.
    Matrix {
        flags: u8,
        data_type: u8,
        unit: u64,
        initiators: Vec<u32>,
        targets: Vec<u32>,
        values: Vec<u16>,
    },
    /// Memory Side Cache Information.
    Cache {
        memory: u32,
        bytes: u64,
        attributes: u32,
    },
}

/// A HMAT of revision 2 (ACPI 6.5, 5.2.28).
pub fn hmat(structures: &[Attributes]) -> Vec<u8> {
    let mut body = Vec::new();
    body.extend([0; 4]);
    for structure in structures {
        match structure {
            Attributes::Domain { memory, initiator } => {
                body.extend([0, 0, 0, 0, 40, 0, 0, 0, 1, 0, 0, 0]);
                body.extend([*initiator, *memory].into_iter().flat_map(u32::to_le_bytes));
                body.extend([0; 20]);
            }
            Attributes::Matrix {
                flags,
                data_type,
                unit,
                initiators,
                targets,
                values,
            } => {
                let length = 32 + 4 * (initiators.len() + targets.len()) + 2 * values.len();
                body.extend([1, 0, 0, 0]);
                body.extend((length as u32).to_le_bytes());
                body.extend([*flags, *data_type, 0, 0]);
                body.extend((initiators.len() as u32).to_le_bytes());
                body.extend((targets.len() as u32).to_le_bytes());
                body.extend([0; 4]);
                body.extend(unit.to_le_bytes());
                body.extend(
                    initiators
                        .iter()
                        .chain(targets)
                        .flat_map(|domain| domain.to_le_bytes()),
                );
                body.extend(values.iter().flat_map(|value| value.to_le_bytes()));
            }
            Attributes::Cache {
                memory,
                bytes,
                attributes,
            } => {
                body.extend([2, 0, 0, 0, 32, 0, 0, 0]);
                body.extend(memory.to_le_bytes());
                body.extend([0; 4]);
                body.extend(bytes.to_le_bytes());
                body.extend(attributes.to_le_bytes());
                body.extend([0; 4]);
            }
        }
    }
    table(b"HMAT", 2, &body)
}
