//! The hand-off: a firmware memory map becomes the kernel's, and boot information is checked.

use crate::Input;
use handoff::{BootInfo, Framebuffer, MAGIC, MemoryKind, VERSION};
use loader::memory_map::{EMPTY, Map, direct_map_end};

/// Fields of [`BootInfo`], then descriptors of firmware's map.
pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let right = input.u8() & 1 != 0;
    let mut word = |right_one: u64| if right { right_one } else { input.u64() };
    let info = BootInfo {
        magic: word(MAGIC),
        version: word(VERSION.into()) as u32,
        size_bytes: word(size_of::<BootInfo>() as u64) as u32,
        memory_map: input.u64(),
        memory_map_len: input.u64(),
        modules: input.u64(),
        modules_len: input.u64(),
        rsdp: input.u64(),
        kernel_phys: input.u64(),
        kernel_bytes: input.u64(),
        direct_map_end: input.u64(),
        framebuffer: Framebuffer::default(),
        tsc_loader_start: 0,
        tsc_handoff: 0,
        unix_time_s: input.u64(),
    };
    match info.check() {
        Ok(()) => {
            let end = info.direct_map_end;
            let last = info.memory_map + info.memory_map_len * 32;
            assert!(info.memory_map_len > 0 && last <= end);
            assert!(info.kernel_phys + info.kernel_bytes <= end);
            assert!(end >= 4 << 30 && handoff::DIRECT_MAP_BASE.checked_add(end).is_some());
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
    map(&mut input);
}

fn map(input: &mut Input<'_>) {
    let mut room = [EMPTY; 64];
    let mut map = Map::new(&mut room);
    let mut usable: Vec<(u64, u64)> = Vec::new();
    let mut taken: Vec<(u64, u64)> = Vec::new();
    while !input.is_empty() {
        // Small numbers, so that descriptors meet.
        let scale = input.choice(&[4096, 4096, 1, 1 << 20, 1 << 40]);
        let base = u64::from(input.u16()).saturating_mul(scale);
        let pages = u64::from(input.u16());
        let kind = u32::from(input.u8() % 20);
        let attributes = input.choice(&[0xF, 0, 1 << 18, 1 << 63, u64::MAX]);
        if map.add_firmware(base, pages, kind, attributes).is_err() {
            break;
        }
        let end = base.saturating_add(pages * 4096);
        if base == end {
            continue;
        }
        match loader::memory_map::classify(kind, attributes) {
            MemoryKind::Usable => usable.push((base, end)),
            _ => taken.push((base, end)),
        }
    }
    let regions = map.finish();
    for pair in regions.windows(2) {
        assert!(pair[0].end() <= pair[1].base, "ascending and disjoint");
    }
    for region in regions {
        assert!(region.base.is_multiple_of(4096) && region.bytes.is_multiple_of(4096));
        assert!(region.bytes > 0);
        if region.kind() != MemoryKind::Usable {
            continue;
        }
        // The more careful statement wins: nobody said anything else about a usable byte.
        for (start, end) in &taken {
            assert!(
                region.end() <= *start || *end <= region.base,
                "{region:?} is also {start:#x}..{end:#x}"
            );
        }
        assert!(
            usable
                .iter()
                .any(|(start, end)| *start < region.end() && region.base < *end)
        );
    }
    let end = direct_map_end(regions);
    assert!(end >= 4 << 30 && end.is_multiple_of(1 << 30));
}
