//! The local APIC as a guest and its peers see it. Register numbers are MMIO offsets.

mod modes;
mod random;

use super::*;
use crate::message::{DeliveryMode, Destination, lowest_priority};

const CONFIG: ApicConfig = ApicConfig {
    bus_hz: 1_000_000_000,
    tsc_hz: 2_000_000_000,
    x2apic: true,
    tsc_deadline: true,
    physical_bits: 40,
};
const BASE: u64 = 0xFEE0_0000;
const ENABLED: u64 = 1 << 11;
const EXTENDED: u64 = 1 << 10;

const fn at(nanos: u64) -> Now {
    Now {
        nanos: Nanos(nanos),
        tsc: nanos * 2,
    }
}
const T0: Now = at(0);

/// Software-enabled with spurious vector FFh, as Linux does it.
fn enabled(id: u32, role: Role) -> LocalApic {
    let mut apic = LocalApic::new(ApicId(id), role, CONFIG);
    assert_eq!(apic.mmio_write(0xF0, 0x1FF, T0), None);
    apic
}

fn x2apic(id: u32) -> LocalApic {
    let mut apic = enabled(id, Role::Application);
    let mode = apic.msr_write(0x1B, BASE | ENABLED | EXTENDED, T0);
    assert_eq!(mode, Ok(None));
    apic
}

fn fixed(vector: u8, trigger: TriggerMode) -> InterruptMessage {
    InterruptMessage {
        destination: Destination::All,
        delivery: DeliveryMode::Fixed,
        vector,
        trigger,
    }
}

fn to(destination: Destination) -> InterruptMessage {
    InterruptMessage {
        destination,
        ..fixed(0x40, TriggerMode::Edge)
    }
}

fn event(delivery: DeliveryMode, vector: u8) -> InterruptMessage {
    InterruptMessage {
        delivery,
        ..fixed(vector, TriggerMode::Edge)
    }
}

#[test]
fn power_on_state_is_the_manuals() {
    let mut bsp = LocalApic::new(ApicId(3), Role::Bootstrap, CONFIG);
    assert_eq!(bsp.mmio_read(0x20, T0), 3 << 24);
    assert_eq!(bsp.mmio_read(0x30, T0), 0x0005_0014);
    assert_eq!(bsp.mmio_read(0xE0, T0), u32::MAX);
    assert_eq!(bsp.mmio_read(0xF0, T0), 0xFF);
    assert_eq!(bsp.mmio_read(0x320, T0), LVT_MASKED);
    assert_eq!(bsp.msr_read(0x1B, T0), Ok(BASE | ENABLED | 1 << 8));
    assert_eq!(bsp.activity(), Activity::Running);
    assert!(bsp.extint_enabled(), "virtual wire mode");
    let mut ap = LocalApic::new(ApicId(1), Role::Application, CONFIG);
    assert_eq!(ap.msr_read(0x1B, T0), Ok(BASE | ENABLED));
    assert!(!ap.extint_enabled());
    assert_eq!(ap.activity(), Activity::WaitForSipi);
}

#[test]
fn the_highest_vector_is_accepted_and_nested_only_by_a_higher_class() {
    let mut apic = enabled(0, Role::Bootstrap);
    for vector in [0x31, 0x45, 0x4A] {
        assert!(apic.receive(&fixed(vector, TriggerMode::Edge)));
    }
    assert_eq!(apic.accept(), Some(0x4A));
    assert_eq!(apic.pending(), None, "0x45 is of the same class");
    assert_eq!(apic.mmio_read(0xA0, T0), 0x40);
    assert!(apic.receive(&fixed(0x51, TriggerMode::Edge)));
    assert_eq!(apic.accept(), Some(0x51));
    assert_eq!(
        apic.mmio_read(0x120, T0),
        1 << 0xA | 1 << 0x11,
        "in service: 0x4A and 0x51 are bits 10 and 17 of the third word"
    );
    assert_eq!(apic.mmio_write(0xB0, 0, T0), None);
    assert_eq!(apic.pending(), None);
    assert_eq!(apic.mmio_write(0xB0, 0, T0), None);
    assert_eq!(apic.accept(), Some(0x45));
    assert_eq!(apic.mmio_read(0x210, T0), 1 << 0x11, "0x31 still requested");
}

#[test]
fn task_priority_holds_back_its_class_and_below() {
    let mut apic = enabled(0, Role::Bootstrap);
    apic.receive(&fixed(0x5F, TriggerMode::Edge));
    assert_eq!(apic.set_cr8(5), Ok(()));
    assert_eq!((apic.mmio_read(0x80, T0), apic.pending()), (0x50, None));
    assert_eq!(apic.mmio_write(0x80, 0x4F, T0), None);
    assert_eq!((apic.cr8(), apic.pending()), (4, Some(0x5F)));
    assert_eq!(apic.processor_priority(), 0x4F);
    assert_eq!(apic.set_cr8(16), Err(GeneralProtection));
    assert_eq!(apic.set_cr8(1 << 32), Err(GeneralProtection));
    assert_eq!(apic.cr8(), 4);
}

#[test]
fn only_a_level_triggered_vector_broadcasts_its_eoi() {
    let mut apic = enabled(0, Role::Bootstrap);
    apic.receive(&fixed(0x59, TriggerMode::Level));
    assert_eq!(apic.accept(), Some(0x59));
    assert_eq!(apic.mmio_read(0x1A0, T0), 1 << 0x19, "TMR");
    assert_eq!(
        apic.mmio_write(0xB0, 0, T0),
        Some(Effect::EoiBroadcast(0x59))
    );
    assert_eq!(apic.mmio_write(0xB0, 0, T0), None, "nothing in service");
    apic.receive(&fixed(0x59, TriggerMode::Edge));
    apic.accept();
    assert_eq!(apic.mmio_write(0xB0, 0, T0), None);
}

#[test]
fn physical_and_logical_destinations() {
    let mut apic = enabled(5, Role::Application);
    assert!(
        apic.matches(&to(Destination::Physical(5))) && !apic.matches(&to(Destination::Physical(4)))
    );
    assert!(apic.matches(&to(Destination::All)));
    assert!(!apic.matches(&to(Destination::AllBut(ApicId(5)))));
    assert!(apic.matches(&to(Destination::AllBut(ApicId(4)))));
    // Flat: any common bit.
    assert_eq!(apic.mmio_write(0xD0, 0x12 << 24, T0), None);
    assert!(
        apic.matches(&to(Destination::Logical(0x02)))
            && !apic.matches(&to(Destination::Logical(0x0D)))
    );
    // Cluster 1, member 2.
    assert_eq!(apic.mmio_write(0xE0, 0x0FFF_FFFF, T0), None);
    assert!(apic.matches(&to(Destination::Logical(0x13))));
    assert!(
        !apic.matches(&to(Destination::Logical(0x23)))
            && !apic.matches(&to(Destination::Logical(0x1D)))
    );
    // x2APIC derives cluster 1, member 3 from identifier 19.
    let mut apic = x2apic(19);
    assert_eq!(apic.msr_read(0x80D, T0), Ok(1 << 16 | 1 << 3));
    assert!(apic.matches(&to(Destination::Logical(1 << 16 | 0xF))));
    assert!(
        !apic.matches(&to(Destination::Logical(0xF)))
            && !apic.matches(&to(Destination::Logical(1 << 16 | 4)))
    );
}

#[test]
fn broadcast_values_depend_on_the_senders_width() {
    assert_eq!(Destination::from_8_bits(0xFF, false), Destination::All);
    assert_eq!(Destination::from_8_bits(0xFF, true), Destination::All);
    assert_eq!(
        Destination::from_32_bits(0xFF, false),
        Destination::Physical(0xFF)
    );
    assert_eq!(Destination::from_32_bits(u32::MAX, true), Destination::All);
}

#[test]
fn the_interrupt_command_register_sends_what_it_says() {
    let mut apic = enabled(2, Role::Bootstrap);
    let mut send = |high: u32, low: u32| {
        assert_eq!(apic.mmio_write(0x310, high, T0), None);
        apic.mmio_write(0x300, low, T0)
    };
    let ipi = |destination, delivery, vector| {
        Some(Effect::Ipi(InterruptMessage {
            destination,
            delivery,
            vector,
            trigger: TriggerMode::Edge,
        }))
    };
    assert_eq!(
        send(7 << 24, 0x40FD),
        ipi(Destination::Physical(7), DeliveryMode::Fixed, 0xFD)
    );
    assert_eq!(
        send(3 << 24, 0x0841),
        ipi(Destination::Logical(3), DeliveryMode::Fixed, 0x41)
    );
    assert_eq!(
        send(3 << 24, 0x0941),
        ipi(Destination::Logical(3), DeliveryMode::LowestPriority, 0x41)
    );
    assert_eq!(
        send(1 << 24, 0x0400),
        ipi(Destination::Physical(1), DeliveryMode::Nmi, 0)
    );
    assert_eq!(
        send(0, 0xC_00FB),
        ipi(Destination::AllBut(ApicId(2)), DeliveryMode::Fixed, 0xFB)
    );
    assert_eq!(
        send(0, 0x8_00FB),
        ipi(Destination::All, DeliveryMode::Fixed, 0xFB)
    );
    // Linux starts a processor: INIT assert, de-assert, SIPI at 99000h.
    assert_eq!(
        send(1 << 24, 0xC500),
        ipi(Destination::Physical(1), DeliveryMode::Init, 0)
    );
    assert_eq!(send(1 << 24, 0x8500), None);
    assert_eq!(
        send(1 << 24, 0x0699),
        ipi(Destination::Physical(1), DeliveryMode::Startup, 0x99)
    );
    assert_eq!(send(0, 0x0300), None, "reserved delivery mode");
    assert_eq!(send(0, 0x4_0066), None, "to itself: no bus transaction");
    assert_eq!(apic.pending(), Some(0x66));
}

#[test]
fn two_nmis_are_two_before_the_handler_and_one_inside_it() {
    let mut apic = enabled(0, Role::Bootstrap);
    let nmi = event(DeliveryMode::Nmi, 0);
    let taken = |apic: &mut LocalApic| (0..9).take_while(|_| apic.take_nmi()).count();
    for (came, merged, expected) in [
        (1, false, 1),
        (2, false, 2),
        (7, false, 2),
        (7, true, 1),
        (0, true, 0),
    ] {
        (0..came).for_each(|_| assert!(apic.receive(&nmi)));
        if merged {
            apic.merge_nmis();
        }
        assert_eq!(apic.nmi_pending(), expected > 0);
        assert_eq!(taken(&mut apic), expected, "of {came}");
        assert!(!apic.nmi_pending());
    }
    apic.receive(&nmi);
    apic.receive(&event(DeliveryMode::Init, 0));
    assert!(apic.take_init() && !apic.nmi_pending());
}

#[test]
fn software_disable_masks_the_lvt_and_refuses_fixed_interrupts_only() {
    let mut apic = enabled(0, Role::Bootstrap);
    assert_eq!(apic.mmio_write(0x320, 0xEC, T0), None);
    apic.receive(&fixed(0x40, TriggerMode::Edge));
    assert_eq!(apic.mmio_write(0xF0, 0xFF, T0), None);
    assert_eq!(apic.mmio_read(0x320, T0), LVT_MASKED | 0xEC);
    assert_eq!(apic.mmio_read(0x350, T0) & LVT_MASKED, LVT_MASKED);
    assert!(!apic.receive(&fixed(0x50, TriggerMode::Edge)));
    assert_eq!(apic.pending(), None);
    assert!(apic.receive(&event(DeliveryMode::Nmi, 0)) && apic.take_nmi() && !apic.take_nmi());
    assert_eq!(apic.mmio_write(0x320, 0xEC, T0), None);
    assert_eq!(
        apic.mmio_read(0x320, T0) & LVT_MASKED,
        LVT_MASKED,
        "cannot be unmasked"
    );
    assert_eq!(apic.mmio_write(0xF0, 0x1FF, T0), None);
    assert_eq!(
        apic.pending(),
        Some(0x40),
        "what was requested before is kept"
    );
}

#[test]
fn init_and_sipi_start_a_processor_once() {
    let mut ap = enabled(1, Role::Application);
    assert!(!ap.has_work());
    assert!(ap.receive(&event(DeliveryMode::Init, 0)));
    assert!(
        ap.receive(&event(DeliveryMode::Startup, 0x99)),
        "comes before INIT was taken"
    );
    assert_eq!(ap.take_sipi(), None, "INIT first");
    assert!(ap.take_init() && !ap.take_init());
    assert_eq!(ap.mmio_read(0xF0, T0), 0xFF, "INIT resets registers");
    assert!(ap.has_work());
    assert_eq!(
        (ap.take_sipi(), ap.activity()),
        (Some(0x99), Activity::Running)
    );
    assert!(
        !ap.receive(&event(DeliveryMode::Startup, 0x98)),
        "the second of the two SIPIs"
    );
    assert_eq!(ap.take_sipi(), None);
    // Stopped again while it runs: NMI and interrupts do not start it.
    ap.receive(&event(DeliveryMode::Init, 0));
    assert!(ap.take_init());
    assert!(!ap.receive(&event(DeliveryMode::Nmi, 0)) && !ap.nmi_pending());
    assert!(!ap.has_work() && ap.activity() == Activity::WaitForSipi);
    // A running processor is restarted even if it looks only after both messages.
    ap.receive(&event(DeliveryMode::Startup, 1));
    assert_eq!(ap.take_sipi(), Some(1));
    ap.receive(&event(DeliveryMode::Init, 0));
    assert!(ap.receive(&event(DeliveryMode::Startup, 2)) && ap.take_init());
    assert_eq!(ap.take_sipi(), Some(2));
    // INIT keeps mode and base.
    let mut ap = x2apic(1);
    ap.receive(&event(DeliveryMode::Init, 0));
    assert!(ap.take_init());
    assert_eq!(ap.mode(), ApicMode::X2Apic);
}

#[test]
fn errors_show_after_a_write_and_can_interrupt() {
    let mut apic = enabled(0, Role::Bootstrap);
    assert_eq!(apic.mmio_write(0x370, 0xFE, T0), None);
    assert_eq!(
        apic.mmio_write(0x300, 0x0F, T0),
        None,
        "an illegal vector is not sent"
    );
    assert_eq!(apic.mmio_read(0x280, T0), 0);
    assert_eq!(apic.mmio_write(0x280, 0, T0), None);
    assert_eq!(apic.mmio_read(0x280, T0), 1 << 5);
    assert_eq!(apic.accept(), Some(0xFE));
    assert_eq!(apic.mmio_write(0x280, 0, T0), None);
    assert_eq!(apic.mmio_read(0x280, T0), 0);
    apic.receive(&fixed(3, TriggerMode::Edge));
    assert_eq!(apic.mmio_read(0x400, T0), 0, "a reserved register");
    assert_eq!(apic.mmio_write(0x280, 0, T0), None);
    assert_eq!(apic.mmio_read(0x280, T0), 1 << 6 | 1 << 7);
}

#[test]
fn lint0_passes_the_pic_only_as_an_unmasked_extint() {
    let mut apic = enabled(0, Role::Bootstrap);
    for (lvt, passes) in [
        (0x700, true),
        (0x1_0700, false),
        (0x0_0031, false),
        (0x400, false),
    ] {
        assert_eq!(apic.mmio_write(0x350, lvt, T0), None);
        assert_eq!(apic.extint_enabled(), passes);
    }
}

#[test]
fn lowest_priority_takes_turns_among_equals_and_avoids_the_busy() {
    let mut apics = [
        enabled(0, Role::Bootstrap),
        enabled(1, Role::Application),
        enabled(2, Role::Application),
    ];
    let message = InterruptMessage {
        delivery: DeliveryMode::LowestPriority,
        ..to(Destination::All)
    };
    assert_eq!(apics[2].set_cr8(9), Ok(()));
    let mut winners = [0; 3];
    for _ in 0..10 {
        let winner = lowest_priority(&message, apics.iter().enumerate()).expect("somebody");
        winners[winner] += 1;
        assert!(apics[winner].receive(&message));
    }
    assert_eq!(winners, [5, 5, 0]);
    let equals = [enabled(0, Role::Bootstrap), enabled(1, Role::Application)];
    assert_eq!(
        lowest_priority(&message, equals.iter().enumerate()),
        Some(0)
    );
    let nobody = InterruptMessage {
        destination: Destination::Physical(9),
        ..message
    };
    assert_eq!(lowest_priority(&nobody, apics.iter().enumerate()), None);
}
