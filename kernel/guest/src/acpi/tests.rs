use super::*;
use crate::memory::VecMemory;
use crate::shape::{MAX_NODES, MAX_VCPUS, VirtualNode};
use alloc::vec;
use devices::layout;

fn two_nodes() -> VmShape {
    let nodes = vec![
        VirtualNode {
            memory_bytes: 64 << 20,
            vcpus: vec![0, 1],
        },
        VirtualNode {
            memory_bytes: 32 << 20,
            vcpus: vec![2],
        },
    ];
    VmShape::new(nodes, vec![vec![10, 21], vec![31, 10]], 1).expect("a valid shape")
}

fn table(t: &Tables, signature: &[u8; 4]) -> Vec<u8> {
    let (_, at, length) = t
        .directory
        .iter()
        .find(|(s, ..)| s == signature)
        .expect("the table");
    t.bytes[*at..at + length].to_vec()
}

fn word(b: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(b[at..at + 4].try_into().expect("four bytes"))
}

fn quad(b: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(b[at..at + 8].try_into().expect("eight bytes"))
}

/// Type and bytes of each entry after `header` bytes.
fn entries(table: &[u8], header: usize) -> Vec<&[u8]> {
    let mut rest = &table[header..];
    let mut all = Vec::new();
    while let [_, length, ..] = rest {
        all.push(&rest[..usize::from(*length)]);
        rest = &rest[usize::from(*length)..];
    }
    all
}

#[test]
fn a_kernel_that_scans_finds_every_table_with_a_good_checksum() {
    let shape = two_nodes();
    let memory = VecMemory::new(&shape.memory);
    install(&shape, &memory).expect("room");
    let read = |at: u64, n: usize| {
        let mut b = vec![0; n];
        memory.read(Gpa(at), &mut b).expect("memory");
        b
    };
    let sum = |b: &[u8]| b.iter().fold(0u8, |s, x| s.wrapping_add(*x));
    let at = (0xE_0000..0x10_0000)
        .step_by(16)
        .find(|a| read(*a, 8) == b"RSD PTR ")
        .expect("an RSDP");
    assert_eq!(at, RSDP.0);
    let rsdp = read(at, 36);
    assert_eq!((sum(&rsdp[..20]), sum(&rsdp)), (0, 0));
    let header = |at: u64| {
        let length = word(&read(at, 36), 4) as usize;
        let t = read(at, length);
        assert_eq!(
            sum(&t),
            0,
            "{}",
            alloc::string::String::from_utf8_lossy(&t[..4])
        );
        t
    };
    let xsdt = header(quad(&rsdp, 24));
    let mut seen: Vec<Vec<u8>> = Vec::new();
    for i in (36..xsdt.len()).step_by(8) {
        let t = header(quad(&xsdt, i));
        if &t[..4] == b"FACP" {
            assert_eq!(t.len(), 276);
            assert_eq!(&header(quad(&t, 140))[..4], b"DSDT");
            assert_eq!(quad(&t, 140), u64::from(word(&t, 40)));
            let facs = u64::from(word(&t, 36));
            assert_eq!((&read(facs, 4)[..], facs % 64), (&b"FACS"[..], 0));
        }
        seen.push(t[..4].to_vec());
    }
    assert_eq!(
        seen,
        [
            b"FACP".to_vec(),
            b"APIC".to_vec(),
            b"SRAT".to_vec(),
            b"SLIT".to_vec()
        ]
    );
}

#[test]
fn the_fadt_names_the_ports_that_the_devices_decode() {
    let t = table(&build(&two_nodes()), b"FACP");
    assert_eq!(word(&t, 56), u32::from(layout::PM1A_EVT));
    assert_eq!(word(&t, 64), u32::from(layout::PM1A_CNT));
    assert_eq!(word(&t, 76), u32::from(layout::PM_TMR));
    assert_eq!(
        u16::from_le_bytes([t[46], t[47]]),
        u16::from(layout::SCI_IRQ)
    );
    assert_eq!((t[88], t[89], t[91]), (4, 2, 4));
    assert_eq!(t[108], layout::CMOS_CENTURY);
    // Reset register: I/O space, 8 bits, the port, then the value.
    assert_eq!(t[116..120], [1, 8, 0, 1]);
    assert_eq!(
        (quad(&t, 120), t[128]),
        (u64::from(layout::RESET_PORT), layout::RESET_VALUE)
    );
    // Access sizes: words, words, a double word.
    assert_eq!((t[151], t[175], t[211]), (2, 2, 3));
    // X_PM1a_EVT, X_PM1a_CNT, X_PM_TMR agree with the short forms.
    assert_eq!((quad(&t, 152), t[149]), (u64::from(layout::PM1A_EVT), 32));
    assert_eq!((quad(&t, 176), t[173]), (u64::from(layout::PM1A_CNT), 16));
    assert_eq!((quad(&t, 212), t[209]), (u64::from(layout::PM_TMR), 32));
}

#[test]
fn the_madt_lists_every_processor_and_the_wiring() {
    let shape = two_nodes();
    let t = table(&build(&shape), b"APIC");
    let all = entries(&t, 44);
    let ids: Vec<u32> = all
        .iter()
        .filter(|e| e[0] == 0)
        .map(|e| u32::from(e[3]))
        .collect();
    assert_eq!(ids, [shape.apic_id(0), shape.apic_id(1), shape.apic_id(2)]);
    let overrides: Vec<_> = all
        .iter()
        .filter(|e| e[0] == 2)
        .map(|e| (e[3], word(e, 4), e[8]))
        .collect();
    assert_eq!(overrides, [(0, 2, 0), (9, 9, 0b1101)]);
    let io = all.iter().find(|e| e[0] == 1).expect("an I/O APIC");
    assert_eq!(u64::from(word(io, 4)), layout::IOAPIC_BASE.0);
    assert!(
        all.iter().any(|e| e[..] == [4, 6, 0xFF, 0, 0, 1]),
        "LINT1 is NMI everywhere"
    );
}

#[test]
fn wide_identifiers_use_the_wide_entries() {
    let shape = VmShape::simple(300, 64 << 20).expect("a valid shape");
    let t = build(&shape);
    let madt = table(&t, b"APIC");
    let wide: Vec<_> = entries(&madt, 44)
        .iter()
        .filter(|e| e[0] == 9)
        .map(|e| (word(e, 4), word(e, 12)))
        .collect();
    assert_eq!(wide.len(), 300 - 255);
    assert_eq!(wide[0], (255, 255));
    assert!(entries(&madt, 44).iter().any(|e| e[0] == 10));
    assert!(
        t.directory.iter().all(|(s, ..)| s != b"SRAT"),
        "one node needs no SRAT"
    );
}

#[test]
fn the_srat_covers_all_ram_and_every_processor_once() {
    let shape = two_nodes();
    let t = build(&shape);
    let srat = table(&t, b"SRAT");
    let all = entries(&srat, 48);
    let cpus: Vec<_> = all
        .iter()
        .filter(|e| e[0] == 0)
        .map(|e| (u32::from(e[3]), e[2]))
        .collect();
    assert_eq!(
        cpus,
        [
            (shape.apic_id(0), 0),
            (shape.apic_id(1), 0),
            (shape.apic_id(2), 1)
        ]
    );
    let ram: Vec<_> = all
        .iter()
        .filter(|e| e[0] == 1)
        .map(|e| (quad(e, 8), quad(e, 16), word(e, 2)))
        .collect();
    assert_eq!(
        ram,
        [
            (0, 0xA_0000, 0),
            (0x10_0000, 63 << 20, 0),
            (64 << 20, 32 << 20, 1)
        ]
    );
    let slit = table(&t, b"SLIT");
    assert_eq!((quad(&slit, 36), &slit[44..]), (2, &[10, 21, 31, 10][..]));
}

#[test]
fn the_largest_machine_fits_the_area() {
    let mut nodes: Vec<VirtualNode> = (0..MAX_NODES as u16)
        .map(|n| VirtualNode {
            memory_bytes: 4 << 30,
            vcpus: (n * 16..n * 16 + 16).collect(),
        })
        .collect();
    assert_eq!(
        nodes.iter().map(|n| n.vcpus.len()).sum::<usize>(),
        usize::from(MAX_VCPUS)
    );
    nodes[0].memory_bytes = 8 << 30;
    let distances = (0..MAX_NODES)
        .map(|i| {
            (0..MAX_NODES)
                .map(|j| if i == j { 10 } else { 20 })
                .collect()
        })
        .collect();
    let shape = VmShape::new(nodes, distances, 2).expect("a valid shape");
    let t = build(&shape);
    assert!(
        t.bytes.len() as u64 <= AREA_BYTES * 2 / 3,
        "{} bytes",
        t.bytes.len()
    );
}
