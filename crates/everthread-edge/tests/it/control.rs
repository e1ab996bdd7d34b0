//! Stop always stops, exactly once, and never the next run.

use crate::harness::history::History;
use crate::harness::http::{WAIT_MS, create, input};
use crate::harness::{Client, Engine, Request, Worker, World, client};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::time::Duration;

on_both_engines!(
    a_cancel_of_a_waiting_run_ends_it_at_once,
    a_cancel_of_an_active_run_is_told_to_its_worker_which_ends_it,
    a_cancel_that_the_worker_answers_by_completing_is_refused,
    a_cancel_that_the_worker_ignores_is_forced_after_the_grace,
    a_cancel_of_an_input_that_has_not_arrived_waits_for_it,
    a_cancel_after_the_end_is_refused_and_does_not_hit_the_next_run,
    a_cancel_with_the_same_id_has_one_outcome_everywhere,
    a_cancel_of_nothing_known_is_an_error,
    a_parent_that_ends_cancels_its_children,
    a_dead_workers_cancelled_run_ends_as_cancelled,
    a_deadline_is_kept_by_another_node_when_the_one_that_took_it_is_gone,
    a_cancel_and_the_end_that_race_have_one_outcome,
);

async fn cancel(address: SocketAddr, session: &str, body: Value, wait_ms: u32) -> (u16, Value) {
    let path = format!("/v1/sessions/{session}/control?wait_ms={wait_ms}");
    let answer = Request::post(path, &body).send(address).await;
    (answer.status.as_u16(), answer.body)
}

fn of_run(id: &str, run: &str) -> Value {
    json!({ "id": id, "kind": "cancel", "target": { "run": run } })
}

/// What the log says a control came to: outcome, reason.
fn settled(history: &History, id: &str) -> Option<(Value, Value)> {
    let control = history.view.controls().iter().find(|control| control.control.as_str() == id)?;
    let control = serde_json::to_value(control).unwrap();
    control["outcome"].is_string().then(|| (control["outcome"].clone(), control["reason"].clone()))
}

fn run_of(history: &History, run: &str) -> Value {
    serde_json::to_value(history.view.run(&run.parse().unwrap()).unwrap()).unwrap()
}

async fn a_cancel_of_a_waiting_run_ends_it_at_once<E: Engine>() {
    let world = World::<E>::start().await;
    let node = world.node().await;
    create(node.address, "s").await;
    let run = input(node.address, "s", "Hi").await;
    let (status, receipt) = cancel(node.address, "s", of_run("c1", &run), 0).await;
    assert_eq!((status, &receipt["stage"], &receipt["outcome"]), (200, &json!("settled"), &json!("applied")));
    let mut client = Client::attach(node.address, "s", json!("start")).await;
    assert_eq!(client.ended(&run).await, "cancelled");
    let next = input(node.address, "s", "Again").await;
    let mut worker = Worker::join(node.address, "w1", "guide", 4).await;
    assert_eq!(worker.serve(&["a"]).await, next, "only the next run is worked on");
    client.ended(&next).await;
    client.holds_the_state(node.address).await;
}

async fn a_cancel_of_an_active_run_is_told_to_its_worker_which_ends_it<E: Engine>() {
    let world = World::<E>::start().await;
    let (here, there) = (world.node().await, world.node().await);
    create(here.address, "s").await;
    let run = input(here.address, "s", "Hi").await;
    let mut worker = Worker::join(here.address, "w1", "guide", 1).await;
    let mut job = worker.work().await;
    worker.say(&mut job, "Hel").await;
    // From a node that does not have the worker, over WebSocket, while HTTP waits for the same outcome elsewhere.
    let mut asking = client::hello(there.address).await;
    asking.ask(json!({ "t": "attach", "session": "s", "from": "start" })).await;
    let mut frame = of_run("c1", &run);
    frame["t"] = "control".into();
    frame["attachment"] = 1.into();
    let receipt = asking.ask(frame).await;
    assert_eq!((&receipt["t"], &receipt["stage"]), (&json!("receipt"), &json!("accepted")), "{receipt}");
    let told = worker.socket.wait(|frame| frame["t"] == "control").await;
    assert_eq!(
        (&told["run"], &told["control"], &told["kind"]),
        (&json!(run), &json!("c1"), &json!("cancel"))
    );
    let grace = u128::from(told["grace_ms"].as_u64().unwrap());
    assert!(grace <= world.leases.cancel_grace.as_millis(), "{told}");
    let waiting = cancel(there.address, "s", of_run("c1", &run), WAIT_MS);
    let ending = async {
        worker.say(&mut job, "lo").await;
        worker.end(&mut job, "cancelled").await
    };
    let ((status, receipt), ack) = tokio::join!(waiting, ending);
    assert_eq!(ack["t"], "ok", "{ack}");
    assert_eq!((status, &receipt["outcome"]), (200, &json!("applied")), "{receipt}");
    let mut client = Client::attach(here.address, "s", json!("start")).await;
    assert_eq!(client.ended(&run).await, "cancelled");
    assert_eq!(client.history.answer(&run), "Hello", "what was written stays");
    assert_eq!(run_of(&client.history, &run)["forced"], Value::Null);
    client.holds_the_state(there.address).await;
}

async fn a_cancel_that_the_worker_answers_by_completing_is_refused<E: Engine>() {
    let world = World::<E>::start().await;
    let node = world.node().await;
    create(node.address, "s").await;
    let run = input(node.address, "s", "Hi").await;
    let mut worker = Worker::join(node.address, "w1", "guide", 1).await;
    let mut job = worker.work().await;
    cancel(node.address, "s", of_run("c1", &run), 0).await;
    worker.socket.wait(|frame| frame["t"] == "control").await;
    worker.end(&mut job, "completed").await;
    let (status, receipt) = cancel(node.address, "s", of_run("c1", &run), 0).await;
    assert_eq!(
        (status, &receipt["outcome"], &receipt["reason"]),
        (200, &json!("refused"), &json!("run_ended"))
    );
}

async fn a_cancel_that_the_worker_ignores_is_forced_after_the_grace<E: Engine>() {
    let world = World::<E>::forcing().await;
    let (here, there) = (world.node().await, world.node().await);
    create(here.address, "s").await;
    let run = input(here.address, "s", "Hi").await;
    let mut worker = Worker::join(here.address, "w1", "guide", 1).await;
    let mut job = worker.work().await;
    worker.say(&mut job, "Hel").await;
    let (status, receipt) = cancel(there.address, "s", of_run("c1", &run), WAIT_MS).await;
    assert_eq!((status, &receipt["outcome"]), (200, &json!("applied")), "{receipt}");
    let fenced = worker.socket.wait(|frame| frame["t"] == "fenced").await;
    assert_eq!(fenced["run"], run);
    let late = worker.append(&mut job, json!([{ "type": "x-late" }])).await;
    assert_eq!(late["code"], "fenced", "{late}");
    let mut client = Client::attach(there.address, "s", json!("start")).await;
    assert_eq!(client.ended(&run).await, "cancelled");
    assert_eq!(run_of(&client.history, &run)["forced"], true);
    // The worker has its place back, and the session its agent.
    let next = input(there.address, "s", "Again").await;
    assert_eq!(worker.serve(&["ok"]).await, next);
    client.ended(&next).await;
    client.holds_the_state(here.address).await;
}

async fn a_cancel_of_an_input_that_has_not_arrived_waits_for_it<E: Engine>() {
    let world = World::<E>::start().await;
    let (here, there) = (world.node().await, world.node().await);
    create(here.address, "s").await;
    let mut worker = Worker::join(here.address, "w1", "guide", 4).await;
    let early = json!({ "id": "c1", "kind": "cancel", "target": { "input": "i1" } });
    let (status, receipt) = cancel(there.address, "s", early.clone(), 0).await;
    assert_eq!((status, &receipt["stage"]), (202, &json!("accepted")), "{receipt}");
    let body = json!({ "text": "Hi", "message": "i1" });
    let done = Request::post("/v1/sessions/s/input", &body).send(here.address).await.with(202);
    let run = done["run"].as_str().unwrap();
    let mut client = Client::attach(here.address, "s", json!("start")).await;
    assert_eq!(client.ended(run).await, "cancelled");
    assert_eq!(settled(&client.history, "c1").unwrap().0, "applied");
    let (_, receipt) = cancel(here.address, "s", early, 0).await;
    assert_eq!((&receipt["stage"], &receipt["outcome"]), (&json!("settled"), &json!("applied")));
    let next = input(there.address, "s", "Another").await;
    assert_eq!(worker.serve(&["ok"]).await, next, "the cancelled run was never handed out");
    client.ended(&next).await;
    assert!(
        !client.history.view.messages().iter().any(|m| m.run.as_ref().is_some_and(|r| r.as_str() == run))
    );
}

async fn a_cancel_after_the_end_is_refused_and_does_not_hit_the_next_run<E: Engine>() {
    let world = World::<E>::start().await;
    let node = world.node().await;
    create(node.address, "s").await;
    let body = json!({ "text": "Hi", "message": "i1" });
    let done = Request::post("/v1/sessions/s/input", &body).send(node.address).await.with(202);
    let mut worker = Worker::join(node.address, "w1", "guide", 1).await;
    let first = worker.serve(&["done"]).await;
    assert_eq!(done["run"], first);
    let next = input(node.address, "s", "Next").await;
    let mut job = worker.work().await;
    for body in [of_run("c1", &first), json!({ "id": "c2", "kind": "cancel", "target": { "input": "i1" } })] {
        let (status, receipt) = cancel(node.address, "s", body, 0).await;
        assert_eq!(
            (status, &receipt["outcome"], &receipt["reason"]),
            (200, &json!("refused"), &json!("run_ended"))
        );
    }
    worker.say(&mut job, "unharmed").await;
    worker.end(&mut job, "completed").await;
    let mut client = Client::attach(node.address, "s", json!("start")).await;
    assert_eq!(client.ended(&next).await, "completed");
}

async fn a_cancel_with_the_same_id_has_one_outcome_everywhere<E: Engine>() {
    let world = World::<E>::start().await;
    let nodes = [world.node().await, world.node().await];
    create(nodes[0].address, "s").await;
    let run = input(nodes[0].address, "s", "Hi").await;
    let mut worker = Worker::join(nodes[0].address, "w1", "guide", 1).await;
    let mut job = worker.work().await;
    let asks = (0..10).map(|n| cancel(nodes[n % 2].address, "s", of_run("c1", &run), WAIT_MS));
    let ending = async {
        worker.socket.wait(|frame| frame["t"] == "control").await;
        worker.end(&mut job, "cancelled").await;
    };
    let (answers, ()) = tokio::join!(futures_util::future::join_all(asks), ending);
    for (status, receipt) in answers {
        assert_eq!(
            (status, &receipt["control"], &receipt["outcome"]),
            (200, &json!("c1"), &json!("applied"))
        );
    }
    let mut client = Client::attach(nodes[1].address, "s", json!("start")).await;
    client.ended(&run).await;
    client.holds_the_state(nodes[0].address).await;
    for kind in ["control.requested", "control.settled", "run.ended"] {
        assert_eq!(client.history.types.iter().filter(|t| *t == kind).count(), 1, "{kind}");
    }
}

async fn a_cancel_of_nothing_known_is_an_error<E: Engine>() {
    let world = World::<E>::start().await;
    let node = world.node().await;
    create(node.address, "s").await;
    let path = "/v1/sessions/s/control";
    Request::post(path, &of_run("c1", "nobody")).send(node.address).await.is_error(404, "no_run");
    let path = "/v1/sessions/nowhere/control";
    Request::post(path, &of_run("c1", "nobody")).send(node.address).await.is_error(404, "no_session");
}

async fn a_parent_that_ends_cancels_its_children<E: Engine>() {
    let world = World::<E>::start().await;
    let (here, there) = (world.node().await, world.node().await);
    create(here.address, "s").await;
    let run = input(here.address, "s", "Hi").await;
    let mut worker = Worker::join(here.address, "w1", "guide", 1).await;
    let mut searcher = Worker::join(there.address, "w2", "searcher", 1).await;
    let mut job = worker.work().await;
    for child in ["done", "busy", "waiting"] {
        let frame = job.start_child(child, "searcher");
        assert_eq!(worker.socket.ask(frame).await["t"], "ok");
        if child == "done" {
            let mut work = searcher.work().await;
            assert_eq!(work.work["parent_run"], run);
            searcher.say(&mut work, "found").await;
            searcher.end(&mut work, "completed").await;
            let told = worker.socket.wait(|frame| frame["t"] == "child_ended").await;
            assert_eq!((&told["child"], &told["outcome"]), (&json!("done"), &json!("completed")));
        }
    }
    let mut busy = searcher.work().await;
    let busy_run = busy.run.clone();
    worker.end(&mut job, "completed").await;
    let told = searcher.socket.wait(|frame| frame["t"] == "control").await;
    assert_eq!(told["run"], busy_run);
    searcher.end(&mut busy, "cancelled").await;
    let mut client = Client::attach(there.address, "s", json!("start")).await;
    for child in ["busy", "waiting"] {
        assert_eq!(client.ended(child).await, "cancelled");
    }
    assert_eq!(client.ended("done").await, "completed");
    client.holds_the_state(here.address).await;
}

async fn a_dead_workers_cancelled_run_ends_as_cancelled<E: Engine>() {
    let mut world = World::<E>::start().await;
    world.leases.cancel_grace = Duration::from_secs(600);
    let node = world.node().await;
    create(node.address, "s").await;
    let run = input(node.address, "s", "Hi").await;
    let mut worker = Worker::join(node.address, "w1", "guide", 1).await;
    let mut job = worker.work().await;
    worker.say(&mut job, "Hel").await;
    cancel(node.address, "s", of_run("c1", &run), 0).await;
    drop(worker);
    let mut client = Client::attach(node.address, "s", json!("start")).await;
    assert_eq!(client.ended(&run).await, "cancelled");
    assert_eq!(settled(&client.history, "c1").unwrap().0, "applied");
}

async fn a_deadline_is_kept_by_another_node_when_the_one_that_took_it_is_gone<E: Engine>() {
    let world = World::<E>::forcing().await;
    let (here, there) = (world.node().await, world.node().await);
    create(here.address, "s").await;
    let run = input(here.address, "s", "Hi").await;
    let mut worker = Worker::join(there.address, "w1", "guide", 1).await;
    let mut job = worker.work().await;
    worker.say(&mut job, "Hel").await;
    let (status, _) = cancel(here.address, "s", of_run("c1", &run), 0).await;
    assert_eq!(status, 202);
    here.drain().await;
    let mut client = Client::attach(there.address, "s", json!("start")).await;
    assert_eq!(client.ended(&run).await, "cancelled");
    assert_eq!(run_of(&client.history, &run)["forced"], true);
}

async fn a_cancel_and_the_end_that_race_have_one_outcome<E: Engine>() {
    let world = World::<E>::start().await;
    let (here, there) = (world.node().await, world.node().await);
    create(here.address, "s").await;
    let mut worker = Worker::join(here.address, "w1", "guide", 1).await;
    let mut client = Client::attach(there.address, "s", json!("start")).await;
    for round in 0..20 {
        let run = input(here.address, "s", "Hi").await;
        let mut job = worker.work().await;
        let id = format!("c{round}");
        let asking = cancel(there.address, "s", of_run(&id, &run), WAIT_MS);
        let ((status, receipt), ack) = tokio::join!(asking, worker.end(&mut job, "completed"));
        assert_eq!((status, ack["t"].as_str()), (200, Some("ok")), "{receipt} {ack}");
        assert_eq!((&receipt["outcome"], &receipt["reason"]), (&json!("refused"), &json!("run_ended")));
        assert_eq!(client.ended(&run).await, "completed");
    }
    client.holds_the_state(here.address).await;
}
