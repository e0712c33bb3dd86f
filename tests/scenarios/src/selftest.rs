//! What the self-test guest says (`tests/guests/selftest`), and when it is believed.

/// Self-tests that the plain emulator cannot pass, because it forgives what they ask for or lacks the feature.
pub const SKIPPED_ON_PLAIN_EMULATOR: [&str; 10] = [
    "fault-control-registers",
    "user-alignment",
    "user-wbinvd",
    "user-umip",
    "timer-tsc-deadline",
    "timer-tsc-deadline-past",
    "apic-software-disable",
    "ioapic-polarity",
    "clock-kvmclock",
    "clock-tsc-written",
];

/// Believes a guest whose every test said `ok`, or was skipped with permission: `may_skip` holds beginnings of names.
///
/// # Errors
/// The first test that failed; else what else is missing.
pub fn judge<'a>(
    lines: impl Iterator<Item = &'a str> + Clone,
    may_skip: &[&str],
) -> Result<(), String> {
    let tests = || {
        lines
            .clone()
            .filter_map(|line| line.trim().strip_prefix("TEST "))
    };
    if let Some((name, why)) = tests().find_map(|line| line.split_once(" FAILED: ")) {
        return Err(format!("{name}: {why}"));
    }
    let skipped = || tests().filter_map(|line| line.split_once(" skipped: "));
    if let Some((name, why)) =
        skipped().find(|(name, _)| !may_skip.iter().any(|may| name.starts_with(may)))
    {
        return Err(format!("{name} was skipped without permission: {why}"));
    }
    let planned = lines
        .clone()
        .find_map(|line| line.trim().strip_prefix("TESTS ")?.parse::<usize>().ok())
        .ok_or("the guest names no number of tests")?;
    let ok = || tests().filter_map(|line| line.strip_suffix(" ok"));
    let (passed, skips) = (ok().count(), skipped().count());
    if passed == 0 || passed + skips != planned {
        let last = ok().last().unwrap_or("none");
        return Err(format!(
            "of {planned} tests {passed} passed and {skips} were skipped; the last to pass was {last}"
        ));
    }
    if !lines.clone().any(|line| line.contains("GUEST-RESULT ok")) {
        return Err("the guest says no result".into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: [&str; 5] = [
        "GUEST-UP cpus=2 kernel=selftest",
        "TESTS 2",
        "TEST a ok",
        "TEST b-one skipped: it cannot",
        "GUEST-RESULT ok 2 tests",
    ];

    fn verdict(lines: &[&str]) -> Result<(), String> {
        judge(lines.iter().copied(), &["b"])
    }

    #[test]
    fn only_a_whole_run_is_believed() {
        assert_eq!(verdict(&GOOD), Ok(()));
        let without = |word: &str| {
            let lines: Vec<&str> = GOOD.into_iter().filter(|l| !l.contains(word)).collect();
            verdict(&lines).expect_err("not whole")
        };
        assert!(without("TESTS").contains("number of tests"));
        assert!(without("TEST a").contains("0 passed"));
        assert!(without("RESULT").contains("no result"));
        let mut lines = GOOD.to_vec();
        lines.insert(2, "TEST c FAILED: it is broken");
        assert_eq!(verdict(&lines), Err("c: it is broken".into()));
        lines[2] = "TEST c skipped: it cannot";
        assert!(verdict(&lines).is_err_and(|why| why.contains("without permission")));
    }
}
