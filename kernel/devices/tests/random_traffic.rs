//! Any sequence of accesses at any times: no panic, bounded queues, deadlines ahead.

use devices::layout::IOAPIC_BASE;
use devices::test::TestConfig;
use devices::{AccessSize, Board, BoardConfig};
use proptest::prelude::*;
use units::{Gpa, Nanos};

#[derive(Clone, Debug)]
enum Step {
    In(u16, AccessSize),
    Out(u16, AccessSize, u32),
    Load(u64, AccessSize),
    Store(u64, AccessSize, u64),
    Eoi(u8),
    Acknowledge,
    Type(Vec<u8>),
    Button,
    Wait(u64),
}

fn size() -> impl Strategy<Value = AccessSize> {
    prop::sample::select(&[
        AccessSize::Byte,
        AccessSize::Word,
        AccessSize::Dword,
        AccessSize::Qword,
    ])
}

fn port() -> impl Strategy<Value = u16> {
    prop_oneof![
        prop::sample::select(&[
            0x20_u16, 0x21, 0xA0, 0xA1, 0x4D0, 0x4D1, 0x61, 0x64, 0x70, 0x71, 0x92, 0xCF9
        ]),
        0x40..0x44_u16,
        0x3F8..0x400_u16,
        0x5FE..0x610_u16,
        0xE0..0xF8_u16,
        0x50F..0x513_u16,
        0x1FFF..0x2019_u16,
        any::<u16>(),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let value = prop_oneof![
        any::<u32>(),
        0..256_u32,
        Just(0),
        (0..32_u32).prop_map(|bit| 1 << bit)
    ];
    let wait = prop_oneof![0..2_000_000_u64, 0..5_000_000_000_u64, Just(u64::MAX / 2)];
    prop_oneof![
        4 => (port(), size()).prop_map(|(p, s)| Step::In(p, s)),
        8 => (port(), size(), value).prop_map(|(p, s, v)| Step::Out(p, s, v)),
        1 => (0..0x1010_u64, size()).prop_map(|(o, s)| Step::Load(o, s)),
        2 => (prop::sample::select(&[0_u64, 0x10, 0x40, 0x44]), size(), any::<u64>()).prop_map(|(o, s, v)| Step::Store(o, s, v)),
        2 => (0..0x40_u64).prop_map(|select| Step::Store(0, AccessSize::Dword, select)),
        1 => any::<u8>().prop_map(Step::Eoi),
        1 => Just(Step::Acknowledge),
        1 => proptest::collection::vec(any::<u8>(), 0..64).prop_map(Step::Type),
        1 => Just(Step::Button),
        3 => wait.prop_map(Step::Wait),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn keeps_the_invariants(unix_seconds in any::<u64>(), cpus in proptest::option::of(any::<u16>()), steps in proptest::collection::vec(step(), 1..300)) {
        let mut board = Board::new(BoardConfig {
            unix_seconds,
            test: cpus.map(|cpus| TestConfig { cpus, memory_bytes: unix_seconds }),
        });
        let mut now = 0_u64;
        for step in steps {
            match step {
                Step::In(port, size) => {
                    let value = board.port_read(port, size, Nanos(now));
                    prop_assert!(u64::from(value) <= size.ones());
                }
                Step::Out(port, size, value) => board.port_write(port, size, value, Nanos(now)),
                Step::Load(offset, size) => {
                    for base in [IOAPIC_BASE.0, 0xFF00_0000, 0xFF00_FF00] {
                        let value = board.mmio_read(Gpa(base + offset), size, Nanos(now));
                        prop_assert!(value <= size.ones());
                    }
                }
                Step::Store(offset, size, value) => {
                    board.mmio_write(Gpa(IOAPIC_BASE.0 + offset), size, value, Nanos(now));
                    board.mmio_write(Gpa(0xFF00_FFC0 + offset), size, value, Nanos(now));
                }
                Step::Eoi(vector) => board.eoi(vector),
                Step::Acknowledge => { let _ = board.pic_vector(); }
                Step::Type(bytes) => prop_assert!(board.serial_input(&bytes) <= bytes.len()),
                Step::Button => board.press_power_button(),
                Step::Wait(nanos) => now = now.saturating_add(nanos).min(u64::MAX / 2),
            }
            board.poll(Nanos(now));
            if let Some(due) = board.next_deadline() {
                prop_assert!(due > Nanos(now), "asked to be called at {} at {}", due, Nanos(now));
            }
            prop_assert!(std::iter::from_fn(|| board.take_message()).count() <= 24);
        }
    }

    /// The host's work for timers is bounded by time, not by what the guest programs.
    #[test]
    fn no_programming_storms_the_host(steps in proptest::collection::vec(step(), 1..60)) {
        let mut board = Board::new(BoardConfig::default());
        for step in steps {
            if let Step::Out(port, size, value) = step {
                board.port_write(port, size, value, Nanos::ZERO);
            }
        }
        let (mut calls, mut now) = (0, Nanos::ZERO);
        while let Some(due) = board.next_deadline().filter(|due| *due < Nanos::from_millis(20)) {
            prop_assert!(due > now || now == Nanos::ZERO);
            now = due;
            board.poll(now);
            // The guest acknowledges, so that level-like sources ask again.
            board.port_write(0x70, AccessSize::Byte, 0x0C, now);
            board.port_read(0x71, AccessSize::Byte, now);
            calls += 1;
        }
        // 100 us for counter 0, 122 us for the clock, in 20 ms.
        prop_assert!(calls <= 200 + 164 + 3, "{} calls", calls);
    }
}
