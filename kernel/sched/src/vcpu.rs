//! What the scheduler remembers of one vCPU.

use telemetry::{Class, MoveReason};
use units::{CpuId, Credits, Nanos, NodeId, Score};

use crate::event::VcpuSpec;
use crate::own::Own;
use crate::tunables::{MAX_WEIGHT, Tunables};

/// One vCPU.
#[derive(Clone, Debug)]
pub(crate) struct Vcpu {
    pub(crate) spec: VcpuSpec,
    pub(crate) weight: u32,
    /// Has work: woken and not halted since.
    pub(crate) wants: bool,
    /// Its machine is paused.
    pub(crate) paused: bool,
    /// Used up its limit; waits for it outside the queue.
    pub(crate) throttled: bool,
    /// Gone as soon as its CPU has left it.
    pub(crate) removed: bool,
    /// Gave up its turn; the next pick passes it over if anybody else can run.
    pub(crate) yielded: bool,
    /// The CPU whose queue it belongs to, now or when it wakes.
    pub(crate) cpu: CpuId,
    /// Whether it is a member of that queue.
    pub(crate) queued: bool,
    /// The CPU that may be inside it.
    pub(crate) on_cpu: Option<CpuId>,
    /// The CPU that was inside it last: where its cache contents are.
    pub(crate) last_cpu: Option<CpuId>,
    /// Lag against the fluid share of its queue, ns. See `queue`.
    pub(crate) credit: i64,
    /// What it owed when it came into its queue and could not bring, at most 0.
    pub(crate) unpaid: i64,
    /// What is left of its request.
    pub(crate) remaining: Nanos,
    /// When it left a queue, and its share there: at that rate a debt is forgiven.
    pub(crate) left: (Nanos, Score),
    pub(crate) penalty: Nanos,
    /// What it touches, where that is not what its machine does.
    pub(crate) own: Own,
    /// How much distance matters to it.
    pub(crate) stall: Score,
    /// Time to fill another last-level cache.
    pub(crate) refill: Nanos,
    /// Left its CPU by spinning last time: the wait is its own, no lock's holder.
    pub(crate) spun: bool,
    /// Where it stands in the index of those who wait.
    pub(crate) indexed: Option<(NodeId, Class, Nanos)>,
    /// Since when it is queued without running.
    pub(crate) waiting_since: Nanos,
    /// When it woke, if it has not run since.
    pub(crate) woke_at: Option<Nanos>,
    /// What is left of the time that its machine's limit granted it for this slice; below 0 after a late interruption.
    pub(crate) granted: i64,
    /// Part of a CPU that it can use at most, by its machine's limit.
    pub(crate) most: Score,
    /// Where it goes when its CPU has left it.
    pub(crate) move_to: Option<(CpuId, MoveReason)>,
    pub(crate) moved_at: Nanos,
    /// Decayed part of time in which it wanted to run.
    pub(crate) demand: Score,
    /// Feasible weight, set by `balance`.
    pub(crate) load_weight: u32,
    /// Share of one CPU that it is entitled to machine-wide, set by `balance`.
    pub(crate) entitled: Score,
    /// Entitled minus received, machine-wide, ns: what the operator sees as credits.
    pub(crate) account: i64,
    /// Up to when demand and account are current.
    pub(crate) advanced_at: Nanos,
    /// Run time since it was added.
    pub(crate) ran: Nanos,
    /// Run time since it woke, and its average between a wake-up and the next sleep.
    pub(crate) burst: Nanos,
    pub(crate) usual_burst: Nanos,
}

impl Vcpu {
    pub(crate) fn new(spec: VcpuSpec, cpu: CpuId, now: Nanos, tunables: &Tunables) -> Self {
        let weight = spec.weight.clamp(1, MAX_WEIGHT);
        Self {
            granted: 0,
            most: most_of(&spec),
            spec,
            weight,
            wants: false,
            paused: false,
            throttled: false,
            removed: false,
            yielded: false,
            cpu,
            queued: false,
            on_cpu: None,
            last_cpu: None,
            credit: 0,
            unpaid: 0,
            remaining: tunables.request,
            left: (now, Score::ZERO),
            penalty: Nanos::ZERO,
            own: Own::default(),
            stall: Score::ONE,
            refill: Nanos::ZERO,
            spun: false,
            indexed: None,
            waiting_since: now,
            woke_at: None,
            move_to: None,
            moved_at: Nanos::ZERO,
            demand: Score::ZERO,
            load_weight: weight,
            entitled: Score::ONE,
            account: 0,
            advanced_at: now,
            ran: Nanos::ZERO,
            burst: Nanos::ZERO,
            usual_burst: tunables.request,
        }
    }

    /// Length of its next request: twice what it usually runs before it sleeps, at most the longest.
    ///
    /// A shorter request has an earlier deadline, so who sleeps most of the time runs soon after it wakes;
    /// it is charged and eligible as everybody else, so it gets no more for it (EEVDF: a request's length
    /// buys latency, never share).
    pub(crate) fn request(&self, tunables: &Tunables) -> Nanos {
        let least = Nanos(tunables.request.0 / 50);
        (self.usual_burst + self.usual_burst)
            .max(least)
            .min(tunables.request)
    }

    /// It woke: a new request begins.
    pub(crate) fn note_wake(&mut self, tunables: &Tunables) {
        self.burst = Nanos::ZERO;
        self.remaining = self.request(tunables);
    }

    /// It sleeps: what it ran counts a quarter of what is usual.
    pub(crate) fn note_sleep(&mut self) {
        self.usual_burst = Nanos(self.usual_burst.0 / 4 * 3 + self.burst.0 / 4);
    }

    /// Takes over a changed specification.
    pub(crate) fn respecify(&mut self, spec: VcpuSpec) {
        self.most = most_of(&spec);
        self.weight = spec.weight.clamp(1, MAX_WEIGHT);
        self.load_weight = self.weight;
        self.spec = spec;
    }

    /// Whether it would run if it had a CPU.
    pub(crate) const fn runnable(&self) -> bool {
        self.wants && !self.paused && !self.throttled && !self.removed
    }

    /// Whether it waits in a queue and nobody runs it.
    pub(crate) const fn waiting(&self) -> bool {
        self.queued && self.on_cpu.is_none()
    }

    /// Brings demand and account up to `now`. Called before every change of state.
    pub(crate) fn advance(&mut self, now: Nanos, tunables: &Tunables) {
        let dt = now.since(self.advanced_at);
        self.advanced_at = self.advanced_at.max(now);
        let window = tunables.demand_window.0.max(1);
        let part = Score::ratio(dt.0.into(), window.into());
        let active = self.wants && !self.paused && !self.removed;
        if active {
            let earned = i64::try_from(self.entitled.of(dt.0)).unwrap_or(i64::MAX);
            self.account = self.account.saturating_add(earned);
            let most = self.most;
            let rise = part.of(most.above(self.demand).0.into());
            self.demand.0 = self
                .demand
                .0
                .saturating_add(u32::try_from(rise).unwrap_or(0))
                .min(most.0);
        } else {
            let fall = part.of(self.demand.0.into());
            self.demand.0 = self
                .demand
                .0
                .saturating_sub(u32::try_from(fall).unwrap_or(u32::MAX));
        }
    }

    /// Pays for run time, its own or donated, in every currency but the queue's.
    pub(crate) fn pay(&mut self, ran: Nanos, tunables: &Tunables) {
        self.account = self.account.saturating_sub(Credits::for_time(ran).0);
        self.remaining = self.remaining - ran;
        if self.remaining == Nanos::ZERO {
            // It runs longer than it used to.
            self.usual_burst = self.usual_burst.max(self.burst);
            self.remaining = self.request(tunables);
        }
    }

    /// Debt left after the time spent out of the queue, had it stayed and earned its share.
    pub(crate) fn credit_on_return(&self, now: Nanos, bound: Nanos) -> i64 {
        let (at, share) = self.left;
        let bound = Credits::for_time(bound).0;
        let earned = i64::try_from(share.of(now.since(at).0)).unwrap_or(i64::MAX);
        let credit = self.credit.saturating_add(self.unpaid);
        let credit = if credit < 0 {
            credit.saturating_add(earned).min(0)
        } else {
            credit
        };
        credit.clamp(-bound, bound)
    }
}

/// What a vCPU can use if it is the only one of its machine.
fn most_of(spec: &VcpuSpec) -> Score {
    spec.cap
        .map_or(Score::ONE, |cap| Score::from_per_mille(cap.0.min(1000)))
}
