//! Why something about the archive did not work.

use crate::object::Broken;
use everthread_store::{self as store, ArchiveFault};

/// Why a step failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The URL names no place that this release can use.
    #[error("not a place for an archive: {0}")]
    Url(String),
    /// The object store refused, or does not answer.
    #[error(transparent)]
    Bucket(#[from] object_store::Error),
    /// The object store took too long.
    #[error("the object store does not answer in time")]
    Slow,
    /// The place is not there, or is another than it was.
    #[error("{0}: is it mounted, and does --archive name the right place?")]
    Away(&'static str),
    /// The place is there and has no such object.
    #[error("it has no object {0}")]
    Missing(String),
    /// The object is not what was written.
    #[error("the object cannot be used: {0}")]
    Broken(#[from] Broken),
    /// The session's store failed.
    #[error(transparent)]
    Store(#[from] store::Error),
}

impl Error {
    /// As an error of the store that the archive stands in front of: nothing was written.
    pub(crate) fn of_store(self) -> store::Error {
        match self {
            Error::Store(error) => error,
            Error::Broken(_) | Error::Missing(_) => ArchiveFault::Broken(self.to_string()).into(),
            Error::Url(_) | Error::Bucket(_) | Error::Slow | Error::Away(_) => {
                ArchiveFault::Silent(self.to_string()).into()
            }
        }
    }
}
