//! Sessions that nobody uses, kept in an object store and brought back when somebody does.
//!
//! An [`Archive`] stands in front of a [`Store`](everthread_store::Store) and is one. A session that was idle for long goes
//! into an object of the [`bucket`], in the form of [`object`], and a stub is left in the store: enough for lists, cursors
//! and devices. Whoever then needs its log or state waits until it is back; nobody can tell it from one that was never
//! away. When sessions are archived is not decided here.

mod archive;
mod back;
mod brief;
pub mod bucket;
mod counts;
mod error;
mod flights;
mod forget;
pub mod object;
mod out;
mod store;

pub use archive::{Archive, Options};
pub use back::RESTORE_MAX;
pub use bucket::Bucket;
pub use counts::Counts;
pub use error::Error;
pub use out::ARCHIVE_MAX;
