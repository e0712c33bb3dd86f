//! Intel's extended page tables.

use super::format::{ADDRESS, LARGE};
use super::{Attributes, MemoryType, Rights, TableFormat};
use units::{Frame, Gpa, PAGE_SHIFT, PageSize};

const READ: u64 = 1 << 0;
const WRITE: u64 = 1 << 1;
const EXECUTE: u64 = 1 << 2;
const MEMORY_TYPE_SHIFT: u32 = 3;
const MEMORY_TYPE: u64 = 0b111 << MEMORY_TYPE_SHIFT;
const IGNORE_PAT: u64 = 1 << 6;
/// Fetches from user-mode linear addresses; ignored unless mode-based execute control is on.
const EXECUTE_USER: u64 = 1 << 10;

/// EPT with 4 levels (SDM 3C 29.3.2, tables 29-1 to 29-6).
///
/// Bits: 0 read, 1 write, 2 execute, 5:3 memory type of a leaf, 6 ignore PAT, 7 leaf, 8 accessed and
/// 9 dirty (if EPTP bit 6 is 1), 10 execute for user mode, 11 ignored, 51:12 address. A write-back leaf
/// ignores the guest's PAT: the hypervisor reaches the same frames write-back, and no device does. With other
/// types it combines with the PAT as MTRRs do. In an entry that refers to a table bits 6:3 are reserved.
#[derive(Debug)]
pub enum EptFormat {}

impl TableFormat for EptFormat {
    type Address = Gpa;
    const NAME: &'static str = "EPT";
    /// With mode-based execute control bit 10 alone makes an entry present (SDM 3C 29.3.2).
    const PRESENT: u64 = READ | WRITE | EXECUTE | EXECUTE_USER;
    const ACCESSED: u64 = 1 << 8;
    const DIRTY: u64 = 1 << 9;
    const FROZEN: u64 = 1 << 11;

    fn table(frame: Frame) -> u64 {
        (frame.0 << PAGE_SHIFT) & ADDRESS | Self::PRESENT
    }

    fn leaf(frame: Frame, size: PageSize, attributes: Attributes) -> u64 {
        let () = Self::CHECKED;
        let Attributes {
            rights,
            memory_type,
        } = attributes;
        // SDM 3C 29.3.7.2: the encodings are those of MTRRs.
        let memory_type: u64 = match memory_type {
            MemoryType::Uncacheable => 0,
            MemoryType::WriteCombining => 1,
            MemoryType::WriteThrough => 4,
            MemoryType::WriteProtected => 5,
            MemoryType::WriteBack => 6,
        };
        let mut entry = (frame.0 << PAGE_SHIFT) & ADDRESS | memory_type << MEMORY_TYPE_SHIFT | READ;
        let mut set = |bits: u64, when: bool| entry |= if when { bits } else { 0 };
        set(WRITE, rights.contains(Rights::WRITE));
        set(EXECUTE | EXECUTE_USER, rights.contains(Rights::EXECUTE));
        set(IGNORE_PAT, attributes.memory_type == MemoryType::WriteBack);
        set(LARGE, size != PageSize::Size4K);
        entry
    }

    /// A frozen leaf lost its rights, which are its present bits: they read as "read only" here, and
    /// whoever froze the leaf holds the true ones.
    fn attributes(entry: u64, _size: PageSize) -> Attributes {
        let mut rights = Rights::READ;
        rights.set(Rights::WRITE, entry & WRITE != 0);
        rights.set(Rights::EXECUTE, entry & EXECUTE != 0);
        let memory_type = match (entry & MEMORY_TYPE) >> MEMORY_TYPE_SHIFT {
            1 => MemoryType::WriteCombining,
            4 => MemoryType::WriteThrough,
            5 => MemoryType::WriteProtected,
            6 => MemoryType::WriteBack,
            _ => MemoryType::Uncacheable,
        };
        Attributes {
            rights,
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
            EptFormat::leaf(Frame(0x12345), PageSize::Size4K, all),
            0x1234_5477
        );
        assert_eq!(
            EptFormat::leaf(Frame(0x12200), PageSize::Size2M, all),
            0x1220_04f7
        );
        assert_eq!(
            EptFormat::leaf(Frame(0xfee00), PageSize::Size4K, Attributes::DEVICE),
            0xfee0_0003
        );
        assert_eq!(
            EptFormat::table(Frame(0x12345)) & 0xff8,
            0x400,
            "bits 7:3 are reserved in a table entry"
        );
    }
}
