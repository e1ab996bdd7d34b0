//! A run that stands still keeps its worker, and goes on when it is told to.

use crate::harness::http::{create, input, settled};
use crate::harness::{Begun, Client, Engine, Worker, World};
use serde_json::{Value, json};

on_both_engines!(
    a_pause_is_told_to_the_worker_and_the_state_says_so_once_it_is_settled,
    a_pause_and_a_resume_without_an_outcome_replace_each_other,
    a_pause_that_the_worker_refuses_changes_nothing,
    a_pause_that_the_worker_does_not_answer_expires,
    a_paused_run_that_waits_is_not_begun_until_it_is_resumed,
    a_paused_run_can_be_cancelled,
    a_pause_of_a_run_that_is_over_is_refused,
    a_paused_run_whose_worker_dies_waits_until_it_is_resumed,
    a_suspended_run_that_is_paused_waits_for_both,
);

/// Of a control that is told before it expires, and then waited for.
const EXPIRES_MS: u64 = 3_000;

fn of_run(id: &str, kind: &str, run: &str) -> Value {
    json!({ "id": id, "kind": kind, "target": { "run": run } })
}

#[track_caller]
fn came_to(control: &Value, outcome: &str, reason: Option<&str>) {
    assert_eq!((&control["outcome"], control["reason"].as_str()), (&json!(outcome), reason), "{control}");
}

async fn a_pause_is_told_to_the_worker_and_the_state_says_so_once_it_is_settled<E: Engine>() {
    let mut begun = Begun::<E>::start().await;
    begun.say("Hel").await;
    for (id, kind, is_paused) in
        [("c1", "pause", true), ("c2", "pause", true), ("c3", "resume", false), ("c4", "resume", false)]
    {
        begun.ask(id, json!({ "kind": kind })).await;
        let told = begun.worker.told(id).await;
        assert_eq!((&told["kind"], &told["run"]), (&json!(kind), &json!(begun.run)), "{told}");
        assert!(told["grace_ms"].as_u64().unwrap() <= 30_000, "{told}");
        begun.worker.settle(&mut begun.job, id, "applied").await;
        let control = begun.client.settled(id).await;
        came_to(&control, "applied", None);
        assert_eq!(control["run"], begun.run);
        let run = begun.client.history.run(&begun.run);
        assert_eq!(
            (run["paused"] == true, &run["status"], &run["worker"]),
            (is_paused, &json!("active"), &json!("w1")),
            "{run}"
        );
    }
    begun.say("lo").await;
    begun.end("completed").await;
    begun.all_agree().await;
}

async fn a_pause_and_a_resume_without_an_outcome_replace_each_other<E: Engine>() {
    let mut begun = Begun::<E>::start().await;
    begun.ask("c1", json!({ "kind": "pause" })).await;
    begun.worker.told("c1").await;
    begun.ask("c2", json!({ "kind": "resume" })).await;
    came_to(&begun.client.settled("c1").await, "refused", Some("superseded"));
    begun.worker.told("c2").await;
    // The worker settles what it was told first: that is over.
    assert_eq!(begun.worker.settle(&mut begun.job, "c1", "applied").await["t"], "ok");
    begun.ask("c3", json!({ "kind": "pause" })).await;
    came_to(&begun.client.settled("c2").await, "refused", Some("superseded"));
    begun.worker.told("c3").await;
    assert_eq!(begun.worker.settle(&mut begun.job, "c2", "applied").await["t"], "ok");
    assert_eq!(begun.worker.settle(&mut begun.job, "c3", "applied").await["t"], "ok");
    came_to(&begun.client.settled("c3").await, "applied", None);
    assert_eq!(begun.client.history.run(&begun.run)["paused"], true);
    begun.end("completed").await;
    assert_eq!(begun.client.history.run(&begun.run)["paused"], Value::Null);
    begun.all_agree().await;
}

async fn a_pause_that_the_worker_refuses_changes_nothing<E: Engine>() {
    let mut begun = Begun::<E>::start().await;
    begun.ask("c1", json!({ "kind": "pause" })).await;
    begun.worker.told("c1").await;
    begun.worker.settle(&mut begun.job, "c1", "refused").await;
    came_to(&begun.client.settled("c1").await, "refused", Some("not_supported"));
    assert_eq!(begun.client.history.run(&begun.run)["paused"], Value::Null);
    begun.end("completed").await;
    begun.all_agree().await;
}

async fn a_pause_that_the_worker_does_not_answer_expires<E: Engine>() {
    let mut begun = Begun::<E>::start().await;
    begun.ask("c1", json!({ "kind": "pause", "expires_ms": EXPIRES_MS })).await;
    begun.worker.told("c1").await;
    let receipt = begun.worker.meanwhile(begun.client.receipt("c1", "settled")).await;
    came_to(&receipt, "expired", Some("timeout"));
    begun.end("completed").await;
    begun.all_agree().await;
}

async fn a_paused_run_that_waits_is_not_begun_until_it_is_resumed<E: Engine>() {
    let world = World::<E>::start().await;
    let (here, there) = (world.node().await, world.node().await);
    create(here.address, "s").await;
    create(here.address, "other").await;
    let run = input(here.address, "s", "Hi").await;
    let receipt = settled(there.address, "s", &of_run("c1", "pause", &run)).await;
    came_to(&receipt, "applied", None);
    let mut client = Client::attach(there.address, "s", json!("start")).await;
    client.until("the pause", |history| history.run(&run)["paused"] == true).await;
    let mut worker = Worker::join(here.address, "w1", "guide", 1).await;
    // What came later and waits elsewhere is begun, and again when the pool has been looked at.
    for _ in 0..2 {
        let other = input(there.address, "other", "Hi").await;
        assert_eq!(worker.serve(&["x"]).await, other);
        let idle = tokio::time::timeout(
            world.leases.heartbeat * 6,
            worker.socket.wait(|frame| frame["t"] == "work"),
        );
        assert!(idle.await.is_err(), "a paused run was begun");
    }
    let receipt = settled(there.address, "s", &of_run("c2", "resume", &run)).await;
    came_to(&receipt, "applied", None);
    let mut job = worker.work().await;
    assert_eq!((&*job.run, job.attempt), (&*run, 1));
    worker.end(&mut job, "completed").await;
    assert_eq!(client.ended(&run).await, "completed");
    client.holds_the_state(here.address).await;
}

async fn a_paused_run_can_be_cancelled<E: Engine>() {
    let mut begun = Begun::<E>::start().await;
    begun.ask("c1", json!({ "kind": "pause" })).await;
    begun.worker.told("c1").await;
    begun.worker.settle(&mut begun.job, "c1", "applied").await;
    let waiting = input(begun.there.address, "s", "Next").await;
    came_to(&settled(begun.there.address, "s", &of_run("c2", "pause", &waiting)).await, "applied", None);
    came_to(&settled(begun.there.address, "s", &of_run("c3", "cancel", &waiting)).await, "applied", None);
    begun.ask("c4", json!({ "kind": "cancel" })).await;
    begun.worker.told("c4").await;
    begun.end("cancelled").await;
    came_to(&begun.client.settled("c4").await, "applied", None);
    for run in [begun.run.clone(), waiting] {
        assert_eq!(begun.client.ended(&run).await, "cancelled");
        assert_eq!(begun.client.history.run(&run)["paused"], Value::Null);
    }
    begun.all_agree().await;
}

async fn a_pause_of_a_run_that_is_over_is_refused<E: Engine>() {
    let mut begun = Begun::<E>::start().await;
    begun.ask("c1", json!({ "kind": "pause" })).await;
    begun.worker.told("c1").await;
    begun.end("completed").await;
    came_to(&begun.client.settled("c1").await, "refused", Some("run_ended"));
    for (id, kind) in [("c2", "pause"), ("c3", "resume")] {
        came_to(
            &settled(begun.there.address, "s", &of_run(id, kind, &begun.run)).await,
            "refused",
            Some("run_ended"),
        );
        let of_agent = json!({ "id": format!("{id}-agent"), "kind": kind, "target": { "agent": "guide" } });
        came_to(&settled(begun.there.address, "s", &of_agent).await, "refused", Some("no_active_run"));
    }
    begun.all_agree().await;
}

async fn a_paused_run_whose_worker_dies_waits_until_it_is_resumed<E: Engine>() {
    let mut begun = Begun::<E>::retrying().await;
    begun.say("Hel").await;
    begun.ask("c1", json!({ "kind": "pause" })).await;
    begun.worker.told("c1").await;
    begun.worker.settle(&mut begun.job, "c1", "applied").await;
    begun.client.settled("c1").await;
    let mut other = Worker::join(begun.there.address, "w2", "guide", 1).await;
    drop(begun.worker);
    let run = other.meanwhile(begun.client.run_is(&begun.run, "requested")).await;
    assert_eq!(run["paused"], true, "{run}");
    let idle = tokio::time::timeout(
        begun.world.leases.heartbeat * 4,
        other.socket.wait(|frame| frame["t"] == "work"),
    );
    assert!(idle.await.is_err(), "a paused run was begun");
    let target = json!({ "run": begun.run });
    begun.client.ask("c2", json!({ "kind": "resume", "target": target })).await;
    let mut job = other.work().await;
    assert_eq!((job.attempt, &*job.go_on()), (2, "Hel"));
    other.say(&mut job, "lo").await;
    other.end(&mut job, "completed").await;
    assert_eq!(begun.client.ended(&begun.run).await, "completed");
    begun.client.holds_the_state(begun.here.address).await;
}

async fn a_suspended_run_that_is_paused_waits_for_both<E: Engine>() {
    let mut begun = Begun::<E>::start().await;
    begun.worker.suspend(&mut begun.job, json!([{ "approval": "a1", "reason": "pay?" }])).await;
    begun.client.run_is(&begun.run, "suspended").await;
    begun.ask("c1", json!({ "kind": "pause" })).await;
    came_to(&begun.client.settled("c1").await, "applied", None);
    begun.ask("c2", json!({ "kind": "answer", "payload": { "approval": "a1", "decision": "denied" } })).await;
    came_to(&begun.client.settled("c2").await, "applied", None);
    let idle = tokio::time::timeout(
        begun.world.leases.heartbeat * 4,
        begun.worker.socket.wait(|frame| frame["t"] == "work"),
    );
    assert!(idle.await.is_err(), "a paused run was begun");
    begun.ask("c3", json!({ "kind": "resume" })).await;
    came_to(&begun.client.settled("c3").await, "applied", None);
    let mut job = begun.worker.work().await;
    assert_eq!((job.attempt, &job.work["answers"][0]["verdict"]), (2, &json!("denied")));
    begun.worker.end(&mut job, "completed").await;
    assert_eq!(begun.client.ended(&begun.run).await, "completed");
    begun.all_agree().await;
}
