//! Messages are edited, runs are done again, branches are selected: over WebSocket and HTTP, while agents are at work.

use crate::harness::http::{blocks, create, input};
use crate::harness::{Begun, Client, Engine, Request, Worker, World};
use everthread_session::view::View;
use serde_json::{Value, json};
use std::net::SocketAddr;

on_both_engines!(
    an_edit_cancels_the_run_at_work_and_its_own_goes_next_on_a_branch_of_its_own,
    an_edit_over_http_goes_to_the_agent_of_the_message_it_replaces,
    an_edit_of_a_message_in_the_middle_ends_everything_that_waits_behind_it,
    a_run_that_has_ended_is_done_again_beside_its_first_answer,
    a_run_that_wrote_nothing_is_done_again_where_it_was_asked_for,
    a_run_that_goes_on_is_not_done_again,
    a_branch_is_selected_for_everybody_and_work_carries_it,
    a_run_goes_on_where_it_stands_while_another_branch_is_selected,
    a_child_stands_where_its_parent_stands,
    what_was_said_to_a_run_that_is_replaced_asks_for_nothing,
    a_repeat_gets_the_first_answer,
    what_does_not_exist_is_not_found,
    an_edit_while_a_person_holds_the_session_replaces_what_is_kept_for_the_release,
);

async fn post(address: SocketAddr, what: &str, body: Value) -> Value {
    let answer = Request::post(format!("/v1/sessions/s/{what}"), &body).send(address).await;
    assert!(answer.status.is_success(), "{what} {body}: {}", answer.text);
    answer.body
}

fn put(text: &str) -> Value {
    let entry =
        json!({ "type": "message.put", "role": "user", "parts": [{ "kind": "text", "value": text }] });
    json!({ "t": "put", "entries": [entry] })
}

fn texts(messages: &[&everthread_session::view::Message]) -> Vec<String> {
    let text = |m: &&everthread_session::view::Message| {
        m.parts.first().and_then(|part| part.value.as_str()).unwrap_or_default().to_owned()
    };
    messages.iter().map(text).collect()
}

/// Texts of the current branch as the server has it.
async fn branch(address: SocketAddr) -> Vec<String> {
    let view: View = serde_json::from_str(&crate::harness::http::state(address, "s").await).unwrap();
    texts(&view.branch())
}

/// Texts of the messages that came with a run.
fn work_texts(work: &Value) -> Vec<&str> {
    let messages = work["messages"].as_array().unwrap().iter();
    messages.map(|m| m["parts"][0]["value"].as_str().unwrap_or_default()).collect()
}

/// The message of the session that has this text.
fn message_of(client: &Client, text: &str) -> String {
    let found = client.history.view.messages().iter().rfind(|m| texts(&[m]) == [text]).unwrap();
    match &found.run {
        Some(run) => format!("{run}/{}", found.message),
        None => found.message.to_string(),
    }
}

/// A session `s` in which `Hi` was answered with `Hello`, and a worker for what comes.
async fn answered<E: Engine>() -> (World<E>, crate::harness::Node<E::Store>, Worker, Client, String) {
    let world = World::<E>::start().await;
    let node = world.node().await;
    create(node.address, "s").await;
    let run = input(node.address, "s", "Hi").await;
    let mut worker = Worker::join(node.address, "w1", "guide", 1).await;
    assert_eq!(worker.serve(&["Hello"]).await, run);
    let mut client = Client::attach(node.address, "s", json!("start")).await;
    client.ended(&run).await;
    (world, node, worker, client, run)
}

async fn an_edit_cancels_the_run_at_work_and_its_own_goes_next_on_a_branch_of_its_own<E: Engine>() {
    let mut begun = Begun::<E>::start().await;
    begun.say("Hel").await;
    begun
        .client
        .until("the text", |history| history.answer(history.view.runs()[0].run.as_str()) == "Hel")
        .await;
    let waiting = input(begun.there.address, "s", "And you?").await;
    begun.client.run_is(&waiting, "requested").await;
    let mut frame = put("Hi there");
    frame["replaces"] = message_of(&begun.client, "Hi").into();
    let done = begun.client.request(frame).await;
    assert_eq!(done["t"], "ok", "{done}");
    assert_eq!(begun.client.ended(&waiting).await, "cancelled");
    assert_eq!(begun.client.history.run(&waiting)["reason"], "replaced");
    assert_eq!(begun.worker.told_to("cancel").await["run"], begun.run);
    begun.say("lo").await;
    begun.end("cancelled").await;
    let mut job = begun.worker.work().await;
    assert_eq!((job.run.as_str(), job.input_texts()), (done["run"].as_str().unwrap(), vec!["Hi there"]));
    assert_eq!(work_texts(&job.work), ["Hi there"]);
    begun.worker.say(&mut job, "Hello there").await;
    begun.worker.end(&mut job, "completed").await;
    begun.client.ended(&job.run).await;
    assert_eq!(texts(&begun.client.history.view.branch()), ["Hi there", "Hello there"]);
    assert_eq!(begun.client.history.answer(&begun.run), "Hello", "what was written stays");
    let log = blocks(begun.here.address, "s").await;
    let edit = log.iter().find(|block| block.contains(&"branch.begun".into())).unwrap();
    assert_eq!(edit.first().unwrap(), "branch.begun");
    assert_eq!(edit[edit.len() - 2..], ["message.put", "run.requested"]);
    begun.all_agree().await;
}

async fn an_edit_over_http_goes_to_the_agent_of_the_message_it_replaces<E: Engine>() {
    let world = World::<E>::start().await;
    let node = world.node().await;
    Request::post("/v1/sessions", &json!({ "session": "s" })).send(node.address).await.with(201);
    let first = post(node.address, "input", json!({ "text": "Hi", "agent": "guide" })).await;
    let mut worker = Worker::join(node.address, "w1", "guide", 1).await;
    worker.serve(&["Hello"]).await;
    let edit = json!({ "text": "Hi!", "replaces": first["message"] });
    let second = post(node.address, "input", edit).await;
    assert_eq!(worker.serve(&["Hello!"]).await, second["run"].as_str().unwrap());
    assert_eq!(branch(node.address).await, ["Hi!", "Hello!"]);
    // An answer may be put in the place of another, too: then nobody is asked.
    let entry = json!({ "type": "message.put", "role": "operator", "parts": [{ "kind": "text", "value": "I am Bea" }] });
    let replaces = format!("{}/m", second["run"].as_str().unwrap());
    let put = post(node.address, "entries", json!({ "entries": [entry], "replaces": replaces })).await;
    assert!(put["run"].is_null(), "{put}");
    assert_eq!(branch(node.address).await, ["Hi!", "I am Bea"]);
    let wrong = json!({ "entries": [{ "type": "event", "name": "e" }], "replaces": replaces });
    Request::post("/v1/sessions/s/entries", &wrong).send(node.address).await.is_error(400, "bad_request");
}

async fn an_edit_of_a_message_in_the_middle_ends_everything_that_waits_behind_it<E: Engine>() {
    let (_world, node, mut worker, mut client, _) = answered::<E>().await;
    let second = input(node.address, "s", "How?").await;
    let mut job = worker.work().await;
    let third = input(node.address, "s", "Why?").await;
    client.run_is(&third, "requested").await;
    let edit = json!({ "text": "When?", "replaces": message_of(&client, "How?") });
    let run = post(node.address, "input", edit).await["run"].as_str().unwrap().to_owned();
    worker.end(&mut job, "cancelled").await;
    assert_eq!(
        (client.ended(&second).await, client.ended(&third).await),
        ("cancelled".into(), "cancelled".into())
    );
    assert_eq!(worker.serve(&["Now"]).await, run);
    assert_eq!(branch(node.address).await, ["Hi", "Hello", "When?", "Now"]);
    client.holds_the_state(node.address).await;
}

async fn a_run_that_has_ended_is_done_again_beside_its_first_answer<E: Engine>() {
    let (_world, node, mut worker, mut client, first) = answered::<E>().await;
    let done = client.request(json!({ "t": "regenerate", "run": first })).await;
    assert_eq!(done["t"], "ok", "{done}");
    let mut job = worker.work().await;
    assert_eq!((json!(job.run), work_texts(&job.work)), (done["run"].clone(), vec!["Hi"]));
    assert_eq!(job.input_texts(), ["Hi"]);
    assert_eq!(branch(node.address).await, ["Hi"]);
    worker.say(&mut job, "Welcome").await;
    worker.end(&mut job, "completed").await;
    client.ended(&job.run).await;
    assert_eq!(branch(node.address).await, ["Hi", "Welcome"]);
    let again = json!({ "run": job.run, "params": { "temperature": 1 } });
    let answer = Request::post("/v1/sessions/s/regenerate", &again).send(node.address).await.with(202);
    let third = worker.work().await;
    assert_eq!(
        (json!(third.run), &third.work["params"]),
        (answer["run"].clone(), &json!({ "temperature": 1 }))
    );
    let mut third = third;
    worker.say(&mut third, "Hey").await;
    worker.end(&mut third, "completed").await;
    client.ended(&third.run).await;
    let view = &client.history.view;
    let answer = view.find(&format!("{first}/m")).unwrap();
    assert_eq!(texts(&view.alternatives(answer)), ["Hello", "Welcome", "Hey"]);
    client.holds_the_state(node.address).await;
}

async fn a_run_that_wrote_nothing_is_done_again_where_it_was_asked_for<E: Engine>() {
    let world = World::<E>::start().await;
    let node = world.node().await;
    create(node.address, "s").await;
    let first = input(node.address, "s", "Hi").await;
    let mut worker = Worker::join(node.address, "w1", "guide", 1).await;
    let mut job = worker.work().await;
    worker.end(&mut job, "failed").await;
    let waiting = input(node.address, "s", "Hello?").await;
    let mut job = worker.work().await;
    post(node.address, "regenerate", json!({ "run": first })).await;
    assert_eq!(worker.told_to("cancel").await["run"], waiting, "it came after");
    worker.end(&mut job, "cancelled").await;
    worker.serve(&["Yes"]).await;
    assert_eq!(branch(node.address).await, ["Hi", "Yes"]);
}

async fn a_run_that_goes_on_is_not_done_again<E: Engine>() {
    let mut begun = Begun::<E>::start().await;
    let error = begun.client.request(json!({ "t": "regenerate", "run": begun.run })).await;
    assert_eq!((&error["t"], &error["code"]), (&json!("error"), &json!("busy")), "{error}");
    let child = begun.job.start_child("c1", "guide");
    assert_eq!(begun.worker.socket.ask(child).await["t"], "ok");
    begun.end("completed").await;
    begun.client.ended("c1").await;
    let again = Request::post("/v1/sessions/s/regenerate", &json!({ "run": "c1" }));
    again.send(begun.there.address).await.is_error(400, "bad_request");
    begun.all_agree().await;
}

async fn a_branch_is_selected_for_everybody_and_work_carries_it<E: Engine>() {
    let (world, node, mut worker, mut client, _) = answered::<E>().await;
    let mut other = Client::attach(node.address, "s", json!({ "recent": 1 })).await;
    let first = message_of(&client, "Hi");
    post(node.address, "input", json!({ "text": "Ho", "replaces": first })).await;
    worker.serve(&["Hey"]).await;
    assert_eq!(branch(node.address).await, ["Ho", "Hey"]);
    let done = client.request(json!({ "t": "select", "message": first })).await;
    assert_eq!(done["t"], "ok", "{done}");
    assert_eq!(branch(node.address).await, ["Hi", "Hello"]);
    let there = world.node().await;
    input(there.address, "s", "And then?").await;
    let mut job = worker.work().await;
    assert_eq!(work_texts(&job.work), ["Hi", "Hello", "And then?"]);
    worker.say(&mut job, "Then this").await;
    worker.end(&mut job, "completed").await;
    client.ended(&job.run).await;
    other.ended(&job.run).await;
    // Whoever attached with less holds what it has of the same branch.
    assert_eq!(texts(&other.history.view.branch()), ["Hello", "And then?", "Then this"]);
    post(node.address, "select", json!({ "message": message_of(&client, "Ho") })).await;
    assert_eq!(branch(there.address).await, ["Ho", "Hey"]);
    post(node.address, "select", json!({ "message": message_of(&client, "Hello") })).await;
    assert_eq!(branch(there.address).await, ["Hi", "Hello", "And then?", "Then this"]);
    client.holds_the_state(there.address).await;
}

async fn a_run_goes_on_where_it_stands_while_another_branch_is_selected<E: Engine>() {
    let (_world, node, mut worker, mut client, _) = answered::<E>().await;
    let first = message_of(&client, "Hi");
    post(node.address, "input", json!({ "text": "Ho", "replaces": first })).await;
    let mut job = worker.work().await;
    worker.say(&mut job, "He").await;
    post(node.address, "select", json!({ "message": first })).await;
    worker.say(&mut job, "y").await;
    let more = json!([{ "type": "message.start", "message": "more", "role": "assistant" },
        { "type": "part.start", "message": "more", "part": "p", "kind": "text" },
        { "type": "part.append", "message": "more", "part": "p", "offset": 0, "text": "you" }]);
    assert_eq!(worker.append(&mut job, more).await["t"], "ok");
    worker.end(&mut job, "completed").await;
    client.ended(&job.run).await;
    assert_eq!(branch(node.address).await, ["Hi", "Hello"]);
    post(node.address, "select", json!({ "message": message_of(&client, "Ho") })).await;
    assert_eq!(branch(node.address).await, ["Ho", "Hey", "you"]);
    client.holds_the_state(node.address).await;
}

async fn a_child_stands_where_its_parent_stands<E: Engine>() {
    let (_world, node, mut worker, mut client, _) = answered::<E>().await;
    let first = message_of(&client, "Hi");
    post(node.address, "input", json!({ "text": "Ho", "replaces": first })).await;
    let mut job = worker.work().await;
    worker.say(&mut job, "Let me ask").await;
    post(node.address, "select", json!({ "message": first })).await;
    let child = job.start_child("c1", "helper");
    assert_eq!(worker.socket.ask(child).await["t"], "ok");
    let mut helper = Worker::join(node.address, "w2", "helper", 1).await;
    let mut task = helper.work().await;
    assert_eq!(work_texts(&task.work), ["Ho", "Let me ask", "look"]);
    helper.say(&mut task, "found").await;
    helper.end(&mut task, "completed").await;
    worker.end(&mut job, "completed").await;
    client.ended(&job.run).await;
    assert_eq!(branch(node.address).await, ["Hi", "Hello"]);
    post(node.address, "select", json!({ "message": message_of(&client, "Ho") })).await;
    assert_eq!(branch(node.address).await, ["Ho", "Let me ask", "look", "found"]);
}

async fn what_was_said_to_a_run_that_is_replaced_asks_for_nothing<E: Engine>() {
    let mut begun = Begun::<E>::start().await;
    begun.ask("c1", json!({ "kind": "steer", "payload": { "text": "shorter" } })).await;
    begun.worker.told("c1").await;
    let edit = json!({ "text": "Hi there", "replaces": message_of(&begun.client, "Hi") });
    let run = post(begun.there.address, "input", edit).await["run"].as_str().unwrap().to_owned();
    let control = begun.client.settled("c1").await;
    assert_eq!(
        (&control["outcome"], &control["reason"]),
        (&json!("refused"), &json!("superseded")),
        "{control}"
    );
    begun.end("cancelled").await;
    assert_eq!(begun.worker.serve(&["Hello"]).await, run);
    begun.client.ended(&run).await;
    assert_eq!(begun.client.history.count("run.requested"), 2);
    begun.all_agree().await;
}

async fn a_repeat_gets_the_first_answer<E: Engine>() {
    let (_world, node, mut worker, mut client, first) = answered::<E>().await;
    let mut edit = put("Ho");
    (edit["id"], edit["replaces"]) = ("e1".into(), message_of(&client, "Hi").into());
    let done = client.request(edit.clone()).await;
    let again = client.request(edit.clone()).await;
    assert_eq!((&again["run"], &again["message"]), (&done["run"], &done["message"]), "{again}");
    assert_eq!(again["duplicate"], true);
    worker.serve(&["Hey"]).await;
    let regenerate = json!({ "id": "g1", "run": first });
    let done = post(node.address, "regenerate", regenerate.clone()).await;
    assert_eq!(post(node.address, "regenerate", regenerate.clone()).await, done);
    worker.serve(&["Welcome"]).await;
    assert_eq!(post(node.address, "regenerate", regenerate).await["run"], done["run"]);
    let select = json!({ "id": "s1", "message": first.clone() + "/m" });
    let done = post(node.address, "select", select.clone()).await;
    assert_eq!(post(node.address, "select", select).await, done);
    let log = blocks(node.address, "s").await.concat();
    let count = |kind: &str| log.iter().filter(|known| *known == kind).count();
    assert_eq!((count("branch.begun"), count("branch.selected"), count("run.requested")), (2, 1, 3));
}

async fn what_does_not_exist_is_not_found<E: Engine>() {
    let (_world, node, _worker, mut client, _) = answered::<E>().await;
    let mut edit = put("Ho");
    edit["replaces"] = "nope".into();
    let error = client.request(edit).await;
    assert_eq!((&error["t"], &error["code"]), (&json!("error"), &json!("not_found")), "{error}");
    let error = client.request(json!({ "t": "select", "message": "r9/m" })).await;
    assert_eq!(error["code"], "not_found", "{error}");
    let error = client.request(json!({ "t": "regenerate", "run": "r9" })).await;
    assert_eq!(error["code"], "no_run", "{error}");
    let before = blocks(node.address, "s").await;
    assert!(!before.concat().iter().any(|kind| kind.starts_with("branch.")), "{before:?}");
    let nowhere = Request::post("/v1/sessions/none/select", &json!({ "message": "m" }));
    nowhere.send(node.address).await.is_error(404, "no_session");
}

async fn an_edit_while_a_person_holds_the_session_replaces_what_is_kept_for_the_release<E: Engine>() {
    let (_world, node, mut worker, _client, first) = answered::<E>().await;
    post(node.address, "hold", json!({})).await;
    let typo = post(node.address, "input", json!({ "text": "Helo?" })).await;
    post(node.address, "input", json!({ "text": "Are you there?" })).await;
    post(node.address, "input", json!({ "text": "Hello?", "replaces": typo["message"] })).await;
    let again = Request::post("/v1/sessions/s/regenerate", &json!({ "run": first }));
    again.send(node.address).await.is_error(409, "held");
    post(node.address, "release", json!({})).await;
    let job = worker.work().await;
    assert_eq!(job.input_texts(), ["Hello?"]);
    assert_eq!(work_texts(&job.work), ["Hi", "Hello", "Hello?"]);
}
