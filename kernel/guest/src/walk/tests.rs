use super::*;
use crate::entry::{CR0_PG, CR0_WP, CR4_PAE, CR4_PSE, EFER_LMA, EFER_NXE};
use crate::memory::{OutOfRange, VecMemory};
use crate::shape::VmShape;
use alloc::vec::Vec;
use core::cell::Cell;
use proptest::prelude::*;

fn memory() -> VecMemory {
    VecMemory::new(&VmShape::simple(1, 16 << 20).expect("a valid shape").memory)
}

const P: u64 = 1;
const W: u64 = 2;
const U: u64 = 4;
const A: u64 = 0x20;
const D: u64 = 0x40;
const PS: u64 = 0x80;
const NX: u64 = 1 << 63;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Legacy,
    Pae,
    Four,
    Five,
}

/// (levels, index bits, entry bytes)
fn geometry(kind: Kind) -> (u32, u32, u64) {
    match kind {
        Kind::Legacy => (2, 10, 4),
        Kind::Pae => (3, 9, 8),
        Kind::Four => (4, 9, 8),
        Kind::Five => (5, 9, 8),
    }
}

fn state(kind: Kind) -> PagingState {
    let (cr4, efer) = match kind {
        Kind::Legacy => (CR4_PSE, 0),
        Kind::Pae => (CR4_PAE, EFER_NXE),
        Kind::Four => (CR4_PAE, EFER_NXE | EFER_LMA),
        Kind::Five => (CR4_PAE | CR4_LA57, EFER_NXE | EFER_LMA),
    };
    PagingState {
        cr0: CR0_PG | CR0_WP | 1,
        cr3: ROOT,
        cr4,
        efer,
        rflags: 2,
        pkru: 0,
        physical_bits: 40,
    }
}

/// Tables of successive levels lie at 2 MiB and every 4 KiB after it.
const ROOT: u64 = 0x20_0000;
const PAGE: u64 = 0x40_0000;

/// Maps `address` through one table a level, root first, with `flags` in each entry. A list that is
/// shorter than the mode's levels ends in a large page.
fn map(m: &VecMemory, kind: Kind, address: u64, flags: &[u64]) -> Vec<Gpa> {
    let (levels, bits, bytes) = geometry(kind);
    let mut places = Vec::new();
    for (i, f) in flags.iter().enumerate() {
        let level = levels - i as u32;
        let index = address >> (12 + (level - 1) * bits) & ((1 << bits) - 1);
        let place = Gpa(ROOT + i as u64 * 4096 + index * bytes);
        let target = if i + 1 == flags.len() {
            PAGE
        } else {
            ROOT + (i as u64 + 1) * 4096
        };
        m.write(place, &(target | f).to_le_bytes()[..bytes as usize])
            .expect("table memory");
        places.push(place);
    }
    places
}

const fn access(kind: AccessKind, privilege: Privilege) -> Access {
    Access { kind, privilege }
}

const READ: Access = access(AccessKind::Read, Privilege::Supervisor);
const WRITE: Access = access(AccessKind::Write, Privilege::Supervisor);
const USER_READ: Access = access(AccessKind::Read, Privilege::User);
const FETCH: Access = access(AccessKind::Fetch, Privilege::Supervisor);

fn code(r: Result<Translation, WalkError>) -> u32 {
    match r {
        Err(WalkError::PageFault { error_code, .. }) => error_code,
        other => panic!("not a page fault: {other:?}"),
    }
}

#[test]
fn without_paging_an_address_is_itself() {
    let p = PagingState {
        cr0: 1,
        ..state(Kind::Four)
    };
    let t = translate(&memory(), &p, 0x1_0000_1234, USER_READ).expect("no paging");
    assert_eq!(
        t,
        Translation {
            gpa: Gpa(0x1234),
            page_left: 0xDCC
        }
    );
}

#[test]
fn every_mode_finds_small_and_large_pages() {
    for (kind, address) in [
        (Kind::Legacy, 0xC012_3456),
        (Kind::Pae, 0xC012_3456),
        (Kind::Four, 0xFFFF_8000_1234_5678),
        (Kind::Five, 0xFF00_1234_5678_9ABC),
    ] {
        let levels = geometry(kind).0 as usize;
        let m = memory();
        let mut flags = alloc::vec![P | W | U; levels];
        if kind == Kind::Pae {
            flags[0] = P;
        }
        map(&m, kind, address, &flags);
        let t = translate(&m, &state(kind), address, READ).expect("mapped");
        assert_eq!(
            t,
            Translation {
                gpa: Gpa(PAGE | address & 0xFFF),
                page_left: 4096 - (address & 0xFFF)
            },
            "{kind:?}"
        );

        let m = memory();
        flags.pop();
        flags[levels - 2] |= PS;
        map(&m, kind, address, &flags);
        let mask = if kind == Kind::Legacy {
            0x3F_FFFF
        } else {
            0x1F_FFFF
        };
        let t = translate(&m, &state(kind), address, READ).expect("mapped");
        assert_eq!(t.gpa, Gpa(PAGE | address & mask), "{kind:?}");
        assert_eq!(t.page_left, mask + 1 - (address & mask));
    }
}

#[test]
fn a_gibibyte_page_and_pse_36_reach_high_memory() {
    let m = memory();
    let address = 0x40_8765_4321;
    let places = map(&m, Kind::Four, address, &[P | W, P | W | PS]);
    m.write(places[1], &(0x80_C000_0000u64 | P | W | PS).to_le_bytes())
        .expect("table memory");
    assert_eq!(
        translate(&m, &state(Kind::Four), address, READ)
            .expect("mapped")
            .gpa,
        Gpa(0x80_C765_4321)
    );

    let m = memory();
    // Bits 39:32 of the frame are bits 20:13 of the entry.
    m.write(
        Gpa(ROOT),
        &(0x0040_0000u32 | 0x12 << 13 | 0x83).to_le_bytes(),
    )
    .expect("table memory");
    assert_eq!(
        translate(&m, &state(Kind::Legacy), 0x1_2345, READ)
            .expect("mapped")
            .gpa,
        Gpa(0x12_0041_2345)
    );
}

#[test]
fn accessed_and_dirty_bits_are_set_where_the_processor_sets_them() {
    for kind in [Kind::Legacy, Kind::Pae, Kind::Four, Kind::Five] {
        let m = memory();
        let levels = geometry(kind).0 as usize;
        let mut flags = alloc::vec![P | W | U; levels];
        if kind == Kind::Pae {
            flags[0] = P;
        }
        let places = map(&m, kind, 0x1234, &flags);
        let bits = |i: usize| u64::from(m.read_u32(places[i]).expect("table memory")) & (A | D);
        translate(&m, &state(kind), 0x1234, READ).expect("mapped");
        for i in 0..levels {
            let wanted = if kind == Kind::Pae && i == 0 { 0 } else { A };
            assert_eq!(bits(i), wanted, "{kind:?} level {i} after a read");
        }
        translate(&m, &state(kind), 0x1234, WRITE).expect("mapped");
        assert_eq!(bits(levels - 1), A | D);
        assert_eq!(bits(levels - 2) & D, 0, "only the leaf gets dirty");
    }
}

#[test]
fn a_fault_sets_nothing_and_says_why() {
    let m = memory();
    let places = map(
        &m,
        Kind::Four,
        0x1000,
        &[P | W | U, P | W | U, P | U, P | W | U],
    );
    let s = state(Kind::Four);
    assert_eq!(
        code(translate(&m, &s, 0x1000, WRITE)),
        error_code::PRESENT | error_code::WRITE
    );
    assert!(
        places
            .iter()
            .all(|p| m.read_u64(*p).expect("table memory") & (A | D) == 0)
    );
    assert_eq!(code(translate(&m, &s, 0x2000, WRITE)), error_code::WRITE);
    assert_eq!(
        code(translate(
            &m,
            &s,
            0x2000,
            access(AccessKind::Fetch, Privilege::User)
        )),
        error_code::FETCH | error_code::USER
    );
    let no_nx = PagingState {
        efer: EFER_LMA,
        ..s
    };
    assert_eq!(
        code(translate(&m, &no_nx, 0x2000, FETCH)),
        0,
        "the fetch flag needs no-execute or SMEP"
    );
    for address in [0x8000_0000_0000, 0xFFFF_7FFF_FFFF_FFFF] {
        assert_eq!(
            translate(&m, &s, address, READ),
            Err(WalkError::NonCanonical { address })
        );
    }
    let lost = PagingState {
        cr3: 0xFE00_0000,
        ..s
    };
    assert_eq!(
        translate(&m, &lost, 0, READ),
        Err(WalkError::TableOutsideMemory {
            gpa: Gpa(0xFE00_0000)
        })
    );
}

#[test]
fn reserved_bits_fault() {
    let reserved = error_code::PRESENT | error_code::RESERVED;
    let whole = |kind, level: usize, extra: u64, nxe: bool| {
        let m = memory();
        let mut flags = alloc::vec![P | W | U; geometry(kind).0 as usize];
        if kind == Kind::Pae {
            flags[0] = P;
        }
        flags[level] |= extra;
        if extra & PS != 0 && level >= 1 {
            flags.truncate(level + 1);
        }
        map(&m, kind, 0, &flags);
        let mut s = state(kind);
        if !nxe {
            s.efer &= !EFER_NXE;
        }
        translate(&m, &s, 0, READ)
    };
    // Above the physical width; PS in the top level; PAE's pointer entries; no-execute when it is off;
    // between frame and flags of a large page.
    for (kind, level, extra, nxe) in [
        (Kind::Four, 3, 1 << 40, true),
        (Kind::Four, 0, 1 << 51, true),
        (Kind::Four, 0, PS, true),
        (Kind::Five, 1, PS, true),
        (Kind::Pae, 0, W, true),
        (Kind::Pae, 1, 1 << 62, true),
        (Kind::Four, 3, NX, false),
        (Kind::Four, 2, PS | 1 << 13, true),
    ] {
        assert_eq!(
            code(whole(kind, level, extra, nxe)),
            reserved,
            "{kind:?} level {level} {extra:#x}"
        );
    }
    assert!(
        whole(Kind::Four, 3, 1 << 62, true).is_ok(),
        "ignored in long mode"
    );
    assert!(
        whole(Kind::Four, 2, PS | 1 << 12, true).is_ok(),
        "the PAT bit"
    );
    let m = memory();
    m.write(Gpa(ROOT), &(0x0040_0000u32 | 1 << 21 | 0x83).to_le_bytes())
        .expect("table memory");
    assert_eq!(code(translate(&m, &state(Kind::Legacy), 0, READ)), reserved);
}

#[test]
fn protection_keys_hold_for_user_pages() {
    let m = memory();
    let places = map(&m, Kind::Four, 0, &[P | W | U; 4]);
    m.write(places[3], &(PAGE | P | W | U | 5 << 59).to_le_bytes())
        .expect("table memory");
    let with = |pkru, cr0| PagingState {
        pkru,
        cr0,
        cr4: CR4_PAE | CR4_PKE,
        ..state(Kind::Four)
    };
    let wp = CR0_PG | CR0_WP;
    let key = error_code::PRESENT | error_code::PROTECTION_KEY;
    assert_eq!(code(translate(&m, &with(1 << 10, wp), 0, READ)), key);
    assert_eq!(
        code(translate(&m, &with(1 << 11, wp), 0, WRITE)),
        key | error_code::WRITE
    );
    assert!(translate(&m, &with(1 << 11, wp), 0, READ).is_ok());
    assert!(
        translate(&m, &with(1 << 11, CR0_PG), 0, WRITE).is_ok(),
        "write-disable needs CR0.WP for the supervisor"
    );
    assert!(
        translate(&m, &with(!(3 << 10), wp), 0, WRITE).is_ok(),
        "other keys"
    );
    assert!(
        translate(&m, &with(1 << 10, wp), 0, FETCH).is_ok(),
        "fetches have no key"
    );
}

/// Memory in which another processor changes the leaf just before each compare-exchange.
struct Racing<'a> {
    inner: &'a VecMemory,
    races: Cell<u32>,
    place: Gpa,
}

impl GuestMemory for Racing<'_> {
    fn read(&self, gpa: Gpa, buf: &mut [u8]) -> Result<(), OutOfRange> {
        self.inner.read(gpa, buf)
    }
    fn write(&self, gpa: Gpa, bytes: &[u8]) -> Result<(), OutOfRange> {
        self.inner.write(gpa, bytes)
    }
    fn compare_exchange(
        &self,
        gpa: Gpa,
        width: Width,
        current: u64,
        new: u64,
    ) -> Result<u64, OutOfRange> {
        if gpa == self.place && self.races.get() > 0 {
            self.races.set(self.races.get() - 1);
            // Another page, not accessed yet.
            self.inner.write(
                gpa,
                &((PAGE + 0x1000 * u64::from(self.races.get())) | P | W | U).to_le_bytes(),
            )?;
        }
        self.inner.compare_exchange(gpa, width, current, new)
    }
    fn size(&self) -> u64 {
        self.inner.size()
    }
}

#[test]
fn a_lost_race_walks_again_and_ends() {
    let m = memory();
    let places = map(&m, Kind::Four, 0, &[P | W | U; 4]);
    m.write(places[3], &((PAGE + 0x9000) | P | W | U).to_le_bytes())
        .expect("table memory");
    let racing = |races| Racing {
        inner: &m,
        races: Cell::new(races),
        place: places[3],
    };
    let t = translate(&racing(3), &state(Kind::Four), 0, WRITE).expect("settles");
    assert_eq!(t.gpa, Gpa(PAGE), "what the entry said last");
    m.write(places[3], &(PAGE | P | W | U).to_le_bytes())
        .expect("table memory");
    assert_eq!(
        translate(&racing(10_000), &state(Kind::Four), 0, WRITE),
        Err(WalkError::Unstable { address: 0 })
    );
}

#[test]
fn a_fetch_crosses_pages_and_stops_at_a_missing_one() {
    let m = memory();
    let places = map(&m, Kind::Four, 0x1000, &[P | W | U; 4]);
    m.write(Gpa(PAGE + 0xFFA), &[1, 2, 3, 4, 5, 6])
        .expect("memory");
    let s = state(Kind::Four);
    let f = fetch(&m, &s, 0x1FFA, Privilege::Supervisor).expect("the first page");
    assert_eq!(f.bytes(), [1, 2, 3, 4, 5, 6]);
    // Not the neighbour in physical memory.
    m.write(Gpa(places[3].0 + 8), &(0x80_0000u64 | P).to_le_bytes())
        .expect("table memory");
    m.write(Gpa(0x80_0000), &[7, 8, 9, 10, 11, 12, 13, 14, 15])
        .expect("memory");
    let f = fetch(&m, &s, 0x1FFA, Privilege::Supervisor).expect("both pages");
    assert_eq!(f.bytes(), (1..=15).collect::<Vec<u8>>());
    assert!(fetch(&m, &s, 0x3000, Privilege::Supervisor).is_err());
}

/// SDM 3A 4.6 in its own words: what the rights of a path allow.
fn model(path: &[u64], s: &PagingState, a: Access) -> bool {
    let user_address = path.iter().all(|e| e & U != 0);
    let all_writable = path.iter().all(|e| e & W != 0);
    let any_nx = path.iter().any(|e| e & NX != 0);
    let wp = s.cr0 & CR0_WP != 0;
    let smap = s.cr4 & CR4_SMAP != 0;
    let smep = s.cr4 & CR4_SMEP != 0;
    let ac = s.rflags & RFLAGS_AC != 0;
    match (a.privilege, a.kind) {
        // "Access rights depend on the mode of a linear address and on the mode of the access."
        (Privilege::Supervisor, AccessKind::Read) => !user_address || !smap || ac,
        (Privilege::Supervisor, AccessKind::Write) => {
            let rights = if wp { all_writable } else { true };
            if user_address {
                rights && (!smap || ac)
            } else {
                rights
            }
        }
        (Privilege::Supervisor, AccessKind::Fetch) => !(any_nx || user_address && smep),
        (Privilege::User, AccessKind::Read) => user_address,
        (Privilege::User, AccessKind::Write) => user_address && all_writable,
        (Privilege::User, AccessKind::Fetch) => user_address && !any_nx,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn rights_agree_with_the_manual(
        rights in proptest::collection::vec(0u8..16, 4),
        controls: [bool; 4],
        kind in 0usize..3,
        user: bool,
        address in 0u64..1 << 47,
    ) {
        // Mostly permissive entries, so that each restriction gets to decide.
        let flags: Vec<u64> = rights
            .iter()
            .map(|r| P | if r & 3 == 0 { 0 } else { W } | if r & 12 == 0 { 0 } else { U } | if *r == 15 { NX } else { 0 })
            .collect();
        let m = memory();
        map(&m, Kind::Four, address, &flags);
        let mut s = state(Kind::Four);
        let [wp, smap, smep, ac] = controls;
        if !wp { s.cr0 &= !CR0_WP; }
        if smap { s.cr4 |= CR4_SMAP; }
        if smep { s.cr4 |= CR4_SMEP; }
        if ac { s.rflags |= RFLAGS_AC; }
        let a = access(
            [AccessKind::Read, AccessKind::Write, AccessKind::Fetch][kind],
            if user { Privilege::User } else { Privilege::Supervisor },
        );
        let r = translate(&m, &s, address, a);
        if model(&flags, &s, a) {
            prop_assert_eq!(r.map(|t| t.gpa), Ok(Gpa(PAGE | address & 0xFFF)));
        } else {
            let expected = error_code::PRESENT
                | if user { error_code::USER } else { 0 }
                | match a.kind {
                    AccessKind::Read => 0,
                    AccessKind::Write => error_code::WRITE,
                    AccessKind::Fetch => error_code::FETCH,
                };
            prop_assert_eq!(r, Err(WalkError::PageFault { address, error_code: expected }));
        }
    }

    /// Tables and registers full of noise.
    #[test]
    fn any_tables_give_an_answer(words: Vec<u64>, s: [u64; 5], pkru: u32, bits: u8, address: u64, kind in 0usize..3, user: bool) {
        let m = memory();
        for (i, w) in words.iter().enumerate() {
            // Entries that lead back into the tables make long walks.
            let w = if w % 3 == 0 { w & 0xFFF | ROOT | 1 } else { *w };
            let at = ROOT + (address >> (i % 40)) % 512 * 8;
            m.write(Gpa(at), &w.to_le_bytes()).expect("table memory");
        }
        let [cr0, cr3, cr4, efer, rflags] = s;
        for cr3 in [cr3, ROOT] {
            let p = PagingState { cr0, cr3, cr4, efer, rflags, pkru, physical_bits: bits };
            let privilege = if user { Privilege::User } else { Privilege::Supervisor };
            let a = access([AccessKind::Read, AccessKind::Write, AccessKind::Fetch][kind], privilege);
            if let Ok(t) = translate(&m, &p, address, a) {
                prop_assert_eq!(t.gpa.0 & 0xFFF, address & 0xFFF);
                prop_assert!(t.page_left > 0);
            }
            let _ = fetch(&m, &p, address, privilege);
        }
    }
}
