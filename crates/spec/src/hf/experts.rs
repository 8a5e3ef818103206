//! Which layers are dense, and the mixture of experts of the others.

use serde_json::Value;

use super::keys::{Defaults, Keys};
use crate::check::LAYERS_MAX;
use crate::fields::Fields;
use crate::{Family, FeedForward, Grouping, Moe, Router, Score, SharedExpert};

/// The kind of each layer.
pub(super) fn read_layers(family: Family, fields: &mut Fields<'_>) -> Vec<FeedForward> {
    let mut count = fields.size("num_hidden_layers");
    if count > LAYERS_MAX {
        let rule = format!("exceeds the most layers, {LAYERS_MAX}");
        fields.refuse("num_hidden_layers", count, rule, "check the file");
        fields.unread.insert("num_hidden_layers");
        count = 0;
    }
    let kind = |dense| if dense { FeedForward::Dense } else { FeedForward::Moe };
    match family {
        Family::Qwen3Moe | Family::Qwen2Moe => {
            let step = fields.size_or("decoder_sparse_step", 1);
            if step == 0 {
                fields.unread.insert("decoder_sparse_step");
                fields.refuse("decoder_sparse_step", 0, "is not positive", "1 makes every layer MoE");
            }
            let dense = fields.sizes("mlp_only_layers");
            let known = !fields.unread.contains("num_hidden_layers");
            if let Some(layer) = dense.iter().find(|layer| known && **layer >= count) {
                let rule = format!("names layer {layer}, of num_hidden_layers = {count}");
                let fix = "layers are counted from 0; remove it";
                fields.refuse("mlp_only_layers", format!("{dense:?}"), rule, fix);
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

/// The experts and their router.
pub(super) fn read_moe(family: Family, keys: Keys, defaults: Defaults, fields: &mut Fields<'_>) -> Moe {
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
            if intermediate_size == 0 {
                // Reported itself; what follows from it is not.
                fields.unread.insert(keys.shared);
            }
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
            fields.refuse(alias, other, rule, "make them equal or remove one");
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
        fields.refuse("topk_group", top_groups, rule, "set it to 1 or raise n_group");
    }
    (groups != 1).then_some(Grouping { groups, top_groups })
}
