//! Fields that change the mathematics in a way that is not implemented: each refused by name, unless it is off.

use serde_json::{Value, json};

use crate::Family;
use crate::fields::Fields;

/// Fields that would change the mathematics in a way that is not implemented.
pub(super) fn refuse_unsupported(family: Family, fields: &mut Fields<'_>) {
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
                fields.refuse("use_sliding_window", true, rule, fix);
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
