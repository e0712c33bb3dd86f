//! A program's functions, by name, and what is in their code.

use elf::ElfBytes;
use elf::endian::LittleEndian;

/// A function of a program.
#[derive(Clone, Copy, Debug)]
pub(super) struct Function {
    /// Where its code is in the file, and how long it is.
    pub(super) start: usize,
    length: usize,
    /// Where it will be in memory.
    address: u64,
}

/// The function with this name.
pub(super) fn function(image: &[u8], name: &str) -> Option<Function> {
    let file = ElfBytes::<LittleEndian>::minimal_parse(image).ok()?;
    let (symbols, names) = file.dynamic_symbol_table().ok()??;
    let symbol = symbols
        .iter()
        .find(|s| names.get(s.st_name as usize).is_ok_and(|n| n == name))?;
    let segment = file.segments()?.iter().find(|s| {
        symbol
            .st_value
            .checked_sub(s.p_vaddr)
            .is_some_and(|offset| s.p_type == elf::abi::PT_LOAD && offset < s.p_filesz)
    })?;
    let start = segment
        .p_offset
        .checked_add(symbol.st_value - segment.p_vaddr)?;
    Some(Function {
        start: usize::try_from(start).ok()?,
        length: usize::try_from(symbol.st_size).ok()?,
        address: symbol.st_value,
    })
}

impl Function {
    /// Where in the file is the one place of its code from which on it looks as `is` says; nothing if there is none, or another.
    pub(super) fn only(self, image: &[u8], is: impl Fn(&[u8]) -> bool) -> Option<usize> {
        let code = image.get(self.start..self.start.checked_add(self.length)?)?;
        let mut hits = (0..code.len()).filter(|at| code.get(*at..).is_some_and(&is));
        match (hits.next()?, hits.next()) {
            (hit, None) => Some(self.start + hit),
            _ => None,
        }
    }

    /// The place before which it calls `other`, if it does so just once.
    pub(super) fn call_of(self, other: Self, image: &[u8]) -> Option<usize> {
        let code = image.get(self.start..self.start.checked_add(self.length)?)?;
        // `call rel32`: from the next instruction.
        let mut calls = code.windows(5).zip(self.address..).filter(|(code, at)| {
            matches!(code, [0xe8, a, b, c, d]
                if (at + 5).wrapping_add_signed(i32::from_le_bytes([*a, *b, *c, *d]).into()) == other.address)
        });
        match (calls.next()?, calls.next()) {
            ((_, at), None) => Some(self.start + usize::try_from(at - self.address).ok()?),
            _ => None,
        }
    }

    /// The last `length` bytes of it before `end`, as a function of its own.
    pub(super) fn before(self, end: usize, length: usize) -> Self {
        let start = end.saturating_sub(length).max(self.start);
        Self {
            start,
            length: end.saturating_sub(start),
            address: self.address + (start - self.start) as u64,
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Where the first function of [`program`] is in its file, and where it is loaded.
    pub(in super::super) const CODE_AT: u64 = 0x200;
    pub(in super::super) const LOADED_AT: u64 = 0x40_0000;

    /// A program with one segment and these functions, one behind the other.
    pub(in super::super) fn program(functions: &[(&str, &[u8])]) -> Vec<u8> {
        let u64s = |words: &[u64]| {
            words
                .iter()
                .flat_map(|w| w.to_le_bytes())
                .collect::<Vec<u8>>()
        };
        let symbol = |name: u32, info: u8, value: u64, size: u64| {
            let mut s = name.to_le_bytes().to_vec();
            s.extend([info, 0, 1, 0]);
            s.extend(u64s(&[value, size]));
            s
        };
        let (mut strings, mut code) = (vec![0], Vec::new());
        let mut symbols = symbol(0, 0, 0, 0);
        for (name, bytes) in functions {
            let at = LOADED_AT + CODE_AT + code.len() as u64;
            symbols.extend(symbol(strings.len() as u32, 0x12, at, bytes.len() as u64));
            strings.extend(name.bytes().chain([0]));
            code.extend_from_slice(bytes);
        }
        let strings_at = CODE_AT + code.len() as u64;
        let symbols_at = strings_at + strings.len() as u64;
        let sections_at = symbols_at + symbols.len() as u64;
        let section = |kind: u32, at: u64, size: u64, link: u32, entry: u64| {
            let mut s = [0_u32.to_le_bytes(), kind.to_le_bytes()].concat();
            s.extend(u64s(&[0, 0, at, size]));
            s.extend([link.to_le_bytes(), 1_u32.to_le_bytes()].concat());
            s.extend(u64s(&[1, entry]));
            s
        };
        let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
        file.extend([3, 0, 62, 0, 1, 0, 0, 0]);
        file.extend(u64s(&[0, 64, sections_at]));
        file.extend([0, 0, 0, 0, 64, 0, 56, 0, 1, 0, 64, 0, 3, 0, 0, 0]);
        file.extend([1, 0, 0, 0, 5, 0, 0, 0]);
        file.extend(u64s(&[
            0,
            LOADED_AT,
            LOADED_AT,
            sections_at,
            sections_at,
            0x1000,
        ]));
        file.resize(CODE_AT as usize, 0);
        file.extend(code);
        file.extend(&strings);
        file.extend(&symbols);
        file.extend(section(0, 0, 0, 0, 0));
        file.extend(section(3, strings_at, strings.len() as u64, 0, 0));
        file.extend(section(11, symbols_at, symbols.len() as u64, 1, 24));
        file
    }

    #[test]
    fn functions_and_their_calls_are_found_by_name() {
        // The second calls the first: 6 bytes back from behind the call.
        let image = program(&[
            ("one", &[0xc3]),
            ("two", &[0x90, 0xe8, 0xf9, 0xff, 0xff, 0xff]),
        ]);
        let (one, two) = (
            function(&image, "one").expect("the first"),
            function(&image, "two").expect("the second"),
        );
        assert_eq!((one.start, two.start), (0x200, 0x201));
        assert_eq!(two.call_of(one, &image), Some(0x202));
        assert_eq!(two.call_of(two, &image), None);
        assert_eq!(two.only(&image, |code| code.first() == Some(&0xff)), None);
        assert_eq!(
            two.only(&image, |code| code.first() == Some(&0x90)),
            Some(0x201)
        );
        let end = two.before(0x202, 64);
        assert_eq!(
            (end.start, end.length, end.address),
            (0x201, 1, LOADED_AT + 0x201)
        );
        assert!(function(&image, "three").is_none());
    }
}
