//! Visits pages in an order that a seed draws, while the observer counts.
#![expect(unsafe_code, reason = "memory is touched by address")]

use crate::console::{self, println};
use crate::words::Words;
use crate::{apic, cpu, mark, second};
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};
use layouts::{Layout, Visit, Walk};

/// First byte of what is visited.
pub const ARENA: u64 = 32 << 20;
const PAGE: u64 = 4096;
/// Accesses of a visit, all words of the page: so many that the stack and the walk's state, which are touched
/// some twenty times a visit, stay a small part of all.
const WORDS: u64 = PAGE / 8;
/// Visits between two looks at the clock.
const BATCH: u64 = 32;
/// How long a layout has been running when its window opens, in milliseconds.
const WARM_UP: u64 = 500;

static EPOCH: AtomicU64 = AtomicU64::new(0);
static STOP: AtomicBool = AtomicBool::new(false);
static PLAN: [AtomicU64; 3] = [const { AtomicU64::new(0) }; 3];

fn visit(visit: Visit) {
    let first = ARENA + visit.page * PAGE;
    for word in 0..WORDS {
        let at = core::ptr::with_exposed_provenance_mut::<u64>((first + word * 8) as usize);
        // SAFETY: inside the arena, which the caller has checked to be this guest's memory, and which nothing else
        // uses; both processors may write a word, whose value nobody cares for.
        unsafe {
            if visit.write {
                at.write_volatile(first);
            } else {
                at.read_volatile();
            }
        }
    }
}

/// The second processor's part.
fn second_part() {
    let [layout, pages, seed] = [0, 1, 2].map(|i: usize| PLAN[i].load(SeqCst));
    let layout = Layout::ALL[layout as usize % Layout::ALL.len()].1;
    let mut walk = Walk::new(layout, pages, seed, 1);
    while !STOP.load(Relaxed) {
        let epoch = EPOCH.load(Relaxed);
        (0..BATCH).for_each(|_| visit(walk.next(epoch)));
    }
}

/// Visits until the time has come.
fn visit_until(walk: &mut Walk, deadline_ms: u64) {
    while cpu::now_ms() < deadline_ms {
        let epoch = EPOCH.load(Relaxed);
        (0..BATCH).for_each(|_| visit(walk.next(epoch)));
    }
}

/// Opens a window once the layout runs, closes it `seconds` later, and goes on visiting until somebody types
/// `g`: whoever asks the hypervisor meanwhile sees it as it was in the window. There may be several `windows`, with a `pause`
/// of so many seconds between them.
pub fn run(words: &Words<'_>, cpus: u64) -> Result<(), &'static str> {
    let name = words.value("layout").unwrap_or("hot");
    let number = Layout::ALL.iter().position(|(n, _)| *n == name);
    let number = number.ok_or("there is no such layout")?;
    let seed = words.number("seed").unwrap_or(1);
    let mib = words.number("mib").unwrap_or(64);
    let seconds = words.number("seconds").unwrap_or(10);
    let pages = (mib << 20) / PAGE;
    let layout = Layout::ALL[number].1;

    for (slot, value) in PLAN.iter().zip([number as u64, pages, seed]) {
        slot.store(value, SeqCst);
    }
    if cpus > 1 {
        second::give(second_part);
    }
    let mut walk = Walk::new(layout, pages, seed, 0);
    visit_until(&mut walk, cpu::now_ms() + WARM_UP);
    // What moves does so now: the window's ten seconds are all that the hypervisor has.
    EPOCH.fetch_add(1, SeqCst);
    for window in 0..words.number("windows").unwrap_or(1) {
        if window > 0 {
            let pause = words.number("pause").unwrap_or(10);
            visit_until(&mut walk, cpu::now_ms() + pause * 1000);
        }
        mark::open();
        let closes = cpu::now_ms() + seconds * 1000;
        visit_until(&mut walk, closes);
        mark::close();
        println!(
            "PROBE window closed layout={name} first_page={} pages={pages}",
            ARENA / PAGE
        );
    }
    while console::read() != Some(b'g') {
        visit_until(&mut walk, cpu::now_ms() + 5);
    }
    STOP.store(true, SeqCst);
    if cpus > 1 {
        second::finished();
    }
    mark::flush();
    Ok(())
}

/// Sleeps for `seconds`, woken once a second or every so many `ms`, between two marks; then until it is let go, or `ends`.
pub fn idle(words: &Words<'_>) -> Result<(), &'static str> {
    mark::open();
    let every = words.number("ms").unwrap_or(1000).clamp(1, 1000);
    let nap = |seconds: u64| {
        for _ in 0..seconds * 1000 / every {
            let seen = apic::TIMERS.load(SeqCst);
            apic::arm_ms(every);
            while apic::TIMERS.load(SeqCst) == seen {
                cpu::halt();
            }
        }
    };
    nap(words.number("seconds").unwrap_or(10));
    mark::close();
    println!("PROBE window closed layout=idle");
    while !words.has("ends") && console::read() != Some(b'g') {
        nap(1);
    }
    Ok(())
}
