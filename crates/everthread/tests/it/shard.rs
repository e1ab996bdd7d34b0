//! A cluster of which one primary is gone with its replica: who has nothing to do with it does not notice.

use crate::follower::{Streamer, is_over};
use crate::node::{Node, PATIENCE, TOKEN};
use everthread_client::{Client, Event, Feed, Follow, From, RawConnection};
use everthread_session::view::RunStatus;
use everthread_testkit::{RedisCluster, RedisOptions};
use serde_json::{Value, json};
use tokio::time::timeout;

/// A primary and its replica.
const GONE: [usize; 2] = [0, 3];
/// Sessions that it has.
const DEAD: [&str; 2] = ["s2", "s3"];
/// Some of each of the others: two that are there before, and two that are made while it is gone.
const LIVE: [&str; 4] = ["s0", "s1", "s4", "s5"];

/// Where the sessions are is no matter of luck, and no index of them is where nobody answers.
async fn is_as_meant(cluster: &RedisCluster) {
    let at = async |tag: &str| {
        let slot = cluster.slot(&format!("et:{{{tag}}}")).await.unwrap();
        cluster.owner(slot).await.unwrap()
    };
    for session in DEAD {
        assert_eq!(at(&format!("default/{session}")).await, GONE[0]);
    }
    for session in LIVE {
        assert_ne!(at(&format!("default/{session}")).await, GONE[0]);
    }
    for index in ["deadlines:0", "sessions:default:0", "agent:default:streamer:0"] {
        assert_ne!(at(index).await, GONE[0]);
    }
}

async fn follow(client: &Client, session: &str) -> Follow {
    client.follow(session.parse().unwrap(), From::Start).await.unwrap()
}

/// Reads on until the log says so; nobody is disconnected or sent back meanwhile.
async fn until(follow: &mut Follow, is_so: impl Fn(&Follow) -> bool) {
    let reading = async {
        while !is_so(follow) {
            let event = follow.next().await.unwrap();
            assert!(!matches!(event, Event::Reset(_) | Event::Disconnected | Event::Gone(_)), "{event:?}");
        }
    };
    timeout(PATIENCE, reading).await.expect("it never came");
}

/// Waits until a feed shows all of these.
async fn until_shown(feed: &mut Feed, sessions: &[&str]) {
    let reading = async {
        loop {
            let shown = feed.next().await.unwrap();
            if sessions.iter().all(|session| shown.iter().any(|one| one.session.as_str() == *session)) {
                return;
            }
        }
    };
    timeout(PATIENCE, reading).await.expect("the feed does not show them");
}

fn has_begun(follow: &Follow) -> bool {
    follow.view().is_some_and(|view| view.runs().first().is_some_and(|run| run.status == RunStatus::Active))
}

fn has_ended(follow: &Follow) -> bool {
    follow.view().is_some_and(is_over)
}

/// Whether it says that this cannot be had now, and may be asked for again.
fn is_refused(answer: &Value) -> bool {
    let error = &answer["error"];
    let is = error["code"] == "unavailable";
    assert!(!is || (error["retryable"] == true && error["no_side_effects"] == true), "{answer}");
    assert!(
        !is || error["message"].as_str().is_some_and(|message| message.contains("try again")),
        "{answer}"
    );
    is
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_one_of_three_primaries_gone_sessions_of_the_others_are_made_written_and_followed() {
    let dir = tempfile::tempdir().unwrap();
    let options = RedisOptions { append_only: true, ..RedisOptions::default() };
    let mut cluster = RedisCluster::start_with(options).await.unwrap();
    is_as_meant(&cluster).await;
    let url = cluster.url();
    let nodes = [
        Node::start(dir.path(), &["serve", "--redis", &url]).await,
        Node::start(dir.path(), &["serve", "--redis", &url]).await,
    ];
    // Seconds of tokens: mostly longer than the others need to find out.
    let _worker = Streamer { tokens: 200, pause_ms: 20, each_alone: false }.serve(&nodes[0], 8);
    let client = Client::builder(&nodes[1].url, TOKEN).connect();
    let mut dead = begun(&nodes[0], &client, DEAD[0]).await;
    let mut live = [begun(&nodes[0], &client, LIVE[0]).await, begun(&nodes[0], &client, LIVE[1]).await];
    for n in 0..3 {
        cluster.replicated(n).await.unwrap();
    }

    let workers = [worker_at(&cluster, true).await, worker_at(&cluster, false).await];

    for n in GONE {
        cluster.server(n).kill9();
    }
    let path = format!("/v1/sessions/{}/entries", DEAD[0]);
    for node in &nodes {
        let event = json!({ "entries": [{ "type": "x-a" }] });
        // A request that was under way has an answer of its own.
        node.wait_until("refused", async |node| is_refused(&node.try_post(&path, event.clone()).await)).await;
        assert!(is_refused(&node.try_post("/v1/sessions", json!({ "session": DEAD[1] })).await));
        assert!(is_refused(&node.get(&format!("/v1/sessions/{}/state", DEAD[0])).await));
        assert!(node.is_ready().await, "most sessions work: {}", node.log());
    }
    // Workers join, also one of which nobody can be told that it lives.
    for worker in &workers {
        joins(&nodes[0], worker).await;
    }
    for follow in &mut live {
        until(follow, has_ended).await;
    }
    for session in &LIVE[2..] {
        let mut made = begun(&nodes[1], &client, session).await;
        until(&mut made, has_ended).await;
        live_state(&nodes, &made, session).await;
    }
    // Who begins to watch now is told of all that can be reached.
    let watcher = Client::builder(&nodes[0].url, TOKEN).connect();
    let mut feed = watcher.watch(20).await.unwrap();
    until_shown(&mut feed, &LIVE).await;
    assert!(nodes[0].is_ready().await && nodes[1].is_ready().await);
    assert!(is_refused(&nodes[0].get(&format!("/v1/sessions/{}/state", DEAD[0])).await));

    for n in GONE {
        cluster.server(n).restart().await.unwrap();
    }
    until_shown(&mut feed, &DEAD[..1]).await;
    until(&mut dead, has_ended).await;
    live_state(&nodes, &dead, DEAD[0]).await;
    let mut late = begun(&nodes[1], &client, DEAD[1]).await;
    until(&mut late, has_ended).await;
}

/// A worker whose liveness is kept by the primary that is about to go, or by another one.
async fn worker_at(cluster: &RedisCluster, is_dead: bool) -> String {
    for n in 0.. {
        let worker = format!("w{n}");
        let slot = cluster.slot(&format!("et:{{worker:default:{worker}}}")).await.unwrap();
        if (cluster.owner(slot).await.unwrap() == GONE[0]) == is_dead {
            return worker;
        }
    }
    unreachable!("there are as many as one likes");
}

async fn joins(node: &Node, worker: &str) {
    let mut socket = RawConnection::open(&node.url, "/v1/worker", Some(TOKEN)).await.unwrap();
    let agents = json!([{ "name": "late", "capacity": 1 }]);
    let hello = json!({ "t": "hello", "id": "h", "worker": worker, "agents": agents, "runs": [] });
    socket.send(hello.to_string()).await.unwrap();
    let answer = timeout(PATIENCE, socket.receive()).await.expect("no answer").unwrap();
    assert!(answer.contains("\"t\":\"welcome\""), "{worker}: {answer:?}");
}

/// Asks for a run in a session of its own, and follows it until it has begun.
async fn begun(node: &Node, client: &Client, session: &str) -> Follow {
    node.ask(session, "streamer", "go").await;
    let mut follow = follow(client, session).await;
    until(&mut follow, has_begun).await;
    follow
}

/// What the follower holds is what both nodes say, and the run was ended by its worker.
async fn live_state(nodes: &[Node], follow: &Follow, session: &str) {
    let view = follow.view().unwrap();
    for node in nodes {
        let state = node.get(&format!("/v1/sessions/{session}/state")).await;
        assert_eq!(serde_json::to_value(view).unwrap(), state);
        let outcome = &state["runs"][0]["outcome"];
        assert_eq!(outcome, "completed", "{state}");
    }
}
