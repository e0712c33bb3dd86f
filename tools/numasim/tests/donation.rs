//! What it is worth to machines that want locks that a spinning vCPU leaves its slice to a preempted neighbour.

use numasim::compare;
use numasim::perigee::Options;
use numasim::scenario::Scenario;

/// Throughput of a machine of so many vCPUs that want one lock, and of so many others that compute.
fn throughput(cores: u32, vcpus: u32, others: u32, donate: bool) -> (f64, Vec<f64>) {
    let mut text = format!(
        "seconds = 6\nwarm_up = 1\n[machine]\nshape = \"single\"\ncores = {cores}\n[[vm]]\nkind = \"locky\"\nvcpus = {vcpus}\n"
    );
    if others > 0 {
        text += &format!("[[vm]]\nkind = \"cpu\"\ncount = {others}\n");
    }
    let s = Scenario::parse("locks", &text).expect("a right scenario");
    let mut options = Options::default();
    options.tunables.donate = donate;
    let mut policy = compare::policy("perigee", options).expect("a known policy");
    let mut all = compare::run(&s, policy.as_mut()).throughput.into_iter();
    (all.next().expect("the first machine"), all.collect())
}

#[test]
fn at_three_times_as_many_vcpus_as_cpus_locks_are_taken_more_often() {
    for (cores, vcpus) in [(2, 6), (4, 12)] {
        let (with, _) = throughput(cores, vcpus, 0, true);
        let (without, _) = throughput(cores, vcpus, 0, false);
        assert!(
            with > 1.25 * without,
            "{cores} cores: {with:.0} and {without:.0}"
        );
    }
}

#[test]
fn beside_machines_that_compute_it_gains_and_they_keep_their_share() {
    for (cores, vcpus, others) in [(2, 4, 2), (4, 8, 4), (2, 3, 3)] {
        let (with, theirs) = throughput(cores, vcpus, others, true);
        let (without, before) = throughput(cores, vcpus, others, false);
        let case = format!(
            "{vcpus} of {} vCPUs: {with:.0} and {without:.0}",
            vcpus + others
        );
        assert!(with > without, "{case}");
        for (with, without) in theirs.iter().zip(&before) {
            assert!(
                *with > 0.97 * without,
                "{case}; others {theirs:.0?} and {before:.0?}"
            );
        }
    }
}
