//! People who ask for runs, leave marks, and press every button, over HTTP, and repeat each request under its id until it is
//! answered. They note what they ask before they ask it, and what they are told.

use crate::history::{Level, Recorder, What};
use crate::ledger::{Ledger, Request};
use crate::random::Random;
use crate::worker::{PHOENIX, Task, WRITER};
use anyhow::Context as _;
use reqwest::Client;
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

/// For one answer, before the request is repeated.
const ANSWER_MAX: Duration = Duration::from_secs(8);
/// Between two tries.
const RETRY: Duration = Duration::from_millis(150);
/// A control waits for its outcome so long in one request, in milliseconds.
const WAIT_MS: u64 = 3_000;

/// What all askers share.
#[derive(Debug)]
pub struct Shared {
    /// Where requests go, one of these each time.
    pub urls: Vec<String>,
    /// The token that nodes want.
    pub token: String,
    /// Where all is noted.
    pub recorder: Recorder,
    /// Fires when nothing new is to be asked for.
    pub stopping: CancellationToken,
    /// Fires when what is not answered yet never will be.
    pub giving_up: CancellationToken,
    http: Client,
    next: AtomicU64,
    /// How long runs are, and how fast.
    pub pace: Pace,
}

/// How much is written.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// Most tokens of a run.
    pub tokens_max: u64,
    /// Milliseconds between two tokens.
    pub pause_ms: u64,
    /// Most milliseconds between two marks.
    pub mark_ms: u64,
}

/// What a request came to.
pub enum Answer {
    /// What was answered.
    Done(Value),
    /// Asking again changes nothing.
    Refused(String),
    /// There is no more time.
    GivenUp,
}

impl Shared {
    /// Ready to ask.
    pub fn new(
        urls: Vec<String>,
        token: &str,
        recorder: Recorder,
        pace: Pace,
    ) -> anyhow::Result<Arc<Shared>> {
        let http = Client::builder().timeout(ANSWER_MAX).build().context("no HTTP client")?;
        let (stopping, giving_up) = (CancellationToken::new(), CancellationToken::new());
        let (token, next) = (token.to_owned(), AtomicU64::new(1));
        Ok(Arc::new(Shared { urls, token, recorder, stopping, giving_up, http, next, pace }))
    }

    /// A name that nothing has yet.
    pub fn fresh(&self, what: &str) -> String {
        format!("{what}-{}", self.next.fetch_add(1, Ordering::Relaxed))
    }

    /// Waits so long, or until nothing new is to be asked for.
    async fn pause(&self, ms: u64) {
        drop(tokio::time::timeout(Duration::from_millis(ms), self.stopping.cancelled()).await);
    }

    /// One try: status and body.
    async fn try_once(&self, url: &str, path: &str, body: Option<&Value>) -> reqwest::Result<(u16, Value)> {
        let url = format!("{url}{path}");
        let request = match body {
            Some(body) => self.http.post(url).body(body.to_string()),
            None => self.http.get(url),
        };
        let answer = request.bearer_auth(&self.token).send().await?;
        let status = answer.status().as_u16();
        let text = answer.text().await?;
        // The load balancer speaks for itself when it has no node: not JSON, and to be tried again.
        Ok((status, serde_json::from_str(&text).unwrap_or(Value::Null)))
    }

    /// Asks until there is an answer.
    pub async fn insist(&self, random: &mut Random, path: &str, body: Option<&Value>) -> Answer {
        loop {
            let url = &self.urls[random.index(self.urls.len())];
            match self.try_once(url, path, body).await {
                Ok((200..300, answer)) if !answer.is_null() => return Answer::Done(answer),
                Ok((400.., answer))
                    if answer["error"]["retryable"] == false && answer["error"]["code"] != "internal" =>
                {
                    return Answer::Refused(answer["error"].to_string());
                }
                Ok((_, answer)) if answer["error"]["code"] == "internal" => {
                    let (path, why) = (path.to_owned(), answer["error"].to_string());
                    self.recorder.note("asker", What::Internal { path, why });
                }
                Ok(_) | Err(_) => {}
            }
            tokio::select! {
                () = self.giving_up.cancelled() => return Answer::GivenUp,
                () = sleep(RETRY + Duration::from_millis(random.below(100))) => {}
            }
        }
    }

    /// Makes a session.
    pub async fn make(&self, session: &str, agent: &str) -> anyhow::Result<()> {
        let body = json!({ "session": session, "agent": agent });
        match self.insist(&mut Random::seeded(1), "/v1/sessions", Some(&body)).await {
            Answer::Done(_) => Ok(()),
            Answer::Refused(why) => anyhow::bail!("{session} cannot be made: {why}"),
            Answer::GivenUp => anyhow::bail!("{session} cannot be made in time"),
        }
    }

    /// The runs of a session that are open, with their status.
    async fn open_runs(&self, random: &mut Random, session: &str) -> Vec<(String, String)> {
        let path = format!("/v1/sessions/{session}");
        let Answer::Done(answer) = self.insist(random, &path, None).await else { return Vec::new() };
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let runs = answer["runs"].as_array().into_iter().flatten();
        runs.map(|run| (text(&run["run"]), text(&run["status"]))).collect()
    }
}

fn choose_task(shared: &Shared, random: &mut Random) -> Task {
    let Pace { tokens_max, pause_ms, .. } = shared.pace;
    let tokens = random.between(tokens_max / 4 + 1, tokens_max);
    let asks = random.below(8) == 0;
    Task {
        asks,
        tokens,
        pause_ms: random.between(pause_ms / 2, pause_ms),
        confirm_every: random.between(1, 16),
    }
}

/// Asks for one run after the other, so that somebody nearly always writes; some wait in the queue, some interrupt.
pub async fn ask_for_runs(shared: Arc<Shared>, session: String, seed: u64) {
    let mut random = Random::seeded(seed);
    let mut ledger = Ledger::new(shared.clone(), &session, format!("asker-{session}"));
    while !shared.stopping.is_cancelled() {
        let (id, name) = (shared.fresh("in"), shared.fresh("q"));
        let text = choose_task(&shared, &mut random).text();
        let agent = if random.below(2) == 0 { WRITER } else { PHOENIX };
        let mut body = json!({ "id": id, "message": name, "text": text, "agent": agent });
        if random.below(6) == 0 {
            body["when_busy"] = "interrupt".into();
        }
        ledger.put(&mut random, Request { id, name, text, way: "input", body }).await;
        // At most one waits behind the one at work.
        while !shared.stopping.is_cancelled() && shared.open_runs(&mut random, &session).await.len() > 1 {
            shared.pause(100 + random.below(200)).await;
        }
        shared.pause(random.below(400)).await;
    }
    ledger.close(&mut random).await;
}

/// Leaves one mark after the other.
pub async fn leave_marks(shared: Arc<Shared>, session: String, seed: u64) {
    let mut random = Random::seeded(seed);
    let mut ledger = Ledger::new(shared.clone(), &session, format!("marker-{session}"));
    while !shared.stopping.is_cancelled() {
        ledger.leave_mark(&mut random).await;
        shared.pause(random.below(shared.pace.mark_ms)).await;
    }
    ledger.close(&mut random).await;
}

/// Presses buttons: cancels, steers, pauses, resumes, and answers what is asked, sometimes twice at once.
pub async fn press_buttons(shared: Arc<Shared>, session: String, seed: u64) {
    let mut random = Random::seeded(seed);
    while !shared.stopping.is_cancelled() {
        let runs = shared.open_runs(&mut random, &session).await;
        if let Some((run, status)) = runs.first() {
            if status == "suspended" {
                let mut again = Random::seeded(random.below(u64::MAX));
                tokio::join!(
                    answer(&shared, &session, run, &mut random),
                    answer(&shared, &session, run, &mut again)
                );
            } else {
                press(&shared, &session, run, &mut random).await;
            }
        }
        shared.pause(300 + random.below(1_500)).await;
    }
    // Nothing that waits for people may wait for ever.
    while !shared.giving_up.is_cancelled() {
        for (run, status) in shared.open_runs(&mut random, &session).await {
            match status.as_str() {
                "suspended" => answer(&shared, &session, &run, &mut random).await,
                _ => ask(&shared, &session, &run, "resume", None, &mut random).await,
            }
        }
        tokio::select! {
            () = shared.giving_up.cancelled() => {}
            () = sleep(Duration::from_millis(500)) => {}
        }
    }
}

async fn press(shared: &Shared, session: &str, run: &str, random: &mut Random) {
    match random.below(8) {
        0 | 1 => ask(shared, session, run, "cancel", None, random).await,
        2 | 3 => {
            let mode = ["now", "next_step"][random.index(2)];
            let steer = json!({ "mode": mode, "payload": { "text": "write 4 5 2" } });
            ask(shared, session, run, "steer", Some(steer), random).await;
        }
        4 => {
            ask(shared, session, run, "pause", None, random).await;
            shared.pause(random.below(800)).await;
            ask(shared, session, run, "resume", None, random).await;
        }
        _ => {}
    }
}

async fn answer(shared: &Shared, session: &str, run: &str, random: &mut Random) {
    let decision = ["approved", "denied"][random.index(2)];
    let payload = json!({ "approval": "pay", "decision": decision, "digest": "ann:4200" });
    ask(shared, session, run, "answer", Some(json!({ "payload": payload })), random).await;
}

/// Asks for a control until it has its outcome.
async fn ask(
    shared: &Shared,
    session: &str,
    run: &str,
    kind: &str,
    more: Option<Value>,
    random: &mut Random,
) {
    let control = shared.fresh("c");
    let who = format!("presser-{session}");
    let mut body = json!({ "id": control, "kind": kind, "target": { "run": run }, "expires_ms": 10_000 });
    for (name, value) in more.iter().filter_map(Value::as_object).flatten() {
        body[name] = value.clone();
    }
    let note = |what| shared.recorder.note(&who, what);
    let (session_name, kind, run) = (session.to_owned(), kind.to_owned(), run.to_owned());
    note(What::Asked { session: session_name.clone(), control: control.clone(), kind, run });
    let path = format!("/v1/sessions/{session}/control?wait_ms={WAIT_MS}");
    loop {
        match shared.insist(random, &path, Some(&body)).await {
            Answer::Done(receipt) => {
                let stage = receipt["stage"].as_str().unwrap_or_default().to_owned();
                let outcome = receipt["outcome"].as_str().map(str::to_owned);
                let level = Level::named(receipt["ack"].as_str());
                let is_settled = stage == "settled";
                note(What::Receipt {
                    session: session_name.clone(),
                    control: control.clone(),
                    stage,
                    outcome,
                    level,
                });
                if is_settled {
                    return;
                }
            }
            Answer::Refused(why) => return note(What::Refused { id: control, why }),
            Answer::GivenUp => return,
        }
    }
}
