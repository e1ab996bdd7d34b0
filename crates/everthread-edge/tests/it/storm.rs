//! Many who come at once: what they want is read once for all of them, and those who are too many are told when to come.

use crate::harness::http::{create, input, state};
use crate::harness::{NO_FOLDING, OnEmbedded, OnRedis, Socket, Worker, World, client, until};
use everthread_protocol::NodeId;
use everthread_testkit::RedisServer;
use futures_util::future::join_all;
use serde_json::{Value, json};
use std::time::Duration;
use tokio_tungstenite::tungstenite::Error;

/// Who come back at once.
const CROWD: u64 = 200;
const BLOCKS: u64 = 120;
/// If each read for itself, there would be two for each: where the log ends, and what is missed.
const READS_MAX: u64 = CROWD / 2;

/// As far away as a store may be: so near as it is on this machine, everybody would be done before the next has asked.
const FAR: Duration = Duration::from_millis(250);

/// Reads of streams since the last look.
async fn reads(server: &RedisServer) -> u64 {
    let stats = server.command("INFO commandstats").await.unwrap();
    let calls = stats.lines().find_map(|line| line.strip_prefix("cmdstat_xrange:calls="));
    let calls = calls.and_then(|rest| rest.split(',').next()).map_or(0, |calls| calls.parse().unwrap());
    server.command("CONFIG RESETSTAT").await.unwrap();
    calls
}

/// Attaches, reads until it is live, and checks that it was sent everything after `cursor`, once.
async fn attach(socket: &mut Socket, from: Value, mut cursor: u64, head: u64) {
    socket.send(&json!({ "t": "attach", "id": "a", "session": "s", "from": from })).await;
    loop {
        let frame = socket.frame().await;
        match frame["t"].as_str().unwrap() {
            "attached" => assert_eq!(frame["resumed"], true, "{frame}"),
            "snapshot" => cursor = frame["seq"].as_u64().unwrap(),
            "entries" => {
                let (first, last) = (frame["from"].as_u64().unwrap(), frame["to"].as_u64().unwrap());
                assert_eq!(first, cursor + 1, "{frame}");
                cursor = last;
            }
            "live" => return assert_eq!(cursor, head),
            other => panic!("{other}: {frame}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_who_come_back_at_once_are_read_for_together() {
    let world = World::<OnRedis>::folding(NO_FOLDING).await;
    let (here, there) = (world.node().await, world.node().await);
    create(here.address, "s").await;
    input(here.address, "s", "Hi").await;
    let mut worker = Worker::join(here.address, "w1", "guide", 1).await;
    let mut job = worker.work().await;
    for number in 0..BLOCKS {
        worker.say(&mut job, &format!("{number} ")).await;
    }
    worker.end(&mut job, "completed").await;
    let state: Value = serde_json::from_str(&state(here.address, "s").await).unwrap();
    let (epoch, head) = (state["epoch"].as_str().unwrap(), state["seq"].as_u64().unwrap());

    let mut sockets = join_all((0..CROWD).map(|_| client::hello(there.address))).await;
    let id: NodeId = "n2".parse().unwrap();
    world.engine.proxy(&id).delay(FAR);
    reads(&world.engine.server).await;
    // They were together, and stand where each was when the connection ended.
    let resumed = sockets.iter_mut().zip(0..).map(|(socket, number)| {
        let cursor = head - number % 40;
        attach(socket, json!(format!("{epoch}.{cursor}")), cursor, head)
    });
    join_all(resumed).await;
    let read = reads(&world.engine.server).await;
    println!("{CROWD} resumed with {read} reads");
    assert!((1..READS_MAX).contains(&read), "{CROWD} cost {read} reads");

    // The same for those who hold nothing.
    world.engine.proxy(&id).heal();
    let mut sockets = join_all((0..CROWD).map(|_| client::hello(there.address))).await;
    world.engine.proxy(&id).delay(FAR);
    reads(&world.engine.server).await;
    join_all(sockets.iter_mut().map(|socket| attach(socket, json!({ "recent": 5 }), 0, head))).await;
    let read = reads(&world.engine.server).await;
    println!("{CROWD} joined with {read} reads");
    assert!((1..READS_MAX).contains(&read), "{CROWD} cost {read} reads");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_takes_so_many_clients_in_a_second_and_tells_the_others_when_to_come() {
    let mut world = World::<OnEmbedded>::start().await;
    world.upgrades_per_s = 5;
    let node = world.node().await;
    let mut kept = Vec::new();
    let refused =
        until("too many", async || match Socket::open_with(node.address, "/v1/connect", &[]).await {
            Ok(socket) => {
                kept.push(socket);
                None
            }
            Err(Error::Http(refused)) => Some(refused),
            Err(error) => panic!("{error}"),
        });
    let refused = refused.await;
    assert_eq!(refused.status(), 503);
    let seconds: u64 = refused.headers()["retry-after"].to_str().unwrap().parse().unwrap();
    let error = serde_json::from_slice::<Value>(refused.body().as_deref().unwrap()).unwrap()["error"].clone();
    let after_ms = error["after_ms"].as_u64().unwrap();
    assert_eq!((&error["code"], &error["retryable"]), (&json!("overloaded"), &json!(true)));
    assert!((500..=10_000).contains(&after_ms) && seconds == after_ms.div_ceil(1000), "{error}");
    // Those that are there are served, workers are let in, and after a while clients are, too.
    Worker::join(node.address, "w1", "guide", 1).await;
    create(node.address, "s").await;
    until("room", async || Socket::open_with(node.address, "/v1/connect", &[]).await.ok()).await;
}
