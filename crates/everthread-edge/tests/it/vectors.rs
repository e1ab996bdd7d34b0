//! The conformance vectors against a real socket: what they accept is accepted, what they refuse is refused with their
//! code, and the connection outlives all of it.

use crate::harness::http::{create, input, state};
use crate::harness::{Client, Engine, NO_FOLDING, Request, Socket, Worker, World, client};
use serde_json::{Value, json};

on_both_engines!(
    client_frames_are_answered_as_the_vectors_say,
    worker_frames_are_answered_as_the_vectors_say,
    entries_are_scanned_as_the_vectors_say,
);

fn cases(text: &str) -> Vec<Value> {
    let file: Value = serde_json::from_str(text).unwrap();
    file["cases"].as_array().unwrap().clone()
}

fn text_of(case: &Value) -> String {
    let text = |name: &str| case[name].as_str().map(str::to_owned);
    let pieces = || {
        let pieces = case["pieces"].as_array()?.iter();
        let whole =
            pieces.map(|p| p[0].as_str().unwrap().repeat(usize::try_from(p[1].as_u64().unwrap()).unwrap()));
        Some(whole.collect())
    };
    text("frame").or_else(|| text("text")).or_else(pieces).unwrap_or_default()
}

/// Codes that a frame may get whose form is right: what it is about is not there.
const FORM_IS_RIGHT: [&str; 7] =
    ["not_supported", "no_session", "no_run", "not_found", "fenced", "bad_cursor", "id_conflict"];

/// Sends a frame, then one whose answer is known: what came between is the answer, if there was one.
async fn answer_to(socket: &mut Socket, frame: String, probe: &Value) -> Option<Value> {
    socket.send_text(frame).await;
    let id = socket.fresh_id();
    let mut probe = probe.clone();
    probe["id"] = id.clone().into();
    socket.send(&probe).await;
    let mut answer = None;
    loop {
        let frame = socket.frame().await;
        if frame["id"] == id {
            return answer;
        }
        if !["entries", "live", "lag", "presence", "sessions", "work", "fenced"]
            .contains(&frame["t"].as_str().unwrap())
        {
            answer.get_or_insert(frame);
        }
    }
}

#[track_caller]
fn check(case: &Value, answer: Option<&Value>) {
    let code = answer.map_or(&Value::Null, |answer| &answer["code"]);
    if case["accepted"] == true {
        let is_fine = code.is_null() || code.as_str().is_some_and(|code| FORM_IS_RIGHT.contains(&code));
        // `hello` comes once, and an attachment may not be there.
        let message = answer.and_then(|answer| answer["message"].as_str()).unwrap_or_default();
        let is_about_the_connection =
            message.contains("hello comes once") || message.contains("no such attachment");
        assert!(is_fine || is_about_the_connection, "{}: {answer:?}", case["name"]);
    } else {
        assert_eq!(*code, case["code"], "{}: {answer:?}", case["name"]);
    }
}

async fn client_frames_are_answered_as_the_vectors_say<E: Engine>() {
    let world = World::<E>::start().await;
    let node = world.node().await;
    create(node.address, "s1").await;
    let mut socket = client::hello_as(node.address, json!({ "subject": "ann", "device": "d1" })).await;
    socket.ask(json!({ "t": "attach", "session": "s1", "from": "start", "presence": true })).await;
    let probe = json!({ "t": "history", "attachment": 1, "limit": 1 });
    for case in cases(include_str!("../../../../sdk/conformance/vectors/client_frames.json")) {
        if case["name"] == "detach" {
            continue;
        }
        let answer = answer_to(&mut socket, text_of(&case), &probe).await;
        check(&case, answer.as_ref());
    }
    let mut follower = Client::attach(node.address, "s1", json!("start")).await;
    follower.holds_the_state(node.address).await;
}

async fn worker_frames_are_answered_as_the_vectors_say<E: Engine>() {
    let world = World::<E>::start().await;
    let node = world.node().await;
    create(node.address, "s").await;
    let run = input(node.address, "s", "Hi").await;
    let mut worker = Worker::join(node.address, "w1", "guide", 1).await;
    let mut job = worker.work().await;
    for case in cases(include_str!("../../../../sdk/conformance/vectors/worker_frames.json")) {
        if case["name"] == "drain" {
            continue;
        }
        let frame = text_of(&case);
        // As this run's own, where the frame can be read: so it gets as far as its entries.
        let own = match serde_json::from_str::<Value>(&frame) {
            Ok(mut value)
                if value["t"] == "append" && value["fence"].is_string() && case["accepted"] != true =>
            {
                value["run"] = run.clone().into();
                value["fence"] = job.fence.clone().into();
                value["producer"] = json!({ "incarnation": 1, "batch": 1 });
                value.to_string()
            }
            _ => frame,
        };
        // Writes of one run are answered in order.
        let probe = json!({ "t": "append", "run": run, "fence": "1", "entries": [{ "type": "x-a" }],
            "producer": { "incarnation": 1, "batch": 1 } });
        let answer = answer_to(&mut worker.socket, own, &probe).await;
        check(&case, answer.as_ref());
    }
    worker.say(&mut job, "still here").await;
    worker.end(&mut job, "completed").await;
    let mut follower = Client::attach(node.address, "s", json!("start")).await;
    assert_eq!(follower.ended(&run).await, "completed");
    assert_eq!(follower.history.answer(&run), "still here");
    follower.holds_the_state(node.address).await;
}

async fn entries_are_scanned_as_the_vectors_say<E: Engine>() {
    // A fold keeps the bytes of every entry, and writes the array around them anew.
    let world = World::<E>::folding(NO_FOLDING).await;
    let node = world.node().await;
    create(node.address, "s").await;
    let mut socket = client::hello(node.address).await;
    socket.ask(json!({ "t": "attach", "session": "s", "from": "start" })).await;
    let mut written = 1;
    for case in cases(include_str!("../../../../sdk/conformance/vectors/scan.json")) {
        if case["hex"].is_string() {
            continue;
        }
        let entries = text_of(&case);
        let id = socket.fresh_id();
        let frame = format!("{{\"t\":\"put\",\"id\":\"{id}\",\"attachment\":1,\"entries\":{entries}}}");
        let probe = json!({ "t": "history", "attachment": 1, "limit": 1 });
        let answer = answer_to(&mut socket, frame, &probe).await.expect("an answer");
        match (case["accepted"].as_u64(), case["refused"].as_str()) {
            (Some(_), _) if entries.contains("nope") => assert_eq!(answer["code"], "entry_not_allowed"),
            (Some(count), _) => {
                assert_eq!(answer["t"], "ok", "{}: {answer}", case["name"]);
                written += count;
                assert!(answer["cursor"].as_str().unwrap().ends_with(&format!(".{written}")), "{answer}");
            }
            // Nothing but spaces makes the frame no JSON.
            (None, Some("too_large" | "too_many")) if !entries.trim().is_empty() => {
                assert_eq!(answer["code"], "too_large", "{}", case["name"])
            }
            (None, _) => assert_eq!(answer["code"], "bad_request", "{}: {answer}", case["name"]),
        }
    }
    // What was accepted is kept byte by byte.
    let page = Request::get("/v1/sessions/s/entries?limit=5000").send(node.address).await;
    for case in cases(include_str!("../../../../sdk/conformance/vectors/scan.json")) {
        let text = text_of(&case);
        if case["accepted"].is_u64() && !text.contains("nope") && !text.is_empty() && text.len() < 1000 {
            assert!(page.text.contains(text.trim()), "{}", case["name"]);
        }
    }
    assert!(state(node.address, "s").await.contains(&format!("\"seq\":{written}")));
}
