//! What looks at stopped virtual CPUs found, taken in little by little.
//!
//! The CPU that runs a guest writes down guest addresses ([`Looks`]); the boot CPU finds their nodes, at each of its own looks at
//! accessed bits, so that there is never much to do at once, nor much to keep. By node it waits for the next pass; by page, and
//! by who touched what, it is remembered.

use crate::exits::operands::{Looks, NextLook, Touched};
use crate::virt::Backend;
use crate::vm::Vm;
use alloc::vec::Vec;
use config::Host;
use footprint::{Groups, Operands, PageLooks};
use units::{Gpa, Nanos, NodeId};

/// Time between two agings of looks ([`PageLooks::age`]).
const AGES: Nanos = Nanos::from_millis(500);
/// After so many of them nothing is left.
const ALL_AGES: u64 = 20;
/// Each virtual CPU has room for the looks of so many of the boot CPU's, which may come late.
const ROOM: u32 = 3;
/// Longest time that there is room for, in milliseconds.
const LONGEST: u32 = 1000;

/// What looks at one VM's virtual CPUs found.
#[derive(Debug)]
pub struct Intake {
    /// Looks that each virtual CPU has room for.
    room: u32,
    /// What the next virtual CPU writes to when it has given away what it has.
    spare: Vec<Touched>,
    /// Since the last pass, by node.
    found: Operands,
    by_page: PageLooks,
    aged: Nanos,
    /// Bytes that all virtual CPUs' readers take.
    readers: usize,
    /// All of them, and those that found no room.
    count: u64,
    lost: u64,
}

impl Intake {
    /// Over a VM that has not run yet, on a host with so many nodes.
    pub fn over<B: Backend>(vm: &Vm<B>, host: &Host, nodes: usize, now: Nanos) -> Self {
        let memory = vm.shape.memory.bytes();
        let span = host.sample_ms.saturating_mul(ROOM).min(LONGEST);
        Self {
            room: host.looks.saturating_mul(span).div_ceil(1000),
            spare: Vec::new(),
            found: Operands::new(nodes),
            by_page: PageLooks::of_memory(memory),
            readers: vm.vcpus.len() * NextLook::bytes(memory, vm.vcpus.len()),
            aged: now,
            count: 0,
            lost: 0,
        }
    }

    /// Takes in what there is.
    pub fn take_in<B: Backend>(&mut self, vm: &Vm<B>, groups: &mut Groups) {
        let mut met: Vec<(Gpa, NodeId, u32)> = Vec::new();
        for vcpu in &vm.vcpus {
            let mut room = core::mem::take(&mut self.spare);
            Looks::make_room(&mut room, self.room);
            let (mut seen, lost) = vcpu.looks.lock().take(room);
            for look in seen.chunk_by(|_, next| !next.first) {
                let accessor = look.first().map_or(NodeId(0), |t| t.accessor);
                let place = |t: &Touched| Some((t.page, vm.ram.leaf(t.page)?.0, t.weight));
                met.clear();
                met.extend(look.iter().filter_map(place));
                let by_node = met.iter().map(|(_, node, weight)| (*node, *weight));
                self.found.look(accessor, by_node);
                groups.look(vcpu.id.index, accessor, &met);
                self.by_page.look(look.iter().map(|t| (t.page, t.weight)));
            }
            self.lost += lost;
            seen.clear();
            self.spare = seen;
        }
    }

    /// What was found since this was asked last, by node.
    pub fn found(&mut self, nodes: usize) -> Operands {
        let found = core::mem::replace(&mut self.found, Operands::new(nodes));
        self.count += found.looks();
        found
    }

    /// For each half second that has passed, what was met ten seconds before is forgotten, and all that was before, if the VM has
    /// begun something else; then it is true.
    pub fn age(&mut self, now: Nanos) -> bool {
        let ages = now.since(self.aged).0 / AGES.0;
        self.aged += Nanos(ages * AGES.0);
        let ages = 0..ages.min(ALL_AGES);
        ages.fold(false, |broken, _| self.by_page.age() | broken)
    }

    /// What was met, by page.
    pub const fn by_page(&self) -> &PageLooks {
        &self.by_page
    }

    /// Looks that found something, and those of which was lost what they found, for nobody took it in in time.
    pub const fn count(&self) -> (u64, u64) {
        (self.count, self.lost)
    }

    /// Bytes of memory that looks take: what they found, and what each virtual CPU needs for them.
    pub fn metadata_bytes(&self, vcpus: usize) -> usize {
        let room = Looks::bytes_of_room(self.room);
        self.by_page.metadata_bytes() + (vcpus + 1) * room + self.readers
    }
}
