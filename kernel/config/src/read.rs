//! Typed reading of one TOML table, with a place and a sentence for whatever is wrong.

use crate::error::ConfigError;
use crate::model::Keyword;
use crate::suggest::nearest;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::ops::{Range, RangeInclusive};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Most mistakes that are kept; a file with more has one cause.
const MAX_ERRORS: usize = 50;

/// The mistakes found so far.
pub(crate) struct Issues<'t> {
    text: &'t str,
    found: Vec<(usize, String)>,
}

impl<'t> Issues<'t> {
    pub(crate) fn new(text: &'t str) -> Self {
        Self {
            text,
            found: Vec::new(),
        }
    }

    /// Notes a mistake at the byte where `span` starts.
    pub(crate) fn report(&mut self, span: Range<usize>, message: String) {
        if self.found.len() < MAX_ERRORS {
            self.found.push((span.start, message));
        }
    }

    /// Ends the work if there was any mistake.
    pub(crate) fn stop_if_any(&mut self) -> Result<(), Vec<ConfigError>> {
        if self.found.is_empty() {
            return Ok(());
        }
        let mut found = core::mem::take(&mut self.found);
        found.sort_by_key(|(offset, _)| *offset);
        Err(found
            .into_iter()
            .map(|(offset, message)| self.place(offset, message))
            .collect())
    }

    fn place(&self, offset: usize, message: String) -> ConfigError {
        let before = self.text.char_indices().take_while(|(at, _)| *at < offset);
        let (mut line, mut column) = (1u32, 1u32);
        for (_, c) in before {
            if c == '\n' {
                line = line.saturating_add(1);
                column = 1;
            } else {
                column = column.saturating_add(1);
            }
        }
        ConfigError {
            line,
            column,
            message,
        }
    }
}

/// What a value is, in words.
pub(crate) fn kind(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "a whole number",
        DeValue::Float(_) => "a decimal fraction",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

/// `words` as an enumeration for people.
fn listed(words: &[&str]) -> String {
    let quoted: Vec<String> = words.iter().map(|word| format!("`{word}`")).collect();
    quoted.join(", ")
}

/// A whole number within `range`, or a complaint that calls the value `what`.
pub(crate) fn number(
    value: &Spanned<DeValue<'_>>,
    what: &str,
    range: RangeInclusive<u64>,
    issues: &mut Issues<'_>,
) -> Option<u64> {
    let wanted = format!(
        "{what} must be a whole number from {} to {}",
        range.start(),
        range.end()
    );
    let DeValue::Integer(integer) = value.get_ref() else {
        issues.report(
            value.span(),
            format!("{wanted}, but it is {}.", kind(value.get_ref())),
        );
        return None;
    };
    match u64::from_str_radix(integer.as_str(), integer.radix()) {
        Ok(number) if range.contains(&number) => Some(number),
        _ => {
            issues.report(value.span(), format!("{wanted}, but it is {integer}."));
            None
        }
    }
}

/// A table whose known keys are listed.
pub(crate) struct TableReader<'a> {
    name: &'a str,
    table: &'a DeTable<'a>,
    span: Range<usize>,
    known: &'a [&'a str],
}

impl<'a> TableReader<'a> {
    pub(crate) fn new(
        name: &'a str,
        table: &'a DeTable<'a>,
        span: Range<usize>,
        known: &'a [&'a str],
    ) -> Self {
        Self {
            name,
            table,
            span,
            known,
        }
    }

    /// Where the table's header is.
    pub(crate) fn span(&self) -> Range<usize> {
        self.span.clone()
    }

    /// Complains about every key that is not known.
    pub(crate) fn reject_unknown(&self, issues: &mut Issues<'_>) {
        for (key, _) in self.table.iter() {
            let word: &str = key.get_ref();
            if self.known.contains(&word) {
                continue;
            }
            let hint = match nearest(word, self.known) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("the known keys are {}.", listed(self.known)),
            };
            let word: String = word.chars().take(40).flat_map(char::escape_debug).collect();
            issues.report(
                key.span(),
                format!("unknown key `{word}` in {}; {hint}", self.name),
            );
        }
    }

    pub(crate) fn get(&self, key: &str) -> Option<&'a Spanned<DeValue<'a>>> {
        self.table.get(key)
    }

    /// As [`Self::get`], with a complaint when the key is missing.
    pub(crate) fn require(&self, key: &str, example: &str, issues: &mut Issues<'_>) {
        if self.get(key).is_none() {
            issues.report(
                self.span(),
                format!(
                    "{} has no `{key}`; add a line such as `{key} = {example}`.",
                    self.name
                ),
            );
        }
    }

    pub(crate) fn table(
        &self,
        key: &str,
        name: &'a str,
        known: &'a [&'a str],
        issues: &mut Issues<'_>,
    ) -> Option<TableReader<'a>> {
        let value = self.get(key)?;
        match value.get_ref() {
            DeValue::Table(table) => Some(TableReader::new(name, table, value.span(), known)),
            other => {
                issues.report(
                    value.span(),
                    format!(
                        "`{key}` must be a table, written as {name}, but it is {}.",
                        kind(other)
                    ),
                );
                None
            }
        }
    }

    pub(crate) fn string(&self, key: &str, issues: &mut Issues<'_>) -> Option<&'a str> {
        let value = self.get(key)?;
        match value.get_ref() {
            DeValue::String(text) => Some(text),
            other => {
                issues.report(
                    value.span(),
                    format!(
                        "`{key}` must be a string in quotes, but it is {}.",
                        kind(other)
                    ),
                );
                None
            }
        }
    }

    pub(crate) fn boolean(&self, key: &str, default: bool, issues: &mut Issues<'_>) -> bool {
        let Some(value) = self.get(key) else {
            return default;
        };
        match value.get_ref() {
            DeValue::Boolean(flag) => *flag,
            other => {
                issues.report(
                    value.span(),
                    format!(
                        "`{key}` must be true or false without quotes, but it is {}.",
                        kind(other)
                    ),
                );
                default
            }
        }
    }

    /// A number within `range`; `default` when the key is missing or wrong.
    pub(crate) fn number(
        &self,
        key: &str,
        range: RangeInclusive<u64>,
        default: u64,
        issues: &mut Issues<'_>,
    ) -> u64 {
        self.get(key)
            .and_then(|value| number(value, &format!("`{key}`"), range, issues))
            .unwrap_or(default)
    }

    pub(crate) fn keyword<T: Keyword>(&self, key: &str, issues: &mut Issues<'_>) -> Option<T> {
        let word = self.string(key, issues)?;
        let value = T::from_word(word);
        if value.is_none() {
            let hint = nearest(word, T::WORDS)
                .map_or(String::new(), |near| format!(" Did you mean \"{near}\"?"));
            let span = self.get(key).map_or(self.span(), Spanned::span);
            issues.report(
                span,
                format!(
                    "`{key}` must be one of {}, but it is {word:?}.{hint}",
                    listed(T::WORDS)
                ),
            );
        }
        value
    }
}
