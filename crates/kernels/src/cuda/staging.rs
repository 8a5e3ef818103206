//! Copies between the host and the device, through a block of page-locked memory.
//!
//! The device reads and writes page-locked memory by itself. The block is allocated once (that takes about a
//! millisecond) and without write-combining, since the host reads it too. Longer transfers go through it piece by piece.
//! The host waits for each piece, so its own memory is free, or filled, when a call returns.

use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::result;
use cudarc::driver::{CudaContext, CudaStream, PinnedHostSlice};

use super::failure;
use crate::backend::Outcome;

/// Bytes of the block: enough that a piece takes far longer than the wait after it.
const BLOCK_BYTES: usize = 4 << 20;

/// The block. One transfer at a time.
#[derive(Debug)]
pub(super) struct Staging {
    block: Mutex<PinnedHostSlice<u8>>,
}

impl Staging {
    pub(super) fn new(context: &Arc<CudaContext>) -> Outcome<Self> {
        let refused = || failure::driver("allocating page-locked memory");
        // SAFETY: the bytes are set right below, before anything reads them.
        let mut block = unsafe { context.alloc_pinned_with_flags::<u8>(BLOCK_BYTES, 0) }.map_err(refused())?;
        let start = block.as_mut_ptr().map_err(refused())?;
        // SAFETY: `start` is the address of `BLOCK_BYTES` bytes that `block` owns alone.
        unsafe { start.write_bytes(0, BLOCK_BYTES) };
        Ok(Self { block: Mutex::new(block) })
    }

    /// Fills `target` from the device's memory at `address`, after what was launched before.
    ///
    /// # Safety
    /// `target.len()` bytes from `address` on are allocated on the device of `stream`.
    pub(super) unsafe fn read(&self, stream: &CudaStream, address: u64, target: &mut [u8]) -> Outcome {
        let refused = || failure::driver("copying from the device");
        stream.context().bind_to_thread().map_err(refused())?;
        let mut block = self.block.lock().unwrap_or_else(PoisonError::into_inner);
        let block = block.as_mut_slice().map_err(refused())?;
        for (piece, target) in target.chunks_mut(BLOCK_BYTES).enumerate() {
            let block = &mut block[..target.len()];
            let address = address + (piece * BLOCK_BYTES) as u64;
            // SAFETY: the source is allocated, as the caller promises; the block is ours alone by the lock, and is not
            // touched before the wait below ends.
            unsafe { result::memcpy_dtoh_async(block, address, stream.cu_stream()) }.map_err(refused())?;
            stream.synchronize().map_err(refused())?;
            target.copy_from_slice(block);
        }
        Ok(())
    }

    /// Fills the device's memory at `address` from `source`, after what was launched before.
    ///
    /// # Safety
    /// `source.len()` bytes from `address` on are allocated on the device of `stream`, for the caller to write.
    pub(super) unsafe fn write(&self, stream: &CudaStream, source: &[u8], address: u64) -> Outcome {
        let refused = || failure::driver("copying to the device");
        stream.context().bind_to_thread().map_err(refused())?;
        let mut block = self.block.lock().unwrap_or_else(PoisonError::into_inner);
        let block = block.as_mut_slice().map_err(refused())?;
        for (piece, source) in source.chunks(BLOCK_BYTES).enumerate() {
            let block = &mut block[..source.len()];
            block.copy_from_slice(source);
            let address = address + (piece * BLOCK_BYTES) as u64;
            // SAFETY: the target is allocated and the caller's to write; the block is ours alone by the lock, and is not
            // touched before the wait below ends.
            unsafe { result::memcpy_htod_async(address, block, stream.cu_stream()) }.map_err(refused())?;
            stream.synchronize().map_err(refused())?;
        }
        Ok(())
    }
}
