extern crate std;
use super::*;
use proptest::prelude::*;
use std::{vec, vec::Vec};

const WB: u64 = ATTRIBUTE_WB;

#[test]
fn every_uefi_type_has_a_defined_use() {
    use MemoryKind::*;
    let expected = [
        Reserved,
        Handoff,
        Handoff,
        Usable,
        Usable,
        Runtime,
        Runtime,
        Usable,
        Reserved,
        AcpiReclaim,
        AcpiNvs,
        Mmio,
        Mmio,
        Reserved,
        Reserved,
        Reserved,
    ];
    for (uefi_type, kind) in (0..).zip(expected) {
        assert_eq!(classify(uefi_type, WB), kind, "type {uefi_type}");
    }
    for unknown in [16, 0x6fff_ffff, 0x7000_0000, 0x8000_0000, u32::MAX] {
        assert_eq!(classify(unknown, WB), Reserved);
    }
}

#[test]
fn attributes_take_memory_away_and_never_give_it() {
    assert_eq!(classify(7, WB | ATTRIBUTE_SP), MemoryKind::Reserved);
    assert_eq!(classify(7, WB | ATTRIBUTE_NV), MemoryKind::Reserved);
    assert_eq!(classify(7, 0), MemoryKind::Reserved);
    assert_eq!(classify(4, WB | ATTRIBUTE_RUNTIME), MemoryKind::Runtime);
    assert_eq!(classify(11, ATTRIBUTE_RUNTIME), MemoryKind::Mmio);
    for uefi_type in 0..20 {
        for bit in 0..64 {
            let plain = rank(classify(uefi_type, WB));
            assert!(
                rank(classify(uefi_type, WB | 1 << bit)) >= plain,
                "type {uefi_type} bit {bit}"
            );
        }
    }
}

#[test]
fn own_ranges_are_carved_out_of_loader_memory() {
    let mut room = [EMPTY; 8];
    let mut map = Map::new(&mut room);
    map.add_firmware(0x10_0000, 256, 7, WB).expect("room");
    map.add_firmware(0x20_0000, 16, 2, WB).expect("room");
    map.add_own(0x20_2000, 0x2000, MemoryKind::Kernel)
        .expect("room");
    map.add_own(0x20_4000, 0x1001, MemoryKind::Module)
        .expect("room");
    let found: Vec<_> = map
        .finish()
        .iter()
        .map(|r| (r.base, r.bytes, r.kind()))
        .collect();
    assert_eq!(
        found,
        [
            (0x10_0000, 0x10_0000, MemoryKind::Usable),
            (0x20_0000, 0x2000, MemoryKind::Handoff),
            (0x20_2000, 0x2000, MemoryKind::Kernel),
            (0x20_4000, 0x2000, MemoryKind::Module),
            (0x20_6000, 0xa000, MemoryKind::Handoff),
        ]
    );
}

#[test]
fn neighbours_join_only_when_they_agree() {
    let mut room = [EMPTY; 8];
    let mut map = Map::new(&mut room);
    map.add_firmware(0x3000, 1, 7, WB).expect("room");
    map.add_firmware(0x1000, 2, 7, WB).expect("room");
    map.add_firmware(0x4000, 1, 4, WB).expect("room");
    map.add_firmware(0x6000, 1, 4, WB).expect("room");
    let found: Vec<_> = map.finish().iter().map(|r| (r.base, r.bytes)).collect();
    assert_eq!(
        found,
        [(0x1000, 0x3000), (0x4000, 0x1000), (0x6000, 0x1000)]
    );
}

#[test]
fn a_full_map_is_an_error_and_no_panic() {
    let mut room = [EMPTY; 1];
    let mut map = Map::new(&mut room);
    map.add_firmware(0x1000, 1, 7, WB).expect("room");
    assert_eq!(map.add_firmware(0x9000, 1, 7, WB), Err(MapFull { room: 1 }));
}

#[test]
fn the_direct_map_reaches_the_last_byte_of_memory_but_not_distant_reserved_ranges() {
    let region = |base, bytes, kind| MemoryRegion {
        base,
        bytes,
        kind: kind as u32,
        uefi_type: 0,
        attributes: 0,
    };
    assert_eq!(direct_map_end(&[]), 4 << 30);
    let far = region(0xfd_0000_0000, 3 << 30, MemoryKind::Reserved);
    assert_eq!(
        direct_map_end(&[region(4 << 30, 4096, MemoryKind::Usable), far]),
        5 << 30
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Against a model with one entry a page: every page has the highest rank claimed for it.
    #[test]
    fn the_more_careful_statement_wins_on_every_page(
        claims in prop::collection::vec((0u64..60, 1u64..20, 0u32..16), 0..24)
    ) {
        let mut model: Vec<Option<u8>> = vec![None; 80];
        let mut room = vec![EMPTY; 160];
        let mut map = Map::new(&mut room);
        for (first, pages, uefi_type) in claims {
            map.add_firmware(first * PAGE, pages, uefi_type, WB).expect("room");
            let claim = rank(classify(uefi_type, WB));
            for page in &mut model[first as usize..(first + pages) as usize] {
                *page = Some(page.map_or(claim, |old| old.max(claim)));
            }
        }
        let regions = map.finish();
        prop_assert!(regions.windows(2).all(|w| w[0].end() <= w[1].base));
        prop_assert!(regions.iter().all(|r| r.bytes > 0));
        for (page, expected) in model.iter().enumerate() {
            let at = page as u64 * PAGE;
            let found = regions.iter().find(|r| r.base <= at && at < r.end()).map(|r| rank(r.kind()));
            prop_assert_eq!(found, *expected);
        }
    }

    /// Nonsense from firmware never panics and never makes overlapping regions.
    #[test]
    fn nonsense_is_survived(claims in prop::collection::vec(any::<(u64, u64, u32, u64)>(), 0..20)) {
        let mut room = vec![EMPTY; 64];
        let mut map = Map::new(&mut room);
        for (base, pages, uefi_type, attributes) in claims {
            map.add_firmware(base, pages, uefi_type % 20, attributes).expect("room");
        }
        let regions = map.finish();
        prop_assert!(regions.windows(2).all(|w| w[0].end() <= w[1].base));
        prop_assert!(direct_map_end(regions).is_multiple_of(1 << 30));
    }
}
