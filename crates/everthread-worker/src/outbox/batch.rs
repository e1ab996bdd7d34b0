//! One batch in the making, and the frames that batches become.

use super::{Kind, Name};
use everthread_protocol::entry::{ControlOutcome, Object, Outcome, PutPart, RefusalReason, RunError};
use everthread_protocol::limits::{BLOCK_ENTRIES_MAX, FOLDED_TEXT_BYTES_MAX};
use everthread_protocol::worker_frame::{
    End, NewApproval, Producer, Settle, StartChild, Suspend, WorkerFrame,
};
use everthread_protocol::{AgentName, ControlId, RequestId, RunId, TraceContext};
use std::fmt::Write as _;

/// Entries that will be written together, as the JSON that is sent.
///
/// Text that continues the last entry is added to it: the longer the server takes, the fewer entries a token costs.
#[derive(Debug, Default)]
pub(super) struct Gathered {
    /// The array without its closing bracket; while `tail` is there, also without the end of the last entry.
    json: String,
    count: usize,
    tail: Option<Tail>,
}

/// The last entry, if it is text that may grow.
#[derive(Debug)]
struct Tail {
    message: String,
    part: String,
    /// Where the next text must begin to continue it.
    end: u64,
    text_bytes: usize,
}

/// The end of an append entry, and the bracket of the array.
const CLOSING: &str = "\"}";

impl Gathered {
    /// Bytes of the array when it is closed.
    pub fn bytes(&self) -> usize {
        self.json.len() + CLOSING.len() + 1
    }

    /// Adds text; false if there is no room for it here.
    pub fn append(&mut self, message: &str, part: &str, offset: u64, text: &str, bytes_max: usize) -> bool {
        let escaped = escape(text);
        let text_bytes = text.len() as u64;
        if let Some(tail) = &mut self.tail
            && (tail.end, tail.message.as_str(), tail.part.as_str()) == (offset, message, part)
            && tail.text_bytes + text.len() <= FOLDED_TEXT_BYTES_MAX
        {
            if self.json.len() + escaped.len() + CLOSING.len() + 1 > bytes_max {
                return false;
            }
            self.json.push_str(&escaped);
            tail.end += text_bytes;
            tail.text_bytes += text.len();
            return true;
        }
        // Ids are made of letters that need no escape.
        let head = format!(
            "{{\"type\":\"part.append\",\"message\":\"{message}\",\"part\":\"{part}\",\"offset\":{offset},\"text\":\""
        );
        if !self.fits(head.len() + escaped.len() + CLOSING.len(), bytes_max) {
            return false;
        }
        self.separate();
        self.json.push_str(&head);
        self.json.push_str(&escaped);
        self.count += 1;
        self.tail = Some(Tail {
            message: message.to_owned(),
            part: part.to_owned(),
            end: offset + text_bytes,
            text_bytes: text.len(),
        });
        true
    }

    /// Adds an entry; false if there is no room for it here.
    pub fn entry(&mut self, entry: &str, bytes_max: usize) -> bool {
        if !self.fits(entry.len(), bytes_max) {
            return false;
        }
        self.separate();
        self.json.push_str(entry);
        self.count += 1;
        true
    }

    fn fits(&self, bytes: usize, bytes_max: usize) -> bool {
        self.count < BLOCK_ENTRIES_MAX && self.bytes() + 1 + bytes <= bytes_max
    }

    fn separate(&mut self) {
        if self.tail.take().is_some() {
            self.json.push_str(CLOSING);
        }
        self.json.push(if self.json.is_empty() { '[' } else { ',' });
    }

    fn close(mut self) -> String {
        if self.tail.is_some() {
            self.json.push_str(CLOSING);
        }
        self.json.push(']');
        self.json
    }
}

/// The text as it stands between the quotes of a JSON string.
fn escape(text: &str) -> String {
    let plain = |b: u8| b >= 0x20 && b != b'"' && b != b'\\';
    if text.bytes().all(plain) {
        return text.to_owned();
    }
    let mut out = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            // Writing to a String cannot fail.
            c if u32::from(c) < 0x20 => drop(write!(out, "\\u{:04x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out
}

/// The `append` frame of a batch. Made as text: every id in it is of letters that need no escape.
pub(super) fn append_frame(
    name: &Name,
    batch: u64,
    traceparent: Option<TraceContext>,
    gathered: Gathered,
) -> String {
    let Name { local, run, fence, incarnation, ack } = name;
    let entries = gathered.close();
    let ack = ack.map(|level| format!("\"ack\":\"{level}\",")).unwrap_or_default();
    let trace = traceparent.map_or_else(String::new, |context| format!("\"traceparent\":\"{context}\","));
    format!(
        "{{\"t\":\"append\",\"id\":\"{local}-{batch}\",\"run\":\"{run}\",\"fence\":\"{fence}\",\
         \"producer\":{{\"incarnation\":{incarnation},\"batch\":{batch}}},{ack}{trace}\"entries\":{entries}}}"
    )
}

/// The frame of batch `from` as that of batch `to`. Both numbers come before anything that a function has said.
pub(super) fn renumbered(frame: &str, name: &Name, from: u64, to: u64) -> String {
    let Name { local, incarnation, .. } = name;
    let id = |batch: u64| format!("\"id\":\"{local}-{batch}\"");
    let producer = |batch: u64| format!("\"producer\":{{\"incarnation\":{incarnation},\"batch\":{batch}}}");
    frame.replacen(&id(from), &id(to), 1).replacen(&producer(from), &producer(to), 1)
}

/// A write that is not entries.
#[derive(Debug, Clone)]
pub(crate) enum Request {
    /// Another agent is to work for this run.
    StartChild {
        /// Id of the new run.
        child: RunId,
        /// Who.
        agent: AgentName,
        /// What it is told.
        parts: Vec<PutPart>,
        /// Passed to its worker.
        params: Option<Object>,
    },
    /// The run waits for people.
    Suspend {
        /// What for.
        approvals: Vec<NewApproval>,
    },
    /// A control has its outcome.
    Settle {
        /// Which.
        control: ControlId,
        /// Why it was not applied, if it was not.
        refusal: Option<RefusalReason>,
    },
    /// The run is over.
    End {
        /// How.
        outcome: Outcome,
        /// With `failed`.
        error: Option<RunError>,
        /// Tokens and the like.
        usage: Option<Object>,
    },
}

impl Request {
    /// The end of a run that failed.
    pub fn failed(code: &str, message: &str) -> Request {
        let error = RunError { code: code.to_owned(), message: message.to_owned() };
        Request::End { outcome: Outcome::Failed, error: Some(error), usage: None }
    }

    /// What the server's answer to it will mean.
    pub(super) fn kind(&self) -> Kind {
        match self {
            Request::StartChild { child, .. } => Kind::Child(child.clone()),
            Request::Suspend { .. } => Kind::Suspend,
            Request::Settle { control, .. } => Kind::Settle(control.clone()),
            Request::End { .. } => Kind::End,
        }
    }

    /// About how much it takes, for the bound of the buffer.
    pub(super) fn bytes(&self) -> usize {
        let json = match self {
            Request::StartChild { parts, params, .. } => serde_json::to_string(&(parts, params)),
            Request::Suspend { approvals } => serde_json::to_string(approvals),
            Request::Settle { control, refusal } => serde_json::to_string(&(control, refusal)),
            Request::End { error, usage, .. } => serde_json::to_string(&(error, usage)),
        };
        json.map_or(0, |json| json.len())
    }

    /// The frame of this request as batch `batch`.
    pub(super) fn frame(self, name: &Name, batch: u64) -> String {
        let Name { local, run, fence, incarnation, .. } = name.clone();
        let producer = Producer { incarnation, batch };
        let Ok(id) = format!("{local}-{batch}").parse::<RequestId>() else {
            // Digits and a dash are an id.
            return String::new();
        };
        match self {
            Request::StartChild { child, agent, parts, params } => {
                WorkerFrame::StartChild(StartChild { id, run, fence, producer, agent, child, parts, params })
            }
            Request::Suspend { approvals } => {
                WorkerFrame::Suspend(Suspend { id, run, fence, producer, approvals })
            }
            Request::Settle { control, refusal: reason } => {
                let outcome =
                    if reason.is_some() { ControlOutcome::Refused } else { ControlOutcome::Applied };
                WorkerFrame::Settle(Settle { id, run, fence, producer, control, outcome, reason })
            }
            Request::End { outcome, error, usage } => {
                WorkerFrame::End(End { id, run, fence, producer, outcome, error, usage })
            }
        }
        .encode()
    }
}
