//! Dates of the proleptic Gregorian calendar, to and from seconds since 1970, UTC.

/// Days from 0000-03-01 to 1970-01-01.
const DAYS_TO_1970: u64 = 719_468;
/// Days in 400 years.
const ERA: u64 = 146_097;

/// A date and time from 1970 to 9999.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DateTime {
    pub(crate) year: u16,
    pub(crate) month: u8,
    pub(crate) day: u8,
    pub(crate) hour: u8,
    pub(crate) minute: u8,
    pub(crate) second: u8,
}

/// 9999-12-31 23:59:59.
const LAST: u64 = 253_402_300_799;

impl DateTime {
    /// The nearest time that the registers can show.
    pub(crate) const fn clamp_unix(seconds: u64) -> u64 {
        if seconds > LAST { LAST } else { seconds }
    }

    /// From seconds since 1970; clamped to the year 9999, which is what the registers can show.
    pub(crate) fn from_unix(seconds: u64) -> Self {
        let seconds = Self::clamp_unix(seconds);
        // Years start in March here, so that the leap day is a year's last.
        let days = seconds / 86_400 + DAYS_TO_1970;
        let (era, day_of_era) = (days / ERA, days % ERA);
        let year_of_era =
            (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / (ERA - 1)) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let month = (5 * day_of_year + 2) / 153;
        let january_or_february = month >= 10;
        Self {
            year: (era * 400 + year_of_era + u64::from(january_or_february)) as u16,
            month: (if january_or_february {
                month - 9
            } else {
                month + 3
            }) as u8,
            day: (day_of_year - (153 * month + 2) / 5 + 1) as u8,
            hour: (seconds % 86_400 / 3600) as u8,
            minute: (seconds % 3600 / 60) as u8,
            second: (seconds % 60) as u8,
        }
    }

    /// To seconds since 1970; earlier dates give 0. A day past the end of its month runs into the
    /// next one.
    pub(crate) fn to_unix(self) -> u64 {
        let (month, day) = (
            u64::from(self.month.clamp(1, 12)),
            u64::from(self.day.clamp(1, 31)),
        );
        let year = u64::from(self.year).max(1) - u64::from(month <= 2);
        let from_march = (month + 9) % 12;
        let day_of_year = (153 * from_march + 2) / 5 + day - 1;
        let days =
            year / 400 * ERA + year % 400 * 365 + year % 400 / 4 - year % 400 / 100 + day_of_year;
        let time =
            u64::from(self.hour) * 3600 + u64::from(self.minute) * 60 + u64::from(self.second);
        days.checked_sub(DAYS_TO_1970)
            .map_or(0, |days| days * 86_400 + time)
    }

    /// 1 for Sunday to 7 for Saturday.
    pub(crate) fn weekday(self) -> u8 {
        ((self.to_unix() / 86_400 + 4) % 7 + 1) as u8
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn known_dates() {
        let date = |year, month, day| DateTime {
            year,
            month,
            day,
            hour: 0,
            minute: 0,
            second: 0,
        };
        for (seconds, expected, weekday) in [
            (0, date(1970, 1, 1), 5),
            (951_782_400, date(2000, 2, 29), 3),
            (1_709_164_800, date(2024, 2, 29), 5),
            (4_107_542_400, date(2100, 3, 1), 2),
        ] {
            assert_eq!(DateTime::from_unix(seconds), expected);
            assert_eq!((expected.to_unix(), expected.weekday()), (seconds, weekday));
        }
        let last = DateTime::from_unix(u64::MAX);
        assert_eq!(
            (last.year, last.month, last.day, last.second),
            (9999, 12, 31, 59)
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn there_and_back(seconds in 0..LAST) {
            prop_assert_eq!(DateTime::from_unix(seconds).to_unix(), seconds);
        }

        #[test]
        fn any_register_values_are_harmless(year in any::<u16>(), month in any::<u8>(), day in any::<u8>()) {
            let strange = DateTime { year, month, day, hour: 255, minute: 255, second: 255 };
            prop_assert!((1..=7).contains(&strange.weekday()));
        }
    }
}
