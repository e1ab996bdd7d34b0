//! What a worker may do, and what happens when it does not.

use crate::harness::begun::key;
use crate::harness::history::History;
use crate::harness::http::{create, input, written_at};
use crate::harness::socket::Heard;
use crate::harness::{Client, Engine, Worker, World};
use everthread_protocol::{PoolKey, SessionKey};
use everthread_store::{Store as _, WorkItem};
use serde_json::{Value, json};
use std::time::Duration;

on_both_engines!(
    a_batch_that_is_sent_again_is_a_duplicate_and_a_missing_one_is_a_gap,
    entries_that_do_not_fit_are_refused_and_the_run_goes_on,
    no_number_of_a_batch_leads_past_the_checks,
    acks_that_were_lost_are_given_again_for_every_kind_of_write,
    a_run_that_is_named_on_another_node_goes_on_there,
    a_worker_that_dies_before_it_writes_loses_the_run_to_another,
    a_worker_that_dies_after_it_wrote_leaves_a_lost_run,
    a_worker_that_falls_silent_loses_its_run,
    a_declined_run_goes_to_somebody_else,
    a_zombie_cannot_write,
    a_node_that_drains_loses_nothing,
    a_drained_worker_ends_what_it_has_and_gets_nothing_new,
    many_workers_of_one_agent_get_each_run_once,
    an_item_whose_run_never_came_holds_nobody_up,
);

#[track_caller]
fn is_error(frame: &Value, code: &str) {
    assert_eq!((&frame["t"], &frame["code"]), (&json!("error"), &json!(code)), "{frame}");
}

fn append(offset: usize, text: &str) -> Value {
    json!({ "type": "part.append", "message": "m", "part": "p", "offset": offset, "text": text })
}

async fn a_batch_that_is_sent_again_is_a_duplicate_and_a_missing_one_is_a_gap<E: Engine>() {
    let world = World::<E>::start().await;
    let node = world.node().await;
    create(node.address, "s").await;
    let run = input(node.address, "s", "Hi").await;
    let mut worker = Worker::join(node.address, "w1", "guide", 1).await;
    let mut job = worker.work().await;
    assert_eq!(job.work["input"].as_array().unwrap().len(), 1);
    assert_eq!(job.work["messages"][0]["parts"][0]["value"], "Hi");
    let first = job.say("Hel");
    let ack = worker.socket.ask(first.clone()).await;
    assert_eq!((&ack["t"], &ack["batch"]), (&json!("ok"), &json!(1)), "{ack}");
    let again = worker.socket.ask(first).await;
    assert_eq!((&again["t"], &again["batch"]), (&json!("duplicate"), &json!(1)), "{again}");
    assert_eq!(again["to"], ack["to"], "{again}");
    let skipped = job.say("lo");
    let mut ahead = job.clone();
    let gap = worker.append(&mut ahead, json!([{ "type": "x-a" }])).await;
    is_error(&gap, "gap");
    assert_eq!(gap["expected"], 2, "{gap}");
    let ack = worker.socket.ask(skipped).await;
    assert_eq!(ack["t"], "ok", "{ack}");
    // Pipelined, without waiting for any ack.
    for piece in [" w", "or", "ld"] {
        let mut frame = job.say(piece);
        frame["id"] = worker.socket.fresh_id().into();
        worker.socket.send(&frame).await;
    }
    let ack = worker.end(&mut job, "completed").await;
    assert_eq!(ack["t"], "ok", "{ack}");
    let mut client = Client::attach(node.address, "s", json!("start")).await;
    client.holds_the_state(node.address).await;
    assert_eq!(client.history.answer(&run), "Hello world");
}

async fn entries_that_do_not_fit_are_refused_and_the_run_goes_on<E: Engine>() {
    let world = World::<E>::start().await;
    let node = world.node().await;
    create(node.address, "s").await;
    let run = input(node.address, "s", "Hi").await;
    let mut worker = Worker::join(node.address, "w1", "guide", 1).await;
    let mut job = worker.work().await;
    worker.say(&mut job, "é😀").await;
    let cases = [
        (json!([append(7, "a")]), "bad_offset"),
        (json!([append(2, "a")]), "bad_offset"),
        (json!([append(6, "a"), append(8, "b")]), "bad_offset"),
        (
            json!([{ "type": "part.append", "message": "m", "part": "q", "offset": 0, "text": "a" }]),
            "bad_offset",
        ),
        (json!([{ "type": "message.start", "message": "m", "role": "assistant" }]), "id_conflict"),
        (json!([{ "type": "part.start", "message": "m", "part": "p", "kind": "text" }]), "id_conflict"),
        (json!([{ "type": "message.end", "message": "n", "status": "complete" }]), "bad_request"),
        (json!([{ "type": "run.ended", "run": run, "outcome": "completed" }]), "entry_not_allowed"),
        (
            json!([{ "type": "message.put", "message": "x", "role": "user", "parts": [] }]),
            "entry_not_allowed",
        ),
        (json!([{ "type": "nope" }]), "entry_not_allowed"),
        (json!([{ "type": "x-a" }, { "type": "state.set", "key": "k", "value": 1 }]), "entry_not_allowed"),
        (json!([]), "bad_request"),
        (json!({ "type": "x-a" }), "bad_request"),
        (json!([{ "type": "x-a", "text": "x".repeat(263_000) }]), "too_large"),
        (Value::Array(vec![json!({ "type": "x-a" }); 1025]), "too_large"),
    ];
    for (entries, code) in cases {
        // The number stays free: a block that was refused was not written.
        let mut attempt = job.clone();
        let answer = worker.append(&mut attempt, entries).await;
        is_error(&answer, code);
        assert_eq!(answer["no_side_effects"], true);
    }
    let mut foreign = job.clone();
    foreign.fence = "12345".into();
    is_error(&worker.append(&mut foreign, json!([{ "type": "x-a" }])).await, "fenced");
    let mut unknown = job.clone();
    unknown.run = "nobody".into();
    is_error(&worker.append(&mut unknown, json!([{ "type": "x-a" }])).await, "fenced");
    for (outcome, error) in [
        ("lost", Value::Null),
        ("failed", Value::Null),
        ("completed", json!({ "code": "a", "message": "b" })),
    ] {
        let mut frame = job.clone().end("completed");
        frame["outcome"] = outcome.into();
        if !error.is_null() {
            frame["error"] = error;
        }
        is_error(&worker.socket.ask(frame).await, "bad_request");
    }
    worker.say(&mut job, "!").await;
    worker.end(&mut job, "failed").await;
    let mut client = Client::attach(node.address, "s", json!("start")).await;
    assert_eq!(client.ended(&run).await, "failed");
    client.holds_the_state(node.address).await;
    assert_eq!(client.history.answer(&run), "é😀!");
}

async fn no_number_of_a_batch_leads_past_the_checks<E: Engine>() {
    let world = World::<E>::start().await;
    let node = world.node().await;
    create(node.address, "s").await;
    let run = input(node.address, "s", "Hi").await;
    let mut worker = Worker::join(node.address, "w1", "guide", 1).await;
    let mut job = worker.work().await;
    let start = json!([{ "type": "message.start", "message": "m", "role": "assistant" }]);
    let below = |entries: &Value, batch: u64| {
        json!({
            "t": "append", "run": run, "fence": job.fence, "entries": entries,
            "producer": { "incarnation": 0, "batch": batch },
        })
    };
    let frames = [below(&start, 1), below(&json!([append(99, "a")]), 1), below(&start, 2)];
    let mut end = job.clone().end("completed");
    end["producer"]["incarnation"] = 0.into();
    for frame in frames.into_iter().chain([end]) {
        is_error(&worker.socket.ask(frame).await, "bad_request");
    }
    worker.say(&mut job, "Hello").await;
    let mut again = job.clone();
    again.batch -= 1;
    let decided = json!([{ "type": "session.closed" }]);
    is_error(&worker.append(&mut again, decided).await, "entry_not_allowed");
    worker.end(&mut job, "completed").await;
    let mut client = Client::attach(node.address, "s", json!("start")).await;
    assert_eq!(client.ended(&run).await, "completed");
    client.holds_the_state(node.address).await;
    assert_eq!(client.history.answer(&run), "Hello");
}

async fn acks_that_were_lost_are_given_again_for_every_kind_of_write<E: Engine>() {
    let world = World::<E>::start().await;
    let (here, there) = (world.node().await, world.node().await);
    create(here.address, "s").await;
    let run = input(here.address, "s", "Hi").await;
    let mut worker = Worker::join(here.address, "w1", "guide", 1).await;
    let mut job = worker.work().await;
    let mut frames = vec![job.say("a"), job.start_child("kid", "searcher"), job.say("b")];
    for frame in &frames {
        assert_eq!(worker.socket.ask(frame.clone()).await["t"], "ok");
    }
    // Its acks were lost with the connection: it sends everything again on another node, and goes on.
    let mut worker = Worker::rejoin(there.address, "w1", "guide", 1, &[&job]).await;
    assert_eq!(worker.kept, [&*run]);
    for frame in &frames {
        let again = worker.socket.ask(frame.clone()).await;
        assert_eq!(again["t"], "duplicate", "{again}");
    }
    frames.push(job.say("c"));
    assert_eq!(worker.socket.ask(frames[3].clone()).await["t"], "ok");
    worker.end(&mut job, "completed").await;
    let mut client = Client::attach(here.address, "s", json!("start")).await;
    client.ended(&run).await;
    assert_eq!(client.history.answer(&run), "abc");
    assert_eq!(client.history.types.iter().filter(|t| *t == "run.requested").count(), 2, "one child");
    assert_eq!(client.ended("kid").await, "cancelled", "a parent that ends takes its children with it");
}

async fn a_run_that_is_named_on_another_node_goes_on_there<E: Engine>() {
    let mut world = World::<E>::start().await;
    // More than a slow machine takes to let it come back.
    world.leases.lease = Duration::from_secs(8);
    world.leases.return_grace = world.leases.lease;
    let (here, there) = (world.node().await, world.node().await);
    create(here.address, "s").await;
    let run = input(here.address, "s", "Hi").await;
    let mut client = Client::attach(here.address, "s", json!("start")).await;
    let mut worker = Worker::join(here.address, "w1", "guide", 1).await;
    let mut job = worker.work().await;
    worker.say(&mut job, "a").await;
    for turn in 0..6 {
        drop(worker);
        let node = if turn % 2 == 0 { &there } else { &here };
        let mut stranger = job.clone();
        stranger.fence = "1".into();
        worker = Worker::rejoin(node.address, "w1", "guide", 1, &[&job, &stranger]).await;
        assert_eq!(worker.kept, [&*run]);
        worker.say(&mut job, "b").await;
    }
    // Longer than the grace and a lease, so that any clean-up of the lost connections has had its turn.
    let deadline = tokio::time::Instant::now() + world.leases.lease + world.leases.heartbeat * 8;
    while tokio::time::Instant::now() < deadline {
        worker.say(&mut job, "c").await;
        let beat =
            tokio::time::timeout(world.leases.heartbeat / 2, worker.socket.wait(|f| f["t"] == "fenced"))
                .await;
        assert!(beat.is_err(), "{beat:?}");
    }
    worker.end(&mut job, "completed").await;
    assert_eq!(client.ended(&run).await, "completed");
    assert!(client.history.answer(&run).starts_with("abbbbbbc"));
    client.holds_the_state(there.address).await;
    assert_eq!(client.history.types.iter().filter(|t| *t == "run.started").count(), 1);
}

async fn a_worker_that_dies_before_it_writes_loses_the_run_to_another<E: Engine>() {
    let world = World::<E>::start().await;
    let (here, there) = (world.node().await, world.node().await);
    create(here.address, "s").await;
    let run = input(here.address, "s", "Hi").await;
    let mut first = Worker::join(here.address, "w1", "guide", 1).await;
    let job = first.work().await;
    assert_eq!(job.attempt, 1);
    let mut second = Worker::join(there.address, "w2", "guide", 1).await;
    drop(first);
    let mut job = second.work().await;
    assert_eq!((&*job.run, job.attempt), (&*run, 2));
    second.say(&mut job, "Hello").await;
    second.end(&mut job, "completed").await;
    let mut client = Client::attach(here.address, "s", json!("start")).await;
    assert_eq!(client.ended(&run).await, "completed");
    client.holds_the_state(there.address).await;
}

async fn a_worker_that_dies_after_it_wrote_leaves_a_lost_run<E: Engine>() {
    let world = World::<E>::start().await;
    let (here, there) = (world.node().await, world.node().await);
    create(here.address, "s").await;
    let (run, next) = (input(here.address, "s", "Hi").await, input(here.address, "s", "Next").await);
    let mut client = Client::attach(there.address, "s", json!("start")).await;
    let mut worker = Worker::join(here.address, "w1", "guide", 1).await;
    let mut job = worker.work().await;
    worker.say(&mut job, "Hel").await;
    let mut second = Worker::join(there.address, "w2", "guide", 1).await;
    drop(worker);
    assert_eq!(client.ended(&run).await, "lost");
    assert_eq!(second.serve(&["after"]).await, next, "what waited behind it goes on");
    assert_eq!(client.ended(&next).await, "completed");
    let messages = serde_json::to_value(client.history.view.messages()).unwrap();
    let answer = messages.as_array().unwrap().iter().find(|m| m["run"] == run).unwrap();
    assert_eq!((&answer["status"], &answer["parts"][0]["status"]), (&json!("partial"), &json!("aborted")));
    assert_eq!(answer["parts"][0]["value"], "Hel");
    client.holds_the_state(here.address).await;
}

async fn a_worker_that_falls_silent_loses_its_run<E: Engine>() {
    let world = World::<E>::hurried().await;
    let node = world.node().await;
    create(node.address, "s").await;
    let run = input(node.address, "s", "Hi").await;
    let mut worker = Worker::join(node.address, "w1", "guide", 1).await;
    let mut job = worker.work().await;
    worker.say(&mut job, "Hel").await;
    // Its socket stays open, but nobody answers pings any more.
    let mut client = Client::attach(node.address, "s", json!("start")).await;
    assert_eq!(client.ended(&run).await, "lost");
    // Whoever notices first tells it: the keeper, whose verdict reaches the connection, or the connection itself.
    loop {
        match worker.socket.hear().await {
            Heard::Frame(frame) if frame["t"] == "fenced" => break,
            Heard::Frame(_) => {}
            Heard::Closed(code) => break assert_eq!(code, Some(4510)),
        }
    }
}

async fn a_declined_run_goes_to_somebody_else<E: Engine>() {
    let world = World::<E>::start().await;
    let (here, there) = (world.node().await, world.node().await);
    create(here.address, "s").await;
    let run = input(here.address, "s", "Hi").await;
    let mut first = Worker::join(here.address, "w1", "guide", 1).await;
    let job = first.work().await;
    let mut second = Worker::join(there.address, "w2", "guide", 1).await;
    let decline = json!({ "t": "drain" });
    first.socket.send(&decline).await;
    first.socket.send(&json!({ "t": "decline", "run": job.run, "fence": "1" })).await;
    first.socket.send(&json!({ "t": "decline", "run": job.run, "fence": job.fence })).await;
    let mut again = second.work().await;
    assert_eq!((&*again.run, again.attempt), (&*run, 2));
    let mut stale = job.clone();
    is_error(&first.append(&mut stale, json!([{ "type": "x-a" }])).await, "fenced");
    second.say(&mut again, "Hello").await;
    second.end(&mut again, "completed").await;
    let mut client = Client::attach(here.address, "s", json!("start")).await;
    assert_eq!(client.ended(&run).await, "completed");
}

async fn a_zombie_cannot_write<E: Engine>() {
    let world = World::<E>::start().await;
    let (here, there) = (world.node().await, world.node().await);
    create(here.address, "s").await;
    let run = input(here.address, "s", "Hi").await;
    let mut first = Worker::join(here.address, "w1", "guide", 1).await;
    let mut old = first.work().await;
    let mut second = Worker::join(there.address, "w2", "guide", 1).await;
    drop(first);
    let mut new = second.work().await;
    // It comes back when its run is with somebody else, or with itself again under a newer fence.
    let mut first = Worker::rejoin(here.address, "w1", "guide", 1, &[&old]).await;
    assert!(first.kept.is_empty(), "{:?}", first.kept);
    let late = old.say("late");
    is_error(&first.socket.ask(late).await, "fenced");
    is_error(&first.end(&mut old, "completed").await, "fenced");
    second.say(&mut new, "Hello").await;
    second.end(&mut new, "completed").await;
    let late = new.append(json!([{ "type": "x-late" }]));
    is_error(&second.socket.ask(late).await, "fenced");
    let mut client = Client::attach(here.address, "s", json!("start")).await;
    client.holds_the_state(here.address).await;
    assert_eq!(
        (client.history.answer(&run), client.history.outcome(&run).as_deref()),
        ("Hello", Some("completed"))
    );
}

async fn a_node_that_drains_loses_nothing<E: Engine>() {
    let world = World::<E>::start().await;
    let (old, new) = (world.node().await, world.node().await);
    create(old.address, "s").await;
    let run = input(old.address, "s", "Hi").await;
    let mut worker = Worker::join(old.address, "w1", "guide", 1).await;
    let mut job = worker.work().await;
    let mut clients = Vec::new();
    for _ in 0..5 {
        clients.push(Client::attach(old.address, "s", json!("start")).await);
    }
    worker.say(&mut job, "before ").await;
    // In flight when the node goes.
    let frames: Vec<Value> = (0..20).map(|n| job.say(&format!("{n} "))).collect();
    for frame in &frames {
        let mut frame = frame.clone();
        frame["id"] = worker.socket.fresh_id().into();
        worker.socket.send(&frame).await;
    }
    old.drain().await;
    let bye = worker.socket.wait(|frame| frame["t"] == "bye").await;
    assert_eq!((&bye["code"], &bye["reconnect"]), (&json!(4503), &json!(true)));
    assert_eq!(worker.socket.closed().await, Some(4503));
    let mut histories: Vec<History> = Vec::new();
    for mut client in clients {
        while client.read().await {}
        assert_eq!(client.told.last().unwrap(), "bye");
        histories.push(client.history);
    }
    let mut worker = Worker::rejoin(new.address, "w1", "guide", 1, &[&job]).await;
    assert_eq!(worker.kept, [&*run]);
    for frame in &frames {
        let ack = worker.socket.ask(frame.clone()).await;
        assert!(ack["t"] == "ok" || ack["t"] == "duplicate", "{ack}");
    }
    worker.end(&mut job, "completed").await;
    for history in histories {
        let mut client = Client::resume(new.address, "s", history).await;
        assert_eq!(client.ended(&run).await, "completed");
        client.holds_the_state(new.address).await;
        assert!(!client.told.iter().any(|told| told == "reset"), "{:?}", client.told);
        assert!(client.history.answer(&run).ends_with("17 18 19 "));
    }
}

async fn a_drained_worker_ends_what_it_has_and_gets_nothing_new<E: Engine>() {
    let world = World::<E>::start().await;
    let node = world.node().await;
    create(node.address, "a").await;
    create(node.address, "b").await;
    input(node.address, "a", "Hi").await;
    let mut worker = Worker::join(node.address, "w1", "guide", 8).await;
    let mut job = worker.work().await;
    worker.socket.send(&json!({ "t": "drain" })).await;
    worker.say(&mut job, "still ").await;
    let next = input(node.address, "b", "Hi").await;
    worker.say(&mut job, "here").await;
    assert_eq!(worker.end(&mut job, "completed").await["t"], "ok");
    let idle =
        tokio::time::timeout(world.leases.heartbeat * 6, worker.socket.wait(|frame| frame["t"] == "work"));
    assert!(idle.await.is_err(), "a drained worker was given a run");
    let mut other = Worker::join(node.address, "w2", "guide", 1).await;
    assert_eq!(other.serve(&["x"]).await, next);
}

async fn many_workers_of_one_agent_get_each_run_once<E: Engine>() {
    let world = World::<E>::start().await;
    let nodes = [world.node().await, world.node().await];
    let runs = 40;
    let mut expected = Vec::new();
    for number in 0..runs {
        let node = &nodes[number % 2];
        create(node.address, &format!("s{number}")).await;
        expected.push(input(node.address, &format!("s{number}"), "Hi").await);
    }
    let served = std::sync::Mutex::new(Vec::new());
    let workers = (0..4).map(async |number| {
        let mut worker = Worker::join(nodes[number % 2].address, &format!("w{number}"), "guide", 3).await;
        loop {
            let run = worker.serve(&["a", "b"]).await;
            served.lock().unwrap().push(run);
        }
    });
    let workers = futures_util::future::join_all(workers);
    let all = crate::harness::until("all are served", async || {
        (served.lock().unwrap().len() >= runs).then_some(())
    });
    tokio::select! {
        _ = workers => {}
        () = all => {}
    }
    let mut served = served.into_inner().unwrap();
    served.sort();
    expected.sort();
    assert_eq!(served, expected);
}

async fn an_item_whose_run_never_came_holds_nobody_up<E: Engine>() {
    let world = World::<E>::start().await;
    let node = world.node().await;
    create(node.address, "s").await;
    let mut worker = Worker::join(node.address, "w1", "guide", 1).await;
    let key = key("s");
    let SessionKey { tenant, session } = key.clone();
    let store = node.edge.desk.store();
    let now = store.load(&key).await.unwrap().unwrap().now;
    let pool = PoolKey { tenant: tenant.clone(), agent: "guide".parse().unwrap() };
    // Announced by a write that lost a race, and so was never made.
    for number in 0..3 {
        let run = format!("never{number}").parse().unwrap();
        let item =
            WorkItem { tenant: tenant.clone(), session: session.clone(), run, not_after: now.plus(2_000) };
        store.enqueue(&pool, &item).await.unwrap();
    }
    let run = input(node.address, "s", "Hi").await;
    assert_eq!(worker.serve(&["Hello"]).await, run);
    let at = async |kind: &str| {
        written_at(node.address, "s", |entry| entry["type"] == kind && entry["run"] == run).await
    };
    let waited = at("run.started").await - at("run.requested").await;
    assert!(waited < 1_000, "{waited} ms");
}
