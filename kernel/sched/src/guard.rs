//! What holds `|lag| <= Q` when queues change under a scheduler's hands.
//!
//! # The argument
//! In a queue whose members stay, earliest eligible virtual deadline first keeps every lag between minus a request R
//! and a request plus the largest bonus B (Stoica and Abdel-Wahab 1995). Here members come and go with lags of their own, are put
//! down before their time, let others pass and pay for others. So the bound is kept by rules that hold whatever the order was.
//!
//! *Credits are up to date.* Before anybody joins or leaves a queue, whom its CPU runs is charged up to that moment
//! ([`crate::ledger`]), so the room for a newcomer is judged by true lags. A newcomer brings R at most.
//!
//! *Downwards.* Only by paying does a credit fall below `-J`, J = (R + B) / 2: what a newcomer brings pushes nobody beyond J
//! ([`crate::queue::join_bound`]), and who leaves moves others towards 0. Who pays was eligible when its slice began, or its slice
//! is at most what leaves it above `-R`, so while it runs it falls to `-(R + J)` at most: 0.8 Q.
//!
//! *Upwards.* A member *presses* when its credit is beyond U = R + B, which in a queue at rest nobody's is. Between one pick and the
//! next, a **step**, members earn at most the step's length in sum, and one pays it. The rules:
//! 1. A step ends before anybody is beyond U, at the earliest after a grain d = Q / 20; when joins and leaves change the speed at
//!    which a member earns, it is looked at again, and the step ended if need be.
//! 2. While somebody presses, who presses most pays for the step: neither the order by deadline nor a yield, the protection of
//!    who has just begun or a donation comes before that. Where a core's owner is another machine, the CPU idles until the core is
//!    free, and nobody earns.
//!
//! So after a step at whose beginning nobody pressed, all are at most U + d. After one at whose beginning somebody did, this is the
//! game of cups and water: each step pours d into N cups as an adversary likes and empties d from the fullest.
//! Let `B_k` = U + d (2 + 1/k + ... + 1/(N - 1)). *The k largest credits are at most `k B_k` in sum*, where credits below U + d
//! count as that: of k members with the payer among them the sum does not grow, or the payer is down at U + d and
//! the others are k - 1 members without the payer; of k members without him the sum was at most `k B_(k+1)`, since with him,
//! the largest, it was at most `(k + 1) B_(k+1)`, and it grows by d at most: `k B_(k+1) + d = k B_k`. Joins bring or
//! push nobody beyond R or J, which are below U, and leaves only lower what is owed. Hence no credit is beyond
//! `B_1` = U + d (2 + H), H = 1 + 1/2 + ... + 1/(N - 1): with U = 0.6 Q and d = Q / 20, at most Q for all N up to 227 vCPUs that
//! wait for one CPU; for 16 of them 0.87 Q.
//!
//! What a CPU overruns its slice by (an exit that takes long) comes on top.

use telemetry::Class;
use units::{CpuId, Credits, Nanos, VcpuId};

use crate::event::Commands;
use crate::scheduler::Scheduler;
use crate::tunables::Tunables;

impl Tunables {
    /// B: |bonus| + penalty is never beyond this.
    pub(crate) fn most_bonus(&self) -> Nanos {
        Nanos(self.quantum.0 / u64::from(self.bonus_divisor.max(1)))
    }

    /// U: a member whose credit is beyond it presses.
    fn pressing(&self) -> i64 {
        Credits::for_time(self.request + self.most_bonus()).0
    }

    /// d: the shortest step.
    fn grain(&self) -> Nanos {
        Nanos(self.quantum.0 / 20)
    }

    /// Whether a member with this credit is ahead of every order.
    pub(crate) fn presses(&self, credit: i64) -> bool {
        credit > self.pressing()
    }
}

impl Scheduler {
    /// Whether somebody else than `payer` presses in this queue.
    pub(crate) fn is_pressed(&self, cpu: CpuId, class: Class, payer: VcpuId) -> bool {
        let members = self
            .cpus
            .get(cpu)
            .map_or(&[][..], |c| &c.class(class).members);
        let mut others = members.iter().filter(|id| **id != payer);
        others.any(|id| {
            self.vcpus
                .get(*id)
                .is_some_and(|v| self.tunables.presses(v.credit))
        })
    }

    /// As much of `slice` as `payer` may pay for on `cpu` at a time, by both bounds.
    pub(crate) fn guarded(&self, cpu: CpuId, payer: VcpuId, slice: Nanos) -> Nanos {
        let (Some(p), Some(c)) = (self.vcpus.get(payer), self.cpus.get(cpu)) else {
            return slice;
        };
        let queue = c.class(p.spec.class);
        let most = self.tunables.pressing();
        let mut until = self.bearable_debt(payer);
        for id in queue.members.iter().filter(|id| **id != payer) {
            let Some(v) = self.vcpus.get(*id) else {
                continue;
            };
            let room = u128::from(most.saturating_sub(v.credit).max(0).unsigned_abs());
            let (earned, weight) = (room * u128::from(queue.weight), u128::from(v.weight.max(1)));
            // The division costs most of this, and most members have more room than others.
            if earned < u128::from(until.0) * weight {
                until = Nanos(u64::try_from(earned / weight).unwrap_or(u64::MAX));
            }
        }
        slice.min(until.max(self.tunables.grain()))
    }

    /// What `payer` may pay before it is a request in debt.
    fn bearable_debt(&self, payer: VcpuId) -> Nanos {
        let credit = self.vcpus.get(payer).map_or(0, |v| v.credit.min(0));
        self.tunables.request - Nanos(credit.unsigned_abs())
    }

    /// Whether `payer` may pay for a step that it has not been picked for.
    pub(crate) fn may_pay(&self, cpu: CpuId, payer: VcpuId) -> bool {
        let class = self.vcpus.get(payer).map(|v| v.spec.class);
        class.is_some_and(|class| !self.is_pressed(cpu, class, payer))
            && self.bearable_debt(payer) >= self.tunables.grain()
    }

    /// A queue of `cpu` has changed: ends the step there if it is too long now.
    pub(crate) fn look_again(&mut self, now: Nanos, cpu: CpuId, class: Class, out: &mut Commands) {
        let Some(c) = self.cpus.get(cpu).filter(|c| !c.kicked) else {
            return;
        };
        let Some(payer) = c.payer.or(c.current) else {
            return;
        };
        let rest = c.until.since(now);
        let of_class = self.vcpus.get(payer).is_some_and(|v| v.spec.class == class);
        if of_class && self.guarded(cpu, payer, rest) < rest {
            self.kick(cpu, out);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{CpuPlace, Event, Next, VcpuSpec};
    use alloc::vec::Vec;
    use units::{NodeId, VmId};

    const ONE: CpuId = CpuId(0);

    fn vcpu(index: u16) -> VcpuId {
        VcpuId { vm: VmId(0), index }
    }

    fn tell(s: &mut Scheduler, now: Nanos, event: Event) -> Commands {
        let mut out = Commands::new();
        s.handle(now, event, &mut out).expect("accepted");
        out
    }

    /// Three of one machine wait for one CPU, with these credits in microseconds.
    fn three(credits: [i64; 3]) -> Scheduler {
        let mut s = Scheduler::new(Tunables::default());
        let place = CpuPlace {
            node: NodeId(0),
            llc: 0,
            core: 0,
        };
        tell(&mut s, Nanos::ZERO, Event::CpuOnline { cpu: ONE, place });
        for (i, credit) in credits.into_iter().enumerate() {
            let (vcpu, spec) = (vcpu(i as u16), VcpuSpec::default());
            tell(&mut s, Nanos::ZERO, Event::VcpuAdded { vcpu, spec });
            tell(&mut s, Nanos::ZERO, Event::Wake { vcpu });
            s.vcpus.get_mut(vcpu).expect("added").credit = credit * 1000;
        }
        s
    }

    fn pick(s: &mut Scheduler, now: Nanos) -> (VcpuId, Nanos) {
        match s.pick(ONE, now, &mut Commands::new()) {
            Next::Run { vcpu, slice, .. } => (vcpu, slice),
            Next::Idle { .. } => panic!("three wait"),
        }
    }

    #[test]
    fn who_presses_comes_before_deadlines_and_in_spite_of_a_yield() {
        for (credit, first) in [(5_900, 2), (6_100, 0)] {
            let mut s = three([credit, -credit - 100, 100]);
            s.vcpus.get_mut(vcpu(2)).expect("added").remaining = Nanos(1000);
            s.vcpus.get_mut(vcpu(0)).expect("added").yielded = true;
            assert_eq!(pick(&mut s, Nanos(1)).0, vcpu(first), "{credit}");
        }
    }

    #[test]
    fn a_step_ends_before_anybody_presses() {
        // It earns a third of the time; a millisecond is missing.
        let mut s = three([5_000, -10_100, 5_100]);
        s.vcpus.get_mut(vcpu(2)).expect("added").remaining = Nanos::from_millis(4);
        assert_eq!(pick(&mut s, Nanos(1)), (vcpu(2), Nanos::from_millis(3)));
        // And twice as fast, as soon as one of the three is gone.
        let gone = Event::VcpuRemoved { vcpu: vcpu(1) };
        let kicks: Vec<_> = tell(&mut s, Nanos(2), gone).drain().collect();
        assert_eq!(kicks, [], "what it owed was taken from who is owed");
        let mut s = three([5_000, 100, -5_100]);
        s.vcpus.get_mut(vcpu(0)).expect("added").yielded = true;
        assert_eq!(pick(&mut s, Nanos(1)), (vcpu(1), Nanos::from_millis(3)));
        let gone = Event::VcpuRemoved { vcpu: vcpu(1) };
        let kicks = tell(&mut s, Nanos(2), gone);
        assert!(!kicks.is_empty(), "who ran is gone");
    }

    #[test]
    fn who_is_a_request_in_debt_pays_for_nobody() {
        for (ran, next) in [(Nanos::from_millis(2), 1), (Nanos(7_200_000), 2)] {
            let mut s = three([0, -100, 100]);
            s.vcpus.get_mut(vcpu(0)).expect("added").remaining = Nanos(1000);
            assert_eq!(pick(&mut s, Nanos(1)).0, vcpu(0));
            let (now, cpu) = (Nanos(1) + ran, ONE);
            let charge = Event::Charge {
                cpu,
                vcpu: vcpu(0),
                ran,
            };
            tell(&mut s, now, charge);
            tell(&mut s, now, Event::Spin { vcpu: vcpu(0) });
            // By name among those that have waited as long, or by credit.
            assert_eq!(pick(&mut s, now).0, vcpu(next), "after {ran}");
        }
    }
}
