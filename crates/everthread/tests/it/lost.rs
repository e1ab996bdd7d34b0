//! Messages of the live feed that get lost while the feed lives: nobody is told, and everybody finds out in time.

use crate::node::{Node, PATIENCE, TOKEN};
use everthread_client::{Client, Event, Follow, From};
use everthread_testkit::{Proxy, RedisOptions, RedisServer};
use serde_json::json;
use std::time::{Duration, Instant};

/// What is promised where a run is active, and where none is.
const ACTIVE: Duration = Duration::from_secs(2);
const IDLE: Duration = Duration::from_secs(20);
/// A busy machine may be late once; most of these must be in time.
const TRIES: usize = 5;
/// In the channel of the session, and in no answer to a command.
const CHANNEL: &str = "}:log";

/// A node that hears its Redis through a proxy, another that does not, and a follower at the first.
struct World {
    proxy: Proxy,
    deaf: Node,
    other: Node,
    follow: Follow,
    _redis: RedisServer,
    _dir: tempfile::TempDir,
}

impl World {
    async fn start() -> World {
        let options = RedisOptions { tcp: true, ..RedisOptions::default() };
        let (redis, dir) = (RedisServer::start_with(options).await.unwrap(), tempfile::tempdir().unwrap());
        let proxy = Proxy::start(redis.tcp_address()).await.unwrap();
        let (far, near) = (format!("redis://{}", proxy.address()), redis.url());
        let deaf = Node::start(dir.path(), &["serve", "--redis", &far]).await;
        let other = Node::start(dir.path(), &["serve", "--redis", &near]).await;
        other.post("/v1/sessions", json!({ "session": "s" })).await;
        let client = Client::builder(&deaf.url, TOKEN).connect();
        let follow = client.follow("s".parse().unwrap(), From::Start).await.unwrap();
        let mut world = World { proxy, deaf, other, follow, _redis: redis, _dir: dir };
        world.until(|event| matches!(event, Event::Live(_))).await;
        world
    }

    async fn until(&mut self, is_it: impl Fn(&Event) -> bool) {
        let waits = async {
            loop {
                let event = self.follow.next().await.unwrap();
                assert!(!matches!(event, Event::Disconnected | Event::Reset(_)), "{event:?}");
                if is_it(&event) {
                    return;
                }
            }
        };
        tokio::time::timeout(PATIENCE, waits).await.expect("it never came");
    }

    /// Writes something through the other node; how long from then on the follower does without it.
    async fn write(&mut self, number: usize) -> Duration {
        let name = format!("told-{number}");
        let entries = json!({ "entries": [{ "type": "event", "name": name }] });
        let began = Instant::now();
        self.other.post("/v1/sessions/s/entries", entries).await;
        self.until(|event| matches!(event, Event::Entries(frame) if frame.text.contains(&name))).await;
        began.elapsed()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_last_message_is_noticed_within_two_seconds_where_a_run_is_active() {
    let mut world = World::start().await;
    // Nobody serves the agent: the run is open, and nothing else is ever written.
    world.other.input("s", json!({ "text": "go", "agent": "nobody" })).await;
    world.until(|event| matches!(event, Event::Entries(_))).await;
    let mut took = Vec::new();
    for number in 0..TRIES {
        // The feed works: what comes is heard of at once, and then the silence begins.
        world.write(100 + number).await;
        world.proxy.swallow(Some(CHANNEL));
        took.push(world.write(number).await);
        world.proxy.swallow(None);
        assert!(world.deaf.is_ready().await, "the feed lives: {}", world.deaf.log());
    }
    took.sort();
    println!("noticed after {took:?}");
    assert!(took[TRIES / 2] <= ACTIVE, "{took:?}");
    assert!(took[0] > Duration::from_millis(300), "nothing was lost: {took:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_last_message_is_noticed_within_twenty_seconds_in_any_session() {
    let mut world = World::start().await;
    world.proxy.swallow(Some(CHANNEL));
    let took = world.write(1).await;
    println!("noticed after {took:?}");
    assert!(took <= IDLE, "{took:?}");
    assert!(took > Duration::from_secs(3), "nothing was lost: {took:?}");
    assert!(world.deaf.is_ready().await, "the feed lives: {}", world.deaf.log());
}

/// From its last probe that came back to red.
const STALE: f64 = 3.0;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_whose_probe_is_stale_is_not_ready_until_one_comes_back() {
    let world = World::start().await;
    let age = async |node: &Node| node.metric("everthread_probe_age_seconds", "").await;
    assert!(age(&world.deaf).await < STALE, "it is ready");
    // The probes' own messages get lost, and nothing else.
    world.proxy.swallow(Some("}:probe"));
    world.deaf.wait_until("red", async |node: &Node| !node.is_ready().await).await;
    assert!(world.other.is_ready().await);
    world.deaf.wait_until("stale", async |node: &Node| age(node).await > STALE).await;
    assert!(!world.deaf.is_ready().await, "a stale probe and ready");
    world.proxy.swallow(None);
    world.deaf.wait_until("green", async |node: &Node| node.is_ready().await).await;
    assert!(age(&world.deaf).await < STALE);
}
