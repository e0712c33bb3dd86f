//! The neighbour: works, and says four times a second how far it came.
//!
//! How fast it comes along is a question of the host's load as well. So it marks its laps for an observer outside,
//! who counts what the hypervisor executes on its processor meanwhile, and says at the end how many instructions of
//! its own they had and how long they took: the rest is what others cost it.

use core::arch::asm;

use kit::{clock, cpu, mark, print};

/// Between two lines.
const INTERVAL_US: u64 = 250_000;
/// The observer's number for a lap.
const CLASS: u32 = 40;
/// How often the loop of [`work`] runs, and the instructions of each time.
const TIMES: u64 = 4000;
const EACH: u64 = 256;
/// How long the operator has for a look at the VM before it ends.
const STAYS_US: u64 = 2_000_000;

/// `TIMES * EACH` instructions.
fn work() {
    // SAFETY: arithmetic in registers.
    unsafe {
        asm!(
            "2:", ".rept 254", "lea {x}, [{x} + 2 * {x} + 1]", ".endr", "dec {n}", "jnz 2b",
            x = inout(reg) 1_u64 => _, n = inout(reg) TIMES => _, options(nomem, nostack),
        );
    }
}

/// Counts for `seconds=`.
pub fn count() {
    let seconds = kit::number("seconds").unwrap_or(30);
    let began = cpu::tsc();
    let mut all = 0;
    while clock::us(began, cpu::tsc()) < seconds * 1_000_000 {
        let (from, mut n) = (cpu::tsc(), 0_u64);
        mark::lap::<CLASS>();
        while clock::us(from, cpu::tsc()) < INTERVAL_US {
            work();
            n += TIMES * EACH;
        }
        mark::lap::<0>();
        all += n;
        // Its own count in its own second.
        let took = clock::us(from, cpu::tsc()).max(1);
        print!("COUNT {}", n * 1_000_000 / took);
    }
    let took = clock::us(began, cpu::tsc());
    mark::flush();
    print!("COUNTED {all} instructions in {took} us");
    clock::delay_us(STAYS_US);
}
