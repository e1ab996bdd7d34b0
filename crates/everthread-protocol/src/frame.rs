//! Frames between clients and the edge: `GET /v1/connect`, subprotocol `everthread.v1`.

use crate::control::{Mode, WhenBusy};
use crate::entry::{ControlKind, ControlOutcome, RefusalReason, Target};
use crate::error::{ErrorBody, Fault};
use crate::id::{
    AgentName, ControlId, DeviceId, MessageId, RequestId, RunId, SessionId, SubjectId, WorkerId,
};
use crate::level::Level;
use crate::limits::{FOLD_MS_MAX, FRAME_BYTES_MAX, HISTORY_MESSAGES_MAX};
use crate::position::{Cursor, Epoch, Seq};
use crate::record::{Author, AuthorKind, Block};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use std::borrow::Cow;

mod feed;
mod from;
mod people;
mod request;

pub use feed::*;
pub use from::From;
pub use people::*;
pub use request::{Hold, Regenerate, Release, Select};

/// The WebSocket subprotocol of clients and workers.
pub const SUBPROTOCOL: &str = "everthread.v1";
/// A subprotocol entry with this prefix carries the token, for browsers, which cannot set headers.
pub const TOKEN_SUBPROTOCOL_PREFIX: &str = "everthread.token.";

/// Number of an attachment within its connection, from 1.
pub type AttachmentId = u32;

/// A frame from a client.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "t", rename_all = "snake_case")]
pub enum ClientFrame<'a> {
    /// First frame.
    Hello(Hello),
    /// Follow a session.
    Attach(Attach),
    /// Stop following it.
    Detach(Detach),
    /// Take the session over from its agents.
    Hold(Hold),
    /// Hand it back.
    Release(Release),
    /// Have a run done again.
    Regenerate(Regenerate),
    /// Make another branch the current one.
    Select(Select),
    /// Read older messages.
    History(History),
    /// Follow the sessions of the tenant.
    Watch(Watch),
    /// No longer.
    Unwatch(Unwatch),
    /// Note how far this device has read.
    Ack(Ack),
    /// Answer to `ping`.
    Pong {},
    /// Write input or events. It carries its own `t`: a tagged enum would copy the entries.
    #[serde(skip)]
    Put(Put<'a>),
    /// Ask something of a run. It carries its own `t`, too.
    #[serde(skip)]
    Control(Control<'a>),
    /// Tell the others something of oneself. It carries its own `t`, too.
    #[serde(skip)]
    Presence(SetPresence<'a>),
}

/// First frame of a client.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hello {
    /// Correlates `welcome`.
    pub id: RequestId,
    /// Unless it came with the handshake.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// Name and version of the client software, for logs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<String>,
    /// Stable identity of the device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<DeviceId>,
    /// Who is speaking. Only the development token lets the client say so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<SubjectId>,
    /// In which role: `user` if absent. Only the development token lets the client say so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<AuthorKind>,
}

/// Follow a session.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Attach {
    /// Correlates `attached`.
    pub id: RequestId,
    /// Which session.
    pub session: SessionId,
    /// Where to begin.
    pub from: From,
    /// Be present, and learn who else is.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub presence: bool,
    /// At most one `entries` frame in so many milliseconds, into which what was written meanwhile is folded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fold_ms: Option<u64>,
}

/// Stop following a session.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Detach {
    /// Correlates `ok`.
    pub id: RequestId,
    /// Which attachment.
    pub attachment: AttachmentId,
}

/// The `t` of a `put`.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PutTag {
    /// The only one.
    #[default]
    Put,
}

/// Write to a session.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Put<'a> {
    /// Always `put`.
    #[serde(default)]
    pub t: PutTag,
    /// Correlates `ok`, and makes a repeat harmless for ten minutes: use a new ULID per write.
    pub id: RequestId,
    /// To which session.
    pub attachment: AttachmentId,
    /// `message.put` with role `user` asks this agent, or the session's own, to work.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<AgentName>,
    /// What happens if that agent is at work; else what the session's `meta.when_busy` says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub when_busy: Option<WhenBusy>,
    /// With one `message.put`: it takes the place of this message (`message` or `run/message`) on a branch of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replaces: Option<String>,
    /// How sure the answer is to be; as the deployment has it if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ack: Option<Level>,
    /// Either one `message.put`, or one `state.set`, or events and `x-` types.
    #[serde(borrow)]
    pub entries: &'a RawValue,
}

/// The `t` of a `control`.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ControlTag {
    /// The only one.
    #[default]
    Control,
}

/// Ask something of a run.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Control<'a> {
    /// Always `control`.
    #[serde(default)]
    pub t: ControlTag,
    /// Id of the control and correlation of its `receipt`s. The same id again gets the first outcome.
    pub id: ControlId,
    /// In which session.
    pub attachment: AttachmentId,
    /// What.
    pub kind: ControlKind,
    /// Of whom.
    pub target: Target,
    /// With `steer`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<Mode>,
    /// With `steer`, `interrupt` and `answer`: see [`crate::control::What::read`].
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub payload: Option<&'a RawValue>,
    /// How long to wait for the outcome; each kind has a default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_ms: Option<u64>,
    /// How sure the first receipt is to be; as the deployment has it if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ack: Option<Level>,
}

/// Read older messages.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct History {
    /// Correlates `history`.
    pub id: RequestId,
    /// Of which session.
    pub attachment: AttachmentId,
    /// Messages that began before this seq; the newest if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<Seq>,
    /// How many messages, 1 to 200.
    #[serde(default = "history_limit")]
    pub limit: usize,
}

fn history_limit() -> usize {
    50
}

#[derive(Deserialize)]
struct Peek<'a> {
    #[serde(borrow)]
    t: Cow<'a, str>,
}

/// The type of a frame to the server, whose size has a limit.
pub fn frame_type(bytes: &[u8]) -> Result<Cow<'_, str>, Fault> {
    if bytes.len() > FRAME_BYTES_MAX {
        let message = format!("a frame has at most {FRAME_BYTES_MAX} bytes");
        return Err(Fault::new(crate::Code::TooLarge, message));
    }
    kind(bytes)
}

/// The type of a frame, for both ends.
pub fn kind(bytes: &[u8]) -> Result<Cow<'_, str>, Fault> {
    let peek: Peek<'_> = parse(bytes)?;
    Ok(peek.t)
}

pub(crate) fn parse<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, Fault> {
    serde_json::from_slice(bytes).map_err(|e| Fault::bad_request(e.to_string()))
}

impl<'a> ClientFrame<'a> {
    /// Reads a frame.
    pub fn decode(bytes: &'a [u8]) -> Result<ClientFrame<'a>, Fault> {
        match &*frame_type(bytes)? {
            "put" => return parse(bytes).map(ClientFrame::Put),
            "control" => return parse(bytes).map(ClientFrame::Control),
            "presence" => return SetPresence::decode(bytes).map(ClientFrame::Presence),
            _ => {}
        }
        let frame = parse(bytes)?;
        match &frame {
            ClientFrame::History(History { limit, .. }) if !(1..=HISTORY_MESSAGES_MAX).contains(limit) => {
                Err(Fault::bad_request(format!("limit is 1 to {HISTORY_MESSAGES_MAX}")))
            }
            ClientFrame::Attach(Attach { fold_ms: Some(fold_ms), .. }) if *fold_ms > FOLD_MS_MAX => {
                Err(Fault::bad_request(format!("fold_ms is 0 to {FOLD_MS_MAX}")))
            }
            ClientFrame::Watch(watch) => watch.check().map(|()| frame),
            _ => Ok(frame),
        }
    }

    /// The frame as text.
    pub fn encode(&self) -> String {
        match self {
            ClientFrame::Put(put) => encode(put),
            ClientFrame::Control(control) => encode(control),
            ClientFrame::Presence(presence) => encode(presence),
            other => encode(other),
        }
    }
}

/// Frames are plain structs with text keys: they always encode.
pub(crate) fn encode(frame: &impl Serialize) -> String {
    serde_json::to_string(frame).unwrap_or_default()
}

/// A frame to a client, except `entries`, whose bytes are made once per record and shared: see
/// [`crate::Record::frame_suffix`].
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "t", rename_all = "snake_case")]
pub enum ServerFrame<'a> {
    /// Answer to `hello`.
    Welcome(Welcome),
    /// Answer to `attach`.
    Attached(Attached),
    /// The folded session up to `seq`: replaces what the client holds. Read apart: a tagged enum cannot lend out raw bytes.
    #[serde(skip_deserializing)]
    Snapshot(Snapshot<'a>),
    /// The attachment has everything there is.
    Live {
        /// Which attachment.
        attachment: AttachmentId,
        /// Up to where.
        seq: Seq,
    },
    /// The attachment is behind and gets the log folded.
    Lag {
        /// Which attachment.
        attachment: AttachmentId,
        /// By how many entries.
        behind: u64,
    },
    /// What the client holds is not of this log; a snapshot follows.
    Reset {
        /// Which attachment.
        attachment: AttachmentId,
        /// Why.
        reason: ResetReason,
    },
    /// The attachment is over, and its number is not used again.
    Gone {
        /// Which attachment.
        attachment: AttachmentId,
        /// Why.
        reason: GoneReason,
    },
    /// A request without an answer of its own is done.
    Ok(Done),
    /// A request failed.
    Error(ErrorFrame),
    /// What became of a control.
    Receipt(Receipt),
    /// A page of older messages. Read apart, too.
    #[serde(skip_deserializing)]
    History(HistoryPage<'a>),
    /// What the sessions of the tenant are doing.
    Sessions(Sessions),
    /// Who is present.
    Presence(Presence),
    /// Answer with `pong`.
    Ping {},
    /// The server closes the connection.
    Bye(Bye),
}

impl<'a> ServerFrame<'a> {
    /// Reads a frame other than `entries`, which is [`Entries`]. A type that this release does not know is an error: skip
    /// it, see [`kind`].
    pub fn decode(bytes: &'a [u8]) -> Result<ServerFrame<'a>, Fault> {
        match &*kind(bytes)? {
            "snapshot" => parse(bytes).map(ServerFrame::Snapshot),
            "history" => parse(bytes).map(ServerFrame::History),
            _ => parse(bytes),
        }
    }

    /// The frame as text.
    pub fn encode(&self) -> String {
        encode(self)
    }
}

/// Answer to `hello`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Welcome {
    /// Of the `hello`.
    pub id: RequestId,
    /// This connection, for logs.
    pub connection: String,
    /// The node that serves it.
    pub node: String,
    /// The store's clock, ms since the Unix epoch: make ULIDs by it.
    pub now: u64,
    /// The server pings after this much silence and closes after twice as much.
    pub heartbeat_ms: u64,
    /// Bytes of a frame.
    pub frame_bytes_max: usize,
    /// Bytes of the entries of one write.
    pub block_bytes_max: usize,
}

/// Answer to `attach`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Attached {
    /// Of the `attach`.
    pub id: RequestId,
    /// Its number in this connection.
    pub attachment: AttachmentId,
    /// Which session.
    pub session: SessionId,
    /// Incarnation of the log.
    pub epoch: Epoch,
    /// Seq of the last entry.
    pub head: Seq,
    /// Whether the client's cursor was taken. If not, `reset` and `snapshot` follow.
    pub resumed: bool,
    /// Up to where the connection's device has read, if it has a durable cursor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub acked: Option<Seq>,
    /// With `acked`: messages of others that began after it, at most [`crate::limits::UNREAD_MAX`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unread: Option<u64>,
}

/// Why a client's state is replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ResetReason {
    /// The cursor is not of this log, or the log lost what it points at.
    Epoch,
    /// The cursor is older than what is kept.
    Retention,
}

/// Why an attachment is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GoneReason {
    /// The session was deleted.
    Deleted,
}

/// A session as it stands at `seq`.
#[derive(Debug, Serialize, Deserialize)]
pub struct Snapshot<'a> {
    /// Which attachment.
    pub attachment: AttachmentId,
    /// Incarnation of the log.
    pub epoch: Epoch,
    /// Entries up to here are in it.
    pub seq: Seq,
    /// First seq of this epoch.
    pub since: Seq,
    /// What is older than this is no longer kept.
    pub floor: Seq,
    /// The session without its messages: see `View` in docs/PROTOCOL.md.
    #[serde(borrow)]
    pub state: &'a RawValue,
    /// The last messages, whole.
    #[serde(borrow)]
    pub messages: &'a RawValue,
    /// Whether there are older messages: ask for them with `history`.
    pub more: bool,
}

/// A page of older messages.
#[derive(Debug, Serialize, Deserialize)]
pub struct HistoryPage<'a> {
    /// Of the `history`.
    pub id: RequestId,
    /// Oldest first.
    #[serde(borrow)]
    pub messages: &'a RawValue,
    /// Whether there are older ones.
    pub more: bool,
}

/// A request is done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {
    /// Of the request.
    pub id: RequestId,
    /// The cursor after what was written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<Cursor>,
    /// The message that was written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<MessageId>,
    /// The run that was requested.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<RunId>,
    /// The control that `when_busy` made of the input: its outcome is in the log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub control: Option<ControlId>,
    /// The same id was written before; this is what it got then.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub duplicate: bool,
    /// How sure this is, if it was asked or is more than `accepted`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ack: Option<Level>,
}

/// A request failed, or a frame could not be read (then without `id`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorFrame {
    /// Of the request, if it could be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// What went wrong.
    #[serde(flatten)]
    pub error: ErrorBody,
}

/// What became of a control.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipt {
    /// The request.
    pub control: ControlId,
    /// How far it is.
    #[serde(flatten)]
    pub stage: Stage,
    /// The seq after which it holds.
    pub seq: Seq,
    /// Of the first receipt: how sure it is, if it was asked or is more than `accepted`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ack: Option<Level>,
}

/// Stages of a control.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "stage", rename_all = "snake_case")]
pub enum Stage {
    /// It is in the log and will have an outcome.
    Accepted,
    /// A worker has it.
    Delivered {
        /// Which.
        worker: WorkerId,
    },
    /// It has its outcome.
    Settled {
        /// Which.
        outcome: ControlOutcome,
        /// With `refused`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<RefusalReason>,
        /// The run it applied to. Of a `steer` that was not consumed, the run that has its message as input.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        run: Option<RunId>,
        /// With `already_answered`: who was first.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        answered_by: Option<Author>,
    },
}

/// The server closes the connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bye {
    /// The close code that follows.
    pub code: u16,
    /// Whether to come back.
    pub reconnect: bool,
    /// After how long.
    pub after_ms: u64,
}

/// An `entries` frame as a client reads it.
#[derive(Debug, Deserialize)]
pub struct Entries<'a> {
    /// Which attachment.
    pub attachment: AttachmentId,
    /// Incarnation of the log.
    pub epoch: Epoch,
    /// First seq of that epoch.
    pub since: Seq,
    /// Seq of the first entry.
    pub from: Seq,
    /// Seq of the last entry.
    pub to: Seq,
    /// The record's blocks.
    #[serde(borrow)]
    pub blocks: Vec<Block<'a>>,
}

impl<'a> Entries<'a> {
    /// Reads a frame whose type is `entries`.
    pub fn decode(bytes: &'a [u8]) -> Result<Entries<'a>, Fault> {
        parse(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn again(text: &str) -> String {
        ClientFrame::decode(text.as_bytes()).unwrap().encode()
    }

    #[test]
    fn client_frames_survive_the_wire() {
        for text in [
            r#"{"t":"hello","id":"1","token":"dev","device":"d"}"#,
            r#"{"t":"attach","id":"1","session":"s","from":"start"}"#,
            r#"{"t":"attach","id":"1","session":"s","from":"12.7"}"#,
            r#"{"t":"attach","id":"1","session":"s","from":{"recent":5}}"#,
            r#"{"t":"put","id":"1","attachment":1,"entries":[{"type":"x-a", "n":1.0}]}"#,
            r#"{"t":"control","id":"1","attachment":1,"kind":"cancel","target":{"run":"r"}}"#,
            r#"{"t":"history","id":"1","attachment":1,"before":9,"limit":3}"#,
            r#"{"t":"attach","id":"1","session":"s","from":"device","presence":true}"#,
            r#"{"t":"attach","id":"1","session":"s","from":"start","fold_ms":40}"#,
            r#"{"t":"ack","attachment":1,"seq":9}"#,
            r#"{"t":"presence","attachment":1,"data":{"typing": true}}"#,
            r#"{"t":"presence","attachment":1}"#,
            r#"{"t":"pong"}"#,
        ] {
            assert_eq!(again(text), text);
        }
    }

    #[test]
    fn a_frame_with_an_unknown_field_or_type_names_it() {
        for (text, names) in [
            (r#"{"t":"attach","id":"1","session":"s","from":"start","fold":1}"#, "fold"),
            (r#"{"t":"put","id":"1","attachment":1,"entries":[],"extra":1}"#, "extra"),
            (r#"{"t":"nope"}"#, "nope"),
            (r#"{"t":"attach","id":"1","session":"a b","from":"start"}"#, "a b"),
            (r#"{"t":"attach","id":"1","session":"s","from":{"recent":1001}}"#, "1000"),
            (r#"{"t":"attach","id":"1","session":"s","from":"start","fold_ms":501}"#, "fold_ms"),
            (r#"{"t":"history","id":"1","attachment":1,"limit":0}"#, "limit"),
            (r#"{"t":"ack","id":"1","attachment":1,"seq":9}"#, "id"),
            (r#"{"t":"presence","attachment":1,"data":[]}"#, "object"),
            (r#"{"t":"presence","attachment":1,"data":{"a":1,"a":2}}"#, "data"),
            (r#"{"t":"presence","attachment":1,"typing":true}"#, "typing"),
        ] {
            let fault = ClientFrame::decode(text.as_bytes()).unwrap_err();
            assert!(fault.message.contains(names), "{text}: {fault}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_frame_or_a_fault(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            drop(ClientFrame::decode(&bytes));
        }

        #[test]
        fn a_damaged_frame_is_a_frame_or_a_fault(at in 0usize..70, byte: u8) {
            let mut bytes = br#"{"t":"put","id":"1","attachment":1,"entries":[{"type":"x-a","n":1}]}"#.to_vec();
            let at = at % bytes.len();
            bytes[at] = byte;
            drop(ClientFrame::decode(&bytes));
        }
    }
}
