//! Matrix products: f32 and bf16, plain and grouped by expert.
//!
//! A call is cut into jobs, each a block of C with its whole sums along k, which the threads of the pool take in turn.
//! With AVX-512 a job runs our own register tile ([`tile`]) over packed panels ([`pack`]); elsewhere the `gemm` crate
//! ([`fallback`]).
//!
//! Why not the `gemm` crate everywhere: it has no bf16 product, and it packs both operands of every call, where here A is
//! read as it lies.
//!
//! **Invariant:** an element of C is one chain of multiply-adds along k whose blocks depend on k only. So the bits depend
//! neither on the number of threads, nor on how C was cut, nor, in a grouped product, on the other groups.

mod fallback;
#[cfg(target_arch = "x86_64")]
mod job;
#[cfg(target_arch = "x86_64")]
mod pack;
mod scratch;
#[cfg(test)]
mod tests;
#[cfg(target_arch = "x86_64")]
mod tile;

use rayon::prelude::*;

use super::isa::Isa;
use super::slices::{Floats, FloatsMut};
use crate::error::KernelError;
use crate::ops::{Gemm, GroupedGemm, GroupedProduct};

/// One product of a call: its shape and where its operands begin.
#[derive(Clone, Copy, Debug)]
struct Product {
    m: usize,
    n: usize,
    k: usize,
    a: usize,
    b: usize,
    c: usize,
}

/// How all products of a call lie in memory.
#[derive(Clone, Copy, Debug)]
struct Layout {
    a_transposed: bool,
    b_transposed: bool,
    accumulate: bool,
}

/// A block of C of one product.
#[derive(Clone, Copy, Debug)]
struct Block {
    product: Product,
    row: usize,
    rows: usize,
    column: usize,
    columns: usize,
}

/// C as jobs share it: each writes its own block.
#[derive(Clone, Copy)]
enum Output {
    F32(*mut f32),
    Bf16(*mut half::bf16),
}

// SAFETY: jobs write disjoint blocks of C, and nobody reads it before all are done.
unsafe impl Send for Output {}
// SAFETY: as above.
unsafe impl Sync for Output {}

/// See [`crate::Backend::gemm`].
pub(crate) fn gemm(isa: Isa, shape: Gemm, a: Floats<'_>, b: Floats<'_>, c: FloatsMut<'_>) -> Result<(), KernelError> {
    let Gemm { m, n, k, a_transposed, b_transposed, accumulate } = shape;
    check("gemm", [(m, k), (k, n), (m, n)], &a, &b, &c)?;
    let layout = Layout { a_transposed, b_transposed, accumulate };
    run(isa, layout, &[Product { m, n, k, a: 0, b: 0, c: 0 }], a, b, c);
    Ok(())
}

/// See [`crate::Backend::grouped_gemm`].
pub(crate) fn grouped_gemm(
    isa: Isa,
    shape: GroupedGemm<'_>,
    a: Floats<'_>,
    b: Floats<'_>,
    c: FloatsMut<'_>,
) -> Result<(), KernelError> {
    let GroupedGemm { product, n, k, offsets, accumulate } = shape;
    let kernel = "grouped_gemm";
    let rows = offsets.last().copied().unwrap_or(0);
    if offsets.is_empty() || offsets[0] != 0 || offsets.windows(2).any(|pair| pair[0] > pair[1]) {
        let reason = format!("offsets {offsets:?} do not begin at 0 or decrease");
        return Err(KernelError::Shape { kernel, reason });
    }
    let groups = offsets.len() - 1;
    let (rows_k, rows_n, weights) = ((rows, k), (rows, n), (groups * n, k));
    let lengths = match product {
        GroupedProduct::Forward => [rows_k, weights, rows_n],
        GroupedProduct::InputGradient => [rows_n, weights, rows_k],
        GroupedProduct::WeightGradient => [rows_n, rows_k, weights],
    };
    check(kernel, lengths, &a, &b, &c)?;
    let products: Vec<Product> = offsets
        .windows(2)
        .enumerate()
        .map(|(group, range)| {
            let (first, rows, weight) = (range[0], range[1] - range[0], group * n * k);
            match product {
                GroupedProduct::Forward => Product { m: rows, n, k, a: first * k, b: weight, c: first * n },
                GroupedProduct::InputGradient => Product { m: rows, n: k, k: n, a: first * n, b: weight, c: first * k },
                GroupedProduct::WeightGradient => {
                    Product { m: n, n: k, k: rows, a: first * n, b: first * k, c: weight }
                }
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

/// Lengths (rows, columns) of A, B and C, and that their types go together.
fn check(
    kernel: &'static str,
    lengths: [(usize, usize); 3],
    a: &Floats<'_>,
    b: &Floats<'_>,
    c: &FloatsMut<'_>,
) -> Result<(), KernelError> {
    let found = [("a", a.len()), ("b", b.len()), ("c", c.len())];
    for ((argument, found), (rows, columns)) in found.into_iter().zip(lengths) {
        let expected = rows.checked_mul(columns).ok_or_else(|| KernelError::Shape {
            kernel,
            reason: format!("{rows} x {columns} elements of {argument} are more than memory has addresses for"),
        })?;
        if found != expected {
            return Err(KernelError::Length { kernel, argument, expected, found });
        }
    }
    if a.element() != b.element() {
        return Err(KernelError::Element { kernel, argument: "b", found: b.element() });
    }
    match (a, c) {
        (Floats::F32(_), FloatsMut::Bf16(_)) => Err(KernelError::Element { kernel, argument: "c", found: c.element() }),
        _ => Ok(()),
    }
}

/// Fewer multiplications than this are not worth waking a thread.
const PARALLEL_FROM: usize = 1 << 17;

fn run(isa: Isa, layout: Layout, products: &[Product], a: Floats<'_>, b: Floats<'_>, c: FloatsMut<'_>) {
    let output = match c {
        FloatsMut::F32(values) => Output::F32(values.as_mut_ptr()),
        FloatsMut::Bf16(values) => Output::Bf16(values.as_mut_ptr()),
    };
    let work: usize = products.iter().map(|product| product.m * product.n * product.k).sum();
    let threads = if work < PARALLEL_FROM { 1 } else { rayon::current_num_threads() };
    let tiled = match a {
        Floats::F32(_) => isa >= Isa::Avx512,
        Floats::Bf16(_) => isa >= Isa::Avx512Bf16,
    };
    // The tile's sums do not depend on how C is cut; the `gemm` crate promises no such thing, so there the cut is always
    // the same.
    let cut =
        |product: &Product| if tiled { blocks(*product, products.len(), threads) } else { blocks(*product, 1, 2) };
    let blocks: Vec<Block> = products.iter().flat_map(cut).collect();
    let job = |block: &Block| {
        // SAFETY: `check` held every product's operands against the slices, blocks lie inside of their products and do
        // not overlap, and `isa` is one that the machine has.
        unsafe {
            #[cfg(target_arch = "x86_64")]
            if tiled {
                return job::run(*block, layout, a, b, output);
            }
            fallback::run(*block, layout, a, b, output);
        }
    };
    if threads == 1 {
        blocks.iter().for_each(job);
    } else {
        blocks.par_iter().with_max_len(1).for_each(job);
    }
}

/// Cuts a product into blocks: wide enough that packing B pays, and enough of them to keep the threads even.
fn blocks(product: Product, products: usize, threads: usize) -> impl Iterator<Item = Block> {
    const COLUMNS_MAX: usize = 512;
    const ROWS_MAX: usize = 1032;
    let Product { m, n, .. } = product;
    let parts = |length: usize, most: usize| length.div_ceil(most).max(1);
    let column_parts = parts(n, COLUMNS_MAX);
    let wanted = if threads == 1 { 1 } else { (4 * threads).div_ceil(products * column_parts) };
    let row_parts = parts(m, ROWS_MAX).max(wanted.min(m.div_ceil(96)));
    // Whole tiles, so that only the last block has a ragged edge.
    let columns = n.div_ceil(column_parts).next_multiple_of(32);
    let rows = m.div_ceil(row_parts.max(1)).next_multiple_of(12);
    (0..m).step_by(rows.max(1)).flat_map(move |row| {
        (0..n).step_by(columns.max(1)).map(move |column| Block {
            product,
            row,
            rows: rows.min(m - row),
            column,
            columns: columns.min(n - column),
        })
    })
}
