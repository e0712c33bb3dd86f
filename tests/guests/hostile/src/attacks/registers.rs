//! Ports, model-specific registers and instructions by the thousand.

use kit::{apic, attempt, cpu, print};

/// A generator of Steele, Lea and Flood's kind (SplitMix64): every seed gives another sequence.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }
}

fn random() -> Random {
    let seed = kit::number("seed").unwrap_or(1);
    print!("seed {seed}");
    Random(seed)
}

/// Ports whose writing ends the machine: that is their use, and no attack.
fn ends_the_machine(port: u16) -> bool {
    // An access of four bytes reaches three ports further.
    let reaches = |target: u16| (target.saturating_sub(3)..=target).contains(&port);
    [0x64, 0x92, 0xf4, 0xf5, 0xf6, 0xf7, 0x604, 0x605, 0xcf9]
        .into_iter()
        .any(reaches)
}

/// Every port, in and out, in every size.
pub fn ports() {
    let mut random = random();
    let (mut read, mut written) = (0_u32, 0_u32);
    for port in 0..=u16::MAX {
        core::hint::black_box((cpu::inb(port), cpu::inw(port), cpu::inl(port)));
        read += 3;
        if ends_the_machine(port) {
            continue;
        }
        let value = random.next();
        cpu::outb(port, value as u8);
        cpu::outw(port, (value >> 8) as u16);
        cpu::outl(port, (value >> 16) as u32);
        written += 3;
        if port % 0x2000 == 0 {
            kit::serial::reset();
            print!("port {port:#x}");
        }
    }
    kit::serial::reset();
    print!("PORTS {read} read, {written} written");
}

/// The ranges of the processors' bitmaps, hypervisors' own, and random ones.
pub fn msrs() {
    const RANDOM: u32 = 100_000;
    let mut random = random();
    let mut tally = Tally::default();
    for range in [
        0..0x2000,
        0x4000_0000..0x4000_0400,
        0x4b56_4d00..0x4b56_4d10,
        0xc000_0000..0xc000_2000,
        0xc001_0000..0xc001_2000_u32,
    ] {
        let (from, before) = (range.start, tally);
        range.for_each(|number| tally.try_one(number, random.next()));
        print!(
            "MSRS from {from:#x}: {} of {} refused",
            tally.refused - before.refused,
            tally.tried - before.tried
        );
    }
    for _ in 0..RANDOM {
        let number = random.next();
        tally.try_one(number as u32, random.next());
    }
    apic::switch_on();
    print!(
        "MSRS {} tried, {} refused, {} read",
        tally.tried, tally.refused, tally.read
    );
}

#[derive(Clone, Copy, Default)]
struct Tally {
    tried: u32,
    refused: u32,
    read: u32,
}

impl Tally {
    /// Reads a register, writes nonsense, and writes back what it held.
    fn try_one(&mut self, number: u32, nonsense: u64) {
        let (low, high): (u32, u32);
        let read = attempt!("rdmsr"; in("ecx") number, out("eax") low, out("edx") high);
        self.tried += 2;
        self.refused += u32::from(read.is_some());
        self.read += u32::from(read.is_none());
        let write = |value: u64| attempt!("wrmsr"; in("ecx") number, in("eax") value as u32, in("edx") (value >> 32) as u32);
        // Where it is put, EFER would take the ground from under this very program, and the pages of a
        // hypervisor's clock are written to memory wherever they are said to be.
        let lethal =
            number == 0xc000_0080 || number == 0x11 || number == 0x12 || number >> 8 == 0x4b_564d;
        let value = if lethal { u64::MAX } else { nonsense };
        self.refused += u32::from(write(value).is_some());
        if read.is_none() {
            core::hint::black_box(write(u64::from(high) << 32 | u64::from(low)));
        }
    }
}

/// Values of XCR0 that no processor takes.
pub fn xsetbv() {
    cpu::set_cr4(cpu::cr4() | 1 << 18);
    for (register, value) in [
        (0, 0),
        (0, 2),
        (0, 4),
        (0, 5),
        (0, 6),
        (0, 1 << 63),
        (0, u64::MAX),
        (1, 7),
        (0xffff, 3),
    ] {
        let (low, high) = (value as u32, (value >> 32) as u32);
        let caught = attempt!("xsetbv"; in("ecx") register, in("eax") low, in("edx") high);
        if caught.is_none_or(|c| c.vector != 13) {
            print!("XSETBV {register} with {value:#x} gives {caught:?}");
            print!("GUEST-RESULT failed: XSETBV was not refused");
            kit::power::off(1);
        }
    }
    cpu::set_cr4(cpu::cr4() & !(1 << 18));
}

/// Hypercalls of both vendors, with all numbers.
pub fn hypercalls() {
    for number in 0..200_u64 {
        core::hint::black_box(attempt!("vmmcall"; inout("rax") number => _));
        core::hint::black_box(attempt!("vmcall"; inout("rax") u64::MAX - number => _));
    }
}

/// CPUID, all leaves there may be.
pub fn cpuid() {
    for leaf in (0..0x20)
        .chain(0x4000_0000..0x4000_0010)
        .chain(0x8000_0000..0x8000_0020)
    {
        core::hint::black_box(cpu::cpuid(leaf, leaf & 3));
    }
}
