//! Rust library for agent workers.
