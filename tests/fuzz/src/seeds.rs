//! Inputs to start from: each goes deep into its target, so that the search need not guess magic numbers.

use topology::build;

/// An input of a target's corpus.
#[derive(Debug)]
pub struct Seed {
    /// The target.
    pub target: &'static str,
    /// Its file's name.
    pub name: String,
    /// The input.
    pub bytes: Vec<u8>,
}

/// All seeds.
#[must_use]
pub fn all() -> Vec<Seed> {
    let mut seeds = Vec::new();
    let mut add = |target, name: &str, bytes: Vec<u8>| {
        let name = format!("seed-{name}");
        seeds.push(Seed {
            target,
            name,
            bytes,
        });
    };
    add("acpi", "four-nodes", acpi(&FOUR));
    add("acpi", "odd-domains", acpi(&ODD));
    add("config", "readme", CONFIG.into());
    add("config", "wrong", WRONG_CONFIG.into());
    add("kernel_elf", "one-segment", elf());
    add("boot_info", "map", boot_info());
    add("bzimage", "two-mib", bzimage());
    add("multiboot", "flat", multiboot());
    for (name, bytes) in INSTRUCTIONS {
        add("emulator", name, instruction(bytes));
    }
    add("walk", "long-mode", walk(0b1_1111));
    add("walk", "pae", walk(0b1_1101));
    add("walk", "no-paging", walk(0));
    add("operands", "generator", operands());
    add("regions", "shapes", regions(0));
    add("regions", "samples", regions(1));
    add("tables", "split-and-collapse", tables());
    add("board", "timer-and-serial", BOARD.into());
    add("local_apic", "timer", LOCAL_APIC.into());
    add("cpu", "everything", vec![0xFF; 400]);
    add("cpu", "pat", cpu());
    seeds
}

/// MADT, SRAT, SLIT, HMAT, FADT and DSDT of an emulated machine (see the tables' README).
type Machine = [&'static [u8]; 6];

macro_rules! table {
    ($name:literal) => {
        include_bytes!(concat!("../../../kernel/topology/src/tests/tables/", $name))
    };
}
const FOUR: Machine = [
    table!("four.apic"),
    table!("four.srat"),
    table!("four.slit"),
    table!("four.hmat"),
    table!("four.facp"),
    table!("four.dsdt"),
];
const ODD: Machine = [
    table!("odd.apic"),
    table!("odd.srat"),
    table!("odd.slit"),
    &[],
    table!("odd.facp"),
    table!("odd.dsdt"),
];

fn acpi([madt, srat, slit, hmat, facp, dsdt]: &Machine) -> Vec<u8> {
    let mut seed = vec![1];
    let pptt = build::table(b"PPTT", 2, &[]);
    let spcr = build::table(b"SPCR", 2, &[0; 44]);
    for table in [madt, srat, slit, hmat, &pptt[..], facp, &spcr[..]] {
        seed.extend((table.len() as u16).to_le_bytes());
        seed.extend(table);
    }
    // CPUID's shifts, and four ranges of 512 MiB.
    seed.extend([0, 0, 2, 2, 4]);
    for range in 0..4_u16 {
        seed.extend((range * 512).to_le_bytes());
        seed.push(0);
        seed.extend(512_u16.to_le_bytes());
    }
    let s5 = dsdt
        .windows(4)
        .position(|name| name == b"_S5_")
        .unwrap_or(0);
    seed.extend(&dsdt[s5.saturating_sub(8)..][..64]);
    seed
}

const CONFIG: &str = r#"[host]
mode = "auto"
log = "info"
poweroff = true
quantum_ms = 10
sample_ms = 100
plan_ms = 1000
console = "auto"

[[vm]]
name = "alpha"
cpus = 2
memory = "256M"
kernel = "guests/vmlinuz"
initrd = "guests/initrd.gz"
append = "console=ttyS0"
memory_nodes = [{ node = 3, size = "192M" }, { node = 1 }]
start_node = 0
cpu_affinity = { nodes = [0, 1] }
weight = 256
cap = 50
priority = "high"
mode = "dry-run"
vnuma = true

[[vm]]
name = "beta"
cpus = 1
memory = "1G"
kernel = "k"
memory_nodes = [3]
cpu_affinity = { cpus = [0] }
"#;
const WRONG_CONFIG: &str = "[host]\nmod = \"auto\"\nquantum_ms = 0\n[[vm]]\nname = \"A B\"\ncpus = 999\nmemory = \"3M\"\nkernel = \"../x\"\nmemory_nodes = [-1]\n";

/// One segment of a page with one relocation.
fn elf() -> Vec<u8> {
    let mut file = vec![0; 0x200];
    let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"\x7fELF\x02\x01\x01");
    put(0x10, &[3, 0, 62, 0, 1]);
    put(0x18, &0x100_u64.to_le_bytes()); // entry
    put(0x20, &0x40_u64.to_le_bytes()); // program headers
    put(0x34, &[64, 0, 56, 0, 2, 0, 64]);
    let mut header = |at: usize, kind: u32, flags: u32, words: [u64; 6]| {
        put(at, &kind.to_le_bytes());
        put(at + 4, &flags.to_le_bytes());
        for (i, word) in words.into_iter().enumerate() {
            put(at + 8 + 8 * i, &word.to_le_bytes());
        }
    };
    // PT_LOAD, then PT_DYNAMIC with RELA, RELASZ, RELAENT.
    header(0x40, 1, 7, [0, 0, 0, 0x200, 0x1000, 0x1000]);
    header(0x78, 2, 6, [0x120, 0x120, 0x120, 0x40, 0x40, 8]);
    for (i, (tag, value)) in [(7_u64, 0x180_u64), (8, 24), (9, 24), (0, 0)]
        .into_iter()
        .enumerate()
    {
        put(0x120 + 16 * i, &tag.to_le_bytes());
        put(0x128 + 16 * i, &value.to_le_bytes());
    }
    // R_X86_64_RELATIVE at 1A0h: base + 100h.
    put(0x180, &0x1A0_u64.to_le_bytes());
    put(0x188, &8_u64.to_le_bytes());
    put(0x190, &0x100_u64.to_le_bytes());
    file
}

fn boot_info() -> Vec<u8> {
    let mut seed = vec![1];
    let fields = [
        0x10_0000_u64,
        4,
        0x20_0000,
        1,
        0xF_0000,
        0x100_0000,
        0x20_0000,
        4 << 30,
        1_700_000_000,
    ];
    for field in fields {
        seed.extend(field.to_le_bytes());
    }
    // Conventional memory, then loader data, runtime code and a device within and behind it.
    for (base, pages, kind) in [
        (0_u16, 160_u16, 7),
        (16, 64, 2),
        (128, 64, 5),
        (400, 16, 11),
    ] {
        seed.push(0);
        seed.extend(base.to_le_bytes());
        seed.extend(pages.to_le_bytes());
        seed.extend([kind, 0]);
    }
    seed
}

/// A VM of 32 MiB, an initrd of 4 KiB, and a kernel of one setup sector.
fn bzimage() -> Vec<u8> {
    let mut file = vec![0; 0x800];
    let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    put(0x1F1, &[1]);
    put(0x1F4, &[0x40, 0, 0, 0]);
    put(0x1FE, &[0x55, 0xAA, 0xEB, 0x6A]);
    put(0x202, b"HdrS\x0f\x02");
    put(0x211, &[1]);
    put(0x22C, &0x7FFF_FFFF_u32.to_le_bytes());
    put(0x230, &0x20_0000_u32.to_le_bytes());
    put(0x234, &[1, 0, 3, 0]);
    put(0x238, &2047_u32.to_le_bytes());
    put(0x258, &0x100_0000_u64.to_le_bytes());
    put(0x260, &0x20_0000_u32.to_le_bytes());
    let mut seed = vec![16];
    seed.extend(4096_u32.to_le_bytes());
    seed.extend(file);
    seed
}

/// A flat kernel at 1 MiB with its header in front, in a VM of 32 MiB, with a module of 4 KiB.
fn multiboot() -> Vec<u8> {
    let mut seed = vec![16];
    seed.extend(4096_u32.to_le_bytes());
    seed.push(0);
    let list = b"one two,three";
    seed.extend((list.len() as u16).to_le_bytes());
    seed.extend(list);
    let (magic, flags, base) = (0x1BAD_B002_u32, 0x1_0003_u32, 0x10_0000_u32);
    let checksum = 0_u32.wrapping_sub(magic).wrapping_sub(flags);
    // Header, load, end of data, end of BSS, entry.
    for word in [
        magic,
        flags,
        checksum,
        base,
        base,
        base + 64,
        base + 0x2000,
        base + 32,
    ] {
        seed.extend(word.to_le_bytes());
    }
    seed.resize(seed.len() + 64, 0x90);
    seed
}

const INSTRUCTIONS: [(&str, &[u8]); 14] = [
    ("mov-load", &[0x8B, 0x07]),
    ("mov-store", &[0x48, 0x89, 0x47, 0x08]),
    ("movzx", &[0x0F, 0xB6, 0x07]),
    ("lock-add", &[0xF0, 0x01, 0x07]),
    ("rep-movs", &[0xF3, 0xA5]),
    ("repne-scas", &[0xF2, 0xAE]),
    ("repe-cmps", &[0xF3, 0xA6]),
    ("cmpxchg8b", &[0x0F, 0xC7, 0x0F]),
    ("bts", &[0x0F, 0xAB, 0x07]),
    ("push", &[0xFF, 0x37]),
    ("call", &[0xFF, 0x17]),
    ("rcl", &[0xD3, 0x17]),
    ("movups", &[0x0F, 0x10, 0x07]),
    ("vmovdqu", &[0xC5, 0xFE, 0x6F, 0x07]),
];

/// 64-bit code without paging, all registers at the end of memory: the operand straddles it.
fn instruction(bytes: &[u8]) -> Vec<u8> {
    let mut seed = vec![0];
    seed.extend((1_u32 << 9 | 1 << 18).to_le_bytes()); // CR4
    seed.extend([0; 2]); // CR3
    seed.extend([0; 4]); // PKRU
    seed.push(2); // width of addresses
    seed.extend([0, 16]); // 64-bit code, AVX
    for _ in 0..17 {
        seed.extend([2, 2]); // two bytes before the end of memory
    }
    seed.extend([0; 4]); // flags
    seed.extend([0; 6]); // flat segments
    seed.push(bytes.len() as u8);
    seed.extend(bytes);
    seed.extend(*b"perigee.");
    seed
}

/// Every entry points to table 1, present, writable, for users.
fn walk(mode: u8) -> Vec<u8> {
    let mut seed = vec![mode];
    seed.extend((1_u32 << 5).to_le_bytes());
    seed.extend(0x1000_u16.to_le_bytes());
    seed.extend([0; 4]);
    seed.push(2);
    seed.extend(0x1234_u64.to_le_bytes());
    seed.extend([0, 1, 0]);
    seed.extend(0x1007_u64.to_le_bytes());
    seed
}

/// 64-bit code without paging: a multiplication, a load, and a jump to the beginning.
fn operands() -> Vec<u8> {
    let mut seed = vec![0; 1 + 14];
    seed.extend([1, 0x34, 0x12].repeat(16));
    seed.extend([0; 2 + 4]);
    seed.extend([0; 6]);
    seed.extend([0, 0]);
    // imul rsi, rcx; movzx eax, si; shr eax, 3; mov rbx, [rdi + rax]; jmp
    seed.extend([0x48, 0x0F, 0xAF, 0xF1, 0x0F, 0xB7, 0xC6, 0xC1, 0xE8, 0x03]);
    seed.extend([0x48, 0x8B, 0x1C, 0x07, 0xEB, 0xF0]);
    seed
}

/// Sixty-four regions, and some history.
fn regions(kind: u8) -> Vec<u8> {
    let mut seed = vec![64, 8, 20, 40, kind];
    seed.extend([
        4, 1, 20, 40, 7, 0, 0, 0, 32, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 64,
    ]);
    seed.extend((0..2000u32).map(|i| ((i * i) >> 3) as u8));
    seed
}

/// Two MiB mapped, split, one page unmapped and mapped again, and joined.
fn tables() -> Vec<u8> {
    let mut seed = vec![31, 0];
    for (what, size) in [(0, 1), (4, 1), (2, 0), (0, 0), (5, 1)] {
        seed.extend([what, 0, 0, 0, 0, 1, 0, size, 2, 0]);
    }
    seed
}

/// Counter 0 as a rate generator, the clock, a byte for the serial port, and time.
const BOARD: [u8; 42] = [
    0, 0, 0, 0, 0, 0, 0, 0, // time of day
    3, 9, 0x34, 0, 0, 0, // OUT 43h, 34h
    3, 6, 0x10, 0, 0, 0, 3, 6, 0x27, 0, 0, 0, // OUT 40h, twice
    3, 20, b'x', 0, 0, 0, // OUT 3F8h
    14, 0, 0, 1, 0, // time
    11, 10, 0x30, 0, 13,
];

/// Software-enabled, the timer periodic, time, an interrupt accepted and ended.
const LOCAL_APIC: [u8; 32] = [
    0, 0, 0, // clock, role, number
    2, 0x0F, 0xFF, 1, 0, 0, // SVR
    2, 0x32, 0x40, 0, 2, 0, // LVT timer
    2, 0x38, 0, 1, 0, 0, // initial count
    15, 0, 0, 1, 0, // time
    11, 2, 0x0B, 0, 0, 0,
];

/// A host without anything, and a write to IA32_PAT.
fn cpu() -> Vec<u8> {
    let mut seed = vec![0; 1 + 12 * 16 + 1 + 8 + 1 + 33 + 3 * 0x40];
    seed.push(6);
    seed.push(0x77);
    seed.extend(0x0007_0406_0007_0406_u64.to_le_bytes());
    seed
}
