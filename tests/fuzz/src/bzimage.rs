//! A guest's kernel file: refused with a sentence, or planned without overlap and loaded as planned.

use crate::Input;
use guest::linux::{KernelImage, load, plan};
use guest::{GuestMemory, VecMemory, VmShape};
use units::Gpa;

/// What the VM is like, then the file.
pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let mib = 16 + u64::from(input.u8() % 64);
    let initrd_bytes = u64::from(input.u32());
    let Ok(shape) = VmShape::simple(1, (mib / 2 * 2) << 20) else {
        return;
    };
    let file = input.rest();
    let image = match KernelImage::parse(file) {
        Ok(image) => image,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            return;
        }
    };
    assert!(image.payload.len() <= file.len());
    assert!(image.alignment.is_power_of_two());
    let _ = image.version();
    let plan = match plan(&image, initrd_bytes, "console=ttyS0", &shape) {
        Ok(plan) => plan,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            return;
        }
    };
    let kernel = plan.kernel.0..plan.kernel.0 + plan.kernel_bytes;
    let is_ram = |start: u64, end: u64| {
        start == end
            || shape
                .memory
                .ram_end_from(Gpa(start))
                .is_some_and(|ram_end| end <= ram_end.0)
    };
    assert!(is_ram(kernel.start, kernel.end));
    assert!(plan.kernel_bytes >= image.payload.len() as u64);
    assert!(kernel.contains(&plan.entry.0));
    if let Some(initrd) = plan.initrd {
        let end = initrd.gpa.0 + initrd.bytes;
        assert_eq!(initrd.bytes, initrd_bytes);
        assert!(is_ram(initrd.gpa.0, end));
        assert!(kernel.end <= initrd.gpa.0 || end <= kernel.start);
    }
    if initrd_bytes > 1 << 16 || plan.kernel_bytes > 4 << 20 {
        return;
    }
    let initrd = vec![0xA5; initrd_bytes as usize];
    let memory = VecMemory::new(&shape.memory);
    let state = load(&plan, &image, &initrd, &memory).expect("a plan can be carried out");
    assert_eq!(state.rip, plan.entry.0);
    let mut payload = vec![0; image.payload.len()];
    memory
        .read(plan.kernel, &mut payload)
        .expect("the kernel is in memory");
    assert_eq!(payload, image.payload);
}
