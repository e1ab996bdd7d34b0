//! A node that loses its Redis for a while.

use crate::follower::{Streamer, is_over};
use crate::node::{Node, PATIENCE, TOKEN};
use everthread_client::{Client, Event, From};
use everthread_testkit::{Proxy, RedisOptions, RedisServer};
use serde_json::{Value, json};
use std::time::Duration;

/// Set to have the outage last thirty seconds.
const LONG: &str = "EVERTHREAD_LONG_TESTS";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_loses_redis_comes_back_and_no_follower_misses_an_entry() {
    let outage = if std::env::var_os(LONG).is_some() { 30 } else { 6 };
    let dir = tempfile::tempdir().unwrap();
    let redis = RedisServer::start_with(RedisOptions { tcp: true, ..RedisOptions::default() }).await.unwrap();
    let proxy = Proxy::start(redis.tcp_address()).await.unwrap();
    let url = format!("redis://{}", proxy.address());
    let node = Node::start(dir.path(), &["serve", "--redis", &url]).await;
    let _worker = Streamer { tokens: 600, pause_ms: 20, each_alone: false }.serve(&node, 1);
    node.ask("s", "streamer", "go").await;
    let client = Client::builder(&node.url, TOKEN).connect();
    let mut follow = client.follow("s".parse().unwrap(), From::Start).await.unwrap();
    let mut frames = 0;
    while frames < 30 {
        if let Event::Entries(_) = follow.next().await.unwrap() {
            frames += 1;
        }
    }

    proxy.cut();
    node.wait_until("red", async |node: &Node| !node.is_ready().await).await;
    let answer = node.try_post("/v1/sessions/s/input", json!({ "text": "now?", "id": "during" })).await;
    let error: &Value = &answer["error"];
    assert_eq!(error["retryable"], true, "{answer}");
    tokio::time::sleep(Duration::from_secs(outage)).await;
    proxy.heal();

    node.wait_until("green", async |node: &Node| node.is_ready().await).await;
    let over = async {
        while !follow.view().is_some_and(is_over) {
            match follow.next().await.unwrap() {
                Event::Disconnected | Event::Reset(_) => panic!("the client need not notice"),
                _ => {}
            }
        }
    };
    tokio::time::timeout(PATIENCE, over).await.expect("the answer goes on");
    let view = serde_json::to_value(follow.view().unwrap()).unwrap();
    assert_eq!(view["runs"][0]["outcome"], "completed", "the worker outlived the outage");
    let expected: String = (0..600).map(|number| format!("{number}é ")).collect();
    let answer = view["messages"].as_array().unwrap().iter().find(|m| m["role"] == "assistant").unwrap();
    assert_eq!(answer["parts"][0]["value"], expected);
    // The same id again, now that it can be: written once, whatever became of the first.
    let first = node.post("/v1/sessions/s/input", json!({ "text": "now?", "id": "during" })).await;
    let second = node.post("/v1/sessions/s/input", json!({ "text": "now?", "id": "during" })).await;
    assert_eq!((&first["message"], &second["duplicate"]), (&second["message"], &Value::Bool(true)));
}
