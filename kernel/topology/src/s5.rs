//! The sleep type of S5, soft off, without an AML interpreter.
//!
//! `\_S5` is a package of constants by its definition (ACPI 6.5, 7.4.2): firmware writes
//! `Name (_S5, Package () { a, b, .. })`, and every compiler encodes that in one way (ACPI 6.5,
//! 20.2.5.1, 20.2.5.4). So the name's bytes are searched for, and taken only where a package of
//! constants follows a `NameOp`.

use crate::bytes::u8_at;

const NAME_OP: u8 = 0x08;
const ROOT_CHAR: u8 = b'\\';
const PACKAGE_OP: u8 = 0x12;

/// Values for the sleep type fields of PM1a and PM1b control, from the bytes of the DSDT or an
/// SSDT (with or without its header); `None` if the table does not define `\_S5`.
pub fn sleep_type_s5(aml: &[u8]) -> Option<(u8, u8)> {
    aml.windows(4)
        .enumerate()
        .filter(|(_, name)| *name == b"_S5_")
        .find_map(|(at, _)| {
            let before = |back: usize| at.checked_sub(back).and_then(|at| u8_at(aml, at));
            let named = before(1) == Some(NAME_OP)
                || (before(1) == Some(ROOT_CHAR) && before(2) == Some(NAME_OP));
            if !named {
                return None;
            }
            package(aml.get(at + 4..)?)
        })
}

/// The first two constants of a package; with one, it stands for both, as in some firmware.
fn package(bytes: &[u8]) -> Option<(u8, u8)> {
    let (op, rest) = bytes.split_first()?;
    if *op != PACKAGE_OP {
        return None;
    }
    // PkgLength: the top bits of its first byte count the bytes that follow (20.2.4).
    let (lead, _) = rest.split_first()?;
    let (count, elements) = rest.get(1 + usize::from(lead >> 6)..)?.split_first()?;
    let (a, elements) = constant(elements)?;
    let b = if *count > 1 { constant(elements)?.0 } else { a };
    Some((a, b))
}

/// A constant that fits a sleep type, which has three bits (4.8.3.2.1).
fn constant(bytes: &[u8]) -> Option<(u8, &[u8])> {
    let (op, rest) = bytes.split_first()?;
    let (value, rest) = match op {
        // ZeroOp, OneOp; BytePrefix, WordPrefix, DWordPrefix (20.2.3).
        0x00 => (0, rest),
        0x01 => (1, rest),
        0x0a => (*rest.first()?, rest.get(1..)?),
        0x0b => (low_byte(rest.get(..2)?)?, rest.get(2..)?),
        0x0c => (low_byte(rest.get(..4)?)?, rest.get(4..)?),
        _ => return None,
    };
    (value < 8).then_some((value, rest))
}

fn low_byte(little_endian: &[u8]) -> Option<u8> {
    let (low, high) = little_endian.split_first()?;
    high.iter().all(|byte| *byte == 0).then_some(*low)
}
