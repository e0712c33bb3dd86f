//! Just enough of an AML assembler (ACPI 6.5, chapter 20) for a table of constants.
//!
//! Checked where it can go wrong: a [`NameSeg`] is verified when the crate is compiled, package
//! lengths are computed, and every function returns one complete term.

use alloc::vec::Vec;

const NAME_OP: u8 = 0x08;
const SCOPE_OP: u8 = 0x10;
const BUFFER_OP: u8 = 0x11;
const PACKAGE_OP: u8 = 0x12;
const EXT_PREFIX: u8 = 0x5B;
const DEVICE_OP: u8 = 0x82;
const ROOT_CHAR: u8 = b'\\';

/// One segment of a name: four characters, A to Z, 0 to 9 or underscore, the first no digit
/// (ACPI 6.5, 20.2.2).
#[derive(Clone, Copy)]
pub(super) struct NameSeg([u8; 4]);

impl NameSeg {
    /// Verifies the characters; meant for constants, where a bad name does not compile.
    pub const fn new(name: [u8; 4]) -> Self {
        let mut i = 0;
        while i < 4 {
            let c = name[i];
            assert!(
                c.is_ascii_uppercase() || c == b'_' || (i > 0 && c.is_ascii_digit()),
                "not an ACPI name segment"
            );
            i += 1;
        }
        Self(name)
    }
}

/// An EISA identifier such as "PNP0501" as a compressed double word (ACPI 6.5, 19.3.4).
#[derive(Clone, Copy)]
pub(super) struct EisaId(u32);

impl EisaId {
    /// Verifies the characters; meant for constants.
    pub const fn new(id: [u8; 7]) -> Self {
        let mut value = 0u32;
        let mut i = 0;
        while i < 3 {
            assert!(
                id[i].is_ascii_uppercase(),
                "the first three characters of an EISA identifier are letters"
            );
            value = value << 5 | (id[i] - b'@') as u32;
            i += 1;
        }
        while i < 7 {
            let digit = match id[i] {
                c @ b'0'..=b'9' => c - b'0',
                c @ b'A'..=b'F' => c - b'A' + 10,
                _ => {
                    panic!("the last four characters of an EISA identifier are hexadecimal digits")
                }
            };
            value = value << 4 | digit as u32;
            i += 1;
        }
        // The identifier is big endian inside a little-endian integer.
        Self(value.swap_bytes())
    }
}

/// One complete term.
pub(super) type Term = Vec<u8>;

/// An integer in its shortest form (ACPI 6.5, 20.2.3).
pub(super) fn integer(value: u64) -> Term {
    let bytes = value.to_le_bytes();
    let (prefix, length) = match value {
        0 => return alloc::vec![0x00],
        1 => return alloc::vec![0x01],
        2..=0xFF => (0x0A, 1),
        0x100..=0xFFFF => (0x0B, 2),
        0x1_0000..=0xFFFF_FFFF => (0x0C, 4),
        _ => (0x0E, 8),
    };
    let mut t = alloc::vec![prefix];
    t.extend(bytes.iter().take(length));
    t
}

/// `Name (name, value)`.
pub(super) fn name(name: NameSeg, value: &[u8]) -> Term {
    let mut t = alloc::vec![NAME_OP];
    t.extend_from_slice(&name.0);
    t.extend_from_slice(value);
    t
}

/// `Name (name, EisaId (id))`.
pub(super) fn name_eisa(at: NameSeg, id: EisaId) -> Term {
    name(at, &integer(u64::from(id.0)))
}

/// `Package () { elements }`.
pub(super) fn package(elements: &[Term]) -> Term {
    let mut body = alloc::vec![elements.len() as u8];
    body.extend(elements.iter().flatten());
    sized(&[PACKAGE_OP], &body)
}

/// `Scope (\name) { terms }`.
pub(super) fn root_scope(name: NameSeg, terms: &[Term]) -> Term {
    let mut body = alloc::vec![ROOT_CHAR];
    body.extend_from_slice(&name.0);
    body.extend(terms.iter().flatten());
    sized(&[SCOPE_OP], &body)
}

/// `Device (name) { terms }`.
pub(super) fn device(name: NameSeg, terms: &[Term]) -> Term {
    let mut body = name.0.to_vec();
    body.extend(terms.iter().flatten());
    sized(&[EXT_PREFIX, DEVICE_OP], &body)
}

/// A buffer of resource descriptors, with its end tag (ACPI 6.5, 6.4.2.9).
pub(super) fn resource_template(descriptors: &[Vec<u8>]) -> Term {
    let mut data: Vec<u8> = descriptors.iter().flatten().copied().collect();
    // A zero checksum means "not computed".
    data.extend_from_slice(&[0x79, 0]);
    let mut body = integer(data.len() as u64);
    body.append(&mut data);
    sized(&[BUFFER_OP], &body)
}

/// `IO (Decode16, base, base, 1, length)` (ACPI 6.5, 6.4.2.5).
pub(super) fn io(base: u16, length: u8) -> Vec<u8> {
    let [low, high] = base.to_le_bytes();
    alloc::vec![0x47, 1, low, high, low, high, 1, length]
}

/// `IRQNoFlags () { irq }`: edge triggered, active high (ACPI 6.5, 6.4.2.1).
pub(super) fn irq(irq: u8) -> Vec<u8> {
    let [low, high] = 1u16.checked_shl(u32::from(irq)).unwrap_or(0).to_le_bytes();
    alloc::vec![0x22, low, high]
}

/// Opcode, package length, body (ACPI 6.5, 20.2.4). The length counts its own bytes.
fn sized(opcode: &[u8], body: &[u8]) -> Term {
    let n = body.len();
    let mut t = opcode.to_vec();
    match n {
        0..0x3F => t.push(n as u8 + 1),
        0x3F..0xFFE => encode_length(&mut t, n + 2, 1),
        0xFFE..0xF_FFFD => encode_length(&mut t, n + 3, 2),
        _ => encode_length(&mut t, n + 4, 3),
    }
    t.extend_from_slice(body);
    t
}

/// The form with `more` bytes after the lead byte, which keeps the four low bits.
fn encode_length(t: &mut Term, length: usize, more: u8) {
    t.push(more << 6 | (length & 0xF) as u8);
    t.extend((length >> 4).to_le_bytes().iter().take(usize::from(more)));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn package_lengths_count_themselves() {
        // A body of n bytes after the opcode; the decoded length must reach the term's end.
        for n in [
            0, 1, 0x3E, 0x3F, 0x40, 0xFFD, 0xFFE, 0xFFF, 0xF_FFFC, 0xF_FFFD, 0x10_0000,
        ] {
            let t = sized(&[SCOPE_OP], &alloc::vec![0; n]);
            let lead = t[1];
            let more = usize::from(lead >> 6);
            let length = if more == 0 {
                usize::from(lead & 0x3F)
            } else {
                (0..more).fold(usize::from(lead & 0xF), |l, i| {
                    l | usize::from(t[2 + i]) << (4 + 8 * i)
                })
            };
            assert_eq!(length, t.len() - 1, "body of {n}");
            assert_eq!(t.len() - 2 - more, n, "body of {n}");
        }
    }

    #[test]
    fn an_eisa_identifier_packs_as_the_specification_shows() {
        // PNP0A03 is 0x030AD041 in every DSDT.
        assert_eq!(EisaId::new(*b"PNP0A03").0, 0x030A_D041);
    }

    #[test]
    fn integers_take_their_shortest_form() {
        assert_eq!(integer(1), [1]);
        assert_eq!(integer(5), [0x0A, 5]);
        assert_eq!(integer(0x3F8), [0x0B, 0xF8, 3]);
        assert_eq!(integer(1 << 32), [0x0E, 0, 0, 0, 0, 1, 0, 0, 0]);
    }
}
