//! The pure core: what may happen to a session, and what a session looks like.
//!
//! - [`state`] is the core state; [`mod@decide`] turns a request into entries and a new state, or refuses it.
//! - [`view`] is the session as people see it, built by applying blocks.
//! - [`forked`] begins a session with a part of another one.
//! - [`fold`] merges the token appends of each part; a view is the same for every cut and every fold.
//! - [`retention`] is how long a session, and how much of it, is kept.
//!
//! No I/O, no clock, nothing that blocks.

mod brief;
pub mod decide;
pub mod fold;
pub mod forked;
pub mod retention;
pub mod state;
pub mod view;

pub use brief::Brief;
pub use decide::{Context, Decision, Refusal, Request, decide};
pub use retention::Retention;
pub use state::State;
