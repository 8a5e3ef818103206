//! Which products a call consists of, and how they are cut into jobs.
//!
//! Blocks are cut by the shapes of the call. They would be free to depend on anything: an element of C has the same bits
//! in whichever block it falls.

use std::ops::Range;

use super::table::Table;

/// One product of a call: its sizes, its elements of A and B, and its first element of C, which is (m, n).
#[derive(Clone, Debug)]
pub(super) struct Product {
    pub m: usize,
    pub n: usize,
    pub k: usize,
    pub a: Range<usize>,
    pub b: Range<usize>,
    pub c: usize,
}

impl Product {
    /// Multiplications.
    fn work(&self) -> usize {
        self.m.saturating_mul(self.n).saturating_mul(self.k)
    }
}

/// How the products of a call lie in memory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layout {
    pub a_transposed: bool,
    pub b_transposed: bool,
    pub accumulate: bool,
}

/// A block of C of one product.
#[derive(Clone, Debug)]
pub(super) struct Block {
    pub product: usize,
    pub rows: Range<usize>,
    pub columns: Range<usize>,
}

/// Columns of B that a thread packs at one time, and units of them: 8 MiB.
const COLUMNS_MAX: usize = 512;
const PACKED_MAX: usize = 1 << 21;
/// Rows of a block: enough of them pay for what is packed, few enough stay in the second cache.
const ROWS_MIN: usize = 48;
const ROWS_MAX: usize = 512;
/// Multiplications of a job: 5 to 50 microseconds.
const WORK_MIN: usize = 1 << 21;
const WORK_MAX: usize = 1 << 23;

/// All blocks of a call. Blocks that share columns of B follow one another.
pub(super) fn blocks(table: &Table, products: &[Product]) -> Vec<Block> {
    let total = products.iter().map(Product::work).fold(0, usize::saturating_add);
    // Enough jobs to keep threads even; at least a few even where that makes blocks small.
    let (share, most) = ((total / 32).clamp(WORK_MIN, WORK_MAX), (total / 8).max(WORK_MIN));
    let mut blocks = Vec::new();
    for (index, product) in products.iter().enumerate().filter(|(_, product)| product.m > 0 && product.n > 0) {
        let &Product { m, n, k, .. } = product;
        let (k, tile_columns) = (k.max(1), table.tile_columns());
        let columns_max = (PACKED_MAX * table.unit / k).clamp(tile_columns, COLUMNS_MAX);
        let columns = even(n, columns_max, tile_columns);
        let rows = even(m, (share / (columns * k)).clamp(ROWS_MIN, ROWS_MAX), table.tile_rows);
        let columns = even(n, (most / (rows * k)).clamp(tile_columns, columns), tile_columns);
        for column in (0..n).step_by(columns) {
            for row in (0..m).step_by(rows) {
                let (rows, columns) = (row..m.min(row + rows), column..n.min(column + columns));
                blocks.push(Block { product: index, rows, columns });
            }
        }
    }
    blocks
}

/// The length of the parts of `length`, of equal numbers of whole tiles and, but for their rounding up to tiles, at most
/// `most`.
fn even(length: usize, most: usize, tile: usize) -> usize {
    length.div_ceil(length.div_ceil(most)).next_multiple_of(tile)
}
