extern crate std;
use super::*;
use std::string::ToString;

fn good() -> BootInfo {
    BootInfo {
        magic: MAGIC,
        version: VERSION,
        size_bytes: size_of::<BootInfo>() as u32,
        memory_map: 0x1000,
        memory_map_len: 7,
        modules: 0x2000,
        modules_len: 2,
        rsdp: 0,
        kernel_phys: 0x10_0000,
        kernel_bytes: 0x8000,
        direct_map_end: FOUR_GIB,
        framebuffer: Framebuffer::default(),
        tsc_loader_start: 1,
        tsc_handoff: 2,
        unix_time_s: 3,
    }
}

#[test]
fn sound_boot_information_passes() {
    assert_eq!(good().check(), Ok(()));
    assert_eq!(
        BootInfo {
            modules: 0,
            modules_len: 0,
            ..good()
        }
        .check(),
        Ok(())
    );
}

#[test]
fn a_foreign_or_outdated_loader_is_named_with_the_fix() {
    let foreign = BootInfo {
        magic: 0x1234,
        ..good()
    }
    .check();
    assert_eq!(foreign, Err(BootInfoError::Magic(0x1234)));
    let newer = BootInfo {
        version: VERSION + 1,
        ..good()
    }
    .check()
    .expect_err("version differs");
    assert!(
        newer
            .to_string()
            .contains("install loader and kernel.elf of the same build"),
        "{newer}"
    );
    let other = BootInfo {
        size_bytes: 8,
        ..good()
    }
    .check();
    assert_eq!(other, Err(BootInfoError::Size(8)));
}

#[test]
fn fields_outside_the_direct_map_are_refused() {
    let field = |info: BootInfo| match info.check() {
        Err(BootInfoError::Field(name, _)) => name,
        other => panic!("{other:?}"),
    };
    assert_eq!(
        field(BootInfo {
            direct_map_end: ONE_GIB,
            ..good()
        }),
        "direct_map_end"
    );
    assert_eq!(
        field(BootInfo {
            direct_map_end: FOUR_GIB + 4096,
            ..good()
        }),
        "direct_map_end"
    );
    assert_eq!(
        field(BootInfo {
            direct_map_end: 1 << 62,
            ..good()
        }),
        "direct_map_end"
    );
    assert_eq!(
        field(BootInfo {
            memory_map_len: 0,
            ..good()
        }),
        "memory_map"
    );
    assert_eq!(
        field(BootInfo {
            memory_map_len: u64::MAX,
            ..good()
        }),
        "memory_map"
    );
    assert_eq!(
        field(BootInfo {
            memory_map: FOUR_GIB - 8,
            ..good()
        }),
        "memory_map"
    );
    assert_eq!(
        field(BootInfo {
            modules: 0,
            ..good()
        }),
        "modules"
    );
    assert_eq!(
        field(BootInfo {
            kernel_phys: 0x10_0800,
            ..good()
        }),
        "kernel_phys"
    );
    assert_eq!(
        field(BootInfo {
            kernel_bytes: 0,
            ..good()
        }),
        "kernel_phys"
    );
}

#[test]
fn kinds_survive_their_numbers_and_nothing_else_is_usable() {
    for kind in MemoryKind::ALL {
        assert_eq!(MemoryKind::from_number(kind as u32), Some(kind));
    }
    let region = MemoryRegion {
        base: 0,
        bytes: 4096,
        kind: 77,
        uefi_type: 7,
        attributes: 0,
    };
    assert_eq!(region.kind(), MemoryKind::Reserved);
}

#[test]
fn names_stop_at_their_padding_and_never_panic() {
    let mut module = Module {
        name: [0; 64],
        kind: 1,
        reserved: 0,
        base: 0,
        bytes: 0,
    };
    module.name[..12].copy_from_slice(b"perigee.toml");
    assert_eq!(
        (module.name(), module.kind()),
        ("perigee.toml", Some(ModuleKind::Config))
    );
    module.name = [b'x'; 64];
    assert_eq!(module.name().len(), 64);
    module.name = [0xff; 64];
    module.kind = 9;
    assert_eq!((module.name(), module.kind()), ("", None));
}

#[test]
fn the_layout_is_the_one_that_this_version_promises() {
    assert_eq!(
        (
            size_of::<BootInfo>(),
            size_of::<MemoryRegion>(),
            size_of::<Module>()
        ),
        (136, 32, 88)
    );
}
