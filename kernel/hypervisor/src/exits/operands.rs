//! Looks at what guests were about to touch when a host interrupt stopped them ([`guest::operands`]).
//!
//! A host interrupt, and the end of its time, come at a moment that the guest did not choose, so what it was doing then is a fair
//! sample of what it does; any other exit is the guest's own doing. Where no interrupt comes by itself the run loop's timer sees to
//! it, at random intervals so that nothing periodic in the guest is always or never met. A look costs some microseconds of
//! its own VM's time, a thousand times a second; where it costs more, or a VM has many virtual CPUs, it comes less often.
//!
//! An operator may want more of them (`looks` in the configuration), or none: then accessed bits alone say what is touched.
//!
//! The CPU that runs the guest writes down guest addresses; the boot CPU takes them in (`drive::intake`).

use super::{Context, decode};
use crate::arch::{percpu, time};
use crate::virt::{Backend, Exit, VcpuState};
use crate::vm::{Hypervisor, Vm};
use alloc::vec::Vec;
use guest::operands::{MOST_SKIPPED, Reader, Run};
use units::{Gpa, Nanos, NodeId};

/// So many virtual CPUs are looked at as often as was asked for; more of them share as many looks, all of which one CPU takes in.
const OFTEN: usize = 4;
/// After a look there is none for so many times as long as it took, so that a processor that is slow or crowded with others
/// loses a ninth of its guests' time at most. Who asks for more than [`USUAL`] looks a second allows for as much more.
const REST: u64 = 8;
/// See [`REST`].
const USUAL: u64 = 1000;
/// An interrupt so soon after the entry may have waited for it.
const AT_ONCE: Nanos = Nanos::from_micros(100);
/// Bytes of a VM's memory for each one that instructions which are remembered take, all its virtual CPUs together.
const PART_OF_MEMORY: u64 = 2048;
/// Pages that there is room for with each look, on average.
const KEPT: usize = 4;

/// When a virtual CPU is looked at next, and with what.
#[derive(Debug)]
pub struct NextLook {
    at: Nanos,
    dice: u64,
    reader: Reader,
}

impl NextLook {
    /// Soon after the start, at one of so many virtual CPUs of a VM with so much memory.
    pub fn new(seed: u64, memory_bytes: u64, vcpus: usize) -> Self {
        Self {
            at: Nanos::ZERO,
            dice: seed << 1 | 1,
            reader: Reader::within(room(memory_bytes, vcpus)),
        }
    }

    /// Bytes of memory that one of these takes.
    pub fn bytes(memory_bytes: u64, vcpus: usize) -> usize {
        size_of::<Self>() + Reader::bytes_within(room(memory_bytes, vcpus))
    }

    /// When, for an entry at `now`; `None` without looks. A moment that passed while the hypervisor worked is let go: it would
    /// be met by the first instruction after the exit, which is not a fair sample.
    pub fn at(&mut self, now: Nanos, looking: Option<Looking>) -> Option<Nanos> {
        let looking = looking?;
        if self.at <= now {
            self.again_after(now, Nanos::ZERO, looking);
        }
        Some(self.at)
    }

    /// After a look that took so long.
    fn again_after(&mut self, now: Nanos, took: Nanos, looking: Looking) {
        // xorshift64: it decides nothing but the moment.
        self.dice ^= self.dice << 13;
        self.dice ^= self.dice >> 7;
        self.dice ^= self.dice << 17;
        let Looking { pause, rest } = looking;
        let rest = Nanos(took.0.saturating_mul(rest));
        // From half of it to one and a half.
        self.at = now + rest + Nanos(pause.0 / 2 + self.dice % pause.0.max(1));
    }
}

/// Bytes that instructions take which a virtual CPU's reader remembers, at most.
fn room(memory_bytes: u64, vcpus: usize) -> usize {
    let room = memory_bytes / PART_OF_MEMORY / vcpus.max(1) as u64;
    usize::try_from(room).unwrap_or(usize::MAX)
}

/// How often a VM's virtual CPUs are looked at.
#[derive(Clone, Copy, Debug)]
pub struct Looking {
    /// From one look to the next, on average.
    pause: Nanos,
    /// Times what a look took.
    rest: u64,
}

impl Looking {
    /// As the operator wants it of a VM; `None` for never.
    pub fn at<B: Backend>(hv: &Hypervisor<B>, vm: &Vm<B>) -> Option<Self> {
        let looks = u64::from(hv.config.host.looks);
        let pause = Nanos::from_secs(1).0.checked_div(looks)?;
        let rarer = vm.vcpus.len().div_ceil(OFTEN).max(1) as u64;
        Some(Self {
            pause: Nanos(pause.saturating_mul(rarer)),
            rest: (REST * USUAL).div_ceil(looks.max(USUAL)),
        })
    }
}

/// What looks at a virtual CPU found and nobody has asked for yet.
#[derive(Debug, Default)]
pub struct Looks {
    touched: Vec<Touched>,
    /// Looks that found no room.
    lost: u64,
}

/// A page that was touched in one look.
#[derive(Clone, Copy, Debug)]
pub struct Touched {
    /// Where it is.
    pub page: Gpa,
    /// What its operands weigh.
    pub weight: u32,
    /// The node whose CPU ran the guest.
    pub accessor: NodeId,
    /// Whether it is the first one of its look.
    pub first: bool,
}

impl Looks {
    /// Takes out what there is, and how many looks found no room, and leaves room for more.
    pub fn take(&mut self, room: Vec<Touched>) -> (Vec<Touched>, u64) {
        let lost = core::mem::take(&mut self.lost);
        (core::mem::replace(&mut self.touched, room), lost)
    }

    /// Sees to it that there is room for so many looks, to be handed in with [`Looks::take`].
    pub fn make_room(room: &mut Vec<Touched>, looks: u32) {
        room.reserve_exact(looks as usize * KEPT);
    }

    /// Bytes that room for so many looks takes.
    pub const fn bytes_of_room(looks: u32) -> usize {
        looks as usize * KEPT * size_of::<Touched>()
    }

    /// Allocates nothing: what has no room is lost, and counted.
    fn add(&mut self, accessor: NodeId, run: &Run) {
        let room = self.touched.capacity() - self.touched.len();
        if run.pages().count() > room {
            self.lost += 1;
            return;
        }
        let pages = run.pages().enumerate();
        self.touched
            .extend(pages.map(|(i, (page, weight))| Touched {
                page,
                weight,
                accessor,
                first: i == 0,
            }));
    }
}

/// How the guest was entered.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// When.
    pub at: Nanos,
    /// Where, unless an event was injected, which may have led elsewhere.
    pub rip: Option<u64>,
}

impl Entry {
    /// Whether a guest that is at `rip` at `now` has hardly run since: the interrupt came during the world switch, and
    /// what it shows is where guests exit, not where they spend their time.
    fn was_just_now(self, rip: u64, now: Nanos) -> bool {
        now.since(self.at) < AT_ONCE && self.rip.is_none_or(|entered| entered == rip)
    }
}

/// Looks at the guest if it is time and the exit came from outside.
pub fn look<B: Backend>(ctx: &mut Context<'_, B>, exit: Exit, entry: Entry, now: Nanos) {
    let Some(looking) = Looking::at(ctx.hv, ctx.vm) else {
        return;
    };
    if now < ctx.core.look.at || !exit.is_from_outside() {
        return;
    }
    ctx.core.look.again_after(now, Nanos::ZERO, looking);
    if entry.was_just_now(ctx.core.hw.rip(), now) {
        return;
    }
    // A look is not worth waiting for whoever changes the VM's table, nor for a page on the move.
    let Some(memory) = ctx.vm.ram.glimpse() else {
        return;
    };
    let skip = (ctx.core.look.dice >> 32) as u32 % (MOST_SKIPPED + 1);
    let (paging, cpu) = (decode::paging(ctx), decode::cpu_state(ctx));
    let run = ctx.core.look.reader.look(&memory, &paging, &cpu, skip);
    drop(memory);
    if !run.is_empty() {
        ctx.vcpu.looks.lock().add(percpu::current().node, &run);
    }
    let end = time::now();
    ctx.core.look.again_after(end, end.since(now), looking);
}
