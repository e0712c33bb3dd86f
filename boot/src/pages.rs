//! Memory that outlives the loader.
#![expect(unsafe_code, reason = "firmware hands out memory as addresses")]

use alloc::format;
use core::slice;

use uefi::{
    boot::{self, AllocateType},
    mem::memory_map::MemoryType,
};

use crate::story::Failure;

const PAGE: u64 = 4096;

/// Whole pages of EfiLoaderData, zeroed, never freed: they are handed to the kernel.
#[derive(Debug)]
pub struct Pages {
    bytes: &'static mut [u8],
}

impl Pages {
    /// At least `bytes` bytes (one page if 0), for a purpose that a failure names.
    pub fn allocate(bytes: u64, purpose: &str) -> Result<Self, Failure> {
        let count = bytes.div_ceil(PAGE).max(1);
        let refused = || {
            Failure(format!(
                "firmware has no {} of contiguous memory left for {purpose}: add memory to the machine or remove guest images",
                loader::medium::Size(bytes)
            ))
        };
        let len = usize::try_from(count * PAGE).map_err(|_| refused())?;
        let first = boot::allocate_pages(
            AllocateType::AnyPages,
            MemoryType::LOADER_DATA,
            len / PAGE as usize,
        )
        .map_err(|_| refused())?;
        // SAFETY: firmware gave these `len` bytes to us alone and nobody frees them; writing zeros
        // initialises them, so a slice of bytes over them is valid for the rest of the loader.
        let bytes = unsafe {
            first.as_ptr().write_bytes(0, len);
            slice::from_raw_parts_mut(first.as_ptr(), len)
        };
        Ok(Self { bytes })
    }

    /// Host-physical address of the first byte. UEFI maps memory at its physical address
    /// (UEFI 2.10, 2.3.4 "x64 Platforms").
    pub fn phys(&self) -> u64 {
        self.bytes.as_ptr() as u64
    }

    /// Bytes, a multiple of 4096.
    pub fn len(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// The memory itself.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        self.bytes
    }

    /// The memory, read-only from now on.
    pub fn freeze(self) -> &'static [u8] {
        self.bytes
    }

    /// The memory as an array of `T`, as many as fit.
    ///
    /// `T` must be a plain structure of integers, for which all bytes zero is a value.
    pub fn into_array<T: Plain>(self) -> &'static mut [T] {
        let count = self.bytes.len() / size_of::<T>();
        // SAFETY: the pages are page-aligned, which suffices for every `Plain`; they are zeroed or
        // hold bytes that we wrote, and every bit pattern is a value of a `Plain`; `count` elements
        // fit; the slice is consumed, so the memory is not reached in two ways.
        unsafe { slice::from_raw_parts_mut(self.bytes.as_mut_ptr().cast(), count) }
    }
}

/// Structures of integers without padding that bytes could get lost in.
///
/// # Safety
/// Every bit pattern is a value, and the alignment is at most 4096.
pub unsafe trait Plain {}
// SAFETY: integers only.
unsafe impl Plain for handoff::MemoryRegion {}
// SAFETY: integers only.
unsafe impl Plain for handoff::Module {}
// SAFETY: integers only.
unsafe impl Plain for handoff::BootInfo {}
// SAFETY: integers only.
unsafe impl Plain for loader::tables::Table {}
