//! How sure writes are: with replicas that follow, that freeze, that are cut off, and with none.

use super::sentinel::ALONE;
use super::*;
use everthread_protocol::{Fence, Level};
use everthread_store::{Keeping, Written};
use everthread_testkit::RedisSentinels;
use futures_util::future::join_all;

/// Long for a replica that follows to say so, and short enough to wait for one that does not.
const PATIENT: Duration = GIVEN_UP;

/// A primary with a replica that follows it through a proxy.
async fn followed() -> (RedisServer, RedisServer, Proxy) {
    let options = RedisOptions { tcp: true, ..RedisOptions::default() };
    let primary = RedisServer::start_with(options.clone()).await.unwrap();
    let proxy = Proxy::start(primary.tcp_address()).await.unwrap();
    let mut replica = options;
    let port = proxy.address().port().to_string();
    replica.args.extend(["--replicaof", "127.0.0.1", &port].map(str::to_owned));
    let replica = RedisServer::start_with(replica).await.unwrap();
    let follows = async || {
        let told = primary.command("INFO replication").await.unwrap();
        told.contains("state=online").then_some(())
    };
    until(follows).await;
    (primary, replica, proxy)
}

async fn node(server: &RedisServer) -> (Redis, Stop) {
    let options = Options::new(server.tcp_url(), "et", "n1".parse().unwrap());
    connect_with(Options { response_timeout: 2 * PATIENT, ..options }).await
}

/// How often a command was called.
async fn calls(server: &RedisServer, command: &str) -> u64 {
    let told = server.command("INFO commandstats").await.unwrap();
    let calls = told.lines().find_map(|line| line.strip_prefix(&format!("cmdstat_{command}:calls=")));
    calls.and_then(|rest| rest.split(',').next()?.parse().ok()).unwrap_or(0)
}

/// Batch `n` of the one run.
async fn batch(store: &Redis, key: &SessionKey, fence: Fence, n: u64) -> Written {
    let run = suite::run("r1");
    let write =
        Write { run: Some(&run), producer: producer("run:r1", 1, n), fence: Some((&run, fence)), ..one() };
    store.write(key, write).await.unwrap()
}

#[tokio::test]
async fn a_hundred_writes_that_are_to_be_replicated_at_once_are_confirmed_together() {
    let (primary, _replica, _proxy) = followed().await;
    let (store, _stop) = node(&primary).await;
    assert!(store.offers(Level::Replicated));
    let keys: Vec<SessionKey> = join_all((0..100).map(|_| async { created(&store).await.0 })).await;
    assert_eq!(
        (store.usual_level(&keys[0]), store.keeping(&keys[0])),
        (Level::Replicated, Keeping::Confirmed)
    );
    let before = calls(&primary, "wait").await;
    let written = join_all(keys.iter().map(async |key| store.write(key, one()).await.unwrap())).await;
    let all = keys.iter().zip(&written).map(async |(key, written)| {
        store.confirm(key, written, Level::Replicated).await.unwrap();
    });
    join_all(all).await;
    let waits = calls(&primary, "wait").await - before;
    assert!((1..=30).contains(&waits), "{waits} times for 100 writes");
}

#[tokio::test]
async fn with_a_frozen_replica_it_is_not_known_whether_a_write_is_replicated_until_it_is_sent_again() {
    let (primary, replica, _proxy) = followed().await;
    let (store, _stop) = node(&primary).await;
    let (key, first) = granted(&store).await;
    let fence = first.fence.unwrap();
    let written = batch(&store, &key, fence, 1).await;
    store.confirm(&key, &written, Level::Replicated).await.unwrap();
    replica.stop().unwrap();
    let written = batch(&store, &key, fence, 2).await;
    let failed = store.confirm(&key, &written, Level::Replicated).await.unwrap_err();
    let Error::Indeterminate(why) = &failed else { panic!("{failed:?}") };
    assert!(why.contains("0 of 1 replicas"), "{why}");
    // It is a repeat, and not sure as such either.
    let again = batch(&store, &key, fence, 2).await;
    assert!(again.duplicate.is_some());
    store.confirm(&key, &again, Level::Replicated).await.unwrap_err();
    replica.cont().unwrap();
    until(async || {
        let again = batch(&store, &key, fence, 2).await;
        assert_eq!((again.duplicate.is_some(), again.to), (true, written.to));
        store.confirm(&key, &again, Level::Replicated).await.ok()
    })
    .await;
}

#[tokio::test]
async fn what_was_confirmed_outlives_a_primary_that_is_cut_off_with_its_client_and_what_was_not_is_never_called_so()
 {
    let (primary, replica, proxy) = followed().await;
    let (store, _stop) = node(&primary).await;
    let (key, first) = granted(&store).await;
    let fence = first.fence.unwrap();
    let kept = batch(&store, &key, fence, 1).await;
    store.confirm(&key, &kept, Level::Replicated).await.unwrap();
    proxy.stall();
    // The primary and its client know nothing of that.
    let lost = batch(&store, &key, fence, 2).await;
    store.confirm(&key, &lost, Level::Replicated).await.unwrap_err();
    replica.command("REPLICAOF NO ONE").await.unwrap();
    let (after, _stop) = node(&replica).await;
    let records = read_all(&after, &key, Seq(0), suite::ALL).await;
    assert_eq!(records.last().unwrap().to, kept.to, "what was confirmed, and nothing else");
    // One that follows the new primary: it could confirm what the new primary has.
    let mut third = RedisOptions { tcp: true, ..RedisOptions::default() };
    third.args.extend(["--replicaof", "127.0.0.1", &replica.port().to_string()].map(str::to_owned));
    let _third = RedisServer::start_with(third).await.unwrap();
    until(async || after.offers(Level::Replicated).then_some(())).await;
    after.confirm(&key, &kept, Level::Replicated).await.unwrap();
    let failed = after.confirm(&key, &lost, Level::Replicated).await.unwrap_err();
    assert!(matches!(failed, Error::Indeterminate(_)), "{failed:?}");
    let healed = batch(&after, &key, fence, 2).await;
    assert!(healed.duplicate.is_none() && healed.epoch > lost.epoch);
    after.confirm(&key, &healed, Level::Replicated).await.unwrap();
    // The seq is taken again, by the same batch in another epoch: what the old primary said still does not count.
    assert_eq!(healed.to, lost.to);
    after.confirm(&key, &lost, Level::Replicated).await.unwrap_err();
}

#[tokio::test]
async fn a_replica_that_is_gone_leaves_decisions_as_they_are_without_one() {
    let (primary, mut replica, _proxy) = followed().await;
    let (store, _stop) = node(&primary).await;
    let (key, written) = created(&store).await;
    assert_eq!(store.usual_level(&key), Level::Replicated);
    replica.kill9();
    until(async || (store.usual_level(&key) == Level::Accepted).then_some(())).await;
    assert!(matches!(store.keeping(&key), Keeping::For(_)));
    // Who asks for it is not told that it is had, nor that nothing was written.
    assert!(store.offers(Level::Replicated));
    let failed = store.confirm(&key, &written, Level::Replicated).await.unwrap_err();
    assert!(matches!(failed, Error::Indeterminate(_)), "{failed:?}");
    replica.restart().await.unwrap();
    until(async || store.confirm(&key, &written, Level::Replicated).await.ok()).await;
}

#[tokio::test]
async fn without_a_replica_nothing_can_be_replicated_and_without_a_file_nothing_synced() {
    let (store, _kept) = fresh_server().await;
    let (key, written) = created(&store).await;
    assert_eq!(store.usual_level(&key), Level::Accepted);
    store.confirm(&key, &written, Level::Accepted).await.unwrap();
    for level in [Level::Replicated, Level::Fsynced] {
        assert!(!store.offers(level));
        let refused = store.confirm(&key, &written, level).await.unwrap_err();
        assert_eq!(refused, Error::Refused(Refusal::NoLevel(level)));
    }
}

#[tokio::test]
async fn a_server_that_syncs_before_it_answers_can_acknowledge_as_synced() {
    let args = ["--appendfsync", "always"].map(str::to_owned).to_vec();
    let server = RedisServer::start_with(RedisOptions { append_only: true, args, ..RedisOptions::default() })
        .await
        .unwrap();
    let (store, _stop) = connect(&server.url()).await;
    let (key, written) = created(&store).await;
    assert!(store.offers(Level::Fsynced) && !store.offers(Level::Replicated));
    store.confirm(&key, &written, Level::Fsynced).await.unwrap();
    let beyond = Written { to: Seq(written.to.0 + 1), ..written };
    store.confirm(&key, &beyond, Level::Fsynced).await.unwrap_err();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_replicated_before_its_primary_was_killed_is_there_after_the_failover() {
    let _alone = ALONE.lock().await;
    let mut redis = RedisSentinels::start().await.unwrap();
    let options = Options::new(redis.url(), "et", "n1".parse().unwrap());
    let (store, _stop) = connect_with(Options { response_timeout: 2 * PATIENT, ..options }).await;
    let (key, first) = granted(&store).await;
    let fence = first.fence.unwrap();
    let mut last = first;
    for n in 1..=20 {
        last = batch(&store, &key, fence, n).await;
    }
    store.confirm(&key, &last, Level::Replicated).await.unwrap();
    let before = redis.primary().await.unwrap();
    redis.server(before).kill9();
    redis.failover_from(before).await.unwrap();
    let head = until(async || Some(store.load(&key).await.ok()??.head)).await;
    assert_eq!(head, last.to);
    // A repeat is known as one there, and is confirmed by the replica that is left.
    until(async || {
        let again = batch(&store, &key, fence, 20).await;
        assert!(again.duplicate.is_some());
        store.confirm(&key, &again, Level::Replicated).await.ok()
    })
    .await;
}
