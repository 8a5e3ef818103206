//! Copies between buffers, and to and from host tensors.

use candle_core::{CpuStorage, Device, Storage, Tensor};
use half::{bf16, f16};
use rayon::prelude::*;

use super::arguments::{Arguments, In, Out};
use super::isa::Isa;
use super::refusal::Refusal;
use super::slices::{Floats, FloatsMut, by_type};
use super::vectorize::{Value, part_rows, vectorized};
use crate::backend::Outcome;
use crate::buffer::{Buffer, Element};
use crate::error::KernelError;

vectorized! {
    /// `to = from`, rounded; equal lengths.
    pub(super) fn convert<const FMA: bool, S: Value, D: Value>(isa: Isa, from: &[S], to: &mut [D]) {
        for (to, from) in to.iter_mut().zip(from) {
            *to = D::round(from.widen());
        }
    }
}

/// `work` on parts of both, by several threads.
fn in_parts<S: Sync, D: Send>(source: &[S], target: &mut [D], work: impl Fn(&[S], &mut [D]) + Sync) {
    let part = part_rows(1);
    source.par_chunks(part).zip(target.par_chunks_mut(part)).for_each(|(source, target)| work(source, target));
}

pub(super) fn fill_zero(target: Out<'_>) -> Outcome {
    let at = Arguments("fill_zero");
    let part = part_rows(1);
    if target.buffer.element() == Element::U32 {
        at.indices_mut("target", target)?.par_chunks_mut(part).for_each(|target| target.fill(0));
    } else {
        let target = at.floats_mut("target", target)?;
        by_type!(
            target.par_chunks_mut(part).for_each(|target| target.fill(Value::round(0.0)));
            FloatsMut target
        );
    }
    Ok(())
}

pub(super) fn copy(isa: Isa, source: In<'_>, target: Out<'_>) -> Outcome {
    let at = Arguments("copy");
    Refusal("copy").length("source", source.len, target.len)?;
    if source.buffer.element() == Element::U32 {
        let (source, target) = (at.indices("source", source)?, at.indices_mut("target", target)?);
        in_parts(source, target, |source, target| target.copy_from_slice(source));
        return Ok(());
    }
    let (source, target) = (at.floats("source", source)?, at.floats_mut("target", target)?);
    by_type!(
        in_parts(source, target, |source, target| convert(isa, source, target));
        Floats source, FloatsMut target
    );
    Ok(())
}

pub(super) fn write(isa: Isa, source: &Tensor, target: Out<'_>) -> Outcome {
    let at = Arguments("write");
    Refusal("write").length("target", target.len, source.elem_count())?;
    let source = source.to_device(&Device::Cpu)?.contiguous()?;
    let (storage, layout) = source.storage_and_layout();
    let elements = layout.start_offset()..layout.start_offset() + source.elem_count();
    let other = || KernelError::Shape {
        kernel: "write",
        reason: format!("source is a tensor of {:?}; convert it to F64, F32, BF16, F16 or U32", source.dtype()),
    };
    let Storage::Cpu(storage) = &*storage else { return Err(other()) };
    match storage {
        CpuStorage::U32(values) => {
            let target = at.indices_mut("target", target)?;
            in_parts(&values[elements], target, |source, target| target.copy_from_slice(source));
        }
        CpuStorage::F32(values) => {
            let (values, target) = (&values[elements], at.floats_mut("target", target)?);
            by_type!(in_parts(values, target, |source, target| convert(isa, source, target)); FloatsMut target);
        }
        CpuStorage::BF16(values) => {
            let (values, target) = (&values[elements], at.floats_mut("target", target)?);
            by_type!(in_parts(values, target, |source, target| convert(isa, source, target)); FloatsMut target);
        }
        CpuStorage::F16(values) => round_all(&values[elements], at.floats_mut("target", target)?, f16::to_f64),
        CpuStorage::F64(values) => round_all(&values[elements], at.floats_mut("target", target)?, |value| value),
        _ => return Err(other()),
    }
    Ok(())
}

/// Values that have more digits than f32, or another range: rounded from f64, to bf16 by way of f32 (half's `from_f64`
/// drops digits before it rounds, and takes what is just above a tie for one).
fn round_all<S: Copy + Sync>(source: &[S], target: FloatsMut<'_>, exact: impl Fn(S) -> f64 + Sync) {
    match target {
        FloatsMut::F32(target) => in_parts(source, target, |source, target| {
            target.iter_mut().zip(source).for_each(|(target, source)| *target = exact(*source) as f32);
        }),
        FloatsMut::Bf16(target) => in_parts(source, target, |source, target| {
            target.iter_mut().zip(source).for_each(|(target, source)| *target = bf16::from_f32(exact(*source) as f32));
        }),
    }
}

pub(super) fn read(source: In<'_>, shape: &[usize]) -> Outcome<Tensor> {
    let at = Arguments("read");
    let elements = shape.iter().copied().fold(1, usize::saturating_mul);
    Refusal("read").length("source", source.len, elements)?;
    if source.buffer.element() == Element::U32 {
        return Ok(Tensor::from_slice(at.indices("source", source)?, shape, &Device::Cpu)?);
    }
    let source = at.floats("source", source)?;
    Ok(by_type!(Tensor::from_slice(source, shape, &Device::Cpu)?; Floats source))
}

pub(super) fn write_u32(source: &[u32], target: Out<'_>) -> Outcome {
    let target = Arguments("write_u32").indices_mut("target", target)?;
    Refusal("write_u32").length("target", target.len(), source.len())?;
    target.copy_from_slice(source);
    Ok(())
}

pub(super) fn read_u32(source: In<'_>) -> Outcome<Vec<u32>> {
    Ok(Arguments("read_u32").indices("source", source)?.to_vec())
}

pub(super) fn read_f32(isa: Isa, source: In<'_>) -> Outcome<Vec<f32>> {
    let source = Arguments("read_f32").floats("source", source)?;
    let mut values = vec![0.0; source.len()];
    by_type!(in_parts(source, &mut values, |source, target| convert(isa, source, target)); Floats source);
    Ok(values)
}
