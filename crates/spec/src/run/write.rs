//! From a [`RunSpec`] to JSON and TOML that read back as the same spec.

use serde_json::{Map, Value, json};

use super::{ModelSource, RunSpec};
use crate::{ModelSpec, TorchDtype};

/// Keys of a config that are not part of an inline model.
const NOT_INLINE: &[&str] = &[
    "architectures",
    "model_type",
    "dtype",
    "torch_dtype",
    "num_nextn_predict_layers",
    "output_router_logits",
    "rope_parameters",
    "use_cache",
];

impl RunSpec {
    /// The spec with all defaults filled in, as JSON.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let model = match &self.model {
            ModelSource::From(path) => json!({ "from": path.to_string_lossy() }),
            ModelSource::Inline(spec) => inline(spec),
        };
        let mut spec = json!({
            "model": model,
            "data": self.data,
            "optimizer": self.optimizer,
            "schedule": self.schedule,
            "losses": self.losses,
            "train": self.train,
        });
        if let (Value::Object(map), Some(eval)) = (&mut spec, &self.eval) {
            map.insert("eval".to_owned(), json!(eval));
        }
        spec
    }

    /// The spec with all defaults filled in, as TOML.
    #[must_use]
    pub fn to_toml(&self) -> String {
        toml::to_string(&self.to_json()).expect("a run spec has no nulls, and its keys are text")
    }
}

impl From<RunSpec> for Value {
    fn from(spec: RunSpec) -> Self {
        spec.to_json()
    }
}

/// A model as it is written inline: its config without nulls, which TOML does not have.
fn inline(spec: &ModelSpec) -> Value {
    let mut inline = Map::from_iter([("family".to_owned(), json!(spec.family.model_type()))]);
    for (key, value) in spec.config(TorchDtype::Float32) {
        match (key.as_str(), value) {
            ("q_lora_rank", Value::Null) => inline.insert(key, json!(0)),
            (_, Value::Null) => None,
            (known, _) if NOT_INLINE.contains(&known) => None,
            (_, value) => inline.insert(key, value),
        };
    }
    Value::Object(inline)
}
