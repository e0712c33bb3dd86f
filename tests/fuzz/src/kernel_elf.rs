//! The kernel's ELF file, as the loader sees it.

use loader::image::plan;

/// The file itself.
pub fn run(bytes: &[u8]) {
    let plan = match plan(bytes) {
        Ok(plan) => plan,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            return;
        }
    };
    let size = plan.image_bytes();
    assert!(size.is_multiple_of(4096));
    assert!(plan.entry() < size);
    let mut end = 0;
    for segment in plan.segments() {
        assert!(segment.address >= end, "ascending, no two on one page");
        assert!(segment.file_bytes <= segment.bytes);
        let last = segment.file_offset + segment.file_bytes;
        assert!(last <= bytes.len() as u64);
        end = (segment.address + segment.bytes).next_multiple_of(4096);
        assert!(end <= size);
    }
    if size > 1 << 20 {
        return;
    }
    let mut image = vec![0xCC; size as usize];
    let base = handoff::KERNEL_BASE;
    let applied = plan
        .build(base, &mut image)
        .expect("the image has the plan's size");
    assert_eq!(applied, plan.relocation_count());
    let mut again = vec![0x33; size as usize];
    assert!(plan.build(base, &mut again).is_ok());
    assert_eq!(image, again, "every byte is written");
    assert!(plan.build(base, &mut again[..size as usize - 1]).is_err());
}
