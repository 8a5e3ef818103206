//! From a `config.json` to a [`ModelSpec`].

use serde_json::{Map, Value, json};

use super::fields::{Fields, quoted};
use super::keys::{Defaults, Keys};
use super::rope::read_theta;
use crate::check::LAYERS_MAX;
use crate::problem::{Problem, SpecErrors};
use crate::{
    Attention, Family, FeedForward, Gqa, Grouping, Mla, ModelSpec, Moe, NormPlacement, QkNorm, Rope, Router, Score,
    SharedExpert,
};

impl ModelSpec {
    /// Reads the contents of a Hugging Face `config.json`, of transformers 4 or 5.
    ///
    /// # Errors
    /// Everything that is missing, mistyped, contradictory, unsupported or unknown, at once. None of it may be
    /// ignored: mend the file, or do not train that model.
    pub fn from_hf(config: &Value) -> Result<Self, SpecErrors> {
        let refuse = |problem| SpecErrors { origin: "config".to_owned(), problems: vec![problem] };
        let Value::Object(map) = config else {
            return Err(refuse(Problem::new("config", quoted(config), "is not a JSON object", "give a config.json")));
        };
        let families = Family::ALL.map(Family::model_type).join(", ");
        let family = match map.get("model_type") {
            None => return Err(refuse(Problem::missing("model_type", format!("give one of {families}")))),
            Some(value) => value.as_str().and_then(Family::from_model_type).ok_or_else(|| {
                refuse(Problem::new(
                    "model_type",
                    quoted(value),
                    "is not a family known here",
                    format!("use one of {families}"),
                ))
            })?,
        };
        read(family, map)
    }
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

fn read(family: Family, map: &Map<String, Value>) -> Result<ModelSpec, SpecErrors> {
    let mut fields = Fields::new(map, family);
    let fields = &mut fields;
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
    let default_token = |id: Option<u32>| id.filter(|id| (*id as usize) < vocab_size);
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
    fields.finish();
    let findings = spec.findings().into_iter();
    let sound = findings.filter(|finding| finding.keys.iter().all(|key| !fields.unread.contains(key)));
    fields.problems.extend(sound.map(|finding| finding.problem));
    SpecErrors::unless_empty("config", std::mem::take(&mut fields.problems))?;
    Ok(spec)
}

/// Fields that would change the mathematics in a way that is not implemented.
fn refuse_unsupported(family: Family, fields: &mut Fields<'_>) {
    let no = [Value::Null, json!(false)];
    let zero = [Value::Null, json!(0)];
    let off = "set it to what the model was trained with, if that is the plain one";
    fields.only("hidden_act", &[json!("silu")], "is not supported: experts are SwiGLU", "only silu is supported");
    fields.only("attention_dropout", &zero, "is not supported: there is no dropout", "set it to 0");
    fields.only("mlp_bias", &no, "is not supported: feed-forward layers have no bias", off);
    fields.only("per_layer_config", &[Value::Null, json!({})], "is not supported: all layers are alike", off);
    fields.only("pruned_heads", &[Value::Null, json!({})], "is not supported: all heads are there", off);
    fields.only("add_cross_attention", &no, "is not supported: there is no encoder", off);
    fields.only("cross_attention_hidden_size", &[Value::Null], "is not supported: there is no encoder", off);
    fields.only("is_encoder_decoder", &no, "is not supported: there is no encoder", off);
    fields.only("tie_encoder_decoder", &no, "is not supported: there is no encoder", off);
    let rule = "is not supported: weights are read as f32, bf16 or f16";
    fields.only("quantization_config", &[Value::Null], rule, "use a checkpoint that is not quantized");
    read_sliding_window(family, fields);
    match family {
        Family::Mixtral => {
            let rule = "is not supported: noise on the router's input";
            fields.only("router_jitter_noise", &[json!(0)], rule, "set it to 0 to train without it");
            fields.only("attention_bias", &no, "is not supported: mixtral's attention has no biases", off);
        }
        Family::Olmoe => {
            let rule = "is not supported: clipped queries, keys and values";
            fields.only("clip_qkv", &[Value::Null], rule, "only null is supported");
        }
        Family::Qwen2Moe => {
            let rule = "is not supported: qwen2_moe's biases are qkv_bias";
            fields.only("attention_bias", &no, rule, "use qkv_bias");
        }
        Family::DeepseekV3 => {
            fields.only("scoring_func", &[json!("sigmoid")], "is not supported: deepseek_v3 has sigmoid scores", off);
            let rule = "is not supported: deepseek_v3 selects with a bias, without an auxiliary loss";
            fields.only("topk_method", &[json!("noaux_tc")], rule, off);
            let rule = "is not supported: every layer after the first dense ones is MoE";
            fields.only("moe_layer_freq", &[json!(1)], rule, "only 1 is supported");
            let rule = "is not supported: projections in slices";
            fields.only("pretraining_tp", &[Value::Null, json!(1)], rule, "only 1 is supported");
        }
        Family::Qwen3Moe | Family::FlexOlmo => {}
    }
}

/// Refuses attention over a window, where it takes effect.
fn read_sliding_window(family: Family, fields: &mut Fields<'_>) {
    let rule = "is not supported: attention over a sliding window";
    let fix = "if all sequences are shorter than the window, turn it off";
    match family {
        Family::Mixtral => fields.only("sliding_window", &[Value::Null], rule, fix),
        Family::Qwen3Moe | Family::Qwen2Moe => {
            let on = fields.flag_or("use_sliding_window", false);
            let window = fields.get("sliding_window");
            if on && window != Some(&Value::Null) {
                let size = window.cloned().unwrap_or(json!(4096));
                let rule = format!("with sliding_window = {size} {rule}");
                fields.refuse("use_sliding_window", &Value::Bool(true), rule, fix);
            }
        }
        Family::Olmoe | Family::FlexOlmo | Family::DeepseekV3 => {}
    }
    let layers = fields.get("num_hidden_layers").and_then(Value::as_u64);
    let Some(kinds) = fields.get("layer_types") else { return };
    match kinds {
        Value::Null => {}
        Value::Array(list) => {
            if let Some((layer, kind)) = list.iter().enumerate().find(|(_, kind)| *kind != "full_attention") {
                let rule = format!("is not supported at layer {layer}: {kind}");
                fields.refuse("layer_types", kinds, rule, "only full_attention is supported");
            }
            if layers.is_some_and(|layers| layers != list.len() as u64) {
                let rule = format!("names {} layers of num_hidden_layers = {}", list.len(), layers.unwrap_or(0));
                fields.refuse("layer_types", kinds, rule, "name every layer once, or remove it");
            }
        }
        _ => fields.refuse("layer_types", kinds, "is not a list", "correct it"),
    }
}

fn read_gqa(family: Family, hidden_size: usize, fields: &mut Fields<'_>) -> Gqa {
    let heads = fields.size("num_attention_heads");
    // transformers takes one key/value head for each head where the class has no default, and for null.
    let default = Defaults::of(family).kv_heads.unwrap_or(heads);
    let kv_heads = fields.optional_size("num_key_value_heads", Some(default)).unwrap_or(heads);
    let default = hidden_size.checked_div(heads).unwrap_or(0);
    let head_dim = fields.optional_size("head_dim", Some(default)).unwrap_or(default);
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
        fields.problems.push(Problem::new("num_key_value_heads", kv_heads, rule, "make them equal, or leave it out"));
    }
    if fields.get("q_lora_rank").is_none() {
        fields.unread.insert("q_lora_rank");
        fields.problems.push(Problem::missing("q_lora_rank", "add it; null (in TOML 0) projects queries directly"));
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

fn read_layers(family: Family, fields: &mut Fields<'_>) -> Vec<FeedForward> {
    let mut count = fields.size("num_hidden_layers");
    if count > LAYERS_MAX {
        let rule = format!("exceeds the most layers, {LAYERS_MAX}");
        fields.problems.push(Problem::new("num_hidden_layers", count, rule, "check the file"));
        fields.unread.insert("num_hidden_layers");
        count = 0;
    }
    let kind = |dense| if dense { FeedForward::Dense } else { FeedForward::Moe };
    match family {
        Family::Qwen3Moe | Family::Qwen2Moe => {
            let step = fields.size_or("decoder_sparse_step", 1);
            if step == 0 {
                fields.unread.insert("decoder_sparse_step");
                fields.problems.push(Problem::new(
                    "decoder_sparse_step",
                    0,
                    "is not positive",
                    "1 makes every layer MoE",
                ));
            }
            let dense = fields.sizes("mlp_only_layers");
            let known = !fields.unread.contains("num_hidden_layers");
            if let Some(layer) = dense.iter().find(|layer| known && **layer >= count) {
                let rule = format!("names layer {layer}, of num_hidden_layers = {count}");
                let fix = "layers are counted from 0; remove it";
                fields.problems.push(Problem::new("mlp_only_layers", format!("{dense:?}"), rule, fix));
            }
            (0..count).map(|layer| kind(dense.contains(&layer) || step == 0 || (layer + 1) % step != 0)).collect()
        }
        Family::DeepseekV3 => {
            let dense = fields.size_or("first_k_dense_replace", 3);
            (0..count).map(|layer| kind(layer < dense)).collect()
        }
        Family::Olmoe | Family::Mixtral | Family::FlexOlmo => vec![FeedForward::Moe; count],
    }
}

fn read_moe(family: Family, keys: Keys, defaults: Defaults, fields: &mut Fields<'_>) -> Moe {
    let experts = read_experts(family, keys, fields);
    let intermediate_size = fields.size(keys.expert_size);
    let renormalize = match family {
        Family::Mixtral => true,
        // null is false in the classes that allow it.
        _ if fields.get("norm_topk_prob") == Some(&Value::Null) => false,
        _ => fields.flag_or("norm_topk_prob", defaults.norm_topk_prob),
    };
    let mut router = Router {
        top_k: fields.size("num_experts_per_tok"),
        score: Score::Softmax,
        renormalize,
        scale: 1.0,
        groups: None,
        selection_bias: false,
    };
    let shared = match family {
        Family::Qwen2Moe => {
            Some(SharedExpert { intermediate_size: fields.size("shared_expert_intermediate_size"), gated: true })
        }
        Family::DeepseekV3 => {
            router.score = Score::Sigmoid;
            router.selection_bias = true;
            router.scale = fields.float_or("routed_scaling_factor", 2.5);
            router.groups = read_groups(fields);
            let count = fields.optional_size("n_shared_experts", Some(1)).unwrap_or(0);
            let size = count.saturating_mul(intermediate_size);
            (count > 0).then_some(SharedExpert { intermediate_size: size, gated: false })
        }
        Family::Qwen3Moe | Family::Olmoe | Family::Mixtral | Family::FlexOlmo => None,
    };
    Moe { experts, intermediate_size, router, shared }
}

/// E, under any of the names that the family's class takes for it; all of them have to agree.
fn read_experts(family: Family, keys: Keys, fields: &mut Fields<'_>) -> usize {
    let aliases: &[&'static str] = match family {
        Family::Qwen3Moe | Family::Olmoe | Family::FlexOlmo => &["num_experts", "num_local_experts"],
        Family::Mixtral => &["num_local_experts", "num_experts"],
        Family::Qwen2Moe => &["num_experts"],
        Family::DeepseekV3 => &["n_routed_experts", "num_local_experts"],
    };
    let mut given = Vec::new();
    for alias in aliases {
        if fields.get(alias).is_some() {
            given.push((*alias, fields.size_or(alias, 0)));
            if fields.unread.contains(alias) {
                fields.unread.insert(keys.experts);
            }
        }
    }
    let Some((first, experts)) = given.first().copied() else { return fields.size(keys.experts) };
    for (alias, other) in &given[1..] {
        if *other != experts {
            let rule = format!("contradicts {first} = {experts}");
            fields.problems.push(Problem::new(*alias, other, rule, "make them equal or remove one"));
        }
    }
    experts
}

/// Group-limited selection; a single group limits nothing and is none.
fn read_groups(fields: &mut Fields<'_>) -> Option<Grouping> {
    let groups = fields.optional_size("n_group", Some(8)).unwrap_or(1);
    let default = if groups == 1 { 1 } else { 4 };
    let top_groups = fields.optional_size("topk_group", Some(default)).unwrap_or(default);
    if groups == 1 && top_groups != 1 && !fields.unread.contains("topk_group") {
        let rule = "is not 1, the number of groups (n_group)";
        fields.problems.push(Problem::new("topk_group", top_groups, rule, "set it to 1 or raise n_group"));
    }
    (groups != 1).then_some(Grouping { groups, top_groups })
}
