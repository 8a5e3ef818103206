//! Scratch memory of a thread, kept from call to call; it grows to the largest job that its thread has run.

use std::cell::RefCell;

/// A cache line of units.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u32; LINE]);

const LINE: usize = 16;

// SAFETY: a Line is 16 u32 of 4 bytes and its size is its alignment, so it has no padding; all zeros is a value.
unsafe impl bytemuck::Zeroable for Line {}
// SAFETY: as above, and any bits are a valid value of each u32; Line is Copy and 'static.
unsafe impl bytemuck::Pod for Line {}

/// Memory that begins at a cache line.
#[derive(Default)]
pub(super) struct Area(Vec<Line>);

impl Area {
    /// The first `len` units; what they hold is what the last job left there.
    pub(super) fn units(&mut self, len: usize) -> &mut [u32] {
        if self.0.len() * LINE < len {
            self.0.resize(len.div_ceil(LINE), Line([0; LINE]));
        }
        &mut bytemuck::cast_slice_mut(&mut self.0)[..len]
    }

    /// The first `len` floats.
    pub(super) fn floats(&mut self, len: usize) -> &mut [f32] {
        bytemuck::cast_slice_mut(self.units(len))
    }
}

/// The areas of a thread.
#[derive(Default)]
pub(super) struct Scratch {
    /// Packed rows of A.
    pub a: Area,
    /// Packed panels of B.
    pub b: Area,
    /// Sums of the parts of k so far, where C cannot hold them.
    pub sums: Area,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Runs `work` with this thread's areas.
///
/// # Panics
/// If `work` calls this again on its thread: it must not wait for other work of the pool.
pub(super) fn with<R>(work: impl FnOnce(&mut Scratch) -> R) -> R {
    SCRATCH.with_borrow_mut(work)
}
