//! An answer on its way to those who follow it.

use crate::harness::history::History;
use crate::harness::http::{create, input, state};
use crate::harness::{Client, Engine, PATIENCE, Request, Worker, World, client};
use futures_util::StreamExt as _;
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::time::Duration;
use tokio::time::timeout;

on_both_engines!(
    a_streamed_answer_reaches_every_follower_in_order_once,
    who_joins_in_the_middle_of_an_answer_gets_all_of_it,
    who_comes_back_on_another_node_goes_on_without_a_reset,
    a_put_that_is_repeated_gets_the_first_answer,
    a_second_input_waits_for_the_first_run_and_another_agent_does_not,
    an_attachment_that_ends_leaves_the_others_of_its_connection_alone,
    a_client_that_answers_pings_is_never_given_up_however_short_the_heartbeat,
);

/// More than one that was answered and forgotten would let come.
const PINGS: usize = 3;

const PIECES: [&str; 6] = ["Hel", "lo, ", "wör", "ld 😀", "! ", "Bye."];

/// Follows over SSE until a run has ended.
async fn follow_sse(address: SocketAddr, run: String) -> History {
    let mut history = History::new();
    let opened = Request::get("/v1/sessions/s/follow?after=0").open(address).await;
    assert_eq!(opened.status, 200);
    assert_eq!(opened.headers["content-type"], "text/event-stream");
    let mut chunks = opened.body.into_data_stream();
    let mut text = String::new();
    while history.outcome(&run).is_none() {
        let chunk = timeout(PATIENCE, chunks.next()).await.expect("no event").unwrap().unwrap();
        text.push_str(std::str::from_utf8(&chunk).unwrap());
        while let Some((event, rest)) = text.split_once("\n\n") {
            take_event(event, &mut history);
            text = rest.to_owned();
        }
    }
    history
}

fn take_event(event: &str, history: &mut History) {
    let field = |name: &str| event.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    match field("event:") {
        Some("entries") => {
            history.apply(&serde_json::from_str(field("data:").unwrap()).unwrap());
            if let Some(id) = field("id:") {
                assert_eq!(id, history.cursor().to_string());
            }
        }
        Some("live") => assert_eq!(field("id:").unwrap(), history.cursor().to_string()),
        None => assert!(event.starts_with(':'), "{event}"),
        Some(other) => panic!("{other} was not expected: {event}"),
    }
}

/// Reads the log in pages.
async fn read_pages(address: SocketAddr, session: &str, limit: u32) -> History {
    let (mut history, mut after) = (History::new(), "0".to_owned());
    loop {
        let path = format!("/v1/sessions/{session}/entries?after={after}&limit={limit}");
        let page = Request::get(path).send(address).await.with(200);
        for record in page["records"].as_array().unwrap() {
            history.apply(record);
        }
        after = page["cursor"].as_str().unwrap().to_owned();
        if page["live"] == true {
            assert_eq!(after, history.cursor().to_string());
            return history;
        }
    }
}

async fn a_streamed_answer_reaches_every_follower_in_order_once<E: Engine>() {
    let world = World::<E>::start().await;
    let (here, there) = (world.node().await, world.node().await);
    create(here.address, "s").await;
    let mut early = Client::attach(here.address, "s", json!("start")).await;
    let mut remote = Client::attach(there.address, "s", json!("start")).await;
    let run = input(here.address, "s", "Hi").await;
    let sse = tokio::task::JoinSet::from_iter([
        follow_sse(here.address, run.clone()),
        follow_sse(there.address, run.clone()),
    ]);
    let mut worker = Worker::join(there.address, "w1", "guide", 1).await;
    assert_eq!(worker.serve(&PIECES).await, run);
    assert_eq!(early.ended(&run).await, "completed");
    assert_eq!(remote.ended(&run).await, "completed");
    assert_eq!(early.history.answer(&run), PIECES.concat());
    early.holds_the_state(here.address).await;
    remote.holds_the_state(there.address).await;
    let state = state(here.address, "s").await;
    for followed in sse.join_all().await {
        assert_eq!(followed.text(), state);
    }
    for limit in [1, 3, 1000] {
        assert_eq!(read_pages(there.address, "s", limit).await.text(), state);
    }
    let mut recent = Client::attach(there.address, "s", json!({ "recent": 50 })).await;
    recent.told("live").await;
    assert_eq!(recent.history.text(), state);
    assert_eq!(recent.history.frames, 0, "the snapshot has everything");
    // From every position on, the rest is the same.
    for seq in 0..early.history.view.seq().0 {
        let page = read_until(here.address, seq).await;
        let mut resumed = Client::resume(there.address, "s", page).await;
        resumed.holds_the_state(here.address).await;
        assert!(!resumed.told.iter().any(|told| told == "reset"), "{:?}", resumed.told);
    }
}

/// What a client holds that has applied everything up to the block with `seq`.
async fn read_until(address: SocketAddr, seq: u64) -> History {
    let page = Request::get("/v1/sessions/s/entries").send(address).await.with(200);
    let mut history = History::new();
    for record in page["records"].as_array().unwrap() {
        if history.view.seq().0 < seq {
            history.apply(record);
        }
    }
    history
}

async fn who_joins_in_the_middle_of_an_answer_gets_all_of_it<E: Engine>() {
    let world = World::<E>::start().await;
    let node = world.node().await;
    create(node.address, "s").await;
    let run = input(node.address, "s", "Hi").await;
    let mut worker = Worker::join(node.address, "w1", "guide", 1).await;
    let mut job = worker.work().await;
    let mut joined = Vec::new();
    for (number, piece) in PIECES.iter().enumerate() {
        worker.say(&mut job, piece).await;
        let from = if number % 2 == 0 { json!("start") } else { json!({ "recent": 10 }) };
        let mut client = Client::attach(node.address, "s", from).await;
        client.told("live").await;
        assert_eq!(client.history.answer(&run), PIECES[..=number].concat());
        joined.push(client);
    }
    worker.end(&mut job, "completed").await;
    for mut client in joined {
        assert_eq!(client.ended(&run).await, "completed");
        client.holds_the_state(node.address).await;
        assert_eq!(client.told.iter().filter(|told| *told == "live").count(), 1, "{:?}", client.told);
    }
}

async fn who_comes_back_on_another_node_goes_on_without_a_reset<E: Engine>() {
    let world = World::<E>::start().await;
    let nodes = [world.node().await, world.node().await];
    create(nodes[0].address, "s").await;
    // Both nodes follow the session all the time, each with its own view of how far it is.
    let mut anchors = Vec::new();
    for node in &nodes {
        anchors.push(Client::attach(node.address, "s", json!("start")).await);
    }
    let run = input(nodes[0].address, "s", "Hi").await;
    let mut worker = Worker::join(nodes[0].address, "w1", "guide", 1).await;
    let mut job = worker.work().await;
    let mut history = History::new();
    for number in 0..100_usize {
        worker.say(&mut job, &format!("{number} ")).await;
        let mut client = Client::resume(nodes[number % 2].address, "s", history).await;
        // As soon as it has one more piece it moves on, perhaps to a node that has heard less.
        let wanted = format!("{number} ");
        client.until("the piece", |history| history.answer(&run).ends_with(&wanted)).await;
        assert!(!client.told.iter().any(|told| told == "reset"), "{number}: {:?}", client.told);
        history = client.history;
    }
    worker.end(&mut job, "completed").await;
    let mut client = Client::resume(nodes[1].address, "s", history).await;
    client.ended(&run).await;
    client.holds_the_state(nodes[0].address).await;
    for (anchor, node) in anchors.iter_mut().zip(&nodes) {
        anchor.holds_the_state(node.address).await;
        assert!(!anchor.told.iter().any(|told| told == "reset"), "{:?}", anchor.told);
    }
}

async fn a_put_that_is_repeated_gets_the_first_answer<E: Engine>() {
    let world = World::<E>::start().await;
    let (here, there) = (world.node().await, world.node().await);
    create(here.address, "s").await;
    let put = json!({ "t": "put", "id": "p1", "attachment": 1, "entries": [
        { "type": "message.put", "role": "user", "parts": [{ "kind": "text", "value": "Hi" }] }] });
    let mut first = client::hello(here.address).await;
    first.ask(json!({ "t": "attach", "session": "s", "from": "start" })).await;
    let done = first.ask(put.clone()).await;
    assert_eq!((&done["t"], &done["duplicate"]), (&json!("ok"), &Value::Null), "{done}");
    let mut second = client::hello(there.address).await;
    second.ask(json!({ "t": "attach", "session": "s", "from": "start" })).await;
    for socket in [&mut first, &mut second] {
        let again = socket.ask(put.clone()).await;
        assert_eq!(again["duplicate"], true, "{again}");
        for field in ["message", "run", "cursor"] {
            assert_eq!(again[field], done[field], "{again}");
        }
    }
    // Over HTTP too, many at once.
    let body = json!({ "id": "h1", "text": "Again" });
    let asks = (0..8).map(|n| {
        let address = if n % 2 == 0 { here.address } else { there.address };
        Request::post("/v1/sessions/s/input", &body).send(address)
    });
    let answers: Vec<Value> =
        futures_util::future::join_all(asks).await.into_iter().map(|answer| answer.with(202)).collect();
    assert_eq!(answers.iter().filter(|answer| answer["duplicate"].is_null()).count(), 1, "{answers:?}");
    assert!(
        answers.iter().all(|a| a["run"] == answers[0]["run"] && a["message"] == answers[0]["message"]),
        "{answers:?}"
    );
    let mut client = Client::attach(there.address, "s", json!("start")).await;
    client.holds_the_state(here.address).await;
    assert_eq!(client.history.types.iter().filter(|t| *t == "run.requested").count(), 2);
}

async fn a_second_input_waits_for_the_first_run_and_another_agent_does_not<E: Engine>() {
    let world = World::<E>::start().await;
    let (here, there) = (world.node().await, world.node().await);
    create(here.address, "s").await;
    let first = input(here.address, "s", "one").await;
    let second = input(there.address, "s", "two").await;
    let other = json!({ "text": "three", "agent": "searcher" });
    let other = Request::post("/v1/sessions/s/input", &other).send(here.address).await.with(202);
    let mut guide = Worker::join(here.address, "w1", "guide", 4).await;
    let mut elsewhere = Worker::join(there.address, "w2", "guide", 4).await;
    let mut searcher = Worker::join(there.address, "w3", "searcher", 1).await;
    let aside = searcher.work().await;
    assert_eq!(aside.run, other["run"], "another agent's run goes side by side");
    let (mut guide, mut job) = tokio::select! {
        job = guide.work() => (guide, job),
        job = elsewhere.work() => (elsewhere, job),
    };
    assert_eq!(job.run, first);
    let mut client = Client::attach(there.address, "s", json!("start")).await;
    guide.say(&mut job, "a").await;
    client.until("the first piece", |history| history.answer(&first) == "a").await;
    let started = |history: &History| history.types.iter().filter(|t| *t == "run.started").count();
    assert_eq!(started(&client.history), 2, "the second waits");
    guide.end(&mut job, "completed").await;
    guide.meanwhile(client.until("the second run's start", |history| started(history) == 3)).await;
    let types = &client.history.types;
    let end = types.iter().position(|t| t == "run.ended").unwrap();
    assert_eq!(types[end + 1..].iter().filter(|t| *t == "run.started").count(), 1);
    let status = client.history.view.run(&second.parse().unwrap()).unwrap().status;
    assert_eq!(serde_json::to_value(status).unwrap(), "active");
}

async fn an_attachment_that_ends_leaves_the_others_of_its_connection_alone<E: Engine>() {
    let world = World::<E>::start().await;
    let node = world.node().await;
    create(node.address, "a").await;
    create(node.address, "b").await;
    // More than the sockets' buffers take, so that a part of it waits in the connection.
    let entries = json!({ "entries": [{ "type": "x-page", "text": "x".repeat(250_000) }] });
    for _ in 0..24 {
        Request::post("/v1/sessions/b/entries", &entries).send(node.address).await.with(202);
    }
    let mut socket = client::hello(node.address).await;
    for session in ["a", "b"] {
        socket.ask(json!({ "t": "attach", "session": session, "from": "start" })).await;
    }
    let mut history = History::new();
    while history.view.seq().0 < 25 {
        let frame = socket.wait(|frame| frame["t"] == "entries" && frame["attachment"] == 2).await;
        history.apply(&frame);
        if history.frames == 1 {
            socket.send(&json!({ "t": "detach", "id": "d", "attachment": 1 })).await;
        }
    }
    let live = socket.wait(|frame| frame["t"] == "live" && frame["attachment"] == 2).await;
    assert_eq!(live["seq"], 25);
    assert_eq!(history.text(), state(node.address, "b").await);
}

async fn a_client_that_answers_pings_is_never_given_up_however_short_the_heartbeat<E: Engine>() {
    let mut world = World::<E>::start().await;
    world.heartbeat = Duration::from_secs(3);
    let node = world.node().await;
    create(node.address, "s").await;
    let mut socket = client::hello(node.address).await;
    let attached = socket.ask(json!({ "t": "attach", "session": "s", "from": "start" })).await;
    assert_eq!(attached["t"], "attached", "{attached}");
    for number in 0..PINGS {
        assert!(socket.ping(true).await.is_some(), "closed after {number} pings");
    }
    // And one that answers no more is given up, after one more.
    assert!(socket.ping(false).await.is_some());
    assert!(socket.ping(false).await.is_none());
}
