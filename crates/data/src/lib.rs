//! Token files, blends and deterministic sampling.
#![forbid(unsafe_code)]
