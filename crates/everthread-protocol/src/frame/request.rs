//! Requests that rule a session: taking it over, having a run done again, choosing a branch.

use super::AttachmentId;
use crate::entry::Object;
use crate::id::{AgentName, RequestId, RunId};
use serde::{Deserialize, Serialize};

/// Take the session over from its agents.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hold {
    /// Correlates `ok`, and makes a repeat harmless.
    pub id: RequestId,
    /// Which session.
    pub attachment: AttachmentId,
    /// For people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// Hand the session back to its agents.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Release {
    /// Correlates `ok`, and makes a repeat harmless.
    pub id: RequestId,
    /// Which session.
    pub attachment: AttachmentId,
    /// For people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Who goes on; else the session's own agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<AgentName>,
    /// `false`: nobody does, until there is new input.
    #[serde(default = "yes", skip_serializing_if = "is_yes")]
    pub run: bool,
}

/// Have a run done again, on a branch of its own.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Regenerate {
    /// Correlates `ok`, and makes a repeat harmless.
    pub id: RequestId,
    /// Of which session.
    pub attachment: AttachmentId,
    /// The run; it must have ended.
    pub run: RunId,
    /// Passed to the worker; else what the run was passed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub params: Option<Object>,
}

/// Make another branch the current one, for everybody.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Select {
    /// Correlates `ok`, and makes a repeat harmless.
    pub id: RequestId,
    /// Of which session.
    pub attachment: AttachmentId,
    /// The newest branch through this message: `message` or `run/message`.
    pub message: String,
}

fn yes() -> bool {
    true
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_yes(value: &bool) -> bool {
    *value
}
