//! Checks that what a follower is sent is the log: everything, in order, once.

use everthread_protocol::Cursor;
use everthread_protocol::frame::Entries;
use everthread_session::view::{Applied, View};
use serde_json::Value;

/// What one follower holds, built by the client's rule and checked at every frame.
#[derive(Clone)]
pub struct History {
    pub view: View,
    /// Seqs that came, and frames they came in.
    pub seqs: u64,
    pub frames: u64,
    /// Types of the entries, in order, as far as they came.
    pub types: Vec<String>,
}

impl History {
    pub fn new() -> Self {
        Self { view: View::new(), seqs: 0, frames: 0, types: Vec::new() }
    }

    pub fn cursor(&self) -> Cursor {
        Cursor { epoch: self.view.epoch(), seq: self.view.seq() }
    }

    /// Takes an `entries` frame. On one connection nothing may come twice, so a duplicate fails here too.
    pub fn apply(&mut self, frame: &Value) {
        let mut frame = frame.clone();
        // Events and pages of HTTP have no attachment.
        frame["attachment"] = 1.into();
        let text = frame.to_string();
        let entries = Entries::decode(text.as_bytes()).unwrap();
        let (own, seq) = (self.view.epoch(), self.view.seq());
        assert!(entries.epoch == own || entries.since > seq, "another log at {seq}: {frame}");
        assert!(entries.from <= seq.next() && seq.next() <= entries.to, "not what follows {seq}: {frame}");
        assert!(!entries.blocks.is_empty(), "{frame}");
        assert_eq!(self.view.apply_blocks(&entries).unwrap(), Applied::Yes);
        assert_eq!(self.view.seq(), entries.to);
        self.frames += 1;
        self.seqs += entries.to.0 - seq.0;
        for block in frame["blocks"].as_array().unwrap() {
            for entry in block["entries"].as_array().unwrap() {
                self.types.push(entry["type"].as_str().unwrap().to_owned());
            }
        }
    }

    /// Takes a `snapshot` frame.
    pub fn replace(&mut self, frame: &Value) {
        let (epoch, seq) = (frame["epoch"].as_str().unwrap(), frame["seq"].as_u64().unwrap());
        let cursor: Cursor = format!("{epoch}.{seq}").parse().unwrap();
        let (state, messages) = (frame["state"].to_string(), frame["messages"].to_string());
        self.view = View::from_snapshot(cursor.epoch, cursor.seq, &state, &messages).unwrap();
    }

    /// The view as text, to be compared byte by byte.
    pub fn text(&self) -> String {
        serde_json::to_string(&self.view).unwrap()
    }

    /// Text of the first part of a message that a run wrote.
    pub fn answer(&self, run: &str) -> &str {
        let message = self.view.messages().iter().find(|m| m.run.as_ref().is_some_and(|r| r.as_str() == run));
        message.and_then(|m| m.parts.first()).and_then(|p| p.value.as_str()).unwrap_or_default()
    }

    /// A control as the View has it; null if it has not come yet.
    pub fn control(&self, id: &str) -> Value {
        let control = self.view.controls().iter().find(|control| control.control.as_str() == id);
        control.map(|control| serde_json::to_value(control).unwrap()).unwrap_or_default()
    }

    /// A run as the View has it; null if it has not come yet.
    pub fn run(&self, id: &str) -> Value {
        let run = self.view.run(&id.parse().unwrap());
        run.map(|run| serde_json::to_value(run).unwrap()).unwrap_or_default()
    }

    /// How many entries of a type came.
    pub fn count(&self, kind: &str) -> usize {
        self.types.iter().filter(|known| *known == kind).count()
    }

    /// How a run ended, if it did.
    pub fn outcome(&self, run: &str) -> Option<String> {
        let run = self.view.run(&run.parse().unwrap())?;
        let outcome = serde_json::to_value(run.outcome?).unwrap();
        Some(outcome.as_str().unwrap().to_owned())
    }
}
