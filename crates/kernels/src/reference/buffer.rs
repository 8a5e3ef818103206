//! Memory of the reference backend: vectors on the host, and an account of their bytes.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::buffer::{Buffer, Element, MemoryUse};

/// Memory of the [`super::Reference`] backend: floats as f64 whatever their element type says, indices as u32.
#[derive(Debug)]
pub struct ReferenceBuffer {
    pub(super) element: Element,
    pub(super) values: Values,
    ledger: Arc<Ledger>,
}

/// What a buffer holds.
#[derive(Debug)]
pub(super) enum Values {
    /// `F32` and `Bf16`.
    Floats(Vec<f64>),
    /// `U32`.
    Indices(Vec<u32>),
}

impl ReferenceBuffer {
    /// Memory that shows when it is read before it is written: floats are NaN, indices beyond any bound.
    pub(super) fn unwritten(element: Element, len: usize, ledger: &Arc<Ledger>) -> Self {
        let values = match element {
            Element::F32 | Element::Bf16 => Values::Floats(vec![f64::NAN; len]),
            Element::U32 => Values::Indices(vec![u32::MAX; len]),
        };
        let buffer = Self { element, values, ledger: Arc::clone(ledger) };
        ledger.add(buffer.bytes());
        buffer
    }

    fn bytes(&self) -> usize {
        match &self.values {
            Values::Floats(values) => size_of_val(values.as_slice()),
            Values::Indices(values) => size_of_val(values.as_slice()),
        }
    }
}

impl Buffer for ReferenceBuffer {
    fn element(&self) -> Element {
        self.element
    }

    fn len(&self) -> usize {
        match &self.values {
            Values::Floats(values) => values.len(),
            Values::Indices(values) => values.len(),
        }
    }
}

impl Drop for ReferenceBuffer {
    fn drop(&mut self) {
        self.ledger.live.fetch_sub(self.bytes(), Ordering::Relaxed);
    }
}

/// Bytes alive, and the most that ever were since the last reset. Shared by the clones of a backend.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    live: AtomicUsize,
    peak: AtomicUsize,
}

impl Ledger {
    fn add(&self, bytes: usize) {
        let live = self.live.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.peak.fetch_max(live, Ordering::Relaxed);
    }

    pub(super) fn memory(&self) -> MemoryUse {
        let live_bytes = self.live.load(Ordering::Relaxed);
        MemoryUse { live_bytes, peak_bytes: self.peak.load(Ordering::Relaxed), held_bytes: live_bytes }
    }

    pub(super) fn reset_peak(&self) {
        self.peak.store(self.live.load(Ordering::Relaxed), Ordering::Relaxed);
    }
}
