//! Instruction bytes, for processors that do not hand them over.

use super::{Access, AccessKind, PagingState, Privilege, WalkError, translate};
use crate::memory::GuestMemory;

/// Instruction bytes at the instruction pointer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fetched {
    bytes: [u8; 15],
    length: usize,
}

impl Fetched {
    /// The bytes: 15, or fewer if the next page cannot be read.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or(&[])
    }
}

/// Fetches up to 15 instruction bytes from `linear_rip` (CS.base + RIP) on, across a page boundary if
/// the next page is there.
///
/// # Errors
/// [`WalkError`] for the first byte; an unreadable second page merely shortens the result.
pub fn fetch(
    memory: &impl GuestMemory,
    paging: &PagingState,
    linear_rip: u64,
    privilege: Privilege,
) -> Result<Fetched, WalkError> {
    let access = Access {
        kind: AccessKind::Fetch,
        privilege,
    };
    let mut fetched = Fetched {
        bytes: [0; 15],
        length: 0,
    };
    while fetched.length < fetched.bytes.len() {
        let address = linear_rip.wrapping_add(fetched.length as u64);
        let t = match translate(memory, paging, address, access) {
            Ok(t) => t,
            Err(e) if fetched.length == 0 => return Err(e),
            Err(_) => break,
        };
        let room = (fetched.bytes.len() - fetched.length)
            .min(usize::try_from(t.page_left).unwrap_or(usize::MAX));
        let Some(place) = fetched.bytes.get_mut(fetched.length..fetched.length + room) else {
            break;
        };
        if memory.read(t.gpa, place).is_err() {
            if fetched.length == 0 {
                return Err(WalkError::TableOutsideMemory { gpa: t.gpa });
            }
            break;
        }
        fetched.length += room;
    }
    Ok(fetched)
}
