//! The simulator against the observer outside: the same machine, the same workload, the same policy, and the part of accesses that
//! is local in each.
//!
//! What the simulator says of machines that no laboratory has is worth as much as what it says of those that are here. Two of
//! the workloads stay where they are, and one is far from its memory until Perigee has brought them together.

use std::time::Duration;

use numasim::compare;
use numasim::perigee::Options;
use numasim::scenario::Scenario as Simulated;

use super::GO;
use super::converge::far_away;
use super::counted::{Counted, local};
use super::observed::Observed;
use super::random::Random;
use crate::{Evidence, Machine, Scenario, Tier, Vm};

const NAME: &str = "probe";
const CLOSED: &str = "PROBE window closed";
/// Percents that the two may differ by.
const NEAR: u64 = 5;

/// Two nodes with a CPU each.
const MACHINE: &str = "[machine]\nshape = \"two-socket\"\ncores = 1\ngib = 1\n";
// Far memory is no slower in QEMU, and what computes is not slowed by it in the simulator either.
/// Each vCPU touches its own half four times of five, so that half of twice a fifth is common to both. The first vCPU is on
/// node 1 there, and has its half there.
const MIX: &str =
    "[[vm]]\nkind = \"cpu\"\nvcpus = 2\nmemory = 64\nmemory_nodes = [1, 0]\nshared = 0.4\n";
/// Both touch the same pages, which are all on node 0.
const ALIKE: &str =
    "[[vm]]\nkind = \"cpu\"\nvcpus = 2\nmemory = 64\nmemory_nodes = [0]\nshared = 1.0\n";
/// One on node 0 with its memory on node 1.
const FAR: &str = "[[vm]]\nkind = \"memory\"\nmemory = 32\nmemory_nodes = [1]\n";

/// The trials of this file.
pub fn scenarios(seed: u64) -> Vec<Scenario> {
    let mut random = Random::new(seed ^ 0x51);
    let mut drawn = || u64::from(random.between(1, u32::MAX));
    let trials = [
        still(
            "the-simulator-agrees-on-a-mix",
            "two vCPUs on two nodes that touch their own half four times out of five are as local in the simulator",
            "layout=mix mib=64",
            "[{ node = 0, size = \"64M\" }, { node = 1 }]",
            drawn(),
            |e| agree(in_the_window(e)?, simulated("perigee-off", MIX)?),
        ),
        still(
            "the-simulator-agrees-on-sharing",
            "two vCPUs on two nodes that touch the same pages are as local in the simulator",
            "layout=hot mib=24",
            "[0]",
            drawn(),
            |e| agree(in_the_window(e)?, simulated("perigee-off", ALIKE)?),
        ),
        Scenario::full(
            "the-simulator-agrees-on-what-comes-near",
            "a VM far from its memory ends as local as in the simulator, where the same planner brings it there",
            |e| {
                e.every_guest_is_well(1)?;
                let counted = Counted::enough(e, 2)?;
                if counted.first(local) > 20 {
                    return Err("it was not far at the beginning".into());
                }
                agree(counted.last(local), simulated("perigee", FAR)?)
            },
        )
        .vm(far_away("far", 32, "2", "[1]"))
        .type_after("[far] WORKLOAD t=2 ", "vm far mode auto\r")
        .observed(""),
    ];
    let on_two_nodes = |trial: Scenario| {
        let mut trial = trial
            .on(Machine::row(2, 1, 512))
            .within(Duration::from_secs(600));
        // Nobody counts from outside there.
        trial.bochs_tier = Tier::Gap;
        trial
    };
    trials.into_iter().map(on_two_nodes).collect()
}

/// Two vCPUs of the probe where they start, with their memory on these nodes.
fn still(
    name: &str,
    about: &str,
    layout: &str,
    memory_nodes: &str,
    seed: u64,
    judge: fn(&Evidence) -> Result<(), String>,
) -> Scenario {
    let words = format!("touch {layout} seed={seed} seconds=10 cpus=2");
    Scenario::full(name, about, judge)
        .vm(Vm::probe(NAME, &words)
            .set("cpus", "2")
            .set("memory_nodes", memory_nodes)
            .set("mode", "\"off\""))
        // Whose CPU the laboratory ran for longer would count for more: here both have the same instructions in the same time.
        .observed("pages=guests,linear=128,clock=10000")
        .type_after(CLOSED, GO)
        .seeded(seed)
}

/// Percentage of local accesses while the guest's window was open.
fn in_the_window(e: &Evidence) -> Result<u64, String> {
    let matrix = Observed::only(e)?.matrix;
    let all: u64 = matrix.iter().flatten().sum();
    let near: u64 = matrix
        .iter()
        .enumerate()
        .filter_map(|(k, row)| row.get(k))
        .sum();
    (near * 100)
        .checked_div(all)
        .ok_or_else(|| "nothing was counted".into())
}

/// The same of a workload on the same machine in the simulator, after it has come to rest.
fn simulated(policy: &str, vms: &str) -> Result<u64, String> {
    let text = format!("seconds = 10\nwarm_up = 20\n{MACHINE}{vms}");
    let scenario = Simulated::parse("simulated", &text).map_err(|e| format!("{e:#}"))?;
    let mut policy = compare::policy(policy, Options::default())
        .ok_or_else(|| format!("the simulator has no policy {policy}"))?;
    let outcome = compare::run(&scenario, policy.as_mut());
    Ok((outcome.local * 100.0).round() as u64)
}

fn agree(counted: u64, simulated: u64) -> Result<(), String> {
    if counted.abs_diff(simulated) <= NEAR {
        return Ok(());
    }
    Err(format!(
        "{counted} % of accesses were local as counted outside, {simulated} % in the simulator"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_simulator_is_asked_for_three_different_things() {
        let of = |policy, vms| simulated(policy, vms).expect("it runs");
        assert!((75..=85).contains(&of("perigee-off", MIX)));
        assert!((45..=55).contains(&of("perigee-off", ALIKE)));
        assert!(of("perigee", FAR) >= 95);
        assert!(of("perigee-off", FAR) <= 5, "nothing moves there");
    }

    #[test]
    fn a_difference_is_told() {
        assert_eq!(agree(80, 84), Ok(()));
        assert!(agree(80, 60).is_err_and(|why| why.contains("60 % in the simulator")));
    }
}
