//! Sessions that keep less than everything: what is left is whole, and whoever held more, or less, goes on.

use crate::harness::history::History;
use crate::harness::http::{input, state};
use crate::harness::{Client, Engine, NO_FOLDING, Node, PATIENCE, Random, Request, Worker, World, until};
use everthread_edge::folder;
use everthread_edge::retention::Options;
use everthread_protocol::{Cursor, SessionKey};
use everthread_session::view::{Message, View};
use everthread_store::{Head, Store};
use futures_util::StreamExt as _;
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::time::Duration;
use tokio::task::JoinSet;

on_both_engines!(
    a_session_that_weighs_too_much_loses_its_oldest_messages_and_every_door_leads_to_the_rest,
    a_cursor_and_a_device_below_the_floor_get_a_snapshot_and_go_on,
    what_is_too_old_goes_though_nobody_writes_and_the_session_goes_on,
    the_input_of_a_run_that_waits_is_kept_however_old_it_is,
    clients_join_and_resume_while_the_floor_moves_and_hold_what_is_kept,
    a_session_is_deleted_after_its_time_and_not_before_its_last_entry_is_so_old,
    a_patch_of_meta_takes_effect_on_what_is_there_and_nonsense_is_refused,
);

fn key() -> SessionKey {
    "default/s".parse().unwrap()
}

/// Fewer entries than these stay raw behind the end of a run.
const AT_END: u64 = 30;

/// Nodes that look as often as they are asked to.
async fn world<E: Engine>() -> World<E> {
    // A fold ends where a message does if it finds one: it takes a few rounds at once.
    let folding = folder::Options { at_entries: 40, at_end_entries: AT_END, keep_entries: 1 };
    let mut world = World::<E>::folding(folding).await;
    world.retention = Options { pause: Duration::ZERO, ..Options::default() };
    world
}

async fn create(address: SocketAddr, retention: Value) {
    let body = json!({ "session": "s", "agent": "guide", "meta": { "title": "T", "retention": retention } });
    Request::post("/v1/sessions", &body).send(address).await.with(201);
}

async fn head<S: Store>(node: &Node<S>) -> Head {
    node.edge.desk.store().heads(&[key()]).await.unwrap()[0].unwrap()
}

/// So many questions, each answered with a hundred bytes or so.
async fn talk(address: SocketAddr, worker: &mut Worker, rounds: usize) {
    for round in 0..rounds {
        input(address, "s", &format!("Question {round}")).await;
        worker.serve(&["some ", &format!("words of answer {round}, "), &"more ".repeat(10)]).await;
    }
}

/// Waits until something was dropped, what is folded fits, and so little is raw that nothing more will be folded; the head.
async fn fits<S: Store>(node: &Node<S>, max_bytes: u64) -> Head {
    until("it fits", async || {
        // The last write may have come while a fold was under way, and asked for none.
        node.edge.folder.fold(&key()).await.unwrap();
        let head = head(node).await;
        let is_at_rest = head.seq.0 - head.folded_to.0 < AT_END;
        (head.floor.0 > 1 && head.folded_bytes <= max_bytes && is_at_rest).then_some(head)
    })
    .await
}

/// Everything that is kept, as its reader has put it together out of a view and frames.
fn put_together(base: &Value, frames: &[Value]) -> String {
    let mut history = History { view: serde_json::from_value(base.clone()).unwrap(), ..History::new() };
    frames.iter().for_each(|frame| history.apply(frame));
    history.text()
}

async fn a_session_that_weighs_too_much_loses_its_oldest_messages_and_every_door_leads_to_the_rest<
    E: Engine,
>() {
    const MAX_BYTES: u64 = 12_000;
    let world = world::<E>().await;
    let (here, there) = (world.node().await, world.node().await);
    create(here.address, json!({ "max_bytes": MAX_BYTES })).await;
    let mut worker = Worker::join(here.address, "w1", "guide", 1).await;
    talk(here.address, &mut worker, 40).await;
    let last = fits(&here, MAX_BYTES).await;
    let now = state(there.address, "s").await;
    let view: View = serde_json::from_str(&now).unwrap();
    assert!(view.messages().len() > 4 && view.messages().len() < 60, "{} messages", view.messages().len());
    assert!(view.messages().iter().all(|message| message.seq >= last.floor));
    assert_eq!(view.session().meta["title"], "T");
    let dropped = || here.edge.metrics.dropped_bytes.get() + there.edge.metrics.dropped_bytes.get();
    until("it is counted", async || (dropped() > MAX_BYTES).then_some(())).await;

    // From the start: what stands for what was dropped, and everything that is kept.
    let mut client = Client::attach(there.address, "s", json!("start")).await;
    client.told("live").await;
    assert_eq!(client.told[..3], ["attached", "reset", "snapshot"]);
    assert_eq!(client.history.text(), now);
    assert_eq!(client.history.seqs, last.seq.0 - last.floor.0 + 1, "all that is kept came as entries");

    let page = Request::get("/v1/sessions/s/messages?limit=200").send(here.address).await.with(200);
    assert_eq!(
        (page["messages"].as_array().unwrap().len(), &page["more"]),
        (view.messages().len(), &json!(false))
    );

    let export = Request::get("/v1/sessions/s/export").send(there.address).await.text;
    let lines: Vec<Value> = export.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((&lines[0]["floor"], &lines[0]["seq"]), (&json!(last.floor), &json!(last.seq)));
    assert_eq!(put_together(&lines[1]["base"], &lines[2..]), now);

    let refused = Request::get("/v1/sessions/s/entries?after=0").send(here.address).await;
    refused.is_error(400, "bad_cursor");
    let message = refused.body["error"]["message"].as_str().unwrap();
    let begin: Cursor = message.split("after ").nth(1).unwrap().split(',').next().unwrap().parse().unwrap();
    assert_eq!(begin.seq.next(), last.floor, "{message}");
    let path = format!("/v1/sessions/s/entries?limit=5000&after={begin}");
    let page = Request::get(path).send(here.address).await.with(200);
    assert_eq!(put_together(&lines[1]["base"], page["records"].as_array().unwrap()), now);

    let before = last.floor.0 - 1;
    let at_floor =
        Request::get(format!("/v1/sessions/s/state?at={before}")).send(here.address).await.with(200);
    assert_eq!((&at_floor["messages"], &at_floor["seq"]), (&json!([]), &json!(before)));
    let below = Request::get(format!("/v1/sessions/s/state?at={}", before - 1)).send(here.address).await;
    below.is_error(400, "bad_cursor");
}

async fn a_cursor_and_a_device_below_the_floor_get_a_snapshot_and_go_on<E: Engine>() {
    const MAX_BYTES: u64 = 6_000;
    let world = world::<E>().await;
    let node = world.node().await;
    create(node.address, json!({ "max_bytes": MAX_BYTES })).await;
    let mut worker = Worker::join(node.address, "w1", "guide", 1).await;
    talk(node.address, &mut worker, 1).await;
    let mut early = Client::attach(node.address, "s", json!("start")).await;
    early.told("live").await;
    let early = early.history;
    let path = "/v1/sessions/s/devices/phone";
    let body = json!({ "cursor": early.cursor() }).to_string();
    Request::new("PUT", path).body(body).send(node.address).await.with(200);
    talk(node.address, &mut worker, 25).await;
    let last = fits(&node, MAX_BYTES).await;

    let mut socket =
        crate::harness::client::hello_as(node.address, json!({ "subject": "ann", "device": "phone" })).await;
    for from in [json!(early.cursor()), json!("device")] {
        let attached = socket.ask(json!({ "t": "attach", "session": "s", "from": from })).await;
        assert_eq!((&attached["t"], &attached["resumed"]), (&json!("attached"), &json!(false)), "{attached}");
        assert_eq!(attached["acked"], json!(early.view.seq()));
        assert!(attached["unread"].as_u64().unwrap() > 0);
        let reset = socket.wait(|frame| frame["t"] == "reset").await;
        assert_eq!((&reset["attachment"], &reset["reason"]), (&attached["attachment"], &json!("retention")));
        let snapshot = socket.wait(|frame| frame["t"] == "snapshot").await;
        assert_eq!(snapshot["floor"], json!(last.floor));
        assert_eq!(snapshot["attachment"], attached["attachment"]);
    }
    let resets = |reason| node.edge.metrics.resets.with_label_values(&[reason]).get();
    assert_eq!((resets("retention"), resets("epoch")), (2, 0), "the store has lost nothing");
    // Over SSE: the beginning is a reset with the view, whatever cursor below the floor it is asked from.
    for after in [String::new(), format!("?after={}", early.cursor())] {
        let opened = Request::get(format!("/v1/sessions/s/follow{after}")).open(node.address).await;
        assert_eq!(opened.status, 200);
        let mut body = opened.body.into_data_stream();
        let mut text = String::new();
        while !text.contains("event: live") {
            let bytes = tokio::time::timeout(PATIENCE, body.next()).await.expect("nothing came").unwrap();
            text += std::str::from_utf8(&bytes.unwrap()).unwrap();
        }
        let (mut kinds, mut data): (Vec<&str>, Vec<Value>) = (Vec::new(), Vec::new());
        for event in text.split("\n\n").filter(|event| event.contains("event: ")) {
            let field = |name: &str| event.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            kinds.push(field("event: "));
            data.push(serde_json::from_str(field("data: ")).unwrap());
        }
        assert!(kinds[0] == "reset" && !kinds[1..].contains(&"reset"), "{after}: {kinds:?}");
        let entries: Vec<Value> =
            kinds.iter().zip(&data).filter(|(kind, _)| **kind == "entries").map(|(_, d)| d.clone()).collect();
        assert_eq!(put_together(&data[0], &entries), state(node.address, "s").await, "{after}");
    }
    let mut client = Client::resume(node.address, "s", early).await;
    input(node.address, "s", "And on").await;
    worker.serve(&["an answer"]).await;
    client
        .until("the answer", |history| {
            history
                .view
                .messages()
                .last()
                .is_some_and(|message| message.parts.iter().any(|part| part.value == "an answer"))
        })
        .await;
    assert!(client.told.contains(&"reset".to_owned()));
}

async fn what_is_too_old_goes_though_nobody_writes_and_the_session_goes_on<E: Engine>() {
    let world = world::<E>().await;
    let node = world.node().await;
    create(node.address, json!({ "max_age_ms": 700 })).await;
    let mut worker = Worker::join(node.address, "w1", "guide", 1).await;
    let put = json!({ "id": "v", "entries": [{ "type": "state.set", "key": "color", "value": "red" }] });
    Request::post("/v1/sessions/s/entries", &put).send(node.address).await.with(202);
    talk(node.address, &mut worker, 5).await;
    let last = until("everything went", async || {
        let head = head(&node).await;
        (head.floor > head.seq).then_some(head)
    })
    .await;
    assert_eq!(last.folded_bytes, 0);
    let now: Value = serde_json::from_str(&state(node.address, "s").await).unwrap();
    assert_eq!((&now["messages"], &now["runs"]), (&json!([]), &json!([])));
    assert_eq!((&now["values"]["color"], &now["session"]["meta"]["title"]), (&json!("red"), &json!("T")));
    let mut client = Client::attach(node.address, "s", json!("start")).await;
    client.told("live").await;
    let run = input(node.address, "s", "Still there?").await;
    worker.serve(&["Yes."]).await;
    assert_eq!(client.ended(&run).await, "completed");
    assert_eq!(client.history.answer(&run), "Yes.");
}

async fn the_input_of_a_run_that_waits_is_kept_however_old_it_is<E: Engine>() {
    // Nothing is too old until everything is there, and only what is too old is folded: all of it at once.
    const AGE: Duration = Duration::from_secs(3_600);
    let mut world = World::<E>::folding(NO_FOLDING).await;
    world.retention = Options { pause: Duration::ZERO, ..Options::default() };
    let node = world.node().await;
    create(node.address, json!({ "max_age_ms": AGE.as_millis() })).await;
    let mut worker = Worker::join(node.address, "w1", "other", 1).await;
    for round in 0..3 {
        let body = json!({ "text": format!("Question {round}"), "agent": "other" });
        Request::post("/v1/sessions/s/input", &body).send(node.address).await.with(202);
        worker.serve(&["an answer"]).await;
    }
    let run = input(node.address, "s", "Nobody is there yet").await;
    // What comes after it is kept with it.
    for round in 0..3 {
        let body = json!({ "text": format!("Later {round}"), "agent": "other" });
        Request::post("/v1/sessions/s/input", &body).send(node.address).await.with(202);
        worker.serve(&["an answer"]).await;
    }
    let body = json!({ "meta": { "retention": { "max_age_ms": 1 } } }).to_string();
    Request::new("PATCH", "/v1/sessions/s").body(body).send(node.address).await.with(200);
    let patched = std::time::Instant::now();
    until("what is before it went, and some looks later", async || {
        (head(&node).await.floor.0 > 10 && patched.elapsed() > Duration::from_secs(1)).then_some(())
    })
    .await;
    let now: View = serde_json::from_str(&state(node.address, "s").await).unwrap();
    let is_kept = |message: &Message| message.parts.iter().any(|part| part.value == "Nobody is there yet");
    let after = now.messages().iter().skip_while(|message| !is_kept(message)).count();
    assert_eq!((after, now.messages().len()), (7, 7), "{:?}", now.messages());
    let mut late = Worker::join(node.address, "w2", "guide", 1).await;
    let job = late.work().await;
    assert_eq!(job.run, run);
    let messages = job.work["messages"].as_array().unwrap();
    let is_input = |message: &&Value| message["message"] == job.work["input"][0];
    let found = messages.iter().find(is_input).unwrap();
    assert_eq!(found["parts"][0]["value"], "Nobody is there yet");
}

/// Whether the last entry of the test has come.
fn is_over(history: &History) -> bool {
    history.view.values().contains_key("end")
}

/// Joins and comes back, from one node to the other, until it is over.
async fn wander(nodes: [SocketAddr; 2], seed: u64) -> History {
    let mut random = Random::seeded(seed);
    let mut history = History::new();
    while !is_over(&history) {
        let node = nodes[usize::try_from(random.below(2)).unwrap()];
        let held = if random.below(4) == 0 { History::new() } else { history };
        let mut client = Client::resume(node, "s", held).await;
        for _ in 0..=random.below(40) {
            assert!(client.read().await, "the node closed the connection");
            if is_over(&client.history) {
                break;
            }
        }
        history = client.history;
    }
    history
}

async fn clients_join_and_resume_while_the_floor_moves_and_hold_what_is_kept<E: Engine>() {
    const MAX_BYTES: u64 = 3_000;
    const ROUNDS: usize = 100;
    let world = world::<E>().await;
    let (here, there) = (world.node().await, world.node().await);
    create(here.address, json!({ "max_bytes": MAX_BYTES })).await;
    let mut followers = JoinSet::new();
    for seed in 1..=8 {
        followers.spawn(wander([here.address, there.address], seed));
    }
    let mut worker = Worker::join(here.address, "w1", "guide", 1).await;
    let trimmed = |node: &Node<E::Store>| node.edge.metrics.retained.with_label_values(&["trimmed"]).get();
    talk(here.address, &mut worker, ROUNDS).await;
    // How often a node has looked by then is the machine's affair.
    until("a floor that has moved a few times", async || {
        talk(here.address, &mut worker, 10).await;
        (trimmed(&here) + trimmed(&there) > 2).then_some(())
    })
    .await;
    let put = json!({ "id": "end", "entries": [{ "type": "state.set", "key": "end", "value": true }] });
    Request::post("/v1/sessions/s/entries", &put).send(here.address).await.with(202);
    fits(&here, MAX_BYTES).await;
    let now: Value = serde_json::from_str(&state(here.address, "s").await).unwrap();
    let kept = now["messages"].as_array().unwrap();
    while let Some(history) = followers.join_next().await {
        let seq = now["seq"].as_u64().unwrap();
        let mut client = Client::resume(there.address, "s", history.unwrap()).await;
        client.until("everything", |history| history.view.seq().0 >= seq).await;
        let held = serde_json::to_value(&client.history.view).unwrap();
        assert_eq!(
            (&held["session"], &held["values"], &held["seq"]),
            (&now["session"], &now["values"], &now["seq"])
        );
        let own = held["messages"].as_array().unwrap();
        assert_eq!(own[own.len() - kept.len()..], *kept);
    }
}

async fn a_session_is_deleted_after_its_time_and_not_before_its_last_entry_is_so_old<E: Engine>() {
    const TTL_MS: u64 = 1_200;
    let world = world::<E>().await;
    let node = world.node().await;
    let store = node.edge.desk.store();
    create(node.address, json!({ "ttl_ms": TTL_MS })).await;
    // One that stays tells the store's time.
    let clock: SessionKey = "default/clock".parse().unwrap();
    Request::post("/v1/sessions", &json!({ "session": "clock" })).send(node.address).await.with(201);
    let now = async || store.load(&clock).await.unwrap().unwrap().now.0;
    let mut written = now().await;
    for round in 0..4 {
        until("half of its time", async || (now().await >= written + TTL_MS / 2).then_some(())).await;
        let before = now().await;
        let entry = json!({ "type": "event", "name": "x", "data": round });
        let put = json!({ "id": format!("e{round}"), "entries": [entry] });
        let put = Request::post("/v1/sessions/s/entries", &put).send(node.address).await;
        if put.status == 404 {
            // This machine took its time.
            break;
        }
        put.with(202);
        written = before;
    }
    let is_gone = async || store.load(&key()).await.unwrap().is_none().then_some(());
    until("its deletion", is_gone).await;
    assert!(now().await >= written + TTL_MS, "it was deleted too soon");
    Request::get("/v1/sessions/s").send(node.address).await.is_error(404, "no_session");
    let list = Request::get("/v1/sessions").send(node.address).await.with(200);
    assert_eq!(list["sessions"].as_array().unwrap().len(), 1, "{list}");
    // It is gone before its keeper knows.
    let deleted = node.edge.metrics.retained.with_label_values(&["deleted"]);
    until("it is counted", async || (deleted.get() == 1).then_some(())).await;
}

async fn a_patch_of_meta_takes_effect_on_what_is_there_and_nonsense_is_refused<E: Engine>() {
    let world = world::<E>().await;
    let node = world.node().await;
    create(node.address, json!({})).await;
    let mut worker = Worker::join(node.address, "w1", "guide", 1).await;
    talk(node.address, &mut worker, 10).await;
    let before = until("a fold", async || {
        // As in `fits`.
        node.edge.folder.fold(&key()).await.unwrap();
        let head = head(&node).await;
        (head.seq.0 - head.folded_to.0 < AT_END).then_some(head)
    })
    .await;
    assert_eq!(before.floor.0, 1);
    let patch = |retention: Value| {
        let body = json!({ "meta": { "retention": retention } }).to_string();
        Request::new("PATCH", "/v1/sessions/s").body(body)
    };
    for (bad, named) in [
        (json!("90d"), "meta.retention"),
        (json!({ "ttl": 5 }), "ttl_ms"),
        (json!({ "ttl_ms": "x" }), "meta.retention.ttl_ms"),
        (json!({ "max_bytes": 0 }), "meta.retention.max_bytes"),
    ] {
        let refused = patch(bad).send(node.address).await;
        refused.is_error(400, "bad_request");
        assert!(refused.text.contains(named), "{}", refused.text);
    }
    // What is wrong with a body is told with its place.
    let refused = Request::post("/v1/sessions/s/fork", &json!({ "at": "x" })).send(node.address).await;
    refused.is_error(400, "bad_request");
    assert!(refused.text.contains("body: at: "), "{}", refused.text);
    let large = json!({ "meta": { "x": "x".repeat(9_000) } }).to_string();
    let refused = Request::new("PATCH", "/v1/sessions/s").body(large).send(node.address).await;
    refused.is_error(413, "too_large");
    assert_eq!(refused.body["error"]["retryable"], json!(false));
    patch(json!({ "max_bytes": 1_500 })).send(node.address).await.with(200);
    fits(&node, 1_500).await;
    let bad = json!({ "session": "t", "meta": { "retention": [] } });
    Request::post("/v1/sessions", &bad).send(node.address).await.is_error(400, "bad_request");
}
