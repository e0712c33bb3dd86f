//! Counts its own progress, for shares of CPU time.

use crate::console::println;
use crate::cpu;
use crate::words::Words;

/// Rounds between two looks at the clock, which is an instruction that need not exit.
const BATCH: u64 = 100_000;

fn work(additions: u64) {
    for i in 0..additions {
        core::hint::black_box(i);
    }
}

/// Counts for `seconds` and reports every second: `COUNT ms=... n=...`.
pub fn run(words: &Words<'_>) -> Result<(), &'static str> {
    let seconds = words.number("seconds").unwrap_or(30);
    let began = cpu::now_ms();
    let (mut n, mut reported) = (0u64, 0);
    loop {
        work(BATCH);
        n += 1;
        let ms = cpu::now_ms() - began;
        if ms / 1000 > reported {
            reported = ms / 1000;
            println!("COUNT ms={ms} n={n}");
        }
        if ms >= seconds * 1000 {
            return Ok(());
        }
    }
}
