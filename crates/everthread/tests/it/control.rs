//! Cancels and steers, sent to a random node at every moment of a run's life: each has one outcome, and it is the right one.

use crate::cluster::{Cluster, cancel};
use crate::crew::{ACTOR, Hand, who};
use crate::history::History;
use crate::node::{Follower, Node};
use everthread_testkit::Proxy;
use futures_util::future::join_all;
use serde_json::{Value, json};
use std::time::Duration;

/// Time for a worker that hears nothing, in milliseconds: short, as every such test waits for it.
const GRACE: &[&str] = &["--cancel-grace-ms", "1000"];

fn names(count: usize) -> Vec<String> {
    (0..count).map(|number| format!("s{number}")).collect()
}

async fn is_writing(node: &Node, session: &str, run: &str) {
    let writes = async |node: &Node| {
        let entries = node.entries(session).await;
        entries.iter().any(|entry| entry["type"] == "part.append")
            && node.run_status(session, run).await.0 == "active"
    };
    node.wait_until(&format!("{run} writes"), writes).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancel_before_the_run_starts_never_lets_it_execute() {
    let cluster = Cluster::start(1, GRACE).await;
    let mut stopped = Vec::new();
    for session in names(8) {
        let run = cluster.any().ask(&session, ACTOR, "stream").await;
        let receipt = cluster.any().control(&session, cancel("c1", &run), 0).await;
        assert_eq!(
            (&receipt["stage"], &receipt["outcome"]),
            (&json!("settled"), &json!("applied")),
            "{receipt}"
        );
        // And one whose input has not even come.
        let early = json!({ "id": "c2", "kind": "cancel", "target": { "input": "later" } });
        let receipt = cluster.any().control(&session, early, 0).await;
        assert_eq!(receipt["stage"], "accepted", "{receipt}");
        let done = cluster.any().input(&session, json!({ "text": "stream", "message": "later" })).await;
        stopped.push((session, [run, done["run"].as_str().unwrap().to_owned()]));
    }
    let hands = cluster.hands();
    for (session, runs) in stopped {
        let history = cluster.goes_on(&session).await;
        assert_eq!((history.settled("c1").0, history.settled("c2").0), ("applied", "applied"));
        for run in runs {
            assert_eq!(history.end(&run).body["outcome"], "cancelled");
            assert!(history.of_run("run.started", &run).is_empty(), "{session}: {run} was handed out");
            assert!(!hands.iter().any(|hand| hand.has("began", &run)), "{session}: {run} was worked on");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancel_during_the_claim_has_one_outcome() {
    let cluster = Cluster::start(2, GRACE).await;
    let _hands = cluster.hands();
    let all = names(24).into_iter().enumerate().map(|(number, session)| {
        let (here, there) = (cluster.any(), cluster.any());
        async move {
            here.post("/v1/sessions", json!({ "session": session, "agent": ACTOR })).await;
            let put = here.input(&session, json!({ "text": "stream", "message": "i1" }));
            // Some before the input, some while it is claimed, some when it is written.
            let cancel = async {
                tokio::time::sleep(Duration::from_millis(number as u64)).await;
                let body = json!({ "id": "c1", "kind": "cancel", "target": { "input": "i1" } });
                there.control(&session, body, 20_000).await
            };
            let (done, receipt) = tokio::join!(put, cancel);
            assert_eq!(
                (&receipt["stage"], &receipt["outcome"]),
                (&json!("settled"), &json!("applied")),
                "{receipt}"
            );
            (session, done["run"].as_str().unwrap().to_owned())
        }
    });
    let (mut before, mut after) = (0, 0);
    for (session, run) in join_all(all).await {
        let history = cluster.goes_on(&session).await;
        assert_eq!(history.settled("c1"), ("applied", ""), "{session}");
        let end = &history.end(&run).body;
        assert_eq!((&end["outcome"], &end["forced"]), (&json!("cancelled"), &Value::Null), "{session}");
        *(if history.of_run("run.started", &run).is_empty() { &mut before } else { &mut after }) += 1;
    }
    assert_eq!(before + after, 24);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_written_stays_when_a_streaming_run_is_cancelled() {
    let cluster = Cluster::start(3, GRACE).await;
    let hands = cluster.hands();
    for session in names(6) {
        let run = cluster.any().ask(&session, ACTOR, "stream").await;
        is_writing(cluster.any(), &session, &run).await;
        let seen = cluster.any().entries(&session).await.len();
        let receipt = cluster.any().control(&session, cancel("c1", &run), 20_000).await;
        assert_eq!(
            (&receipt["stage"], &receipt["outcome"]),
            (&json!("settled"), &json!("applied")),
            "{receipt}"
        );
        let hand = who(cluster.any(), &hands, "left", &run).await;
        assert!(hand.noted("left", &run)[0].ends_with("Cancel"), "{:?}", hand.noted("left", &run));
        let history = cluster.goes_on(&session).await;
        history.counts_up(&run);
        assert!(history.entries.len() > seen);
        let message = history.state["messages"].as_array().unwrap().iter().find(|m| m["run"] == run.as_str());
        assert_eq!(message.unwrap()["status"], "cancelled");
        assert_eq!(history.end(&run).body["forced"], Value::Null, "the worker itself has ended it");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancel_that_is_settled_means_that_the_run_has_stopped() {
    let cluster = Cluster::start(4, GRACE).await;
    let hands = cluster.hands();
    let mut asked = Vec::new();
    for session in names(4) {
        let run = cluster.any().ask(&session, ACTOR, "deaf").await;
        is_writing(cluster.any(), &session, &run).await;
        asked.push((session, run));
    }
    let settled =
        asked.iter().map(|(session, run)| cluster.any().control(session, cancel("c1", run), 20_000));
    for receipt in join_all(settled).await {
        assert_eq!(
            (&receipt["stage"], &receipt["outcome"]),
            (&json!("settled"), &json!("applied")),
            "{receipt}"
        );
    }
    for (session, run) in asked {
        // Settled: nothing of the run comes after what is there now, although its worker has heard nothing.
        let length = cluster.any().entries(&session).await.len();
        who(cluster.any(), &hands, "left", &run).await;
        let history = cluster.goes_on(&session).await;
        assert!(history.entries[length..].iter().all(|entry| entry.by_run.as_ref() != Some(&run)));
        assert_eq!(
            (&history.end(&run).body["outcome"], &history.end(&run).body["forced"]),
            (&json!("cancelled"), &json!(true))
        );
        history.counts_up(&run);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancel_across_a_restart_of_redis_has_one_outcome() {
    let mut cluster = Cluster::start(5, GRACE).await;
    let _hands = cluster.hands();
    let mut asked = Vec::new();
    for (number, session) in names(6).into_iter().enumerate() {
        let run = cluster.any().ask(&session, ACTOR, "stream").await;
        is_writing(cluster.any(), &session, &run).await;
        asked.push((session, run, number % 2));
    }
    cluster.redis.kill9();
    // The first one comes while nobody is there.
    let refused = cluster.nodes[0].post_as("ann", "/v1/sessions/s0/control", cancel("c1", &asked[0].1)).await;
    assert_eq!(refused, None);
    let Cluster { nodes, redis, .. } = &mut cluster;
    let nodes = &*nodes;
    // From before Redis is back, now here, now there, until somebody takes it.
    let cancels = asked.iter().map(async |(session, run, first)| {
        let path = format!("/v1/sessions/{session}/control?wait_ms=20000");
        let mut tries = *first;
        loop {
            if let Some(receipt) = nodes[tries % 2].post_as("ann", &path, cancel("c1", run)).await {
                return receipt;
            }
            tries += 1;
        }
    });
    let (receipts, ()) = tokio::join!(join_all(cancels), async { redis.restart().await.unwrap() });
    for ((session, run, _), receipt) in asked.iter().zip(receipts) {
        assert_eq!(receipt["control"], "c1", "{receipt}");
        assert_eq!(cluster.ended(&cluster.nodes[0], session, run).await, "cancelled");
        let history = cluster.goes_on(session).await;
        assert_eq!(history.settled("c1"), ("applied", ""));
        history.counts_up(run);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_late_cancel_never_hits_the_next_run() {
    let cluster = Cluster::start(6, GRACE).await;
    let hands = cluster.hands();
    for session in names(4) {
        cluster.any().post("/v1/sessions", json!({ "session": session, "agent": ACTOR })).await;
        let done = cluster.any().input(&session, json!({ "text": "short", "message": "i1" })).await;
        let first = done["run"].as_str().unwrap();
        assert_eq!(cluster.ended(cluster.any(), &session, first).await, "completed");
        let next = cluster.any().input(&session, json!({ "text": "stream" })).await["run"].clone();
        let next = next.as_str().unwrap();
        is_writing(cluster.any(), &session, next).await;
        let by_input = json!({ "id": "c2", "kind": "cancel", "target": { "input": "i1" } });
        for body in [cancel("c1", first), by_input] {
            let receipt = cluster.any().control(&session, body, 0).await;
            assert_eq!(
                (&receipt["outcome"], &receipt["reason"]),
                (&json!("refused"), &json!("run_ended")),
                "{receipt}"
            );
        }
        // It writes on: a cancel that had hit it would have stopped it.
        let seen = cluster.any().entries(&session).await.len();
        cluster
            .any()
            .wait_until("writes on", async |node| node.entries(&session).await.len() > seen + 20)
            .await;
        assert!(!hands.iter().any(|hand| hand.has("left", next)));
        cluster.any().control(&session, cancel("c3", next), 20_000).await;
        let history = cluster.goes_on(&session).await;
        assert_eq!(history.end(first).body["outcome"], "completed");
        assert_eq!(
            (history.settled("c1").1, history.settled("c2").1, history.settled("c3").0),
            ("run_ended", "run_ended", "applied")
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_end_reaches_a_follower_whose_node_was_deaf_meanwhile() {
    let cluster = Cluster::start(7, GRACE).await;
    let proxy = Proxy::start(cluster.redis.tcp_address()).await.unwrap();
    let url = format!("redis://{}", proxy.address());
    let deaf = Node::start(cluster.dir.path(), &["serve", "--redis", &url]).await;
    let _hands = cluster.hands();
    let run = cluster.any().ask("s", ACTOR, "stream").await;
    let mut follower = Follower::follow(&deaf, "s").await;
    let mut told = String::new();
    while !told.contains("part.append") {
        told = follower.next().await.unwrap().1.to_string();
    }
    proxy.cut();
    deaf.wait_until("deaf", async |node: &Node| !node.is_ready().await).await;
    let receipt = cluster.any().control("s", cancel("c1", &run), 20_000).await;
    assert_eq!(receipt["outcome"], "applied", "{receipt}");
    proxy.heal();
    while !told.contains("run.ended") {
        told = follower.next().await.expect("the follower's connection stays").1.to_string();
    }
    assert!(told.contains("cancelled"), "{told}");
    let history = cluster.goes_on("s").await;
    deaf.wait_until("ready", async |node: &Node| node.is_ready().await).await;
    assert_eq!(History::checked(&[&deaf], "s").await.state, history.state);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_recovers_does_not_restart_a_run_that_was_stopped() {
    let cluster = Cluster::start(8, GRACE).await;
    let hands = cluster.hands();
    for session in names(4) {
        let node = cluster.any();
        node.post("/v1/sessions", json!({ "session": session, "agent": ACTOR })).await;
        let put = json!({ "text": "stream", "id": "put-1" });
        let run = node.input(&session, put.clone()).await["run"].as_str().unwrap().to_owned();
        is_writing(node, &session, &run).await;
        cluster.any().control(&session, cancel("c1", &run), 20_000).await;
        // Back from the background it sends what it holds no answer to, the input and the stop, and looks at the run.
        for node in [cluster.any(), cluster.any()] {
            let again = node.input(&session, put.clone()).await;
            assert_eq!((&again["duplicate"], &again["run"]), (&json!(true), &json!(run)), "{again}");
            let receipt = node.control(&session, cancel("c1", &run), 0).await;
            assert_eq!((&receipt["stage"], &receipt["outcome"]), (&json!("settled"), &json!("applied")));
            assert_eq!(node.run_status(&session, &run).await, ("ended".to_owned(), "cancelled".to_owned()));
        }
        let history = cluster.goes_on(&session).await;
        assert_eq!(history.of("run.requested").count(), 2, "the stopped one and that of the check");
        assert_eq!(history.of_run("run.started", &run).len(), 1);
        assert_eq!(hands.iter().map(|hand| hand.noted("began", &run).len()).sum::<usize>(), 1);
    }
}

/// Waits until nothing is open in a session.
async fn at_rest(node: &Node, session: &str) {
    let is_so = async |node: &Node| {
        let state = node.get(&format!("/v1/sessions/{session}/state")).await;
        let all = |list: &str, is_done: &dyn Fn(&Value) -> bool| {
            state[list].as_array().is_none_or(|l| l.iter().all(is_done))
        };
        all("runs", &|run| run["status"] == "ended")
            && all("controls", &|control| control["outcome"].is_string())
    };
    node.wait_until(&format!("at rest: {session}"), is_so).await;
}

/// Checks that the text of every steer is the input of one run, which has completed.
fn no_text_is_lost(history: &History, expected: usize) {
    let steers = history.of("control.requested").filter(|entry| entry.body["kind"] == "steer");
    let mut count = 0;
    for steer in steers {
        count += 1;
        let message = steer.body["message"].as_str().unwrap();
        assert!(!history.input(message).is_empty());
        let runs = history.state["runs"].as_array().unwrap().iter();
        let takers: Vec<&Value> =
            runs.filter(|run| run["input"].as_array().unwrap().contains(&json!(message))).collect();
        assert_eq!(takers.len(), 1, "{message} is the input of {takers:?}");
        assert_eq!(takers[0]["outcome"], "completed", "{takers:?}");
    }
    assert_eq!(count, expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_steer_of_an_ended_run_keeps_its_text() {
    let cluster = Cluster::start(9, GRACE).await;
    let _hands = cluster.hands();
    for session in names(4) {
        let run = cluster.any().ask(&session, ACTOR, "short").await;
        cluster.ended(cluster.any(), &session, &run).await;
        let steer = json!({ "id": "c1", "kind": "steer", "target": { "run": run }, "payload": { "text": "short of it" } });
        let receipt = cluster.any().control(&session, steer, 20_000).await;
        let next = receipt["run"].as_str().unwrap_or_else(|| panic!("{receipt}"));
        assert_ne!(next, run);
        assert_eq!(cluster.ended(cluster.any(), &session, next).await, "completed");
        no_text_is_lost(&cluster.goes_on(&session).await, 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn steers_that_race_with_the_end_of_their_run_lose_no_text() {
    let cluster = Cluster::start(10, GRACE).await;
    let _hands: Vec<Hand> = cluster.hands();
    for session in names(6) {
        let run = cluster.any().ask(&session, ACTOR, "listen").await;
        cluster
            .any()
            .wait_until("at work", async |node| node.run_status(&session, &run).await.0 == "active")
            .await;
        let steers = (0..8).map(|number| {
            let text = if number == 3 { "end".to_owned() } else { format!("short {number}") };
            let body = json!({ "id": format!("c{number}"), "kind": "steer", "target": { "run": run }, "payload": { "text": text } });
            cluster.any().control(&session, body, 0)
        });
        join_all(steers).await;
        at_rest(cluster.any(), &session).await;
        no_text_is_lost(&cluster.goes_on(&session).await, 8);
    }
}
