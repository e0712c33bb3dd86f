//! The mark in the guest's code.
//!
//! `nopl imm32(%rax,%rax,1)` is 0F 1F 84 00 imm32: a NOP on every x86-64 (SDM 2B, "NOP"; APM 3,
//! "NOP"), which reads nothing, whatever its displacement. Compilers pad with displacement 0.

/// Upper half of the displacement.
const MAGIC: u16 = 0x5047;
/// Lower half of the displacement that asks for a report instead of marking a loop.
const FLUSH: u16 = 0xfffe;
/// Tags are numbered from 1 to one less than this.
pub(crate) const TAGS: usize = 16;

/// What an instruction says to the plugin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mark {
    /// Count the accesses behind this.
    Tag(usize),
    /// Write the report now.
    Flush,
}

/// Reads the bytes of one instruction.
pub(crate) fn mark(instruction: &[u8]) -> Option<Mark> {
    let [0x0f, 0x1f, 0x84, 0x00, low0, low1, high0, high1] = *instruction else {
        return None;
    };
    if u16::from_le_bytes([high0, high1]) != MAGIC {
        return None;
    }
    match u16::from_le_bytes([low0, low1]) {
        FLUSH => Some(Mark::Flush),
        number => Some(usize::from(number))
            .filter(|tag| (1..TAGS).contains(tag))
            .map(Mark::Tag),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_magic_long_nop_is_a_mark() {
        let nop = |displacement: u32| {
            let mut bytes = vec![0x0f, 0x1f, 0x84, 0x00];
            bytes.extend(displacement.to_le_bytes());
            bytes
        };
        assert_eq!(mark(&nop(0x5047_0003)), Some(Mark::Tag(3)));
        assert_eq!(mark(&nop(0x5047_fffe)), Some(Mark::Flush));
        for other in [
            nop(0),
            nop(0x5047_0000),
            nop(0x5047_0010),
            nop(0x5048_0003),
            vec![0x90],
            vec![],
            nop(0x5047_0003)[1..].to_vec(),
        ] {
            assert_eq!(mark(&other), None, "{other:x?}");
        }
    }
}
