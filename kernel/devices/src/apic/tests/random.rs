//! Random register traffic against the invariants of the local APIC.

use super::*;
use alloc::vec;
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Step {
    Read(u16),
    Write(u16, u32),
    ReadMsr(u32),
    WriteMsr(u32, u64),
    Receive(u32, u8, bool),
    Accept,
    Cr8(u64),
    Wait(u64),
    Wake,
}

fn step() -> impl Strategy<Value = Step> {
    let register = prop_oneof![(0..0x40_u16).prop_map(|n| n * 16), any::<u16>()];
    let msr = prop_oneof![0x800..0x840_u32, Just(0x1B), Just(0x6E0), any::<u32>()];
    let value = prop_oneof![
        any::<u64>(),
        0..0x400_u64,
        Just(0),
        (0..64_u32).prop_map(|bit| 1 << bit)
    ];
    let base = prop::sample::select(&[BASE | 1 << 11, BASE | 3 << 10, BASE, BASE | 1 << 10]);
    prop_oneof![
        register.clone().prop_map(Step::Read),
        (register, any::<u32>()).prop_map(|(r, v)| Step::Write(r, v)),
        Just(Step::Write(0xF0, 0x1FF)),
        Just(Step::Write(0xB0, 0)),
        msr.clone().prop_map(Step::ReadMsr),
        (msr, value).prop_map(|(m, v)| Step::WriteMsr(m, v)),
        base.prop_map(|v| Step::WriteMsr(0x1B, v)),
        (0..8_u32, any::<u8>(), any::<bool>()).prop_map(|(d, v, l)| Step::Receive(d, v, l)),
        Just(Step::Accept),
        (0..20_u64).prop_map(Step::Cr8),
        prop_oneof![0..5_000_000_u64, Just(u64::MAX / 4)].prop_map(Step::Wait),
        Just(Step::Wake),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever a guest does: no panic, interrupts nest by class, time is asked for ahead only.
    #[test]
    fn random_traffic_keeps_the_invariants(steps in proptest::collection::vec(step(), 1..200)) {
        let mut apic = enabled(1, Role::Application);
        let mut now = 0_u64;
        for step in steps {
            match step {
                Step::Read(offset) => { apic.mmio_read(offset, at(now / 2)); }
                Step::Write(offset, value) => { let _ = apic.mmio_write(offset, value, at(now / 2)); }
                Step::ReadMsr(msr) => { let _ = apic.msr_read(msr, at(now / 2)); }
                Step::WriteMsr(msr, value) => {
                    let before = apic.mode();
                    if apic.msr_write(msr, value, at(now / 2)).is_err() {
                        prop_assert_eq!(apic.mode(), before);
                    }
                }
                Step::Receive(delivery, vector, level) => {
                    let trigger = if level { TriggerMode::Level } else { TriggerMode::Edge };
                    if let Some(delivery) = DeliveryMode::from_bits(delivery) {
                        apic.receive(&InterruptMessage { delivery, ..fixed(vector, trigger) });
                    }
                }
                Step::Accept => {
                    let (before, pending) = (apic.processor_priority(), apic.pending());
                    let accepted = apic.accept();
                    prop_assert_eq!(accepted, pending);
                    if let Some(vector) = accepted {
                        prop_assert!(vector >= 16 && vector >> 4 > before >> 4);
                        prop_assert_eq!(apic.processor_priority(), vector & 0xF0);
                        prop_assert_eq!(apic.isr.highest(), Some(vector));
                        prop_assert!(apic.pending().is_none_or(|next| next >> 4 > vector >> 4));
                    }
                }
                Step::Cr8(value) => prop_assert_eq!(apic.set_cr8(value).is_ok(), value < 16),
                Step::Wait(nanos) => now = now.saturating_add(nanos).min(u64::MAX / 2),
                Step::Wake => {
                    let (init, waits) = (apic.take_init(), apic.activity() == Activity::WaitForSipi);
                    let started = apic.take_sipi().is_some();
                    prop_assert!(!started || waits);
                    prop_assert!(!init || apic.isr.highest().is_none());
                    prop_assert!(!apic.init);
                }
            }
            apic.poll(at(now / 2));
            if let Some(due) = apic.next_deadline() {
                prop_assert!(due > Nanos(now / 2), "asked to be called at {} at {}", due, Nanos(now / 2));
            }
            prop_assert_eq!(apic.mmio_base().is_some(), apic.mode() == ApicMode::XApic);
        }
    }
}
