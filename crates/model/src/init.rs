//! Fresh values for a model: any tensor of it can be made alone, in any place, to the same bits.
//!
//! Matrices are normal with the spec's deviation, norm gains 1, biases 0. The random stream of a tensor is keyed by the
//! run's seed and the tensor's name, so it depends neither on the order nor on the placement of what is made.

use cambium_kernels::{Backend, Buffer, KernelError, NoiseKey};
use cambium_spec::{TensorId, TensorRole as R, TensorSpec};
use candle_core::{DType, Device, Tensor};

use crate::error::Outcome;
use crate::stage::Stage;

/// Gives every parameter of a stage its first value.
///
/// # Errors
/// If a kernel fails.
pub fn initialize<B: Backend>(backend: &B, stage: &mut Stage<B>, seed: u64) -> Outcome {
    let deviation = stage.spec.initializer_range;
    for param in stage.params_mut() {
        for piece in param.pieces().to_vec() {
            let target = param.master_mut().slice_mut(piece.range);
            match first_value(&piece.tensor) {
                First::Normal => {
                    let key = NoiseKey { seed, stream: stream(&piece.tensor.name) };
                    backend.fill_normal(key, 0, deviation, target)?;
                }
                First::Ones => {
                    let ones = Tensor::ones(target.len, DType::F32, &Device::Cpu).map_err(KernelError::Host)?;
                    backend.write(&ones, target)?;
                }
                First::Zeros => backend.fill_zero(target)?,
            }
        }
        param.refresh(backend)?;
    }
    Ok(())
}

enum First {
    Normal,
    Ones,
    Zeros,
}

fn first_value(tensor: &TensorSpec) -> First {
    match (tensor.id, tensor.id.role()) {
        (TensorId::FinalNorm, _)
        | (_, Some(R::AttentionNorm | R::FeedForwardNorm | R::QueryNorm | R::KeyNorm | R::QueryANorm | R::KvANorm)) => {
            First::Ones
        }
        (
            _,
            Some(
                R::QueryBias
                | R::KeyBias
                | R::ValueBias
                | R::AttentionOutputBias
                | R::QueryABias
                | R::KvABias
                | R::SelectionBias,
            ),
        ) => First::Zeros,
        _ => First::Normal,
    }
}

/// FNV-1a, 64 bits, of a tensor's name: part of the meaning of a seed, so it is written out here and never changes.
#[must_use]
pub fn stream(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::stream;

    #[test]
    fn the_stream_of_a_name_is_fnv_1a() {
        // Vectors of the FNV reference code (draft-eastlake-fnv, appendix C).
        assert_eq!(stream(""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(stream("a"), 0xaf63_dc4c_8601_ec8c);
        assert_eq!(stream("foobar"), 0x8594_4171_f739_67e8);
    }
}
