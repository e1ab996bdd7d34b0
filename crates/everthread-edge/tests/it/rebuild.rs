//! Pools, deadlines and lists that are lost outright: every run still ends, and every session is listed.

use crate::harness::http::{create, input};
use crate::harness::{Client, OnRedis, Request, Worker, World, until};
use everthread_store::Store as _;
use serde_json::json;
use std::collections::BTreeSet;
use std::time::Duration;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_its_pools_and_deadlines_every_run_still_ends() {
    let mut world = World::<OnRedis>::hurried().await;
    world.leases.cancel_grace = Duration::from_millis(800);
    world.rebuild_every = Duration::from_secs(2);
    let (here, there) = (world.node().await, world.node().await);
    for session in ["waits", "held", "cancelled"] {
        create(here.address, session).await;
    }
    // One is with a worker that will die without a word, one with a worker that does not hear a cancel.
    let held = input(here.address, "held", "Hi").await;
    let mut doomed = Worker::join(there.address, "w1", "guide", 1).await;
    let mut job = doomed.work().await;
    doomed.say(&mut job, "Hel").await;
    let cancelled = input(here.address, "cancelled", "Hi").await;
    let mut deaf = Worker::join(here.address, "w2", "guide", 1).await;
    let mut deaf_job = deaf.work().await;
    deaf.say(&mut deaf_job, "Hel").await;
    let asking = deaf.meanwhile(async {
        // One waits for a worker.
        let waits = input(here.address, "waits", "Hi").await;
        let mut clients = Vec::new();
        for session in ["waits", "held", "cancelled"] {
            clients.push(Client::attach(here.address, session, json!("start")).await);
        }
        let cancel = json!({ "id": "c1", "kind": "cancel", "target": { "run": cancelled } });
        Request::post("/v1/sessions/cancelled/control", &cancel).send(here.address).await.with(202);
        (waits, clients)
    });
    let (waits, mut clients) = asking.await;
    let lost = async || {
        for key in ["et:{deadlines:0}", "et:{agent:default:guide:0}:work"] {
            world.engine.server.command(&format!("DEL {key}")).await.unwrap();
        }
    };
    lost().await;
    // Without a word: nothing of its node is left that could see to it.
    drop(doomed);
    drop(there);
    lost().await;
    assert_eq!(deaf.meanwhile(clients[2].ended(&cancelled)).await, "cancelled");
    assert_eq!(clients[1].ended(&held).await, "lost");
    drop(deaf);
    let mut worker = Worker::join(here.address, "w3", "guide", 1).await;
    assert_eq!(worker.serve(&["all ", "of it"]).await, waits);
    assert_eq!(clients[0].ended(&waits).await, "completed");
    // What is in the pool twice is not done twice.
    until("nothing is left to do", async || {
        let pool = everthread_protocol::PoolKey {
            tenant: "default".parse().unwrap(),
            agent: "guide".parse().unwrap(),
        };
        let waiting = here.edge.desk.store().waiting(&pool, None, 10).await.unwrap();
        waiting.items.is_empty().then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_that_is_lost_has_every_session_again_in_which_nothing_happens() {
    let mut world = World::<OnRedis>::start().await;
    world.rebuild_every = Duration::from_secs(1);
    let node = world.node().await;
    for session in ["a", "b", "c"] {
        create(node.address, session).await;
    }
    let tenant = "default".parse().unwrap();
    let listed = async || {
        let listed = node.edge.desk.store().sessions(&tenant, None, 10).await.unwrap();
        listed.into_iter().map(|(session, _)| session.to_string()).collect::<BTreeSet<_>>()
    };
    until("all are listed", async || (listed().await.len() == 3).then_some(())).await;
    world.engine.server.command("DEL et:{sessions:default:0}").await.unwrap();
    until("all are listed again", async || (listed().await.len() == 3).then_some(())).await;
    // What is there stays as it is.
    Request::post("/v1/sessions/b/input", &json!({ "text": "Hi" })).send(node.address).await.with(202);
    let first = async || node.edge.desk.store().sessions(&tenant, None, 1).await.unwrap().remove(0).0;
    until("the last active one is the first", async || (first().await.as_str() == "b").then_some(())).await;
}
