//! Two nodes on one Redis that keeps what it has answered, in processes of their own, and workers on both.

use crate::crew::{ACTOR, Hand};
use crate::history::History;
use crate::node::{Node, TOKEN};
use everthread_testkit::{RedisOptions, RedisServer};
use serde_json::{Value, json};
use std::cell::Cell;
use tempfile::TempDir;

/// Set to keep the directory of each cluster.
const KEEP: &str = "EVERTHREAD_KEEP_TEST_DIRS";

pub struct Cluster {
    pub nodes: Vec<Node>,
    pub redis: RedisServer,
    pub dir: TempDir,
    seed: Cell<u64>,
}

impl Cluster {
    /// Starts it; `args` are for the nodes. The seed decides which of them is asked what.
    pub async fn start(seed: u64, args: &[&str]) -> Cluster {
        let redis =
            RedisServer::start_with(RedisOptions { append_only: true, tcp: true, ..RedisOptions::default() })
                .await
                .unwrap();
        let mut dir = tempfile::tempdir().unwrap();
        // For whoever looks into a failure: the logs of all processes, and the diaries.
        dir.disable_cleanup(std::env::var_os(KEEP).is_some());
        let url = redis.url();
        let args: Vec<&str> = ["serve", "--redis", &url].into_iter().chain(args.iter().copied()).collect();
        let nodes = vec![Node::start(dir.path(), &args).await, Node::start(dir.path(), &args).await];
        Cluster { nodes, redis, dir, seed: Cell::new(seed) }
    }

    /// One node or the other: a fixed sequence per seed.
    pub fn any(&self) -> &Node {
        let next =
            self.seed.get().wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.seed.set(next);
        &self.nodes[usize::from(next >> 40 & 1 == 1)]
    }

    /// A worker on each node.
    pub fn hands(&self) -> Vec<Hand> {
        let hand = |(number, node): (usize, &Node)| self.hand(&format!("w{number}"), &node.url);
        self.nodes.iter().enumerate().map(hand).collect()
    }

    pub fn hand(&self, name: &str, url: &str) -> Hand {
        Hand::start(self.dir.path(), name, url)
    }

    /// The store's clock, in milliseconds.
    pub async fn now(&self) -> u64 {
        let answer = self.redis.command("TIME").await.unwrap();
        let numbers: Vec<u64> = answer.lines().filter_map(|line| line.parse().ok()).collect();
        numbers[0] * 1000 + numbers[1] / 1000
    }

    /// Waits until a run has ended, as `node` tells it; how.
    pub async fn ended(&self, node: &Node, session: &str, run: &str) -> String {
        let is_over = async |node: &Node| node.run_status(session, run).await.0 == "ended";
        node.wait_until(&format!("ended {run}"), is_over).await;
        node.run_status(session, run).await.1
    }

    /// Puts one more short input, sees it answered whole, and checks everything that the session's log says.
    pub async fn goes_on(&self, session: &str) -> History {
        let node = self.nodes.iter().find(|node| node.is_alive()).unwrap();
        let run = node.input(session, json!({ "text": "short", "agent": ACTOR })).await["run"].clone();
        let run = run.as_str().unwrap();
        assert_eq!(self.ended(node, session, run).await, "completed", "{session}: the next run is untouched");
        let alive: Vec<&Node> = self.nodes.iter().filter(|node| node.is_alive()).collect();
        let history = History::checked(&alive, session).await;
        assert_eq!(history.text(run), "done");
        history
    }
}

/// A request to cancel a run.
pub fn cancel(id: &str, run: &str) -> Value {
    json!({ "id": id, "kind": "cancel", "target": { "run": run } })
}

/// What a worker's connection is told that says it holds a run, and then writes to it.
pub async fn write_as_a_zombie(node: &Node, session: &str, run: &str, run_token: &str) -> Value {
    use base64::Engine as _;
    let claims = run_token.split('.').nth(1).unwrap();
    let claims = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(claims).unwrap();
    let fence = serde_json::from_slice::<Value>(&claims).unwrap()["fence"].clone();
    let mut socket =
        everthread_socket::RawConnection::open(&node.url, "/v1/worker", Some(TOKEN)).await.unwrap();
    let held = json!([{ "session": session, "run": run, "fence": fence }]);
    let hello = json!({ "t": "hello", "id": "1", "worker": "zombie", "agents": [{ "name": "nobody", "capacity": 1 }], "runs": held });
    let append = json!({ "t": "append", "id": "2", "run": run, "fence": fence,
        "producer": { "incarnation": 1, "batch": 1_000_000 }, "entries": [{ "type": "x-late" }] });
    socket.send(hello.to_string()).await.unwrap();
    socket.send(append.to_string()).await.unwrap();
    loop {
        let frame: Value = serde_json::from_str(&socket.receive().await.unwrap()).unwrap();
        match (frame["t"].as_str().unwrap(), frame["id"].as_str()) {
            ("welcome", _) => assert_eq!(frame["kept"], json!([]), "{frame}"),
            (_, Some("2")) => return frame,
            _ => {}
        }
    }
}
