//! The wire: entries, records, cursors, frames and error codes of Everthread.
//!
//! All decoding of untrusted bytes in the project happens here. An entry array arrives as bytes, is checked once by
//! [`scan::entries`], and is then stored and forwarded verbatim; [`entry::Entry`] is its typed reading for whoever needs to
//! understand it (the core, the fold, the SDKs). A [`record::Record`] is what one stream entry of the store holds and
//! what one delivered frame carries.
//!
//! This crate does no I/O, knows no clock and no runtime.

pub mod control;
pub mod entry;
pub mod error;
pub mod frame;
pub mod id;
mod level;
pub mod limits;
mod plain;
pub mod position;
pub mod record;
pub mod scan;
pub mod trace;
pub mod worker_frame;

pub use entry::Entry;
pub use error::{Code, Fault};
pub use id::*;
pub use level::{Level, NoLevel};
pub use position::{Cursor, Epoch, Fence, Millis, Seq, Version, millis};
pub use record::{Author, AuthorKind, Block, Record};
pub use trace::TraceContext;
