//! A processor's local APIC: registers, MSRs, messages, time.

use crate::Input;
use devices::{
    ApicConfig, ApicMode, DeliveryMode, Destination, InterruptMessage, LocalApic, Now, Role,
    TriggerMode,
};
use units::{ApicId, Nanos};

/// Steps of one to ten bytes.
pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let config = ApicConfig {
        bus_hz: devices::layout::LAPIC_BUS_HZ,
        tsc_hz: input.choice(&[1_000_000_000, 2_100_000_000, 1, u64::MAX]),
        x2apic: true,
        tsc_deadline: true,
        physical_bits: 40,
    };
    let role = input.choice(&[Role::Bootstrap, Role::Application]);
    let mut apic = LocalApic::new(ApicId(input.u8().into()), role, config);
    let mut nanos = 0_u64;
    let mut steps = 0;
    while !input.is_empty() && steps < 2000 {
        steps += 1;
        let now = Now {
            nanos: Nanos(nanos),
            tsc: nanos.wrapping_mul(3),
        };
        let step = input.u8();
        let before = apic.mode();
        match step & 15 {
            0 | 1 => {
                let _value = apic.mmio_read(u16::from(input.u8()) << 4 | u16::from(step >> 4), now);
            }
            2..=5 => {
                let _effect = apic.mmio_write(u16::from(input.u8()) << 4, input.u32(), now);
            }
            6 => {
                let _value = apic.msr_read(msr(&mut input), now);
            }
            7 | 8 => {
                let (msr, value) = (msr(&mut input), input.u64() >> ((step >> 4) * 4));
                if apic.msr_write(msr, value, now).is_err() {
                    assert_eq!(apic.mode(), before, "a refused write changes nothing");
                }
            }
            9 | 10 => {
                let message = InterruptMessage {
                    destination: input.choice(&[
                        Destination::Physical(0),
                        Destination::Physical(255),
                        Destination::Logical(255),
                    ]),
                    delivery: DeliveryMode::from_bits(u32::from(input.u8() & 7))
                        .unwrap_or(DeliveryMode::Fixed),
                    trigger: input.choice(&[TriggerMode::Edge, TriggerMode::Level]),
                    vector: input.u8(),
                };
                let _matches = apic.matches(&message);
                let _attention = apic.receive(&message);
            }
            11 => {
                let (priority, pending) = (apic.processor_priority(), apic.pending());
                let accepted = apic.accept();
                assert_eq!(accepted, pending);
                if let Some(vector) = accepted {
                    assert!(vector >= 16 && vector >> 4 > priority >> 4);
                    assert_eq!(apic.processor_priority() >> 4, vector >> 4);
                    let next = apic.pending();
                    assert!(next.is_none_or(|next| next >> 4 > vector >> 4));
                }
            }
            12 => {
                let value = u64::from(input.u8() % 20);
                assert_eq!(apic.set_cr8(value).is_ok(), value < 16);
                if value < 16 {
                    assert_eq!(u64::from(apic.cr8()), value);
                }
            }
            13 => {
                let (_, _, _) = (apic.take_nmi(), apic.take_init(), apic.take_sipi());
            }
            14 => apic.tsc_changed(now),
            _ => nanos = (nanos + (u64::from(input.u32()) << (step >> 4))).min(u64::MAX / 4),
        }
        let now = Now {
            nanos: Nanos(nanos),
            tsc: nanos.wrapping_mul(3),
        };
        apic.poll(now);
        if let Some(due) = apic.next_deadline() {
            assert!(due > Nanos(nanos), "asked to be called at {due} at {nanos}");
        }
        assert_eq!(apic.mmio_base().is_some(), apic.mode() == ApicMode::XApic);
    }
}

fn msr(input: &mut Input<'_>) -> u32 {
    match input.u8() {
        0..64 => 0x1B,
        64..80 => 0x6E0,
        other => 0x800 + u32::from(other) % 64,
    }
}
