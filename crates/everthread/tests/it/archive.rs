//! Archived sessions and processes that are killed: a session is in the store or in the archive, whole, at every moment.

use crate::node::{Node, TOKEN};
use everthread_testkit::{RedisOptions, RedisServer};
use futures_util::future::join_all;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Messages of a session whose object does not fit one part of an upload.
const MESSAGES: u64 = 48;
const MESSAGE_BYTES: usize = 180_000;
/// Kills per test. Each comes at another moment.
const KILLS: u32 = 5;

/// Numbers that look random and are the same every time.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 33
    }

    /// Text that hardly gets smaller when it is packed.
    fn text(&mut self) -> String {
        let letter = |n: u64| {
            char::from(
                b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
                    [usize::try_from(n % 64).unwrap()],
            )
        };
        (0..MESSAGE_BYTES).map(|_| letter(self.next())).collect()
    }
}

/// Makes `s`, large, with nothing going on in it; its state.
async fn talk(node: &Node) -> Value {
    let mut random = Random(7);
    node.post("/v1/sessions", json!({ "session": "s", "agent": "nobody" })).await;
    node.post("/v1/sessions/s/hold", json!({})).await;
    for _ in 0..MESSAGES {
        node.post("/v1/sessions/s/input", json!({ "text": random.text() })).await;
    }
    node.get("/v1/sessions/s/state").await
}

async fn archive(node: &Node) -> bool {
    node.post("/v1/sessions/s/archive", json!({})).await["archived"] == true
}

/// Files under a directory.
fn files(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
    let paths = entries.map(|entry| entry.unwrap().path());
    paths.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

/// Those that are whole.
fn objects(dir: &Path) -> usize {
    files(dir).iter().filter(|path| path.extension().is_some_and(|extension| extension == "gz")).count()
}

/// Kills a node while it does what `asked` asks of it, each time after another pause, and checks that another one (or the
/// same, started again) has everything.
async fn killed_while(
    dir: &Path,
    args: &[&str],
    before: impl AsyncFn(&Node),
    asked: (&str, &str),
    // None: the store is in the process.
    witness: Option<&Node>,
) {
    let bucket = dir.join("bucket");
    let mut node = Node::start(dir, args).await;
    let seen = talk(&node).await;
    let mut random = Random(11);
    for kill in 0..KILLS {
        before(&node).await;
        let (method, path) = asked;
        let began = tokio::time::Instant::now();
        let asking = node.ask_anything(method, path);
        tokio::select! {
            // The last time it may come to its end.
            _ = asking => {}
            () = tokio::time::sleep(Duration::from_millis(random.next() % 250)), if kill + 1 < KILLS => {}
        }
        node.kill9();
        eprintln!("killed after {:?}, {} objects", began.elapsed(), objects(&bucket));
        if let Some(witness) = witness {
            assert_eq!(witness.get("/v1/sessions/s/state").await, seen, "kill {kill}");
        }
        node = node.restart(dir, args).await;
        assert_eq!(node.get("/v1/sessions/s/state").await, seen, "kill {kill}");
    }
    // What the kills have left is gone when it is archived the next time, but for the one before; and it goes on.
    assert!(archive(&node).await);
    assert!(objects(&bucket) <= 2);
    let said = node.input("s", json!({ "text": "still here" })).await;
    let view = node.get("/v1/sessions/s/state").await;
    assert_eq!(view["messages"].as_array().unwrap().last().unwrap()["message"], said["message"]);
    assert_eq!(view["seq"], seen["seq"].as_u64().unwrap() + 1);
}

fn url_of(dir: &Path) -> String {
    format!("file://{}", dir.join("bucket").display())
}

async fn nothing(_: &Node) {}

async fn archived(node: &Node) {
    assert!(archive(node).await);
}

#[tokio::test]
async fn an_embedded_node_killed_while_it_archives_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let args = ["serve", "--durability", "crash", "--archive", &url_of(dir.path())];
    killed_while(dir.path(), &args, nothing, ("POST", "/v1/sessions/s/archive"), None).await;
}

#[tokio::test]
async fn an_embedded_node_killed_while_a_session_comes_back_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let args = ["serve", "--durability", "crash", "--archive", &url_of(dir.path())];
    killed_while(dir.path(), &args, archived, ("GET", "/v1/sessions/s/state"), None).await;
}

async fn redis() -> RedisServer {
    RedisServer::start_with(RedisOptions { append_only: true, ..RedisOptions::default() }).await.unwrap()
}

#[tokio::test]
async fn a_node_on_redis_killed_while_it_archives_loses_nothing_and_the_other_has_it() {
    let (dir, redis) = (tempfile::tempdir().unwrap(), redis().await);
    let (url, to) = (redis.url(), url_of(dir.path()));
    let args = ["serve", "--redis", &url, "--archive", &to];
    let witness = Node::start(dir.path(), &args).await;
    killed_while(dir.path(), &args, nothing, ("POST", "/v1/sessions/s/archive"), Some(&witness)).await;
}

#[tokio::test]
async fn a_node_on_redis_killed_while_a_session_comes_back_loses_nothing_and_the_other_brings_it() {
    let (dir, redis) = (tempfile::tempdir().unwrap(), redis().await);
    let (url, to) = (redis.url(), url_of(dir.path()));
    let args = ["serve", "--redis", &url, "--archive", &to];
    let witness = Node::start(dir.path(), &args).await;
    killed_while(dir.path(), &args, archived, ("GET", "/v1/sessions/s/state"), Some(&witness)).await;
}

#[tokio::test]
async fn two_nodes_that_are_asked_at_once_bring_a_session_back_once_and_archive_it_by_themselves() {
    let (dir, redis) = (tempfile::tempdir().unwrap(), redis().await);
    let (url, to) = (redis.url(), url_of(dir.path()));
    let args = ["serve", "--redis", &url, "--archive", &to, "--archive-after", "2s"];
    let nodes = [Node::start(dir.path(), &args).await, Node::start(dir.path(), &args).await];
    let seen = talk(&nodes[0]).await;
    let restored = async || {
        let label = "result=\"restored\"";
        nodes[0].metric("everthread_restores_total", label).await
            + nodes[1].metric("everthread_restores_total", label).await
    };
    for _ in 0..2 {
        let before = restored().await;
        let is_archived = async |node: &Node| node.get("/v1/sessions/s").await["archived"] == true;
        nodes[0].wait_until("archived", is_archived).await;
        // A machine that is slow is told to try again, which a client does.
        let state = async |node: &Node| loop {
            let answer = node.get("/v1/sessions/s/state").await;
            if answer["error"]["retryable"] != true {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        };
        let states = join_all((0..12).map(|n| state(&nodes[n % 2]))).await;
        states.iter().for_each(|state| assert_eq!(*state, seen));
        // Not exactly one more: it may have been archived again under a reader that was slow.
        assert!(restored().await > before);
    }
    assert!(objects(&dir.path().join("bucket")) <= 2);
}

#[test]
fn check_config_tries_the_archive() {
    let dir = tempfile::tempdir().unwrap();
    let check = |url: &str, after: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_everthread"));
        command.args(["check-config", "--token", TOKEN, "--archive", url, "--archive-after", after]);
        let output = command.output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8(text).unwrap())
    };
    let good = check(&url_of(dir.path()), "36h");
    assert!(good.0 && good.1.contains("archive file://"), "{}", good.1);
    assert!(files(dir.path()).is_empty(), "nothing is left");
    for (url, after, says) in [
        ("file:///dev/null/x", "1d", "--archive"),
        ("nonsense", "1d", "--archive"),
        ("ftp://x/y", "1d", "--archive"),
        ("memory:///", "1d", "--archive"),
        (&url_of(dir.path()), "10ms", "--archive-after"),
        (&url_of(dir.path()), "soon", "--archive-after"),
    ] {
        let (is_good, told) = check(url, after);
        assert!(!is_good && told.contains(says), "{url} {after}: {told}");
    }
}
