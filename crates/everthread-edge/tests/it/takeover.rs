//! A person takes a session over: agents are fenced out until it is handed back.

use crate::harness::http::{create, input, settled, state};
use crate::harness::{Begun, Client, Engine, Request, Worker, World};
use serde_json::{Value, json};
use std::net::SocketAddr;

on_both_engines!(
    a_hold_fences_the_worker_out_and_ends_its_run,
    what_is_said_while_a_session_is_held_is_the_input_of_the_run_after_it,
    a_second_hold_is_an_error_that_names_who_holds,
    holds_and_releases_may_be_repeated,
    a_release_may_begin_nothing_or_something_else,
    controls_of_a_held_session_are_refused_but_a_cancel,
    suspended_runs_stay_while_a_session_is_held,
    runs_that_wait_are_begun_after_the_release,
    a_hold_and_the_end_that_race_leave_one_outcome,
    a_release_of_what_nobody_holds_is_an_error,
);

/// Of an approval that is to expire while the session is held, and not before.
const EXPIRES_MS: u64 = 5_000;

fn hold(subject: &str, body: Value) -> Request {
    Request::post("/v1/sessions/s/hold", &body)
        .header("everthread-subject", subject)
        .header("everthread-kind", "operator")
}

async fn held(address: SocketAddr, id: &str) -> Value {
    hold("olga", json!({ "id": id, "reason": "my turn" })).send(address).await.with(200)
}

async fn release(address: SocketAddr, body: Value) -> Value {
    Request::post("/v1/sessions/s/release", &body)
        .header("everthread-subject", "olga")
        .send(address)
        .await
        .with(200)
}

#[track_caller]
fn came_to(control: &Value, outcome: &str, reason: Option<&str>) {
    assert_eq!((&control["outcome"], control["reason"].as_str()), (&json!(outcome), reason), "{control}");
}

async fn a_hold_fences_the_worker_out_and_ends_its_run<E: Engine>() {
    let mut begun = Begun::<E>::start().await;
    begun.say("Hel").await;
    let refused = begun.here.edge.metrics.errors.with_label_values(&["fenced"]);
    let before = refused.get();
    held(begun.there.address, "h1").await;
    begun.worker.fenced(&begun.run).await;
    let late = begun.worker.append(&mut begun.job, json!([{ "type": "x-late" }])).await;
    assert_eq!((&late["code"], &late["retryable"]), (&json!("fenced"), &json!(false)), "{late}");
    assert_eq!(refused.get(), before + 1, "refusals are counted");
    assert_eq!(begun.client.ended(&begun.run).await, "cancelled");
    let run = begun.client.history.run(&begun.run);
    assert_eq!((&run["reason"], &run["forced"]), (&json!("held"), &json!(true)), "{run}");
    assert_eq!(begun.client.history.answer(&begun.run), "Hel", "what was written stays");
    let view: Value = serde_json::from_str(&state(begun.here.address, "s").await).unwrap();
    let held = &view["session"]["held"];
    assert_eq!(
        (&held["by"]["id"], &held["by"]["kind"], &held["reason"]),
        (&json!("olga"), &json!("operator"), &json!("my turn")),
        "{held}"
    );
    assert!(held["at"].is_u64(), "{held}");
    let released = release(begun.there.address, json!({ "run": false })).await;
    assert_eq!(released["run"], Value::Null, "{released}");
    let next = input(begun.there.address, "s", "Next").await;
    assert_eq!(begun.worker.serve(&["x"]).await, next, "the worker has its place back");
    begun.client.ended(&next).await;
    begun.all_agree().await;
}

async fn what_is_said_while_a_session_is_held_is_the_input_of_the_run_after_it<E: Engine>() {
    let mut begun = Begun::<E>::start().await;
    held(begun.there.address, "h1").await;
    begun.client.ended(&begun.run).await;
    let mut expected = Vec::new();
    // A user's input, an operator's message, and a steer that is refused: all of them are heard.
    let body = json!({ "text": "Is anybody there?" });
    let done = Request::post("/v1/sessions/s/input", &body).send(begun.there.address).await.with(202);
    assert_eq!(done["run"], Value::Null, "{done}");
    expected.push(done["message"].clone());
    let entry =
        json!({ "type": "message.put", "role": "operator", "parts": [{ "kind": "text", "value": "I am." }] });
    let done = begun.client.request(json!({ "t": "put", "entries": [entry] })).await;
    assert_eq!((&done["t"], &done["run"]), (&json!("ok"), &Value::Null), "{done}");
    expected.push(done["message"].clone());
    begun
        .client
        .ask(
            "c1",
            json!({ "kind": "steer", "target": { "agent": "guide" }, "payload": { "text": "and you?" } }),
        )
        .await;
    let control = begun.client.settled("c1").await;
    came_to(&control, "refused", Some("held"));
    expected.push(control["message"].clone());
    let body = json!({ "text": "interrupted", "when_busy": "interrupt" });
    let done = Request::post("/v1/sessions/s/input", &body).send(begun.here.address).await.with(202);
    expected.push(done["message"].clone());
    let idle = tokio::time::timeout(
        begun.world.leases.heartbeat * 5,
        begun.worker.socket.wait(|frame| frame["t"] == "work"),
    );
    assert!(idle.await.is_err(), "a run was begun while the session was held");
    let released = begun.client.request(json!({ "t": "release", "id": "r1", "reason": "yours" })).await;
    assert_eq!(released["t"], "ok", "{released}");
    let mut job = begun.worker.work().await;
    assert_eq!((json!(job.run), job.work["input"].clone()), (released["run"].clone(), json!(expected)));
    assert_eq!(job.input_texts(), ["Is anybody there?", "I am.", "and you?", "interrupted"]);
    begun.worker.end(&mut job, "completed").await;
    begun.client.ended(&job.run).await;
    assert_eq!(begun.client.history.count("run.requested"), 2);
    begun.all_agree().await;
}

async fn a_second_hold_is_an_error_that_names_who_holds<E: Engine>() {
    let mut begun = Begun::<E>::start().await;
    held(begun.there.address, "h1").await;
    begun.client.ended(&begun.run).await;
    let refused = hold("otto", json!({})).send(begun.here.address).await;
    refused.is_error(409, "held");
    assert!(refused.body["error"]["message"].as_str().unwrap().contains("olga"), "{}", refused.text);
    let refused = begun.client.request(json!({ "t": "hold" })).await;
    assert_eq!((&refused["t"], &refused["code"]), (&json!("error"), &json!("held")), "{refused}");
    assert!(refused["message"].as_str().unwrap().contains("olga"), "{refused}");
    assert_eq!(begun.client.history.count("session.held"), 1);
    // Anybody may hand it back, and another take it.
    release(begun.here.address, json!({ "run": false })).await;
    let done = begun.client.request(json!({ "t": "hold", "reason": "mine" })).await;
    assert_eq!(done["t"], "ok", "{done}");
    let view: Value = serde_json::from_str(&state(begun.here.address, "s").await).unwrap();
    assert_eq!(view["session"]["held"]["by"]["id"], "ann");
    begun.all_agree().await;
}

async fn holds_and_releases_may_be_repeated<E: Engine>() {
    let mut begun = Begun::<E>::start().await;
    let first = held(begun.there.address, "h1").await;
    assert_eq!(held(begun.here.address, "h1").await["cursor"], first["cursor"]);
    // Another person's request with the same id is another request.
    let other = hold("otto", json!({ "id": "h1" }));
    other.send(begun.here.address).await.is_error(409, "held");
    let released = release(begun.there.address, json!({ "id": "r1" })).await;
    let again = release(begun.here.address, json!({ "id": "r1" })).await;
    assert_eq!((&again["run"], &again["cursor"]), (&released["run"], &released["cursor"]));
    assert_eq!(
        held(begun.here.address, "h1").await["cursor"],
        first["cursor"],
        "a late repeat does not take it again"
    );
    let mut job = begun.worker.work().await;
    assert_eq!(released["run"], job.run);
    begun.worker.end(&mut job, "completed").await;
    begun.client.ended(&job.run).await;
    let held_and_released =
        (begun.client.history.count("session.held"), begun.client.history.count("session.released"));
    assert_eq!(held_and_released, (1, 1));
    begun.all_agree().await;
}

async fn a_release_may_begin_nothing_or_something_else<E: Engine>() {
    let mut begun = Begun::<E>::start().await;
    held(begun.there.address, "h1").await;
    begun.client.ended(&begun.run).await;
    let body = json!({ "text": "unheard" });
    Request::post("/v1/sessions/s/input", &body).send(begun.there.address).await.with(202);
    let released = release(begun.there.address, json!({ "run": false })).await;
    assert_eq!(released["run"], Value::Null, "{released}");
    held(begun.there.address, "h2").await;
    let body = json!({ "text": "heard" });
    Request::post("/v1/sessions/s/input", &body).send(begun.there.address).await.with(202);
    let released = release(begun.there.address, json!({ "agent": "searcher" })).await;
    let mut searcher = Worker::join(begun.there.address, "w2", "searcher", 1).await;
    let mut job = searcher.work().await;
    assert_eq!((json!(job.run), job.input_texts()), (released["run"].clone(), vec!["heard"]));
    searcher.end(&mut job, "completed").await;
    begun.client.ended(&job.run).await;
    begun.all_agree().await;
}

async fn controls_of_a_held_session_are_refused_but_a_cancel<E: Engine>() {
    let mut begun = Begun::<E>::start().await;
    begun.worker.suspend(&mut begun.job, json!([{ "approval": "a1", "reason": "pay?" }])).await;
    let waiting = input(begun.there.address, "s", "Next").await;
    held(begun.there.address, "h1").await;
    begun.client.until("held", |history| history.count("session.held") == 1).await;
    let asks = [
        ("pause", json!({ "kind": "pause" })),
        ("resume", json!({ "kind": "resume" })),
        ("steer", json!({ "kind": "steer", "payload": { "text": "a" } })),
        ("interrupt", json!({ "kind": "interrupt", "payload": { "text": "b" } })),
        ("answer", json!({ "kind": "answer", "payload": { "approval": "a1", "decision": "approved" } })),
    ];
    for (id, asked) in asks {
        begun.ask(id, asked).await;
        came_to(&begun.client.settled(id).await, "refused", Some("held"));
    }
    let cancel = json!({ "id": "c1", "kind": "cancel", "target": { "run": waiting } });
    came_to(&settled(begun.there.address, "s", &cancel).await, "applied", None);
    let released = release(begun.there.address, json!({})).await;
    begun
        .ask("late", json!({ "kind": "answer", "payload": { "approval": "a1", "decision": "approved" } }))
        .await;
    came_to(&begun.client.settled("late").await, "applied", None);
    let mut job = begun.worker.work().await;
    assert_eq!((&*job.run, job.attempt), (&*begun.run, 2));
    begun.worker.end(&mut job, "completed").await;
    let mut job = begun.worker.work().await;
    assert_eq!((json!(job.run), job.input_texts()), (released["run"].clone(), vec!["a", "b"]));
    begun.worker.end(&mut job, "completed").await;
    begun.client.ended(&job.run).await;
    begun.all_agree().await;
}

async fn suspended_runs_stay_while_a_session_is_held<E: Engine>() {
    let mut begun = Begun::<E>::start().await;
    begun
        .worker
        .suspend(&mut begun.job, json!([{ "approval": "a1", "reason": "pay?", "expires_ms": EXPIRES_MS }]))
        .await;
    held(begun.there.address, "h1").await;
    // Its time runs on, but it is not begun.
    begun.worker.meanwhile(begun.client.run_is(&begun.run, "requested")).await;
    let idle = tokio::time::timeout(
        begun.world.leases.heartbeat * 4,
        begun.worker.socket.wait(|frame| frame["t"] == "work"),
    );
    assert!(idle.await.is_err(), "a run was begun while the session was held");
    release(begun.there.address, json!({ "run": false })).await;
    let mut job = begun.worker.work().await;
    assert_eq!((&*job.run, &job.work["answers"][0]["verdict"]), (&*begun.run, &json!("expired")));
    begun.worker.end(&mut job, "completed").await;
    assert_eq!(begun.client.ended(&begun.run).await, "completed");
    begun.all_agree().await;
}

async fn runs_that_wait_are_begun_after_the_release<E: Engine>() {
    let world = World::<E>::start().await;
    let (here, there) = (world.node().await, world.node().await);
    create(here.address, "s").await;
    let first = input(here.address, "s", "Hi").await;
    let second = input(here.address, "s", "And").await;
    held(there.address, "h1").await;
    let mut worker = Worker::join(here.address, "w1", "guide", 4).await;
    // Long enough for what is in the pool to be taken and left.
    let idle =
        tokio::time::timeout(world.leases.heartbeat * 16, worker.socket.wait(|frame| frame["t"] == "work"));
    assert!(idle.await.is_err(), "a run was begun while the session was held");
    let third = release(there.address, json!({})).await["run"].as_str().unwrap().to_owned();
    for run in [&first, &second, &third] {
        assert_eq!(worker.serve(&["x"]).await, *run);
    }
    let mut client = Client::attach(there.address, "s", json!("start")).await;
    assert_eq!(client.ended(&third).await, "completed");
    client.holds_the_state(here.address).await;
}

async fn a_hold_and_the_end_that_race_leave_one_outcome<E: Engine>() {
    let mut begun = Begun::<E>::start().await;
    for round in 0..15 {
        let run = begun.job.run.clone();
        let id = format!("h{round}");
        let (_, ack) =
            tokio::join!(held(begun.there.address, &id), begun.worker.end(&mut begun.job, "completed"));
        let outcome = begun.client.ended(&run).await;
        assert_eq!(outcome == "completed", ack["t"] == "ok", "{outcome} {ack}");
        release(begun.there.address, json!({})).await;
        begun.job = begun.worker.work().await;
    }
    begun.worker.end(&mut begun.job, "completed").await;
    begun.client.ended(&begun.job.run).await;
    begun.all_agree().await;
}

async fn a_release_of_what_nobody_holds_is_an_error<E: Engine>() {
    let mut begun = Begun::<E>::start().await;
    let refused = Request::post("/v1/sessions/s/release", &json!({})).send(begun.there.address).await;
    refused.is_error(400, "bad_request");
    let refused = begun.client.request(json!({ "t": "release" })).await;
    assert_eq!(refused["code"], "bad_request", "{refused}");
    for route in ["hold", "release"] {
        let path = format!("/v1/sessions/none/{route}");
        Request::post(path, &json!({})).send(begun.there.address).await.is_error(404, "no_session");
    }
    begun.end("completed").await;
    begun.all_agree().await;
}
