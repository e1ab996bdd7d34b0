//! Bases: what stands for the beginning of a log that was dropped.
//!
//! **Invariant:** a view made from a base and the view it was taken from agree, after any further records, on everything
//! but the messages and runs that were over, and the controls about such runs. So a base is taken only where no message is
//! being written.

use super::{Control, Event, Message, Run, Session, View};
use everthread_protocol::{Epoch, Millis, Seq};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

/// A view without messages, in the form of a view.
#[derive(Serialize)]
struct Out<'a> {
    /// When the last entry was written: what nobody can read any more.
    written: Millis,
    epoch: Epoch,
    seq: Seq,
    session: &'a Session,
    runs: Vec<&'a Run>,
    messages: [Message; 0],
    controls: Vec<&'a Control>,
    values: &'a BTreeMap<String, Value>,
    events: Vec<&'a Event>,
}

impl View {
    /// Whether some message is being written.
    pub fn has_open_messages(&self) -> bool {
        self.open.values().any(|run| !run.messages.is_empty())
    }

    /// What those who come later need of the session as it stands, if everything up to here, last `written` then, is dropped.
    pub fn base(&self, written: Millis) -> Result<String, serde_json::Error> {
        let super::snapshot::StateOut { session, runs, controls, values, events } = self.carried(&[], true);
        let (epoch, seq) = (self.epoch, self.seq);
        serde_json::to_string(&Out {
            written,
            epoch,
            seq,
            session,
            runs,
            messages: [],
            controls,
            values,
            events,
        })
    }

    /// When the last entry that a base stands for was written.
    pub fn base_written(base: &str) -> Result<Millis, serde_json::Error> {
        #[derive(Deserialize)]
        struct Written {
            written: Millis,
        }
        serde_json::from_str(base).map(|Written { written }| written)
    }

    /// The view that a base stands for.
    pub fn from_base(base: &str) -> Result<View, serde_json::Error> {
        serde_json::from_str(base)
    }
}
