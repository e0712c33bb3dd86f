//! Why instruction bytes are not executed, as a sentence that shows them.

use core::fmt;
use iced_x86::Mnemonic;

/// Why an instruction is not executed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DecodeError {
    bytes: [u8; 15],
    length: usize,
    reason: Reason,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Reason {
    Truncated,
    Invalid,
    Unsupported(Mnemonic),
}

impl DecodeError {
    pub(super) fn new(bytes: &[u8], reason: Reason) -> Self {
        let mut copy = [0; 15];
        let length = bytes.len().min(copy.len());
        for (to, from) in copy.iter_mut().zip(bytes) {
            *to = *from;
        }
        Self {
            bytes: copy,
            length,
            reason,
        }
    }

    /// Whether the processor itself would have refused the bytes, with #UD.
    #[must_use]
    pub fn is_invalid_opcode(&self) -> bool {
        self.reason == Reason::Invalid
    }
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the bytes")?;
        for b in self.bytes.iter().take(self.length) {
            write!(f, " {b:02x}")?;
        }
        match &self.reason {
            Reason::Truncated => {
                f.write_str(" end before the instruction does; it was not executed")
            }
            Reason::Invalid => f.write_str(" are no instruction in this mode; it was not executed"),
            Reason::Unsupported(m) => {
                write!(
                    f,
                    " are a {m:?}, which is not emulated on device memory; it was not executed"
                )
            }
        }
    }
}

impl core::error::Error for DecodeError {}
