//! Why something about the archive did not work.

use crate::object::Broken;
use everthread_store as store;

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
    /// The object is not what was written.
    #[error("the object is broken: {0}")]
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
            Error::Broken(_) | Error::Bucket(object_store::Error::NotFound { .. }) => {
                store::Error::Corrupt(format!("an archived session: {self}"))
            }
            Error::Url(_) | Error::Bucket(_) | Error::Slow => {
                store::Error::Unavailable(format!("the archive: {self}"))
            }
        }
    }
}
