//! What cache penalties decided: every pick of a recorded run once more, from a state that differs in nothing else.

use std::collections::BTreeMap;

use sched::trace::{Input, Replay};
use sched::{Commands, Event as Told, Next, Scheduler};
use telemetry::{Event, Pick};
use units::{CpuId, Nanos, VcpuId};

/// A pick that penalties turned.
#[derive(Clone, Debug)]
pub struct Flip {
    /// Its step.
    pub step: u64,
    /// As it was made.
    pub with: Pick,
    /// As the same scheduler makes it at the same moment with every penalty at 0.
    pub without: Pick,
}

/// Repeats the run in these records, and finds the picks that come out otherwise without penalties. How much memory stalls
/// each virtual CPU, and what a refill costs it, stays as it was told.
///
/// # Errors
/// As [`crate::replay_events`].
pub fn flipped_by_penalties(events: impl IntoIterator<Item = Event>) -> Result<Vec<Flip>, String> {
    let mut run = Replay::default();
    let mut penalties: BTreeMap<VcpuId, Told> = BTreeMap::new();
    let mut flips = Vec::new();
    for step in &crate::steps_of(events)? {
        match &step.input {
            Input::Event(Told::CachePenalty {
                vcpu,
                stall,
                refill,
                ..
            }) => {
                let none = Told::CachePenalty {
                    vcpu: *vcpu,
                    stall: *stall,
                    penalty: Nanos::ZERO,
                    refill: *refill,
                };
                penalties.insert(*vcpu, none);
            }
            Input::Pick(cpu) => {
                if let Some(sched) = run.scheduler() {
                    let with = pick(sched, *cpu, step.at, []);
                    let without = pick(sched, *cpu, step.at, penalties.values());
                    if let (Some(with), Some(without)) = (with, without)
                        && with.vcpu != without.vcpu
                    {
                        let step = step.step;
                        flips.push(Flip {
                            step,
                            with,
                            without,
                        });
                    }
                }
            }
            _ => {}
        }
        run.step(step).map_err(|e| e.to_string())?;
    }
    Ok(flips)
}

/// Whom a copy of the scheduler picks after these events.
fn pick<'e>(
    sched: &Scheduler,
    cpu: CpuId,
    at: Nanos,
    events: impl IntoIterator<Item = &'e Told>,
) -> Option<Pick> {
    let (mut copy, mut out) = (sched.clone(), Commands::new());
    for event in events {
        // One that is gone meanwhile has no penalty either.
        let _gone = copy.handle(at, event.clone(), &mut out);
    }
    match copy.pick(cpu, at, &mut out) {
        Next::Run { why, .. } => Some(why),
        Next::Idle { .. } => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sched::trace::{Outcome, Step};
    use sched::{CpuPlace, Tunables, VcpuSpec};
    use units::{NodeId, Score, VmId};

    /// Two virtual CPUs on one CPU of which the first waits for memory, as records.
    fn run(penalty: Nanos) -> Vec<Event> {
        let vcpu = |vm: u16| VcpuId {
            vm: VmId(vm),
            index: 0,
        };
        let (cpu, spec) = (CpuId(0), VcpuSpec::default());
        let place = CpuPlace {
            node: NodeId(0),
            llc: 0,
            core: 0,
        };
        let added = |vm: u16| Told::VcpuAdded {
            vcpu: vcpu(vm),
            spec: spec.clone(),
        };
        let told = Told::CachePenalty {
            vcpu: vcpu(0),
            stall: Score::ONE,
            penalty,
            refill: Nanos::ZERO,
        };
        let inputs = [
            Input::Event(Told::CpuOnline { cpu, place }),
            Input::Event(added(0)),
            Input::Event(added(1)),
            Input::Event(Told::Wake { vcpu: vcpu(0) }),
            Input::Event(Told::Wake { vcpu: vcpu(1) }),
            Input::Event(told),
            Input::Pick(cpu),
        ];
        let mut sched = Scheduler::new(Tunables::default());
        let begin = Step {
            step: 0,
            at: Nanos::ZERO,
            input: Input::Begin(Tunables::default()),
            outcome: Outcome::default(),
        };
        let mut steps = vec![begin];
        for (step, input) in (1..).zip(inputs) {
            let (at, mut out) = (Nanos(step), Commands::new());
            let outcome = match &input {
                Input::Pick(cpu) => {
                    let next = sched.pick(*cpu, at, &mut out);
                    Outcome::of_pick(&out, &next)
                }
                Input::Event(event) => {
                    let refused = sched.handle(at, event.clone(), &mut out).is_err();
                    Outcome::of_event(&out, 0, refused)
                }
                Input::Begin(_) => Outcome::default(),
            };
            steps.push(Step {
                step,
                at,
                input,
                outcome,
            });
        }
        let record = |step: &Step| Event::Schedule {
            step: serde_json::to_string(step).expect("our own types"),
        };
        steps.iter().map(record).collect()
    }

    #[test]
    fn a_penalty_that_decides_is_found_and_one_of_nothing_is_not() {
        let flips = flipped_by_penalties(run(Nanos::from_micros(500))).expect("it repeats");
        assert_eq!(flips.len(), 1);
        assert_eq!(flips[0].with.vcpu.vm, VmId(1));
        assert_eq!(flips[0].without.vcpu.vm, VmId(0));
        let none = flipped_by_penalties(run(Nanos::ZERO)).expect("it repeats");
        assert!(none.is_empty());
    }
}
