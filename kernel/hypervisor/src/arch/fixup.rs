//! Instructions that are allowed to fault, and where to go on when they do.
//!
//! `rdmsr` of a register that a model lacks raises #GP. Asking CPUID first is not always possible
//! (many model-specific registers have no CPUID bit), so the few places that probe register a pair
//! (faulting instruction, continuation) in the section `.fixup`, and [`super::trap`] looks an
//! exception's address up there before it calls the exception a bug.
#![expect(
    unsafe_code,
    reason = "reads a table whose bounds only the linker knows"
)]

/// One entry, as the probing assembly writes it: two distances from the field's own address, so
/// that the table needs no relocation.
#[repr(C)]
struct Entry {
    faulting: i32,
    resume: i32,
}

unsafe extern "C" {
    static __fixup_start: [Entry; 0];
    static __fixup_end: [Entry; 0];
}

/// The address behind a field's self-relative distance.
fn target(field: &i32) -> u64 {
    (core::ptr::from_ref(field) as u64).wrapping_add_signed(i64::from(*field))
}

/// Where to continue after a fault at `rip`, if the instruction there is allowed to fault.
pub fn lookup(rip: u64) -> Option<u64> {
    // SAFETY: kernel.ld puts both symbols at the ends of one array of `Entry` (8 bytes each,
    // 8-aligned section) in the read-only segment, which stays mapped for ever.
    let table = unsafe {
        let start = (&raw const __fixup_start).cast::<Entry>();
        let end = (&raw const __fixup_end).cast::<Entry>();
        core::slice::from_raw_parts(start, end.offset_from_unsigned(start))
    };
    table
        .iter()
        .find(|e| target(&e.faulting) == rip)
        .map(|e| target(&e.resume))
}
