//! One VM's accessed bits: the sampler's eyes, its orders, and what its passes become.
//!
//! An interval begins when bits have been cleared and the VM's sample generation has moved on: from then on each CPU
//! that enters the VM flushes first, and nobody is interrupted for it. It ends with the next look. If a virtual CPU
//! that ran when it began has not been entered since, its CPU may still use translations from before; then the
//! interval is stale (MECHANISMS: "stale is not cold").
//!
//! Where nodes have tables of their own, bits are read and cleared in all of them, each by itself: the one interval and the one
//! generation are enough for all, and what a node's tables say is what that node did.

use super::intake::Intake;
use crate::arch::time;
use crate::virt::Backend;
use crate::vm::{GuestRam, NOWHERE, Remapped, Vm};
use alloc::vec;
use alloc::vec::Vec;
use config::Host;
use core::sync::atomic::Ordering::{Relaxed, SeqCst};
use footprint::pages::Range;
use footprint::sampler::{Eyes, Heat, Mapped, Orders, Seen, Sight, Touched, Tunables};
use footprint::{Attribution, Coverage, Footprint, LeafSample, PageHits, Sampler, Window};
use memory::apart::Purpose;
use memory::table::TableFormat;
use units::{Gpa, Nanos, NodeId, PAGE_BYTES, PageSize};

/// What is remembered of a VM from one look to the next.
#[derive(Debug)]
pub struct Watch {
    /// What to look at.
    pub sampler: Sampler,
    /// What looks at stopped virtual CPUs found.
    pub intake: Intake,
    /// What the last pass found.
    heats: Vec<Heat>,
    /// When the interval is over.
    next: Nanos,
    last_pass: Nanos,
    /// The generation that the interval began with, and the virtual CPUs that ran then.
    began: Option<(u64, Vec<u16>)>,
    /// What it has cost so far.
    pub cost: Cost,
    /// What of that the VM has been charged.
    charged: Nanos,
}

/// What looking has cost.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cost {
    /// Intervals, and those of them that were stale.
    pub intervals: u64,
    /// See [`Cost::intervals`].
    pub stale: u64,
    /// Time that looking took, without what follows.
    pub time: Nanos,
    /// Time that mapping granules anew took: most of it is waiting for CPUs to leave the guest.
    pub waiting: Nanos,
    /// Granules that were mapped by small pages for a close look, and shootdowns for that and for its end.
    pub splits: u64,
    /// See [`Cost::splits`].
    pub shootdowns: u64,
    /// CPUs that were interrupted by those. Nothing else here interrupts any.
    pub interrupted: u64,
}

impl Cost {
    /// All time of a CPU that looking took.
    fn spent(&self) -> Nanos {
        self.time + self.waiting
    }
}

impl Watch {
    /// Over a VM that has not run yet, on a host with so many nodes, as often as the operator wants.
    pub fn over<B: Backend>(vm: &Vm<B>, host: &Host, nodes: usize, now: Nanos) -> Self {
        let regions = vm.shape.memory.regions();
        let memory = regions.iter().map(|r| r.gpa.0..r.end().0);
        let default = Tunables::default();
        let shortest = Nanos::from_millis(host.sample_ms.into());
        let tunables = Tunables {
            shortest,
            longest: default.longest.max(shortest),
            ..default
        };
        Self {
            sampler: Sampler::new(memory, u64::from(vm.id.0) << 32 | 0x9e37_79b9, tunables),
            intake: Intake::over(vm, host, nodes, now),
            heats: Vec::new(),
            next: now,
            last_pass: now,
            began: None,
            cost: Cost::default(),
            charged: Nanos::ZERO,
        }
    }

    /// Makes all intervals so many times as long as they would be.
    pub fn set_stretch(&mut self, times: u16) {
        self.sampler.set_stretch(times);
    }

    /// Ends an interval and begins the next, if it is time for that.
    pub fn look<B: Backend>(&mut self, vm: &Vm<B>, idle: bool, now: Nanos) {
        if now < self.next {
            return;
        }
        // Others may have been looked at since `now`, which is not this VM's affair.
        let came = time::now();
        self.next = now + self.sampler.interval();
        let sight = self.sight(vm);
        self.cost.intervals += 1;
        self.cost.stale += u64::from(sight == Sight::Stale);
        self.sampler.set_roots(vm.ram.nodes_with_roots());
        let orders = self.sampler.tick(sight, !idle, &mut Bits(&vm.ram));
        self.cost.time += time::now().since(came);
        if orders != Orders::default() {
            let began = time::now();
            let Remapped {
                split,
                joined,
                interrupted,
            } = vm.ram.remap(Purpose::Look, &orders.split, &orders.join);
            self.cost.splits += split.len() as u64;
            self.cost.interrupted += interrupted;
            self.cost.shootdowns += u64::from(split.len() + joined > 0);
            self.cost.waiting += time::now().since(began);
        }
        self.sampler.charge(time::now().since(came));
        let generation = vm.ram.sampled();
        let inside = vm
            .vcpus
            .iter()
            .filter(|v| v.running_on.load(SeqCst) != NOWHERE);
        self.began = Some((generation, inside.map(|v| v.id.index).collect()));
    }

    /// Whether everybody who ran when the interval began has flushed since.
    fn sight<B: Backend>(&self, vm: &Vm<B>) -> Sight {
        let Some((generation, inside)) = &self.began else {
            return Sight::Stale;
        };
        let flushed = |index: &u16| {
            let vcpu = vm.vcpus.get(usize::from(*index));
            vcpu.is_none_or(|v| v.flushed.load(SeqCst) >= *generation)
        };
        match inside.iter().all(flushed) {
            true => Sight::Fresh,
            false => Sight::Stale,
        }
    }

    /// Takes in what looks at stopped virtual CPUs have found.
    pub fn take_in<B: Backend>(&mut self, vm: &Vm<B>, footprint: &mut Footprint) {
        let began = time::now();
        self.intake.take_in(vm, footprint.groups_mut());
        if self.intake.age(began) {
            log::debug!(
                "{} does something else: what it did before is forgotten",
                vm.name
            );
            self.sampler.forget();
        }
        self.cost.time += time::now().since(began);
    }

    /// Bytes of memory that all of this takes.
    pub fn metadata_bytes(&self, vcpus: usize) -> usize {
        let heats = self.heats.capacity() * size_of::<Heat>();
        self.sampler.metadata_bytes() + self.intake.metadata_bytes(vcpus) + heats
    }

    /// Whether the last pass was `every` ago.
    pub fn pass_is_due(&self, every: Nanos, now: Nanos) -> bool {
        now.since(self.last_pass) >= every
    }

    /// Hands what was found since the last pass to the footprint. Says how long ago that was, and for how long the VM
    /// has run on each node since.
    pub fn pass<B: Backend>(
        &mut self,
        vm: &Vm<B>,
        footprint: &mut Footprint,
        now: Nanos,
    ) -> (Nanos, Vec<Nanos>) {
        let came = time::now();
        let length = now.since(core::mem::replace(&mut self.last_pass, now));
        let heats = self.sampler.pass();
        let samples = self.samples(&vm.ram, &heats);
        let nodes = footprint.resident().len();
        let mut run_time = vec![Nanos::ZERO; nodes];
        for vcpu in &vm.vcpus {
            for (sum, on_node) in run_time.iter_mut().zip(&vcpu.ran_on_node_ns) {
                *sum += Nanos(on_node.swap(0, Relaxed));
            }
        }
        let resident = vm.ram.bytes_by_node();
        self.intake.take_in(vm, footprint.groups_mut());
        let operands = self.intake.found(nodes);
        let root_of = vm.ram.root_of_each(nodes);
        let window = Window {
            length,
            run_time: &run_time,
            attribution: attribution(&root_of),
            coverage: Coverage::TouchedLeaves {
                resident: &resident,
            },
            operands: Some(&operands),
        };
        let was_idle = footprint.is_idle();
        footprint.set_settled(self.sampler.settled());
        footprint.record(&window, samples);
        if was_idle && !footprint.is_idle() {
            self.sampler.awake();
        }
        self.heats = heats;
        self.cost.time += time::now().since(came);
        (length, run_time)
    }

    /// What looking has cost since this was asked last: the VM's bill.
    pub fn take_bill(&mut self) -> Nanos {
        let spent = self.cost.spent();
        spent.since(core::mem::replace(&mut self.charged, spent))
    }

    /// All pages that are touched, hottest first.
    pub fn page_heats(&self) -> Vec<Range> {
        let close = |granule| self.sampler.pages(granule);
        footprint::pages::heats(&self.heats, close, self.intake.by_page())
    }

    /// How many of the first of these pages are hot.
    pub fn hot_pages(&self, ranges: &[Range]) -> u64 {
        footprint::pages::hot_pages(ranges, self.intake.by_page().count())
    }

    /// Heat by leaves, and by the node that touches them. A granule that is apart for a while counts as the one leaf that it
    /// was and will be again.
    fn samples<F: TableFormat<Address = Gpa>>(
        &self,
        ram: &GuestRam<F>,
        heats: &[Heat],
    ) -> Vec<LeafSample> {
        let mut samples = Vec::with_capacity(heats.len());
        for heat in heats {
            match ram.leaf(heat.gpa) {
                Some((node, PageSize::Size4K)) if ram.apart(heat.gpa).is_none() => {
                    self.pages(ram, heat, node, &mut samples);
                }
                Some((node, size)) => {
                    let size = size.max(PageSize::Size2M);
                    let gpa = heat.gpa.align_down(size);
                    let leaf = LeafSample::sampled(gpa, size, node, heat.heat, heat.hits);
                    self.sampler.told_apart(heat.gpa, leaf, &mut samples);
                }
                None => self.pages(ram, heat, NodeId(0), &mut samples),
            }
        }
        samples
    }

    /// Divides a granule's heat among its small pages as the last close look found it; before one, its first page has
    /// it all.
    fn pages<F: TableFormat<Address = Gpa>>(
        &self,
        ram: &GuestRam<F>,
        heat: &Heat,
        node: NodeId,
        samples: &mut Vec<LeafSample>,
    ) {
        let mut add = |at, node, heat, hits| {
            let page = LeafSample::sampled(at, PageSize::Size4K, node, heat, hits);
            self.sampler.told_apart(at, page, samples);
        };
        let hits = self.sampler.pages(heat.gpa).map_or(&[][..], PageHits::hits);
        let all: u64 = hits.iter().map(|h| u64::from(*h)).sum();
        if all == 0 {
            add(heat.gpa, node, heat.heat, heat.hits);
            return;
        }
        let mut left = heat.hits;
        for (at, hits) in (0u64..).map(|i| Gpa(heat.gpa.0 + i * PAGE_BYTES)).zip(hits) {
            if *hits > 0
                && let Some((node, PageSize::Size4K)) = ram.leaf(at)
            {
                let part = u128::from(heat.heat) * u128::from(*hits) / u128::from(all);
                let part = u64::try_from(part).unwrap_or(u64::MAX);
                add(at, node, part, left.min(1));
                left = left.saturating_sub(1);
            }
        }
    }
}

/// How touches find their node, where each node's CPUs walk the tables of these.
fn attribution(root_of: &[NodeId]) -> Attribution<'_> {
    let one = root_of.windows(2).all(|pair| pair.first() == pair.last());
    match one {
        true => Attribution::ByRunTime,
        false => Attribution::ByRoot { root_of },
    }
}

/// The accessed bits of a VM.
struct Bits<'r, F: TableFormat<Address = Gpa>>(&'r GuestRam<F>);

impl<F: TableFormat<Address = Gpa>> Eyes for Bits<'_, F> {
    fn granule(&mut self, at: Gpa) -> Seen {
        self.0.with_table(|tables| {
            let seen = |all: Seen, node| all.and(Seen::by(node));
            tables.probe(at).fold(Seen::UNTOUCHED, seen)
        })
    }

    fn pages(&mut self, at: Gpa, touched: &mut Touched) -> Mapped {
        let used = |node, pages| touched.add(Seen::by(node), pages);
        let small = self.0.with_table(|tables| match self.0.apart(at) {
            // A move has taken it over: what these pages say is what the one leaf said.
            Some(Purpose::Move) => false,
            Some(Purpose::Look) | None => tables.probe_pages(at, used),
        });
        match small {
            true => Mapped::Pages,
            false => Mapped::Whole,
        }
    }
}
