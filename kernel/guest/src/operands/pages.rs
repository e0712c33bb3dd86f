//! Where a guest's pages are, remembered for the time of one look.

use crate::memory::GuestMemory;
use crate::walk::{self, Access, AccessKind, PagingState, Privilege};
use core::cell::Cell;
use units::{Gpa, PAGE_BYTES};

/// Pages that are remembered; each has one place only.
const PLACES: usize = 16;

/// One page: its number and what it is used for, and where it is.
#[derive(Clone, Copy)]
struct Place {
    page: u64,
    kind: AccessKind,
    first: Option<Gpa>,
}

impl Place {
    /// No page has this number.
    const NOBODYS: Self = Self {
        page: u64::MAX,
        kind: AccessKind::Read,
        first: None,
    };
}

/// What the guest's page tables say, at one privilege.
pub(super) struct Pages<'m, M> {
    memory: &'m M,
    paging: &'m PagingState,
    privilege: Privilege,
    places: [Cell<Place>; PLACES],
}

impl<'m, M: GuestMemory> Pages<'m, M> {
    pub(super) fn new(memory: &'m M, paging: &'m PagingState, cpl: u8) -> Self {
        Self {
            memory,
            paging,
            privilege: Privilege::of_cpl(cpl),
            places: [const { Cell::new(Place::NOBODYS) }; PLACES],
        }
    }

    /// Where a linear address is, if there is memory and this access is allowed.
    pub(super) fn find(&self, linear: u64, kind: AccessKind) -> Option<Gpa> {
        let (page, inside) = (linear / PAGE_BYTES, linear % PAGE_BYTES);
        let place = self.places.get(page as usize % PLACES)?;
        let known = place.get();
        if known.page == page && known.kind == kind {
            return Some(Gpa(known.first?.0 + inside));
        }
        let first = self.walk(linear - inside, kind);
        place.set(Place { page, kind, first });
        Some(Gpa(first?.0 + inside))
    }

    fn walk(&self, linear: u64, kind: AccessKind) -> Option<Gpa> {
        let privilege = self.privilege;
        let access = Access { kind, privilege };
        let there = walk::peek(self.memory, self.paging, linear, access).ok()?;
        self.memory.holds(there.gpa).then_some(there.gpa)
    }

    pub(super) fn memory(&self) -> &'m M {
        self.memory
    }
}
