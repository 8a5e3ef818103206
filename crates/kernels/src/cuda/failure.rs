//! What went wrong on the device, and what to do about it.

use cudarc::driver::DriverError;
use cudarc::driver::sys::CUresult;

use crate::error::KernelError;

/// A [`KernelError::Device`] of this backend; `reason` ends with the next step.
pub(super) fn device(reason: String) -> KernelError {
    KernelError::Device { backend: "cuda", reason }
}

/// The driver refused `what`.
pub(super) fn driver(what: &str) -> impl FnOnce(DriverError) -> KernelError + '_ {
    move |error| {
        let next = match error.0 {
            CUresult::CUDA_ERROR_OUT_OF_MEMORY => "use fewer rows per microbatch or a smaller model",
            CUresult::CUDA_ERROR_NO_DEVICE | CUresult::CUDA_ERROR_INVALID_DEVICE => {
                "see what nvidia-smi lists and what CUDA_VISIBLE_DEVICES allows, or use the cpu backend"
            }
            CUresult::CUDA_ERROR_SYSTEM_DRIVER_MISMATCH
            | CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION
            | CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU => "install a driver for CUDA 13.0 (580 or newer)",
            _ => "the device cannot go on: start the process again, from the last checkpoint",
        };
        device(format!("{what} failed with {:?}; {next}", error.0))
    }
}
