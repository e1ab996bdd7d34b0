//! A run stays with its worker for as long as that shows that it lives, and not much longer.

use crate::harness::begun::key;
use crate::harness::http::{create, input, written_at};
use crate::harness::{Begun, Client, Engine, Worker, World, until};
use everthread_control::{Numbered, system_author};
use everthread_protocol::Millis;
use everthread_session::Request;
use serde_json::json;
use std::time::Duration;

on_both_engines!(
    a_worker_that_falls_silent_loses_its_run_when_its_lease_ends,
    a_run_whose_worker_and_node_are_gone_ends_with_its_lease,
    a_worker_that_writes_nothing_for_long_keeps_its_run,
    a_worker_whose_node_is_gone_goes_on_elsewhere,
    a_worker_that_is_back_while_its_old_socket_is_still_open_keeps_its_run,
    a_worker_that_comes_back_without_naming_a_run_loses_it,
    a_run_that_was_claimed_and_never_handed_out_is_handed_out_again,
    a_worker_that_retries_hands_over_what_it_wrote,
    a_run_under_which_five_workers_die_is_lost,
);

/// How long after the end of a lease the run must have its outcome, on the store's clock: soon, on a machine however slow, and
/// not when somebody happens to look.
const LATE_MS: u64 = 20_000;
/// How long before the end of its last lease a run may have it.
const EARLY_MS: u64 = 1_000;
/// Of those who are to keep it: more than a slow machine stands still.
const KEPT: Duration = Duration::from_secs(8);

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap()
}

async fn keeping<E: Engine>() -> World<E> {
    let mut world = World::start().await;
    world.leases.lease = KEPT;
    world
}

/// The end of the last lease that a run had: looks on until nobody holds it.
async fn last_lease<E: Engine>(begun: &Begun<E>) -> Millis {
    let mut last = Millis(0);
    until("the lease is over", async || match begun.lease_ends().await {
        Some(ends) => {
            last = last.max(ends);
            None
        }
        None => Some(last),
    })
    .await
}

async fn a_worker_that_falls_silent_loses_its_run_when_its_lease_ends<E: Engine>() {
    let mut begun = Begun::<E>::hurried().await;
    begun.say("Hel").await;
    // Its socket stays open and its node lives, but nobody answers pings any more.
    let run = begun.run.clone();
    let heard = written_at(begun.here.address, "s", |entry| entry["type"] == "part.append").await;
    let ends = last_lease(&begun).await;
    assert_eq!(begun.client.ended(&run).await, "lost");
    let ended = written_at(begun.here.address, "s", |entry| entry["type"] == "run.ended").await;
    let lease = millis(begun.world.leases.lease);
    // From the worker's last sign of life: the node that pings it in vain does not make it live on.
    assert!(ended <= heard + lease + LATE_MS, "{} ms after it was heard", ended - heard);
    assert!(
        ended + EARLY_MS >= ends.0 && ended <= ends.0 + LATE_MS,
        "{ended} and the lease ended at {ends:?}"
    );
}

async fn a_run_whose_worker_and_node_are_gone_ends_with_its_lease<E: Engine>() {
    let mut begun = Begun::<E>::hurried().await;
    begun.say("Hel").await;
    drop(begun.worker);
    // Without a word to anybody: no task of it is left to see to anything.
    drop(begun.here);
    let run: everthread_protocol::RunId = begun.run.parse().unwrap();
    let there = begun.there.edge.desk.clone();
    let mut last = Millis(0);
    until("the lease is over", async || {
        let (loaded, _) = there.load(&key("s")).await.unwrap();
        let ends = loaded.leases.iter().find(|(id, _)| *id == run);
        last = ends.map_or(last, |(_, ends)| last.max(*ends));
        ends.is_none().then_some(())
    })
    .await;
    assert_eq!(begun.client.ended(&begun.run).await, "lost");
    let ended = written_at(begun.there.address, "s", |entry| entry["type"] == "run.ended").await;
    assert!(ended >= last.0, "before its lease was over");
    assert!(ended <= last.0 + LATE_MS, "{} ms after its lease", ended - last.0);
    let wrote = written_at(begun.there.address, "s", |entry| entry["type"] == "part.append").await;
    let lease = millis(begun.world.leases.lease + begun.world.leases.heartbeat);
    assert!(ended <= wrote + lease + LATE_MS, "{} ms after its last word", ended - wrote);
    begun.client.holds_the_state(begun.there.address).await;
}

async fn a_worker_that_writes_nothing_for_long_keeps_its_run<E: Engine>() {
    let mut begun = Begun::<E>::on(keeping().await, false).await;
    // It only answers pings, well beyond its lease.
    begun.worker.meanwhile(tokio::time::sleep(begun.world.leases.lease * 3 / 2)).await;
    begun.say("Hello").await;
    begun.end("completed").await;
    assert_eq!(begun.client.history.count("run.started"), 1);
    begun.all_agree().await;
}

async fn a_worker_whose_node_is_gone_goes_on_elsewhere<E: Engine>() {
    let mut begun = Begun::<E>::on(keeping().await, false).await;
    begun.say("Hel").await;
    drop(begun.here);
    let mut worker = Worker::rejoin(begun.there.address, "w1", "guide", 1, &[&begun.job]).await;
    assert_eq!(worker.kept, [&*begun.run]);
    worker.meanwhile(tokio::time::sleep(begun.world.leases.lease * 3 / 2)).await;
    worker.say(&mut begun.job, "lo").await;
    worker.end(&mut begun.job, "completed").await;
    assert_eq!(begun.client.ended(&begun.run).await, "completed");
    assert_eq!(begun.client.history.answer(&begun.run), "Hello");
    begun.client.holds_the_state(begun.there.address).await;
}

async fn a_worker_that_is_back_while_its_old_socket_is_still_open_keeps_its_run<E: Engine>() {
    let world = keeping::<E>().await;
    let (here, there) = (world.node().await, world.node().await);
    // Several, as it depends on who was heard last.
    let workers = (0..6).map(async |number| {
        let (session, name) = (format!("s{number}"), format!("w{number}"));
        create(here.address, &session).await;
        let agent = format!("agent{number}");
        let body = json!({ "text": "Hi", "agent": agent });
        let path = format!("/v1/sessions/{session}/input");
        crate::harness::Request::post(path, &body).send(here.address).await.with(202);
        let mut old = Worker::join(here.address, &name, &agent, 1).await;
        let mut job = old.work().await;
        old.say(&mut job, "Hel").await;
        // The way to the first node is dead, and the node does not know it yet.
        let mut new = Worker::rejoin(there.address, &name, &agent, 1, &[&job]).await;
        assert_eq!(new.kept, [&*job.run]);
        new.meanwhile(tokio::time::sleep(world.leases.lease * 3 / 2)).await;
        new.say(&mut job, "lo").await;
        assert_eq!(new.end(&mut job, "completed").await["t"], "ok");
        let mut client = Client::attach(here.address, &session, json!("start")).await;
        assert_eq!(client.ended(&job.run).await, "completed");
        assert_eq!(client.history.answer(&job.run), "Hello");
        client.holds_the_state(there.address).await;
    });
    futures_util::future::join_all(workers).await;
}

async fn a_worker_that_comes_back_without_naming_a_run_loses_it<E: Engine>() {
    let mut begun = Begun::<E>::hurried().await;
    begun.say("Hel").await;
    drop(begun.worker);
    let mut worker = Worker::join(begun.there.address, "w1", "guide", 1).await;
    let ends = worker.meanwhile(async {
        let mut last = Millis(0);
        let run: everthread_protocol::RunId = begun.run.parse().unwrap();
        until("the lease is over", async || {
            let (loaded, _) = begun.there.edge.desk.load(&key("s")).await.unwrap();
            let ends = loaded.leases.iter().find(|(id, _)| *id == run);
            last = ends.map_or(last, |(_, ends)| last.max(*ends));
            ends.is_none().then_some(last)
        })
        .await
    });
    let ends = ends.await;
    assert_eq!(worker.meanwhile(begun.client.ended(&begun.run)).await, "lost");
    let ended = written_at(begun.here.address, "s", |entry| entry["type"] == "run.ended").await;
    assert!(ended <= ends.0 + LATE_MS, "{} ms after its lease", ended - ends.0);
    let next = input(begun.here.address, "s", "Next").await;
    assert_eq!(worker.serve(&["x"]).await, next, "the worker itself lives");
    begun.client.ended(&next).await;
    begun.client.holds_the_state(begun.here.address).await;
}

async fn a_run_that_was_claimed_and_never_handed_out_is_handed_out_again<E: Engine>() {
    let world = World::<E>::hurried().await;
    let (here, there) = (world.node().await, world.node().await);
    create(here.address, "s").await;
    let run = input(here.address, "s", "Hi").await;
    // A node that claims a run for a worker, and is gone before it says so.
    let claim = Request::Claim { run: run.parse().unwrap(), worker: "w1".parse().unwrap(), retries: false };
    here.edge.desk.decide(&key("s"), &system_author(), &claim, Numbered::No).await.unwrap();
    drop(here);
    // The worker lives on another.
    let mut worker = Worker::join(there.address, "w1", "guide", 1).await;
    let mut job = worker.work().await;
    assert_eq!((&*job.run, job.attempt), (&*run, 2));
    worker.say(&mut job, "Hello").await;
    worker.end(&mut job, "completed").await;
    let mut client = Client::attach(there.address, "s", json!("start")).await;
    assert_eq!(client.ended(&run).await, "completed");
    assert_eq!(client.history.count("run.returned"), 1);
    let started = written_at(there.address, "s", |e| e["type"] == "run.started" && e["attempt"] == 1).await;
    let again = written_at(there.address, "s", |e| e["type"] == "run.started" && e["attempt"] == 2).await;
    assert!(again - started <= millis(world.leases.lease) + LATE_MS, "{} ms", again - started);
    client.holds_the_state(there.address).await;
}

async fn a_worker_that_retries_hands_over_what_it_wrote<E: Engine>() {
    let mut begun = Begun::<E>::retrying().await;
    begun.say("Hel").await;
    let frame = begun.job.start_child("child", "searcher");
    assert_eq!(begun.worker.socket.ask(frame).await["t"], "ok");
    drop(begun.worker);
    let run = begun.client.run_is(&begun.run, "requested").await;
    assert_eq!(run["attempt"], 1, "{run}");
    assert_eq!(begun.client.history.count("run.returned"), 1);
    let mut other = Worker::join(begun.there.address, "w2", "guide", 1).await;
    let mut job = other.work().await;
    assert_eq!((&*job.run, job.attempt), (&*begun.run, 2));
    assert_eq!(job.go_on(), "Hel");
    // The first one is back, and too late.
    let mut late = Worker::rejoin(begun.here.address, "w1", "guide", 1, &[&begun.job]).await;
    assert!(late.kept.is_empty(), "{:?}", late.kept);
    let refused = late.socket.ask(begun.job.say("zombie")).await;
    assert_eq!(refused["code"], "fenced", "{refused}");
    other.say(&mut job, "lo").await;
    // The child goes on under its parent.
    let mut searcher = Worker::join(begun.there.address, "w3", "searcher", 1).await;
    assert_eq!(searcher.serve(&["found"]).await, "child");
    let told = other.socket.wait(|frame| frame["t"] == "child_ended").await;
    assert_eq!(told["child"], "child");
    other.end(&mut job, "completed").await;
    assert_eq!(begun.client.ended(&begun.run).await, "completed");
    assert_eq!(begun.client.history.answer(&begun.run), "Hello");
    let run = begun.client.history.run(&begun.run);
    assert_eq!((&run["worker"], &run["attempt"]), (&json!("w2"), &json!(2)), "{run}");
    begun.client.holds_the_state(begun.here.address).await;
}

async fn a_run_under_which_five_workers_die_is_lost<E: Engine>() {
    let mut world = World::<E>::start().await;
    world.leases.return_grace = Duration::from_millis(200);
    let nodes = [world.node().await, world.node().await];
    create(nodes[0].address, "s").await;
    create(nodes[0].address, "t").await;
    // One that writes and one that does not.
    let run = input(nodes[0].address, "s", "Hi").await;
    let mut client = Client::attach(nodes[1].address, "s", json!("start")).await;
    for attempt in 1..=5 {
        let mut worker =
            Worker::join_retrying(nodes[attempt % 2].address, &format!("w{attempt}"), "guide", 1).await;
        let mut job = worker.work().await;
        assert_eq!(job.attempt, attempt as u64);
        if attempt > 1 {
            job.go_on();
        }
        worker.say(&mut job, "a").await;
    }
    assert_eq!(client.ended(&run).await, "lost");
    assert_eq!(client.history.count("run.returned"), 4);
    assert_eq!(client.history.answer(&run), "aaaaa");
    client.holds_the_state(nodes[0].address).await;
    let unwritten = input(nodes[0].address, "t", "Hi").await;
    let mut client = Client::attach(nodes[1].address, "t", json!("start")).await;
    for attempt in 1..=5 {
        let mut worker = Worker::join(nodes[attempt % 2].address, &format!("v{attempt}"), "guide", 1).await;
        assert_eq!(worker.work().await.attempt, attempt as u64);
    }
    assert_eq!(client.ended(&unwritten).await, "lost");
}
