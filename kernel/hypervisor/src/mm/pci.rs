//! Stopping devices that firmware left running (PCI Local Bus 3.0, 3.2.2.3.2 and 6.2.2).
//!
//! After ExitBootServices a network card may still write received packets into buffers that
//! the memory map calls free. A device without the bus-master bit in its command register cannot.
#![expect(
    unsafe_code,
    reason = "configuration space is reached through I/O ports"
)]

use x86_64::instructions::{interrupts::without_interrupts, port::Port};

const CONFIG_ADDRESS: u16 = 0xcf8;
const CONFIG_DATA: u16 = 0xcfc;
const ENABLE: u32 = 1 << 31;
const COMMAND: u8 = 0x04;
const CLASS: u8 = 0x08;
const HEADER: u8 = 0x0c;
const BUS_MASTER: u32 = 1 << 2;
const MULTI_FUNCTION: u32 = 1 << 23;
const HOST_BRIDGE: u32 = 0x0600;
const NOBODY: u32 = 0xffff_ffff;

/// What [`stop_bus_masters`] found.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Stopped {
    /// Functions that answered.
    pub functions: u32,
    /// Functions that could write to memory, and no longer can.
    pub stopped: u32,
    /// Functions whose bus-master bit would not go away (host bridges are not counted).
    pub stubborn: u32,
}

/// Switches bus mastering off in every function of PCI segment 0, bridges included. Host bridges
/// are left alone: they carry the processors' own accesses. Screens go on, because a linear framebuffer
/// is read from the device's own memory.
pub(super) fn stop_bus_masters() -> Stopped {
    let mut found = Stopped::default();
    for bus in 0..=255 {
        for device in 0..32 {
            let functions = match read(bus, device, 0, 0) {
                NOBODY => continue,
                _ if read(bus, device, 0, HEADER) & MULTI_FUNCTION != 0 => 8,
                _ => 1,
            };
            for function in (0..functions).filter(|f| read(bus, device, *f, 0) != NOBODY) {
                stop(bus, device, function, &mut found);
            }
        }
    }
    found
}

fn stop(bus: u8, device: u8, function: u8, found: &mut Stopped) {
    found.functions += 1;
    let command = read(bus, device, function, COMMAND);
    let class = read(bus, device, function, CLASS) >> 16;
    if command & BUS_MASTER == 0 || class == HOST_BRIDGE {
        return;
    }
    // The upper half is the status register, whose bits are cleared by writing ones: zeros leave it.
    write(
        bus,
        device,
        function,
        COMMAND,
        command & 0xffff & !BUS_MASTER,
    );
    // Reading back also pushes posted writes out of the way (PCI 3.0, 3.2.5).
    if read(bus, device, function, COMMAND) & BUS_MASTER == 0 {
        found.stopped += 1;
    } else {
        found.stubborn += 1;
    }
}

fn select(bus: u8, device: u8, function: u8, register: u8) -> u32 {
    ENABLE
        | u32::from(bus) << 16
        | u32::from(device & 31) << 11
        | u32::from(function & 7) << 8
        | u32::from(register & 0xfc)
}

fn read(bus: u8, device: u8, function: u8, register: u8) -> u32 {
    without_interrupts(|| {
        let (mut address, mut data) = (Port::new(CONFIG_ADDRESS), Port::new(CONFIG_DATA));
        // SAFETY: configuration mechanism 1 (PCI 3.0, 3.2.2.3.2), on the only CPU that runs; reading
        // the standard header has no side effects. Where there is no PCI the bus answers with ones.
        unsafe {
            address.write(select(bus, device, function, register));
            data.read()
        }
    })
}

fn write(bus: u8, device: u8, function: u8, register: u8, value: u32) {
    without_interrupts(|| {
        let (mut address, mut data) = (Port::new(CONFIG_ADDRESS), Port::new(CONFIG_DATA));
        // SAFETY: as in `read`; the caller writes the command register of a function that answered,
        // and only takes from it the right to write to memory.
        unsafe {
            address.write(select(bus, device, function, register));
            data.write(value);
        }
    });
}
