//! The CPU backend: SIMD kernels over aligned, reused buffers.
//!
//! Kernels run on a pool of threads of the backend's own and split their work into parts whose bounds depend on the
//! shapes only, so the number of threads never shows in a result.

pub(crate) mod attention;
pub(crate) mod gemm;
pub(crate) mod isa;
mod refusal;
pub(crate) mod router;
pub(crate) mod routing;
pub(crate) mod slices;
pub(crate) mod tokens;
#[cfg(test)]
mod trial;
mod vectorize;
