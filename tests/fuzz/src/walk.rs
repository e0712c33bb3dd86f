//! The guest's page tables, walked by software.

use crate::Input;
use crate::memory::SmallMemory;
use guest::walk::{
    Access, AccessKind, PagingState, Privilege, WalkError, error_code, fetch, translate,
};

/// Bytes of memory: the tables refer to each other.
const MEMORY: usize = 4 * 4096;
const ACCESSED_DIRTY: u64 = 0x60;

/// Registers, addresses, then the pattern that fills memory.
pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let paging = paging(&mut input);
    let address = address(&mut input);
    let access = Access {
        kind: input.choice(&[AccessKind::Read, AccessKind::Write, AccessKind::Fetch]),
        privilege: input.choice(&[Privilege::User, Privilege::Supervisor]),
    };
    let memory = SmallMemory::filled(MEMORY, input.rest());
    let before = memory.0.borrow().clone();
    let first = translate(&memory, &paging, address, access);
    let after = memory.0.borrow().clone();
    // Whatever comes out, only accessed and dirty bits are set, and none is cleared. Even a walk that faults may have
    // set some: where tables contain each other, its own bits make it begin again.
    for (old, new) in before.chunks(8).zip(after.chunks(8)) {
        let word = |bytes: &[u8]| bytes.iter().rev().fold(0, |w, b| w << 8 | u64::from(*b));
        let (old, new) = (word(old), word(new));
        let changed = old ^ new;
        assert_eq!(changed & !(ACCESSED_DIRTY | ACCESSED_DIRTY << 32), 0);
        assert_eq!(new & changed, changed);
    }
    match first {
        Ok(to) => {
            assert!((1..=1 << 30).contains(&to.page_left));
            let limit = 1u64 << paging.physical_bits.clamp(32, 52);
            assert!(to.gpa.0 < limit.max(1 << 40), "{:#x}", to.gpa.0);
            if access.kind != AccessKind::Write {
                // Without a store no dirty bit: bit 6 stays everywhere.
                assert!(
                    before
                        .iter()
                        .zip(&after)
                        .all(|(old, new)| (old ^ new) & 0x40 == 0)
                );
            }
            // The bits that were set may be bits of other entries on the path; where the path is the same,
            // so is the result.
            if before == after {
                assert_eq!(translate(&memory, &paging, address, access), Ok(to));
            }
        }
        Err(error) => {
            if let WalkError::PageFault {
                error_code: code, ..
            } = error
            {
                let write = access.kind == AccessKind::Write;
                assert_eq!(code & error_code::WRITE != 0, write);
                let user = access.privilege == Privilege::User;
                assert_eq!(code & error_code::USER != 0, user);
            }
            assert!(!error.to_string().is_empty());
        }
    }
    if let Ok(code) = fetch(&memory, &paging, address, access.privilege) {
        assert!((1..=15).contains(&code.bytes().len()));
    }
}

/// Registers as a guest may have set them, roots within memory.
pub fn paging(input: &mut Input<'_>) -> PagingState {
    let mode = input.u8();
    let cr4 = u64::from(input.u32());
    let lma = mode & 2 != 0;
    PagingState {
        cr0: 1 | u64::from(mode & 1) << 31 | u64::from(mode & 4 != 0) << 16,
        cr3: u64::from(input.u16()),
        // Long mode has PAE.
        cr4: if lma { cr4 | 1 << 5 } else { cr4 },
        efer: u64::from(lma) << 10 | u64::from(lma) << 8 | u64::from(mode & 8 != 0) << 11,
        rflags: 2 | u64::from(mode & 16 != 0) << 18,
        pkru: input.u32(),
        physical_bits: input.choice(&[36, 39, 40, 46, 48, 52]),
    }
}

/// Small, near the ends of halves, or anything.
fn address(input: &mut Input<'_>) -> u64 {
    let offset = input.u64();
    match input.u8() % 4 {
        0 => offset & 0xFFFF,
        1 => (offset & 0xFFFF).wrapping_neg(),
        2 => offset << 16 >> 16,
        _ => offset,
    }
}
