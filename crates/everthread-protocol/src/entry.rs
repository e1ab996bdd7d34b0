//! Entries: the elements of the log, typed.
//!
//! Writers are strict, readers tolerant: [`check`] and the `strict_…` readers refuse unknown types and fields before
//! anything is stored, while [`Entry::read`] skips fields it does not know and turns whole entries it does not know into
//! [`Entry::Other`], to be forwarded and folded untouched.

use crate::control::{Mode, Verdict};
use crate::error::{Code, Fault};
use crate::id::{AgentName, ApprovalId, ControlId, MessageId, PartId, RunId, WorkerId};
use crate::limits::{BLOCK_BYTES_MAX, EVENT_NAME_BYTES_MAX};
use crate::plain::Plain;
use crate::position::{Millis, Seq};
use crate::scan::{RawEntries, RawEntry};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};
use std::borrow::Cow;

/// A JSON object.
pub type Object = Map<String, Value>;

/// One element of the log.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type")]
pub enum Entry {
    /// The session begins.
    #[serde(rename = "session.opened")]
    SessionOpened {
        /// What the application keeps with the session; `agent` and `title` are read by Everthread.
        #[serde(default)]
        meta: Object,
    },
    /// The session's meta changes: a merge patch, `null` removes a key.
    #[serde(rename = "session.updated")]
    SessionUpdated {
        /// Keys to set or remove.
        patch: Object,
    },
    /// From here the session only reads.
    #[serde(rename = "session.closed")]
    SessionClosed {
        /// For people.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
    /// A whole message: user input, an operator's message, a tool's result.
    #[serde(rename = "message.put")]
    MessagePut {
        /// Id of the message, unique in the session.
        message: MessageId,
        /// Who speaks.
        role: Role,
        /// Its content.
        parts: Vec<PutPart>,
        /// Which message it answers: `message` or `run/message`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reply_to: Option<String>,
    },
    /// Somebody wants an agent to work.
    #[serde(rename = "run.requested")]
    RunRequested {
        /// Id of the run, unique in the session.
        run: RunId,
        /// Which agent is to do it.
        agent: AgentName,
        /// Messages that are its input: `message` or `run/message`.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        input: Vec<String>,
        /// The run that started it, if one did.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        parent_run: Option<RunId>,
        /// Passed to the worker.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        params: Option<Object>,
    },
    /// A worker holds the run.
    #[serde(rename = "run.started")]
    RunStarted {
        /// The run.
        run: RunId,
        /// Who holds it.
        worker: WorkerId,
        /// From 1; one more for each worker that got the run.
        attempt: u32,
    },
    /// The run went back to its pool: its worker died or did not want it.
    #[serde(rename = "run.returned")]
    RunReturned {
        /// The run.
        run: RunId,
        /// Why, as a word: `worker_lost`, `declined`.
        reason: String,
    },
    /// The run waits for people; no worker holds it meanwhile.
    #[serde(rename = "run.suspended")]
    RunSuspended {
        /// The run.
        run: RunId,
        /// What it waits for; all of them.
        approvals: Vec<Approval>,
    },
    /// An approval has its one outcome.
    #[serde(rename = "approval.settled")]
    ApprovalSettled {
        /// The run that asked.
        run: RunId,
        /// The approval.
        approval: ApprovalId,
        /// Its outcome.
        verdict: Verdict,
        /// Who answered, as in a block's `by`; nobody did if it expired.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        answered_by: Option<Value>,
        /// The answer itself, if it is more than yes or no.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        value: Option<Value>,
    },
    /// Every approval has its outcome: the run waits for a worker, any one.
    #[serde(rename = "run.resumed")]
    RunResumed {
        /// The run.
        run: RunId,
    },
    /// The run's own progress.
    #[serde(rename = "run.step")]
    RunStep {
        /// `reset` drops the messages and parts started since the last `start`.
        phase: Phase,
        /// For people.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        name: Option<String>,
    },
    /// The run is over; everything it left open is closed by this.
    #[serde(rename = "run.ended")]
    RunEnded {
        /// The run.
        run: RunId,
        /// How it ended.
        outcome: Outcome,
        /// Why, as a word: `worker_lost`, `cancel`, `parent_ended`, ….
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
        /// The worker did not end it; Everthread did.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        forced: bool,
        /// With `failed`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        error: Option<RunError>,
        /// Tokens and the like, as the worker counts them.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        usage: Option<Object>,
    },
    /// A streamed message begins.
    #[serde(rename = "message.start")]
    MessageStart {
        /// Id of the message, unique in the run.
        message: MessageId,
        /// Who speaks.
        role: Role,
    },
    /// A streamed message is over; parts of it that are open are closed by this.
    #[serde(rename = "message.end")]
    MessageEnd {
        /// The message.
        message: MessageId,
        /// How it ended.
        status: MessageStatus,
        /// Tokens and the like.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        usage: Option<Object>,
    },
    /// A part begins.
    #[serde(rename = "part.start")]
    PartStart {
        /// Its message.
        message: MessageId,
        /// Id of the part, unique in the message.
        part: PartId,
        /// What it is.
        kind: PartKind,
        /// Tool name, call id, media type and the like.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        attrs: Option<Object>,
    },
    /// Text is added: `value[..offset] + text`.
    #[serde(rename = "part.append")]
    PartAppend {
        /// Its message.
        message: MessageId,
        /// The part.
        part: PartId,
        /// UTF-8 bytes of the value before this text.
        offset: u64,
        /// What is added.
        text: String,
    },
    /// The part's value is replaced.
    #[serde(rename = "part.set")]
    PartSet {
        /// Its message.
        message: MessageId,
        /// The part.
        part: PartId,
        /// The new value.
        value: Value,
    },
    /// The part is over.
    #[serde(rename = "part.end")]
    PartEnd {
        /// Its message.
        message: MessageId,
        /// The part.
        part: PartId,
        /// How it ended.
        status: PartStatus,
        /// Its final value, if it differs from what was appended.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        value: Option<Value>,
    },
    /// Somebody asks something of a run.
    #[serde(rename = "control.requested")]
    ControlRequested {
        /// Id of the request, chosen by the requester.
        control: ControlId,
        /// What is asked.
        kind: ControlKind,
        /// Of whom.
        target: Target,
        /// When it must have an outcome.
        expires: Millis,
        /// With `steer`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        mode: Option<Mode>,
        /// With `steer` and `interrupt`: the message that carries the text, put in the same block.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        message: Option<MessageId>,
        /// With `answer`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        approval: Option<ApprovalId>,
    },
    /// A control has its one outcome.
    #[serde(rename = "control.settled")]
    ControlSettled {
        /// The request.
        control: ControlId,
        /// Its outcome.
        outcome: ControlOutcome,
        /// With `refused`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<RefusalReason>,
        /// The run it applied to. Of a `steer` that was not consumed, the new run that has its message as input.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        run: Option<RunId>,
        /// With `already_answered`: who was first, as in a block's `by`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        answered_by: Option<Value>,
    },
    /// A person has taken over: no agent writes until `session.released`.
    #[serde(rename = "session.held")]
    SessionHeld {
        /// For people.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
    /// The session is handed back to its agents.
    #[serde(rename = "session.released")]
    SessionReleased {
        /// For people.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
    /// What comes goes on from an earlier place: an edit, or another answer. See `branches` in docs/PROTOCOL.md.
    #[serde(rename = "branch.begun")]
    BranchBegun {
        /// Up to where it keeps what its stretch of the log holds.
        after: Seq,
    },
    /// The newest branch through a message is the current one.
    #[serde(rename = "branch.selected")]
    BranchSelected {
        /// Seq of that message.
        through: Seq,
    },
    /// A shared value changes; `null` removes it.
    #[serde(rename = "state.set")]
    StateSet {
        /// Which value.
        key: String,
        /// What it is from here on.
        value: Value,
    },
    /// Anything opaque.
    #[serde(rename = "event")]
    Event {
        /// Its name.
        name: String,
        /// Its content.
        #[serde(default)]
        data: Value,
        /// What a fold keeps of it.
        #[serde(default)]
        keep: Keep,
    },
    /// A type this release does not know, or an extension: forwarded and folded untouched.
    #[serde(skip)]
    Other,
}

macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        pub enum $name { $($(#[$vdoc])* $variant),+ }
    };
}

words!(/// Who speaks in a message.
Role { /// A person.
    User, /// An agent.
    Assistant, /// The application.
    System, /// A tool.
    Tool, /// A person of the operating side.
    Operator });
words!(/// What a part is.
PartKind { /// Text for people.
    Text, /// The model's reasoning.
    Reasoning, /// A call of a tool: arguments, streamed or set.
    ToolCall, /// What the tool gave back.
    ToolOutput, /// A file by reference.
    File, /// Where something comes from.
    Source, /// Anything structured.
    Data });
words!(/// Phase of a step.
Phase { /// Begins.
    Start, /// Is done.
    End, /// Is undone.
    Reset });
words!(/// How a run ended.
Outcome { /// As meant.
    Completed, /// By request.
    Cancelled, /// With an error.
    Failed, /// Its worker died.
    Lost });
words!(/// How a message ended.
MessageStatus { /// As meant.
    Complete, /// By request.
    Cancelled, /// With an error.
    Failed, /// In the middle.
    Partial });
words!(/// How a part ended.
PartStatus { /// As meant.
    Done, /// With an error.
    Error, /// In the middle.
    Aborted, /// Somebody refused it.
    Denied });
words!(/// What is asked of a run.
ControlKind { /// End it.
    Cancel, /// Give it a further message.
    Steer, /// End it and begin anew with a further message.
    Interrupt, /// Stand still.
    Pause, /// Go on after a pause.
    Resume, /// Answer an approval.
    Answer });
words!(/// The one outcome of a control.
ControlOutcome { /// Done.
    Applied, /// Not done, for a reason.
    Refused, /// Not done in time.
    Expired });
words!(/// Why a control was refused.
RefusalReason { /// The target has no run that is open.
    NoActiveRun, /// It ended before.
    RunEnded, /// Not offered.
    NotSupported, /// Not by this person.
    NotAllowed, /// The run waits for no such approval.
    NoApproval, /// Somebody was first.
    AlreadyAnswered, /// The answer is about other arguments than those that are asked about.
    WrongDigest, /// Another control has made it pointless.
    Superseded, /// A person has taken the session over.
    Held, /// The target never came, or no answer did.
    Timeout, /// The session was forked, and its runs go on in the other one only.
    Forked, /// A reason that this release does not know.
    #[serde(other)]
    Unknown });

/// What a fold keeps of events of one name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, Default)]
#[serde(rename_all = "snake_case")]
pub enum Keep {
    /// Every one.
    #[default]
    All,
    /// The last one of that name and run.
    Latest,
}

/// Something that a run waits for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Approval {
    /// Its id, unique in the run and used once.
    pub approval: ApprovalId,
    /// What is asked, for people.
    pub reason: String,
    /// JSON Schema of the answer's `value`, for whoever shows a form. The worker checks the value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schema: Option<Value>,
    /// Digest of what is asked about: an answer that approves names the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// When it counts as not given.
    pub expires: Millis,
    /// Who may answer, as a [`crate::control::WhoMay`]; anybody with the right to control if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub who: Option<Value>,
    /// Tool name, arguments and the like, to show.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<Object>,
}

/// One part of a whole message. Its id is its number, from 1.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PutPart {
    /// What it is.
    pub kind: PartKind,
    /// Its content; text for `text`.
    pub value: Value,
    /// Tool name, call id, media type and the like.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attrs: Option<Object>,
}

impl PutPart {
    /// A part of plain text.
    pub fn text(text: impl Into<String>) -> PutPart {
        PutPart { kind: PartKind::Text, value: Value::String(text.into()), attrs: None }
    }
}

/// Why a run failed, for developers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunError {
    /// A word programs can read.
    pub code: String,
    /// A sentence people can read.
    pub message: String,
}

/// A `message.put` as somebody wants it written.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct NewMessage {
    /// Its id; the server makes one that is left out.
    #[serde(default)]
    pub message: Option<MessageId>,
    /// Who speaks.
    pub role: Role,
    /// Its content.
    #[serde(deserialize_with = "strict_parts")]
    pub parts: Vec<PutPart>,
    /// Which message it answers.
    #[serde(default)]
    pub reply_to: Option<String>,
}

/// Reads parts that somebody wants to write: an unknown field is refused.
pub fn strict_parts<'de, D: Deserializer<'de>, T: From<Vec<PutPart>>>(d: D) -> Result<T, D::Error> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Strict {
        kind: PartKind,
        value: Value,
        #[serde(default)]
        attrs: Option<Object>,
    }
    let parts = Vec::<Strict>::deserialize(d)?.into_iter();
    let parts: Vec<PutPart> =
        parts.map(|Strict { kind, value, attrs }| PutPart { kind, value, attrs }).collect();
    Ok(parts.into())
}

/// Reads an error that somebody wants to write: an unknown field is refused.
pub fn strict_error<'de, D: Deserializer<'de>>(d: D) -> Result<Option<RunError>, D::Error> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Strict {
        code: String,
        message: String,
    }
    let error = Option::<Strict>::deserialize(d)?;
    Ok(error.map(|Strict { code, message }| RunError { code, message }))
}

/// Whom a control is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// One run.
    Run(RunId),
    /// The run that a message asked for, whether or not that message has arrived.
    Input(MessageId),
    /// Of `cancel`: every open run of the agent. Of other kinds: the one it works on, or the one it would work on next.
    Agent(AgentName),
    /// Every open run. Only of `cancel`; always `true`.
    All(bool),
}

/// Who writes an entry type, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Writer {
    /// It comes out of the core's `decide`.
    Decided,
    /// A worker appends it to its own run.
    Worker,
    /// A worker, or a client with the right to write.
    Anyone,
}

/// Entry types with their writer and their fields.
pub const TYPES: &[(&str, Writer, &[&str])] = &[
    ("session.opened", Writer::Decided, &["meta"]),
    ("session.updated", Writer::Decided, &["patch"]),
    ("session.closed", Writer::Decided, &["reason"]),
    ("message.put", Writer::Decided, &["message", "role", "parts", "reply_to"]),
    ("run.requested", Writer::Decided, &["run", "agent", "input", "parent_run", "params"]),
    ("run.started", Writer::Decided, &["run", "worker", "attempt"]),
    ("run.step", Writer::Worker, &["phase", "name"]),
    ("run.returned", Writer::Decided, &["run", "reason"]),
    ("run.suspended", Writer::Decided, &["run", "approvals"]),
    ("approval.settled", Writer::Decided, &["run", "approval", "verdict", "answered_by", "value"]),
    ("run.resumed", Writer::Decided, &["run"]),
    ("run.ended", Writer::Decided, &["run", "outcome", "reason", "forced", "error", "usage"]),
    ("message.start", Writer::Worker, &["message", "role"]),
    ("message.end", Writer::Worker, &["message", "status", "usage"]),
    ("part.start", Writer::Worker, &["message", "part", "kind", "attrs"]),
    ("part.append", Writer::Worker, &["message", "part", "offset", "text"]),
    ("part.set", Writer::Worker, &["message", "part", "value"]),
    ("part.end", Writer::Worker, &["message", "part", "status", "value"]),
    (
        "control.requested",
        Writer::Decided,
        &["control", "kind", "target", "expires", "mode", "message", "approval"],
    ),
    ("control.settled", Writer::Decided, &["control", "outcome", "reason", "run", "answered_by"]),
    ("session.held", Writer::Decided, &["reason"]),
    ("session.released", Writer::Decided, &["reason"]),
    ("branch.begun", Writer::Decided, &["after"]),
    ("branch.selected", Writer::Decided, &["through"]),
    ("state.set", Writer::Decided, &["key", "value"]),
    ("event", Writer::Anyone, &["name", "data", "keep"]),
];

/// Prefix of types that belong to applications.
pub const EXTENSION_PREFIX: &str = "x-";

impl Entry {
    /// Reads one entry of a stored array. What this release cannot read is [`Entry::Other`].
    pub fn read(text: &str) -> Entry {
        serde_json::from_str(text).unwrap_or(Entry::Other)
    }
}

/// Checks one entry that somebody wants to write, and reads it.
///
/// `allowed` says which writers' types this one may write. Unknown types and fields are refused.
pub fn check(entries: &RawEntries<'_>, index: usize, allowed: fn(Writer) -> bool) -> Result<Entry, Fault> {
    let raw: &RawEntry<'_> = &entries.items[index];
    if raw.kind.starts_with(EXTENSION_PREFIX) {
        check_name(&raw.kind, index)?;
        return if allowed(Writer::Anyone) { Ok(Entry::Other) } else { Err(not_allowed(index, &raw.kind)) };
    }
    let Some((_, writer, fields)) = TYPES.iter().find(|(name, ..)| *name == raw.kind) else {
        let message =
            format!("entry {index}: unknown type; types of your own start with \"{EXTENSION_PREFIX}\"");
        return Err(Fault::new(Code::EntryNotAllowed, message));
    };
    if !allowed(*writer) {
        return Err(not_allowed(index, &raw.kind));
    }
    check_fields(entries, index, fields)?;
    if raw.kind == "message.put" {
        // The one entry type with structure inside that the top-level check does not see.
        drop(parse::<NewMessage>(raw, index)?);
    }
    let entry = parse(raw, index)?;
    if let Entry::Event { name, .. } = &entry {
        check_name(name, index)?;
    }
    Ok(entry)
}

fn check_name(name: &str, index: usize) -> Result<(), Fault> {
    if name.len() <= EVENT_NAME_BYTES_MAX {
        return Ok(());
    }
    let message =
        format!("entry {index}: EVENT_NAME_BYTES_MAX: a name has at most {EVENT_NAME_BYTES_MAX} bytes");
    Err(Fault::new(Code::TooLarge, message))
}

/// A `part.append`, borrowed.
#[derive(Debug, Deserialize)]
pub struct PartAppend<'a> {
    /// Its message; not checked to be an id.
    #[serde(borrow)]
    pub message: Cow<'a, str>,
    /// The part; not checked to be an id.
    #[serde(borrow)]
    pub part: Cow<'a, str>,
    /// UTF-8 bytes of the value before this text.
    pub offset: u64,
    /// What is added.
    #[serde(borrow)]
    pub text: Cow<'a, str>,
}

/// A block that is one token, as our libraries write it: what nearly all blocks are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Token<'a> {
    /// Its message; not checked to be an id.
    pub message: &'a str,
    /// The part; not checked to be an id.
    pub part: &'a str,
    /// UTF-8 bytes of the value before this text.
    pub offset: u64,
    /// UTF-8 bytes of what is added.
    pub bytes: usize,
}

/// Reads a block that is one `part.append` written without spaces, in the order of the table in PROTOCOL.md. It has passed
/// everything that [`crate::scan::entries`] checks; all others are `None`, and that tells what they are.
pub fn token(block: &[u8]) -> Option<Token<'_>> {
    if block.len() > BLOCK_BYTES_MAX {
        return None;
    }
    let mut plain = Plain::new(block);
    plain.eat(br#"[{"type":"part.append","message":""#)?;
    let message = plain.string()?;
    plain.eat(br#","part":""#)?;
    let part = plain.string()?;
    plain.eat(br#","offset":"#)?;
    let offset = plain.number()?;
    plain.eat(br#","text":""#)?;
    let bytes = plain.string_len()?;
    plain.eat(b"}]")?;
    plain.rest().is_empty().then_some(Token { message, part, offset, bytes })
}

/// Reads an entry if it is a well-formed `part.append`: a shortcut past [`check`] for what nearly all entries are, for a
/// caller that knows which ids there are.
pub fn part_append<'a>(entries: &RawEntries<'a>, index: usize) -> Option<PartAppend<'a>> {
    let raw = &entries.items[index];
    // `type` and the four, each once: the scan has refused doubled keys.
    if raw.kind != "part.append" || entries.keys(raw).len() != 5 {
        return None;
    }
    serde_json::from_str(raw.text).ok()
}

/// Checks a `message.put` that somebody wants to write, and reads it.
pub fn check_message(entries: &RawEntries<'_>, index: usize) -> Result<NewMessage, Fault> {
    let raw = &entries.items[index];
    let Some((.., fields)) = TYPES.iter().find(|(name, ..)| *name == raw.kind && raw.kind == "message.put")
    else {
        return Err(not_allowed(index, &raw.kind));
    };
    check_fields(entries, index, fields)?;
    parse(raw, index)
}

fn check_fields(entries: &RawEntries<'_>, index: usize, fields: &[&str]) -> Result<(), Fault> {
    let raw = &entries.items[index];
    let known = |key: &str| key == "type" || fields.contains(&key);
    let Some(key) = entries.keys(raw).iter().find(|key| !known(key)) else { return Ok(()) };
    let key: String = key.chars().take(64).collect();
    Err(Fault::bad_request(format!("entry {index}: {} has no field {key:?}", raw.kind)))
}

fn parse<'a, T: Deserialize<'a>>(raw: &RawEntry<'a>, index: usize) -> Result<T, Fault> {
    serde_json::from_str(raw.text)
        .map_err(|e| Fault::bad_request(format!("entry {index}: {}: {e}", raw.kind)))
}

fn not_allowed(index: usize, kind: &str) -> Fault {
    Fault::new(Code::EntryNotAllowed, format!("entry {index}: {kind} is not written this way"))
}

#[cfg(test)]
mod tests;
