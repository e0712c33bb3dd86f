//! Firmware's calendar time (UEFI 2.10, 8.3 "EFI_TIME") as seconds since 1970-01-01 UTC.

/// Civil time of a time zone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Civil {
    /// Year, 1900 to 9999.
    pub year: u16,
    /// Month, 1 to 12.
    pub month: u8,
    /// Day of the month, from 1.
    pub day: u8,
    /// Hour, 0 to 23.
    pub hour: u8,
    /// Minute, 0 to 59.
    pub minute: u8,
    /// Second, 0 to 59.
    pub second: u8,
    /// Minutes to add to reach UTC (EFI_TIME: local time = UTC - zone); `None` counts as UTC.
    pub zone_min: Option<i16>,
}

/// Seconds since 1970-01-01 00:00 UTC; `None` for a date before that or no date at all.
pub fn unix_seconds(at: Civil) -> Option<u64> {
    let sound = (1970..=9999).contains(&at.year)
        && (1..=12).contains(&at.month)
        && (1..=31).contains(&at.day)
        && at.hour < 24
        && at.minute < 60
        && at.second < 60;
    if !sound {
        return None;
    }
    // Years that start in March put the leap day last; months then follow the line (153 m + 2) / 5.
    let (year, month) = match (u64::from(at.year), u64::from(at.month)) {
        (year, month @ 3..) => (year, month - 3),
        (year, month) => (year - 1, month + 9),
    };
    let leap_days = year / 4 - year / 100 + year / 400;
    let days_since_0000_03_01 =
        year * 365 + leap_days + (153 * month + 2) / 5 + u64::from(at.day) - 1;
    const DAYS_TO_1970: u64 = 719_468;
    let days = days_since_0000_03_01.checked_sub(DAYS_TO_1970)?;
    let seconds = days * 86_400
        + u64::from(at.hour) * 3600
        + u64::from(at.minute) * 60
        + u64::from(at.second);
    seconds.checked_add_signed(i64::from(at.zone_min.unwrap_or(0)) * 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(year: u16, month: u8, day: u8, hour: u8, minute: u8, second: u8) -> Civil {
        Civil {
            year,
            month,
            day,
            hour,
            minute,
            second,
            zone_min: None,
        }
    }

    #[test]
    fn known_moments() {
        assert_eq!(unix_seconds(at(1970, 1, 1, 0, 0, 0)), Some(0));
        assert_eq!(unix_seconds(at(2000, 2, 29, 12, 0, 0)), Some(951_825_600));
        assert_eq!(unix_seconds(at(2001, 9, 9, 1, 46, 40)), Some(1_000_000_000));
        assert_eq!(unix_seconds(at(2038, 1, 19, 3, 14, 8)), Some(1 << 31));
        let vienna = Civil {
            zone_min: Some(-60),
            ..at(2001, 9, 9, 2, 46, 40)
        };
        assert_eq!(unix_seconds(vienna), Some(1_000_000_000));
    }

    #[test]
    fn a_clock_that_was_never_set_is_no_time() {
        assert_eq!(unix_seconds(at(0, 0, 0, 0, 0, 0)), None);
        assert_eq!(unix_seconds(at(1969, 12, 31, 0, 0, 0)), None);
        assert_eq!(unix_seconds(at(2024, 13, 1, 0, 0, 0)), None);
        let early = Civil {
            zone_min: Some(-60),
            ..at(1970, 1, 1, 0, 30, 0)
        };
        assert_eq!(unix_seconds(early), None);
    }
}
