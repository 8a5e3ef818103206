//! The fields of a table: read by name and kind, every problem noted, what nobody asked for refused at the end.
//!
//! What cannot be read gets a stand-in and is noted, so that reading goes on and all problems are found at once; the
//! caller returns no value if there is one. TOML is read through this too, as JSON.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::path::PathBuf;

use serde_json::{Map, Value};

use crate::problem::{Problem, nearest};

/// The longest value that a problem quotes, in characters.
const QUOTED_MAX: usize = 100;

pub(crate) struct Fields<'a> {
    map: &'a Map<String, Value>,
    /// What stands before each key in a problem: `train.`, or nothing.
    prefix: String,
    /// Every key that may stand here: those asked for.
    known: BTreeSet<&'static str>,
    /// Keys whose value could not be read, for which a stand-in was returned.
    pub(crate) unread: BTreeSet<&'static str>,
    /// What is wrong, with the full keys.
    pub(crate) problems: Vec<Problem>,
}

impl<'a> Fields<'a> {
    pub(crate) fn new(map: &'a Map<String, Value>, prefix: impl Into<String>) -> Self {
        let prefix = prefix.into();
        Self { map, prefix, known: BTreeSet::new(), unread: BTreeSet::new(), problems: Vec::new() }
    }

    /// The value of a key, which is known from now on.
    pub(crate) fn get(&mut self, key: &'static str) -> Option<&'a Value> {
        self.known.insert(key);
        self.map.get(key)
    }

    /// Notes a problem with a key of this table that is there.
    pub(crate) fn refuse(
        &mut self,
        key: &str,
        value: impl std::fmt::Display,
        rule: impl Into<String>,
        fix: impl Into<String>,
    ) {
        let key = format!("{}{key}", self.prefix);
        self.problems.push(Problem::new(key, cut(value.to_string()), rule, fix));
    }

    /// Notes that a key has to be there and is not.
    pub(crate) fn missing(&mut self, key: &'static str, fix: impl Into<String>) {
        self.unread.insert(key);
        self.problems.push(Problem::missing(format!("{}{key}", self.prefix), fix));
    }

    fn read<T>(&mut self, key: &'static str, default: T, kind: &str, parse: impl Fn(&Value) -> Option<T>) -> T {
        let Some(value) = self.get(key) else { return default };
        parse(value).unwrap_or_else(|| {
            self.unread.insert(key);
            self.refuse(key, value, format!("is not {kind}"), "correct it");
            default
        })
    }

    /// A size that has to be there.
    pub(crate) fn size(&mut self, key: &'static str) -> usize {
        if self.get(key).is_none() {
            self.missing(key, "add it");
        }
        self.size_or(key, 0)
    }

    pub(crate) fn size_or(&mut self, key: &'static str, default: usize) -> usize {
        self.read(key, default, "a whole number, 0 or more", size)
    }

    /// A size that may be null.
    pub(crate) fn optional_size(&mut self, key: &'static str, default: Option<usize>) -> Option<usize> {
        self.read(key, default, "a whole number, 0 or more, or null", |value| match value {
            Value::Null => Some(None),
            value => size(value).map(Some),
        })
    }

    pub(crate) fn sizes(&mut self, key: &'static str) -> Vec<usize> {
        self.read(key, Vec::new(), "a list of whole numbers", |value| match value {
            Value::Null => Some(Vec::new()),
            value => value.as_array()?.iter().map(size).collect(),
        })
    }

    pub(crate) fn float_or(&mut self, key: &'static str, default: f64) -> f64 {
        self.read(key, default, "a number", Value::as_f64)
    }

    pub(crate) fn flag_or(&mut self, key: &'static str, default: bool) -> bool {
        self.read(key, default, "true or false", Value::as_bool)
    }

    /// A token id or null.
    pub(crate) fn token(&mut self, key: &'static str, default: Option<u32>) -> Option<u32> {
        self.read(key, default, "a token id or null", |value| match value {
            Value::Null => Some(None),
            value => token(value).map(Some),
        })
    }

    /// A token id, a list of them, or null.
    pub(crate) fn tokens(&mut self, key: &'static str, default: Option<u32>) -> Vec<u32> {
        let default = Vec::from_iter(default);
        self.read(key, default, "a token id, a list of token ids, or null", |value| match value {
            Value::Null => Some(Vec::new()),
            Value::Array(ids) => ids.iter().map(token).collect(),
            value => Some(vec![token(value)?]),
        })
    }

    /// A field that changes the mathematics and of which only some values are supported.
    pub(crate) fn only(&mut self, key: &'static str, allowed: &[Value], rule: &str, fix: &str) {
        let Some(value) = self.get(key) else { return };
        // 0 and 0.0 are the same dropout.
        let same = |other: &Value| other == value || (other.is_number() && other.as_f64() == value.as_f64());
        if !allowed.iter().any(same) {
            self.refuse(key, value, rule, fix);
        }
    }

    /// Notes that a value that was read breaks a rule, if it does.
    pub(crate) fn refuse_unless(
        &mut self,
        holds: bool,
        key: &'static str,
        value: impl std::fmt::Display,
        rule: impl Into<String>,
        fix: &str,
    ) {
        if !holds && !self.unread.contains(key) {
            self.refuse(key, value, rule, fix);
        }
    }

    /// A count within bounds.
    pub(crate) fn count(&mut self, key: &'static str, default: usize, bounds: RangeInclusive<usize>) -> usize {
        let value = self.size_or(key, default);
        let rule = format!("is not from {} to {}", bounds.start(), bounds.end());
        self.refuse_unless(bounds.contains(&value), key, value, rule, "correct it");
        value
    }

    /// A number of at least 0.
    pub(crate) fn not_negative(&mut self, key: &'static str, default: f64) -> f64 {
        let value = self.float_or(key, default);
        self.refuse_unless(value >= 0.0, key, value, "is negative", "give 0 or more");
        value
    }

    /// One of a few words; the first is the default.
    pub(crate) fn choice<T: Copy>(&mut self, key: &'static str, choices: &[(&str, T)]) -> T {
        let Some(value) = self.get(key) else { return choices[0].1 };
        if let Some((_, chosen)) = choices.iter().find(|(word, _)| value == word) {
            return *chosen;
        }
        let words: Vec<&str> = choices.iter().map(|(word, _)| *word).collect();
        self.unread.insert(key);
        self.refuse(key, value, format!("is not one of {}", words.join(", ")), "choose one of them");
        choices[0].1
    }

    /// A local path, if the key is there and is one.
    pub(crate) fn path(&mut self, key: &'static str) -> Option<PathBuf> {
        let value = self.get(key)?;
        let (rule, fix) = match value {
            Value::String(text) if text.is_empty() => ("is empty", "give a path or remove it"),
            Value::String(text) if text.contains("://") => {
                ("is a URL, and this build reads and writes local paths only", "copy it to a local directory")
            }
            Value::String(text) => return Some(PathBuf::from(text)),
            _ => ("is not a path", "write it as text"),
        };
        self.unread.insert(key);
        self.refuse(key, value, rule, fix);
        None
    }

    /// Refuses the fields that nobody asked for, but those that `accepted` says are harmless.
    pub(crate) fn finish(&mut self, accepted: impl Fn(&str) -> bool, rule: &str, fix: &str) {
        for (key, value) in self.map {
            if self.known.contains(key.as_str()) || accepted(key) {
                continue;
            }
            let fix = match nearest(key, self.known.iter().copied()) {
                Some(near) => format!("did you mean {near}? otherwise {fix}"),
                None => fix.to_owned(),
            };
            self.refuse(key, value, rule, fix);
        }
    }
}

fn size(value: &Value) -> Option<usize> {
    usize::try_from(value.as_u64()?).ok()
}

fn token(value: &Value) -> Option<u32> {
    u32::try_from(value.as_u64()?).ok()
}

/// A value as a problem quotes it, cut if it is long.
fn cut(text: String) -> String {
    if text.chars().count() <= QUOTED_MAX {
        return text;
    }
    text.chars().take(QUOTED_MAX).chain(['…']).collect()
}
