//! Which processors share a core, a last-level cache, a package.

use crate::pptt::{Place, Pptt};
use crate::quirk::Quirks;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use units::ApicId;

/// What CPUID says of the boot processor. Shifts are bits of the APIC ID that number what is inside:
/// SMT threads in a core, threads that share the last-level cache, threads in a package
/// (leaves 0x1F, 0x0B, 4: SDM 3A 10.9; 0x8000_0008, 0x8000_001D, 0x8000_0026: APM 3 E.4).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuidShape {
    /// APIC ID of the processor that runs this.
    pub bsp_apic_id: ApicId,
    /// Bits that number the threads of a core.
    pub smt_shift: u8,
    /// Bits that number the threads behind one last-level cache.
    pub llc_shift: u8,
    /// Bits that number the threads of a package; 0 where CPUID does not say, or for one thread.
    pub package_shift: u8,
}

/// Dense numbers of what a processor belongs to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Belongs {
    pub(crate) core: u32,
    pub(crate) llc: u32,
    pub(crate) package: u32,
    pub(crate) thread: u32,
}

/// Numbers for processors given as (APIC ID, ACPI UID). CPUID counts, for it is what the hardware
/// does; the PPTT helps where CPUID gives no shifts.
pub(crate) fn number(
    cpus: &[(u32, u32)],
    shape: &CpuidShape,
    pptt: Option<&Pptt<'_>>,
    quirks: &mut Quirks,
) -> Vec<Belongs> {
    let uids: Vec<u32> = cpus.iter().map(|(_, uid)| *uid).collect();
    let described = pptt
        .filter(|_| shape.package_shift == 0)
        .and_then(|pptt| pptt.places(&uids, quirks));
    let places = described.unwrap_or_else(|| {
        cpus.iter()
            .map(|(apic, _)| by_shifts(*apic, shape))
            .collect()
    });
    let (mut cores, mut llcs, mut packages) = (
        Numbering::default(),
        Numbering::default(),
        Numbering::default(),
    );
    let mut threads: BTreeMap<u32, u32> = BTreeMap::new();
    places
        .iter()
        .map(|place| {
            let core = cores.of(place.core);
            let thread = threads
                .entry(core)
                .and_modify(|threads| *threads += 1)
                .or_insert(0);
            Belongs {
                core,
                llc: llcs.of(place.llc),
                package: packages.of(place.package),
                thread: *thread,
            }
        })
        .collect()
}

fn by_shifts(apic: u32, shape: &CpuidShape) -> Place {
    let package = shape.package_shift.max(shape.smt_shift);
    let llc = shape.llc_shift.clamp(shape.smt_shift, package);
    let above = |shift: u8| apic.checked_shr(shift.into()).unwrap_or(0);
    Place {
        core: above(shape.smt_shift),
        llc: above(llc),
        package: above(package),
    }
}

/// Numbers from 0 in the order of first appearance.
#[derive(Debug, Default)]
struct Numbering(BTreeMap<u32, u32>);

impl Numbering {
    fn of(&mut self, key: u32) -> u32 {
        let next = self.0.len() as u32;
        *self.0.entry(key).or_insert(next)
    }
}
