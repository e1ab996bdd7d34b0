//! What takes sessions out of the store, to some cheaper place, and brings them back.
//!
//! The store knows stubs and plants, not where the rest is: whoever stands in front of it does. Boundary for upkeep, which
//! decides when, and for tests.

use crate::Error;
use everthread_protocol::SessionKey;
use std::future::Future;
use std::pin::Pin;

/// What became of a session that was to be archived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Archived {
    /// Its log and state are in the archive, and a stub stands in its place.
    Done,
    /// It was archived before.
    Already,
    /// It is at work, or something was written meanwhile. Nothing changed.
    Busy,
}

/// Archives sessions.
pub trait Archiver: Send + Sync + 'static {
    /// Archives a session that nothing happens in. Repeating it is harmless.
    fn archive<'a>(
        &'a self,
        key: &'a SessionKey,
    ) -> Pin<Box<dyn Future<Output = Result<Archived, Error>> + Send + 'a>>;
}
