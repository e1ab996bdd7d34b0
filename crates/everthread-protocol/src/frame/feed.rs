//! Frames of the feed: what the sessions of a tenant are doing.

use super::parse;
use crate::entry::{Object, Outcome};
use crate::error::Fault;
use crate::id::{AgentName, ApprovalId, RequestId, RunId, SessionId};
use crate::limits::FEED_SESSIONS_MAX;
use crate::position::{Millis, Seq};
use serde::{Deserialize, Serialize};

/// Follow the sessions of the tenant. Another one takes the place of the first.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Watch {
    /// Correlates `ok`.
    pub id: RequestId,
    /// How many of those that were active last are told of at the beginning.
    #[serde(default = "recent")]
    pub recent: usize,
}

impl Watch {
    /// Whether what was asked for can be had.
    pub fn check(&self) -> Result<(), Fault> {
        check_recent(self.recent)
    }
}

/// Whether so many sessions may be asked for.
pub fn check_recent(recent: usize) -> Result<(), Fault> {
    if recent > FEED_SESSIONS_MAX {
        return Err(Fault::bad_request(format!("recent is at most {FEED_SESSIONS_MAX}")));
    }
    Ok(())
}

/// How many sessions one is told of who does not say.
pub fn recent() -> usize {
    50
}

/// No longer.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Unwatch {
    /// Correlates `ok`.
    pub id: RequestId,
}

/// What sessions are doing: a beginning (`sessions`), or what has changed since the frame before.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sessions {
    /// Counts the frames since `watch`, from 1.
    pub n: u64,
    /// Those that were active last: whatever was told before does not count any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sessions: Option<Vec<Summary>>,
    /// Those that are different, or new, each as a whole.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub changed: Vec<Summary>,
    /// Those that were deleted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gone: Vec<SessionId>,
}

impl Sessions {
    /// Reads a frame whose type is `sessions`.
    pub fn decode(bytes: &[u8]) -> Result<Sessions, Fault> {
        parse(bytes)
    }
}

/// A session as lists show it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Which.
    pub session: SessionId,
    /// When something was last decided in it.
    pub active_at: Millis,
    /// What the application keeps with it.
    pub meta: Object,
    /// Where its log ended then.
    pub seq: Seq,
    /// Runs that are open.
    pub runs: Vec<RunBrief>,
    /// What they wait for people for.
    pub approvals: Vec<ApprovalBrief>,
    /// The newest run that has ended, for ten minutes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<EndedBrief>,
    /// Somebody has taken it over.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub held: bool,
    /// It only reads.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub closed: bool,
    /// Up to where the device that asks has read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub acked: Option<Seq>,
    /// How many entries come after that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unread_entries: Option<u64>,
}

/// An open run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunBrief {
    /// Which.
    pub run: RunId,
    /// Whose.
    pub agent: AgentName,
    /// `requested`, `active` or `suspended`.
    pub status: String,
}

/// An approval without an outcome.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApprovalBrief {
    /// Of which run.
    pub run: RunId,
    /// Which.
    pub approval: ApprovalId,
    /// When it counts as not given.
    pub expires: Millis,
}

/// A run that has ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndedBrief {
    /// Which.
    pub run: RunId,
    /// How.
    pub outcome: Outcome,
    /// When.
    pub at: Millis,
}
