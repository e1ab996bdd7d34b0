//! Error codes: one place for every number, and the three questions each code answers by exhaustive match.

use serde::{Deserialize, Deserializer, Serialize};
use std::borrow::Cow;

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $text:literal),+ $(,)?) => {
        /// What went wrong, as the protocol names it.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
        pub enum Code {
            $($(#[$doc])* #[serde(rename = $text)] $name),+
        }

        impl Code {
            /// Every code, for documents and tests.
            pub const ALL: &[Code] = &[$(Code::$name),+];

            /// The code as it stands on the wire.
            pub fn as_str(self) -> &'static str {
                match self { $(Code::$name => $text),+ }
            }
        }
    };
}

codes! {
    /// The bytes are not what this frame or route takes.
    BadRequest = "bad_request",
    /// The frame or body is larger than its limit.
    TooLarge = "too_large",
    /// An entry of this type may not be written by this writer.
    EntryNotAllowed = "entry_not_allowed",
    /// `offset` is not the length of the part, or the part takes no appends.
    BadOffset = "bad_offset",
    /// The id belongs to something that is still open, or to something else.
    IdConflict = "id_conflict",
    /// No token, or one that is not valid.
    Unauthorized = "unauthorized",
    /// The token does not carry this right.
    Forbidden = "forbidden",
    /// The session does not exist.
    NoSession = "no_session",
    /// The session is closed and only reads.
    SessionClosed = "session_closed",
    /// The run is not known to the session.
    NoRun = "no_run",
    /// There is nothing at this address.
    NotFound = "not_found",
    /// The method is not offered here.
    NotSupported = "not_supported",
    /// The writer no longer holds the run.
    Fenced = "fenced",
    /// A batch is missing; the reply names the one that is expected.
    Gap = "gap",
    /// The id is older than the memory for repeated requests.
    TooOld = "too_old",
    /// A limit of the session is reached; the message names it.
    LimitReached = "limit_reached",
    /// The agent is at work and the policy is `reject`.
    Busy = "busy",
    /// A person has taken the session over.
    Held = "held",
    /// The session changed while the request was decided, too often.
    Conflict = "conflict",
    /// The write came too late to be safe and was not made.
    ExpiredWrite = "expired_write",
    /// The cursor is not of this log.
    BadCursor = "bad_cursor",
    /// The node has no capacity for this now.
    Overloaded = "overloaded",
    /// The store does not answer; nothing was written.
    Unavailable = "unavailable",
    /// The write may or may not have happened. Repeat it with the same id or batch number.
    Indeterminate = "indeterminate",
    /// The node is shutting down.
    Draining = "draining",
    /// The archive does not have the session as it was written.
    ArchiveBroken = "archive_broken",
    /// A bug of the server.
    Internal = "internal",
}

/// Whose fault an error is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The request must change.
    Client,
    /// Later or elsewhere it may work.
    Overload,
    /// Something this node needs does not work.
    Dependency,
    /// The server is wrong.
    Bug,
}

impl Code {
    /// The HTTP status.
    pub fn status(self) -> u16 {
        match self {
            Code::BadRequest | Code::BadOffset | Code::BadCursor => 400,
            Code::Unauthorized => 401,
            Code::Forbidden | Code::EntryNotAllowed => 403,
            Code::NoSession | Code::NoRun | Code::NotFound => 404,
            Code::NotSupported => 405,
            Code::IdConflict
            | Code::Fenced
            | Code::Gap
            | Code::SessionClosed
            | Code::Conflict
            | Code::Busy
            | Code::Held => 409,
            Code::TooOld => 410,
            Code::TooLarge => 413,
            Code::LimitReached => 429,
            Code::ArchiveBroken | Code::Internal => 500,
            Code::Overloaded | Code::Unavailable | Code::Draining | Code::ExpiredWrite => 503,
            Code::Indeterminate => 504,
        }
    }

    /// Whether the same request may succeed later.
    pub fn is_retryable(self) -> bool {
        match self {
            Code::LimitReached
            | Code::Conflict
            | Code::Busy
            | Code::Held
            | Code::ExpiredWrite
            | Code::Overloaded
            | Code::Unavailable
            | Code::Indeterminate
            | Code::Draining => true,
            Code::BadRequest
            | Code::TooLarge
            | Code::EntryNotAllowed
            | Code::BadOffset
            | Code::IdConflict
            | Code::Unauthorized
            | Code::Forbidden
            | Code::NoSession
            | Code::SessionClosed
            | Code::NoRun
            | Code::NotFound
            | Code::NotSupported
            | Code::Fenced
            | Code::Gap
            | Code::TooOld
            | Code::BadCursor
            | Code::ArchiveBroken
            | Code::Internal => false,
        }
    }

    /// Whether it is certain that nothing was written.
    pub fn has_no_side_effects(self) -> bool {
        !matches!(self, Code::Indeterminate | Code::Internal)
    }

    /// Whose fault it is.
    pub fn kind(self) -> Kind {
        match self {
            Code::LimitReached | Code::Overloaded | Code::Draining | Code::Conflict => Kind::Overload,
            Code::Unavailable | Code::Indeterminate | Code::ExpiredWrite | Code::ArchiveBroken => {
                Kind::Dependency
            }
            Code::Internal => Kind::Bug,
            _ => Kind::Client,
        }
    }
}

/// A typed error as a client sees it: the code, a sentence that says what to do, and facts where there are any.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}: {message}", code.as_str())]
pub struct Fault {
    /// What went wrong.
    pub code: Code,
    /// A sentence for the developer who reads it. Never holds anything of another tenant or of the machine.
    pub message: Cow<'static, str>,
    /// With `gap`: the batch that is expected.
    pub expected: Option<u64>,
}

impl Fault {
    /// A fault without further facts.
    pub fn new(code: Code, message: impl Into<Cow<'static, str>>) -> Self {
        Self { code, message: message.into(), expected: None }
    }

    /// `bad_request`.
    pub fn bad_request(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Code::BadRequest, message)
    }
}

/// The `error` object: fields of an HTTP error body and of an `error` frame.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// What went wrong. A code of a later release is read as [`Code::Internal`]: the flags say what matters of it.
    #[serde(deserialize_with = "code_or_internal")]
    pub code: Code,
    /// What to do.
    pub message: String,
    /// Whether the same request may succeed later.
    pub retryable: bool,
    /// Whether it is certain that nothing was written.
    pub no_side_effects: bool,
    /// With `gap`: the batch that is expected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected: Option<u64>,
    /// When a retry makes sense, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after_ms: Option<u64>,
}

fn code_or_internal<'de, D: Deserializer<'de>>(code: D) -> Result<Code, D::Error> {
    let text = Cow::<str>::deserialize(code)?;
    Ok(Code::ALL.iter().copied().find(|code| code.as_str() == text).unwrap_or(Code::Internal))
}

impl From<Fault> for ErrorBody {
    fn from(fault: Fault) -> Self {
        let passes = matches!(fault.code.kind(), Kind::Overload | Kind::Dependency);
        let after_ms = (passes && fault.code.is_retryable()).then_some(500);
        Self {
            code: fault.code,
            message: fault.message.into_owned(),
            retryable: fault.code.is_retryable(),
            no_side_effects: fault.code.has_no_side_effects(),
            expected: fault.expected,
            after_ms,
        }
    }
}

/// WebSocket close codes. 4400–4499: do not reconnect unchanged. 4500–4599: reconnect and resume.
pub mod close {
    /// The peer broke the protocol.
    pub const PROTOCOL: u16 = 4400;
    /// No token, or not a valid one.
    pub const TOKEN: u16 = 4401;
    /// Not allowed.
    pub const NOT_ALLOWED: u16 = 4403;
    /// A frame beyond its limit.
    pub const TOO_LARGE: u16 = 4413;
    /// A bug of the server.
    pub const INTERNAL: u16 = 4500;
    /// The node is shutting down.
    pub const DRAINING: u16 = 4503;
    /// The socket took no byte, or sent none, for too long.
    pub const STALLED: u16 = 4510;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_on_the_wire_are_unique_and_agree_with_serde() {
        let mut seen = std::collections::HashSet::new();
        for code in Code::ALL {
            assert!(seen.insert(code.as_str()));
            assert_eq!(serde_json::to_string(code).unwrap(), format!("\"{}\"", code.as_str()));
        }
    }

    #[test]
    fn a_code_of_a_later_release_can_be_read() {
        let text = r#"{"code":"out_of_ink","message":"m","retryable":true,"no_side_effects":true}"#;
        let body: ErrorBody = serde_json::from_str(text).unwrap();
        assert_eq!((body.code, body.retryable), (Code::Internal, true));
        let known: ErrorBody = serde_json::from_str(&text.replace("out_of_ink", "too_old")).unwrap();
        assert_eq!(known.code, Code::TooOld);
    }

    #[test]
    fn a_lost_reply_is_never_called_a_clean_failure() {
        assert!(!Code::Indeterminate.has_no_side_effects());
        assert!(Code::Indeterminate.is_retryable());
    }
}
