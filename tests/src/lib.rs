//! Fixtures and scenarios.
#![forbid(unsafe_code)]
