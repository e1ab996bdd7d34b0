//! Somebody who follows a session, leaves after a few frames, and comes back, through another node, with whatever cursor of
//! an earlier time. Each frame must be the next one.

use super::fleet::{Random, Shared};
use crate::node::{PATIENCE, TOKEN};
use everthread_protocol::frame::{Entries, Snapshot};
use everthread_session::fold::numbered;
use everthread_session::view::View;
use everthread_socket::RawConnection;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;

/// Places to come back to that a reader remembers.
const PLACES_MAX: usize = 8;
/// What a race must have had.
pub const FIELDS: [&str; 9] = [
    "attaches",
    "attaches from old cursors",
    "snapshots",
    "exports",
    "folds",
    "archived",
    "brought back",
    "frames",
    "blocks appended",
];

/// What a reader holds at some place of the log.
#[derive(Clone)]
pub struct Held {
    pub view: View,
    /// Marks seen after `since`, with their seqs.
    pub marks: Vec<(u64, String)>,
    /// What came before is not held: 0 if everything is.
    pub since: u64,
    /// Whether a base stands for all of that.
    pub has_base: bool,
    /// The floor when it began.
    pub floor: u64,
}

impl Held {
    fn nothing() -> Self {
        Self { view: View::new(), marks: Vec::new(), since: 0, has_base: false, floor: 1 }
    }

    /// What a snapshot brings.
    fn begin(text: &str) -> Self {
        let Snapshot { epoch, seq, floor, state, messages, .. } = serde_json::from_str(text).unwrap();
        let view = View::from_snapshot(epoch, seq, state.get(), messages.get()).unwrap();
        Self { view, marks: Vec::new(), since: seq.0, has_base: false, floor: floor.0 }
    }

    pub fn seq(&self) -> u64 {
        self.view.seq().0
    }

    /// Applies a frame that must be the next one.
    fn take(&mut self, text: &str) {
        let frame = Entries::decode(text.as_bytes()).unwrap();
        let (from, to, seq) = (frame.from.0, frame.to.0, self.seq());
        assert!(from <= seq + 1 && seq < to, "{from}..{to} is not what follows {seq}: {text}");
        for block in &frame.blocks {
            for (first, last, raw) in numbered(block, frame.from).unwrap() {
                assert!(frame.from <= first && first <= last && last <= frame.to, "{first}: {text}");
                if last.0 > seq && raw.get().contains("x-mark") {
                    let entry: Value = serde_json::from_str(raw.get()).unwrap();
                    self.marks.push((first.0, entry["mark"].as_str().unwrap().to_owned()));
                }
            }
        }
        self.view.apply_blocks(&frame).unwrap();
        assert_eq!(self.seq(), to);
    }
}

/// Why a visit ended early.
struct Left;

/// What may come next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expected {
    Entries,
    /// A snapshot, which was asked for.
    Recent,
    Reset,
    /// A snapshot, since the cursor is of what was dropped.
    AfterReset,
    /// What stands for the beginning of the log.
    Base,
}

pub struct Reader {
    shared: Arc<Shared>,
    session: usize,
    random: Random,
    held: Held,
    places: Vec<Held>,
}

impl Reader {
    pub fn new(shared: Arc<Shared>, session: usize) -> Self {
        let random = shared.random();
        Self { shared, session, random, held: Held::nothing(), places: Vec::new() }
    }

    /// What somebody holds who comes when all is over, and begins at the start.
    pub async fn newcomer(shared: Arc<Shared>, session: usize) -> Held {
        Self::new(shared, session).read_to_the_end().await.1
    }

    /// Reads until nobody writes any more and everything was read; what it then holds, and of which session.
    pub async fn read_to_the_end(mut self) -> (usize, Held) {
        loop {
            let end = self.end();
            if end == Some(self.held.seq()) {
                return (self.session, self.held);
            }
            if self.visit(end.is_some()).await.is_err() {
                tokio::time::sleep(Duration::from_millis(10 + self.random.below(100))).await;
            }
            if self.held.seq() > 0 {
                self.remember();
            }
        }
    }

    /// Where the log ends, if nobody writes any more.
    fn end(&self) -> Option<u64> {
        self.shared.ends.borrow().as_ref().map(|ends| ends[self.session])
    }

    fn remember(&mut self) {
        if self.places.len() == PLACES_MAX {
            let at = usize::try_from(self.random.below(PLACES_MAX as u64)).unwrap();
            self.places.swap_remove(at);
        }
        self.places.push(self.held.clone());
    }

    /// Where to begin: at a place of an earlier time, at the start, or with the last few messages.
    fn choose(&mut self, is_over: bool) -> Value {
        match self.random.below(10) {
            0 if !is_over => self.held = Held::nothing(),
            1 if !is_over => {
                self.shared.tally.add("snapshots", 1);
                return json!({ "recent": self.random.below(6) });
            }
            2..=6 if !self.places.is_empty() && !is_over => {
                self.held = self.random.one_of(&self.places).clone();
                self.shared.tally.add("attaches from old cursors", 1);
            }
            _ => {}
        }
        match self.held.seq() {
            0 => json!("start"),
            seq => json!(format!("{}.{seq}", self.held.view.epoch())),
        }
    }

    /// Attaches somewhere, takes some frames, and leaves.
    async fn visit(&mut self, is_over: bool) -> Result<(), Left> {
        let url = self.random.one_of(&self.shared.urls).clone();
        let from = self.choose(is_over);
        let is_start = from == "start";
        let mut expected = if from.is_object() { Expected::Recent } else { Expected::Entries };
        let mut attach =
            json!({ "t": "attach", "id": "a", "session": self.shared.sessions[self.session], "from": from });
        if self.random.below(4) == 0 {
            attach["fold_ms"] = self.random.below(200).into();
        }
        let opened = RawConnection::open(&url, "/v1/connect", Some(TOKEN)).await;
        let mut socket = opened.map_err(|error| self.lost(&error))?;
        let hello = json!({ "t": "hello", "id": "h", "subject": "ann" });
        for frame in [hello, attach] {
            socket.send(frame.to_string()).await.map_err(|error| self.lost(&error))?;
        }
        let mut left = 1 + self.random.below(40);
        let quiet_max = Duration::from_millis(50 + self.random.below(1_000));
        let mut is_live = false;
        while left > 0 {
            // Nothing may come for a while, but only when everything has.
            let wait = if is_live { quiet_max } else { PATIENCE };
            let frame = match timeout(wait, socket.receive()).await {
                Ok(frame) => frame.map_err(|error| self.lost(&error))?,
                Err(_) => {
                    assert!(is_live, "{url} is silent and has not said all that there is");
                    break;
                }
            };
            let frame: &str = &frame;
            let head: Value = serde_json::from_str(frame).unwrap();
            match head["t"].as_str().unwrap() {
                "welcome" => {}
                "attached" => {
                    if head["resumed"] == false {
                        expected = Expected::Reset;
                    }
                    self.shared.tally.add("attaches", 1);
                }
                "snapshot" => {
                    let at = self.held.seq();
                    self.held = Held::begin(frame);
                    let Held { since, floor, .. } = self.held;
                    match std::mem::replace(&mut expected, Expected::Entries) {
                        Expected::Recent => {}
                        // Nobody is reset who could have gone on.
                        Expected::AfterReset => assert!(at + 1 < floor, "{at}: {head}"),
                        Expected::Base => {
                            assert!(since + 1 == floor && self.held.view.messages().is_empty(), "{head}");
                            self.held.has_base = true;
                            self.shared.tally.add("starts from a base", 1);
                        }
                        Expected::Entries | Expected::Reset => panic!("{head}"),
                    }
                }
                "entries" => {
                    assert_eq!(expected, Expected::Entries, "{head}");
                    self.held.take(frame);
                    self.shared.tally.add("frames", 1);
                    left -= 1;
                }
                "live" => {
                    assert!(
                        self.held.seq() >= head["seq"].as_u64().unwrap(),
                        "{head} at {}",
                        self.held.seq()
                    );
                    is_live = true;
                }
                "lag" => is_live = false,
                "reset" => {
                    let is_expected = self.shared.besides.has_trims() && head["reason"] == "retention";
                    assert!(is_expected, "{head}");
                    // Who began at the start is told what was before the floor; who was overtaken by it, how things are.
                    let is_at_start = is_start && expected == Expected::Reset;
                    expected = if is_at_start { Expected::Base } else { Expected::AfterReset };
                    is_live = false;
                    self.shared.tally.add("resets", 1);
                }
                "error" => {
                    assert_eq!(head["retryable"], true, "{head}");
                    self.shared.tally.add("attaches refused for now", 1);
                    return Err(Left);
                }
                _ => panic!("{head}"),
            }
            if self.end() == Some(self.held.seq()) {
                break;
            }
        }
        Ok(())
    }

    fn lost(&self, error: &everthread_socket::SocketError) -> Left {
        self.shared.lost(&error.to_string());
        Left
    }
}
