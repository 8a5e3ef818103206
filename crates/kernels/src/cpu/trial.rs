//! What tests of kernels over slices draw from: seeded values of both element types, and pools of threads.

use half::bf16;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::slices::{Floats, FloatsMut};
use crate::buffer::Element;

/// Both types.
pub(super) const ELEMENTS: [Element; 2] = [Element::F32, Element::Bf16];

/// Values from -1 to 1.
pub(super) fn draw(seed: u64, count: usize) -> Vec<f32> {
    let mut rng = StdRng::seed_from_u64(seed);
    (0..count).map(|_| rng.random_range(-1.0..1.0)).collect()
}

/// Indices below `bound`.
pub(super) fn draw_indices(seed: u64, count: usize, bound: u32) -> Vec<u32> {
    let mut rng = StdRng::seed_from_u64(seed);
    (0..count).map(|_| rng.random_range(0..bound)).collect()
}

/// Floats of either type, owned.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Stored {
    F32(Vec<f32>),
    Bf16(Vec<bf16>),
}

impl Stored {
    pub(super) fn new(element: Element, values: &[f32]) -> Self {
        match element {
            Element::Bf16 => Self::Bf16(values.iter().copied().map(bf16::from_f32).collect()),
            _ => Self::F32(values.to_vec()),
        }
    }

    pub(super) fn floats(&self) -> Floats<'_> {
        match self {
            Self::F32(values) => Floats::F32(values),
            Self::Bf16(values) => Floats::Bf16(values),
        }
    }

    pub(super) fn floats_mut(&mut self) -> FloatsMut<'_> {
        match self {
            Self::F32(values) => FloatsMut::F32(values),
            Self::Bf16(values) => FloatsMut::Bf16(values),
        }
    }

    pub(super) fn exact(&self) -> Vec<f64> {
        match self {
            Self::F32(values) => values.iter().copied().map(f64::from).collect(),
            Self::Bf16(values) => values.iter().copied().map(f64::from).collect(),
        }
    }

    /// Asserts that all values are within one rounding of this type, and `slack` for the f32 sums, of `expected`.
    #[track_caller]
    pub(super) fn assert_near(&self, expected: &[f64], slack: f64, what: &str) {
        let rounding = match self {
            Self::F32(_) => 0.0,
            Self::Bf16(_) => f64::powi(2.0, -8),
        };
        let found = self.exact();
        assert_eq!(found.len(), expected.len(), "{what}");
        for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
            let allowed = slack + rounding * (expected.abs() + slack);
            assert!((found - expected).abs() <= allowed, "{what}: element {i} is {found}, not {expected}");
        }
    }
}

/// Runs `kernel` with one, two and three threads; asserts that the results have the same bits.
#[track_caller]
pub(super) fn on_every_pool<T: PartialEq + Send + std::fmt::Debug>(kernel: impl Fn() -> T + Sync) -> T {
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads can be started");
        pool.install(&kernel)
    };
    let alone = run(1);
    for threads in [2, 3] {
        assert!(alone == run(threads), "{threads} threads change the result");
    }
    alone
}
