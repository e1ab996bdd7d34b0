//! Approvals that several people answer at once: the first answer counts, and the tool runs once.

use crate::cluster::Cluster;
use crate::crew::{ACTOR, DIGEST, Hand};
use crate::node::Node;
use futures_util::future::join_all;
use serde_json::{Value, json};

fn answer(id: &str, run: &str, decision: &str) -> Value {
    json!({ "id": id, "kind": "answer", "target": { "run": run },
        "payload": { "approval": "pay", "decision": decision, "digest": DIGEST } })
}

async fn is_asked(node: &Node, session: &str, run: &str) {
    node.wait_until("asked", async |node: &Node| node.run_status(session, run).await.0 == "suspended").await;
}

fn paid(hands: &[Hand], run: &str) -> usize {
    hands.iter().map(|hand| hand.noted("paid", run).len()).sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_devices_that_answer_at_once_one_wins_and_the_other_is_told_who() {
    let cluster = Cluster::start(20, &[]).await;
    let hands = cluster.hands();
    let all = (0..12).map(async |number| {
        let session = format!("s{number}");
        let run = cluster.nodes[number % 2].ask(&session, ACTOR, "pay and wait").await;
        is_asked(&cluster.nodes[0], &session, &run).await;
        let path = format!("/v1/sessions/{session}/control?wait_ms=20000");
        // In every other session they disagree.
        let other = if number % 2 == 0 { "approved" } else { "denied" };
        let (phone, desk) = tokio::join!(
            cluster.nodes[0].post_as("ann", &path, answer("c1", &run, "approved")),
            cluster.nodes[1].post_as("bob", &path, answer("c2", &run, other)),
        );
        (session, run, [("c1", "ann", "approved", phone.unwrap()), ("c2", "bob", other, desk.unwrap())])
    });
    for (session, run, answers) in join_all(all).await {
        let go_on =
            json!({ "id": "c3", "kind": "steer", "target": { "run": run }, "payload": { "text": "go on" } });
        cluster.any().control(&session, go_on, 20_000).await;
        assert_eq!(cluster.ended(cluster.any(), &session, &run).await, "completed");
        let history = cluster.goes_on(&session).await;
        let won: Vec<_> = answers.iter().filter(|(.., receipt)| receipt["outcome"] == "applied").collect();
        let [(winner, subject, decision, _)] = won[..] else { panic!("{answers:?}") };
        let (loser, _, _, told) = answers.iter().find(|(id, ..)| id != winner).unwrap();
        assert_eq!(
            (&told["outcome"], &told["reason"]),
            (&json!("refused"), &json!("already_answered")),
            "{told}"
        );
        assert_eq!(told["answered_by"]["id"], *subject, "{told}");
        assert_eq!((history.settled(winner).0, history.settled(loser).1), ("applied", "already_answered"));
        let settled: Vec<_> = history.of("approval.settled").collect();
        assert_eq!((settled.len(), &settled[0].body["verdict"]), (1, &json!(decision)));
        assert_eq!(settled[0].body["answered_by"]["id"], *subject);
        let is_paid = usize::from(*decision == "approved");
        assert_eq!(paid(&hands, &run), is_paid, "{session}: the tool runs once, or not at all");
        assert_eq!(history.text(&run), if is_paid == 1 { "paid" } else { "not paid" });
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_double_click_on_approve_runs_the_tool_once() {
    let cluster = Cluster::start(21, &[]).await;
    let hands = cluster.hands();
    for number in 0..6 {
        let session = format!("s{number}");
        let run = cluster.any().ask(&session, ACTOR, "pay").await;
        is_asked(cluster.any(), &session, &run).await;
        // Each click is sent twice, too: its first answer was lost.
        let clicks = ["c1", "c2", "c1", "c2"]
            .map(|id| cluster.any().control(&session, answer(id, &run, "approved"), 20_000));
        let receipts = join_all(clicks).await;
        assert_eq!(
            (&receipts[0]["outcome"], &receipts[1]["outcome"]),
            (&receipts[2]["outcome"], &receipts[3]["outcome"])
        );
        assert_eq!(
            receipts.iter().filter(|receipt| receipt["outcome"] == "applied").count(),
            2,
            "{receipts:?}"
        );
        assert_eq!(cluster.ended(cluster.any(), &session, &run).await, "completed");
        let history = cluster.goes_on(&session).await;
        assert_eq!((history.of("approval.settled").count(), history.of("control.requested").count()), (1, 2));
        assert_eq!((paid(&hands, &run), history.text(&run).as_str()), (1, "paid"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_approval_outlives_every_worker_and_the_node_that_took_the_question() {
    let mut cluster = Cluster::start(22, &[]).await;
    let mut hands = cluster.hands();
    let run = cluster.nodes[0].ask("s", ACTOR, "pay").await;
    is_asked(&cluster.nodes[1], "s", &run).await;
    hands.iter_mut().for_each(Hand::kill9);
    cluster.nodes[0].kill9();
    let receipt = cluster.nodes[1].control("s", answer("c1", &run, "approved"), 0).await;
    assert_eq!((&receipt["stage"], &receipt["outcome"]), (&json!("settled"), &json!("applied")), "{receipt}");
    hands.push(cluster.hand("later", &cluster.nodes[1].url));
    assert_eq!(cluster.ended(&cluster.nodes[1], "s", &run).await, "completed");
    let history = cluster.goes_on("s").await;
    assert_eq!(history.of_run("run.started", &run).len(), 2, "before the question and after the answer");
    assert_eq!((paid(&hands, &run), history.text(&run).as_str()), (1, "paid"));
}
