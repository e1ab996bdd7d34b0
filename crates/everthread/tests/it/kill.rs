//! A server that is killed in the middle of an answer.

use crate::node::{Follower, Node};
use everthread_session::view::View;
use everthread_testkit::{RedisOptions, RedisServer};
use serde_json::Value;

/// Follows an answer, kills the node in its middle, starts it again, and follows to the end.
async fn killed_in_mid_answer(dir: &std::path::Path, args: &[&str]) {
    let mut node = Node::start(dir, args).await;
    let run = node.ask("s", "guide", "hello").await;
    let mut follower = Follower::follow(&node, "s").await;
    let mut frames: Vec<Value> = Vec::new();
    while frames.iter().filter(|frame| frame.to_string().contains("part.append")).count() < 20 {
        let (name, data) = follower.next().await.unwrap();
        if name == "entries" {
            frames.push(data);
        }
    }
    let before = node.entries("s").await;
    node.kill9();
    while let Some((name, data)) = follower.next().await {
        if name == "entries" {
            frames.push(data);
        }
    }

    let node = node.restart(dir, args).await;
    let mut follower = follower.resume(&node, "s").await;
    while !frames.last().is_some_and(|frame| frame.to_string().contains("run.ended")) {
        let (name, data) = follower.next().await.unwrap();
        if name == "entries" {
            frames.push(data);
        }
    }
    let after = node.entries("s").await;
    assert_eq!(after[..before.len()], before, "what was acknowledged is there, in order, once");
    let (status, outcome) = node.run_status("s", &run).await;
    assert_eq!((status.as_str(), outcome.as_str()), ("ended", "lost"));
    let ends = after.iter().filter(|entry| entry["type"] == "run.ended").count();
    assert_eq!(ends, 1);

    // What the follower holds is what the server holds.
    let mut view = View::new();
    for frame in &mut frames {
        frame["attachment"] = 1.into();
        let text = frame.to_string();
        let entries = everthread_protocol::frame::Entries::decode(text.as_bytes()).unwrap();
        view.apply_blocks(&entries).unwrap();
    }
    assert_eq!(serde_json::to_value(&view).unwrap(), node.get("/v1/sessions/s/state").await);
}

#[tokio::test]
async fn an_embedded_node_killed_in_mid_answer_loses_nothing_and_the_run_ends() {
    let dir = tempfile::tempdir().unwrap();
    killed_in_mid_answer(dir.path(), &["dev"]).await;
}

#[tokio::test]
async fn a_node_on_redis_killed_in_mid_answer_loses_nothing_and_the_run_ends() {
    let dir = tempfile::tempdir().unwrap();
    let redis = RedisServer::start().await.unwrap();
    killed_in_mid_answer(dir.path(), &["dev", "--redis", &redis.url()]).await;
}

#[tokio::test]
async fn a_redis_killed_in_mid_answer_comes_back_with_everything_and_so_does_the_node() {
    let dir = tempfile::tempdir().unwrap();
    let mut redis =
        RedisServer::start_with(RedisOptions { append_only: true, ..RedisOptions::default() }).await.unwrap();
    let node = Node::start(dir.path(), &["dev", "--redis", &redis.url()]).await;
    let run = node.ask("s", "guide", "hello").await;
    node.wait_until("writing", async |node: &Node| node.entries("s").await.len() > 40).await;
    let before = node.entries("s").await;
    redis.kill9();
    redis.restart().await.unwrap();
    node.wait_until("ready again", async |node: &Node| node.is_ready().await).await;
    node.wait_until("ended", async |node: &Node| node.run_status("s", &run).await.0 == "ended").await;
    let after = node.entries("s").await;
    assert_eq!(after[..before.len()], before, "what was acknowledged is there, in order, once");
    // The worker outlived it: the answer is whole.
    assert_eq!(node.run_status("s", &run).await.1, "completed");
}
