//! Who may do what, and who is trusted: ACL users, TLS, and what the look at a server says of it.

use super::*;
use everthread_store::redis::{Finding, Level, examine};
use everthread_testkit::{RedisCluster, RedisSentinels};
use std::path::PathBuf;

/// The rules that operators are given.
const USERS: &str = include_str!("../../../../../deploy/redis/users.conf");

/// Arguments for a server that has one of the users of `users.conf`, with a password, and no default user.
fn with_users(change: impl Fn(&str) -> String) -> Vec<String> {
    let line = USERS.lines().find(|line| line.starts_with("user everthread ")).unwrap();
    let line = change(&line.replace("replace-this-password", "secret"));
    let rules = line.strip_prefix("user ").unwrap().split(' ');
    ["--user"].into_iter().chain(rules).map(str::to_owned).collect()
}

/// What is not good, by what it is about.
fn bad(findings: &[Finding], level: Level) -> Vec<&'static str> {
    findings.iter().filter(|finding| finding.level == level).map(|finding| finding.about).collect()
}

fn told<'a>(findings: &'a [Finding], about: &str) -> &'a str {
    let finding = findings.iter().find(|finding| finding.about == about);
    &finding.unwrap_or_else(|| panic!("nothing about {about}: {findings:?}")).told
}

fn options(url: &str) -> Options {
    Options::new(url, "et", "n1".parse().unwrap())
}

/// A server with the users of operators, a store on it as the user for nodes, and its address.
async fn restricted() -> (Redis, (Stop, RedisServer)) {
    let args = with_users(str::to_owned);
    let server =
        RedisServer::start_with(RedisOptions { tcp: true, args, ..RedisOptions::default() }).await.unwrap();
    let url = format!("redis://everthread:secret@{}", server.tcp_address());
    let (store, stop) = connect(&url).await;
    (store, (stop, server))
}

/// All that the store does is allowed by the rules that operators are given.
mod conformance {
    crate::suite::conformance!(super::restricted);
}

#[tokio::test]
async fn a_permission_that_is_missing_is_named_before_it_is_missed() {
    let args = with_users(|line| format!("{line} -xautoclaim -ssubscribe"));
    let server =
        RedisServer::start_with(RedisOptions { tcp: true, args, ..RedisOptions::default() }).await.unwrap();
    let url = format!("redis://everthread:secret@{}", server.tcp_address());
    let stop = CancellationToken::new();
    let failed = Redis::connect(options(&url), &TaskTracker::new(), &stop).await.unwrap_err().to_string();
    stop.cancel();
    assert!(failed.contains("XAUTOCLAIM") && failed.contains("SSUBSCRIBE"), "{failed}");
    assert!(!failed.contains("XADD") && failed.contains("users.conf"), "{failed}");
    // Another prefix than that of the rules: no key and no channel is ours.
    let findings = examine(&Options { prefix: "other".into(), ..options(&url) }).await;
    let told = told(&findings, "permissions");
    assert!(told.contains("HSET") && told.contains("SPUBLISH") && told.contains("SSUBSCRIBE"), "{told}");
    // Nothing of it was executed.
    assert_eq!(server.command("DBSIZE").await.unwrap(), ":0\r\n");
}

#[tokio::test]
async fn a_wrong_password_and_a_user_that_is_none_are_said_to_be_so() {
    let args = with_users(str::to_owned);
    let server =
        RedisServer::start_with(RedisOptions { tcp: true, args, ..RedisOptions::default() }).await.unwrap();
    for who in ["everthread:wrong", "nobody:secret"] {
        let findings = examine(&options(&format!("redis://{who}@{}", server.tcp_address()))).await;
        assert_eq!(bad(&findings, Level::Fault), ["login"]);
        assert!(findings[0].is_lasting());
        let told = told(&findings, "login");
        assert!(told.to_lowercase().contains("password") || told.contains("uthentication"), "{told}");
        assert!(told.contains("look at user and password"), "{told}");
    }
    // Nobody is there; and somebody is who speaks something else.
    let nobody = examine(&options("redis://127.0.0.1:1")).await;
    assert!(told(&nobody, "connection").contains("does Redis run there") && !nobody[0].is_lasting());
    let cluster = format!("redis-cluster://everthread:secret@{}", server.tcp_address());
    let findings = examine(&options(&cluster)).await;
    let why = &findings.last().unwrap().told;
    assert!(why.contains("begins with redis://") && findings.last().unwrap().is_lasting(), "{findings:?}");
}

#[tokio::test]
async fn a_user_who_may_hardly_anything_is_told_all_that_is_missing_and_each_reason_once() {
    let args =
        ["--user", "weak", "on", ">secret", "~et:*", "&et:*", "+@read", "+ping", "+info", "+hello", "+multi"];
    let args = args.map(str::to_owned).to_vec();
    let server =
        RedisServer::start_with(RedisOptions { tcp: true, args, ..RedisOptions::default() }).await.unwrap();
    let url = format!("redis://weak:secret@{}", server.tcp_address());
    let findings = examine(&options(&url)).await;
    let told = told(&findings, "permissions");
    assert!(told.contains("HSET") && told.contains("EVALSHA") && told.contains("TIME"), "{told}");
    assert_eq!(told.matches("no right to the command").count(), 1, "{told}");
    let stop = CancellationToken::new();
    let failed = Redis::connect(options(&url), &TaskTracker::new(), &stop).await.unwrap_err().to_string();
    stop.cancel();
    assert!(failed.contains("SCRIPT LOAD") && failed.contains("users.conf"), "{failed}");
}

#[tokio::test]
async fn a_server_that_would_lose_sessions_is_refused_and_what_may_hurt_is_said() {
    let server = RedisServer::start().await.unwrap();
    let findings = examine(&options(&server.url())).await;
    assert_eq!(bad(&findings, Level::Fault), [""; 0], "{findings:?}");
    // It keeps nothing on disk, may grow without limit, and has the buffers that Redis comes with.
    assert_eq!(bad(&findings, Level::Warning), ["memory", "persistence", "feed"], "{findings:?}");
    server.command("CONFIG SET maxmemory 100mb maxmemory-policy allkeys-lru").await.unwrap();
    let stop = CancellationToken::new();
    let failed =
        Redis::connect(options(&server.url()), &TaskTracker::new(), &stop).await.unwrap_err().to_string();
    stop.cancel();
    assert!(failed.contains("allkeys-lru") && failed.contains("noeviction"), "{failed}");
    let limits = "pubsub 134217728 33554432 30";
    server
        .command(&format!("CONFIG SET maxmemory-policy noeviction client-output-buffer-limit \"{limits}\""))
        .await
        .unwrap();
    server.command("CONFIG SET appendonly yes").await.unwrap();
    let findings = examine(&options(&server.url())).await;
    assert!(findings.iter().all(|finding| finding.level == Level::Good), "{findings:?}");
    assert!(told(&findings, "version").starts_with("7.") || !told(&findings, "version").is_empty());
}

#[tokio::test]
async fn an_address_that_leads_to_a_replica_or_into_a_cluster_is_refused_with_the_right_one() {
    let _alone = sentinel::ALONE.lock().await;
    let mut redis = RedisSentinels::start().await.unwrap();
    let findings = examine(&options(&redis.url())).await;
    assert_eq!(bad(&findings, Level::Fault), [""; 0], "{findings:?}");
    assert_eq!(findings.iter().filter(|finding| finding.about == "sentinel").count(), 3);
    assert!(told(&findings, "replicas").contains("2 follow"));
    let primary = redis.server(0).tcp_address();
    let findings = examine(&options(&redis.server(1).tcp_url())).await;
    assert!(told(&findings, "role").contains(&primary), "{findings:?}");
    assert_eq!(bad(&findings, Level::Fault), ["role"]);
    redis.kill_sentinel(2);
    let findings = examine(&options(&redis.url())).await;
    assert_eq!(bad(&findings, Level::Fault), [""; 0], "two are enough: {findings:?}");
    assert!(bad(&findings, Level::Warning).contains(&"sentinel"));
    drop(redis);

    let mut cluster = RedisCluster::start().await.unwrap();
    let findings = examine(&options(&cluster.url())).await;
    assert_eq!(bad(&findings, Level::Fault), [""; 0], "{findings:?}");
    assert_eq!(findings.iter().filter(|finding| finding.about == "version").count(), 3, "each primary");
    assert_eq!(told(&findings, "cluster"), "3 primaries serve 16384 slots");
    let one = cluster.server(0).tcp_url();
    let stop = CancellationToken::new();
    let failed = Redis::connect(options(&one), &TaskTracker::new(), &stop).await.unwrap_err().to_string();
    stop.cancel();
    assert!(failed.contains("redis-cluster://"), "{failed}");
}

fn file(name: &str) -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/it/redis/tls").join(name);
    path.to_str().unwrap().to_owned()
}

/// A server that speaks TLS on its port, and wants a certificate of ours if `mutual`.
async fn tls_server(mutual: bool) -> RedisServer {
    let mut args: Vec<String> =
        ["--tls-cert-file", &file("server.pem"), "--tls-key-file", &file("server.key")]
            .into_iter()
            .chain([
                "--tls-ca-cert-file",
                &file("ca.pem"),
                "--tls-auth-clients",
                if mutual { "yes" } else { "no" },
            ])
            .map(str::to_owned)
            .collect();
    args.extend(["--tls-port", "PORT", "--port", "0"].map(str::to_owned));
    RedisServer::start_with(RedisOptions { tcp: true, args, ..RedisOptions::default() }).await.unwrap()
}

#[tokio::test]
async fn tls_works_with_a_known_authority_and_with_nobody_else() {
    let server = tls_server(false).await;
    let url = format!("rediss://{}", server.tcp_address());
    let (store, _stop) = connect(&format!("{url}?ca={}", file("ca.pem"))).await;
    let (key, _) = created(&store).await;
    let (ear, mut heard) = ear();
    let _following = store.follow(&key, Interest::Log, ear);
    doubt(&mut heard).await;
    store.write(&key, one()).await.unwrap();
    assert!(matches!(next(&mut heard).await, Heard::Record(_)));
    // By another name that stands in the certificate, and by one that does not.
    let by_name = |name: &str| format!("{url}?ca={}&name={name}", file("ca.pem"));
    connect(&by_name("redis.test")).await;
    for (wrong, about, why) in [
        (by_name("elsewhere.test"), "connection", "not valid for name"),
        (format!("{url}?ca={}", file("stranger.pem")), "connection", "nknown"),
        (url.clone(), "connection", "nknown"),
        (format!("{url}?ca=/nonexistent"), "address", "/nonexistent"),
        (format!("redis://{}", server.tcp_address()), "connection", "onnection"),
    ] {
        let findings = examine(&options(&wrong)).await;
        let told = told(&findings, about);
        assert!(told.contains(why), "{wrong}: {told}");
    }
}

#[tokio::test]
async fn a_server_that_wants_to_know_who_we_are_gets_our_certificate() {
    let server = tls_server(true).await;
    let url = format!("rediss://{}?ca={}", server.tcp_address(), file("ca.pem"));
    let findings = examine(&options(&url)).await;
    assert_eq!(bad(&findings, Level::Fault), ["connection"], "{findings:?}");
    let (store, _stop) =
        connect(&format!("{url}&cert={}&key={}", file("client.pem"), file("client.key"))).await;
    created(&store).await;
    let swapped = format!("{url}&cert={}&key={}", file("client.key"), file("client.pem"));
    let findings = examine(&options(&swapped)).await;
    assert!(told(&findings, "address").contains("client.pem is no PEM of a key"), "{findings:?}");
}
