//! Fields that may stand in a `config.json` without changing what the model computes.

use crate::Family;

/// Of every family: bookkeeping, caches, outputs, generation settings, and the auxiliary loss, which is not part of
/// the model here but asked for in the run spec.
const HARMLESS: &[&str] = &[
    "_attn_implementation",
    "_attn_implementation_autoset",
    "_commit_hash",
    "_name_or_path",
    "architectures",
    "attn_implementation",
    "auto_map",
    "begin_suppress_tokens",
    "bad_words_ids",
    "chunk_size_feed_forward",
    "decoder_start_token_id",
    "diversity_penalty",
    "do_sample",
    "dtype",
    "early_stopping",
    "encoder_no_repeat_ngram_size",
    "experts_implementation",
    "exponential_decay_length_penalty",
    "finetuning_task",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "id2label",
    "is_decoder",
    "label2id",
    "length_penalty",
    "max_length",
    "min_length",
    "model_type",
    "name_or_path",
    "no_repeat_ngram_size",
    "num_beam_groups",
    "num_beams",
    "num_labels",
    "num_return_sequences",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
    "output_scores",
    "prefix",
    "problem_type",
    "remove_invalid_values",
    "repetition_penalty",
    "return_dict",
    "return_dict_in_generate",
    "router_aux_loss_coef",
    "sep_token_id",
    "suppress_tokens",
    "task_specific_params",
    "temperature",
    "tf_legacy_loss",
    "tie_last_hidden_states",
    "tokenizer_class",
    "top_k",
    "top_p",
    "torch_dtype",
    "torchscript",
    "transformers_version",
    "typical_p",
    "use_bfloat16",
    "use_cache",
];

/// Of DeepSeek-V3's own files: training settings, and how many next-token modules follow the layers of the model.
const HARMLESS_DEEPSEEK: &[&str] =
    &["aux_loss_alpha", "ep_size", "num_mtp_layers", "num_nextn_predict_layers", "seq_aux"];

/// Of the Qwen families: which layers would slide, if sliding were on (it is refused).
const HARMLESS_QWEN: &[&str] = &["max_window_layers"];

/// The field is accepted without being read.
pub(super) fn is_harmless(family: Family, key: &str) -> bool {
    let own = match family {
        Family::DeepseekV3 => HARMLESS_DEEPSEEK,
        Family::Qwen2Moe | Family::Qwen3Moe => HARMLESS_QWEN,
        Family::Olmoe | Family::Mixtral | Family::FlexOlmo => &[],
    };
    HARMLESS.contains(&key) || own.contains(&key)
}
