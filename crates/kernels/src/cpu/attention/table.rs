//! The kernels of one instruction set, chosen once a call.
//!
//! A kernel works through a block in microseconds, so a call through a pointer costs nothing, and what drives the
//! blocks (`forward.rs`, `backward.rs`) is compiled once, as safe code.

use super::form::{Form, Single};
use super::lanes::{Lanes, Portable};
use super::pack::{self, Place, Rows};
use super::product::{self, Product};
use super::softmax::{self, Gradient, Packed, Running, Step};
use crate::buffer::Element;
use crate::cpu::isa::Isa;

type ProductKernel = unsafe fn(&Product<'_>, &[u32], &[u32], &mut [f32]);
type SoftmaxKernel = unsafe fn(&Step, &mut [f32], &mut [u32], &mut Running<'_>);
type GradientKernel = unsafe fn(&Gradient<'_>, &[f32], &[f32], &mut [u32], &mut Packed<'_>);
type FinishKernel = unsafe fn(&mut Running<'_>, &mut [f32], usize, &mut [f32]);
type PackKernel = unsafe fn(&Rows<'_>, &mut [u32], usize);
type DotsKernel = unsafe fn(&Rows<'_>, &Rows<'_>, &mut [f32]);
type UnpackKernel = unsafe fn(&[f32], usize, usize, usize, Place, usize);
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
    finish: FinishKernel,
    score_gradient: GradientKernel,
    pack_along_columns: PackKernel,
    pack_along_rows: PackKernel,
    dots: DotsKernel,
    unpack: UnpackKernel,
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

    /// See [`softmax::finish`].
    pub(super) fn finish(&self, running: &mut Running<'_>, out: &mut [f32], stride: usize, lse: &mut [f32]) {
        // SAFETY: the instructions are there: this type's invariant.
        unsafe { (self.finish)(running, out, stride, lse) }
    }

    /// See [`pack::pack_along_columns`].
    pub(super) fn pack_along_columns(&self, rows: &Rows<'_>, target: &mut [u32], stride: usize) {
        // SAFETY: the instructions are there: this type's invariant.
        unsafe { (self.pack_along_columns)(rows, target, stride) }
    }

    /// See [`pack::pack_along_rows`].
    pub(super) fn pack_along_rows(&self, rows: &Rows<'_>, target: &mut [u32], stride: usize) {
        // SAFETY: the instructions are there: this type's invariant.
        unsafe { (self.pack_along_rows)(rows, target, stride) }
    }

    /// See [`pack::dots`].
    pub(super) fn dots(&self, a: &Rows<'_>, b: &Rows<'_>, sums: &mut [f32]) {
        // SAFETY: the instructions are there: this type's invariant.
        unsafe { (self.dots)(a, b, sums) }
    }

    /// See [`pack::unpack`].
    ///
    /// # Safety
    /// The rows at `target`, `count` of `width` values and `stride` apart, exist and are the caller's alone to write.
    pub(super) unsafe fn unpack(
        &self,
        source: &[f32],
        source_stride: usize,
        count: usize,
        width: usize,
        target: Place,
        stride: usize,
    ) {
        // SAFETY: the instructions are there: this type's invariant. The rows are the caller's promise.
        unsafe { (self.unpack)(source, source_stride, count, width, target, stride) }
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
        finish: softmax::finish::<Portable>,
        score_gradient: softmax::score_gradient::<F>,
        pack_along_columns: pack::pack_along_columns::<F>,
        pack_along_rows: pack::pack_along_rows::<F>,
        dots: pack::dots::<Portable>,
        unpack: pack::unpack::<Portable>,
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

                #[target_feature(enable = $features)]
                unsafe fn finish(running: &mut Running<'_>, out: &mut [f32], stride: usize, lse: &mut [f32]) {
                    // SAFETY: compiled for the form's instructions, which the caller vouches for.
                    unsafe { softmax::finish::<<F as Form>::L>(running, out, stride, lse) }
                }

                #[target_feature(enable = $features)]
                unsafe fn pack_along_columns(rows: &Rows<'_>, target: &mut [u32], stride: usize) {
                    // SAFETY: compiled for the form's instructions, which the caller vouches for.
                    unsafe { pack::pack_along_columns::<F>(rows, target, stride) }
                }

                #[target_feature(enable = $features)]
                unsafe fn pack_along_rows(rows: &Rows<'_>, target: &mut [u32], stride: usize) {
                    // SAFETY: compiled for the form's instructions, which the caller vouches for.
                    unsafe { pack::pack_along_rows::<F>(rows, target, stride) }
                }

                #[target_feature(enable = $features)]
                unsafe fn dots(a: &Rows<'_>, b: &Rows<'_>, sums: &mut [f32]) {
                    // SAFETY: compiled for the form's instructions, which the caller vouches for.
                    unsafe { pack::dots::<<F as Form>::L>(a, b, sums) }
                }

                #[target_feature(enable = $features)]
                unsafe fn unpack(
                    source: &[f32],
                    source_stride: usize,
                    count: usize,
                    width: usize,
                    target: Place,
                    stride: usize,
                ) {
                    // SAFETY: compiled for the form's instructions; these and the rows are the caller's promise.
                    unsafe { pack::unpack::<<F as Form>::L>(source, source_stride, count, width, target, stride) }
                }

                Table {
                    unit: F::UNIT,
                    lanes: <F as Form>::L::N,
                    tile_rows: $rows,
                    product,
                    running_softmax,
                    finish,
                    score_gradient,
                    pack_along_columns,
                    pack_along_rows,
                    dots,
                    unpack,
                    transpose: $transpose,
                }
            }
        };
    }

    table!(avx2, "avx2,fma", Single<Avx2>, 4, 2, pack::transpose);
    table!(avx512, "avx512f,avx512bw,avx512dq,avx512vl", Single<Avx512>, 4, 4, transpose_x86::transpose);
    table!(bf16_pairs, "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16", Pairs, 4, 4, transpose_x86::transpose);
}
