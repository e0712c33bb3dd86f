//! The other processors: started by INIT and SIPI, then given functions to run.

use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering::SeqCst};

use crate::boot::{MAX_CPUS, TRAMPOLINE, trampoline};
use crate::percpu::cpu;
use crate::{Tables, apic, args, clock, cpu as instructions, trap};

/// How long all of them may take to come up.
const ANSWER_MS: u64 = 20_000;

static ONLINE: AtomicUsize = AtomicUsize::new(1);

unsafe extern "C" {
    /// Numbers given out, in the boot code.
    static kit_started: AtomicU32;
}

/// Processors that are up.
pub fn online() -> usize {
    ONLINE.load(SeqCst)
}

/// Starts the others; the number of all.
pub(crate) fn start() -> usize {
    let named = args::number("cpus").map(|n| n as usize);
    let wanted = named.or(Tables::read().cpus).unwrap_or(1).min(MAX_CPUS);
    for (offset, byte) in trampoline().iter().enumerate() {
        instructions::poke((TRAMPOLINE + offset) as u64, *byte);
    }
    if wanted > 1 {
        wake(apic::ipi::OTHERS, 0);
        clock::within_ms(ANSWER_MS, || online() >= wanted);
    }
    online()
}

/// INIT, then two start-ups, as every kernel does it.
pub fn wake(shorthand: u32, target: u32) {
    let page = (TRAMPOLINE >> 12) as u32;
    apic::send(apic::ipi::INIT | apic::ipi::ASSERT | shorthand, target);
    clock::delay_us(10_000);
    for _ in 0..2 {
        apic::send(
            apic::ipi::STARTUP | apic::ipi::ASSERT | shorthand | page,
            target,
        );
        clock::delay_us(300);
    }
}

/// The next processor that wakes gets this number; for tests that stop one and start it again.
pub fn number_next(index: usize) {
    // SAFETY: the boot code's own counter, only ever touched atomically.
    unsafe { kit_started.store(index as u32, SeqCst) };
}

/// What every other processor does for ever: jobs.
pub(crate) fn serve(index: usize) -> ! {
    apic::switch_on();
    ONLINE.fetch_max(index + 1, SeqCst);
    let me = cpu(index);
    me.job.store(0, SeqCst);
    loop {
        instructions::sti();
        let job = me.job.load(SeqCst);
        if job == 0 {
            instructions::pause();
            continue;
        }
        // SAFETY: only `give` stores here, and it stores a `fn()`.
        let job: fn() = unsafe { core::mem::transmute::<usize, fn()>(job) };
        job();
        me.job.store(0, SeqCst);
    }
}

/// Gives processor `index` something to do, without waiting.
pub fn give(index: usize, job: fn()) {
    cpu(index).job.store(job as usize, SeqCst);
}

/// Whether `index` has done what it was given, waiting so long for it.
pub fn done_within_ms(index: usize, limit: u64) -> bool {
    clock::within_ms(limit, || cpu(index).job.load(SeqCst) == 0)
}

/// Runs `job` on every processor at the same time, this one included; whether all came to an end in time.
pub fn everywhere(limit_ms: u64, job: fn()) -> bool {
    (1..online()).for_each(|index| give(index, job));
    job();
    (1..online()).all(|index| done_within_ms(index, limit_ms))
}

/// A place where all processors meet before they go on.
#[derive(Debug, Default)]
pub struct Meeting(AtomicU32);

impl Meeting {
    /// Nobody has come yet.
    pub const fn new() -> Self {
        Self(AtomicU32::new(0))
    }

    /// Waits for the others.
    pub fn wait(&self) {
        let all = online() as u32;
        let round = self.0.fetch_add(1, SeqCst) / all;
        clock::within_ms(ANSWER_MS, || self.0.load(SeqCst) / all > round);
    }
}

/// Counts of all vectors on all processors are forgotten, and the gates are as they were.
pub fn forget() {
    (0..online()).for_each(|index| cpu(index).forget());
    trap::end_interrupts(true);
}
