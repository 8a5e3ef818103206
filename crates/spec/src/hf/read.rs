//! From a `config.json` to a [`ModelSpec`].

use serde_json::{Map, Value, json};

use super::experts::{read_layers, read_moe};
use super::keys::{Defaults, Keys};
use super::known::is_harmless;
use super::refuse::refuse_unsupported;
use super::rope::read_theta;
use crate::check::Finding;
use crate::fields::Fields;
use crate::problem::{Problem, SpecErrors};
use crate::{Attention, Family, FeedForward, Gqa, Mla, ModelSpec, NormPlacement, QkNorm, Rope};

/// Where a config stands, which decides what its absent token ids mean.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    /// A `config.json`: the ids of the family's own tokenizer, as in transformers.
    File,
    /// A run spec: none.
    RunSpec,
}

impl ModelSpec {
    /// Reads the contents of a Hugging Face `config.json`, of transformers 4 or 5.
    ///
    /// # Errors
    /// Everything that is missing, mistyped, contradictory, unsupported or unknown, at once. None of it may be
    /// ignored: mend the file, or do not train that model.
    pub fn from_hf(config: &Value) -> Result<Self, SpecErrors> {
        let errors = |problems| SpecErrors { origin: "config".to_owned(), problems };
        let Value::Object(map) = config else {
            let problem = Problem::new("config", config, "is not a JSON object", "give the contents of a config.json");
            return Err(errors(vec![problem]));
        };
        let mut fields = Fields::new(map, "");
        match read_family("model_type", &mut fields) {
            Some(family) => read(family, Place::File, &mut fields),
            None => Err(fields.problems),
        }
        .map_err(errors)
    }

    /// Reads a model written inline in a run spec: a `config.json` with `family` for `model_type`, keys after `prefix`.
    pub(crate) fn from_inline(map: &Map<String, Value>, prefix: &str) -> Result<Self, Vec<Problem>> {
        let mut fields = Fields::new(map, prefix);
        match read_family("family", &mut fields) {
            Some(family) => read(family, Place::RunSpec, &mut fields),
            None => Err(fields.problems),
        }
    }
}

fn read_family(key: &'static str, fields: &mut Fields<'_>) -> Option<Family> {
    let fix = format!("give one of {}", Family::ALL.map(Family::model_type).join(", "));
    let Some(value) = fields.get(key) else {
        fields.missing(key, fix);
        return None;
    };
    let family = value.as_str().and_then(Family::from_model_type);
    if family.is_none() {
        fields.refuse(key, value, "is not a known family", fix);
    }
    family
}

/// How many multi-token prediction modules follow the layers of a DeepSeek-V3 checkpoint: its layers L to L+n.
///
/// They predict further tokens from the last hidden state and take no part in the model's own output. They are not
/// part of a [`ModelSpec`]; as in transformers, their tensors are left unread and are not written.
#[must_use]
pub fn prediction_layers(config: &Value) -> usize {
    let count = |key| config.get(key).and_then(Value::as_u64).and_then(|count| usize::try_from(count).ok());
    count("num_nextn_predict_layers").or_else(|| count("num_mtp_layers")).unwrap_or(0)
}

fn read(family: Family, place: Place, fields: &mut Fields<'_>) -> Result<ModelSpec, Vec<Problem>> {
    refuse_unsupported(family, fields);
    let (keys, defaults) = (Keys::of(family), Defaults::of(family));
    let vocab_size = fields.size("vocab_size");
    let hidden_size = fields.size("hidden_size");
    let attention = match family {
        Family::DeepseekV3 => Attention::Mla(read_mla(fields)),
        _ => Attention::Gqa(read_gqa(family, hidden_size, fields)),
    };
    let rope = Rope {
        theta: read_theta(fields, defaults.rope_theta),
        interleaved: family == Family::DeepseekV3 && fields.flag_or("rope_interleave", true),
    };
    let layers = read_layers(family, fields);
    let dense = layers.contains(&FeedForward::Dense);
    let dense_intermediate_size = if keys.layout.is_empty() {
        None
    } else if dense {
        Some(fields.size("intermediate_size"))
    } else {
        fields.get("intermediate_size");
        None
    };
    let moe = read_moe(family, keys, defaults, fields);
    // A class default that lies outside this vocabulary names no token of it.
    let default_token = |id: Option<u32>| id.filter(|id| place == Place::File && (*id as usize) < vocab_size);
    let spec = ModelSpec {
        family,
        vocab_size,
        hidden_size,
        attention,
        rope,
        norm: if family == Family::FlexOlmo { NormPlacement::Post } else { NormPlacement::Pre },
        norm_eps: fields.float_or("rms_norm_eps", defaults.rms_norm_eps),
        layers,
        moe,
        dense_intermediate_size,
        tied_embeddings: fields.flag_or("tie_word_embeddings", false),
        max_position_embeddings: fields.size_or("max_position_embeddings", defaults.max_position_embeddings),
        initializer_range: fields.float_or("initializer_range", 0.02),
        eos_token_ids: fields.tokens("eos_token_id", default_token(defaults.eos_token_id)),
        bos_token_id: fields.token("bos_token_id", default_token(defaults.bos_token_id)),
        pad_token_id: fields.token("pad_token_id", default_token(defaults.pad_token_id)),
    };
    let accepted = |key: &str| place == Place::File && is_harmless(family, key);
    let rule = match place {
        Place::File => format!("is not known to be harmless in {family}"),
        Place::RunSpec => format!("is not a key of a {family} model"),
    };
    fields.finish(accepted, &rule, "remove it, if the model does not depend on it");
    for Finding { problem, keys } in spec.findings() {
        if keys.iter().all(|key| !fields.unread.contains(key)) {
            fields.refuse(&problem.key, problem.value.unwrap_or_default(), problem.rule, problem.fix);
        }
    }
    let problems = std::mem::take(&mut fields.problems);
    if problems.is_empty() { Ok(spec) } else { Err(problems) }
}

fn read_gqa(family: Family, hidden_size: usize, fields: &mut Fields<'_>) -> Gqa {
    let heads = fields.size("num_attention_heads");
    // transformers takes one key/value head for each head where the class has no default, and for null.
    let default = Defaults::of(family).kv_heads.unwrap_or(heads);
    let kv_heads = fields.optional_size("num_key_value_heads", Some(default)).unwrap_or(heads);
    let default = hidden_size.checked_div(heads).unwrap_or(0);
    let head_dim = fields.optional_size("head_dim", Some(default)).unwrap_or(default);
    // What follows from a number that is wrong is not reported as well.
    if heads == 0 || fields.unread.contains("num_attention_heads") {
        fields.unread.extend(["num_key_value_heads", "head_dim"]);
    }
    if hidden_size == 0 {
        fields.unread.insert("head_dim");
    }
    let (qkv_bias, output_bias) = match family {
        Family::Qwen2Moe => (fields.flag_or("qkv_bias", true), false),
        Family::Mixtral => (false, false),
        _ => {
            let bias = fields.flag_or("attention_bias", false);
            (bias, bias)
        }
    };
    let qk_norm = match family {
        Family::Qwen3Moe => QkNorm::PerHead,
        Family::Olmoe | Family::FlexOlmo => QkNorm::Whole,
        Family::Mixtral | Family::Qwen2Moe | Family::DeepseekV3 => QkNorm::None,
    };
    Gqa { heads, kv_heads, head_dim, qk_norm, qkv_bias, output_bias }
}

fn read_mla(fields: &mut Fields<'_>) -> Mla {
    let heads = fields.size("num_attention_heads");
    let kv_heads = fields.optional_size("num_key_value_heads", Some(heads)).unwrap_or(heads);
    if kv_heads != heads && !fields.unread.contains("num_key_value_heads") {
        let rule = format!("is not num_attention_heads = {heads}, and every head of latent attention has its own keys");
        fields.refuse("num_key_value_heads", kv_heads, rule, "make them equal, or leave it out");
    }
    if fields.get("q_lora_rank").is_none() {
        fields.missing("q_lora_rank", "add it; null (in TOML 0) projects queries directly");
    }
    let mla = Mla {
        heads,
        q_lora_rank: fields.optional_size("q_lora_rank", None).filter(|rank| *rank > 0),
        kv_lora_rank: fields.size("kv_lora_rank"),
        qk_nope_head_dim: fields.size("qk_nope_head_dim"),
        qk_rope_head_dim: fields.size("qk_rope_head_dim"),
        v_head_dim: fields.size("v_head_dim"),
        bias: fields.flag_or("attention_bias", false),
    };
    // transformers derives these two and writes them; another value would be another model.
    let (rope, qk) = (mla.qk_rope_head_dim, mla.qk_nope_head_dim.saturating_add(mla.qk_rope_head_dim));
    let rule = format!("is not qk_rope_head_dim = {rope}, from which it follows");
    fields.only("head_dim", &[json!(rope)], &rule, "remove it");
    let rule = format!("is not qk_nope_head_dim + qk_rope_head_dim = {qk}, from which it follows");
    fields.only("qk_head_dim", &[json!(qk)], &rule, "remove it");
    mla
}
