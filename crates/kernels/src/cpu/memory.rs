//! Buffers, and the store that keeps the memory of dropped ones for the next.
//!
//! A training step asks for the same sizes again and again, and memory fresh from the system costs a page fault every
//! 4 KiB: more than most kernels take over the same bytes. So a dropped buffer's block waits in the store of its
//! backend. Blocks come in eight sizes to each doubling, which leaves at most an eighth of one unused, and a request is
//! served by a block of its own size only.
//!
//! **Invariant:** blocks that wait never make what is held exceed 5/4 of the most that was ever alive: before the store
//! asks the system for more, it gives back those that have waited longest.

use std::alloc::{self, Layout};
use std::collections::{BTreeMap, VecDeque};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use half::bf16;

use super::slices::{Floats, FloatsMut};
use crate::backend::Outcome;
use crate::buffer::{Buffer, Element, MemoryUse};
use crate::error::KernelError;

/// A cache line, and what the widest vectors like to begin at.
const ALIGNMENT: usize = 64;

/// Memory of the [`Cpu`](super::Cpu) backend: flat, 64-byte aligned. Dropping it gives it back for reuse.
#[derive(Debug)]
pub struct CpuBuffer {
    /// Taken by `drop` only.
    block: Option<Block>,
    element: Element,
    len: usize,
    store: Arc<Store>,
}

impl Buffer for CpuBuffer {
    fn element(&self) -> Element {
        self.element
    }

    fn len(&self) -> usize {
        self.len
    }
}

impl CpuBuffer {
    /// Its elements, if they are floats.
    pub(super) fn floats(&self) -> Option<Floats<'_>> {
        match self.element {
            Element::F32 => Some(Floats::F32(self.slice_of())),
            Element::Bf16 => Some(Floats::Bf16(self.slice_of::<bf16>())),
            Element::U32 => None,
        }
    }

    /// Its elements, if they are floats.
    pub(super) fn floats_mut(&mut self) -> Option<FloatsMut<'_>> {
        match self.element {
            Element::F32 => Some(FloatsMut::F32(self.slice_of_mut())),
            Element::Bf16 => Some(FloatsMut::Bf16(self.slice_of_mut::<bf16>())),
            Element::U32 => None,
        }
    }

    /// Its elements, if they are indices.
    pub(super) fn indices(&self) -> Option<&[u32]> {
        (self.element == Element::U32).then(|| self.slice_of())
    }

    /// Its elements, if they are indices.
    pub(super) fn indices_mut(&mut self) -> Option<&mut [u32]> {
        (self.element == Element::U32).then(|| self.slice_of_mut())
    }

    fn start(&self) -> NonNull<u8> {
        self.block.as_ref().map_or(Block::EMPTY.memory, |block| block.memory)
    }

    /// All elements as `T`, which any bits are a value of, and as large as `element`.
    fn slice_of<T: bytemuck::Pod>(&self) -> &[T] {
        debug_assert_eq!(size_of::<T>(), self.element.bytes());
        // SAFETY: the block holds at least `len` elements of this size (`Store::buffer`), aligned to 64 bytes and
        // initialised since it came from the system; any bits are a `T`; `self` owns it and is borrowed as long.
        unsafe { std::slice::from_raw_parts(self.start().as_ptr().cast::<T>(), self.len) }
    }

    /// As [`Self::slice_of`], for writing.
    fn slice_of_mut<T: bytemuck::Pod>(&mut self) -> &mut [T] {
        debug_assert_eq!(size_of::<T>(), self.element.bytes());
        // SAFETY: as in `slice_of`, and `self` is borrowed for writing.
        unsafe { std::slice::from_raw_parts_mut(self.start().as_ptr().cast::<T>(), self.len) }
    }
}

impl Drop for CpuBuffer {
    fn drop(&mut self) {
        if let Some(block) = self.block.take() {
            self.store.give_back(block);
        }
    }
}

/// Memory from the system: `bytes` of it, initialised, aligned to [`ALIGNMENT`]; none if `bytes` is zero.
#[derive(Debug)]
struct Block {
    memory: NonNull<u8>,
    bytes: usize,
}

// SAFETY: a block is memory that it alone owns; nothing of it is tied to a thread.
unsafe impl Send for Block {}
// SAFETY: as above; shared, it gives out nothing but its address.
unsafe impl Sync for Block {}

impl Block {
    /// Nothing, at an address that is aligned and not null.
    const EMPTY: Self = Self { memory: NonNull::<Line>::dangling().cast(), bytes: 0 };

    /// Zeros from the system, or none if it has not so much.
    fn new(bytes: usize) -> Option<Self> {
        if bytes == 0 {
            return Some(Self::EMPTY);
        }
        let layout = Layout::from_size_align(bytes, ALIGNMENT).ok()?;
        // SAFETY: the layout's size is not zero.
        let memory = NonNull::new(unsafe { alloc::alloc_zeroed(layout) })?;
        Some(Self { memory, bytes })
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        if self.bytes > 0 {
            // SAFETY: `new` allocated this memory with this very layout, and whoever drops a block gives up its memory.
            unsafe {
                let layout = Layout::from_size_align_unchecked(self.bytes, ALIGNMENT);
                alloc::dealloc(self.memory.as_ptr(), layout);
            }
        }
    }
}

/// What [`ALIGNMENT`] aligns to.
#[repr(align(64))]
struct Line;

/// The blocks of one backend, its clones included.
#[derive(Debug, Default)]
pub(super) struct Store {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Blocks that wait, by size; of each size the longest waiting first, with the time since when.
    waiting: BTreeMap<usize, VecDeque<(u64, Block)>>,
    /// Counts the blocks given back: the time.
    now: u64,
    live_bytes: usize,
    peak_bytes: usize,
    held_bytes: usize,
    /// The most that was ever alive.
    most_bytes: usize,
}

impl Store {
    /// A buffer of `len` elements of unspecified values.
    pub(super) fn buffer(self: &Arc<Self>, element: Element, len: usize) -> Outcome<CpuBuffer> {
        let bytes = len.checked_mul(element.bytes()).and_then(block_bytes).ok_or_else(|| KernelError::Shape {
            kernel: "alloc",
            reason: format!("{len} elements of {element:?} are more than memory has addresses for"),
        })?;
        let block = self.lock().take(bytes)?;
        Ok(CpuBuffer { block: Some(block), element, len, store: Arc::clone(self) })
    }

    /// The account.
    pub(super) fn memory(&self) -> MemoryUse {
        let State { live_bytes, peak_bytes, held_bytes, .. } = *self.lock();
        MemoryUse { live_bytes, peak_bytes, held_bytes }
    }

    /// The peak begins anew.
    pub(super) fn reset_peak(&self) {
        let mut state = self.lock();
        state.peak_bytes = state.live_bytes;
    }

    fn give_back(&self, block: Block) {
        let mut state = self.lock();
        state.live_bytes -= block.bytes;
        state.now += 1;
        let now = state.now;
        state.waiting.entry(block.bytes).or_default().push_back((now, block));
    }

    /// A thread that panicked with the lock held left the account between two additions at worst, and no block in two
    /// places: it can still be used.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// A block of that size, waiting or fresh, counted as alive.
    fn take(&mut self, bytes: usize) -> Outcome<Block> {
        // The last to be given back is the one most likely to be in a cache still.
        let waiting = self.waiting.get_mut(&bytes).and_then(VecDeque::pop_back);
        let block = match waiting {
            Some((_, block)) => block,
            None => self.fresh(bytes)?,
        };
        self.live_bytes += bytes;
        self.peak_bytes = self.peak_bytes.max(self.live_bytes);
        self.most_bytes = self.most_bytes.max(self.live_bytes);
        Ok(block)
    }

    fn fresh(&mut self, bytes: usize) -> Outcome<Block> {
        let most = self.most_bytes.max(self.live_bytes.saturating_add(bytes));
        while self.held_bytes.saturating_add(bytes) > most.saturating_add(most / 4) && self.release_oldest() {}
        let mut block = Block::new(bytes);
        while block.is_none() && self.release_oldest() {
            block = Block::new(bytes);
        }
        let block = block.ok_or_else(|| KernelError::Device {
            backend: "cpu",
            reason: format!(
                "the system has no {bytes} bytes beside the {} in use; use fewer rows per microbatch or a smaller model",
                self.live_bytes
            ),
        })?;
        self.held_bytes += bytes;
        Ok(block)
    }

    /// Gives the block that has waited longest to the system; is there none, says false.
    fn release_oldest(&mut self) -> bool {
        let since = |blocks: &VecDeque<(u64, Block)>| blocks.front().map(|(since, _)| *since);
        let oldest = self.waiting.iter().filter_map(|(bytes, blocks)| Some((since(blocks)?, *bytes))).min();
        let block = oldest.and_then(|(_, bytes)| self.waiting.get_mut(&bytes)?.pop_front());
        self.held_bytes -= block.as_ref().map_or(0, |(_, block)| block.bytes);
        block.is_some()
    }
}

/// The size of the block that `bytes` are kept in: whole cache lines, and eight sizes to each doubling.
fn block_bytes(bytes: usize) -> Option<usize> {
    let step = (bytes.checked_next_power_of_two()? / 16).max(ALIGNMENT);
    bytes.checked_next_multiple_of(step).filter(|bytes| *bytes <= isize::MAX as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store() -> Arc<Store> {
        Arc::new(Store::default())
    }

    #[test]
    fn a_block_wastes_at_most_an_eighth_and_keeps_cache_lines_whole() {
        assert_eq!(block_bytes(0), Some(0));
        assert_eq!(block_bytes(1), Some(64));
        assert_eq!(block_bytes(1024), Some(1024));
        assert_eq!(block_bytes(1025), Some(1152));
        // What most tensors are: a few times a power of two.
        assert_eq!(block_bytes(3 << 20), Some(3 << 20));
        assert_eq!(block_bytes(usize::MAX), None);
        for bytes in (1..100_000).chain([12_345_678, 1 << 40, (1 << 40) + 1]) {
            let block = block_bytes(bytes).expect("it fits");
            assert!(
                block >= bytes && block.is_multiple_of(64) && block - bytes <= (bytes / 8).max(63),
                "{bytes} in {block}"
            );
            assert_eq!(block_bytes(block), Some(block), "a block's size is a size of its own");
        }
    }

    #[test]
    fn a_dropped_buffer_serves_the_next_of_its_size() {
        let store = store();
        let first = store.buffer(Element::F32, 1000).expect("memory");
        let address = first.start();
        drop(first);
        let second = store.buffer(Element::Bf16, 2000).expect("memory");
        assert_eq!(second.start(), address);
        assert_eq!((second.element(), second.len()), (Element::Bf16, 2000));
        assert_eq!(store.memory().held_bytes, 4096);
    }

    #[test]
    fn the_account_follows_buffers_as_they_come_and_go() {
        let store = store();
        let small = store.buffer(Element::U32, 16).expect("memory");
        let large = store.buffer(Element::F32, 512).expect("memory");
        let both = MemoryUse { live_bytes: 2112, peak_bytes: 2112, held_bytes: 2112 };
        assert_eq!(store.memory(), both);
        drop(large);
        assert_eq!(store.memory(), MemoryUse { live_bytes: 64, ..both });
        store.reset_peak();
        assert_eq!(store.memory(), MemoryUse { live_bytes: 64, peak_bytes: 64, held_bytes: 2112 });
        drop(small);
        assert_eq!(store.memory().live_bytes, 0);
    }

    #[test]
    fn blocks_of_sizes_that_are_no_longer_asked_for_go_back_to_the_system() {
        let store = store();
        for len in 1..200 {
            let buffer = store.buffer(Element::F32, 16 * len).expect("memory");
            let most = block_bytes(64 * len).expect("it fits");
            assert!(store.memory().held_bytes <= most + most / 4, "{len}: {:?}", store.memory());
            drop(buffer);
        }
    }

    #[test]
    fn fresh_memory_is_aligned_and_zero_and_an_empty_buffer_has_none() {
        let store = store();
        let mut buffer = store.buffer(Element::U32, 100).expect("memory");
        assert_eq!(buffer.start().as_ptr().addr() % 64, 0);
        assert_eq!(buffer.indices(), Some(&[0; 100][..]));
        assert!(buffer.floats().is_none() && buffer.floats_mut().is_none());
        let mut empty = store.buffer(Element::Bf16, 0).expect("nothing");
        assert!(matches!(empty.floats(), Some(Floats::Bf16([]))));
        assert!(matches!(empty.floats_mut(), Some(FloatsMut::Bf16([]))));
        assert!(empty.indices().is_none() && empty.indices_mut().is_none());
    }

    #[test]
    fn more_than_there_is_memory_for_is_an_error() {
        let store = store();
        let waiting = store.buffer(Element::F32, 100).expect("memory");
        drop(waiting);
        let overflow = store.buffer(Element::F32, usize::MAX / 2);
        assert!(matches!(overflow, Err(KernelError::Shape { kernel: "alloc", .. })), "{overflow:?}");
        let too_much = store.buffer(Element::F32, (isize::MAX / 8) as usize);
        assert!(matches!(too_much, Err(KernelError::Device { backend: "cpu", .. })), "{too_much:?}");
        assert_eq!(store.memory(), MemoryUse { live_bytes: 0, peak_bytes: 448, held_bytes: 0 });
        assert!(store.buffer(Element::F32, 100).is_ok());
    }
}
