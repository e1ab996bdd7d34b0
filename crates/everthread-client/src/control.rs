//! What can be asked of a run, and what becomes of it.

use crate::error::Error;
use everthread_protocol::control::Mode;
use everthread_protocol::entry::{ControlKind, ControlOutcome, PutPart, RefusalReason, Target};
use everthread_protocol::frame::{ClientFrame, Control, ControlTag, Receipt, Stage};
use everthread_protocol::{ApprovalId, Author, ControlId, Level, MessageId, RunId, Seq};
use serde::Serialize;
use serde_json::Value;
use serde_json::value::{RawValue, to_raw_value};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

/// Receipts that wait for the handle: accepted, delivered, settled, and one to spare. There are no more.
pub(crate) const RECEIPTS_MAX: usize = 4;

/// Something to ask of a run: see [`Session::control`](crate::Session::control).
#[derive(Debug, Clone)]
pub struct Ask {
    kind: ControlKind,
    target: Target,
    id: Option<ControlId>,
    mode: Option<Mode>,
    payload: Payload,
    expires: Option<Duration>,
}

/// What `steer`, `interrupt` and `answer` carry. The others carry nothing, and then this is empty.
#[derive(Debug, Clone, Default, Serialize)]
struct Payload {
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    parts: Option<Vec<PutPart>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<MessageId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    approval: Option<ApprovalId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    decision: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    digest: Option<String>,
}

impl Ask {
    fn new(kind: ControlKind, target: Target) -> Self {
        Self { kind, target, id: None, mode: None, payload: Payload::default(), expires: None }
    }

    fn with(kind: ControlKind, target: Target, payload: Payload) -> Self {
        Self { payload, ..Self::new(kind, target) }
    }

    /// To end. What was written stays.
    pub fn cancel(target: Target) -> Self {
        Self::new(ControlKind::Cancel, target)
    }

    /// To take in a text, before its next step unless [`Ask::mode`] says otherwise. A text that the run does not take
    /// becomes the input of a new one, which the outcome names.
    pub fn steer(target: Target, text: impl Into<String>) -> Self {
        Self::with(ControlKind::Steer, target, Payload { text: Some(text.into()), ..Payload::default() })
    }

    /// [`Ask::steer`] with more than a text.
    pub fn steer_with(target: Target, parts: Vec<PutPart>) -> Self {
        Self::with(ControlKind::Steer, target, Payload { parts: Some(parts), ..Payload::default() })
    }

    /// To end, and a new run with this text to begin.
    pub fn interrupt(target: Target, text: impl Into<String>) -> Self {
        Self::with(ControlKind::Interrupt, target, Payload { text: Some(text.into()), ..Payload::default() })
    }

    /// [`Ask::interrupt`] with more than a text.
    pub fn interrupt_with(target: Target, parts: Vec<PutPart>) -> Self {
        Self::with(ControlKind::Interrupt, target, Payload { parts: Some(parts), ..Payload::default() })
    }

    /// To stand still.
    pub fn pause(target: Target) -> Self {
        Self::new(ControlKind::Pause, target)
    }

    /// To go on.
    pub fn resume(target: Target) -> Self {
        Self::new(ControlKind::Resume, target)
    }

    /// Says yes to an approval that `run` waits for. If it has a digest, [`Ask::digest`] must name it.
    pub fn approve(run: RunId, approval: ApprovalId) -> Self {
        Self::answer(run, approval, "approved")
    }

    /// Says no to an approval that `run` waits for.
    pub fn deny(run: RunId, approval: ApprovalId) -> Self {
        Self::answer(run, approval, "denied")
    }

    fn answer(run: RunId, approval: ApprovalId, decision: &'static str) -> Self {
        let payload = Payload { approval: Some(approval), decision: Some(decision), ..Payload::default() };
        Self::with(ControlKind::Answer, Target::Run(run), payload)
    }

    /// Of `steer`: when the run takes it in.
    pub fn mode(mut self, mode: Mode) -> Self {
        self.mode = Some(mode);
        self
    }

    /// Of `steer` and `interrupt`: the id of the message, else the server makes one.
    pub fn message(mut self, message: MessageId) -> Self {
        self.payload.message = Some(message);
        self
    }

    /// Of an answer: more than yes or no.
    pub fn value(mut self, value: Value) -> Self {
        self.payload.value = Some(value);
        self
    }

    /// Of an answer: what it is about, as the approval says.
    pub fn digest(mut self, digest: impl Into<String>) -> Self {
        self.payload.digest = Some(digest.into());
        self
    }

    /// How long to wait for the outcome; each kind has a default.
    pub fn expires(mut self, after: Duration) -> Self {
        self.expires = Some(after);
        self
    }

    /// An id of the caller's. The same id again gets the first outcome and does nothing.
    pub fn id(mut self, id: ControlId) -> Self {
        self.id = Some(id);
        self
    }

    pub(crate) fn into_body(
        self,
        ack: Option<Level>,
        fresh_id: impl FnOnce() -> String,
    ) -> Result<ControlBody, Error> {
        let Ask { kind, target, id, mode, payload, expires } = self;
        let id = match id {
            Some(id) => id,
            None => fresh_id().parse()?,
        };
        let payload = match kind {
            ControlKind::Steer | ControlKind::Interrupt | ControlKind::Answer => {
                Some(to_raw_value(&payload)?.into())
            }
            ControlKind::Cancel | ControlKind::Pause | ControlKind::Resume => None,
        };
        let expires_ms = expires.map(|after| u64::try_from(after.as_millis()).unwrap_or(u64::MAX));
        Ok(ControlBody { id, kind, target, mode, payload, expires_ms, ack })
    }
}

/// A control as it is sent, without the attachment it goes to: that changes with the socket.
#[derive(Debug, Clone)]
pub(crate) struct ControlBody {
    pub(crate) id: ControlId,
    kind: ControlKind,
    target: Target,
    mode: Option<Mode>,
    payload: Option<Arc<RawValue>>,
    expires_ms: Option<u64>,
    ack: Option<Level>,
}

impl ControlBody {
    pub(crate) fn frame(&self, attachment: u32) -> String {
        let ControlBody { id, kind, target, mode, payload, expires_ms, ack } = self.clone();
        let (t, payload) = (ControlTag::Control, payload.as_deref());
        let control = Control { t, id, attachment, kind, target, mode, payload, expires_ms, ack };
        ClientFrame::Control(control).encode()
    }
}

/// A control that is in the log and will have exactly one outcome.
///
/// Dropping it changes nothing about the control. It needs its session's [`Follow`](crate::Follow) to be alive.
#[derive(Debug)]
pub struct Asked {
    id: ControlId,
    /// Came with the answer to the request.
    first: Option<Receipt>,
    receipts: mpsc::Receiver<Result<Receipt, Error>>,
}

impl Asked {
    pub(crate) fn new(
        id: ControlId,
        first: Receipt,
        receipts: mpsc::Receiver<Result<Receipt, Error>>,
    ) -> Self {
        Self { id, first: Some(first), receipts }
    }

    /// Its id.
    pub fn id(&self) -> &ControlId {
        &self.id
    }

    /// How much further it is; `None` after its outcome. A stage may be left out if the next is there already.
    /// Cancel safe.
    pub async fn next(&mut self) -> Result<Option<Receipt>, Error> {
        match self.first.take() {
            Some(first) => Ok(Some(first)),
            None => self.receipts.recv().await.transpose(),
        }
    }

    /// Its outcome. If the connection was lost meanwhile, it is asked for again.
    pub async fn settled(mut self) -> Result<Settled, Error> {
        while let Some(Receipt { stage, seq, .. }) = self.next().await? {
            if let Stage::Settled { outcome, reason, run, answered_by } = stage {
                return Ok(Settled { outcome, reason, run, answered_by, seq });
            }
        }
        Err(Error::Closed)
    }
}

/// The one outcome of a control.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settled {
    /// Which.
    pub outcome: ControlOutcome,
    /// Why it was not applied.
    pub reason: Option<RefusalReason>,
    /// The run it applied to. Of a message that its run did not take in, the run that has it as input.
    pub run: Option<RunId>,
    /// With `already_answered`: who was first.
    pub answered_by: Option<Author>,
    /// The seq after which it holds.
    pub seq: Seq,
}

impl Settled {
    /// Whether it was done.
    pub fn is_applied(&self) -> bool {
        self.outcome == ControlOutcome::Applied
    }
}
