//! Scratch memory of a thread, kept from call to call.

use std::cell::RefCell;

/// A cache line of 4-byte values.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
struct Line([u32; 16]);

thread_local! {
    static LINES: RefCell<[Vec<Line>; 3]> = const { RefCell::new([const { Vec::new() }; 3]) };
}

/// Calls `work` with three aligned areas of at least so many 4-byte values; their contents are what the last call left.
///
/// # Panics
/// If `work` calls this again: a job does not begin another.
pub(super) fn with<T>(lengths: [usize; 3], work: impl FnOnce([&mut [u32]; 3]) -> T) -> T {
    LINES.with_borrow_mut(|areas| {
        for (area, length) in areas.iter_mut().zip(lengths) {
            let lines = length.div_ceil(16);
            if area.len() < lines {
                area.resize(lines, Line([0; 16]));
            }
        }
        let [first, second, third] = areas;
        work([first, second, third].map(|area| bytemuck::cast_slice_mut(area.as_mut_slice())))
    })
}
