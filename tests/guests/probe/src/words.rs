//! The command line.

/// `word` and `key=value`, with spaces in between.
#[derive(Debug)]
pub struct Words<'a>(&'a str);

impl<'a> Words<'a> {
    /// The words of a line.
    pub fn new(line: &'a str) -> Self {
        Self(line)
    }

    /// Whether this word is there.
    pub fn has(&self, word: &str) -> bool {
        self.0.split_whitespace().any(|w| w == word)
    }

    /// The value behind a key.
    pub fn value(&self, key: &str) -> Option<&'a str> {
        self.0.split_whitespace().find_map(|word| {
            let (k, value) = word.split_once('=')?;
            (k == key).then_some(value)
        })
    }

    /// The number behind a key.
    pub fn number(&self, key: &str) -> Option<u64> {
        self.value(key)?.parse().ok()
    }
}
