//! The kernel's file without what only a debugger reads, so that slow firmware has less to load.
//!
//! Segments, the symbol table (which the kernel itself reads for its reports) and the names stay; only sections called
//! `.debug...` go. Offsets are those of the ELF-64 object file format, version 1.5.

const SECTIONS_AT: usize = 0x28;
const HEADER: usize = 64;
const SHT_NOBITS: u64 = 8;
const SHF_ALLOC: u64 = 2;

fn number<const N: usize>(file: &[u8], at: usize) -> Option<u64> {
    let bytes = file.get(at..at.checked_add(N)?)?;
    Some(bytes.iter().rev().fold(0, |n, b| n << 8 | u64::from(*b)))
}

/// A section's header, which begins at this offset.
#[derive(Clone, Copy)]
struct Section(usize);

impl Section {
    fn content(self, file: &[u8]) -> Option<&[u8]> {
        if number::<4>(file, self.0 + 4)? == SHT_NOBITS {
            return Some(&[]);
        }
        let start = self.offset(file)?;
        let size = usize::try_from(number::<8>(file, self.0 + 32)?).ok()?;
        file.get(start..start.checked_add(size)?)
    }
    fn offset(self, file: &[u8]) -> Option<usize> {
        usize::try_from(number::<8>(file, self.0 + 24)?).ok()
    }
    fn is_loaded(self, file: &[u8]) -> Option<bool> {
        Some(number::<8>(file, self.0 + 8)? & SHF_ALLOC != 0)
    }
    fn is_debug(self, file: &[u8], names: &[u8]) -> Option<bool> {
        let name = usize::try_from(number::<4>(file, self.0)?).ok()?;
        Some(names.get(name..)?.starts_with(b".debug"))
    }
}

/// `file` without its debug sections; `None` if it is not laid out as the linker does it, with all that is loaded in front.
pub fn without_debug(file: &[u8]) -> Option<Vec<u8>> {
    if !file.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let table = usize::try_from(number::<8>(file, SECTIONS_AT)?).ok()?;
    let count = number::<2>(file, 0x3c)? as usize;
    let sections: Vec<Section> = (0..count).map(|i| Section(table + i * HEADER)).collect();
    let names = sections
        .get(number::<2>(file, 0x3e)? as usize)?
        .content(file)?;
    let mut kept = HEADER;
    for section in &sections {
        if section.is_loaded(file)? {
            kept = kept.max(section.offset(file)? + section.content(file)?.len());
        }
    }
    let mut slim = file.get(..kept)?.to_vec();
    let mut headers = file.get(table..table + count * HEADER)?.to_vec();
    for (section, header) in sections.iter().zip(headers.chunks_mut(HEADER)) {
        if section.is_loaded(file)? {
            continue;
        }
        if section.is_debug(file, names)? {
            header.fill(0);
            continue;
        }
        slim.resize(slim.len().next_multiple_of(16), 0);
        header
            .get_mut(24..32)?
            .copy_from_slice(&(slim.len() as u64).to_le_bytes());
        slim.extend(section.content(file)?);
    }
    slim.resize(slim.len().next_multiple_of(16), 0);
    let table = (slim.len() as u64).to_le_bytes();
    slim.get_mut(SECTIONS_AT..SECTIONS_AT + 8)?
        .copy_from_slice(&table);
    slim.extend(headers);
    Some(slim)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file with a loaded section, a debug section and the names, as a linker would lay it out.
    fn file() -> Vec<u8> {
        let names = b"\0.text\0.debug_info\0.shstrtab\0";
        let mut file = vec![0; HEADER];
        file[..6].copy_from_slice(b"\x7fELF\x02\x01");
        let mut headers = vec![0; HEADER];
        let mut add = |name: u32, flags: u64, content: &[u8]| {
            let mut header = [0; HEADER];
            header[..4].copy_from_slice(&name.to_le_bytes());
            header[4] = 1;
            header[8..16].copy_from_slice(&flags.to_le_bytes());
            header[24..32].copy_from_slice(&(file.len() as u64).to_le_bytes());
            header[32..40].copy_from_slice(&(content.len() as u64).to_le_bytes());
            headers.extend(header);
            file.extend(content);
        };
        add(1, SHF_ALLOC, b"code");
        add(7, 0, &[0xdb; 1000]);
        add(19, 0, names);
        let table = file.len() as u64;
        file[0x28..0x30].copy_from_slice(&table.to_le_bytes());
        file[0x3c] = 4;
        file[0x3e] = 3;
        file.extend(headers);
        file
    }

    #[test]
    fn only_what_a_debugger_reads_goes() {
        let slim = without_debug(&file()).expect("laid out as it should be");
        assert!(slim.len() < 500 && !slim.contains(&0xdb));
        assert_eq!(&slim[HEADER..HEADER + 4], b"code");
        let table = number::<8>(&slim, SECTIONS_AT).expect("there") as usize;
        let names = Section(table + 3 * HEADER).content(&slim).expect("there");
        assert!(names.starts_with(b"\0.text"));
        assert!(
            Section(table + 2 * HEADER)
                .content(&slim)
                .is_some_and(<[u8]>::is_empty)
        );
    }

    #[test]
    fn what_is_no_such_file_is_left_alone() {
        assert_eq!(without_debug(b"MZ"), None);
        let whole = file();
        for length in 0..whole.len() {
            let _no_panic = without_debug(&whole[..length]);
        }
    }
}
