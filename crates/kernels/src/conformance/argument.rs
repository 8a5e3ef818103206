//! A kernel's arguments as the suite draws them, and how they lie in a backend's memory.

use candle_core::{DType, Device, Tensor};
use half::bf16;

use super::Failure;
use super::draw::Draw;
use super::tolerance::Tolerance;
use crate::backend::Backend;
use crate::buffer::{Buffer, Element, View, ViewMut};

/// One argument: its values, what it may be instead, and whether the kernel writes it.
#[derive(Clone, Debug)]
pub(super) struct Argument {
    pub(super) name: &'static str,
    pub(super) element: Element,
    /// Its values, rounded to `element`; indices as the whole numbers that they are.
    pub(super) values: Vec<f64>,
    /// Element types that the kernel must refuse here, its other arguments being as they are.
    pub(super) refused: Vec<Element>,
    /// For what a kernel writes: how far the result may be off.
    pub(super) written: Option<Tolerance>,
}

impl Argument {
    /// Floats that may be of any float type.
    pub(super) fn floats(name: &'static str, element: Element, values: Vec<f64>) -> Self {
        let values = values.into_iter().map(|value| round(element, value)).collect();
        Self { name, element, values, refused: vec![Element::U32], written: None }
    }

    /// Floats that have to be `F32`.
    pub(super) fn f32(name: &'static str, values: Vec<f64>) -> Self {
        Self { refused: vec![Element::U32, Element::Bf16], ..Self::floats(name, Element::F32, values) }
    }

    /// Indices.
    pub(super) fn indices(name: &'static str, values: &[u32]) -> Self {
        let values = values.iter().map(|&value| f64::from(value)).collect();
        Self { name, element: Element::U32, values, refused: vec![Element::F32, Element::Bf16], written: None }
    }

    /// Its type has to be that of other arguments.
    pub(super) fn matched(mut self) -> Self {
        self.refused = [Element::F32, Element::Bf16, Element::U32].into_iter().filter(|e| *e != self.element).collect();
        self
    }

    /// The kernel adds to it: its values are what stands there before.
    pub(super) fn updated(mut self, tolerance: Tolerance) -> Self {
        self.written = Some(tolerance);
        self
    }

    /// The kernel overwrites it: NaN, or an index out of range, stands there before and must not show in the result.
    pub(super) fn overwritten(mut self, tolerance: Tolerance) -> Self {
        let before = if self.element == Element::U32 { f64::from(u32::MAX) } else { f64::NAN };
        self.values.fill(before);
        self.updated(tolerance)
    }
}

/// `value` as `element` can hold it, to nearest, ties to even.
pub(super) fn round(element: Element, value: f64) -> f64 {
    match element {
        Element::F32 => f64::from(value as f32),
        Element::Bf16 => bf16::from_f32(value as f32).to_f64(),
        Element::U32 => value,
    }
}

/// What stands in a buffer around a view, where no kernel may write.
const AROUND: f64 = 77.0;

/// An argument in a backend's memory: a view into the middle of a buffer.
#[derive(Debug)]
pub(super) struct Placed<B: Backend> {
    buffer: B::Buffer,
    start: usize,
    len: usize,
}

impl<B: Backend> Placed<B> {
    /// Lays `argument` at a random offset into a buffer of its own.
    pub(super) fn place(backend: &B, argument: &Argument, draw: &mut Draw) -> Result<Self, Failure> {
        let (start, len) = (draw.below(20), argument.values.len());
        let mut values = vec![AROUND; start];
        values.extend(&argument.values);
        values.resize(start + len + draw.below(20), AROUND);
        let total = values.len();
        let mut tensor = Tensor::from_vec(values, total, &Device::Cpu)?;
        if argument.element == Element::U32 {
            tensor = tensor.to_dtype(DType::U32)?;
        }
        let mut buffer = backend.alloc(argument.element, total)?;
        backend.write(&tensor, buffer.view_mut())?;
        Ok(Self { buffer, start, len })
    }

    /// For reading.
    pub(super) fn get(&self) -> View<'_, B::Buffer> {
        self.buffer.slice(self.start..self.start + self.len)
    }

    /// For writing.
    pub(super) fn get_mut(&mut self) -> ViewMut<'_, B::Buffer> {
        self.buffer.slice_mut(self.start..self.start + self.len)
    }

    /// What stands there now, after a look at what stands around it.
    pub(super) fn values(&self, backend: &B, name: &'static str) -> Result<Vec<f64>, Failure> {
        let total = self.buffer.len();
        let mut values = backend.read(self.buffer.view(), &[total])?.to_dtype(DType::F64)?.to_vec1::<f64>()?;
        let inside = self.start..self.start + self.len;
        if let Some(i) = (0..total).find(|i| !inside.contains(i) && values[*i] != AROUND) {
            let offset = i as i64 - self.start as i64;
            return Err(Failure::wrong(format!(
                "{name}: element {offset} of {} was written, outside its view",
                self.len
            )));
        }
        Ok(values.drain(inside).collect())
    }
}
