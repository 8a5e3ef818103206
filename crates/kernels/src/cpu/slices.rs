//! Float slices of either element type, as kernels receive them.

use half::bf16;

use crate::buffer::Element;

/// Floats for reading.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Floats<'a> {
    /// f32.
    F32(&'a [f32]),
    /// bfloat16.
    Bf16(&'a [bf16]),
}

/// Floats for writing.
#[derive(Debug)]
pub(crate) enum FloatsMut<'a> {
    /// f32.
    F32(&'a mut [f32]),
    /// bfloat16.
    Bf16(&'a mut [bf16]),
}

impl Floats<'_> {
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::F32(values) => values.len(),
            Self::Bf16(values) => values.len(),
        }
    }

    pub(crate) fn element(&self) -> Element {
        match self {
            Self::F32(_) => Element::F32,
            Self::Bf16(_) => Element::Bf16,
        }
    }
}

impl FloatsMut<'_> {
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::F32(values) => values.len(),
            Self::Bf16(values) => values.len(),
        }
    }

    pub(crate) fn element(&self) -> Element {
        match self {
            Self::F32(_) => Element::F32,
            Self::Bf16(_) => Element::Bf16,
        }
    }
}

/// Runs an expression in which floats of either type are slices of their own: `by_type!(f(x, y); Floats x, FloatsMut y)`.
macro_rules! by_type {
    ($run:expr;) => { $run };
    ($run:expr; $floats:ident $name:ident $(, $other_floats:ident $other_name:ident)*) => {
        match $name {
            $floats::F32($name) => by_type!($run; $($other_floats $other_name),*),
            $floats::Bf16($name) => by_type!($run; $($other_floats $other_name),*),
        }
    };
}
pub(crate) use by_type;
