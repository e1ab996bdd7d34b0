//! Sessions that nobody uses, kept in an object store and brought back when somebody does.

pub mod bucket;
mod error;
pub mod object;

pub use error::Error;
