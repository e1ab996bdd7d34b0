//! Whole sessions: as lists show them, and what is left of one that was deleted.

use crate::Head;
use everthread_protocol::{Epoch, Seq};
use std::time::Duration;

/// How long it is remembered that there was a session, so that one made anew with its id gets greater numbers whatever the
/// clock says.
pub const TOMBSTONE_KEPT: Duration = Duration::from_secs(24 * 60 * 60);

/// A session as lists need it: where it stands, without its log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Where the log ends.
    pub head: Head,
    /// Known epochs with the first seq of each, oldest first.
    pub epochs: Vec<(Epoch, Seq)>,
    /// The core state as last written.
    pub state: String,
}

/// A session that was there until it was deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deleted {
    /// Incarnation of its log.
    pub epoch: Epoch,
    /// Seq of its last entry.
    pub head: Seq,
}
