//! What holds for any machine and for any bytes.

use super::descriptions::{Description, Domain, MIB, check, range};
use crate::{
    CpuidShape, LatencySource, PhysRange, Tables, build, discover, fadt, sleep_type_s5, spcr,
};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use std::vec::Vec;
use units::{ApicId, NodeId, ProximityDomain};

/// A machine that a sane firmware describes: sparse domains, nodes without CPUs or memory, any distances.
fn description() -> impl Strategy<Value = Description> {
    let node = (1u32..9, 0usize..4, 0u64..4);
    (vec(node, 1..9), vec(11u8..=254, 64), any::<bool>()).prop_map(
        |(shapes, figures, with_hmat)| {
            let mut domains: Vec<Domain> = Vec::new();
            let (mut number, mut apic, mut at) = (0, 0, 0);
            for (gap, cpus, granules) in shapes {
                number += gap;
                let apics: Vec<u32> = (0..cpus.max(usize::from(granules == 0)) as u32)
                    .map(|n| apic + n)
                    .collect();
                apic += 100 + apics.len() as u32;
                let memory = if granules == 0 {
                    Vec::new()
                } else {
                    std::vec![(at, granules * 16 * MIB)]
                };
                at += granules * 16 * MIB;
                domains.push(Domain {
                    number,
                    apics,
                    memory,
                });
            }
            if domains.iter().all(|domain| domain.apics.is_empty()) {
                domains[0].apics.push(0);
            }
            let n = domains.len();
            let figure = |a: usize, b: usize| if a == b { 10 } else { figures[a * 8 + b] };
            let square = |f: &dyn Fn(usize, usize) -> u8| {
                (0..n).map(|a| (0..n).map(|b| f(a, b)).collect()).collect()
            };
            let latencies = (0..n)
                .map(|a| (0..n).map(|b| 8 * u16::from(figure(a, b))).collect())
                .collect();
            Description {
                distances: square(&figure),
                domains,
                latencies: if with_hmat { latencies } else { Vec::new() },
            }
        },
    )
}

fn anywhere() -> impl Strategy<Value = Vec<PhysRange>> {
    vec((0u64..600, 0u64..200), 0..6).prop_map(|ranges| {
        ranges
            .into_iter()
            .map(|(start, length)| range(start * MIB + start * 0x800, length * MIB))
            .collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_sane_description_is_reproduced(description in description()) {
        let discovery = description.firmware().discover();
        prop_assert!(discovery.quirks.iter().all(|quirk| quirk.severity() == crate::Severity::Note), "{:?}", discovery.quirks);
        let machine = discovery.machine;
        prop_assert_eq!(machine.nodes.len(), description.domains.len());
        for (index, (node, domain)) in machine.nodes.iter().zip(&description.domains).enumerate() {
            prop_assert_eq!(node.domain, ProximityDomain(domain.number));
            let mut apics: Vec<u32> = node.cpus.iter().map(|cpu| machine.cpus[cpu.index()].apic.0).collect();
            apics.sort();
            prop_assert_eq!(&apics, &domain.apics);
            prop_assert_eq!(node.memory_bytes(), domain.memory.iter().map(|(_, bytes)| *bytes).sum::<u64>());
            for (other, distance) in description.distances[index].iter().enumerate() {
                let pair = (NodeId(index as u16), NodeId(other as u16));
                prop_assert_eq!(machine.distance(pair.0, pair.1), u32::from(*distance));
                if let Some(latency) = description.latencies.get(index).filter(|_| !domain.apics.is_empty())
                    && !description.domains[other].memory.is_empty()
                {
                    prop_assert_eq!(machine.latency_ns(pair.0, pair.1), u32::from(latency[other]));
                }
            }
        }
        let source = if description.latencies.is_empty() { LatencySource::Slit } else { LatencySource::Hmat };
        // One node needs no SLIT, and a machine without memory gives the HMAT no targets.
        if machine.nodes.len() > 1 {
            prop_assert_eq!(machine.latency_source, source);
        }
    }

    #[test]
    fn damaged_tables_still_give_a_machine(
        description in description(),
        damage in vec((0usize..4, any::<Index>(), any::<u8>()), 1..12),
        cut in proptest::option::of((0usize..4, any::<Index>())),
        reseal in any::<bool>(),
        usable in anywhere(),
        shape in (any::<u8>(), any::<u8>(), any::<u8>(), 0u32..300),
    ) {
        let firmware = description.firmware();
        let mut tables = [firmware.madt, firmware.srat, firmware.slit, firmware.hmat.unwrap_or_default()];
        if let Some((table, at)) = cut {
            let length = at.index(tables[table].len() + 1);
            tables[table].truncate(length);
        }
        for (table, at, value) in damage {
            if !tables[table].is_empty() {
                let at = at.index(tables[table].len());
                tables[table][at] = value;
            }
        }
        if reseal {
            // Signatures survive and checksums are right, so that the damage reaches the parsers.
            for (table, signature) in tables.iter_mut().zip([b"APIC", b"SRAT", b"SLIT", b"HMAT"]) {
                if table.len() >= 36 {
                    table[..4].copy_from_slice(signature);
                    build::seal(table);
                }
            }
        }
        let [madt, srat, slit, hmat] = &tables;
        let given = Tables { madt: Some(madt), srat: Some(srat), slit: Some(slit), hmat: Some(hmat), pptt: Some(slit) };
        let (smt_shift, llc_shift, package_shift, apic) = shape;
        let shape = CpuidShape { bsp_apic_id: ApicId(apic), smt_shift, llc_shift, package_shift };
        check(&discover(&given, &shape, &usable), &usable, ApicId(apic));
    }

    #[test]
    fn noise_behind_a_right_header_still_gives_a_machine(
        bodies in (vec(any::<u8>(), 0..300), vec(any::<u8>(), 0..300), vec(any::<u8>(), 0..300), vec(0u8..32, 0..300)),
        revision in 0u8..4,
        usable in anywhere(),
    ) {
        let table = |signature, body: &[u8]| build::table(signature, revision, body);
        let (madt, srat) = (table(b"APIC", &bodies.0), table(b"SRAT", &bodies.1));
        let (slit, hmat, pptt) = (table(b"SLIT", &bodies.2), table(b"HMAT", &bodies.3), table(b"PPTT", &bodies.3));
        let given = Tables { madt: Some(&madt), srat: Some(&srat), slit: Some(&slit), hmat: Some(&hmat), pptt: Some(&pptt) };
        check(&discover(&given, &CpuidShape::default(), &usable), &usable, ApicId(0));
        let _ = (fadt::parse(&table(b"FACP", &bodies.0)), spcr::parse(&table(b"SPCR", &bodies.1)), sleep_type_s5(&bodies.2));
    }

    #[test]
    fn pure_noise_still_gives_a_machine(noise in vec(any::<u8>(), 0..200), usable in anywhere()) {
        let noise = Some(&noise[..]);
        let given = Tables { madt: noise, srat: noise, slit: noise, hmat: noise, pptt: noise };
        check(&discover(&given, &CpuidShape::default(), &usable), &usable, ApicId(0));
    }
}
