//! What each option would save and cost.
//!
//! An access takes a time that follows from where a machine runs and what it touches (`place`). Moving
//! the vCPUs changes the one, moving pages the other; the difference in that time times the accesses per
//! second of run time times the run time per second is what a second saves. Everything is
//! weighed with the footprint's confidence, so that thin evidence needs a larger gain.

use alloc::vec::Vec;
use footprint::HotPage;
use telemetry::Choice;
use units::{Nanos, NodeId, PageSize, Score};

use crate::adapt::{Adapter, Wanted};
use crate::order::PageOrder;
use crate::place::Place;
use crate::tunables::Tunables;
use crate::view::{HostView, VmView};

/// Why an option cannot be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Obstacle {
    /// The target's CPUs are busy.
    Cpu,
    /// The target has no free memory.
    Memory,
    /// It was ordered, and the scheduler found no room.
    Stuck,
    /// Moving pages of this machine was of no use lately.
    Useless,
    /// The memory on either side or the way between carries too much already.
    Busy,
}

/// An option with its price.
#[derive(Clone, Debug)]
pub(crate) struct Quote {
    pub(crate) choice: Choice,
    pub(crate) target: NodeId,
    pub(crate) gain: Score,
    pub(crate) benefit_ns_per_s: u64,
    pub(crate) cost: Nanos,
    pub(crate) pays_back: Nanos,
    /// What the step and the one that it prepares save and cost together: vCPUs that move get
    /// their hot remainder sent after them. By these, options are compared.
    pub(crate) all_benefit_ns_per_s: u64,
    pub(crate) all_cost: Nanos,
    /// Bytes that would follow.
    pub(crate) follow_bytes: u64,
    /// The pages, hottest first, if it moves pages.
    pub(crate) pages: Vec<PageOrder>,
    /// Bytes of them that would still pay if the hot threshold were a step higher.
    pub(crate) hotter_bytes: u64,
    pub(crate) obstacle: Option<Obstacle>,
}

impl Quote {
    /// Bytes that it would move.
    pub(crate) fn wanted(&self) -> Wanted {
        let bytes = match self.choice {
            Choice::MovePages { bytes, .. } => bytes,
            Choice::MoveVcpus { .. } => 0,
        };
        let hotter = self.hotter_bytes;
        Wanted { bytes, hotter }
    }

    /// When it pays back, for comparison with other options.
    ///
    /// A step that does most of the good by itself is weighed alone: what would follow is decided by
    /// what is seen once it is done, and may never be needed. A step that does little without
    /// what follows is weighed with it.
    pub(crate) fn weighed(&self, most: Score) -> Nanos {
        if self.benefit_ns_per_s >= most.of(self.all_benefit_ns_per_s) {
            self.pays_back
        } else {
            pays_back(self.all_cost, self.all_benefit_ns_per_s)
        }
    }
}

/// Prices options for one machine.
#[derive(Debug)]
pub(crate) struct Pricer<'a> {
    pub(crate) host: &'a HostView<'a>,
    pub(crate) vm: &'a VmView<'a>,
    pub(crate) tunables: &'a Tunables,
    /// Thresholds as the load has set them.
    pub(crate) adapter: &'a Adapter,
    pub(crate) now: Place,
    /// How long a benefit is believed to last.
    pub(crate) lasts: Nanos,
}

/// Time after which a benefit has earned its cost.
fn pays_back(cost: Nanos, benefit_ns_per_s: u64) -> Nanos {
    let ns = u128::from(cost.0) * 1_000_000_000 / u128::from(benefit_ns_per_s.max(1));
    Nanos(u64::try_from(ns).unwrap_or(u64::MAX))
}

/// What moves pages to a node would do.
struct Haul {
    pages: Vec<PageOrder>,
    /// Why they do not come although it would pay; then `pages` is empty, and the rest says what is missed.
    obstacle: Option<Obstacle>,
    /// Whether some have no room.
    left_out: bool,
    /// Bytes that would still pay if the hot threshold were a step higher.
    hotter: u64,
    bytes: u64,
    cost: Nanos,
    after: Place,
}

impl<'a> Pricer<'a> {
    pub(crate) fn new(
        host: &'a HostView<'a>,
        vm: &'a VmView<'a>,
        tunables: &'a Tunables,
        adapter: &'a Adapter,
    ) -> Self {
        let now = Place::of(vm, host.latencies.nodes());
        let lasts = vm.footprint.age().min(tunables.horizon);
        Self {
            host,
            vm,
            tunables,
            adapter,
            now,
            lasts,
        }
    }

    fn confident(&self, amount: u64) -> u64 {
        Score::from_per_mille(self.vm.footprint.confidence().0).of(amount)
    }

    /// Saved in each second by accesses that take `saved_ps` less.
    fn benefit(&self, saved_ps: u64) -> u64 {
        let per_s = match self.vm.footprint.reads_per_s() {
            Some(counted) => counted / self.tunables.overlap.max(1),
            None => self.tunables.accesses_per_s,
        };
        let accesses = u128::from(per_s) * u128::from(self.vm.footprint.run_total()) / 1000;
        let ns = accesses * u128::from(saved_ps) / 1000;
        self.confident(u64::try_from(ns).unwrap_or(u64::MAX))
    }

    /// What `ns_per_s` saves while it is believed to last.
    pub(crate) fn saving(&self, ns_per_s: u64) -> Nanos {
        let ns = u128::from(ns_per_s) * u128::from(self.lasts.0) / 1_000_000_000;
        Nanos(u64::try_from(ns).unwrap_or(u64::MAX))
    }

    /// Saved in each second if things were as in `after`.
    fn benefit_of(&self, after: &Place) -> u64 {
        let latencies = self.host.latencies;
        let saved = self
            .now
            .latency_ps(latencies)
            .saturating_sub(after.latency_ps(latencies));
        self.benefit(saved)
    }

    fn quote(&self, choice: Choice, target: NodeId, after: &Place, cost: Nanos) -> Quote {
        let latencies = self.host.latencies;
        let gain = after
            .proximity(latencies)
            .above(self.now.proximity(latencies));
        let gain = Score(u32::try_from(self.confident(gain.0.into())).unwrap_or(gain.0));
        let benefit_ns_per_s = self.benefit_of(after);
        Quote {
            choice,
            target,
            gain,
            benefit_ns_per_s,
            cost,
            pays_back: pays_back(cost, benefit_ns_per_s),
            all_benefit_ns_per_s: benefit_ns_per_s,
            all_cost: cost,
            follow_bytes: 0,
            pages: Vec::new(),
            hotter_bytes: 0,
            obstacle: None,
        }
    }

    /// All vCPUs to `target`; None if they are there or may not be. `follow` = pages may go after
    /// them, at this gamma.
    pub(crate) fn vcpus_to(&self, target: NodeId, follow: Option<u32>) -> Option<Quote> {
        let node = self.host.node(target).filter(|n| n.cpus > 0)?;
        let away: Vec<_> = self.vm.vcpus.iter().filter(|v| v.node != target).collect();
        if away.is_empty() || !self.vm.may_run_on(target) {
            return None;
        }
        let after = self.now.all_on(target);
        let vcpus = u16::try_from(away.len()).unwrap_or(u16::MAX);
        let cost = Nanos(self.tunables.vcpu_move.0.saturating_mul(vcpus.into()));
        let mut quote = self.quote(
            Choice::MoveVcpus { to: target, vcpus },
            target,
            &after,
            cost,
        );
        // It may be as full there as where the vCPUs are now, but not fuller.
        let demand = away.iter().map(|v| u32::from(v.demand.0)).sum();
        let here = away
            .iter()
            .filter_map(|v| self.host.node(v.node)?.use_with(0))
            .max();
        let limit = here.unwrap_or(0).max(self.tunables.cpu_room_per_mille);
        if node.use_with(demand).is_none_or(|used| used > limit) {
            quote.obstacle = Some(Obstacle::Cpu);
        }
        let room = Some(self.room_on(target));
        let haul = follow.and_then(|gamma| self.haul(after, target, gamma, room, |_| false));
        if let Some(haul) = haul.filter(|haul| haul.obstacle.is_none()) {
            quote.all_benefit_ns_per_s = self.benefit_of(&haul.after);
            quote.all_cost = quote.cost + haul.cost;
            quote.follow_bytes = haul.bytes;
        }
        Some(quote)
    }

    /// The cost of moving one page.
    fn page_cost(&self, size: PageSize) -> Nanos {
        let copy = (u128::from(self.tunables.copy_mib.0) * u128::from(size.bytes())) >> 20;
        Nanos(u64::try_from(copy).unwrap_or(u64::MAX)) + self.tunables.page_overhead
    }

    /// The pages to `target` that are touched, farther away than there, and worth their own cost.
    /// None if there are none or they may not lie there.
    ///
    /// `gamma` is how often the benefit must exceed the cost; `resting` names pages to leave out. Where not all
    /// of them fit, and what fits gains less than `least`, the quote tells what is missed for want of memory.
    pub(crate) fn pages_to(
        &self,
        target: NodeId,
        gamma: u32,
        least: Score,
        resting: impl Fn(&HotPage) -> bool,
    ) -> Option<Quote> {
        let quote = |haul: Haul| {
            let choice = Choice::MovePages {
                to: target,
                bytes: haul.bytes,
            };
            Quote {
                obstacle: haul.obstacle,
                hotter_bytes: haul.hotter,
                pages: haul.pages,
                ..self.quote(choice, target, &haul.after, haul.cost)
            }
        };
        let room = Some(self.room_on(target));
        let haul = self.haul(self.now.clone(), target, gamma, room, &resting)?;
        let left_out = haul.left_out;
        let fitting = quote(haul);
        if !left_out || fitting.gain >= least {
            return Some(fitting);
        }
        let haul = self.haul(self.now.clone(), target, gamma, None, &resting)?;
        Some(quote(haul))
    }

    /// Bytes that may still come to a node.
    fn room_on(&self, node: NodeId) -> u64 {
        self.host.node(node).map_or(0, |n| {
            let reserve = self.tunables.reserve.of(n.total_bytes);
            n.free_bytes.saturating_sub(reserve)
        })
    }

    /// What brings the touched pages to `target` when the machine runs as in `place`: as much as has room there, or all of it, to
    /// tell what is missed, if None is said.
    fn haul(
        &self,
        place: Place,
        target: NodeId,
        gamma: u32,
        room: Option<u64>,
        resting: impl Fn(&HotPage) -> bool,
    ) -> Option<Haul> {
        if !self.vm.may_lie_on(target) {
            return None;
        }
        let latencies = self.host.latencies;
        let ways = place.ways(latencies);
        let saved = |p: &HotPage| {
            ways.to(p.gpa, p.node)
                .saturating_sub(ways.to(p.gpa, target))
        };
        let farther = |n: NodeId| n != target;
        let heat = self
            .vm
            .footprint
            .hot(|_| true)
            .iter()
            .map(|p| p.heat)
            .sum::<u64>()
            .max(1);
        let step = u64::from(self.adapter.settings().hot_step);
        // The hot threshold: each step asks for a quarter more.
        let pays_at = |p: &HotPage, step: u64| {
            let part = Score::ratio(p.heat.into(), heat.into());
            let benefit = part.of(self.benefit(saved(p)));
            let quarters = u64::from(gamma) * (4 + step);
            self.saving(benefit).0 > self.page_cost(p.size).0.saturating_mul(quarters) / 4
        };
        let candidates: Vec<HotPage> = self
            .vm
            .footprint
            .hot(farther)
            .into_iter()
            .filter(|p| p.size != PageSize::Size1G && !resting(p) && pays_at(p, step))
            .collect();
        if candidates.is_empty() {
            return None;
        }
        let hotter = candidates.iter().filter(|p| pays_at(p, step + 1));
        let mut haul = Haul {
            pages: Vec::new(),
            obstacle: room.is_none().then_some(Obstacle::Memory),
            left_out: false,
            hotter: hotter.map(|p| p.size.bytes()).sum(),
            bytes: 0,
            cost: Nanos::ZERO,
            after: place,
        };
        let passable = |p: &&HotPage| self.adapter.passable(p.node, target);
        let mut coming: Vec<&HotPage> = candidates.iter().filter(passable).collect();
        if coming.is_empty() {
            haul.obstacle = Some(Obstacle::Busy);
            coming = candidates.iter().collect();
        }
        let mut room = room.unwrap_or(u64::MAX);
        for p in coming {
            let Some(rest) = room.checked_sub(p.size.bytes()) else {
                haul.left_out = true;
                continue;
            };
            room = rest;
            haul.bytes = haul.bytes.saturating_add(p.size.bytes());
            haul.cost += self.page_cost(p.size);
            haul.pages.push(PageOrder {
                gpa: p.gpa,
                size: p.size,
                from: p.node,
                to: target,
            });
            haul.after.moved(p.gpa, p.heat, p.node, target);
        }
        if haul.obstacle.is_some() {
            haul.pages.clear();
        }
        Some(haul)
    }
}
