//! Snapshots of a view, and paging through its messages.
//!
//! **Invariant:** a view made from a snapshot and the view it was taken from agree, after any further records, on
//! everything the snapshot carries. So a snapshot carries whole what is still open, however old it is.

use super::{Control, Event, Message, Run, RunStatus, Session, Shape, View};
use everthread_protocol::entry::Target;
use everthread_protocol::{Epoch, RunId, Seq};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::{RawValue, to_raw_value};
use std::collections::{BTreeMap, HashSet};

/// A view as it is sent: `state` and `messages` of a `snapshot` frame.
#[derive(Debug)]
pub struct Snapshot {
    /// The session without its messages.
    pub state: Box<RawValue>,
    /// Its last messages, whole, without holes.
    pub messages: Box<RawValue>,
    /// Whether there are older ones.
    pub more: bool,
}

/// What is carried besides messages.
#[derive(Serialize)]
pub(super) struct StateOut<'a> {
    pub session: &'a Session,
    pub runs: Vec<&'a Run>,
    pub controls: Vec<&'a Control>,
    pub values: &'a BTreeMap<String, Value>,
    pub events: Vec<&'a Event>,
}

#[derive(Deserialize)]
struct StateIn {
    session: Session,
    runs: Vec<Run>,
    controls: Vec<Control>,
    values: BTreeMap<String, Value>,
    events: Vec<Event>,
}

impl View {
    /// Up to `limit` messages that began before `before`, or the newest ones, oldest first; and whether there are older
    /// ones.
    pub fn messages_before(&self, before: Option<Seq>, limit: usize) -> (&[Message], bool) {
        let end = before.map_or(self.messages.len(), |seq| self.messages.partition_point(|m| m.seq < seq));
        let start = end.saturating_sub(limit);
        (&self.messages[start..end], start > 0)
    }

    /// The view with its last `limit` messages, or as many as go back to the oldest one that is still being written.
    ///
    /// Of runs it carries the open ones, those of the messages it carries, those requested since the oldest of these, and
    /// their parents; of controls those without outcome and those of such runs; of events those of such runs and the
    /// session's own. With all messages it carries everything.
    pub fn snapshot(&self, limit: usize) -> Result<Snapshot, serde_json::Error> {
        let open = self.open.values().flat_map(|run| run.messages.values().map(|message| message.at));
        let start = self.messages.len().saturating_sub(limit).min(open.min().unwrap_or(usize::MAX));
        let shown = &self.messages[start..];
        let more = start > 0;
        let state = self.carried(shown, more);
        Ok(Snapshot { state: to_raw_value(&state)?, messages: to_raw_value(shown)?, more })
    }

    /// What goes with the messages `shown`, the last ones, if there are `more`.
    pub(super) fn carried<'a>(&'a self, shown: &'a [Message], more: bool) -> StateOut<'a> {
        let since = if more { shown.first().map_or(self.seq.next(), |m| m.seq) } else { Seq::ZERO };

        let mut wanted: HashSet<&RunId> = shown.iter().filter_map(|m| m.run.as_ref()).collect();
        let mut runs = Vec::new();
        // Backwards, because a parent was requested before its children.
        for run in self.runs.iter().rev() {
            if run.status != RunStatus::Ended || run.requested_seq >= since || wanted.contains(&run.run) {
                wanted.insert(&run.run);
                wanted.extend(run.parent_run.as_ref());
                runs.push(run);
            }
        }
        runs.reverse();

        let has = |run: Option<&RunId>| !more || run.is_none_or(|run| wanted.contains(run));
        let about = |control: &Control| match (&control.run, &control.target) {
            _ if control.outcome.is_none() || !more => true,
            (Some(run), _) | (None, Target::Run(run)) => wanted.contains(run),
            (None, Target::Agent(_) | Target::All(_)) => false,
            (None, Target::Input(message)) => shown.iter().any(|m| m.run.is_none() && m.message == *message),
        };
        StateOut {
            session: &self.session,
            runs,
            controls: self.controls.iter().filter(|c| about(c)).collect(),
            values: &self.values,
            events: self.events.values().filter(|e| has(e.run.as_ref())).collect(),
        }
    }

    /// The view that a `snapshot` frame describes.
    pub fn from_snapshot(
        epoch: Epoch,
        seq: Seq,
        state: &str,
        messages: &str,
    ) -> Result<View, serde_json::Error> {
        let StateIn { session, runs, controls, values, events } = serde_json::from_str(state)?;
        let messages = serde_json::from_str(messages)?;
        Ok(Shape { epoch, seq, session, runs, messages, controls, values, events }.into())
    }
}
