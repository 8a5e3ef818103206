//! Layers forward and backward.
#![forbid(unsafe_code)]
