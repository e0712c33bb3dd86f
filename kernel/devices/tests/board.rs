//! The board through its public door, with a local APIC beside it, as the kernel wires them.

use devices::layout::{
    COM1, IOAPIC_BASE, PIC_MASTER, PIC_SLAVE, PIT, PM_TMR, PM1A_CNT, PM1A_EVT, RESET_PORT,
    RESET_VALUE, RTC, S5_SLP_TYP, SCI_IRQ,
};
use devices::test::TestConfig;
use devices::{
    AccessSize, ApicConfig, Board, BoardConfig, Effect, InterruptMessage, LocalApic, Now,
    PowerEvent, Role, TriggerMode, UnclaimedAccess,
};
use units::{ApicId, Gpa, Nanos};

const T0: Nanos = Nanos::ZERO;

fn board() -> Board {
    Board::new(BoardConfig {
        unix_seconds: 1_795_391_998,
        test: None,
    })
}

/// A board as test kernels want it.
fn test_board() -> Board {
    Board::new(BoardConfig {
        unix_seconds: 0,
        test: Some(TestConfig {
            cpus: 4,
            memory_bytes: 512 << 20,
        }),
    })
}

fn out(board: &mut Board, port: u16, value: u8) {
    board.port_write(port, AccessSize::Byte, value.into(), T0);
}

fn program_pin(board: &mut Board, pin: u8, entry: u64) {
    for (half, value) in [(1, entry >> 32), (0, entry & 0xFFFF_FFFF)] {
        board.mmio_write(
            IOAPIC_BASE,
            AccessSize::Dword,
            u64::from(0x10 + 2 * pin + half),
            T0,
        );
        board.mmio_write(Gpa(IOAPIC_BASE.0 + 0x10), AccessSize::Dword, value, T0);
    }
}

fn messages(board: &mut Board) -> Vec<InterruptMessage> {
    std::iter::from_fn(|| board.take_message()).collect()
}

fn start_pit(board: &mut Board, divisor: u16, now: Nanos) {
    board.port_write(PIT + 3, AccessSize::Byte, 0x34, now);
    for byte in divisor.to_le_bytes() {
        board.port_write(PIT, AccessSize::Byte, byte.into(), now);
    }
}

#[test]
fn the_timer_reaches_the_ioapic_on_pin_2_and_the_pic_on_input_0() {
    let mut b = board();
    for (port, value) in [
        (PIC_MASTER, 0x11),
        (PIC_MASTER + 1, 0x30),
        (PIC_MASTER + 1, 4),
        (PIC_MASTER + 1, 1),
    ] {
        out(&mut b, port, value);
    }
    program_pin(&mut b, 2, 0x30);
    start_pit(&mut b, 11_932, T0);
    let due = b.next_deadline().expect("a periodic timer");
    b.poll(due);
    assert_eq!(
        messages(&mut b)
            .iter()
            .map(|m| m.vector)
            .collect::<Vec<_>>(),
        [0x30]
    );
    assert!(b.pic_pending());
    assert_eq!(b.pic_vector(), 0x30);
    assert!(!b.pic_pending());
    b.poll(Nanos(due.0 * 2 + 2));
    assert_eq!(messages(&mut b).len(), 1, "each period is an edge");
}

#[test]
fn the_sci_is_delivered_again_until_its_cause_is_gone() {
    let config = ApicConfig {
        bus_hz: 1_000_000_000,
        tsc_hz: 1_000_000_000,
        x2apic: false,
        tsc_deadline: false,
        physical_bits: 40,
    };
    let now = Now { nanos: T0, tsc: 0 };
    let mut apic = LocalApic::new(ApicId(0), Role::Bootstrap, config);
    assert_eq!(apic.mmio_write(0xF0, 0x1FF, now), None);
    let mut b = board();
    program_pin(&mut b, SCI_IRQ, 1 << 15 | 0x59);
    b.port_write(PM1A_EVT + 2, AccessSize::Word, 1 << 8, T0);
    b.press_power_button();
    for round in 0..3 {
        let sent = messages(&mut b);
        assert_eq!(sent.len(), 1, "round {round}");
        assert_eq!(sent[0].trigger, TriggerMode::Level);
        assert!(apic.matches(&sent[0]) && apic.receive(&sent[0]));
        assert_eq!(apic.accept(), Some(0x59));
        assert!(messages(&mut b).is_empty());
        if round == 2 {
            b.port_write(PM1A_EVT, AccessSize::Word, 1 << 8, T0);
        }
        let Some(Effect::EoiBroadcast(vector)) = apic.mmio_write(0xB0, 0, now) else {
            panic!("a level-triggered interrupt tells the I/O APIC")
        };
        b.eoi(vector);
    }
    assert!(messages(&mut b).is_empty());
}

#[test]
fn acpi_registers_answer_at_every_width() {
    let mut b = board();
    assert_eq!(b.port_read(PM1A_CNT, AccessSize::Word, T0), 1, "SCI_EN");
    b.port_write(PM1A_EVT + 3, AccessSize::Byte, 0x01, T0);
    assert_eq!(b.port_read(PM1A_EVT, AccessSize::Dword, T0), 0x0100_0000);
    assert_eq!(b.port_read(PM1A_EVT + 2, AccessSize::Word, T0), 0x0100);
    let second = Nanos::from_secs(1);
    assert_eq!(b.port_read(PM_TMR, AccessSize::Dword, second), 3_579_545);
    assert_eq!(
        b.port_read(PM_TMR + 1, AccessSize::Byte, second),
        3_579_545 >> 8 & 0xFF
    );
}

#[test]
fn every_way_to_switch_off_or_reset() {
    let s5 = 1 << 13 | u32::from(S5_SLP_TYP) << 10;
    for (port, size, value, event) in [
        (PM1A_CNT, AccessSize::Word, s5, PowerEvent::Off),
        (
            RESET_PORT,
            AccessSize::Byte,
            RESET_VALUE.into(),
            PowerEvent::Reset,
        ),
        (0x64, AccessSize::Byte, 0xFE, PowerEvent::Reset),
        (0x92, AccessSize::Byte, 0x01, PowerEvent::Reset),
    ] {
        let mut b = board();
        b.port_write(port, size, value, T0);
        assert_eq!(b.power_event(), Some(event), "port {port:#x}");
        assert_eq!(b.power_event(), None);
    }
    let mut b = board();
    out(&mut b, RESET_PORT, 0x02);
    out(&mut b, 0x64, 0xD1);
    out(&mut b, 0x92, 0x02);
    b.port_write(0xCF8, AccessSize::Dword, 0x8000_0600, T0);
    assert_eq!(b.power_event(), None, "a PCI address is no reset");
}

#[test]
fn serial_port_interrupts_and_carries_bytes_both_ways() {
    let mut b = board();
    program_pin(&mut b, 4, 0x34);
    out(&mut b, COM1 + 2, 0x01);
    out(&mut b, COM1 + 4, 0x0B);
    out(&mut b, COM1 + 1, 0x01);
    assert_eq!(b.serial_input(b"ok"), 2);
    assert_eq!(messages(&mut b).len(), 1);
    let read: Vec<_> = (0..2)
        .map(|_| b.port_read(COM1, AccessSize::Byte, T0) as u8)
        .collect();
    assert_eq!(read, b"ok");
    assert_eq!(b.serial_input(b"!"), 1);
    assert_eq!(
        messages(&mut b).len(),
        1,
        "the line fell in between, so this is an edge"
    );
    out(&mut b, COM1 + 1, 0x02);
    messages(&mut b);
    for byte in *b"hello" {
        out(&mut b, COM1, byte);
        assert_eq!(messages(&mut b).len(), 1, "the transmitter is empty again");
    }
    let mut buffer = [0; 16];
    assert_eq!(b.serial_output(&mut buffer), 5);
    assert_eq!(&buffer[..5], b"hello");
}

#[test]
fn pci_is_asked_by_type_1_and_shows_a_host_bridge() {
    let mut b = board();
    // As Linux probes: a byte beside the address register, then the register itself.
    out(&mut b, 0xCFB, 1);
    b.port_write(0xCF8, AccessSize::Dword, 0x8000_0000, T0);
    assert_eq!(b.port_read(0xCF8, AccessSize::Dword, T0), 0x8000_0000);
    b.port_write(0xCF8, AccessSize::Dword, 0x8000_0008, T0);
    assert_eq!(b.port_read(0xCFE, AccessSize::Word, T0), 0x0600);
    b.port_write(0xCFC, AccessSize::Dword, 0xFFFF_FFFF, T0);
    assert_eq!(b.port_read(0xCFC, AccessSize::Dword, T0), 0x0600_0000);
    b.port_write(RESET_PORT, AccessSize::Byte, 0, T0);
    assert_eq!(
        b.port_read(0xCF8, AccessSize::Dword, T0),
        0x8000_0008,
        "the reset register lies inside the address register and is another one"
    );
    assert_eq!(b.take_unclaimed(), None);
}

#[test]
fn absent_devices_read_all_ones_and_are_reported_once() {
    let mut b = board();
    assert_eq!(
        b.port_read(0x64, AccessSize::Byte, T0),
        0xFF,
        "no keyboard controller"
    );
    b.port_write(0xCF8, AccessSize::Dword, 0x8000_0800, T0);
    assert_eq!(
        b.port_read(0xCFC, AccessSize::Word, T0),
        0xFFFF,
        "no second PCI function"
    );
    assert_eq!(b.take_unclaimed(), None);
    for _ in 0..3 {
        assert_eq!(b.port_read(0x2F8, AccessSize::Word, T0), 0xFFFF);
    }
    b.port_write(0x2F8, AccessSize::Byte, 0x1_23, T0);
    let read = UnclaimedAccess {
        port: 0x2F8,
        size: AccessSize::Word,
        written: None,
    };
    assert_eq!(b.take_unclaimed(), Some(read));
    let write = UnclaimedAccess {
        port: 0x2F8,
        size: AccessSize::Byte,
        written: Some(0x23),
    };
    assert_eq!(b.take_unclaimed(), Some(write));
    assert_eq!((b.take_unclaimed(), b.unclaimed_count()), (None, 4));
    for port in 0x1000..0x2000 {
        b.port_read(port, AccessSize::Byte, T0);
    }
    assert_eq!(
        std::iter::from_fn(|| b.take_unclaimed()).count(),
        62,
        "64 kinds at most"
    );
    assert_eq!(b.port_read(0xFFFF, AccessSize::Dword, T0), u32::MAX);
}

#[test]
fn wide_accesses_reach_byte_wide_devices() {
    let mut b = board();
    b.port_write(RTC, AccessSize::Word, 0x5A_0F, T0);
    assert_eq!(b.port_read(RTC, AccessSize::Word, T0), 0x5AFF);
    b.port_write(PIC_MASTER + 1, AccessSize::Byte, 0xFB, T0);
    b.port_write(PIC_SLAVE + 1, AccessSize::Byte, 0xFF, T0);
    assert_eq!(b.port_read(PIC_MASTER, AccessSize::Word, T0), 0xFB00);
}

#[test]
fn only_the_ioapic_page_is_claimed() {
    let mut b = board();
    assert!(b.mmio_claims(IOAPIC_BASE) && b.mmio_claims(Gpa(IOAPIC_BASE.0 + 0xFFF)));
    assert!(!b.mmio_claims(Gpa(IOAPIC_BASE.0 - 1)) && !b.mmio_claims(Gpa(IOAPIC_BASE.0 + 0x1000)));
    assert!(!b.mmio_claims(Gpa(u64::MAX)));
    assert_eq!(b.mmio_read(Gpa(0), AccessSize::Word, T0), 0xFFFF);
    b.mmio_write(IOAPIC_BASE, AccessSize::Dword, 1, T0);
    assert_eq!(
        b.mmio_read(Gpa(IOAPIC_BASE.0 + 0x10), AccessSize::Dword, T0),
        0x0017_0020
    );
    assert_eq!(
        b.mmio_read(Gpa(IOAPIC_BASE.0 + 0x12), AccessSize::Byte, T0),
        0x17
    );
}

#[test]
fn time_never_goes_back_for_the_board() {
    let mut b = board();
    start_pit(&mut b, 11_932, T0);
    b.poll(Nanos::from_millis(100));
    let seen = b.port_read(PM_TMR, AccessSize::Dword, Nanos::from_millis(50));
    assert_eq!(
        seen,
        b.port_read(PM_TMR, AccessSize::Dword, Nanos::from_millis(100))
    );
}

#[test]
fn test_devices_are_there_only_when_asked_for() {
    let mut plain = board();
    for port in [0xE0, 0xE4, 0xF4, 0x510, 0x511, 0x200E] {
        plain.port_write(port, AccessSize::Word, 1, T0);
        assert_eq!(
            plain.port_read(port, AccessSize::Byte, T0),
            0xFF,
            "{port:#x}"
        );
    }
    assert_eq!(plain.power_event(), None);
    assert!(!plain.mmio_claims(Gpa(0xFF00_0000)));
    plain.mmio_write(Gpa(0xFF00_0000), AccessSize::Byte, 1, T0);
    assert_eq!(
        plain.mmio_read(Gpa(0xFF00_0000), AccessSize::Byte, T0),
        0xFF
    );

    let mut b = test_board();
    b.port_write(0x510, AccessSize::Word, 5, T0);
    assert_eq!(b.port_read(0x511, AccessSize::Byte, T0), 4);
    assert!(b.mmio_claims(Gpa(0xFF00_FFFF)) && b.mmio_claims(IOAPIC_BASE));
    b.mmio_write(Gpa(0xFF00_0008), AccessSize::Dword, 0x1234_5678, T0);
    assert_eq!(b.mmio_read(Gpa(0xFF00_000A), AccessSize::Word, T0), 0x1234);
    assert_eq!(b.take_unclaimed(), None);
    b.port_write(0xF4, AccessSize::Dword, 7, T0);
    assert_eq!(b.power_event(), Some(PowerEvent::Exit(7)));
}

#[test]
fn a_test_kernel_raises_lines_of_both_controllers() {
    let mut b = test_board();
    program_pin(&mut b, 14, 0x51);
    program_pin(&mut b, 20, 0x52);
    for line in [14, 20] {
        out(&mut b, 0x2000 + line, 1);
    }
    let vectors: Vec<u8> = messages(&mut b).iter().map(|m| m.vector).collect();
    assert_eq!(vectors, [0x51, 0x52]);
    // Still high: no edge.
    out(&mut b, 0x200E, 1);
    assert!(messages(&mut b).is_empty());
    out(&mut b, 0x200E, 0);
    out(&mut b, 0x200E, 1);
    assert_eq!(messages(&mut b).len(), 1);
}
