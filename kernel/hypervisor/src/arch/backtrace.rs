//! Who called whom, by frame pointers.
//!
//! The kernel keeps frame pointers (`.cargo/config.toml`), so `[rbp]` is the caller's frame and
//! `[rbp + 8]` the return address. A damaged chain must not fault again: every frame has to lie
//! inside a mapped stack of ours and above the one before.
#![expect(unsafe_code, reason = "reads stack frames")]

use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering};

use super::idt::TrapFrame;
use super::{entry, percpu, stack};

/// Most calls that a report shows.
pub const DEPTH: usize = 24;

/// Return addresses from the innermost call outwards.
#[derive(Clone, Debug)]
pub struct Calls {
    next_ip: Option<u64>,
    frame: u64,
    left: usize,
}

/// The calls that lead to instruction `rip` running with frame pointer `rbp`.
pub fn calls(rip: u64, rbp: u64) -> Calls {
    Calls {
        next_ip: Some(rip),
        frame: rbp,
        left: DEPTH,
    }
}

/// The calls that lead here.
#[inline(never)]
pub fn calls_here() -> Calls {
    let rbp: u64;
    // SAFETY: copies a register.
    unsafe { asm!("mov {}, rbp", out(reg) rbp, options(nomem, nostack, preserves_flags)) };
    let mut calls = Calls {
        next_ip: None,
        frame: rbp,
        left: DEPTH,
    };
    calls.next_ip = calls.step();
    calls
}

impl Calls {
    /// Reads the frame at `self.frame` and moves to its caller's.
    fn step(&mut self) -> Option<u64> {
        let at = self.frame;
        if !at.is_multiple_of(8) || !is_stack(at) || !is_stack(at.checked_add(8)?) {
            return None;
        }
        let pointer = at as *const u64;
        // SAFETY: both words lie in the mapped part of one of our stacks.
        let (caller, ip) = unsafe { (pointer.read_volatile(), pointer.add(1).read_volatile()) };
        self.frame = if caller > at { caller } else { 0 };
        (ip != 0).then_some(ip)
    }
}

impl Iterator for Calls {
    type Item = u64;

    fn next(&mut self) -> Option<u64> {
        self.left = self.left.checked_sub(1)?;
        let ip = self.next_ip?;
        self.next_ip = self.step();
        Some(ip)
    }
}

/// Whether a word at `address` is stack memory that is certainly mapped.
fn is_stack(address: u64) -> bool {
    if entry::is_boot_stack(address) {
        return true;
    }
    stack::describe(address).is_some_and(|place| !place.in_guard && percpu::of(place.cpu).is_some())
}

/// What an NMI found its CPU doing, for whoever sent it. Written by that CPU, read by others.
#[derive(Debug)]
pub struct Snapshot {
    requested: AtomicU64,
    taken: AtomicU64,
    rip: AtomicU64,
    rsp: AtomicU64,
    rbp: AtomicU64,
    rflags: AtomicU64,
    calls: [AtomicU64; DEPTH],
}

impl Snapshot {
    /// Nothing requested, nothing taken.
    pub const fn new() -> Self {
        Self {
            requested: AtomicU64::new(0),
            taken: AtomicU64::new(0),
            rip: AtomicU64::new(0),
            rsp: AtomicU64::new(0),
            rbp: AtomicU64::new(0),
            rflags: AtomicU64::new(0),
            calls: [const { AtomicU64::new(0) }; DEPTH],
        }
    }

    /// Asks for a snapshot; the answer is there when [`Self::answered`] of the ticket says so.
    pub fn request(&self) -> u64 {
        self.requested.fetch_add(1, Ordering::AcqRel) + 1
    }

    /// Whether somebody asked since the last one was taken.
    pub fn is_requested(&self) -> bool {
        self.requested.load(Ordering::Acquire) > self.taken.load(Ordering::Acquire)
    }

    /// Whether the snapshot of this ticket, or a later one, is there.
    pub fn answered(&self, ticket: u64) -> bool {
        self.taken.load(Ordering::Acquire) >= ticket
    }

    /// Records what `frame` interrupted. Called by the CPU itself.
    pub fn take(&self, frame: &TrapFrame) {
        let ticket = self.requested.load(Ordering::Acquire);
        self.rip.store(frame.rip, Ordering::Relaxed);
        self.rsp.store(frame.rsp, Ordering::Relaxed);
        self.rbp.store(frame.rbp, Ordering::Relaxed);
        self.rflags.store(frame.rflags, Ordering::Relaxed);
        let mut calls = calls(frame.rip, frame.rbp);
        for slot in &self.calls {
            slot.store(calls.next().unwrap_or(0), Ordering::Relaxed);
        }
        self.taken.store(ticket, Ordering::Release);
    }

    /// Instruction pointer, stack pointer and flags at the last snapshot.
    pub fn registers(&self) -> (u64, u64, u64) {
        (
            self.rip.load(Ordering::Relaxed),
            self.rsp.load(Ordering::Relaxed),
            self.rflags.load(Ordering::Relaxed),
        )
    }

    /// The calls at the last snapshot, innermost first.
    pub fn calls(&self) -> impl Iterator<Item = u64> {
        self.calls
            .iter()
            .map(|c| c.load(Ordering::Relaxed))
            .take_while(|ip| *ip != 0)
    }
}
