//! Rotary embedding in a config: `rope_theta` and `rope_scaling` (transformers 4), `rope_parameters` (5).
//!
//! Only the plain embedding is supported. The scaled ones (linear, dynamic, yarn, longrope, llama3) change the
//! frequencies, and yarn the attention's scale too, so each is refused by name.

use serde_json::{Map, Value, json};

use crate::fields::Fields;

/// The base of the frequencies, wherever it stands; all places that name it have to agree.
pub(super) fn read_theta(fields: &mut Fields<'_>, default: f64) -> f64 {
    let mut thetas: Vec<(String, f64)> = Vec::new();
    if fields.get("rope_theta").is_some() {
        thetas.push(("rope_theta".to_owned(), fields.float_or("rope_theta", default)));
    }
    for key in ["rope_parameters", "rope_scaling"] {
        match fields.get(key) {
            None | Some(Value::Null) => {}
            Some(Value::Object(table)) => thetas.extend(read_table(fields, key, table)),
            Some(value) => fields.refuse(key, value, "is not a table or null", "correct it"),
        }
    }
    let rule = "is not supported: rotary embedding of a part of the head";
    fields.only("partial_rotary_factor", &[Value::Null, json!(1)], rule, "only 1 is supported");
    let Some((first, theta)) = thetas.first().cloned() else { return default };
    for (key, other) in &thetas[1..] {
        if *other != theta {
            let rule = format!("contradicts {first} = {theta}");
            fields.refuse(key, other, rule, "make them equal or remove one");
        }
    }
    theta
}

/// Reads one table; its own theta, if it has one.
fn read_table(fields: &mut Fields<'_>, table_key: &'static str, table: &Map<String, Value>) -> Option<(String, f64)> {
    let mut theta = None;
    for (key, value) in table {
        let (rule, fix) = match (key.as_str(), value) {
            ("rope_theta", value) => match value.as_f64() {
                Some(base) => {
                    theta = Some((format!("{table_key}.rope_theta"), base));
                    continue;
                }
                None => ("is not a number", "correct it"),
            },
            ("rope_type" | "type", Value::String(kind)) if kind == "default" => continue,
            ("rope_type" | "type", _) => {
                ("is not supported: only the default rotary embedding is", "train with the default one")
            }
            ("partial_rotary_factor", Value::Null) => continue,
            ("partial_rotary_factor", value) if value.as_f64() == Some(1.0) => continue,
            ("partial_rotary_factor", _) => {
                ("is not supported: rotary embedding of a part of the head", "only 1 is supported")
            }
            _ => ("is not known to be harmless", "remove it, if the model does not depend on it"),
        };
        fields.refuse(&format!("{table_key}.{key}"), value, rule, fix);
    }
    theta
}
