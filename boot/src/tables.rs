//! The page tables that the kernel is entered on (SDM 3A 4.5, APM 2 5.3), built in ordinary memory.
//!
//! Pages come from a pool whose host-physical address is known, so the tables can be built before
//! boot services end and tested on a host, where "physical" is any number.
//!
//! Below 4 GiB, where device windows interrupt memory, the direct map uses 2 MiB pages, and 4 KiB
//! pages in the first 2 MiB, where fixed-range MTRRs change every few KiB: one large page over
//! several memory types has no defined type (SDM 3A 12.11.9). Above it uses 1 GiB pages if the
//! CPU has them.

use core::fmt;

use handoff::{DIRECT_MAP_BASE, KERNEL_BASE, LOADER_STACK_BYTES, LOADER_STACK_TOP};

use crate::image::{Rights, Segment};

/// One page of page-table entries.
pub type Table = [u64; 512];

const PRESENT: u64 = 1 << 0;
const WRITABLE: u64 = 1 << 1;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const LEAF: u64 = 1 << 7;
const NO_EXECUTE: u64 = 1 << 63;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

const KIB_4: u64 = 1 << 12;
const MIB_2: u64 = 1 << 21;
const GIB_1: u64 = 1 << 30;
const GIB_4: u64 = 4 << 30;

/// Why a mapping could not be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TableError {
    /// The pool has no page left.
    PoolEmpty,
    /// This virtual address is mapped already.
    Taken(u64),
    /// Address or size is not a multiple of the page size.
    Unaligned(u64),
}

impl fmt::Display for TableError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PoolEmpty => {
                f.write_str("the kernel's first page tables need more pages than were set aside")
            }
            Self::Taken(at) => write!(f, "two things were to be mapped at {at:#x}"),
            Self::Unaligned(at) => write!(f, "{at:#x} is not the start of a page"),
        }
    }
}

/// What the tables have to map.
#[derive(Clone, Copy, Debug)]
pub struct Layout<'a> {
    /// Host-physical address of the kernel image.
    pub kernel_phys: u64,
    /// Its segments.
    pub segments: &'a [Segment],
    /// Host-physical address of the loader's stack, [`LOADER_STACK_BYTES`] long.
    pub stack_phys: u64,
    /// End of the direct map, a multiple of 1 GiB.
    pub direct_map_end: u64,
    /// Framebuffer, first byte and bytes; 0 bytes when there is none.
    pub framebuffer: (u64, u64),
    /// First page of the code that switches tables, and its pages.
    pub jump: (u64, u64),
    /// Whether the CPU has 1 GiB pages (CPUID 8000_0001h EDX bit 26).
    pub gib_pages: bool,
}

impl Layout<'_> {
    /// Pages that suffice for the tables.
    pub fn pool_pages(&self) -> u64 {
        let direct_gib = self.direct_map_end / GIB_1;
        let direct_pd = if self.gib_pages { 4 } else { direct_gib };
        let framebuffer = 6 + self.framebuffer.1 / GIB_1;
        let kernel = 2 + self
            .segments
            .last()
            .map_or(0, |s| s.pages().1)
            .div_ceil(MIB_2);
        let (root, first_pt, stack, jump) = (1, 1, 4, 6);
        root + first_pt
            + stack
            + jump
            + kernel
            + framebuffer
            + direct_pd
            + direct_gib.div_ceil(512)
            + 1
    }

    /// Builds the tables in `pool`, whose first page has host-physical address `pool_phys`.
    /// Returns the value for CR3.
    ///
    /// # Errors
    /// The pool is too small, or two parts of the layout collide.
    pub fn build(&self, pool: &mut [Table], pool_phys: u64) -> Result<u64, TableError> {
        let mut tables = Tables::new(pool, pool_phys)?;
        let data = WRITABLE | NO_EXECUTE;
        tables.map(DIRECT_MAP_BASE, 0, MIB_2, data, KIB_4)?;
        tables.map(DIRECT_MAP_BASE + MIB_2, MIB_2, GIB_4 - MIB_2, data, MIB_2)?;
        let large = if self.gib_pages { GIB_1 } else { MIB_2 };
        let above = self.direct_map_end.saturating_sub(GIB_4);
        tables.map(DIRECT_MAP_BASE + GIB_4, GIB_4, above, data, large)?;
        if let Some((base, bytes)) = self.distant_framebuffer() {
            tables.map(DIRECT_MAP_BASE + base, base, bytes, data, MIB_2)?;
        }
        for segment in self.segments {
            let (start, end) = segment.pages();
            let rights = match segment.rights {
                Rights::Read => NO_EXECUTE,
                Rights::Write => data,
                Rights::Execute => 0,
            };
            tables.map(
                KERNEL_BASE + start,
                self.kernel_phys + start,
                end - start,
                rights,
                KIB_4,
            )?;
        }
        let stack_bottom = LOADER_STACK_TOP - LOADER_STACK_BYTES;
        tables.map(
            stack_bottom,
            self.stack_phys,
            LOADER_STACK_BYTES,
            data,
            KIB_4,
        )?;
        let (jump, pages) = self.jump;
        tables.map(jump, jump, pages * KIB_4, 0, KIB_4)?;
        Ok(pool_phys)
    }

    /// The framebuffer in whole 2 MiB pages, if the direct map does not reach it.
    fn distant_framebuffer(&self) -> Option<(u64, u64)> {
        let (base, bytes) = self.framebuffer;
        let end = base
            .checked_add(bytes)
            .filter(|end| *end > self.direct_map_end)?;
        let start = (base / MIB_2 * MIB_2).max(self.direct_map_end);
        Some((start, end.div_ceil(MIB_2) * MIB_2 - start)).filter(|_| bytes > 0)
    }
}

struct Tables<'p> {
    pool: &'p mut [Table],
    pool_phys: u64,
    used: usize,
}

impl<'p> Tables<'p> {
    fn new(pool: &'p mut [Table], pool_phys: u64) -> Result<Self, TableError> {
        let mut tables = Self {
            pool,
            pool_phys,
            used: 0,
        };
        tables.new_table()?;
        Ok(tables)
    }

    fn new_table(&mut self) -> Result<usize, TableError> {
        let index = self.used;
        self.pool
            .get_mut(index)
            .ok_or(TableError::PoolEmpty)?
            .fill(0);
        self.used += 1;
        Ok(index)
    }

    /// Maps `bytes` from `phys` on at `virt` with leaves of `page` bytes.
    fn map(
        &mut self,
        virt: u64,
        phys: u64,
        bytes: u64,
        rights: u64,
        page: u64,
    ) -> Result<(), TableError> {
        for number in [virt, phys, bytes] {
            if !number.is_multiple_of(page) {
                return Err(TableError::Unaligned(number));
            }
        }
        let large = if page == KIB_4 { 0 } else { LEAF };
        let mut done = 0;
        while done < bytes {
            let at = virt + done;
            let entry = self.leaf_entry(at, page)?;
            if *entry != 0 {
                return Err(TableError::Taken(at));
            }
            *entry = (phys + done) | PRESENT | ACCESSED | DIRTY | large | rights;
            done += page;
        }
        Ok(())
    }

    fn leaf_entry(&mut self, virt: u64, page: u64) -> Result<&mut u64, TableError> {
        let mut table = 0;
        let mut shift = 39;
        while 1 << shift != page {
            let slot = slot(virt, shift);
            let entry = self.entry(table, slot)?;
            table = match *entry {
                0 => {
                    let new = self.new_table()?;
                    let address = self.pool_phys + new as u64 * KIB_4;
                    *self.entry(table, slot)? = address | PRESENT | WRITABLE | ACCESSED;
                    new
                }
                leaf if leaf & LEAF != 0 => return Err(TableError::Taken(virt)),
                next => ((next & ADDRESS) - self.pool_phys) as usize / KIB_4 as usize,
            };
            shift -= 9;
        }
        self.entry(table, slot(virt, shift))
    }

    fn entry(&mut self, table: usize, slot: usize) -> Result<&mut u64, TableError> {
        self.pool
            .get_mut(table)
            .and_then(|t| t.get_mut(slot))
            .ok_or(TableError::PoolEmpty)
    }
}

const fn slot(virt: u64, shift: u32) -> usize {
    (virt >> shift) as usize & 511
}

#[cfg(test)]
#[path = "tables_tests.rs"]
mod tests;
