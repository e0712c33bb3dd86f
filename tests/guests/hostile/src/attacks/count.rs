//! The neighbour: counts, and says four times a second how far it came.

use kit::{clock, cpu, print};

/// Between two lines.
const INTERVAL_US: u64 = 250_000;

/// Counts for `seconds=`.
pub fn count() {
    let seconds = kit::number("seconds").unwrap_or(30);
    let began = cpu::tsc();
    while clock::us(began, cpu::tsc()) < seconds * 1_000_000 {
        let (from, mut n) = (cpu::tsc(), 0_u64);
        while clock::us(from, cpu::tsc()) < INTERVAL_US {
            for _ in 0..1000 {
                n = core::hint::black_box(n + 1);
            }
        }
        // Its own count in its own second.
        let took = clock::us(from, cpu::tsc()).max(1);
        print!("COUNT {}", n * 1_000_000 / took);
    }
}
