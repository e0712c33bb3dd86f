//! Each event as one sentence.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use crate::event::{Event, OffReason, Outcome, TestVerdict, VmEvent, test_status};

/// Bytes as mebibytes, which is how operators size machines.
fn mib(bytes: u64) -> u64 {
    bytes >> 20
}

/// Separates list items with `, `.
struct List<'a, T>(&'a [T]);

impl<T: fmt::Display> fmt::Display for List<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, item) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str(", ")?;
            }
            write!(f, "{item}")?;
        }
        Ok(())
    }
}

impl fmt::Display for OffReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PowerOff => f.write_str("powered off"),
            Self::Reset => f.write_str("asked for a reset"),
            Self::Fault { what } => write!(f, "stopped by a fault: {what}"),
            Self::Stopped => f.write_str("was stopped by the operator"),
            Self::TestExit { value } => write!(
                f,
                "{} its test: exit value {value}, status {}",
                TestVerdict::of(*value).word(),
                test_status(*value)
            ),
        }
    }
}

impl fmt::Display for VmEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Created {
                vcpus,
                memory_bytes,
                home,
                memory_by_node,
            } => {
                write!(
                    f,
                    "created: {vcpus} vCPUs, {} MiB, home {home}",
                    mib(*memory_bytes)
                )?;
                for (n, bytes) in memory_by_node.iter().enumerate().filter(|(_, b)| **b > 0) {
                    write!(f, ", {} MiB on node{n}", mib(*bytes))?;
                }
                Ok(())
            }
            Self::Started => f.write_str("started"),
            Self::Paused => f.write_str("paused"),
            Self::Resumed => f.write_str("resumed"),
            Self::Off(reason) => write!(f, "{reason}"),
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Clean => f.write_str("all machines are off; nothing failed"),
            Self::GuestFailed { vms } => write!(f, "failed: {}", List(vms)),
            Self::Panicked => f.write_str("the hypervisor failed"),
        }
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BootPhase { name } => write!(f, "boot: {name}"),
            Self::Topology(t) => {
                let memory: u64 = t.nodes.iter().map(|n| n.memory_bytes).sum();
                write!(
                    f,
                    "topology: {} nodes, {} CPUs, {} MiB; latencies from {}",
                    t.nodes.len(),
                    t.cpus.len(),
                    mib(memory),
                    t.latency_source
                )?;
                match t.quirks.len() {
                    0 => Ok(()),
                    n => write!(f, "; {n} quirks: {}", Joined(&t.quirks)),
                }
            }
            Self::Vm { name, what, .. } => write!(f, "{name} {what}"),
            Self::VcpuMoved {
                vcpu,
                from,
                from_node,
                to,
                to_node,
                reason,
            } => {
                write!(
                    f,
                    "{vcpu} moves from {from} ({from_node}) to {to} ({to_node}): {reason}"
                )
            }
            Self::PagesMoved {
                name,
                from,
                to,
                leaves,
                leaf,
                bytes,
                failed,
                written,
                copied_again,
                pause_p50,
                pause_max,
                reason,
                ..
            } => {
                write!(
                    f,
                    "{name}: {leaves} pages of {leaf} ({} KiB) moved from {from} to {to}, \
                     pause median {pause_p50}, longest {pause_max}",
                    bytes >> 10
                )?;
                if *written > 0 {
                    let kib = copied_again >> 10;
                    write!(f, ", {written} written meanwhile ({kib} KiB copied again)")?;
                }
                if *failed > 0 {
                    write!(f, ", {failed} could not be moved")?;
                }
                write!(f, "; {reason}")
            }
            Self::RootChanged {
                name,
                node,
                own,
                table_bytes,
                reason,
                ..
            } => {
                let what = match own {
                    true => "has page tables of its own now",
                    false => "has no page tables of its own any more",
                };
                let kib = table_bytes >> 10;
                write!(f, "{name}: {node} {what} ({kib} KiB in all); {reason}")
            }
            Self::Adapted {
                dial,
                from,
                to,
                reason,
            } => {
                let (from, to) = (dial.show(*from), dial.show(*to));
                write!(f, "{dial}: {to} now, was {from}; {reason}")
            }
            Self::Usefulness {
                name,
                on,
                useful,
                followed,
                ..
            } => {
                let what = match on {
                    true => "its pages may move again",
                    false => {
                        "its pages stay, but for a few every half minute to see whether that changes"
                    }
                };
                write!(
                    f,
                    "{name}: {useful} of {followed} moved pages were of use; {what}"
                )
            }
            Self::Plan { sentence, .. } | Self::Held { sentence, .. } => f.write_str(sentence),
            Self::Footprint {
                name,
                pass,
                shares,
                confidence,
                groups,
                ..
            } => {
                write!(f, "{name}: pass {pass}:")?;
                if confidence.0 == 0 {
                    return f.write_str(" no opinion yet");
                }
                for (n, share) in shares.iter().enumerate().filter(|(_, s)| s.0 > 0) {
                    write!(f, " {share} to node{n},")?;
                }
                write!(f, " confidence {confidence}")?;
                for group in groups {
                    write!(f, "; vCPUs {}:", List(&group.vcpus))?;
                    for (node, share) in &group.primary {
                        write!(f, " {share} to {node}")?;
                    }
                }
                Ok(())
            }
            Self::Proximity { name, scores, .. } => {
                write!(f, "{name}: proximity by CPU: {}", List(scores))
            }
            Self::HotPages {
                name,
                pass,
                ranges,
                hot,
                ..
            } => {
                let pages: u64 = ranges.iter().map(|range| range.pages).sum();
                write!(
                    f,
                    "{name}: {pages} touched pages in {} ranges after pass {pass}; {hot} of all are hot",
                    ranges.len()
                )
            }
            Self::Touched {
                name,
                accessed,
                dirty,
                ..
            } => {
                let pages = |ranges: &[(u64, u64)]| ranges.iter().map(|(_, n)| n).sum::<u64>();
                write!(
                    f,
                    "{name}: {} pages accessed, {} written",
                    pages(accessed),
                    pages(dirty)
                )
            }
            Self::Pick(pick) => write!(f, "{pick}"),
            // Machines read the step itself.
            Self::Schedule { .. } => f.write_str("the scheduler took a step, recorded for replay"),
            Self::Counters { cpu, values } => write!(f, "{cpu}: {}", List(values)),
            Self::GuestFault {
                vcpu,
                name,
                what,
                exit,
                ..
            } => {
                write!(f, "{name}: {vcpu} cannot go on: {what} (exit: {exit})")
            }
            Self::Panic { cpu, message } => write!(f, "PANIC on {cpu}: {message}"),
            Self::Watchdog {
                cpu,
                running,
                silent_for,
            } => {
                write!(f, "{cpu} has not answered for {silent_for}; it ran ")?;
                match running {
                    Some(vcpu) => write!(f, "{vcpu}"),
                    None => f.write_str("no guest"),
                }
            }
            Self::RunEnd(outcome) => write!(f, "run over: {outcome}"),
        }
    }
}

/// Sentences behind each other.
struct Joined<'a>(&'a Vec<String>);

impl fmt::Display for Joined<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, s) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str("; ")?;
            }
            f.write_str(s)?;
        }
        Ok(())
    }
}
