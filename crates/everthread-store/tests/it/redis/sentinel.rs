//! A primary that sentinels watch: killed, frozen and woken.

use super::history::{Writer, check};
use super::*;
use everthread_testkit::RedisSentinels;

/// One set-up at a time: seven processes that must answer each other within a second.
pub(super) static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// A node as it is in production, but that it gives up on an answer sooner.
async fn node(url: &str, name: &str) -> (Redis, Stop) {
    let options = Options::new(url, "et", name.parse().unwrap());
    connect_with(Options { response_timeout: GIVEN_UP, ..options }).await
}

/// A session with a fence for `r1`, at the replicas too: a failover may take entries away, but not the session.
async fn granted_everywhere(
    redis: &mut RedisSentinels,
    store: &Redis,
) -> (SessionKey, everthread_store::Written) {
    let granted = granted(store).await;
    let primary = redis.primary().await.unwrap();
    redis.server(primary).replicated().await.unwrap();
    granted
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_the_primary_is_killed_its_successor_is_found_in_a_new_epoch_and_followers_look() {
    let _alone = ALONE.lock().await;
    let mut redis = RedisSentinels::start().await.unwrap();
    let (store, _stop) = node(&redis.url(), "n1").await;
    let (key, first) = granted_everywhere(&mut redis, &store).await;
    let (ear, mut heard) = ear();
    let _following = store.follow(&key, Interest::Log, ear);
    doubt(&mut heard).await;
    let mut writer = Writer::new(&key, first.fence.unwrap());
    for _ in 0..20 {
        writer.append(&store).await.unwrap();
    }
    let before = redis.primary().await.unwrap();
    redis.server(before).kill9();
    let appended = writer.append_until_it_works(&store).await;
    assert!(appended.epoch > first.epoch, "another primary is another epoch");
    learns_of(&store, &key, &mut heard, appended.to).await;
    until(async || store.is_ready().then_some(())).await;
    for _ in 0..20 {
        writer.append(&store).await.unwrap();
    }
    check(&store, &key, &writer.acknowledged).await;
    redis.failover_from(before).await.unwrap();
    // Whoever comes now finds it, too; also by way of the sentinels that are left.
    redis.kill_sentinel(0);
    let (other, _other_stop) = node(&redis.url(), "n2").await;
    let head = store.load(&key).await.unwrap().unwrap().head;
    assert_eq!(other.load(&key).await.unwrap().unwrap().head, head);
    // The killed one comes back as a replica.
    redis.server(before).restart().await.unwrap();
    until(async || redis.server(before).command("ROLE").await.ok()?.contains("slave").then_some(())).await;
    writer.append_until_it_works(&store).await;
    check(&store, &key, &writer.acknowledged).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_primary_that_froze_and_wakes_after_its_successor_took_over_is_not_believed() {
    let _alone = ALONE.lock().await;
    let mut redis = RedisSentinels::start().await.unwrap();
    let (store, _stop) = node(&redis.url(), "n1").await;
    let (key, first) = granted_everywhere(&mut redis, &store).await;
    let mut writer = Writer::new(&key, first.fence.unwrap());
    for _ in 0..20 {
        writer.append(&store).await.unwrap();
    }
    let before = redis.primary().await.unwrap();
    let old = redis.server(before).tcp_url();
    // One that knows no sentinels, as a node that their word has not reached.
    let (deaf, _deaf_stop) = node(&old, "n2").await;
    redis.server(before).stop().unwrap();
    // It waits in the frozen one's buffer, which answers it when it wakes: nobody may take that for an acknowledgement.
    let failed = writer.append(&store).await.unwrap_err();
    assert!(matches!(failed, Error::Indeterminate(_) | Error::Unavailable(_)), "{failed:?}");
    let appended = writer.append_until_it_works(&store).await;
    assert!(appended.epoch > first.epoch);
    redis.failover_from(before).await.unwrap();
    redis.server(before).cont().unwrap();
    for _ in 0..20 {
        writer.append(&store).await.unwrap();
    }
    check(&store, &key, &writer.acknowledged).await;
    // Soon it is told that it is a replica; then even who does not know better is refused, and reads what counts.
    until(async || match deaf.write(&key, one()).await {
        Err(Error::Unavailable(why)) if why.contains("ReadOnly") => Some(()),
        _ => None,
    })
    .await;
    let head = store.load(&key).await.unwrap().unwrap().head;
    until(async || {
        let page = deaf.read(&key, Seq(0), suite::ALL).await.ok()?;
        (page.head.seq == head && page.head.epoch == appended.epoch).then_some(())
    })
    .await;
}

#[tokio::test]
async fn an_address_without_sentinels_that_answer_says_which_and_why() {
    let server =
        RedisServer::start_with(RedisOptions { tcp: true, ..RedisOptions::default() }).await.unwrap();
    let url = format!("redis-sentinel://127.0.0.1:1,{}/nobody", server.tcp_address());
    let options = Options::new(url, "et", "n1".parse().unwrap());
    let stop = CancellationToken::new();
    let failed = Redis::connect(options, &TaskTracker::new(), &stop).await.unwrap_err().to_string();
    stop.cancel();
    assert!(failed.contains("\"nobody\"") && failed.contains("127.0.0.1:1: cannot connect"), "{failed}");
    assert!(failed.contains(&server.tcp_address()), "{failed}");
}
