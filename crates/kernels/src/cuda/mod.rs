//! The CUDA backend: cudarc for the driver, cuBLASLt for products, NVRTC for kernels of our own.
//!
//! Nothing of CUDA is needed to build it: the libraries are opened when a [`Cuda`] is made, and a machine without them
//! gets an error that says which is missing. Each `.cu` file stands beside the Rust file that launches its kernels.
//!
//! A [`Cuda`] has one stream. Every copy, product and kernel goes into it in the order of the calls, allocation and
//! release included, so a buffer may be dropped while a kernel that was launched before still reads it. The host waits
//! only where a result comes back to it: reads, `sum_squares`, and kernels that take indices, whose range is checked
//! before they run.
//!
//! What is missing, and what has not been proven on a card, is in `docs/cuda.md`.

mod activation;
mod arguments;
mod backend;
mod blaslt;
mod buffer;
mod columns;
pub mod compile;
mod device;
mod failure;
mod launch;
mod memory;
mod norm;
mod optimizer;
mod pool;
mod products;
mod rope;
mod routing;
mod staging;
mod tokens;

use std::sync::Arc;

pub use self::buffer::CudaBuffer;
use self::device::Device;
use crate::error::KernelError;

/// The CUDA backend on one device. Clones share its stream and its memory.
#[derive(Clone, Debug)]
pub struct Cuda {
    device: Arc<Device>,
}

impl Cuda {
    /// A backend on device number `device`, as `nvidia-smi` counts them within `CUDA_VISIBLE_DEVICES`.
    ///
    /// # Errors
    /// [`KernelError::Device`] if the driver, NVRTC, cuBLASLt or CUDA's headers are not on this machine, there is no such
    /// device, or it refuses memory: each with what to do about it.
    pub fn new(device: usize) -> Result<Self, KernelError> {
        Ok(Self { device: Arc::new(Device::open(device)?) })
    }

    /// What the driver calls the device, and its compute capability, such as `NVIDIA H100 80GB HBM3, sm_90a`.
    #[must_use]
    pub fn description(&self) -> &str {
        self.device.description()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_without_a_card_is_told_what_it_lacks() {
        // Whatever this machine has: an answer, never a panic.
        if let Err(error) = Cuda::new(0) {
            let KernelError::Device { backend: "cuda", reason } = error else { panic!("{error}") };
            assert!(reason.contains("; "), "no next step in: {reason}");
        }
    }

    #[test]
    fn a_device_that_no_machine_has_is_refused() {
        let refused = Cuda::new(usize::MAX);
        assert!(matches!(refused, Err(KernelError::Device { backend: "cuda", .. })), "{refused:?}");
    }
}
