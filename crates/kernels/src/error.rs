//! What a kernel can refuse.

use crate::buffer::Element;

/// Why a kernel did not run. None of these is worth a retry: the caller passed something wrong, or the device is not
/// able to go on.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// A buffer has another length than the shapes ask for.
    #[error("{kernel}: {argument} has {found} elements but the shapes need {expected}")]
    Length {
        /// The kernel.
        kernel: &'static str,
        /// Its argument.
        argument: &'static str,
        /// Elements that the shapes need.
        expected: usize,
        /// Elements that it has.
        found: usize,
    },
    /// A buffer has an element type that the kernel does not take there.
    #[error("{kernel}: {argument} is {found:?}, which this kernel does not take there")]
    Element {
        /// The kernel.
        kernel: &'static str,
        /// Its argument.
        argument: &'static str,
        /// What it is.
        found: Element,
    },
    /// Shapes that contradict one another or that a kernel cannot serve.
    #[error("{kernel}: {reason}")]
    Shape {
        /// The kernel.
        kernel: &'static str,
        /// What is wrong, with values.
        reason: String,
    },
    /// An index in the data (a token id, an expert id) outside its range.
    #[error("{kernel}: {what} {value} at position {position} is not below {bound}")]
    Index {
        /// The kernel.
        kernel: &'static str,
        /// What the index names.
        what: &'static str,
        /// Its value.
        value: u64,
        /// Where it stands.
        position: usize,
        /// What it has to stay below.
        bound: u64,
    },
    /// A number that must be finite is not: what computed it has diverged.
    #[error("{kernel}: {what} is {value}; look for what diverged before the {kernel} kernel")]
    NonFinite {
        /// The kernel.
        kernel: &'static str,
        /// Which number, with its place.
        what: String,
        /// Its value.
        value: f64,
    },
    /// The backend has no such kernel.
    #[error("the {backend} backend has no {kernel} kernel; use the cpu backend for this model")]
    Missing {
        /// The backend.
        backend: &'static str,
        /// The kernel.
        kernel: &'static str,
    },
    /// The device or its library failed.
    #[error("{backend}: {reason}")]
    Device {
        /// The backend.
        backend: &'static str,
        /// What it said, with what to do next.
        reason: String,
    },
    /// The host tensor library failed.
    #[error("host tensor operation failed")]
    Host(#[from] candle_core::Error),
}
