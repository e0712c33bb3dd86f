#![expect(unsafe_code, reason = "memory as it is, and a string instruction")]

use core::arch::asm;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::SeqCst};

use kit::{clock, cpu, print, serial, smp, this};

kit::guest!("stamps", main);

/// Where the pages begin: behind the guest itself.
const FROM: u64 = 4 << 20;
const PAGE: u64 = 4096;
const WORDS: u64 = PAGE / 8;
/// Pages that are followed at most.
const MOST: usize = 64 << 8;
/// The mask register of the first interrupt controller (8259A, OCW1), which nobody here needs.
const MASK_PORT: u16 = 0x21;
/// One page in so many of the last processor's is filled by the port.
const FILLED: u64 = 64;
/// Between two reports.
const REPORT_US: u64 = 2_000_000;

/// How often each page was written.
static TURNS: [AtomicU32; MOST] = [const { AtomicU32::new(0) }; MOST];
static PAGES: AtomicU64 = AtomicU64::new(0);
static MISMATCHES: AtomicU64 = AtomicU64::new(0);
static ENOUGH: AtomicBool = AtomicBool::new(false);
/// All processors but the first leave their pages as they are and halt for good.
static ALONE: AtomicBool = AtomicBool::new(false);

fn main() {
    let pages = ((kit::memory_bytes() - FROM) / PAGE).min(MOST as u64);
    PAGES.store(pages, SeqCst);
    print!("STAMPS {pages} pages");
    if let Some(few) = kit::number("only") {
        return write_to(few.min(pages));
    }
    (1..smp::online()).for_each(|index| smp::give(index, stamp));
    stamp();
    let done =
        ALONE.load(SeqCst) || (1..smp::online()).all(|index| smp::done_within_ms(index, 600_000));
    let (wrong, least) = (MISMATCHES.load(SeqCst), least_turns());
    print!("STAMPED {pages} pages, each at least {least} times; {wrong} mismatches");
    match (done, wrong) {
        (true, 0) => print!("GUEST-RESULT ok pages={pages} turns={least}"),
        (true, _) => print!("GUEST-RESULT mismatch {wrong} times a page was not what was written"),
        (false, _) => print!("GUEST-RESULT failed: a processor did not come to its end"),
    }
}

/// Compares and writes a word of each of the first pages, again and again, and touches no others.
fn write_to(few: u64) {
    let (mut rounds, mut wrong) = (0_u64, 0_u64);
    while !ENOUGH.load(SeqCst) {
        for at in (0..few).map(|page| FROM + page * PAGE) {
            wrong += u64::from(cpu::peek::<u64>(at) != rounds);
            cpu::poke(at, rounds + 1);
        }
        rounds += 1;
        // Looking for keys leaves the guest, which is not what it is watched for.
        if rounds.is_multiple_of(4096) {
            obey();
        }
    }
    match wrong {
        0 => print!("GUEST-RESULT ok pages={few} turns={rounds}"),
        _ => print!("GUEST-RESULT mismatch {wrong} times a page was not what was written"),
    }
}

fn least_turns() -> u32 {
    let turns = TURNS.iter().take(PAGES.load(SeqCst) as usize);
    turns.map(|turn| turn.load(SeqCst)).min().unwrap_or(0)
}

/// Goes round this processor's pages until somebody says that it is enough.
fn stamp() {
    let (me, all) = (this().index as u64, smp::online() as u64);
    let (seed, turns) = (
        kit::number("seed").unwrap_or(1),
        kit::number("turns").unwrap_or(10),
    );
    let pages = PAGES.load(SeqCst);
    let mut reported = cpu::tsc();
    loop {
        for page in (me..pages).step_by(all as usize) {
            let filled = me == all - 1 && page / all % FILLED == 0;
            for _ in 0..stay(page, seed, filled) {
                turn(page, seed, filled);
            }
            if me == 0 && clock::us(reported, cpu::tsc()) > REPORT_US {
                reported = cpu::tsc();
                let (least, wrong) = (least_turns(), MISMATCHES.load(SeqCst));
                print!("STAMPS turn={least} mismatches={wrong}");
            }
        }
        if me == 0 {
            obey();
        } else if ALONE.load(SeqCst) {
            halt();
        }
        let mine = (me..pages).step_by(all as usize);
        let mut turned = mine.map(|page| u64::from(TURNS[page as usize].load(SeqCst)));
        if ENOUGH.load(SeqCst) && turned.all(|turn| turn >= turns) {
            return;
        }
    }
}

/// Asks for no more of the host's time.
fn halt() -> ! {
    loop {
        cpu::cli();
        cpu::hlt();
    }
}

/// How many turns a page has in a row: one in eight has so many that a move may come and go between two of them.
fn stay(page: u64, seed: u64, filled: bool) -> u32 {
    let turn = TURNS[page as usize].load(SeqCst);
    match word_of(page, turn, seed, false).0 % 8 {
        0 if !filled => 8,
        _ => 1,
    }
}

/// Compares a page with what was written there and writes it anew.
fn turn(page: u64, seed: u64, filled: bool) {
    let turns = &TURNS[page as usize];
    let turn = turns.load(SeqCst);
    let at = FROM + page * PAGE;
    if turn > 0 {
        compare(page, at, word_of(page, turn, seed, filled));
    }
    let next = word_of(page, turn + 1, seed, filled);
    if filled {
        fill_by_port(at, next.0 as u8);
    } else {
        (0..WORDS).for_each(|i| cpu::poke(at + i * 8, nth(next, i)));
    }
    turns.store(turn + 1, SeqCst);
}

/// The first word of a page, and what each further one is more.
fn word_of(page: u64, turn: u32, seed: u64, filled: bool) -> (u64, u64) {
    // splitmix64: every bit of the word depends on page, turn and seed.
    let mut x = seed ^ page << 32 ^ u64::from(turn);
    x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^= x >> 31;
    if filled {
        (u64::from(x as u8) * 0x0101_0101_0101_0101, 0)
    } else {
        (x, x | 1)
    }
}

fn nth((first, step): (u64, u64), i: u64) -> u64 {
    first.wrapping_add(step.wrapping_mul(i))
}

fn compare(page: u64, at: u64, expected: (u64, u64)) {
    for i in 0..WORDS {
        let (found, wanted) = (cpu::peek::<u64>(at + i * 8), nth(expected, i));
        if found == wanted {
            continue;
        }
        // A few are enough to see what happened.
        if MISMATCHES.fetch_add(1, SeqCst) < 4 {
            let turn = TURNS[page as usize].load(SeqCst);
            print!("STAMPS page {page} word {i} is {found:#x}, not {wanted:#x} of turn {turn}");
        }
        return;
    }
}

/// The emulated port's bytes, written by the hypervisor.
fn fill_by_port(at: u64, byte: u8) {
    cpu::outb(MASK_PORT, byte);
    // SAFETY: the page is this processor's; the instruction writes 4096 bytes from `at` on.
    unsafe {
        asm!("cld", "rep insb", in("dx") MASK_PORT, inout("rdi") at => _, inout("rcx") PAGE => _, options(nostack));
    }
}

/// Does what has been typed.
fn obey() {
    let ready = || cpu::inb(serial::COM1 + 5) & 1 != 0;
    for _ in (0..16).take_while(|_| ready()) {
        match cpu::inb(serial::COM1) {
            b'q' => ENOUGH.store(true, SeqCst),
            b'a' => ALONE.store(true, SeqCst),
            _ => {}
        }
    }
}
