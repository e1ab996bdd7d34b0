//! Clients that read two kilobytes a second among fast ones.

use crate::follower::{Streamer, is_over};
use crate::node::{Node, PATIENCE, TOKEN};
use everthread_client::{Client, Event, From};
use everthread_session::view::View;
use everthread_testkit::Proxy;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpSocket;
use tokio::task::JoinSet;

const SLOW: usize = 20;
const FAST: usize = 5;
/// Each token is a block and a frame of about 200 bytes: together more than all buffers between node and client.
const ANSWER: Streamer = Streamer { tokens: 8_000, pause_ms: 0, each_alone: true };
/// If the node kept the frames for each slow client, it would grow by more than this.
const GROWTH_MAX_KB: u64 = 24 * 1024;

/// Follows to the end; returns what it holds, how many bytes of frames it got and whether it was told that it lags.
async fn follow(url: String, live: Arc<AtomicUsize>) -> (View, usize, bool) {
    let client = Client::builder(&url, TOKEN).connect();
    let mut follow = client.follow("s".parse().unwrap(), From::Start).await.unwrap();
    let (mut bytes, mut lagged, mut is_live) = (0, false, false);
    loop {
        match follow.next().await.expect("the client gave up") {
            Event::Entries(frame) => bytes += frame.text.len(),
            Event::Lag(_) => lagged = true,
            // When what was in the buffers comes all at once, the library lets go and comes back for the folded rest.
            Event::Attached { resumed, .. } if bytes > 0 => lagged = resumed,
            Event::Live(_) if bytes > 0 && !std::mem::replace(&mut is_live, true) => {
                live.fetch_add(1, Ordering::Relaxed);
            }
            Event::Disconnected | Event::Reset(_) => panic!("a slow client is not thrown out"),
            _ => {}
        }
        if let Some(view) = follow.view().filter(|view| is_over(view)) {
            return (view.clone(), bytes, lagged);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_clients_cost_nobody_anything_and_end_with_the_same_state() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), &["serve", "--durability", "crash"]).await;
    let proxy = Proxy::start(node.url.trim_start_matches("http://").to_owned()).await.unwrap();
    proxy.throttle(2_048);
    node.post("/v1/sessions", serde_json::json!({ "session": "s", "agent": "streamer" })).await;
    let slow_url = format!("http://{}", proxy.address());
    let live = Arc::<AtomicUsize>::default();
    let (mut slow, mut fast) = (JoinSet::new(), JoinSet::new());
    (0..SLOW).for_each(|_| drop(slow.spawn(follow(slow_url.clone(), live.clone()))));
    (0..FAST).for_each(|_| drop(fast.spawn(follow(node.url.clone(), live.clone()))));
    node.wait_until("live", async |_: &Node| live.load(Ordering::Relaxed) == SLOW + FAST).await;
    let before = node.resident_kb();
    let _worker = ANSWER.serve(&node, 1);
    node.post("/v1/sessions/s/input", serde_json::json!({ "text": "go" })).await;

    let mut raw_bytes = 0;
    while let Some(ended) =
        tokio::time::timeout(PATIENCE * 2, fast.join_next()).await.expect("the fast ones end")
    {
        let (view, bytes, _) = ended.unwrap();
        assert_eq!(serde_json::to_value(&view).unwrap(), node.get("/v1/sessions/s/state").await);
        raw_bytes = bytes;
    }
    assert!(slow.try_join_next().is_none(), "a slow one has ended already: it was not slow");
    let growth = node.resident_kb().saturating_sub(before);
    assert!(
        growth < GROWTH_MAX_KB,
        "the node has grown by {growth} KB for {SLOW} slow clients of {raw_bytes} bytes each"
    );

    // They have shown what they were for; now let them finish before tomorrow.
    proxy.heal();
    while let Some(ended) = tokio::time::timeout(PATIENCE, slow.join_next()).await.expect("the slow ones end")
    {
        let (view, bytes, lagged) = ended.unwrap();
        assert_eq!(serde_json::to_value(&view).unwrap(), node.get("/v1/sessions/s/state").await);
        assert!(lagged, "it was told, or came back for the rest");
        assert!(bytes < raw_bytes, "{bytes} of {raw_bytes}: it got the log folded");
    }
}

/// Messages of 200 KB: more than all buffers between node and client hold.
const MUCH: usize = 40;

#[tokio::test]
async fn a_follower_over_http_that_takes_nothing_is_let_go() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), &["serve", "--durability", "crash", "--stall-ms", "1000"]).await;
    node.post("/v1/sessions", serde_json::json!({ "session": "s" })).await;
    for _ in 0..MUCH {
        node.input("s", serde_json::json!({ "text": "x".repeat(200_000) })).await;
    }
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let address = node.url.trim_start_matches("http://").parse().unwrap();
    let mut stalled = socket.connect(address).await.unwrap();
    let request = format!(
        "GET /v1/sessions/s/follow HTTP/1.1\r\nhost: 127.0.0.1\r\nauthorization: Bearer {TOKEN}\r\n\r\n"
    );
    stalled.write_all(request.as_bytes()).await.unwrap();
    let followers = async |node: &Node| node.metric("everthread_connections", "sse").await;
    node.wait_until("it follows", async |node| followers(node).await == 1.0).await;
    node.wait_until("it is let go", async |node| followers(node).await == 0.0).await;
    drop(stalled);
}
