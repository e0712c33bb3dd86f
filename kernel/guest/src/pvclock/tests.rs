use super::*;
use proptest::prelude::*;

#[test]
fn one_gigahertz_counts_nanoseconds() {
    // Exactly 1 is not representable below 2^32: a shift of one and half of 2^32.
    assert_eq!(
        ClockScale::from_tsc_hz(1_000_000_000),
        Some(ClockScale {
            mul: 1 << 31,
            shift: 1
        })
    );
    assert_eq!(ClockScale::from_tsc_hz(0), None);
    assert_eq!(ClockScale::from_tsc_hz(u64::MAX), None);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn a_clock_is_never_fast_and_hardly_slow(hz in 1_000u64..1 << 40, seconds in 1u64..100_000) {
        let scale = ClockScale::from_tsc_hz(hz).expect("a frequency");
        prop_assert!(scale.mul >= 1 << 31);
        let ticks = u128::from(hz) * u128::from(seconds);
        prop_assume!(ticks < 1 << 60);
        let exact = seconds * 1_000_000_000;
        let shown = scale.nanos(ticks as u64).0;
        prop_assert!(shown <= exact);
        // The multiplier's and the shift's rounding.
        prop_assert!(exact - shown <= (exact >> 31) + (1 << scale.shift.unsigned_abs().min(20)) + 1, "{} of {}", exact - shown, exact);
    }

    #[test]
    fn time_never_goes_back(hz in 1_000_000u64..10_000_000_000, a: u64, b: u64) {
        let scale = ClockScale::from_tsc_hz(hz).expect("a frequency");
        let t = TimeInfo { tsc_timestamp: 12_345, system_time: Nanos(77), scale, flags: 0 };
        prop_assert!(t.time_at(a.min(b)) <= t.time_at(a.max(b)));
    }

    #[test]
    fn a_reader_between_any_two_writes_sees_an_odd_or_an_old_version(previous: u32) {
        let scale = ClockScale::from_tsc_hz(2_000_000_000).expect("a frequency");
        let info = TimeInfo { tsc_timestamp: 1, system_time: Nanos(2), scale, flags: FLAG_TSC_STABLE };
        let (writes, version) = info.updates(previous);
        let mut page = [0u8; 32];
        page[..4].copy_from_slice(&previous.to_le_bytes());
        let read = |p: &[u8; 32]| u32::from_le_bytes([p[0], p[1], p[2], p[3]]);
        for (i, w) in writes.iter().enumerate() {
            let at = w.offset as usize;
            page[at..at + w.data().len()].copy_from_slice(w.data());
            prop_assert_eq!(read(&page) % 2 == 1, i < 2);
        }
        prop_assert_eq!(page, info.to_bytes(version));
        prop_assert!(version != previous);
    }
}

#[test]
fn structures_lie_as_linux_declares_them() {
    let scale = ClockScale {
        mul: 0x0403_0201,
        shift: -1,
    };
    let b = TimeInfo {
        tsc_timestamp: 5,
        system_time: Nanos(6),
        scale,
        flags: 3,
    }
    .to_bytes(2);
    assert_eq!(
        (b[0], b[8], b[16], &b[24..30]),
        (2, 5, 6, &[1, 2, 3, 4, 0xFF, 3][..])
    );
    let b = WallClock::at_boot(Nanos(5_000_000_007), Nanos(2_000_000_000)).to_bytes(4);
    assert_eq!(b, [4, 0, 0, 0, 3, 0, 0, 0, 7, 0, 0, 0]);
    let steal = StealTime {
        stolen: Nanos(9),
        preempted: Preempted::Yes,
    };
    let b = steal.to_bytes(6);
    assert_eq!((b[0], b[8], b[12], b[16]), (9, 6, 0, 1));
    let mut page = [0u8; StealTime::BYTES];
    let (writes, version) = steal.updates(0);
    for w in &writes {
        let at = w.offset as usize;
        page[at..at + w.data().len()].copy_from_slice(w.data());
    }
    assert_eq!((page, version), (steal.to_bytes(2), 2));
}

#[test]
fn addresses_in_the_msrs_are_checked() {
    assert_eq!(
        SharedPage::decode_system_time(0x1001),
        Some(SharedPage::At(Gpa(0x1000)))
    );
    assert_eq!(
        SharedPage::decode_system_time(0x1000),
        Some(SharedPage::Disabled)
    );
    assert_eq!(SharedPage::decode_system_time(0x1003), None);
    assert_eq!(
        SharedPage::decode_steal_time(0x1041),
        Some(SharedPage::At(Gpa(0x1040)))
    );
    assert_eq!(SharedPage::decode_steal_time(0x1003), None);
    assert_eq!(SharedPage::decode_steal_time(0), Some(SharedPage::Disabled));
}
