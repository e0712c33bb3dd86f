//! Isolation: one VM keeps a secret, another looks for it, and for the kernel's own words, wherever it can look.

use kit::page::{self, NO_EXECUTE, PRESENT};
use kit::{clock, cpu, print};

/// What is looked for, each byte turned over so that this program's own image holds none of it.
const SECRETS: [[u8; 16]; 3] = [
    turned(*b"perigee-secret-A"),
    turned(*b"==== PERIGEE PAN"),
    turned(*b"the scheduler ch"),
];

const fn turned(mut text: [u8; 16]) -> [u8; 16] {
    let mut i = 0;
    while i < text.len() {
        text[i] = !text[i];
        i += 1;
    }
    text
}

/// Below this lie the loader's leavings and this program.
const OWN_BYTES: u64 = 16 << 20;
const PAGE: u64 = 4096;

/// Fills its memory with the secret, and keeps it for `seconds=`.
pub fn keep() {
    let end = kit::memory_bytes();
    let secret = u128::from_le_bytes(turned(SECRETS[0]));
    for at in (OWN_BYTES..end).step_by(16) {
        cpu::poke(at, secret);
    }
    print!("KEEPS {} MiB", (end - OWN_BYTES) >> 20);
    let began = cpu::tsc();
    let seconds = kit::number("seconds").unwrap_or(60);
    while clock::us(began, cpu::tsc()) < seconds * 1_000_000 {
        clock::delay_us(250_000);
        print!("COUNT 1");
    }
}

/// Whether a page holds a secret, and whether it holds anything.
fn look(at: u64) -> (Option<usize>, bool) {
    let mut anything = false;
    for offset in (0..PAGE).step_by(8) {
        let word: u64 = cpu::peek(at + offset);
        anything |= word != 0;
        // A secret begins at any byte: its first is looked for in each of the eight.
        for (n, secret) in SECRETS.iter().enumerate() {
            let first = !secret[0];
            for i in (0..8).filter(|i| (word >> (8 * i)) as u8 == first) {
                let from = at + offset + i;
                let inside = from + 16 <= at + PAGE;
                let same = |(i, byte): (usize, &u8)| cpu::peek::<u8>(from + i as u64) == !byte;
                if inside && secret.iter().enumerate().all(same) {
                    return (Some(n), true);
                }
            }
        }
    }
    (None, anything)
}

/// Every page of memory; elsewhere one page of every 2 MiB up to `gib=`, and of every GiB up to the processor's
/// last address. A page where nothing is costs an exit for each look, so there is one look until something answers.
pub fn scan() {
    let end = kit::memory_bytes();
    let (mut pages, mut dirty, mut found) = (0_u64, 0_u64, 0_u64);
    for at in (0..end).step_by(PAGE as usize) {
        let (secret, anything) = look(at);
        pages += 1;
        dirty += u64::from(anything && at >= OWN_BYTES);
        found += report(at, secret);
    }
    print!(
        "SCAN {pages} pages of memory, {dirty} of them not zero above {} MiB",
        OWN_BYTES >> 20
    );
    let width = (kit::cpu::cpuid_if_any(0x8000_0008, 0).eax & 0xff).clamp(36, 46);
    let last = 1 << width;
    let dense = kit::number("gib").map_or(last, |gib| gib << 30).min(last);
    let (mut elsewhere, mut answered) = (0_u64, 0_u64);
    let first = end.next_multiple_of(1 << 21);
    for at in (first..dense)
        .step_by(1 << 21)
        .chain((dense..last).step_by(1 << 30))
    {
        // Devices have their own pages, and tests of their own.
        if (0xfec0_0000..0xff00_0000).contains(&at) {
            continue;
        }
        page::set(50, at, PRESENT | NO_EXECUTE);
        elsewhere += 1;
        // Each time at another place of the page, which memory with ones there would have to know.
        let offset = at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 52 & !7;
        if cpu::peek::<u64>(page::at(50) + offset) != u64::MAX {
            answered += 1;
            found += report(at, look(page::at(50)).0);
        }
    }
    page::set(50, 0, 0);
    print!(
        "SCAN {elsewhere} pages elsewhere up to {:#x}, {answered} of them answered",
        last - 1
    );
    if found > 0 || dirty > 0 || answered > 0 {
        print!(
            "GUEST-RESULT failed: {found} secrets found, {dirty} pages not zero, {answered} pages answered"
        );
        kit::power::off(1);
    }
}

fn report(at: u64, secret: Option<usize>) -> u64 {
    let Some(n) = secret else { return 0 };
    print!("SECRET {n} at {at:#x}");
    1
}
