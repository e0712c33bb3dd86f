//! Credits inside one queue: what a class of vCPUs on one CPU owes its members.
//!
//! While somebody of the class runs for `t`, each member earns `t x weight / W` and the runner
//! pays `t`. So credits always sum to 0, and the credit of a vCPU is its *lag*: the service that an
//! ideal processor shared in proportion to weights would have given it, minus what it got.
//!
//! A virtual clock would do the same with one addition per charge instead of one per member.
//! Queues are short (a CPU has tens of vCPUs), the sum needs no division that loses meaning over
//! time, and the number that an operator sees is the number that decides.
//!
//! Who joins brings its credit along, and the others give or get what that leaves uncovered in
//! proportion to weight: the shift of the virtual clock in EEVDF, limited so that nobody's lag is
//! pushed beyond `join_bound`. Who leaves gives up its claim: what it was owed is forgiven to those
//! in debt, who had it; what it owed is taken from those who are owed. That never pushes a lag outwards.

use alloc::vec::Vec;
use telemetry::{Class, Terms};
use units::{CpuId, Credits, Nanos, Score, VcpuId};

use crate::donate::Donation;
use crate::event::CpuPlace;
use crate::table::Vcpus;
use crate::tunables::{DEFAULT_WEIGHT, Tunables};
use crate::vcpu::Vcpu;

/// Members of one class on one CPU, the running one included.
#[derive(Clone, Debug, Default)]
pub(crate) struct ClassQueue {
    pub(crate) members: Vec<VcpuId>,
    /// Sum of the members' weights.
    pub(crate) weight: u64,
    /// CPU time that the class is owed by higher ones, by its floor.
    pub(crate) floor_owed: Nanos,
}

/// One CPU.
#[derive(Clone, Debug)]
pub(crate) struct Cpu {
    pub(crate) place: CpuPlace,
    classes: [ClassQueue; Class::ALL.len()],
    /// Whom it runs.
    pub(crate) current: Option<VcpuId>,
    /// When its slice ends.
    pub(crate) until: Nanos,
    pub(crate) charged_at: Nanos,
    /// What the current one was charged that its CPU has not yet told of.
    pub(crate) charged_ahead: Nanos,
    /// What the current one ran since it was picked.
    pub(crate) ran: Nanos,
    /// What the current one ran before that, if it was left on the CPU against the order.
    pub(crate) protected: Nanos,
    /// Until when it sleeps, if it found nothing to run.
    pub(crate) idle_until: Option<Nanos>,
    /// Was kicked and has not picked since.
    pub(crate) kicked: bool,
    /// All vCPUs that belong here, queued or not.
    pub(crate) residents: Vec<VcpuId>,
    /// Those of them that wait for their limit to fill up.
    pub(crate) throttled: Vec<VcpuId>,
    /// vCPUs of other queues that count on this CPU to take them.
    pub(crate) expected_by: Vec<VcpuId>,
    /// The other hardware threads of its core.
    pub(crate) siblings: Vec<CpuId>,
    /// Since when its core has run vCPUs of one machine only.
    pub(crate) core_since: Nanos,
    /// How often it found somebody to run and stayed idle, for the sake of its core's machine.
    pub(crate) kept_idle: u64,
    /// A slice that a spinning vCPU left to a neighbour.
    pub(crate) donation: Option<Donation>,
    /// Who pays for what the current one runs, if not itself.
    pub(crate) payer: Option<VcpuId>,
    /// Whether it stands in the index of idle CPUs.
    pub(crate) indexed_idle: bool,
    /// Whether a member may have yielded since the last pick.
    pub(crate) yielded: bool,
}

impl Cpu {
    pub(crate) fn new(place: CpuPlace) -> Self {
        Self {
            place,
            classes: Default::default(),
            current: None,
            until: Nanos::ZERO,
            charged_at: Nanos::ZERO,
            charged_ahead: Nanos::ZERO,
            ran: Nanos::ZERO,
            protected: Nanos::ZERO,
            idle_until: None,
            kicked: false,
            residents: Vec::new(),
            throttled: Vec::new(),
            expected_by: Vec::new(),
            siblings: Vec::new(),
            core_since: Nanos::ZERO,
            kept_idle: 0,
            donation: None,
            payer: None,
            indexed_idle: false,
            yielded: false,
        }
    }

    pub(crate) fn class(&self, class: Class) -> &ClassQueue {
        let [high, normal, low] = &self.classes;
        match class {
            Class::High => high,
            Class::Normal => normal,
            Class::Low => low,
        }
    }

    pub(crate) fn class_mut(&mut self, class: Class) -> &mut ClassQueue {
        let [high, normal, low] = &mut self.classes;
        match class {
            Class::High => high,
            Class::Normal => normal,
            Class::Low => low,
        }
    }

    /// Members of all classes, highest class first.
    pub(crate) fn members(&self) -> impl Iterator<Item = VcpuId> + '_ {
        self.classes.iter().flat_map(|c| c.members.iter().copied())
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.classes.iter().map(|c| c.members.len()).sum()
    }

    /// Whether it has nothing to run of its own.
    pub(crate) fn is_empty(&self) -> bool {
        self.classes.iter().all(|c| c.members.is_empty())
    }
}

/// `amount x part / whole`, towards 0; in 64 bits where that fits, which is nearly always. None if it is beyond all numbers.
fn part_of(amount: i64, part: i64, whole: i64) -> Option<i64> {
    let whole = whole.max(1);
    match amount.checked_mul(part) {
        Some(product) => Some(product / whole),
        None => i64::try_from(i128::from(amount) * i128::from(part) / i128::from(whole)).ok(),
    }
}

/// Gives `amount` (which may be negative) to the members, whose weights sum to `total`, in
/// proportion to weight, to the last nanosecond.
fn share_out(amount: i64, members: &[VcpuId], total: u64, vcpus: &mut Vcpus) {
    if total == 0 || amount == 0 {
        return;
    }
    let mut rest = amount;
    let total = i64::try_from(total).unwrap_or(i64::MAX);
    // What rounding leaves goes to whoever is owed least, so that it never pushes out a lag.
    let mut least: Option<(i64, VcpuId)> = None;
    let sign = amount.signum();
    for id in members {
        let Some(v) = vcpus.get_mut(*id) else {
            continue;
        };
        let part = part_of(amount, v.weight.into(), total).unwrap_or(0);
        v.credit = v.credit.saturating_add(part);
        rest -= part;
        let owed = v.credit.saturating_mul(sign);
        if least.is_none_or(|(l, _)| owed < l) {
            least = Some((owed, *id));
        }
    }
    if let Some(v) = least.and_then(|(_, id)| vcpus.get_mut(id)) {
        v.credit = v.credit.saturating_add(rest);
    }
}

/// Lag up to which a joining vCPU may push others: half a request and the largest bonus, so that what they pay
/// for a request of their own after it leaves them within Q ([`crate::guard`]).
pub(crate) fn join_bound(tunables: &Tunables) -> i64 {
    Credits::for_time(tunables.request + tunables.most_bonus()).0 / 2
}

impl ClassQueue {
    /// The part of `credit` with which a vCPU can join without pushing a member's lag beyond
    /// `bound`. Nothing in an empty queue, where nobody owes or is owed.
    fn bearable(&self, credit: i64, bound: i64, vcpus: &Vcpus) -> i64 {
        let total = i128::from(self.weight);
        let mut most = if total == 0 {
            0
        } else {
            i128::from(credit.saturating_abs())
        };
        for v in self.members.iter().filter_map(|id| vcpus.get(*id)) {
            // What comes in positive takes from the others, and the other way round.
            let room = i128::from(bound) + i128::from(v.credit) * i128::from(credit.signum());
            most = most.min(room.max(0) * total / i128::from(v.weight.max(1)));
        }
        i64::try_from(most)
            .unwrap_or(i64::MAX)
            .saturating_mul(credit.signum())
    }

    /// A member left with `credit`. The others sum to its opposite: those of opposite sign are
    /// scaled down until all sum to 0.
    fn settle(&self, credit: i64, vcpus: &mut Vcpus) {
        let opposite = |c: i64| c.signum() == -credit.signum();
        let mut whole: i128 = self
            .members
            .iter()
            .filter_map(|id| vcpus.get(*id))
            .filter(|v| opposite(v.credit))
            .map(|v| i128::from(v.credit).abs())
            .sum();
        let mut rest = i128::from(credit);
        for id in &self.members {
            let Some(v) = vcpus.get_mut(*id).filter(|v| opposite(v.credit)) else {
                continue;
            };
            // Of what is left to give, the part that this one is of those still to come.
            let own = i128::from(v.credit).abs();
            let part = rest * own / whole.max(1);
            rest -= part;
            whole -= own;
            v.credit = v.credit.saturating_add(i64::try_from(part).unwrap_or(0));
        }
    }

    /// `runner` ran for `t`.
    pub(crate) fn charge(&self, runner: VcpuId, t: Nanos, vcpus: &mut Vcpus) {
        let price = Credits::for_time(t).0;
        share_out(price, &self.members, self.weight, vcpus);
        if let Some(v) = vcpus.get_mut(runner) {
            v.credit = v.credit.saturating_sub(price);
        }
    }

    /// `id` joins with `credit`. A vCPU that is alone has none: nobody owes it. What it owes beyond what it can bring here
    /// it owes in the next queue.
    pub(crate) fn join(&mut self, id: VcpuId, credit: i64, bound: i64, vcpus: &mut Vcpus) {
        let bearable = self.bearable(credit, bound, vcpus);
        share_out(bearable.saturating_neg(), &self.members, self.weight, vcpus);
        let unpaid = match self.members.is_empty() {
            true => 0,
            false => credit.saturating_sub(bearable).min(0),
        };
        if let Some(v) = vcpus.get_mut(id) {
            (v.credit, v.unpaid) = (bearable, unpaid);
            v.queued = true;
            self.weight += u64::from(v.weight);
        }
        self.members.push(id);
    }

    /// `id` leaves and keeps its credit for its return.
    pub(crate) fn leave(&mut self, id: VcpuId, now: Nanos, vcpus: &mut Vcpus) {
        let total = self.weight;
        self.members.retain(|m| *m != id);
        if let Some(v) = vcpus.get_mut(id) {
            self.weight = self.weight.saturating_sub(u64::from(v.weight));
            v.queued = false;
            v.left = (now, Score::ratio(v.weight.into(), total.into()));
            let credit = v.credit;
            self.settle(credit, vcpus);
        }
        if self.members.is_empty() {
            self.floor_owed = Nanos::ZERO;
        }
    }
}

/// What proximity and caches add to the deadline of `v` on a CPU; |bonus| + penalty is at most
/// Q / divisor.
///
/// `proximity` is the score of the CPU's node and `mean` the average over nodes.
pub(crate) fn bonus_and_penalty(
    v: &Vcpu,
    proximity: Score,
    mean: Score,
    move_cost: Nanos,
    tunables: &Tunables,
) -> (i64, i64) {
    let bound = Credits::for_time(tunables.most_bonus()).0;
    let difference = i64::from(proximity.0) - i64::from(mean.0);
    let given = part_of(bound, tunables.proximity_per_mille.min(1000).into(), 1000).unwrap_or(0);
    let pull = part_of(given, difference, Score::ONE.0.into()).unwrap_or(0);
    let bonus = pull.saturating_sub(Credits::for_time(move_cost).0);
    let (bonus, penalty) = (
        bonus.clamp(-bound, bound),
        Credits::for_time(v.penalty).0.clamp(0, bound),
    );
    let sum = bonus.saturating_abs().saturating_add(penalty);
    if sum <= bound {
        return (bonus, penalty);
    }
    let scale = |x: i64| part_of(x, bound, sum).unwrap_or(0);
    (scale(bonus), scale(penalty))
}

/// The sum by which `v` is compared on one CPU.
pub(crate) fn terms(v: &Vcpu, bonus: i64, penalty: i64) -> Terms {
    let at_default = |x: i64| {
        let scaled = part_of(x, DEFAULT_WEIGHT.into(), v.weight.max(1).into());
        Credits(scaled.unwrap_or(if x < 0 { i64::MIN } else { i64::MAX }))
    };
    let deadline = Credits::for_time(v.remaining).0.saturating_sub(v.credit);
    Terms {
        class: v.spec.class,
        weight: v.weight,
        credit: Credits(v.credit),
        remaining: v.remaining,
        deadline: at_default(deadline),
        bonus: Credits(bonus),
        penalty: Credits(penalty),
        key: at_default(deadline.saturating_sub(bonus).saturating_add(penalty)),
    }
}

/// Time that a move to `to` costs a vCPU whose cache contents are at `last`: in another last-level
/// cache it starts cold, from another node it takes its working set along as well.
pub(crate) fn move_cost(
    last: Option<(CpuId, CpuPlace)>,
    to: (CpuId, CpuPlace),
    refill: Nanos,
    tunables: &Tunables,
) -> Nanos {
    match last {
        None => Nanos::ZERO,
        Some((cpu, _)) if cpu == to.0 => Nanos::ZERO,
        Some((_, place)) if place.node == to.1.node && place.llc == to.1.llc => tunables.move_near,
        Some((_, place)) if place.node == to.1.node => tunables.move_far,
        Some(_) => tunables.move_far + refill,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::VcpuSpec;
    use proptest::prelude::*;
    use units::VmId;

    fn vcpus(weights: &[u32]) -> (ClassQueue, Vcpus) {
        let mut all = Vcpus::default();
        let mut queue = ClassQueue::default();
        for (i, &weight) in weights.iter().enumerate() {
            let id = VcpuId {
                vm: VmId(0),
                index: i as u16,
            };
            let spec = VcpuSpec {
                weight,
                ..VcpuSpec::default()
            };
            all.insert(
                id,
                Vcpu::new(spec, CpuId(0), Nanos::ZERO, &Tunables::default()),
            );
            queue.join(id, 0, 0, &mut all);
        }
        (queue, all)
    }

    fn sum(vcpus: &Vcpus) -> i64 {
        vcpus
            .iter()
            .filter(|(_, v)| v.queued)
            .map(|(_, v)| v.credit)
            .sum()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn credits_sum_to_zero_through_charges_joins_and_leaves(
            weights in proptest::collection::vec(1u32..5000, 2..8),
            steps in proptest::collection::vec((0usize..8, 0u64..20_000_000, any::<bool>()), 1..60),
        ) {
            let (mut queue, mut all) = vcpus(&weights);
            for (i, t, leave) in steps {
                let id = VcpuId { vm: VmId(0), index: (i % weights.len()) as u16 };
                let member = queue.members.contains(&id);
                if member {
                    queue.charge(id, Nanos(t), &mut all);
                }
                if member && leave && queue.members.len() > 1 {
                    queue.leave(id, Nanos::ZERO, &mut all);
                } else if !member {
                    let credit = all.get(id).map_or(0, |v| v.credit);
                    queue.join(id, credit, 3_000_000, &mut all);
                }
                prop_assert_eq!(sum(&all), 0);
            }
        }

        #[test]
        fn bonus_and_penalty_stay_in_range(p in 0u32..=65536, mean in 0u32..=65536, penalty: u64, cost: u64) {
            let tunables = Tunables::default();
            let mut v = Vcpu::new(VcpuSpec::default(), CpuId(0), Nanos::ZERO, &tunables);
            v.penalty = Nanos(penalty);
            let (b, q) = bonus_and_penalty(&v, Score(p), Score(mean), Nanos(cost), &tunables);
            prop_assert!(q >= 0);
            prop_assert!(b.abs() + q <= 1_000_000);
        }
    }
}
