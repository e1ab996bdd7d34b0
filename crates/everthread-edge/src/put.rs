//! What a client may write, from WebSocket and HTTP alike.

use crate::{Edge, branch};
use everthread_control::{Decided, Numbered};
use everthread_protocol::control::WhenBusy;
use everthread_protocol::entry::{self, Entry, NewMessage, Writer};
use everthread_protocol::{
    AgentName, Author, ControlId, Cursor, Fault, Level, MessageId, Millis, RequestId, RunId, SessionKey, scan,
};
use everthread_session::Request;
use everthread_session::decide::Put;
use everthread_store::Store;
use ulid::Ulid;

/// A write that was carried out, now or before.
#[derive(Debug)]
pub struct PutDone {
    /// The position after it.
    pub cursor: Cursor,
    /// The message that was put.
    pub message: Option<MessageId>,
    /// The run that was requested, or that it steers.
    pub run: Option<RunId>,
    /// The control that `when_busy` made of it.
    pub control: Option<ControlId>,
    /// It is the repeat of an earlier write.
    pub duplicate: bool,
    /// How sure it is, if that is worth telling.
    pub ack: Option<Level>,
}

/// What is written.
#[derive(Debug)]
pub enum Intent {
    /// A message, and the one whose place it takes.
    Message(Put, Option<String>),
    /// A shared value.
    Value {
        /// Which.
        key: String,
        /// The new one.
        value: serde_json::Value,
    },
    /// Entries that nothing depends on, verbatim.
    Events {
        /// The array as sent.
        entries: String,
        /// How many.
        count: u32,
    },
}

impl Intent {
    /// Reads and checks the entries of a `put`.
    pub fn read(
        entries: &str,
        agent: Option<AgentName>,
        when_busy: Option<WhenBusy>,
        replaces: Option<String>,
    ) -> Result<Intent, Fault> {
        let raw = scan::entries(entries.as_bytes()).map_err(|e| fault_of_scan(&e))?;
        let is_decided = |kind: &str| kind == "message.put" || kind == "state.set";
        if raw.items.len() > 1 && raw.items.iter().any(|item| is_decided(&item.kind)) {
            return Err(Fault::bad_request("message.put and state.set come alone"));
        }
        if raw.items[0].kind == "message.put" {
            let NewMessage { message, role, parts, reply_to } = entry::check_message(&raw, 0)?;
            let message = message.unwrap_or_else(fresh_id);
            let put = Put { message, role, parts, reply_to, agent, params: None, when_busy, branch: None };
            return Ok(Intent::Message(put, replaces));
        }
        if replaces.is_some() {
            return Err(Fault::bad_request("replaces comes with a message.put"));
        }
        if raw.items[0].kind == "state.set" {
            return match entry::check(&raw, 0, |_| true)? {
                Entry::StateSet { key, value } => Ok(Intent::Value { key, value }),
                _ => Err(Fault::bad_request("entry 0: not a state.set")),
            };
        }
        for index in 0..raw.items.len() {
            entry::check(&raw, index, |writer| writer == Writer::Anyone)?;
        }
        let count = u32::try_from(raw.items.len()).unwrap_or(u32::MAX);
        Ok(Intent::Events { entries: entries.to_owned(), count })
    }
}

/// What a request with a number was answered first: ids after each other, empty where there is none.
struct Answered {
    pub message: Option<MessageId>,
    pub run: Option<RunId>,
    pub control: Option<ControlId>,
}

impl Answered {
    pub fn read(answer: &str) -> Answered {
        let mut ids = answer.split(' ');
        let mut next = || ids.next().unwrap_or_default();
        let (message, run, control) = (next(), next(), next());
        Answered { message: message.parse().ok(), run: run.parse().ok(), control: control.parse().ok() }
    }
}

/// The run that a request asked for, now or when it was first carried out.
pub(crate) fn run_of(decided: &Decided) -> Option<RunId> {
    match (&decided.decision, &decided.written.duplicate) {
        (Some(decision), _) => decision.requested.clone(),
        (None, Some(first)) => Answered::read(&first.answer).run,
        (None, None) => None,
    }
}

/// A ULID as an id of any kind.
pub fn fresh_id<I: std::str::FromStr>() -> I {
    // A ULID is a valid id of every kind.
    Ulid::generate().to_string().parse().unwrap_or_else(|_| unreachable!("a ULID is an id"))
}

/// A fault for entries that did not pass the scan.
pub fn fault_of_scan(error: &scan::ScanError) -> Fault {
    let code = match error.problem {
        scan::Problem::TooLarge | scan::Problem::TooMany => everthread_protocol::Code::TooLarge,
        _ => everthread_protocol::Code::BadRequest,
    };
    Fault::new(code, format!("entries: {error}"))
}

/// When an id was made, if it is a ULID.
pub fn made_at(id: &str) -> Option<Millis> {
    Ulid::from_string(id).ok().map(|ulid| Millis(ulid.timestamp_ms()))
}

/// What an answer tells of how sure it is: what was asked for, and what is more than usual.
pub(crate) fn told_level(level: Level, asked: Option<Level>) -> Option<Level> {
    (asked.is_some() || level > Level::Accepted).then_some(level)
}

/// Carries out a write under an id that makes a repeat harmless.
pub async fn carry_out<S: Store>(
    edge: &Edge<S>,
    key: &SessionKey,
    by: &Author,
    id: &RequestId,
    intent: Intent,
    asked: Option<Level>,
) -> Result<PutDone, Fault> {
    let desk = edge.desk.asked_for(asked).map_err(|error| error.fault())?;
    let (request, verbatim, message, replaces) = match intent {
        Intent::Message(put, replaces) => {
            let message = put.message.clone();
            (Request::Put(put), None, Some(message), replaces)
        }
        Intent::Value { key, value } => (Request::SetValue { key, value }, None, None, None),
        Intent::Events { entries, count } => (Request::Events, Some((entries, count)), None, None),
    };
    let producer = format!("put:{}:{id}", by.id);
    let answer = message.as_ref().map_or("", |message| message.as_str());
    let numbered = Numbered::Request { key: &producer, answer, made_at: made_at(id.as_str()) };
    let verbatim = verbatim.as_ref().map(|(entries, count)| (&**entries, *count));
    let decided = match (&request, replaces) {
        (Request::Put(put), Some(replaces)) => {
            branch::edit(edge, &desk, key, by, numbered, put, &replaces).await?
        }
        _ => desk
            .decide_with(key, by, &request, numbered, verbatim)
            .await
            .map_err(|failure| failure.fault())?,
    };
    let written = decided.written;
    edge.folder.after_write(key, &written, false);
    let cursor = Cursor { epoch: written.epoch, seq: written.to };
    let ack = told_level(decided.level, asked);
    match (decided.decision, written.duplicate) {
        (Some(decision), _) => {
            let (run, control) = (decision.requested, decision.control);
            Ok(PutDone { cursor, message, run, control, duplicate: false, ack })
        }
        (None, first) => {
            let answer = first.map(|first| first.answer).unwrap_or_default();
            let Answered { message, run, control } = Answered::read(&answer);
            Ok(PutDone { cursor, message, run, control, duplicate: true, ack })
        }
    }
}
