//! Firmware's tables: whatever the bytes, a machine that can be run.

use crate::Input;
use topology::{
    CpuidShape, Discovery, MAX_CPUS, MAX_NODES, PhysRange, Tables, build, discover, fadt,
    sleep_type_s5, spcr,
};
use units::{ApicId, Hpa};

const MIB: u64 = 1 << 20;

/// MADT, SRAT, SLIT, HMAT, PPTT, FADT, SPCR and DSDT as blocks, what CPUID says, the memory map.
pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let flags = input.u8();
    let signatures = [
        b"APIC", b"SRAT", b"SLIT", b"HMAT", b"PPTT", b"FACP", b"SPCR",
    ];
    let tables = signatures.map(|signature| {
        let mut table = input.block().to_vec();
        // With right checksums the bytes reach the parsers.
        if flags & 1 != 0 && table.len() >= 36 {
            table[..4].copy_from_slice(signature);
            build::seal(&mut table);
        }
        table
    });
    let shape = CpuidShape {
        bsp_apic_id: ApicId(input.u8().into()),
        smt_shift: input.u8(),
        llc_shift: input.u8(),
        package_shift: input.u8(),
    };
    let ranges = usize::from(input.u8() % 8);
    let memory: Vec<PhysRange> = (0..ranges)
        .map(|_| {
            let start = u64::from(input.u16()) * MIB + u64::from(input.u8()) * 0x800;
            let bytes = u64::from(input.u16()) * MIB;
            PhysRange {
                start: Hpa(start),
                end: Hpa(start + bytes),
            }
        })
        .collect();
    let [madt, srat, slit, hmat, pptt, facp, serial] = &tables;
    let given = |table| Some(table).filter(|table: &&[u8]| !table.is_empty());
    let discovery = discover(
        &Tables {
            madt: given(madt),
            srat: given(srat),
            slit: given(slit),
            hmat: given(hmat),
            pptt: given(pptt),
        },
        &shape,
        &memory,
    );
    check(&discovery, &memory, shape.bsp_apic_id);
    let quirks = [fadt::parse(facp).err(), spcr::parse(serial).err()];
    for quirk in quirks.into_iter().flatten() {
        assert!(quirk.to_string().ends_with('.'), "{quirk}");
    }
    let dsdt = input.rest();
    assert!(sleep_type_s5(dsdt).is_none() || dsdt.windows(4).any(|name| name == b"_S5_"));
}

/// The crate's promises, checked without its own helpers.
fn check(discovery: &Discovery, usable: &[PhysRange], bsp: ApicId) {
    let machine = &discovery.machine;
    let nodes = machine.nodes.len();
    assert!((1..=MAX_NODES).contains(&nodes));
    assert!((1..=MAX_CPUS).contains(&machine.cpus.len()));
    assert_eq!(machine.cpus[0].apic, bsp);
    let mut in_nodes = vec![0; machine.cpus.len()];
    for (index, node) in machine.nodes.iter().enumerate() {
        assert_eq!(node.id.index(), index);
        assert!(node.has_cpus() || node.has_memory());
        for cpu in &node.cpus {
            in_nodes[cpu.index()] += 1;
            assert_eq!(machine.cpus[cpu.index()].node, node.id);
        }
    }
    assert!(
        in_nodes.iter().all(|times| *times == 1),
        "every processor in one node"
    );
    assert!(
        machine
            .nodes
            .windows(2)
            .all(|pair| pair[0].domain < pair[1].domain)
    );
    let mut apics: Vec<u32> = machine.cpus.iter().map(|cpu| cpu.apic.0).collect();
    apics.sort_unstable();
    apics.dedup();
    assert_eq!(apics.len(), machine.cpus.len());

    let sorted = machine.memory.windows(2);
    assert!(
        sorted
            .into_iter()
            .all(|p| p[0].range.end <= p[1].range.start)
    );
    let mut ranges: Vec<(u64, u64)> = usable
        .iter()
        .map(|r| (r.start.0, r.end.0))
        .filter(|(start, end)| start < end)
        .collect();
    ranges.sort_unstable();
    let mut joined: Vec<(u64, u64)> = Vec::new();
    for (start, end) in ranges {
        match joined.last_mut() {
            Some(last) if start <= last.1 => last.1 = last.1.max(end),
            _ => joined.push((start, end)),
        }
    }
    let whole: u64 = joined.iter().map(|(start, end)| end - start).sum();
    let assigned: u64 = machine.memory.iter().map(|piece| piece.range.bytes()).sum();
    assert_eq!(assigned, whole, "every usable byte once");
    assert_eq!(machine.memory_bytes(), whole);
    for piece in &machine.memory {
        let inside =
            |(start, end): &(u64, u64)| *start <= piece.range.start.0 && piece.range.end.0 <= *end;
        assert!(joined.iter().any(inside), "{piece:?} is not usable");
        assert_eq!(machine.node_of(piece.range.start), Some(piece.node));
    }

    for a in &machine.nodes {
        assert_eq!(machine.distance(a.id, a.id), 10);
        for b in &machine.nodes {
            assert!((10..=255).contains(&machine.distance(a.id, b.id)));
            let here = machine.latency_ns(a.id, a.id);
            assert!(here > 0 && here <= machine.latency_ns(a.id, b.id));
        }
        let order = machine.nearest(a.id);
        assert_eq!((order.len(), order[0]), (nodes, a.id));
    }
    let report = discovery.report();
    assert_eq!(report.quirks.len(), discovery.quirks.len());
    for sentence in &report.quirks {
        assert!(
            sentence.ends_with('.') && sentence.len() < 2000,
            "{sentence}"
        );
    }
}
