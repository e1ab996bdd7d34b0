//! Why something asked of a session did not happen, or is not known to have.

use everthread_protocol::error::ErrorBody;
use everthread_protocol::{Code, InvalidId};
use everthread_socket::SocketError;

/// What can go wrong.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// The server refused it.
    #[error("{}: {message}", code.as_str())]
    Refused {
        /// What was wrong.
        code: Code,
        /// The server's words.
        message: String,
        /// Whether the same request may succeed later.
        retryable: bool,
        /// When that makes sense, in milliseconds.
        after_ms: Option<u64>,
    },
    /// There was no answer in time. It may have happened: only a repeat with the same id tells.
    #[error("no answer in time; it may or may not have happened")]
    Indeterminate,
    /// The connection ended for good.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The client was closed.
    #[error("the client is closed")]
    Closed,
    /// Something is not what the protocol allows.
    #[error("not readable: {0}")]
    Unreadable(String),
}

impl Error {
    /// Whether the same request, with the same id, may succeed later.
    pub fn is_retryable(&self) -> bool {
        match self {
            Error::Refused { retryable, .. } => *retryable,
            Error::Indeterminate => true,
            Error::Socket(_) | Error::Closed | Error::Unreadable(_) => false,
        }
    }

    /// The session was deleted.
    pub(crate) fn deleted() -> Self {
        let message = "the session was deleted".to_owned();
        Error::Refused { code: Code::NoSession, message, retryable: false, after_ms: None }
    }

    /// Whether it says how the session is, for the caller to decide about, rather than that something is in the way.
    pub(crate) fn is_verdict(&self) -> bool {
        matches!(self, Error::Refused { code: Code::Busy | Code::Held, .. })
    }
}

impl From<ErrorBody> for Error {
    fn from(error: ErrorBody) -> Self {
        let ErrorBody { code, message, retryable, after_ms, .. } = error;
        Error::Refused { code, message, retryable, after_ms }
    }
}

impl From<InvalidId> for Error {
    fn from(error: InvalidId) -> Self {
        Error::Unreadable(error.to_string())
    }
}

impl From<serde_json::Error> for Error {
    fn from(error: serde_json::Error) -> Self {
        Error::Unreadable(error.to_string())
    }
}
