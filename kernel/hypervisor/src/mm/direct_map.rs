//! Between host-physical addresses and pointers.
#![expect(
    unsafe_code,
    reason = "the bounds of the kernel image are symbols of the linker"
)]

use core::ptr;
use core::sync::atomic::{AtomicU64, Ordering};

use handoff::{BootInfo, DIRECT_MAP_BASE};
use units::Hpa;

static END: AtomicU64 = AtomicU64::new(0);
static KERNEL_PHYS: AtomicU64 = AtomicU64::new(0);

unsafe extern "C" {
    static __kernel_start: u8;
    static __kernel_end: u8;
}

/// Learns how far the direct map reaches and where the kernel lies.
pub(super) fn init(info: &BootInfo) {
    KERNEL_PHYS.store(info.kernel_phys, Ordering::Relaxed);
    END.store(info.direct_map_end, Ordering::Relaxed);
}

/// Where the direct map shows host-physical `at`; null beyond its end. Whether something is mapped
/// there, and with which rights, is the page tables' business: all allocatable memory is, writable.
pub fn direct(at: Hpa) -> *mut u8 {
    if at.0 < END.load(Ordering::Relaxed) {
        (DIRECT_MAP_BASE + at.0) as *mut u8
    } else {
        ptr::null_mut()
    }
}

/// Where the direct map would show a device's registers or pixels at `at`, mapped or not: for devices beyond
/// the end of memory too, which `arch::paging` maps one by one.
pub fn device(at: Hpa) -> *mut u8 {
    DIRECT_MAP_BASE.wrapping_add(at.0) as *mut u8
}

/// The host-physical address of something in the direct map (all of the heap is) or in the kernel
/// image (statics); `None` for stacks, whose frames need not be neighbours, and everything else.
pub fn hpa_of(pointer: *const u8) -> Option<Hpa> {
    let address = pointer as u64;
    if let Some(offset) = address.checked_sub(DIRECT_MAP_BASE)
        && offset < END.load(Ordering::Relaxed)
    {
        return Some(Hpa(offset));
    }
    let (start, end) = (
        &raw const __kernel_start as u64,
        &raw const __kernel_end as u64,
    );
    (start..end)
        .contains(&address)
        .then(|| Hpa(KERNEL_PHYS.load(Ordering::Relaxed) + (address - start)))
}
