//! Redis out of reach, frozen, restarted, or deaf: nobody misses an entry, and everything comes back by itself.

use crate::harness::http::{create, input, state};
use crate::harness::{Client, OnRedis, Request, Worker, World, until};
use everthread_control::Numbered;
use everthread_protocol::{Author, Code, Fault, NodeId};
use everthread_session::State;
use everthread_store::Store as _;
use serde_json::json;
use std::time::Duration;
use tokio::time::{Instant, timeout};

/// How long an outage lasts: beyond every lease, and with `EVERTHREAD_LONG_TESTS=1` beyond most patience.
fn outage() -> Duration {
    let is_long = std::env::var("EVERTHREAD_LONG_TESTS").is_ok_and(|v| v == "1");
    Duration::from_secs(if is_long { 30 } else { 6 })
}

fn node_id(id: &str) -> NodeId {
    id.parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_cut_off_from_redis_comes_back_by_itself() {
    let world = World::<OnRedis>::hurried().await;
    let (cut, fine) = (world.node().await, world.node().await);
    let proxy = world.engine.proxy(&node_id("n1"));
    create(cut.address, "s").await;
    let run = input(cut.address, "s", "Hi").await;
    let mut client = Client::attach(cut.address, "s", json!("start")).await;
    let mut worker = Worker::join(fine.address, "w1", "guide", 1).await;
    let mut job = worker.work().await;
    worker.say(&mut job, "before ").await;
    client.until("the first piece", |history| history.answer(&run) == "before ").await;
    proxy.cut();
    let healed_at = Instant::now() + outage();
    let put = json!({ "id": "p1", "text": "during" });
    let refused = Request::post("/v1/sessions/s/input", &put).send(cut.address).await;
    assert!([503, 504].contains(&refused.status.as_u16()), "{}", refused.text);
    assert_eq!(refused.body["error"]["retryable"], true, "{}", refused.text);
    until("the node knows", async || (!cut.edge.desk.store().is_ready()).then_some(())).await;
    Request::get("/v1/sessions/s/state").send(cut.address).await.is_error(503, "unavailable");
    while Instant::now() < healed_at {
        worker.say(&mut job, "during ").await;
        // Not a decision: the writer's pace.
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    proxy.heal();
    worker.say(&mut job, "after").await;
    client.until("what was written meanwhile", |history| history.answer(&run).ends_with("after")).await;
    // On the same connection; after a long outage perhaps folded.
    assert!(!client.told.iter().any(|told| told == "reset"), "{:?}", client.told);
    let done = until("the put is taken", async || {
        let answer = Request::post("/v1/sessions/s/input", &put).send(cut.address).await;
        (answer.status == 202).then_some(answer)
    })
    .await;
    let again = Request::post("/v1/sessions/s/input", &put).send(fine.address).await.with(202);
    assert_eq!((&again["duplicate"], &again["run"]), (&json!(true), &done.body["run"]));
    assert_eq!(worker.end(&mut job, "completed").await["t"], "ok");
    assert_eq!(client.ended(&run).await, "completed");
    until("the node is ready", async || cut.edge.desk.store().is_ready().then_some(())).await;
    client.holds_the_state(fine.address).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_redis_costs_no_run() {
    let mut world = World::<OnRedis>::hurried().await;
    world.engine.response_timeout = Duration::from_secs(2);
    let (here, there) = (world.node().await, world.node().await);
    create(here.address, "s").await;
    let run = input(here.address, "s", "Hi").await;
    let mut client = Client::attach(there.address, "s", json!("start")).await;
    let mut worker = Worker::join(here.address, "w1", "guide", 1).await;
    let mut job = worker.work().await;
    worker.say(&mut job, "before ").await;
    world.engine.server.stop().unwrap();
    let woken_at = Instant::now() + outage();
    let frame = job.say("during");
    let mut refused = 0;
    let mut ack = json!({});
    while Instant::now() < woken_at {
        // The same batch again and again, as a worker does.
        ack = worker.socket.ask(frame.clone()).await;
        assert_eq!((&ack["t"], &ack["retryable"]), (&json!("error"), &json!(true)), "{ack}");
        refused += 1;
    }
    assert!(refused > 0, "{ack}");
    world.engine.server.cont().unwrap();
    until("the batch is taken", async || {
        ack = worker.socket.ask(frame.clone()).await;
        assert_ne!(ack["code"], "fenced", "the run was taken from a worker that lives");
        (ack["t"] == "ok" || ack["t"] == "duplicate").then_some(())
    })
    .await;
    // A full lease and more goes by, in which a keeper might think wrong of it.
    let calm = Instant::now() + world.leases.lease * 2;
    while Instant::now() < calm {
        let fenced = worker.socket.wait(|frame| frame["t"] == "fenced");
        assert!(timeout(world.leases.heartbeat, fenced).await.is_err(), "the run was taken");
    }
    assert_eq!(worker.end(&mut job, "completed").await["t"], "ok");
    assert_eq!(client.ended(&run).await, "completed");
    assert_eq!(client.history.answer(&run), "before during");
    client.holds_the_state(here.address).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_restarts_with_its_file_resets_nobody() {
    let mut world = World::on_file().await;
    let (here, there) = (world.node().await, world.node().await);
    create(here.address, "s").await;
    let run = input(here.address, "s", "Hi").await;
    let mut client = Client::attach(there.address, "s", json!("start")).await;
    let mut worker = Worker::join(here.address, "w1", "guide", 1).await;
    let mut job = worker.work().await;
    worker.say(&mut job, "before ").await;
    client.until("the first piece", |history| history.answer(&run) == "before ").await;
    let epoch = client.history.view.epoch();
    world.engine.server.restart().await.unwrap();
    let frame = job.say("after");
    until("the batch is taken", async || {
        let ack = worker.socket.ask(frame.clone()).await;
        assert_ne!(ack["code"], "fenced", "{ack}");
        (ack["t"] == "ok" || ack["t"] == "duplicate").then_some(())
    })
    .await;
    assert_eq!(worker.end(&mut job, "completed").await["t"], "ok");
    assert_eq!(client.ended(&run).await, "completed");
    assert!(client.history.view.epoch() > epoch, "a new epoch has begun");
    assert_eq!(client.history.answer(&run), "before after");
    assert!(!client.told.iter().any(|told| told == "reset"), "{:?}", client.told);
    client.holds_the_state(here.address).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wake_ups_that_are_lost_cost_nobody_an_entry() {
    let world = World::<OnRedis>::start().await;
    let (here, there) = (world.node().await, world.node().await);
    create(here.address, "s").await;
    let run = input(here.address, "s", "Hi").await;
    let mut clients = Vec::new();
    for node in [&here, &there] {
        clients.push(Client::attach(node.address, "s", json!("start")).await);
    }
    let mut worker = Worker::join(here.address, "w1", "guide", 1).await;
    let mut job = worker.work().await;
    for number in 0..120 {
        if number % 10 == 0 {
            world.engine.server.command("CLIENT KILL TYPE pubsub").await.unwrap();
        }
        worker.say(&mut job, &format!("{number} ")).await;
    }
    // The last ones of all: nothing that comes later can reveal that they were missed.
    world.engine.server.command("CLIENT KILL TYPE pubsub").await.unwrap();
    let cancel = json!({ "id": "c1", "kind": "cancel", "target": { "run": run } });
    Request::post("/v1/sessions/s/control", &cancel).send(there.address).await.with(202);
    let told = worker.socket.wait(|frame| frame["t"] == "control" || frame["t"] == "fenced").await;
    if told["t"] == "control" {
        world.engine.server.command("CLIENT KILL TYPE pubsub").await.unwrap();
        worker.end(&mut job, "cancelled").await;
    }
    let state_at_the_end = async || {
        let text = state(here.address, "s").await;
        text.contains("\"cancelled\"").then_some(text)
    };
    until("the run has ended", state_at_the_end).await;
    for client in &mut clients {
        assert_eq!(client.ended(&run).await, "cancelled");
        client.holds_the_state(there.address).await;
        assert!(!client.told.iter().any(|told| told == "reset"), "{:?}", client.told);
    }
}

/// What a request is about may be gone since it was carried out, and only the store knows that it was.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_cannot_tell_whether_a_request_was_carried_out_says_so() {
    let world = World::<OnRedis>::start().await;
    let node = world.node().await;
    create(node.address, "s").await;
    let proxy = world.engine.proxy(&node_id("n1"));
    let by: Author = serde_json::from_value(json!({ "kind": "user", "id": "ann" })).unwrap();
    let numbered = Numbered::Request { key: "put:ann:p1", answer: "", made_at: None };
    let read = || async {
        proxy.cut();
        Ok(())
    };
    let plan = |(), _: &State| Err(Fault::new(Code::NotFound, "it is not there"));
    let key = "default/s".parse().unwrap();
    let fault = node.edge.desk.decide_as_read(&key, &by, numbered, read, plan).await.unwrap_err();
    assert!(fault.code.is_retryable(), "{fault}");
    proxy.heal();
    let read = || async { Ok(()) };
    let answered = until("the store is back", async || {
        let fault = node.edge.desk.decide_as_read(&key, &by, numbered, read, plan).await.unwrap_err();
        (!fault.code.is_retryable()).then_some(fault)
    });
    assert_eq!(answered.await.code, Code::NotFound);
}
