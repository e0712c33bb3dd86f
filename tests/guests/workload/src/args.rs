//! The command line.

use crate::touch::TAGS;

/// What to do; `Default` is what a bare `workload` does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Args {
    /// Threads, each on a CPU of its own; `None` for one per online CPU.
    pub threads: Option<usize>,
    /// Memory in MiB, divided among the threads.
    pub mib: usize,
    /// How long to touch it.
    pub length: Length,
    /// In which order.
    pub pattern: Pattern,
    /// Share of visits that write, in percent.
    pub write_percent: u64,
    /// The tag of the loop.
    pub tag: usize,
    /// What contents and choices are made of.
    pub seed: u64,
    /// Where the guest is to take the memory from.
    pub placement: Placement,
    /// With [`Placement::TouchOnly`]: after so many seconds the first of the other parts is touched instead.
    pub shift: Option<u64>,
    /// Whether to leave the memory alone between filling and checking.
    pub idle: bool,
}

/// When to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Length {
    /// After so many seconds.
    Seconds(u64),
    /// When each thread has made so many visits for each page it owns.
    Passes(u64),
}

/// Order of visits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pattern {
    /// One page after the other.
    Sequential,
    /// Any page, all alike.
    Random,
    /// Few pages often, the others seldom: the k-th in the order of popularity about 1/k as often as the first.
    Zipf,
    /// Where the last page points to.
    Chase,
}

/// Which of the guest's nodes memory comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// The guest decides.
    Any,
    /// All of it from one node.
    Node(usize),
    /// Equal parts from all nodes, of which only this node's part is touched after filling.
    TouchOnly(usize),
}

impl Default for Args {
    fn default() -> Self {
        Self {
            threads: None,
            mib: 32,
            length: Length::Seconds(3),
            pattern: Pattern::Random,
            write_percent: 25,
            tag: 1,
            seed: 1,
            placement: Placement::Any,
            shift: None,
            idle: false,
        }
    }
}

/// Reads the words behind the program's name.
///
/// # Errors
/// A sentence that names the word.
pub fn parse<'a>(mut words: impl Iterator<Item = &'a str>) -> Result<Args, String> {
    let mut args = Args::default();
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or_else(|| format!("{word} wants a value"));
        let number = |text: &str, range: std::ops::RangeInclusive<u64>| match text.parse() {
            Ok(number) if range.contains(&number) => Ok(number),
            _ => Err(format!(
                "{word} wants a number from {} to {}, not {text:?}",
                range.start(),
                range.end()
            )),
        };
        match word {
            "--threads" => args.threads = Some(number(value()?, 1..=1024)? as usize),
            "--mib" => args.mib = number(value()?, 1..=1 << 20)? as usize,
            "--seconds" => args.length = Length::Seconds(number(value()?, 0..=1 << 20)?),
            "--passes" => args.length = Length::Passes(number(value()?, 0..=1 << 40)?),
            "--write-percent" => args.write_percent = number(value()?, 0..=100)?,
            "--tag" => args.tag = number(value()?, 1..=TAGS as u64)? as usize,
            "--seed" => args.seed = number(value()?, 0..=u64::MAX)?,
            "--guest-node" => args.placement = Placement::Node(number(value()?, 0..=63)? as usize),
            "--touch-only-node" => {
                args.placement = Placement::TouchOnly(number(value()?, 0..=63)? as usize)
            }
            "--shift" => args.shift = Some(number(value()?, 0..=1 << 20)?),
            "--idle" => args.idle = true,
            "--pattern" => {
                args.pattern = match value()? {
                    "seq" => Pattern::Sequential,
                    "random" => Pattern::Random,
                    "zipf" => Pattern::Zipf,
                    "chase" => Pattern::Chase,
                    other => {
                        return Err(format!(
                            "--pattern wants seq, random, zipf or chase, not {other:?}"
                        ));
                    }
                }
            }
            _ => return Err(format!("{word:?} is no option")),
        }
    }
    match (args.shift, args.placement) {
        (Some(_), Placement::Any | Placement::Node(_)) => {
            Err("--shift wants --touch-only-node, from whose part it goes to another".into())
        }
        _ => Ok(args),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_arrive() {
        let words = "--threads 2 --mib 64 --passes 3 --pattern zipf --write-percent 0 --tag 8 --seed 9 --touch-only-node 1 --shift 7 --idle";
        let expected = Args {
            threads: Some(2),
            mib: 64,
            length: Length::Passes(3),
            pattern: Pattern::Zipf,
            write_percent: 0,
            tag: 8,
            seed: 9,
            placement: Placement::TouchOnly(1),
            shift: Some(7),
            idle: true,
        };
        assert_eq!(parse(words.split(' ')), Ok(expected));
        assert_eq!(parse("".split_whitespace()), Ok(Args::default()));
    }

    #[test]
    fn wrong_words_are_named() {
        for (words, complaint) in [
            ("--mib", "--mib wants a value"),
            (
                "--mib x",
                "--mib wants a number from 1 to 1048576, not \"x\"",
            ),
            ("--tag 9", "--tag wants a number from 1 to 8, not \"9\""),
            (
                "--pattern up",
                "--pattern wants seq, random, zipf or chase, not \"up\"",
            ),
            ("fast", "\"fast\" is no option"),
            (
                "--shift 3",
                "--shift wants --touch-only-node, from whose part it goes to another",
            ),
        ] {
            assert_eq!(parse(words.split(' ')), Err(complaint.into()));
        }
    }
}
