use half::bf16;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::{gemm, grouped_gemm, oracle};
use crate::cpu::isa::Isa;
use crate::cpu::slices::{Floats, FloatsMut};
use crate::error::KernelError;
use crate::ops::{Gemm, GroupedGemm, GroupedProduct};

const PRODUCTS: [GroupedProduct; 3] =
    [GroupedProduct::Forward, GroupedProduct::InputGradient, GroupedProduct::WeightGradient];

/// Values of an operand, in either type.
#[derive(Clone, Debug, PartialEq)]
enum Values {
    F32(Vec<f32>),
    Bf16(Vec<bf16>),
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Types {
    F32,
    Bf16,
    /// bf16 operands, f32 result.
    Mixed,
}

const TYPES: [Types; 3] = [Types::F32, Types::Bf16, Types::Mixed];

impl Values {
    fn of(values: &[f64], is_bf16: bool) -> Self {
        if is_bf16 {
            Self::Bf16(values.iter().map(|&v| bf16::from_f64(v)).collect())
        } else {
            Self::F32(values.iter().map(|&v| v as f32).collect())
        }
    }

    fn to_f64(&self) -> Vec<f64> {
        match self {
            Self::F32(values) => values.iter().map(|&v| f64::from(v)).collect(),
            Self::Bf16(values) => values.iter().map(|&v| f64::from(v)).collect(),
        }
    }

    fn bits(&self) -> Vec<u32> {
        match self {
            Self::F32(values) => values.iter().map(|v| v.to_bits()).collect(),
            Self::Bf16(values) => values.iter().map(|v| u32::from(v.to_bits())).collect(),
        }
    }

    fn part(&self, range: std::ops::Range<usize>) -> Self {
        match self {
            Self::F32(values) => Self::F32(values[range].to_vec()),
            Self::Bf16(values) => Self::Bf16(values[range].to_vec()),
        }
    }

    fn get(&self) -> Floats<'_> {
        match self {
            Self::F32(values) => Floats::F32(values),
            Self::Bf16(values) => Floats::Bf16(values),
        }
    }

    fn get_mut(&mut self) -> FloatsMut<'_> {
        match self {
            Self::F32(values) => FloatsMut::F32(values),
            Self::Bf16(values) => FloatsMut::Bf16(values),
        }
    }
}

/// A, B and C of a call.
#[derive(Clone, Debug)]
struct Arguments {
    a: Values,
    b: Values,
    c: Values,
}

impl Arguments {
    fn draw(seed: u64, types: Types, [a, b, c]: [usize; 3]) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut draw = |len: usize, is_bf16| {
            let values: Vec<f64> = (0..len).map(|_| rng.random_range(-1.0..1.0)).collect();
            Values::of(&values, is_bf16)
        };
        let operands = types != Types::F32;
        Self { a: draw(a, operands), b: draw(b, operands), c: draw(c, types == Types::Bf16) }
    }

    /// Runs a kernel and returns C.
    fn run(&self, kernel: impl FnOnce(Floats<'_>, Floats<'_>, FloatsMut<'_>) -> Result<(), KernelError>) -> Values {
        let mut c = self.c.clone();
        kernel(self.a.get(), self.b.get(), c.get_mut()).unwrap();
        c
    }
}

fn with_threads<R: Send>(threads: usize, work: impl FnOnce() -> R + Send) -> R {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(work)
}

/// C is what the oracle says.
///
/// A sum of k products of values below 1, each rounded to f32 (2^-24 relative), is off by at most about k * k/2 * 2^-24;
/// by a random walk, and with chains of at most 256 steps, by far less: sqrt(k) * 16 units. A bf16 result is rounded
/// once more, by at most 2^-8 of it.
fn assert_close(c: &Values, expected: &[f64], k: usize, context: &dyn std::fmt::Debug) {
    let rounding = if matches!(c, Values::Bf16(_)) { 1.0 / 256.0 } else { 0.0 };
    let slack = ((k + 1) as f64).sqrt() * 16.0 / 16_777_216.0;
    for (at, (found, expected)) in c.to_f64().into_iter().zip(expected).enumerate() {
        let bound = slack * (1.0 + expected.abs()) + rounding * expected.abs() * 1.01;
        assert!((found - expected).abs() <= bound, "{context:?}: c[{at}] = {found}, expected {expected}");
    }
}

fn check_gemm(seed: u64, shape: Gemm, types: Types) {
    let Gemm { m, n, k, .. } = shape;
    let arguments = Arguments::draw(seed, types, [m * k, k * n, m * n]);
    let mut expected = arguments.c.to_f64();
    oracle::gemm(shape, &arguments.a.to_f64(), &arguments.b.to_f64(), &mut expected);
    for isa in Isa::available() {
        let c = arguments.run(|a, b, c| gemm(isa, shape, a, b, c));
        assert_close(&c, &expected, k, &(isa, shape, types, seed));
    }
}

fn all_switches() -> impl Iterator<Item = (bool, bool, bool)> {
    (0..8).map(|bits| (bits & 1 > 0, bits & 2 > 0, bits & 4 > 0))
}

#[test]
fn products_of_every_size_agree_with_the_definition() {
    let sizes = [1, 2, 3, 17, 31, 65, 127, 384, 511];
    // Every size takes every role, beside sizes that change with it.
    let mut shapes = Vec::new();
    for (i, &size) in sizes.iter().enumerate() {
        let (other, third) = (sizes[(i + 3) % 6], sizes[(i + 4) % 7]);
        shapes.extend([(size, other, third), (third, size, other), (other, third, size)]);
    }
    shapes.extend([(13, 33, 1025), (100, 40, 514), (25, 1100, 8), (1100, 3, 9)]);
    let mut seed = 0;
    for (m, n, k) in shapes {
        for (a_transposed, b_transposed, accumulate) in all_switches() {
            for types in TYPES {
                seed += 1;
                check_gemm(seed, Gemm { m, n, k, a_transposed, b_transposed, accumulate }, types);
            }
        }
    }
}

#[test]
fn products_of_random_sizes_agree_with_the_definition() {
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    for _ in 0..60 {
        let (m, n, k) = (rng.random_range(1..90), rng.random_range(1..90), rng.random_range(1..300));
        let (a_transposed, b_transposed, accumulate) = rng.random();
        let shape = Gemm { m, n, k, a_transposed, b_transposed, accumulate };
        for types in TYPES {
            check_gemm(rng.random(), shape, types);
        }
    }
}

#[test]
fn empty_sums_are_zero_and_empty_results_nothing() {
    for (a_transposed, b_transposed, accumulate) in all_switches() {
        for (m, n, k) in [(5, 40, 0), (0, 5, 3), (5, 0, 3), (0, 0, 0)] {
            for types in TYPES {
                check_gemm(1, Gemm { m, n, k, a_transposed, b_transposed, accumulate }, types);
            }
        }
    }
}

fn lengths(shape: &GroupedGemm<'_>) -> [usize; 3] {
    let rows = shape.offsets[shape.offsets.len() - 1];
    let groups = shape.offsets.len() - 1;
    let (inputs, outputs, weights) = (rows * shape.k, rows * shape.n, groups * shape.n * shape.k);
    match shape.product {
        GroupedProduct::Forward => [inputs, weights, outputs],
        GroupedProduct::InputGradient => [outputs, weights, inputs],
        GroupedProduct::WeightGradient => [outputs, inputs, weights],
    }
}

#[test]
fn grouped_products_agree_with_the_definition() {
    for offsets in [&[0][..], &[0, 0], &[0, 0, 7, 7, 8, 75, 75], &[0, 130, 131, 260, 300]] {
        for (n, k) in [(1, 1), (3, 2), (17, 31), (65, 48), (48, 65)] {
            for product in PRODUCTS {
                for accumulate in [false, true] {
                    let shape = GroupedGemm { product, n, k, offsets, accumulate };
                    for types in TYPES {
                        let arguments = Arguments::draw(7, types, lengths(&shape));
                        let mut expected = arguments.c.to_f64();
                        oracle::grouped_gemm(shape, &arguments.a.to_f64(), &arguments.b.to_f64(), &mut expected);
                        for isa in Isa::available() {
                            let c = arguments.run(|a, b, c| grouped_gemm(isa, shape, a, b, c));
                            assert_close(&c, &expected, 300, &(isa, shape, types));
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    let shapes = [(600, 384, 700), (37, 1000, 300), (1030, 16, 384), (16, 384, 1500)];
    for (m, n, k) in shapes {
        for (a_transposed, b_transposed, accumulate) in all_switches() {
            for types in TYPES {
                let shape = Gemm { m, n, k, a_transposed, b_transposed, accumulate };
                let arguments = Arguments::draw(3, types, [m * k, k * n, m * n]);
                for isa in Isa::available().into_iter().filter(|isa| *isa >= Isa::Avx2) {
                    let run = |threads| with_threads(threads, || arguments.run(|a, b, c| gemm(isa, shape, a, b, c)));
                    let one = run(1).bits();
                    for threads in [2, 3] {
                        assert_eq!(run(threads).bits(), one, "{isa:?} {shape:?} {types:?} {threads} threads");
                    }
                }
            }
        }
    }
}

#[test]
fn a_group_has_the_same_bits_alone_and_in_company() {
    let (n, k, offsets) = (96, 530, [0, 3, 3, 200, 777, 1000]);
    for product in PRODUCTS {
        for types in TYPES {
            for accumulate in [false, true] {
                let shape = GroupedGemm { product, n, k, offsets: &offsets, accumulate };
                let arguments = Arguments::draw(11, types, lengths(&shape));
                for isa in Isa::available() {
                    let all = with_threads(2, || arguments.run(|a, b, c| grouped_gemm(isa, shape, a, b, c)));
                    for (group, bounds) in offsets.windows(2).enumerate() {
                        let (first, end) = (bounds[0], bounds[1]);
                        let alone = GroupedGemm { offsets: &[0, end - first], ..shape };
                        let (x, y, w) = (first * k..end * k, first * n..end * n, group * n * k..(group + 1) * n * k);
                        let [a_part, b_part, c_part] = match product {
                            GroupedProduct::Forward => [x, w, y],
                            GroupedProduct::InputGradient => [y, w, x],
                            GroupedProduct::WeightGradient => [y, x, w],
                        };
                        let own = Arguments {
                            a: arguments.a.part(a_part),
                            b: arguments.b.part(b_part),
                            c: arguments.c.part(c_part.clone()),
                        };
                        let own = own.run(|a, b, c| grouped_gemm(isa, alone, a, b, c));
                        assert_eq!(own.bits(), all.part(c_part).bits(), "{isa:?} {shape:?} {types:?} group {group}");
                    }
                }
            }
        }
    }
}

#[test]
fn values_that_are_not_finite_reach_the_results_that_they_belong_to() {
    let shape = Gemm { m: 20, n: 50, k: 70, a_transposed: false, b_transposed: true, accumulate: false };
    for types in TYPES {
        let mut arguments = Arguments::draw(5, types, [20 * 70, 50 * 70, 20 * 50]);
        for (row, value) in [(3, f32::NAN), (7, f32::INFINITY)] {
            match &mut arguments.a {
                Values::F32(a) => a[row * 70 + 5] = value,
                Values::Bf16(a) => a[row * 70 + 5] = bf16::from_f32(value),
            }
        }
        for isa in Isa::available() {
            let c = arguments.run(|a, b, c| gemm(isa, shape, a, b, c)).to_f64();
            for (row, values) in c.chunks(50).enumerate() {
                match row {
                    3 => assert!(values.iter().all(|v| v.is_nan()), "{isa:?} {types:?}"),
                    7 => assert!(values.iter().all(|v| v.is_infinite()), "{isa:?} {types:?}"),
                    _ => assert!(values.iter().all(|v| v.is_finite()), "{isa:?} {types:?} row {row}"),
                }
            }
        }
    }
}

#[test]
fn wrong_lengths_types_and_offsets_are_refused() {
    let shape = Gemm { m: 2, n: 3, k: 4, a_transposed: false, b_transposed: false, accumulate: false };
    let isa = Isa::detect();
    let call = |a: usize, b: usize, c: usize| {
        gemm(isa, shape, Floats::F32(&vec![0.0; a]), Floats::F32(&vec![0.0; b]), FloatsMut::F32(&mut vec![0.0; c]))
    };
    assert!(call(8, 12, 6).is_ok());
    assert!(matches!(call(7, 12, 6), Err(KernelError::Length { argument: "a", expected: 8, found: 7, .. })));
    assert!(matches!(call(8, 13, 6), Err(KernelError::Length { argument: "b", expected: 12, found: 13, .. })));
    assert!(matches!(call(8, 12, 5), Err(KernelError::Length { argument: "c", expected: 6, found: 5, .. })));

    let (f32s, bf16s) = (vec![0.0_f32; 12], vec![bf16::ZERO; 12]);
    let mixed = gemm(isa, shape, Floats::F32(&f32s[..8]), Floats::Bf16(&bf16s), FloatsMut::F32(&mut [0.0; 6]));
    assert!(matches!(mixed, Err(KernelError::Element { argument: "b", .. })));
    let narrow = gemm(isa, shape, Floats::F32(&f32s[..8]), Floats::F32(&f32s), FloatsMut::Bf16(&mut [bf16::ZERO; 6]));
    assert!(matches!(narrow, Err(KernelError::Element { argument: "c", .. })));
    let huge = Gemm { m: usize::MAX, ..shape };
    let huge = gemm(isa, huge, Floats::F32(&[]), Floats::F32(&f32s), FloatsMut::F32(&mut []));
    assert!(matches!(huge, Err(KernelError::Shape { .. })));

    for offsets in [&[][..], &[1, 2], &[0, 2, 1]] {
        let shape = GroupedGemm { product: GroupedProduct::Forward, n: 1, k: 1, offsets, accumulate: false };
        let refused = grouped_gemm(isa, shape, Floats::F32(&[0.0]), Floats::F32(&[0.0]), FloatsMut::F32(&mut [0.0]));
        assert!(matches!(refused, Err(KernelError::Shape { .. })), "{offsets:?}");
    }
}
