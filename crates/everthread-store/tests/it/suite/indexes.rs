//! Pools, deadlines, liveness and the session index.

use super::{PATIENCE, fresh, until};
use everthread_protocol::{Millis, NodeId, PoolKey, SessionKey, TenantId, WorkerId};
use everthread_store::{Due, Store, WorkItem};
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::mpsc;

/// Long ago.
const PAST: Millis = Millis(1000);
/// Not in this test.
const FAR: Millis = Millis(1 << 50);

fn pool(agent: &str) -> PoolKey {
    PoolKey { tenant: "acme".parse().unwrap(), agent: agent.parse().unwrap() }
}

fn item(run: &str) -> WorkItem {
    WorkItem {
        tenant: "acme".parse().unwrap(),
        session: "s".parse().unwrap(),
        run: run.parse().unwrap(),
        not_after: Millis(7),
    }
}

fn node() -> NodeId {
    "node-1".parse().unwrap()
}

fn runs(taken: &[everthread_store::Taken]) -> Vec<(&str, u32)> {
    taken.iter().map(|t| (t.item.run.as_str(), t.deliveries)).collect()
}

pub async fn an_item_is_taken_once_and_finished_once<S: Store>(store: &S) {
    let pool = pool("guide");
    assert_eq!(store.take(&pool, &node(), 10).await.unwrap(), []);
    for run in ["r1", "r2", "r3"] {
        store.enqueue(&pool, &item(run)).await.unwrap();
    }
    let first = store.take(&pool, &node(), 2).await.unwrap();
    assert_eq!(runs(&first), [("r1", 1), ("r2", 1)]);
    assert_eq!(first[0].item, item("r1"));
    let second = store.take(&pool, &"node-2".parse().unwrap(), 2).await.unwrap();
    assert_eq!(runs(&second), [("r3", 1)]);
    assert_eq!(store.take(&pool, &node(), 2).await.unwrap(), []);
    for taken in first.iter().chain(&second) {
        store.finish_item(&pool, &taken.ticket).await.unwrap();
        store.finish_item(&pool, &taken.ticket).await.unwrap();
    }
    assert_eq!(store.take(&pool, &node(), 2).await.unwrap(), []);
}

pub async fn an_item_that_is_not_finished_comes_back<S: Store>(store: &S) {
    let pool = pool("guide");
    for run in ["lost", "done"] {
        store.enqueue(&pool, &item(run)).await.unwrap();
    }
    let began = Instant::now();
    let taken = store.take(&pool, &node(), 2).await.unwrap();
    store.finish_item(&pool, &taken[1].ticket).await.unwrap();
    store.enqueue(&pool, &item("new")).await.unwrap();
    let other: NodeId = "node-2".parse().unwrap();
    let fresh = store.take(&pool, &other, 1).await.unwrap();
    assert_eq!(runs(&fresh), [("new", 1)]);
    store.finish_item(&pool, &fresh[0].ticket).await.unwrap();
    let again = until(async || store.take(&pool, &other, 5).await.unwrap().into_iter().next()).await;
    assert_eq!(runs(std::slice::from_ref(&again)), [("lost", 2)]);
    assert!(began.elapsed() >= everthread_store::ITEM_VISIBILITY.mul_f32(0.9));
    store.finish_item(&pool, &again.ticket).await.unwrap();
}

pub async fn pools_are_apart<S: Store>(store: &S) {
    store.enqueue(&pool("guide"), &item("r1")).await.unwrap();
    assert_eq!(store.take(&pool("critic"), &node(), 9).await.unwrap(), []);
    let globex = PoolKey { tenant: "globex".parse().unwrap(), ..pool("guide") };
    assert_eq!(store.take(&globex, &node(), 9).await.unwrap(), []);
    assert_eq!(store.take(&pool("guide"), &node(), 9).await.unwrap().len(), 1);
}

pub async fn a_watcher_is_woken_until_its_guard_is_dropped<S: Store>(store: &S) {
    let pool = pool("guide");
    let watch = || {
        let (tx, rx) = mpsc::channel(64);
        // Full is as good as woken.
        (store.watch_pool(&pool, Arc::new(move || tx.try_send(()).unwrap_or_default())), rx)
    };
    let (guard, mut woken) = watch();
    let (_stays, mut also) = watch();
    // A subscription may stand only a moment later; from then on every item wakes.
    until(async || {
        store.enqueue(&pool, &item("r1")).await.unwrap();
        (woken.try_recv().is_ok() && also.try_recv().is_ok()).then_some(())
    })
    .await;
    drop(guard);
    while woken.try_recv().is_ok() {}
    while also.try_recv().is_ok() {}
    store.enqueue(&pool, &item("r2")).await.unwrap();
    tokio::time::timeout(PATIENCE, also.recv()).await.unwrap().unwrap();
    assert!(woken.try_recv().is_err());
}

pub async fn arming_keeps_the_earliest_time<S: Store>(store: &S) {
    let (key, other) = (fresh(), fresh());
    store.arm(&other, FAR).await.unwrap();
    store.arm(&key, FAR).await.unwrap();
    assert_eq!(store.claim_due(10).await.unwrap(), []);
    store.arm(&key, PAST).await.unwrap();
    store.arm(&key, FAR).await.unwrap();
    assert_eq!(keys(&store.claim_due(10).await.unwrap()), [key]);
}

pub async fn a_claimed_deadline_is_hidden_and_then_finished<S: Store>(store: &S) {
    let all = [fresh(), fresh(), fresh()];
    for key in &all {
        store.arm(key, PAST).await.unwrap();
    }
    let mut due = store.claim_due(2).await.unwrap();
    assert_eq!(due.len(), 2);
    due.extend(store.claim_due(2).await.unwrap());
    assert_eq!(due.len(), 3);
    assert_eq!(store.claim_due(2).await.unwrap(), []);
    store.finish_due(&due[0], None).await.unwrap();
    store.finish_due(&due[1], Some(FAR)).await.unwrap();
    store.finish_due(&due[2], Some(PAST)).await.unwrap();
    let again = store.claim_due(10).await.unwrap();
    assert_eq!(keys(&again), [due[2].key.clone()]);
}

pub async fn a_finish_after_a_new_arm_is_without_effect<S: Store>(store: &S) {
    let key = fresh();
    store.arm(&key, PAST).await.unwrap();
    let first = store.claim_due(1).await.unwrap().remove(0);
    store.arm(&key, PAST.plus(1)).await.unwrap();
    store.finish_due(&first, None).await.unwrap();
    let second = store.claim_due(1).await.unwrap().remove(0);
    assert_eq!(second.key, key);
    // An engine may name two claims of one millisecond alike.
    if second.claim != first.claim {
        store.finish_due(&first, None).await.unwrap();
    }
    store.finish_due(&second, Some(PAST)).await.unwrap();
    assert_eq!(store.claim_due(1).await.unwrap().len(), 1);
}

/// Whoever holds the claim may have looked at the session before the arm's reason was written.
pub async fn arming_a_claimed_session_for_later_is_not_lost<S: Store>(store: &S) {
    let key = fresh();
    store.arm(&key, PAST).await.unwrap();
    let due = store.claim_due(1).await.unwrap().remove(0);
    store.arm(&key, due.claim.plus(100)).await.unwrap();
    store.finish_due(&due, None).await.unwrap();
    let again = until(async || store.claim_due(1).await.unwrap().pop()).await;
    assert_eq!(again.key, key);
}

pub async fn a_claim_that_is_not_finished_comes_back<S: Store>(store: &S) {
    let key = fresh();
    store.arm(&key, PAST).await.unwrap();
    let began = Instant::now();
    let first = store.claim_due(1).await.unwrap().remove(0);
    let second = until(async || store.claim_due(1).await.unwrap().pop()).await;
    assert!(began.elapsed() >= everthread_store::DUE_VISIBILITY.mul_f32(0.9));
    assert!(second.claim > first.claim);
    store.finish_due(&first, None).await.unwrap();
    store.finish_due(&second, Some(PAST)).await.unwrap();
    assert_eq!(store.claim_due(1).await.unwrap().len(), 1, "the late finish had no effect");
}

fn keys(due: &[Due]) -> Vec<SessionKey> {
    due.iter().map(|due| due.key.clone()).collect()
}

fn worker() -> (TenantId, WorkerId) {
    ("acme".parse().unwrap(), "w1".parse().unwrap())
}

pub async fn a_worker_lives_while_it_beats<S: Store>(store: &S) {
    let (tenant, worker) = worker();
    assert_eq!(store.holder(&tenant, &worker).await.unwrap(), None);
    store.beat(&tenant, &worker, "c1", 60_000).await.unwrap();
    assert_eq!(store.holder(&tenant, &worker).await.unwrap().as_deref(), Some("c1"));
    let globex = "globex".parse().unwrap();
    assert_eq!(store.holder(&globex, &worker).await.unwrap(), None);
    store.beat(&tenant, &worker, "c2", 100).await.unwrap();
    until(async || store.holder(&tenant, &worker).await.unwrap().is_none().then_some(())).await;
}

pub async fn a_worker_is_buried_by_its_holder_only<S: Store>(store: &S) {
    let (tenant, worker) = worker();
    assert!(store.bury(&tenant, &worker, "c1").await.unwrap(), "one that never lived is gone");
    store.beat(&tenant, &worker, "c1", 60_000).await.unwrap();
    store.beat(&tenant, &worker, "c2", 60_000).await.unwrap();
    assert!(!store.bury(&tenant, &worker, "c1").await.unwrap());
    assert_eq!(store.holder(&tenant, &worker).await.unwrap().as_deref(), Some("c2"));
    assert!(store.bury(&tenant, &worker, "c2").await.unwrap());
    assert_eq!(store.holder(&tenant, &worker).await.unwrap(), None);
}

async fn indexed<S: Store>(store: &S, tenant: &str, all: &[(&str, u64)]) -> TenantId {
    let tenant: TenantId = tenant.parse().unwrap();
    for (session, at) in all {
        let key = SessionKey { tenant: tenant.clone(), session: session.parse().unwrap() };
        store.index(&key, Millis(*at)).await.unwrap();
    }
    tenant
}

pub async fn sessions_are_listed_latest_first_in_pages<S: Store>(store: &S) {
    let tenant = indexed(store, "acme", &[("a", 5), ("c", 9), ("b", 9), ("z", 1), ("d", 7)]).await;
    indexed(store, "acme2", &[("other", 6)]).await;
    // Of the same time, the last in the alphabet comes first.
    let expected = [("c", 9), ("b", 9), ("d", 7), ("a", 5), ("z", 1)];
    for limit in 1..7 {
        let (mut found, mut after) = (Vec::new(), None);
        loop {
            let page = store.sessions(&tenant, after.clone(), limit).await.unwrap();
            let Some((session, at)) = page.last() else { break };
            assert!(page.len() <= limit);
            after = Some((*at, session.clone()));
            found.extend(page.into_iter().map(|(session, at)| (session.to_string(), at.0)));
        }
        assert_eq!(found.iter().map(|(s, at)| (s.as_str(), *at)).collect::<Vec<_>>(), expected);
    }
}

pub async fn the_index_never_moves_back<S: Store>(store: &S) {
    let tenant = indexed(store, "acme", &[("a", 5), ("b", 6), ("a", 4)]).await;
    let list = async || -> Vec<u64> {
        store.sessions(&tenant, None, 9).await.unwrap().into_iter().map(|(_, at)| at.0).collect()
    };
    assert_eq!(list().await, [6, 5]);
    indexed(store, "acme", &[("a", 8)]).await;
    assert_eq!(list().await, [8, 6]);
}

pub async fn a_store_that_works_is_ready<S: Store>(store: &S) {
    until(async || store.is_ready().then_some(())).await;
}
