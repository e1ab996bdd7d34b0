//! Starting, stopping, and being told what is wrong.

use crate::node::{Node, TOKEN};
use everthread_testkit::RedisServer;
use std::process::{Command, Output};

fn everthread(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_everthread")).args(args).env_remove("EVERTHREAD_TOKEN").output().unwrap()
}

fn refusal(args: &[&str]) -> String {
    let output = everthread(args);
    assert!(!output.status.success(), "{args:?}");
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn a_configuration_that_cannot_work_is_refused_with_what_to_do() {
    for (args, says) in [
        (&["check-config"][..], "EVERTHREAD_TOKEN"),
        (&["check-config", "--token", "a b"], "--token"),
        (&["check-config", "--token", TOKEN, "--lease-ms", "1000"], "--lease-ms"),
        (&["check-config", "--token", TOKEN, "--return-grace-ms", "9000"], "--return-grace-ms"),
        (&["check-config", "--token", "short", "--listen", "0.0.0.0:7400"], "too short"),
        (&["check-config", "--token", TOKEN, "--log", "everthread=loud"], "--log"),
        (&["check-config", "--token", TOKEN, "--retention", "ttl=9w"], "--retention"),
        (&["check-config", "--token", TOKEN, "--fold-keep", "9999"], "--fold-keep"),
        (&["check-config", "--token", TOKEN, "--redis", "redis-sentinel://one,two"], "name of the primary"),
        (&["check-config", "--token", TOKEN, "--redis", "redis://h", "--redis-prefix", "a:b"], "prefix"),
        (
            &["check-config", "--token", TOKEN, "--redis", "rediss://h?ca=/nonexistent/ca.pem"],
            "/nonexistent/ca.pem",
        ),
        (&["check-config", "--token", TOKEN, "--presence-ttl-ms", "10"], "--presence-ttl-ms"),
        (&["check-config", "--token", TOKEN, "--node", "a:b"], "--node"),
        (&["check-config", "--token", TOKEN, "--otlp", "h:4317"], "--otlp"),
        (&["check-config", "--token", TOKEN, "--archive", "memory:///"], "--archive"),
        (&["dev", "--listen", "0.0.0.0:0"], "--token"),
    ] {
        let told = refusal(args);
        assert!(told.contains(says), "{args:?}: {told}");
        // Whoever starts it in spite of that is told the same, before anything is opened.
        if let ["check-config", args @ ..] = args {
            let dir = tempfile::tempdir().unwrap();
            let data = dir.path().join("data");
            let rest = ["--admin", "127.0.0.1:0", "--data-dir", data.to_str().unwrap()];
            let args: Vec<&str> = ["serve"].iter().chain(args).chain(&rest).copied().collect();
            let told = refusal(&args);
            assert!(told.contains(says) && !data.exists(), "{args:?}: {told}");
        }
    }
    let good = everthread(&["check-config", "--token", TOKEN, "--redis", "redis://user:secret@host:1"]);
    let told = String::from_utf8(good.stdout).unwrap();
    assert!(good.status.success() && told.contains("good"), "{told}");
    assert!(!told.contains("secret"), "a password is not printed: {told}");
}

#[tokio::test]
async fn the_doctor_tells_warnings_from_errors_and_a_node_does_not_start_on_an_error() {
    let server = RedisServer::start().await.unwrap();
    let url = server.url();
    let it_works = everthread(&["doctor", "--redis", &url]);
    let told = String::from_utf8(it_works.stdout).unwrap();
    assert!(it_works.status.success(), "warnings are no errors: {told}");
    let line = |told: &str, about: &str| {
        let is_it = |line: &&str| line.split_whitespace().any(|word| word == about);
        told.lines().find(is_it).unwrap_or_else(|| panic!("nothing about {about}: {told}")).to_owned()
    };
    assert!(line(&told, "persistence").starts_with("warning"), "{told}");
    for about in ["version", "permissions", "eviction", "clock"] {
        assert!(line(&told, about).starts_with("ok"), "{told}");
    }
    server.command("CONFIG SET maxmemory 100mb maxmemory-policy allkeys-lru").await.unwrap();
    let ill = everthread(&["doctor", "--redis", &url]);
    let told = String::from_utf8(ill.stdout).unwrap();
    assert_eq!(ill.status.code(), Some(1));
    assert!(line(&told, "eviction").starts_with("error"), "{told}");
    let serve =
        ["serve", "--token", TOKEN, "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--redis", &url];
    let told = refusal(&serve);
    assert!(told.contains("noeviction"), "what to do: {told}");
    server.command("CONFIG SET maxmemory-policy noeviction").await.unwrap();
    for flag in ["--ack", "--ack-decisions"] {
        let serve: Vec<&str> = serve.into_iter().chain([flag, "replicated"]).collect();
        let told = refusal(&serve);
        assert!(told.contains(flag) && told.contains("has no replica"), "{told}");
    }
    drop(server);
    let told = String::from_utf8(everthread(&["doctor", "--redis", &url]).stdout).unwrap();
    assert!(told.contains("cannot connect"), "{told}");
}

#[tokio::test]
async fn a_data_directory_serves_one_process_and_the_second_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let _node = Node::start(dir.path(), &["serve"]).await;
    let data = dir.path().join("data");
    let told = refusal(&[
        "serve",
        "--token",
        TOKEN,
        "--listen",
        "127.0.0.1:0",
        "--admin",
        "127.0.0.1:0",
        "--data-dir",
        data.to_str().unwrap(),
    ]);
    assert!(told.contains("in use"), "{told}");
}

#[tokio::test]
async fn an_address_in_use_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), &["serve"]).await;
    let address = node.url.trim_start_matches("http://");
    let other = dir.path().join("other");
    let told = refusal(&[
        "serve",
        "--token",
        TOKEN,
        "--listen",
        address,
        "--admin",
        "127.0.0.1:0",
        "--data-dir",
        other.to_str().unwrap(),
    ]);
    assert!(told.contains(address), "{told}");
}

#[tokio::test]
async fn a_node_that_is_told_to_stop_ends_well_and_keeps_everything() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = Node::start(dir.path(), &["dev"]).await;
    let run = node.ask("s", "guide", "hello").await;
    node.wait_until("writing", async |node: &Node| node.entries("s").await.len() > 20).await;
    let before = node.entries("s").await;
    assert!(node.terminate().success(), "{}", node.log());
    let node = node.restart(dir.path(), &["dev"]).await;
    let after = node.entries("s").await;
    assert_eq!(after[..before.len()], before);
    node.wait_until("ended", async |node: &Node| node.run_status("s", &run).await.0 == "ended").await;
}

#[tokio::test]
async fn the_development_token_is_made_once_and_stays() {
    let dir = tempfile::tempdir().unwrap();
    let token = || std::fs::read_to_string(dir.path().join("data/token")).unwrap();
    let start = || {
        let mut process = Command::new(env!("CARGO_BIN_EXE_everthread"))
            .args(["dev", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--data-dir"])
            .arg(dir.path().join("data"))
            .env_remove("EVERTHREAD_TOKEN")
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let path = dir.path().join("data/token");
        let started = std::time::Instant::now();
        while std::fs::read_to_string(&path).unwrap_or_default().is_empty() {
            assert!(started.elapsed() < crate::node::PATIENCE);
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        process.kill().unwrap();
        process.wait().unwrap();
    };
    start();
    let first = token();
    start();
    assert_eq!(token(), first);
}

#[tokio::test]
async fn health_answers_by_its_exit_status() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), &["serve"]).await;
    let admin = node.admin.trim_start_matches("http://").to_owned();
    for args in [&["health", "--admin", &admin][..], &["health", "--ready", "--admin", &admin]] {
        assert!(everthread(args).status.success(), "{args:?}");
    }
    // The port for clients has no such route.
    let public = node.url.trim_start_matches("http://").to_owned();
    assert!(refusal(&["health", "--admin", &public]).contains("/livez"));
    drop(node);
    assert!(refusal(&["health", "--admin", &admin]).contains("/livez"));
}

#[tokio::test]
async fn demo_agents_of_their_own_process_answer() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = Node::start(dir.path(), &["serve"]).await;
    let mut worker = Command::new(env!("CARGO_BIN_EXE_everthread"))
        .args(["worker", "demo", "--url", &node.url.replacen("http", "ws", 1), "--token", TOKEN])
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let run = node.ask("s", "guide", "hello").await;
    node.wait_until("ended", async |node: &Node| node.run_status("s", &run).await.0 == "ended").await;
    worker.kill().unwrap();
    worker.wait().unwrap();
    assert!(node.terminate().success(), "{}", node.log());
}
