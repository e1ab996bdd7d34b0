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

#[cfg(test)]
mod tests {
    use super::*;
    use everthread_protocol::frame::Entries;

    fn apply(view: &mut View, from: u64, to: u64, entries: &str) {
        let frame = format!(
            r#"{{"t":"entries","attachment":1,"epoch":"7","since":1,"from":{from},"to":{to},"blocks":[{{"by":{{"kind":"system","id":"t"}},"at":1,"entries":{entries}}}]}}"#
        );
        view.apply_blocks(&Entries::decode(frame.as_bytes()).unwrap()).unwrap();
    }

    #[test]
    fn a_run_that_is_open_at_the_floor_ends_for_those_who_begin_there_too() {
        let mut whole = View::new();
        let requested = r#"[{"type":"session.opened","meta":{}},{"type":"run.requested","run":"r0","agent":"a"},{"type":"run.ended","run":"r0","outcome":"completed"},{"type":"run.requested","run":"r1","agent":"a"}]"#;
        apply(&mut whole, 1, 4, requested);
        let mut late = View::from_base(&whole.base(Millis(1)).unwrap()).unwrap();
        let ended = r#"[{"type":"run.started","run":"r1","worker":"w","attempt":1},{"type":"run.ended","run":"r1","outcome":"completed"}]"#;
        apply(&mut whole, 5, 6, ended);
        apply(&mut late, 5, 6, ended);
        let runs = |view: &View| serde_json::to_value(view).unwrap()["runs"].as_array().unwrap().clone();
        assert_eq!(runs(&late), runs(&whole)[1..]);
        assert_eq!((late.seq(), runs(&late).len()), (whole.seq(), 1));
    }
}
