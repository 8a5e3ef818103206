//! The forward: `out = softmax(scale * q · kᵀ, causal) · v`, and the log of each row's sum of exponentials.
//!
//! A job is a run of query blocks of all heads that read one key/value head. It walks over the key blocks, packs each
//! once, and takes it into the running softmax (arXiv 2205.14135, algorithm 1) of every query block at or after it.
//! A row sees the key blocks in order whatever the run, so runs may be cut in any way.

use std::ops::Range;

use super::geometry::{Geometry, Head, Target, run_jobs};
use super::product::{Band, Product, Start};
use super::scratch::{Scratch, with_scratch};
use super::softmax::{BLOCK, Running, Step};
use crate::cpu::slices::{Floats, FloatsMut};

/// Memory that a job's query blocks may take: the more, the less the packing of keys costs, but it should stay in L2.
const JOB_BYTES: usize = 512 << 10;

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
    let heads = geometry.kv_heads();
    let block_bytes = geometry.group * state_len(geometry) * size_of::<f32>();
    // Four jobs a thread even out; the bits do not depend on how runs are cut.
    let share = geometry.blocks * heads / (4 * rayon::current_num_threads());
    let run_blocks = (JOB_BYTES / block_bytes).min(share).clamp(1, geometry.blocks);
    let runs = geometry.blocks.div_ceil(run_blocks);
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

/// Floats of the memory of a query block of one head.
fn state_len(g: &Geometry) -> usize {
    BLOCK * (g.qk_row + g.v_wide + 2 + g.table.lanes)
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
    /// (BLOCK, `qk_row`).
    rows: &'a mut [u32],
    /// (BLOCK, `v_wide`), relative to the greatest score so far.
    out: &'a mut [f32],
    running: Running<'a>,
}

impl Job<'_> {
    fn scratch_len(&self) -> usize {
        let keys = BLOCK * (2 * self.g.qk_row + self.g.v_wide);
        keys + 2 * BLOCK * BLOCK + self.blocks.len() * self.g.group * state_len(self.g)
    }

    fn run(&self, mut scratch: Scratch<'_>) {
        let (g, table) = (self.g, &self.g.table);
        let staging = scratch.units(BLOCK * g.qk_row);
        let keys =
            Keys { keys: scratch.units(BLOCK * g.qk_units), values: scratch.units(BLOCK / table.unit * g.v_wide) };
        let scores = scratch.floats(BLOCK * BLOCK);
        let pairs = scratch.units(if table.unit == 1 { 0 } else { BLOCK * BLOCK / table.unit });
        let states = scratch.floats(self.blocks.len() * g.group * state_len(self.g));

        for (block, member, state) in self.states(states) {
            let rows = g.query_rows(self.q, self.head, member, block, g.shape.qk_dim);
            table.pack_along_columns(&rows, state.rows, g.qk_row);
            state.running.greatest.fill(f32::NEG_INFINITY);
            state.running.sums.fill(0.0);
        }
        for key_block in 0..self.blocks.end {
            let rows = g.key_rows(self.k, self.head, key_block, g.shape.qk_dim);
            table.pack_along_columns(&rows, staging, g.qk_row);
            table.transpose(staging, g.qk_row, g.qk_units, keys.keys);
            let rows = g.key_rows(self.v, self.head, key_block, g.shape.v_dim);
            table.pack_along_rows(&rows, keys.values, g.v_wide);
            for (block, _, mut state) in self.states(states) {
                if block >= key_block {
                    self.step(block, key_block, &keys, &mut state, scores, pairs);
                }
            }
        }
        for (block, member, mut state) in self.states(states) {
            self.finish(block, member, &mut state);
        }
    }

    /// The job's query blocks with their block and head of the group, cut out of the memory that holds them.
    fn states<'s>(&self, states: &'s mut [f32]) -> impl Iterator<Item = (usize, usize, Queries<'s>)> + use<'s> {
        let (out, lanes) = (BLOCK * self.g.v_wide, BLOCK * self.g.table.lanes);
        let (first, group) = (self.blocks.start, self.g.group);
        states.chunks_exact_mut(state_len(self.g)).enumerate().map(move |(index, state)| {
            let (sums, state) = state.split_at_mut(lanes);
            let (greatest, state) = state.split_at_mut(BLOCK);
            let (rescale, state) = state.split_at_mut(BLOCK);
            let (out, state) = state.split_at_mut(out);
            let running = Running { greatest, sums, rescale };
            (first + index / group, index % group, Queries { rows: bytemuck::cast_slice_mut(state), out, running })
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
        let (g, table) = (self.g, &self.g.table);
        let (rows, diagonal) = (g.tile_rows(block), block == key_block);
        let product = Product {
            m: rows,
            n: BLOCK,
            k: g.qk_units,
            a_row: g.qk_row,
            a_inner: 1,
            b_row: BLOCK,
            c_row: BLOCK,
            start: Start::Zero,
            band: if diagonal { Band::ColumnsUpToRow } else { Band::Full },
        };
        table.product(&product, queries.rows, keys.keys, scores);

        let step = Step { rows, diagonal, factor: g.factor };
        table.running_softmax(&step, scores, pairs, &mut queries.running);

        let product = Product {
            m: rows,
            n: g.v_wide,
            k: BLOCK / table.unit,
            a_row: BLOCK / table.unit,
            a_inner: 1,
            b_row: g.v_wide,
            c_row: g.v_wide,
            start: if key_block == 0 { Start::Zero } else { Start::Scaled(queries.running.rescale) },
            band: if diagonal { Band::InnerUpToRow } else { Band::Full },
        };
        let probabilities = if table.unit == 1 { bytemuck::cast_slice(scores) } else { &*pairs };
        table.product(&product, probabilities, keys.values, queries.out);
    }

    /// Divides by the sums and writes a query block's results.
    fn finish(&self, block: usize, member: usize, queries: &mut Queries<'_>) {
        let (g, table, rows) = (self.g, &self.g.table, self.g.rows(block));
        let (heads, width) = (g.shape.heads, g.shape.v_dim);
        let mut lse = [0.0; BLOCK];
        table.finish(&mut queries.running, queries.out, g.v_wide, &mut lse[..rows]);
        let start = g.start(self.head.sequence, block, heads, g.query_head(self.head, member), width);
        // SAFETY: this query block's rows of `out` and `lse` belong to this job alone, see `Job`.
        unsafe {
            self.out.write(table, queries.out, g.v_wide, (rows, width), start, heads * width);
            let start = g.lse_start(self.head, member, block);
            self.lse.write(table, &lse, BLOCK, (1, rows), start, 0);
        }
    }
}
