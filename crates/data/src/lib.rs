//! Token files, blends and deterministic sampling.
//!
//! A run reads windows of T+1 tokens out of memory-mapped files. [`Dataset`] is what a trainer needs: it opens
//! [`SourceSpec`]s, reports all that is wrong with them at once, and gives any row of any step without those before it.
//! [`TokenFile`] is one source, [`MegatronWriter`] and [`FlatWriter`] make them.
//!
//! **Invariant:** which tokens a sample has is a pure function of (sources, seq_len, order, seed, sample index): not of
//! threads, microbatches, placement, or what was read before.
//!
//! **Invariant:** no byte of a file is trusted: lengths, counts and offsets are checked when a file is opened, tokens when
//! they are read, and nothing is allocated by a size that a file claims.
//!
//! Reading from object storage and making tokens out of text are not here.
#![deny(unsafe_code)]

mod blend;
mod dataset;
mod dtype;
mod error;
mod index;
mod mapped;
mod partial;
mod permutation;
mod source;
mod token_file;
mod writer;

pub use dataset::{Batch, Dataset, Order, Sample, Source};
pub use dtype::{TokenDtype, TokenValue};
pub use error::{DataError, Problems};
pub use source::{SourceFormat, SourceSpec};
pub use token_file::TokenFile;
pub use writer::{FlatWriter, MegatronWriter};
