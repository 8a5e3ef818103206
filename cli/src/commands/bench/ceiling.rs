//! What this machine can do at most, measured: the rate of a large matrix product, and of copying memory.

use std::time::{Duration, Instant};

use cambium_kernels::{Backend, Element, Gemm, NoiseKey};

/// The limits that kernels are held against.
#[derive(Clone, Copy, Debug, serde::Serialize)]
pub(crate) struct Ceiling {
    /// GFLOP/s of a large f32 product.
    pub(crate) gemm_f32_gflops: f64,
    /// GFLOP/s of a large bf16 product.
    pub(crate) gemm_bf16_gflops: f64,
    /// GB/s read plus written by a copy that does not fit the caches.
    pub(crate) memory_gb_s: f64,
}

/// Edge of the square product: large enough for the caches' blocking to pay, done in well under a second.
const EDGE: usize = 2048;

/// Elements of the copied buffer: 256 MiB.
const COPY_LEN: usize = 64 << 20;

impl Ceiling {
    pub(crate) fn measure<B: Backend>(backend: &B) -> anyhow::Result<Self> {
        Ok(Self {
            gemm_f32_gflops: gemm(backend, Element::F32)?,
            gemm_bf16_gflops: gemm(backend, Element::Bf16)?,
            memory_gb_s: memory(backend)?,
        })
    }

    /// The product's ceiling in the type of the operands.
    pub(crate) fn gemm_gflops(&self, element: Element) -> f64 {
        if element == Element::Bf16 { self.gemm_bf16_gflops } else { self.gemm_f32_gflops }
    }
}

fn gemm<B: Backend>(backend: &B, element: Element) -> anyhow::Result<f64> {
    let a = normal(backend, element, EDGE * EDGE, 1)?;
    let b = normal(backend, element, EDGE * EDGE, 2)?;
    let mut c = backend.alloc(Element::F32, EDGE * EDGE)?;
    let shape = Gemm { m: EDGE, n: EDGE, k: EDGE, a_transposed: false, b_transposed: false, accumulate: false };
    let time = best_time(5, || Ok(backend.gemm(shape, (&a).into(), (&b).into(), (&mut c).into())?))?;
    Ok(shape.flops() as f64 / time.as_secs_f64() / 1e9)
}

fn memory<B: Backend>(backend: &B) -> anyhow::Result<f64> {
    let source = backend.zeros(Element::F32, COPY_LEN)?;
    let mut target = backend.zeros(Element::F32, COPY_LEN)?;
    let time = best_time(5, || Ok(backend.copy((&source).into(), (&mut target).into())?))?;
    Ok(2.0 * (COPY_LEN * 4) as f64 / time.as_secs_f64() / 1e9)
}

/// Standard normal values.
pub(crate) fn normal<B: Backend>(backend: &B, element: Element, len: usize, stream: u64) -> anyhow::Result<B::Buffer> {
    let mut wide = backend.alloc(Element::F32, len)?;
    backend.fill_normal(NoiseKey { seed: 1, stream }, 0, 1.0, (&mut wide).into())?;
    if element == Element::F32 {
        return Ok(wide);
    }
    let mut narrow = backend.alloc(element, len)?;
    backend.copy((&wide).into(), (&mut narrow).into())?;
    Ok(narrow)
}

/// The shortest of several runs after one that does not count: on a shared machine the one least disturbed.
pub(crate) fn best_time(runs: usize, mut work: impl FnMut() -> anyhow::Result<()>) -> anyhow::Result<Duration> {
    work()?;
    let mut best = Duration::MAX;
    for _ in 0..runs {
        let start = Instant::now();
        work()?;
        best = best.min(start.elapsed());
    }
    Ok(best)
}
