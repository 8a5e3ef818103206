//! From views to slices: every check that a kernel makes of its arguments before it touches memory.

use super::buffer::{ReferenceBuffer, Values};
use super::{In, Out};
use crate::backend::Outcome;
use crate::buffer::{Buffer, Element};
use crate::error::KernelError;

/// The checks of one kernel, named in what they refuse.
#[derive(Clone, Copy)]
pub(super) struct Arguments(pub(super) &'static str);

/// Elements of an array of these dimensions; saturates, so that an absurd shape fails the length check.
pub(super) fn elements<const N: usize>(dimensions: [usize; N]) -> usize {
    dimensions.into_iter().fold(1, usize::saturating_mul)
}

impl Arguments {
    /// Floats of either type, `expected` of them.
    pub(super) fn floats<'a>(self, argument: &'static str, view: In<'a>, expected: usize) -> Outcome<&'a [f64]> {
        self.length(argument, view.len, expected)?;
        match &view.buffer.values {
            Values::Floats(values) => Ok(&values[view.start..view.start + view.len]),
            Values::Indices(_) => Err(self.element_error(argument, Element::U32)),
        }
    }

    /// As [`Self::floats`], for writing.
    pub(super) fn floats_mut<'a>(
        self,
        argument: &'static str,
        view: Out<'a>,
        expected: usize,
    ) -> Outcome<&'a mut [f64]> {
        self.length(argument, view.len, expected)?;
        match &mut view.buffer.values {
            Values::Floats(values) => Ok(&mut values[view.start..view.start + view.len]),
            Values::Indices(_) => Err(self.element_error(argument, Element::U32)),
        }
    }

    /// `F32` and no other type.
    pub(super) fn f32s<'a>(self, argument: &'static str, view: In<'a>, expected: usize) -> Outcome<&'a [f64]> {
        self.is(argument, view.buffer, Element::F32)?;
        self.floats(argument, view, expected)
    }

    /// As [`Self::f32s`], for writing.
    pub(super) fn f32s_mut<'a>(self, argument: &'static str, view: Out<'a>, expected: usize) -> Outcome<&'a mut [f64]> {
        self.is(argument, view.buffer, Element::F32)?;
        self.floats_mut(argument, view, expected)
    }

    /// `U32`.
    pub(super) fn indices<'a>(self, argument: &'static str, view: In<'a>, expected: usize) -> Outcome<&'a [u32]> {
        self.length(argument, view.len, expected)?;
        match &view.buffer.values {
            Values::Indices(values) => Ok(&values[view.start..view.start + view.len]),
            Values::Floats(_) => Err(self.element_error(argument, view.buffer.element())),
        }
    }

    /// As [`Self::indices`], for writing.
    pub(super) fn indices_mut<'a>(
        self,
        argument: &'static str,
        view: Out<'a>,
        expected: usize,
    ) -> Outcome<&'a mut [u32]> {
        self.length(argument, view.len, expected)?;
        let element = view.buffer.element();
        match &mut view.buffer.values {
            Values::Indices(values) => Ok(&mut values[view.start..view.start + view.len]),
            Values::Floats(_) => Err(self.element_error(argument, element)),
        }
    }

    /// Its element type is `element`.
    pub(super) fn is(self, argument: &'static str, buffer: &ReferenceBuffer, element: Element) -> Outcome {
        if buffer.element() == element { Ok(()) } else { Err(self.element_error(argument, buffer.element())) }
    }

    /// It has `expected` elements.
    pub(super) fn length(self, argument: &'static str, found: usize, expected: usize) -> Outcome {
        if found == expected { Ok(()) } else { Err(KernelError::Length { kernel: self.0, argument, expected, found }) }
    }

    /// How many rows of `width` it has; a remainder is an error.
    pub(super) fn rows(self, argument: &'static str, found: usize, width: usize) -> Outcome<usize> {
        self.shape(width > 0, || "rows have no width; give them at least one column".to_owned())?;
        self.length(argument, found, found / width * width)?;
        Ok(found / width)
    }

    /// The shapes are consistent, or why not.
    pub(super) fn shape(self, holds: bool, reason: impl FnOnce() -> String) -> Outcome {
        if holds { Ok(()) } else { Err(KernelError::Shape { kernel: self.0, reason: reason() }) }
    }

    /// Every index is below `bound`.
    pub(super) fn below(self, what: &'static str, indices: &[u32], bound: usize) -> Outcome {
        match indices.iter().position(|&index| index as usize >= bound) {
            None => Ok(()),
            Some(position) => Err(KernelError::Index {
                kernel: self.0,
                what,
                value: u64::from(indices[position]),
                position,
                bound: bound as u64,
            }),
        }
    }

    fn element_error(self, argument: &'static str, found: Element) -> KernelError {
        KernelError::Element { kernel: self.0, argument, found }
    }
}
