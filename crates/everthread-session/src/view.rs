//! The session as people see it: runs, messages, controls, values, materialised by applying records.
//!
//! The server makes snapshots from it, clients hold one per session, and the other SDKs repeat its algorithm; the golden
//! vectors in `sdk/conformance` pin its JSON form. It owns no clock and no socket.
//!
//! **Invariant:** the view after a log is the same for every way of cutting and folding that log, and from every cursor.
//! So nothing here may depend on an entry that a fold leaves out, nor on when an append that a fold moves forward was
//! seen.

mod apply;
mod base;
mod branch;
mod snapshot;

pub use branch::Stretch;
pub use snapshot::Snapshot;

use everthread_protocol::control::{Mode, Verdict};
use everthread_protocol::entry::{
    Approval as Asked, ControlKind, ControlOutcome, MessageStatus, Object, Outcome, PartKind, PartStatus,
    RefusalReason, Role, RunError, Target,
};
use everthread_protocol::frame::Entries;
use everthread_protocol::record::InvalidRecord;
use everthread_protocol::{
    AgentName, ApprovalId, ControlId, Epoch, MessageId, Millis, PartId, Record, RunId, Seq, WorkerId,
};
use serde::{Deserialize, Serialize, Serializer};
use serde_json::Value;
use std::collections::{BTreeMap, HashMap};

/// A session as it stands after `seq`.
///
/// Lists are in the order of first appearance, except [`View::events`].
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(from = "Shape")]
pub struct View {
    epoch: Epoch,
    seq: Seq,
    session: Session,
    runs: Vec<Run>,
    messages: Vec<Message>,
    controls: Vec<Control>,
    values: BTreeMap<String, Value>,
    /// By the seq of the last event of each name and run: a fold keeps only that one, so no other order survives it.
    #[serde(serialize_with = "in_order")]
    events: BTreeMap<Seq, Event>,
    /// Where the open things are, so that an append costs a few look-ups. Rebuilt from the lists.
    #[serde(skip)]
    open: HashMap<RunId, OpenRun>,
    /// Where the last event of each name and run is. Rebuilt from the list.
    #[serde(skip)]
    latest: HashMap<(Option<RunId>, String), Seq>,
}

/// The session itself.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Session {
    /// What the application keeps with it.
    pub meta: Object,
    /// Whether it only reads.
    pub closed: bool,
    /// Why it was closed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub closed_reason: Option<String>,
    /// A person has taken it over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held: Option<Held>,
    /// Where its messages branch.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub branches: Vec<Stretch>,
    /// Where the current branch ends, if not at the end of the log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tip: Option<Seq>,
}

/// Who has taken a session over.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Held {
    /// Who: `{kind, id, device?}`.
    pub by: Value,
    /// When.
    pub at: Millis,
    /// For people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// How far a run is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunStatus {
    /// It waits for a worker.
    Requested,
    /// A worker holds it.
    Active,
    /// It waits for people.
    Suspended,
    /// It is over.
    Ended,
}

/// One piece of agent work.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// Its id.
    pub run: RunId,
    /// The role it is for.
    pub agent: AgentName,
    /// How far it is.
    pub status: RunStatus,
    /// Messages that are its input.
    pub input: Vec<String>,
    /// The run that started it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent_run: Option<RunId>,
    /// As requested.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub params: Option<Object>,
    /// Who held it last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker: Option<WorkerId>,
    /// How many workers got it so far.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt: Option<u32>,
    /// It stands still.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub paused: bool,
    /// What it waits for or has waited for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub approvals: Vec<Approval>,
    /// How it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<Outcome>,
    /// Why it ended so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// It was ended for its worker.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub forced: bool,
    /// With `failed`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<RunError>,
    /// As the worker counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Object>,
    /// Name of the step it is in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<String>,
    /// Seq of its last step start, while it is open: a reset drops what it began after that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step_mark: Option<Seq>,
    /// Seq of its request.
    pub requested_seq: Seq,
}

/// Something that a run waits for, or has waited for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Approval {
    /// As it was asked for.
    #[serde(flatten)]
    pub asked: Asked,
    /// Its outcome; none while it is open, or if the run ended first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verdict: Option<Verdict>,
    /// Who answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answered_by: Option<Value>,
    /// The answer, if it is more than yes or no.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<Value>,
}

/// How far a message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MessageState {
    /// It is being written.
    Streaming,
    /// It ended as meant.
    Complete,
    /// It ended by request.
    Cancelled,
    /// It ended with an error.
    Failed,
    /// It ended in the middle.
    Partial,
}

impl From<MessageStatus> for MessageState {
    fn from(status: MessageStatus) -> Self {
        match status {
            MessageStatus::Complete => Self::Complete,
            MessageStatus::Cancelled => Self::Cancelled,
            MessageStatus::Failed => Self::Failed,
            MessageStatus::Partial => Self::Partial,
        }
    }
}

/// A unit of input or output.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Message {
    /// Its id: unique in `run`, or in the session if it has none.
    pub message: MessageId,
    /// The run that writes it; none if it was put.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<RunId>,
    /// Seq of the entry that began it.
    pub seq: Seq,
    /// When that was written.
    pub at: Millis,
    /// Who wrote that: `{kind, id, device?}`.
    pub by: Value,
    /// Who speaks.
    pub role: Role,
    /// How far it is.
    pub status: MessageState,
    /// Which message it answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reply_to: Option<String>,
    /// As the worker counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Object>,
    /// Its content.
    pub parts: Vec<Part>,
}

/// How far a part is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PartState {
    /// It is being written.
    Open,
    /// It ended as meant.
    Done,
    /// It ended with an error.
    Error,
    /// It ended in the middle.
    Aborted,
    /// Somebody refused it.
    Denied,
}

impl From<PartStatus> for PartState {
    fn from(status: PartStatus) -> Self {
        match status {
            PartStatus::Done => Self::Done,
            PartStatus::Error => Self::Error,
            PartStatus::Aborted => Self::Aborted,
            PartStatus::Denied => Self::Denied,
        }
    }
}

/// A piece of a message.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Part {
    /// Its id.
    pub part: PartId,
    /// What it is.
    pub kind: PartKind,
    /// Tool name, call id, media type and the like.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attrs: Option<Object>,
    /// How far it is.
    pub status: PartState,
    /// Its content: a text while it is appended to.
    pub value: Value,
    /// Seq of its start, if it was streamed: a step reset needs it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seq: Option<Seq>,
}

/// Something that was asked of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Control {
    /// Its id.
    pub control: ControlId,
    /// What was asked.
    pub kind: ControlKind,
    /// Of whom.
    pub target: Target,
    /// By whom: `{kind, id, device?}`.
    pub by: Value,
    /// With `steer`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<Mode>,
    /// With `steer` and `interrupt`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<MessageId>,
    /// With `answer`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approval: Option<ApprovalId>,
    /// What became of it; none while that is open.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<ControlOutcome>,
    /// With `refused`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<RefusalReason>,
    /// The run it applied to, or that has its message as input.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<RunId>,
    /// With `already_answered`: who was first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answered_by: Option<Value>,
    /// Seq of its request.
    #[serde(default)]
    pub requested_seq: Seq,
}

/// The last event of a name and run, of those that keep the latest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// Its name.
    pub name: String,
    /// The run whose worker wrote it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<RunId>,
    /// Its content.
    pub data: Value,
    /// Its position.
    pub seq: Seq,
}

/// What became of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Applied {
    /// The view has moved to its end.
    Yes,
    /// The view had all of it before.
    Duplicate,
}

/// Why a record does not go onto a view.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Something lies between the view and the record, or they are of different logs: attach again from the view's
    /// cursor. The view is unchanged.
    #[error("{from}..{to} of epoch {epoch} does not follow {seq} of epoch {own_epoch}: attach again")]
    Gap {
        /// Epoch of the record.
        epoch: Epoch,
        /// Where the record begins.
        from: Seq,
        /// Where it ends.
        to: Seq,
        /// Epoch of the view.
        own_epoch: Epoch,
        /// Where the view stands.
        seq: Seq,
    },
    /// An append lies beyond what the view holds, or inside a character: view and log differ. Throw the view away and
    /// attach again without a cursor.
    #[error(
        "the append at {seq} begins at byte {offset}, which is no position in {length} bytes: attach anew"
    )]
    Inconsistent {
        /// Last seq of the append.
        seq: Seq,
        /// Where it would begin.
        offset: u64,
        /// What the view holds.
        length: usize,
    },
    /// The bytes are not a record. The view is as after [`Error::Inconsistent`].
    #[error(transparent)]
    Invalid(#[from] InvalidRecord),
}

/// A run that has not ended.
#[derive(Debug, Clone, PartialEq)]
struct OpenRun {
    /// Position in `runs`.
    at: usize,
    messages: HashMap<MessageId, OpenMessage>,
}

/// A message that is being written.
#[derive(Debug, Clone, PartialEq)]
struct OpenMessage {
    /// Position in `messages`.
    at: usize,
    /// Positions of its open parts.
    parts: HashMap<PartId, usize>,
}

/// The JSON form, as it is read.
#[derive(Deserialize)]
struct Shape {
    epoch: Epoch,
    seq: Seq,
    session: Session,
    runs: Vec<Run>,
    messages: Vec<Message>,
    controls: Vec<Control>,
    values: BTreeMap<String, Value>,
    events: Vec<Event>,
}

impl From<Shape> for View {
    fn from(shape: Shape) -> View {
        let Shape { epoch, seq, session, runs, messages, controls, values, events } = shape;
        let latest = events.iter().map(|e| ((e.run.clone(), e.name.clone()), e.seq)).collect();
        let events = events.into_iter().map(|e| (e.seq, e)).collect();
        let mut view = View {
            epoch,
            seq,
            session,
            runs,
            messages,
            controls,
            values,
            events,
            open: HashMap::new(),
            latest,
        };
        view.index();
        view
    }
}

fn in_order<S: Serializer>(events: &BTreeMap<Seq, Event>, s: S) -> Result<S::Ok, S::Error> {
    s.collect_seq(events.values())
}

impl View {
    /// Before the first entry.
    pub fn new() -> View {
        View::default()
    }

    /// Incarnation of the log it was made from.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Up to where entries are in it.
    pub fn seq(&self) -> Seq {
        self.seq
    }

    /// The session itself.
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// Its runs, in the order they were requested.
    pub fn runs(&self) -> &[Run] {
        &self.runs
    }

    /// The newest run of that id.
    pub fn run(&self, run: &RunId) -> Option<&Run> {
        match self.open.get(run) {
            Some(open) => self.runs.get(open.at),
            None => self.runs.iter().rfind(|r| r.run == *run),
        }
    }

    /// Its messages, by seq.
    pub fn messages(&self) -> &[Message] {
        &self.messages
    }

    /// What was asked of its runs.
    pub fn controls(&self) -> &[Control] {
        &self.controls
    }

    /// Its shared values.
    pub fn values(&self) -> &BTreeMap<String, Value> {
        &self.values
    }

    /// The last events of each name and run that keep the latest, by seq.
    pub fn events(&self) -> impl Iterator<Item = &Event> {
        self.events.values()
    }

    /// Applies a record; `since` is the first seq of its epoch.
    pub fn apply(&mut self, record: &Record, since: Seq) -> Result<Applied, Error> {
        let Record { epoch, from, to, .. } = *record;
        if self.place(epoch, since, from, to)? == Applied::Duplicate {
            return Ok(Applied::Duplicate);
        }
        self.take(epoch, from, to, &record.parse_blocks()?)
    }

    /// Applies what a record holds up to `limit`. Inside a merged append there is no exact state: then the view stands
    /// before it, at a lower seq than was asked for.
    pub fn apply_until(&mut self, record: &Record, since: Seq, limit: Seq) -> Result<Applied, Error> {
        let Record { epoch, from, to, .. } = *record;
        if to <= limit {
            return self.apply(record, since);
        }
        if limit < from || self.place(epoch, since, from, to)? == Applied::Duplicate {
            return Ok(Applied::Duplicate);
        }
        self.take_until(epoch, from, limit, &record.parse_blocks()?)
    }

    /// Applies an `entries` frame.
    pub fn apply_blocks(&mut self, frame: &Entries<'_>) -> Result<Applied, Error> {
        if self.place(frame.epoch, frame.since, frame.from, frame.to)? == Applied::Duplicate {
            return Ok(Applied::Duplicate);
        }
        self.take(frame.epoch, frame.from, frame.to, &frame.blocks)
    }

    /// Whether a record is the next one, or an old one.
    fn place(&self, epoch: Epoch, since: Seq, from: Seq, to: Seq) -> Result<Applied, Error> {
        let same_log = epoch == self.epoch || since > self.seq;
        let next = self.seq.next();
        if same_log && from <= next && next <= to {
            return Ok(Applied::Yes);
        }
        // A later epoch that ends before the view's seq means that the view holds a tail which the log lost.
        if to <= self.seq && epoch <= self.epoch {
            return Ok(Applied::Duplicate);
        }
        Err(Error::Gap { epoch, from, to, own_epoch: self.epoch, seq: self.seq })
    }

    /// Rebuilds the index of open things from the lists.
    fn index(&mut self) {
        self.open.clear();
        for (at, run) in self.runs.iter().enumerate() {
            if run.status != RunStatus::Ended {
                self.open.insert(run.run.clone(), OpenRun { at, messages: HashMap::new() });
            }
        }
        for (at, message) in self.messages.iter().enumerate() {
            let Some(open) = message.run.as_ref().and_then(|run| self.open.get_mut(run)) else { continue };
            if message.status == MessageState::Streaming {
                let parts = message.parts.iter().enumerate();
                let parts =
                    parts.filter(|(_, p)| p.status == PartState::Open).map(|(i, p)| (p.part.clone(), i));
                open.messages.insert(message.message.clone(), OpenMessage { at, parts: parts.collect() });
            }
        }
    }
}
