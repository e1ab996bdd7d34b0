//! What a Redis of release 8 does otherwise than the one of distributions: it says what is on its disk.

use super::*;
use everthread_protocol::Level;
use everthread_store::redis::{Level as Found, examine};
use everthread_testkit::newer_redis;
use futures_util::future::join_all;

/// A server of the newer release that keeps a file, synced as told.
async fn keeping(sync: &str, more: &[&str]) -> RedisServer {
    let args = ["--appendfsync", sync].iter().chain(more).map(|arg| (*arg).to_owned()).collect();
    let program = Some(newer_redis().unwrap());
    let options = RedisOptions { append_only: true, tcp: true, args, program, ..RedisOptions::default() };
    RedisServer::start_with(options).await.unwrap()
}

async fn replica_of(primary: &RedisServer) -> RedisServer {
    let args = ["--replicaof", "127.0.0.1", &primary.port().to_string()].map(str::to_owned).into();
    let program = Some(newer_redis().unwrap());
    RedisServer::start_with(RedisOptions { tcp: true, args, program, ..RedisOptions::default() })
        .await
        .unwrap()
}

/// A server whose disk says nothing any more. What it was set to when the store looked is believed for a while.
async fn left_to_the_system(server: &RedisServer) {
    assert_eq!(server.command("CONFIG SET appendfsync no").await.unwrap(), "+OK\r\n");
}

/// How often it was asked what its disk has.
async fn asked(server: &RedisServer) -> u64 {
    let told = server.command("INFO commandstats").await.unwrap();
    let calls = told.lines().find_map(|line| line.strip_prefix("cmdstat_waitaof:calls="));
    calls.and_then(|rest| rest.split(',').next()?.parse().ok()).unwrap_or(0)
}

async fn fresh_newer() -> (Redis, (Stop, RedisServer)) {
    let server = keeping("everysec", &[]).await;
    let (store, stop) = connect(&server.url()).await;
    (store, (stop, server))
}

/// All that the store does is the same there.
mod conformance {
    crate::suite::conformance!(super::fresh_newer);
}

#[tokio::test]
async fn a_server_that_syncs_once_a_second_is_asked_and_many_wait_for_one_answer() {
    let server = keeping("everysec", &[]).await;
    let (store, _stop) = connect(&server.url()).await;
    assert!(store.offers(Level::Fsynced) && !store.offers(Level::Replicated));
    let keys: Vec<SessionKey> = join_all((0..100).map(|_| async { created(&store).await.0 })).await;
    let before = asked(&server).await;
    let all = keys.iter().map(|key| async {
        let written = store.write(key, one()).await.unwrap();
        store.confirm(key, &written, Level::Fsynced).await.unwrap();
    });
    join_all(all).await;
    let asked = asked(&server).await - before;
    assert!((1..=30).contains(&asked), "{asked} times for 100 writes");
}

#[tokio::test]
async fn what_is_not_on_the_disk_is_not_called_so_until_it_is() {
    let server = keeping("everysec", &[]).await;
    let (store, _stop) = connect(&server.url()).await;
    let (key, first) = created(&store).await;
    store.confirm(&key, &first, Level::Fsynced).await.unwrap();
    left_to_the_system(&server).await;
    let written = store.write(&key, one()).await.unwrap();
    let failed = store.confirm(&key, &written, Level::Fsynced).await.unwrap_err();
    let Error::Indeterminate(why) = &failed else { panic!("{failed:?}") };
    assert!(why.contains("not on the disk"), "{why}");
    assert_eq!(server.command("CONFIG SET appendfsync everysec").await.unwrap(), "+OK\r\n");
    until(async || store.confirm(&key, &written, Level::Fsynced).await.ok()).await;
}

#[tokio::test]
async fn nobody_else_waits_for_the_disk() {
    let server = keeping("everysec", &[]).await;
    let _replica = replica_of(&server).await;
    let (store, _stop) = connect(&server.tcp_url()).await;
    let (key, first) = created(&store).await;
    until(async || store.confirm(&key, &first, Level::Replicated).await.ok()).await;
    left_to_the_system(&server).await;
    let written = store.write(&key, one()).await.unwrap();
    let mut synced = std::pin::pin!(store.confirm(&key, &written, Level::Fsynced));
    let replicated = async {
        // The other one waits by now.
        until(async || {
            let told = server.command("INFO clients").await.unwrap();
            told.contains("blocked_clients:1").then_some(())
        })
        .await;
        store.confirm(&key, &written, Level::Replicated).await
    };
    tokio::select! {
        biased;
        done = &mut synced => panic!("the disk came first: {done:?}"),
        done = replicated => done.unwrap(),
    }
    synced.await.unwrap_err();
}

#[tokio::test]
async fn a_replica_that_hangs_keeps_a_write_from_being_synced_as_much_as_from_being_replicated() {
    let server = keeping("everysec", &[]).await;
    let replica = replica_of(&server).await;
    let (store, _stop) = connect(&server.tcp_url()).await;
    let (key, first) = created(&store).await;
    until(async || store.confirm(&key, &first, Level::Replicated).await.ok()).await;
    until(async || store.confirm(&key, &first, Level::Fsynced).await.ok()).await;
    replica.stop().unwrap();
    let written = store.write(&key, one()).await.unwrap();
    let failed = store.confirm(&key, &written, Level::Fsynced).await.unwrap_err();
    assert!(failed.to_string().contains("0 of 1 replicas"), "{failed}");
    replica.cont().unwrap();
    until(async || store.confirm(&key, &written, Level::Fsynced).await.ok()).await;
}

#[tokio::test]
async fn a_look_at_the_server_says_whether_writes_can_be_synced_and_a_node_agrees() {
    let user = "everthread on >secret ~et:* &et:* +@all -config";
    let cases = [
        (keeping("everysec", &[]).await, "to be had: WAITAOF", true),
        (keeping("no", &[]).await, "not to be had: appendfsync is no", false),
        (keeping("everysec", &["--appendonly", "no"]).await, "not to be had: appendonly is no", false),
    ];
    for (server, expected, is_offered) in &cases {
        let options = Options::new(server.url(), "et", "n1".parse().unwrap());
        let findings = examine(&options).await;
        let found = findings.iter().find(|finding| finding.about == "fsynced").unwrap();
        assert_eq!((found.told.as_str(), found.level), (*expected, Found::Good));
        let version = findings.iter().find(|finding| finding.about == "version").unwrap();
        assert!(version.told.starts_with("8."), "{version}");
        assert!(findings.iter().all(|finding| finding.level < Found::Fault), "{findings:?}");
        let (store, _stop) = connect_with(options).await;
        assert_eq!(store.offers(Level::Fsynced), *is_offered, "{expected}");
    }
    for (rules, expected, is_offered) in [
        ("-waitaof", "not to be had: give the user +waitaof", false),
        ("+waitaof", "to be had: WAITAOF", true),
    ] {
        let user: Vec<&str> = ["--user"].into_iter().chain(user.split(' ')).chain([rules]).collect();
        let server = keeping("everysec", &user).await;
        let url = format!("redis://everthread:secret@{}", server.tcp_address());
        let options = Options::new(url, "et", "n1".parse().unwrap());
        let findings = examine(&options).await;
        let found = findings.iter().find(|finding| finding.about == "fsynced").unwrap();
        assert!(found.told.starts_with(expected), "{found}");
        let (store, _stop) = connect_with(options).await;
        assert_eq!(store.offers(Level::Fsynced), is_offered, "{rules}");
    }
}
