//! QEMU's firmware configuration device, as far as test kernels use it (QEMU: docs/specs/fw_cfg.rst).
//!
//! A 16-bit write selects an item and rewinds it; each byte read is its next. An item that does not
//! exist, and an item's end, read as zeros. There is no DMA, which the revision says.

use super::TestConfig;

/// Items by their numbers.
mod item {
    pub const SIGNATURE: u16 = 0x00;
    pub const REVISION: u16 = 0x01;
    pub const RAM_SIZE: u16 = 0x03;
    pub const NB_CPUS: u16 = 0x05;
    pub const MAX_CPUS: u16 = 0x0F;
}

/// The traditional interface alone: bit 0 without bit 1.
const REVISION: u32 = 1;

/// The device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FwCfg {
    config: TestConfig,
    item: u16,
    offset: usize,
}

impl FwCfg {
    /// A device that tells of this machine.
    #[must_use]
    pub const fn new(config: TestConfig) -> Self {
        Self {
            config,
            item: item::SIGNATURE,
            offset: 0,
        }
    }

    /// Selects an item, from its first byte.
    pub const fn select(&mut self, item: u16) {
        self.item = item;
        self.offset = 0;
    }

    /// The selected item's next byte.
    pub fn read(&mut self) -> u8 {
        // Little-endian words, zeros behind them.
        let word = match self.item {
            item::SIGNATURE => u64::from(u32::from_le_bytes(*b"QEMU")),
            item::REVISION => u64::from(REVISION),
            item::RAM_SIZE => self.config.memory_bytes,
            item::NB_CPUS | item::MAX_CPUS => u64::from(self.config.cpus),
            _ => 0,
        };
        let byte = word.to_le_bytes().get(self.offset).copied().unwrap_or(0);
        self.offset = self.offset.saturating_add(1);
        byte
    }
}
