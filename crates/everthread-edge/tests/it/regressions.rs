//! What went wrong with others, as tests: those rows of docs/regressions.md that nothing else covers.

use crate::harness::history::History;
use crate::harness::http::{create, input};
use crate::harness::{Client, Engine, Request, Worker, World, client};
use everthread_edge::folder;
use everthread_protocol::frame::Entries;
use everthread_session::view::{Applied, View};
use serde_json::json;

on_both_engines!(
    who_attaches_before_there_is_anything_gets_the_beginning,
    a_worker_that_starts_anew_with_the_same_ids_mixes_no_two_runs,
    the_seq_goes_on_from_run_to_run_and_no_turn_is_dropped,
    a_client_that_is_sent_everything_twice_holds_the_text_once,
    who_comes_back_gets_what_sub_agents_wrote_meanwhile,
    reopening_a_long_answer_costs_its_text_and_not_its_tokens,
);

/// Tokens of an answer that is reopened.
const TOKENS: usize = 1_500;

async fn who_attaches_before_there_is_anything_gets_the_beginning<E: Engine>() {
    let world = World::<E>::start().await;
    let (here, there) = (world.node().await, world.node().await);
    let mut socket = client::hello(there.address).await;
    let attach = json!({ "t": "attach", "session": "s", "from": "start" });
    let refused = socket.ask(attach.clone()).await;
    assert_eq!((&refused["t"], &refused["code"]), (&json!("error"), &json!("no_session")), "never silence");
    Request::get("/v1/sessions/s/follow").send(there.address).await.is_error(404, "no_session");
    create(here.address, "s").await;
    // Two followers of a session in which nobody has said anything, one of them on the connection that was refused.
    let attached = socket.ask(attach).await;
    assert_eq!(attached["t"], "attached", "{attached}");
    let mut early = Client::attach(there.address, "s", json!("start")).await;
    early.told("live").await;
    let run = input(here.address, "s", "Hi").await;
    Worker::join(here.address, "w1", "guide", 1).await.serve(&["Hel", "lo"]).await;
    assert_eq!(early.ended(&run).await, "completed");
    assert_eq!(early.history.answer(&run), "Hello");
    early.holds_the_state(here.address).await;
    let mut refused = History::new();
    while refused.outcome(&run).is_none() {
        let frame = socket.wait(|frame| frame["t"] == "entries").await;
        refused.apply(&frame);
    }
    assert_eq!(refused.text(), early.history.text());
}

async fn a_worker_that_starts_anew_with_the_same_ids_mixes_no_two_runs<E: Engine>() {
    let world = World::<E>::hurried().await;
    let node = world.node().await;
    create(node.address, "s").await;
    let first = input(node.address, "s", "One?").await;
    let mut worker = Worker::join(node.address, "w1", "guide", 1).await;
    let mut old = worker.work().await;
    worker.say(&mut old, "one").await;
    // The process dies; the next one has its name, and numbers its messages, parts and batches from the beginning, too.
    drop(worker);
    let mut worker = Worker::join(node.address, "w1", "guide", 1).await;
    let second = input(node.address, "s", "Two?").await;
    let mut new = worker.work().await;
    assert_eq!(new.run, second);
    worker.say(&mut new, "two").await;
    // What is left over of the first cannot be mixed in.
    let frame = old.say(" and more");
    let answer = worker.socket.ask(frame).await;
    assert_eq!((&answer["t"], &answer["code"]), (&json!("error"), &json!("fenced")), "{answer}");
    assert_eq!(worker.end(&mut new, "completed").await["t"], "ok");
    let mut client = Client::attach(node.address, "s", json!("start")).await;
    assert_eq!(client.ended(&first).await, "lost");
    assert_eq!(client.ended(&second).await, "completed");
    assert_eq!((client.history.answer(&first), client.history.answer(&second)), ("one", "two"));
    client.holds_the_state(node.address).await;
}

async fn the_seq_goes_on_from_run_to_run_and_no_turn_is_dropped<E: Engine>() {
    let world = World::<E>::start().await;
    let (here, there) = (world.node().await, world.node().await);
    create(here.address, "s").await;
    let mut follower = Client::attach(there.address, "s", json!("start")).await;
    let mut before = 0;
    for turn in ["one", "two", "three"] {
        let run = input(here.address, "s", turn).await;
        // Another worker each time: none knows of the numbers of the one before it.
        let mut worker = Worker::join(here.address, turn, "guide", 1).await;
        worker.serve(&[turn]).await;
        assert_eq!(follower.ended(&run).await, "completed");
        assert_eq!(follower.history.answer(&run), turn);
        let seq = follower.history.view.seq().0;
        assert!(seq > before + 4, "{turn}: from {before} to {seq}");
        before = seq;
    }
    // Every seq once: the history refuses a frame that does not continue the one before it.
    assert_eq!(follower.history.seqs, before);
    follower.holds_the_state(here.address).await;
}

async fn a_client_that_is_sent_everything_twice_holds_the_text_once<E: Engine>() {
    let world = World::<E>::start().await;
    let node = world.node().await;
    create(node.address, "s").await;
    let run = input(node.address, "s", "Hi").await;
    let mut worker = Worker::join(node.address, "w1", "guide", 1).await;
    let mut job = worker.work().await;
    worker.say(&mut job, "Hel").await;
    // It offers to resume twice, as one does whose first offer seemed to be lost.
    let mut socket = client::hello(node.address).await;
    for number in [1, 2] {
        let attached = socket.ask(json!({ "t": "attach", "session": "s", "from": "start" })).await;
        assert_eq!(attached["attachment"], number, "{attached}");
    }
    worker.say(&mut job, "lo").await;
    assert_eq!(worker.end(&mut job, "completed").await["t"], "ok");
    let (mut view, mut duplicates) = (View::new(), 0);
    let mut heads = [0, 0];
    let state = crate::harness::http::state(node.address, "s").await;
    let head = serde_json::from_str::<serde_json::Value>(&state).unwrap()["seq"].as_u64().unwrap();
    while heads != [head, head] {
        let frame = socket.wait(|frame| frame["t"] == "entries").await;
        let attachment = usize::try_from(frame["attachment"].as_u64().unwrap()).unwrap();
        heads[attachment - 1] = frame["to"].as_u64().unwrap();
        let text = frame.to_string();
        match view.apply_blocks(&Entries::decode(text.as_bytes()).unwrap()).unwrap() {
            Applied::Yes => {}
            Applied::Duplicate => duplicates += 1,
        }
    }
    assert!(duplicates > 0, "everything came twice");
    assert_eq!(serde_json::to_string(&view).unwrap(), state);
    let answer = view.messages().iter().find(|m| m.run.as_ref().is_some_and(|r| r.as_str() == run)).unwrap();
    assert_eq!(answer.parts[0].value.as_str(), Some("Hello"));
}

async fn who_comes_back_gets_what_sub_agents_wrote_meanwhile<E: Engine>() {
    let world = World::<E>::start().await;
    let (here, there) = (world.node().await, world.node().await);
    create(here.address, "s").await;
    let run = input(here.address, "s", "Hi").await;
    let mut worker = Worker::join(here.address, "w1", "guide", 1).await;
    let mut searcher = Worker::join(there.address, "w2", "searcher", 1).await;
    let mut job = worker.work().await;
    worker.say(&mut job, "I ask. ").await;
    let frame = job.start_child("child", "searcher");
    assert_eq!(worker.socket.ask(frame).await["t"], "ok");
    let mut child = searcher.work().await;
    searcher.say(&mut child, "Look").await;
    let mut client = Client::attach(here.address, "s", json!("start")).await;
    client.until("the child's word", |history| history.answer("child") == "Look").await;
    // Away, while the child goes on and ends.
    let held = client.history;
    drop(client.socket);
    searcher.say(&mut child, "ing … found").await;
    assert_eq!(searcher.end(&mut child, "completed").await["t"], "ok");
    let mut client = Client::resume(there.address, "s", held).await;
    assert_eq!(client.ended("child").await, "completed");
    assert_eq!(client.history.answer("child"), "Looking … found");
    assert!(!client.told.iter().any(|told| told == "reset"), "{:?}", client.told);
    worker.say(&mut job, "It is there.").await;
    assert_eq!(worker.end(&mut job, "completed").await["t"], "ok");
    assert_eq!(client.ended(&run).await, "completed");
    client.holds_the_state(here.address).await;
}

async fn reopening_a_long_answer_costs_its_text_and_not_its_tokens<E: Engine>() {
    let world = World::<E>::folding(folder::Options::default()).await;
    let node = world.node().await;
    create(node.address, "s").await;
    let run = input(node.address, "s", "Hi").await;
    let mut worker = Worker::join(node.address, "w1", "guide", 1).await;
    let mut job = worker.work().await;
    let mut text = String::new();
    for number in 0..TOKENS {
        let token = format!("{number} ");
        worker.say(&mut job, &token).await;
        text.push_str(&token);
    }
    assert_eq!(worker.end(&mut job, "completed").await["t"], "ok");
    let mut client = Client::attach(node.address, "s", json!("start")).await;
    client.told("live").await;
    assert_eq!(client.history.answer(&run), text);
    // Whether or not the log is folded by now: whoever is behind is sent it folded.
    let (appends, frames) = (client.history.count("part.append"), client.history.frames);
    assert!(appends < TOKENS / 50 && frames < 20, "{appends} appends in {frames} frames");
}
