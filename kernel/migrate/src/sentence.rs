//! Decisions in words: what an operator reads in the log and under `why`.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use telemetry::{Alternative, Choice, Event, Hold};
use units::{Nanos, PerMille};

use crate::order::{Action, Decision};
use crate::place::Place;
use crate::price::{Obstacle, Pricer, Quote};
use crate::view::VmView;

/// Time rounded as one would say it.
fn about(t: Nanos) -> String {
    match t.0 {
        0..1_000 => format!("{} ns", t.0),
        1_000..1_000_000 => format!("{} us", t.0 / 1_000),
        1_000_000..100_000_000 => format!("{}.{} ms", t.0 / 1_000_000, t.0 / 100_000 % 10),
        _ => format!("{}.{} s", t.0 / 1_000_000_000, t.0 / 100_000_000 % 10),
    }
}

/// "beta runs on node0 but 97 % of its accesses go to node3 (260 ns, 80 ns from there)"
fn situation(pricer: &Pricer<'_>) -> String {
    let vm = pricer.vm;
    let (run, touch) = (pricer.now.run(), pricer.now.touch());
    let (k, n) = (Place::most(&run), Place::most(&touch));
    let total: u64 = touch.iter().sum();
    let most = touch.get(n.index()).copied().unwrap_or(0);
    let share = PerMille::ratio(most, total).0 / 10;
    let latencies = pricer.host.latencies;
    let mostly = if run.iter().filter(|r| **r > 0).count() > 1 {
        "mostly "
    } else {
        ""
    };
    if k == n {
        return format!(
            "{} runs {mostly}on {k}, where {share} % of its accesses go ({} ns)",
            vm.name,
            latencies.ns(k, n)
        );
    }
    format!(
        "{} runs {mostly}on {k} but {share} % of its accesses go to {n} ({} vs {} ns)",
        vm.name,
        latencies.ns(k, n),
        latencies.ns(n, n)
    )
}

fn refusal(obstacle: Option<Obstacle>) -> &'static str {
    match obstacle {
        Some(Obstacle::Cpu) => "its CPUs are busy",
        Some(Obstacle::Memory) => "its memory is full",
        Some(Obstacle::Stuck) => "the scheduler found no room there",
        Some(Obstacle::Useless) => "pages that were moved before were of no use",
        Some(Obstacle::Busy) => "memory there or here or the way between is busy, so pages stay",
        None => "",
    }
}

fn alternative(quote: &Quote, refused: &str) -> Alternative {
    Alternative {
        choice: quote.choice,
        gain: quote.gain,
        benefit_ns_per_s: quote.benefit_ns_per_s,
        cost: quote.cost,
        pays_back: quote.pays_back,
        refused: refused.to_string(),
    }
}

/// The best option of the other kind, which a reader asks about first.
fn other_kind<'q>(chosen: &Quote, quotes: &'q [Quote]) -> Option<&'q Quote> {
    let pages = |q: &Quote| matches!(q.choice, Choice::MovePages { .. });
    quotes
        .iter()
        .find(|q| pages(q) != pages(chosen) && q.gain.0 > 0)
}

fn proposal(pricer: &Pricer<'_>, chosen: &Quote, quotes: &[Quote]) -> String {
    let mut text = format!(
        "{}: {}, gain {}, cost {}, pays back in {}",
        situation(pricer),
        chosen.choice,
        chosen.gain,
        about(chosen.cost),
        about(chosen.pays_back)
    );
    if chosen.follow_bytes > 0 {
        text += &format!(
            ", then {} MiB follow",
            chosen.follow_bytes.div_ceil(1 << 20)
        );
    }
    if let Some(other) = other_kind(chosen, quotes) {
        let would = match other.choice {
            Choice::MovePages { to, bytes } => {
                format!("moving {} MiB to {to}", bytes.div_ceil(1 << 20))
            }
            Choice::MoveVcpus { to, vcpus } => format!("moving {vcpus} vCPUs to {to}"),
        };
        text += &match refusal(other.obstacle) {
            "" => format!(
                "; {would} would cost {} and gain {}",
                about(other.cost),
                other.gain
            ),
            why => format!("; {would} would gain {} but {why}", other.gain),
        };
    }
    text
}

fn weighed(chosen: &Quote, quotes: &[Quote]) -> Vec<Alternative> {
    let mut all = alloc::vec![alternative(chosen, "")];
    for quote in quotes
        .iter()
        .filter(|q| q.choice != chosen.choice && q.gain.0 > 0)
    {
        let refused = match refusal(quote.obstacle) {
            "" if quote.pays_back > chosen.pays_back => "pays back later",
            "" => "saves less",
            why => why,
        };
        all.push(alternative(quote, refused));
    }
    all
}

/// An order.
pub(crate) fn planned(
    pricer: &Pricer<'_>,
    action: Action,
    chosen: &Quote,
    quotes: &[Quote],
) -> Decision {
    let vm = pricer.vm;
    let mut sentence = proposal(pricer, chosen, quotes);
    if let Action::MovePages(orders) = &action {
        let bytes: u64 = orders.iter().map(|o| o.size.bytes()).sum();
        sentence += &format!("; {} KiB of it now", bytes >> 10);
    }
    let event = Event::Plan {
        vm: vm.vm,
        name: vm.name.to_string(),
        chosen: chosen.choice,
        alternatives: weighed(chosen, quotes),
        sentence,
    };
    let preferred = match chosen.choice {
        Choice::MoveVcpus { to, .. } => Some(to),
        Choice::MovePages { to, .. } => {
            Some(to).filter(|to| vm.vcpus.iter().all(|v| v.node == *to))
        }
    };
    Decision {
        vm: vm.vm,
        preferred,
        action,
        event,
    }
}

/// What would be ordered if the mode allowed it.
pub(crate) fn would(pricer: &Pricer<'_>, chosen: &Quote, quotes: &[Quote]) -> Decision {
    let vm = pricer.vm;
    let sentence = format!("dry run: {}", proposal(pricer, chosen, quotes));
    let event = Event::Held {
        vm: vm.vm,
        name: vm.name.to_string(),
        why: Hold::DryRun,
        sentence,
    };
    Decision {
        vm: vm.vm,
        preferred: None,
        action: Action::Stay(Hold::DryRun),
        event,
    }
}

/// No order.
pub(crate) fn held(vm: &VmView<'_>, why: Hold, pricer: &Pricer<'_>, quotes: &[Quote]) -> Decision {
    let sentence = match why {
        Hold::Off | Hold::Idle | Hold::Flat | Hold::Unsure => {
            format!("{} stays as it is: {why}", vm.name)
        }
        Hold::NoRoom { node } => {
            let obstacle = quotes
                .iter()
                .find(|q| q.target == node)
                .and_then(|q| q.obstacle);
            format!(
                "{}; it stays as it is: {node}: {}",
                situation(pricer),
                refusal(obstacle)
            )
        }
        _ => format!("{}; it stays as it is: {why}", situation(pricer)),
    };
    let event = Event::Held {
        vm: vm.vm,
        name: vm.name.to_string(),
        why,
        sentence,
    };
    Decision {
        vm: vm.vm,
        preferred: None,
        action: Action::Stay(why),
        event,
    }
}
