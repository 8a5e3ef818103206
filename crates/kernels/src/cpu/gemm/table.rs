//! The kernels of one instruction set and element type, chosen once a call.
//!
//! A kernel works for many microseconds, so a call through a pointer costs nothing, and what drives them (`job.rs`) is
//! compiled once.

use std::ops::Range;

use super::form::{Form, Portable};
use super::pack::{self, OneByOne, Packing, Single, Source, Widened};
use super::sweep::{self, Sweep};
use crate::buffer::Element;
use crate::cpu::isa::Isa;

type PackKernel = unsafe fn(&Source<'_>, Range<usize>, Range<usize>, &mut [u32]);
type SweepKernel = unsafe fn(&Sweep);

/// The kernels of one instruction set and element type.
///
/// **Invariant:** it is made by [`Table::choose`] only, for instructions that this machine has.
#[derive(Clone, Copy)]
pub(super) struct Table {
    /// Elements of a unit.
    pub unit: usize,
    /// A unit is what lies in memory, so A may be read in place.
    pub in_place: bool,
    /// Units of a vector.
    pub lanes: usize,
    /// Rows of a tile.
    pub tile_rows: usize,
    step_major: PackKernel,
    row_major: PackKernel,
    sweep: SweepKernel,
}

impl Table {
    /// The kernels of `isa`, or of the best that this machine has if that is less, for operands of `element`.
    pub(super) fn choose(isa: Isa, element: Element) -> Self {
        match isa.min(Isa::detect()) {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Bf16 if element == Element::Bf16 => x86::pairs(),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 | Isa::Avx512Bf16 if element == Element::Bf16 => x86::avx512_widened(),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 | Isa::Avx512Bf16 => x86::avx512(),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 if element == Element::Bf16 => x86::avx2_widened(),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => x86::avx2(),
            _ if element == Element::Bf16 => portable_widened(),
            _ => portable(),
        }
    }

    /// Columns of a tile.
    pub(super) fn tile_columns(&self) -> usize {
        2 * self.lanes
    }

    /// See [`pack::step_major`].
    pub(super) fn step_major(&self, source: &Source<'_>, part: Range<usize>, steps: Range<usize>, to: &mut [u32]) {
        // SAFETY: the instructions are there: this type's invariant.
        unsafe { (self.step_major)(source, part, steps, to) }
    }

    /// See [`pack::row_major`].
    pub(super) fn row_major(&self, source: &Source<'_>, part: Range<usize>, steps: Range<usize>, to: &mut [u32]) {
        // SAFETY: the instructions are there: this type's invariant.
        unsafe { (self.row_major)(source, part, steps, to) }
    }

    /// See [`sweep::sweep`].
    ///
    /// # Safety
    /// The operands and the target reach what the sweep says, and nobody else touches the target.
    pub(super) unsafe fn sweep(&self, sweep: &Sweep) {
        // SAFETY: the instructions are there: this type's invariant. The rest is the caller's promise.
        unsafe { (self.sweep)(sweep) }
    }
}

/// Makes the kernels of a form, a packing, a transposition and a tile's rows, compiled for `$features`.
macro_rules! table {
    ($name:ident, $form:ty, $packing:ty, $transpose:ty, $rows:literal, $in_place:literal $(, $features:literal)?) => {
        pub(super) fn $name() -> Table {
            $(#[target_feature(enable = $features)])?
            unsafe fn step_major(source: &Source<'_>, part: Range<usize>, steps: Range<usize>, to: &mut [u32]) {
                // SAFETY: compiled for the instructions, which the caller vouches for.
                unsafe { pack::step_major::<$packing, $transpose>(source, part, steps, to) }
            }

            $(#[target_feature(enable = $features)])?
            unsafe fn row_major(source: &Source<'_>, part: Range<usize>, steps: Range<usize>, to: &mut [u32]) {
                pack::row_major::<$packing>(source, part, steps, to);
            }

            $(#[target_feature(enable = $features)])?
            unsafe fn sweep(sweep: &Sweep) {
                // SAFETY: compiled for the form's instructions, which the caller vouches for, as for the rest.
                unsafe { sweep::sweep::<$form, $rows>(sweep) }
            }

            Table {
                unit: <$packing>::UNIT,
                in_place: $in_place,
                lanes: <$form>::LANES,
                tile_rows: $rows,
                step_major,
                row_major,
                sweep,
            }
        }
    };
}

table!(portable, Portable, Single, OneByOne, 2, true);
table!(portable_widened, Portable, Widened, OneByOne, 2, false);

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::super::form_x86::{Avx2, Avx512, Pairs};
    use super::super::pack::Paired;
    use super::super::transpose_x86 as transpose;
    use super::*;

    table!(avx2, Avx2, Single, transpose::Avx2, 6, true, "avx2,fma");
    table!(avx2_widened, Avx2, Widened, transpose::Avx2, 6, false, "avx2,fma");
    table!(avx512, Avx512, Single, transpose::Avx512, 12, true, "avx512f,avx512bw,avx512dq,avx512vl");
    table!(avx512_widened, Avx512, Widened, transpose::Avx512, 12, false, "avx512f,avx512bw,avx512dq,avx512vl");
    table!(pairs, Pairs, Paired, transpose::Avx512, 12, true, "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16");
}
