//! Nodes that start while their store is not there, or not all of it.

use crate::node::{Node, PATIENCE, TOKEN};
use everthread_testkit::{RedisCluster, RedisOptions, RedisSentinels, RedisServer};
use serde_json::json;
use std::io::ErrorKind;
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

/// An address that nobody has.
const ANY: &str = "127.0.0.1:0";

fn everthread(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_everthread")).args(args).env_remove("EVERTHREAD_TOKEN").output().unwrap()
}

/// Asks the admin port as health checks of containers do.
fn health(node: &Node, args: &[&str]) -> bool {
    let admin = node.listens_for_admin().to_string();
    let args: Vec<&str> = ["health", "--admin", &admin].iter().chain(args).copied().collect();
    everthread(&args).status.success()
}

async fn on_tcp() -> RedisServer {
    RedisServer::start_with(RedisOptions { tcp: true, ..RedisOptions::default() }).await.unwrap()
}

/// Waits until a node that is not ready says why.
async fn until_it_says(node: &Node, why: &str) {
    let says_so = async |node: &Node| {
        let (status, told) = node.readiness().await;
        assert_eq!(status, 503, "{told}");
        told.contains(why)
    };
    node.wait_until(why, says_so).await;
}

/// Somebody who takes connections and never says a word.
fn mute() -> (TcpListener, String) {
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap().to_string();
    (socket, address)
}

#[tokio::test]
async fn a_node_that_starts_before_its_redis_says_what_to_do_and_is_ready_by_itself_when_that_comes() {
    let dir = tempfile::tempdir().unwrap();
    let mut redis = on_tcp().await;
    let url = redis.tcp_url();
    redis.kill9();
    let (socket, listen) = mute();
    drop(socket);
    let mut node = Node::launch(dir.path(), &listen, &["serve", "--redis", &url]).await;
    until_it_says(&node, "does Redis run there").await;
    assert!(health(&node, &[]) && !health(&node, &["--ready"]), "it is alive, and not ready");
    let log = node.log();
    assert!(log.contains("does Redis run there") && log.contains("doctor"), "{log}");
    let refused = TcpStream::connect(&listen).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "clients go to another node at once");
    redis.restart().await.unwrap();
    node.until_up().await;
    node.post("/v1/sessions", json!({ "session": "s" })).await;
    assert!(node.metrics().await.contains("everthread_draining 0"));
}

#[tokio::test]
async fn a_node_waits_for_a_redis_that_reads_its_data() {
    let dir = tempfile::tempdir().unwrap();
    let mut redis = on_tcp().await;
    let fill = "EVAL \"for n = 1, 5000 do redis.call('SET', n, string.rep('x', 200)) end\" 0";
    redis.command(fill).await.unwrap();
    assert!(redis.command("SAVE").await.unwrap().starts_with("+OK"));
    // A minute and more, in which it answers.
    let slowly = ["--key-load-delay", "20000", "--loading-process-events-interval-bytes", "1024"];
    redis.set_args(slowly.map(str::to_owned).to_vec());
    let url = redis.tcp_url();
    let args = ["serve", "--redis", &url];
    let launching = Node::launch(dir.path(), ANY, &args);
    let (mut node, is_there) = tokio::join!(launching, redis.restart());
    is_there.unwrap_err();
    until_it_says(&node, "it reads its data").await;
    redis.set_args(Vec::new());
    redis.restart().await.unwrap();
    node.until_up().await;
}

#[tokio::test]
async fn a_node_that_still_waits_for_its_store_ends_well_when_it_is_told_to() {
    let dir = tempfile::tempdir().unwrap();
    let (_socket, address) = mute();
    for url in [format!("redis://{address}"), "redis://127.0.0.1:1".to_owned()] {
        let mut node = Node::launch(dir.path(), ANY, &["serve", "--redis", &url]).await;
        let ended = node.terminate();
        assert_eq!(ended.code(), Some(0), "{}", node.log());
    }
}

#[tokio::test]
async fn a_signal_is_heard_before_anything_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let (_socket, address) = mute();
    let url = format!("redis://{address}");
    let binary = Path::new(env!("CARGO_BIN_EXE_everthread"));
    let args = ["serve", "--redis", &url];
    let mut node = Node::spawn(binary, dir.path(), ANY, ANY, &args);
    // From the first line of its log on: the address of the admin port.
    node.wait_until("a line", async |node: &Node| !node.log().is_empty()).await;
    assert_eq!(node.terminate().code(), Some(0), "{}", node.log());
}

#[tokio::test]
async fn what_waiting_does_not_mend_ends_a_node_that_says_what_to_do() {
    let server = on_tcp().await;
    let at = server.tcp_address();
    server.command("ACL SETUSER weak on >secret ~et:* &et:* +@read +hello").await.unwrap();
    server.command("CONFIG SET requirepass secret").await.unwrap();
    for (url, says) in [
        (format!("redis://:wrong@{at}"), "look at user and password"),
        (format!("redis://{at}"), "it wants a name and a password"),
        (format!("redis://weak:secret@{at}"), "deploy/redis/users.conf"),
        (format!("redis://:secret@{at}/99"), "name a database that it has"),
        (format!("redis-cluster://:secret@{at}"), "begins with redis://"),
        (format!("redis-cluster://:wrong@{at},127.0.0.1:1"), "look at user and password"),
    ] {
        let output = everthread(&[
            "serve",
            "--token",
            TOKEN,
            "--listen",
            "127.0.0.1:0",
            "--admin",
            "127.0.0.1:0",
            "--redis",
            &url,
        ]);
        let told = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{url}: {told}");
        assert!(told.contains(says), "{url}: {told}");
        assert!(!told.contains("trying on"), "{url}: at once: {told}");
    }
}

#[test]
fn for_a_first_try_nobody_waits() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let redis = ["--redis", "redis://127.0.0.1:1"];
    let node = ["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--data-dir", data.to_str().unwrap()];
    let args: Vec<&str> = ["dev", "--token", TOKEN].iter().chain(&redis).chain(&node).copied().collect();
    for args in [&args[..], &["doctor", "--redis", "redis://127.0.0.1:1"]] {
        let output = everthread(args);
        let told = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        assert_eq!(output.status.code(), Some(1), "{told}");
        assert!(told.contains("does Redis run there"), "{told}");
    }
}

/// A sentinel that a failover has not reached: it takes the old primary for the primary, and neither hears the others nor is
/// heard.
struct Stale {
    process: Child,
    address: String,
    _dir: tempfile::TempDir,
}

impl Stale {
    async fn start(old: &RedisServer) -> Stale {
        old.command("ACL SETUSER deaf on >deaf +@all ~* resetchannels").await.unwrap();
        let dir = tempfile::tempdir().unwrap();
        let (socket, address) = mute();
        drop(socket);
        let (_, port) = address.split_once(':').unwrap();
        let lines = [
            format!("port {port}"),
            "bind 127.0.0.1".to_owned(),
            format!("sentinel monitor everthread 127.0.0.1 {} 2", old.port()),
            "sentinel auth-user everthread deaf".to_owned(),
            "sentinel auth-pass everthread deaf".to_owned(),
        ];
        let file = dir.path().join("sentinel.conf");
        std::fs::write(&file, lines.join("\n") + "\n").unwrap();
        let process = Command::new("redis-server")
            .arg(&file)
            .arg("--sentinel")
            .current_dir(dir.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        Stale { process, address, _dir: dir }
    }
}

impl Drop for Stale {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_starts_although_one_sentinel_still_names_the_old_primary() {
    let dir = tempfile::tempdir().unwrap();
    let mut redis = RedisSentinels::start().await.unwrap();
    redis.fail_over().await.unwrap();
    redis.failover_from(0).await.unwrap();
    assert_ne!(redis.is_whole().await.unwrap(), 0);
    let stale = Stale::start(redis.server(0)).await;
    let url = redis.url().replacen("redis-sentinel://", &format!("redis-sentinel://{},", stale.address), 1);
    // It is there, and it is stale: else this would show nothing.
    let started = std::time::Instant::now();
    loop {
        let told = String::from_utf8(everthread(&["doctor", "--redis", &url]).stdout).unwrap();
        if told.contains("do not agree") {
            assert!(
                !told.contains("is a replica of"),
                "only who is the primary by the latest word is looked at: {told}"
            );
            break;
        }
        assert!(started.elapsed() < PATIENCE, "{told}");
    }
    let node = Node::start(dir.path(), &["serve", "--redis", &url]).await;
    node.post("/v1/sessions", json!({ "session": "s" })).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_finds_its_cluster_by_the_one_address_that_is_left() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = RedisCluster::start().await.unwrap();
    let gone: Vec<_> = (0..4).map(|_| mute()).collect();
    let gone: Vec<_> = gone.iter().map(|(_, address)| address.as_str()).collect();
    let url = cluster.url();
    let (_, seeds) = url.split_once("://").unwrap();
    let url = format!("redis-cluster://{},{}", gone.join(","), seeds.split(',').next().unwrap());
    let node = Node::start(dir.path(), &["serve", "--redis", &url]).await;
    assert!(!node.log().contains("trying on"), "at the first attempt: {}", node.log());
    node.post("/v1/sessions", json!({ "session": "s" })).await;
}
