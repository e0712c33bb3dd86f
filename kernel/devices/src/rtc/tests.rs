//! The real-time clock as firmware and Linux use it.

use super::*;

/// 2026-11-22 23:59:58, a Sunday.
const BASE: u64 = 1_795_391_998;

fn read(rtc: &mut Rtc, index: u8, now: Nanos) -> u8 {
    rtc.select(index);
    rtc.read(now)
}

fn write(rtc: &mut Rtc, index: u8, value: u8, now: Nanos) {
    rtc.select(index);
    rtc.write(value, now);
}

/// Seconds, minutes, hours, weekday, day, month, year, century.
fn shown(rtc: &mut Rtc, now: Nanos) -> [u8; 8] {
    [0, 2, 4, 6, 7, 8, 9, CMOS_CENTURY].map(|index| read(rtc, index, now))
}

const fn seconds(n: u64) -> Nanos {
    Nanos::from_secs(n)
}

#[test]
fn shows_the_time_in_bcd_and_rolls_over() {
    let mut rtc = Rtc::new(BASE);
    assert_eq!(
        shown(&mut rtc, seconds(0)),
        [0x58, 0x59, 0x23, 1, 0x22, 0x11, 0x26, 0x20]
    );
    assert_eq!(
        shown(&mut rtc, seconds(2)),
        [0, 0, 0, 2, 0x23, 0x11, 0x26, 0x20]
    );
}

#[test]
fn binary_and_12_hour_formats() {
    let mut rtc = Rtc::new(BASE);
    write(&mut rtc, 0xB, B_24_HOURS | B_BINARY, seconds(0));
    assert_eq!(shown(&mut rtc, seconds(0)), [58, 59, 23, 1, 22, 11, 26, 20]);
    write(&mut rtc, 0xB, 0, seconds(0));
    assert_eq!(read(&mut rtc, 4, seconds(0)), 0x91, "11 PM");
    assert_eq!(read(&mut rtc, 4, seconds(2)), 0x12, "midnight is 12 AM");
    assert_eq!(
        read(&mut rtc, 4, seconds(2 + 12 * 3600)),
        0x92,
        "noon is 12 PM"
    );
}

#[test]
fn update_in_progress_warns_before_each_second_only() {
    let mut rtc = Rtc::new(BASE);
    assert_eq!(read(&mut rtc, 0xA, Nanos(999_755_999)), 0x26);
    assert_eq!(read(&mut rtc, 0xA, Nanos(999_756_000)), 0xA6);
    assert_eq!(read(&mut rtc, 0xA, seconds(1)), 0x26);
    write(&mut rtc, 0xB, B_SET | B_24_HOURS, seconds(1));
    assert_eq!(
        read(&mut rtc, 0xA, Nanos(1_999_999_999)),
        0x26,
        "never while the time is being set"
    );
}

#[test]
fn linux_sets_the_time_and_the_first_second_is_half_a_one() {
    // rtc-mc146818-lib.c, mc146818_set_time(): 2030-02-28 12:34:56.
    let mut rtc = Rtc::new(BASE);
    let now = Nanos(5_300_000_000);
    let b = read(&mut rtc, 0xB, now);
    write(&mut rtc, 0xB, b | B_SET, now);
    let a = read(&mut rtc, 0xA, now);
    write(&mut rtc, 0xA, a | 0x70, now);
    for (index, value) in [
        (9, 0x30),
        (8, 0x02),
        (7, 0x28),
        (4, 0x12),
        (2, 0x34),
        (0, 0x56),
        (CMOS_CENTURY, 0x20),
    ] {
        write(&mut rtc, index, value, now);
    }
    assert_eq!(read(&mut rtc, 0, now + seconds(9)), 0x56, "it stands still");
    let now = now + seconds(9);
    write(&mut rtc, 0xB, b, now);
    write(&mut rtc, 0xA, a, now);
    let expected = [0x56, 0x34, 0x12, 5, 0x28, 0x02, 0x30, 0x20];
    assert_eq!(shown(&mut rtc, now + Nanos(499_000_000)), expected);
    assert_eq!(read(&mut rtc, 0, now + Nanos(500_000_000)), 0x57);
    assert_eq!(
        read(&mut rtc, 7, now + seconds(86_400)),
        0x01,
        "no leap day in 2030"
    );
}

#[test]
fn update_interrupt_each_second_until_register_c_is_read() {
    let mut rtc = Rtc::new(BASE);
    write(&mut rtc, 0xB, B_24_HOURS | C_UPDATE, Nanos(1));
    assert_eq!(rtc.next_deadline(), Some(seconds(1)));
    rtc.poll(seconds(1));
    assert!(rtc.interrupting());
    assert_eq!(rtc.next_deadline(), None, "the line is up already");
    assert_eq!(
        read(&mut rtc, 0xC, seconds(1)) & !C_PERIODIC,
        C_REQUEST | C_UPDATE
    );
    assert!(!rtc.interrupting());
    assert_eq!(rtc.next_deadline(), Some(seconds(2)));
}

#[test]
fn periodic_interrupt_runs_at_its_rate_and_counts_what_is_lost() {
    let mut rtc = Rtc::new(BASE);
    write(&mut rtc, 0xA, 0x2F, Nanos::ZERO); // 2 Hz
    write(&mut rtc, 0xB, B_24_HOURS | C_PERIODIC, Nanos::ZERO);
    assert_eq!(rtc.next_deadline(), Some(Nanos(500_000_000)));
    rtc.poll(Nanos(500_000_000));
    assert!(rtc.interrupting());
    rtc.poll(Nanos(2_000_000_000));
    assert_eq!(rtc.lost(), 3);
    assert_eq!(
        read(&mut rtc, 0xC, Nanos(2_000_000_000)) & C_PERIODIC,
        C_PERIODIC
    );
    assert_eq!(rtc.next_deadline(), Some(Nanos(2_500_000_000)));
    write(&mut rtc, 0xA, 0x21, Nanos(2_000_000_000)); // 256 Hz, as rate 8
    assert_eq!(rtc.next_deadline(), Some(Nanos(2_000_000_000 + 3_906_250)));
}

#[test]
fn alarm_at_a_time_and_with_wildcards() {
    let mut rtc = Rtc::new(BASE);
    for (index, value) in [(1, 0x10), (3, 0x01), (5, 0x00)] {
        write(&mut rtc, index, value, Nanos::ZERO); // 00:01:10
    }
    write(&mut rtc, 0xB, B_24_HOURS | C_ALARM, Nanos::ZERO);
    assert_eq!(rtc.next_deadline(), Some(seconds(72)));
    rtc.poll(seconds(71));
    assert!(!rtc.interrupting());
    rtc.poll(seconds(100));
    assert!(rtc.interrupting(), "a late look still finds it");
    assert_ne!(read(&mut rtc, 0xC, seconds(100)) & C_ALARM, 0);
    assert_eq!(rtc.next_deadline(), Some(seconds(72 + 86_400)));
    write(&mut rtc, 5, ALARM_ANY, seconds(100));
    write(&mut rtc, 3, 0xFF, seconds(100));
    assert_eq!(
        rtc.next_deadline(),
        Some(seconds(132)),
        "every minute at second 10"
    );
    write(&mut rtc, 1, 0x60, seconds(100));
    assert_eq!(rtc.next_deadline(), None, "second 60 never comes");
}

#[test]
fn memory_keeps_what_is_written_and_registers_do_not_alias() {
    let mut rtc = Rtc::new(BASE);
    for index in (0x0E..0x80).filter(|index| *index != CMOS_CENTURY) {
        write(&mut rtc, index, index ^ 0x55, Nanos::ZERO);
    }
    for index in (0x0E..0x80).filter(|index| *index != CMOS_CENTURY) {
        assert_eq!(read(&mut rtc, 0x80 | index, Nanos::ZERO), index ^ 0x55);
    }
    assert_eq!(read(&mut rtc, 0xD, Nanos::ZERO), D_VALID);
    assert_eq!(read(&mut rtc, 0, Nanos::ZERO), 0x58);
}
