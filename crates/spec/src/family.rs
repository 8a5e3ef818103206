//! The families by name.

use std::fmt;

use crate::Family;

impl Family {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Qwen3Moe, Self::Olmoe, Self::Mixtral, Self::FlexOlmo, Self::Qwen2Moe, Self::DeepseekV3];

    /// Its `model_type` in a `config.json`, which is also its name in a run spec.
    #[must_use]
    pub fn model_type(self) -> &'static str {
        match self {
            Self::Qwen3Moe => "qwen3_moe",
            Self::Olmoe => "olmoe",
            Self::Mixtral => "mixtral",
            Self::FlexOlmo => "flex_olmo",
            Self::Qwen2Moe => "qwen2_moe",
            Self::DeepseekV3 => "deepseek_v3",
        }
    }

    /// The class of its language models in transformers.
    #[must_use]
    pub fn architecture(self) -> &'static str {
        match self {
            Self::Qwen3Moe => "Qwen3MoeForCausalLM",
            Self::Olmoe => "OlmoeForCausalLM",
            Self::Mixtral => "MixtralForCausalLM",
            Self::FlexOlmo => "FlexOlmoForCausalLM",
            Self::Qwen2Moe => "Qwen2MoeForCausalLM",
            Self::DeepseekV3 => "DeepseekV3ForCausalLM",
        }
    }

    /// The family of that `model_type`; `None` if it is not one of them.
    #[must_use]
    pub fn from_model_type(model_type: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|family| family.model_type() == model_type)
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.model_type())
    }
}
