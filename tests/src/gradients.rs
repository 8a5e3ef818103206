//! Gradients of a trainer, by tensor name.

use std::collections::BTreeMap;

use cambium_kernels::{Backend, View};
use cambium_model::Trainer;
use candle_core::Tensor;

/// The gradient of every trained tensor after [`Trainer::gradients`].
///
/// # Panics
/// If a trained tensor got none, or it cannot be read.
#[must_use]
pub fn gradients<B: Backend>(trainer: &Trainer<B>) -> BTreeMap<String, Tensor> {
    let mut gradients = BTreeMap::new();
    for param in trainer.stage().params() {
        let Some(trained) = param.trained() else { continue };
        for piece in param.pieces() {
            let name = piece.tensor.name.clone();
            let grad = trained.grad.unwrap_or_else(|| panic!("{name} got no gradient"));
            let view = View { start: piece.range.start, len: piece.range.len(), ..grad };
            let host = trainer.backend().read(view, &piece.tensor.shape).expect("a gradient is readable");
            gradients.insert(name, host);
        }
    }
    gradients
}
