//! What Perigee's guests do: touch memory in a known way and check that nothing of it was lost.
//!
//! A VM under test needs a load whose truth is known from the first byte to the last. So each thread
//! owns a slice of memory, fills every word of it from a seed, touches it in a chosen pattern for a
//! while, and then compares every word with what it must be. Reads are checked as they are
//! made, by sums; writes are counted per page, so that a single lost write shows at the end, which is what a
//! page moved under a running guest puts at risk. Meanwhile all threads watch that the monotonic clock
//! never goes back.
//!
//! The loop that touches memory carries a *tag*, a NOP with a magic displacement ([`touch`]), by which the
//! laboratory's emulator plugin knows which accesses to count.
//!
//! ```text
//! workload [--threads N] [--mib M] [--seconds S | --passes P] [--pattern seq|random|zipf|chase]
//!          [--write-percent W] [--tag T] [--seed X] [--guest-node K | --touch-only-node K [--shift T]] [--idle]
//! workload --window open|close
//! ```
//!
//! Output: `WORKLOAD t=3 ops=... ops/s=...` once a second, `WORKLOAD-MISMATCH ...` for the first damaged
//! words, and a last line `WORKLOAD-RESULT {...}` in JSON. Exit status 0 if all is well, 1 if memory or
//! the clock is not, 2 for wrong usage.
//!
//! Read next: [`run`], then [`slice`] for what memory holds and [`touch`] for the tagged loops.

mod args;
mod pattern;
mod run;
mod slice;
mod system;
mod touch;

use std::process::ExitCode;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    // For programs that know nothing of the observer: a script opens and closes the window around them.
    match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["--window", "open"] => {
            touch::open_window();
            return ExitCode::SUCCESS;
        }
        ["--window", "close"] => {
            touch::close_window();
            return ExitCode::SUCCESS;
        }
        _ => {}
    }
    let args = match args::parse(words.iter().map(String::as_str)) {
        Ok(args) => args,
        Err(problem) => {
            eprintln!("workload: {problem}");
            return ExitCode::from(2);
        }
    };
    match run::run(&args) {
        Ok(result) => {
            println!("WORKLOAD-RESULT {}", result.json());
            ExitCode::from(u8::from(!result.ok()))
        }
        Err(problem) => {
            eprintln!("workload: {problem}");
            ExitCode::from(2)
        }
    }
}
