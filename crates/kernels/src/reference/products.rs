//! Matrix products, by candle.

use candle_core::{Device, Tensor};

use super::arguments::{Arguments, elements};
use super::{In, Out};
use crate::backend::Outcome;
use crate::buffer::{Buffer, Element};
use crate::ops::{Gemm, GroupedGemm, GroupedProduct};

pub(super) fn gemm(shape: Gemm, a: In<'_>, b: In<'_>, c: Out<'_>) -> Outcome {
    let at = Arguments("gemm");
    check_elements(at, a, b, &c)?;
    let a = at.floats("a", a, elements([shape.m, shape.k]))?;
    let b = at.floats("b", b, elements([shape.k, shape.n]))?;
    let c = at.floats_mut("c", c, elements([shape.m, shape.n]))?;
    multiply(shape, a, b, c)
}

pub(super) fn grouped_gemm(shape: GroupedGemm<'_>, a: In<'_>, b: In<'_>, c: Out<'_>) -> Outcome {
    let at = Arguments("grouped_gemm");
    let GroupedGemm { product, n, k, offsets, accumulate } = shape;
    at.shape(offsets.first() == Some(&0), || format!("offsets {offsets:?} must begin with 0"))?;
    at.shape(offsets.is_sorted(), || format!("offsets {offsets:?} must not decrease"))?;
    let (groups, rows) = (offsets.len() - 1, offsets[offsets.len() - 1]);

    check_elements(at, a, b, &c)?;
    let (inputs, outputs, weights) = (elements([rows, k]), elements([rows, n]), elements([groups, n, k]));
    let (a_len, b_len, c_len) = match product {
        GroupedProduct::Forward => (inputs, weights, outputs),
        GroupedProduct::InputGradient => (outputs, weights, inputs),
        GroupedProduct::WeightGradient => (outputs, inputs, weights),
    };
    let a = at.floats("a", a, a_len)?;
    let b = at.floats("b", b, b_len)?;
    let c = at.floats_mut("c", c, c_len)?;

    for (group, bounds) in offsets.windows(2).enumerate() {
        let (first, end) = (bounds[0], bounds[1]);
        let r = end - first;
        let (x, y, w) = (first * k..end * k, first * n..end * n, group * n * k..(group + 1) * n * k);
        match product {
            GroupedProduct::Forward => {
                let shape = Gemm { m: r, n, k, a_transposed: false, b_transposed: true, accumulate };
                multiply(shape, &a[x], &b[w], &mut c[y])?;
            }
            GroupedProduct::InputGradient => {
                let shape = Gemm { m: r, n: k, k: n, a_transposed: false, b_transposed: false, accumulate };
                multiply(shape, &a[y], &b[w], &mut c[x])?;
            }
            GroupedProduct::WeightGradient => {
                let shape = Gemm { m: n, n: k, k: r, a_transposed: true, b_transposed: false, accumulate };
                multiply(shape, &a[y], &b[x], &mut c[w])?;
            }
        }
    }
    Ok(())
}

/// `a` and `b` are of one type; `c` is `F32` or of theirs.
fn check_elements(at: Arguments, a: In<'_>, b: In<'_>, c: &Out<'_>) -> Outcome {
    at.is("b", b.buffer, a.buffer.element())?;
    match c.buffer.element() {
        Element::F32 => Ok(()),
        _ => at.is("c", c.buffer, a.buffer.element()),
    }
}

fn multiply(shape: Gemm, a: &[f64], b: &[f64], c: &mut [f64]) -> Outcome {
    if !shape.accumulate {
        c.fill(0.0);
    }
    if shape.m == 0 || shape.n == 0 || shape.k == 0 {
        return Ok(());
    }
    let a = matrix(a, shape.m, shape.k, shape.a_transposed)?;
    let b = matrix(b, shape.k, shape.n, shape.b_transposed)?;
    let product = a.matmul(&b)?.flatten_all()?.to_vec1::<f64>()?;
    c.iter_mut().zip(product).for_each(|(c, product)| *c += product);
    Ok(())
}

/// `values` as a matrix (rows, columns), stored as (columns, rows) if `transposed`.
fn matrix(values: &[f64], rows: usize, columns: usize, transposed: bool) -> Outcome<Tensor> {
    Ok(if transposed {
        Tensor::from_slice(values, (columns, rows), &Device::Cpu)?.t()?
    } else {
        Tensor::from_slice(values, (rows, columns), &Device::Cpu)?
    })
}
