//! The three things a test guest asks ACPI: how many processors, where the timer and the power switch are.

use crate::cpu::peek;

/// What the tables say; what they do not say is what emulated PCs have.
#[derive(Clone, Copy, Debug)]
pub struct Tables {
    /// Processors that the MADT enables; `None` without a MADT.
    pub cpus: Option<usize>,
    /// The power-management timer's port.
    pub pm_timer: u16,
    /// Whether it counts 32 bits and not 24.
    pub pm_timer_is_32_bit: bool,
    /// The PM1a control register's port.
    pub pm1a_control: u16,
    /// `SLP_TYP` of soft off.
    pub off_type: u16,
    /// Pin of the I/O APIC that ISA interrupt 0 drives.
    pub timer_pin: u8,
}

const EBDA_POINTER: u64 = 0x40e;
const TIMER_IS_32_BIT: u32 = 1 << 8;

impl Tables {
    /// Reads them.
    pub fn read() -> Self {
        let mut found = Self {
            cpus: None,
            pm_timer: 0x608,
            pm_timer_is_32_bit: false,
            pm1a_control: 0x604,
            off_type: 0,
            timer_pin: 2,
        };
        let Some((root, entry_bytes)) = root() else {
            return found;
        };
        let entries = peek::<u32>(root + 4).saturating_sub(36) / entry_bytes;
        for index in 0..entries.min(64) {
            let at = root + 36 + u64::from(entry_bytes * index);
            // Everything lies below 4 GiB.
            let table = u64::from(peek::<u32>(at));
            match &peek::<[u8; 4]>(table) {
                b"APIC" => found.madt(table),
                b"FACP" => found.fadt(table),
                _ => {}
            }
        }
        found
    }

    /// MADT (ACPI 6.5, 5.2.12): type 0 and 9 are processors, 2 an interrupt override.
    fn madt(&mut self, table: u64) {
        let end = table + u64::from(peek::<u32>(table + 4));
        let (mut at, mut cpus) = (table + 44, 0);
        while at + 2 <= end {
            let (kind, length): (u8, u8) = (peek(at), peek(at + 1));
            match kind {
                0 => cpus += usize::from(peek::<u32>(at + 4) & 1 != 0),
                9 => cpus += usize::from(peek::<u32>(at + 8) & 1 != 0),
                2 if peek::<u8>(at + 3) == 0 => self.timer_pin = peek(at + 4),
                _ => {}
            }
            at += u64::from(length.max(2));
        }
        self.cpus = Some(cpus);
    }

    /// FADT (ACPI 6.5, 5.2.9).
    fn fadt(&mut self, table: u64) {
        let (control, timer) = (
            peek::<u32>(table + 64) as u16,
            peek::<u32>(table + 76) as u16,
        );
        if control != 0 {
            self.pm1a_control = control;
        }
        if timer != 0 {
            self.pm_timer = timer;
        }
        self.pm_timer_is_32_bit = peek::<u32>(table + 112) & TIMER_IS_32_BIT != 0;
        let dsdt = match peek::<u32>(table + 40) {
            0 => peek(table + 140),
            dsdt => u64::from(dsdt),
        };
        let length = u64::from(peek::<u32>(dsdt + 4)).min(1 << 20);
        // `\_S5_` is a package whose first element is SLP_TYP: NameOp, name, PackageOp, length, count, then a byte.
        let name = (36..length.saturating_sub(8)).find(|i| &peek::<[u8; 4]>(dsdt + i) == b"_S5_");
        if let Some(i) = name {
            let element = dsdt + i + 7;
            self.off_type = match peek::<u8>(element) {
                0x0a => u16::from(peek::<u8>(element + 1)),
                small => u16::from(small & 1),
            };
        }
    }
}

/// The XSDT or the RSDT and the bytes of its entries, through the RSDP in the EBDA or the BIOS area (ACPI 6.5, 5.2.5).
fn root() -> Option<(u64, u32)> {
    let ebda = u64::from(peek::<u16>(EBDA_POINTER)) << 4;
    let areas = [(ebda, 1024), (0xe0000, 0x20000)];
    let pointer = areas.into_iter().find_map(|(from, bytes)| {
        (from..from + bytes)
            .step_by(16)
            .filter(|at| *at >= 0x400)
            .find(|at| &peek::<[u8; 8]>(*at) == b"RSD PTR ")
    })?;
    let since_2_0 = peek::<u8>(pointer + 15) >= 2;
    let xsdt = if since_2_0 { peek(pointer + 24) } else { 0_u64 };
    let rsdt = u64::from(peek::<u32>(pointer + 16));
    [(xsdt, b"XSDT", 8), (rsdt, b"RSDT", 4)]
        .into_iter()
        .find(|(at, name, _)| *at != 0 && peek::<[u8; 4]>(*at) == **name)
        .map(|(at, _, bytes)| (at, bytes))
}
