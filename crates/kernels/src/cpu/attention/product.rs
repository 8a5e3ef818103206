//! The products of packed blocks, tiled over registers.
//!
//! An element of C is one chain of multiply-adds in the order of the inner index, begun from zero or from what C
//! holds. So its bits depend neither on which tile it falls into nor on how a long sum is cut into calls.

use super::form::Form;
use super::lanes::Lanes;

/// What C starts from.
#[derive(Clone, Copy)]
pub(super) enum Start<'a> {
    /// Zero.
    Zero,
    /// What it holds.
    Held,
    /// What it holds times a factor per row.
    Scaled(&'a [f32]),
}

/// What of a product on the diagonal block counts; the rest is not computed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Band {
    /// Everything.
    Full,
    /// C's columns up to the row's own index.
    ColumnsUpToRow,
    /// Inner indices (values, not units) up to the row's own index; those just above it are multiplied too.
    InnerUpToRow,
    /// Inner indices from the row's own index on; those just below it are multiplied too.
    InnerFromRow,
}

/// `C (m, n) = start + A (m, k) · B (k, n)`, k in units.
#[derive(Clone, Copy)]
pub(super) struct Product<'a> {
    /// Rows. Rounded up to whole tiles: A and C have those rows too.
    pub m: usize,
    /// Columns, a multiple of the lanes.
    pub n: usize,
    /// Units of a sum.
    pub k: usize,
    /// Units from a row of A to the next.
    pub a_row: usize,
    /// Units from an inner index of A to the next.
    pub a_inner: usize,
    /// Units from a row of B to the next.
    pub b_row: usize,
    /// Floats from a row of C to the next.
    pub c_row: usize,
    /// What C starts from.
    pub start: Start<'a>,
    /// What counts.
    pub band: Band,
}

/// Runs a product with tiles of `MR` rows and at most `NV` (at most 4) vectors.
///
/// # Safety
/// The instructions of `F` are there. Bounds are asserted here.
#[inline(always)]
pub(super) unsafe fn product<F: Form, const MR: usize, const NV: usize>(
    shape: &Product<'_>,
    a: &[u32],
    b: &[u32],
    c: &mut [f32],
) {
    let lanes = F::L::N;
    let Product { m, n, k, a_row, a_inner, b_row, c_row, .. } = *shape;
    if m == 0 || n == 0 {
        return;
    }
    let rows = m.next_multiple_of(MR);
    assert!(n.is_multiple_of(lanes) && (1..=4).contains(&NV));
    assert!(k == 0 || (rows - 1) * a_row + (k - 1) * a_inner < a.len(), "A of {} units is too short", a.len());
    assert!(k == 0 || (k - 1) * b_row + n <= b.len(), "B of {} units is too short", b.len());
    assert!((rows - 1) * c_row + n <= c.len(), "C of {} floats is too short", c.len());
    if let Start::Scaled(factors) = shape.start {
        assert!(rows <= factors.len());
    }

    let (a, b, c) = (a.as_ptr(), b.as_ptr(), c.as_mut_ptr());
    for column in (0..n).step_by(NV * lanes) {
        for row in (0..rows).step_by(MR) {
            let (mut end, mut first, mut last) = (n, 0, k);
            match shape.band {
                Band::Full => {}
                Band::ColumnsUpToRow => end = n.min(row + MR),
                Band::InnerUpToRow => last = k.min((row + MR).div_ceil(F::UNIT)),
                Band::InnerFromRow => first = k.min(row / F::UNIT),
            }
            if column >= end {
                continue;
            }
            let tile = Tile {
                shape,
                row,
                first,
                last,
                // SAFETY: row < rows and column + a vector <= n, so with inner indices below k all three stay inside
                // their slices by the assertions above (wrapping_add: with k = 0 A and B may be empty).
                a: a.wrapping_add(row * a_row),
                b: b.wrapping_add(column),
                c: c.wrapping_add(row * c_row + column),
            };
            let vectors = NV.min((end - column).div_ceil(lanes));
            // SAFETY: the tile covers rows row..row + MR (rows is a multiple of MR) and columns column..column +
            // vectors * lanes, which is at most n because n is a multiple of the lanes and end <= n.
            unsafe {
                match vectors {
                    4 if NV >= 4 => tile.run::<F, MR, 4>(),
                    3 if NV >= 3 => tile.run::<F, MR, 3>(),
                    2 if NV >= 2 => tile.run::<F, MR, 2>(),
                    _ => tile.run::<F, MR, 1>(),
                }
            }
        }
    }
}

/// One register tile of a product.
struct Tile<'a> {
    shape: &'a Product<'a>,
    row: usize,
    first: usize,
    last: usize,
    a: *const u32,
    b: *const u32,
    c: *mut f32,
}

impl Tile<'_> {
    /// # Safety
    /// The instructions of `F` are there; `a` reaches `MR` rows and `b` and `c` `NV` vectors of the product's
    /// operands, for all inner indices first..last.
    #[inline(always)]
    unsafe fn run<F: Form, const MR: usize, const NV: usize>(&self) {
        let lanes = F::L::N;
        let Product { a_row, a_inner, b_row, c_row, .. } = *self.shape;
        // SAFETY: all offsets are those of the tile's rows, vectors and inner indices, which the caller vouches for;
        // a factor is there for each row (asserted by `product`).
        unsafe {
            let mut sums = [[F::L::splat(0.0); NV]; MR];
            match self.shape.start {
                Start::Zero => {}
                Start::Held => {
                    for (r, sums) in sums.iter_mut().enumerate() {
                        for (v, sum) in sums.iter_mut().enumerate() {
                            *sum = F::L::load(self.c.add(r * c_row + v * lanes));
                        }
                    }
                }
                Start::Scaled(factors) => {
                    for (r, sums) in sums.iter_mut().enumerate() {
                        let factor = F::L::splat(*factors.get_unchecked(self.row + r));
                        for (v, sum) in sums.iter_mut().enumerate() {
                            *sum = F::L::mul(F::L::load(self.c.add(r * c_row + v * lanes)), factor);
                        }
                    }
                }
            }
            let (mut a, mut b) = (self.a.wrapping_add(self.first * a_inner), self.b.wrapping_add(self.first * b_row));
            for _ in self.first..self.last {
                let mut vectors = [F::load(b); NV];
                for (v, vector) in vectors.iter_mut().enumerate().skip(1) {
                    *vector = F::load(b.add(v * lanes));
                }
                for (r, sums) in sums.iter_mut().enumerate() {
                    let broadcast = F::splat(a.add(r * a_row));
                    for (sum, vector) in sums.iter_mut().zip(vectors) {
                        *sum = F::accumulate(broadcast, vector, *sum);
                    }
                }
                a = a.wrapping_add(a_inner);
                b = b.wrapping_add(b_row);
            }
            for (r, sums) in sums.iter().enumerate() {
                for (v, sum) in sums.iter().enumerate() {
                    F::L::store(self.c.add(r * c_row + v * lanes), *sum);
                }
            }
        }
    }
}
