use alloc::string::ToString;
use alloc::vec;
use alloc::vec::Vec;
use proptest::prelude::*;
use units::Gpa;

use super::*;
use crate::entry::gpr;
use crate::memory::{GuestMemory, VecMemory};
use crate::shape::VmShape;

const MAGIC: u32 = 0x1BAD_B002;

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|w| w.to_le_bytes()).collect()
}

fn header(flags: u32) -> Vec<u8> {
    words(&[MAGIC, flags, 0_u32.wrapping_sub(MAGIC).wrapping_sub(flags)])
}

/// A segment of a test file: physical address, virtual address, bytes in memory, content.
type Part<'a> = (u32, u32, u32, &'a [u8]);

/// A 32-bit ELF file with these segments (System V ABI, i386: ELF header, then program headers).
fn elf32(entry: u32, parts: &[Part<'_>]) -> Vec<u8> {
    let mut file = b"\x7FELF\x01\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    file.extend([2, 0, 3, 0]); // executable, i386
    file.extend(words(&[1, entry, 52, 0, 0]));
    for half in [52_u16, 32, parts.len() as u16, 40, 0, 0] {
        file.extend(half.to_le_bytes());
    }
    let mut offset = 52 + 32 * parts.len() as u32;
    for (physical, virtual_, memory, content) in parts {
        let length = content.len() as u32;
        file.extend(words(&[
            1, offset, *virtual_, *physical, length, *memory, 7, 0,
        ]));
        offset += length;
    }
    parts.iter().for_each(|part| file.extend(part.3));
    file
}

/// A kernel whose text at 4 MiB begins with the header and goes on with `code`.
fn kernel(code: &[u8]) -> Vec<u8> {
    let text = [header(0), code.to_vec()].concat();
    elf32(0x40_000C, &[(0x40_0000, 0x40_0000, 0x3000, &text)])
}

fn machine(mib: u64) -> (VmShape, VecMemory) {
    let shape = VmShape::simple(1, mib << 20).expect("a small VM");
    let memory = VecMemory::new(&shape.memory);
    (shape, memory)
}

fn bytes_at(memory: &VecMemory, at: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    memory.read(Gpa(at), &mut bytes).expect("memory");
    bytes
}

fn string_at(memory: &VecMemory, at: u32) -> alloc::string::String {
    let bytes = bytes_at(memory, at.into(), 256);
    let end = bytes.iter().position(|b| *b == 0).expect("ends");
    core::str::from_utf8(&bytes[..end]).expect("text").into()
}

#[test]
fn an_elf_kernel_finds_what_the_specification_promises() {
    let file = kernel(b"code");
    let (shape, memory) = machine(64);
    // Dirt where the zero-initialised part will be.
    memory.write(Gpa(0x40_0FF0), &[0xAA; 32]).expect("RAM");
    let image = MultibootImage::parse(&file).expect("sound");
    let modules: [&[u8]; 2] = [b"first module", &[7; 5000]];
    let plan = plan(
        &image,
        "guests/test.flat",
        "a b",
        &[(12, "mod.bin x y"), (5000, "second")],
        &shape,
    )
    .expect("fits");
    let state = load(&plan, &image, &modules, &memory).expect("loads");

    assert_eq!(bytes_at(&memory, 0x40_000C, 4), b"code");
    assert_eq!(bytes_at(&memory, 0x40_0FF0, 32), [0; 32]);
    assert_eq!(state.rip, 0x40_000C);
    assert_eq!(state.gpr[gpr::RAX], 0x2BAD_B002);
    assert_eq!(
        (state.cr0 & 1, state.cr0 >> 31),
        (1, 0),
        "protected, not paged"
    );
    assert_eq!(state.rflags, 2, "interrupts off, not virtual-8086");
    for segment in [state.cs, state.ds, state.es, state.fs, state.gs, state.ss] {
        assert_eq!((segment.base, segment.limit), (0, u32::MAX));
        assert_eq!(segment.attributes & 0x600, 0x400, "32 bits, not 64");
        // The descriptor behind the selector says the same.
        let descriptor = memory
            .read_u64(Gpa(state.gdtr.base + u64::from(segment.selector)))
            .expect("in memory");
        assert_eq!(
            descriptor >> 40 & 0xFF,
            u64::from(segment.attributes & 0xFF)
        );
    }

    let info = state.gpr[gpr::RBX];
    let word = |at: u64| memory.read_u32(Gpa(info + at)).expect("memory");
    assert_eq!(word(0), 0b10_0100_1101);
    assert_eq!((word(4), word(8)), (640, 63 * 1024));
    assert_eq!(string_at(&memory, word(16)), "guests/test.flat a b");
    assert_eq!(string_at(&memory, word(64)), "Perigee");
    assert_eq!(word(20), 2);
    let list: Vec<u32> = (0..8)
        .map(|i| {
            memory
                .read_u32(Gpa(u64::from(word(24)) + 4 * i))
                .expect("memory")
        })
        .collect();
    let (first, second) = (&list[..4], &list[4..]);
    assert_eq!(first[0], 0x40_3000, "behind the zero-initialised part");
    assert_eq!((first[1] - first[0], second[0]), (12, 0x40_4000));
    assert_eq!(bytes_at(&memory, first[0].into(), 12), b"first module");
    assert_eq!(bytes_at(&memory, u64::from(second[1]) - 1, 1), [7]);
    assert_eq!(string_at(&memory, first[2]), "mod.bin x y");
    assert_eq!(string_at(&memory, second[2]), "second");

    let mut at = u64::from(word(48));
    let end = at + u64::from(word(44));
    let mut map = Vec::new();
    while at < end {
        let size = memory.read_u32(Gpa(at)).expect("memory");
        let read = |offset| memory.read_u64(Gpa(at + offset)).expect("memory");
        map.push((read(4), read(12), read(20) as u32));
        at += u64::from(size) + 4;
    }
    assert_eq!(
        map,
        [
            (0, 0xA_0000, 1),
            (0xC_0000, 0x4_0000, 2),
            (0x10_0000, 63 << 20, 1)
        ]
    );
    // What the loader says lies where no kernel looks for free memory.
    for at in [
        info,
        state.gdtr.base,
        u64::from(word(16)),
        u64::from(word(24)),
    ] {
        assert!((0xC_0000..0xE_0000).contains(&at), "{at:#x}");
    }
}

#[test]
fn address_fields_count_even_in_an_elf_file() {
    let fields = |header_at: u32, load: u32, load_end: u32, bss_end: u32, entry: u32| {
        [
            header(1 << 16),
            words(&[header_at, load, load_end, bss_end, entry]),
        ]
        .concat()
    };
    // 16 bytes of text lie before the header.
    let mut file = vec![0x90; 16];
    file.extend(fields(0x20_0010, 0x20_0000, 0, 0x20_4000, 0x20_0000));
    let image = MultibootImage::parse(&file).expect("sound");
    assert_eq!(image.entry, Gpa(0x20_0000));
    assert_eq!(image.segments.len(), 1);
    assert_eq!(image.segments[0].bytes.len(), 48);
    assert_eq!(image.end(), Gpa(0x20_4000));

    let mut elf = kernel(b"");
    let at = elf.len() - 12;
    elf.truncate(at);
    elf.extend(fields(0x30_0000, 0x30_0000, 0x30_0020, 0, 0x30_0000));
    let image = MultibootImage::parse(&elf).expect("sound");
    assert_eq!(image.segments[0].gpa, Gpa(0x30_0000));

    for (damaged, sentence) in [
        (
            fields(0x10_0000, 0x20_0000, 0, 0, 0x20_0000),
            "before the text",
        ),
        (
            fields(0x20_0010, 0x20_0000, 0, 0, 0x20_0000),
            "begins before the file",
        ),
        (
            fields(0x20_0000, 0x20_0000, 0x1F_0000, 0, 0x20_0000),
            "ends before the text",
        ),
        (
            fields(0x20_0000, 0x20_0000, 0, 0x20_0001, 0x20_0000),
            "ends before the data",
        ),
        (
            fields(0x20_0000, 0x20_0000, 0x20_0100, 0, 0x20_0000),
            "truncated",
        ),
        (
            fields(0x20_0000, 0x20_0000, 0, 0, 0x20_0020),
            "0x200020 is in none",
        ),
        (header(1 << 16), "truncated"),
    ] {
        let error = MultibootImage::parse(&damaged)
            .expect_err(sentence)
            .to_string();
        assert!(error.contains(sentence), "{error}");
    }
}

#[test]
fn the_entry_is_where_its_segment_lies_in_memory() {
    let text = [header(0), b"x".to_vec()].concat();
    let file = elf32(0xC010_000C, &[(0x10_0000, 0xC010_0000, 0x1000, &text)]);
    let image = MultibootImage::parse(&file).expect("sound");
    assert_eq!(image.entry, Gpa(0x10_000C));
    let astray = elf32(0x50_0000, &[(0x10_0000, 0x10_0000, 0x1000, &text)]);
    assert_eq!(
        MultibootImage::parse(&astray),
        Err(MultibootError::EntryOutside { entry: 0x50_0000 })
    );
}

#[test]
fn what_is_no_kernel_is_refused_with_its_reason() {
    let sentence = |file: &[u8]| {
        MultibootImage::parse(file)
            .expect_err("refused")
            .to_string()
    };
    assert!(sentence(b"").contains("no Multiboot header"));
    assert!(sentence(&words(&[MAGIC, 0, 1])).contains("right checksum"));
    assert!(sentence(&header(0b100)).contains("features 0x4"));
    assert!(sentence(&header(0)).contains("no usable ELF file"));
    let late = [vec![0; 8192], header(0)].concat();
    assert!(!has_header(&late) && has_header(&late[12..]));

    let mut file = kernel(b"abc");
    file.pop();
    assert!(sentence(&file).contains("truncated"), "{}", sentence(&file));
    let mut file = kernel(b"");
    file[18] = 40;
    assert!(
        sentence(&file).contains("machine 40"),
        "{}",
        sentence(&file)
    );
    let grown = elf32(0x40_0000, &[(0x40_0000, 0, 4, &header(0))]);
    assert!(sentence(&grown).contains("more bytes in the file"));
    let none = [elf32(0, &[]), header(0)].concat();
    assert!(sentence(&none).contains("nothing to load"));
}

#[test]
fn what_does_not_fit_is_refused_before_anything_is_written() {
    let (shape, memory) = machine(16);
    let refused = |file: &[u8], modules: &[(u64, &str)]| {
        let image = MultibootImage::parse(file).expect("sound");
        plan(&image, "k", "", modules, &shape)
            .expect_err("refused")
            .to_string()
    };
    let text = header(0);
    let beyond = elf32(0x100_0000, &[(0x100_0000, 0x100_0000, 0x1000, &text)]);
    assert!(refused(&beyond, &[]).contains("not wholly in the VM's RAM"));
    let hole = elf32(0x9_F000, &[(0x9_F000, 0x9_F000, 0x2000, &text)]);
    assert!(refused(&hole, &[]).contains("0x9f000"));
    let firmware = elf32(0xD_0000, &[(0xD_0000, 0xD_0000, 0x1000, &text)]);
    assert!(refused(&firmware, &[]).contains("0xd0000"));
    let file = kernel(b"");
    assert!(refused(&file, &[(13 << 20, "m")]).contains("need 13631488 bytes"));
    assert!(refused(&file, &[(u64::MAX, "m"), (5, "n")]).contains("behind the kernel"));
    assert!(refused(&file, &[(1, "a\0b")]).contains("zero byte"));

    let image = MultibootImage::parse(&file).expect("sound");
    let long = "x".repeat(200_000);
    let planned = plan(&image, "k", "", &[(1, &long)], &shape).expect("room for the module");
    let error = load(&planned, &image, &[&[1]], &memory).expect_err("strings do not fit");
    assert!(error.to_string().contains("boot information"), "{error}");
    assert_eq!(
        load(&planned, &image, &[&[1, 2]], &memory),
        Err(MultibootError::ModulesChanged)
    );
    assert_eq!(bytes_at(&memory, 0x40_0000, 12), [0; 12]);
}

#[test]
fn modules_of_a_low_kernel_go_above_when_they_must() {
    let (shape, _) = machine(16);
    let text = header(0);
    let file = elf32(0x8000, &[(0x8000, 0x8000, 0x8000, &text)]);
    let image = MultibootImage::parse(&file).expect("sound");
    let at = |bytes| {
        plan(&image, "k", "", &[(bytes, "m")], &shape)
            .expect("fits")
            .modules[0]
            .gpa
    };
    assert_eq!(at(4096), Gpa(0x1_0000));
    assert_eq!(at(1 << 20), Gpa(0x10_0000));
}

#[test]
fn a_list_of_modules_reads_as_qemu_reads_it() {
    let read = |list| {
        module_list(list).map(|entries| {
            entries
                .into_iter()
                .map(|e| (e.file, e.string))
                .collect::<Vec<_>>()
        })
    };
    let pair = |file: &str, string: &str| (file.to_string(), string.to_string());
    assert_eq!(read("a"), Ok(vec![pair("a", "a")]));
    assert_eq!(
        read("a x y,b,,c z,d"),
        Ok(vec![
            pair("a", "a x y"),
            pair("b,c", "b,c z"),
            pair("d", "d")
        ])
    );
    for empty in ["", "a,", " a", "a,,,"] {
        assert!(
            read(empty).is_err_and(|e| e.to_string().contains("without a file")),
            "{empty}"
        );
    }
}

proptest! {
    #[test]
    fn no_damage_makes_it_panic(at in 0_usize..160, value: u8, more in proptest::collection::vec(any::<u8>(), 0..64), cut in 0_usize..200) {
        let mut file = kernel(&more);
        if let Some(byte) = file.get_mut(at) {
            *byte = value;
        }
        file.truncate(cut.max(60));
        let (shape, memory) = machine(16);
        if let Ok(image) = MultibootImage::parse(&file)
            && let Ok(planned) = plan(&image, "k", "words", &[(3, "m")], &shape)
        {
            let state = load(&planned, &image, &[b"abc"], &memory).expect("planned");
            prop_assert!(image.segments.iter().any(|s| s.gpa.0 <= state.rip && state.rip < s.end().0));
        }
    }

    #[test]
    fn no_address_fields_make_it_panic(fields: [u32; 5], before in 0_usize..32, behind in 0_usize..64) {
        let mut file = vec![0; before * 4];
        file.extend(header(1 << 16));
        file.extend(words(&fields));
        file.extend(vec![1; behind]);
        let (shape, memory) = machine(16);
        if let Ok(image) = MultibootImage::parse(&file)
            && let Ok(planned) = plan(&image, "k", "", &[], &shape)
        {
            load(&planned, &image, &[], &memory).expect("planned");
        }
    }

    #[test]
    fn modules_neither_overlap_nor_leave_memory(sizes in proptest::collection::vec(0_u64..3 << 20, 0..5)) {
        let (shape, _) = machine(16);
        let file = kernel(b"");
        let image = MultibootImage::parse(&file).expect("sound");
        let modules: Vec<(u64, &str)> = sizes.iter().map(|s| (*s, "m")).collect();
        if let Ok(planned) = plan(&image, "k", "", &modules, &shape) {
            let mut free = image.end().0;
            for module in &planned.modules {
                prop_assert!(module.gpa.0 >= free && (module.bytes == 0 || shape.memory.is_ram(module.gpa, module.bytes)));
                free = module.gpa.0 + module.bytes;
            }
        } else {
            prop_assert!(sizes.iter().sum::<u64>() > 10 << 20);
        }
    }
}
