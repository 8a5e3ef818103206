//! From TOML or JSON to a [`RunSpec`].

use serde_json::{Map, Number, Value};

use super::training::{read_losses, read_optimizer, read_schedule, read_train};
use super::{Data, Eval, ModelSource, Order, RunSpec, Source, overrides};
use crate::fields::Fields;
use crate::problem::{Problem, SpecErrors};
use crate::{Balance, ModelSpec};

/// The largest count of rows, tokens of a row, threads: a bound on what is allocated for a number in a file.
pub(super) const COUNT_MAX: usize = 1 << 24;
impl RunSpec {
    /// Reads a run spec, after laying `overrides` over it: each `key=value` with a dotted key (`model.hidden_size=64`,
    /// `data.sources.0.weight=2`) and a value in TOML, a plain word being a string.
    ///
    /// Paths stay as they are written: see [`Self::load`].
    ///
    /// # Errors
    /// Everything that is wrong, at once.
    pub fn from_toml(text: &str, overrides: &[String]) -> Result<Self, SpecErrors> {
        let errors = |problems| SpecErrors { origin: "run spec".to_owned(), problems };
        let mut table: toml::Table = text.parse().map_err(|error: toml::de::Error| {
            let line = error.span().map_or(0, |span| text[..span.start.min(text.len())].matches('\n').count() + 1);
            errors(vec![Problem::new("line", line, format!("is not TOML: {}", error.message()), "correct it")])
        })?;
        let mut problems: Vec<Problem> =
            overrides.iter().filter_map(|text| overrides::apply(&mut table, text).err()).collect();
        match read(&table_to_json(table)) {
            Ok(spec) if problems.is_empty() => Ok(spec),
            Ok(_) => Err(errors(problems)),
            Err(more) => {
                problems.extend(more);
                Err(errors(problems))
            }
        }
    }

    /// Reads the JSON that [`Self::to_json`] writes.
    ///
    /// # Errors
    /// Everything that is wrong, at once.
    pub fn from_json(value: &Value) -> Result<Self, SpecErrors> {
        let errors = |problems| SpecErrors { origin: "run spec".to_owned(), problems };
        match value {
            Value::Object(map) => read(map).map_err(errors),
            _ => Err(errors(vec![Problem::new("run spec", value, "is not a JSON object", "give one")])),
        }
    }
}

impl TryFrom<Value> for RunSpec {
    type Error = SpecErrors;

    fn try_from(value: Value) -> Result<Self, SpecErrors> {
        Self::from_json(&value)
    }
}

fn table_to_json(table: toml::Table) -> Map<String, Value> {
    table.into_iter().map(|(key, value)| (key, to_json(value))).collect()
}

/// TOML as JSON. What JSON does not have (dates, nan, inf) becomes text, which no field takes for a number.
fn to_json(value: toml::Value) -> Value {
    match value {
        toml::Value::String(text) => Value::String(text),
        toml::Value::Integer(number) => Value::from(number),
        toml::Value::Float(number) => {
            Number::from_f64(number).map_or_else(|| Value::String(number.to_string()), Value::Number)
        }
        toml::Value::Boolean(flag) => Value::Bool(flag),
        toml::Value::Datetime(date) => Value::String(date.to_string()),
        toml::Value::Array(list) => list.into_iter().map(to_json).collect(),
        toml::Value::Table(table) => Value::Object(table_to_json(table)),
    }
}

fn read(map: &Map<String, Value>) -> Result<RunSpec, Vec<Problem>> {
    let mut root = Fields::new(map, "");
    let none = Map::new();
    let mut section = |key: &'static str, required: bool| {
        match root.get(key) {
            Some(Value::Object(table)) => return Some(table),
            Some(value) => root.refuse(key, value, "is not a table", format!("write it as [{key}]")),
            None if required => root.missing(key, format!("add [{key}]")),
            None => {}
        }
        None
    };
    let sections = ["model", "data", "optimizer", "schedule", "losses", "train", "eval"];
    let [model, data, optimizer, schedule, losses, train, eval] =
        sections.map(|key| section(key, ["model", "data", "train"].contains(&key)));
    root.finish(|_| false, "is not a table of a run spec", "remove it");
    let mut problems = root.problems;
    let model = model.and_then(|map| read_model(map, &mut problems));
    let data = data.map(|map| read_data(map, &mut problems));
    let optimizer = read_optimizer(optimizer.unwrap_or(&none), &mut problems);
    let losses = read_losses(losses.unwrap_or(&none), &mut problems);
    let seq_len = data.as_ref().map_or(0, |data| data.seq_len);
    let train = train.map(|map| read_train(map, seq_len, &mut problems));
    let steps = train.as_ref().map_or(0, |train| train.steps);
    let schedule = read_schedule(schedule.unwrap_or(&none), steps, &mut problems);
    let eval = eval.map(|map| read_eval(map, &mut problems));
    if let Some(ModelSource::Inline(model)) = &model {
        problems.extend(model_problems(&losses, model));
    }
    match (model, data, train) {
        (Some(model), Some(data), Some(train)) if problems.is_empty() => {
            Ok(RunSpec { model, data, optimizer, schedule, losses, train, eval })
        }
        _ => Err(problems),
    }
}

/// What contradicts between the run and its model.
pub(super) fn model_problems(losses: &Balance, model: &ModelSpec) -> Vec<Problem> {
    let mut problems = Vec::new();
    if losses.bias_update > 0.0 && !model.moe.router.selection_bias {
        let rule = format!("moves a selection bias, and {} models have none", model.family);
        let fix = "set it to 0, and losses.load_balance instead";
        problems.push(Problem::new("losses.bias_update", losses.bias_update, rule, fix));
    }
    problems
}

fn read_model(map: &Map<String, Value>, problems: &mut Vec<Problem>) -> Option<ModelSource> {
    let mut fields = Fields::new(map, "model.");
    let Some(value) = fields.get("from") else {
        if fields.get("family").is_none() {
            let fix = "name a Hugging Face directory, or give family and the keys of its config.json";
            problems.push(Problem::missing("model.from", fix));
            return None;
        }
        return match ModelSpec::from_inline(map, "model.") {
            Ok(spec) => Some(ModelSource::Inline(Box::new(spec))),
            Err(more) => {
                problems.extend(more);
                None
            }
        };
    };
    let path = fields.path("from");
    if let Some(family) = map.get("family") {
        let rule = format!("stands beside model.from = {value}");
        fields.get("family");
        fields.refuse("family", family, rule, "a model is read or written inline: remove one of the two");
    } else {
        fields.finish(|_| false, "stands beside model.from", "a model that is read has its own config: remove it");
    }
    problems.append(&mut fields.problems);
    path.map(ModelSource::From)
}

fn read_data(map: &Map<String, Value>, problems: &mut Vec<Problem>) -> Data {
    let mut fields = Fields::new(map, "data.");
    if fields.get("seq_len").is_none() {
        fields.missing("seq_len", "give the tokens of a row");
    }
    let seq_len = fields.count("seq_len", 0, 1..=COUNT_MAX);
    let orders = [("sequential", Order::Sequential), ("shuffled", Order::Shuffled)];
    let order = fields.choice("order", &orders);
    let sources = read_sources(&mut fields, "data", problems);
    close(fields, "data", problems);
    Data { seq_len, order, sources }
}

fn read_sources(fields: &mut Fields<'_>, table: &str, problems: &mut Vec<Problem>) -> Vec<Source> {
    let list = match fields.get("sources") {
        Some(Value::Array(list)) => list,
        Some(value) => {
            fields.refuse("sources", value, "is not a list", "write it as [{ path = \"…\" }]");
            return Vec::new();
        }
        None => {
            fields.missing("sources", "name at least one corpus: [{ path = \"…\" }]");
            return Vec::new();
        }
    };
    if list.is_empty() {
        fields.refuse("sources", "[]", "is empty", "name at least one corpus: [{ path = \"…\" }]");
    }
    let mut sources = Vec::new();
    for (index, value) in list.iter().enumerate() {
        let key = format!("sources.{index}");
        let Value::Object(map) = value else {
            fields.refuse(&key, value, "is not a table", "write it as { path = \"…\" }");
            continue;
        };
        let mut source = Fields::new(map, format!("{table}.{key}."));
        let path = source.path("path");
        if source.get("path").is_none() {
            source.missing("path", "name a Megatron prefix or a token file");
        }
        let weight = source.float_or("weight", 1.0);
        let rule = "is not a positive finite number";
        let holds = weight.is_finite() && weight > 0.0;
        source.refuse_unless(holds, "weight", weight, rule, "give its share relative to the other sources");
        close(source, &format!("{table}.sources"), problems);
        sources.extend(path.map(|path| Source { path, weight }));
    }
    sources
}

fn read_eval(map: &Map<String, Value>, problems: &mut Vec<Problem>) -> Eval {
    let mut fields = Fields::new(map, "eval.");
    let every_steps = fields.optional_size("every_steps", None).map(|steps| steps as u64);
    let rows = fields.optional_size("rows", None);
    for (key, zero) in [("every_steps", every_steps == Some(0)), ("rows", rows == Some(0))] {
        fields.refuse_unless(!zero, key, 0, "is not positive", "give at least 1, or remove it");
    }
    let sources = read_sources(&mut fields, "eval", problems);
    close(fields, "eval", problems);
    Eval { every_steps, sources, rows }
}

pub(super) fn close(mut fields: Fields<'_>, table: &str, problems: &mut Vec<Problem>) {
    fields.finish(|_| false, &format!("is not a key of [{table}]"), "remove it");
    problems.append(&mut fields.problems);
}
