//! Copies between buffers, and to and from host tensors. Nothing is rounded on its way between float types.

use candle_core::{DType, Device, Tensor};

use super::arguments::Arguments;
use super::buffer::Values;
use super::{In, Out};
use crate::backend::Outcome;
use crate::buffer::{Buffer, Element};
use crate::error::KernelError;

pub(super) fn fill_zero(target: Out<'_>) {
    let range = target.start..target.start + target.len;
    match &mut target.buffer.values {
        Values::Floats(values) => values[range].fill(0.0),
        Values::Indices(values) => values[range].fill(0),
    }
}

pub(super) fn copy(source: In<'_>, target: Out<'_>) -> Outcome {
    let at = Arguments("copy");
    let len = target.len;
    if source.buffer.element() == Element::U32 {
        let source = at.indices("source", source, len)?;
        at.indices_mut("target", target, len)?.copy_from_slice(source);
    } else {
        let source = at.floats("source", source, len)?;
        at.floats_mut("target", target, len)?.copy_from_slice(source);
    }
    Ok(())
}

pub(super) fn write(source: &Tensor, target: Out<'_>) -> Outcome {
    let at = Arguments("write");
    let len = source.elem_count();
    match source.dtype() {
        DType::U32 => {
            let target = at.indices_mut("target", target, len)?;
            target.copy_from_slice(&source.flatten_all()?.to_vec1::<u32>()?);
        }
        DType::F64 | DType::F32 | DType::BF16 | DType::F16 => {
            let target = at.floats_mut("target", target, len)?;
            target.copy_from_slice(&source.flatten_all()?.to_dtype(DType::F64)?.to_vec1::<f64>()?);
        }
        other => {
            let reason = format!("source is a tensor of {other:?}; convert it to F64, F32, BF16, F16 or U32");
            return Err(KernelError::Shape { kernel: "write", reason });
        }
    }
    Ok(())
}

pub(super) fn read(source: In<'_>, shape: &[usize]) -> Outcome<Tensor> {
    let at = Arguments("read");
    let len = shape.iter().copied().fold(1, usize::saturating_mul);
    let tensor = match source.buffer.element() {
        Element::U32 => Tensor::from_slice(at.indices("source", source, len)?, shape, &Device::Cpu)?,
        Element::F32 | Element::Bf16 => Tensor::from_slice(at.floats("source", source, len)?, shape, &Device::Cpu)?,
    };
    Ok(tensor)
}

pub(super) fn write_u32(source: &[u32], target: Out<'_>) -> Outcome {
    Arguments("write_u32").indices_mut("target", target, source.len())?.copy_from_slice(source);
    Ok(())
}

pub(super) fn read_u32(source: In<'_>) -> Outcome<Vec<u32>> {
    Ok(Arguments("read_u32").indices("source", source, source.len)?.to_vec())
}

#[expect(clippy::cast_possible_truncation, reason = "the method's purpose is to round to f32")]
pub(super) fn read_f32(source: In<'_>) -> Outcome<Vec<f32>> {
    let source = Arguments("read_f32").floats("source", source, source.len)?;
    Ok(source.iter().map(|&value| value as f32).collect())
}
