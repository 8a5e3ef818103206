//! The kernels against the f64 oracle, the oracle against finite differences, and bits against threads.

use half::bf16;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::backward::{self, Cut, Inputs};
use super::geometry::Geometry;
use super::lanes::{Lanes, exp2};
use super::table::Table;
use super::{attention_backward, attention_forward, oracle};
use crate::buffer::Element;
use crate::cpu::isa::Isa;
use crate::cpu::slices::{Floats, FloatsMut};
use crate::error::KernelError;
use crate::ops::AttentionShape;

/// A tensor of either type.
#[derive(Clone, Debug)]
enum Tensor {
    F32(Vec<f32>),
    Bf16(Vec<bf16>),
}

impl Tensor {
    fn random(rng: &mut StdRng, element: Element, len: usize, size: f32) -> Self {
        let values = (0..len).map(|_| size * (rng.random::<f32>() + rng.random::<f32>() - 1.0) * 2.0);
        match element {
            Element::Bf16 => Self::Bf16(values.map(bf16::from_f32).collect()),
            _ => Self::F32(values.collect()),
        }
    }

    /// NaN everywhere: an element that is not overwritten shows.
    fn unset(element: Element, len: usize) -> Self {
        match element {
            Element::Bf16 => Self::Bf16(vec![bf16::NAN; len]),
            _ => Self::F32(vec![f32::NAN; len]),
        }
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

    fn wide(&self) -> Vec<f64> {
        match self {
            Self::F32(values) => values.iter().map(|x| f64::from(*x)).collect(),
            Self::Bf16(values) => values.iter().map(|x| x.to_f64()).collect(),
        }
    }

    fn bits(&self) -> Vec<u32> {
        match self {
            Self::F32(values) => values.iter().map(|x| x.to_bits()).collect(),
            Self::Bf16(values) => values.iter().map(|x| u32::from(x.to_bits())).collect(),
        }
    }
}

/// Random inputs of one shape.
struct Case {
    shape: AttentionShape,
    element: Element,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    d_out: Tensor,
}

/// What the kernels made of it.
struct Results {
    out: Tensor,
    lse: Vec<f32>,
    dq: Tensor,
    dk: Tensor,
    dv: Tensor,
}

impl Results {
    fn bits(&self) -> Vec<Vec<u32>> {
        let lse = self.lse.iter().map(|x| x.to_bits()).collect();
        vec![self.out.bits(), lse, self.dq.bits(), self.dk.bits(), self.dv.bits()]
    }
}

impl Case {
    fn new(seed: u64, element: Element, shape: AttentionShape, score_size: f32) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let tokens = shape.batch * shape.seq_len;
        let mut tensor =
            |heads: usize, width: usize, size: f32| Tensor::random(&mut rng, element, tokens * heads * width, size);
        let q = tensor(shape.heads, shape.qk_dim, score_size);
        let k = tensor(shape.kv_heads, shape.qk_dim, 1.0);
        let v = tensor(shape.kv_heads, shape.v_dim, 1.0);
        let d_out = tensor(shape.heads, shape.v_dim, 1.0);
        Self { shape, element, q, k, v, d_out }
    }

    fn forward(&self, isa: Isa) -> (Tensor, Vec<f32>) {
        let shape = self.shape;
        let tokens = shape.batch * shape.seq_len;
        let mut out = Tensor::unset(self.element, tokens * shape.heads * shape.v_dim);
        let mut lse = vec![f32::NAN; tokens * shape.heads];
        let (q, k, v) = (self.q.floats(), self.k.floats(), self.v.floats());
        attention_forward(isa, shape, q, k, v, out.floats_mut(), &mut lse).unwrap();
        (out, lse)
    }

    fn run(&self, isa: Isa) -> Results {
        let (out, lse) = self.forward(isa);
        let mut gradients = self.gradients();
        let [dq, dk, dv] = gradients.each_mut().map(Tensor::floats_mut);
        let (d_out, q, k, v) = (self.d_out.floats(), self.q.floats(), self.k.floats(), self.v.floats());
        attention_backward(isa, self.shape, d_out, q, k, v, out.floats(), &lse, dq, dk, dv).unwrap();
        let [dq, dk, dv] = gradients;
        Results { out, lse, dq, dk, dv }
    }

    fn gradients(&self) -> [Tensor; 3] {
        [&self.q, &self.k, &self.v].map(|input| Tensor::unset(self.element, input.floats().len()))
    }

    /// Checks all results of each instruction set against the oracle; `tolerance` bounds the error's 2-norm relative to
    /// the value's.
    fn check(&self, tolerance: f64) {
        let (q, k, v) = (self.q.wide(), self.k.wide(), self.v.wide());
        let (out, lse) = oracle::forward(&self.shape, &q, &k, &v);
        let (dq, dk, dv) = oracle::backward(&self.shape, &self.d_out.wide(), &q, &k, &v);
        // Gradients cancel: dp - delta of a row with one key is zero. So their errors are weighed against the size of
        // what cancels, which is that of dv.
        let size = norm(&dv) / (dv.len() as f64).sqrt() * self.shape.scale;
        for isa in Isa::available() {
            let results = self.run(isa);
            let found_lse: Vec<f64> = results.lse.iter().map(|x| f64::from(*x)).collect();
            for (name, found, expected, size) in [
                ("out", results.out.wide(), &out, 0.0),
                ("lse", found_lse, &lse, 1.0),
                ("dq", results.dq.wide(), &dq, size),
                ("dk", results.dk.wide(), &dk, size),
                ("dv", results.dv.wide(), &dv, 0.0),
            ] {
                let error = norm(&found.iter().zip(expected).map(|(a, b)| a - b).collect::<Vec<_>>());
                let bound = tolerance * (norm(expected) + size * (expected.len() as f64).sqrt());
                let (element, shape) = (self.element, self.shape);
                assert!(error <= bound, "{name} is off by {error:e}, bound {bound:e}: {isa:?} {element:?} {shape:?}");
            }
        }
    }
}

fn norm(values: &[f64]) -> f64 {
    values.iter().map(|x| x * x).sum::<f64>().sqrt()
}

fn shape(batch: usize, seq_len: usize, heads: (usize, usize), dims: (usize, usize)) -> AttentionShape {
    let ((heads, kv_heads), (qk_dim, v_dim)) = (heads, dims);
    AttentionShape { batch, seq_len, heads, kv_heads, qk_dim, v_dim, scale: 1.0 / (qk_dim as f64).sqrt() }
}

/// f32: rounding of sums of some hundred terms. bf16: probabilities, gradients of scores and results have 8 bits, so
/// about 2^-9 each, a few of them one after the other.
fn tolerance(element: Element) -> f64 {
    if element == Element::Bf16 { 1e-2 } else { 2e-6 }
}

const ELEMENTS: [Element; 2] = [Element::F32, Element::Bf16];

#[test]
fn every_instruction_set_agrees_with_the_oracle_on_odd_shapes() {
    let seed: u64 = rand::random();
    println!("seed {seed}");
    for element in ELEMENTS {
        for (index, shape) in [
            shape(2, 1, (1, 1), (16, 16)),
            shape(1, 2, (3, 1), (10, 7)),
            shape(2, 13, (6, 2), (10, 7)),
            shape(1, 64, (2, 2), (64, 64)),
            shape(2, 65, (3, 3), (24, 16)),
            shape(1, 130, (2, 1), (1, 1)),
            shape(1, 257, (3, 1), (33, 80)),
            shape(1, 130, (2, 2), (192, 128)),
            shape(1, 321, (3, 1), (64, 64)),
        ]
        .into_iter()
        .enumerate()
        {
            Case::new(seed ^ index as u64, element, shape, 1.0).check(tolerance(element));
        }
    }
}

#[test]
fn a_sequence_of_a_batch_is_computed_as_if_it_were_alone() {
    let case = Case::new(7, Element::F32, shape(3, 70, (2, 1), (8, 8)), 1.0);
    let single =
        Case { shape: AttentionShape { batch: 1, ..case.shape }, ..Case::new(7, Element::F32, case.shape, 1.0) };
    let part = |tensor: &Tensor| match tensor {
        Tensor::F32(values) => Tensor::F32(values[values.len() / 3..2 * values.len() / 3].to_vec()),
        Tensor::Bf16(values) => Tensor::Bf16(values[values.len() / 3..2 * values.len() / 3].to_vec()),
    };
    let single =
        Case { q: part(&single.q), k: part(&single.k), v: part(&single.v), d_out: part(&single.d_out), ..single };
    let (all, alone) = (case.run(Isa::detect()), single.run(Isa::detect()));
    assert_eq!(part(&all.out).bits(), alone.out.bits());
    assert_eq!(part(&all.dq).bits(), alone.dq.bits());
    assert_eq!(part(&all.dk).bits(), alone.dk.bits());
    assert_eq!(part(&all.dv).bits(), alone.dv.bits());
}

#[test]
fn scores_of_any_size_give_finite_results() {
    for isa in Isa::available() {
        for element in ELEMENTS {
            for size in [1e3, 1e6, 1e18] {
                for sign in [1.0, -1.0] {
                    let case = Case::new(3, element, shape(1, 150, (2, 1), (16, 24)), sign * size);
                    let results = case.run(isa);
                    let (q, k, v) = (case.q.wide(), case.k.wide(), case.v.wide());
                    let Results { out, dq, dk, dv, .. } = &results;
                    for (name, tensor) in [("out", out), ("dq", dq), ("dk", dk), ("dv", dv)] {
                        assert!(tensor.wide().iter().all(|x| x.is_finite()), "{name}: {isa:?} {element:?} {size:e}");
                    }
                    // The softmax is all but an argmax; where two scores are nearly equal f32 may choose the other one.
                    let (expected, lse) = oracle::forward(&case.shape, &q, &k, &v);
                    let differ =
                        results.out.wide().iter().zip(&expected).filter(|(a, b)| (*a - *b).abs() > 0.02).count();
                    assert!(differ * 20 < expected.len(), "{differ} of {} differ: {isa:?} {element:?}", expected.len());
                    for (found, expected) in results.lse.iter().zip(lse) {
                        let bound = 1e-5 * f64::from(size);
                        assert!((f64::from(*found) - expected).abs() < bound, "{found} for {expected}");
                    }
                }
            }
        }
    }
}

#[test]
fn a_nan_in_a_query_shows_in_its_row_and_in_no_earlier_one() {
    for isa in Isa::available() {
        let mut case = Case::new(4, Element::F32, shape(1, 100, (1, 1), (8, 8)), 1.0);
        if let Tensor::F32(q) = &mut case.q {
            q[70 * 8] = f32::NAN;
        }
        let (out, lse) = case.forward(isa);
        let out = out.wide();
        assert!(out[..70 * 8].iter().all(|x| x.is_finite()) && out[71 * 8..].iter().all(|x| x.is_finite()));
        assert!(out[70 * 8..71 * 8].iter().all(|x| x.is_nan()) && lse[70].is_nan(), "{isa:?}");
    }
}

#[test]
fn threads_and_the_cut_into_jobs_never_show_in_a_bit() {
    let pools = [1, 2, 3, 5].map(|threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap());
    for isa in Isa::available() {
        for element in ELEMENTS {
            for shape in [shape(1, 700, (3, 1), (16, 24)), shape(2, 90, (4, 2), (33, 9))] {
                let case = Case::new(5, element, shape, 1.0);
                let expected = pools[0].install(|| case.run(isa));
                for pool in &pools[1..] {
                    assert!(pool.install(|| case.run(isa)).bits() == expected.bits(), "{isa:?} {element:?} {shape:?}");
                }
                let geometry = Geometry::new(shape, Table::choose(isa, element));
                for cut in [Cut::Heads, Cut::Blocks] {
                    let mut gradients = case.gradients();
                    let [dq, dk, dv] = gradients.each_mut().map(Tensor::floats_mut);
                    let inputs = Inputs {
                        d_out: case.d_out.floats(),
                        q: case.q.floats(),
                        k: case.k.floats(),
                        v: case.v.floats(),
                        out: expected.out.floats(),
                        lse: &expected.lse,
                    };
                    pools[1].install(|| backward::run(&geometry, cut, inputs, dq, dk, dv));
                    for (found, expected) in gradients.iter().zip([&expected.dq, &expected.dk, &expected.dv]) {
                        assert!(found.bits() == expected.bits(), "{cut:?} {isa:?} {element:?} {shape:?}");
                    }
                }
            }
        }
    }
}

#[test]
fn the_oracle_backward_is_the_slope_of_the_oracle_forward() {
    let shape = shape(2, 5, (4, 2), (3, 2));
    let case = Case::new(6, Element::F32, shape, 1.0);
    let (q, k, v, d_out) = (case.q.wide(), case.k.wide(), case.v.wide(), case.d_out.wide());
    let loss = |q: &[f64], k: &[f64], v: &[f64]| -> f64 {
        oracle::forward(&shape, q, k, v).0.iter().zip(&d_out).map(|(out, grad)| out * grad).sum()
    };
    let (dq, dk, dv) = oracle::backward(&shape, &d_out, &q, &k, &v);
    let step = 1e-5;
    for (input, gradient) in [dq, dk, dv].iter().enumerate() {
        for (index, expected) in gradient.iter().enumerate() {
            let moved = |by: f64| {
                let mut inputs = [q.clone(), k.clone(), v.clone()];
                inputs[input][index] += by;
                loss(&inputs[0], &inputs[1], &inputs[2])
            };
            let slope = (moved(step) - moved(-step)) / (2.0 * step);
            assert!((slope - expected).abs() < 1e-8, "input {input}, element {index}: {slope} for {expected}");
        }
    }
}

/// The greatest error of `exp2` in units in the last place over a fine grid of its range.
///
/// # Safety
/// The instructions of `L` are there.
#[inline(always)]
unsafe fn exp2_error<L: Lanes>() -> f64 {
    let mut greatest = 0.0_f64;
    for step in 0..2_000_000 {
        let x = -125.5 + step as f32 * (251.0 / 2_000_000.0);
        let mut lanes = [0.0_f32; 16];
        // SAFETY: 16 floats are at least a vector; the instructions are the caller's promise.
        unsafe { L::store(lanes.as_mut_ptr(), exp2::<L>(L::splat(x))) };
        let expected = f64::from(x).exp2();
        let ulp = expected.log2().floor().exp2() * f64::from(f32::EPSILON);
        greatest = greatest.max((f64::from(lanes[0]) - expected).abs() / ulp);
    }
    greatest
}

#[test]
fn the_exponential_is_within_two_units_in_the_last_place() {
    // SAFETY: plain Rust.
    let mut errors = vec![unsafe { exp2_error::<super::lanes::Portable>() }];
    #[cfg(target_arch = "x86_64")]
    {
        use super::lanes_x86::{Avx2, Avx512};

        #[target_feature(enable = "avx2,fma")]
        fn avx2() -> f64 {
            // SAFETY: compiled for these instructions.
            unsafe { exp2_error::<Avx2>() }
        }

        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
        fn avx512() -> f64 {
            // SAFETY: compiled for these instructions.
            unsafe { exp2_error::<Avx512>() }
        }

        if Isa::detect() >= Isa::Avx2 {
            // SAFETY: the machine has them.
            errors.push(unsafe { avx2() });
        }
        if Isa::detect() >= Isa::Avx512 {
            // SAFETY: the machine has them.
            errors.push(unsafe { avx512() });
        }
    }
    println!("{errors:?}");
    assert!(errors.iter().all(|error| *error <= 2.0), "{errors:?}");
}

#[test]
fn misfits_are_refused_by_name() {
    let shape = shape(1, 4, (2, 1), (3, 5));
    let (q, k, v) = (vec![0.0; 24], vec![0.0; 12], vec![0.0; 20]);
    let (mut out, mut lse) = (vec![0.0; 40], vec![0.0; 8]);
    let mut call = |shape, q: &[f32], k: Floats<'_>, lse: &mut [f32]| {
        attention_forward(Isa::detect(), shape, Floats::F32(q), k, Floats::F32(&v), FloatsMut::F32(&mut out), lse)
    };
    call(shape, &q, Floats::F32(&k), &mut lse).unwrap();
    let short = call(shape, &q[1..], Floats::F32(&k), &mut lse).unwrap_err();
    assert_eq!(short.to_string(), "attention_forward: q has 23 elements but the shapes need 24");
    let typed = call(shape, &q, Floats::Bf16(&[bf16::ZERO; 12]), &mut lse).unwrap_err();
    assert!(matches!(typed, KernelError::Element { argument: "k", found: Element::Bf16, .. }), "{typed}");
    let lengths = call(shape, &q, Floats::F32(&k), &mut lse[1..]).unwrap_err();
    assert!(matches!(lengths, KernelError::Length { argument: "lse", expected: 8, found: 7, .. }), "{lengths}");
    let heads = call(AttentionShape { kv_heads: 3, ..shape }, &q, Floats::F32(&k), &mut lse).unwrap_err();
    assert!(matches!(heads, KernelError::Shape { .. }), "{heads}");
    let empty = call(AttentionShape { qk_dim: 0, ..shape }, &q, Floats::F32(&k), &mut lse).unwrap_err();
    assert!(matches!(empty, KernelError::Shape { .. }), "{empty}");
}

#[test]
fn no_tokens_are_no_work() {
    let shape = AttentionShape { seq_len: 0, ..shape(1, 1, (2, 1), (3, 5)) };
    let none = Floats::F32(&[]);
    attention_forward(Isa::detect(), shape, none, none, none, FloatsMut::F32(&mut []), &mut []).unwrap();
}
