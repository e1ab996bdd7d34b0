//! A cluster: the suite, slots on the move, primaries that come and go.

use super::history::{Writer, check};
use super::sentinel::ALONE;
use super::*;
use everthread_testkit::RedisCluster;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::OnceCell;

/// A store for itself on a cluster that all share: deployments do not see each other.
async fn fresh_deployment() -> (Redis, Stop) {
    static SHARED: OnceCell<RedisCluster> = OnceCell::const_new();
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let cluster = SHARED.get_or_init(async || RedisCluster::start_shared().await.unwrap()).await;
    let prefix = format!("et{}", NEXT.fetch_add(1, Ordering::Relaxed));
    connect_with(Options::new(cluster.url(), prefix, "n1".parse().unwrap())).await
}

mod conformance {
    crate::suite::conformance!(super::fresh_deployment);
}

#[test]
fn a_cluster_answers_like_the_reference_model() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (store, _kept) = runtime.block_on(fresh_deployment());
    crate::equivalence::compare(&runtime, &store, &Embedded::memory().unwrap(), 64);
}

/// A node of a cluster of the test's own.
async fn node(cluster: &RedisCluster, name: &str) -> (Redis, Stop) {
    let options = Options::new(cluster.url(), "et", name.parse().unwrap());
    connect_with(Options { response_timeout: GIVEN_UP, ..options }).await
}

/// A session that a primary has, and its slot.
async fn session_at(cluster: &RedisCluster, primary: usize) -> (SessionKey, u16) {
    loop {
        let key = suite::fresh();
        let slot = cluster.slot(&key.to_string()).await.unwrap();
        if cluster.owner(slot).await.unwrap() == primary {
            return (key, slot);
        }
    }
}

/// A session in which `r1` has a fence, and who writes to it.
async fn writer_at(cluster: &RedisCluster, store: &Redis, primary: usize) -> (SessionKey, u16, Writer) {
    let (key, slot) = session_at(cluster, primary).await;
    let first = store.write(&key, Write { change: Some(change(None, "s0")), ..one() }).await.unwrap();
    let grant = Change { grant: Some(&suite::run("r1")), ..change(Some(first.version), "s1") };
    let granted = store.write(&key, Write { change: Some(grant), ..one() }).await.unwrap();
    // A failover may take entries away, but not the session.
    cluster.replicated(primary).await.unwrap();
    let writer = Writer::new(&key, granted.fence.unwrap());
    (key, slot, writer)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_moves_while_its_session_is_written_and_followed() {
    let _alone = ALONE.lock().await;
    let cluster = RedisCluster::start().await.unwrap();
    let (store, _stop) = node(&cluster, "n1").await;
    let (reader, _reader_stop) = node(&cluster, "n2").await;
    let (key, slot, mut writer) = writer_at(&cluster, &store, 0).await;
    let (ear, mut heard) = ear();
    let _following = reader.follow(&key, Interest::Log, ear);
    doubt(&mut heard).await;
    for _ in 0..10 {
        writer.append(&store).await.unwrap();
    }
    let done = CancellationToken::new();
    let write = async {
        while !done.is_cancelled() {
            // What comes while the slot moves waits, and is made once.
            writer.append(&store).await.unwrap();
        }
    };
    let moving = async {
        for (from, to) in [(0, 1), (1, 2), (2, 0), (0, 2)] {
            cluster.move_slot(slot, from, to).await.unwrap();
        }
        done.cancel();
    };
    tokio::join!(write, moving);
    assert_eq!(cluster.owner(slot).await.unwrap(), 2);
    let last = writer.append(&store).await.unwrap();
    learns_of(&reader, &key, &mut heard, last.to).await;
    check(&store, &key, &writer.acknowledged).await;
    assert_eq!(read_all(&reader, &key, Seq(2), suite::ALL).await.len(), writer.acknowledged.len());
    // And goes on as a feed does, without being asked.
    let last = writer.append(&store).await.unwrap();
    let is_last = |heard: &Heard| matches!(heard, Heard::Record(record) if record.to == last.to);
    let live = async { while !is_last(&heard.recv().await.unwrap()) {} };
    timeout(PATIENCE, live).await.expect("the subscription has moved, too");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_has_moved_already_is_read_at_its_new_place_and_written_once_the_slot_is_there() {
    let _alone = ALONE.lock().await;
    let cluster = RedisCluster::start().await.unwrap();
    let (store, _stop) = node(&cluster, "n1").await;
    let (key, slot, mut writer) = writer_at(&cluster, &store, 0).await;
    writer.append(&store).await.unwrap();
    let before = store.load(&key).await.unwrap().unwrap();
    cluster.begin_moving(slot, 0, 1).await.unwrap();
    cluster.move_keys(slot, 0, 1).await.unwrap();
    assert_eq!(store.load(&key).await.unwrap().unwrap().head, before.head);
    let heads = store.heads(std::slice::from_ref(&key)).await.unwrap();
    assert_eq!(heads[0].unwrap().seq, before.head);
    // What writes waits for the end of the move: of some of its keys nobody can tell where they would be.
    let ending = async {
        // Until it has been sent back and forth at least once.
        until(async || {
            cluster.command(1, "INFO errorstats").await.ok()?.contains("errorstat_TRYAGAIN").then_some(())
        })
        .await;
        cluster.end_moving(slot, 0, 1).await.unwrap();
    };
    let (appended, ()) = tokio::join!(writer.append(&store), ending);
    appended.unwrap();
    check(&store, &key, &writer.acknowledged).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_primary_is_replaced_by_its_replica_and_other_sessions_and_nodes_do_not_notice() {
    let _alone = ALONE.lock().await;
    let mut cluster = RedisCluster::start().await.unwrap();
    let (store, _stop) = node(&cluster, "n1").await;
    let (key, _, mut writer) = writer_at(&cluster, &store, 0).await;
    let (other, _, mut other_writer) = writer_at(&cluster, &store, 1).await;
    let (ear, mut heard) = ear();
    let _following = store.follow(&key, Interest::Log, ear);
    doubt(&mut heard).await;
    let first = writer.append(&store).await.unwrap();
    for _ in 0..10 {
        writer.append(&store).await.unwrap();
        other_writer.append(&store).await.unwrap();
    }
    cluster.server(0).kill9();
    let upheavals = store.upheavals();
    until(async || store.steady_for(&key).is_none().then_some(())).await;
    // Two of three serve their sessions: a node that turned away everybody would help nobody.
    assert!(store.is_ready() && store.steady_for(&other).is_some());
    other_writer.append(&store).await.unwrap();
    // Who starts now serves what there is.
    let (late, _late_stop) = node(&cluster, "n2").await;
    other_writer.append(&late).await.unwrap();
    let appended = writer.append_until_it_works(&store).await;
    assert!(appended.epoch > first.epoch, "another primary is another epoch");
    learns_of(&store, &key, &mut heard, appended.to).await;
    until(async || store.steady_for(&key).map(drop)).await;
    assert!(store.is_ready() && store.upheavals() > upheavals);
    check(&store, &key, &writer.acknowledged).await;
    // The killed one comes back as a replica, and is none of the primaries.
    cluster.server(0).restart().await.unwrap();
    cluster.is_whole().await.unwrap();
    for _ in 0..10 {
        writer.append(&store).await.unwrap();
        other_writer.append(&store).await.unwrap();
    }
    check(&store, &key, &writer.acknowledged).await;
    check(&store, &other, &other_writer.acknowledged).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_primary_of_a_cluster_that_froze_and_wakes_is_not_believed() {
    let _alone = ALONE.lock().await;
    let mut cluster = RedisCluster::start().await.unwrap();
    let (store, _stop) = node(&cluster, "n1").await;
    let (key, _, mut writer) = writer_at(&cluster, &store, 1).await;
    let first = writer.append(&store).await.unwrap();
    cluster.server(1).stop().unwrap();
    cluster.promoted(4).await.unwrap();
    let appended = writer.append_until_it_works(&store).await;
    assert!(appended.epoch > first.epoch);
    cluster.server(1).cont().unwrap();
    for _ in 0..50 {
        writer.append(&store).await.unwrap();
    }
    until(async || cluster.command(1, "ROLE").await.ok()?.contains("slave").then_some(())).await;
    writer.append(&store).await.unwrap();
    check(&store, &key, &writer.acknowledged).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failover_that_drops_no_connection_is_noticed_by_writers_and_followers() {
    let _alone = ALONE.lock().await;
    let cluster = RedisCluster::start().await.unwrap();
    let (store, _stop) = node(&cluster, "n1").await;
    let (key, slot, mut writer) = writer_at(&cluster, &store, 2).await;
    let (ear, mut heard) = ear();
    let _following = store.follow(&key, Interest::Log, ear);
    doubt(&mut heard).await;
    let first = writer.append(&store).await.unwrap();
    cluster.fail_over_to(5).await.unwrap();
    // Nobody writes, and yet who follows is told to look.
    any_doubt(&mut heard).await;
    // The node that is asked may hear of it later than we do.
    until(async || (cluster.owner(slot).await.unwrap() == 5).then_some(())).await;
    let appended = writer.append_until_it_works(&store).await;
    assert!(appended.epoch > first.epoch);
    learns_of(&store, &key, &mut heard, appended.to).await;
    check(&store, &key, &writer.acknowledged).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fourth_primary_takes_slots_under_load_and_connections_stay_six_to_each() {
    let _alone = ALONE.lock().await;
    let mut cluster = RedisCluster::start().await.unwrap();
    let (store, _stop) = node(&cluster, "n1").await;
    let mut writers = Vec::new();
    for n in 0..6 {
        writers.push(writer_at(&cluster, &store, n % 3).await);
    }
    let new = cluster.add_primary().await.unwrap();
    let slots: Vec<(u16, usize)> =
        writers.iter().enumerate().map(|(n, (_, slot, _))| (*slot, n % 3)).collect();
    let done = CancellationToken::new();
    let write = async {
        while !done.is_cancelled() {
            for (_, _, writer) in &mut writers {
                writer.append(&store).await.unwrap();
            }
        }
    };
    let moving = async {
        for (slot, from) in slots {
            cluster.move_slot(slot, from, new).await.unwrap();
        }
        done.cancel();
    };
    tokio::join!(write, moving);
    let keys: Vec<SessionKey> = writers.iter().map(|(key, ..)| key.clone()).collect();
    for (key, _, writer) in &mut writers {
        writer.append(&store).await.unwrap();
        check(&store, key, &writer.acknowledged).await;
    }
    // What is about many sessions is put together from all.
    let elsewhere = created(&store).await.0;
    let asked: Vec<SessionKey> = keys.iter().chain([&elsewhere, &suite::fresh()]).cloned().collect();
    let heads = store.heads(&asked).await.unwrap();
    assert_eq!(
        heads.iter().map(Option::is_some).collect::<Vec<_>>(),
        [true, true, true, true, true, true, true, false]
    );
    for ((_, _, writer), head) in writers.iter().zip(&heads) {
        assert_eq!(head.unwrap().seq, writer.acknowledged.last().unwrap().to);
    }
    // Followers of hundreds of sessions need no more connections.
    let keys: Vec<SessionKey> = (0..300).map(|_| suite::fresh()).collect();
    let (ear, mut heard) = ear();
    let _following: Vec<_> = keys.iter().map(|key| store.follow(key, Interest::Log, ear.clone())).collect();
    for _ in &keys {
        doubt(&mut heard).await;
    }
    until(async || store.is_ready().then_some(())).await;
    for n in [0, 1, 2, new] {
        let ours = async |kind: &str| {
            let clients = cluster.command(n, &format!("CLIENT LIST TYPE {kind}")).await.unwrap();
            clients.matches("name=everthread ").count()
        };
        assert_eq!((ours("normal").await, ours("pubsub").await), (5, 1), "node {n}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_primary_that_is_gone_with_its_replica_keeps_the_sessions_of_the_others_from_nothing() {
    let _alone = ALONE.lock().await;
    let options = RedisOptions { append_only: true, ..RedisOptions::default() };
    let mut cluster = RedisCluster::start_with(options).await.unwrap();
    let (store, _stop) = node(&cluster, "n1").await;
    let (dead, _, mut dead_writer) = writer_at(&cluster, &store, 0).await;
    let (live, _, mut writer) = writer_at(&cluster, &store, 1).await;
    let (none, _) = session_at(&cluster, 2).await;
    dead_writer.append(&store).await.unwrap();
    for n in [0, 3] {
        cluster.server(n).kill9();
    }
    let asked = [live.clone(), dead.clone(), none.clone()];
    let renewal = |key: &SessionKey| Renewal { key: key.clone(), runs: Vec::new(), left_ms: 1000 };
    let renewals = asked.each_ref().map(renewal);
    // It is not known at once: until then a request may be lost.
    until(async || matches!(store.load(&dead).await, Err(Error::Unavailable(_))).then_some(())).await;
    let appended = writer.append(&store).await.unwrap();
    let heads = store.each_head(&asked).await;
    let [Ok(Some(head)), Err(Error::Unavailable(why)), Ok(None)] = heads.as_slice() else {
        panic!("{heads:?}")
    };
    assert_eq!((head.seq, head.epoch), (appended.to, appended.epoch));
    assert!(!why.is_empty());
    assert!(matches!(store.heads(&asked).await, Err(Error::Unavailable(_))), "all of them, or none");
    let states = store.each_state(&asked).await;
    assert!(matches!(states.as_slice(), [Ok(Some(_)), Err(Error::Unavailable(_)), Ok(None)]), "{states:?}");
    let renewed = store.each_renewed(&renewals).await;
    let [Ok(Some(renewed)), Err(Error::Unavailable(_)), Ok(None)] = renewed.as_slice() else {
        panic!("{renewed:?}")
    };
    assert_eq!(renewed.version, head.version);
    // More than one request takes: the first that fails speaks for all.
    let many: Vec<SessionKey> =
        (0..2000).map(|n| if n % 2 == 0 { dead.clone() } else { live.clone() }).collect();
    let heads = store.each_head(&many).await;
    assert!(heads.iter().enumerate().all(|(n, head)| head.is_err() == (n % 2 == 0)) && heads.len() == 2000);
    assert!(store.is_ready() && store.steady_for(&dead).is_none());
    for n in [0, 3] {
        cluster.server(n).restart().await.unwrap();
    }
    let again = until(async || store.heads(&asked).await.ok()).await;
    assert_eq!(again[1].unwrap().seq, dead_writer.acknowledged.last().unwrap().to);
    dead_writer.append_until_it_works(&store).await;
    check(&store, &dead, &dead_writer.acknowledged).await;
    check(&store, &live, &writer.acknowledged).await;
}
