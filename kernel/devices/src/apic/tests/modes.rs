//! Modes of the local APIC and of its timer, through MSRs and registers.

use super::*;
use units::Gpa;

#[test]
fn x2apic_sends_with_one_write_and_32_bits() {
    let mut apic = x2apic(2);
    let sent = apic.msr_write(0x830, 300 << 32 | 0x41, T0);
    assert_eq!(
        sent,
        Ok(Some(Effect::Ipi(InterruptMessage {
            destination: Destination::Physical(300),
            ..fixed(0x41, TriggerMode::Edge)
        })))
    );
    assert_eq!(apic.msr_read(0x830, T0), Ok(300 << 32 | 0x41));
    assert_eq!(apic.msr_write(0x83F, 0x55, T0), Ok(None));
    assert_eq!(apic.pending(), Some(0x55), "self IPI");
}

#[test]
fn x2apic_registers_fault_where_the_manual_says() {
    let mut apic = x2apic(2);
    for (msr, value) in [
        (0x802, 0),
        (0x803, 0),
        (0x80A, 0),
        (0x80D, 0),
        (0x80E, 0),
        (0x810, 0),
        (0x831, 0),
        (0x839, 0),
        (0x80B, 1),
        (0x828, 1),
        (0x808, 0x100),
        (0x80F, 1 << 12),
        (0x832, 1 << 11),
        (0x830, 1 << 13),
        (0x840, 0),
    ] {
        assert_eq!(
            apic.msr_write(msr, value, T0),
            Err(GeneralProtection),
            "WRMSR {msr:#x}"
        );
    }
    for msr in [0x80B, 0x80E, 0x831, 0x83F, 0x840, 0x8FF] {
        assert_eq!(
            apic.msr_read(msr, T0),
            Err(GeneralProtection),
            "RDMSR {msr:#x}"
        );
    }
    assert_eq!(apic.msr_read(0x802, T0), Ok(2));
    assert_eq!(apic.mmio_base(), None);
    assert_eq!(apic.mmio_read(0x20, T0), u32::MAX);
    let mut xapic = enabled(0, Role::Bootstrap);
    assert_eq!(xapic.msr_read(0x802, T0), Err(GeneralProtection));
    assert_eq!(xapic.msr_write(0x80B, 0, T0), Err(GeneralProtection));
}

#[test]
fn only_legal_mode_changes() {
    let off = BASE;
    let (xapic, x2) = (BASE | ENABLED, BASE | ENABLED | EXTENDED);
    for (path, last) in [
        (&[xapic, x2, off, xapic][..], Ok(None)),
        (&[off, x2], Err(GeneralProtection)),
        (&[x2, xapic], Err(GeneralProtection)),
        (&[BASE | EXTENDED], Err(GeneralProtection)),
        (&[xapic | 1], Err(GeneralProtection)),
        (&[xapic | 1 << 40], Err(GeneralProtection)),
    ] {
        let mut apic = LocalApic::new(ApicId(1), Role::Application, CONFIG);
        let (end, begin) = path.split_last().expect("not empty");
        for step in begin {
            assert_eq!(apic.msr_write(0x1B, *step, T0), Ok(None));
        }
        let before = apic.mode();
        assert_eq!(apic.msr_write(0x1B, *end, T0), last, "{path:x?}");
        if last.is_err() {
            assert_eq!(apic.mode(), before);
        }
    }
    let mut starved = LocalApic::new(
        ApicId(1),
        Role::Application,
        ApicConfig {
            x2apic: false,
            ..CONFIG
        },
    );
    assert_eq!(starved.msr_write(0x1B, x2, T0), Err(GeneralProtection));
    let mut moved = enabled(0, Role::Bootstrap);
    assert_eq!(moved.msr_write(0x1B, 0xD000_0000 | ENABLED, T0), Ok(None));
    assert_eq!(moved.mmio_base(), Some(Gpa(0xD000_0000)));
    assert_eq!(moved.msr_write(0x1B, 0xD000_0000, T0), Ok(None));
    assert!(!moved.matches(&to(Destination::All)) && moved.extint_enabled());
    assert_eq!(moved.msr_write(0x1B, BASE | ENABLED, T0), Ok(None));
    assert_eq!(
        moved.mmio_read(0xF0, T0),
        0xFF,
        "registers as after power-on"
    );
}

#[test]
fn the_timer_interrupts_through_its_lvt() {
    let mut apic = enabled(0, Role::Bootstrap);
    assert_eq!(apic.mmio_write(0x3E0, 0xB, T0), None);
    assert_eq!(apic.mmio_write(0x320, 1 << 17 | 0xEC, T0), None);
    assert_eq!(apic.mmio_write(0x380, 1_000_000, T0), None);
    assert_eq!(apic.next_deadline(), Some(Nanos(1_000_000)));
    assert_eq!(apic.mmio_read(0x390, at(400_000)), 600_000);
    assert!(!apic.poll(at(999_999)) && apic.poll(at(1_000_000)));
    assert_eq!(apic.pending(), Some(0xEC));
    assert!(
        apic.poll(at(4_200_000)),
        "periods 2 to 4 over, the first still unserved"
    );
    assert_eq!(apic.lost_ticks(), 3);
    assert_eq!(apic.next_deadline(), Some(Nanos(5_000_000)));
    // Masked: it counts on, but needs no attention.
    assert_eq!(
        apic.mmio_write(0x320, LVT_MASKED | 1 << 17 | 0xEC, at(4_300_000)),
        None
    );
    assert_eq!(apic.next_deadline(), None);
    assert_eq!(apic.mmio_read(0x390, at(9_250_000)), 750_000);
    assert_eq!(apic.lost_ticks(), 3);
}

#[test]
fn tsc_deadline_through_the_msr() {
    let mut apic = x2apic(0);
    assert_eq!(apic.msr_write(0x6E0, 5, T0), Ok(None));
    assert_eq!(apic.msr_read(0x6E0, T0), Ok(0), "ignored in another mode");
    assert_eq!(apic.msr_write(0x832, 2 << 17 | 0xEC, T0), Ok(None));
    assert_eq!(apic.msr_write(0x6E0, 4_000, T0), Ok(None));
    assert_eq!(apic.next_deadline(), Some(Nanos(2_000)));
    assert_eq!(apic.msr_read(0x6E0, at(1_999)), Ok(4_000));
    assert!(apic.poll(at(2_000)));
    assert_eq!(
        (apic.msr_read(0x6E0, at(2_000)), apic.accept()),
        (Ok(0), Some(0xEC))
    );
    assert_eq!(apic.msr_write(0x80B, 0, at(2_000)), Ok(None));
    assert_eq!(apic.msr_write(0x6E0, 1, at(3_000)), Ok(None));
    assert_eq!(
        (apic.pending(), apic.next_deadline()),
        (Some(0xEC), None),
        "in the past: at once"
    );
    // The guest moves its counter back: the deadline moves away.
    assert_eq!(apic.msr_write(0x6E0, 10_000, at(3_000)), Ok(None));
    apic.tsc_changed(Now {
        nanos: Nanos(3_000),
        tsc: 0,
    });
    assert_eq!(apic.next_deadline(), Some(Nanos(8_000)));
    let mut without = LocalApic::new(
        ApicId(0),
        Role::Bootstrap,
        ApicConfig {
            tsc_deadline: false,
            ..CONFIG
        },
    );
    assert_eq!(without.msr_write(0x6E0, 1, T0), Err(GeneralProtection));
}
