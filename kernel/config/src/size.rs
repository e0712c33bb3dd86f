//! Sizes of memory as a person writes them: "256M", "1G".

use alloc::format;
use alloc::string::String;

/// What guest memory is dealt out in, in bytes.
pub(crate) const GRANULE: u64 = 2 << 20;

const UNITS: [(&str, u32); 4] = [("K", 10), ("M", 20), ("G", 30), ("T", 40)];

/// Bytes of a size with a binary unit: `K`, `M`, `G` or `T`, with or without `iB` behind it.
///
/// # Errors
/// A sentence without its subject ("must be ...").
pub fn parse_size(text: &str) -> Result<u64, String> {
    let wanted = || {
        format!(
            "must be a whole number with a unit, such as \"256M\" or \"1G\", but it is {text:?}."
        )
    };
    let split = text
        .find(|c: char| !c.is_ascii_digit())
        .ok_or_else(wanted)?;
    let (number, unit) = text.split_at(split);
    let unit = unit.strip_suffix("iB").unwrap_or(unit);
    let (_, shift) = UNITS
        .iter()
        .find(|(letter, _)| *letter == unit)
        .ok_or_else(wanted)?;
    let number: u64 = match number.parse() {
        Ok(number) => number,
        Err(_) if number.is_empty() => return Err(wanted()),
        Err(_) => {
            return Err(format!(
                "is {text:?}, which is more than 64 bits can count."
            ));
        }
    };
    number
        .checked_mul(1 << shift)
        .ok_or_else(|| format!("is {text:?}, which is more than 64 bits can count."))
}

/// The shortest text that [`parse_size`] reads as `bytes`, which is a multiple of 1024.
pub fn size_text(bytes: u64) -> String {
    UNITS
        .iter()
        .rev()
        .find(|(_, shift)| bytes != 0 && bytes.trailing_zeros() >= *shift)
        .map_or_else(
            || format!("{}K", bytes >> 10),
            |(letter, shift)| format!("{}{letter}", bytes >> shift),
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_is_a_number_and_a_binary_unit() {
        assert_eq!(parse_size("256M"), Ok(256 << 20));
        assert_eq!(parse_size("1GiB"), Ok(1 << 30));
        assert_eq!(parse_size("3T"), Ok(3 << 40));
        for bad in [
            "",
            "256",
            "M",
            "1.5G",
            "-1M",
            "1 G",
            "1MB",
            "1g",
            "16777216T",
            "99999999999999999999M",
        ] {
            assert!(parse_size(bad).is_err(), "{bad:?} was taken as a size");
        }
    }

    #[test]
    fn text_and_bytes_are_the_same_size() {
        for bytes in [GRANULE, 256 << 20, 1 << 30, 1536 << 20, 3 << 40, 0] {
            assert_eq!(parse_size(&size_text(bytes)), Ok(bytes));
        }
    }
}
