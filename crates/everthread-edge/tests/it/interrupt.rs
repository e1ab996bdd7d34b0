//! An interrupt ends the run and begins anew with its message, in one step; and what input for a busy agent may do instead.

use crate::harness::http::{blocks, create, input, settled, state};
use crate::harness::{Begun, Client, Engine, Request, Worker, World};
use serde_json::{Value, json};

on_both_engines!(
    an_interrupt_ends_the_run_and_its_message_goes_before_what_waits,
    an_interrupt_that_the_worker_ignores_is_forced,
    an_interrupt_of_a_run_without_a_worker_ends_it_at_once,
    an_interrupt_of_a_run_that_is_over_still_asks_for_a_new_one,
    two_interrupts_go_in_their_order,
    a_child_is_not_interrupted,
    input_interrupts_where_it_says_so,
    input_is_rejected_where_it_says_so_and_nothing_is_written,
    input_that_waits_is_bounded,
);

fn interrupt(text: &str) -> Value {
    json!({ "kind": "interrupt", "payload": { "text": text } })
}

fn put(text: &str, when_busy: &str) -> Value {
    let entry =
        json!({ "type": "message.put", "role": "user", "parts": [{ "kind": "text", "value": text }] });
    json!({ "t": "put", "when_busy": when_busy, "entries": [entry] })
}

async fn an_interrupt_ends_the_run_and_its_message_goes_before_what_waits<E: Engine>() {
    let mut begun = Begun::<E>::start().await;
    begun.say("Hel").await;
    let waiting = input(begun.there.address, "s", "Next").await;
    begun.ask("c1", interrupt("no, this")).await;
    let told = begun.worker.told("c1").await;
    assert_eq!((&told["kind"], &told["run"]), (&json!("cancel"), &json!(begun.run)), "{told}");
    assert!(u128::from(told["grace_ms"].as_u64().unwrap()) <= begun.world.leases.cancel_grace.as_millis());
    assert_eq!(begun.client.history.control("c1")["outcome"], Value::Null, "not before the run has ended");
    begun.say("lo").await;
    begun.end("cancelled").await;
    let control = begun.client.settled("c1").await;
    assert_eq!((&control["outcome"], &control["run"]), (&json!("applied"), &json!(begun.run)), "{control}");
    let mut job = begun.worker.work().await;
    assert_ne!(job.run, waiting, "the new run goes first");
    assert_eq!(job.input_texts(), ["no, this"]);
    assert_eq!(job.work["input"][0], control["message"]);
    begun.worker.end(&mut job, "completed").await;
    assert_eq!(begun.worker.serve(&["x"]).await, waiting);
    begun.client.ended(&waiting).await;
    assert_eq!(begun.client.history.answer(&begun.run), "Hello", "what was written stays");
    // Asked, put and requested in one block.
    let log = blocks(begun.here.address, "s").await;
    let asked = log.iter().find(|block| block.contains(&"control.requested".into())).unwrap();
    assert_eq!(asked, &["message.put", "control.requested", "run.requested"]);
    begun.all_agree().await;
}

async fn an_interrupt_that_the_worker_ignores_is_forced<E: Engine>() {
    let mut begun = Begun::<E>::on(World::forcing().await, false).await;
    begun.say("Hel").await;
    begun.ask("c1", interrupt("no, this")).await;
    begun.worker.fenced(&begun.run).await;
    assert_eq!(begun.client.ended(&begun.run).await, "cancelled");
    assert_eq!(begun.client.history.run(&begun.run)["forced"], true);
    assert_eq!(begun.client.settled("c1").await["outcome"], "applied");
    let mut job = begun.worker.work().await;
    assert_eq!(job.input_texts(), ["no, this"]);
    begun.worker.end(&mut job, "completed").await;
    begun.client.ended(&job.run).await;
    begun.all_agree().await;
}

async fn an_interrupt_of_a_run_without_a_worker_ends_it_at_once<E: Engine>() {
    let world = World::<E>::start().await;
    let (here, there) = (world.node().await, world.node().await);
    create(here.address, "s").await;
    let run = input(here.address, "s", "Hi").await;
    let mut asked = interrupt("no, this");
    (asked["id"], asked["target"]) = ("c1".into(), json!({ "run": run }));
    assert_eq!(settled(there.address, "s", &asked).await["outcome"], "applied");
    let mut worker = Worker::join(here.address, "w1", "guide", 1).await;
    let mut job = worker.work().await;
    assert_eq!(job.input_texts(), ["no, this"]);
    worker.say(&mut job, "May I?").await;
    worker.suspend(&mut job, json!([{ "approval": "a1", "reason": "pay?" }])).await;
    let mut asked = interrupt("no, never mind");
    (asked["id"], asked["target"]) = ("c2".into(), json!({ "agent": "guide" }));
    assert_eq!(settled(there.address, "s", &asked).await["outcome"], "applied");
    let mut last = worker.work().await;
    assert_eq!(last.input_texts(), ["no, never mind"]);
    worker.end(&mut last, "completed").await;
    let mut client = Client::attach(there.address, "s", json!("start")).await;
    for run in [&run, &job.run] {
        assert_eq!(client.ended(run).await, "cancelled");
    }
    assert_eq!(client.ended(&last.run).await, "completed");
    client.holds_the_state(here.address).await;
}

async fn an_interrupt_of_a_run_that_is_over_still_asks_for_a_new_one<E: Engine>() {
    let mut begun = Begun::<E>::start().await;
    begun.end("completed").await;
    begun.ask("c1", interrupt("no, this")).await;
    assert_eq!(begun.client.receipt("c1", "settled").await["outcome"], "applied");
    let mut job = begun.worker.work().await;
    assert_eq!(job.input_texts(), ["no, this"]);
    begun.worker.end(&mut job, "completed").await;
    begun.client.ended(&job.run).await;
    assert_eq!(begun.client.history.outcome(&begun.run).unwrap(), "completed");
    begun.all_agree().await;
}

async fn two_interrupts_go_in_their_order<E: Engine>() {
    let mut begun = Begun::<E>::start().await;
    begun.ask("c1", interrupt("first")).await;
    begun.ask("c2", interrupt("second")).await;
    begun.worker.told("c1").await;
    begun.worker.told("c2").await;
    begun.end("cancelled").await;
    for text in ["first", "second"] {
        let mut job = begun.worker.work().await;
        assert_eq!(job.input_texts(), [text]);
        begun.worker.end(&mut job, "completed").await;
        begun.client.ended(&job.run).await;
    }
    for id in ["c1", "c2"] {
        assert_eq!(begun.client.settled(id).await["outcome"], "applied");
    }
    begun.all_agree().await;
}

async fn a_child_is_not_interrupted<E: Engine>() {
    let mut begun = Begun::<E>::start().await;
    let frame = begun.job.start_child("child", "searcher");
    assert_eq!(begun.worker.socket.ask(frame).await["t"], "ok");
    let head = state(begun.here.address, "s").await;
    let mut asked = interrupt("no, this");
    (asked["id"], asked["target"]) = ("c1".into(), json!({ "run": "child" }));
    let path = "/v1/sessions/s/control";
    Request::post(path, &asked).send(begun.there.address).await.is_error(400, "bad_request");
    assert_eq!(state(begun.here.address, "s").await, head, "nothing is written");
    begun.end("completed").await;
    assert_eq!(begun.client.ended("child").await, "cancelled");
}

async fn input_interrupts_where_it_says_so<E: Engine>() {
    let mut begun = Begun::<E>::start().await;
    let body = json!({ "text": "by post", "when_busy": "interrupt", "params": { "depth": 2 } });
    let posted = Request::post("/v1/sessions/s/input", &body).send(begun.there.address).await.with(202);
    let id = posted["control"].as_str().unwrap();
    assert_eq!(begun.worker.told(id).await["kind"], "cancel");
    assert_ne!(posted["run"], begun.run, "the run is the new one");
    begun.end("cancelled").await;
    let mut job = begun.worker.work().await;
    assert_eq!((json!(job.run), job.input_texts()), (posted["run"].clone(), vec!["by post"]));
    assert_eq!(job.work["params"], json!({ "depth": 2 }));
    // And where the session says so.
    let patch = json!({ "meta": { "when_busy": "interrupt" } }).to_string();
    Request::new("PATCH", "/v1/sessions/s").body(patch).send(begun.here.address).await.with(200);
    let entry =
        json!({ "type": "message.put", "role": "user", "parts": [{ "kind": "text", "value": "by socket" }] });
    let done = begun.client.request(json!({ "t": "put", "id": "p1", "entries": [entry] })).await;
    assert_eq!(done["t"], "ok", "{done}");
    begun.worker.told(done["control"].as_str().unwrap()).await;
    begun.worker.end(&mut job, "cancelled").await;
    let again = begun.client.request(json!({ "t": "put", "id": "p1", "entries": [entry] })).await;
    assert_eq!(
        (&again["duplicate"], &again["run"], &again["control"]),
        (&json!(true), &done["run"], &done["control"])
    );
    let mut job = begun.worker.work().await;
    assert_eq!(job.input_texts(), ["by socket"]);
    begun.worker.end(&mut job, "completed").await;
    begun.client.ended(&job.run).await;
    begun.all_agree().await;
}

async fn input_is_rejected_where_it_says_so_and_nothing_is_written<E: Engine>() {
    let mut begun = Begun::<E>::start().await;
    let before = state(begun.here.address, "s").await;
    let body = json!({ "text": "Now", "when_busy": "reject" });
    let refused = Request::post("/v1/sessions/s/input", &body).send(begun.there.address).await;
    refused.is_error(409, "busy");
    assert_eq!(
        (&refused.body["error"]["retryable"], &refused.body["error"]["no_side_effects"]),
        (&json!(true), &json!(true))
    );
    let refused = begun.client.request(put("Now", "reject")).await;
    assert_eq!((&refused["t"], &refused["code"]), (&json!("error"), &json!("busy")), "{refused}");
    let patch = json!({ "meta": { "when_busy": "reject" } }).to_string();
    assert_eq!(state(begun.here.address, "s").await, before);
    Request::new("PATCH", "/v1/sessions/s").body(patch).send(begun.here.address).await.with(200);
    Request::post("/v1/sessions/s/input", &json!({ "text": "Now" }))
        .send(begun.there.address)
        .await
        .is_error(409, "busy");
    // Of another agent, or once the run is over, it is taken.
    let body = json!({ "text": "You", "agent": "searcher" });
    Request::post("/v1/sessions/s/input", &body).send(begun.there.address).await.with(202);
    begun.end("completed").await;
    let done = begun.client.request(put("Now", "reject")).await;
    assert_eq!(done["t"], "ok", "{done}");
    assert_eq!(json!(begun.worker.serve(&["x"]).await), done["run"]);
    begun.client.ended(done["run"].as_str().unwrap()).await;
    begun.all_agree().await;
}

async fn input_that_waits_is_bounded<E: Engine>() {
    let mut begun = Begun::<E>::start().await;
    for number in 1..64 {
        input([begun.here.address, begun.there.address][number % 2], "s", "Next").await;
    }
    let before = state(begun.here.address, "s").await;
    let body = json!({ "text": "One too many" });
    Request::post("/v1/sessions/s/input", &body)
        .send(begun.there.address)
        .await
        .is_error(429, "limit_reached");
    let refused = begun.client.request(put("One too many", "enqueue")).await;
    assert_eq!(refused["code"], "limit_reached", "{refused}");
    for kind in ["steer", "interrupt"] {
        let asked = json!({ "kind": kind, "target": { "run": begun.run }, "payload": { "text": "a" } });
        let refused = Request::post("/v1/sessions/s/control", &asked).send(begun.there.address).await;
        refused.is_error(429, "limit_reached");
    }
    assert_eq!(state(begun.here.address, "s").await, before, "nothing is written");
    let cancel = json!({ "id": "c1", "kind": "cancel", "target": { "all": true } });
    Request::post("/v1/sessions/s/control", &cancel).send(begun.there.address).await.with(202);
    begun.worker.told("c1").await;
    begun.end("cancelled").await;
    let control = begun.client.settled("c1").await;
    assert_eq!(control["outcome"], "applied", "{control}");
    assert_eq!(begun.client.history.count("run.ended"), 64);
    begun.all_agree().await;
}
