#![expect(
    unsafe_code,
    reason = "copies between the kernel and guest memory that running guests change at any moment"
)]
//! The hypervisor's own accesses to a guest's memory.
//!
//! They (instruction emulation, clocks, software walks) set no A/D bits in the nested table and obey no shootdown. So
//! each holds the table's lock for reading from the translation to the last byte, and a page is frozen
//! under the same lock held for writing: no access ever lands in a frame that has been left. What is written sets D, so
//! that a copy that was begun before is known to be stale.

use super::GuestRam;
use crate::mm;
use crate::vm::tables::DirectTables;
use core::cell::Cell;
use core::ops::Range;
use core::sync::atomic::Ordering::{Relaxed, SeqCst};
use core::sync::atomic::{AtomicU32, AtomicU64};
use guest::memory::Width;
use guest::{GuestMemory, OutOfRange};
use memory::replica::Replicas;
use memory::table::{Lookup, TableFormat};
use spin::RwLockReadGuard;
use units::{Gpa, Hpa, PageSize};

/// What an access does.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Read,
    Write,
}

/// Why an access cannot be made.
enum Stop {
    /// This page is on the move.
    Away(Gpa),
    /// There is no memory.
    Nothing,
}

impl<F: TableFormat<Address = Gpa>> GuestRam<F> {
    /// Calls `work` with each contiguous piece of `gpa..gpa + bytes` in the direct map. The table's lock is
    /// held throughout; nothing is called unless all of the range is memory. Pages on the move are waited for.
    fn pieces(
        &self,
        gpa: Gpa,
        bytes: usize,
        kind: Kind,
        mut work: impl FnMut(*mut u8, Range<usize>),
    ) -> Result<(), OutOfRange> {
        loop {
            match self.try_pieces(gpa, bytes, kind, &mut work) {
                Ok(()) => return Ok(()),
                Err(Stop::Away(at)) => self.wait_while_away(at),
                Err(Stop::Nothing) => {
                    let bytes = bytes as u64;
                    return Err(OutOfRange { gpa, bytes });
                }
            }
        }
    }

    /// The same without waiting.
    fn try_pieces(
        &self,
        gpa: Gpa,
        bytes: usize,
        kind: Kind,
        work: &mut impl FnMut(*mut u8, Range<usize>),
    ) -> Result<(), Stop> {
        let table = self.table.read();
        let mut offset = 0;
        while offset < bytes {
            offset += locate(&table, gpa, offset..bytes)?.1;
        }
        let mut offset = 0;
        while offset < bytes {
            let (hpa, length) = locate(&table, gpa, offset..bytes)?;
            work(mm::direct(hpa), offset..offset + length);
            if kind == Kind::Write {
                let written = Gpa(gpa.0 + offset as u64);
                table.soil(written);
                self.note_written(written);
            }
            offset += length;
        }
        Ok(())
    }
}

/// Where the first piece of a range of offsets from `gpa` is, and its length.
fn locate<F: TableFormat<Address = Gpa>>(
    table: &Replicas<F, DirectTables>,
    gpa: Gpa,
    range: Range<usize>,
) -> Result<(Hpa, usize), Stop> {
    let at = gpa.checked_add(range.start as u64).ok_or(Stop::Nothing)?;
    match table.first().translate(at) {
        Ok(Lookup::Mapped(leaf)) => {
            let inside = at.0 - leaf.at.0;
            let left = (leaf.size.bytes() - inside).min(range.len() as u64);
            Ok((Hpa(leaf.frame.address().0 + inside), left as usize))
        }
        Ok(Lookup::Frozen { .. }) => Err(Stop::Away(at)),
        _ => Err(Stop::Nothing),
    }
}

impl<F: TableFormat<Address = Gpa>> GuestMemory for GuestRam<F> {
    fn read(&self, gpa: Gpa, buf: &mut [u8]) -> Result<(), OutOfRange> {
        self.pieces(gpa, buf.len(), Kind::Read, |from, range| {
            let Some(to) = buf.get_mut(range) else { return };
            // SAFETY: `from` is the direct map of guest frames that the table's lock keeps mapped, valid for the
            // piece's length. A running guest may change the bytes meanwhile, which is a race with hardware and not
            // with Rust code: the copy is volatile and byte-wise as far as the abstract machine knows, and any
            // value is a valid u8. `to` is the kernel's own and does not overlap guest frames.
            unsafe { copy(to.as_mut_ptr(), from, to.len()) };
        })
    }

    fn write(&self, gpa: Gpa, bytes: &[u8]) -> Result<(), OutOfRange> {
        self.pieces(gpa, bytes.len(), Kind::Write, |to, range| {
            let Some(from) = bytes.get(range) else { return };
            // SAFETY: as in `read`, the other way round; no Rust reference to guest memory exists anywhere.
            unsafe { copy(to, from.as_ptr(), from.len()) };
        })
    }

    fn compare_exchange(
        &self,
        gpa: Gpa,
        width: Width,
        current: u64,
        new: u64,
    ) -> Result<u64, OutOfRange> {
        let bytes = bytes_of(width);
        if !gpa.0.is_multiple_of(bytes as u64) {
            return Err(OutOfRange {
                gpa,
                bytes: bytes as u64,
            });
        }
        let mut held = 0;
        self.pieces(gpa, bytes, Kind::Write, |at, _| {
            // SAFETY: `at` is aligned to the width (checked above, and frames are page-aligned), so the word lies
            // in one frame; the direct map is valid for it. Guests and the kernel access it atomically.
            held = unsafe {
                match width {
                    Width::Bits32 => AtomicU32::from_ptr(at.cast())
                        .compare_exchange(current as u32, new as u32, SeqCst, SeqCst)
                        .map_or_else(u64::from, u64::from),
                    Width::Bits64 => AtomicU64::from_ptr(at.cast())
                        .compare_exchange(current, new, SeqCst, SeqCst)
                        .unwrap_or_else(|held| held),
                }
            };
        })?;
        Ok(held)
    }

    /// In one piece where it is aligned, as page-table entries are: another CPU may be writing it.
    fn read_u64(&self, gpa: Gpa) -> Result<u64, OutOfRange> {
        if !gpa.0.is_multiple_of(8) {
            let mut b = [0; 8];
            self.read(gpa, &mut b)?;
            return Ok(u64::from_le_bytes(b));
        }
        let mut held = 0;
        self.pieces(gpa, 8, Kind::Read, |at, _| {
            // SAFETY: `at` is aligned and its word in one frame, as in `compare_exchange`.
            held = unsafe { AtomicU64::from_ptr(at.cast()) }.load(SeqCst);
        })?;
        Ok(held)
    }

    /// As [`GuestMemory::read_u64`].
    fn read_u32(&self, gpa: Gpa) -> Result<u32, OutOfRange> {
        if !gpa.0.is_multiple_of(4) {
            let mut b = [0; 4];
            self.read(gpa, &mut b)?;
            return Ok(u32::from_le_bytes(b));
        }
        let mut held = 0;
        self.pieces(gpa, 4, Kind::Read, |at, _| {
            // SAFETY: `at` is aligned and its word in one frame, as in `compare_exchange`.
            held = unsafe { AtomicU32::from_ptr(at.cast()) }.load(SeqCst);
        })?;
        Ok(held)
    }

    fn holds(&self, gpa: Gpa) -> bool {
        let found = self.table.read().first().translate(gpa);
        matches!(found, Ok(Lookup::Mapped(_) | Lookup::Frozen { .. }))
    }

    fn size(&self) -> u64 {
        self.bytes_by_node()
            .into_iter()
            .fold(0, u64::saturating_add)
    }
}

/// Leaves of each kind, small and large, that a [`Glimpse`] remembers; each has one place only.
const GLIMPSED: usize = 16;

/// The same memory for somebody who does not wait: a page on the move is no memory, and nothing is written.
///
/// The table's lock is held for reading as long as this lives, which has to be short; so a leaf that was found once stays
/// what it was.
#[derive(Debug)]
pub struct Glimpse<'r, F: TableFormat<Address = Gpa>> {
    ram: &'r GuestRam<F>,
    table: RwLockReadGuard<'r, Replicas<F, DirectTables>>,
    small: [Cell<Glimpsed>; GLIMPSED],
    large: [Cell<Glimpsed>; GLIMPSED],
}

/// A page that was found, of the size of the array that it is in.
#[derive(Clone, Copy, Debug)]
struct Glimpsed {
    number: u64,
    frame: Hpa,
}

impl Glimpsed {
    /// No page has this number.
    const NONE: Self = Self {
        number: u64::MAX,
        frame: Hpa(0),
    };
}

/// Of the places for a size, the one for an address, and the number of its page.
fn glimpsed(
    places: &[Cell<Glimpsed>; GLIMPSED],
    at: Gpa,
    size: PageSize,
) -> (&Cell<Glimpsed>, u64) {
    let [first, ..] = places;
    let number = at.0 / size.bytes();
    (
        places.get(number as usize % GLIMPSED).unwrap_or(first),
        number,
    )
}

impl<F: TableFormat<Address = Gpa>> GuestRam<F> {
    /// The memory as it is just now; `None` while somebody changes the table.
    pub fn glimpse(&self) -> Option<Glimpse<'_, F>> {
        Some(Glimpse {
            ram: self,
            table: self.table.try_read()?,
            small: [const { Cell::new(Glimpsed::NONE) }; GLIMPSED],
            large: [const { Cell::new(Glimpsed::NONE) }; GLIMPSED],
        })
    }
}

impl<F: TableFormat<Address = Gpa>> Glimpse<'_, F> {
    /// Where an address is, and how many bytes are side by side from there on.
    fn find(&self, at: Gpa) -> Option<(Hpa, u64)> {
        for (places, size) in [
            (&self.large, PageSize::Size2M),
            (&self.small, PageSize::Size4K),
        ] {
            let (place, number) = glimpsed(places, at, size);
            let (known, inside) = (place.get(), at.0 % size.bytes());
            if known.number == number {
                return Some((Hpa(known.frame.0 + inside), size.bytes() - inside));
            }
        }
        let Ok(Lookup::Mapped(leaf)) = self.table.first().translate(at) else {
            return None;
        };
        let (places, size) = match leaf.size {
            PageSize::Size4K => (&self.small, PageSize::Size4K),
            PageSize::Size2M | PageSize::Size1G => (&self.large, PageSize::Size2M),
        };
        let there = leaf.frame.address().0 + (at.0 - leaf.at.0);
        let inside = at.0 % size.bytes();
        let (place, number) = glimpsed(places, at, size);
        place.set(Glimpsed {
            number,
            frame: Hpa(there - inside),
        });
        Some((Hpa(there), size.bytes() - inside))
    }

    /// Calls `work` as [`GuestRam::pieces`] does, piece by piece until there is none.
    fn pieces(
        &self,
        gpa: Gpa,
        bytes: usize,
        mut work: impl FnMut(*mut u8, Range<usize>),
    ) -> Result<(), OutOfRange> {
        let mut offset = 0;
        while offset < bytes {
            let at = gpa.checked_add(offset as u64);
            let Some((there, left)) = at.and_then(|at| self.find(at)) else {
                let bytes = bytes as u64;
                return Err(OutOfRange { gpa, bytes });
            };
            let length = left.min((bytes - offset) as u64) as usize;
            let there = mm::direct(there);
            work(there, offset..offset + length);
            offset += length;
        }
        Ok(())
    }
}

impl<F: TableFormat<Address = Gpa>> GuestMemory for Glimpse<'_, F> {
    fn read(&self, gpa: Gpa, buf: &mut [u8]) -> Result<(), OutOfRange> {
        self.pieces(gpa, buf.len(), |from, range| {
            let Some(to) = buf.get_mut(range) else { return };
            // SAFETY: as in `GuestRam::read`; the lock is `self.table`.
            unsafe { copy(to.as_mut_ptr(), from, to.len()) };
        })
    }

    fn read_u64(&self, gpa: Gpa) -> Result<u64, OutOfRange> {
        let mut held = 0u64.to_le_bytes();
        if !gpa.0.is_multiple_of(8) {
            self.read(gpa, &mut held)?;
            return Ok(u64::from_le_bytes(held));
        }
        let mut word = 0;
        self.pieces(gpa, 8, |at, _| {
            // SAFETY: as in `GuestRam::read_u64`; the lock is `self.table`.
            word = unsafe { AtomicU64::from_ptr(at.cast()) }.load(Relaxed);
        })?;
        Ok(word)
    }

    fn write(&self, gpa: Gpa, bytes: &[u8]) -> Result<(), OutOfRange> {
        let bytes = bytes.len() as u64;
        Err(OutOfRange { gpa, bytes })
    }

    fn compare_exchange(
        &self,
        gpa: Gpa,
        width: Width,
        _current: u64,
        _new: u64,
    ) -> Result<u64, OutOfRange> {
        let bytes = bytes_of(width) as u64;
        Err(OutOfRange { gpa, bytes })
    }

    fn holds(&self, gpa: Gpa) -> bool {
        self.find(gpa).is_some()
    }

    fn size(&self) -> u64 {
        self.ram.size()
    }
}

const fn bytes_of(width: Width) -> usize {
    match width {
        Width::Bits32 => 4,
        Width::Bits64 => 8,
    }
}

/// Copies bytes that others may change meanwhile.
///
/// # Safety
/// `to` is valid for writes and `from` for reads of `length` bytes; they do not overlap.
unsafe fn copy(to: *mut u8, from: *const u8, length: usize) {
    // SAFETY: the caller's. `rep movsb` is opaque to the compiler, which therefore assumes nothing about the
    // bytes being stable.
    unsafe {
        core::arch::asm!("rep movsb", inout("rcx") length => _, inout("rdi") to => _, inout("rsi") from => _, options(nostack));
    }
}
