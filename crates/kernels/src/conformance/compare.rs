//! When two results are the same.

use super::tolerance::Tolerance;
use crate::buffer::Element;

/// NaN equals NaN here: an input that stands for "unspecified" stays as it is.
pub(super) fn same_bits(a: &[f64], b: &[f64]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan()))
}

/// `got` is `want` within `tolerance`: in the relative 2-norm, and, so that one bad element does not drown among many,
/// each element within 16 times that, relative to itself and to the root mean square.
///
/// `before` is what an output held that the kernel added to, otherwise empty. The error of a sum is relative to its
/// terms, and where they cancel that is more than the result.
pub(super) fn compare(
    name: &str,
    element: Element,
    tolerance: Tolerance,
    got: &[f64],
    want: &[f64],
    before: &[f64],
) -> Result<(), String> {
    if got.len() != want.len() {
        return Err(format!("{name} has {} values instead of {}", got.len(), want.len()));
    }
    if tolerance == Tolerance::Exact {
        return match (0..got.len()).find(|&i| !same_bits(&got[i..=i], &want[i..=i]) && got[i] != want[i]) {
            None => Ok(()),
            Some(i) => Err(format!("{name}[{i}] is {} instead of {}", got[i], want[i])),
        };
    }
    if let Some(i) = (0..got.len()).find(|&i| !got[i].is_finite() && want[i].is_finite()) {
        return Err(format!("{name}[{i}] is {} instead of {}", got[i], want[i]));
    }
    let allowed = tolerance.distance(element, want, before);
    let difference: Vec<f64> = got.iter().zip(want).map(|(got, want)| got - want).collect();
    let distance = norm(&difference);
    if distance > allowed {
        let (relative, allowed) = (distance / norm(want), allowed / norm(want));
        return Err(format!("{name} is off by {relative:.3e} relative to its 2-norm; the tolerance is {allowed:.3e}"));
    }
    let root_mean_square = allowed / (want.len().max(1) as f64).sqrt();
    let relative = allowed / norm(want).max(f64::MIN_POSITIVE);
    let is_off = |i: &usize| difference[*i].abs() > 16.0 * root_mean_square.max(relative * want[*i].abs());
    match (0..got.len()).find(is_off) {
        None => Ok(()),
        Some(i) => Err(format!("{name}[{i}] is {} instead of {}", got[i], want[i])),
    }
}

/// The 2-norm.
pub(super) fn norm(values: &[f64]) -> f64 {
    values.iter().map(|v| v * v).sum::<f64>().sqrt()
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::super::draw::Draw;
    use super::*;

    const BY_SEED: u64 = 5;

    fn normals(len: usize) -> Vec<f64> {
        Draw::new(BY_SEED).normals(len)
    }

    #[test]
    fn rounding_to_bfloat16_is_accepted_and_truncation_is_not() {
        let want = normals(1000);
        let rounded: Vec<f64> = want.iter().map(|&v| bf16::from_f32(v as f32).to_f64()).collect();
        let cut = |v: &f64| bf16::from_bits(((*v as f32).to_bits() >> 16) as u16).to_f64();
        let truncated: Vec<f64> = want.iter().map(cut).collect();
        let tolerance = Tolerance::operations(4.0);
        assert_eq!(compare("x", Element::Bf16, tolerance, &rounded, &want, &[]), Ok(()));
        assert!(compare("x", Element::Bf16, tolerance, &truncated, &want, &[]).is_err());
    }

    #[test]
    fn a_single_bad_element_does_not_drown_among_many() {
        let want = normals(1_000_000);
        let mut got = want.clone();
        got[77] += 1e-4;
        assert!(compare("x", Element::F32, Tolerance::operations(4.0), &got, &want, &[]).is_err());
    }

    #[test]
    fn a_result_that_is_not_a_number_never_passes() {
        let want = normals(10);
        let mut got = want.clone();
        got[3] = f64::NAN;
        assert!(compare("x", Element::Bf16, Tolerance::relative(1.0), &got, &want, &[]).is_err());
        assert!(compare("x", Element::Bf16, Tolerance::Exact, &got, &want, &[]).is_err());
    }

    #[test]
    fn a_missing_value_and_a_zero_that_is_not_never_pass() {
        let tolerance = Tolerance::operations(4.0);
        assert!(compare("x", Element::F32, tolerance, &[1.0], &[1.0, 2.0], &[]).is_err());
        assert!(compare("x", Element::F32, tolerance, &[0.0, 1e-9], &[0.0, 0.0], &[]).is_err());
        assert_eq!(compare("x", Element::F32, tolerance, &[0.0, 0.0], &[0.0, 0.0], &[]), Ok(()));
    }

    #[test]
    fn a_sum_that_cancels_is_held_to_its_terms() {
        let tolerance = Tolerance::operations(4.0);
        let (got, want) = ([1e-3 + 1e-7], [1e-3]);
        assert!(compare("x", Element::F32, tolerance, &got, &want, &[]).is_err());
        assert_eq!(compare("x", Element::F32, tolerance, &got, &want, &[1.0]), Ok(()));
    }
}
