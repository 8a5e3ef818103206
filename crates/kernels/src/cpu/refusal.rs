//! What kernels over slices check before they touch a value, in the words of the reference backend.

use crate::backend::Outcome;
use crate::buffer::Element;
use crate::error::KernelError;

/// The checks of one kernel, named in what they refuse.
#[derive(Clone, Copy)]
pub(super) struct Refusal(pub(super) &'static str);

impl Refusal {
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

    /// Its element type is `element`.
    pub(super) fn is(self, argument: &'static str, found: Element, element: Element) -> Outcome {
        if found == element { Ok(()) } else { Err(KernelError::Element { kernel: self.0, argument, found }) }
    }

    /// Every index is below `bound`.
    pub(super) fn below(self, what: &'static str, indices: &[u32], bound: usize) -> Outcome {
        // The greatest first, since that is a vector loop and the position is hardly ever asked for.
        if indices.iter().fold(0, |greatest, index| greatest.max(*index)) as usize >= bound {
            let first = indices.iter().position(|&index| index as usize >= bound);
            if let Some(position) = first {
                let value = u64::from(indices[position]);
                return Err(KernelError::Index { kernel: self.0, what, value, position, bound: bound as u64 });
            }
        }
        Ok(())
    }
}
