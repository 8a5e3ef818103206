//! Launching kernels: entry points by name, grids, and arguments as the driver takes them.

use std::collections::HashMap;
use std::ffi::c_void;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::{CudaContext, CudaFunction, CudaModule};
use cudarc::nvrtc::Ptx;

use super::compile::{Kernel, Options};
use super::device::Device;
use super::failure;
use crate::backend::Outcome;
use crate::buffer::Element;
use crate::error::KernelError;

/// `THREADS_MOST` of `prelude.cuh`.
const THREADS_MOST: usize = 256;

/// An argument of a kernel, of the type that its parameter has.
#[derive(Clone, Copy, Debug)]
pub(super) enum Value {
    /// A pointer, or a `u64`.
    U64(u64),
    /// A `u32`.
    U32(u32),
    /// An `f32`.
    F32(f32),
    /// A struct of eight `f32`.
    F32x8([f32; 8]),
}

impl Value {
    /// Where its bits are.
    fn bits(&self) -> *const c_void {
        match self {
            Self::U64(value) => (&raw const *value).cast(),
            Self::U32(value) => (&raw const *value).cast(),
            Self::F32(value) => (&raw const *value).cast(),
            Self::F32x8(value) => (&raw const *value).cast(),
        }
    }
}

impl From<usize> for Value {
    fn from(size: usize) -> Self {
        Self::U64(size as u64)
    }
}

impl From<bool> for Value {
    fn from(switch: bool) -> Self {
        Self::U32(u32::from(switch))
    }
}

/// Blocks and threads of each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Grid {
    blocks: (u32, u32),
    threads: (u32, u32),
}

impl Grid {
    /// A block for each of `rows`, of a power of two of threads, as many as `width` columns can use.
    pub(super) fn rows(kernel: &'static str, rows: usize, width: usize) -> Outcome<Self> {
        let threads = width.next_power_of_two().clamp(32, THREADS_MOST) as u32;
        Ok(Self { blocks: (blocks(kernel, rows, i32::MAX as u32)?, 1), threads: (threads, 1) })
    }

    /// A thread for each of `len` elements.
    pub(super) fn elements(kernel: &'static str, len: usize) -> Outcome<Self> {
        let count = blocks(kernel, len.div_ceil(THREADS_MOST), i32::MAX as u32)?;
        Ok(Self { blocks: (count, 1), threads: (THREADS_MOST as u32, 1) })
    }

    /// Blocks of 32 columns by 8 rows: all columns, and `chunks` of the rows.
    pub(super) fn columns(kernel: &'static str, width: usize, chunks: usize) -> Outcome<Self> {
        let across = blocks(kernel, width.div_ceil(32), i32::MAX as u32)?;
        Ok(Self { blocks: (across, blocks(kernel, chunks, u32::from(u16::MAX))?), threads: (32, 8) })
    }
}

fn blocks(kernel: &'static str, count: usize, most: u32) -> Outcome<u32> {
    u32::try_from(count).ok().filter(|count| *count <= most).ok_or_else(|| KernelError::Shape {
        kernel,
        reason: format!("{count} blocks exceed the {most} of a grid; use a smaller microbatch"),
    })
}

/// The entry points that were asked for so far.
pub(super) struct Functions {
    context: Arc<CudaContext>,
    options: Options,
    loaded: Mutex<Loaded>,
}

#[derive(Default)]
struct Loaded {
    /// By file.
    modules: HashMap<&'static str, Arc<CudaModule>>,
    /// By entry point.
    functions: HashMap<String, CudaFunction>,
}

impl Functions {
    pub(super) fn new(context: Arc<CudaContext>, options: Options) -> Self {
        Self { context, options, loaded: Mutex::default() }
    }

    /// Compiles and loads its file at the first call.
    fn get(&self, kernel: &Kernel, types: &[Element]) -> Outcome<CudaFunction> {
        let entry = kernel.entry(types);
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(function) = loaded.functions.get(&entry) {
            return Ok(function.clone());
        }
        let file = kernel.source.file;
        let module = match loaded.modules.get(file) {
            Some(module) => Arc::clone(module),
            None => {
                let cubin = Ptx::from_binary(self.options.cubin(kernel.source)?.to_vec());
                let module = self.context.load_module(cubin).map_err(failure::driver(&format!("loading {file}")))?;
                loaded.modules.insert(file, Arc::clone(&module));
                module
            }
        };
        let function = module.load_function(&entry).map_err(failure::driver(&format!("finding {entry} in {file}")))?;
        loaded.functions.insert(entry, function.clone());
        Ok(function)
    }
}

impl fmt::Debug for Functions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Functions").field("options", &self.options).finish_non_exhaustive()
    }
}

impl Device {
    /// Puts a kernel into the stream, for these types and with these arguments.
    ///
    /// # Safety
    /// `arguments` are the parameters of the entry point in number, order and size, and each pointer among them is that
    /// of memory of this device in which everything lies that the kernel, with this grid, reads or writes there.
    pub(super) unsafe fn launch(&self, kernel: &Kernel, types: &[Element], grid: Grid, arguments: &[Value]) -> Outcome {
        let function = self.functions().get(kernel, types)?;
        let what = kernel.name;
        self.context().bind_to_thread().map_err(failure::driver(what))?;
        let mut parameters: Vec<*mut c_void> = arguments.iter().map(|value| value.bits().cast_mut()).collect();
        let ((x, y), (threads_x, threads_y)) = (grid.blocks, grid.threads);
        // SAFETY: the function is of this context, which is bound; the parameters point to `arguments`, which the driver
        // has copied when this returns; what they are is the caller's promise.
        unsafe {
            cudarc::driver::result::launch_kernel(
                function.cu_function(),
                (x, y, 1),
                (threads_x, threads_y, 1),
                0,
                self.stream().cu_stream(),
                &mut parameters,
            )
        }
        .map_err(failure::driver(what))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_get_as_many_threads_as_their_width_can_use() {
        let threads = |width| Grid::rows("x", 5, width).expect("a grid").threads;
        assert_eq!([1, 33, 64, 200, 5000].map(threads), [(32, 1), (64, 1), (64, 1), (256, 1), (256, 1)]);
    }

    #[test]
    fn a_grid_beyond_the_devices_limits_is_refused() {
        assert!(Grid::rows("x", 1 << 31, 1).is_err());
        assert!(Grid::columns("x", 8, 1 << 16).is_err());
        assert_eq!(Grid::elements("x", 257).expect("a grid").blocks, (2, 1));
    }
}
