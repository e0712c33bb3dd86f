use super::*;
use crate::entry::{CR0_PG, EntryState, gpr};
use crate::memory::{GuestMemory, VecMemory};
use crate::shape::{VirtualNode, VmShape};
use crate::walk::{self, Access, AccessKind, PagingState, Privilege};
use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;
use proptest::prelude::*;
use units::Gpa;

const MIB: u64 = 1 << 20;
const PAYLOAD_BYTES: usize = 0x3000;

/// A bzImage of one setup sector, whose payload is a pattern.
fn image() -> Vec<u8> {
    let mut f = vec![0u8; 0x400];
    f[0x1F1] = 1;
    f[0x1F4..0x1F8].copy_from_slice(&(PAYLOAD_BYTES as u32 / 16).to_le_bytes());
    f[0x1FE..0x200].copy_from_slice(&[0x55, 0xAA]);
    f[0x200..0x202].copy_from_slice(&[0xEB, 0x6A]);
    f[0x202..0x206].copy_from_slice(b"HdrS");
    f[0x206..0x208].copy_from_slice(&0x020Fu16.to_le_bytes());
    f[0x20E..0x210].copy_from_slice(&0x100u16.to_le_bytes());
    f[0x211] = 1;
    f[0x22C..0x230].copy_from_slice(&0x7FFF_FFFFu32.to_le_bytes());
    f[0x230..0x234].copy_from_slice(&0x20_0000u32.to_le_bytes());
    f[0x234] = 1;
    f[0x236..0x238].copy_from_slice(&3u16.to_le_bytes());
    f[0x238..0x23C].copy_from_slice(&2047u32.to_le_bytes());
    f[0x258..0x260].copy_from_slice(&0x100_0000u64.to_le_bytes());
    f[0x260..0x264].copy_from_slice(&0x20_0000u32.to_le_bytes());
    f[0x300..0x308].copy_from_slice(b"6.1-test");
    f.extend((0..PAYLOAD_BYTES).map(|i| (i % 251) as u8));
    f
}

fn edited(at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut f = image();
    f[at..at + bytes.len()].copy_from_slice(bytes);
    f
}

fn shape(bytes: u64) -> VmShape {
    VmShape::simple(2, bytes).expect("a valid shape")
}

fn read(m: &VecMemory, at: u64, n: usize) -> Vec<u8> {
    let mut b = vec![0; n];
    m.read(Gpa(at), &mut b).expect("guest memory");
    b
}

#[test]
fn a_loaded_kernel_finds_everything_that_the_protocol_promises() {
    let file = image();
    let kernel = KernelImage::parse(&file).expect("a bzImage");
    assert_eq!(kernel.version(), "6.1-test");
    let shape = shape(64 * MIB);
    let memory = VecMemory::new(&shape.memory);
    let initrd: Vec<u8> = (0..5000u32).map(|i| i as u8).collect();
    let plan = plan(&kernel, initrd.len() as u64, "console=ttyS0 quiet", &shape).expect("room");
    let state = load(&plan, &kernel, &initrd, &memory).expect("loaded");

    assert_eq!(read(&memory, 0x100_0000, PAYLOAD_BYTES), file[0x400..]);
    assert_eq!(state.rip, 0x100_0200);
    let params = state.gpr[gpr::RSI];
    let word = |at: u64| u64::from(memory.read_u32(Gpa(params + at)).expect("boot_params"));
    let text = |at: u64| String::from_utf8(read(&memory, at, 32)).expect("text");
    assert!(text(word(0x228)).starts_with("console=ttyS0 quiet\0"));
    assert_eq!(read(&memory, word(0x218), 5000), initrd);
    assert_eq!((word(0x21C), word(0x0C0), word(0x0C4)), (5000, 0, 0));
    assert_eq!(word(0x218) % 4096, 0);
    assert_eq!(word(0x070), crate::acpi::RSDP.0);
    // The setup header is the file's, with the loader's type.
    assert_eq!(read(&memory, params + 0x202, 6), file[0x202..0x208]);
    assert_eq!((word(0x210) & 0xFF, word(0x1E8) & 0xFF), (0xFF, 3));
    let map: Vec<_> = (0..3)
        .map(|i| 0x2D0 + i * 20)
        .map(|at| {
            (
                word(at) | word(at + 4) << 32,
                word(at + 8) | word(at + 12) << 32,
                word(at + 16),
            )
        })
        .collect();
    assert_eq!(
        map,
        [
            (0, 0xA_0000, 1),
            (0xC_0000, 0x4_0000, 2),
            (0x10_0000, 63 * MIB, 1)
        ]
    );
    // The sentinel that tells Linux that the page was zeroed.
    assert_eq!(read(&memory, params + 0x1EF, 1), [0]);
}

fn paging(state: &EntryState) -> PagingState {
    PagingState {
        cr0: state.cr0,
        cr3: state.cr3,
        cr4: state.cr4,
        efer: state.efer,
        rflags: state.rflags,
        pkru: 0,
        physical_bits: 40,
    }
}

#[test]
fn the_entry_state_maps_the_first_4_gib_and_its_gdt_agrees() {
    let file = image();
    let kernel = KernelImage::parse(&file).expect("a bzImage");
    let shape = shape(64 * MIB);
    let memory = VecMemory::new(&shape.memory);
    let plan = plan(&kernel, 0, "", &shape).expect("room");
    let state = load(&plan, &kernel, &[], &memory).expect("loaded");
    assert_ne!(state.cr0 & CR0_PG, 0);
    for at in [
        0,
        0x7123,
        0x100_0200,
        0x3FFF_FFFF,
        0xBFFF_F000,
        0xFEE0_0020,
        0xFFFF_FFFF,
    ] {
        let access = Access {
            kind: AccessKind::Write,
            privilege: Privilege::Supervisor,
        };
        let t = walk::translate(&memory, &paging(&state), at, access).expect("mapped");
        assert_eq!(t.gpa, Gpa(at));
    }
    // Each descriptor in memory says what the hidden part of the register says.
    for segment in [state.cs, state.ds, state.ss, state.es] {
        assert!(u64::from(segment.selector) + 7 <= u64::from(state.gdtr.limit));
        let d = memory
            .read_u64(Gpa(state.gdtr.base + u64::from(segment.selector)))
            .expect("a descriptor");
        assert_eq!(
            (d >> 40 & 0xFF | d >> 44 & 0xF00) as u16,
            segment.attributes
        );
        assert_eq!(d & 0xFFFF | d >> 32 & 0xF_0000, 0xF_FFFF);
        assert_eq!(segment.limit, u32::MAX);
    }
}

#[test]
fn what_cannot_be_loaded_is_refused_with_a_sentence() {
    let parse = |f: &[u8]| KernelImage::parse(f).expect_err("not loadable").to_string();
    let whole = image();
    let cases = [
        (parse(b""), "not a Linux bzImage"),
        (parse(&[0x7F; 4096]), "not a Linux bzImage"),
        (parse(&whole[..0x220]), "truncated"),
        (parse(&whole[..whole.len() - 64]), "truncated"),
        (parse(&edited(0x206, &[0x0B, 2])), "2.11"),
        (parse(&edited(0x236, &[0, 0])), "32-bit"),
        (parse(&edited(0x211, &[0])), "zImage"),
        (parse(&edited(0x230, &[1, 2, 3, 4])), "kernel_alignment"),
        (parse(&edited(0x258, &[0; 8])), "pref_address"),
        (parse(&edited(0x260, &[0; 4])), "init_size"),
    ];
    let kernel = KernelImage::parse(&whole).expect("a bzImage");
    let planned = |initrd, line: &str, mib| {
        plan(&kernel, initrd, line, &shape(mib * MIB))
            .expect_err("no room")
            .to_string()
    };
    let more = [
        (planned(0, "", 16), "needs 2048 KiB"),
        (planned(64 * MIB, "", 64), "initrd of 65536 KiB"),
        (planned(u64::MAX, "", 64), "initrd"),
        (
            planned(0, &"x".repeat(2048), 64),
            "2048 bytes, but this kernel reads 2047",
        ),
        (planned(0, "a\0b", 64), "zero byte at 1"),
    ];
    for (text, wanted) in cases.into_iter().chain(more) {
        assert!(
            text.contains(wanted) && text.ends_with("the VM was not started"),
            "{text}"
        );
    }
}

#[test]
fn a_large_initrd_goes_above_4_gib_only_if_the_kernel_can_find_it() {
    let nodes = vec![VirtualNode {
        memory_bytes: 6 << 30,
        vcpus: vec![0],
    }];
    let shape = VmShape::new(nodes, vec![vec![10]], 1).expect("a valid shape");
    let file = image();
    let kernel = KernelImage::parse(&file).expect("a bzImage");
    // Below initrd_addr_max there are 2 GiB less the kernel.
    let high = plan(&kernel, 5 << 29, "", &shape)
        .expect("room above 4 GiB")
        .initrd
        .expect("an initrd");
    assert!(high.gpa.0 >= 4 << 30 && high.gpa.0 + high.bytes <= 7 << 30);
    let low = plan(&kernel, 1 << 29, "", &shape)
        .expect("room")
        .initrd
        .expect("an initrd");
    assert!(
        low.gpa.0 + low.bytes <= 0x8000_0000,
        "initrd_addr_max holds"
    );
    let file = edited(0x236, &[1, 0]);
    let kernel = KernelImage::parse(&file).expect("a bzImage");
    assert!(matches!(
        plan(&kernel, 5 << 29, "", &shape),
        Err(LinuxError::InitrdDoesNotFit { .. })
    ));
}

#[test]
fn an_initrd_that_was_not_planned_for_is_refused() {
    let file = image();
    let kernel = KernelImage::parse(&file).expect("a bzImage");
    let shape = shape(64 * MIB);
    let memory = VecMemory::new(&shape.memory);
    let plan = plan(&kernel, 10, "", &shape).expect("room");
    assert_eq!(
        load(&plan, &kernel, &[0; 9], &memory),
        Err(LinuxError::InitrdChanged {
            planned: 10,
            given: 9
        })
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Whatever is done to the header, the answer is a plan inside RAM or a sentence.
    #[test]
    fn a_damaged_image_never_panics(
        edits in proptest::collection::vec((0x1F0usize..0x270, any::<u8>()), 0..8),
        length in 0usize..0x3500,
        initrd in any::<u64>(),
    ) {
        let mut f = image();
        for (at, value) in edits {
            f[at] = value;
        }
        // Half of the cases keep the whole file.
        f.truncate(if length < 0x1A00 { f.len() } else { length });
        let shape = shape(64 * MIB);
        match KernelImage::parse(&f) {
            Err(e) => {
                let text = e.to_string();
                prop_assert!(text.ends_with("the VM was not started"));
            }
            Ok(kernel) => {
                let _ = kernel.version();
                if let Ok(p) = plan(&kernel, initrd % (80 * MIB), "x", &shape) {
                    prop_assert!(shape.memory.is_ram(p.kernel, p.kernel_bytes));
                    if let Some(i) = p.initrd {
                        prop_assert!(shape.memory.is_ram(i.gpa, i.bytes));
                        prop_assert!(i.gpa.0 >= p.kernel.0 + p.kernel_bytes);
                    }
                }
            }
        }
    }
}
