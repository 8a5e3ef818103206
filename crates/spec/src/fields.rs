//! The fields of a config: read by name and kind, every problem noted, what nobody read refused at the end.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::known::is_harmless;
use crate::Family;
use crate::problem::{Problem, nearest};

/// The longest value that a problem quotes, in characters.
const QUOTED_MAX: usize = 100;

pub(super) struct Fields<'a> {
    map: &'a Map<String, Value>,
    family: Family,
    /// Every key that the family knows: those asked for.
    known: BTreeSet<&'static str>,
    /// Keys whose value could not be read, for which a stand-in was returned.
    pub(super) unread: BTreeSet<&'static str>,
    pub(super) problems: Vec<Problem>,
}

impl<'a> Fields<'a> {
    pub(super) fn new(map: &'a Map<String, Value>, family: Family) -> Self {
        Self { map, family, known: BTreeSet::new(), unread: BTreeSet::new(), problems: Vec::new() }
    }

    /// The value of a key, which is known from now on.
    pub(super) fn get(&mut self, key: &'static str) -> Option<&'a Value> {
        self.known.insert(key);
        self.map.get(key)
    }

    /// Notes a problem with a key that is there.
    pub(super) fn refuse(&mut self, key: &str, value: &Value, rule: impl Into<String>, fix: impl Into<String>) {
        self.problems.push(Problem::new(key, quoted(value), rule, fix));
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
    pub(super) fn size(&mut self, key: &'static str) -> usize {
        if self.get(key).is_none() {
            self.unread.insert(key);
            self.problems.push(Problem::missing(key, "add it: the shape of the model depends on it"));
        }
        self.size_or(key, 0)
    }

    pub(super) fn size_or(&mut self, key: &'static str, default: usize) -> usize {
        self.read(key, default, "a whole number, 0 or more", size)
    }

    /// A size that may be null.
    pub(super) fn optional_size(&mut self, key: &'static str, default: Option<usize>) -> Option<usize> {
        self.read(key, default, "a whole number, 0 or more, or null", |value| match value {
            Value::Null => Some(None),
            value => size(value).map(Some),
        })
    }

    pub(super) fn sizes(&mut self, key: &'static str) -> Vec<usize> {
        self.read(key, Vec::new(), "a list of whole numbers", |value| match value {
            Value::Null => Some(Vec::new()),
            value => value.as_array()?.iter().map(size).collect(),
        })
    }

    pub(super) fn float_or(&mut self, key: &'static str, default: f64) -> f64 {
        self.read(key, default, "a number", Value::as_f64)
    }

    pub(super) fn flag_or(&mut self, key: &'static str, default: bool) -> bool {
        self.read(key, default, "true or false", Value::as_bool)
    }

    /// A token id or null.
    pub(super) fn token(&mut self, key: &'static str, default: Option<u32>) -> Option<u32> {
        self.read(key, default, "a token id or null", |value| match value {
            Value::Null => Some(None),
            value => token(value).map(Some),
        })
    }

    /// A token id, a list of them, or null.
    pub(super) fn tokens(&mut self, key: &'static str, default: Option<u32>) -> Vec<u32> {
        let default = Vec::from_iter(default);
        self.read(key, default, "a token id, a list of token ids, or null", |value| match value {
            Value::Null => Some(Vec::new()),
            Value::Array(ids) => ids.iter().map(token).collect(),
            value => Some(vec![token(value)?]),
        })
    }

    /// A field that changes the mathematics and of which only some values are supported.
    pub(super) fn only(&mut self, key: &'static str, allowed: &[Value], rule: &str, fix: &str) {
        let Some(value) = self.get(key) else { return };
        // 0 and 0.0 are the same dropout.
        let same = |other: &Value| other == value || (other.is_number() && other.as_f64() == value.as_f64());
        if !allowed.iter().any(same) {
            self.refuse(key, value, rule, fix);
        }
    }

    /// Refuses the fields that nobody asked for.
    pub(super) fn finish(&mut self) {
        let unknown = self
            .map
            .iter()
            .filter(|(key, _)| !self.known.contains(key.as_str()) && !is_harmless(self.family, key))
            .map(|(key, value)| {
                let fix = match nearest(key, self.known.iter().copied()) {
                    Some(near) => {
                        format!("did you mean {near}? otherwise remove it, if the model does not depend on it")
                    }
                    None => "remove it, if the model does not depend on it".to_owned(),
                };
                Problem::new(key, quoted(value), format!("is not known to be harmless in {}", self.family), fix)
            });
        self.problems.extend(unknown);
    }
}

fn size(value: &Value) -> Option<usize> {
    usize::try_from(value.as_u64()?).ok()
}

fn token(value: &Value) -> Option<u32> {
    u32::try_from(value.as_u64()?).ok()
}

/// The value as it stands in the file, cut if it is long.
pub(super) fn quoted(value: &Value) -> String {
    let text = value.to_string();
    if text.chars().count() <= QUOTED_MAX {
        return text;
    }
    let cut: String = text.chars().take(QUOTED_MAX).collect();
    format!("{cut}…")
}
