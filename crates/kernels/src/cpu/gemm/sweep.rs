//! The multiplication of a packed panel row by row: register tiles, and what becomes of their sums.
//!
//! A sum along the steps of one call is one chain of multiply-adds from zero, in order, whichever tile it falls into.
//! What C or earlier parts of k hold is added to it at the end.

use half::bf16;

use super::form::Form;

/// Where sums go.
#[derive(Clone, Copy)]
pub(super) enum Target {
    /// f32 memory, overwritten or added to.
    F32 { to: *mut f32, add: bool },
    /// bf16 memory: what it holds if `add`, then the sums of earlier parts of k if there are any (rows `stride` apart),
    /// then these sums, rounded once.
    Bf16 { to: *mut bf16, add: bool, earlier: Option<(*const f32, usize)> },
}

/// `target (rows, columns) = A (rows, steps) · B (steps, columns)`, all counted in units.
#[derive(Clone, Copy)]
pub(super) struct Sweep {
    pub steps: usize,
    pub rows: usize,
    pub columns: usize,
    /// A: row r at step s stands at `a + r * a_row + s * a_step`.
    pub a: *const u32,
    pub a_row: usize,
    pub a_step: usize,
    /// B in panels of the tile's columns, one after the other: each (steps, columns), the columns of the last rounded up
    /// to whole vectors.
    pub b: *const u32,
    pub target: Target,
    /// Elements from a row of the target to the next.
    pub target_row: usize,
}

/// Runs a sweep with tiles of at most `MR` (at most 12) rows and two vectors.
///
/// # Safety
/// The instructions of `F` are there. A, B and the target reach all rows, steps and columns of the sweep, and nobody
/// else touches the target's.
#[inline(always)]
pub(super) unsafe fn sweep<F: Form, const MR: usize>(sweep: &Sweep) {
    for column in (0..sweep.columns).step_by(2 * F::LANES) {
        for row in (0..sweep.rows).step_by(MR) {
            let tile = Tile {
                sweep,
                row,
                column,
                a: sweep.a.wrapping_add(row * sweep.a_row),
                // Panels before this one are full.
                b: sweep.b.wrapping_add(column * sweep.steps),
            };
            // SAFETY: the tile is its rows and columns that are the sweep's; its panel has two vectors a step, or one
            // if its columns fit into one.
            unsafe {
                if sweep.columns - column > F::LANES {
                    tile.run_rows::<F, 2>(MR.min(sweep.rows - row));
                } else {
                    tile.run_rows::<F, 1>(MR.min(sweep.rows - row));
                }
            }
        }
    }
}

/// One register tile of a sweep.
struct Tile<'a> {
    sweep: &'a Sweep,
    row: usize,
    column: usize,
    a: *const u32,
    b: *const u32,
}

impl Tile<'_> {
    /// Chooses the tile by its number of rows, which the registers are laid out by.
    ///
    /// # Safety
    /// As [`Self::run`], for `rows` from 1 to 12.
    #[inline(always)]
    unsafe fn run_rows<F: Form, const NV: usize>(&self, rows: usize) {
        // SAFETY: the caller's promise.
        unsafe {
            match rows {
                12 => self.run::<F, 12, NV>(),
                11 => self.run::<F, 11, NV>(),
                10 => self.run::<F, 10, NV>(),
                9 => self.run::<F, 9, NV>(),
                8 => self.run::<F, 8, NV>(),
                7 => self.run::<F, 7, NV>(),
                6 => self.run::<F, 6, NV>(),
                5 => self.run::<F, 5, NV>(),
                4 => self.run::<F, 4, NV>(),
                3 => self.run::<F, 3, NV>(),
                2 => self.run::<F, 2, NV>(),
                _ => self.run::<F, 1, NV>(),
            }
        }
    }

    /// Computes `MR` rows of `NV` vectors.
    ///
    /// # Safety
    /// The instructions of `F` are there. A reaches `MR` rows and B `NV` vectors, both at all steps; the target reaches
    /// the rows, and the columns that the sweep has there.
    #[inline(always)]
    unsafe fn run<F: Form, const MR: usize, const NV: usize>(&self) {
        let &Sweep { steps, a_row, a_step, target, .. } = self.sweep;
        // SAFETY: every offset is that of a row, step and vector that the caller vouches for; what is read of the target
        // and written there has the tile's rows and columns.
        unsafe {
            let mut sums = [[F::zero(); NV]; MR];
            let (mut a, mut b) = (self.a, self.b);
            for _ in 0..steps {
                let mut vectors = [F::load(b); NV];
                for (v, vector) in vectors.iter_mut().enumerate().skip(1) {
                    *vector = F::load(b.add(v * F::LANES));
                }
                for (r, sums) in sums.iter_mut().enumerate() {
                    let unit = F::splat(a.add(r * a_row));
                    for (sum, vector) in sums.iter_mut().zip(vectors) {
                        *sum = F::multiply_add(unit, vector, *sum);
                    }
                }
                a = a.wrapping_add(a_step);
                b = b.wrapping_add(NV * F::LANES);
            }
            let at = |row: usize, column: usize| row * self.sweep.target_row + column;
            match target {
                Target::F32 { to, add: false } => self.each::<F, MR, NV>(sums, |row, column, count, sum| {
                    F::write(to.add(at(row, column)), count, sum);
                }),
                Target::F32 { to, add: true } => self.each::<F, MR, NV>(sums, |row, column, count, sum| {
                    let to = to.add(at(row, column));
                    F::write(to, count, F::add(F::read(to, count), sum));
                }),
                Target::Bf16 { to, add: false, earlier: None } => {
                    self.each::<F, MR, NV>(sums, |row, column, count, sum| {
                        F::write_bf16(to.add(at(row, column)), count, sum);
                    });
                }
                Target::Bf16 { to, add, earlier } => self.each::<F, MR, NV>(sums, |row, column, count, mut sum| {
                    if let Some((earlier, stride)) = earlier {
                        sum = F::add(F::read(earlier.add(row * stride + column), count), sum);
                    }
                    let to = to.add(at(row, column));
                    if add {
                        sum = F::add(F::read_bf16(to, count), sum);
                    }
                    F::write_bf16(to, count, sum);
                }),
            }
        }
    }

    /// Calls `put` with each vector of sums, its row and first column in the target, and how many lanes of it count.
    #[inline(always)]
    fn each<F: Form, const MR: usize, const NV: usize>(
        &self,
        sums: [[F::Sums; NV]; MR],
        put: impl Fn(usize, usize, usize, F::Sums),
    ) {
        for (r, sums) in sums.into_iter().enumerate() {
            for (v, sum) in sums.into_iter().enumerate() {
                let column = self.column + v * F::LANES;
                put(self.row + r, column, F::LANES.min(self.sweep.columns - column), sum);
            }
        }
    }
}
