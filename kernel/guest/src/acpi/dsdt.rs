//! The DSDT (ACPI 6.5, 5.2.11.1): power-off, the serial port, the clock.

use devices::layout;

use super::aml::{
    EisaId, NameSeg, Term, device, integer, io, irq, name, name_eisa, package, resource_template,
    root_scope,
};
use super::table::Table;

const S5: NameSeg = NameSeg::new(*b"_S5_");
const SB: NameSeg = NameSeg::new(*b"_SB_");
const HID: NameSeg = NameSeg::new(*b"_HID");
const UID: NameSeg = NameSeg::new(*b"_UID");
const CRS: NameSeg = NameSeg::new(*b"_CRS");
const COM1: NameSeg = NameSeg::new(*b"COM1");
const RTC: NameSeg = NameSeg::new(*b"RTC0");
/// 16550A-compatible serial port.
const PNP0501: EisaId = EisaId::new(*b"PNP0501");
/// AT real-time clock.
const PNP0B00: EisaId = EisaId::new(*b"PNP0B00");

pub(super) fn dsdt() -> Table {
    // Revision 2: integers have 64 bits.
    let mut t = Table::new(*b"DSDT", 2);
    t.bytes(&name(S5, &s5()));
    t.bytes(&root_scope(SB, &[com1(), rtc()]));
    t
}

/// SLP_TYPa, SLP_TYPb and two reserved elements (ACPI 6.5, 7.4.2).
fn s5() -> Term {
    let typ = integer(u64::from(layout::S5_SLP_TYP));
    package(&[typ.clone(), typ, integer(0), integer(0)])
}

fn com1() -> Term {
    device(
        COM1,
        &[
            name_eisa(HID, PNP0501),
            name(UID, &integer(0)),
            name(
                CRS,
                &resource_template(&[io(layout::COM1, 8), irq(layout::COM1_IRQ)]),
            ),
        ],
    )
}

fn rtc() -> Term {
    device(
        RTC,
        &[
            name_eisa(HID, PNP0B00),
            name(
                CRS,
                &resource_template(&[io(layout::RTC, 2), irq(layout::RTC_IRQ)]),
            ),
        ],
    )
}
