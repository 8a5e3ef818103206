//! Who runs which job.
//!
//! Every thread begins in its own stretch of the jobs, so that threads pack different columns of B, and helps the others
//! when it is done. Which thread ran a job does not show in its result.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::job::{Call, Worker};
use super::plan::Block;
use super::scratch;

/// Runs every block of a call in the current pool of threads.
///
/// # Safety
/// Blocks lie inside their products and do not overlap, and nobody else touches C.
pub(super) unsafe fn run(call: &Call<'_>, blocks: &[Block]) {
    let threads = rayon::current_num_threads().min(blocks.len());
    if threads <= 1 {
        scratch::with(|scratch| {
            let mut worker = Worker::new(call, scratch);
            for block in blocks {
                // SAFETY: the caller's promise.
                unsafe { worker.run(block) };
            }
        });
        return;
    }
    let bound = |thread: usize| blocks.len() * thread / threads;
    let next: Vec<AtomicUsize> = (0..threads).map(|thread| AtomicUsize::new(bound(thread))).collect();
    let work = |own: usize| {
        scratch::with(|scratch| {
            let mut worker = Worker::new(call, scratch);
            for thread in (own..threads).chain(0..own) {
                loop {
                    // Relaxed: the counter hands out indices only; the pool orders C's writes before its return.
                    let index = next[thread].fetch_add(1, Ordering::Relaxed);
                    if index >= bound(thread + 1) {
                        break;
                    }
                    // SAFETY: the caller's promise; the counter gave this block to nobody else.
                    unsafe { worker.run(&blocks[index]) };
                }
            }
        });
    };
    rayon::scope(|scope| {
        for own in 1..threads {
            let work = &work;
            scope.spawn(move |_| work(own));
        }
        work(0);
    });
}
