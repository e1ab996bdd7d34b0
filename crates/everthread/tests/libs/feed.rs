//! The feed through the client library.

use crate::node::Node;
use crate::stage::{DEADLINE, Stage};
use everthread_client::Feed;
use tokio::time::timeout;

/// Waits until a session is in the list.
async fn lists(feed: &mut Feed, session: &str) {
    let looking = async {
        while !feed
            .next()
            .await
            .expect("the feed has ended")
            .iter()
            .any(|one| one.session.as_str() == session)
        {}
    };
    timeout(DEADLINE, looking).await.unwrap_or_else(|_| panic!("{session} is never listed"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watcher_sees_sessions_come_also_after_its_node_was_killed() {
    let mut node = Node::start().await;
    node.session("a").await;
    let stage = Stage::idle(&node);
    let mut feed = stage.client.watch(10).await.unwrap();
    lists(&mut feed, "a").await;
    node.session("b").await;
    lists(&mut feed, "b").await;
    node.kill9();
    node.restart().await;
    node.session("c").await;
    lists(&mut feed, "c").await;
    assert!(stage.client.watch(201).await.is_err(), "more than can be had");
    stage.close().await;
    let ending = async { while feed.next().await.is_some() {} };
    timeout(DEADLINE, ending).await.expect("a feed outlives its client");
}
