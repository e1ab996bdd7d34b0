//! The Redis engine: the suite against a server of each test's own, and what only a server can do to it.

mod access;
mod appends;
mod cluster;
mod folding;
mod history;
mod levels;
mod newer;
mod sentinel;

use crate::suite::folding::{Writers, catch_up, folded, text};
use crate::suite::planting::bare;
use crate::suite::{
    self, Heard, PATIENCE, append, change, created, doubt, ear, entries, granted, next, one, producer,
    read_all, refused, until,
};
use everthread_protocol::{Cursor, Millis, PoolKey, Seq, SessionKey, Version};
use everthread_session::fold::{Limits, fold};
use everthread_session::view::View;
use everthread_store::embedded::Embedded;
use everthread_store::redis::{Options, Redis, StartError};
use everthread_store::{
    Change, Error, Fold, Folded, Interest, Over, Plant, Planted, Refusal, Renewal, Store, Stub, Stubbed,
    Trim, Trimmed, WorkItem, Write,
};
use everthread_testkit::{Proxy, RedisOptions, RedisServer};
use std::time::Duration;
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

/// After so long an answer is not waited for any more: it is waited for in some tests, and does come in all others.
const GIVEN_UP: Duration = Duration::from_secs(3);

/// Ends a store's tasks.
type Stop = DropGuard;

async fn connect_with(options: Options) -> (Redis, Stop) {
    let stop = CancellationToken::new();
    let store = Redis::connect(options, &TaskTracker::new(), &stop).await.unwrap();
    (store, stop.drop_guard())
}

async fn connect(url: &str) -> (Redis, Stop) {
    connect_with(Options::new(url, "et", "n1".parse().unwrap())).await
}

async fn fresh_server() -> (Redis, (Stop, RedisServer)) {
    let server = RedisServer::start().await.unwrap();
    let (store, stop) = connect(&server.url()).await;
    (store, (stop, server))
}

/// A server behind a proxy.
async fn behind_proxy(response_timeout: Duration) -> (Redis, Proxy, (Stop, RedisServer)) {
    let server =
        RedisServer::start_with(RedisOptions { tcp: true, ..RedisOptions::default() }).await.unwrap();
    let proxy = Proxy::start(server.tcp_address()).await.unwrap();
    let options = Options::new(format!("redis://{}", proxy.address()), "et", "n1".parse().unwrap());
    let (store, stop) = connect_with(Options { response_timeout, ..options }).await;
    (store, proxy, (stop, server))
}

/// Waits for a doubt, whatever is heard before it.
async fn any_doubt(heard: &mut mpsc::Receiver<Heard>) {
    let doubted = async { while !matches!(heard.recv().await.unwrap(), Heard::Doubt) {} };
    timeout(PATIENCE, doubted).await.expect("no doubt");
}

/// Waits until the follower knows of `seq`: it was given the record, or was told to doubt and found it in the log.
async fn learns_of(store: &Redis, key: &SessionKey, heard: &mut mpsc::Receiver<Heard>, seq: Seq) {
    let learns = async {
        loop {
            match heard.recv().await.unwrap() {
                Heard::Record(record) if record.to >= seq => return,
                // The link of large replies may come back later than the feed.
                Heard::Doubt => {
                    let head = until(async || store.read(key, Seq(0), 0).await.ok()).await.head;
                    if head.seq >= seq {
                        return;
                    }
                }
                _ => {}
            }
        }
    };
    timeout(PATIENCE, learns).await.expect("the follower has missed it");
}

/// Writes until it works again; until then it fails as an outage does.
async fn write_until_it_works(store: &Redis, key: &SessionKey) -> Seq {
    until(async || match store.write(key, one()).await {
        Ok(written) => Some(written.to),
        Err(Error::Unavailable(_) | Error::Indeterminate(_)) => None,
        Err(other) => panic!("{other:?}"),
    })
    .await
}

mod conformance {
    crate::suite::conformance!(super::fresh_server);
}

#[test]
fn redis_answers_like_the_reference_model() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (store, _kept) = runtime.block_on(fresh_server());
    crate::equivalence::compare(&runtime, &store, &Embedded::memory().unwrap(), 128);
}

#[tokio::test]
async fn a_killed_server_comes_back_with_everything_acknowledged_and_a_new_epoch() {
    let options = RedisOptions { append_only: true, ..RedisOptions::default() };
    let mut server = RedisServer::start_with(options).await.unwrap();
    let (store, _stop) = connect(&server.url()).await;
    let (key, first) = granted(&store).await;
    let text = entries("a", 4);
    let numbered = Write { producer: producer("run:r1", 3, 1), ..append(&text, 4) };
    store.write(&key, numbered).await.unwrap();
    let before = store.load(&key).await.unwrap().unwrap();
    let records = read_all(&store, &key, Seq(0), suite::ALL).await;

    server.kill9();
    let failed = store.write(&key, one()).await.unwrap_err();
    assert!(matches!(failed, Error::Unavailable(_) | Error::Indeterminate(_)), "{failed:?}");
    server.restart().await.unwrap();
    let after = until(async || store.load(&key).await.ok().flatten()).await;
    assert_eq!(everthread_store::Loaded { now: before.now, ..after }, before);
    assert_eq!(read_all(&store, &key, Seq(0), suite::ALL).await, records);
    let again = store.write(&key, numbered).await.unwrap();
    assert_eq!((again.epoch, again.to, again.duplicate.unwrap().batch), (first.epoch, Seq(6), 1));

    let decided = Write { change: Some(change(Some(before.version), "next")), ..one() };
    let moved = store.write(&key, decided).await.unwrap();
    assert!(moved.epoch > first.epoch);
    assert_eq!((moved.version.epoch, moved.version.n), (moved.epoch, before.version.n + 1));
    let page = store.read(&key, Seq(6), suite::ALL).await.unwrap();
    assert_eq!(page.epochs, [(first.epoch, Seq(1)), (moved.epoch, Seq(7))]);
    assert_eq!((page.head.since, page.records[0].epoch), (Seq(7), moved.epoch));
    let appended = store.write(&key, one()).await.unwrap();
    assert_eq!((appended.epoch, appended.version), (moved.epoch, moved.version));
}

#[tokio::test]
async fn after_an_outage_writes_work_again_and_followers_miss_nothing() {
    let (store, proxy, (_stop, server)) = behind_proxy(Duration::from_secs(30)).await;
    let (direct, _direct_stop) = connect(&server.url()).await;
    let (key, _) = created(&store).await;
    let (ear, mut heard) = ear();
    let _following = store.follow(&key, Interest::Log, ear);
    doubt(&mut heard).await;
    proxy.cut();
    until(async || (!store.is_ready()).then_some(())).await;
    let started = Instant::now();
    let failed = store.write(&key, one()).await.unwrap_err();
    assert!(matches!(failed, Error::Unavailable(_)), "surely not sent: {failed:?}");
    assert!(started.elapsed() < Duration::from_secs(15), "it fails fast");
    assert!(matches!(store.load(&key).await, Err(Error::Unavailable(_))));
    // What another node writes meanwhile is what the feed loses.
    for _ in 0..5 {
        direct.write(&key, one()).await.unwrap();
    }
    proxy.heal();
    learns_of(&store, &key, &mut heard, Seq(6)).await;
    assert_eq!(read_all(&direct, &key, Seq(1), suite::ALL).await.len(), 5);
    let to = write_until_it_works(&store, &key).await;
    // The feed may be rebuilt once more, until all links are back: then a doubt tells of it.
    learns_of(&store, &key, &mut heard, to).await;
    until(async || store.is_ready().then_some(())).await;
}

#[tokio::test]
async fn a_route_that_swallows_packets_is_given_up_and_an_unanswered_write_is_indeterminate() {
    let (store, proxy, _kept) = behind_proxy(GIVEN_UP).await;
    let (key, _) = created(&store).await;
    let (ear, mut heard) = ear();
    let _following = store.follow(&key, Interest::Log, ear);
    doubt(&mut heard).await;
    proxy.stall();
    let failed = store.write(&key, one()).await.unwrap_err();
    assert!(matches!(failed, Error::Indeterminate(_)), "{failed:?}");
    until(async || (!store.is_ready()).then_some(())).await;
    proxy.heal();
    any_doubt(&mut heard).await;
    let to = write_until_it_works(&store, &key).await;
    learns_of(&store, &key, &mut heard, to).await;
}

#[tokio::test]
async fn a_frozen_server_fails_requests_in_time_and_is_used_again_when_it_wakes() {
    let server = RedisServer::start().await.unwrap();
    let options = Options::new(server.url(), "et", "n1".parse().unwrap());
    let (store, _stop) = connect_with(Options { response_timeout: GIVEN_UP, ..options }).await;
    let (key, _) = created(&store).await;
    server.stop().unwrap();
    let failed = timeout(PATIENCE, store.write(&key, one())).await.unwrap().unwrap_err();
    assert!(matches!(failed, Error::Indeterminate(_)), "{failed:?}");
    server.cont().unwrap();
    write_until_it_works(&store, &key).await;
}

#[tokio::test]
async fn a_killed_subscription_connection_is_replaced() {
    let (store, (_stop, server)) = fresh_server().await;
    let (key, first) = created(&store).await;
    let pool = PoolKey { tenant: key.tenant.clone(), agent: "guide".parse().unwrap() };
    let (log, mut records) = ear();
    let (control, mut changes) = ear();
    let (woken, mut wakes) = mpsc::channel(64);
    let _log = store.follow(&key, Interest::Log, log);
    let _control = store.follow(&key, Interest::Control, control);
    // A full channel knows already.
    let wake = std::sync::Arc::new(move || woken.try_send(()).unwrap_or_default());
    let _pool = store.watch_pool(&pool, wake);
    doubt(&mut records).await;
    doubt(&mut changes).await;
    timeout(PATIENCE, wakes.recv()).await.unwrap();
    assert_eq!(server.command("CLIENT KILL TYPE pubsub").await.unwrap(), ":1\r\n");
    any_doubt(&mut records).await;
    any_doubt(&mut changes).await;
    timeout(PATIENCE, wakes.recv()).await.unwrap();
    let write = Write { change: Some(change(Some(first.version), "s1")), ..one() };
    store.write(&key, write).await.unwrap();
    assert!(matches!(next(&mut records).await, Heard::Record(_)));
    assert!(matches!(next(&mut changes).await, Heard::Changed));
}

#[tokio::test]
async fn thousands_of_followers_are_all_subscribed_again_after_a_loss() {
    let (store, (_stop, server)) = fresh_server().await;
    let keys: Vec<SessionKey> = (0..1500).map(|n| format!("acme/many{n}").parse().unwrap()).collect();
    let (ear, mut heard) = ear();
    let _following: Vec<_> = keys.iter().map(|key| store.follow(key, Interest::Log, ear.clone())).collect();
    for _ in 0..2 {
        for _ in &keys {
            doubt(&mut heard).await;
        }
        server.command("CLIENT KILL TYPE pubsub").await.unwrap();
    }
}

#[tokio::test]
async fn a_server_that_forgot_its_scripts_is_told_them_again() {
    let (store, (_stop, server)) = fresh_server().await;
    let (key, _) = created(&store).await;
    assert_eq!(server.command("SCRIPT FLUSH").await.unwrap(), "+OK\r\n");
    store.write(&key, one()).await.unwrap();
    assert!(store.load(&key).await.unwrap().is_some());
}

#[tokio::test]
async fn renewals_tell_a_server_its_script_and_all_of_them_take_effect() {
    let (store, (_stop, server)) = fresh_server().await;
    let (key, written) = granted(&store).await;
    let (other, other_written) = granted(&store).await;
    server.command("SCRIPT FLUSH").await.unwrap();
    let renewals = [(&key, written.fence), (&other, other_written.fence)].map(|(key, fence)| {
        let runs = vec![("r1".parse().unwrap(), fence.unwrap())];
        Renewal { key: key.clone(), runs, left_ms: 60_000 }
    });
    assert!(store.renew(&renewals).await.unwrap().iter().all(Option::is_some));
    for (key, written) in [(&key, &written), (&other, &other_written)] {
        let leases = store.load(key).await.unwrap().unwrap().leases;
        assert!(leases[0].1 >= written.at.plus(60_000));
    }
    // What another release has granted may have no lease: a renewal makes one.
    server.command(&format!("HDEL et:{{{key}}}:meta l:r1")).await.unwrap();
    assert_eq!(store.load(&key).await.unwrap().unwrap().leases, []);
    store.renew(&renewals).await.unwrap();
    let loaded = store.load(&key).await.unwrap().unwrap();
    assert_eq!(loaded.leases.len(), 1);
    // Nothing of it stays behind when the run ends.
    let revoke = Change { revoke: &[loaded.leases[0].0.clone()], ..change(Some(loaded.version), "ended") };
    store.write(&key, Write { change: Some(revoke), ..one() }).await.unwrap();
    store.renew(&renewals).await.unwrap();
    assert_eq!(server.command(&format!("HEXISTS et:{{{key}}}:meta l:r1")).await.unwrap(), ":0\r\n");
}

#[tokio::test]
async fn marks_of_deliveries_expire_on_the_server() {
    let (store, (_stop, server)) = fresh_server().await;
    let (key, _) = created(&store).await;
    store.mark_delivered(&key, &"c1".parse().unwrap(), &"w1".parse().unwrap()).await.unwrap();
    let left = server.command(&format!("PTTL et:{{{key}}}:delivered")).await.unwrap();
    let left: u128 = left.trim().trim_start_matches(':').parse().unwrap();
    let whole = everthread_store::DELIVERED_MEMORY.as_millis();
    assert!((whole - 60_000..=whole).contains(&left), "{left}");
}

#[tokio::test]
async fn what_redis_has_lost_in_part_is_reported_and_neither_skipped_nor_overwritten() {
    let (store, (_stop, server)) = fresh_server().await;
    let (key, _) = created(&store).await;
    for _ in 0..40 {
        store.write(&key, one()).await.unwrap();
    }
    server.command(&format!("XDEL et:{{{key}}}:log 7-0")).await.unwrap();
    assert!(matches!(store.read(&key, Seq(0), suite::ALL).await, Err(Error::Corrupt(_))));
    assert!(store.read(&key, Seq(7), suite::ALL).await.is_ok());
    server.command(&format!("DEL et:{{{key}}}:log")).await.unwrap();
    assert!(matches!(store.read(&key, Seq(7), suite::ALL).await, Err(Error::Corrupt(_))));
    assert!(store.read(&key, Seq(41), suite::ALL).await.is_ok());

    let (key, _) = created(&store).await;
    server.command(&format!("DEL et:{{{key}}}:meta")).await.unwrap();
    assert_eq!(refused(&store, &key, one()).await, Refusal::NoSession);
    let anew = Write { change: Some(change(None, "s0")), ..one() };
    assert!(matches!(store.write(&key, anew).await, Err(Error::Corrupt(_))));
}

#[tokio::test]
async fn a_full_server_refuses_cleanly_renews_leases_and_a_write_is_made_once_there_is_room() {
    let (store, (_stop, server)) = fresh_server().await;
    let (key, first) = granted(&store).await;
    let pool = PoolKey { tenant: key.tenant.clone(), agent: "guide".parse().unwrap() };
    let item = WorkItem {
        tenant: key.tenant.clone(),
        session: key.session.clone(),
        run: "r1".parse().unwrap(),
        not_after: Millis(1),
    };
    server.command("CONFIG SET maxmemory 1").await.unwrap();
    assert_eq!(read_all(&store, &key, Seq(0), suite::ALL).await.len(), 2, "reading goes on");
    let failed = store.finish_item(&pool, "1-0").await.unwrap_err();
    assert!(matches!(failed, Error::Unavailable(_)), "{failed:?}");
    let failed = store.write(&key, one()).await.unwrap_err();
    assert!(matches!(failed, Error::Unavailable(_)), "{failed:?}");
    let failed = store.enqueue(&pool, &item).await.unwrap_err();
    assert!(matches!(failed, Error::Unavailable(_)), "{failed:?}");
    let runs = vec![("r1".parse().unwrap(), first.fence.unwrap())];
    store.renew(&[Renewal { key: key.clone(), runs, left_ms: 60_000 }]).await.unwrap();
    let leases = store.load(&key).await.unwrap().unwrap().leases;
    assert!(leases[0].1 >= first.at.plus(60_000), "who lives keeps its runs");
    server.command("CONFIG SET maxmemory 0").await.unwrap();
    assert_eq!(store.write(&key, one()).await.unwrap().to, Seq(3));
}

#[tokio::test]
async fn two_deployments_on_one_server_do_not_see_each_other() {
    let (store, (_stop, server)) = fresh_server().await;
    let (key, _) = created(&store).await;
    let (other, _other) = connect_with(Options::new(server.url(), "et2", "n1".parse().unwrap())).await;
    assert_eq!(other.load(&key).await.unwrap(), None);
}

#[tokio::test]
async fn a_server_that_is_not_there_is_an_error_in_time() {
    let stop = CancellationToken::new();
    let options = Options::new("unix:///nonexistent/redis.sock", "et", "n1".parse().unwrap());
    let tasks = TaskTracker::new();
    let connecting = Redis::connect(options, &tasks, &stop);
    let failed = timeout(PATIENCE, connecting).await.unwrap().unwrap_err();
    assert!(matches!(failed, StartError::Passing(_)), "{failed:?}");
    stop.cancel();
}

#[tokio::test]
async fn a_page_of_sessions_goes_on_behind_a_session_that_has_moved() {
    let (store, _kept) = fresh_server().await;
    let tenant = "acme".parse().unwrap();
    for id in ["B", "a", "b", "c"] {
        store.index(&format!("acme/{id}").parse().unwrap(), Millis(9)).await.unwrap();
    }
    let page = store.sessions(&tenant, None, 2).await.unwrap();
    let last = page.last().map(|(id, at)| (*at, id.clone())).unwrap();
    assert_eq!(last.1.as_str(), "b");
    store.index(&"acme/b".parse().unwrap(), Millis(20)).await.unwrap();
    let rest = store.sessions(&tenant, Some(last), 9).await.unwrap();
    let rest: Vec<_> = rest.iter().map(|(id, _)| id.as_str()).collect();
    assert_eq!(rest, ["a", "B"]);
}

#[tokio::test]
async fn devices_are_seen_as_consumer_groups_where_they_stand_and_go_with_them() {
    let (store, (_stop, server)) = fresh_server().await;
    let (key, first) = created(&store).await;
    store.write(&key, append(&entries("d", 4), 4)).await.unwrap();
    let at = |seq| Cursor { epoch: first.epoch, seq: Seq(seq) };
    let (phone, laptop) = ("phone".parse().unwrap(), "laptop".parse().unwrap());
    let groups = async || server.command(&format!("XINFO GROUPS et:{{{key}}}:log")).await.unwrap();
    store.ack(&key, &phone, at(1)).await.unwrap();
    store.ack(&key, &laptop, at(5)).await.unwrap();
    let seen = groups().await;
    assert!(seen.contains("phone") && seen.contains("1-0"), "{seen}");
    assert!(seen.contains("laptop") && seen.contains("5-0"), "{seen}");
    // What comes to the end of the log is mirrored at once, and there Redis can tell the lag.
    store.ack(&key, &phone, at(5)).await.unwrap();
    let seen = groups().await;
    assert_eq!((seen.matches("5-0").count(), seen.matches("lag\r\n:0").count()), (2, 2), "{seen}");
    // A group that somebody has removed comes back.
    server.command(&format!("XGROUP DESTROY et:{{{key}}}:log phone")).await.unwrap();
    store.ack(&key, &phone, at(5)).await.unwrap();
    assert!(groups().await.contains("phone"));
    assert!(store.forget_device(&key, &phone).await.unwrap());
    let seen = groups().await;
    assert!(!seen.contains("phone") && seen.contains("laptop"), "{seen}");
}

#[tokio::test]
async fn a_device_that_was_idle_for_long_is_not_told_of_and_leaves_with_its_group_when_a_new_one_comes() {
    let (store, (_stop, server)) = fresh_server().await;
    let (key, first) = created(&store).await;
    let cursor = Cursor { epoch: first.epoch, seq: Seq(1) };
    let (old, new) = ("old".parse().unwrap(), "new".parse().unwrap());
    store.ack(&key, &old, cursor).await.unwrap();
    let idle = everthread_protocol::limits::DEVICE_IDLE_MS + 60_000;
    let at = first.at.0 - idle;
    server.command(&format!("HSET et:{{{key}}}:devices old \"{cursor} {at} {at}\"")).await.unwrap();
    assert_eq!(store.devices(&key).await.unwrap(), []);
    assert_eq!(store.device_in(std::slice::from_ref(&key), &old).await.unwrap(), [None]);
    store.ack(&key, &new, cursor).await.unwrap();
    assert_eq!(server.command(&format!("HKEYS et:{{{key}}}:devices")).await.unwrap(), "*1\r\n$3\r\nnew\r\n");
    let groups = server.command(&format!("XINFO GROUPS et:{{{key}}}:log")).await.unwrap();
    assert!(groups.contains("new") && !groups.contains("old"), "{groups}");
}

#[tokio::test]
async fn a_device_that_stood_in_a_lost_tail_gives_way_to_one_that_reads_the_new_log() {
    let (store, (_stop, server)) = fresh_server().await;
    let (key, first) = created(&store).await;
    store.write(&key, append(&entries("d", 4), 4)).await.unwrap();
    let phone = "phone".parse().unwrap();
    store.ack(&key, &phone, Cursor { epoch: first.epoch, seq: Seq(5) }).await.unwrap();
    // Another primary, which has only the first three.
    let meta = format!("et:{{{key}}}:meta");
    server.command(&format!("HSET {meta} replid other head 3")).await.unwrap();
    server.command(&format!("XDEL et:{{{key}}}:log 5-0")).await.unwrap();
    let before = Cursor { epoch: first.epoch, seq: Seq(2) };
    assert_eq!(store.ack(&key, &phone, before).await.unwrap(), Some(before));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_deleted_session_its_tombstone_alone_is_left_for_a_while() {
    let (store, (_stop, server)) = fresh_server().await;
    let (key, first, _) = suite::deleting::furnished(&store).await;
    store.delete(&key).await.unwrap();
    let gone = format!("et:{{{key}}}:gone");
    // The tombstone, and the node that lives.
    let tell = async |line: &str| server.command(line).await.unwrap().trim().to_owned();
    assert_eq!(tell("DBSIZE").await, ":2");
    assert_eq!(tell(&format!("EXISTS {gone}")).await, ":1");
    let ttl: u64 = tell(&format!("PTTL {gone}")).await.trim_start_matches(':').parse().unwrap();
    assert!((80_000_000..=86_400_000).contains(&ttl), "{ttl}");

    // The clock of the server may have gone back, or be another one.
    let ahead = first.epoch.0 + 3_600_000_000;
    let fence = ahead + 7;
    tell(&format!("SET {gone} \"{ahead} {fence}\"")).await;
    let made = store.write(&key, Write { change: Some(change(None, "s")), ..one() }).await.unwrap();
    assert_eq!(made.epoch.0, ahead + 1);
    let grant = Change { grant: Some(&suite::run("r1")), ..change(Some(made.version), "s") };
    let granted = store.write(&key, Write { change: Some(grant), ..one() }).await.unwrap();
    assert_eq!(granted.fence.unwrap().0, fence + 1);
    assert_eq!(tell(&format!("EXISTS {gone}")).await, ":0", "the session itself knows its numbers now");
    // And hands them on when it is deleted in its turn.
    store.delete(&key).await.unwrap();
    let text = format!("{} {}", made.epoch, fence + 1);
    assert_eq!(tell(&format!("STRLEN {gone}")).await, format!(":{}", text.len()));
    let made = store.write(&key, Write { change: Some(change(None, "s")), ..one() }).await.unwrap();
    assert_eq!(made.epoch.0, ahead + 2);
}

#[tokio::test]
async fn what_is_staged_expires_and_what_is_planted_does_not() {
    let (store, (_stop, server)) = fresh_server().await;
    let (source, _) = created(&store).await;
    let records = read_all(&store, &source, Seq(0), suite::ALL).await;
    let key = suite::fresh();
    let client = ::redis::Client::open(server.url()).unwrap();
    let mut connection = client.get_multiplexed_async_connection().await.unwrap();
    let staged = format!("et:{{{key}}}:staged:a");
    let mut ttl = async |name: &str| -> i64 {
        ::redis::cmd("PTTL").arg(name).query_async(&mut connection).await.unwrap()
    };
    store.stage(&key, "a", &records).await.unwrap();
    let left = ttl(&staged).await;
    let kept = i64::try_from(everthread_store::STAGED_KEPT.as_millis()).unwrap();
    assert!(left > 0 && left <= kept, "{left}");
    let epochs = [(everthread_protocol::Epoch(1), Seq(1))];
    let plant = Plant { changes: 1, ..bare(Over::Nothing { gone: None }, &epochs, Seq(1)) };
    assert!(matches!(store.plant(&key, "a", plant).await, Ok(Planted::Done { .. })));
    for name in ["meta", "folded"] {
        assert_eq!(ttl(&format!("et:{{{key}}}:{name}")).await, -1, "{name} stays");
    }
    assert_eq!(ttl(&staged).await, -2, "what was staged is gone");
    // Of a stub, only what it keeps is there; who was answered is remembered for a while.
    let numbered = Write { producer: producer("put:ann:1", 1, 1), ..one() };
    store.write(&key, numbered).await.unwrap();
    let head = store.heads(std::slice::from_ref(&key)).await.unwrap()[0].unwrap();
    let stub = Stub { expect: head.version, head: head.seq, object: "o", state: "", at: Millis(1) };
    assert_eq!(store.stub(&key, stub).await, Ok(Stubbed::Done));
    for name in ["log", "folded", "base"] {
        assert_eq!(ttl(&format!("et:{{{key}}}:{name}")).await, -2, "{name}");
    }
    assert!(ttl(&format!("et:{{{key}}}:producers")).await > 0);
    assert_eq!(ttl(&format!("et:{{{key}}}:meta")).await, -1);
    // A device of a stub gets no consumer group, since there is no stream to have it.
    let cursor = Cursor { epoch: head.epoch, seq: head.seq };
    assert_eq!(store.ack(&key, &"phone".parse().unwrap(), cursor).await, Ok(Some(cursor)));
    assert_eq!(ttl(&format!("et:{{{key}}}:log")).await, -2);
}
