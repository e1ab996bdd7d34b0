//! Frames about people: how far a device has read, and who is present.

use super::{AttachmentId, parse};
use crate::entry::Object;
use crate::error::Fault;
use crate::id::{DeviceId, SubjectId};
use crate::limits::PRESENCE_DATA_BYTES_MAX;
use crate::position::{Millis, Seq};
use crate::record::AuthorKind;
use crate::scan;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

/// Note how far this device has read. It gets no answer, unless it is refused.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ack {
    /// Of which session.
    pub attachment: AttachmentId,
    /// Everything up to here is read.
    pub seq: Seq,
}

/// The `t` of a `presence`.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PresenceTag {
    /// The only one.
    #[default]
    Presence,
}

/// Tell the others something of oneself, or ask for everybody. It gets no answer of its own.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetPresence<'a> {
    /// Always `presence`.
    #[serde(default)]
    pub t: PresenceTag,
    /// In which session: attached with `presence`.
    pub attachment: AttachmentId,
    /// What they are told from here on: an object, `{}` for nothing. Without it the whole list is sent again.
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub data: Option<&'a RawValue>,
}

impl<'a> SetPresence<'a> {
    /// Reads a frame whose type is `presence`.
    pub(super) fn decode(bytes: &'a [u8]) -> Result<Self, Fault> {
        let set: Self = parse(bytes)?;
        let Some(data) = set.data.map(RawValue::get) else { return Ok(set) };
        if data.len() > PRESENCE_DATA_BYTES_MAX {
            let message = format!("data has at most {PRESENCE_DATA_BYTES_MAX} bytes");
            return Err(Fault::new(crate::Code::TooLarge, message));
        }
        scan::value(data.as_bytes()).map_err(|e| Fault::bad_request(format!("data: {e}")))?;
        if !data.starts_with('{') {
            return Err(Fault::bad_request("data is an object"));
        }
        Ok(set)
    }
}

/// Who is present: everybody (`members`, or `count` where they are many), or what is different from the frame before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Presence {
    /// Which attachment.
    pub attachment: AttachmentId,
    /// Counts the frames of the attachment, from 1.
    pub n: u64,
    /// Everybody.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub members: Option<Vec<Member>>,
    /// How many there are, where they are more than [`crate::limits::PRESENCE_LIST_MAX`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
    /// Who has come.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub joined: Vec<Member>,
    /// Who tells something else than before.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub changed: Vec<Member>,
    /// Who has gone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left: Vec<String>,
}

/// Somebody who is present.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Names it within the session: the same as long as the same device is there. Opaque.
    pub member: String,
    /// In which role.
    pub kind: AuthorKind,
    /// Who it is.
    pub subject: SubjectId,
    /// On which device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<DeviceId>,
    /// What it tells of itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<Object>,
    /// Since when it is there.
    pub since: Millis,
}
