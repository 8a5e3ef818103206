//! Device memory.

use std::fmt;
use std::sync::Arc;

use cudarc::driver::{CudaSlice, DevicePtr};

use super::device::Device;
use super::failure;
use crate::backend::Outcome;
use crate::buffer::{Buffer, Element};
use crate::error::KernelError;

/// Memory of the [`Cuda`](super::Cuda) backend: flat, aligned to 256 bytes, each element stored as its type is. Dropping
/// it gives it back to the device's pool as soon as what was launched before has run.
///
/// Fresh memory holds whatever bits were there, which is a value of each type, and nothing on the host can see it but by a
/// copy.
pub struct CudaBuffer {
    /// None if it has no elements, or after `drop`.
    memory: Option<CudaSlice<u8>>,
    element: Element,
    len: usize,
    device: Arc<Device>,
}

impl CudaBuffer {
    /// `len` elements of unspecified values.
    pub(super) fn new(device: &Arc<Device>, element: Element, len: usize) -> Outcome<Self> {
        let bytes = len.checked_mul(element.bytes()).filter(|bytes| *bytes <= isize::MAX as usize);
        let bytes = bytes.ok_or_else(|| KernelError::Shape {
            kernel: "alloc",
            reason: format!("{len} elements of {element:?} are more than memory has addresses for"),
        })?;
        let memory = if bytes == 0 { None } else { Some(device.allocate(bytes)?) };
        device.pool().add(bytes);
        Ok(Self { memory, element, len, device: Arc::clone(device) })
    }

    /// The address of its first element on the device; 0 if it has none.
    pub(super) fn address(&self) -> u64 {
        // The guard would record an event; events are off, and the order of the stream does what they would.
        self.memory.as_ref().map_or(0, |memory| memory.device_ptr(self.device.stream()).0)
    }

    /// Is it memory of this very backend, in the order of whose stream it may be used?
    pub(super) fn belongs_to(&self, device: &Arc<Device>) -> bool {
        Arc::ptr_eq(&self.device, device)
    }

    fn bytes(&self) -> usize {
        self.len * self.element.bytes()
    }
}

impl Buffer for CudaBuffer {
    fn element(&self) -> Element {
        self.element
    }

    fn len(&self) -> usize {
        self.len
    }
}

impl Drop for CudaBuffer {
    fn drop(&mut self) {
        if let Some(memory) = self.memory.take() {
            // The driver releases memory of the calling thread's context, and this thread may not have had one yet.
            // What fails here comes out of the next call that can say so.
            self.device.context().record_err(self.device.context().bind_to_thread());
            drop(memory);
        }
        self.device.pool().subtract(self.bytes());
    }
}

impl fmt::Debug for CudaBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CudaBuffer").field("element", &self.element).field("len", &self.len).finish_non_exhaustive()
    }
}

impl Device {
    /// Memory out of the pool, in the order of the stream.
    pub(super) fn allocate(&self, bytes: usize) -> Outcome<CudaSlice<u8>> {
        let what = format!("allocating {bytes} bytes");
        // SAFETY: any bits are a u8, and the host never reads this memory but by copies that the device makes.
        unsafe { self.stream().alloc::<u8>(bytes) }.map_err(failure::driver(&what))
    }
}
