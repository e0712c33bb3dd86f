extern crate std;
use super::*;
use std::{vec, vec::Vec};

const POOL: u64 = 0x7000_0000;

/// What the CPU would find: host-physical address and the rights that hold on the whole way.
fn walk(pool: &[Table], virt: u64) -> Option<(u64, bool, bool)> {
    let (mut table, mut shift) = (0, 39);
    loop {
        let entry = pool[table][slot(virt, shift)];
        if entry & PRESENT == 0 {
            return None;
        }
        if shift == 12 || entry & LEAF != 0 {
            let offset = virt & ((1 << shift) - 1);
            let phys = (entry & ADDRESS & !((1 << shift) - 1)) + offset;
            return Some((phys, entry & WRITABLE != 0, entry & NO_EXECUTE == 0));
        }
        table = ((entry & ADDRESS) - POOL) as usize / 4096;
        shift -= 9;
    }
}

fn segments() -> Vec<Segment> {
    let at = |address, bytes, rights| Segment {
        address,
        bytes,
        file_offset: 0,
        file_bytes: 0,
        rights,
    };
    vec![
        at(0, 0x1800, Rights::Read),
        at(0x2000, 0x40_0000, Rights::Execute),
        at(0x50_0000, 0x1234, Rights::Write),
    ]
}

fn layout(segments: &[Segment]) -> Layout<'_> {
    Layout {
        kernel_phys: 0x6000_0000,
        segments,
        stack_phys: 0x6800_0000,
        direct_map_end: 6 << 30,
        framebuffer: (0x8000_0000, 0x80_0000),
        jump: (0x7e12_3000, 2),
        gib_pages: true,
    }
}

fn built(layout: &Layout<'_>) -> Vec<Table> {
    let mut pool = vec![[!0; 512]; layout.pool_pages() as usize];
    assert_eq!(layout.build(&mut pool, POOL), Ok(POOL));
    pool
}

#[test]
fn everything_promised_is_mapped_with_its_rights_and_nothing_else() {
    let segments = segments();
    for gib_pages in [true, false] {
        let pool = built(&Layout {
            gib_pages,
            ..layout(&segments)
        });
        let (read, write, execute) = (false, true, true);
        assert_eq!(
            walk(&pool, KERNEL_BASE + 0x1234),
            Some((0x6000_1234, read, false))
        );
        assert_eq!(
            walk(&pool, KERNEL_BASE + 0x2000),
            Some((0x6000_2000, read, execute))
        );
        assert_eq!(
            walk(&pool, KERNEL_BASE + 0x40_1fff),
            Some((0x6040_1fff, read, execute))
        );
        assert_eq!(walk(&pool, KERNEL_BASE + 0x40_2000), None);
        assert_eq!(
            walk(&pool, KERNEL_BASE + 0x50_1000),
            Some((0x6050_1000, write, false))
        );
        assert_eq!(walk(&pool, KERNEL_BASE + 0x50_2000), None);
        for phys in [
            0,
            0xb8000,
            0x20_0000,
            0xfee0_0000,
            0x1_0000_0000,
            0x1_7fff_ffff,
        ] {
            assert_eq!(
                walk(&pool, DIRECT_MAP_BASE + phys),
                Some((phys, write, false))
            );
        }
        assert_eq!(walk(&pool, DIRECT_MAP_BASE + 0x1_8000_0000), None);
        assert_eq!(
            walk(&pool, LOADER_STACK_TOP - 8),
            Some((0x6800_0000 + LOADER_STACK_BYTES - 8, write, false))
        );
        assert_eq!(walk(&pool, LOADER_STACK_TOP), None);
        assert_eq!(walk(&pool, LOADER_STACK_TOP - LOADER_STACK_BYTES - 1), None);
        assert_eq!(walk(&pool, 0x7e12_4fff), Some((0x7e12_4fff, read, execute)));
        assert_eq!(walk(&pool, 0x7e12_5000), None);
        assert_eq!(walk(&pool, 0), None);
    }
}

#[test]
fn nothing_is_writable_and_executable() {
    let segments = segments();
    let pool = built(&layout(&segments));
    for page in (0..0x60_0000)
        .step_by(4096)
        .map(|o| KERNEL_BASE + o)
        .chain([DIRECT_MAP_BASE, 0x7e12_3000])
    {
        assert!(
            !matches!(walk(&pool, page), Some((_, true, true))),
            "{page:#x}"
        );
    }
}

#[test]
fn a_distant_framebuffer_is_reached_through_the_direct_map() {
    let segments = segments();
    let far = 0x38_0000_0000_u64;
    let pool = built(&Layout {
        framebuffer: (far, 0x30_0000),
        ..layout(&segments)
    });
    assert_eq!(
        walk(&pool, DIRECT_MAP_BASE + far + 0x2f_ffff),
        Some((far + 0x2f_ffff, true, false))
    );
    assert_eq!(walk(&pool, DIRECT_MAP_BASE + far - 1), None);
}

#[test]
fn the_pool_suffices_for_large_machines_and_its_end_is_an_error() {
    let segments = segments();
    for (end, gib_pages) in [(4 << 30, false), (2 << 40, true), (64 << 30, false)] {
        built(&Layout {
            direct_map_end: end,
            gib_pages,
            framebuffer: (0x38_0000_1000, 3 << 30),
            ..layout(&segments)
        });
    }
    let mut small = vec![[0; 512]; 5];
    assert_eq!(
        layout(&segments).build(&mut small, POOL),
        Err(TableError::PoolEmpty)
    );
}

#[test]
fn a_collision_is_refused() {
    let mut twice = segments();
    twice.push(Segment {
        address: 0,
        ..twice[0]
    });
    let mut pool = vec![[0; 512]; 64];
    assert_eq!(
        layout(&twice).build(&mut pool, POOL),
        Err(TableError::Taken(KERNEL_BASE))
    );
}
