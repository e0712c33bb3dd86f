//! The entry that AMD64 and Intel 64 share, as host paging and as AMD's nested paging use it.
//!
//! Bits (SDM 3A 4.5.4, tables 4-15 to 4-20; APM 2 5.3.3): 0 present, 1 writable, 2 user, 3 PWT, 4 PCD,
//! 5 accessed, 6 dirty, 7 large (PAT in a 4 KiB leaf), 8 global, 11:9 ignored, 12 PAT in a large leaf,
//! 51:12 address, 63 no-execute.

use super::format::{ADDRESS, LARGE};
use super::{Attributes, MemoryType, Rights, TableFormat, Va};
use units::{Frame, Gpa, PAGE_SHIFT, PageSize};

const PRESENT: u64 = 1 << 0;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const WRITE_THROUGH: u64 = 1 << 3;
const CACHE_DISABLE: u64 = 1 << 4;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const PAT_SMALL: u64 = 1 << 7;
const SOFTWARE: u64 = 1 << 11;
const PAT_LARGE: u64 = 1 << 12;
const NO_EXECUTE: u64 = 1 << 63;

/// The value of IA32_PAT (MSR 0x277) that the encodings here assume; every CPU must load it.
///
/// Entries 0 to 3 are those of reset (WB, WT, UC-, UC), so that PWT and PCD keep their old meaning;
/// 4 is WC, 5 is WP, 6 and 7 repeat 2 and 3 (SDM 3A 12.12.2, APM 2 7.8.1).
pub const PAT: u64 = 0x0007_0501_0007_0406;

/// Which PAT entry each memory type uses.
const fn pat_index(memory_type: MemoryType) -> u64 {
    match memory_type {
        MemoryType::WriteBack => 0,
        MemoryType::WriteThrough => 1,
        MemoryType::Uncacheable => 3,
        MemoryType::WriteCombining => 4,
        MemoryType::WriteProtected => 5,
    }
}

const _: () = {
    const fn pat(memory_type: MemoryType) -> u8 {
        (PAT >> (8 * pat_index(memory_type))) as u8
    }
    assert!(pat(MemoryType::WriteBack) == 6 && pat(MemoryType::WriteThrough) == 4);
    assert!(pat(MemoryType::Uncacheable) == 0 && pat(MemoryType::WriteCombining) == 1);
    assert!(pat(MemoryType::WriteProtected) == 5);
};

const fn pat_bit(size: PageSize) -> u64 {
    match size {
        PageSize::Size4K => PAT_SMALL,
        PageSize::Size2M | PageSize::Size1G => PAT_LARGE,
    }
}

fn encode(frame: Frame, size: PageSize, attributes: Attributes) -> u64 {
    let Attributes {
        rights,
        memory_type,
    } = attributes;
    let index = pat_index(memory_type);
    let mut entry = (frame.0 << PAGE_SHIFT) & ADDRESS | PRESENT;
    let mut set = |bits: u64, when: bool| entry |= if when { bits } else { 0 };
    set(WRITABLE, rights.contains(Rights::WRITE));
    set(USER, rights.contains(Rights::USER));
    set(NO_EXECUTE, !rights.contains(Rights::EXECUTE));
    set(WRITE_THROUGH, index & 1 != 0);
    set(CACHE_DISABLE, index & 2 != 0);
    set(pat_bit(size), index & 4 != 0);
    set(LARGE, size != PageSize::Size4K);
    entry
}

fn decode(entry: u64, size: PageSize) -> Attributes {
    let has = |bits: u64| entry & bits != 0;
    let mut rights = Rights::READ;
    rights.set(Rights::WRITE, has(WRITABLE));
    rights.set(Rights::USER, has(USER));
    rights.set(Rights::EXECUTE, !has(NO_EXECUTE));
    let memory_type = match (has(pat_bit(size)), has(CACHE_DISABLE), has(WRITE_THROUGH)) {
        (false, false, false) => MemoryType::WriteBack,
        (false, false, true) => MemoryType::WriteThrough,
        (true, false, false) => MemoryType::WriteCombining,
        (true, false, true) => MemoryType::WriteProtected,
        (_, true, _) => MemoryType::Uncacheable,
    };
    Attributes {
        rights,
        memory_type,
    }
}

/// Host paging with 4 levels. Needs EFER.NXE = 1 and [`PAT`].
#[derive(Debug)]
pub enum HostFormat {}

impl TableFormat for HostFormat {
    type Address = Va;
    const NAME: &'static str = "host";
    const PRESENT: u64 = PRESENT;
    const ACCESSED: u64 = ACCESSED;
    const DIRTY: u64 = DIRTY;
    const FROZEN: u64 = SOFTWARE;

    fn table(frame: Frame) -> u64 {
        (frame.0 << PAGE_SHIFT) & ADDRESS | PRESENT | WRITABLE | USER
    }
    fn leaf(frame: Frame, size: PageSize, attributes: Attributes) -> u64 {
        let () = Self::CHECKED;
        encode(frame, size, attributes)
    }
    fn attributes(entry: u64, size: PageSize) -> Attributes {
        decode(entry, size)
    }
}

/// AMD's nested paging (APM 2 15.25). Entries are those of host paging under the *host's* EFER and
/// PAT, and every nested access counts as a user access (15.25.5): U = 1 at every level, or the
/// guest never gets past its first fetch. A and D are bits 5 and 6 as ever.
#[derive(Debug)]
pub enum NptFormat {}

impl TableFormat for NptFormat {
    type Address = Gpa;
    const NAME: &'static str = "NPT";
    const PRESENT: u64 = PRESENT;
    const ACCESSED: u64 = ACCESSED;
    const DIRTY: u64 = DIRTY;
    const FROZEN: u64 = SOFTWARE;

    fn table(frame: Frame) -> u64 {
        (frame.0 << PAGE_SHIFT) & ADDRESS | PRESENT | WRITABLE | USER
    }
    fn leaf(frame: Frame, size: PageSize, attributes: Attributes) -> u64 {
        let () = Self::CHECKED;
        encode(frame, size, attributes) | USER
    }
    fn attributes(entry: u64, size: PageSize) -> Attributes {
        let Attributes {
            rights,
            memory_type,
        } = decode(entry, size);
        Attributes {
            rights: rights.difference(Rights::USER),
            memory_type,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_have_the_bits_of_the_manual() {
        let all = Attributes::GUEST_MEMORY;
        assert_eq!(
            NptFormat::leaf(Frame(0x12345), PageSize::Size4K, all),
            0x1234_5007
        );
        assert_eq!(
            NptFormat::leaf(Frame(0x12200), PageSize::Size2M, all),
            0x1220_0087
        );
        assert_eq!(NptFormat::table(Frame(0x12345)), 0x1234_5007);
        let read = Attributes::memory(Rights::READ);
        assert_eq!(
            HostFormat::leaf(Frame(1), PageSize::Size4K, read),
            0x8000_0000_0000_1001
        );
        let wc = Attributes {
            rights: Rights::READ,
            memory_type: MemoryType::WriteCombining,
        };
        assert_eq!(
            HostFormat::leaf(Frame(0), PageSize::Size4K, wc),
            0x8000_0000_0000_0081
        );
        assert_eq!(
            HostFormat::leaf(Frame(0), PageSize::Size2M, wc),
            0x8000_0000_0000_1081
        );
        assert_eq!(
            HostFormat::leaf(Frame(0), PageSize::Size4K, Attributes::DEVICE),
            0x8000_0000_0000_001b
        );
    }
}
