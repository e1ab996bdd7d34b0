//! Nodes whose primary is replaced.

use crate::follower::{Streamer, is_over};
use crate::node::{Node, PATIENCE, TOKEN};
use everthread_client::{Client, Event, Follow, From};
use everthread_protocol::frame::ResetReason;
use everthread_testkit::{RedisSentinels, RedisServer};
use serde_json::json;
use tokio::time::timeout;

/// One after the other. If only the look every 20 seconds brought them, these took minutes.
const MARKS: usize = 40;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_failover_of_sentinels_subscriptions_live_and_readiness_has_told_the_truth() {
    let dir = tempfile::tempdir().unwrap();
    let mut redis = RedisSentinels::start().await.unwrap();
    let url = redis.url();
    let nodes = [
        Node::start(dir.path(), &["serve", "--redis", &url]).await,
        Node::start(dir.path(), &["serve", "--redis", &url]).await,
    ];
    let _worker = Streamer { tokens: 5, pause_ms: 1, each_alone: false }.serve(&nodes[0], 1);
    nodes[0].ask("s", "streamer", "go").await;
    let client = Client::builder(&nodes[1].url, TOKEN).connect();
    let mut follow = client.follow("s".parse().unwrap(), From::Start).await.unwrap();
    while !follow.view().is_some_and(is_over) {
        follow.next().await.unwrap();
    }
    redis.server(0).replicated().await.unwrap();

    redis.server(0).kill9();
    for node in &nodes {
        node.wait_until("red", async |node: &Node| !node.is_ready().await).await;
    }
    redis.failover_from(0).await.unwrap();
    for node in &nodes {
        node.wait_until("green", async |node: &Node| node.is_ready().await).await;
    }

    let marks = async {
        for number in 0..MARKS {
            let mark = format!("mark-{number}");
            let body = json!({ "id": mark, "entries": [{ "type": "x-mark", "mark": mark }] });
            nodes[0].post("/v1/sessions/s/entries", body).await;
            loop {
                match follow.next().await.unwrap() {
                    Event::Entries(frame) if format!("{:?}", frame.entries()).contains(&mark) => break,
                    Event::Reset(reason) => panic!("nothing was lost: {reason:?}"),
                    _ => {}
                }
            }
        }
    };
    timeout(PATIENCE, marks).await.expect("what is written there is pushed here");
    let state = nodes[0].get("/v1/sessions/s/state").await;
    assert_eq!(serde_json::to_value(follow.view().unwrap()).unwrap(), state);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_redis_has_lost_is_written_again_by_the_client_that_was_answered() {
    let dir = tempfile::tempdir().unwrap();
    let mut redis = RedisServer::start().await.unwrap();
    let node = Node::start(dir.path(), &["serve", "--redis", &redis.url()]).await;
    node.post("/v1/sessions", json!({ "session": "s" })).await;
    let client = Client::builder(&node.url, TOKEN).connect();
    let mut follow = client.follow("s".parse().unwrap(), From::Start).await.unwrap();
    let session = follow.session().clone();
    session.input("one", None).await.unwrap();
    // It comes back as it was now.
    redis.command("SAVE").await.unwrap();
    for text in ["two", "three"] {
        session.input(text, None).await.unwrap();
    }
    let texts = |follow: &Follow| -> Vec<String> {
        let messages = follow.view().unwrap().messages().iter();
        messages.map(|message| message.parts[0].value.as_str().unwrap().to_owned()).collect()
    };
    let seeing = async {
        while texts(&follow).len() < 3 {
            follow.next().await.unwrap();
        }
    };
    timeout(PATIENCE, seeing).await.expect("what was answered is followed");
    let before = follow.view().unwrap().epoch();

    redis.kill9();
    redis.restart().await.unwrap();
    let healing = async {
        // What it holds stays until that of the new epoch comes.
        while follow.view().unwrap().epoch() == before || texts(&follow).len() < 3 {
            match follow.next().await.unwrap() {
                Event::Reset(reason) => assert_eq!(reason, ResetReason::Epoch),
                Event::Lost(error) => panic!("{error}"),
                _ => {}
            }
        }
    };
    timeout(PATIENCE, healing).await.expect("nobody wrote it again");
    assert_eq!(texts(&follow), ["one", "two", "three"]);
    let told = node.get("/v1/sessions/s/messages").await;
    assert_eq!(told["messages"].as_array().unwrap().len(), 3, "each of them once: {told}");
}
