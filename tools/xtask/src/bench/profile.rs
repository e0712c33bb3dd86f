//! In which functions the hypervisor's instructions are.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use anyhow::{Context, Result};
use elf::ElfBytes;
use elf::endian::LittleEndian;
use serde_json::Value;

/// Functions that are shown.
const SHOWN: usize = 30;

/// The functions of a class with most instructions, each with its instructions for one operation.
pub fn table(host: &Value, class: u64, kernel: &[u8]) -> Result<String> {
    let functions = functions(kernel)?;
    let rows: Vec<(u64, u64, u64)> = serde_json::from_value(host["profile"].clone())?;
    let classes = host["classes"].as_array().into_iter().flatten();
    let operations = classes
        .filter(|row| row["class"] == class)
        .find_map(|row| row["operations"].as_u64())
        .unwrap_or(1)
        .max(1);
    let mut sums: BTreeMap<&str, u64> = BTreeMap::new();
    for (_, address, count) in rows.iter().filter(|row| row.0 == class) {
        let at = address.wrapping_sub(handoff::KERNEL_BASE);
        let function = functions.range(..=at).next_back();
        let name = function.filter(|(start, (size, _))| at - *start < *size);
        *sums
            .entry(name.map_or("elsewhere", |(_, (_, name))| name))
            .or_default() += count;
    }
    let mut sorted: Vec<(u64, &str)> = sums.into_iter().map(|(name, n)| (n, name)).collect();
    sorted.sort_unstable_by(|a, b| b.cmp(a));
    let mut text = String::from("instructions for one operation, by function:");
    for (count, name) in sorted.into_iter().take(SHOWN) {
        let _ = write!(text, "\n{:>10.1}  {name}", count as f64 / operations as f64);
    }
    Ok(text)
}

/// Start, size and name of each function of the kernel.
fn functions(kernel: &[u8]) -> Result<BTreeMap<u64, (u64, String)>> {
    let file =
        ElfBytes::<LittleEndian>::minimal_parse(kernel).context("the kernel is no ELF file")?;
    let (symbols, names) = file.symbol_table()?.context("the kernel has no symbols")?;
    let functions = symbols
        .iter()
        .filter(|symbol| symbol.st_symtype() == elf::abi::STT_FUNC);
    Ok(functions
        .filter_map(|symbol| {
            let name = names.get(symbol.st_name as usize).ok()?;
            let name = format!("{:#}", rustc_demangle::demangle(name));
            Some((symbol.st_value, (symbol.st_size, name)))
        })
        .collect())
}
