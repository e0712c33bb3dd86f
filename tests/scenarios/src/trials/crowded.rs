//! More virtual CPUs than processors: everybody gets on, and no clock suffers.

use std::time::Duration;

use crate::{Emulator, Evidence, FileChange, Machine, Outcome, Scenario, Vm, tiny};

/// How long the four guests work.
const SECONDS: u64 = 120;
/// Longest time between two reports that a guest owes once a second. The emulator's own host may be busy.
const LONGEST_SILENCE: Duration = Duration::from_secs(10);
/// Linux' complaints about processors that do not get on and clocks that do not keep time.
const COMPLAINTS: [&str; 6] = [
    "soft lockup",
    "hard LOCKUP",
    "rcu",
    "stall",
    "blocked for more",
    "clocksource",
];
/// Part of the time that the rates of two clocks may differ by: 500 ppm.
const PPM: u32 = 500;

/// The trials of this file.
pub fn scenarios() -> Vec<Scenario> {
    let guest = |name: &str| {
        let workload = format!("--mib 16 --seconds {SECONDS}");
        Vm::linux(name)
            .append("console=ttyS0 loglevel=5 panic=1")
            .set("memory", "\"96M\"")
            .workload(&workload)
    };
    let four = Scenario::full(
        "crowded",
        "four guests with two CPUs each on two CPUs for two minutes: nobody stalls, clocks keep the host's time",
        crowded,
    )
    .on(Machine::row(2, 1, 512))
    .within(Duration::from_secs(600));
    vec![
        ["alpha", "beta", "gamma", "delta"]
            .into_iter()
            .fold(four, |scenario, name| scenario.vm(guest(name))),
        Scenario::full(
            "twelve-vcpus",
            "a guest with twelve CPUs boots on four and does its work",
            |e| {
                e.every_guest_is_well(12)?;
                no_complaints(e, "alpha")
            },
        )
        .on(Machine::row(2, 2, 512))
        .vm(Vm::linux("alpha")
            .append("console=ttyS0 loglevel=5 panic=1")
            .set("cpus", "12")
            .set("memory", "\"256M\"")
            .workload("--mib 48 --seconds 5"))
        .within(Duration::from_secs(600)),
        Scenario::full(
            "console-flood",
            "a guest that writes to its serial port for ever neither stops its neighbour nor the operator",
            flooded,
        )
        .on(Machine::row(2, 1, 384))
        .host("poweroff", "false")
        .file("perigee/guests/babbles", FileChange::Put(tiny::babbles()))
        .vm(Vm::of_file("babbler", "guests/babbles", 32))
        .vm(Vm::linux("well").workload("--mib 8 --seconds 3"))
        .type_after("[well] GUEST-RESULT", "vm\rsecurity\rvm babbler dump\r")
        .type_after("what it did before", "shutdown\r"),
    ]
}

fn crowded(e: &Evidence) -> Result<(), String> {
    e.every_guest_is_well(2)?;
    for name in &e.vms {
        no_complaints(e, name)?;
        let reports = reports(e, name);
        if (reports.len() as u64) < SECONDS / 2 {
            return Err(format!("{name} reported {} times only", reports.len()));
        }
        // Bochs' machines have a time of their own, which no clock outside keeps: there silence is counted by the guest's.
        let by = |report: &(Duration, Duration)| match e.emulator {
            Emulator::Qemu => report.1,
            Emulator::Bochs => report.0,
        };
        if let Some(pair) = reports
            .windows(2)
            .find(|p| by(&p[1]).saturating_sub(by(&p[0])) > LONGEST_SILENCE)
        {
            return Err(format!(
                "{name} was silent from {:?} to {:?}",
                by(&pair[0]),
                by(&pair[1])
            ));
        }
        if e.emulator == Emulator::Bochs {
            continue;
        }
        keeps_time(&reports).map_err(|why| format!("{name}: {why}"))?;
    }
    Ok(())
}

fn no_complaints(e: &Evidence, vm: &str) -> Result<(), String> {
    let complains = |line: &str| COMPLAINTS.iter().any(|c| line.contains(c));
    let mut lines = e.guest_lines(vm);
    match lines.find(|line| line.what.starts_with('[') && complains(line.what)) {
        None => Ok(()),
        Some(line) => Err(format!("{vm}'s kernel complains: {}", line.what)),
    }
}

/// The guest's clock and the host's at each report of progress.
fn reports(e: &Evidence, vm: &str) -> Vec<(Duration, Duration)> {
    let lines = e.guest_lines(vm).filter_map(|line| {
        let (_, clock) = line.what.split_once("clock_ns=")?;
        Some((Duration::from_nanos(clock.trim().parse().ok()?), line.at))
    });
    lines.collect()
}

/// A report arrives some time after it was written, sometimes long after. The shortest delay of many is nearly the
/// same at the beginning and at the end, if the two clocks have the same rate.
fn keeps_time(reports: &[(Duration, Duration)]) -> Result<(), String> {
    let third = reports.len() / 3;
    let (Some(first), Some(last)) = (reports.get(..third), reports.get(reports.len() - third..))
    else {
        return Err("there are too few reports".into());
    };
    let delay = |part: &[(Duration, Duration)]| {
        let delays = part
            .iter()
            .map(|(guest, host)| host.as_secs_f64() - guest.as_secs_f64());
        delays.fold(f64::INFINITY, f64::min)
    };
    let span = last
        .last()
        .zip(first.first())
        .map_or(Duration::ZERO, |(l, f)| l.1 - f.1);
    let (drift, allowed) = (delay(last) - delay(first), span * PPM / 1_000_000);
    match drift.abs() <= allowed.as_secs_f64() {
        true => Ok(()),
        false => Err(format!(
            "its clock drifted by {:.1} ms in {} s; {PPM} ppm are {:.1} ms",
            drift * 1000.0,
            span.as_secs(),
            allowed.as_secs_f64() * 1000.0
        )),
    }
}

fn flooded(e: &Evidence) -> Result<(), String> {
    if e.guest("well").ok != Some(true) {
        return Err("the neighbour did not do its work".into());
    }
    let said = |text: &str| {
        e.line(text)
            .map(|_| ())
            .ok_or(format!("nobody said {text:?}"))
    };
    said("[babbler] abcdefghijklmnopqrstuvwxyz")?;
    said("return stack filled")?;
    said("babbler: vCPU 0 had stopped by")?;
    said("OUT, port 0x3f8, 8 bits")?;
    match &e.outcome {
        Outcome::Clean => Ok(()),
        other => Err(format!("the operator could not end the run: {other}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(rate: f64, delays: [f64; 3]) -> Vec<(Duration, Duration)> {
        let report = |t: u32| {
            let guest = f64::from(t) * rate;
            let host = f64::from(t) + 30.0 + delays[t as usize % 3];
            (
                Duration::from_secs_f64(guest),
                Duration::from_secs_f64(host),
            )
        };
        (0..120).map(report).collect()
    }

    #[test]
    fn late_reports_are_forgiven_and_a_wrong_rate_is_not() {
        assert_eq!(keeps_time(&at(1.0, [0.01, 0.5, 2.0])), Ok(()));
        assert_eq!(keeps_time(&at(1.0004, [0.01, 0.5, 2.0])), Ok(()));
        assert!(keeps_time(&at(1.001, [0.01, 0.5, 2.0])).is_err_and(|why| why.contains("drifted")));
        assert!(keeps_time(&at(0.999, [0.01, 0.5, 2.0])).is_err());
    }
}
