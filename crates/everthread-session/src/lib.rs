//! The pure core: what may happen to a session, and what a session looks like.
//!
//! - `core` holds the core state and `core::decide`: `decide(state, request, now) → entries + new state | refusal`.
//! - [`view`] is the session as people see it, built by applying blocks.
//! - [`fold`] merges the token appends of each part; a view is the same for every cut and every fold.
//!
//! No I/O, no clock, nothing that blocks.

pub mod fold;
pub mod view;
