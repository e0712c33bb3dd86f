//! One test for each way in which firmware is wrong.

mod distances;
mod domains;
mod memory;
mod processors;
mod tables;

use super::descriptions::{Description, Domain, Firmware, MIB, check, range};
use crate::build::{self, Affinity, Attributes, Interrupt};
use crate::*;
use std::string::{String, ToString};
use std::vec;
use std::vec::Vec;
use units::{ApicId, CpuId, Hpa, NodeId, ProximityDomain};

fn sentences(discovery: &Discovery) -> Vec<String> {
    discovery.quirks.iter().map(ToString::to_string).collect()
}

/// Discovers, expects exactly one sentence and returns the machine.
fn with_quirk(firmware: &Firmware, sentence: &str) -> Machine {
    let discovery = firmware.discover();
    assert_eq!(sentences(&discovery), [sentence]);
    discovery.machine
}

fn four() -> Firmware {
    Description::row(4).firmware()
}

fn interrupts() -> Vec<Interrupt> {
    (0..8)
        .map(|apic| Interrupt::Cpu {
            apic,
            uid: apic,
            flags: 1,
        })
        .collect()
}

fn affinities() -> Vec<Affinity> {
    let cpus = (0..8).map(|apic| Affinity::Cpu {
        apic,
        domain: u32::from(apic) / 2,
    });
    let memory = (0..4u32).map(|domain| Affinity::Memory {
        start: u64::from(domain) * 512 * MIB,
        bytes: 512 * MIB,
        domain,
    });
    cpus.chain(memory).collect()
}
