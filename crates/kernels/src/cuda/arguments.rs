//! From views to addresses: every check that a kernel makes of its arguments before it touches memory.

use std::sync::Arc;

use super::buffer::CudaBuffer;
use super::device::Device;
use super::launch::Value;
use super::routing;
use crate::backend::Outcome;
use crate::buffer::{Buffer, Element, View, ViewMut};
use crate::error::KernelError;

/// An argument that a kernel reads.
pub(super) type In<'a> = View<'a, CudaBuffer>;
/// An argument that a kernel writes.
pub(super) type Out<'a> = ViewMut<'a, CudaBuffer>;

/// The checks of one kernel, named in what they refuse, and the device that it runs on.
#[derive(Clone, Copy)]
pub(super) struct Arguments<'a>(pub(super) &'static str, pub(super) &'a Arc<Device>);

/// Elements of an array of these dimensions; saturates, so that an absurd shape fails the length check.
pub(super) fn elements<const N: usize>(dimensions: [usize; N]) -> usize {
    dimensions.into_iter().fold(1, usize::saturating_mul)
}

/// An argument that passed its checks: that many elements of that type lie at that address of the device's memory, for as
/// long as the view that it was made from, and longer for what is in the stream by then.
#[derive(Clone, Copy, Debug)]
pub(super) struct Array {
    /// Address of its first element; aligned to its element type, and no better.
    pub(super) address: u64,
    /// Its element type.
    pub(super) element: Element,
    /// Its elements.
    pub(super) len: usize,
}

impl Array {
    /// The elements from `start` on, `len` of them.
    pub(super) fn part(self, start: usize, len: usize) -> Self {
        assert!(start <= self.len && len <= self.len - start, "{len} elements from {start} of {}", self.len);
        Self { address: self.address + (start * self.element.bytes()) as u64, len, ..self }
    }

    /// Its bytes.
    pub(super) fn bytes(self) -> usize {
        self.len * self.element.bytes()
    }
}

impl From<Array> for Value {
    fn from(array: Array) -> Self {
        Self::U64(array.address)
    }
}

/// A view of either kind.
pub(super) struct Part<'a>(&'a CudaBuffer, usize, usize);

impl<'a> From<In<'a>> for Part<'a> {
    fn from(view: In<'a>) -> Self {
        Self(view.buffer, view.start, view.len)
    }
}

impl<'a> From<&'a Out<'_>> for Part<'a> {
    fn from(view: &'a Out<'_>) -> Self {
        Self(view.buffer, view.start, view.len)
    }
}

impl Arguments<'_> {
    /// Floats of either type, `expected` of them.
    pub(super) fn floats<'a>(
        self,
        argument: &'static str,
        view: impl Into<Part<'a>>,
        expected: usize,
    ) -> Outcome<Array> {
        let array = self.array(argument, view, expected)?;
        if array.element == Element::U32 { Err(self.element_error(argument, Element::U32)) } else { Ok(array) }
    }

    /// `F32` and no other type.
    pub(super) fn f32s<'a>(self, argument: &'static str, view: impl Into<Part<'a>>, expected: usize) -> Outcome<Array> {
        self.of(Element::F32, argument, view, expected)
    }

    /// `U32`.
    pub(super) fn indices<'a>(
        self,
        argument: &'static str,
        view: impl Into<Part<'a>>,
        expected: usize,
    ) -> Outcome<Array> {
        self.of(Element::U32, argument, view, expected)
    }

    /// Elements of one type, `expected` of them.
    pub(super) fn of<'a>(
        self,
        element: Element,
        argument: &'static str,
        view: impl Into<Part<'a>>,
        expected: usize,
    ) -> Outcome<Array> {
        let array = self.array(argument, view, expected)?;
        if array.element == element { Ok(array) } else { Err(self.element_error(argument, array.element)) }
    }

    /// Elements of any type, `expected` of them.
    pub(super) fn array<'a>(
        self,
        argument: &'static str,
        view: impl Into<Part<'a>>,
        expected: usize,
    ) -> Outcome<Array> {
        let Part(buffer, start, len) = view.into();
        self.shape(buffer.belongs_to(self.1), || {
            format!("{argument} is memory of another cuda backend; copy it through the host")
        })?;
        // The fields of a view are public: nothing but this keeps it inside its buffer.
        self.shape(start <= buffer.len() && len <= buffer.len() - start, || {
            format!("{argument} is {len} elements from {start} of a buffer of {}; slice inside of it", buffer.len())
        })?;
        self.length(argument, len, expected)?;
        let whole = Array { address: buffer.address(), element: buffer.element(), len: buffer.len() };
        Ok(whole.part(start, len))
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

    /// Every index is below `bound`. The host waits for the answer.
    pub(super) fn below(self, what: &'static str, indices: Array, bound: usize) -> Outcome {
        match routing::first_not_below(self, indices, bound)? {
            None => Ok(()),
            Some((position, value)) => {
                let (value, bound) = (u64::from(value), bound as u64);
                Err(KernelError::Index { kernel: self.0, what, value, position, bound })
            }
        }
    }

    /// As [`Self::below`], of indices that are on the host.
    pub(super) fn below_on_host(self, what: &'static str, indices: &[u32], bound: usize) -> Outcome {
        match indices.iter().position(|&index| index as usize >= bound) {
            None => Ok(()),
            Some(position) => {
                let (value, bound) = (u64::from(indices[position]), bound as u64);
                Err(KernelError::Index { kernel: self.0, what, value, position, bound })
            }
        }
    }

    fn element_error(self, argument: &'static str, found: Element) -> KernelError {
        KernelError::Element { kernel: self.0, argument, found }
    }
}
