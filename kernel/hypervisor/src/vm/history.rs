//! What a virtual CPU did last: a small ring of exits and of events that it was given.

use crate::virt::{Event, Exit};
use units::Nanos;

/// How many are kept.
const LENGTH: usize = 32;

/// One thing that happened.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// When, by the host's clock.
    pub at: Nanos,
    /// The guest's instruction pointer then.
    pub rip: u64,
    /// What.
    pub what: What,
}

/// What happened.
#[derive(Clone, Copy, Debug)]
pub enum What {
    /// It left the guest.
    Exit(Exit),
    /// It entered the guest with this event.
    Event(Event),
}

/// The ring; belongs to whoever runs the virtual CPU.
#[derive(Debug)]
pub struct History {
    entries: [Option<Entry>; LENGTH],
    next: usize,
}

impl History {
    /// Nothing has happened.
    pub const fn new() -> Self {
        Self {
            entries: [None; LENGTH],
            next: 0,
        }
    }

    /// Remembers it instead of the oldest.
    pub fn add(&mut self, at: Nanos, rip: u64, what: What) {
        if let Some(slot) = self.entries.get_mut(self.next % LENGTH) {
            *slot = Some(Entry { at, rip, what });
        }
        self.next = (self.next + 1) % LENGTH;
    }

    /// All that is remembered, oldest first.
    pub fn entries(&self) -> impl DoubleEndedIterator<Item = &Entry> {
        let (new, old) = self.entries.split_at(self.next % LENGTH);
        old.iter().chain(new).flatten()
    }

    /// The last exit.
    pub fn last_exit(&self) -> Option<Exit> {
        self.entries().rev().find_map(|entry| match entry.what {
            What::Exit(exit) => Some(exit),
            What::Event(_) => None,
        })
    }
}
