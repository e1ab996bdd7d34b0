//! Planting: a whole session is put into the store in one step, out of records that were staged before.
//!
//! So forks are made, and so archived sessions come back. The opposite is [`Stub`]: log and state leave the store, and what
//! stays is a stub that knows where they are. Invariant: a session is there whole, is a stub, or is not there at all; who
//! reads or writes never finds anything in between, whoever dies on the way.

use crate::{Error, Head};
use everthread_protocol::{Epoch, Millis, Record, Seq, Version};
use std::time::Duration;

/// How long staged records are kept without a plant or another stage.
pub const STAGED_KEPT: Duration = Duration::from_secs(10 * 60);

/// A session as it is to be, besides the records that were staged for it.
///
/// These cover all of `floor..=head`; there are none if the floor lies behind the head. All of them become folded.
#[derive(Debug, Clone, Copy)]
pub struct Plant<'a> {
    /// What must be in its place.
    pub over: Over<'a>,
    /// Known epochs with the first seq of each, oldest first. Over a stub: as the stub has them, and one more if the store has
    /// restarted since the last write.
    pub epochs: &'a [(Epoch, Seq)],
    /// Seq of the last entry that was staged, or was before the floor. A stub must have the same.
    pub head: Seq,
    /// Changes of the state so far. Over a stub: one more than the stub has.
    pub changes: u64,
    /// No fence that is granted from here on is less than or equal to it. Over a stub: as the stub has it.
    pub fence_last: u64,
    /// First seq that is kept.
    pub floor: Seq,
    /// The session as it stood before the floor, if that is not the beginning.
    pub base: Option<&'a str>,
    /// Bytes of blocks of everything that was staged.
    pub folded_bytes: u64,
    /// The core state.
    pub state: &'a str,
    /// When the session is next due.
    pub next_due: Option<Millis>,
    /// Entries that follow at once, raw, in a new epoch that begins with them.
    pub first: Option<First<'a>>,
}

/// What must be in the place of a session that is planted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Over<'a> {
    /// No session, nor one that was there and was deleted since the caller began: what somebody has deleted must not be made
    /// again by somebody slower.
    Nothing {
        /// What [`crate::Store::gone`] said when the caller began.
        gone: Option<Epoch>,
    },
    /// The stub that names this object.
    Stub {
        /// See [`Stub::object`].
        object: &'a str,
    },
}

/// The first entries of a planted session that are its own.
#[derive(Debug, Clone, Copy)]
pub struct First<'a> {
    /// The author as JSON, stored verbatim.
    pub by: &'a str,
    /// The entry array as JSON, stored verbatim. Checked by the caller.
    pub entries: &'a str,
    /// How many it has, at least 1.
    pub count: u32,
}

/// What became of a plant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Planted {
    /// The session is there.
    Done {
        /// Incarnation of its log.
        epoch: Epoch,
        /// Seq of its last entry.
        to: Seq,
        /// Version of its state.
        version: Version,
    },
    /// Something else is in its place than was said. Nothing changed.
    Elsewhere,
}

/// What is left of a session whose log and state leave the store.
#[derive(Debug, Clone, Copy)]
pub struct Stub<'a> {
    /// The version that was read.
    pub expect: Version,
    /// Where the log ended.
    pub head: Seq,
    /// Where log and state are now: a text of the caller's choice.
    pub object: &'a str,
    /// A state that is brief, for lists.
    pub state: &'a str,
    /// When, as the caller says.
    pub at: Millis,
}

/// What became of a stub.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stubbed {
    /// The stub is in the session's place.
    Done,
    /// The session has changed since it was read, is a stub already, or a worker holds a run of it. Nothing changed.
    Elsewhere,
}

/// A session that is a stub.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StubInfo {
    /// Where log and state are.
    pub object: String,
    /// Since when, as [`Stub::at`] said.
    pub at: Millis,
    /// Where its log ends.
    pub head: Head,
}

impl Plant<'_> {
    /// Whether records must have been staged. An error is a bug of the caller.
    pub(crate) fn needs_staged(&self) -> Result<bool, Error> {
        let is_whole = self.floor.0 >= 1 && self.floor <= self.head.next();
        let has_epochs =
            matches!(self.over, Over::Stub { .. }) || !self.epochs.is_empty() || self.first.is_some();
        let has_count = self.first.is_none_or(|first| first.count > 0);
        if !is_whole || !has_epochs || !has_count {
            return Err(Error::Corrupt("a plant that makes no session".to_owned()));
        }
        Ok(self.floor <= self.head)
    }
}

/// First and last seq of records that are to be staged; `None` if there are none. An error is a bug of the caller.
pub(crate) fn range(records: &[Record]) -> Result<Option<(Seq, Seq)>, Error> {
    let ([first, ..], [.., last]) = (records, records) else { return Ok(None) };
    let follows = |pair: &[Record]| pair[0].to.next() == pair[1].from && pair[0].epoch <= pair[1].epoch;
    let is_whole = records.iter().all(|record| record.from.0 > 0 && record.from <= record.to);
    if !is_whole || !records.windows(2).all(follows) {
        return Err(Error::Corrupt("staged records do not follow each other".to_owned()));
    }
    Ok(Some((first.from, last.to)))
}
