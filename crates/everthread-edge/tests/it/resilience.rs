//! Many followers, bad networks, slow readers: everybody ends with the same bytes.

use crate::harness::history::History;
use crate::harness::http::{create, input, state};
use crate::harness::{Client, Engine, PATIENCE, Random, Worker, World};
use everthread_testkit::Proxy;
use serde_json::json;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

on_both_engines!(
    two_hundred_followers_that_come_and_go_end_with_the_same_bytes,
    five_hundred_sessions_are_each_followed_to_their_end,
    a_slow_reader_lags_and_nobody_waits_for_it,
);

/// Follows a session from one node to the next until its run has ended.
async fn wander(nodes: [SocketAddr; 2], session: String, run: String, seed: u64) -> History {
    let mut random = Random::seeded(seed);
    let mut history = History::new();
    while history.outcome(&run).is_none() {
        let node = nodes[usize::try_from(random.below(2)).unwrap()];
        let mut client = if history.view.seq().0 == 0 && random.below(4) == 0 {
            Client::attach(node, &session, json!({ "recent": 100 })).await
        } else {
            Client::resume(node, &session, history).await
        };
        let frames = random.below(40) + 1;
        for _ in 0..frames {
            assert!(client.read().await, "the node closed the connection");
            if client.history.outcome(&run).is_some() {
                break;
            }
        }
        assert!(!client.told.iter().any(|told| told == "reset"), "seed {seed}: {:?}", client.told);
        history = client.history;
    }
    history
}

async fn two_hundred_followers_that_come_and_go_end_with_the_same_bytes<E: Engine>() {
    let world = World::<E>::start().await;
    let (here, there) = (world.node().await, world.node().await);
    create(here.address, "s").await;
    let run = input(here.address, "s", "Hi").await;
    let mut followers = JoinSet::new();
    for seed in 1..=200 {
        followers.spawn(wander([here.address, there.address], "s".into(), run.clone(), seed));
    }
    let mut worker = Worker::join(there.address, "w1", "guide", 1).await;
    let mut job = worker.work().await;
    for number in 0..150 {
        worker.say(&mut job, &format!("token {number} 😀 ")).await;
    }
    worker.end(&mut job, "completed").await;
    let state = state(here.address, "s").await;
    while let Some(history) = followers.join_next().await {
        assert_eq!(history.unwrap().text(), state);
    }
}

/// Serves whatever comes, as fast as it can, without waiting for acks.
async fn serve_for_ever(address: SocketAddr, name: String) {
    let mut worker = Worker::join(address, &name, "guide", 256).await;
    loop {
        let mut job = worker.work_patiently().await;
        let frames = [job.say("one "), job.say("two "), job.say("three"), job.end("completed")];
        for mut frame in frames {
            frame["id"] = worker.socket.fresh_id().into();
            worker.socket.send(&frame).await;
        }
    }
}

/// Sessions that are followed at the same time.
const AT_ONCE: usize = 64;

async fn five_hundred_sessions_are_each_followed_to_their_end<E: Engine>() {
    let world = World::<E>::start().await;
    let (here, there) = (world.node().await, world.node().await);
    let nodes = [here.address, there.address];
    let mut workers = JoinSet::new();
    for number in 0..4 {
        workers.spawn(serve_for_ever(nodes[number % 2], format!("w{number}")));
    }
    let mut followers = JoinSet::new();
    // All at once would ask how fast this machine is: the last ones would wait for all others.
    let places = Arc::new(Semaphore::new(AT_ONCE));
    for seed in 1..=500_u64 {
        let places = places.clone();
        followers.spawn(async move {
            let _place = places.acquire().await.unwrap();
            let session = format!("s{seed}");
            let address = nodes[usize::try_from(seed % 2).unwrap()];
            create(address, &session).await;
            let run = input(address, &session, "Hi").await;
            let history = wander(nodes, session.clone(), run.clone(), seed).await;
            assert_eq!(
                (history.answer(&run), history.outcome(&run).as_deref()),
                ("one two three", Some("completed"))
            );
            assert_eq!(history.text(), state(address, &session).await);
        });
    }
    while let Some(followed) = followers.join_next().await {
        followed.unwrap();
        assert!(workers.try_join_next().is_none(), "a worker failed");
    }
}

/// Text of one append of the slow reader's session.
const PIECE_BYTES: usize = 8 * 1024;
const PIECES: usize = 600;
/// What a slow reader may be given: the buffers of its socket, on both ends, and one turn of its connection.
const GIVEN_BYTES_MAX: u64 = 2 * 1024 * 1024;

async fn a_slow_reader_lags_and_nobody_waits_for_it<E: Engine>() {
    let world = World::<E>::start().await;
    let node = world.node().await;
    create(node.address, "s").await;
    let run = input(node.address, "s", "Hi").await;
    let proxy = Proxy::start(node.address.to_string()).await.unwrap();
    let mut slow = Client::attach(proxy.address(), "s", json!("start")).await;
    slow.told("live").await;
    proxy.throttle(2_000);
    let slow_seq = Arc::new(AtomicU64::new(0));
    let mut fast = JoinSet::new();
    for _ in 0..4 {
        let (address, run) = (node.address, run.clone());
        let mut client = Client::attach(address, "s", json!("start")).await;
        fast.spawn(async move {
            client.ended(&run).await;
            client
        });
    }
    let mut reading = JoinSet::new();
    let (seen, slow_run) = (slow_seq.clone(), run.clone());
    reading.spawn(async move {
        while slow.history.outcome(&slow_run).is_none() {
            let read = tokio::time::timeout(PATIENCE * 3, slow.read()).await;
            assert!(read.expect("nothing came"), "a slow reader is not thrown out");
            seen.store(slow.history.view.seq().0, Ordering::Relaxed);
        }
        slow
    });
    let mut worker = Worker::join(node.address, "w1", "guide", 1).await;
    let mut job = worker.work().await;
    let piece = "0123456789abcdef".repeat(PIECE_BYTES / 16);
    for _ in 0..PIECES {
        worker.say(&mut job, &piece).await;
    }
    worker.end(&mut job, "completed").await;
    let mut fast_frames = 0;
    let state = state(node.address, "s").await;
    while let Some(client) = fast.join_next().await {
        let client = client.unwrap();
        assert_eq!(client.history.text(), state);
        fast_frames += client.history.frames;
    }
    let behind = slow_seq.load(Ordering::Relaxed);
    assert!(behind < u64::try_from(PIECES).unwrap() / 2, "it has {behind} already: not slow");
    let given = node.edge.metrics.frames_sent.get() - fast_frames;
    assert!(
        given * PIECE_BYTES as u64 <= GIVEN_BYTES_MAX,
        "{given} frames wait in this node for a slow reader"
    );
    proxy.heal();
    let mut slow = reading.join_next().await.unwrap().unwrap();
    assert!(slow.told.iter().any(|told| told == "lag"), "{:?}", slow.told);
    while slow.told.last().unwrap() != "live" {
        assert!(slow.read().await, "closed before it was live again");
    }
    assert!(slow.history.frames < u64::try_from(PIECES).unwrap(), "it was sent the log folded");
    assert_eq!(slow.history.text(), state);
    assert!(node.edge.metrics.lags.get() >= 1);
}
