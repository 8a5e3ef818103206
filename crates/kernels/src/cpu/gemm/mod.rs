//! Matrix products: f32 and bf16, plain and grouped by expert.
//!
//! A call is cut into jobs, each a block of C with its whole sums along k ([`plan`]), which the threads of the pool take
//! in turn ([`schedule`]). A job packs columns of B into panels, and A too unless it can be read where it lies
//! ([`job`], [`pack`]); register tiles sweep over them ([`sweep`]). What is multiplied are units of 32 bits ([`form`]):
//! an f32, or with AVX512_BF16 a pair of bf16. Elsewhere bf16 is widened to f32 as it is packed: same result, up to
//! rounding.
//!
//! Why not the `gemm` crate for f32: it chooses the bounds of its sums by the shape that it is given, so a group's bits
//! would depend on how C is cut; and a grouped product would pack every group by itself. On one core of a Zen 5 both run
//! at the same rate on large products and on those of the model (200 to 235 GFLOP/s); the crate is faster where n or m
//! are a few (`k` long, m = 16: two times; n = 1: six times), which are too small a part of a step to matter.
//!
//! **Invariant:** an element of C is made of chains of multiply-adds along k whose bounds depend on k only, added in
//! order. So its bits depend neither on the number of threads, nor on how C was cut, nor on the other groups of a
//! grouped product.
//!
//! Numerics: sums are f32 from zero; what C holds is added to them last; the result is rounded once. `vdpbf16ps` rounds
//! each of a pair's two additions to nearest even and flushes denormals, inputs and results, to zero; so does the
//! rounding to bf16 there.

mod form;
#[cfg(target_arch = "x86_64")]
mod form_x86;
mod job;
#[cfg(test)]
mod oracle;
mod pack;
mod plan;
mod schedule;
mod scratch;
mod sweep;
mod table;
#[cfg(test)]
mod tests;
#[cfg(target_arch = "x86_64")]
mod transpose_x86;

use job::{Call, Output};
use plan::{Layout, Product};
use table::Table;

use super::isa::Isa;
use super::slices::{Floats, FloatsMut};
use crate::buffer::Element;
use crate::error::KernelError;
use crate::ops::{Gemm, GroupedGemm, GroupedProduct};

/// See [`crate::Backend::gemm`]. Runs in the current pool of rayon.
pub(crate) fn gemm(isa: Isa, shape: Gemm, a: Floats<'_>, b: Floats<'_>, c: FloatsMut<'_>) -> Result<(), KernelError> {
    let Gemm { m, n, k, a_transposed, b_transposed, accumulate } = shape;
    check("gemm", [(m, k), (k, n), (m, n)], a, b, &c)?;
    let layout = Layout { a_transposed, b_transposed, accumulate };
    run(isa, layout, &[Product { m, n, k, a: 0..m * k, b: 0..k * n, c: 0 }], a, b, c);
    Ok(())
}

/// See [`crate::Backend::grouped_gemm`]. Runs in the current pool of rayon.
pub(crate) fn grouped_gemm(
    isa: Isa,
    shape: GroupedGemm<'_>,
    a: Floats<'_>,
    b: Floats<'_>,
    c: FloatsMut<'_>,
) -> Result<(), KernelError> {
    const KERNEL: &str = "grouped_gemm";
    let GroupedGemm { product, n, k, offsets, accumulate } = shape;
    let (Some((0, _)), Some(&rows), true) = (offsets.split_first(), offsets.last(), offsets.is_sorted()) else {
        let reason = format!("offsets {offsets:?} must begin with 0 and not decrease");
        return Err(KernelError::Shape { kernel: KERNEL, reason });
    };
    let outputs_of_all = (offsets.len() - 1).checked_mul(n).ok_or_else(|| KernelError::Shape {
        kernel: KERNEL,
        reason: format!("{} groups of {n} outputs are more than can be counted", offsets.len() - 1),
    })?;
    let (inputs, outputs, weights) = ((rows, k), (rows, n), (outputs_of_all, k));
    let sizes = match product {
        GroupedProduct::Forward => [inputs, weights, outputs],
        GroupedProduct::InputGradient => [outputs, weights, inputs],
        GroupedProduct::WeightGradient => [outputs, inputs, weights],
    };
    check(KERNEL, sizes, a, b, &c)?;

    let products: Vec<Product> = offsets
        .windows(2)
        .enumerate()
        .map(|(group, bounds)| {
            let (first, end) = (bounds[0], bounds[1]);
            let (x, y, w) = (first * k..end * k, first * n..end * n, group * n * k..(group + 1) * n * k);
            let rows = end - first;
            match product {
                GroupedProduct::Forward => Product { m: rows, n, k, a: x, b: w, c: y.start },
                GroupedProduct::InputGradient => Product { m: rows, n: k, k: n, a: y, b: w, c: x.start },
                GroupedProduct::WeightGradient => Product { m: n, n: k, k: rows, a: y, b: x, c: w.start },
            }
        })
        .collect();
    let layout = Layout {
        a_transposed: product == GroupedProduct::WeightGradient,
        b_transposed: product == GroupedProduct::Forward,
        accumulate,
    };
    run(isa, layout, &products, a, b, c);
    Ok(())
}

/// A, B and C have these rows and columns and go together in type.
fn check(
    kernel: &'static str,
    sizes: [(usize, usize); 3],
    a: Floats<'_>,
    b: Floats<'_>,
    c: &FloatsMut<'_>,
) -> Result<(), KernelError> {
    let element = a.element();
    for (argument, found) in [("b", b.element()), ("c", c.element())] {
        if found != element && !(argument == "c" && found == Element::F32) {
            return Err(KernelError::Element { kernel, argument, found });
        }
    }
    let lengths = [("a", a.len()), ("b", b.len()), ("c", c.len())];
    for ((argument, found), (rows, columns)) in lengths.into_iter().zip(sizes) {
        let expected = rows.checked_mul(columns).ok_or_else(|| KernelError::Shape {
            kernel,
            reason: format!("{argument} of {rows} x {columns} elements is larger than any memory"),
        })?;
        if found != expected {
            return Err(KernelError::Length { kernel, argument, expected, found });
        }
    }
    Ok(())
}

/// Runs products whose operands and results lie inside the slices, the results apart from one another.
fn run(isa: Isa, layout: Layout, products: &[Product], a: Floats<'_>, b: Floats<'_>, mut c: FloatsMut<'_>) {
    let table = Table::choose(isa, a.element());
    let blocks = plan::blocks(&table, products);
    let call = Call { table, layout, products, a, b, c: Output::of(&mut c) };
    // SAFETY: the products' results lie apart inside C, which stays borrowed here, and the plan cuts each of them into
    // blocks that do not overlap.
    unsafe { schedule::run(&call, &blocks) };
}
