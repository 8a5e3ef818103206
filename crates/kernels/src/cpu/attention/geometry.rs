//! Where heads and blocks lie in the tensors, how large packed blocks are, and who works on what.

use std::marker::PhantomData;
use std::sync::atomic::{AtomicUsize, Ordering};

use rayon::prelude::*;

use super::pack::{Place, Rows};
use super::softmax::BLOCK;
use super::table::Table;
use crate::cpu::slices::{Floats, FloatsMut};
use crate::ops::AttentionShape;

/// A call's shape, its kernels, and the sizes that follow from both. Lengths of packed rows are in units.
#[derive(Clone, Copy)]
pub(super) struct Geometry {
    pub shape: AttentionShape,
    pub table: Table,
    /// Query heads of a key/value head.
    pub group: usize,
    /// Blocks of a sequence.
    pub blocks: usize,
    /// A row of a query or key in units along its columns.
    pub qk_units: usize,
    /// That, padded to whole vectors.
    pub qk_row: usize,
    /// Its columns, padded to whole vectors; equal to `qk_row` where a unit is one value.
    pub qk_wide: usize,
    /// A row of a value in units along its columns.
    pub v_units: usize,
    /// That, padded to whole vectors.
    pub v_row: usize,
    /// Its columns, padded to whole vectors; equal to `v_row` where a unit is one value.
    pub v_wide: usize,
    /// Multiplies raw scores to give exponents of two.
    pub factor: f32,
}

/// One key/value head of one sequence.
#[derive(Clone, Copy)]
pub(super) struct Head {
    pub sequence: usize,
    pub kv_head: usize,
}

impl Geometry {
    pub(super) fn new(shape: AttentionShape, table: Table) -> Self {
        Self {
            shape,
            table,
            group: shape.heads / shape.kv_heads,
            blocks: shape.seq_len.div_ceil(BLOCK),
            qk_units: shape.qk_dim.div_ceil(table.unit),
            qk_row: shape.qk_dim.div_ceil(table.unit).next_multiple_of(table.lanes),
            qk_wide: shape.qk_dim.next_multiple_of(table.lanes),
            v_units: shape.v_dim.div_ceil(table.unit),
            v_row: shape.v_dim.div_ceil(table.unit).next_multiple_of(table.lanes),
            v_wide: shape.v_dim.next_multiple_of(table.lanes),
            factor: (shape.scale * std::f64::consts::LOG2_E) as f32,
        }
    }

    /// Rows of a block, less than [`BLOCK`] in the last one.
    pub(super) fn rows(&self, block: usize) -> usize {
        BLOCK.min(self.shape.seq_len - block * BLOCK)
    }

    /// Rows of a block, padded to whole tiles.
    pub(super) fn tile_rows(&self, block: usize) -> usize {
        self.rows(block).next_multiple_of(self.table.tile_rows)
    }

    /// The query head number `member` of the group that reads `head`.
    pub(super) fn query_head(&self, head: Head, member: usize) -> usize {
        head.kv_head * self.group + member
    }

    /// Where a block of a head begins in a tensor of `heads` heads of `width` values a token.
    pub(super) fn start(&self, sequence: usize, block: usize, heads: usize, head: usize, width: usize) -> usize {
        ((sequence * self.shape.seq_len + block * BLOCK) * heads + head) * width
    }

    /// A block of a query head in a tensor (B*T, N, width).
    pub(super) fn query_rows<'a>(
        &self,
        values: Floats<'a>,
        head: Head,
        member: usize,
        block: usize,
        width: usize,
    ) -> Rows<'a> {
        let heads = self.shape.heads;
        let first = self.start(head.sequence, block, heads, self.query_head(head, member), width);
        Rows { values, first, stride: heads * width, count: self.rows(block), width }
    }

    /// A block of a key/value head in a tensor (B*T, G, width).
    pub(super) fn key_rows<'a>(&self, values: Floats<'a>, head: Head, block: usize, width: usize) -> Rows<'a> {
        let heads = self.shape.kv_heads;
        let first = self.start(head.sequence, block, heads, head.kv_head, width);
        Rows { values, first, stride: heads * width, count: self.rows(block), width }
    }

    /// Where a block's log sums of a query head begin in (B, N, T).
    pub(super) fn lse_start(&self, head: Head, member: usize, block: usize) -> usize {
        (head.sequence * self.shape.heads + self.query_head(head, member)) * self.shape.seq_len + block * BLOCK
    }

    /// All pairs of a sequence and a key/value head.
    pub(super) fn kv_heads(&self) -> usize {
        self.shape.batch * self.shape.kv_heads
    }

    /// One of them.
    pub(super) fn head(&self, index: usize) -> Head {
        Head { sequence: index / self.shape.kv_heads, kv_head: index % self.shape.kv_heads }
    }
}

/// Runs jobs 0..count on the current pool, each thread taking the next one when it is done with its last.
///
/// Which thread runs a job is left to chance, so a job's results may depend on its number only.
pub(super) fn run_jobs(count: usize, job: impl Fn(usize) + Sync) {
    let next = AtomicUsize::new(0);
    let workers = rayon::current_num_threads().min(count);
    (0..workers).into_par_iter().with_max_len(1).for_each(|_| {
        loop {
            // Relaxed: the number alone is shared; what jobs write is handed over by the join of the pool.
            let index = next.fetch_add(1, Ordering::Relaxed);
            if index >= count {
                break;
            }
            job(index);
        }
    });
}

/// A tensor that jobs write disjoint rows of.
pub(super) struct Target<'a> {
    place: Place,
    len: usize,
    borrow: PhantomData<&'a mut [f32]>,
}

// SAFETY: a Target is an exclusive borrow of plain floats for its lifetime; the only way to write through a shared one
// is `Target::write`, whose contract is that no two threads write the same element.
unsafe impl Sync for Target<'_> {}

impl<'a> Target<'a> {
    pub(super) fn new(values: FloatsMut<'a>) -> Self {
        let len = values.len();
        let place = match values {
            FloatsMut::F32(values) => Place::F32(values.as_mut_ptr()),
            FloatsMut::Bf16(values) => Place::Bf16(values.as_mut_ptr()),
        };
        Self { place, len, borrow: PhantomData }
    }

    /// Writes the first `width` values of `count` rows of `source`, which are `source_stride` long, to the rows that
    /// begin at element `start` and are `stride` apart, rounded to the tensor's type.
    ///
    /// # Safety
    /// No other thread writes these rows while the target is borrowed.
    pub(super) unsafe fn write(
        &self,
        table: &Table,
        source: &[f32],
        source_stride: usize,
        (count, width): (usize, usize),
        start: usize,
        stride: usize,
    ) {
        assert!(count > 0 && start + (count - 1) * stride + width <= self.len, "rows at {start} of {}", self.len);
        // SAFETY: the rows lie inside the borrowed tensor by the assertion, and nobody else touches them by the
        // caller's promise (nobody reads at all: the tensor is exclusively borrowed).
        unsafe {
            let place = match self.place {
                Place::F32(pointer) => Place::F32(pointer.add(start)),
                Place::Bf16(pointer) => Place::Bf16(pointer.add(start)),
            };
            table.unpack(source, source_stride, count, width, place, stride);
        }
    }
}
