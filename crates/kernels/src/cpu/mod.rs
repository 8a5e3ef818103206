//! The CPU backend: SIMD kernels over aligned, reused buffers.
//!
//! [`Cpu`] is the seam over kernels that work on slices, a file for each subject. They run on a pool of threads of the
//! backend's own and split their work into parts whose bounds depend on the shapes only, so the number of threads never
//! shows in a result. Sums that cross parts are made of the parts' sums, in order.
//!
//! Most kernels are plain Rust that the compiler turns into vector instructions, once for each instruction set
//! (`vectorize.rs`); products and attention have instructions chosen by hand.

mod activation;
mod addition;
mod arguments;
pub(crate) mod attention;
mod backend;
mod columns;
mod copies;
pub(crate) mod gemm;
pub(crate) mod isa;
mod memory;
mod norm;
mod optimizer;
mod refusal;
mod rope;
pub(crate) mod router;
pub(crate) mod routing;
pub(crate) mod slices;
mod sums;
#[cfg(test)]
mod tests;
pub(crate) mod tokens;
#[cfg(test)]
mod trial;
mod vectorize;

use std::sync::Arc;

use rayon::{ThreadPool, ThreadPoolBuilder};

pub use self::isa::Isa;
pub use self::memory::CpuBuffer;
use self::memory::Store;
use crate::error::KernelError;

/// The CPU backend. Clones share its threads and its memory.
#[derive(Clone, Debug)]
pub struct Cpu {
    isa: Isa,
    pool: Arc<ThreadPool>,
    store: Arc<Store>,
}

impl Cpu {
    /// A backend with `threads` threads of its own (0: as many as there are cores), on the best instructions that this
    /// machine has.
    ///
    /// # Errors
    /// [`KernelError::Device`] if the system does not start the threads.
    pub fn new(threads: usize) -> Result<Self, KernelError> {
        Self::with_isa(threads, Isa::detect())
    }

    /// As [`Self::new`], with instructions chosen: for tests and measurements.
    ///
    /// # Errors
    /// [`KernelError::Device`] also if this machine has not these instructions.
    pub fn with_isa(threads: usize, isa: Isa) -> Result<Self, KernelError> {
        let failed = |reason: String| KernelError::Device { backend: "cpu", reason };
        let best = Isa::detect();
        if isa > best {
            return Err(failed(format!("this machine has {best:?}, not {isa:?}; take one of Isa::available")));
        }
        let pool = ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|index| format!("cambium-cpu-{index}"))
            .build()
            .map_err(|error| failed(format!("{threads} threads did not start: {error}; ask for fewer")))?;
        Ok(Self { isa, pool: Arc::new(pool), store: Arc::default() })
    }

    /// The instructions that its kernels use.
    #[must_use]
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Its threads.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.pool.current_num_threads()
    }
}
