//! The backward of `out = softmax(scale * q · kᵀ, causal) · v` (arXiv 2205.14135, algorithm 4), from the log sums:
//!
//! - `p = exp(scale * q · kᵀ - lse)`, again;
//! - `dv = pᵀ · d_out`, `dp = d_out · vᵀ`;
//! - `ds = p * (dp - delta) * scale` with `delta` the row sum of `d_out * out`;
//! - `dq = ds · k`, `dk = dsᵀ · q`.
//!
//! **Order of sums:** dq adds up key blocks in order; dk and dv add up query blocks in order and in each the heads of
//! the group in order. A product's element is one chain of multiply-adds, so it does not matter who computes which
//! block: with enough heads for the threads a job does one key/value head, all five products; with fewer, jobs of
//! query blocks compute dq and jobs of key blocks dk and dv, seven products in all, and the bits are the same.
//!
//! A job keeps its keys packed and their gradients in f32: T * (3 * qk + 2 * v) floats a thread when it does a whole
//! head, half of the packed part in pairs of bf16.

use std::ops::Range;

use super::geometry::{Geometry, Head, Target, run_jobs};
use super::product::{Band, Product, Start};
use super::scratch::{Scratch, with_scratch};
use super::softmax::{BLOCK, Gradient, Packed};
use crate::cpu::slices::{Floats, FloatsMut};

/// Blocks of queries or keys of a job where heads are split over jobs.
const SPLIT_BLOCKS: usize = 4;

/// What the backward reads; lengths and element types are checked.
#[derive(Clone, Copy)]
pub(super) struct Inputs<'a> {
    pub d_out: Floats<'a>,
    pub q: Floats<'a>,
    pub k: Floats<'a>,
    pub v: Floats<'a>,
    pub out: Floats<'a>,
    pub lse: &'a [f32],
}

/// How the backward is cut into jobs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cut {
    /// A job for each key/value head of each sequence.
    Heads,
    /// Jobs of query blocks for dq, then jobs of key blocks for dk and dv.
    Blocks,
}

impl Cut {
    /// The faster one: five products over the busiest thread's heads, or seven spread evenly.
    pub(super) fn choose(geometry: &Geometry, threads: usize) -> Self {
        let heads = geometry.kv_heads();
        if geometry.blocks == 1 || 5 * heads.div_ceil(threads) * threads <= 7 * heads {
            Self::Heads
        } else {
            Self::Blocks
        }
    }
}

/// Runs the backward on the current pool.
pub(super) fn run(
    geometry: &Geometry,
    cut: Cut,
    inputs: Inputs<'_>,
    dq: FloatsMut<'_>,
    dk: FloatsMut<'_>,
    dv: FloatsMut<'_>,
) {
    let (dq, dk, dv) = (Target::new(dq), Target::new(dk), Target::new(dv));
    let heads = geometry.kv_heads();
    let all = 0..geometry.blocks;
    let runs = geometry.blocks.div_ceil(SPLIT_BLOCKS);
    let run = |head: usize, queries: Range<usize>, keys: Range<usize>, dq: Option<&Target<'_>>, keys_too: bool| {
        let d_keys = if keys_too { Some((&dk, &dv)) } else { None };
        let job = Job { g: geometry, inputs, head: geometry.head(head), queries, keys, dq, d_keys };
        with_scratch(job.scratch_len(), |scratch| job.run(scratch));
    };
    match cut {
        Cut::Heads => run_jobs(heads, |job| run(job, all.clone(), all.clone(), Some(&dq), true)),
        Cut::Blocks => {
            // Those with the most to do go first: the last queries, the first keys.
            run_jobs(heads * runs, |job| {
                let first = (runs - 1 - job / heads) * SPLIT_BLOCKS;
                let end = geometry.blocks.min(first + SPLIT_BLOCKS);
                run(job % heads, first..end, 0..end, Some(&dq), false);
            });
            run_jobs(heads * runs, |job| {
                let first = job / heads * SPLIT_BLOCKS;
                let end = geometry.blocks.min(first + SPLIT_BLOCKS);
                run(job % heads, first..geometry.blocks, first..end, None, true);
            });
        }
    }
}

/// The pairs of a block of `queries` and a block of `keys`, for all heads that read `head`. Jobs with `dq` share no
/// query block of a head, jobs with `d_keys` no key block.
struct Job<'a> {
    g: &'a Geometry,
    inputs: Inputs<'a>,
    head: Head,
    queries: Range<usize>,
    keys: Range<usize>,
    /// Where the gradient of the queries goes, if it is wanted; then `keys` are all that they see.
    dq: Option<&'a Target<'a>>,
    /// Where the gradients of keys and values go, if they are wanted; then `queries` are all that see them.
    d_keys: Option<(&'a Target<'a>, &'a Target<'a>)>,
}

/// A key block in the ways that products need it, and its gradients.
struct Keys<'a> {
    /// (qk units, BLOCK)
    keys_transposed: &'a mut [u32],
    /// (v units, BLOCK)
    values_transposed: &'a mut [u32],
    /// (BLOCK in units, `qk_wide`)
    keys: &'a mut [u32],
    /// (BLOCK, `qk_wide`)
    d_keys: &'a mut [f32],
    /// (BLOCK, `v_wide`)
    d_values: &'a mut [f32],
}

/// A query block of one head in the ways that products need it, and its gradient.
struct Queries<'a> {
    /// (BLOCK, `qk_row`)
    queries: &'a mut [u32],
    /// (BLOCK, `v_row`)
    d_out: &'a mut [u32],
    /// (BLOCK in units, `qk_wide`); empty where a unit is one value: then it is `queries`.
    queries_wide: &'a mut [u32],
    /// (BLOCK in units, `v_wide`); empty where a unit is one value: then it is `d_out`.
    d_out_wide: &'a mut [u32],
    /// (BLOCK): minus the log sums in base 2.
    offset: &'a mut [f32],
    /// (BLOCK)
    delta: &'a mut [f32],
    /// (BLOCK, `qk_wide`)
    d_queries: &'a mut [f32],
}

/// The blocks of one pair.
struct Pair<'a> {
    scores: &'a mut [f32],
    d_probabilities: &'a mut [f32],
    probabilities: &'a mut [u32],
    d_scores: Packed<'a>,
}

impl Job<'_> {
    fn key_len(&self) -> usize {
        let g = self.g;
        BLOCK * (g.qk_units + g.v_units + 2 * g.qk_wide + g.v_wide)
    }

    fn query_len(&self) -> usize {
        let g = self.g;
        BLOCK * (g.qk_row + g.v_row + 2 * g.qk_wide + g.v_wide + 2)
    }

    fn scratch_len(&self) -> usize {
        let staging = BLOCK * self.g.qk_row.max(self.g.v_row);
        5 * BLOCK * BLOCK + staging + self.keys.len() * self.key_len() + self.g.group * self.query_len()
    }

    /// Cuts a key block out of its memory.
    fn keys_in<'s>(&self, memory: &'s mut [f32]) -> Keys<'s> {
        let g = self.g;
        let mut memory = Scratch::of(memory);
        Keys {
            keys_transposed: memory.units(BLOCK * g.qk_units),
            values_transposed: memory.units(BLOCK * g.v_units),
            keys: memory.units(BLOCK / g.table.unit * g.qk_wide),
            d_keys: memory.floats(BLOCK * g.qk_wide),
            d_values: memory.floats(BLOCK * g.v_wide),
        }
    }

    /// Cuts a query block out of its memory.
    fn queries_in<'s>(&self, memory: &'s mut [f32]) -> Queries<'s> {
        let g = self.g;
        let mut memory = Scratch::of(memory);
        Queries {
            queries: memory.units(BLOCK * g.qk_row),
            d_out: memory.units(BLOCK * g.v_row),
            queries_wide: memory.units(if g.table.unit == 1 { 0 } else { BLOCK / g.table.unit * g.qk_wide }),
            d_out_wide: memory.units(if g.table.unit == 1 { 0 } else { BLOCK / g.table.unit * g.v_wide }),
            offset: memory.floats(BLOCK),
            delta: memory.floats(BLOCK),
            d_queries: memory.floats(BLOCK * g.qk_wide),
        }
    }

    fn run(&self, mut scratch: Scratch<'_>) {
        let g = self.g;
        let square = BLOCK * BLOCK / g.table.unit;
        let mut pair = Pair {
            scores: scratch.floats(BLOCK * BLOCK),
            d_probabilities: scratch.floats(BLOCK * BLOCK),
            probabilities: scratch.units(square),
            d_scores: Packed {
                along_rows: scratch.units(square),
                along_columns: scratch.units(if g.table.unit == 1 { 0 } else { square }),
            },
        };
        let staging = scratch.units(BLOCK * g.qk_row.max(g.v_row));
        let queries = scratch.floats(g.group * self.query_len());
        let keys = scratch.floats(self.keys.len() * self.key_len());

        for (key_block, memory) in self.keys.clone().zip(keys.chunks_exact_mut(self.key_len())) {
            self.load_keys(key_block, &mut self.keys_in(memory), staging);
        }
        for block in self.queries.clone() {
            for (member, memory) in queries.chunks_exact_mut(self.query_len()).enumerate() {
                self.load_queries(block, member, &mut self.queries_in(memory));
            }
            for (key_block, memory) in self.keys.clone().zip(keys.chunks_exact_mut(self.key_len())) {
                if key_block > block {
                    break;
                }
                let mut keys = self.keys_in(memory);
                for memory in queries.chunks_exact_mut(self.query_len()) {
                    self.step(block, key_block, &mut keys, &mut self.queries_in(memory), &mut pair);
                }
            }
            if let Some(target) = self.dq {
                for (member, memory) in queries.chunks_exact_mut(self.query_len()).enumerate() {
                    let head = g.query_head(self.head, member);
                    let d_queries = self.queries_in(memory).d_queries;
                    // SAFETY: a job with `dq` shares no query block of a head with another, see `Job`.
                    unsafe { self.write(target, block, g.shape.heads, head, g.shape.qk_dim, d_queries, g.qk_wide) };
                }
            }
        }
        if let Some((dk, dv)) = self.d_keys {
            for (key_block, memory) in self.keys.clone().zip(keys.chunks_exact_mut(self.key_len())) {
                let (heads, head) = (g.shape.kv_heads, self.head.kv_head);
                let keys = self.keys_in(memory);
                // SAFETY: a job with `d_keys` shares no key block of a head with another, see `Job`.
                unsafe {
                    self.write(dk, key_block, heads, head, g.shape.qk_dim, keys.d_keys, g.qk_wide);
                    self.write(dv, key_block, heads, head, g.shape.v_dim, keys.d_values, g.v_wide);
                }
            }
        }
    }

    fn load_keys(&self, block: usize, keys: &mut Keys<'_>, staging: &mut [u32]) {
        let (g, table) = (self.g, &self.g.table);
        let rows = g.key_rows(self.inputs.k, self.head, block, g.shape.qk_dim);
        table.pack_along_columns(&rows, staging, g.qk_row);
        table.transpose(staging, g.qk_row, g.qk_units, keys.keys_transposed);
        table.pack_along_rows(&rows, keys.keys, g.qk_wide);
        let rows = g.key_rows(self.inputs.v, self.head, block, g.shape.v_dim);
        table.pack_along_columns(&rows, staging, g.v_row);
        table.transpose(staging, g.v_row, g.v_units, keys.values_transposed);
        keys.d_keys.fill(0.0);
        keys.d_values.fill(0.0);
    }

    fn load_queries(&self, block: usize, member: usize, queries: &mut Queries<'_>) {
        let (g, table) = (self.g, &self.g.table);
        let rows = g.query_rows(self.inputs.q, self.head, member, block, g.shape.qk_dim);
        table.pack_along_columns(&rows, queries.queries, g.qk_row);
        let d_out = g.query_rows(self.inputs.d_out, self.head, member, block, g.shape.v_dim);
        table.pack_along_columns(&d_out, queries.d_out, g.v_row);
        if table.unit != 1 {
            table.pack_along_rows(&rows, queries.queries_wide, g.qk_wide);
            table.pack_along_rows(&d_out, queries.d_out_wide, g.v_wide);
        }
        let out = g.query_rows(self.inputs.out, self.head, member, block, g.shape.v_dim);
        table.dots(&d_out, &out, queries.delta);
        queries.offset.fill(0.0);
        let lse = &self.inputs.lse[g.lse_start(self.head, member, block)..][..g.rows(block)];
        for (offset, lse) in queries.offset.iter_mut().zip(lse) {
            *offset = (-f64::from(*lse) * std::f64::consts::LOG2_E) as f32;
        }
    }

    /// The products of one query block and one key block.
    fn step(
        &self,
        block: usize,
        key_block: usize,
        keys: &mut Keys<'_>,
        queries: &mut Queries<'_>,
        pair: &mut Pair<'_>,
    ) {
        let (g, table) = (self.g, &self.g.table);
        let (rows, diagonal) = (g.tile_rows(block), block == key_block);
        let band = |band| if diagonal { band } else { Band::Full };

        // s = q · kᵀ and dp = d_out · vᵀ
        let mut product = Product {
            m: rows,
            n: BLOCK,
            k: g.qk_units,
            a_row: g.qk_row,
            a_inner: 1,
            b_row: BLOCK,
            c_row: BLOCK,
            start: Start::Zero,
            band: band(Band::ColumnsUpToRow),
        };
        table.product(&product, queries.queries, keys.keys_transposed, pair.scores);
        (product.k, product.a_row) = (g.v_units, g.v_row);
        table.product(&product, queries.d_out, keys.values_transposed, pair.d_probabilities);

        let gradient = Gradient {
            rows,
            diagonal,
            factor: g.factor,
            scale: g.shape.scale as f32,
            offset: queries.offset,
            delta: queries.delta,
        };
        table.score_gradient(&gradient, pair.scores, pair.d_probabilities, pair.probabilities, &mut pair.d_scores);

        if self.d_keys.is_some() {
            // dv += pᵀ · d_out and dk += dsᵀ · q
            let mut product = Product {
                m: g.tile_rows(key_block),
                n: g.v_wide,
                k: g.rows(block).div_ceil(table.unit),
                a_row: 1,
                a_inner: BLOCK,
                b_row: g.v_wide,
                c_row: g.v_wide,
                start: Start::Held,
                band: band(Band::InnerFromRow),
            };
            let (wide_queries, wide_d_out) = match table.unit {
                1 => (&*queries.queries, &*queries.d_out),
                _ => (&*queries.queries_wide, &*queries.d_out_wide),
            };
            table.product(&product, pair.probabilities, wide_d_out, keys.d_values);
            (product.n, product.b_row, product.c_row) = (g.qk_wide, g.qk_wide, g.qk_wide);
            table.product(&product, pair.d_scores.along_rows, wide_queries, keys.d_keys);
        }
        if self.dq.is_some() {
            // dq += ds · k
            let product = Product {
                m: rows,
                n: g.qk_wide,
                k: BLOCK / table.unit,
                a_row: BLOCK / table.unit,
                a_inner: 1,
                b_row: g.qk_wide,
                c_row: g.qk_wide,
                start: if key_block == 0 { Start::Zero } else { Start::Held },
                band: band(Band::InnerUpToRow),
            };
            let d_scores = if table.unit == 1 { &*pair.d_scores.along_rows } else { &*pair.d_scores.along_columns };
            table.product(&product, d_scores, keys.keys, queries.d_queries);
        }
    }

    /// Writes a block of a head in a tensor of `heads` heads of `width` values; rows of `source` are `stride` long.
    ///
    /// # Safety
    /// No other thread writes this block of this head.
    unsafe fn write(
        &self,
        target: &Target<'_>,
        block: usize,
        heads: usize,
        head: usize,
        width: usize,
        source: &[f32],
        stride: usize,
    ) {
        let start = self.g.start(self.head.sequence, block, heads, head, width);
        let rows = self.g.rows(block);
        // SAFETY: the rows are the block's, which is the caller's alone.
        unsafe { target.write(&self.g.table, source, stride, (rows, width), start, heads * width) };
    }
}
