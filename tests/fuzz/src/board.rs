//! A VM's devices: any accesses at any times.

use crate::Input;
use devices::layout::IOAPIC_BASE;
use devices::{AccessSize, Board, BoardConfig};
use units::{Gpa, Nanos};

const SIZES: [AccessSize; 4] = [
    AccessSize::Byte,
    AccessSize::Word,
    AccessSize::Dword,
    AccessSize::Qword,
];
/// Where something answers.
const PORTS: [u16; 28] = [
    0x20, 0x21, 0xA0, 0xA1, 0x4D0, 0x4D1, 0x40, 0x41, 0x42, 0x43, 0x61, 0x60, 0x64, 0x70, 0x71,
    0x80, 0x92, 0xCF8, 0xCF9, 0xCFC, 0x3F8, 0x3F9, 0x3FA, 0x3FB, 0x3FC, 0x600, 0x604, 0x608,
];
/// The serial port's queue.
const OUTPUT: usize = 16 * 1024;

/// Steps of two to ten bytes.
pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let mut board = Board::new(BoardConfig {
        unix_seconds: input.u64(),
        test: None,
    });
    let mut now = 0_u64;
    let mut steps = 0;
    while !input.is_empty() && steps < 2000 {
        steps += 1;
        let step = input.u8();
        let size = SIZES[usize::from(step >> 6)];
        let port = |input: &mut Input<'_>| {
            let choice = input.u8();
            PORTS
                .get(usize::from(choice))
                .copied()
                .unwrap_or_else(|| u16::from(choice) << 8 | u16::from(input.u8()))
        };
        match step & 15 {
            0..=2 => {
                let value = board.port_read(port(&mut input), size, Nanos(now));
                assert!(u64::from(value) <= size.ones());
            }
            3..=7 => {
                let (port, value) = (port(&mut input), input.u32());
                board.port_write(port, size, value, Nanos(now));
            }
            8 => {
                let gpa = Gpa(IOAPIC_BASE.0 + u64::from(input.u8()));
                let value = board.mmio_read(gpa, size, Nanos(now));
                assert!(value <= size.ones());
            }
            9 => {
                let gpa = Gpa(IOAPIC_BASE.0 + u64::from(input.u8()));
                board.mmio_write(gpa, size, input.u64(), Nanos(now));
            }
            10 => board.eoi(input.u8()),
            11 => {
                let _vector = board.pic_vector();
            }
            12 => {
                let length = input.u8();
                let typed = input.bytes(length.into());
                assert!(board.serial_input(typed) <= typed.len());
            }
            13 => board.press_power_button(),
            _ => now = now.saturating_add(u64::from(input.u32()) << (step >> 4)),
        }
        now = now.min(u64::MAX / 2);
        board.poll(Nanos(now));
        if let Some(due) = board.next_deadline() {
            assert!(due > Nanos(now), "asked to be called at {due} at {now}");
        }
        let messages = std::iter::from_fn(|| board.take_message()).take(100);
        assert!(messages.count() <= 24, "one message a pin");
        let unclaimed = std::iter::from_fn(|| board.take_unclaimed()).take(2000);
        assert!(unclaimed.count() <= 2, "one report an access");
        let _asked = board.power_event();
    }
    let mut output = vec![0; OUTPUT + 1];
    assert!(board.serial_output(&mut output) <= OUTPUT);
    assert_eq!(board.serial_output(&mut output), 0);
}
