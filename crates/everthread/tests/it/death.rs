//! Death and coma of workers and nodes: every run has its outcome within seconds, by the store's clock, and nobody who was
//! given up writes again.

use crate::cluster::{Cluster, cancel, write_as_a_zombie};
use crate::crew::{ACTOR, PHOENIX, who};
use crate::history::History;
use crate::node::Node;
use everthread_testkit::Proxy;
use serde_json::{Value, json};

/// From a worker's last sign of life to the outcome, in milliseconds, while the store is there.
const VISIBLE_MS: u64 = 5_000;
/// Runs that a worker dies with.
const RUNS: usize = 4;

/// Runs that write, in sessions of their own.
async fn streams(node: &Node, agent: &str, text: &str) -> Vec<(String, String)> {
    let mut asked = Vec::new();
    for number in 0..RUNS {
        let session = format!("s{number}");
        let run = node.ask(&session, agent, text).await;
        let writes = async |node: &Node| {
            node.entries(&session).await.iter().filter(|entry| entry["type"] == "part.append").count() > 5
        };
        node.wait_until("writing", writes).await;
        asked.push((session, run));
    }
    asked
}

/// Checks that a run has ended so, soon after `died`, on the store's clock, and not before its worker's last word.
fn ended_in_time(history: &History, run: &str, outcome: &str, died: u64) {
    let end = history.end(run);
    assert_eq!(end.body["outcome"], outcome, "{end:?}");
    let last = history.last_of(run).at;
    assert!(last <= end.at);
    let took = end.at.saturating_sub(died);
    assert!(took <= VISIBLE_MS, "{run} ended {took} ms after its worker's death");
    history.counts_up(run);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_worker_leaves_visible_outcomes_within_five_seconds() {
    let cluster = Cluster::start(30, &[]).await;
    let mut first = cluster.hand("first", &cluster.nodes[0].url);
    let asked = streams(&cluster.nodes[1], ACTOR, "stream").await;
    let died = cluster.now().await;
    first.kill9();
    let _second = cluster.hand("second", &cluster.nodes[1].url);
    for (session, run) in asked {
        assert_eq!(cluster.ended(&cluster.nodes[1], &session, &run).await, "lost");
        ended_in_time(&cluster.goes_on(&session).await, &run, "lost", died);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_worker_leaves_visible_outcomes_within_five_seconds() {
    let cluster = Cluster::start(31, &[]).await;
    let first = cluster.hand("first", &cluster.nodes[0].url);
    let asked = streams(&cluster.nodes[1], ACTOR, "stream").await;
    let froze = cluster.now().await;
    first.freeze();
    let _second = cluster.hand("second", &cluster.nodes[1].url);
    for (session, run) in asked {
        assert_eq!(cluster.ended(&cluster.nodes[1], &session, &run).await, "lost");
        ended_in_time(&cluster.goes_on(&session).await, &run, "lost", froze);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_dies_with_fresh_runs_wedges_nobody() {
    let cluster = Cluster::start(32, &[]).await;
    let mut hands = vec![cluster.hand("first", &cluster.nodes[0].url)];
    let mut asked = Vec::new();
    for number in 0..RUNS {
        let session = format!("s{number}");
        let run = cluster.any().ask(&session, ACTOR, "fresh").await;
        who(cluster.any(), &hands, "began", &run).await;
        asked.push((session, run));
    }
    let died = cluster.now().await;
    hands[0].kill9();
    hands.push(cluster.hand("second", &cluster.nodes[1].url));
    for (session, run) in asked {
        assert_eq!(cluster.ended(cluster.any(), &session, &run).await, "completed");
        let history = cluster.goes_on(&session).await;
        let (started, returned) = (history.of_run("run.started", &run), history.of_run("run.returned", &run));
        assert_eq!((started.len(), returned.len()), (2, 1));
        assert!(returned[0].at.saturating_sub(died) <= VISIBLE_MS, "{returned:?}");
        assert_eq!(history.text(&run), "done");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancel_of_a_run_whose_worker_is_killed_ends_it_as_cancelled() {
    let cluster = Cluster::start(33, &[]).await;
    let mut first = cluster.hand("first", &cluster.nodes[0].url);
    let asked = streams(&cluster.nodes[1], ACTOR, "deaf").await;
    for (session, run) in &asked {
        let receipt = cluster.any().control(session, cancel("c1", run), 0).await;
        assert_eq!(receipt["stage"], "accepted", "{receipt}");
    }
    let died = cluster.now().await;
    first.kill9();
    let _second = cluster.hand("second", &cluster.nodes[1].url);
    for (session, run) in asked {
        cluster.ended(cluster.any(), &session, &run).await;
        let history = cluster.goes_on(&session).await;
        ended_in_time(&history, &run, "cancelled", died);
        assert_eq!(history.settled("c1"), ("applied", ""));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_worker_that_wakes_after_its_runs_were_given_away_writes_nothing() {
    let cluster = Cluster::start(34, &[]).await;
    let mut hands = vec![cluster.hand("first", &cluster.nodes[0].url)];
    let asked = streams(&cluster.nodes[1], PHOENIX, "stream").await;
    hands[0].freeze();
    hands.push(cluster.hand("second", &cluster.nodes[1].url));
    for (session, run) in &asked {
        // The second attempt says one thing and is done.
        assert_eq!(cluster.ended(cluster.any(), session, run).await, "completed");
    }
    let before: Vec<Vec<Value>> = records_of(&cluster, &asked).await;
    hands[0].wake();
    for (session, run) in &asked {
        let hand = who(cluster.any(), &hands[..1], "left", run).await;
        assert!(hand.noted("left", run)[0].ends_with("Fenced"), "{:?}", hand.noted("left", run));
        // One that does not listen to its library either is refused on every node, and counted.
        let began = hand.noted("began", run);
        let token = began[0].split_whitespace().nth(1).unwrap();
        for node in &cluster.nodes {
            let counted = node.metric("everthread_errors_total", "fenced").await;
            let answer = write_as_a_zombie(node, session, run, token).await;
            assert_eq!((&answer["t"], &answer["code"]), (&json!("error"), &json!("fenced")), "{answer}");
            assert!(node.metric("everthread_errors_total", "fenced").await > counted);
        }
    }
    assert_eq!(records_of(&cluster, &asked).await, before, "what was given away stays as it was");
    for (session, run) in asked {
        let history = cluster.goes_on(&session).await;
        let started: Vec<_> =
            history.of_run("run.started", &run).iter().map(|e| e.body["attempt"].clone()).collect();
        assert_eq!(started, [1, 2]);
        let second =
            history.entries.iter().rposition(|e| e.kind == "run.started" && e.body["run"] == run.as_str());
        let late = history.entries[second.unwrap()..].iter().filter(|e| e.by_run.as_ref() == Some(&run));
        assert!(late.clone().count() > 0);
        assert!(
            late.clone().all(|e| e.body["message"].as_str().is_some_and(|m| m.starts_with("a2"))),
            "{session}"
        );
    }
}

async fn records_of(cluster: &Cluster, asked: &[(String, String)]) -> Vec<Vec<Value>> {
    let mut all = Vec::new();
    for (session, _) in asked {
        all.push(cluster.any().records(session).await);
    }
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_worker_that_wakes_after_a_forced_cancel_has_its_writes_refused() {
    let cluster = Cluster::start(35, &["--cancel-grace-ms", "500"]).await;
    let hands = cluster.hands();
    let run = cluster.nodes[0].ask("s", ACTOR, "deaf").await;
    let writes =
        async |node: &Node| node.entries("s").await.iter().any(|entry| entry["type"] == "part.append");
    cluster.nodes[0].wait_until("writing", writes).await;
    let hand = who(cluster.any(), &hands, "began", &run).await;
    hand.freeze();
    // Before its lease is over, so that its socket is still there when it wakes.
    let receipt = cluster.nodes[1].control("s", cancel("c1", &run), 20_000).await;
    assert_eq!((&receipt["stage"], &receipt["outcome"]), (&json!("settled"), &json!("applied")), "{receipt}");
    let before = cluster.nodes[1].records("s").await;
    hand.wake();
    who(cluster.any(), &hands, "left", &run).await;
    assert_eq!(cluster.nodes[0].records("s").await, before);
    let history = cluster.goes_on("s").await;
    assert_eq!(history.end(&run).body["forced"], true);
    history.counts_up(&run);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn runs_whose_node_is_killed_under_their_worker_have_their_outcome_from_another() {
    let mut cluster = Cluster::start(36, &[]).await;
    // It knows no other node.
    let _first = cluster.hand("first", &cluster.nodes[0].url);
    let asked = streams(&cluster.nodes[1], ACTOR, "stream").await;
    let (cancelled, lost) = asked.split_at(RUNS / 2);
    let died = cluster.now().await;
    cluster.nodes[0].kill9();
    for (session, run) in cancelled {
        cluster.nodes[1].control(session, cancel("c1", run), 0).await;
    }
    let _second = cluster.hand("second", &cluster.nodes[1].url);
    for (session, run) in lost {
        assert_eq!(cluster.ended(&cluster.nodes[1], session, run).await, "lost");
        ended_in_time(&cluster.goes_on(session).await, run, "lost", died);
    }
    for (session, run) in cancelled {
        assert_eq!(cluster.ended(&cluster.nodes[1], session, run).await, "cancelled");
        let history = cluster.goes_on(session).await;
        ended_in_time(&history, run, "cancelled", died);
        assert_eq!(history.settled("c1"), ("applied", ""));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_whose_node_is_killed_goes_on_at_another_and_is_cancelled_there() {
    let mut cluster = Cluster::start(37, &[]).await;
    let address = |node: &Node| node.url.trim_start_matches("http://").to_owned();
    let balancer = Proxy::start(address(&cluster.nodes[0])).await.unwrap();
    let hands = [cluster.hand("only", &format!("http://{}", balancer.address()))];
    let asked = streams(&cluster.nodes[1], ACTOR, "stream").await;
    balancer.redirect(address(&cluster.nodes[1]));
    cluster.nodes[0].kill9();
    for (session, run) in asked {
        let node = &cluster.nodes[1];
        let seen = node.entries(&session).await.len();
        node.wait_until("writing on", async |node: &Node| node.entries(&session).await.len() > seen + 20)
            .await;
        let receipt = node.control(&session, cancel("c1", &run), 20_000).await;
        assert_eq!(
            (&receipt["stage"], &receipt["outcome"]),
            (&json!("settled"), &json!("applied")),
            "{receipt}"
        );
        let history = cluster.goes_on(&session).await;
        assert_eq!(
            (&history.end(&run).body["outcome"], &history.end(&run).body["forced"]),
            (&json!("cancelled"), &Value::Null)
        );
        history.counts_up(&run);
        assert_eq!(
            hands[0].noted("began", &run).len(),
            1,
            "the same attempt, from its first word to its last"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancel_whose_node_is_killed_at_once_has_one_outcome() {
    let mut cluster = Cluster::start(38, &["--cancel-grace-ms", "1000"]).await;
    let _hand = cluster.hand("only", &cluster.nodes[0].url);
    // Some hear it, some do not: then its deadline must be kept by a node that did not take it.
    let hearing = streams(&cluster.nodes[0], ACTOR, "stream").await;
    let deaf = cluster.nodes[0].ask("deaf", ACTOR, "deaf").await;
    let writes =
        async |node: &Node| node.entries("deaf").await.iter().any(|entry| entry["type"] == "part.append");
    cluster.nodes[0].wait_until("writing", writes).await;
    let asked: Vec<(String, String)> = hearing.into_iter().chain([("deaf".to_owned(), deaf)]).collect();
    let mut accepted = Vec::new();
    for (session, run) in &asked {
        let receipt = cluster.nodes[1].control(session, cancel("c1", run), 0).await;
        accepted.push(receipt["control"].clone());
    }
    cluster.nodes[1].kill9();
    assert!(accepted.iter().all(|control| control == "c1"));
    for (session, run) in asked {
        // Whoever asked asks again elsewhere, with the same id.
        let receipt = cluster.nodes[0].control(&session, cancel("c1", &run), 20_000).await;
        assert_eq!(
            (&receipt["stage"], &receipt["outcome"]),
            (&json!("settled"), &json!("applied")),
            "{receipt}"
        );
        let history = cluster.goes_on(&session).await;
        assert_eq!((history.of("control.requested").count(), history.settled("c1").0), (1, "applied"));
        let is_forced = history.end(&run).body["forced"] == true;
        assert_eq!(is_forced, session == "deaf");
        history.counts_up(&run);
    }
}
