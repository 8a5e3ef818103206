//! What every block needs to know about the pass that it takes part in.

use cambium_kernels::{Backend, Element};
use cambium_spec::ModelSpec;
use candle_core::{Device, Tensor};

use crate::error::{ModelError, Outcome};

/// In which type weights and activations are while computing. Masters, moments and gradients are f32 in either.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// All in f32.
    F32,
    /// Matrices and activations in bf16; norm gains, biases and the router in f32.
    Bf16,
}

impl Precision {
    /// The element type of activations.
    #[must_use]
    pub fn element(self) -> Element {
        match self {
            Self::F32 => Element::F32,
            Self::Bf16 => Element::Bf16,
        }
    }
}

/// One pass over one microbatch: where it computes, in which type, of which shape.
pub struct Context<'a, B: Backend> {
    /// The device.
    pub backend: &'a B,
    /// The type of weights and activations.
    pub precision: Precision,
    /// B: rows.
    pub batch: usize,
    /// Tokens of each row.
    pub seq_len: usize,
    /// (seq_len, rotary_dim/2, 2) cos and sin, see [`rope_table`].
    pub rope: &'a B::Buffer,
}

impl<B: Backend> Context<'_, B> {
    /// T: tokens of the microbatch.
    #[must_use]
    pub fn tokens(&self) -> usize {
        self.batch * self.seq_len
    }

    /// An activation of (T, `width`), contents unspecified.
    ///
    /// # Errors
    /// If the backend has no memory left.
    pub fn activation(&self, width: usize) -> Outcome<B::Buffer> {
        self.activation_rows(self.tokens(), width)
    }

    /// An activation of (`rows`, `width`), contents unspecified.
    ///
    /// # Errors
    /// If the backend has no memory left.
    pub fn activation_rows(&self, rows: usize, width: usize) -> Outcome<B::Buffer> {
        Ok(self.backend.alloc(self.precision.element(), rows * width)?)
    }

    /// `len` f32 values, contents unspecified.
    ///
    /// # Errors
    /// If the backend has no memory left.
    pub fn f32(&self, len: usize) -> Outcome<B::Buffer> {
        Ok(self.backend.alloc(Element::F32, len)?)
    }
}

/// Cosine and sine of every position and pair: `angle = position * theta^(-2i/rotary_dim)` (arXiv 2104.09864, eq. 15).
///
/// Angles are computed in f64, so long positions lose nothing to f32 frequencies.
///
/// # Errors
/// If the backend has no memory left.
pub fn rope_table<B: Backend>(backend: &B, spec: &ModelSpec, seq_len: usize) -> Outcome<B::Buffer> {
    let rotary_dim = spec.attention.rotary_dim();
    let pairs = rotary_dim / 2;
    let table: Vec<f64> = (0..seq_len)
        .flat_map(|position| {
            (0..pairs).flat_map(move |pair| {
                let frequency = spec.rope.theta.powf(-2.0 * pair as f64 / rotary_dim as f64);
                let (sin, cos) = (position as f64 * frequency).sin_cos();
                [cos, sin]
            })
        })
        .collect();
    let len = table.len();
    let host = Tensor::from_vec(table, len, &Device::Cpu).map_err(|error| ModelError::Kernel(error.into()))?;
    let mut buffer = backend.alloc(Element::F32, len)?;
    backend.write(&host, (&mut buffer).into())?;
    Ok(buffer)
}
