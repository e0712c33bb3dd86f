//! The marks in the guest's code.
//!
//! `nopl imm32(%rax,%rax,1)` is 0F 1F 84 00 imm32: a NOP on every x86-64 (SDM 2B, "NOP"; APM 3,
//! "NOP"), which reads nothing, whatever its displacement. Compilers pad with displacement 0.
//!
//! Windows can be opened and closed by port writes as well, for guests whose code is easier to change than to
//! assemble: `out %al, $0xf8` and `out %al, $0xf9`, ports that no PC has given to anybody. The port must be an
//! immediate, so that it is a part of the instruction; whatever answers the write, the mark stands.

/// Upper half of the displacement.
const MAGIC: u16 = 0x5047;
/// Lower half of the displacement that asks for a report instead of marking a loop.
const FLUSH: u16 = 0xfffe;
/// Lower half of the displacements that end an operation; the lowest byte is the class of the next one, 0 for none.
const LAP: u16 = 0x0100;
/// A window opens.
const OPEN: u16 = 0x0200;
/// It closes.
const CLOSE: u16 = 0x0300;
/// OUT imm8, AL (SDM 2B, "OUT").
const OUT_IMM8: u8 = 0xe6;
/// The port that opens a window.
const OPEN_PORT: u8 = 0xf8;
/// The port that closes it.
const CLOSE_PORT: u8 = 0xf9;
/// Tags are numbered from 1 to one less than this.
pub(crate) const TAGS: usize = 16;
/// Classes of operations are numbered from 1 to one less than this.
pub(crate) const CLASSES: usize = 64;

/// What an instruction says to the plugin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mark {
    /// Count the accesses behind this.
    Tag(usize),
    /// An operation ends, and one of this class begins; 0 for none.
    Lap(usize),
    /// A window opens.
    Open,
    /// The window closes.
    Close,
    /// Write the report now.
    Flush,
}

/// Reads the bytes of one instruction.
pub(crate) fn mark(instruction: &[u8]) -> Option<Mark> {
    match *instruction {
        [OUT_IMM8, OPEN_PORT] => return Some(Mark::Open),
        [OUT_IMM8, CLOSE_PORT] => return Some(Mark::Close),
        _ => {}
    }
    let [0x0f, 0x1f, 0x84, 0x00, low0, low1, high0, high1] = *instruction else {
        return None;
    };
    if u16::from_le_bytes([high0, high1]) != MAGIC {
        return None;
    }
    match u16::from_le_bytes([low0, low1]) {
        FLUSH => Some(Mark::Flush),
        OPEN => Some(Mark::Open),
        CLOSE => Some(Mark::Close),
        number if number & 0xff00 == LAP => Some(usize::from(number & 0xff))
            .filter(|class| *class < CLASSES)
            .map(Mark::Lap),
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
        assert_eq!(mark(&nop(0x5047_0107)), Some(Mark::Lap(7)));
        assert_eq!(mark(&nop(0x5047_0100)), Some(Mark::Lap(0)));
        assert_eq!(mark(&nop(0x5047_0200)), Some(Mark::Open));
        assert_eq!(mark(&nop(0x5047_0300)), Some(Mark::Close));
        assert_eq!(mark(&[0xe6, 0xf8]), Some(Mark::Open));
        assert_eq!(mark(&[0xe6, 0xf9]), Some(Mark::Close));
        for other in [
            nop(0),
            nop(0x5047_0000),
            nop(0x5047_0010),
            nop(0x5047_0140),
            nop(0x5047_0201),
            vec![0xe6, 0x80],
            nop(0x5048_0003),
            vec![0x90],
            vec![],
            nop(0x5047_0003)[1..].to_vec(),
        ] {
            assert_eq!(mark(&other), None, "{other:x?}");
        }
    }
}
