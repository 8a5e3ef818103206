//! Products against plain sums in f64, on every instruction set of the machine.

use half::bf16;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::*;

/// Values of one type, rounded to it.
#[derive(Clone)]
enum Values {
    F32(Vec<f32>),
    Bf16(Vec<bf16>),
}

impl Values {
    fn random(random: &mut StdRng, len: usize, bf16: bool) -> Self {
        let values = (0..len).map(|_| random.random_range(-1.0f32..1.0));
        if bf16 { Self::Bf16(values.map(bf16::from_f32).collect()) } else { Self::F32(values.collect()) }
    }

    fn floats(&self) -> Floats<'_> {
        match self {
            Self::F32(values) => Floats::F32(values),
            Self::Bf16(values) => Floats::Bf16(values),
        }
    }

    fn floats_mut(&mut self) -> FloatsMut<'_> {
        match self {
            Self::F32(values) => FloatsMut::F32(values),
            Self::Bf16(values) => FloatsMut::Bf16(values),
        }
    }

    fn at(&self, index: usize) -> f64 {
        match self {
            Self::F32(values) => f64::from(values[index]),
            Self::Bf16(values) => values[index].to_f64(),
        }
    }

    fn bits(&self) -> Vec<u32> {
        match self {
            Self::F32(values) => values.iter().map(|value| value.to_bits()).collect(),
            Self::Bf16(values) => values.iter().map(|value| u32::from(value.to_bits())).collect(),
        }
    }
}

/// Holds C against sums in f64: an error of the summation's length in f32, and of one rounding of the result.
fn hold(shape: Gemm, a: &Values, b: &Values, before: &Values, after: &Values, what: &str) {
    let Gemm { m, n, k, .. } = shape;
    let rounding = if matches!(after, Values::Bf16(_)) { 1.0 / 256.0 } else { f64::from(f32::EPSILON) };
    for i in 0..m {
        for j in 0..n {
            let (mut sum, mut size) = (0.0, 0.0);
            for p in 0..k {
                let x = a.at(if shape.a_transposed { p * m + i } else { i * k + p });
                let y = b.at(if shape.b_transposed { j * k + p } else { p * n + j });
                sum += x * y;
                size += (x * y).abs();
            }
            if shape.accumulate {
                sum += before.at(i * n + j);
                size += before.at(i * n + j).abs();
            }
            let error = (after.at(i * n + j) - sum).abs();
            let allowed = rounding * sum.abs() + f64::from(f32::EPSILON) * size * (2.0 + (k as f64).sqrt());
            assert!(error <= allowed, "{what} {shape:?} [{i}, {j}]: off by {error:e}, allowed {allowed:e}");
        }
    }
}

fn pool(threads: usize) -> rayon::ThreadPool {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads")
}

fn compute(isa: Isa, threads: usize, shape: Gemm, a: &Values, b: &Values, c: &Values) -> Values {
    let mut c = c.clone();
    pool(threads).install(|| gemm(isa, shape, a.floats(), b.floats(), c.floats_mut())).expect("a product");
    c
}

#[test]
fn every_layout_type_and_odd_size_agrees_with_plain_sums() {
    let seed = 11;
    let mut random = StdRng::seed_from_u64(seed);
    let sizes = [1, 2, 3, 12, 13, 17, 31, 32, 33, 65];
    for isa in Isa::available() {
        for case in 0..160 {
            let mut pick = || sizes[random.random_range(0..sizes.len())];
            let shape = Gemm {
                m: pick(),
                n: pick(),
                k: pick(),
                a_transposed: case & 1 > 0,
                b_transposed: case & 2 > 0,
                accumulate: case & 4 > 0,
            };
            let (bf16, bf16_out) = (case & 8 > 0, case & 24 == 24);
            let a = Values::random(&mut random, shape.m * shape.k, bf16);
            let b = Values::random(&mut random, shape.k * shape.n, bf16);
            let before = Values::random(&mut random, shape.m * shape.n, bf16_out);
            let after = compute(isa, 2, shape, &a, &b, &before);
            hold(shape, &a, &b, &before, &after, &format!("{isa:?} seed {seed} case {case}"));
        }
    }
}

#[test]
fn long_sums_and_large_blocks_agree_with_plain_sums() {
    let mut random = StdRng::seed_from_u64(5);
    for isa in Isa::available() {
        for (m, n, k) in [(13, 35, 2051), (300, 40, 1025), (40, 1100, 70), (25, 33, 8193)] {
            for bits in 0..8 {
                let (a_transposed, b_transposed, accumulate) = (bits & 1 > 0, bits & 2 > 0, bits & 4 > 0);
                let shape = Gemm { m, n, k, a_transposed, b_transposed, accumulate };
                for bf16 in [false, true] {
                    let a = Values::random(&mut random, m * k, bf16);
                    let b = Values::random(&mut random, k * n, bf16);
                    let before = Values::random(&mut random, m * n, bf16);
                    let after = compute(isa, 2, shape, &a, &b, &before);
                    hold(shape, &a, &b, &before, &after, &format!("{isa:?}"));
                }
            }
        }
    }
}

#[test]
fn the_number_of_threads_does_not_show_in_the_bits() {
    let mut random = StdRng::seed_from_u64(6);
    for isa in Isa::available() {
        for bf16 in [false, true] {
            let shape = Gemm { m: 400, n: 130, k: 900, a_transposed: true, b_transposed: true, accumulate: true };
            let a = Values::random(&mut random, shape.m * shape.k, bf16);
            let b = Values::random(&mut random, shape.k * shape.n, bf16);
            let c = Values::random(&mut random, shape.m * shape.n, bf16);
            let one = compute(isa, 1, shape, &a, &b, &c).bits();
            for threads in [2, 3, 7] {
                assert_eq!(one, compute(isa, threads, shape, &a, &b, &c).bits(), "{isa:?}, {threads} threads");
            }
        }
    }
}

#[test]
fn a_group_in_company_has_the_bits_that_it_has_alone() {
    let mut random = StdRng::seed_from_u64(7);
    let offsets = [0, 5, 5, 45, 46, 300, 300];
    let (n, k, groups) = (37, 50, offsets.len() - 1);
    let rows = offsets[groups];
    for isa in Isa::available() {
        for product in [GroupedProduct::Forward, GroupedProduct::InputGradient, GroupedProduct::WeightGradient] {
            for (bf16, accumulate) in [(false, false), (false, true), (true, false), (true, true)] {
                let wide = Values::random(&mut random, rows * n, bf16);
                let narrow = Values::random(&mut random, rows * k, bf16);
                let weights = Values::random(&mut random, groups * n * k, bf16);
                let (a, b, c_row, c_len) = match product {
                    GroupedProduct::Forward => (&narrow, &weights, n, rows * n),
                    GroupedProduct::InputGradient => (&wide, &weights, k, rows * k),
                    GroupedProduct::WeightGradient => (&wide, &narrow, 0, groups * n * k),
                };
                let before = Values::random(&mut random, c_len, false);
                let mut together = before.clone();
                let shape = GroupedGemm { product, n, k, offsets: &offsets, accumulate };
                let call = || grouped_gemm(isa, shape, a.floats(), b.floats(), together.floats_mut());
                pool(2).install(call).expect("a product");
                for group in 0..groups {
                    let range = offsets[group]..offsets[group + 1];
                    let part = |values: &Values, range: std::ops::Range<usize>| match values {
                        Values::F32(values) => Values::F32(values[range].to_vec()),
                        Values::Bf16(values) => Values::Bf16(values[range].to_vec()),
                    };
                    let row_part = |values: &Values, width| part(values, range.start * width..range.end * width);
                    let weight_range = group * n * k..(group + 1) * n * k;
                    let (m, columns, sum, a, b, c_range) = match product {
                        GroupedProduct::Forward => {
                            (range.len(), n, k, row_part(a, k), part(b, weight_range), range.start * n..range.end * n)
                        }
                        GroupedProduct::InputGradient => {
                            (range.len(), k, n, row_part(a, n), part(b, weight_range), range.start * k..range.end * k)
                        }
                        GroupedProduct::WeightGradient => {
                            (n, k, range.len(), row_part(a, n), row_part(b, k), weight_range)
                        }
                    };
                    let shape = Gemm {
                        m,
                        n: columns,
                        k: sum,
                        a_transposed: product == GroupedProduct::WeightGradient,
                        b_transposed: product == GroupedProduct::Forward,
                        accumulate,
                    };
                    let before = part(&before, c_range.clone());
                    let alone = compute(isa, 1, shape, &a, &b, &before);
                    assert_eq!(alone.bits(), part(&together, c_range).bits(), "{isa:?} {product:?} group {group}");
                    hold(shape, &a, &b, &before, &alone, &format!("{isa:?} {product:?} group {group} {c_row}"));
                }
            }
        }
    }
}

#[test]
fn an_empty_sum_is_zero_unless_it_adds_to_something() {
    for isa in Isa::available() {
        for (accumulate, expected) in [(false, 0.0), (true, 3.0)] {
            for bf16 in [false, true] {
                let shape = Gemm { m: 20, n: 40, k: 0, a_transposed: false, b_transposed: false, accumulate };
                let empty = Values::random(&mut StdRng::seed_from_u64(1), 0, bf16);
                let before =
                    if bf16 { Values::Bf16(vec![bf16::from_f32(3.0); 800]) } else { Values::F32(vec![3.0; 800]) };
                let after = compute(isa, 1, shape, &empty, &empty, &before);
                assert!((0..800).all(|index| after.at(index) == expected), "{isa:?} {accumulate} {bf16}");
            }
        }
    }
}

#[test]
fn operands_that_do_not_fit_are_refused() {
    let isa = Isa::detect();
    let shape = Gemm { m: 2, n: 3, k: 4, a_transposed: false, b_transposed: false, accumulate: false };
    let (mut c, mut narrow) = (vec![0.0f32; 6], vec![bf16::ZERO; 6]);
    let (a, b) = (vec![0.0f32; 8], vec![0.0f32; 12]);
    let half = vec![bf16::ZERO; 12];
    let result = gemm(isa, shape, Floats::F32(&a[1..]), Floats::F32(&b), FloatsMut::F32(&mut c));
    assert!(matches!(result, Err(KernelError::Length { argument: "a", expected: 8, found: 7, .. })), "{result:?}");
    let result = gemm(isa, shape, Floats::F32(&a), Floats::Bf16(&half), FloatsMut::F32(&mut c));
    assert!(matches!(result, Err(KernelError::Element { argument: "b", .. })), "{result:?}");
    let result = gemm(isa, shape, Floats::F32(&a), Floats::F32(&b), FloatsMut::Bf16(&mut narrow));
    assert!(matches!(result, Err(KernelError::Element { argument: "c", .. })), "{result:?}");
    let grouped = GroupedGemm { product: GroupedProduct::Forward, n: 3, k: 4, offsets: &[0, 2, 1], accumulate: false };
    let result = grouped_gemm(isa, grouped, Floats::F32(&a), Floats::F32(&b), FloatsMut::F32(&mut c));
    assert!(matches!(result, Err(KernelError::Shape { .. })), "{result:?}");
    let shape = Gemm { m: usize::MAX, k: 2, ..shape };
    let result = gemm(isa, shape, Floats::F32(&a), Floats::F32(&b), FloatsMut::F32(&mut c));
    assert!(matches!(result, Err(KernelError::Shape { .. })), "{result:?}");
}
