//! What it takes to build the indexes anew: finding every session, and one node that does it for all.

use crate::WorkItem;
use everthread_protocol::{Millis, SessionKey};

/// Some of the sessions of a store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scanned {
    /// In no order, and perhaps found twice. Those that were there all the time are found.
    pub keys: Vec<SessionKey>,
    /// Where to go on, for the same handle of the store; `None` at the end.
    pub next: Option<String>,
    /// A part of the store did not answer and was passed over.
    pub has_missed: bool,
}

/// Whether a node is to build the indexes anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// It is, and nobody else. The store's clock.
    Yours(Millis),
    /// Another one is at it.
    Anothers,
    /// It was done since it was wanted.
    Done,
}

/// Items of a pool, oldest first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    /// Taken by somebody or not.
    pub items: Vec<WorkItem>,
    /// The ticket to go on after; `None` at the end.
    pub next: Option<String>,
}
