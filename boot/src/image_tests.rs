extern crate std;
use super::*;
use proptest::prelude::*;
use std::{string::ToString, vec, vec::Vec};

const BASE: u64 = 0xffff_ffff_8000_0000;

fn put(file: &mut [u8], at: usize, bytes: &[u8]) {
    file[at..at + bytes.len()].copy_from_slice(bytes);
}

fn program_header(
    file: &mut [u8],
    index: usize,
    p_type: u32,
    flags: u32,
    offset: u64,
    address: u64,
    sizes: (u64, u64),
) {
    let at = 64 + index * 56;
    put(file, at, &p_type.to_le_bytes());
    put(file, at + 4, &flags.to_le_bytes());
    for (i, word) in [offset, address, address, sizes.0, sizes.1, 4096]
        .into_iter()
        .enumerate()
    {
        put(file, at + 8 + i * 8, &word.to_le_bytes());
    }
}

/// A static PIE with a code page at 0, a data page with .bss at 0x1000, one relocation of
/// the word at 0x1010 to the address 0x123, and its dynamic section.
fn kernel() -> Vec<u8> {
    let mut file = vec![0; 0x2100];
    put(&mut file, 0, b"\x7fELF\x02\x01\x01");
    put(&mut file, 16, &ET_DYN.to_le_bytes());
    put(&mut file, 18, &EM_X86_64.to_le_bytes());
    put(&mut file, 20, &1u32.to_le_bytes());
    put(&mut file, 24, &0x400u64.to_le_bytes()); // e_entry
    put(&mut file, 32, &64u64.to_le_bytes()); // e_phoff
    put(&mut file, 52, &64u16.to_le_bytes()); // e_ehsize
    put(&mut file, 54, &56u16.to_le_bytes()); // e_phentsize
    put(&mut file, 56, &3u16.to_le_bytes()); // e_phnum
    put(&mut file, 58, &64u16.to_le_bytes()); // e_shentsize
    program_header(&mut file, 0, PT_LOAD, PF_R | PF_X, 0, 0, (0x1000, 0x1000));
    program_header(
        &mut file,
        1,
        PT_LOAD,
        PF_R | PF_W,
        0x1000,
        0x1000,
        (0x1100, 0x3000),
    );
    program_header(
        &mut file,
        2,
        PT_DYNAMIC,
        PF_R | PF_W,
        0x1040,
        0x1040,
        (64, 64),
    );
    let dynamic = [
        (DT_RELA, 0x1080),
        (DT_RELASZ, 24),
        (DT_RELAENT, 24),
        (DT_NULL, 0),
    ];
    for (i, (tag, value)) in dynamic.into_iter().enumerate() {
        put(&mut file, 0x1040 + i * 16, &tag.to_le_bytes());
        put(&mut file, 0x1048 + i * 16, &(value as u64).to_le_bytes());
    }
    for (i, word) in [0x1010, u64::from(R_X86_64_RELATIVE), 0x123]
        .into_iter()
        .enumerate()
    {
        put(&mut file, 0x1080 + i * 8, &word.to_le_bytes());
    }
    put(&mut file, 0x400, &[0xf4]);
    put(&mut file, 0x10ff, &[0x77]);
    file
}

#[test]
fn a_sound_kernel_is_loaded_zeroed_and_relocated() {
    let file = kernel();
    let plan = plan(&file).expect("sound");
    assert_eq!(
        (plan.entry(), plan.image_bytes(), plan.relocation_count()),
        (0x400, 0x4000, 1)
    );
    let rights: Vec<_> = plan
        .segments()
        .iter()
        .map(|s| (s.pages(), s.rights))
        .collect();
    assert_eq!(
        rights,
        [
            ((0, 0x1000), Rights::Execute),
            ((0x1000, 0x4000), Rights::Write)
        ]
    );
    let mut image = vec![0xaa; 0x4000];
    assert_eq!(plan.build(BASE, &mut image).expect("fits"), 1);
    assert_eq!(image[0x400], 0xf4);
    assert_eq!(image[0x10ff], 0x77);
    assert_eq!(image[0x1010..0x1018], (BASE + 0x123).to_le_bytes());
    assert!(image[0x2100..].iter().all(|b| *b == 0));
    assert!(plan.build(BASE, &mut image[..0x3000]).is_err());
}

#[test]
fn each_damage_is_named() {
    let sentence = |at: usize, bytes: &[u8]| {
        let mut file = kernel();
        put(&mut file, at, bytes);
        plan(&file).map(|_| ()).expect_err("damaged").to_string()
    };
    assert!(sentence(0, b"MZ").contains("no ELF file"));
    assert!(sentence(16, &2u16.to_le_bytes()).contains("position-independent"));
    assert!(sentence(18, &183u16.to_le_bytes()).contains("64-bit x86"));
    assert!(sentence(24, &0x1000u64.to_le_bytes()).contains("entry point"));
    assert!(
        sentence(64 + 4, &(PF_R | PF_W | PF_X).to_le_bytes()).contains("writable and executable")
    );
    assert!(sentence(64 + 56 + 16, &0xfffu64.to_le_bytes()).contains("shares a page"));
    assert!(sentence(64 + 56 + 40, &u64::MAX.to_le_bytes()).contains("512 MiB"));
    assert!(sentence(64 + 56 + 32, &0x2000u64.to_le_bytes()).contains("cut short"));
    assert!(sentence(64 + 56 * 2, &PT_INTERP.to_le_bytes()).contains("interpreter"));
    assert!(sentence(0x1088, &1u32.to_le_bytes()).contains("relocation of type 1"));
    assert!(sentence(0x1080, &0x3ff9u64.to_le_bytes()).contains("points out of it"));
    assert!(sentence(0x1048, &0x9999u64.to_le_bytes()).contains("points out of it"));
    let short = plan(&kernel()[..0x1800])
        .map(|_| ())
        .expect_err("cut")
        .to_string();
    assert!(short.contains("copy it again"), "{short}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Whatever a damaged medium makes of the file: a plan that can be built, or an error; no panic.
    #[test]
    fn damage_never_panics(changes in prop::collection::vec((0usize..0x1100, any::<u8>()), 1..12), cut in 0usize..0x2200) {
        let mut file = kernel();
        for (at, byte) in changes {
            file[at] = byte;
        }
        file.truncate(cut.max(1));
        if let Ok(plan) = plan(&file)
            && plan.image_bytes() < 1 << 20
        {
            let mut image = vec![0; plan.image_bytes() as usize];
            let built = plan.build(BASE, &mut image);
            prop_assert!(built.is_ok(), "{built:?}");
        }
    }
}
