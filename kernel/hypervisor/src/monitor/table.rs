//! Columns that line up, for the operator's eyes.

use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;
use units::CpuId;

/// Space between two columns.
const GAP: &str = "  ";

/// A table with a line of headings.
#[derive(Debug)]
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these headings.
    pub fn new<T: ToString>(headings: impl IntoIterator<Item = T>) -> Self {
        let headings = headings.into_iter().map(|h| h.to_string()).collect();
        Self {
            rows: alloc::vec![headings],
        }
    }

    /// One more row.
    pub fn row<T: ToString>(&mut self, cells: impl IntoIterator<Item = T>) {
        self.rows
            .push(cells.into_iter().map(|c| c.to_string()).collect());
    }
}

impl fmt::Display for Table {
    /// One line a row, each with its end. Columns of numbers are flush right.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let cells = |column: usize| self.rows.iter().filter_map(move |row| row.get(column));
        let is_number = |cell: &String| {
            cell.chars()
                .next()
                .is_none_or(|c| c.is_ascii_digit() || c == '-')
        };
        let columns: Vec<(usize, bool)> = (0..count)
            .map(|column| {
                let width = cells(column)
                    .map(|cell| cell.chars().count())
                    .max()
                    .unwrap_or(0);
                (width, cells(column).skip(1).all(is_number))
            })
            .collect();
        for row in &self.rows {
            let mut line = String::new();
            for (cell, (width, right)) in row.iter().zip(&columns) {
                line.push_str(GAP);
                line.push_str(&if *right {
                    alloc::format!("{cell:>width$}")
                } else {
                    alloc::format!("{cell:<width$}")
                });
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

/// Ascending numbers as ranges: `0-3,8`.
pub fn ranges(cpus: impl IntoIterator<Item = CpuId>) -> String {
    let mut runs: Vec<(u32, u32)> = Vec::new();
    for CpuId(cpu) in cpus {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == cpu => *last = cpu,
            _ => runs.push((cpu, cpu)),
        }
    }
    let one = |(first, last): &(u32, u32)| match first == last {
        true => first.to_string(),
        false => alloc::format!("{first}-{last}"),
    };
    match runs.is_empty() {
        true => String::from("none"),
        false => runs.iter().map(one).collect::<Vec<_>>().join(","),
    }
}
