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

/// What was acknowledged longer ago is at every replica.
const KEPT_FOR: Duration = Duration::from_secs(60);
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
    at: Instant,
    /// It is in the log of this incarnation.
    known_in: u64,
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
        self.kept.push_back(Kept { request, at: Instant::now(), known_in: place.epoch });
        while self.kept.front().is_some_and(|kept| kept.at.elapsed() > KEPT_FOR) {
            self.kept.pop_front();
        }
        self.heal(random, place.epoch).await;
    }

    /// Puts a mark.
    pub async fn leave_mark(&mut self, random: &mut Random) {
        let name = self.shared.fresh("mark");
        let body = json!({ "id": name, "entries": [{ "type": "x-mark", "mark": name }] });
        let request = Request { id: name.clone(), name, text: String::new(), way: "entries", body };
        self.put(random, request).await;
    }

    /// Puts again what was acknowledged in another incarnation than `epoch`, the present one.
    async fn heal(&mut self, random: &mut Random, mut epoch: u64) {
        let mut rounds = 0;
        while rounds < ROUNDS_MAX {
            let missing = |kept: &&mut Kept| kept.known_in != epoch;
            let Some(kept) = self.kept.iter_mut().find(missing) else { return };
            kept.known_in = epoch;
            let request = kept.request.clone();
            // Who has it already answers as the first time; who has lost it, with a new place.
            match self.ask(random, &request).await {
                Some(place) if place.epoch > epoch => (epoch, rounds) = (place.epoch, rounds + 1),
                Some(_) => {}
                None => return,
            }
        }
    }

    async fn ask(&self, random: &mut Random, request: &Request) -> Option<Place> {
        let path = format!("/v1/sessions/{}/{}", self.session, request.way);
        match self.shared.insist(random, &path, Some(&request.body)).await {
            Answer::Done(answer) => {
                let run = answer["run"].as_str().map(str::to_owned);
                let level = Level::named(answer["level"].as_str());
                let place = place_of(&answer["cursor"])?;
                let (session, id) = (self.session.clone(), request.id.clone());
                self.shared.recorder.note(&self.who, What::PutAcked { session, id, place, run, level });
                Some(place)
            }
            Answer::Refused(why) => {
                self.shared.recorder.note(&self.who, What::Left { why });
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
