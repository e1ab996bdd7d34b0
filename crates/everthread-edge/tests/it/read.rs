//! Reading a session over HTTP: as it is, as it was, page by page, and all of it.

use crate::harness::history::History;
use crate::harness::http::{create, input, state};
use crate::harness::{Engine, NO_FOLDING, Request, Worker, World};
use everthread_protocol::SessionKey;
use everthread_store::Store as _;
use serde_json::{Value, json};
use tokio::task::JoinSet;

on_both_engines!(
    the_state_at_a_seq_is_what_a_follower_held_there,
    messages_come_backwards_in_pages_without_holes,
    an_export_is_the_whole_log_line_by_line,
    wrong_questions_are_told_apart,
    entries_stand_in_the_log_as_they_were_sent,
    events_change_nothing_but_the_log_and_a_repeat_is_known,
);

async fn the_state_at_a_seq_is_what_a_follower_held_there<E: Engine>() {
    // Inside an append that a fold has merged, the state is that before it.
    let world = World::<E>::folding(NO_FOLDING).await;
    let node = world.node().await;
    create(node.address, "s").await;
    let mut worker = Worker::join(node.address, "w1", "guide", 1).await;
    for round in 0..3 {
        input(node.address, "s", &format!("Question {round}")).await;
        worker.serve(&["some ", "words ", "more"]).await;
    }
    let page = Request::get("/v1/sessions/s/entries?after=0&limit=5000").send(node.address).await.with(200);
    let mut history = History::new();
    for record in page["records"].as_array().unwrap() {
        history.apply(record);
        let at = history.view.seq().0;
        let then = Request::get(format!("/v1/sessions/s/state?at={at}")).send(node.address).await;
        assert_eq!(then.text, history.text(), "at {at}");
    }
    let now = state(node.address, "s").await;
    assert_eq!(history.text(), now);
    let beyond = Request::get("/v1/sessions/s/state?at=999999").send(node.address).await;
    assert_eq!(beyond.text, now, "there is nothing beyond the end");
}

async fn messages_come_backwards_in_pages_without_holes<E: Engine>() {
    let world = World::<E>::start().await;
    let node = world.node().await;
    create(node.address, "s").await;
    let mut worker = Worker::join(node.address, "w1", "guide", 1).await;
    for round in 0..5 {
        input(node.address, "s", &format!("Question {round}")).await;
        worker.serve(&["answer"]).await;
    }
    let all: Value = serde_json::from_str(&state(node.address, "s").await).unwrap();
    let all = all["messages"].as_array().unwrap();
    let mut read: Vec<Value> = Vec::new();
    loop {
        let before = read.first().map_or(String::new(), |first| format!("&before={}", first["seq"]));
        let path = format!("/v1/sessions/s/messages?limit=3{before}");
        let page = Request::get(path).send(node.address).await.with(200);
        let messages = page["messages"].as_array().unwrap();
        assert!(messages.len() <= 3);
        read.splice(0..0, messages.iter().cloned());
        if page["more"] == false {
            break;
        }
    }
    assert_eq!(&read, all);
}

async fn an_export_is_the_whole_log_line_by_line<E: Engine>() {
    let world = World::<E>::start().await;
    let node = world.node().await;
    create(node.address, "s").await;
    let mut worker = Worker::join(node.address, "w1", "guide", 1).await;
    let long = "x".repeat(100_000);
    for _ in 0..12 {
        input(node.address, "s", "More").await;
        worker.serve(&[&long, "end"]).await;
    }
    let export = Request::get("/v1/sessions/s/export").send(node.address).await;
    let mut lines = export.text.lines();
    let head: Value = serde_json::from_str(lines.next().unwrap()).unwrap();
    assert_eq!((&head["session"], &head["meta"]["agent"]), (&json!("s"), &json!("guide")));
    let mut history = History::new();
    for line in lines {
        history.apply(&serde_json::from_str(line).unwrap());
    }
    assert_eq!(history.view.seq().0, head["seq"].as_u64().unwrap());
    assert_eq!(history.text(), state(node.address, "s").await);
}

async fn wrong_questions_are_told_apart<E: Engine>() {
    let world = World::<E>::start().await;
    let node = world.node().await;
    create(node.address, "s").await;
    for path in ["state?at=x", "state?at=-1", "messages?limit=0", "messages?limit=201", "messages?color=1"] {
        Request::get(format!("/v1/sessions/s/{path}")).send(node.address).await.is_error(400, "bad_request");
    }
    for path in ["state", "messages", "export"] {
        Request::get(format!("/v1/sessions/none/{path}"))
            .send(node.address)
            .await
            .is_error(404, "no_session");
    }
    let counted = |code| node.edge.metrics.errors.with_label_values(&[code]).get();
    assert_eq!((counted("bad_request"), counted("no_session")), (5, 3));
}

async fn entries_stand_in_the_log_as_they_were_sent<E: Engine>() {
    let world = World::<E>::folding(NO_FOLDING).await;
    let node = world.node().await;
    create(node.address, "s").await;
    let entries = r#"[{"type":"x-n", "z":1.50, "a":123456789012345678901234567890, "e":"\u00e9"}]"#;
    let body = format!("{{\"entries\":{entries}}}");
    Request::new("POST", "/v1/sessions/s/entries").body(body).send(node.address).await.with(202);
    let page = Request::get("/v1/sessions/s/entries").send(node.address).await;
    assert!(page.text.contains(entries), "{}", page.text);
}

async fn events_change_nothing_but_the_log_and_a_repeat_is_known<E: Engine>() {
    let world = World::<E>::start().await;
    let (here, there) = (world.node().await, world.node().await);
    create(here.address, "s").await;
    let key: SessionKey = "default/s".parse().unwrap();
    let head = async || here.edge.desk.store().heads(std::slice::from_ref(&key)).await.unwrap()[0].unwrap();
    let before = head().await;
    let mut puts = JoinSet::new();
    for n in 0..40 {
        let address = if n % 2 == 0 { here.address } else { there.address };
        let event =
            json!({ "id": format!("e{n}"), "entries": [{ "type": "event", "name": "seen", "data": n }] });
        puts.spawn(Request::post("/v1/sessions/s/entries", &event).send(address));
    }
    for put in puts.join_all().await {
        put.with(202);
    }
    let after = head().await;
    assert_eq!((after.seq.0 - before.seq.0, after.version), (40, before.version));
    let event = json!({ "id": "e7", "entries": [{ "type": "event", "name": "seen", "data": 7 }] });
    let again = Request::post("/v1/sessions/s/entries", &event).send(here.address).await.with(202);
    assert_eq!(again["duplicate"], true, "{again}");
    assert_eq!(head().await.seq, after.seq);
}
