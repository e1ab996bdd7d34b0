//! Many followers that come and go while answers are written: all end with the same bytes.

use crate::follower::{Crowd, Streamer};
use crate::node::Node;
use everthread_testkit::RedisServer;

/// Tokens of one answer, and pauses long enough for followers to come and go in it.
const ONE_LONG_ANSWER: Streamer = Streamer { tokens: 300, pause_ms: 10, each_alone: false };
const MANY_SHORT_ANSWERS: Streamer = Streamer { tokens: 60, pause_ms: 40, each_alone: false };

async fn come_and_go(node: &Node, streamer: Streamer, sessions: usize, followers: usize) {
    let _worker = streamer.serve(node, sessions);
    let crowd = Crowd::gather(node, sessions, followers).await;
    crowd.all_end_like_the_server(node).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_followers_of_one_session_end_alike_on_the_embedded_store() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), &["serve"]).await;
    come_and_go(&node, ONE_LONG_ANSWER, 1, 200).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_followers_of_one_session_end_alike_on_redis() {
    let dir = tempfile::tempdir().unwrap();
    let redis = RedisServer::start().await.unwrap();
    let node = Node::start(dir.path(), &["serve", "--redis", &redis.url()]).await;
    come_and_go(&node, ONE_LONG_ANSWER, 1, 200).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_hundred_sessions_end_right_for_their_followers_on_the_embedded_store() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), &["serve"]).await;
    come_and_go(&node, MANY_SHORT_ANSWERS, 500, 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_hundred_sessions_end_right_for_their_followers_on_redis() {
    let dir = tempfile::tempdir().unwrap();
    let redis = RedisServer::start().await.unwrap();
    let node = Node::start(dir.path(), &["serve", "--redis", &redis.url()]).await;
    come_and_go(&node, MANY_SHORT_ANSWERS, 500, 1).await;
}
