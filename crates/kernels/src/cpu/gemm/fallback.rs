//! A block of C by the `gemm` crate, where the CPU lacks the instructions of our tile: bf16 operands are widened to f32.
//!
//! The crate cuts k by a rule of its own that may look at the shape of the block, so the caller cuts C the same way for
//! every number of threads.

use gemm::Parallelism;
use half::bf16;

use super::{Block, Floats, Layout, Output, scratch};

/// Computes one block.
///
/// # Safety
/// The product of `block` lies inside of `a`, `b` and `output`, the block inside of the product, and nobody else touches
/// the block.
pub(super) unsafe fn run(block: Block, layout: Layout, a: Floats<'_>, b: Floats<'_>, output: Output) {
    let product = block.product;
    let k = product.k;
    // (row, k) strides of A and (k, column) strides of B, in elements.
    let (a_row, a_k) = if layout.a_transposed { (1, product.m) } else { (k, 1) };
    let (b_k, b_column) = if layout.b_transposed { (1, k) } else { (product.n, 1) };
    let (a_first, b_first) = (product.a + block.row * a_row, product.b + block.column * b_column);
    let c_first = product.c + block.row * product.n + block.column;
    match (a, b, output) {
        (Floats::F32(a), Floats::F32(b), Output::F32(c)) => {
            let left = Operand { start: a.as_ptr().wrapping_add(a_first), outer: a_row, along_k: a_k };
            let right = Operand { start: b.as_ptr().wrapping_add(b_first), outer: b_column, along_k: b_k };
            // SAFETY: as promised by the caller.
            unsafe { multiply(block, left, right, c.wrapping_add(c_first), product.n, layout.accumulate) }
        }
        (Floats::Bf16(a), Floats::Bf16(b), output) => {
            let lengths = [block.rows * k, block.columns * k, block.rows * block.columns];
            scratch::with(lengths, |[left, right, sums]| {
                let (left, right, sums) = (floats(left), floats(right), floats(sums));
                widen(a, a_first, a_row, a_k, block.rows, k, left);
                widen(b, b_first, b_column, b_k, block.columns, k, right);
                let operand = |start: &[f32]| Operand { start: start.as_ptr(), outer: k, along_k: 1 };
                // SAFETY: the three areas have the lengths asked for; the rest as promised by the caller.
                unsafe {
                    multiply(block, operand(left), operand(right), sums.as_mut_ptr(), block.columns, false);
                    write_out(block, sums, output, c_first, layout.accumulate);
                }
            });
        }
        _ => {}
    }
}

#[derive(Clone, Copy)]
struct Operand {
    start: *const f32,
    /// From row to row of A, from column to column of B.
    outer: usize,
    along_k: usize,
}

unsafe fn multiply(block: Block, a: Operand, b: Operand, c: *mut f32, c_stride: usize, accumulate: bool) {
    let (alpha, beta) = (if accumulate { 1.0 } else { 0.0 }, 1.0);
    let stride = |value: usize| value as isize;
    // SAFETY: operands and C may be read and written for the block's rows, columns and k by these strides. The crate
    // computes `C = alpha * C + beta * A B` on this thread.
    unsafe {
        gemm::gemm(
            block.rows,
            block.columns,
            block.product.k,
            c,
            1,
            stride(c_stride),
            accumulate,
            a.start,
            stride(a.along_k),
            stride(a.outer),
            b.start,
            stride(b.outer),
            stride(b.along_k),
            alpha,
            beta,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}

fn widen(source: &[bf16], first: usize, outer: usize, along_k: usize, count: usize, k: usize, out: &mut [f32]) {
    for index in 0..count {
        for (p, value) in out[index * k..(index + 1) * k].iter_mut().enumerate() {
            *value = source[first + index * outer + p * along_k].to_f32();
        }
    }
}

unsafe fn write_out(block: Block, sums: &[f32], output: Output, first: usize, accumulate: bool) {
    for row in 0..block.rows {
        for column in 0..block.columns {
            let (sum, at) = (sums[row * block.columns + column], first + row * block.product.n + column);
            // SAFETY: the block lies inside of C and is this job's own.
            unsafe {
                match output {
                    Output::F32(c) => *c.add(at) = if accumulate { *c.add(at) + sum } else { sum },
                    Output::Bf16(c) => {
                        let old = if accumulate { (*c.add(at)).to_f32() } else { 0.0 };
                        *c.add(at) = bf16::from_f32(if accumulate { old + sum } else { sum });
                    }
                }
            }
        }
    }
}

fn floats(words: &mut [u32]) -> &mut [f32] {
    bytemuck::cast_slice_mut(words)
}
