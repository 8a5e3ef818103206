//! The forward: `out = softmax(scale * q · kᵀ, causal) · v`, and the log of each row's sum of exponentials.
//!
//! A job is a run of query blocks of all heads that read one key/value head. It walks over the key blocks, packs each
//! once, and takes it into the running softmax (arXiv 2205.14135, algorithm 1) of every query block at or after it.
//! A row sees the key blocks in order whatever the run, so runs may be cut in any way.

use std::ops::Range;

use super::geometry::{Geometry, Head, Target, run_jobs};
use super::pack::sum_lanes;
use super::product::{Band, Product, Start};
use super::scratch::{Scratch, region, with_scratch};
use super::softmax::{BLOCK, Running, Step};
use crate::cpu::slices::{Floats, FloatsMut};

/// Rows that a job should have, for the packing of its keys to cost little.
const JOB_ROWS: usize = 256;

/// Runs the forward on the current pool. Lengths and element types are checked.
pub(super) fn run(
    geometry: &Geometry,
    q: Floats<'_>,
    k: Floats<'_>,
    v: Floats<'_>,
    out: FloatsMut<'_>,
    lse: &mut [f32],
) {
    let (out, lse) = (Target::new(out), Target::new(FloatsMut::F32(lse)));
    let run_blocks = (JOB_ROWS / (BLOCK * geometry.group)).max(1);
    let runs = geometry.blocks.div_ceil(run_blocks);
    let heads = geometry.kv_heads();
    run_jobs(runs * heads, |job| {
        // The last run of a sequence has the most to do and goes first.
        let first = (runs - 1 - job / heads) * run_blocks;
        let blocks = first..geometry.blocks.min(first + run_blocks);
        let job = Job { g: geometry, q, k, v, out: &out, lse: &lse, head: geometry.head(job % heads), blocks };
        with_scratch(job.scratch_len(), |scratch| job.run(scratch));
    });
}

/// Query blocks `blocks` of all heads that read `head`: rows of the results that no other job has.
struct Job<'a> {
    g: &'a Geometry,
    q: Floats<'a>,
    k: Floats<'a>,
    v: Floats<'a>,
    out: &'a Target<'a>,
    lse: &'a Target<'a>,
    head: Head,
    blocks: Range<usize>,
}

/// A key block, packed for the products with it.
struct Keys<'a> {
    /// Transposed: (qk units, BLOCK).
    keys: &'a mut [u32],
    /// (BLOCK in units, `v_wide`).
    values: &'a mut [u32],
}

/// A query block of one head and what it has seen so far.
struct Queries<'a> {
    /// (BLOCK, qk units).
    rows: &'a mut [u32],
    /// (BLOCK, `v_wide`), relative to the greatest score so far.
    out: &'a mut [f32],
    running: Running<'a>,
}

impl Job<'_> {
    fn scratch_len(&self) -> usize {
        let g = self.g;
        let keys = 2 * region(BLOCK * g.qk_units) + region(BLOCK * g.v_wide);
        let queries = BLOCK * (g.qk_units + g.v_wide + 2 + g.table.lanes);
        keys + 2 * BLOCK * BLOCK + self.blocks.len() * g.group * queries
    }

    fn run(&self, mut scratch: Scratch<'_>) {
        let g = self.g;
        let staging = scratch.units(BLOCK * g.qk_units);
        let keys =
            Keys { keys: scratch.units(BLOCK * g.qk_units), values: scratch.units(BLOCK / g.table.unit * g.v_wide) };
        let scores = scratch.floats(BLOCK * BLOCK);
        let pairs = scratch.units(if g.table.unit == 1 { 0 } else { BLOCK * BLOCK / g.table.unit });
        let count = self.blocks.len() * g.group;
        let states = scratch.floats(count * BLOCK * (g.qk_units + g.v_wide + 2 + g.table.lanes));

        for (index, state) in self.states(states) {
            let (block, member) = (self.blocks.start + index / g.group, index % g.group);
            let rows = g.query_rows(self.q, self.head, member, block, g.shape.qk_dim);
            rows.pack_along_columns(g.table.unit, state.rows, g.qk_units);
            state.running.greatest.fill(f32::NEG_INFINITY);
            state.running.sums.fill(0.0);
        }
        for key_block in 0..self.blocks.end {
            let rows = g.key_rows(self.k, self.head, key_block, g.shape.qk_dim);
            rows.pack_along_columns(g.table.unit, staging, g.qk_units);
            g.table.transpose(staging, g.qk_units, g.qk_units, keys.keys);
            let rows = g.key_rows(self.v, self.head, key_block, g.shape.v_dim);
            rows.pack_along_rows(g.table.unit, keys.values, g.v_wide);
            for (index, mut state) in self.states(states) {
                let block = self.blocks.start + index / g.group;
                if block >= key_block {
                    self.step(block, key_block, &keys, &mut state, scores, pairs);
                }
            }
        }
        for (index, mut state) in self.states(states) {
            self.finish(self.blocks.start + index / g.group, index % g.group, &mut state);
        }
    }

    /// The job's query blocks, those of one block's heads together, cut out of the memory that holds them.
    fn states<'s>(&self, states: &'s mut [f32]) -> impl Iterator<Item = (usize, Queries<'s>)> + use<'s> {
        let (rows, out, lanes) = (BLOCK * self.g.qk_units, BLOCK * self.g.v_wide, BLOCK * self.g.table.lanes);
        states.chunks_exact_mut(rows + out + 2 * BLOCK + lanes).enumerate().map(move |(index, state)| {
            let (sums, state) = state.split_at_mut(lanes);
            let (greatest, state) = state.split_at_mut(BLOCK);
            let (rescale, state) = state.split_at_mut(BLOCK);
            let (out, state) = state.split_at_mut(out);
            let running = Running { greatest, sums, rescale };
            (index, Queries { rows: bytemuck::cast_slice_mut(state), out, running })
        })
    }

    /// Takes a key block into what a query block has seen.
    fn step(
        &self,
        block: usize,
        key_block: usize,
        keys: &Keys<'_>,
        queries: &mut Queries<'_>,
        scores: &mut [f32],
        pairs: &mut [u32],
    ) {
        let g = self.g;
        let (rows, diagonal) = (g.tile_rows(block), block == key_block);
        let product = Product {
            m: rows,
            n: BLOCK,
            k: g.qk_units,
            a_row: g.qk_units,
            a_inner: 1,
            b_row: BLOCK,
            c_row: BLOCK,
            start: Start::Zero,
            band: if diagonal { Band::ColumnsUpToRow } else { Band::Full },
        };
        g.table.product(&product, queries.rows, keys.keys, scores);

        let step = Step { rows, diagonal, factor: g.factor };
        g.table.running_softmax(&step, scores, pairs, &mut queries.running);

        let product = Product {
            m: rows,
            n: g.v_wide,
            k: BLOCK / g.table.unit,
            a_row: BLOCK / g.table.unit,
            a_inner: 1,
            b_row: g.v_wide,
            c_row: g.v_wide,
            start: if key_block == 0 { Start::Zero } else { Start::Scaled(queries.running.rescale) },
            band: if diagonal { Band::InnerUpToRow } else { Band::Full },
        };
        let probabilities = if g.table.unit == 1 { bytemuck::cast_slice(scores) } else { &*pairs };
        g.table.product(&product, probabilities, keys.values, queries.out);
    }

    /// Divides by the sums and writes a query block's results.
    fn finish(&self, block: usize, member: usize, queries: &mut Queries<'_>) {
        let g = self.g;
        let mut lse = [0.0; BLOCK];
        let rows = g.rows(block);
        for (r, lse) in lse.iter_mut().enumerate().take(rows) {
            let sum = sum_lanes(&mut queries.running.sums[r * g.table.lanes..][..g.table.lanes]);
            let row = &mut queries.out[r * g.v_wide..][..g.shape.v_dim];
            let inverse = 1.0 / sum;
            for value in row.iter_mut() {
                *value *= inverse;
            }
            let log2 = f64::from(queries.running.greatest[r]) + f64::from(sum).log2();
            *lse = (log2 * std::f64::consts::LN_2) as f32;
            let token =
                g.start(self.head.sequence, block, g.shape.heads, g.query_head(self.head, member), g.shape.v_dim);
            // SAFETY: this row of `out` belongs to this job alone, see `Job`, and a job runs on one thread.
            unsafe { self.out.write(token + r * g.shape.heads * g.shape.v_dim, row) };
        }
        // SAFETY: this block's part of `lse` belongs to this job alone, see `Job`, and a job runs on one thread.
        unsafe { self.lse.write(g.lse_start(self.head, member, block), &lse[..rows]) };
    }
}
