//! The lock, and what is counted under it.

use core::hint::black_box;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};

use kit::{clock, cpu, print, smp, this};

kit::guest!("locks", main);

/// Between two reports.
const REPORT_US: u64 = 500_000;
/// How long the others may take to see that it is over.
const END_MS: u64 = 60_000;

static LOCK: AtomicBool = AtomicBool::new(false);
/// Who is inside, and how often somebody was.
static INSIDE: AtomicU64 = AtomicU64::new(0);
static DONE: AtomicU64 = AtomicU64::new(0);
static BROKEN: AtomicU64 = AtomicU64::new(0);
static OVER: AtomicBool = AtomicBool::new(false);

fn main() {
    (1..smp::online()).for_each(|index| smp::give(index, contend));
    contend();
    let all = (1..smp::online()).all(|index| smp::done_within_ms(index, END_MS));
    let (done, broken) = (DONE.load(SeqCst), BROKEN.load(SeqCst));
    match (all, broken) {
        (true, 0) => print!("GUEST-RESULT ok n={done}"),
        (true, _) => print!("GUEST-RESULT mismatch {broken} times two were inside"),
        (false, _) => print!("GUEST-RESULT failed: a processor did not come to its end"),
    }
}

/// Takes the lock again and again; the first processor keeps the time.
fn contend() {
    let times = |key, or| kit::number(key).unwrap_or(or);
    let (outside, inside) = (times("outside", 2000), times("inside", 500));
    let (limit, first) = (times("seconds", 20) * 1_000_000, this().index == 0);
    let (began, mut reported) = (cpu::tsc(), 0);
    while !OVER.load(Relaxed) {
        work(outside);
        lock();
        let n = pass(inside);
        LOCK.store(false, SeqCst);
        let us = clock::us(began, cpu::tsc());
        if first && us / REPORT_US > reported {
            reported = us / REPORT_US;
            print!("LOCKS ms={} n={n}", us / 1000);
        }
        if first && us > limit {
            OVER.store(true, SeqCst);
        }
    }
}

fn work(steps: u64) {
    (0..steps).for_each(|step| {
        black_box(step);
    });
}

/// Looks at it before it asks for it, and pauses between two looks.
fn lock() {
    while LOCK.load(Relaxed) || LOCK.swap(true, SeqCst) {
        cpu::pause();
    }
}

/// What is done while nobody else may be here; how often it was done.
fn pass(inside: u64) -> u64 {
    let mine = this().index as u64 + 1;
    let alone = INSIDE.swap(mine, SeqCst) == 0;
    let n = DONE.load(Relaxed) + 1;
    work(inside);
    DONE.store(n, Relaxed);
    if !alone || INSIDE.swap(0, SeqCst) != mine {
        BROKEN.fetch_add(1, SeqCst);
    }
    n
}
