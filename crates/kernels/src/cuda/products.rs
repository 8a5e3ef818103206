//! Matrix products, and products per group of rows.
//!
//! A grouped product is a loop over its groups, each a product of its own in the stream: right, and what a group's rows
//! become depends on that group only; but small groups leave most of a card idle. One kernel for all groups comes later.

use super::arguments::{Arguments, Array, In, Out, elements};
use super::blaslt::{ALIGNMENT, Addresses};
use super::buffer::CudaBuffer;
use crate::backend::Outcome;
use crate::buffer::{Buffer, Element};
use crate::ops::{Gemm, GroupedGemm, GroupedProduct};

pub(super) fn gemm(at: Arguments<'_>, shape: Gemm, a: In<'_>, b: In<'_>, c: Out<'_>) -> Outcome {
    let a = at.floats("a", a, elements([shape.m, shape.k]))?;
    let b = at.of(a.element, "b", b, elements([shape.k, shape.n]))?;
    let c = product(at, a.element, &c, elements([shape.m, shape.n]))?;
    multiply(at, shape, a, b, c)
}

pub(super) fn grouped_gemm(at: Arguments<'_>, shape: GroupedGemm<'_>, a: In<'_>, b: In<'_>, c: Out<'_>) -> Outcome {
    let GroupedGemm { product: which, n, k, offsets, accumulate } = shape;
    at.shape(offsets.first() == Some(&0), || format!("offsets {offsets:?} must begin with 0"))?;
    at.shape(offsets.is_sorted(), || format!("offsets {offsets:?} must not decrease"))?;
    let (groups, rows) = (offsets.len() - 1, offsets[offsets.len() - 1]);
    let (inputs, outputs, weights) = (elements([rows, k]), elements([rows, n]), elements([groups, n, k]));
    let (a_len, b_len, c_len) = match which {
        GroupedProduct::Forward => (inputs, weights, outputs),
        GroupedProduct::InputGradient => (outputs, weights, inputs),
        GroupedProduct::WeightGradient => (outputs, inputs, weights),
    };
    let a = at.floats("a", a, a_len)?;
    let b = at.of(a.element, "b", b, b_len)?;
    let c = product(at, a.element, &c, c_len)?;

    for (group, bounds) in offsets.windows(2).enumerate() {
        let (first, r) = (bounds[0], bounds[1] - bounds[0]);
        let x = |of: Array| of.part(first * k, r * k);
        let y = |of: Array| of.part(first * n, r * n);
        let w = |of: Array| of.part(group * n * k, n * k);
        match which {
            GroupedProduct::Forward => {
                let shape = Gemm { m: r, n, k, a_transposed: false, b_transposed: true, accumulate };
                multiply(at, shape, x(a), w(b), y(c))?;
            }
            GroupedProduct::InputGradient => {
                let shape = Gemm { m: r, n: k, k: n, a_transposed: false, b_transposed: false, accumulate };
                multiply(at, shape, y(a), w(b), x(c))?;
            }
            GroupedProduct::WeightGradient => {
                let shape = Gemm { m: n, n: k, k: r, a_transposed: true, b_transposed: false, accumulate };
                multiply(at, shape, y(a), x(b), w(c))?;
            }
        }
    }
    Ok(())
}

/// C: `F32`, or of the factors' type.
fn product(at: Arguments<'_>, factors: Element, c: &Out<'_>, len: usize) -> Outcome<Array> {
    match c.buffer.element() {
        Element::F32 => at.f32s("c", c, len),
        _ => at.of(factors, "c", c, len),
    }
}

/// The arrays have the lengths of the shape.
fn multiply(at: Arguments<'_>, shape: Gemm, a: Array, b: Array, c: Array) -> Outcome {
    let lengths = [(a.len, shape.m, shape.k), (b.len, shape.k, shape.n), (c.len, shape.m, shape.n)];
    assert!(lengths.iter().all(|(len, rows, columns)| *len == rows * columns), "{shape:?} of {lengths:?}");
    if c.len == 0 {
        return Ok(());
    }
    if shape.k == 0 {
        return if shape.accumulate { Ok(()) } else { at.fill_bytes(c, 0) };
    }
    let (a, b) = (aligned(at, a)?, aligned(at, b)?);
    let target = if shape.accumulate { aligned(at, c)? } else { Aligned::for_writing(at, c)? };
    let addresses = Addresses { a: a.array.address, b: b.array.address, c: target.array.address };
    // SAFETY: the arrays are whole matrices of this shape in this device's memory: their lengths are checked above, their
    // types by the callers; each is aligned; C is a view for writing, which overlaps none for reading, or memory of its
    // own.
    unsafe { at.1.blaslt().multiply(shape, a.array.element, c.element, addresses) }?;
    if target.array.address == c.address { Ok(()) } else { at.copy_bytes(target.array, c) }
}

/// An array that begins at a multiple of [`ALIGNMENT`]: itself, or a copy in memory of its own. That may be dropped as soon
/// as its users are in the stream.
struct Aligned {
    array: Array,
    _memory: Option<CudaBuffer>,
}

impl Aligned {
    /// For a result: a copy holds no values yet.
    fn for_writing(at: Arguments<'_>, array: Array) -> Outcome<Self> {
        if array.address.is_multiple_of(ALIGNMENT) {
            return Ok(Self { array, _memory: None });
        }
        let memory = CudaBuffer::new(at.1, array.element, array.len)?;
        Ok(Self { array: Array { address: memory.address(), ..array }, _memory: Some(memory) })
    }
}

fn aligned(at: Arguments<'_>, array: Array) -> Outcome<Aligned> {
    let aligned = Aligned::for_writing(at, array)?;
    if aligned.array.address != array.address {
        at.copy_bytes(array, aligned.array)?;
    }
    Ok(aligned)
}
