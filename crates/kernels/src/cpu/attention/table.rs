//! The kernels of one instruction set, chosen once a call.
//!
//! A kernel works through a block in microseconds, so a call through a pointer costs nothing, and what drives the
//! blocks (`forward.rs`, `backward.rs`) is compiled once, as safe code.

use super::form::{Form, Single};
use super::lanes::{Lanes, Portable};
use super::pack;
use super::product::{self, Product};
use super::softmax::{self, Gradient, Packed, Running, Step};
use crate::buffer::Element;
use crate::cpu::isa::Isa;

type ProductKernel = unsafe fn(&Product<'_>, &[u32], &[u32], &mut [f32]);
type SoftmaxKernel = unsafe fn(&Step, &mut [f32], &mut [u32], &mut Running<'_>);
type GradientKernel = unsafe fn(&Gradient<'_>, &[f32], &[f32], &mut [u32], &mut Packed<'_>);
type TransposeKernel = unsafe fn(&[u32], usize, usize, &mut [u32]);

/// The kernels of one instruction set and element type.
///
/// **Invariant:** it is made by [`Table::choose`] only, for instructions that this machine has.
#[derive(Clone, Copy)]
pub(super) struct Table {
    /// Values in a unit: 2 if products take pairs of bf16, otherwise 1.
    pub unit: usize,
    /// Lanes of a vector.
    pub lanes: usize,
    /// Rows are padded to a multiple of this.
    pub tile_rows: usize,
    product: ProductKernel,
    running_softmax: SoftmaxKernel,
    score_gradient: GradientKernel,
    transpose: TransposeKernel,
}

impl Table {
    /// The kernels of `isa`, or of the best that this machine has if that is less, for tensors of `element`.
    pub(super) fn choose(isa: Isa, element: Element) -> Self {
        match isa.min(Isa::detect()) {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Bf16 if element == Element::Bf16 => x86::bf16_pairs(),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 | Isa::Avx512Bf16 => x86::avx512(),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => x86::avx2(),
            _ => {
                let _ = element;
                portable()
            }
        }
    }

    /// See [`product::product`].
    pub(super) fn product(&self, shape: &Product<'_>, a: &[u32], b: &[u32], c: &mut [f32]) {
        // SAFETY: the instructions are there: this type's invariant.
        unsafe { (self.product)(shape, a, b, c) }
    }

    /// See [`softmax::running_softmax`].
    pub(super) fn running_softmax(
        &self,
        step: &Step,
        scores: &mut [f32],
        pairs: &mut [u32],
        running: &mut Running<'_>,
    ) {
        // SAFETY: the instructions are there: this type's invariant.
        unsafe { (self.running_softmax)(step, scores, pairs, running) }
    }

    /// See [`softmax::score_gradient`].
    pub(super) fn score_gradient(
        &self,
        step: &Gradient<'_>,
        scores: &[f32],
        d_probabilities: &[f32],
        probabilities: &mut [u32],
        d_scores: &mut Packed<'_>,
    ) {
        // SAFETY: the instructions are there: this type's invariant.
        unsafe { (self.score_gradient)(step, scores, d_probabilities, probabilities, d_scores) }
    }

    /// See [`pack::transpose`].
    pub(super) fn transpose(&self, source: &[u32], stride: usize, columns: usize, target: &mut [u32]) {
        // SAFETY: the instructions are there: this type's invariant.
        unsafe { (self.transpose)(source, stride, columns, target) }
    }
}

fn portable() -> Table {
    type F = Single<Portable>;
    const TILE_ROWS: usize = 4;
    Table {
        unit: F::UNIT,
        lanes: Portable::N,
        tile_rows: TILE_ROWS,
        product: product::product::<F, TILE_ROWS, 1>,
        running_softmax: softmax::running_softmax::<F>,
        score_gradient: softmax::score_gradient::<F>,
        transpose: pack::transpose,
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::super::form::Pairs;
    use super::super::lanes_x86::{Avx2, Avx512};
    use super::super::transpose_x86;
    use super::*;

    /// Makes the kernels of form `$form` with tiles of `$rows` by `$vectors`, compiled for `$features`.
    macro_rules! table {
        ($name:ident, $features:literal, $form:ty, $rows:literal, $vectors:literal, $transpose:path) => {
            pub(super) fn $name() -> Table {
                type F = $form;

                #[target_feature(enable = $features)]
                unsafe fn product(shape: &Product<'_>, a: &[u32], b: &[u32], c: &mut [f32]) {
                    // SAFETY: compiled for the form's instructions, which the caller vouches for.
                    unsafe { product::product::<F, $rows, $vectors>(shape, a, b, c) }
                }

                #[target_feature(enable = $features)]
                unsafe fn running_softmax(
                    step: &Step,
                    scores: &mut [f32],
                    pairs: &mut [u32],
                    running: &mut Running<'_>,
                ) {
                    // SAFETY: compiled for the form's instructions, which the caller vouches for.
                    unsafe { softmax::running_softmax::<F>(step, scores, pairs, running) }
                }

                #[target_feature(enable = $features)]
                unsafe fn score_gradient(
                    step: &Gradient<'_>,
                    scores: &[f32],
                    d_probabilities: &[f32],
                    probabilities: &mut [u32],
                    d_scores: &mut Packed<'_>,
                ) {
                    // SAFETY: compiled for the form's instructions, which the caller vouches for.
                    unsafe { softmax::score_gradient::<F>(step, scores, d_probabilities, probabilities, d_scores) }
                }

                Table {
                    unit: F::UNIT,
                    lanes: <F as Form>::L::N,
                    tile_rows: $rows,
                    product,
                    running_softmax,
                    score_gradient,
                    transpose: $transpose,
                }
            }
        };
    }

    table!(avx2, "avx2,fma", Single<Avx2>, 4, 2, pack::transpose);
    table!(avx512, "avx512f,avx512bw,avx512dq,avx512vl", Single<Avx512>, 4, 4, transpose_x86::transpose);
    table!(bf16_pairs, "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16", Pairs, 4, 4, transpose_x86::transpose);
}
