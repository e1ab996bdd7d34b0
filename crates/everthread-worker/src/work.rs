//! What a run is given: the conversation so far.

use everthread_protocol::entry::{Object, PartKind, Role};
use everthread_protocol::worker_frame::{Answered, Work};
use everthread_protocol::{Author, MessageId, PartId, RunId, Seq};
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

/// Everything of a `work` frame that the function sees.
#[derive(Debug)]
pub(crate) struct Input {
    pub(crate) parent_run: Option<RunId>,
    pub(crate) params: Option<Object>,
    /// References of the input messages.
    pub(crate) input: Vec<String>,
    pub(crate) answers: Vec<Answered>,
    pub(crate) token: String,
    pub(crate) messages: Vec<PastMessage>,
}

impl Input {
    /// Reads a frame; messages that this release cannot read are left out.
    pub(crate) fn new(work: &Work<'_>) -> Input {
        let raw: Vec<&RawValue> = serde_json::from_str(work.messages.get()).unwrap_or_default();
        let messages = raw.iter().filter_map(|message| serde_json::from_str(message.get()).ok()).collect();
        Input {
            parent_run: work.parent_run.clone(),
            params: work.params.clone(),
            input: work.input.clone(),
            answers: work.answers.clone(),
            token: work.token.clone(),
            messages,
        }
    }
}

/// A message of the session.
#[derive(Debug, Clone, Deserialize)]
pub struct PastMessage {
    /// Its id, unique in `run` or in the session.
    pub message: MessageId,
    /// The run that wrote it; none if it was put.
    #[serde(default)]
    pub run: Option<RunId>,
    /// Where it began.
    #[serde(default)]
    pub seq: Seq,
    /// Who wrote it.
    #[serde(default)]
    pub by: Option<Author>,
    /// Who speaks.
    pub role: Role,
    /// `complete`, or how else it ended; `streaming` if it has not.
    #[serde(default)]
    pub status: String,
    /// Its content.
    #[serde(default)]
    pub parts: Vec<PastPart>,
}

/// A part of a message of the session.
#[derive(Debug, Clone, Deserialize)]
pub struct PastPart {
    /// Its id.
    pub part: PartId,
    /// What it is.
    pub kind: PartKind,
    /// `done`, or how else it ended; `open` if it has not.
    #[serde(default)]
    pub status: String,
    /// Its content.
    #[serde(default)]
    pub value: Value,
    /// Tool name, call id, media type and the like.
    #[serde(default)]
    pub attrs: Option<Object>,
}

impl PastMessage {
    /// Its name within the session: `message` or `run/message`.
    pub fn reference(&self) -> String {
        match &self.run {
            Some(run) => format!("{run}/{}", self.message),
            None => self.message.to_string(),
        }
    }

    /// Whether it is still being written: then the run that wrote it can go on with it.
    pub fn is_open(&self) -> bool {
        self.status == "streaming"
    }

    /// The text that people read: its `text` parts, one below the other.
    pub fn text(&self) -> String {
        let texts: Vec<&str> =
            self.parts.iter().filter(|p| p.kind == PartKind::Text).filter_map(|p| p.value.as_str()).collect();
        texts.join("\n\n")
    }
}

impl PastPart {
    /// Whether it is still being written.
    pub fn is_open(&self) -> bool {
        self.status == "open"
    }

    /// An attribute that is a text, such as the `name` or `call` of a tool call.
    pub fn attr(&self, name: &str) -> Option<&str> {
        self.attrs.as_ref()?.get(name)?.as_str()
    }
}
