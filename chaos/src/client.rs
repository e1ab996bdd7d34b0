//! A client that writes down what it is sent: raw frames, no library in between that could hide anything.
//!
//! It follows one session, answers pings, applies what is next, and attaches again from its own cursor when its connection
//! breaks, is silent for too long, or skips something. Now and then it leaves by itself. It trusts the server: whether what it
//! was sent is right is the checker's to say.

use crate::history::{Place, Recorder, What, now};
use crate::log::digest;
use crate::random::Random;
use everthread_protocol::frame::{Entries, Snapshot};
use everthread_protocol::{Epoch, Seq};
use everthread_session::view::{Applied, View};
use everthread_socket::RawConnection;
use serde::Deserialize;
use serde_json::{Value, json};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

/// A longer pause between frames stands in the history by itself.
const PAUSE_NOTED: u64 = 150_000;
/// Frames are summed up in the history for so long, in microseconds.
const FRAMES_NOTED: u64 = 2_000_000;
/// After an attach that was refused or failed.
const RETRY: Duration = Duration::from_millis(100);

/// Where every log ends, by session, once nobody writes any more.
pub type Ends = watch::Receiver<Option<BTreeMap<String, u64>>>;

/// What a client is told before it begins.
#[derive(Debug, Clone)]
pub struct Options {
    /// Its name in the history.
    pub name: String,
    /// Where it connects, one of these each time.
    pub urls: Vec<String>,
    /// The token that nodes want.
    pub token: String,
    /// What it follows.
    pub session: String,
    /// A connection that is silent for longer is given up: more than two heartbeats of the nodes.
    pub silence_max: Duration,
    /// Leaves by itself after so many frames, more or less; never if 0.
    pub leaves_after: u64,
    /// Its choices.
    pub seed: u64,
}

/// A client.
pub struct Client {
    options: Options,
    recorder: Recorder,
    random: Random,
    ends: Ends,
    view: View,
    /// Nothing before its first message is missing.
    is_whole: bool,
    /// It has been sent something, and goes on from there.
    has_begun: bool,
    /// Frames that are not in the history yet.
    frames: Option<Frames>,
}

/// Frames that follow each other.
struct Frames {
    epoch: u64,
    since: u64,
    from: u64,
    to: u64,
    count: u64,
    first: u64,
    last: u64,
}

/// Why a visit is over.
enum Over {
    /// All is said.
    Complete,
    /// Come again.
    Again(String),
}

#[derive(Deserialize)]
struct Head<'a> {
    #[serde(borrow)]
    t: Cow<'a, str>,
}

impl Client {
    /// A client that has seen nothing.
    pub fn new(options: Options, recorder: Recorder, ends: Ends) -> Client {
        let random = Random::seeded(options.seed);
        let (view, is_whole) = (View::new(), true);
        Client { options, recorder, random, ends, view, is_whole, has_begun: false, frames: None }
    }

    /// Follows until nobody writes any more and it has everything.
    pub async fn run(mut self) {
        loop {
            let over = self.visit().await;
            self.flush();
            match over {
                Over::Complete => break,
                Over::Again(why) => self.note(What::Left { why }),
            }
            let pause = Duration::from_millis(self.random.below(200));
            sleep(RETRY + pause).await;
        }
        let held = self.view.messages();
        let what = What::Holds {
            session: self.options.session.clone(),
            place: self.place(),
            messages: held.len(),
            whole: self.is_whole,
            digest: digest(held),
        };
        self.note(what);
    }

    fn place(&self) -> Place {
        Place { epoch: self.view.epoch().0, seq: self.view.seq().0 }
    }

    fn note(&self, what: What) {
        self.recorder.note(&self.options.name, what);
    }

    /// Whether it has everything, now that nobody writes.
    fn is_complete(&self) -> bool {
        let ends = self.ends.borrow();
        let end = ends.as_ref().and_then(|ends| ends.get(&self.options.session));
        end.is_some_and(|end| self.has_begun && *end == self.view.seq().0)
    }

    async fn visit(&mut self) -> Over {
        let urls = &self.options.urls;
        let url = urls[self.random.index(urls.len())].clone();
        let opened = RawConnection::open(&url, "/v1/connect", Some(&self.options.token)).await;
        let mut socket = match opened {
            Ok(socket) => socket,
            Err(error) => return Over::Again(error.to_string()),
        };
        let (from, place, recent) = self.beginning();
        let hello = json!({ "t": "hello", "id": "h", "subject": self.options.name });
        let mut attach = json!({ "t": "attach", "id": "a", "session": self.options.session, "from": from });
        if self.random.below(4) == 0 {
            attach["fold_ms"] = self.random.below(200).into();
        }
        for frame in [hello, attach] {
            if let Err(error) = socket.send(frame.to_string()).await {
                return Over::Again(error.to_string());
            }
        }
        let mut left = match self.options.leaves_after {
            0 => u64::MAX,
            after => 1 + self.random.below(2 * after),
        };
        loop {
            // The end may become known while nothing comes any more.
            let text = tokio::select! {
                text = timeout(self.options.silence_max, socket.receive()) => text,
                _ = self.ends.changed() => {
                    if self.is_complete() { return Over::Complete }
                    continue;
                }
            };
            let text = match text {
                Ok(Ok(text)) => text,
                Ok(Err(error)) => return Over::Again(error.to_string()),
                Err(_) => return Over::Again("silence".to_owned()),
            };
            let Ok(Head { t }) = serde_json::from_str(&text) else {
                return Over::Again(format!("not a frame: {text}"));
            };
            match &*t {
                "ping" => {
                    if let Err(error) = socket.send(json!({ "t": "pong" }).to_string()).await {
                        return Over::Again(error.to_string());
                    }
                }
                "entries" => {
                    if let Err(why) = self.take(&text) {
                        return Over::Again(why);
                    }
                    left -= 1;
                }
                "welcome" | "lag" | "presence" => {}
                other => {
                    if let Err(why) = self.other(other, &text, place, recent) {
                        return Over::Again(why);
                    }
                }
            }
            if self.is_complete() {
                return Over::Complete;
            }
            if left == 0 {
                return Over::Again("leaves".to_owned());
            }
        }
    }

    /// Where to attach from: as it is sent, as a place, and whether that is a snapshot.
    fn beginning(&mut self) -> (Value, Option<Place>, bool) {
        if !self.has_begun {
            // Most begin at the start; some like a phone that shows the last few messages.
            let recent = self.random.below(4) == 0;
            return if recent { (json!({ "recent": 5 }), None, true) } else { (json!("start"), None, false) };
        }
        let place = self.place();
        (json!(format!("{}.{}", place.epoch, place.seq)), Some(place), false)
    }

    /// Applies a frame of entries.
    fn take(&mut self, text: &str) -> Result<(), String> {
        let frame = Entries::decode(text.as_bytes()).map_err(|fault| format!("{fault:?}: {text}"))?;
        self.count(&frame);
        match self.view.apply_blocks(&frame) {
            Ok(Applied::Yes | Applied::Duplicate) => {
                self.has_begun = true;
                Ok(())
            }
            Err(error) => Err(error.to_string()),
        }
    }

    /// Puts a frame into the history.
    fn count(&mut self, frame: &Entries<'_>) {
        let (epoch, since, from, to) = (frame.epoch.0, frame.since.0, frame.from.0, frame.to.0);
        let now = now();
        if let Some(frames) = &mut self.frames
            && (frames.epoch, frames.since, frames.to + 1) == (epoch, since, from)
            && now.saturating_sub(frames.last) < PAUSE_NOTED
            && now.saturating_sub(frames.first) < FRAMES_NOTED
        {
            (frames.to, frames.count, frames.last) = (to, frames.count + 1, now);
            return;
        }
        self.flush();
        self.frames = Some(Frames { epoch, since, from, to, count: 1, first: now, last: now });
    }

    fn flush(&mut self) {
        let Some(Frames { epoch, since, from, to, count, first, last }) = self.frames.take() else { return };
        let session = self.options.session.clone();
        let what = What::Frames { session, epoch, since, from, to, count, first };
        self.recorder.note_at(last, &self.options.name, what);
    }

    /// Everything but entries.
    fn other(&mut self, t: &str, text: &str, from: Option<Place>, recent: bool) -> Result<(), String> {
        let frame: Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
        let session = self.options.session.clone();
        self.flush();
        match t {
            "attached" => {
                let epoch = frame["epoch"].as_str().and_then(|epoch| epoch.parse().ok()).unwrap_or(0);
                let resumed = frame["resumed"] == true;
                self.note(What::Attached { session, from, recent, resumed, epoch });
            }
            "snapshot" => {
                let Snapshot { epoch, seq, floor, state, messages, more, .. } =
                    serde_json::from_str(text).map_err(|error| error.to_string())?;
                self.note(What::Snapshot { session, epoch: epoch.0, seq: seq.0, floor: floor.0 });
                self.begin(epoch, seq, state.get(), messages.get(), !more)?;
            }
            "reset" => {
                let reason = frame["reason"].as_str().unwrap_or_default().to_owned();
                self.note(What::Reset { session, reason });
            }
            "live" => self.note(What::Live { session, seq: frame["seq"].as_u64().unwrap_or(0) }),
            _ => return Err(text.to_owned()),
        }
        Ok(())
    }

    fn begin(
        &mut self,
        epoch: Epoch,
        seq: Seq,
        state: &str,
        messages: &str,
        all: bool,
    ) -> Result<(), String> {
        self.view = View::from_snapshot(epoch, seq, state, messages).map_err(|error| error.to_string())?;
        (self.is_whole, self.has_begun) = (all, true);
        Ok(())
    }
}
