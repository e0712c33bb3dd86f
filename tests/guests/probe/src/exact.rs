//! Reads and writes blocks that a seed draws, each exactly once, while nothing else touches them.
//!
//! The operator begins a round (the hypervisor forgets what was touched), types `g`, and asks once
//! the guest says that it has done its part. Code, stack and page tables lie below the range.
#![expect(unsafe_code, reason = "memory is touched by address")]

use crate::console::{self, println};
use crate::words::Words;
use crate::{cpu, mark, second};
use core::sync::atomic::{AtomicU64, Ordering::SeqCst};
use layouts::{Kind, kind};

/// Bytes of the blocks of each step.
const STEPS: [(&str, u64); 2] = [("4k", 4096), ("2m", 2 << 20)];

/// How long the operator's line has to become quiet: what it carries takes the processor out of this guest.
const QUIET_MS: u64 = 300;

/// What a round is about.
#[derive(Clone, Copy)]
struct Round {
    seed: u64,
    number: u64,
    from: u64,
    step: u64,
    blocks: u64,
}

/// The same for the second processor.
static SHARED: [AtomicU64; 5] = [const { AtomicU64::new(0) }; 5];

impl Round {
    fn share(self) {
        let Self {
            seed,
            number,
            from,
            step,
            blocks,
        } = self;
        for (slot, value) in SHARED.iter().zip([seed, number, from, step, blocks]) {
            slot.store(value, SeqCst);
        }
    }

    fn shared() -> Self {
        let [seed, number, from, step, blocks] =
            [0, 1, 2, 3, 4].map(|i: usize| SHARED[i].load(SeqCst));
        Self {
            seed,
            number,
            from,
            step,
            blocks,
        }
    }

    /// Every so many blocks from this one on.
    fn touch(self, first: u64, every: u64) {
        for index in (first..self.blocks).step_by(every as usize) {
            // Not always the block's first page or word.
            let inside = (index.wrapping_mul(0x9e37_79b9) % self.step) & !7;
            let at = core::ptr::with_exposed_provenance_mut::<u64>(
                (self.from + index * self.step + inside) as usize,
            );
            // SAFETY: this guest's memory, which nothing else uses.
            unsafe {
                match kind(self.seed, self.number, index) {
                    Kind::Untouched => {}
                    Kind::Read => drop(at.read_volatile()),
                    Kind::Written => at.write_volatile(index),
                }
            }
        }
    }
}

/// All rounds; where there are two processors, each touches every other block.
pub fn run(words: &Words<'_>, cpus: u64) -> Result<(), &'static str> {
    let seed = words.number("seed").unwrap_or(1);
    let rounds = words.number("rounds").unwrap_or(2);
    let from = words.number("from").unwrap_or(32) << 20;
    let bytes = words.number("mib").unwrap_or(32) << 20;
    let named = |step: &str| {
        STEPS
            .iter()
            .find(|(name, _)| *name == step)
            .map(|(_, bytes)| *bytes)
    };
    let step = words
        .value("step")
        .and_then(named)
        .ok_or("step is 4k or 2m")?;
    if from < 8 << 20 {
        return Err("the range must not begin in what this guest uses itself");
    }
    for round in 0..rounds {
        println!("EXACT ready round={round}");
        console::wait_for(b'g');
        let typed = cpu::now_ms();
        while cpu::now_ms() < typed + QUIET_MS {
            core::hint::spin_loop();
        }
        mark::open();
        let plan = Round {
            seed,
            number: round,
            from,
            step,
            blocks: bytes / step,
        };
        if cpus > 1 {
            plan.share();
            second::give(|| Round::shared().touch(1, 2));
        }
        plan.touch(0, cpus);
        if cpus > 1 {
            second::finished();
        }
        mark::close();
        println!("EXACT touched round={round}");
        console::wait_for(b'g');
    }
    mark::flush();
    Ok(())
}
