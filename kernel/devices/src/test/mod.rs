//! Devices of test kernels: how they learn of their machine and how they end.
//!
//! kvm-unit-tests and kernels like it are run by QEMU with a handful of devices that no PC has. A VM
//! has them only if its configuration asks, since each of them says something about the machine that no
//! ordinary guest should see:
//!
//! | port or address | what | as in QEMU |
//! |---|---|---|
//! | 0xF4 to 0xF7 | exit port: a value written ends the VM with it | `isa-debug-exit` |
//! | 0x510, 0x511 | [`FwCfg`]: CPUs and memory by number | `fw_cfg`, without DMA |
//! | 0xE0 to 0xE3 | a register that holds what was written to it | `pc-testdev` |
//! | 0xE4 to 0xE7 | asks for a page to be dropped from the nested table: accepted, does nothing | `pc-testdev` |
//! | 0x2000 to 0x2017 | raises (1) or lowers (0) an interrupt line | `pc-testdev` |
//! | 0xFF000000, 64 KiB | memory that is reached by device accesses only | `pc-testdev` |

mod fw_cfg;

pub use fw_cfg::FwCfg;

use alloc::boxed::Box;
use units::Gpa;

use crate::access::AccessSize;

/// The exit port and its width.
const EXIT: u16 = 0xF4;
const EXIT_LAST: u16 = 0xF7;
/// The register that holds what was written.
const SCRATCH: u16 = 0xE0;
const SCRATCH_LAST: u16 = 0xE3;
const FLUSH: u16 = 0xE4;
const FLUSH_LAST: u16 = 0xE7;
const SELECTOR: u16 = 0x510;
const DATA: u16 = 0x511;
const LINES: u16 = 0x2000;
const LINES_LAST: u16 = 0x2017;
/// Memory behind device accesses.
const MEMORY_BASE: Gpa = Gpa(0xFF00_0000);
const MEMORY_BYTES: usize = 0x1_0000;

/// What the devices tell of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TestConfig {
    /// Virtual CPUs.
    pub cpus: u16,
    /// Memory in bytes, as configured.
    pub memory_bytes: u64,
}

/// What a write to a test device asks of the board.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    /// Nothing more.
    Done,
    /// The VM ends with this value.
    Exit(u32),
    /// An interrupt line changes.
    Line {
        /// Its number, as of the I/O APIC's pins but for the timer's.
        line: u8,
        /// Its new level.
        asserted: bool,
    },
}

/// All of them.
#[derive(Clone, Debug)]
pub(crate) struct TestDevices {
    fw_cfg: FwCfg,
    scratch: [u8; 4],
    memory: Box<[u8]>,
}

impl TestDevices {
    pub(crate) fn new(config: TestConfig) -> Self {
        Self {
            fw_cfg: FwCfg::new(config),
            scratch: [0; 4],
            memory: alloc::vec![0; MEMORY_BYTES].into_boxed_slice(),
        }
    }

    /// A read; `None` if the port belongs to no test device.
    pub(crate) fn port_read(&mut self, port: u16, size: AccessSize) -> Option<u32> {
        Some(match port {
            EXIT..=EXIT_LAST | FLUSH..=FLUSH_LAST | LINES..=LINES_LAST => 0,
            SCRATCH..=SCRATCH_LAST => {
                u32::from_le_bytes(self.scratch) >> (8 * u32::from(port - SCRATCH))
            }
            // Both ports read the data; wide reads are not the device's, and read one byte.
            SELECTOR | DATA if size == AccessSize::Byte => u32::from(self.fw_cfg.read()),
            SELECTOR | DATA => 0,
            _ => return None,
        })
    }

    /// A write; `None` if the port belongs to no test device.
    pub(crate) fn port_write(
        &mut self,
        port: u16,
        size: AccessSize,
        value: u32,
    ) -> Option<Request> {
        Some(match port {
            EXIT..=EXIT_LAST => Request::Exit(value),
            SCRATCH..=SCRATCH_LAST => {
                let places = self.scratch.iter_mut().skip(usize::from(port - SCRATCH));
                let bytes = value.to_le_bytes();
                for (to, from) in places.zip(bytes.iter().take(usize::from(size.bytes()))) {
                    *to = *from;
                }
                Request::Done
            }
            FLUSH..=FLUSH_LAST => Request::Done,
            LINES..=LINES_LAST => Request::Line {
                line: (port - LINES) as u8,
                asserted: value != 0,
            },
            SELECTOR if size == AccessSize::Word => {
                self.fw_cfg.select(value as u16);
                Request::Done
            }
            SELECTOR | DATA => Request::Done,
            _ => return None,
        })
    }

    /// Whether an address is the devices' memory.
    pub(crate) fn claims(gpa: Gpa) -> bool {
        gpa.0
            .checked_sub(MEMORY_BASE.0)
            .is_some_and(|offset| offset < MEMORY_BYTES as u64)
    }

    pub(crate) fn memory_read(&self, gpa: Gpa, size: AccessSize) -> u64 {
        let mut bytes = [0; 8];
        let held = self.memory.iter().skip(Self::offset(gpa));
        for (to, from) in bytes.iter_mut().take(size.bytes().into()).zip(held) {
            *to = *from;
        }
        u64::from_le_bytes(bytes)
    }

    pub(crate) fn memory_write(&mut self, gpa: Gpa, size: AccessSize, value: u64) {
        let places = self.memory.iter_mut().skip(Self::offset(gpa));
        for (to, from) in places.zip(value.to_le_bytes()).take(size.bytes().into()) {
            *to = from;
        }
    }

    fn offset(gpa: Gpa) -> usize {
        gpa.0.wrapping_sub(MEMORY_BASE.0) as usize % MEMORY_BYTES
    }
}

#[cfg(test)]
mod tests;
