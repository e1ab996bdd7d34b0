//! What goes into the store and comes out of it.

use crate::{ArchiveFault, WorkItem};
use bytes::Bytes;
use everthread_protocol::{
    Code, Epoch, Fault, Fence, Level, Millis, Record, RunId, Seq, SessionKey, Version,
};

/// A lease that is longer counts as this long: its end must stay below 2^53.
pub const LEASE_MS_MAX: u64 = 1 << 51;

/// One atomic write.
#[derive(Debug, Clone, Copy)]
pub struct Write<'a> {
    /// The author as JSON, stored verbatim.
    pub by: &'a str,
    /// The run whose worker writes, or none.
    pub run: Option<&'a RunId>,
    /// The entry array as JSON, stored verbatim. Checked by the caller.
    pub entries: &'a str,
    /// How many entries it has. 0 stores no record: only the state changes.
    pub count: u32,
    /// Who numbers this write, if anybody does.
    pub producer: Option<Producer<'a>>,
    /// The run's fence that must be in force.
    pub fence: Option<(&'a RunId, Fence)>,
    /// What changes besides the log.
    pub change: Option<Change<'a>>,
    /// After this time the write is refused as late.
    pub not_after: Option<Millis>,
}

/// Numbers a write so that a repeat gets the first answer.
#[derive(Debug, Clone, Copy)]
pub struct Producer<'a> {
    /// Who numbers: `run:<id>`, or `put:<subject>:<id>` for a single request.
    pub key: &'a str,
    /// Restart of the numbering. A lower one than the store knows is fenced; a higher one begins at batch 1.
    pub incarnation: u64,
    /// From 1, without gaps. Up to the last known one it is a duplicate.
    pub batch: u64,
    /// Kept with the number and handed back to a duplicate.
    pub answer: &'a str,
}

/// What a decision changes besides the log.
#[derive(Debug, Clone, Copy)]
pub struct Change<'a> {
    /// The version that the decision was made at; `None`: the session must be new.
    pub expect: Option<Version>,
    /// The core state from here on.
    pub state: &'a str,
    /// When the session is next due, for rebuilding the deadline index.
    pub next_due: Option<Millis>,
    /// This run gets a new fence, greater than any before it in this session.
    pub grant: Option<&'a RunId>,
    /// With `grant`: the run's lease ends this long after the write, up to [`LEASE_MS_MAX`].
    pub lease_ms: u64,
    /// These runs lose their fences, and their leases with them.
    pub revoke: &'a [RunId],
    /// Refuse if this run's producer has written under its current incarnation.
    pub unwritten: Option<(&'a RunId, u64)>,
}

/// What became of a write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// Incarnation of the log.
    pub epoch: Epoch,
    /// Seq of the last entry of the batch; of the head if it had none.
    pub to: Seq,
    /// When it was written. 0 for a duplicate.
    pub at: Millis,
    /// Version of the state after it.
    pub version: Version,
    /// The fence that was granted, if one was asked for.
    pub fence: Option<Fence>,
    /// Up to here the log is folded: what is raw lies after it.
    pub folded_to: Seq,
    /// It was written before: the last batch of the producer and the answer kept with it.
    pub duplicate: Option<Duplicate>,
}

/// What a producer's earlier write was answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Duplicate {
    /// The last batch that is written.
    pub batch: u64,
    /// The answer kept with it.
    pub answer: String,
}

/// A session as the core needs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loaded {
    /// The core state as last written.
    pub state: String,
    /// Its version: what a decision on it must expect.
    pub version: Version,
    /// The store's clock.
    pub now: Millis,
    /// Where the log ends.
    pub head: Seq,
    /// Known epochs with the first seq of each, oldest first.
    pub epochs: Vec<(Epoch, Seq)>,
    /// Fences in force, sorted by run.
    pub fences: Vec<(RunId, Fence)>,
    /// When the leases of these runs end, on the store's clock, sorted by run. A run with a fence may be missing: then
    /// nothing is known of its lease, as after a restart of an engine that keeps leases in memory.
    pub leases: Vec<(RunId, Millis)>,
    /// Of each run with a fence: incarnation and last batch of its producer, sorted by run; absent if it wrote nothing.
    pub producers: Vec<(RunId, u64, u64)>,
}

/// Leases of one session's runs to be renewed, all alike.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Renewal {
    /// The session.
    pub key: SessionKey,
    /// Its runs, each with the fence that it must still have.
    pub runs: Vec<(RunId, Fence)>,
    /// The leases then last at least this long from now, up to [`LEASE_MS_MAX`].
    pub left_ms: u64,
}

/// Where a session's log ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// Incarnation of the log.
    pub epoch: Epoch,
    /// First seq of that epoch.
    pub since: Seq,
    /// Seq of the last entry.
    pub seq: Seq,
    /// Version of the state.
    pub version: Version,
    /// Fences in force: runs that a worker holds.
    pub active: u32,
    /// Up to here the log is folded: what is raw lies after it.
    pub folded_to: Seq,
    /// First seq that is kept: what was before it is known by the base alone. 1 if nothing was dropped.
    pub floor: Seq,
    /// Bytes of the blocks of all folded records that are kept.
    pub folded_bytes: u64,
    /// It is a stub: log and state are not in the store.
    pub archived: bool,
}

/// Some records of a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// Oldest first, contiguous.
    pub records: Vec<Record>,
    /// Where the log ended when the page was read.
    pub head: Head,
    /// Known epochs with the first seq of each, oldest first.
    pub epochs: Vec<(Epoch, Seq)>,
}

/// An item taken from a pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taken {
    /// Names it in `finish_item`.
    pub ticket: String,
    /// The run.
    pub item: WorkItem,
    /// How many times it was taken, this time included.
    pub deliveries: u32,
}

/// A session whose time has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Due {
    /// The session.
    pub key: SessionKey,
    /// Names the claim.
    pub claim: Millis,
}

/// What a follower wants to hear of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Interest {
    /// Every record.
    Log,
    /// Changes of the state, and deliveries of controls.
    Control,
    /// Members that come, go, or tell something else.
    Presence,
}

/// Keeps a follower or watcher registered.
pub struct Following(Option<Box<dyn FnOnce() + Send + Sync>>);

impl Following {
    /// Calls `end` when dropped.
    pub fn new(end: impl FnOnce() + Send + Sync + 'static) -> Self {
        Self(Some(Box::new(end)))
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        if let Some(end) = self.0.take() {
            end();
        }
    }
}

impl std::fmt::Debug for Following {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Following")
    }
}

/// Why the one write refused. Nothing was written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// There is no such session.
    #[error("no such session")]
    NoSession,
    /// The session exists already.
    #[error("the session exists")]
    Exists,
    /// The writer's fence or incarnation is not in force.
    #[error("the writer no longer holds the run")]
    Fenced,
    /// A batch is missing.
    #[error("batch {expected} is expected")]
    Gap {
        /// The one that comes next.
        expected: u64,
    },
    /// The state is not at the expected version.
    #[error("the state has moved to {current}")]
    Conflict {
        /// Where it is.
        current: Version,
    },
    /// The run has written something meanwhile.
    #[error("the run has written")]
    HasWritten,
    /// It is later than `not_after`.
    #[error("too late")]
    Late,
    /// Log and state of the session are not in the store.
    #[error("the session is archived")]
    Archived,
    /// What was staged for the session is gone, or is not all there.
    #[error("what was staged is not all there")]
    NotStaged,
    /// Acknowledgements of this level are not to be had here.
    #[error("no write can be acknowledged as {0} here")]
    NoLevel(Level),
}

/// Why an operation of the store failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The write was refused.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The store does not answer; nothing was written.
    #[error("the store is unavailable: {0}")]
    Unavailable(String),
    /// This node has no capacity for it now; nothing was asked of the store.
    #[error("no capacity for it now: {0}")]
    Overloaded(String),
    /// The store did not answer in time; the write may have happened.
    #[error("no answer from the store: {0}")]
    Indeterminate(String),
    /// The store holds what it cannot have written.
    #[error("the store holds broken data: {0}")]
    Corrupt(String),
    /// The archive behind the store failed.
    #[error("the archive: {0}")]
    Archive(#[from] ArchiveFault),
}

impl Error {
    /// The error as a client may see it.
    pub fn fault(&self) -> Fault {
        let (code, message) = match self {
            Error::Refused(Refusal::NoSession) => (Code::NoSession, "there is no such session"),
            Error::Refused(Refusal::Exists) => (Code::IdConflict, "the session exists already"),
            Error::Refused(Refusal::Fenced) => (Code::Fenced, "this worker no longer holds the run"),
            Error::Refused(Refusal::Gap { expected }) => {
                let message = format!("batch {expected} is expected: send everything from there again");
                return Fault { expected: Some(*expected), ..Fault::new(Code::Gap, message) };
            }
            Error::Refused(Refusal::Conflict { .. } | Refusal::HasWritten) => {
                (Code::Conflict, "the session changed meanwhile: try again")
            }
            Error::Refused(Refusal::Late) => (Code::ExpiredWrite, "the write came too late: try again"),
            Error::Refused(Refusal::Archived) => (
                Code::Unavailable,
                "the session is archived and this node has no archive configured: start it with --archive",
            ),
            Error::Refused(Refusal::NotStaged) => {
                (Code::Unavailable, "it took too long to put the session together: try again")
            }
            Error::Refused(Refusal::NoLevel(level)) => {
                let why = match level {
                    Level::Accepted => "everything is acknowledged so",
                    Level::Replicated => "the store has no replica",
                    Level::Fsynced => "the store cannot tell what is on its disk",
                };
                return Fault::new(
                    Code::NotSupported,
                    format!("`ack` `{level}` is not to be had here: {why}"),
                );
            }
            Error::Unavailable(_) => (
                Code::Unavailable,
                "the store does not answer for this now, and nothing was written: try again",
            ),
            Error::Overloaded(_) => (Code::Overloaded, "the node has no capacity for this now: try again"),
            Error::Indeterminate(_) => {
                (Code::Indeterminate, "the write may or may not have happened: repeat it with the same id")
            }
            Error::Corrupt(_) => (Code::Internal, "the server cannot read this session"),
            Error::Archive(fault) => return fault.fault(),
        };
        Fault::new(code, message)
    }
}

/// The stored bytes of a record: what only the store knows, then [`everthread_protocol::record::stored_tail`].
pub(crate) fn stored_record(epoch: Epoch, from: Seq, at: Millis, tail: &[u8]) -> Bytes {
    let mut out = format!("[\"{epoch}\",{from},{}", at.0).into_bytes();
    out.extend_from_slice(tail);
    out.into()
}
