//! The products as their definitions say, one element at a time in f64.

use crate::ops::{Gemm, GroupedGemm, GroupedProduct};

/// `C` of a product, from what it held before.
pub(super) fn gemm(shape: Gemm, a: &[f64], b: &[f64], c: &mut [f64]) {
    let Gemm { m, n, k, a_transposed, b_transposed, accumulate } = shape;
    for row in 0..m {
        for column in 0..n {
            let mut sum = if accumulate { c[row * n + column] } else { 0.0 };
            for inner in 0..k {
                let a = a[if a_transposed { inner * m + row } else { row * k + inner }];
                let b = b[if b_transposed { column * k + inner } else { inner * n + column }];
                sum += a * b;
            }
            c[row * n + column] = sum;
        }
    }
}

/// `C` of all groups, one product after the other.
pub(super) fn grouped_gemm(shape: GroupedGemm<'_>, a: &[f64], b: &[f64], c: &mut [f64]) {
    let GroupedGemm { product, n, k, offsets, accumulate } = shape;
    for (group, bounds) in offsets.windows(2).enumerate() {
        let (first, end) = (bounds[0], bounds[1]);
        let (x, y, w) = (first * k..end * k, first * n..end * n, group * n * k..(group + 1) * n * k);
        let plain = |m, n, k, a_transposed, b_transposed| Gemm { m, n, k, a_transposed, b_transposed, accumulate };
        match product {
            GroupedProduct::Forward => gemm(plain(end - first, n, k, false, true), &a[x], &b[w], &mut c[y]),
            GroupedProduct::InputGradient => gemm(plain(end - first, k, n, false, false), &a[y], &b[w], &mut c[x]),
            GroupedProduct::WeightGradient => gemm(plain(n, k, end - first, true, false), &a[y], &b[x], &mut c[w]),
        }
    }
}
