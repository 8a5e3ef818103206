//! A device that was found and opened: its stream, memory, compiled kernels and cuBLASLt.

use std::fmt;
use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaStream};
use cudarc::{cublaslt, driver, nvrtc};

use super::blaslt::BlasLt;
use super::compile::Options;
use super::failure;
use super::launch::Functions;
use super::pool::Pool;
use super::staging::Staging;
use crate::backend::Outcome;

/// What the clones of a [`Cuda`](super::Cuda) share.
pub(super) struct Device {
    // Dropped in this order: what lives in the context before the context.
    blaslt: BlasLt,
    functions: Functions,
    staging: Staging,
    pool: Pool,
    stream: Arc<CudaStream>,
    context: Arc<CudaContext>,
    description: String,
}

impl Device {
    /// Opens device number `ordinal`.
    pub(super) fn open(ordinal: usize) -> Outcome<Self> {
        check_libraries()?;
        let what = format!("opening device {ordinal}");
        let in_range = i32::try_from(ordinal).is_ok();
        let number = if in_range {
            Ok(ordinal)
        } else {
            Err(driver::DriverError(driver::sys::CUresult::CUDA_ERROR_INVALID_DEVICE))
        };
        let context = number.and_then(CudaContext::new).map_err(failure::driver(&what))?;
        // SAFETY: this backend has one stream, and buffers are refused by any other, so the order of the stream is all
        // the synchronisation that its memory needs.
        unsafe { context.disable_event_tracking() };
        let stream = context.new_stream().map_err(failure::driver(&what))?;

        let capability = context.compute_capability().map_err(failure::driver(&what))?;
        let options = Options::new(&arch(capability))?;
        let name = context.name().map_err(failure::driver(&what))?;
        Ok(Self {
            blaslt: BlasLt::new(&stream)?,
            functions: Functions::new(Arc::clone(&context), options),
            staging: Staging::new(&context)?,
            pool: Pool::open(&context)?,
            stream,
            context,
            description: format!("{name}, {}", arch(capability)),
        })
    }

    pub(super) fn blaslt(&self) -> &BlasLt {
        &self.blaslt
    }

    pub(super) fn functions(&self) -> &Functions {
        &self.functions
    }

    pub(super) fn staging(&self) -> &Staging {
        &self.staging
    }

    pub(super) fn pool(&self) -> &Pool {
        &self.pool
    }

    pub(super) fn stream(&self) -> &Arc<CudaStream> {
        &self.stream
    }

    pub(super) fn context(&self) -> &Arc<CudaContext> {
        &self.context
    }

    pub(super) fn description(&self) -> &str {
        &self.description
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Device").field("description", &self.description).finish_non_exhaustive()
    }
}

/// The architecture that kernels are compiled for: on Hopper with what only it has.
fn arch((major, minor): (i32, i32)) -> String {
    match (major, minor) {
        (9, 0) => "sm_90a".to_owned(),
        _ => format!("sm_{major}{minor}"),
    }
}

/// Every library that this backend opens is there. cudarc panics where one is not.
fn check_libraries() -> Outcome {
    // SAFETY: opening a library runs its initialisers; those of NVIDIA's libraries ask for nothing.
    let present = unsafe { driver::sys::is_culib_present() };
    if !present {
        let next = "install NVIDIA's driver, 580 or newer, or use the cpu backend";
        return Err(failure::device(format!("the driver's library libcuda.so.1 cannot be loaded; {next}")));
    }
    // SAFETY: as above.
    let present = unsafe { nvrtc::sys::is_culib_present() };
    if !present {
        return Err(failure::device(format!("NVRTC (libnvrtc.so.13) cannot be loaded; {TOOLKIT}")));
    }
    // SAFETY: as above.
    let present = unsafe { cublaslt::sys::is_culib_present() };
    if !present {
        return Err(failure::device(format!("cuBLASLt (libcublasLt.so.13) cannot be loaded; {TOOLKIT}")));
    }
    Ok(())
}

/// What to do where a library of the toolkit is missing.
pub(super) const TOOLKIT: &str =
    "install the CUDA 13.0 toolkit or its wheels and put the folder of the library into LD_LIBRARY_PATH";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hopper_is_compiled_for_with_its_own_instructions() {
        assert_eq!(arch((8, 0)), "sm_80");
        assert_eq!(arch((9, 0)), "sm_90a");
        assert_eq!(arch((10, 0)), "sm_100");
        assert_eq!(arch((12, 1)), "sm_121");
    }
}
