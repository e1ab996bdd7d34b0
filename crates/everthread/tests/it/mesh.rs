//! A network that cuts every connection at a fixed age, heartbeats or not.

use crate::follower::{Streamer, is_over};
use crate::node::{Node, PATIENCE, TOKEN};
use everthread_client::{Client, Event, From};
use everthread_testkit::Proxy;
use std::time::Duration;

/// The run takes several of these.
const AGE: Duration = Duration::from_millis(700);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_are_all_cut_at_a_fixed_age_cost_nobody_an_entry() {
    let dir = tempfile::tempdir().unwrap();
    // However long the machine takes to connect.
    let node = Node::start(dir.path(), &["serve", "--lease-ms", "60000", "--return-grace-ms", "60000"]).await;
    let proxy = Proxy::start(node.url.trim_start_matches("http://").to_owned()).await.unwrap();
    proxy.cut_at_age(Some(AGE));
    let url = format!("http://{}", proxy.address());
    // The worker has no other way either.
    let _worker = Streamer { tokens: 250, pause_ms: 20, each_alone: false }.serve_at(&url, 1);
    node.ask("s", "streamer", "go").await;
    let client = Client::builder(&url, TOKEN).connect();
    let mut follow = client.follow("s".parse().unwrap(), From::Start).await.unwrap();
    let mut cuts = 0;
    let over = async {
        while !follow.view().is_some_and(is_over) {
            match follow.next().await.unwrap() {
                Event::Disconnected => cuts += 1,
                Event::Reset(reason) => panic!("{reason:?}"),
                _ => {}
            }
        }
    };
    tokio::time::timeout(PATIENCE, over).await.expect("the answer ends");
    assert!(cuts >= 3, "{cuts} cuts");
    let state = node.get("/v1/sessions/s/state").await;
    assert_eq!(serde_json::to_value(follow.view().unwrap()).unwrap(), state);
    assert_eq!(state["runs"][0]["outcome"], "completed", "{}", state["runs"]);
    let expected: String = (0..250).map(|number| format!("{number}é ")).collect();
    let answer = state["messages"].as_array().unwrap().iter().find(|m| m["role"] == "assistant").unwrap();
    assert_eq!(answer["parts"][0]["value"], expected, "{}", state["runs"]);
}
