//! A block of C by the AVX-512 tile: pack B, and A where it cannot be read as it lies, then tile by tile.

use super::pack::{Source, panels, rows_of_steps};
use super::tile::{COLUMNS, Left, ROWS, Target, Tile, multiply_bf16, multiply_f32, write_out};
use super::{Block, Floats, Layout, Output, scratch};

/// Steps that are packed at one time: a panel of B (48 KiB) and its rows of A stay in the inner caches.
const STEPS_MAX: usize = 384;

/// Row lengths of A from which its rows are copied together: beyond, twelve rows crowd into few sets of the cache.
const ROW_BYTES_MAX: usize = 2048;

/// Computes one block.
///
/// # Safety
/// The CPU has AVX-512 F, BW and VL, and BF16 for bf16 operands. The product of `block` lies inside of `a`, `b` and
/// `output`, the block inside of the product, and nobody else touches the block.
pub(super) unsafe fn run(block: Block, layout: Layout, a: Floats<'_>, b: Floats<'_>, output: Output) {
    let product = block.product;
    let (start_a, start_b, bf16) = match (a, b) {
        (Floats::F32(a), Floats::F32(b)) => (a[product.a..].as_ptr().cast(), b[product.b..].as_ptr().cast(), false),
        (Floats::Bf16(a), Floats::Bf16(b)) => (a[product.a..].as_ptr().cast(), b[product.b..].as_ptr().cast(), true),
        _ => return,
    };
    let element_bytes = if bf16 { 2 } else { 4 };
    let source = |start, rows_along_k: bool, width: usize| Source {
        start,
        stride_bytes: element_bytes * if rows_along_k { product.k } else { width },
        k: product.k,
        width,
        k_contiguous: rows_along_k,
        bf16,
    };
    let left = source(start_a, !layout.a_transposed, product.m).columns(block.row, block.rows);
    let right = source(start_b, layout.b_transposed, product.n).columns(block.column, block.columns);

    let per_step = if bf16 { 2 } else { 1 };
    let block_k = STEPS_MAX * per_step;
    let parts = product.k.div_ceil(block_k);
    // A bf16 result of several parts is summed in f32 first, so that it is rounded once.
    let staged = parts > 1 && matches!(output, Output::Bf16(_));
    let padded_rows = block.rows.next_multiple_of(16);
    let padded_columns = block.columns.next_multiple_of(COLUMNS);
    let pack_left = layout.a_transposed || left.stride_bytes > ROW_BYTES_MAX || (bf16 && product.k % 2 == 1);
    let steps = product.k.div_ceil(per_step).min(STEPS_MAX);
    let lengths = [
        steps * padded_columns,
        if pack_left { steps * padded_rows } else { 0 },
        if staged { block.rows * padded_columns } else { 0 },
    ];
    scratch::with(lengths, |[packed, packed_left, sums]| {
        let whole = Tile {
            target: target(output, product.c + block.row * product.n + block.column),
            stride: product.n,
            rows: block.rows,
            columns: block.columns,
            accumulate: layout.accumulate,
        };
        let staging =
            Tile { target: Target::F32(sums.as_mut_ptr().cast()), stride: padded_columns, accumulate: false, ..whole };
        // SAFETY: sources lie inside of A and B; the packed areas have the lengths asked for; tiles lie inside of the
        // block or of `sums`.
        unsafe {
            if parts == 0 && !layout.accumulate {
                // An empty sum is zero.
                for_tiles(whole, |tile, _, _| multiply_f32(nothing(), packed.as_ptr(), 0, tile));
            }
            for part in 0..parts {
                let (first, k) = (part * block_k, block_k.min(product.k - part * block_k));
                let (left, right) = (left.along_k(first, k), right.along_k(first, k));
                panels(right, packed.as_mut_ptr());
                let left = if pack_left {
                    rows_of_steps(left, packed_left.as_mut_ptr(), padded_rows);
                    let start = packed_left.as_ptr().cast();
                    Left { start, row_bytes: 4, step_bytes: 4 * padded_rows }
                } else {
                    Left { start: left.start, row_bytes: left.stride_bytes, step_bytes: 4 }
                };
                let into = if staged { staging } else { whole };
                let into = Tile { accumulate: part > 0 || into.accumulate, ..into };
                let steps = right.steps();
                for_tiles(into, |tile, row, column| {
                    let start = left.start.add(row * left.row_bytes);
                    let left = Left { start, ..left };
                    let panel = packed.as_ptr().add(column * steps);
                    if bf16 {
                        multiply_bf16(left, panel, steps, tile);
                    } else {
                        multiply_f32(left, panel, steps, tile);
                    }
                });
            }
            if staged {
                let sums = sums.as_ptr().cast::<f32>();
                for_tiles(whole, |tile, row, column| {
                    write_out(sums.add(row * padded_columns + column), padded_columns, tile);
                });
            }
        }
    });
}

/// A's rows for a product without steps.
fn nothing() -> Left {
    Left { start: std::ptr::null(), row_bytes: 0, step_bytes: 0 }
}

fn target(output: Output, offset: usize) -> Target {
    match output {
        Output::F32(start) => Target::F32(start.wrapping_add(offset)),
        Output::Bf16(start) => Target::Bf16(start.wrapping_add(offset)),
    }
}

/// Register tiles of an area, with the row and column that each begins at; rows outermost, so that 12 rows of A stay near
/// while the panels of B pass by.
fn for_tiles(area: Tile, mut work: impl FnMut(Tile, usize, usize)) {
    for row in (0..area.rows).step_by(ROWS) {
        for column in (0..area.columns).step_by(COLUMNS) {
            let offset = row * area.stride + column;
            let target = match area.target {
                Target::F32(start) => Target::F32(start.wrapping_add(offset)),
                Target::Bf16(start) => Target::Bf16(start.wrapping_add(offset)),
            };
            let (rows, columns) = (ROWS.min(area.rows - row), COLUMNS.min(area.columns - column));
            work(Tile { target, rows, columns, ..area }, row, column);
        }
    }
}
