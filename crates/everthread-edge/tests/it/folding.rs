//! Logs that are folded while they are written, followed and joined.

use crate::harness::history::History;
use crate::harness::http::{create, input};
use crate::harness::{Client, Engine, NO_FOLDING, Node, Random, Request, Worker, World, until};
use everthread_edge::folder;
use everthread_protocol::SessionKey;
use everthread_store::{Head, Store};
use serde_json::json;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::task::JoinSet;

on_both_engines!(
    appends_folds_joins_and_resumes_race_and_everybody_ends_with_the_same_bytes,
    a_run_that_ends_is_folded_without_another_write,
    a_long_answer_is_folded_while_it_is_written_and_its_end_stays_raw,
    a_client_that_was_away_while_its_place_was_folded_goes_on_without_a_reset,
    a_fold_that_is_not_needed_is_not_made,
);

fn key() -> SessionKey {
    "default/s".parse().unwrap()
}

async fn head<S: Store>(node: &Node<S>) -> Head {
    node.edge.desk.store().heads(&[key()]).await.unwrap()[0].unwrap()
}

fn folds<S>(node: &Node<S>, result: &str) -> u64 {
    node.edge.metrics.folds.with_label_values(&[result]).get()
}

/// Input of an agent; the run that it requests.
async fn ask(address: SocketAddr, agent: &str) -> String {
    let body = json!({ "text": "Hi", "agent": agent });
    let done = Request::post("/v1/sessions/s/input", &body).send(address).await.with(202);
    done["run"].as_str().unwrap().to_owned()
}

/// A worker of an agent that writes so many tokens into one run.
async fn write(address: SocketAddr, agent: &'static str, tokens: usize) {
    let mut worker = Worker::join(address, agent, agent, 1).await;
    let mut job = worker.work().await;
    for number in 0..tokens {
        worker.say(&mut job, &format!("{agent} {number} 😀 ")).await;
    }
    let ack = worker.end(&mut job, "completed").await;
    assert_eq!(ack["t"], "ok", "{ack}");
}

/// Joins and comes back, from one node to the other, until all runs have ended. Now and then it begins from the start.
async fn wander(nodes: [SocketAddr; 2], runs: Vec<String>, seed: u64) -> History {
    let mut random = Random::seeded(seed);
    let mut history = History::new();
    let is_over = |history: &History| runs.iter().all(|run| history.outcome(run).is_some());
    while !is_over(&history) {
        let node = nodes[usize::try_from(random.below(2)).unwrap()];
        let held = if random.below(5) == 0 { History::new() } else { history };
        let mut client = Client::resume(node, "s", held).await;
        for _ in 0..=random.below(60) {
            assert!(client.read().await, "the node closed the connection");
            if is_over(&client.history) {
                break;
            }
        }
        assert!(!client.told.iter().any(|told| told == "reset"), "seed {seed}: {:?}", client.told);
        history = client.history;
    }
    history
}

async fn appends_folds_joins_and_resumes_race_and_everybody_ends_with_the_same_bytes<E: Engine>() {
    const AGENTS: [&str; 3] = ["a1", "a2", "a3"];
    let world = World::<E>::start().await;
    let (here, there) = (world.node().await, world.node().await);
    create(here.address, "s").await;
    let mut runs = Vec::new();
    for agent in AGENTS {
        runs.push(ask(here.address, agent).await);
    }
    let nodes = [here.address, there.address];
    let mut followers = JoinSet::new();
    for seed in 1..=12 {
        followers.spawn(wander(nodes, runs.clone(), seed));
    }
    // Besides the folds that writes ask for: folders that aim at the same entries all the time.
    let is_over = Arc::new(AtomicBool::new(false));
    let mut folders = JoinSet::new();
    for node in [&here, &there] {
        let (folder, is_over) = (node.edge.folder.clone(), is_over.clone());
        folders.spawn(async move {
            while !is_over.load(Ordering::SeqCst) {
                folder.fold(&key()).await.unwrap();
                tokio::task::yield_now().await;
            }
        });
    }
    let mut writers = JoinSet::new();
    for (agent, node) in AGENTS.into_iter().zip([&here, &there, &here]) {
        writers.spawn(write(node.address, agent, 300));
    }
    while let Some(written) = writers.join_next().await {
        written.unwrap();
    }
    is_over.store(true, Ordering::SeqCst);
    while let Some(folded) = folders.join_next().await {
        folded.unwrap();
    }
    let mut fresh = Client::attach(there.address, "s", json!("start")).await;
    fresh.holds_the_state(here.address).await;
    for (agent, run) in AGENTS.iter().zip(&runs) {
        let text: String = (0..300).map(|number| format!("{agent} {number} 😀 ")).collect();
        assert_eq!(fresh.history.answer(run), text);
    }
    let state = fresh.history.text();
    while let Some(history) = followers.join_next().await {
        let mut client = Client::resume(here.address, "s", history.unwrap()).await;
        client.holds_the_state(there.address).await;
        assert_eq!(client.history.text(), state);
    }
    let done = folds(&here, "done") + folds(&there, "done");
    assert!(done > 20, "{done} folds");
    assert_eq!(folds(&here, "error") + folds(&there, "error") + folds(&here, "stale"), 0);
}

async fn a_run_that_ends_is_folded_without_another_write<E: Engine>() {
    let folding = folder::Options { at_entries: 10_000, at_end_entries: 50, keep_entries: 10 };
    let world = World::<E>::folding(folding).await;
    let node = world.node().await;
    create(node.address, "s").await;
    let run = ask(node.address, "guide").await;
    write(node.address, "guide", 100).await;
    let head = until("a fold", async || {
        let head = head(&node).await;
        (head.folded_to.0 > 0).then_some(head)
    })
    .await;
    assert_eq!(head.folded_to.0, head.seq.0 - 10);
    // It can be read before its folder knows.
    let counted = async || (node.edge.metrics.folded_entries.get() == head.folded_to.0).then_some(());
    until("it is counted", counted).await;
    let mut client = Client::attach(node.address, "s", json!("start")).await;
    client.holds_the_state(node.address).await;
    assert!(client.history.frames <= 3, "{} frames", client.history.frames);
    assert_eq!(client.history.outcome(&run).as_deref(), Some("completed"));
}

async fn a_long_answer_is_folded_while_it_is_written_and_its_end_stays_raw<E: Engine>() {
    let folding = folder::Options { at_entries: 120, at_end_entries: 100, keep_entries: 40 };
    let world = World::<E>::folding(folding).await;
    let node = world.node().await;
    create(node.address, "s").await;
    input(node.address, "s", "Hi").await;
    let mut worker = Worker::join(node.address, "w1", "guide", 1).await;
    let mut job = worker.work().await;
    for number in 0..600 {
        worker.say(&mut job, &format!("word {number} ")).await;
    }
    let last = until("what is raw is little", async || {
        let head = head(&node).await;
        (head.seq.0 - head.folded_to.0 < 120).then_some(head)
    })
    .await;
    assert!(last.seq.0 - last.folded_to.0 >= 40);
    // What is stored has the length of the text, with a little more for every fold and every raw entry.
    let page = Request::get("/v1/sessions/s/entries?limit=5000").send(node.address).await;
    let records = page.body["records"].as_array().unwrap().len();
    let raw = usize::try_from(last.seq.0 - last.folded_to.0).unwrap();
    assert!(records < raw + 15, "{records} records, {raw} of them raw");
    let ack = worker.end(&mut job, "completed").await;
    assert_eq!(ack["t"], "ok", "{ack}");
    let mut client = Client::attach(node.address, "s", json!("start")).await;
    client.holds_the_state(node.address).await;
}

async fn a_client_that_was_away_while_its_place_was_folded_goes_on_without_a_reset<E: Engine>() {
    let mut world = World::<E>::folding(NO_FOLDING).await;
    let (quiet, here) = (world.node().await, world.node().await);
    create(here.address, "s").await;
    let run = input(here.address, "s", "Hi").await;
    let mut worker = Worker::join(here.address, "w1", "guide", 1).await;
    let mut job = worker.work().await;
    // One client at every position, none of them there when the log is folded.
    let mut away = Vec::new();
    let mut client = Client::attach(here.address, "s", json!("start")).await;
    for number in 0..60 {
        worker.say(&mut job, &format!("{number} ")).await;
        let piece = format!("{number} ");
        client.until("the piece", |history| history.answer(&run).ends_with(&piece)).await;
        away.push(client.history.clone());
    }
    drop(client);
    world.folding = folder::Options { at_entries: 10, at_end_entries: 2, keep_entries: 5 };
    let there = world.node().await;
    there.edge.folder.fold(&key()).await.unwrap();
    let folded = head(&quiet).await;
    assert_eq!(folded.folded_to.0, folded.seq.0 - 5);
    worker.say(&mut job, "and on").await;
    worker.end(&mut job, "completed").await;
    for history in away {
        let mut back = Client::resume(quiet.address, "s", history).await;
        back.holds_the_state(here.address).await;
        assert!(!back.told.iter().any(|told| told == "reset"), "{:?}", back.told);
    }
}

async fn a_fold_that_is_not_needed_is_not_made<E: Engine>() {
    let folding = folder::Options { at_entries: 100, at_end_entries: 50, keep_entries: 20 };
    let world = World::<E>::folding(folding).await;
    let node = world.node().await;
    create(node.address, "s").await;
    ask(node.address, "guide").await;
    write(node.address, "guide", 30).await;
    node.edge.folder.fold(&key()).await.unwrap();
    node.edge.folder.fold(&"default/none".parse().unwrap()).await.unwrap();
    assert_eq!((head(&node).await.folded_to.0, folds(&node, "done"), folds(&node, "raced")), (0, 0, 0));
}
