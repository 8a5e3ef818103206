//! What a model spec must satisfy before anything is built from it.
//!
//! All contradictions at once. Keys are those of the family's `config.json`, which is also how a model is written
//! inline in a run spec. What a family's own models cannot express is in `family`.

mod family;

use crate::hf::Keys;
use crate::problem::{Problem, SpecErrors};
use crate::{Attention, FeedForward, Gqa, Grouping, Mla, ModelSpec};

/// The largest number of layers: a bound on what is allocated for a number in a file.
pub(crate) const LAYERS_MAX: usize = 1 << 16;
/// The largest size or number of anything else.
const SIZE_MAX: usize = 1 << 24;
/// The most experts in all layers together: a bound on the list of a model's tensors.
const EXPERTS_MAX: usize = 1 << 22;
/// The largest model, in parameters: far above what is trained, far below where counts overflow.
const PARAMETERS_MAX: f64 = 1e16;

/// A problem and every key that its rule reads.
///
/// The reader of a config drops findings about keys that it could not read, instead of reporting what follows from
/// its own stand-in values.
pub(crate) struct Finding {
    pub(crate) problem: Problem,
    pub(crate) keys: Vec<&'static str>,
}

/// Collects findings.
struct Findings(Vec<Finding>);

impl Findings {
    /// Notes that `key = value` breaks `rule`, if it does. `others` are the further keys that the rule reads.
    fn unless(
        &mut self,
        holds: bool,
        key: &'static str,
        value: impl std::fmt::Display,
        others: &[&'static str],
        rule: impl Into<String>,
        fix: impl Into<String>,
    ) {
        if !holds {
            let keys = std::iter::once(key).chain(others.iter().copied()).collect();
            self.0.push(Finding { problem: Problem::new(key, value, rule, fix), keys });
        }
    }

    fn size(&mut self, key: &'static str, value: usize) {
        self.unless(value > 0, key, value, &[], "is not positive", "give a number of at least 1");
        let rule = format!("exceeds the largest size, {SIZE_MAX}");
        self.unless(value <= SIZE_MAX, key, value, &[], rule, "check the file");
    }

    fn positive(&mut self, key: &'static str, value: f64) {
        let holds = value.is_finite() && value > 0.0;
        self.unless(holds, key, value, &[], "is not a positive finite number", "give one above 0");
    }
}

impl ModelSpec {
    /// Checks that the spec describes a model that can be built, and that its family can express.
    ///
    /// # Errors
    /// Every contradiction, with key (as in the family's `config.json`), value, rule and fix.
    pub fn check(&self) -> Result<(), SpecErrors> {
        SpecErrors::unless_empty("model", self.findings().into_iter().map(|finding| finding.problem).collect())
    }

    pub(crate) fn findings(&self) -> Vec<Finding> {
        let mut findings = Findings(Vec::new());
        findings.size("vocab_size", self.vocab_size);
        findings.size("hidden_size", self.hidden_size);
        findings.size("num_hidden_layers", self.layer_count());
        findings.size("max_position_embeddings", self.max_position_embeddings);
        findings.positive("rms_norm_eps", self.norm_eps);
        findings.positive("initializer_range", self.initializer_range);
        findings.positive("rope_theta", self.rope.theta);
        match &self.attention {
            Attention::Gqa(gqa) => check_gqa(gqa, &mut findings),
            Attention::Mla(mla) => check_mla(mla, &mut findings),
        }
        self.check_layers(&mut findings);
        self.check_moe(&mut findings);
        self.check_family(&mut findings);
        if findings.0.is_empty() {
            self.check_total(&mut findings);
        }
        findings.0
    }

    fn check_layers(&self, findings: &mut Findings) {
        let layers = self.layer_count();
        let rule = format!("exceeds the most layers, {LAYERS_MAX}");
        findings.unless(layers <= LAYERS_MAX, "num_hidden_layers", layers, &[], rule, "check the file");
        let dense = self.layers.contains(&FeedForward::Dense);
        let keys = Keys::of(self.family);
        match self.dense_intermediate_size {
            Some(size) => {
                findings.size("intermediate_size", size);
                let rule = "is the size of dense layers, of which there are none";
                findings.unless(
                    dense,
                    "intermediate_size",
                    size,
                    keys.layout,
                    rule,
                    "leave it out or add dense layers",
                );
            }
            None => findings.unless(
                !dense,
                "intermediate_size",
                "none",
                keys.layout,
                "leaves the dense layers without a size",
                "give their size",
            ),
        }
    }

    fn check_moe(&self, findings: &mut Findings) {
        let keys = Keys::of(self.family);
        let (moe, router) = (&self.moe, &self.moe.router);
        findings.size(keys.experts, moe.experts);
        findings.size(keys.expert_size, moe.intermediate_size);
        findings.size("num_experts_per_tok", router.top_k);
        let rule = format!("exceeds {} = {}", keys.experts, moe.experts);
        let holds = moe.experts == 0 || router.top_k <= moe.experts;
        findings.unless(holds, "num_experts_per_tok", router.top_k, &[keys.experts], rule, "lower it or add experts");
        findings.positive("routed_scaling_factor", router.scale);
        if let Some(shared) = moe.shared {
            findings.size(keys.shared, shared.intermediate_size);
        }
        if let Some(groups) = router.groups {
            self.check_groups(groups, keys, findings);
        }
    }

    fn check_groups(&self, Grouping { groups, top_groups }: Grouping, keys: Keys, findings: &mut Findings) {
        let (experts, top_k) = (self.moe.experts, self.moe.router.top_k);
        let rule = "limits nothing";
        findings.unless(groups > 1, "n_group", groups, &[], rule, "give at least 2 groups, or leave groups out");
        let rule = format!("does not divide {} = {experts}", keys.experts);
        let divides = groups > 0 && experts.is_multiple_of(groups);
        findings.unless(divides, "n_group", groups, &[keys.experts], rule, "choose a divisor");
        findings.size("topk_group", top_groups);
        let rule = format!("exceeds n_group = {groups}");
        findings.unless(top_groups <= groups, "topk_group", top_groups, &["n_group"], rule, "lower it or add groups");
        if !divides || experts == 0 {
            return;
        }
        let each = experts / groups;
        let rule = format!("leaves {each} expert in a group, whose rank is the sum of its two best scores");
        findings.unless(each >= 2 || groups < 2, "n_group", groups, &[keys.experts], rule, "use fewer groups");
        let open = each.saturating_mul(top_groups);
        findings.unless(
            top_k <= open,
            "num_experts_per_tok",
            top_k,
            &["n_group", "topk_group", keys.experts],
            format!("exceeds the {open} experts of topk_group = {top_groups} groups of {each}"),
            "lower it or raise topk_group",
        );
    }

    /// The sizes are each plausible; is the whole? Counted in f64, which cannot overflow.
    fn check_total(&self, findings: &mut Findings) {
        let (key, experts) = (Keys::of(self.family).experts, self.moe.experts);
        let holds = experts.saturating_mul(self.moe_layer_count()) <= EXPERTS_MAX;
        let rule = format!("gives more experts in all layers than the {EXPERTS_MAX} that can be listed");
        findings.unless(holds, key, experts, &[], rule, "check the sizes");
        let h = self.hidden_size as f64;
        let (heads, dims) = match &self.attention {
            Attention::Gqa(a) => (a.heads, 4 * a.head_dim),
            Attention::Mla(a) => (a.heads, 2 * (a.qk_nope_head_dim + a.qk_rope_head_dim + a.v_head_dim)),
        };
        let feed_forward = (self.moe.experts as f64) * (self.moe.intermediate_size as f64)
            + self.dense_intermediate_size.unwrap_or(0) as f64;
        let layer = h * (heads as f64 * dims as f64 + 3.0 * feed_forward);
        let total = self.layer_count() as f64 * layer + 2.0 * self.vocab_size as f64 * h;
        let rule = format!("gives a model of {total:.1e} parameters, above the {PARAMETERS_MAX:.0e} that are counted");
        findings.unless(total <= PARAMETERS_MAX, "hidden_size", self.hidden_size, &[], rule, "check the sizes");
    }
}

fn check_gqa(gqa: &Gqa, findings: &mut Findings) {
    findings.size("num_attention_heads", gqa.heads);
    findings.size("num_key_value_heads", gqa.kv_heads);
    findings.size("head_dim", gqa.head_dim);
    let rule = format!("is no multiple of num_key_value_heads = {}", gqa.kv_heads);
    let holds = gqa.kv_heads == 0 || gqa.heads.is_multiple_of(gqa.kv_heads);
    let others = &["num_key_value_heads"];
    findings.unless(holds, "num_attention_heads", gqa.heads, others, rule, "change one of the two");
    // A head size that is not given follows from these two.
    let others = &["hidden_size", "num_attention_heads"];
    let rule = "is odd, and rotary embedding turns pairs";
    findings.unless(gqa.head_dim.is_multiple_of(2), "head_dim", gqa.head_dim, others, rule, "make it even");
}

fn check_mla(mla: &Mla, findings: &mut Findings) {
    findings.size("num_attention_heads", mla.heads);
    if let Some(rank) = mla.q_lora_rank {
        findings.size("q_lora_rank", rank);
    }
    findings.size("kv_lora_rank", mla.kv_lora_rank);
    findings.size("qk_nope_head_dim", mla.qk_nope_head_dim);
    findings.size("qk_rope_head_dim", mla.qk_rope_head_dim);
    findings.size("v_head_dim", mla.v_head_dim);
    let rope = mla.qk_rope_head_dim;
    let rule = "is odd, and rotary embedding turns pairs";
    findings.unless(rope.is_multiple_of(2), "qk_rope_head_dim", rope, &[], rule, "make it even");
}
