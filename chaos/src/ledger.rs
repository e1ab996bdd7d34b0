//! What an asker has put and was told of: noted in the history, and put again under the same id when the log begins a new
//! incarnation, which may have lost it. As the libraries for clients do it, and as anybody must who cannot lose what was said.

use crate::asker::{Answer, Shared};
use crate::history::{Level, Place, What};
use crate::random::Random;
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Longer than any primary is cut off: what was acknowledged longer ago is at every replica, or was lost before.
const KEPT_FOR: Duration = Duration::from_secs(60);
/// However often it had to be put again: a node knows what it was asked for ten minutes, and after that writes it once more.
const ASKED_FOR: Duration = Duration::from_secs(300);
/// A new incarnation while things are put again begins that anew, at most so often in a row.
const ROUNDS_MAX: usize = 8;

/// Something to be put.
#[derive(Debug, Clone)]
pub struct Request {
    /// Id of the request.
    pub id: String,
    /// The message, or the mark.
    pub name: String,
    /// Its text.
    pub text: String,
    /// The last part of the path.
    pub way: &'static str,
    /// What is sent.
    pub body: Value,
}

struct Kept {
    request: Request,
    /// When it was acknowledged first.
    first: Instant,
    /// When it was acknowledged last.
    at: Instant,
    /// The incarnation in which it was acknowledged last.
    epoch: u64,
    /// The newest incarnation in which it was put.
    put_in: u64,
}

/// What one asker has put into one session.
pub struct Ledger {
    shared: Arc<Shared>,
    session: String,
    who: String,
    kept: VecDeque<Kept>,
}

impl Ledger {
    /// With nothing in it.
    pub fn new(shared: Arc<Shared>, session: &str, who: String) -> Ledger {
        Ledger { shared, session: session.to_owned(), who, kept: VecDeque::new() }
    }

    /// Puts something, until it is acknowledged, and then what may have been lost.
    pub async fn put(&mut self, random: &mut Random, request: Request) {
        let Request { id, name, text, .. } = request.clone();
        self.shared.recorder.note(&self.who, What::Put { session: self.session.clone(), id, name, text });
        let Some(place) = self.ask(random, &request).await else { return };
        let epoch = place.epoch;
        let now = Instant::now();
        self.kept.push_back(Kept { request, first: now, at: now, epoch, put_in: epoch });
        self.heal(random, epoch).await;
        self.forget(random, epoch, KEPT_FOR).await;
    }

    /// Puts a mark.
    pub async fn leave_mark(&mut self, random: &mut Random) {
        let name = self.shared.fresh("mark");
        let body = json!({ "id": name, "entries": [{ "type": "x-mark", "mark": name }] });
        let request = Request { id: name.clone(), name, text: String::new(), way: "entries", body };
        self.put(random, request).await;
    }

    /// Puts the last mark, and everything once more that may have been lost, now that nothing is broken.
    pub async fn close(mut self, random: &mut Random) {
        self.leave_mark(random).await;
        if let Some(epoch) = self.kept.back().map(|kept| kept.epoch) {
            self.forget(random, epoch, Duration::ZERO).await;
        }
    }

    /// Puts again what was acknowledged in another incarnation than `epoch`, the present one.
    async fn heal(&mut self, random: &mut Random, mut epoch: u64) {
        let mut rounds = 0;
        while rounds < ROUNDS_MAX {
            let missing = |kept: &&mut Kept| kept.epoch != epoch && kept.put_in < epoch;
            let Some(kept) = self.kept.iter_mut().find(missing) else { return };
            kept.put_in = epoch;
            let request = kept.request.clone();
            // Who has it already answers as the first time; who has lost it, with a new place.
            let Some(place) = self.ask(random, &request).await else { return };
            if let Some(kept) = self.kept.iter_mut().find(|kept| kept.request.id == request.id) {
                // What was put just now may be lost as if it had been put for the first time.
                (kept.epoch, kept.at) = (place.epoch, Instant::now());
            }
            if place.epoch > epoch {
                (epoch, rounds) = (place.epoch, rounds + 1);
            }
        }
    }

    /// Forgets what was acknowledged so long ago, and makes sure of it: a primary that was cut off has answered as if it were
    /// all there.
    async fn forget(&mut self, random: &mut Random, epoch: u64, age: Duration) {
        let is_old = |kept: &Kept| kept.at.elapsed() >= age || kept.first.elapsed() >= ASKED_FOR;
        while self.kept.front().is_some_and(is_old) {
            let Some(kept) = self.kept.pop_front() else { return };
            if kept.epoch != epoch && self.ask(random, &kept.request).await.is_none() {
                return;
            }
        }
    }

    async fn ask(&self, random: &mut Random, request: &Request) -> Option<Place> {
        let path = format!("/v1/sessions/{}/{}", self.session, request.way);
        match self.shared.insist(random, &path, Some(&request.body)).await {
            Answer::Done(answer) => {
                let run = answer["run"].as_str().map(str::to_owned);
                let level = Level::named(answer["ack"].as_str());
                let place = place_of(&answer["cursor"])?;
                let (session, id) = (self.session.clone(), request.id.clone());
                self.shared.recorder.note(&self.who, What::PutAcked { session, id, place, run, level });
                Some(place)
            }
            Answer::Refused(why) => {
                let id = request.id.clone();
                self.shared.recorder.note(&self.who, What::Refused { id, why });
                None
            }
            Answer::GivenUp => None,
        }
    }
}

fn place_of(cursor: &Value) -> Option<Place> {
    let (epoch, seq) = cursor.as_str()?.split_once('.')?;
    Some(Place { epoch: epoch.parse().ok()?, seq: seq.parse().ok()? })
}
