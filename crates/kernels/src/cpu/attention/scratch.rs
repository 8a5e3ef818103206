//! Memory of a job that nobody else sees: one arena per thread, kept from call to call.
//!
//! It grows to the largest job that its thread has run and is never given back. What it holds at the start of a job is
//! what an earlier one left there: initialised, of no meaning.

use std::cell::RefCell;

/// A cache line: every region of an arena begins at one.
#[repr(C, align(64))]
#[derive(Clone, Copy)]
struct Line([f32; LINE]);

const LINE: usize = 16;

// SAFETY: a Line is 16 floats of 4 bytes and its size is its alignment, so it has no padding; all zeros is a value.
unsafe impl bytemuck::Zeroable for Line {}
// SAFETY: as above, and any bits are a valid value of each float; Line is Copy and 'static.
unsafe impl bytemuck::Pod for Line {}

thread_local! {
    static ARENA: RefCell<Vec<Line>> = const { RefCell::new(Vec::new()) };
}

/// What is left of an arena.
pub(super) struct Scratch<'a>(&'a mut [f32]);

impl<'a> Scratch<'a> {
    /// A part of an arena, to be cut further.
    pub(super) fn of(memory: &'a mut [f32]) -> Self {
        Self(memory)
    }

    /// The next `len` floats, from a cache line's beginning on.
    ///
    /// # Panics
    /// If [`with_scratch`] was asked for less than the regions' [`region`] sizes.
    pub(super) fn floats(&mut self, len: usize) -> &'a mut [f32] {
        let (region, rest) = std::mem::take(&mut self.0).split_at_mut(region(len));
        self.0 = rest;
        &mut region[..len]
    }

    /// The next `len` units.
    ///
    /// # Panics
    /// As [`Self::floats`].
    pub(super) fn units(&mut self, len: usize) -> &'a mut [u32] {
        bytemuck::cast_slice_mut(self.floats(len))
    }
}

/// Floats that a region of `len` takes.
pub(super) fn region(len: usize) -> usize {
    len.next_multiple_of(LINE)
}

/// Runs `job` with an arena of at least `len` floats. `job` must not run another on its thread before it returns.
pub(super) fn with_scratch<R>(len: usize, job: impl FnOnce(Scratch<'_>) -> R) -> R {
    ARENA.with_borrow_mut(|lines| {
        if lines.len() * LINE < len {
            lines.resize(len.div_ceil(LINE), Line([0.0; LINE]));
        }
        job(Scratch(bytemuck::cast_slice_mut(lines)))
    })
}
