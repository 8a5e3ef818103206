//! Buffers and views of them: flat memory of one element type, on whatever device the backend drives.

use std::ops::Range;

/// The element type of a buffer.
///
/// The `reference` backend keeps `F32` and `Bf16` both as f64: there the type says what a value stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Element {
    /// 32-bit float: masters, moments, gradients, norms, router; activations of an f32 run.
    F32,
    /// bfloat16: weights and activations of a bf16 run.
    Bf16,
    /// 32-bit unsigned: token ids, expert ids, row indices.
    U32,
}

impl Element {
    /// Size of one element in bytes, on a device that stores the type as it is.
    #[must_use]
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 | Self::U32 => 4,
            Self::Bf16 => 2,
        }
    }
}

/// Memory owned by a backend. Dropping one gives its memory back to the backend for reuse.
pub trait Buffer: Send + Sync + Sized {
    /// Its element type.
    fn element(&self) -> Element;

    /// Elements, not bytes.
    fn len(&self) -> usize;

    /// Has it no elements?
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The whole of it, for reading.
    fn view(&self) -> View<'_, Self> {
        View { buffer: self, start: 0, len: self.len() }
    }

    /// The whole of it, for writing.
    fn view_mut(&mut self) -> ViewMut<'_, Self> {
        let len = self.len();
        ViewMut { buffer: self, start: 0, len }
    }

    /// Elements `range`, for reading.
    ///
    /// # Panics
    /// If the range does not lie inside the buffer: a bug of the caller, as with a slice.
    fn slice(&self, range: Range<usize>) -> View<'_, Self> {
        assert!(range.start <= range.end && range.end <= self.len(), "range {range:?} of {} elements", self.len());
        View { buffer: self, start: range.start, len: range.len() }
    }

    /// Elements `range`, for writing.
    ///
    /// # Panics
    /// If the range does not lie inside the buffer: a bug of the caller, as with a slice.
    fn slice_mut(&mut self, range: Range<usize>) -> ViewMut<'_, Self> {
        assert!(range.start <= range.end && range.end <= self.len(), "range {range:?} of {} elements", self.len());
        ViewMut { buffer: self, start: range.start, len: range.len() }
    }
}

/// A contiguous part of a buffer, for reading.
#[derive(Debug)]
pub struct View<'a, Buf> {
    /// The buffer that it is part of.
    pub buffer: &'a Buf,
    /// Its first element there.
    pub start: usize,
    /// Its elements.
    pub len: usize,
}

impl<Buf> Clone for View<'_, Buf> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<Buf> Copy for View<'_, Buf> {}

/// A contiguous part of a buffer, for writing.
#[derive(Debug)]
pub struct ViewMut<'a, Buf> {
    /// The buffer that it is part of.
    pub buffer: &'a mut Buf,
    /// Its first element there.
    pub start: usize,
    /// Its elements.
    pub len: usize,
}

impl<Buf> ViewMut<'_, Buf> {
    /// The same part, borrowed for a shorter time.
    pub fn reborrow(&mut self) -> ViewMut<'_, Buf> {
        ViewMut { buffer: self.buffer, start: self.start, len: self.len }
    }
}

impl<'a, Buf: Buffer> From<&'a Buf> for View<'a, Buf> {
    fn from(buffer: &'a Buf) -> Self {
        buffer.view()
    }
}

impl<'a, Buf: Buffer> From<&'a mut Buf> for ViewMut<'a, Buf> {
    fn from(buffer: &'a mut Buf) -> Self {
        buffer.view_mut()
    }
}

/// What a backend holds of its device's memory, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryUse {
    /// In buffers that are alive.
    pub live_bytes: usize,
    /// The most that was alive at one time since [`crate::Backend::reset_peak`].
    pub peak_bytes: usize,
    /// Held from the system: what is alive and what waits for reuse.
    pub held_bytes: usize,
}
