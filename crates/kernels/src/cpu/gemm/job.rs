//! One job: a block of C with its whole sums along k.

use std::ops::Range;

use half::bf16;

use super::pack::Source;
use super::plan::{Block, Layout, Product};
use super::scratch::Scratch;
use super::sweep::{Sweep, Target};
use super::table::Table;
use crate::cpu::slices::{Floats, FloatsMut};

/// The most steps of one chain of multiply-adds: a panel of B (32 KiB) then stays in the innermost cache. Longer sums
/// are made of parts, each a chain of its own, added in order.
const STEPS_MAX: usize = 256;

/// C as jobs share it: each writes the elements of its own block only.
#[derive(Clone, Copy)]
pub(super) enum Output {
    F32(*mut f32),
    Bf16(*mut bf16),
}

// SAFETY: jobs write disjoint blocks, and the slice that this was made of stays borrowed until all are done.
unsafe impl Send for Output {}
// SAFETY: as above.
unsafe impl Sync for Output {}

impl Output {
    pub(super) fn of(c: &mut FloatsMut<'_>) -> Self {
        match c {
            FloatsMut::F32(values) => Self::F32(values.as_mut_ptr()),
            FloatsMut::Bf16(values) => Self::Bf16(values.as_mut_ptr()),
        }
    }
}

/// What all jobs of a call have in common.
pub(super) struct Call<'a> {
    pub table: Table,
    pub layout: Layout,
    pub products: &'a [Product],
    pub a: Floats<'a>,
    pub b: Floats<'a>,
    /// Has the elements of all products, each in a place of its own: checked where it is made.
    pub c: Output,
}

/// A thread at work on jobs of one call.
pub(super) struct Worker<'a> {
    call: &'a Call<'a>,
    scratch: &'a mut Scratch,
    /// The columns of B that are packed: of which product, and which.
    packed: Option<(usize, Range<usize>)>,
}

impl<'a> Worker<'a> {
    pub(super) fn new(call: &'a Call<'a>, scratch: &'a mut Scratch) -> Self {
        Self { call, scratch, packed: None }
    }

    /// Computes a block of C.
    ///
    /// # Safety
    /// The block lies inside its product, and nobody else touches it.
    pub(super) unsafe fn run(&mut self, block: &Block) {
        let Call { table, layout, products, c, .. } = self.call;
        let product = &products[block.product];
        let (rows, columns) = (block.rows.len(), block.columns.len());
        let parts: Vec<Range<usize>> = parts(product.k.div_ceil(table.unit)).collect();
        let padded = columns.next_multiple_of(table.lanes);
        self.pack_columns(block, &parts, padded);

        let a = Source {
            values: part_of(self.call.a, &product.a),
            stride: if layout.a_transposed { product.m } else { product.k },
            along_k: !layout.a_transposed,
            k: product.k,
        };
        let in_place = a.along_k && table.in_place && product.k.is_multiple_of(table.unit);
        let at = product.c + block.rows.start * product.n + block.columns.start;
        for (index, steps) in parts.iter().enumerate() {
            let (first, last) = (index == 0, index + 1 == parts.len());
            let (a, a_row, a_step) = if in_place {
                (
                    unit_address(a.values, block.rows.start * a.stride + steps.start * table.unit),
                    a.stride / table.unit,
                    1,
                )
            } else if a.along_k {
                let packed = self.scratch.a.units(rows * steps.len());
                table.row_major(&a, block.rows.clone(), steps.clone(), packed);
                (packed.as_ptr(), steps.len(), 1)
            } else {
                let stride = rows.next_multiple_of(16);
                let packed = self.scratch.a.units(stride * steps.len());
                table.step_major(&a, block.rows.clone(), steps.clone(), packed);
                (packed.as_ptr(), 1, stride)
            };
            let (target, target_row) = match *c {
                Output::F32(c) => (Target::F32 { to: c.wrapping_add(at), add: layout.accumulate || !first }, product.n),
                Output::Bf16(c) => {
                    let sums = if parts.len() > 1 { self.scratch.sums.floats(rows * columns) } else { &mut [] };
                    if last {
                        let earlier = (!first).then_some((sums.as_ptr(), columns));
                        (Target::Bf16 { to: c.wrapping_add(at), add: layout.accumulate, earlier }, product.n)
                    } else {
                        (Target::F32 { to: sums.as_mut_ptr(), add: !first }, columns)
                    }
                }
            };
            let b = self.scratch.b.units(padded * parts[parts.len() - 1].end)[padded * steps.start..].as_ptr();
            let steps = steps.len();
            let sweep = Sweep { steps, rows, columns, a, a_row, a_step, b, target, target_row };
            // SAFETY: A is packed for these rows and steps, or lies in place as (m, k) with k whole units, so that row r
            // of the block and step s stand at these strides inside the operand, whose length the call checked. B's
            // panels of this part were packed above. The target is the block, which is the caller's alone, or this
            // thread's sums, which have room for it.
            unsafe { table.sweep(&sweep) };
        }
    }

    /// Packs the block's columns of B, all parts of k, unless they are what this thread packed last.
    fn pack_columns(&mut self, block: &Block, parts: &[Range<usize>], padded: usize) {
        let key = (block.product, block.columns.clone());
        if self.packed.as_ref() == Some(&key) {
            return;
        }
        let Call { table, layout, products, b, .. } = self.call;
        let product = &products[block.product];
        let source = Source {
            values: part_of(*b, &product.b),
            stride: if layout.b_transposed { product.k } else { product.n },
            along_k: layout.b_transposed,
            k: product.k,
        };
        let mut rest = self.scratch.b.units(padded * parts.last().map_or(0, |part| part.end));
        for steps in parts {
            for column in block.columns.clone().step_by(table.tile_columns()) {
                let columns = column..block.columns.end.min(column + table.tile_columns());
                let units = columns.len().next_multiple_of(table.lanes) * steps.len();
                let (panel, after) = std::mem::take(&mut rest).split_at_mut(units);
                table.step_major(&source, columns, steps.clone(), panel);
                rest = after;
            }
        }
        self.packed = Some(key);
    }
}

/// The parts of a sum of `steps`, a function of that number only; one empty part if there are none.
fn parts(steps: usize) -> impl Iterator<Item = Range<usize>> {
    let count = steps.div_ceil(STEPS_MAX).max(1);
    let each = steps.div_ceil(count);
    (0..count).map(move |part| (part * each).min(steps)..((part + 1) * each).min(steps))
}

/// A product's elements of an operand.
fn part_of<'a>(values: Floats<'a>, range: &Range<usize>) -> Floats<'a> {
    match values {
        Floats::F32(values) => Floats::F32(&values[range.clone()]),
        Floats::Bf16(values) => Floats::Bf16(&values[range.clone()]),
    }
}

/// Where the unit that begins with an element stands.
fn unit_address(values: Floats<'_>, element: usize) -> *const u32 {
    match values {
        Floats::F32(values) => values[element..].as_ptr().cast(),
        Floats::Bf16(values) => values[element..].as_ptr().cast(),
    }
}
