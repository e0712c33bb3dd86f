//! A word behind a store buffer.

use memory::entry::Word;
use shuttle::rand::{Rng, thread_rng};
use shuttle::sync::atomic::{AtomicU64, Ordering};
use shuttle::thread::{self, ThreadId};
use std::sync::Mutex;

/// What a store does before the next instruction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stores {
    /// A full fence follows it: every CPU sees it.
    Fenced,
    /// It may stay in the store buffer for a while.
    Buffered,
}

/// A word of memory that one CPU writes and all read (SDM 3A 9.2: a CPU sees its own stores at once, others see
/// them when they leave its buffer, in order).
#[derive(Debug)]
pub struct Buffered {
    memory: AtomicU64,
    /// The store that waits, and whose it is. Never locked across a scheduling point.
    waiting: Mutex<Option<(ThreadId, u64)>>,
    stores: Stores,
}

impl Buffered {
    /// 0, written with or without fences.
    pub fn new(stores: Stores) -> Self {
        Self {
            memory: AtomicU64::new(0),
            waiting: Mutex::new(None),
            stores,
        }
    }

    fn waiting(&self) -> Option<(ThreadId, u64)> {
        *self.waiting.lock().expect("no poison")
    }

    /// The waiting store reaches memory.
    fn drain(&self) {
        let waiting = self.waiting.lock().expect("no poison").take();
        if let Some((_, value)) = waiting {
            self.memory.store(value, Ordering::SeqCst);
        }
    }
}

impl Word for Buffered {
    fn load(&self) -> u64 {
        match self.waiting() {
            Some((owner, value)) if owner == thread::current().id() => return value,
            // Sooner or later it drains; who waits for it sees that.
            Some(_) if thread_rng().gen_range(0..4) == 0 => self.drain(),
            _ => {}
        }
        self.memory.load(Ordering::SeqCst)
    }
    fn publish(&self, value: u64) {
        // Stores leave the buffer in order.
        self.drain();
        *self.waiting.lock().expect("no poison") = Some((thread::current().id(), value));
        if self.stores == Stores::Fenced {
            self.drain();
        }
    }
    fn bump(&self) -> u64 {
        self.drain();
        self.memory.fetch_add(1, Ordering::SeqCst) + 1
    }
}
