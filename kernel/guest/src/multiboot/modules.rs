//! The list of modules in one string.

use alloc::string::String;
use alloc::vec::Vec;

use super::error::MultibootError;

/// A module: a file, and the string that the kernel gets with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModuleEntry {
    /// The file's name, which is the string up to its first space.
    pub file: String,
    /// The string: name and arguments.
    pub string: String,
}

/// Reads a list as QEMU's `-initrd` has it: entries separated by commas, two commas for one that is meant, and
/// arguments behind the first space.
///
/// # Errors
/// [`MultibootError::EmptyModule`] when an entry names no file.
pub fn module_list(list: &str) -> Result<Vec<ModuleEntry>, MultibootError> {
    let mut strings = Vec::from([String::new()]);
    let mut rest = list.chars().peekable();
    while let Some(c) = rest.next() {
        if c == ',' && rest.next_if_eq(&',').is_none() {
            strings.push(String::new());
        } else if let Some(last) = strings.last_mut() {
            last.push(c);
        }
    }
    let entry = |string: String| {
        let file = string.split(' ').next().unwrap_or("");
        if file.is_empty() {
            return Err(MultibootError::EmptyModule { list: list.into() });
        }
        Ok(ModuleEntry {
            file: file.into(),
            string,
        })
    };
    strings.into_iter().map(entry).collect()
}
