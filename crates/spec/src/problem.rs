//! What is wrong with a spec: every problem at once, each with key, value, rule and fix.

use std::fmt;

/// One thing wrong with a spec.
///
/// Shown as `key = value rule; fix`, or `key rule; fix` where there is no value:
/// `model.num_experts_per_tok = 4 exceeds model.num_experts = 2; lower it or add experts`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The key, with its path (`optimizer.lr`, `rope_parameters.rope_type`).
    pub key: String,
    /// The value as it is written in the file; `None` if the key is missing.
    pub value: Option<String>,
    /// The rule that is broken, a predicate: `exceeds num_experts = 2`.
    pub rule: String,
    /// What to do about it.
    pub fix: String,
}

impl Problem {
    pub(crate) fn new(
        key: impl Into<String>,
        value: impl fmt::Display,
        rule: impl Into<String>,
        fix: impl Into<String>,
    ) -> Self {
        Self { key: key.into(), value: Some(value.to_string()), rule: rule.into(), fix: fix.into() }
    }

    pub(crate) fn missing(key: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { key: key.into(), value: None, rule: "is missing".to_owned(), fix: fix.into() }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.key)?;
        if let Some(value) = &self.value {
            write!(f, " = {value}")?;
        }
        write!(f, " {}; {}", self.rule, self.fix)
    }
}

/// All the problems of a spec, at least one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.text())]
pub struct SpecErrors {
    /// What was read: a path, or words for what has none.
    pub origin: String,
    /// In the order in which they were found.
    pub problems: Vec<Problem>,
}

impl SpecErrors {
    /// `Ok` if there are no problems.
    pub(crate) fn unless_empty(origin: impl Into<String>, problems: Vec<Problem>) -> Result<(), Self> {
        if problems.is_empty() { Ok(()) } else { Err(Self { origin: origin.into(), problems }) }
    }

    fn text(&self) -> String {
        match &self.problems[..] {
            [problem] => format!("{}: {problem}", self.origin),
            problems => {
                let lines: String = problems.iter().map(|problem| format!("\n  {problem}")).collect();
                format!("{}: {} problems:{lines}", self.origin, problems.len())
            }
        }
    }
}

/// `; did you mean X?`-style help for an unknown key: the nearest known one, if it is near.
pub(crate) fn nearest<'a>(unknown: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    known
        .into_iter()
        .map(|candidate| (edit_distance(unknown, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= 1 + candidate.len().min(unknown.len()) / 4)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// Insertions, deletions, replacements and swaps of neighbours that make one text of the other.
fn edit_distance(left: &str, right: &str) -> usize {
    let (left, right): (Vec<char>, Vec<char>) = (left.chars().collect(), right.chars().collect());
    let mut rows = vec![vec![0; right.len() + 1]; left.len() + 1];
    for i in 0..=left.len() {
        for j in 0..=right.len() {
            rows[i][j] = if i == 0 || j == 0 {
                i + j
            } else {
                let replaced = rows[i - 1][j - 1] + usize::from(left[i - 1] != right[j - 1]);
                let best = replaced.min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
                let swapped = i > 1 && j > 1 && left[i - 1] == right[j - 2] && left[i - 2] == right[j - 1];
                if swapped { best.min(rows[i - 2][j - 2] + 1) } else { best }
            };
        }
    }
    rows[left.len()][right.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_near_key_is_suggested_and_a_far_one_is_not() {
        let known = ["steps", "seed", "rows_per_step", "microbatch_rows"];
        assert_eq!(nearest("stpes", known), Some("steps"));
        assert_eq!(nearest("row_per_step", known), Some("rows_per_step"));
        assert_eq!(nearest("micro_batch_rows", known), Some("microbatch_rows"));
        assert_eq!(nearest("batch", known), None);
    }

    #[test]
    fn all_problems_are_shown() {
        let problems =
            vec![Problem::new("a.b", 4, "exceeds a.c = 2", "lower it"), Problem::missing("a.d", "give a number")];
        let errors = SpecErrors { origin: "run.toml".to_owned(), problems };
        assert_eq!(
            errors.to_string(),
            "run.toml: 2 problems:\n  a.b = 4 exceeds a.c = 2; lower it\n  a.d is missing; give a number"
        );
    }
}
