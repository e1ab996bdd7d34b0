//! Finding what the indexes are built from.

use super::{created, until};
use everthread_protocol::{Millis, NodeId, PoolKey, RunId, SessionKey};
use everthread_store::{Store, Turn, WorkItem};
use std::collections::BTreeSet;
use std::time::Duration;

/// Of a turn that others are refused, and then waited for.
const LEASE: Duration = Duration::from_secs(3);

fn node(name: &str) -> NodeId {
    name.parse().unwrap()
}

pub async fn every_session_is_found_by_a_scan_whatever_else_there_is<S: Store>(store: &S) {
    let mut made = BTreeSet::new();
    for _ in 0..25 {
        made.insert(created(store).await.0);
    }
    let gone = created(store).await.0;
    store.delete(&gone).await.unwrap();
    let mut found = BTreeSet::new();
    let (mut from, mut steps) = (None::<String>, 0);
    loop {
        let scanned = store.scan(from.as_deref(), 10).await.unwrap();
        assert!(!scanned.has_missed);
        found.extend(scanned.keys);
        steps += 1;
        match scanned.next {
            Some(next) => from = Some(next),
            None => break,
        }
    }
    assert!(steps > 1, "it is found in pieces");
    let missing: Vec<&SessionKey> = made.difference(&found).collect();
    assert!(missing.is_empty(), "{missing:?}");
    assert!(!found.contains(&gone));
}

pub async fn what_waits_in_a_pool_is_read_without_taking_it<S: Store>(store: &S) {
    let pool = PoolKey { tenant: "acme".parse().unwrap(), agent: "guide".parse().unwrap() };
    let item = |n: u32| WorkItem {
        tenant: "acme".parse().unwrap(),
        session: "s".parse().unwrap(),
        run: format!("r{n}").parse().unwrap(),
        not_after: Millis(7),
    };
    let nothing = store.waiting(&pool, None, 10).await.unwrap();
    assert_eq!((nothing.items.len(), nothing.next), (0, None));
    for n in 0..5 {
        store.enqueue(&pool, &item(n)).await.unwrap();
    }
    // One is with somebody, and waits for its end as the others for their beginning.
    let taken = store.take(&pool, &node("n1"), 1).await.unwrap();
    let (mut runs, mut after) = (Vec::<RunId>::new(), None::<String>);
    loop {
        let waiting = store.waiting(&pool, after.as_deref(), 2).await.unwrap();
        assert!(waiting.items.len() <= 2);
        runs.extend(waiting.items.into_iter().map(|item| item.run));
        after = waiting.next;
        if after.is_none() {
            break;
        }
    }
    assert_eq!(runs, (0..5).map(|n| item(n).run).collect::<Vec<_>>());
    store.finish_item(&pool, &taken[0].ticket).await.unwrap();
    assert_eq!(store.waiting(&pool, None, 10).await.unwrap().items.len(), 4);
    assert_eq!(store.take(&pool, &node("n1"), 10).await.unwrap().len(), 4, "nothing was taken by reading");
}

pub async fn one_node_at_a_time_builds_and_once_is_enough<S: Store>(store: &S) {
    let (first, second, wanted) = (node("n1"), node("n2"), Duration::from_secs(60));
    let turn = store.rebuild_turn(&first, wanted, LEASE).await.unwrap();
    if turn == Turn::Done {
        // Nothing can be lost there.
        assert_eq!(store.rebuild_turn(&second, wanted, LEASE).await.unwrap(), Turn::Done);
        return store.end_rebuild(&first).await.unwrap();
    }
    assert!(matches!(turn, Turn::Yours(now) if now.0 > 0), "{turn:?}");
    assert!(matches!(store.rebuild_turn(&first, wanted, LEASE).await.unwrap(), Turn::Yours(_)));
    assert_eq!(store.rebuild_turn(&second, wanted, LEASE).await.unwrap(), Turn::Anothers);
    // Its node dies, and the next one begins anew.
    until(async || {
        let turn = store.rebuild_turn(&second, wanted, 100 * LEASE).await.unwrap();
        matches!(turn, Turn::Yours(_)).then_some(())
    })
    .await;
    // Who has lost its turn cannot end it.
    store.end_rebuild(&first).await.unwrap();
    assert_eq!(store.rebuild_turn(&first, wanted, LEASE).await.unwrap(), Turn::Anothers);
    store.end_rebuild(&second).await.unwrap();
    assert_eq!(store.rebuild_turn(&first, wanted, LEASE).await.unwrap(), Turn::Done);
    // What is wanted since is another thing.
    until(async || {
        let turn = store.rebuild_turn(&first, Duration::ZERO, LEASE).await.unwrap();
        matches!(turn, Turn::Yours(_)).then_some(())
    })
    .await;
}
