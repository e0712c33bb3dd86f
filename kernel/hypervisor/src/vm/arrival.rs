//! Where guests and the hypervisor wait for a page that is on the move.
//!
//! A few words for all VMs: whoever finds a page frozen waits until the word of its 2 MiB has changed, and
//! looks again. So nobody holds a lock while he waits, and nobody takes one again and again.

use core::sync::atomic::{AtomicU64, Ordering::SeqCst};
use units::{Gpa, PageSize, VmId};

const WORDS: usize = 64;

static ARRIVALS: [AtomicU64; WORDS] = [const { AtomicU64::new(0) }; WORDS];

fn word(vm: VmId, at: Gpa) -> Option<&'static AtomicU64> {
    let granule = at.0 / PageSize::Size2M.bytes() + u64::from(vm.0);
    ARRIVALS.get(granule as usize % WORDS)
}

/// A page has arrived, or stays where it was: it is mapped again.
pub fn tell(vm: VmId, at: Gpa) {
    if let Some(word) = word(vm, at) {
        word.fetch_add(1, SeqCst);
    }
}

/// Waits until a page is no longer away. The caller holds no lock that its mover could want.
pub fn wait(vm: VmId, at: Gpa, is_away: impl Fn() -> bool) {
    let Some(word) = word(vm, at) else { return };
    loop {
        // Before the look, so that an arrival after it is noticed.
        let seen = word.load(SeqCst);
        if !is_away() {
            return;
        }
        while word.load(SeqCst) == seen {
            core::hint::spin_loop();
        }
    }
}
