use super::*;
use alloc::vec::Vec;

const CONFIG: TestConfig = TestConfig {
    cpus: 3,
    memory_bytes: 0x1_2340_0000,
};

fn item(devices: &mut TestDevices, number: u32, bytes: usize) -> Vec<u8> {
    assert_eq!(
        devices.port_write(SELECTOR, AccessSize::Word, number),
        Some(Request::Done)
    );
    (0..bytes)
        .map(|_| devices.port_read(DATA, AccessSize::Byte).expect("claimed") as u8)
        .collect()
}

#[test]
fn fw_cfg_tells_cpus_and_memory() {
    let mut d = TestDevices::new(CONFIG);
    assert_eq!(item(&mut d, 0, 4), b"QEMU");
    assert_eq!(item(&mut d, 1, 4), [1, 0, 0, 0]);
    assert_eq!(item(&mut d, 3, 8), 0x1_2340_0000_u64.to_le_bytes());
    assert_eq!(item(&mut d, 5, 2), [3, 0]);
    assert_eq!(item(&mut d, 0x0F, 2), [3, 0]);
    // Selecting rewinds; behind an item and for an unknown one there are zeros.
    assert_eq!(item(&mut d, 0, 6), b"QEMU\0\0");
    for unknown in [2, 4, 0x19, 0x8000, 0xFFFF] {
        assert_eq!(item(&mut d, unknown, 9), [0; 9], "{unknown:#x}");
    }
    // A byte does not select.
    item(&mut d, 5, 0);
    d.port_write(SELECTOR, AccessSize::Byte, 0);
    assert_eq!(d.port_read(DATA, AccessSize::Byte), Some(3));
}

#[test]
fn the_exit_port_takes_any_width() {
    let mut d = TestDevices::new(CONFIG);
    assert_eq!(
        d.port_write(0xF4, AccessSize::Dword, 38),
        Some(Request::Exit(38))
    );
    assert_eq!(
        d.port_write(0xF4, AccessSize::Byte, 0),
        Some(Request::Exit(0))
    );
    assert_eq!(d.port_write(0xF3, AccessSize::Byte, 0), None);
    assert_eq!(d.port_write(0xF8, AccessSize::Byte, 0), None);
}

#[test]
fn the_register_and_the_memory_hold_what_was_written() {
    let mut d = TestDevices::new(CONFIG);
    d.port_write(0xE0, AccessSize::Dword, 0x1234_5678);
    d.port_write(0xE1, AccessSize::Byte, 0xAB);
    assert_eq!(d.port_read(0xE0, AccessSize::Dword), Some(0x1234_AB78));
    assert_eq!(
        d.port_read(0xE2, AccessSize::Byte).map(|v| v & 0xFF),
        Some(0x34)
    );
    // The last bytes of the register: what reaches past it is dropped.
    d.port_write(0xE3, AccessSize::Word, 0xFFEE);
    assert_eq!(d.port_read(0xE0, AccessSize::Dword), Some(0xEE34_AB78));

    assert!(TestDevices::claims(Gpa(0xFF00_0000)) && TestDevices::claims(Gpa(0xFF00_FFFF)));
    assert!(!TestDevices::claims(Gpa(0xFF01_0000)) && !TestDevices::claims(Gpa(0xFEFF_FFFF)));
    d.memory_write(Gpa(0xFF00_0010), AccessSize::Qword, 0x1122_3344_5566_7788);
    d.memory_write(Gpa(0xFF00_0011), AccessSize::Word, 0xEEDD);
    assert_eq!(
        d.memory_read(Gpa(0xFF00_0010), AccessSize::Qword),
        0x1122_3344_55EE_DD88
    );
    assert_eq!(d.memory_read(Gpa(0xFF00_0017), AccessSize::Byte), 0x11);
    // At the end nothing is beyond.
    d.memory_write(Gpa(0xFF00_FFFF), AccessSize::Dword, u64::MAX);
    assert_eq!(d.memory_read(Gpa(0xFF00_FFFF), AccessSize::Dword), 0xFF);
}

#[test]
fn lines_are_raised_and_lowered() {
    let mut d = TestDevices::new(CONFIG);
    let line = |line, asserted| Some(Request::Line { line, asserted });
    assert_eq!(d.port_write(0x200E, AccessSize::Byte, 1), line(14, true));
    assert_eq!(d.port_write(0x2017, AccessSize::Byte, 0), line(23, false));
    assert_eq!(d.port_write(0x2018, AccessSize::Byte, 0), None);
}
