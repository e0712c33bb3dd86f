//! The 8254 as Linux calibrates and programs it.

use super::*;

/// The time at which `n` ticks have passed.
fn ticks(n: u64) -> Nanos {
    ticks_to_nanos(n, PIT_HZ)
}

fn load(pit: &mut Pit, counter: u8, mode: u8, count: u16, now: Nanos) {
    pit.write(3, counter << 6 | 0x30 | mode << 1, now);
    let [low, high] = count.to_le_bytes();
    pit.write(u16::from(counter), low, now);
    pit.write(u16::from(counter), high, now);
}

fn read16(pit: &mut Pit, counter: u16, now: Nanos) -> u16 {
    let low = pit.read(counter, now);
    u16::from_le_bytes([low, pit.read(counter, now)])
}

#[test]
fn rate_generator_interrupts_at_each_period_without_drift() {
    let mut pit = Pit::new();
    load(&mut pit, 0, 2, 11_932, Nanos::ZERO); // 100 Hz
    for n in 1..=1000 {
        let due = pit.next_deadline().expect("periodic");
        assert_eq!(due, ticks(11_932 * n));
        assert!(!pit.poll(due - Nanos(1)));
        assert!(pit.poll(due));
    }
    assert_eq!(pit.lost(), 0);
}

#[test]
fn late_polls_report_once_and_count_the_rest() {
    let mut pit = Pit::new();
    load(&mut pit, 0, 3, 11_932, Nanos::ZERO);
    assert!(pit.poll(ticks(11_932 * 7 + 5)));
    assert!(!pit.poll(ticks(11_932 * 7 + 6)));
    assert_eq!(
        (pit.lost(), pit.next_deadline()),
        (6, Some(ticks(11_932 * 8)))
    );
}

#[test]
fn the_shortest_period_is_bounded() {
    let mut pit = Pit::new();
    load(&mut pit, 0, 2, 1, Nanos::ZERO);
    let (mut now, mut fired) = (Nanos::ZERO, 0);
    while now < Nanos::from_millis(10) {
        now = pit.next_deadline().expect("periodic").max(now + Nanos(1));
        fired += u32::from(pit.poll(now));
    }
    assert!(
        (99..=101).contains(&fired),
        "10 ms hold 100 shortest periods, not {fired}"
    );
}

#[test]
fn frequent_looks_at_a_short_period_see_it_no_more_often() {
    let mut pit = Pit::new();
    load(&mut pit, 0, 2, 1, Nanos::ZERO);
    let fired = (1..=100)
        .filter(|n| pit.poll(Nanos::from_micros(10 * n)))
        .count();
    assert_eq!(fired, 10);
    assert_eq!(
        pit.lost() + 10,
        nanos_to_ticks(Nanos::from_micros(910), PIT_HZ)
    );
}

#[test]
fn one_shot_modes_interrupt_once_for_each_load() {
    for mode in [0, 4] {
        let mut pit = Pit::new();
        load(&mut pit, 0, mode, 1000, Nanos::ZERO);
        assert_eq!(pit.next_deadline(), Some(ticks(1000)));
        assert!(pit.poll(ticks(1000)) && !pit.poll(ticks(70_000)));
        assert_eq!(pit.next_deadline(), None);
        pit.write(0, 0xE8, ticks(80_000));
        pit.write(0, 0x03, ticks(80_000));
        assert!(!pit.poll(ticks(80_999)) && pit.poll(ticks(81_001)));
    }
}

#[test]
fn counter_2_calibrates_a_time_stamp_counter_as_linux_does() {
    // tsc.c, pit_calibrate_tsc(): gate up, speaker off, mode 0, wait for OUT at port 61h.
    let mut pit = Pit::new();
    pit.write_port_b(1, Nanos::ZERO);
    load(&mut pit, 2, 0, 59_659, Nanos::ZERO); // 50 ms
    assert_eq!(pit.port_b(ticks(59_658)) & 0x21, 0x01);
    assert_eq!(pit.port_b(ticks(59_659)) & 0x21, 0x21);
    // quick_pit_calibrate(): the high byte of a running mode 0 count steps every 256 ticks.
    load(&mut pit, 2, 0, 0xFFFF, Nanos::ZERO);
    assert_eq!(read16(&mut pit, 2, ticks(255)) >> 8, 0xFF);
    assert_eq!(read16(&mut pit, 2, ticks(256)) >> 8, 0xFE);
}

#[test]
fn the_gate_stops_mode_0_and_restarts_mode_2() {
    let mut pit = Pit::new();
    pit.write_port_b(1, Nanos::ZERO);
    load(&mut pit, 2, 0, 1000, Nanos::ZERO);
    pit.write_port_b(0, ticks(400));
    assert_eq!(read16(&mut pit, 2, ticks(900)), 600);
    pit.write_port_b(1, ticks(900));
    assert!((399..=401).contains(&read16(&mut pit, 2, ticks(1_100))));
    load(&mut pit, 2, 2, 1000, ticks(2_000));
    pit.write_port_b(0, ticks(2_300));
    pit.write_port_b(1, ticks(5_000));
    assert!((899..=901).contains(&read16(&mut pit, 2, ticks(5_100))));
}

#[test]
fn a_latched_count_stands_still_until_read() {
    let mut pit = Pit::new();
    load(&mut pit, 0, 2, 1000, Nanos::ZERO);
    pit.write(3, 0x00, ticks(100));
    pit.write(3, 0x00, ticks(200)); // a second latch is ignored
    assert_eq!(read16(&mut pit, 0, ticks(300)), 900);
    assert_eq!(read16(&mut pit, 0, ticks(300)), 700);
}

#[test]
fn read_back_gives_status_then_count() {
    let mut pit = Pit::new();
    load(&mut pit, 0, 3, 1000, Nanos::ZERO);
    pit.write(3, 0xC2, ticks(600)); // count and status of counter 0
    assert_eq!(
        pit.read(0, ticks(700)),
        0x36,
        "output low, count loaded, both bytes, mode 3"
    );
    assert_eq!(read16(&mut pit, 0, ticks(700)), 800);
    pit.write(3, 0x70 | 0x02, ticks(700)); // counter 1, mode 1, no count yet
    pit.write(3, 0xE4, ticks(700));
    assert_eq!(pit.read(1, ticks(700)), 0x80 | 0x40 | 0x30 | 0x02);
}

#[test]
fn bcd_counts_decimally() {
    let mut pit = Pit::new();
    pit.write(3, 0x35, Nanos::ZERO);
    pit.write(0, 0x00, Nanos::ZERO);
    pit.write(0, 0x10, Nanos::ZERO); // 1000
    assert_eq!(read16(&mut pit, 0, ticks(1)), 0x0999);
    assert_eq!(pit.next_deadline(), Some(ticks(1000)));
}

#[test]
fn half_a_count_does_not_replay_the_past() {
    let mut pit = Pit::new();
    load(&mut pit, 0, 2, 11_932, Nanos::ZERO);
    assert!(pit.poll(ticks(11_932 * 3)));
    pit.write(0, 1, ticks(11_932 * 3 + 1));
    pit.write(3, 0x00, ticks(11_932 * 3 + 1)); // nor does latching
    assert!(!pit.poll(ticks(11_932 * 4 - 1)));
    assert_eq!(pit.lost(), 2);
}

#[test]
fn an_uncounted_timer_has_no_deadline() {
    let mut pit = Pit::new();
    assert_eq!(pit.next_deadline(), None);
    pit.write(3, 0x34, Nanos::ZERO);
    assert!(pit.next_deadline().is_none() && !pit.poll(Nanos::from_secs(1)));
}
