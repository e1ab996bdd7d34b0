//! What takes sessions out of the store, to some cheaper place, and brings them back.
//!
//! The store knows stubs and plants, not where the rest is: whoever stands in front of it does. Boundary for upkeep, which
//! decides when, and for tests.

use crate::Error;
use everthread_protocol::{Code, Fault, Millis, SessionKey};
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

/// What became of a session that was to be archived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Archived {
    /// Its log and state are in the archive, and a stub stands in its place.
    Done,
    /// It was archived before.
    Already,
    /// It is at work, or something was written meanwhile. Nothing changed.
    Busy,
    /// Its last entry is not old enough. Nothing changed.
    Recent {
        /// When it will be.
        idle_at: Millis,
    },
}

/// What is wrong with the archive. Nothing was written, and what is archived stays as it is, unless it says otherwise.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ArchiveFault {
    /// It does not answer, or is not there.
    #[error("it does not answer: {0}")]
    Silent(String),
    /// It is at work, and that takes longer than anybody waits for it: a sentence for the client.
    #[error("{0}")]
    Busy(&'static str),
    /// What it holds of the session is gone, or is not what was written.
    #[error("what it holds of the session is broken: {0}")]
    Broken(String),
    /// The session is deleted, and what the archive has of it is not yet: it is swept later, also if nobody asks again.
    #[error("a deleted session is left in it: {0}")]
    Left(String),
}

impl ArchiveFault {
    /// The fault as a client may see it.
    pub fn fault(&self) -> Fault {
        let (code, message) = match self {
            ArchiveFault::Silent(_) => {
                (Code::Unavailable, "the archive does not answer; nothing was written: try again")
            }
            ArchiveFault::Busy(why) => (Code::Unavailable, *why),
            ArchiveFault::Broken(_) => (
                Code::ArchiveBroken,
                "the archive does not have this session as it was written: an operator must put a copy back",
            ),
            // Not `unavailable`, of which nothing is done.
            ArchiveFault::Left(_) => (
                Code::Indeterminate,
                "the session is deleted, but the archive, which has a copy, does not answer: try again",
            ),
        };
        Fault::new(code, message)
    }
}

/// Archives sessions.
pub trait Archiver: Send + Sync + 'static {
    /// Archives a session in which nothing happens, if its last entry is at least that old. Repeating it is harmless, and
    /// it goes on if the future is dropped.
    fn archive_idle<'a>(
        &'a self,
        key: &'a SessionKey,
        idle: Duration,
    ) -> Pin<Box<dyn Future<Output = Result<Archived, Error>> + Send + 'a>>;

    /// The same, however old.
    fn archive<'a>(
        &'a self,
        key: &'a SessionKey,
    ) -> Pin<Box<dyn Future<Output = Result<Archived, Error>> + Send + 'a>> {
        self.archive_idle(key, Duration::ZERO)
    }

    /// Deletes what the archive has of a session that is gone; leaves one alone that is there. Repeating it is harmless.
    fn sweep<'a>(
        &'a self,
        key: &'a SessionKey,
    ) -> Pin<Box<dyn Future<Output = Result<(), Error>> + Send + 'a>>;
}
