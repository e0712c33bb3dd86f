//! A machine in which vCPUs run, sleep and wake, around the real scheduler.
//!
//! Time jumps from event to event. At each one the harness checks what must hold always: no vCPU
//! on two CPUs, lag within Q where the test asks for it, no CPU idle beyond the limit while
//! something that it may run waits.
#![expect(dead_code, reason = "each test binary uses its part of the harness")]

use sched::*;
use std::collections::BTreeMap;
use units::*;

/// A small generator, seeded, so that a failing case repeats.
#[derive(Clone)]
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n.max(1)
    }
}

/// How a vCPU behaves.
#[derive(Clone, Copy, Debug)]
pub enum Load {
    /// Never halts.
    Busy,
    /// Runs for up to `run`, then sleeps for up to `sleep`.
    Bursts { run: Nanos, sleep: Nanos },
    /// Runs for up to `run`, then spins in a PAUSE loop until it is put down.
    Spins { run: Nanos },
    /// Runs for up to `run`, then gives up the rest of its turn.
    Yields { run: Nanos },
}

/// Cases of a property test: a few in the quick set, `PERIGEE_DEEP` times as many in a deep run.
pub fn cases(quick: u32) -> u32 {
    let deep = std::env::var("PERIGEE_DEEP").ok();
    quick * deep.and_then(|n| n.parse().ok()).unwrap_or(1).max(1)
}

#[derive(Clone, Copy, Debug)]
enum Doing {
    Run {
        vcpu: VcpuId,
        since: Nanos,
        until: Nanos,
    },
    Idle {
        since: Nanos,
        until: Option<Nanos>,
    },
}

struct Guest {
    load: Load,
    /// Left of the burst.
    left: Nanos,
    waits_since: Option<Nanos>,
    wakes_at: Option<Nanos>,
    longest_wait: Nanos,
    /// All of its waits, and how many.
    waits: (Nanos, u64),
    affinity: Affinity,
}

pub struct Sim {
    pub sched: Scheduler,
    pub now: Nanos,
    pub rng: Rng,
    places: BTreeMap<CpuId, CpuPlace>,
    doing: BTreeMap<CpuId, Doing>,
    guests: BTreeMap<VcpuId, Guest>,
    /// Run time of each machine on each node.
    pub run_on: BTreeMap<(VmId, NodeId), Nanos>,
    pub moves: Vec<(Nanos, VcpuId, CpuId, CpuId, telemetry::MoveReason)>,
    pub worst_lag: i64,
    pub worst_idle: Nanos,
    pub check_lag: bool,
    pub spins: u64,
    out: Commands,
    kicks: Vec<CpuId>,
}

pub fn vcpu(vm: u16, index: u16) -> VcpuId {
    VcpuId {
        vm: VmId(vm),
        index,
    }
}

impl Sim {
    /// `nodes` nodes with `per_node` CPUs each, one cache per node, no SMT.
    pub fn new(nodes: u16, per_node: u32, seed: u64) -> Self {
        Self::with(nodes, per_node, 1, Tunables::default(), seed)
    }

    /// `nodes` nodes with `per_node` CPUs each, `threads` of them a core.
    pub fn with(nodes: u16, per_node: u32, threads: u32, tunables: Tunables, seed: u64) -> Self {
        let mut sim = Self {
            sched: Scheduler::new(tunables),
            now: Nanos::from_millis(1),
            rng: Rng(seed),
            places: BTreeMap::new(),
            doing: BTreeMap::new(),
            guests: BTreeMap::new(),
            run_on: BTreeMap::new(),
            moves: Vec::new(),
            worst_lag: 0,
            worst_idle: Nanos::ZERO,
            check_lag: false,
            spins: 0,
            out: Commands::new(),
            kicks: Vec::new(),
        };
        for node in 0..nodes {
            for i in 0..per_node {
                let cpu = CpuId(u32::from(node) * per_node + i);
                let place = CpuPlace {
                    node: NodeId(node),
                    llc: node.into(),
                    core: cpu.0 / threads,
                };
                sim.places.insert(cpu, place);
                sim.event(Event::CpuOnline { cpu, place });
                sim.doing.insert(
                    cpu,
                    Doing::Idle {
                        since: sim.now,
                        until: None,
                    },
                );
            }
        }
        sim
    }

    pub fn event(&mut self, event: Event) {
        if let Event::Respecified { vcpu, spec } = &event {
            self.guests.get_mut(vcpu).expect("known").affinity = spec.affinity.clone();
        }
        self.sched
            .handle(self.now, event, &mut self.out)
            .expect("the harness tells the truth");
        self.obey();
        self.note_lag();
    }

    fn obey(&mut self) {
        let commands: Vec<Command> = self.out.drain().collect();
        for command in commands {
            match command {
                Command::Kick { cpu } => {
                    if !self.kicks.contains(&cpu) {
                        self.kicks.push(cpu);
                    }
                }
                Command::Migrate {
                    vcpu,
                    from,
                    to,
                    reason,
                } => {
                    let inside = self
                        .doing
                        .values()
                        .any(|d| matches!(d, Doing::Run { vcpu: v, .. } if *v == vcpu));
                    assert!(!inside, "{vcpu} was moved while a CPU was inside it");
                    assert!(
                        self.guests[&vcpu].affinity.allows(to, &self.places[&to]),
                        "affinity"
                    );
                    self.moves.push((self.now, vcpu, from, to, reason));
                }
            }
        }
    }

    pub fn add(&mut self, vcpu: VcpuId, spec: VcpuSpec, load: Load) {
        let guest = Guest {
            load,
            left: Nanos::ZERO,
            waits_since: None,
            wakes_at: None,
            longest_wait: Nanos::ZERO,
            waits: (Nanos::ZERO, 0),
            affinity: spec.affinity.clone(),
        };
        self.guests.insert(vcpu, guest);
        self.event(Event::VcpuAdded { vcpu, spec });
        self.wake(vcpu);
    }

    /// A machine goes on; what of it is runnable waits from now on.
    pub fn resume(&mut self, vm: VmId) {
        self.event(Event::Resumed { vm });
        for (id, guest) in &mut self.guests {
            let runnable = self.sched.vcpu(*id).expect("known").runnable;
            if id.vm == vm && runnable && guest.waits_since.is_none() {
                guest.waits_since = Some(self.now);
            }
        }
    }

    /// A vCPU is gone, unless a CPU is inside it.
    pub fn remove(&mut self, vcpu: VcpuId) {
        if !self.sched.vcpu(vcpu).expect("known").running {
            self.guests.remove(&vcpu);
            self.event(Event::VcpuRemoved { vcpu });
        }
    }

    pub fn busy(&mut self, vcpu: VcpuId, weight: u32) {
        self.add(
            vcpu,
            VcpuSpec {
                weight,
                ..VcpuSpec::default()
            },
            Load::Busy,
        );
    }

    fn wake(&mut self, vcpu: VcpuId) {
        let guest = self.guests.get_mut(&vcpu).expect("known");
        guest.wakes_at = None;
        guest.left = match guest.load {
            Load::Busy => Nanos::MAX,
            Load::Bursts { run, .. } | Load::Spins { run } | Load::Yields { run } => {
                Nanos(1 + self.rng.below(run.0))
            }
        };
        self.event(Event::Wake { vcpu });
        let r = self.sched.vcpu(vcpu).expect("known");
        let guest = self.guests.get_mut(&vcpu).expect("known");
        if r.runnable {
            guest.waits_since = Some(self.now);
        }
    }

    /// The CPU leaves what it does and picks.
    fn repick(&mut self, cpu: CpuId) {
        if let Doing::Run { vcpu, since, .. } = self.doing[&cpu] {
            let ran = self.now.since(since);
            *self
                .run_on
                .entry((vcpu.vm, self.places[&cpu].node))
                .or_default() += ran;
            self.event(Event::Charge { cpu, vcpu, ran });
            let guest = self.guests.get_mut(&vcpu).expect("known");
            if guest.left != Nanos::MAX {
                guest.left = guest.left.since(ran);
            }
            guest.waits_since = Some(self.now);
            if guest.left == Nanos::ZERO
                && let Load::Spins { run } = guest.load
            {
                guest.left = Nanos(1 + self.rng.below(run.0));
                self.spins += 1;
                self.event(Event::Spin { vcpu });
            } else if guest.left == Nanos::ZERO
                && let Load::Yields { run } = guest.load
            {
                guest.left = Nanos(1 + self.rng.below(run.0));
                self.event(Event::Yield { vcpu });
            } else if guest.left == Nanos::ZERO {
                guest.waits_since = None;
                if let Load::Bursts { sleep, .. } = guest.load {
                    guest.wakes_at = Some(self.now + Nanos(1 + self.rng.below(sleep.0)));
                }
                self.event(Event::Block { vcpu });
            }
        }
        let was_idle = match self.doing[&cpu] {
            Doing::Idle { since, .. } => since,
            Doing::Run { .. } => self.now,
        };
        self.doing.insert(
            cpu,
            Doing::Idle {
                since: was_idle,
                until: None,
            },
        );
        let next = self.sched.pick(cpu, self.now, &mut self.out);
        self.obey();
        self.note_lag();
        match next {
            Next::Run { vcpu, slice, why } => {
                assert_eq!(why.vcpu, vcpu);
                let twice = self.doing.iter().any(
                    |(c, d)| matches!(d, Doing::Run { vcpu: v, .. } if *v == vcpu && *c != cpu),
                );
                assert!(!twice, "{vcpu} on two CPUs");
                self.check_core(cpu, vcpu.vm);
                let guest = self.guests.get_mut(&vcpu).expect("known");
                if let Some(since) = guest.waits_since.take() {
                    let wait = self.now.since(since);
                    guest.longest_wait = guest.longest_wait.max(wait);
                    guest.waits = (guest.waits.0 + wait, guest.waits.1 + 1);
                }
                let until = self.now + slice.min(guest.left);
                self.doing.insert(
                    cpu,
                    Doing::Run {
                        vcpu,
                        since: self.now,
                        until,
                    },
                );
            }
            Next::Idle { until } => {
                assert!(until.is_none_or(|t| t > self.now), "an alarm in the past");
                self.doing.insert(
                    cpu,
                    Doing::Idle {
                        since: was_idle,
                        until,
                    },
                );
            }
        }
    }

    /// Threads of a core run one machine at a time, unless they may share it.
    fn check_core(&self, cpu: CpuId, vm: VmId) {
        let core = self.places[&cpu].core;
        let shared = self.doing.iter().find(|(c, d)| {
            **c != cpu
                && self.places[c].core == core
                && matches!(d, Doing::Run { vcpu, .. } if vcpu.vm != vm)
        });
        assert!(
            shared.is_none() || self.sched.tunables().share_cores,
            "{cpu} runs {vm} beside {shared:?}"
        );
    }

    fn note_lag(&mut self) {
        for v in self.sched.vcpus().filter(|v| v.runnable) {
            self.worst_lag = self.worst_lag.max(v.credit.0.abs());
        }
        if self.check_lag {
            let q = self.sched.tunables().quantum;
            assert!(
                self.worst_lag <= q.0 as i64,
                "lag {} at {}",
                Credits(self.worst_lag),
                self.now
            );
        }
    }

    /// The longest time for which a CPU has been idle while something it may run waited.
    fn note_idle(&mut self) {
        for (cpu, doing) in &self.doing {
            let Doing::Idle { since, .. } = doing else {
                continue;
            };
            for (id, guest) in &self.guests {
                let r = self.sched.vcpu(*id).expect("known");
                if let Some(waits) = guest.waits_since
                    && r.runnable
                    && guest.affinity.allows(*cpu, &self.places[cpu])
                {
                    let both = self.now.since(waits.max(*since));
                    self.worst_idle = self.worst_idle.max(both);
                }
            }
        }
    }

    /// Runs until `end`; `disturb` may send events and says when it wants to be called next.
    pub fn run_with(&mut self, end: Nanos, mut disturb: impl FnMut(&mut Self) -> Nanos) {
        let mut disturb_at = self.now;
        let mut picks = Picks::default();
        loop {
            // Interrupts arrive at once; each may cause further ones.
            while !self.kicks.is_empty() {
                let cpu = self.kicks.remove(0);
                self.repick(cpu);
                picks.count(self.now, cpu);
            }
            let cpu_next = self.doing.iter().filter_map(|(c, d)| match d {
                Doing::Run { until, .. } => Some((*until, *c)),
                Doing::Idle { until, .. } => until.map(|t| (t, *c)),
            });
            let cpu_next = cpu_next.min();
            let wake_next = self
                .guests
                .iter()
                .filter_map(|(v, g)| g.wakes_at.map(|t| (t, *v)))
                .min();
            let next = [
                cpu_next.map(|n| n.0),
                wake_next.map(|n| n.0),
                Some(disturb_at),
            ]
            .into_iter()
            .flatten()
            .min()
            .expect("the disturbance");
            if next >= end {
                self.now = end;
                self.note_idle();
                return;
            }
            self.now = self.now.max(next);
            self.note_idle();
            if disturb_at <= self.now {
                disturb_at = disturb(self).max(self.now + Nanos(1));
            } else if wake_next.is_some_and(|(t, _)| t <= self.now) {
                self.wake(wake_next.expect("just seen").1);
            } else if let Some((_, cpu)) = cpu_next {
                self.repick(cpu);
                picks.count(self.now, cpu);
            }
        }
    }

    pub fn run(&mut self, time: Nanos) {
        let end = self.now + time;
        self.run_with(end, |_| Nanos::MAX);
    }

    pub fn ran(&self, vcpu: VcpuId) -> Nanos {
        self.sched.vcpu(vcpu).expect("known").ran
    }

    /// How long it waited in all, and how often.
    pub fn waits(&self, vcpu: VcpuId) -> (Nanos, u64) {
        self.guests[&vcpu].waits
    }
    pub fn longest_wait(&self, vcpu: VcpuId) -> Nanos {
        self.guests[&vcpu].longest_wait
    }

    pub fn node(&self, vcpu: VcpuId) -> NodeId {
        self.sched.vcpu(vcpu).expect("known").node
    }
}

/// Picks since a tenth of a millisecond began: a scheduler that decides again and again and lets no time pass gets nowhere.
#[derive(Default)]
struct Picks {
    since: Nanos,
    by_cpu: BTreeMap<CpuId, u32>,
}

impl Picks {
    /// More than a pick a nanosecond is no run that ends.
    const MOST: u32 = 20_000;

    fn count(&mut self, now: Nanos, cpu: CpuId) {
        if now.since(self.since) > Nanos::from_micros(100) {
            (self.since, self.by_cpu) = (now, BTreeMap::new());
        }
        let picks = self.by_cpu.entry(cpu).or_default();
        *picks += 1;
        assert!(
            *picks < Self::MOST,
            "{cpu} picked {picks} times since {} and it is {now}",
            self.since
        );
    }
}

/// Scores that change whenever they like, as the worst possible footprint would make them.
pub fn adversary(sim: &mut Sim, vms: u16, nodes: usize) -> Nanos {
    let vm = VmId(sim.rng.below(vms.into()) as u16);
    let scores = (0..nodes)
        .map(|_| match sim.rng.below(3) {
            0 => Score::ZERO,
            1 => Score::ONE,
            _ => Score(sim.rng.below(65537) as u32),
        })
        .collect();
    sim.event(Event::ProximityUpdated { vm, scores });
    sim.now + Nanos(1 + sim.rng.below(3_000_000))
}
