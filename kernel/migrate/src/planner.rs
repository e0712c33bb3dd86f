//! Evidence, choice, and memory of what was done.

use alloc::collections::BTreeMap;
use alloc::string::ToString;
use alloc::vec::Vec;
use telemetry::{Choice, Hold};
use units::{Gpa, Nanos, NodeId, PerMille, Score, VmId};

use crate::adapt::{Adapter, Wanted};
use crate::budget::Bucket;
use crate::order::{Action, Decision, Event, MoveOutcome, MoveResult, PageOrder};
use crate::place::Place;
use crate::price::{Obstacle, Pricer, Quote};
use crate::sentence;
use crate::tunables::Tunables;
use crate::useful::Usefulness;
use crate::view::{HostView, Mode, VmView};

/// Pages moved or failed that are remembered for one machine; the oldest are forgotten first.
const REMEMBERED_PAGES: usize = 8192;

/// Largest page that is moved, for the depth of a bucket.
const LARGEST_PAGE: u64 = 2 << 20;

/// What an option is called when passes are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Course {
    Vcpus(NodeId),
    Pages(NodeId),
}

impl Course {
    fn of(quote: &Quote) -> Self {
        match quote.choice {
            Choice::MoveVcpus { to, .. } => Self::Vcpus(to),
            Choice::MovePages { to, .. } => Self::Pages(to),
        }
    }
}

/// What is remembered of a page.
#[derive(Clone, Copy, Debug)]
struct PageNote {
    /// Not to be moved before.
    rests_until: Nanos,
    failures: u32,
}

/// What is remembered of a machine.
#[derive(Clone, Debug, Default)]
struct History {
    /// The last pass that was judged.
    pass: u64,
    /// What the last passes would have done, and how many agreed.
    agreed: Option<(Course, u8)>,
    /// An order of vCPU moves that has not been judged yet.
    settling: Option<(NodeId, Nanos)>,
    /// Page moves ordered and not reported, and when they count as lost.
    in_flight: u64,
    lost_at: Nanos,
    /// Target of page moves that were begun and are continued without new evidence.
    under_way: Option<NodeId>,
    /// Nodes that the scheduler could not bring the vCPUs to, until when that is believed.
    stuck: BTreeMap<NodeId, Nanos>,
    /// Node that vCPUs left, and when.
    left: Option<(NodeId, Nanos)>,
    /// How often vCPUs went back to where they came from, and when last.
    bounces: u32,
    bounced: Option<Nanos>,
    notes: BTreeMap<Gpa, PageNote>,
    buckets: BTreeMap<(NodeId, NodeId), Bucket>,
    useful: Usefulness,
    /// What would have paid to be moved in the last pass.
    wanted: Wanted,
}

/// Decides for all machines of a host.
#[derive(Clone, Debug)]
pub struct Planner {
    tunables: Tunables,
    vms: BTreeMap<VmId, History>,
    adapter: Adapter,
    /// What is to be told besides decisions.
    told: Vec<telemetry::Event>,
}

impl Planner {
    /// Without memory of any machine.
    pub fn new(tunables: Tunables) -> Self {
        Self {
            tunables,
            vms: BTreeMap::new(),
            adapter: Adapter::default(),
            told: Vec::new(),
        }
    }

    /// The thresholds that follow the load, and what they follow.
    pub const fn adapter(&self) -> &Adapter {
        &self.adapter
    }

    /// Of a machine's pages that were moved and followed, the part that was of use, and how many were followed.
    pub fn usefulness(&self, vm: VmId) -> Option<(PerMille, u32)> {
        self.vms.get(&vm).map(|history| history.useful.average())
    }

    /// What has changed since this was asked last: [`telemetry::Event::Adapted`] and [`telemetry::Event::Usefulness`].
    pub fn take_told(&mut self) -> Vec<telemetry::Event> {
        core::mem::take(&mut self.told)
    }

    /// The constants in force.
    pub const fn tunables(&self) -> &Tunables {
        &self.tunables
    }

    /// Changes the constants.
    pub fn set_tunables(&mut self, tunables: Tunables) {
        self.tunables = tunables;
    }

    /// Takes in what happened since the last plan.
    pub fn handle(&mut self, now: Nanos, event: Event) {
        match event {
            Event::Moved(result) => self.note_moved(now, &result),
            Event::VmGone(vm) => {
                self.vms.remove(&vm);
            }
        }
    }

    fn note_moved(&mut self, now: Nanos, result: &MoveResult) {
        let Tunables {
            page_rest,
            page_retry,
            lost_after,
            ..
        } = self.tunables;
        let Some(history) = self.vms.get_mut(&result.vm) else {
            return;
        };
        let ordered = history.in_flight > 0;
        history.in_flight = history.in_flight.saturating_sub(1);
        // Slow is not lost.
        history.lost_at = now + lost_after;
        let note = history.notes.entry(result.order.gpa).or_insert(PageNote {
            rests_until: now,
            failures: 0,
        });
        match result.outcome {
            MoveOutcome::Moved => {
                // What an operator moves is nobody's promise.
                if ordered {
                    let horizon = self.tunables.horizon;
                    history.useful.moved(&result.order, now, horizon);
                }
                *note = PageNote {
                    rests_until: now + page_rest,
                    failures: 0,
                };
            }
            MoveOutcome::Failed | MoveOutcome::Gone => {
                let wait = page_retry.0.saturating_mul(1 << note.failures.min(10));
                note.failures = note.failures.saturating_add(1);
                note.rests_until = now + Nanos(wait);
            }
        }
        while history.notes.len() > REMEMBERED_PAGES {
            let Some(oldest) = history
                .notes
                .iter()
                .min_by_key(|(_, n)| n.rests_until)
                .map(|(gpa, _)| *gpa)
            else {
                break;
            };
            history.notes.remove(&oldest);
        }
    }

    /// One decision for each machine with a pass that was not judged before; none for machines
    /// whose mode is [`Mode::Off`].
    pub fn plan(&mut self, now: Nanos, host: &HostView<'_>, vms: &[VmView<'_>]) -> Vec<Decision> {
        if self.tunables.adapt {
            let wanted = self.vms.values().map(|history| history.wanted).sum();
            let told = self
                .adapter
                .tick(now, host, wanted, self.tunables.rate(host));
            self.told.extend(told);
        }
        vms.iter()
            .filter_map(|vm| self.judge(now, host, vm))
            .collect()
    }

    fn judge(&mut self, now: Nanos, host: &HostView<'_>, vm: &VmView<'_>) -> Option<Decision> {
        if vm.mode == Mode::Off {
            self.vms.remove(&vm.vm);
            return None;
        }
        let tunables = self.tunables;
        let history = self.vms.entry(vm.vm).or_default();
        if history.pass == vm.footprint.passes() {
            return None;
        }
        history.pass = vm.footprint.passes();
        history.forget(now, &tunables);
        let pricer = Pricer::new(host, vm, &tunables, &self.adapter);
        if tunables.adapt {
            self.told.extend(history.judge_moved(now, &pricer));
        }
        if let Some(hold) = history.unfit(host, vm) {
            // An order that is still being carried out says nothing against going on with it.
            if !matches!(hold, Hold::Settling { .. }) {
                history.wanted = Wanted::default();
                history.agreed = None;
                history.under_way = None;
            }
            return Some(sentence::held(vm, hold, &pricer, &[]));
        }
        let gamma = if history.bounced.is_some() {
            tunables.gamma_bounced
        } else {
            tunables.gamma
        };
        let quotes = history.quotes(now, &pricer, gamma);
        history.wanted = quotes.iter().map(Quote::wanted).max().unwrap_or_default();
        Some(history.decide(now, &pricer, quotes))
    }
}

impl History {
    /// Lets go of what is too old to matter.
    fn forget(&mut self, now: Nanos, tunables: &Tunables) {
        self.notes
            .retain(|_, n| n.rests_until > now || n.failures > 0);
        self.notes
            .retain(|_, n| now.since(n.rests_until) < tunables.bounce_memory);
        self.left = self
            .left
            .filter(|(_, at)| now.since(*at) < tunables.bounce_memory);
        self.bounced = self
            .bounced
            .filter(|at| now.since(*at) < tunables.bounce_memory);
        if self.bounced.is_none() {
            self.bounces = 0;
        }
        self.stuck.retain(|_, until| *until > now);
        if self.in_flight > 0 && now >= self.lost_at {
            self.in_flight = 0;
        }
    }

    /// What forbids an opinion or an order altogether.
    fn unfit(&self, host: &HostView<'_>, vm: &VmView<'_>) -> Option<Hold> {
        if vm.footprint.is_idle() {
            return Some(Hold::Idle);
        }
        if host.latencies.is_flat() {
            return Some(Hold::Flat);
        }
        if vm.footprint.confidence().0 == 0 || vm.vcpus.is_empty() {
            return Some(Hold::Unsure);
        }
        if self.in_flight > 0 {
            return Some(Hold::Settling {
                until: self.lost_at,
            });
        }
        None
    }

    /// Judges pages that were moved a while ago; tells if that changes whether more may.
    fn judge_moved(&mut self, now: Nanos, pricer: &Pricer<'_>) -> Option<telemetry::Event> {
        let (vm, latencies) = (pricer.vm, pricer.host.latencies);
        let changed = self.useful.judge(now, &pricer.now, vm.footprint, latencies);
        let (useful, followed) = self.useful.average();
        changed.then(|| telemetry::Event::Usefulness {
            vm: vm.vm,
            name: vm.name.to_string(),
            on: self.useful.stays_until(now).is_none(),
            useful,
            followed,
        })
    }

    /// All options, those that cannot be taken included, best saving first.
    fn quotes(&mut self, now: Nanos, pricer: &Pricer<'_>, gamma: u32) -> Vec<Quote> {
        let (vcpus, pages) = match pricer.vm.mode {
            Mode::VcpuOnly => (true, false),
            Mode::PagesOnly => (false, true),
            Mode::Auto | Mode::DryRun => (true, true),
            Mode::Off => (false, false),
        };
        self.judge_settling(now, pricer);
        let resting = |p: &footprint::HotPage| {
            self.notes
                .get(&p.gpa)
                .is_some_and(|note| note.rests_until > now)
        };
        let useless = self.useful.stays_until(now).is_some();
        let follow = (pages && !useless).then_some(gamma);
        let mut quotes = Vec::new();
        for node in pricer.host.nodes.iter().map(|n| n.node) {
            if vcpus && let Some(mut quote) = pricer.vcpus_to(node, follow) {
                if self.stuck.contains_key(&node) {
                    quote.obstacle = Some(Obstacle::Stuck);
                }
                quotes.push(quote);
            }
            let least = self.least(Course::Pages(node), pricer.tunables);
            if pages && let Some(mut quote) = pricer.pages_to(node, gamma, least, resting) {
                if useless {
                    quote.obstacle = Some(Obstacle::Useless);
                }
                quotes.push(quote);
            }
        }
        quotes.sort_by_key(|q| core::cmp::Reverse(q.benefit_ns_per_s));
        quotes
    }

    /// An order of vCPU moves whose time is up: they are there, or the scheduler had no room.
    fn judge_settling(&mut self, now: Nanos, pricer: &Pricer<'_>) {
        let Some((node, until)) = self.settling else {
            return;
        };
        let arrived = pricer.vm.vcpus.iter().all(|v| v.node == node);
        if arrived {
            self.settling = None;
        } else if now >= until {
            self.settling = None;
            self.stuck.insert(node, now + pricer.tunables.stuck_memory);
        }
    }

    /// Whether taking `quote` would go back to a node that was left lately.
    fn returns(&self, quote: &Quote) -> bool {
        matches!(quote.choice, Choice::MoveVcpus { .. })
            && self.left.is_some_and(|(node, _)| node == quote.target)
    }

    /// Passes that must agree: twice as many after each bounce, so that whoever changes its mind
    /// faster than evidence grows is left where it is.
    fn evidence_needed(&self, t: &Tunables) -> u8 {
        let needed = u32::from(t.passes) << self.bounces.min(5);
        u8::try_from(needed).unwrap_or(u8::MAX)
    }

    fn decide(&mut self, now: Nanos, pricer: &Pricer<'_>, quotes: Vec<Quote>) -> Decision {
        let t = pricer.tunables;
        if let Some((_, until)) = self.settling {
            return sentence::held(pricer.vm, Hold::Settling { until }, pricer, &quotes);
        }
        match self.choose(now, pricer, &quotes) {
            Err(hold) => {
                self.agreed = None;
                self.under_way = None;
                sentence::held(pricer.vm, hold, pricer, &quotes)
            }
            Ok(chosen) => {
                let course = Course::of(chosen);
                let seen = match self.agreed {
                    Some((before, seen)) if before == course => seen.saturating_add(1),
                    _ => 1,
                };
                self.agreed = Some((course, seen));
                let continued = self.under_way.map(Course::Pages) == Some(course);
                let needed = self.evidence_needed(t);
                if seen < needed && !continued {
                    let hold = Hold::Waiting { seen, needed };
                    return sentence::held(pricer.vm, hold, pricer, &quotes);
                }
                if pricer.vm.mode == Mode::DryRun {
                    return sentence::would(pricer, chosen, &quotes);
                }
                let chosen = chosen.clone();
                self.act(now, pricer, &chosen, &quotes)
            }
        }
    }

    /// What an option must gain: less if it is under way.
    fn least(&self, course: Course, t: &Tunables) -> Score {
        match course {
            Course::Pages(node) if self.under_way == Some(node) => t.close_pages,
            Course::Pages(_) => t.open_pages,
            Course::Vcpus(_) => t.open_gain,
        }
    }

    /// The option to take now, or why there is none.
    fn choose<'q>(
        &self,
        now: Nanos,
        pricer: &Pricer<'_>,
        quotes: &'q [Quote],
    ) -> Result<&'q Quote, Hold> {
        let t = pricer.tunables;
        let best_gain = quotes.iter().map(|q| q.gain).max().unwrap_or(Score::ZERO);
        let near = || Hold::Near {
            proximity: pricer.now.proximity(pricer.host.latencies),
            gain: best_gain,
        };
        let enough = |q: &&Quote| q.gain >= self.least(Course::of(q), t);
        let gaining: Vec<&Quote> = quotes.iter().filter(enough).collect();
        let Some(best) = gaining.first() else {
            return Err(near());
        };
        let threshold = |q: &Quote| {
            let gamma = if self.bounced.is_some() || self.returns(q) {
                t.gamma_bounced
            } else {
                t.gamma
            };
            Nanos(q.cost.0.saturating_mul(gamma.into()))
        };
        let possible: Vec<&Quote> = gaining
            .iter()
            .copied()
            .filter(|q| q.obstacle.is_none())
            .collect();
        if possible.is_empty() {
            let node = best.target;
            let stays = self.useful.stays_until(now);
            return Err(match (best.obstacle, stays) {
                (Some(Obstacle::Useless), Some(until)) => Hold::Useless {
                    useful: self.useful.average().0,
                    until,
                },
                _ => Hold::NoRoom { node },
            });
        }
        let paying = || {
            possible
                .iter()
                .copied()
                .filter(|q| pricer.saving(q.benefit_ns_per_s) > threshold(q))
        };
        let net = |q: &Quote| pricer.saving(q.all_benefit_ns_per_s) - q.all_cost;
        let Some(most) = paying().map(net).max() else {
            let q = possible.first().copied().unwrap_or(best);
            let benefit = pricer.saving(q.benefit_ns_per_s);
            return Err(Hold::Unprofitable {
                benefit,
                threshold: threshold(q),
            });
        };
        paying()
            .filter(|q| net(q).0 >= t.comparable.of(most.0))
            // Of targets that cost the same, the one that gains most.
            .min_by_key(|q| (q.weighed(t.most), core::cmp::Reverse(q.gain), q.target))
            .ok_or_else(near)
    }

    fn act(
        &mut self,
        now: Nanos,
        pricer: &Pricer<'_>,
        chosen: &Quote,
        quotes: &[Quote],
    ) -> Decision {
        let t = pricer.tunables;
        match chosen.choice {
            Choice::MoveVcpus { to, .. } => {
                if self.returns(chosen) {
                    self.bounced = Some(now);
                    self.bounces = self.bounces.saturating_add(1);
                }
                self.left = Some((Place::most(&pricer.now.run()), now));
                self.settling = Some((to, now + t.settle));
                self.agreed = None;
                self.under_way = None;
                sentence::planned(pricer, Action::PreferNode(to), chosen, quotes)
            }
            Choice::MovePages { to, .. } => {
                let (orders, blocked) = self.draw(now, pricer, &chosen.pages);
                if orders.is_empty() {
                    let until = blocked.unwrap_or(now);
                    return sentence::held(pricer.vm, Hold::Budget { until }, pricer, quotes);
                }
                self.under_way = Some(to);
                self.in_flight = orders.len() as u64;
                self.lost_at = now + t.lost_after;
                sentence::planned(pricer, Action::MovePages(orders), chosen, quotes)
            }
        }
    }

    /// As many pages as the budget pays for, and when the first that it does not will be paid.
    fn draw(
        &mut self,
        now: Nanos,
        pricer: &Pricer<'_>,
        pages: &[PageOrder],
    ) -> (Vec<PageOrder>, Option<Nanos>) {
        let t = pricer.tunables;
        let part = u128::from(pricer.adapter.settings().budget.0);
        let rate = u128::from(t.rate(pricer.host)) * part / 1000;
        let rate = u64::try_from(rate).unwrap_or(u64::MAX).max(1);
        // To see whether moves are of use again, a hundredth will do.
        let most = match self.useful.probes(now) {
            true => t.order_bytes / 100,
            false => t.order_bytes,
        };
        let (mut orders, mut bytes, mut blocked) = (Vec::new(), 0u64, None);
        for page in pages {
            let size = page.size.bytes();
            if bytes.saturating_add(size) > most.max(LARGEST_PAGE) {
                break;
            }
            let bucket = self
                .buckets
                .entry((page.from, page.to))
                .or_insert_with(|| Bucket::new(now, rate, LARGEST_PAGE));
            bucket.fill(now, rate, LARGEST_PAGE);
            if !bucket.take(size) {
                blocked = Some(bucket.ready_at(size, rate));
                break;
            }
            bytes += size;
            orders.push(*page);
        }
        (orders, blocked)
    }
}
