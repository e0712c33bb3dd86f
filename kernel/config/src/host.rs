//! The `[host]` table.

use crate::model::Host;
use crate::read::{Issues, TableReader};

pub(crate) const KEYS: &[&str] = &[
    "mode",
    "log",
    "poweroff",
    "quantum_ms",
    "sample_ms",
    "plan_ms",
    "console",
    "sabotage",
    "seed",
    "donate",
    "share_cores",
    "counters",
    "roots",
    "looks",
    "adapt",
    "trace",
];

/// Reads the table; what is wrong goes to `issues` and is replaced by its default.
pub(crate) fn read(table: &TableReader<'_>, issues: &mut Issues<'_>) -> Host {
    table.reject_unknown(issues);
    let default = Host::default();
    let mut millis = |key, range, default: u32| {
        let value = table.number(key, range, u64::from(default), issues);
        u32::try_from(value).unwrap_or(default)
    };
    let quantum_ms = millis("quantum_ms", 1..=1_000, default.quantum_ms);
    let sample_ms = millis("sample_ms", 1..=60_000, default.sample_ms);
    let plan_ms = millis("plan_ms", 10..=600_000, default.plan_ms);
    let counters = table.number("counters", 0..=8, default.counters.into(), issues);
    let looks = table.number("looks", 0..=10_000, default.looks.into(), issues);
    Host {
        mode: table.keyword("mode", issues).unwrap_or_default(),
        log: table.keyword("log", issues).unwrap_or_default(),
        poweroff: table.boolean("poweroff", default.poweroff, issues),
        quantum_ms,
        sample_ms,
        plan_ms,
        console: table.keyword("console", issues).unwrap_or_default(),
        sabotage: crate::sabotage::read(table, issues),
        seed: table.number("seed", 0..=i64::MAX as u64, 0, issues),
        donate: table.boolean("donate", default.donate, issues),
        share_cores: table.boolean("share_cores", default.share_cores, issues),
        counters: u8::try_from(counters).unwrap_or(default.counters),
        roots: table.keyword("roots", issues).unwrap_or_default(),
        looks: u32::try_from(looks).unwrap_or(default.looks),
        adapt: table.boolean("adapt", default.adapt, issues),
        trace: table.boolean("trace", default.trace, issues),
    }
}
