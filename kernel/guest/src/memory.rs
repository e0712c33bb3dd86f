//! The one door to guest memory.

use alloc::vec::Vec;
use core::cell::RefCell;
use core::fmt;
use units::Gpa;

use crate::shape::{MemoryLayout, Region};

/// Guest-physical memory as software sees it.
///
/// Methods take `&self`, because the memory is shared with running vCPUs; the implementation
/// provides whatever exclusion it needs. An access that is not wholly inside memory changes
/// nothing and reports where it was.
pub trait GuestMemory {
    /// Fills `buf` from `gpa` on.
    ///
    /// # Errors
    /// [`OutOfRange`] when some byte is not memory.
    fn read(&self, gpa: Gpa, buf: &mut [u8]) -> Result<(), OutOfRange>;

    /// Writes `bytes` from `gpa` on.
    ///
    /// # Errors
    /// [`OutOfRange`] when some byte is not memory; nothing was written then.
    fn write(&self, gpa: Gpa, bytes: &[u8]) -> Result<(), OutOfRange>;

    /// Replaces the little-endian word at `gpa`, if it still holds `current`, by `new` in one
    /// atomic step, and says what it held before. The walker sets accessed and dirty bits with it.
    ///
    /// # Errors
    /// [`OutOfRange`] when the word is not memory.
    fn compare_exchange(
        &self,
        gpa: Gpa,
        width: Width,
        current: u64,
        new: u64,
    ) -> Result<u64, OutOfRange>;

    /// Bytes of memory behind the door, holes not counted.
    fn size(&self) -> u64;

    /// Whether the byte at `gpa` is memory.
    fn holds(&self, gpa: Gpa) -> bool {
        self.read(gpa, &mut [0]).is_ok()
    }

    /// The 64-bit word at `gpa`.
    ///
    /// # Errors
    /// [`OutOfRange`] when it is not memory.
    fn read_u64(&self, gpa: Gpa) -> Result<u64, OutOfRange> {
        let mut b = [0; 8];
        self.read(gpa, &mut b)?;
        Ok(u64::from_le_bytes(b))
    }

    /// The 32-bit word at `gpa`.
    ///
    /// # Errors
    /// [`OutOfRange`] when it is not memory.
    fn read_u32(&self, gpa: Gpa) -> Result<u32, OutOfRange> {
        let mut b = [0; 4];
        self.read(gpa, &mut b)?;
        Ok(u32::from_le_bytes(b))
    }
}

/// Width of an atomic access to guest memory; the address is a multiple of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Width {
    /// Four bytes.
    Bits32,
    /// Eight bytes.
    Bits64,
}

/// A guest-physical range that is not, or not wholly, memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfRange {
    /// First byte of the access.
    pub gpa: Gpa,
    /// Its length in bytes.
    pub bytes: u64,
}

impl fmt::Display for OutOfRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} bytes at guest-physical {} are not inside the VM's memory; nothing was accessed",
            self.bytes, self.gpa
        )
    }
}

impl core::error::Error for OutOfRange {}

/// Guest memory in a `Vec` for each region: for tests and host tools.
#[derive(Debug)]
pub struct VecMemory {
    regions: Vec<(Region, RefCell<Vec<u8>>)>,
}

impl VecMemory {
    /// Zeroed memory with the regions of `layout`.
    #[must_use]
    pub fn new(layout: &MemoryLayout) -> Self {
        let regions = layout
            .regions()
            .iter()
            .map(|r| {
                (
                    *r,
                    RefCell::new(alloc::vec![0; usize::try_from(r.bytes).unwrap_or(0)]),
                )
            })
            .collect();
        Self { regions }
    }

    /// Calls `f` with each piece of `gpa..gpa + bytes`: the region, the offset in it, the offset
    /// in the access. Checks the whole range first.
    fn pieces(
        &self,
        gpa: Gpa,
        bytes: usize,
        mut f: impl FnMut(&RefCell<Vec<u8>>, usize, core::ops::Range<usize>),
    ) -> Result<(), OutOfRange> {
        let fault = OutOfRange {
            gpa,
            bytes: bytes as u64,
        };
        let mut pieces = Vec::new();
        let mut done = 0usize;
        while done < bytes {
            let at = gpa.checked_add(done as u64).ok_or(fault)?;
            let (region, data) = self
                .regions
                .iter()
                .find(|(r, _)| r.contains(at))
                .ok_or(fault)?;
            let offset = usize::try_from(at.0 - region.gpa.0).map_err(|_| fault)?;
            let length = (bytes - done).min(data.borrow().len().saturating_sub(offset));
            if length == 0 {
                return Err(fault);
            }
            pieces.push((data, offset, done..done + length));
            done += length;
        }
        for (data, offset, range) in pieces {
            f(data, offset, range);
        }
        Ok(())
    }
}

impl GuestMemory for VecMemory {
    fn read(&self, gpa: Gpa, buf: &mut [u8]) -> Result<(), OutOfRange> {
        self.pieces(gpa, buf.len(), |data, offset, range| {
            let data = data.borrow();
            for (to, from) in buf
                .iter_mut()
                .skip(range.start)
                .zip(data.iter().skip(offset).take(range.len()))
            {
                *to = *from;
            }
        })
    }

    fn write(&self, gpa: Gpa, bytes: &[u8]) -> Result<(), OutOfRange> {
        self.pieces(gpa, bytes.len(), |data, offset, range| {
            let mut data = data.borrow_mut();
            for (to, from) in data
                .iter_mut()
                .skip(offset)
                .zip(bytes.iter().skip(range.start).take(range.len()))
            {
                *to = *from;
            }
        })
    }

    fn compare_exchange(
        &self,
        gpa: Gpa,
        width: Width,
        current: u64,
        new: u64,
    ) -> Result<u64, OutOfRange> {
        match width {
            Width::Bits32 => {
                let held = u64::from(self.read_u32(gpa)?);
                if held == current {
                    self.write(gpa, &(new as u32).to_le_bytes())?;
                }
                Ok(held)
            }
            Width::Bits64 => {
                let held = self.read_u64(gpa)?;
                if held == current {
                    self.write(gpa, &new.to_le_bytes())?;
                }
                Ok(held)
            }
        }
    }

    fn size(&self) -> u64 {
        self.regions.iter().map(|(r, _)| r.bytes).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shape::VmShape;

    #[test]
    fn an_access_past_a_hole_changes_nothing() {
        let shape = VmShape::simple(1, 16 << 20).expect("a small VM");
        let m = VecMemory::new(&shape.memory);
        // The last byte of low RAM and the first of the VGA hole.
        assert_eq!(
            m.write(Gpa(0x9_FFFF), &[1, 2]),
            Err(OutOfRange {
                gpa: Gpa(0x9_FFFF),
                bytes: 2
            })
        );
        let mut b = [9];
        m.read(Gpa(0x9_FFFF), &mut b).expect("RAM");
        assert_eq!(b, [0]);
        assert!(m.read(Gpa(u64::MAX), &mut [0; 2]).is_err());
    }

    #[test]
    fn an_access_may_span_adjacent_regions() {
        let shape = VmShape::simple(1, 16 << 20).expect("a small VM");
        let m = VecMemory::new(&shape.memory);
        m.write(Gpa(0xF_FFFE), &[1, 2, 3, 4])
            .expect("firmware memory, then RAM");
        assert_eq!(m.read_u32(Gpa(0xF_FFFE)), Ok(0x0403_0201));
        assert_eq!(
            m.compare_exchange(Gpa(0xF_FFFE), Width::Bits32, 1, 7),
            Ok(0x0403_0201)
        );
        assert_eq!(
            m.compare_exchange(Gpa(0xF_FFFE), Width::Bits32, 0x0403_0201, 7),
            Ok(0x0403_0201)
        );
        assert_eq!(m.read_u32(Gpa(0xF_FFFE)), Ok(7));
    }
}
