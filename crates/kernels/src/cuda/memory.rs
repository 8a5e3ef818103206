//! Copies between buffers, and to and from host tensors.

use bytemuck::{Pod, Zeroable};
use candle_core::{CpuStorage, DType, Device as Host, Storage, Tensor, WithDType};
use half::bf16;

use super::arguments::{Arguments, Array, In, Out};
use super::columns;
use super::failure;
use crate::backend::Outcome;
use crate::buffer::Element;
use crate::error::KernelError;

impl Arguments<'_> {
    /// Elements of the device, on the host. The host waits for what was launched before.
    pub(super) fn download<T: Pod>(self, source: Array) -> Outcome<Vec<T>> {
        let mut values = vec![T::zeroed(); source.len];
        let bytes = bytemuck::cast_slice_mut(&mut values);
        assert_eq!(bytes.len(), source.bytes(), "{}: another type than its elements", self.0);
        // SAFETY: the array is that many bytes of this device's memory, by the checks that made it.
        unsafe { self.1.staging().read(self.1.stream(), source.address, bytes) }?;
        Ok(values)
    }

    /// Elements of the host, on the device.
    pub(super) fn upload<T: Pod>(self, source: &[T], target: Array) -> Outcome {
        let bytes = bytemuck::cast_slice(source);
        assert_eq!(bytes.len(), target.bytes(), "{}: another length or type than its elements", self.0);
        // SAFETY: the array is that many bytes of this device's memory, by the checks that made it, and was made from a
        // view for writing.
        unsafe { self.1.staging().write(self.1.stream(), bytes, target.address) }
    }

    /// Every byte of the array becomes `byte`.
    pub(super) fn fill_bytes(self, target: Array, byte: u8) -> Outcome {
        if target.len == 0 {
            return Ok(());
        }
        let refused = || failure::driver("filling memory");
        self.1.context().bind_to_thread().map_err(refused())?;
        let stream = self.1.stream().cu_stream();
        // SAFETY: the array is that many bytes of this device's memory, by the checks that made it.
        unsafe { cudarc::driver::result::memset_d8_async(target.address, byte, target.bytes(), stream) }
            .map_err(refused())
    }

    /// The bits of `source`, in `target`: equal lengths, equal types, no overlap.
    pub(super) fn copy_bytes(self, source: Array, target: Array) -> Outcome {
        assert_eq!(source.bytes(), target.bytes(), "{}: copies have one length", self.0);
        if source.len == 0 {
            return Ok(());
        }
        let refused = || failure::driver("copying on the device");
        self.1.context().bind_to_thread().map_err(refused())?;
        let stream = self.1.stream().cu_stream();
        // SAFETY: both arrays are that many bytes of this device's memory, by the checks that made them.
        unsafe { cudarc::driver::result::memcpy_dtod_async(target.address, source.address, source.bytes(), stream) }
            .map_err(refused())
    }
}

pub(super) fn fill_zero(at: Arguments<'_>, target: Out<'_>) -> Outcome {
    // The bits of zero are zero in each type.
    at.fill_bytes(at.array("target", &target, target.len)?, 0)
}

pub(super) fn copy(at: Arguments<'_>, source: In<'_>, target: Out<'_>) -> Outcome {
    let source = at.array("source", source, target.len)?;
    if source.element == Element::U32 {
        return at.copy_bytes(source, at.indices("target", &target, source.len)?);
    }
    let target = at.floats("target", &target, source.len)?;
    if source.element == target.element { at.copy_bytes(source, target) } else { columns::convert(at, source, target) }
}

pub(super) fn write(at: Arguments<'_>, source: &Tensor, target: Out<'_>) -> Outcome {
    at.length("target", target.len, source.elem_count())?;
    let source = source.to_device(&Host::Cpu)?.contiguous()?;
    let (storage, layout) = source.storage_and_layout();
    let elements = layout.start_offset()..layout.start_offset() + source.elem_count();
    let other = || KernelError::Shape {
        kernel: "write",
        reason: format!("source is a tensor of {:?}; convert it to F64, F32, BF16, F16 or U32", source.dtype()),
    };
    let Storage::Cpu(storage) = &*storage else { return Err(other()) };
    match storage {
        CpuStorage::U32(values) => at.upload(&values[elements], at.indices("target", &target, target.len)?),
        CpuStorage::F32(values) => write_floats(at, &values[elements], &target, |value| value),
        CpuStorage::BF16(values) => write_floats(at, &values[elements], &target, bf16::to_f32),
        CpuStorage::F16(values) => write_floats(at, &values[elements], &target, half::f16::to_f32),
        CpuStorage::F64(values) => write_floats(at, &values[elements], &target, |value| value as f32),
        _ => Err(other()),
    }
}

/// Rounded on the host to what the target holds, to bf16 by way of f32.
fn write_floats<T: Copy>(at: Arguments<'_>, values: &[T], target: &Out<'_>, to_f32: impl Fn(T) -> f32) -> Outcome {
    let target = at.floats("target", target, values.len())?;
    let values = values.iter().map(|value| to_f32(*value));
    if target.element == Element::F32 {
        at.upload(&values.collect::<Vec<_>>(), target)
    } else {
        at.upload(&values.map(bf16::from_f32).collect::<Vec<_>>(), target)
    }
}

pub(super) fn read(at: Arguments<'_>, source: In<'_>, shape: &[usize]) -> Outcome<Tensor> {
    let len = shape.iter().copied().fold(1, usize::saturating_mul);
    let source = at.array("source", source, len)?;
    match source.element {
        Element::U32 => tensor::<u32>(at, source, shape),
        Element::F32 => tensor::<f32>(at, source, shape),
        Element::Bf16 => tensor::<bf16>(at, source, shape),
    }
}

fn tensor<T: WithDType + Zeroable + Pod>(at: Arguments<'_>, source: Array, shape: &[usize]) -> Outcome<Tensor> {
    debug_assert!(matches!(T::DTYPE, DType::U32 | DType::F32 | DType::BF16));
    Ok(Tensor::from_vec(at.download::<T>(source)?, shape, &Host::Cpu)?)
}

pub(super) fn write_u32(at: Arguments<'_>, source: &[u32], target: Out<'_>) -> Outcome {
    at.upload(source, at.indices("target", &target, source.len())?)
}

pub(super) fn read_u32(at: Arguments<'_>, source: In<'_>) -> Outcome<Vec<u32>> {
    at.download(at.indices("source", source, source.len)?)
}

pub(super) fn read_f32(at: Arguments<'_>, source: In<'_>) -> Outcome<Vec<f32>> {
    let source = at.floats("source", source, source.len)?;
    if source.element == Element::F32 {
        return at.download(source);
    }
    Ok(at.download::<bf16>(source)?.into_iter().map(bf16::to_f32).collect())
}
