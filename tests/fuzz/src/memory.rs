//! A little guest memory, for targets that run a million times a minute.

use guest::memory::Width;
use guest::{GuestMemory, OutOfRange};
use std::cell::RefCell;
use units::Gpa;

/// Memory from guest-physical address 0 on.
#[derive(Debug)]
pub struct SmallMemory(pub RefCell<Vec<u8>>);

impl SmallMemory {
    /// `bytes` of memory that repeat a pattern of quadwords.
    pub fn filled(bytes: usize, pattern: &[u8]) -> Self {
        let mut memory = vec![0; bytes];
        if !pattern.is_empty() {
            for chunk in memory.chunks_mut(pattern.len()) {
                chunk.copy_from_slice(&pattern[..chunk.len()]);
            }
        }
        Self(RefCell::new(memory))
    }

    fn range(&self, gpa: Gpa, bytes: usize) -> Result<std::ops::Range<usize>, OutOfRange> {
        let error = OutOfRange {
            gpa,
            bytes: bytes as u64,
        };
        let start = usize::try_from(gpa.0).map_err(|_| error)?;
        let end = start.checked_add(bytes).ok_or(error)?;
        if end <= self.0.borrow().len() {
            Ok(start..end)
        } else {
            Err(error)
        }
    }
}

impl GuestMemory for SmallMemory {
    fn read(&self, gpa: Gpa, buf: &mut [u8]) -> Result<(), OutOfRange> {
        let range = self.range(gpa, buf.len())?;
        buf.copy_from_slice(&self.0.borrow()[range]);
        Ok(())
    }

    fn write(&self, gpa: Gpa, bytes: &[u8]) -> Result<(), OutOfRange> {
        let range = self.range(gpa, bytes.len())?;
        self.0.borrow_mut()[range].copy_from_slice(bytes);
        Ok(())
    }

    fn compare_exchange(
        &self,
        gpa: Gpa,
        width: Width,
        current: u64,
        new: u64,
    ) -> Result<u64, OutOfRange> {
        let bytes = match width {
            Width::Bits32 => 4,
            Width::Bits64 => 8,
        };
        let range = self.range(gpa, bytes)?;
        let mut memory = self.0.borrow_mut();
        let mut word = [0; 8];
        word[..bytes].copy_from_slice(&memory[range.clone()]);
        let held = u64::from_le_bytes(word);
        if held == current {
            memory[range].copy_from_slice(&new.to_le_bytes()[..bytes]);
        }
        Ok(held)
    }

    fn size(&self) -> u64 {
        self.0.borrow().len() as u64
    }
}
