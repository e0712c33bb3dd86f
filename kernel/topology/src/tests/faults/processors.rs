//! Processors that contradict each other, their interrupts, and how they share cores and caches.

use super::*;

#[test]
fn doubtful_processors() {
    let mut listed = interrupts();
    listed.push(Interrupt::X2Cpu {
        apic: 3,
        uid: 9,
        flags: 1,
    });
    let firmware = Firmware {
        madt: build::madt(&listed),
        ..four()
    };
    let machine = with_quirk(
        &firmware,
        "MADT, offset 108: apic3 is listed twice; the first entry counts.",
    );
    assert_eq!(machine.cpus[3].uid, 3);

    listed = interrupts();
    listed.push(Interrupt::Cpu {
        apic: 255,
        uid: 9,
        flags: 1,
    });
    listed.push(Interrupt::Cpu {
        apic: 255,
        uid: 10,
        flags: 0,
    });
    let firmware = Firmware {
        madt: build::madt(&listed),
        ..four()
    };
    with_quirk(
        &firmware,
        "MADT, offset 108: an enabled processor has the broadcast address 0xff; it is ignored.",
    );

    let mut firmware = four();
    firmware.shape.bsp_apic_id = ApicId(40);
    let discovery = firmware.discover();
    assert_eq!(
        sentences(&discovery),
        [
            "MADT does not list the boot processor apic40; it is added as cpu0.",
            "SRAT gives apic40 no domain; it joins node0."
        ]
    );
    assert_eq!(discovery.machine.cpus.len(), 9);

    // x2APIC 255 is one processor, not all of them.
    listed = interrupts();
    listed.push(Interrupt::X2Cpu {
        apic: 255,
        uid: 9,
        flags: 1,
    });
    let mut places = affinities();
    places.push(Affinity::X2Cpu {
        apic: 255,
        domain: 2,
    });
    let firmware = Firmware {
        madt: build::madt(&listed),
        srat: build::srat(&places),
        ..four()
    };
    let discovery = firmware.discover();
    assert_eq!(discovery.quirks, []);
    assert_eq!(discovery.machine.cpus[8].node, NodeId(2));

    let many: Vec<Interrupt> = (0..1200)
        .map(|apic| Interrupt::X2Cpu {
            apic,
            uid: apic,
            flags: 1,
        })
        .collect();
    let firmware = Firmware {
        madt: build::madt(&many),
        ..four()
    };
    let discovery = firmware.discover();
    assert_eq!(discovery.machine.cpus.len(), MAX_CPUS);
    assert_eq!(
        sentences(&discovery)[0],
        "MADT lists 1200 enabled processors, but 1024 are supported; the rest stays off."
    );
    assert!(
        sentences(&discovery)
            .last()
            .is_some_and(|last| last.ends_with("more oddities of the firmware are not listed."))
    );
}

#[test]
fn the_boot_processor_is_cpu_0_and_the_others_keep_their_order() {
    let mut firmware = four();
    firmware.shape.bsp_apic_id = ApicId(5);
    let machine = firmware.discover().machine;
    let apics: Vec<u32> = machine.cpus.iter().map(|cpu| cpu.apic.0).collect();
    assert_eq!(apics, [5, 0, 1, 2, 3, 4, 6, 7]);
    assert_eq!(machine.nodes[2].cpus, [CpuId(0), CpuId(5)]);
}

#[test]
fn a_processor_without_a_node_joins_its_package() {
    let mut places = affinities();
    places.remove(5);
    places.remove(0);
    let firmware = Firmware {
        srat: build::srat(&places),
        ..four()
    };
    let discovery = firmware.discover();
    assert_eq!(
        sentences(&discovery),
        [
            "SRAT gives apic0 no domain; it joins node0.",
            "SRAT gives apic5 no domain; it joins node2."
        ]
    );
    assert_eq!(discovery.machine.cpus[5].node, NodeId(2));
}

#[test]
fn a_processor_has_one_domain_and_must_exist() {
    let mut places = affinities();
    places.push(Affinity::X2Cpu { apic: 1, domain: 3 });
    places.push(Affinity::Cpu {
        apic: 77,
        domain: 1,
    });
    let firmware = Firmware {
        srat: build::srat(&places),
        ..four()
    };
    let discovery = firmware.discover();
    assert_eq!(
        sentences(&discovery),
        [
            "SRAT puts apic1 into pxm0 and pxm3; the first counts.",
            "SRAT puts apic77 into pxm1, but MADT does not list it; the entry is ignored."
        ]
    );
    assert_eq!(discovery.machine.cpus[1].node, NodeId(0));
}

#[test]
fn interrupt_wiring() {
    let mut listed = interrupts();
    listed.extend([
        Interrupt::IoApic {
            id: 8,
            address: 0xfec0_0000,
            gsi_base: 0,
        },
        Interrupt::Override {
            irq: 0,
            gsi: 2,
            flags: 0,
        },
        Interrupt::Override {
            irq: 9,
            gsi: 9,
            flags: 0b1101,
        },
        Interrupt::NmiSource {
            gsi: 30,
            flags: 0b0101,
        },
        Interrupt::LocalNmi {
            uid: 0xff,
            lint: 1,
            flags: 0,
        },
        Interrupt::X2LocalNmi {
            uid: 4,
            lint: 0,
            flags: 0b1111,
        },
        Interrupt::LapicAddress {
            address: 0x12_fee0_0000,
        },
        Interrupt::Cpu {
            apic: 9,
            uid: 9,
            flags: 2,
        },
        Interrupt::Cpu {
            apic: 10,
            uid: 10,
            flags: 0,
        },
    ]);
    let mut places = affinities();
    places.push(Affinity::Cpu { apic: 9, domain: 3 });
    let firmware = Firmware {
        madt: build::madt(&listed),
        srat: build::srat(&places),
        ..four()
    };
    let discovery = firmware.discover();
    assert_eq!(discovery.quirks, []);
    let machine = discovery.machine;
    assert_eq!(
        machine.io_apics,
        [IoApic {
            id: 8,
            address: Hpa(0xfec0_0000),
            gsi_base: 0
        }]
    );
    assert_eq!(
        machine.overrides[0],
        InterruptOverride {
            irq: 0,
            gsi: 2,
            polarity: Polarity::Bus,
            trigger: Trigger::Bus
        }
    );
    assert_eq!(
        machine.overrides[1],
        InterruptOverride {
            irq: 9,
            gsi: 9,
            polarity: Polarity::High,
            trigger: Trigger::Level
        }
    );
    assert_eq!(
        machine.nmi_sources,
        [NmiSource {
            gsi: 30,
            polarity: Polarity::High,
            trigger: Trigger::Edge
        }]
    );
    assert_eq!(
        machine.local_nmis[0],
        LocalNmi {
            uid: None,
            lint: 1,
            polarity: Polarity::Bus,
            trigger: Trigger::Bus
        }
    );
    assert_eq!(
        machine.local_nmis[1],
        LocalNmi {
            uid: Some(4),
            lint: 0,
            polarity: Polarity::Low,
            trigger: Trigger::Level
        }
    );
    assert_eq!(machine.lapic_address, Hpa(0x12_fee0_0000));
    assert!(machine.has_8259);
    assert_eq!(
        machine.offline,
        [OfflineCpu {
            apic: ApicId(9),
            uid: 9,
            domain: Some(ProximityDomain(3))
        }]
    );
    assert_eq!(machine.cpus.len(), 8);
}

/// A PPTT of packages with an L3 each, cores with an L1, and two threads a core.
fn pptt(packages: u32, cores: u32) -> Vec<u8> {
    let mut body: Vec<u8> = Vec::new();
    let cache = |body: &mut Vec<u8>, attributes: u8| {
        let at = 36 + body.len() as u32;
        body.extend([1, 24, 0, 0, 0x10, 0, 0, 0]);
        body.extend([0; 13]);
        body.extend([attributes, 64, 0]);
        at
    };
    let processor = |body: &mut Vec<u8>, flags: u32, parent: u32, uid: u32, resources: &[u32]| {
        let at = 36 + body.len() as u32;
        body.extend([0, 20 + 4 * resources.len() as u8, 0, 0]);
        body.extend(
            [flags, parent, uid, resources.len() as u32]
                .into_iter()
                .flat_map(u32::to_le_bytes),
        );
        body.extend(resources.iter().flat_map(|at| at.to_le_bytes()));
        at
    };
    let mut uid = 0;
    for _ in 0..packages {
        let l3 = cache(&mut body, 0b1000);
        let instructions = cache(&mut body, 0b0100);
        let package = processor(&mut body, 1, 0, 0, &[l3]);
        for _ in 0..cores {
            let l1 = cache(&mut body, 0b0000);
            let core = processor(&mut body, 0, package, 0, &[l1, instructions]);
            for _ in 0..2 {
                processor(&mut body, 0b1110, core, uid, &[]);
                uid += 1;
            }
        }
    }
    build::table(b"PPTT", 2, &body)
}

#[test]
fn the_pptt_helps_where_cpuid_is_silent() {
    let firmware = four();
    let found = |pptt: &[u8], shape: CpuidShape| {
        let tables = Tables {
            madt: Some(&firmware.madt),
            srat: Some(&firmware.srat),
            slit: Some(&firmware.slit),
            hmat: None,
            pptt: Some(pptt),
        };
        let discovery = discover(&tables, &shape, &firmware.usable);
        check(&discovery, &firmware.usable, ApicId(0));
        let belongs: Vec<_> = discovery
            .machine
            .cpus
            .iter()
            .map(|cpu| (cpu.core, cpu.llc, cpu.package, cpu.thread))
            .collect();
        (belongs, sentences(&discovery))
    };
    let silent = CpuidShape::default();
    let threads = [
        (0, 0, 0, 0),
        (0, 0, 0, 1),
        (1, 0, 0, 0),
        (1, 0, 0, 1),
        (2, 1, 1, 0),
        (2, 1, 1, 1),
        (3, 1, 1, 0),
        (3, 1, 1, 1),
    ];
    assert_eq!(found(&pptt(2, 2), silent), (threads.to_vec(), vec![]));
    let alone: Vec<_> = (0..8).map(|n| (n, n, n, 0)).collect();
    assert_eq!(
        found(&pptt(1, 3), silent),
        (
            alone.clone(),
            vec!["PPTT lacks processor 6; the table is not used.".to_string()]
        )
    );
    let mut circle = pptt(2, 2);
    // The first core (behind a package, its three caches) becomes its own parent.
    let core = 36 + 24 + 24 + 24 + 24;
    circle[core + 8..core + 12].copy_from_slice(&(core as u32).to_le_bytes());
    build::seal(&mut circle);
    let (belongs, said) = found(&circle, silent);
    assert_eq!(belongs, alone);
    assert_eq!(
        said,
        ["PPTT: the parents of processor 0 form a circle or lead nowhere; the table is not used."]
    );
    let shifts = CpuidShape {
        bsp_apic_id: ApicId(0),
        smt_shift: 1,
        llc_shift: 2,
        package_shift: 3,
    };
    let (belongs, said) = found(&circle, shifts);
    assert_eq!(
        (belongs[5], said.len()),
        ((2, 1, 0, 1), 0),
        "CPUID counts first"
    );
}
