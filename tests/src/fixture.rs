//! A stored fixture: a tiny model of one family and its oracle.

use std::collections::HashMap;
use std::path::PathBuf;

use cambium_model::files::load_spec;
use cambium_spec::ModelSpec;
use candle_core::{DType, Device, Tensor};
use serde::Deserialize;

/// The names of all fixtures.
pub const CASES: [&str; 8] =
    ["qwen3_moe", "qwen3_moe_tied", "olmoe", "mixtral", "flex_olmo", "qwen2_moe", "deepseek_v3", "deepseek_v3_noq"];

/// A tiny model and what transformers computes on it.
pub struct Fixture {
    /// The Hugging Face directory.
    pub directory: PathBuf,
    /// What its config says.
    pub spec: ModelSpec,
    /// What transformers computes in f64: `logits`, `nll`, `loss`, `grad.<name>`, `grad_balanced.<name>`, ….
    pub tensors: HashMap<String, Tensor>,
    /// Figures that are no tensors.
    pub figures: Figures,
}

/// Figures of an oracle.
#[derive(Debug, Deserialize)]
pub struct Figures {
    /// Relative 2-norm errors of PyTorch's f32 run against its f64 run, by quantity.
    pub f32_error: HashMap<String, f64>,
    /// The same for PyTorch's bf16 model.
    pub bf16_error: HashMap<String, f64>,
    /// The AdamW run in f64.
    pub steps: Vec<StepFigures>,
}

/// What one step of the oracle's AdamW run did.
#[derive(Debug, Deserialize)]
pub struct StepFigures {
    /// Mean negative log-likelihood.
    pub loss: f64,
    /// Gradient norm before clipping.
    pub grad_norm: f64,
}

impl Fixture {
    /// Reads a fixture of the tree.
    ///
    /// # Panics
    /// If it is not there or not readable: the tree is damaged.
    #[must_use]
    pub fn load(case: &str) -> Self {
        let directory = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(case);
        let spec = load_spec(&directory).unwrap_or_else(|error| panic!("{case}: {error}: {:?}", error));
        let oracle = directory.join("oracle.safetensors");
        let tensors = candle_core::safetensors::load(&oracle, &Device::Cpu).expect("the fixture's oracle is readable");
        let text = std::fs::read_to_string(directory.join("oracle.json")).expect("the fixture's figures are readable");
        let figures = serde_json::from_str(&text).expect("the fixture's figures parse");
        Self { directory, spec, tensors, figures }
    }

    /// An oracle tensor.
    ///
    /// # Panics
    /// If the oracle has none of this name.
    #[must_use]
    pub fn tensor(&self, name: &str) -> &Tensor {
        self.tensors.get(name).unwrap_or_else(|| panic!("the oracle has no {name}"))
    }

    /// Token ids of an oracle tensor, row by row, and the length of a row.
    ///
    /// # Panics
    /// If the tensor holds no token ids.
    #[must_use]
    pub fn ids(&self, name: &str) -> (Vec<u32>, usize) {
        let tensor = self.tensor(name);
        let ids = tensor.flatten_all().and_then(|flat| flat.to_vec1::<i64>()).expect("token ids are i64");
        let ids = ids.into_iter().map(|id| u32::try_from(id).expect("token ids are not negative")).collect();
        (ids, *tensor.dims().last().expect("token ids have rows"))
    }
}

/// `||found - expected|| / ||expected||` in the 2-norm.
///
/// # Panics
/// If the shapes hold different numbers of values.
#[must_use]
pub fn relative_error(found: &Tensor, expected: &Tensor) -> f64 {
    let values = |tensor: &Tensor| {
        let flat = tensor.flatten_all().and_then(|flat| flat.to_dtype(DType::F64));
        flat.and_then(|flat| flat.to_vec1::<f64>()).expect("a tensor of floats")
    };
    let (found, expected) = (values(found), values(expected));
    assert_eq!(found.len(), expected.len());
    let distance: f64 = found.iter().zip(&expected).map(|(a, b)| (a - b) * (a - b)).sum();
    let length: f64 = expected.iter().map(|b| b * b).sum();
    if length == 0.0 { distance.sqrt() } else { (distance / length).sqrt() }
}
