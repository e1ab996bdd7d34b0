//! A session that a node of a later release has decided upon, and a node of this one beside it.

use crate::harness::begun::{Begun, key};
use crate::harness::http::{create, input};
use crate::harness::{Client, Engine, Request};
use everthread_session::view::Message;
use everthread_store::{Change, Store as _, Write};
use serde_json::{Value, json};

on_both_engines!(readers_are_served_and_decisions_are_to_be_tried_again);

/// Puts a state in the place of the one that is there, as a decision does.
async fn decide<E: Engine>(begun: &Begun<E>, state: &str) {
    let change = Change {
        expect: Some(begun.loaded().await.version),
        state,
        next_due: None,
        grant: None,
        lease_ms: 0,
        revoke: &[],
        unwritten: None,
    };
    let by = r#"{"kind":"system","id":"later"}"#;
    let entry = r#"[{"type":"x-later"}]"#;
    let write = Write {
        by,
        run: None,
        entries: entry,
        count: 1,
        producer: None,
        fence: None,
        change: Some(change),
        not_after: None,
    };
    begun.there.edge.desk.store().write(&key("s"), write).await.unwrap();
}

async fn readers_are_served_and_decisions_are_to_be_tried_again<E: Engine>() {
    let mut begun = Begun::<E>::start().await;
    begun.say("Hel").await;
    let known = begun.loaded().await.state;
    // Not even its shape is known here.
    let mut later: Value = serde_json::from_str(&known).unwrap();
    (later["schema"], later["runs"]) = (json!(1_000), json!("kept elsewhere"));
    decide(&begun, &later.to_string()).await;

    // Who holds a run goes on writing it, and everybody follows and reads.
    begun.say("lo").await;
    let is_whole = |message: &Message| message.parts.first().is_some_and(|part| part.value == "Hello");
    begun
        .client
        .until("the text is whole", |history| history.view.messages().last().is_some_and(is_whole))
        .await;
    let late = Client::attach(begun.here.address, "s", json!("start")).await;
    drop(late);
    for path in ["messages", "entries", "state", "export", "devices", "presence"] {
        Request::get(format!("/v1/sessions/s/{path}")).send(begun.here.address).await.with(200);
    }
    let listed = Request::get("/v1/sessions").send(begun.here.address).await.with(200);
    assert_eq!(listed["sessions"][0]["session"], "s", "{listed}");
    // Nothing is decided on what is not understood, and nothing of it is written.
    let asked = json!({ "id": "p1", "text": "And?", "agent": "guide" });
    let refused = Request::post("/v1/sessions/s/input", &asked).send(begun.here.address).await;
    refused.is_error(503, "unavailable");
    assert_eq!(refused.body["error"]["no_side_effects"], true, "{}", refused.body);
    let cancel = json!({ "id": "c1", "kind": "cancel", "target": { "run": begun.run } });
    Request::post("/v1/sessions/s/control", &cancel)
        .send(begun.there.address)
        .await
        .is_error(503, "unavailable");
    let frame = begun.job.end("completed");
    let end = begun.worker.socket.ask(frame.clone()).await;
    assert_eq!((&end["code"], &end["retryable"]), (&json!("unavailable"), &json!(true)), "{end}");
    // No other session is the worse for it.
    create(begun.here.address, "other").await;
    input(begun.here.address, "other", "Hi").await;

    // A node that understands it has it again: what is repeated was not done before.
    decide(&begun, &known).await;
    let answer = Request::post("/v1/sessions/s/input", &asked).send(begun.here.address).await.with(202);
    assert_eq!(answer["duplicate"], Value::Null, "{answer}");
    let end = begun.worker.socket.ask(frame).await;
    assert_eq!(end["t"], "ok", "{end}");
    assert_eq!(begun.client.ended(&begun.run).await, "completed");
    begun.all_agree().await;
}
