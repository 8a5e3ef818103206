//! The driver's pool of device memory, and the account of what came out of it.

use std::ffi::c_void;
use std::sync::atomic::{AtomicUsize, Ordering};

use cudarc::driver::result::{device, mem_pool};
use cudarc::driver::{CudaContext, sys};

use super::failure;
use crate::backend::Outcome;
use crate::buffer::MemoryUse;

/// The device's own memory pool. Memory that is released waits in it for the next allocation.
pub(super) struct Pool {
    handle: sys::CUmemoryPool,
    live: AtomicUsize,
    peak: AtomicUsize,
}

// SAFETY: the handle names the device's default pool, which lives as long as the driver, and the driver's functions on
// pools may be called from any thread.
unsafe impl Send for Pool {}
// SAFETY: as above.
unsafe impl Sync for Pool {}

impl Pool {
    /// The default pool of `context`'s device, told to keep what is released: by default it gives everything back to the
    /// system whenever the host waits for the device.
    pub(super) fn open(context: &CudaContext) -> Outcome<Self> {
        if !context.has_async_alloc() {
            let reason = "this device has no memory pools; use one that has, or the cpu backend".to_owned();
            return Err(failure::device(reason));
        }
        // SAFETY: `cu_device` is the device that `context` was made for.
        let handle = unsafe { device::get_default_mem_pool(context.cu_device()) };
        let handle = handle.map_err(failure::driver("asking for the device's memory pool"))?;
        let mut keep = u64::MAX;
        let threshold = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
        // SAFETY: the pool is the device's; this attribute is a u64 and `keep` is one.
        unsafe { mem_pool::set_attribute(handle, threshold, (&raw mut keep).cast::<c_void>()) }
            .map_err(failure::driver("setting the memory pool's release threshold"))?;
        Ok(Self { handle, live: AtomicUsize::new(0), peak: AtomicUsize::new(0) })
    }

    /// `bytes` more are alive.
    pub(super) fn add(&self, bytes: usize) {
        let live = self.live.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.peak.fetch_max(live, Ordering::Relaxed);
    }

    /// `bytes` are alive no more.
    pub(super) fn subtract(&self, bytes: usize) {
        self.live.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// The account of this backend; what is held counts for all of this process on the device, whose pool it is, and is
    /// what is alive if the driver does not say.
    pub(super) fn memory(&self) -> MemoryUse {
        let live_bytes = self.live.load(Ordering::Relaxed);
        let peak_bytes = self.peak.load(Ordering::Relaxed);
        let mut reserved = 0u64;
        let attribute = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT;
        // SAFETY: the pool is the device's; this attribute is a u64 and `reserved` is one.
        let asked = unsafe { mem_pool::get_attribute(self.handle, attribute, (&raw mut reserved).cast::<c_void>()) };
        let reserved = asked.map_or(0, |()| usize::try_from(reserved).unwrap_or(usize::MAX));
        MemoryUse { live_bytes, peak_bytes, held_bytes: reserved.max(live_bytes) }
    }

    /// The peak begins anew.
    pub(super) fn reset_peak(&self) {
        self.peak.store(self.live.load(Ordering::Relaxed), Ordering::Relaxed);
    }
}
