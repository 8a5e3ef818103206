//! `key=value` from the command line, laid over a spec's TOML before it is read.

use toml::{Table, Value};

use crate::problem::Problem;

/// Lays one override over the table. Whether the key exists is seen when the table is read.
pub(super) fn apply(table: &mut Table, text: &str) -> Result<(), Problem> {
    let example = "write it as table.key=value, for example train.steps=10";
    let Some((path, value)) = text.split_once('=') else {
        return Err(Problem::new("--set", text, "is not key=value", example));
    };
    let path: Vec<&str> = path.split('.').map(str::trim).collect();
    let Some((last, tables)) = path.split_last().filter(|_| path.iter().all(|part| !part.is_empty())) else {
        return Err(Problem::new("--set", text, "has an empty key", example));
    };
    let mut place = Place::Table(table);
    for part in tables {
        place = place.enter(part).ok_or_else(|| {
            Problem::new(path.join("."), value, format!("goes through {part}, which is no table"), example)
        })?;
    }
    let fits = place.put(last, parse(value.trim()));
    let rule = "names no element of a list";
    if fits { Ok(()) } else { Err(Problem::new(path.join("."), value, rule, "count the elements from 0")) }
}

/// A table or a list that the path has come to.
enum Place<'a> {
    Table(&'a mut Table),
    List(&'a mut Vec<Value>),
}

impl<'a> Place<'a> {
    fn enter(self, part: &str) -> Option<Place<'a>> {
        let value = match self {
            Self::Table(table) => table.entry(part).or_insert_with(|| Value::Table(Table::new())),
            Self::List(list) => list.get_mut(part.parse::<usize>().ok()?)?,
        };
        match value {
            Value::Table(table) => Some(Place::Table(table)),
            Value::Array(list) => Some(Place::List(list)),
            _ => None,
        }
    }

    /// Sets a key or an element; false if the list has no such element.
    fn put(self, key: &str, value: Value) -> bool {
        match self {
            Self::Table(table) => {
                table.insert(key.to_owned(), value);
                true
            }
            Self::List(list) => {
                let element = key.parse::<usize>().ok().and_then(|index| list.get_mut(index));
                element.map(|element| *element = value).is_some()
            }
        }
    }
}

/// TOML if it is TOML, otherwise the text itself, so that strings need no quotes within the shell's.
fn parse(text: &str) -> Value {
    let table = format!("value = {text}").parse::<Table>().ok();
    let value = table.and_then(|mut table| if table.len() == 1 { table.remove("value") } else { None });
    value.unwrap_or_else(|| Value::String(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_toml_or_plain_text() {
        assert_eq!(parse("4"), Value::Integer(4));
        assert_eq!(parse("3e-4"), Value::Float(3e-4));
        assert_eq!(parse("true"), Value::Boolean(true));
        assert_eq!(parse("bf16"), Value::String("bf16".to_owned()));
        assert_eq!(parse("\"4\""), Value::String("4".to_owned()));
        assert_eq!(parse("out/dir"), Value::String("out/dir".to_owned()));
        assert_eq!(parse("[1, 2]"), Value::Array(vec![Value::Integer(1), Value::Integer(2)]));
        assert_eq!(parse("1\nother = 2"), Value::String("1\nother = 2".to_owned()));
        assert_eq!(parse(""), Value::String(String::new()));
    }

    #[test]
    fn an_override_reaches_into_tables_and_lists() {
        let mut table: Table = "[data]\nsources = [{ path = 'a' }]".parse().unwrap();
        for text in ["data.sources.0.weight=2.5", "train.steps = 10", "data.order=shuffled"] {
            apply(&mut table, text).unwrap();
        }
        let expected = "[data]\norder = 'shuffled'\nsources = [{ path = 'a', weight = 2.5 }]\n[train]\nsteps = 10";
        assert_eq!(table, expected.parse::<Table>().unwrap());
    }

    #[test]
    fn an_override_that_is_none_says_why() {
        let mut table: Table = "[train]\nsteps = 1\nlist = [1]".parse().unwrap();
        let mut error = |text| apply(&mut table, text).unwrap_err().rule;
        assert_eq!(error("train.steps"), "is not key=value");
        assert_eq!(error("train..steps=1"), "has an empty key");
        assert_eq!(error("=1"), "has an empty key");
        assert_eq!(error("train.steps.more=1"), "goes through steps, which is no table");
        assert_eq!(error("train.list.1=1"), "names no element of a list");
    }
}
