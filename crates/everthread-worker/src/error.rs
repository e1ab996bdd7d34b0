//! What can go wrong for a run, and for the worker as a whole.

use everthread_protocol::{Code, InvalidId};
use everthread_socket::SocketError;

/// Why a run cannot write.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The run is no longer this worker's: somebody else has it, or it was ended.
    #[error("the run is no longer this worker's")]
    Fenced,
    /// The server refused a write, and with it everything that came after.
    #[error("{}: {message}", code.as_str())]
    Refused {
        /// What was wrong.
        code: Code,
        /// The server's words.
        message: String,
    },
    /// The log lost more than was still kept here.
    #[error("lost tail: {0}")]
    LostTail(String),
    /// One write is larger than a block may be.
    #[error("a write of {bytes} bytes; one has at most {bytes_max}")]
    TooLarge {
        /// What it has.
        bytes: usize,
        /// What it may have.
        bytes_max: usize,
    },
    /// Something is not what the protocol allows, such as an id with other characters.
    #[error("not readable: {0}")]
    Unreadable(String),
    /// The run waits for people, and is no longer this worker's. Leave the function with it: when they have answered, the
    /// run begins anew, here or elsewhere.
    #[error("the run waits for people")]
    Suspended,
    /// The run has ended.
    #[error("the run has ended")]
    Ended,
    /// The worker stops.
    #[error("the worker stops")]
    Stopped,
}

impl Error {
    /// A word that programs can read, as it stands in a failed run.
    pub fn code(&self) -> &'static str {
        match self {
            Error::Fenced => "fenced",
            Error::Refused { code, .. } => code.as_str(),
            Error::LostTail(_) => "lost_tail",
            Error::TooLarge { .. } => "too_large",
            Error::Unreadable(_) => "bad_request",
            Error::Suspended => "suspended",
            Error::Ended => "ended",
            Error::Stopped => "worker_stopped",
        }
    }
}

impl From<InvalidId> for Error {
    fn from(error: InvalidId) -> Self {
        Error::Unreadable(error.to_string())
    }
}

/// Why a worker does not run.
#[derive(Debug, Clone, thiserror::Error)]
pub enum WorkerError {
    /// No agent was given.
    #[error("a worker needs at least one agent")]
    NoAgent,
    /// A name is not one, or stands twice.
    #[error("{name:?} cannot be the name of an agent here: {why}")]
    Name {
        /// As given.
        name: String,
        /// What is wrong with it.
        why: String,
    },
    /// The server will not have this worker as it is: its token, its address or what it says.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The server answered the first frame with an error that will not go away.
    #[error("{}: {message}", code.as_str())]
    Refused {
        /// What was wrong.
        code: Code,
        /// The server's words.
        message: String,
    },
}
