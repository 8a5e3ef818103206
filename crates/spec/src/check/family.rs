//! What the models of each family can express: a spec outside of it has no `config.json`.

use super::Findings;
use crate::hf::Keys;
use crate::{Attention, Family, FeedForward, Gqa, ModelSpec, NormPlacement, QkNorm, Score};

const FIX: &str = "change it or choose another family";

impl ModelSpec {
    pub(super) fn check_family(&self, findings: &mut Findings) {
        let family = self.family;
        let deepseek = family == Family::DeepseekV3;
        match &self.attention {
            Attention::Gqa(gqa) => {
                findings.unless(!deepseek, "attention", "gqa", &[], "is not what deepseek_v3 has: mla", FIX);
                self.check_family_gqa(gqa, findings);
            }
            Attention::Mla(_) => {
                let rule = format!("is not what {family} has: gqa");
                findings.unless(deepseek, "attention", "mla", &[], rule, FIX);
            }
        }
        let post = family == Family::FlexOlmo;
        let (placed, needed) = if post { ("pre", "post") } else { ("post", "pre") };
        let rule = format!("is not where {family} has its norms: {needed}");
        findings.unless((self.norm == NormPlacement::Post) == post, "norm", placed, &[], rule, FIX);
        let rule = format!("is not what {family} does");
        findings.unless(deepseek || !self.rope.interleaved, "rope_interleave", true, &[], rule, FIX);
        self.check_family_layers(findings);
        self.check_family_router(findings);
        self.check_family_shared(findings);
    }

    fn check_family_gqa(&self, gqa: &Gqa, findings: &mut Findings) {
        let family = self.family;
        let needed = match family {
            Family::Qwen3Moe => QkNorm::PerHead,
            Family::Olmoe | Family::FlexOlmo => QkNorm::Whole,
            Family::Mixtral | Family::Qwen2Moe => QkNorm::None,
            Family::DeepseekV3 => return,
        };
        let rule = format!("is not the query/key norm of {family}: {needed:?}");
        findings.unless(gqa.qk_norm == needed, "qk_norm", format!("{:?}", gqa.qk_norm), &[], rule, FIX);
        let (holds, rule) = match family {
            Family::Mixtral => (!gqa.qkv_bias && !gqa.output_bias, "where mixtral has no biases"),
            Family::Qwen2Moe => (!gqa.output_bias, "where qwen2_moe has none on the output projection"),
            _ => (gqa.qkv_bias == gqa.output_bias, "where the family has both or none"),
        };
        let value = format!("{{ qkv: {}, output: {} }}", gqa.qkv_bias, gqa.output_bias);
        findings.unless(holds, "attention_bias", value, &[], rule, FIX);
        let width = gqa.heads.saturating_mul(gqa.head_dim);
        findings.unless(
            family != Family::Olmoe || width == self.hidden_size,
            "head_dim",
            gqa.head_dim,
            &["hidden_size", "num_attention_heads"],
            format!("times num_attention_heads = {} is not hidden_size = {}", gqa.heads, self.hidden_size),
            "olmoe has no heads of another size: leave head_dim out, and make hidden_size a multiple of the heads",
        );
    }

    fn check_family_layers(&self, findings: &mut Findings) {
        let family = self.family;
        let dense: Vec<usize> =
            (0..self.layer_count()).filter(|layer| self.layers[*layer] == FeedForward::Dense).collect();
        let (holds, rule) = match family {
            Family::Qwen3Moe | Family::Qwen2Moe => (true, String::new()),
            Family::DeepseekV3 => {
                let leading = dense.iter().enumerate().all(|(index, layer)| index == *layer);
                (leading, "are dense, and deepseek_v3 has dense layers only before the first MoE layer".to_owned())
            }
            Family::Olmoe | Family::Mixtral | Family::FlexOlmo => {
                (dense.is_empty(), format!("are dense, and {family} has no dense layers"))
            }
        };
        findings.unless(holds, "layers", format!("{dense:?}"), &[], rule, FIX);
    }

    fn check_family_router(&self, findings: &mut Findings) {
        let (family, router) = (self.family, &self.moe.router);
        let deepseek = family == Family::DeepseekV3;
        let (score, needed) =
            if router.score == Score::Sigmoid { ("sigmoid", "softmax") } else { ("softmax", "sigmoid") };
        let rule = format!("is not the score of {family}: {needed}");
        findings.unless((router.score == Score::Sigmoid) == deepseek, "scoring_func", score, &[], rule, FIX);
        let rule = "is not what mixtral does";
        let holds = router.renormalize || family != Family::Mixtral;
        findings.unless(holds, "norm_topk_prob", router.renormalize, &[], rule, FIX);
        let rule = format!("cannot be expressed by {family}");
        let holds = deepseek || router.scale == 1.0;
        findings.unless(holds, "routed_scaling_factor", router.scale, &[], rule.clone(), FIX);
        let bias = router.selection_bias;
        findings.unless(bias == deepseek, "selection_bias", bias, &[], rule.clone(), FIX);
        if let Some(groups) = router.groups {
            findings.unless(deepseek, "n_group", groups.groups, &[], rule, FIX);
        }
    }

    fn check_family_shared(&self, findings: &mut Findings) {
        let (family, keys, size) = (self.family, Keys::of(self.family), self.moe.intermediate_size);
        match (family, self.moe.shared) {
            (Family::Qwen2Moe, None) => {
                let rule = "is not what qwen2_moe has: a gated shared expert";
                findings.unless(false, keys.shared, "none", &[], rule, "give the size of its shared expert");
            }
            (Family::Qwen2Moe, Some(shared)) => {
                let rule = "is not what qwen2_moe has: a gated shared expert";
                findings.unless(shared.gated, "shared_expert_gate", false, &[], rule, FIX);
            }
            (Family::DeepseekV3, Some(shared)) => {
                let rule = "is not what deepseek_v3 has: shared experts without a gate";
                findings.unless(!shared.gated, "shared_expert_gate", true, &[], rule, FIX);
                let rule =
                    format!("experts: {} is no multiple of {} = {size}", shared.intermediate_size, keys.expert_size);
                let holds = size == 0 || shared.intermediate_size.is_multiple_of(size);
                let count = shared.intermediate_size as f64 / size as f64;
                findings.unless(holds, keys.shared, count, &[keys.expert_size], rule, "use a multiple");
            }
            (Family::DeepseekV3, None) => {}
            (_, shared) => {
                let value = shared.map_or(0, |shared| shared.intermediate_size);
                let rule = format!("is a shared expert, and {family} has none");
                findings.unless(shared.is_none(), keys.shared, value, &[], rule, FIX);
            }
        }
    }
}
