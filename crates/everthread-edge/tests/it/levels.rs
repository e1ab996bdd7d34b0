//! How sure answers are: what is asked for, what is usual, and what a worker may forget.

use crate::harness::http::{create, input};
use crate::harness::socket::Socket;
use crate::harness::{Client, Engine, OnEmbedded, OnRedis, Request, Worker, World, until};
use everthread_protocol::NodeId;
use everthread_store::redis::{Options, Redis};
use everthread_testkit::{RedisOptions, RedisServer, newer_redis};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// A Redis server with a replica.
struct OnReplicated {
    primary: RedisServer,
    replica: RedisServer,
    stop: CancellationToken,
}

impl Engine for OnReplicated {
    type Store = Redis;

    async fn start() -> Self {
        let mut options = RedisOptions { tcp: true, ..RedisOptions::default() };
        let primary = RedisServer::start_with(options.clone()).await.unwrap();
        options.args.extend(["--replicaof", "127.0.0.1", &primary.port().to_string()].map(str::to_owned));
        let replica = RedisServer::start_with(options).await.unwrap();
        until("the replica follows", async || {
            let told = primary.command("INFO replication").await.unwrap();
            told.contains("state=online").then_some(())
        })
        .await;
        Self { primary, replica, stop: CancellationToken::new() }
    }

    async fn store(&self, node: &NodeId) -> Arc<Redis> {
        let options = Options::new(self.primary.tcp_url(), "et", node.clone());
        let options = Options { response_timeout: Duration::from_secs(2), ..options };
        Arc::new(Redis::connect(options, &TaskTracker::new(), &self.stop).await.unwrap())
    }
}

impl Drop for OnReplicated {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// A Redis server that syncs its file once a second, and can be asked whether it has.
struct OnSynced {
    server: RedisServer,
    stop: CancellationToken,
}

impl OnSynced {
    async fn set(&self, sync: &str) {
        let answer = self.server.command(&format!("CONFIG SET appendfsync {sync}")).await.unwrap();
        assert_eq!(answer, "+OK\r\n");
    }
}

impl Engine for OnSynced {
    type Store = Redis;

    async fn start() -> Self {
        let args = ["--appendfsync", "everysec"].map(str::to_owned).to_vec();
        let program = Some(newer_redis().unwrap());
        let options = RedisOptions { append_only: true, program, args, ..RedisOptions::default() };
        let server = RedisServer::start_with(options).await.unwrap();
        Self { server, stop: CancellationToken::new() }
    }

    async fn store(&self, node: &NodeId) -> Arc<Redis> {
        let options = Options::new(self.server.url(), "et", node.clone());
        Arc::new(Redis::connect(options, &TaskTracker::new(), &self.stop).await.unwrap())
    }
}

impl Drop for OnSynced {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn posted(address: std::net::SocketAddr, body: Value) -> (u16, Value) {
    let answer = Request::post("/v1/sessions/s/input", &body).send(address).await;
    (answer.status.as_u16(), answer.body)
}

fn with_level(mut frame: Value, level: &str) -> Value {
    frame["ack"] = level.into();
    frame
}

/// The next `safe` that says so much, or more.
async fn safe(socket: &mut Socket, batch: u64) {
    socket.wait(|frame| frame["t"] == "safe" && frame["batch"].as_u64() >= Some(batch)).await;
}

async fn is_refused_before_anything_is_written<E: Engine>(level: &str) {
    let world = World::<E>::start().await;
    let node = world.node().await;
    create(node.address, "s").await;
    let body = json!({ "id": "p1", "text": "Hi", "agent": "guide" });
    let answer =
        Request::post("/v1/sessions/s/input", &with_level(body.clone(), level)).send(node.address).await;
    answer.is_error(405, "not_supported");
    let (status, answer) = posted(node.address, body).await;
    assert_eq!((status, &answer["duplicate"]), (202, &Value::Null), "{answer}");
    let control = with_level(json!({ "id": "c1", "kind": "cancel", "target": { "agent": "x" } }), level);
    let refused = Request::post("/v1/sessions/s/control", &control).send(node.address).await;
    refused.is_error(405, "not_supported");
    let mut client = Client::attach(node.address, "s", json!("start")).await;
    let put = json!({ "t": "put", "id": "p2", "entries": [{ "type": "x-a" }], "ack": level });
    assert_eq!(client.request(put).await["code"], "not_supported");
    let mut worker = Worker::join(node.address, "w1", "guide", 1).await;
    let mut job = worker.work().await;
    let refused = worker.socket.ask(with_level(job.clone().say("Hel"), level)).await;
    assert_eq!((&refused["t"], &refused["code"]), (&json!("error"), &json!("not_supported")), "{refused}");
    let ack = worker.socket.ask(job.say("Hel")).await;
    assert_eq!((&ack["t"], &ack["batch"]), (&json!("ok"), &json!(1)), "{ack}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_level_that_is_not_to_be_had_is_refused_before_anything_is_written() {
    is_refused_before_anything_is_written::<OnEmbedded>("replicated").await;
    is_refused_before_anything_is_written::<OnRedis>("replicated").await;
    is_refused_before_anything_is_written::<OnRedis>("fsynced").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_local_disk_has_is_synced_and_is_told_to_who_asks() {
    let world = World::<OnEmbedded>::start().await;
    let node = world.node().await;
    create(node.address, "s").await;
    let (status, answer) =
        posted(node.address, json!({ "text": "Hi", "agent": "guide", "ack": "fsynced" })).await;
    assert_eq!((status, &answer["ack"]), (202, &json!("fsynced")), "{answer}");
    let (_, answer) = posted(node.address, json!({ "text": "And", "agent": "guide" })).await;
    assert_eq!(answer["ack"], Value::Null);
    let mut worker = Worker::join(node.address, "w1", "guide", 1).await;
    let mut job = worker.work().await;
    let ack = worker.socket.ask(with_level(job.say("Hel"), "fsynced")).await;
    assert_eq!((&ack["ack"], &ack["safe"]), (&json!("fsynced"), &json!(1)), "{ack}");
    let ack = worker.socket.ask(job.say("lo")).await;
    assert_eq!((&ack["ack"], &ack["safe"]), (&Value::Null, &json!(2)), "{ack}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_disk_of_redis_has_is_told_to_who_asks_and_what_it_has_not_is_not_known() {
    let world = World::<OnSynced>::start().await;
    let node = world.node().await;
    create(node.address, "s").await;
    let body = json!({ "text": "Hi", "agent": "guide", "ack": "fsynced" });
    let (status, answer) = posted(node.address, body).await;
    assert_eq!((status, &answer["ack"]), (202, &json!("fsynced")), "{answer}");
    let (_, answer) = posted(node.address, json!({ "text": "And", "agent": "guide" })).await;
    assert_eq!(answer["ack"], Value::Null, "who does not ask does not wait for a disk");
    let mut worker = Worker::join(node.address, "w1", "guide", 1).await;
    let mut job = worker.work().await;
    let ack = worker.socket.ask(with_level(job.say("Hel"), "fsynced")).await;
    assert_eq!((&ack["ack"], &ack["safe"]), (&json!("fsynced"), &json!(1)), "{ack}");
    world.engine.set("no").await;
    let asked = with_level(job.say("lo"), "fsynced");
    let unknown = worker.socket.ask(asked.clone()).await;
    assert_eq!((&unknown["t"], &unknown["code"]), (&json!("error"), &json!("indeterminate")), "{unknown}");
    world.engine.set("everysec").await;
    let sure = until("the append is sure", async || {
        let again = worker.socket.ask(asked.clone()).await;
        (again["t"] == "duplicate").then_some(again)
    })
    .await;
    assert_eq!((&sure["batch"], &sure["ack"]), (&json!(2), &json!("fsynced")), "{sure}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_a_replica_decisions_are_replicated_and_appends_where_they_ask() {
    let world = World::<OnReplicated>::start().await;
    let node = world.node().await;
    create(node.address, "s").await;
    let (_, answer) = posted(node.address, json!({ "text": "Hi", "agent": "guide" })).await;
    assert_eq!(answer["ack"], "replicated", "{answer}");
    let (_, answer) =
        posted(node.address, json!({ "text": "And", "agent": "other", "ack": "accepted" })).await;
    assert_eq!(answer["ack"], "accepted", "{answer}");
    let mut client = Client::attach(node.address, "s", json!("start")).await;
    let event = json!({ "t": "put", "id": "e1", "entries": [{ "type": "x-a" }] });
    assert_eq!(client.request(event).await["ack"], Value::Null, "no decision");
    let event = json!({ "t": "put", "id": "e2", "entries": [{ "type": "x-a" }], "ack": "replicated" });
    assert_eq!(client.request(event).await["ack"], "replicated");
    let mut worker = Worker::join(node.address, "w1", "guide", 1).await;
    let mut job = worker.work().await;
    let ack = worker.socket.ask(job.say("Hel")).await;
    assert_eq!((&ack["ack"], &ack["safe"]), (&Value::Null, &json!(0)), "{ack}");
    safe(&mut worker.socket, 1).await;
    let ack = worker.socket.ask(with_level(job.say("lo"), "replicated")).await;
    assert_eq!((&ack["ack"], &ack["safe"]), (&json!("replicated"), &json!(2)), "{ack}");
    client.ask("c1", json!({ "kind": "cancel", "target": { "run": job.run } })).await;
    assert_eq!(client.receipt("c1", "accepted").await["ack"], "replicated");
    let ended = worker.end(&mut job, "cancelled").await;
    assert_eq!(ended["ack"], "replicated", "{ended}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_a_frozen_replica_nobody_knows_and_what_is_sent_again_is_a_duplicate_that_is_sure() {
    let world = World::<OnReplicated>::start().await;
    let node = world.node().await;
    create(node.address, "s").await;
    input(node.address, "s", "Hi").await;
    let mut worker = Worker::join(node.address, "w1", "guide", 1).await;
    let mut job = worker.work().await;
    worker.say(&mut job, "a").await;
    safe(&mut worker.socket, 1).await;
    world.engine.replica.stop().unwrap();
    // Who asks for nothing goes on, but may not forget it.
    let ack = worker.socket.ask(job.say("b")).await;
    assert_eq!((&ack["t"], &ack["safe"]), (&json!("ok"), &json!(1)), "{ack}");
    let asked = with_level(job.say("c"), "replicated");
    let unknown = worker.socket.ask(asked.clone()).await;
    assert_eq!((&unknown["t"], &unknown["code"]), (&json!("error"), &json!("indeterminate")), "{unknown}");
    let put = json!({ "id": "p1", "text": "And" });
    let (status, answer) = posted(node.address, put.clone()).await;
    assert_eq!((status, &answer["error"]["code"]), (504, &json!("indeterminate")), "{answer}");
    world.engine.replica.cont().unwrap();
    let sure = until("the append is sure", async || {
        let again = worker.socket.ask(asked.clone()).await;
        (again["t"] == "duplicate").then_some(again)
    })
    .await;
    assert_eq!((&sure["batch"], &sure["ack"]), (&json!(3), &json!("replicated")), "{sure}");
    let again = until("the put is sure", async || {
        let (status, answer) = posted(node.address, put.clone()).await;
        (status == 202).then_some(answer)
    })
    .await;
    assert_eq!((&again["duplicate"], &again["ack"]), (&json!(true), &json!("replicated")), "{again}");
    assert!(world.engine.primary.runs());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_nobody_can_confirm_anything_a_worker_may_forget_what_is_old() {
    let world = World::<OnRedis>::start().await;
    let node = world.node().await;
    create(node.address, "s").await;
    input(node.address, "s", "Hi").await;
    let mut worker = Worker::join(node.address, "w1", "guide", 1).await;
    let mut job = worker.work().await;
    let ack = worker.socket.ask(job.say("a")).await;
    assert_eq!((&ack["batch"], &ack["safe"]), (&json!(1), &json!(0)), "{ack}");
    safe(&mut worker.socket, 1).await;
}
