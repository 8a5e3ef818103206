//! From views to slices: a kernel's arguments are of the element types that it takes.

use super::memory::CpuBuffer;
use super::slices::{Floats, FloatsMut};
use crate::backend::Outcome;
use crate::buffer::{Buffer, View, ViewMut};
use crate::error::KernelError;

/// An argument that a kernel reads.
pub(super) type In<'a> = View<'a, CpuBuffer>;
/// An argument that a kernel writes.
pub(super) type Out<'a> = ViewMut<'a, CpuBuffer>;

/// The kernel that the arguments belong to.
#[derive(Clone, Copy)]
pub(super) struct Arguments(pub(super) &'static str);

impl Arguments {
    /// Floats of either type.
    pub(super) fn floats<'a>(self, argument: &'static str, view: In<'a>) -> Outcome<Floats<'a>> {
        let range = view.start..view.start + view.len;
        match view.buffer.floats() {
            Some(Floats::F32(values)) => Ok(Floats::F32(&values[range])),
            Some(Floats::Bf16(values)) => Ok(Floats::Bf16(&values[range])),
            None => Err(self.refuse(argument, view.buffer)),
        }
    }

    /// As [`Self::floats`], for writing.
    pub(super) fn floats_mut<'a>(self, argument: &'static str, view: Out<'a>) -> Outcome<FloatsMut<'a>> {
        let range = view.start..view.start + view.len;
        let refusal = self.refuse(argument, view.buffer);
        match view.buffer.floats_mut() {
            Some(FloatsMut::F32(values)) => Ok(FloatsMut::F32(&mut values[range])),
            Some(FloatsMut::Bf16(values)) => Ok(FloatsMut::Bf16(&mut values[range])),
            None => Err(refusal),
        }
    }

    /// `F32` and no other type.
    pub(super) fn f32s<'a>(self, argument: &'static str, view: In<'a>) -> Outcome<&'a [f32]> {
        match self.floats(argument, view)? {
            Floats::F32(values) => Ok(values),
            Floats::Bf16(_) => Err(self.refuse(argument, view.buffer)),
        }
    }

    /// As [`Self::f32s`], for writing.
    pub(super) fn f32s_mut<'a>(self, argument: &'static str, view: Out<'a>) -> Outcome<&'a mut [f32]> {
        let refusal = self.refuse(argument, view.buffer);
        match self.floats_mut(argument, view)? {
            FloatsMut::F32(values) => Ok(values),
            FloatsMut::Bf16(_) => Err(refusal),
        }
    }

    /// `U32`.
    pub(super) fn indices<'a>(self, argument: &'static str, view: In<'a>) -> Outcome<&'a [u32]> {
        let values = view.buffer.indices().ok_or_else(|| self.refuse(argument, view.buffer))?;
        Ok(&values[view.start..view.start + view.len])
    }

    /// As [`Self::indices`], for writing.
    pub(super) fn indices_mut<'a>(self, argument: &'static str, view: Out<'a>) -> Outcome<&'a mut [u32]> {
        let refusal = self.refuse(argument, view.buffer);
        let values = view.buffer.indices_mut().ok_or(refusal)?;
        Ok(&mut values[view.start..view.start + view.len])
    }

    fn refuse(self, argument: &'static str, buffer: &CpuBuffer) -> KernelError {
        KernelError::Element { kernel: self.0, argument, found: buffer.element() }
    }
}
