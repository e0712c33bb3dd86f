//! Names of files on the boot medium.
//!
//! Everything lies below `\perigee`. The kernel knows a file by its path below that folder with
//! forward slashes, which is what the configuration writes too ("guests/vmlinuz").

use core::fmt;
use handoff::ModuleKind;

/// The folder on the boot medium that holds everything Perigee reads.
pub const ROOT: &str = "\\perigee";
/// The kernel.
pub const KERNEL: &str = "kernel.elf";
/// The configuration.
pub const CONFIG: &str = "perigee.toml";
/// Folder with ACPI override tables, files ending in `.aml`.
pub const ACPI: &str = "acpi";
/// Folder with guest kernels and initrds, searched with its subfolders.
pub const GUESTS: &str = "guests";
/// Subfolders below `guests` that are still followed.
pub const DEPTH_LIMIT: usize = 8;

/// Why a file's path cannot be a module's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameError {
    /// Longer than a module's name can be.
    TooLong(usize),
    /// Empty, or with an empty part.
    Empty,
}

impl fmt::Display for NameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLong(bytes) => write!(
                f,
                "its path below \\perigee has {bytes} bytes, {} are possible: shorten the name",
                NAME_BYTES
            ),
            Self::Empty => f.write_str("its path has an empty part: rename the file"),
        }
    }
}

const NAME_BYTES: usize = 64;

/// A path below [`ROOT`] as the name of a [`handoff::Module`]; backslashes become slashes.
///
/// # Errors
/// The name does not fit or has an empty part.
pub fn module_name(path: &str) -> Result<[u8; 64], NameError> {
    let mut name = [0; NAME_BYTES];
    let bytes = path.as_bytes();
    let room = name
        .get_mut(..bytes.len())
        .ok_or(NameError::TooLong(bytes.len()))?;
    for (to, from) in room.iter_mut().zip(bytes) {
        *to = if *from == b'\\' { b'/' } else { *from };
    }
    if room.split(|b| *b == b'/').any(<[u8]>::is_empty) {
        return Err(NameError::Empty);
    }
    Ok(name)
}

/// What the file at this path below [`ROOT`] is, by its place; `None` when nobody reads it.
/// FAT does not tell upper from lower case, so neither does this.
pub fn kind_of(path: &str) -> Option<ModuleKind> {
    if path.eq_ignore_ascii_case(CONFIG) {
        return Some(ModuleKind::Config);
    }
    if path.eq_ignore_ascii_case(KERNEL) {
        return Some(ModuleKind::KernelElf);
    }
    let (folder, rest) = path.split_once(['\\', '/'])?;
    if folder.eq_ignore_ascii_case(ACPI) {
        let stem = rest.len().checked_sub(4)?;
        return rest
            .get(stem..)?
            .eq_ignore_ascii_case(".aml")
            .then_some(ModuleKind::AcpiOverride);
    }
    folder
        .eq_ignore_ascii_case(GUESTS)
        .then_some(ModuleKind::GuestImage)
}

/// A size the way a person reads it: "917 B", "12.5 KiB", "3.0 MiB".
#[derive(Clone, Copy, Debug)]
pub struct Size(pub u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
        match units.iter().find(|(bytes, _)| self.0 >= *bytes) {
            Some((bytes, unit)) => {
                write!(
                    f,
                    "{}.{} {unit}",
                    self.0 / bytes,
                    self.0 % bytes * 10 / bytes
                )
            }
            None => write!(f, "{} B", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::string::ToString;

    #[test]
    fn a_path_becomes_a_name_with_slashes() {
        let name = module_name("guests\\debian\\vmlinuz").expect("short");
        assert_eq!(&name[..22], b"guests/debian/vmlinuz\0");
        assert_eq!(module_name(&"x".repeat(65)), Err(NameError::TooLong(65)));
        assert!(module_name(&"x".repeat(64)).is_ok());
        assert_eq!(module_name("guests\\\\x"), Err(NameError::Empty));
        assert_eq!(module_name(""), Err(NameError::Empty));
    }

    #[test]
    fn the_place_of_a_file_says_what_it_is() {
        assert_eq!(kind_of("PERIGEE.TOML"), Some(ModuleKind::Config));
        assert_eq!(kind_of("kernel.elf"), Some(ModuleKind::KernelElf));
        assert_eq!(kind_of("acpi\\srat.aml"), Some(ModuleKind::AcpiOverride));
        assert_eq!(kind_of("ACPI\\SLIT.AML"), Some(ModuleKind::AcpiOverride));
        assert_eq!(kind_of("acpi\\readme.txt"), None);
        assert_eq!(kind_of("acpi\\aml"), None);
        assert_eq!(
            kind_of("guests\\a\\initrd.gz"),
            Some(ModuleKind::GuestImage)
        );
        assert_eq!(kind_of("notes.txt"), None);
    }

    #[test]
    fn sizes_read_well() {
        let text = |bytes| Size(bytes).to_string();
        assert_eq!(text(917), "917 B");
        assert_eq!(text(12_800), "12.5 KiB");
        assert_eq!(text(3 << 20), "3.0 MiB");
        assert_eq!(text(u64::MAX), "17179869183.9 GiB");
    }
}
