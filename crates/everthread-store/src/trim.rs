//! Trimming: what is old leaves a log, and a text stands for it.
//!
//! The store does not know what the text says. It drops folded records from the beginning of the log, keeps the text in
//! their place, and moves the floor, in one step. Invariant: the floor is 1, or there is a base whose floor it is, and what
//! follows is whole.

use everthread_protocol::{Seq, Version};

/// Folded records that are to be dropped, and what stands for them from then on.
#[derive(Debug, Clone, Copy)]
pub struct Trim<'a> {
    /// The version at which it was found that nobody needs them: a decision made since may.
    pub expect: Version,
    /// The floor when they were read.
    pub from: Seq,
    /// The first seq that is kept, behind the end of some folded record.
    pub floor: Seq,
    /// Bytes of the blocks that are dropped.
    pub bytes: u64,
    /// The session as it stood before the floor.
    pub base: &'a str,
}

/// What became of a trim. All but the first are harmless and changed nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trimmed {
    /// The records are gone and the base stands for them. The version has moved, so that nobody decides on what was read
    /// before; with it the epoch, if the store has restarted since the last write.
    Done,
    /// Somebody else has moved the floor.
    Elsewhere {
        /// Where it is.
        floor: Seq,
    },
    /// The session has been decided upon since, or a new epoch has begun.
    Moved {
        /// The version that it has.
        version: Version,
    },
    /// No folded record ends before the floor that was asked for.
    NoSuchRecord,
}

/// What stands for the part of a log that was dropped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Base {
    /// First seq that is kept.
    pub floor: Seq,
    /// The session as it stood before that.
    pub text: String,
}

impl Trim<'_> {
    /// Whether it drops anything. An error is a bug of the caller.
    pub(crate) fn check(&self) -> Result<(), crate::Error> {
        if self.from < self.floor {
            return Ok(());
        }
        Err(crate::Error::Corrupt(format!("a trim from {} to {}", self.from, self.floor)))
    }
}
