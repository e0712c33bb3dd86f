//! A Multiboot kernel's file and its modules: refused with a sentence, or planned without overlap and loaded.

use crate::Input;
use guest::multiboot::{MultibootImage, load, module_list, plan};
use guest::{GuestMemory, VecMemory, VmShape};
use units::Gpa;

/// What the VM is like, a module's size, the list of modules, then the file.
pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let mib = 16 + u64::from(input.u8() % 64);
    let module_bytes = u64::from(input.u32() >> (input.u8() % 32));
    let list = String::from_utf8_lossy(input.block()).into_owned();
    match module_list(&list) {
        Ok(modules) => {
            for module in modules {
                assert!(!module.file.is_empty() && module.string.starts_with(&module.file));
            }
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
    let Ok(shape) = VmShape::simple(1, (mib / 2 * 2) << 20) else {
        return;
    };
    let image = match MultibootImage::parse(input.rest()) {
        Ok(image) => image,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            return;
        }
    };
    assert!(!image.segments.is_empty());
    for segment in &image.segments {
        assert!(segment.bytes.len() as u64 <= segment.memory_bytes);
        assert!(segment.gpa.0 + segment.memory_bytes <= image.end().0);
    }
    let modules: &[(u64, &str)] = if module_bytes == 0 {
        &[]
    } else {
        &[(module_bytes, "module one"), (1, "two")]
    };
    let plan = match plan(&image, "kernel", "verbose", modules, &shape) {
        Ok(plan) => plan,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            return;
        }
    };
    let ram_end = shape
        .memory
        .ram_end_from(Gpa(1 << 20))
        .map_or(0, |end| end.0);
    assert!(image.end().0 <= ram_end);
    let mut last = image.end().0;
    for (placed, (bytes, _)) in plan.modules.iter().zip(modules) {
        assert_eq!(placed.bytes, *bytes);
        assert!(placed.gpa.0 >= last && placed.gpa.0.is_multiple_of(4096));
        last = placed.gpa.0 + placed.bytes;
        assert!(last <= ram_end);
    }
    if module_bytes > 1 << 16 || image.end().0 > 8 << 20 {
        return;
    }
    let contents = vec![0xA5; module_bytes as usize];
    let given: &[&[u8]] = if module_bytes == 0 {
        &[]
    } else {
        &[&contents, &[1]]
    };
    let memory = VecMemory::new(&shape.memory);
    let state = load(&plan, &image, given, &memory).expect("a plan can be carried out");
    assert_eq!(state.rip, image.entry.0);
    for (placed, contents) in plan.modules.iter().zip(given) {
        let mut held = vec![0; contents.len()];
        memory
            .read(placed.gpa, &mut held)
            .expect("the module is in memory");
        assert_eq!(held, *contents);
    }
}
