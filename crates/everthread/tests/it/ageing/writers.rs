//! Those who write, archive, and read whole sessions, and what they were told.

use super::fleet::{Asked, Random, Shared, seq_of};
use super::log::Log;
use crate::node::TOKEN;
use everthread_worker::{CancellationToken, Error, Role, Run, Worker};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;

/// Runs at once per worker.
const CAPACITY: u32 = 16;

/// Stops its workers when dropped.
pub struct Serving(CancellationToken);

impl Drop for Serving {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

/// A worker at each node, which writes numbers and remembers what was confirmed.
pub fn serve(shared: &Arc<Shared>) -> Serving {
    let stop = CancellationToken::new();
    for url in &shared.urls {
        let writer = shared.clone();
        let worker = Worker::builder(url, TOKEN)
            .agent("streamer", CAPACITY, move |run| write(run, writer.clone()))
            .drain_deadline(Duration::ZERO)
            .connect()
            .unwrap();
        let stopped = stop.clone();
        // A thread of its own: the readers must not starve it.
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(worker.run(stopped)).unwrap();
        });
    }
    Serving(stop)
}

/// Writes as many numbers as the input says, with a pause after each, and sometimes waits until they are confirmed.
async fn write(run: Run, shared: Arc<Shared>) -> Result<(), Error> {
    let numbers: Vec<u64> = run.input_text().split(' ').map(|n| n.parse().unwrap()).collect();
    let [tokens, pause_ms, confirm_every] = numbers[..] else { panic!("{numbers:?}") };
    let confirmed = |tokens| {
        shared.confirmed.lock().unwrap().insert(run.id().to_string(), tokens);
    };
    let mut message = run.message(Role::Assistant).await?;
    let mut text = message.text().await?;
    for number in 0..tokens {
        text.append(&format!("{number} ")).await?;
        if number % confirm_every == 0 {
            run.flushed().await?;
            confirmed(number + 1);
        }
        tokio::time::sleep(Duration::from_millis(pause_ms)).await;
    }
    message.complete().await?;
    run.flushed().await?;
    confirmed(tokens);
    Ok(())
}

/// Asks for one run after the other, with pauses in which the session may be archived.
pub async fn ask_for_runs(shared: Arc<Shared>, session: usize) {
    let mut random = shared.random();
    let name = shared.sessions[session].clone();
    for number in 0.. {
        if shared.is_stopping() {
            return;
        }
        let text = format!("{} {} {}", 3 + random.below(60), random.below(8), 1 + random.below(12));
        let body = json!({ "id": format!("ask-{number}"), "message": format!("q{number}"), "text": text });
        let path = format!("/v1/sessions/{name}/input");
        let answer = shared.insist(&mut random, &path, Some(&body)).await;
        let said = |what: &str| answer[what].as_str().unwrap_or_else(|| panic!("{answer}")).to_owned();
        let asked = Asked { message: said("message"), run: said("run"), to: seq_of(&answer) };
        shared.asked.lock().unwrap()[session].push(asked);
        loop {
            let status = shared.insist(&mut random, &format!("/v1/sessions/{name}"), None).await;
            if status["runs"] == json!([]) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        // Now and then long enough to be archived by itself.
        let ms = if random.below(8) == 0 { 1_500 } else { random.below(250) };
        shared.pause(ms).await;
    }
}

/// Writes one mark after the other.
pub async fn put_marks(shared: Arc<Shared>, session: usize) {
    let mut random = shared.random();
    let path = format!("/v1/sessions/{}/entries", shared.sessions[session]);
    // Soon only the base of a session that is trimmed has these.
    for (id, entry) in [
        ("first-value", json!({ "type": "state.set", "key": "first", "value": 1 })),
        ("first-event", json!({ "type": "event", "name": "first", "data": 1, "keep": "latest" })),
    ] {
        let body = json!({ "id": id, "entries": [entry] });
        shared.insist(&mut random, &path, Some(&body)).await;
    }
    for number in 0.. {
        if shared.is_stopping() {
            return;
        }
        let mark = format!("mark-{number}");
        let mut entries = vec![json!({ "type": "x-mark", "mark": mark })];
        if number % 4 == 0 {
            entries
                .insert(0, json!({ "type": "event", "name": "last-mark", "data": mark, "keep": "latest" }));
        }
        let body = json!({ "id": mark, "entries": entries });
        let answer = shared.insist(&mut random, &path, Some(&body)).await;
        if number % 4 == 0 {
            shared.kept.lock().unwrap()[session].last_mark = Some(mark.clone());
        }
        shared.marks.lock().unwrap()[session].push((mark, seq_of(&answer)));
        if number % 10 == 0 {
            let body = json!({ "id": format!("turn-{number}"), "entries": [{ "type": "state.set", "key": "turn", "value": number }] });
            shared.insist(&mut random, &path, Some(&body)).await;
            shared.kept.lock().unwrap()[session].turn = Some(number);
        }
        let ms = if random.below(25) == 0 { 1_500 } else { random.below(60) };
        shared.pause(ms).await;
    }
}

/// Has sessions archived through whatever node, again and again.
pub async fn archive(shared: Arc<Shared>) {
    let mut random = shared.random();
    while !shared.is_stopping() {
        let path = format!("/v1/sessions/{}/archive", random.one_of(&shared.sessions));
        let answer = shared.ask(shared.any(&mut random), &path, Some(&json!({}))).await;
        if let Some((status, text)) = answer {
            let is_expected = status == 200 || text.contains(r#""retryable":true"#);
            assert!(is_expected, "{status} {text}");
        }
        shared.pause(random.below(60)).await;
    }
}

/// Reads sessions whole, as exports and as states: each must be the beginning of what there is in the end.
pub async fn read_whole(shared: Arc<Shared>) {
    let mut random = shared.random();
    while !shared.is_stopping() {
        let session = random.one_of(&shared.sessions).clone();
        let view = if random.below(2) == 0 {
            export(&shared, &mut random, &session).await
        } else {
            let path = format!("/v1/sessions/{session}/state");
            Some(shared.insist(&mut random, &path, None).await)
        };
        if let Some(view) = view {
            check_counting(&view);
        }
        shared.pause(random.below(300)).await;
    }
}

/// What an export comes to, if it was not cut off.
async fn export(shared: &Shared, random: &mut Random, session: &str) -> Option<Value> {
    let log = Log::read(shared, shared.any(random), session).await?;
    shared.tally.add("exports", 1);
    Some(log.view)
}

/// Every answer counts from 0 up to wherever it is.
pub fn check_counting(view: &Value) {
    for message in view["messages"].as_array().unwrap() {
        if message["role"] == "assistant" {
            for part in message["parts"].as_array().unwrap() {
                count(part["value"].as_str().unwrap_or_default());
            }
        }
    }
}

/// How far an answer counts; panics unless it counts up without a gap.
pub fn count(text: &str) -> u64 {
    let mut next = 0;
    for word in text.split_whitespace() {
        assert_eq!(word.parse::<u64>().ok(), Some(next), "{text}");
        next += 1;
    }
    next
}
