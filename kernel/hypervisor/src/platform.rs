//! The machine around the processors: ACPI tables, the PM timer, switching off.
//!
//! Tables are found by crate `acpi` (RSDP, XSDT or RSDT, header and checksum), copied, and corrected by
//! the override tables of the boot medium: one with a known signature replaces firmware's, another is
//! added. From then on only the copies are used, so ACPI memory can be given away, and a machine
//! whose firmware has no tables at all works from overrides alone.
#![expect(unsafe_code, reason = "reads firmware's tables and drives its ports")]

use alloc::vec::Vec;
use core::ptr::NonNull;

use acpi::sdt::{SdtHeader, Signature};
use acpi::{AcpiError, AcpiHandler, AcpiTable, AcpiTables, PhysicalMapping};
use handoff::{BootInfo, Module, ModuleKind};
use spin::Once;
use units::{Hpa, Nanos};
use x86_64::instructions::port::Port;

use crate::arch::{cpu, paging, time};
use crate::console::Emergency;
use crate::mm;
use topology::fixed_hardware::{FixedHardware, Register, s5_sleep_type};

/// Copies of the ACPI tables that the kernel uses.
#[derive(Debug, Default)]
pub struct Tables(Vec<Table>);

/// One table.
#[derive(Debug)]
struct Table {
    bytes: Vec<u8>,
    overridden: bool,
}

impl Tables {
    /// The bytes of the table with this signature.
    pub fn get(&self, signature: &[u8; 4]) -> Option<&[u8]> {
        self.0.iter().map(|t| t.bytes.as_slice()).find(|b| b.starts_with(signature))
    }

    /// Finds and copies firmware's tables, then applies the overrides among `modules`.
    pub fn collect(boot: &BootInfo, modules: &[Module]) -> Self {
        let mut tables = Self::default();
        if boot.rsdp == 0 {
            log::warn!("firmware publishes no ACPI tables; only override tables are used");
        } else {
            tables.copy_from_firmware(boot.rsdp);
        }
        for module in modules.iter().filter(|m| m.kind == ModuleKind::AcpiOverride as u32) {
            tables.override_with(module);
        }
        tables
    }

    fn copy_from_firmware(&mut self, rsdp: u64) {
        // SAFETY: the loader took the address from UEFI's configuration table; a wrong one reads as
        // zeros or fails the checksum.
        let acpi = match unsafe { AcpiTables::from_rsdp(DirectMap, rsdp as usize) } {
            Ok(acpi) => acpi,
            Err(e) => {
                log::error!(
                    "firmware's ACPI root at {rsdp:#x} cannot be used ({e:?}); only override tables are"
                );
                return;
            }
        };
        self.copy(acpi.find_table::<Madt>());
        self.copy(acpi.find_table::<Srat>());
        self.copy(acpi.find_table::<Slit>());
        self.copy(acpi.find_table::<Hmat>());
        self.copy(acpi.find_table::<Pptt>());
        self.copy(acpi.find_table::<Fadt>());
        self.copy(acpi.find_table::<Spcr>());
        self.copy(acpi.find_table::<Mcfg>());
        self.copy(acpi.find_table::<Hpet>());
    }

    fn copy<T: AcpiTable>(&mut self, found: Result<PhysicalMapping<DirectMap, T>, AcpiError>) {
        // Absent is normal; a damaged one was logged by the crate.
        if let Ok(found) = found {
            self.push(bytes_of(&found).to_vec(), false);
        }
    }

    /// Adds a table, in place of one with the same signature.
    fn push(&mut self, bytes: Vec<u8>, overridden: bool) {
        let same = |t: &&mut Table| t.bytes.get(..4) == bytes.get(..4);
        match self.0.iter_mut().find(same) {
            Some(old) => *old = Table { bytes, overridden },
            None => self.0.push(Table { bytes, overridden }),
        }
    }

    fn override_with(&mut self, module: &Module) {
        let bytes = module_bytes(module);
        let Some(signature) = bytes.get(..4).filter(|_| bytes.len() >= size_of::<SdtHeader>())
        else {
            log::error!(
                "{}: {} bytes are too few for an ACPI table; it is ignored",
                module.name(),
                bytes.len()
            );
            return;
        };
        let known = self.0.iter().any(|t| t.bytes.starts_with(signature));
        log::info!(
            "ACPI: {} {} {}",
            module.name(),
            if known { "replaces firmware's" } else { "adds" },
            signature.escape_ascii()
        );
        self.push(bytes.to_vec(), true);
    }

    /// Signatures and sizes, for the log.
    pub fn describe(&self) -> impl core::fmt::Display {
        struct Description<'a>(&'a [Table]);
        impl core::fmt::Display for Description<'_> {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                for table in self.0 {
                    let signature = table.bytes.get(..4).unwrap_or(b"????");
                    let mark = if table.overridden { " (override)" } else { "" };
                    write!(f, " {} {}{mark}", signature.escape_ascii(), table.bytes.len())?;
                }
                Ok(())
            }
        }
        Description(&self.0)
    }
}

/// The file behind a module.
pub fn module_bytes(module: &Module) -> &'static [u8] {
    let length = usize::try_from(module.bytes).unwrap_or(0);
    // SAFETY: the loader put the file there, in memory of kind `Module`, which the direct map shows
    // and which the allocator does not get before all modules are consumed.
    unsafe { core::slice::from_raw_parts(mm::direct(Hpa(module.base)), length) }
}

/// Firmware's tables through the direct map.
#[derive(Clone, Copy, Debug)]
struct DirectMap;

/// What a table reads as that cannot be mapped: it fails every check.
static ZEROS: [u64; 512] = [0; 512];
/// Longer tables are taken for damaged.
const MAX_TABLE_BYTES: usize = 16 << 20;

impl AcpiHandler for DirectMap {
    unsafe fn map_physical_region<T>(&self, at: usize, size: usize) -> PhysicalMapping<Self, T> {
        let mapped = (size <= MAX_TABLE_BYTES)
            .then(|| paging::map_firmware(Hpa(at as u64), size as u64).ok())
            .flatten()
            .and_then(|p| NonNull::new(p.cast_mut().cast::<T>()));
        let (place, size) = match mapped {
            Some(place) => (place, size),
            None => {
                log::error!("ACPI: {size} bytes at {at:#x} cannot be read as a table");
                (NonNull::from(&ZEROS).cast::<T>(), size_of_val(&ZEROS))
            }
        };
        // SAFETY: mapped for ever, or a static; both hold `size` bytes, and `T` is one of the crate's
        // small header types or ours.
        unsafe { PhysicalMapping::new(at, place, size, size, *self) }
    }

    fn unmap_physical_region<T>(_: &PhysicalMapping<Self, T>) {}
}

fn bytes_of<T: AcpiTable>(mapping: &PhysicalMapping<DirectMap, T>) -> &[u8] {
    // SAFETY: `find_table` mapped the whole table (`region_length` bytes) and checked its sum.
    unsafe {
        core::slice::from_raw_parts(mapping.virtual_start().as_ptr().cast(), mapping.region_length())
    }
}

/// The crate names most signatures, but not all.
const fn signature(name: [u8; 4]) -> Signature {
    const { assert!(size_of::<Signature>() == 4) };
    // SAFETY: `Signature` is a transparent wrapper of four bytes.
    unsafe { core::mem::transmute(name) }
}

macro_rules! tables {
    ($($name:ident $signature:literal;)*) => {$(
        #[repr(transparent)]
        struct $name(SdtHeader);
        // SAFETY: nothing but the header that every table begins with.
        unsafe impl AcpiTable for $name {
            const SIGNATURE: Signature = signature(*$signature);
            fn header(&self) -> &SdtHeader {
                &self.0
            }
        }
    )*};
}
tables! {
    Madt b"APIC"; Srat b"SRAT"; Slit b"SLIT"; Hmat b"HMAT"; Pptt b"PPTT"; Fadt b"FACP";
    Spcr b"SPCR"; Mcfg b"MCFG"; Hpet b"HPET";
}

/// How this machine is switched off.
#[derive(Clone, Copy, Debug, Default)]
struct Power {
    fixed: FixedHardware,
    s5: Option<(u8, u8)>,
}

static POWER: Once<Power> = Once::new();

/// Learns from the tables how the machine is switched off and where its PM timer is.
pub fn init_power(tables: &Tables) {
    let Some(fixed) = tables.get(b"FACP").and_then(FixedHardware::from_fadt) else {
        log::warn!("there is no FADT: power-off tries the ports of emulators");
        return;
    };
    let s5 = match tables.get(b"DSDT") {
        Some(dsdt) => s5_sleep_type(dsdt),
        None => fixed.dsdt.and_then(firmware_dsdt).and_then(s5_sleep_type),
    };
    if s5.is_none() {
        log::warn!("the DSDT has no \\_S5 package: power-off tries the ports of emulators");
    }
    for register in [fixed.pm1a_control, fixed.pm1b_control].into_iter().flatten() {
        if let Register::Memory(at) = register
            && let Err(e) = paging::map_device(Hpa(at), 4)
        {
            log::warn!("the power-off register cannot be mapped: {e}");
        }
    }
    POWER.call_once(|| Power { fixed, s5 });
}

/// The DSDT in firmware's memory; it is not in the XSDT.
fn firmware_dsdt(at: u64) -> Option<&'static [u8]> {
    let header = paging::map_firmware(Hpa(at), size_of::<SdtHeader>() as u64).ok()?;
    // SAFETY: mapped above; a packed header has alignment 1.
    let length = unsafe { header.cast::<SdtHeader>().read_unaligned() }.length;
    if length as usize > MAX_TABLE_BYTES {
        return None;
    }
    let place = paging::map_firmware(Hpa(at), u64::from(length)).ok()?;
    // SAFETY: mapped for ever; this is read before ACPI memory is given to anyone.
    Some(unsafe { core::slice::from_raw_parts(place, length as usize) })
}

/// The ACPI PM timer (ACPI 6.5, 4.8.3.3).
#[derive(Clone, Copy, Debug)]
pub struct PmTimer {
    port: u16,
    wide: bool,
}

impl PmTimer {
    /// The counter.
    pub fn read(self) -> u64 {
        // SAFETY: reads the port that the FADT names; reading has no side effect.
        u64::from(unsafe { Port::<u32>::new(self.port).read() }) & self.mask()
    }

    /// The bits that count.
    pub fn mask(self) -> u64 {
        if self.wide { 0xffff_ffff } else { 0x00ff_ffff }
    }
}

/// The PM timer, if there is one at an I/O port (one in memory is not used).
pub fn pm_timer() -> Option<PmTimer> {
    let fixed = POWER.get()?.fixed;
    match fixed.pm_timer? {
        Register::Io(port) => Some(PmTimer { port, wide: fixed.pm_timer_is_32_bit }),
        Register::Memory(_) => None,
    }
}

/// PM1 control: SCI_EN, SLP_TYP and SLP_EN (ACPI 6.5, 4.8.3.2.1).
const SCI_ENABLE: u16 = 1 << 0;
const SLEEP_TYPE_SHIFT: u16 = 10;
const SLEEP_TYPE_MASK: u16 = 0b111 << SLEEP_TYPE_SHIFT;
const SLEEP_ENABLE: u16 = 1 << 13;

fn read_control(register: Register) -> u16 {
    match register {
        // SAFETY: a PM1 control register has no read side effect.
        Register::Io(port) => unsafe { Port::<u16>::new(port).read() },
        // SAFETY: mapped by `init_power`.
        Register::Memory(at) => unsafe { paging::direct(Hpa(at)).cast::<u16>().read_volatile() },
    }
}

fn write_control(register: Register, value: u16) {
    match register {
        // SAFETY: the machine is to be switched off; nothing runs any more.
        Register::Io(port) => unsafe { Port::<u16>::new(port).write(value) },
        // SAFETY: as above, mapped by `init_power`.
        Register::Memory(at) => unsafe {
            paging::direct(Hpa(at)).cast::<u16>().write_volatile(value);
        },
    }
}

/// Switches the machine off: ACPI S5, then the ports that Bochs and QEMU listen to, then a halt with a
/// sentence. Takes no lock: the end of a report calls this.
pub fn power_off() -> ! {
    x86_64::instructions::interrupts::disable();
    if let Some(Power { fixed, s5: Some((a, b)) }) = POWER.get() {
        if let Some(pm1a) = fixed.pm1a_control {
            enable_acpi(fixed, pm1a);
            let sleep = |register: Register, kind: u8| {
                let kept = read_control(register) & !(SLEEP_TYPE_MASK | SLEEP_ENABLE);
                let value = kept | u16::from(kind) << SLEEP_TYPE_SHIFT;
                write_control(register, value);
                write_control(register, value | SLEEP_ENABLE);
            };
            if let Some(pm1b) = fixed.pm1b_control {
                sleep(pm1b, *b);
            }
            sleep(pm1a, *a);
            time::spin(Nanos::from_millis(500));
        }
    }
    // SAFETY: nothing runs any more. Bochs ends at "Shutdown" on port 0x8900; QEMU's PM1a control is at
    // 0x604 (q35) or 0xb004 (older boards), where 0x2000 is S5.
    unsafe {
        for byte in *b"Shutdown" {
            Port::<u8>::new(0x8900).write(byte);
        }
        Port::<u16>::new(0x604).write(SLEEP_ENABLE);
        Port::<u16>::new(0xb004).write(SLEEP_ENABLE);
    }
    let _ = core::fmt::Write::write_str(
        &mut Emergency,
        "\nThis machine does not switch itself off. All processors have stopped: it is safe to cut the power.\n",
    );
    cpu::halt_forever()
}

/// Switches from legacy to ACPI mode where firmware left that to us (ACPI 6.5, 16.3.1).
fn enable_acpi(fixed: &FixedHardware, pm1a: Register) {
    if read_control(pm1a) & SCI_ENABLE != 0 {
        return;
    }
    if let Some((port, value)) = fixed.acpi_enable {
        // SAFETY: the command that the FADT names for this purpose.
        unsafe { Port::<u8>::new(port).write(value) };
        for _ in 0..100_000 {
            if read_control(pm1a) & SCI_ENABLE != 0 {
                return;
            }
        }
    }
}
