//! The token of a run writes that run, from any process, and nothing else.

use crate::harness::client::hello;
use crate::harness::http::{create, input};
use crate::harness::worker::Job;
use crate::harness::{Begun, Engine, Request, Socket, TOKEN, Worker};
use everthread_protocol::frame::SUBPROTOCOL;
use serde_json::{Value, json};
use std::net::SocketAddr;

on_both_engines!(
    another_process_writes_the_run_with_its_token,
    what_another_process_wrote_does_not_let_forbidden_entries_through,
    the_token_of_a_run_opens_nothing_else,
    a_token_that_was_changed_opens_nothing,
    the_token_of_a_run_is_dead_when_the_attempt_is_over,
    a_process_with_a_token_may_come_and_go,
    a_process_with_a_token_is_told_that_the_run_is_gone,
);

async fn open(address: SocketAddr) -> Socket {
    Socket::open_with(address, "/v1/worker", &[("sec-websocket-protocol", SUBPROTOCOL)]).await.unwrap()
}

fn hello_of(token: &Value, job: &Job) -> Value {
    let runs = json!([{ "session": job.session, "run": job.run, "fence": job.fence }]);
    json!({ "t": "hello", "token": token, "worker": "tool", "agents": [], "runs": runs })
}

/// A process that has nothing but the token; it says which runs it has.
async fn helper(address: SocketAddr, job: &Job) -> (Socket, Value) {
    let mut socket = open(address).await;
    let welcome = socket.ask(hello_of(&job.work["token"], job)).await;
    assert_eq!(welcome["t"], "welcome", "{welcome}");
    (socket, welcome["kept"].clone())
}

async fn another_process_writes_the_run_with_its_token<E: Engine>() {
    let mut begun = Begun::<E>::start().await;
    begun.say("Hel").await;
    let (mut tool, kept) = helper(begun.there.address, &begun.job).await;
    assert_eq!(kept, json!([begun.run]));
    // They share one numbering.
    let ack = tool.ask(begun.job.say("lo")).await;
    assert_eq!((&ack["t"], &ack["batch"]), (&json!("ok"), &json!(2)), "{ack}");
    begun.say(" wor").await;
    let ack = tool.ask(begun.job.say("ld")).await;
    assert_eq!((&ack["t"], &ack["batch"]), (&json!("ok"), &json!(4)), "{ack}");
    let ack = tool.ask(begun.job.append(json!([{ "type": "event", "name": "tool", "data": 1 }]))).await;
    assert_eq!(ack["t"], "ok", "{ack}");
    begun.end("completed").await;
    assert_eq!(begun.client.history.answer(&begun.run), "Hello world");
    begun.all_agree().await;
}

async fn what_another_process_wrote_does_not_let_forbidden_entries_through<E: Engine>() {
    let mut begun = Begun::<E>::start().await;
    begun.say("Hel").await;
    let (mut tool, _) = helper(begun.there.address, &begun.job).await;
    let ack = tool.ask(begun.job.say("lo")).await;
    assert_eq!(ack["t"], "ok", "{ack}");
    // The worker's node has not seen that batch. What follows it is checked all the same.
    let forged = json!([{ "type": "run.ended", "run": begun.run, "outcome": "completed" }]);
    let refused = begun.worker.append(&mut begun.job.clone(), forged).await;
    assert_eq!(refused["code"], "entry_not_allowed", "{refused}");
    let wrong = json!([{ "type": "part.append", "message": "m", "part": "p", "offset": 99, "text": "x" }]);
    let refused = begun.worker.append(&mut begun.job.clone(), wrong).await;
    assert_eq!(refused["code"], "bad_offset", "{refused}");
    let mut ahead = begun.job.clone();
    ahead.batch += 1;
    let refused = begun.worker.append(&mut ahead, json!([{ "type": "nope" }])).await;
    assert!(refused["code"] == "gap" || refused["code"] == "entry_not_allowed", "{refused}");
    begun.say("!").await;
    begun.end("completed").await;
    assert_eq!(begun.client.history.answer(&begun.run), "Hello!");
    begun.all_agree().await;
}

async fn the_token_of_a_run_opens_nothing_else<E: Engine>() {
    let mut begun = Begun::<E>::start().await;
    create(begun.here.address, "t").await;
    let other = input(begun.here.address, "t", "Hi").await;
    let mut second = Worker::join(begun.there.address, "w2", "guide", 1).await;
    let theirs = second.work().await;
    assert_eq!(theirs.run, other);
    let token = &begun.job.work["token"];
    let mut offering = hello_of(token, &begun.job);
    offering["agents"] = json!([{ "name": "guide", "capacity": 1 }]);
    let mut only_offering = offering.clone();
    only_offering["runs"] = json!([]);
    let mut elsewhere = begun.job.clone();
    elsewhere.session = "t".into();
    let mut newer = begun.job.clone();
    newer.fence = theirs.fence.clone();
    let mut both = hello_of(token, &begun.job);
    let more = hello_of(token, &theirs)["runs"][0].clone();
    both["runs"].as_array_mut().unwrap().push(more);
    let hellos = [
        offering,
        only_offering,
        hello_of(token, &theirs),
        hello_of(token, &elsewhere),
        hello_of(token, &newer),
        both,
    ];
    for hello in hellos {
        let mut socket = open(begun.there.address).await;
        let refused = socket.ask(hello.clone()).await;
        assert_eq!(refused["code"], "forbidden", "{hello}: {refused}");
        assert_eq!(socket.closed().await, Some(4403), "{hello}");
    }
    // Not at the other doors either.
    let token = token.as_str().unwrap();
    let mut socket =
        Socket::open_with(begun.there.address, "/v1/connect", &[("sec-websocket-protocol", SUBPROTOCOL)])
            .await
            .unwrap();
    assert_eq!(socket.ask(json!({ "t": "hello", "token": token })).await["code"], "unauthorized");
    assert_eq!(socket.closed().await, Some(4401));
    for path in ["/v1/sessions", "/v1/sessions/s/state", "/v1/sessions/s/follow"] {
        let request = Request::get(path).header("authorization", format!("Bearer {token}"));
        request.send(begun.there.address).await.is_error(401, "unauthorized");
    }
    // In a run's connection, writes to another run are not taken.
    let (mut tool, _) = helper(begun.there.address, &begun.job).await;
    let refused = tool.ask(theirs.clone().append(json!([{ "type": "x-a" }]))).await;
    assert_eq!(refused["code"], "fenced", "{refused}");
    begun.end("completed").await;
    begun.all_agree().await;
}

async fn a_token_that_was_changed_opens_nothing<E: Engine>() {
    let begun = Begun::<E>::start().await;
    let token = begun.job.work["token"].as_str().unwrap();
    let (claims, mac) = token.strip_prefix("run.").unwrap().split_once('.').unwrap();
    let mut flipped = mac.to_owned();
    let last = if flipped.pop() == Some('A') { 'Q' } else { 'A' };
    flipped.push(last);
    let wrong = [
        format!("run.{claims}.{flipped}"),
        format!("run.{claims}."),
        format!("run.{claims}"),
        format!("run..{mac}"),
        "run..".into(),
        "run.".into(),
        format!("{token}x"),
        format!("run.{claims}x.{mac}"),
        format!("{TOKEN}."),
        "run".into(),
    ];
    for token in wrong {
        let mut socket = open(begun.there.address).await;
        let refused = socket.ask(hello_of(&json!(token), &begun.job)).await;
        assert_eq!(refused["code"], "unauthorized", "{token}: {refused}");
        assert_eq!(socket.closed().await, Some(4401), "{token}");
    }
    drop(hello(begun.there.address).await);
}

async fn the_token_of_a_run_is_dead_when_the_attempt_is_over<E: Engine>() {
    let mut begun = Begun::<E>::start().await;
    begun.say("Hel").await;
    let (mut tool, _) = helper(begun.there.address, &begun.job).await;
    begun.worker.suspend(&mut begun.job, json!([{ "approval": "a1", "reason": "?" }])).await;
    tool.wait(|frame| frame["t"] == "fenced" && frame["run"] == begun.run).await;
    let refused = tool.ask(begun.job.clone().say("late")).await;
    assert_eq!(refused["code"], "fenced", "{refused}");
    assert_eq!(helper(begun.there.address, &begun.job).await.1, json!([]));
    let answer = json!({ "kind": "answer", "payload": { "approval": "a1", "decision": "approved" } });
    begun.ask("c1", answer).await;
    let mut second = begun.worker.work().await;
    assert_ne!(second.work["token"], begun.job.work["token"]);
    // The first token is that of the first attempt; the second opens the second.
    assert_eq!(helper(begun.there.address, &begun.job).await.1, json!([]));
    let mut mixed = hello_of(&begun.job.work["token"], &second);
    mixed["id"] = "h".into();
    let mut socket = open(begun.there.address).await;
    assert_eq!(socket.ask(mixed).await["code"], "forbidden");
    let (mut tool, kept) = helper(begun.there.address, &second).await;
    assert_eq!(kept, json!([begun.run]));
    second.go_on();
    assert_eq!(tool.ask(second.say("lo")).await["t"], "ok");
    // It may even end it.
    assert_eq!(tool.ask(second.end("completed")).await["t"], "ok");
    assert_eq!(begun.client.ended(&begun.run).await, "completed");
    begun.worker.fenced(&begun.run).await;
    assert_eq!(helper(begun.there.address, &second).await.1, json!([]));
    let next = input(begun.there.address, "s", "Next").await;
    assert_eq!(begun.worker.serve(&["x"]).await, next, "the worker has its place back");
    begun.client.ended(&next).await;
    begun.all_agree().await;
}

async fn a_process_with_a_token_may_come_and_go<E: Engine>() {
    let mut begun = Begun::<E>::start().await;
    for piece in ["a", "b", "c"] {
        let (mut tool, kept) = helper(begun.there.address, &begun.job).await;
        assert_eq!(kept, json!([begun.run]));
        assert_eq!(tool.ask(begun.job.say(piece)).await["t"], "ok");
    }
    // None of them takes the run with it when it goes, and none of them counts as its worker.
    begun.worker.meanwhile(tokio::time::sleep(begun.world.leases.return_grace * 2)).await;
    begun.say("d").await;
    begun.end("completed").await;
    assert_eq!(begun.client.history.answer(&begun.run), "abcd");
    begun.all_agree().await;
}

async fn a_process_with_a_token_is_told_that_the_run_is_gone<E: Engine>() {
    let mut begun = Begun::<E>::start().await;
    begun.say("Hel").await;
    let (mut tool, _) = helper(begun.there.address, &begun.job).await;
    begun.ask("c1", json!({ "kind": "cancel" })).await;
    tool.wait(|frame| frame["t"] == "control" && frame["control"] == "c1").await;
    begun.worker.told("c1").await;
    begun.end("cancelled").await;
    tool.wait(|frame| frame["t"] == "fenced" && frame["run"] == begun.run).await;
    begun.all_agree().await;
}
