//! What became of each scenario in each emulator, as a table.

use scenarios::Emulator;

use crate::host_tests::Tally;

/// What became of one trial.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Result {
    /// The judge was convinced.
    Passed,
    /// The judge was not; its sentence.
    Failed(String),
    /// It may be skipped, for this reason.
    Skipped(String),
}

impl Result {
    /// As it is told when it happens.
    pub fn line(&self, label: &str) -> String {
        match self {
            Self::Passed => format!("{label} ... ok"),
            Self::Failed(why) => format!("{label} ... FAILED\n  {why}"),
            Self::Skipped(why) => format!("{label} ... skipped\n  {why}"),
        }
    }
}

#[derive(Debug)]
struct Entry {
    scenario: String,
    emulator: Emulator,
    seconds: Option<u64>,
    result: Result,
}

/// All that became of them.
#[derive(Debug, Default)]
pub struct Summary(Vec<Entry>);

impl Summary {
    /// Notes one.
    pub fn add(&mut self, name: &str, emulator: Emulator, seconds: Option<u64>, result: Result) {
        self.0.push(Entry {
            scenario: name.into(),
            emulator,
            seconds,
            result,
        });
    }

    /// How many of each.
    pub fn tally(&self) -> Tally {
        let mut tally = Tally::default();
        for entry in &self.0 {
            match entry.result {
                Result::Passed => tally.passed += 1,
                Result::Failed(_) => tally.failed += 1,
                Result::Skipped(_) => tally.skipped += 1,
            }
        }
        tally
    }

    /// A line for each scenario, a column for each emulator; a dash where it was not asked for.
    pub fn table(&self) -> String {
        let mut names: Vec<&str> = Vec::new();
        for entry in &self.0 {
            if !names.contains(&entry.scenario.as_str()) {
                names.push(&entry.scenario);
            }
        }
        let width = names.iter().map(|name| name.len()).max().unwrap_or(0);
        let mut table = format!("{:width$}", "scenario");
        for emulator in Emulator::ALL {
            table += &format!("  {:<16}", emulator.to_string());
        }
        for name in names {
            table = format!("{}\n{name:width$}", table.trim_end());
            for emulator in Emulator::ALL {
                let mut entries = self.0.iter();
                let entry = entries.find(|e| e.scenario == name && e.emulator == emulator);
                table += &format!("  {:<16}", entry.map_or("-".into(), cell));
            }
        }
        table.trim_end().into()
    }
}

fn cell(entry: &Entry) -> String {
    let word = match entry.result {
        Result::Passed => "ok",
        Result::Failed(_) => "FAILED",
        Result::Skipped(_) => "skipped",
    };
    match entry.seconds {
        Some(seconds) => format!("{word}, {seconds} s"),
        None => word.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_scenario_has_a_line_and_every_emulator_a_column() {
        let mut summary = Summary::default();
        let failed = || Result::Failed("why".into());
        summary.add("short", Emulator::Bochs, None, Result::Skipped("x".into()));
        summary.add("a-long-name", Emulator::Qemu, Some(34), Result::Passed);
        summary.add("short", Emulator::Qemu, Some(5), failed());
        let lines: Vec<String> = summary.table().lines().map(str::to_string).collect();
        assert_eq!(
            lines,
            [
                "scenario     AMD-V in QEMU     VT-x in Bochs",
                "short        FAILED, 5 s       skipped",
                "a-long-name  ok, 34 s          -",
            ]
        );
        let tally = summary.tally();
        assert_eq!((tally.passed, tally.failed, tally.skipped), (1, 1, 1));
    }
}
