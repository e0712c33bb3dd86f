//! Switching the machine off, and the PM timer: what the FADT knows.
#![expect(unsafe_code, reason = "drives ports and registers that ACPI names")]

use spin::Once;
use topology::fadt::{self, AddressSpace, Fadt, GenericAddress};
use topology::sleep_type_s5;
use units::{Hpa, Nanos};
use x86_64::instructions::port::Port;

use super::tables::{Tables, firmware_dsdt};
use crate::arch::{cpu, paging, time};
use crate::console::{self, Emergency};

/// How this machine is switched off.
#[derive(Clone, Copy, Debug)]
struct Power {
    fadt: Fadt,
    s5: Option<(u8, u8)>,
}

static POWER: Once<Power> = Once::new();

/// Learns from the tables how the machine is switched off and where its PM timer is.
pub(super) fn init(tables: &Tables) {
    let fadt = match tables.get(b"FACP").map(fadt::parse) {
        Some(Ok(fadt)) => fadt,
        Some(Err(quirk)) => {
            log::warn!("{quirk}; power-off tries the ports of emulators");
            return;
        }
        None => {
            log::warn!("there is no FADT: power-off tries the ports of emulators");
            return;
        }
    };
    let s5 = match tables.get(b"DSDT") {
        Some(dsdt) => sleep_type_s5(dsdt),
        None => firmware_dsdt(fadt.dsdt).and_then(sleep_type_s5),
    };
    if s5.is_none() {
        log::warn!("the DSDT has no \\_S5 package: power-off tries the ports of emulators");
    }
    let controls = [fadt.pm1a_control, fadt.pm1b_control, fadt.sleep_control];
    for register in controls
        .into_iter()
        .flatten()
        .filter(|r| r.space == AddressSpace::Memory)
    {
        if let Err(e) = paging::map_device(Hpa(register.address), 4) {
            log::warn!("the power-off register cannot be mapped: {e}");
            return;
        }
    }
    POWER.call_once(|| Power { fadt, s5 });
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
    let timer = POWER.get()?.fadt.pm_timer?;
    let port = u16::try_from(timer.register.address).ok()?;
    let is_port = timer.register.space == AddressSpace::Io;
    is_port.then_some(PmTimer {
        port,
        wide: timer.bits == 32,
    })
}

/// PM1 control: SCI_EN, SLP_TYP and SLP_EN (ACPI 6.5, 4.8.3.2.1).
const SCI_ENABLE: u16 = 1 << 0;
const SLEEP_TYPE_SHIFT: u16 = 10;
const SLEEP_TYPE_MASK: u16 = 0b111 << SLEEP_TYPE_SHIFT;
const SLEEP_ENABLE: u16 = 1 << 13;

/// Reads a control register; 0 from a space that no control register is in.
fn read_control(register: GenericAddress) -> u16 {
    match register.space {
        // SAFETY: a PM1 control register has no read side effect.
        AddressSpace::Io => unsafe { Port::<u16>::new(register.address as u16).read() },
        // SAFETY: mapped by `init`.
        AddressSpace::Memory => unsafe { memory(register).read_volatile() },
        _ => 0,
    }
}

fn write_control(register: GenericAddress, value: u16) {
    match register.space {
        // SAFETY: the machine is to be switched off; nothing runs any more.
        AddressSpace::Io => unsafe { Port::<u16>::new(register.address as u16).write(value) },
        // SAFETY: as above, mapped by `init`.
        AddressSpace::Memory => unsafe { memory(register).write_volatile(value) },
        _ => {}
    }
}

fn memory(register: GenericAddress) -> *mut u16 {
    paging::direct(Hpa(register.address)).cast()
}

/// Switches the machine off: ACPI S5, then the ports that Bochs and QEMU listen to, then a halt with a
/// sentence. Takes no lock: the end of a report calls this.
pub fn power_off() -> ! {
    x86_64::instructions::interrupts::disable();
    console::finish_sending();
    if let Some(Power {
        fadt,
        s5: Some((a, b)),
    }) = POWER.get()
    {
        sleep_s5(fadt, *a, *b);
        time::spin(Nanos::from_millis(500));
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
    time::spin(Nanos::from_millis(500));
    let _ = core::fmt::Write::write_str(
        &mut Emergency,
        "\nThis machine does not switch itself off. All processors have stopped: it is safe to cut the power.\n",
    );
    cpu::halt_forever()
}

fn sleep_s5(fadt: &Fadt, type_a: u8, type_b: u8) {
    if let Some(control) = fadt.sleep_control.filter(|_| fadt.hardware_reduced) {
        // Sleep type in bits 4:2, enable in bit 5 (ACPI 6.5, 4.8.3.7).
        write_control(control, u16::from(type_a) << 2 | 1 << 5);
        return;
    }
    let Some(pm1a) = fadt.pm1a_control else {
        return;
    };
    enable_acpi(fadt, pm1a);
    for (register, kind) in [(fadt.pm1b_control, type_b), (Some(pm1a), type_a)] {
        if let Some(register) = register {
            let kept = read_control(register) & !(SLEEP_TYPE_MASK | SLEEP_ENABLE);
            let value = kept | u16::from(kind) << SLEEP_TYPE_SHIFT;
            write_control(register, value);
            write_control(register, value | SLEEP_ENABLE);
        }
    }
}

/// Switches from legacy to ACPI mode where firmware left that to us (ACPI 6.5, 16.3.1).
fn enable_acpi(fadt: &Fadt, pm1a: GenericAddress) {
    if read_control(pm1a) & SCI_ENABLE != 0 {
        return;
    }
    if let Some((port, value)) = fadt.acpi_enable {
        // SAFETY: the command that the FADT names for this purpose.
        unsafe { Port::<u8>::new(port).write(value) };
        for _ in 0..100_000 {
            if read_control(pm1a) & SCI_ENABLE != 0 {
                return;
            }
        }
    }
}
