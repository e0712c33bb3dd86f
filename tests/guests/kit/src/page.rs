//! Small pages that a test may break: a window of 4 KiB pages at [`WINDOW`], apart from the identity map.

use core::cell::UnsafeCell;

use crate::cpu;

/// Where the window begins.
pub const WINDOW: u64 = 0x80_0000_0000;
/// Pages of the window.
pub const PAGES: u64 = 512;
/// Bytes of a page.
pub const BYTES: u64 = 4096;

/// Present.
pub const PRESENT: u64 = 1;
/// Writable.
pub const WRITE: u64 = 2;
/// The user's.
pub const USER: u64 = 4;
/// Accessed.
pub const ACCESSED: u64 = 1 << 5;
/// Dirty.
pub const DIRTY: u64 = 1 << 6;
/// A large leaf.
pub const LARGE: u64 = 1 << 7;
/// Not executable.
pub const NO_EXECUTE: u64 = 1 << 63;

#[repr(C, align(4096))]
struct Table(UnsafeCell<[u64; 512]>);
// SAFETY: entries are written as whole words, by tests that know who else is there.
unsafe impl Sync for Table {}

static TABLES: [Table; 3] = [const { Table(UnsafeCell::new([0; 512])) }; 3];

unsafe extern "C" {
    static mut kit_pml4: [u64; 512];
}

fn table(level: usize) -> *mut u64 {
    TABLES[level].0.get().cast()
}

/// The window's page `index` shows physical `address` with `bits` of an entry; 0 bits take it away.
pub fn set(index: u64, address: u64, bits: u64) {
    let all = PRESENT | WRITE | USER;
    // SAFETY: our own tables, in their own slot of the top table.
    unsafe {
        (&raw mut kit_pml4)
            .cast::<u64>()
            .add(1)
            .write_volatile(table(0) as u64 | all);
        table(0).write_volatile(table(1) as u64 | all);
        table(1).write_volatile(table(2) as u64 | all);
        table(2)
            .add((index % PAGES) as usize)
            .write_volatile(address | bits);
    }
    cpu::invlpg(at(index));
}

/// The entry of the window's page `index` as it stands.
pub fn entry(index: u64) -> u64 {
    // SAFETY: our own table.
    unsafe { table(2).add((index % PAGES) as usize).read_volatile() }
}

/// Writes the entry without dropping the translation.
pub fn set_entry(index: u64, entry: u64) {
    // SAFETY: our own table.
    unsafe { table(2).add((index % PAGES) as usize).write_volatile(entry) };
}

/// The address of the window's page `index`.
pub fn at(index: u64) -> u64 {
    WINDOW + (index % PAGES) * BYTES
}

/// A page of memory of a test's own.
#[repr(C, align(4096))]
#[derive(Debug)]
pub struct Page(UnsafeCell<[u8; 4096]>);
// SAFETY: plain memory; tests agree among themselves.
unsafe impl Sync for Page {}

impl Page {
    /// A page of zeros.
    #[expect(clippy::new_without_default, reason = "statics need a const function")]
    pub const fn new() -> Self {
        Self(UnsafeCell::new([0; 4096]))
    }

    /// Its address, which is also its physical one.
    pub fn address(&self) -> u64 {
        self.0.get() as u64
    }
}
