//! Leases of runs, and who has got which control.

use super::{
    Heard, append, change, created, doubt, ear, fresh, granted, next, one, producer, refused, run, stale,
};
use everthread_protocol::{ControlId, Fence, Millis, RunId, SessionKey, WorkerId};
use everthread_store::{Change, DELIVERED_MAX, Interest, Refusal, Renewal, Store, Write, Written};
use futures_util::future::join_all;

const HOUR: u64 = 3_600_000;

/// A session in which `r1` has a fence and a lease.
async fn leased<S: Store>(store: &S, lease_ms: u64) -> (SessionKey, Written) {
    let (key, first) = created(store).await;
    let grant = Change { grant: Some(&run("r1")), lease_ms, ..change(Some(first.version), "s1") };
    let written = store.write(&key, Write { change: Some(grant), ..one() }).await.unwrap();
    (key, written)
}

async fn leases<S: Store>(store: &S, key: &SessionKey) -> Vec<(RunId, Millis)> {
    store.load(key).await.unwrap().unwrap().leases
}

fn renewal(key: &SessionKey, run: &RunId, fence: Fence, left_ms: u64) -> Renewal {
    Renewal { key: key.clone(), runs: vec![(run.clone(), fence)], left_ms }
}

pub async fn a_grant_sets_a_lease_from_the_time_of_the_write<S: Store>(store: &S) {
    let (key, mut last) = created(store).await;
    let mut expected = Vec::new();
    // 0 is a lease too, and the last is longer than any can be counted.
    for (name, lease_ms) in [("r2", 0), ("r3", 4_000), ("r1", HOUR)] {
        let run = run(name);
        let grant = Change { grant: Some(&run), lease_ms, ..change(Some(last.version), name) };
        last = store.write(&key, Write { change: Some(grant), ..one() }).await.unwrap();
        expected.push((run, last.at.plus(lease_ms)));
    }
    expected.sort();
    assert_eq!(leases(store, &key).await, expected);
    let endless = Change { grant: Some(&run("r4")), lease_ms: u64::MAX, ..change(Some(last.version), "r4") };
    last = store.write(&key, Write { change: Some(endless), ..append("[]", 0) }).await.unwrap();
    assert_eq!(leases(store, &key).await[3].1, last.at.plus(everthread_store::LEASE_MS_MAX));
}

pub async fn a_lease_without_a_grant_is_ignored<S: Store>(store: &S) {
    let (key, granted) = leased(store, HOUR).await;
    let before = leases(store, &key).await;
    let other = Change { lease_ms: 9 * HOUR, ..change(Some(granted.version), "s2") };
    store.write(&key, Write { change: Some(other), ..one() }).await.unwrap();
    assert_eq!(leases(store, &key).await, before);
}

pub async fn a_renewal_moves_a_lease_forward_and_never_back<S: Store>(store: &S) {
    let (key, granted) = leased(store, 10).await;
    let (r1, fence) = (run("r1"), granted.fence.unwrap());
    let before = store.load(&key).await.unwrap().unwrap().now;
    let heads = store.renew(&[renewal(&key, &r1, fence, HOUR)]).await.unwrap();
    let after = store.load(&key).await.unwrap().unwrap();
    let renewed = after.leases.clone();
    assert_eq!((renewed.len(), &renewed[0].0), (1, &r1));
    assert!(before.plus(HOUR) <= renewed[0].1 && renewed[0].1 <= after.now.plus(HOUR));
    assert_eq!(heads, store.heads(std::slice::from_ref(&key)).await.unwrap());
    assert_eq!(after.version, granted.version, "a renewal is no change of the state");
    for less in [0, 1, HOUR / 2] {
        store.renew(&[renewal(&key, &r1, fence, less)]).await.unwrap();
        assert_eq!(leases(store, &key).await, renewed);
    }
    // The writes of the run leave it as it is.
    store.write(&key, Write { fence: Some((&r1, fence)), ..one() }).await.unwrap();
    assert_eq!(leases(store, &key).await, renewed);
}

pub async fn a_wrong_fence_renews_nothing<S: Store>(store: &S) {
    let (key, granted) = leased(store, 10).await;
    let (r1, r2, fence) = (run("r1"), run("r2"), granted.fence.unwrap());
    let before = leases(store, &key).await;
    for (run, fence) in [(&r1, Fence(fence.0 + 1)), (&r1, Fence(fence.0 - 1)), (&r1, Fence(0)), (&r2, fence)]
    {
        let heads = store.renew(&[renewal(&key, run, fence, HOUR)]).await.unwrap();
        assert_eq!(heads[0].unwrap().active, 1, "the head is told all the same");
        assert_eq!(leases(store, &key).await, before);
    }
    // One that is wrong does not keep the others from being renewed.
    let runs = vec![(r2, fence), (r1.clone(), fence), (r1, Fence(1))];
    store.renew(&[Renewal { key: key.clone(), runs, left_ms: HOUR }]).await.unwrap();
    let after = leases(store, &key).await;
    assert_eq!(after.len(), 1);
    assert!(after[0].1 > before[0].1);
}

pub async fn a_revoked_run_has_no_lease_and_gets_none<S: Store>(store: &S) {
    let (key, granted) = leased(store, HOUR).await;
    let (r1, r2) = (run("r1"), run("r2"));
    let other = Change { grant: Some(&r2), lease_ms: HOUR, ..change(Some(granted.version), "s2") };
    let other = store.write(&key, Write { change: Some(other), ..one() }).await.unwrap();
    let revoke = Change { revoke: std::slice::from_ref(&r1), ..change(Some(other.version), "s3") };
    store.write(&key, Write { change: Some(revoke), ..one() }).await.unwrap();
    let left = [(r2, other.at.plus(HOUR))];
    assert_eq!(leases(store, &key).await, left);
    let heads = store.renew(&[renewal(&key, &r1, granted.fence.unwrap(), 9 * HOUR)]).await.unwrap();
    assert_eq!(heads[0].unwrap().active, 1);
    assert_eq!(leases(store, &key).await, left);
}

pub async fn the_lease_of_the_next_holder_is_left_alone<S: Store>(store: &S) {
    let (key, first) = leased(store, 9 * HOUR).await;
    let r1 = run("r1");
    let old = first.fence.unwrap();
    let revoke = Change { revoke: std::slice::from_ref(&r1), ..change(Some(first.version), "back") };
    let revoked = store.write(&key, Write { change: Some(revoke), ..one() }).await.unwrap();
    let again = Change { grant: Some(&r1), lease_ms: 10, ..change(Some(revoked.version), "again") };
    let again = store.write(&key, Write { change: Some(again), ..one() }).await.unwrap();
    // The new lease is shorter than the old one was: it starts anew.
    assert_eq!(leases(store, &key).await, [(r1.clone(), again.at.plus(10))]);
    store.renew(&[renewal(&key, &r1, old, HOUR)]).await.unwrap();
    assert_eq!(leases(store, &key).await, [(r1.clone(), again.at.plus(10))]);
    // The same in one write.
    let takeover = Change {
        grant: Some(&r1),
        lease_ms: 20,
        revoke: std::slice::from_ref(&r1),
        ..change(Some(again.version), "taken over")
    };
    let taken = store.write(&key, Write { change: Some(takeover), ..one() }).await.unwrap();
    store.renew(&[renewal(&key, &r1, again.fence.unwrap(), HOUR)]).await.unwrap();
    assert_eq!(leases(store, &key).await, [(r1.clone(), taken.at.plus(20))]);
    store.renew(&[renewal(&key, &r1, taken.fence.unwrap(), HOUR)]).await.unwrap();
    assert!(leases(store, &key).await[0].1 > taken.at.plus(20));
}

pub async fn a_refused_or_repeated_grant_leaves_leases_alone<S: Store>(store: &S) {
    let (key, first) = created(store).await;
    let r1 = run("r1");
    let grant = |expect, lease_ms| Write {
        producer: producer("put:ann:1", 1, 1),
        change: Some(Change { grant: Some(&r1), lease_ms, ..change(expect, "s") }),
        ..one()
    };
    assert!(matches!(refused(store, &key, grant(stale(), 5)).await, Refusal::Conflict { .. }));
    assert_eq!(leases(store, &key).await, []);
    let written = store.write(&key, grant(Some(first.version), HOUR)).await.unwrap();
    let again = store.write(&key, grant(Some(first.version), 9 * HOUR)).await.unwrap();
    assert!(again.duplicate.is_some());
    assert_eq!(leases(store, &key).await, [(r1.clone(), written.at.plus(HOUR))]);
}

pub async fn heads_of_renewals_come_in_the_order_asked<S: Store>(store: &S) {
    let (first, one_fence) = leased(store, 10).await;
    let (second, other_fence) = granted(store).await;
    let (third, _) = created(store).await;
    let r1 = run("r1");
    let asked = [
        renewal(&second, &r1, other_fence.fence.unwrap(), HOUR),
        renewal(&fresh(), &r1, Fence(7), HOUR),
        Renewal { key: third.clone(), runs: Vec::new(), left_ms: HOUR },
        renewal(&first, &r1, one_fence.fence.unwrap(), 2 * HOUR),
        renewal(&second, &r1, other_fence.fence.unwrap(), 3 * HOUR),
    ];
    let heads = store.renew(&asked).await.unwrap();
    let keys: Vec<_> = asked.iter().map(|one| one.key.clone()).collect();
    assert_eq!(heads, store.heads(&keys).await.unwrap());
    let seqs: Vec<_> = heads.iter().map(|h| h.map(|h| (h.seq.0, h.active))).collect();
    assert_eq!(seqs, [Some((2, 1)), None, Some((1, 0)), Some((2, 1)), Some((2, 1))]);
    let now = store.load(&first).await.unwrap().unwrap().now;
    for (key, hours) in [(&first, 2), (&second, 3)] {
        let ends = leases(store, key).await[0].1;
        assert!(ends <= now.plus(hours * HOUR) && ends > now.plus((hours - 1) * HOUR));
    }
    assert_eq!(leases(store, &third).await, []);
    assert_eq!(store.renew(&[]).await.unwrap(), []);
}

pub async fn hundreds_of_sessions_are_renewed_in_one_call<S: Store>(store: &S) {
    let all = join_all((0..300).map(|_| leased(store, 10))).await;
    let r1 = run("r1");
    let asked: Vec<_> =
        all.iter().map(|(key, written)| renewal(key, &r1, written.fence.unwrap(), HOUR)).collect();
    let heads = store.renew(&asked).await.unwrap();
    let versions: Vec<_> = heads.into_iter().map(|head| head.unwrap().version).collect();
    assert_eq!(versions, all.iter().map(|(_, written)| written.version).collect::<Vec<_>>());
    for (key, written) in &all {
        assert!(leases(store, key).await[0].1 >= written.at.plus(HOUR));
    }
}

fn controls(names: &[&str]) -> Vec<ControlId> {
    names.iter().map(|name| name.parse().unwrap()).collect()
}

fn worker(name: &str) -> WorkerId {
    name.parse().unwrap()
}

pub async fn who_has_got_a_control_is_read_back<S: Store>(store: &S) {
    let ((key, _), other) = (created(store).await, fresh());
    let ids = controls(&["c1", "c2", "c3"]);
    assert_eq!(store.delivered(&key, &ids).await.unwrap(), [None, None, None]);
    store.mark_delivered(&key, &ids[2], &worker("w3")).await.unwrap();
    store.mark_delivered(&key, &ids[0], &worker("w1")).await.unwrap();
    let got = store.delivered(&key, &ids).await.unwrap();
    assert_eq!(got, [Some(worker("w1")), None, Some(worker("w3"))]);
    let twice = controls(&["c3", "c3", "never"]);
    let got = store.delivered(&key, &twice).await.unwrap();
    assert_eq!(got, [Some(worker("w3")), Some(worker("w3")), None]);
    // A run that went to the next worker took its controls along.
    store.mark_delivered(&key, &ids[0], &worker("w2")).await.unwrap();
    assert_eq!(store.delivered(&key, &ids[..1]).await.unwrap(), [Some(worker("w2"))]);
    assert_eq!(store.delivered(&other, &ids).await.unwrap(), [None, None, None]);
    assert_eq!(store.delivered(&key, &[]).await.unwrap(), []);
    // One that does not exist, or no more, has no marks either.
    store.mark_delivered(&other, &ids[0], &worker("w1")).await.unwrap();
    assert_eq!(store.delivered(&other, &ids).await.unwrap(), [None, None, None]);
    assert_eq!(store.load(&other).await.unwrap(), None, "a mark makes no session");
}

pub async fn a_delivery_wakes_control_followers_only_and_can_then_be_read<S: Store>(store: &S) {
    let (key, _) = created(store).await;
    let (control, mut changes) = ear();
    let (log, mut records) = ear();
    let _control = store.follow(&key, Interest::Control, control);
    let _log = store.follow(&key, Interest::Log, log);
    doubt(&mut changes).await;
    doubt(&mut records).await;
    let ids = controls(&["c1"]);
    store.mark_delivered(&key, &ids[0], &worker("w1")).await.unwrap();
    assert!(matches!(next(&mut changes).await, Heard::Changed));
    assert_eq!(store.delivered(&key, &ids).await.unwrap(), [Some(worker("w1"))]);
    // The first thing that a log follower hears is what was written later.
    let written = store.write(&key, one()).await.unwrap();
    assert!(matches!(next(&mut records).await, Heard::Record(record) if record.to == written.to));
}

pub async fn of_too_many_deliveries_the_latest_are_known<S: Store>(store: &S) {
    let (key, _) = created(store).await;
    let ids: Vec<ControlId> = (0..DELIVERED_MAX + 100).map(|n| format!("c{n}").parse().unwrap()).collect();
    for id in &ids {
        store.mark_delivered(&key, id, &worker("w1")).await.unwrap();
    }
    let known = store.delivered(&key, &ids).await.unwrap();
    let first = known.iter().position(Option::is_some).unwrap();
    assert!(known[first..].iter().all(Option::is_some), "the oldest are forgotten first");
    let count = known.len() - first;
    assert!((DELIVERED_MAX / 2..=DELIVERED_MAX).contains(&count), "{count} are known");
}
