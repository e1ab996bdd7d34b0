//! The one write.

use super::{
    ALL, append, change, created, entries, fresh, granted, one, producer, read_all, refused, run, stale,
    texts,
};
use everthread_protocol::{Fence, Millis, Seq};
use everthread_store::{Change, Duplicate, Producer, Refusal, Store, Write};
use futures_util::future::join_all;
use std::collections::HashSet;

pub async fn a_session_is_created_once<S: Store>(store: &S) {
    let (key, first) = created(store).await;
    assert_eq!(first.version.epoch, first.epoch);
    assert!(first.at > Millis(0));
    let again = Write { change: Some(change(None, "other")), ..one() };
    assert_eq!(refused(store, &key, again).await, Refusal::Exists);
    let loaded = store.load(&key).await.unwrap().unwrap();
    assert_eq!((loaded.state.as_str(), loaded.version, loaded.head), ("s0", first.version, Seq(1)));
}

pub async fn a_write_to_no_session_is_refused<S: Store>(store: &S) {
    let key = fresh();
    assert_eq!(refused(store, &key, one()).await, Refusal::NoSession);
    let decided = Write { change: Some(change(stale(), "s")), ..one() };
    assert_eq!(refused(store, &key, decided).await, Refusal::NoSession);
    let late = Write { change: Some(change(None, "s")), not_after: Some(Millis(1)), ..one() };
    assert_eq!(refused(store, &key, late).await, Refusal::Late);
    assert_eq!(store.load(&key).await.unwrap(), None);
    assert_eq!(store.heads(std::slice::from_ref(&key)).await.unwrap(), [None]);
    let read = store.read(&key, Seq(0), ALL).await;
    assert_eq!(read, Err(Refusal::NoSession.into()));
}

pub async fn entries_get_dense_seqs<S: Store>(store: &S) {
    let (key, first) = created(store).await;
    let mut expected = 1;
    for count in [3, 1, 20, 2] {
        let written = store.write(&key, append(&entries("a", count), count)).await.unwrap();
        expected += u64::from(count);
        assert_eq!(written.to, Seq(expected));
        assert_eq!((written.version, written.epoch), (first.version, first.epoch), "appends are no changes");
        assert!(written.at >= first.at);
    }
    let records = read_all(store, &key, Seq(0), ALL).await;
    let spans: Vec<_> = records.iter().map(|r| (r.from.0, r.to.0)).collect();
    assert_eq!(spans, [(1, 1), (2, 4), (5, 5), (6, 25), (26, 27)]);
}

pub async fn a_repeated_batch_gets_its_first_answer_before_any_other_check<S: Store>(store: &S) {
    let (key, granted) = granted(store).await;
    let (r1, fence) = (run("r1"), granted.fence.unwrap());
    let end = Write {
        producer: Some(Producer { key: "run:r1", incarnation: 1, batch: 1, answer: r#"{"ended":true}"# }),
        fence: Some((&r1, fence)),
        change: Some(Change {
            revoke: std::slice::from_ref(&r1),
            unwritten: Some((&r1, 1)),
            ..change(Some(granted.version), "ended")
        }),
        not_after: Some(Millis(u64::MAX >> 12)),
        ..one()
    };
    let first = store.write(&key, end).await.unwrap();
    assert_eq!(first.duplicate, None);
    // Its fence is gone, its version is old, its time is over, and the run has written: still the first answer.
    let again = store.write(&key, Write { not_after: Some(Millis(1)), ..end }).await.unwrap();
    assert_eq!((again.to, again.at, again.version), (first.to, Millis(0), first.version));
    assert_eq!(again.fence, None);
    let kept = Duplicate { batch: 1, answer: r#"{"ended":true}"#.to_owned() };
    assert_eq!(again.duplicate, Some(kept));
    assert_eq!(read_all(store, &key, Seq(0), ALL).await.len(), 3);
}

pub async fn acks_of_repeated_batches_are_cumulative<S: Store>(store: &S) {
    let (key, _) = created(store).await;
    for (batch, answer) in [(1, "one"), (2, "two"), (3, "three")] {
        let numbered = Some(Producer { key: "put:ann:1", incarnation: 1, batch, answer });
        store.write(&key, Write { producer: numbered, ..append(&entries("p", 2), 2) }).await.unwrap();
    }
    store.write(&key, one()).await.unwrap();
    for batch in 1..=3 {
        let again = store
            .write(&key, Write { producer: producer("put:ann:1", 1, batch), ..append(&entries("p", 2), 2) })
            .await
            .unwrap();
        assert_eq!(again.to, Seq(7));
        assert_eq!(again.duplicate, Some(Duplicate { batch: 3, answer: "three".to_owned() }));
    }
}

pub async fn a_gap_names_the_batch_that_is_expected<S: Store>(store: &S) {
    let (key, _) = created(store).await;
    let write = |batch| Write { producer: producer("run:r1", 1, batch), ..one() };
    assert_eq!(refused(store, &key, write(2)).await, Refusal::Gap { expected: 1 });
    store.write(&key, write(1)).await.unwrap();
    assert_eq!(refused(store, &key, write(3)).await, Refusal::Gap { expected: 2 });
    store.write(&key, write(2)).await.unwrap();
    assert_eq!(refused(store, &key, write(9)).await, Refusal::Gap { expected: 3 });
    let other = Write { producer: producer("run:r2", 1, 2), ..one() };
    assert_eq!(refused(store, &key, other).await, Refusal::Gap { expected: 1 });
}

pub async fn a_higher_incarnation_starts_at_one_and_a_lower_is_fenced<S: Store>(store: &S) {
    let (key, _) = created(store).await;
    let write = |incarnation, batch| Write { producer: producer("run:r1", incarnation, batch), ..one() };
    store.write(&key, write(2, 1)).await.unwrap();
    store.write(&key, write(2, 2)).await.unwrap();
    assert_eq!(refused(store, &key, write(1, 3)).await, Refusal::Fenced);
    assert_eq!(refused(store, &key, write(1, 1)).await, Refusal::Fenced);
    assert_eq!(refused(store, &key, write(3, 3)).await, Refusal::Gap { expected: 1 });
    let restarted = store.write(&key, write(3, 1)).await.unwrap();
    assert_eq!((restarted.to, restarted.duplicate), (Seq(4), None));
    assert_eq!(refused(store, &key, write(2, 2)).await, Refusal::Fenced);
}

pub async fn a_writer_without_its_fence_is_refused<S: Store>(store: &S) {
    let (key, granted) = granted(store).await;
    let (r1, r2, fence) = (run("r1"), run("r2"), granted.fence.unwrap());
    let write = |fence| Write { fence: Some(fence), ..one() };
    assert_eq!(refused(store, &key, write((&r2, fence))).await, Refusal::Fenced);
    assert_eq!(refused(store, &key, write((&r1, Fence(fence.0 + 1)))).await, Refusal::Fenced);
    assert_eq!(refused(store, &key, write((&r1, Fence(0)))).await, Refusal::Fenced);
    store.write(&key, write((&r1, fence))).await.unwrap();
    let revoke = Change { revoke: std::slice::from_ref(&r1), ..change(Some(granted.version), "s2") };
    store.write(&key, Write { change: Some(revoke), ..one() }).await.unwrap();
    assert_eq!(refused(store, &key, write((&r1, fence))).await, Refusal::Fenced);
}

pub async fn every_fence_is_greater_than_those_before_it<S: Store>(store: &S) {
    let (key, first) = created(store).await;
    let (mut version, mut last) = (first.version, Fence(0));
    for n in 0..20 {
        let run = run(&format!("r{}", n % 3));
        let grant = Change { grant: Some(&run), ..change(Some(version), "s") };
        let written = store.write(&key, Write { change: Some(grant), ..append("[]", 0) }).await.unwrap();
        let fence = written.fence.unwrap();
        assert!(fence > last, "{fence} after {last}");
        (version, last) = (written.version, fence);
    }
    // About microseconds since 1970: another log of this name would have begun lower.
    assert!(last.0 > 1_500_000_000_000_000);
}

pub async fn a_takeover_revokes_and_grants_in_one_write<S: Store>(store: &S) {
    let (key, granted) = granted(store).await;
    let r1 = run("r1");
    let takeover = Change {
        grant: Some(&r1),
        revoke: std::slice::from_ref(&r1),
        ..change(Some(granted.version), "taken over")
    };
    let taken = store.write(&key, Write { change: Some(takeover), ..one() }).await.unwrap();
    let zombie = Write { fence: Some((&r1, granted.fence.unwrap())), ..one() };
    assert_eq!(refused(store, &key, zombie).await, Refusal::Fenced);
    store.write(&key, Write { fence: Some((&r1, taken.fence.unwrap())), ..one() }).await.unwrap();
}

pub async fn a_conflict_names_the_version_that_is_current<S: Store>(store: &S) {
    let (key, first) = created(store).await;
    let decide = |version, state| Write { change: Some(change(Some(version), state)), ..one() };
    let second = store.write(&key, decide(first.version, "s1")).await.unwrap();
    assert_ne!(second.version, first.version);
    let conflict = refused(store, &key, decide(first.version, "lost")).await;
    assert_eq!(conflict, Refusal::Conflict { current: second.version });
    assert_eq!(store.load(&key).await.unwrap().unwrap().state, "s1");
}

pub async fn a_decision_made_on_silence_is_refused_once_the_run_has_written<S: Store>(store: &S) {
    let (key, granted) = granted(store).await;
    let r1 = run("r1");
    let back = |version| Write {
        change: Some(Change { unwritten: Some((&r1, 1)), ..change(Some(version), "back in the pool") }),
        ..one()
    };
    let changed = store.write(&key, back(granted.version)).await.unwrap();
    store.write(&key, Write { producer: producer("run:r1", 1, 1), ..one() }).await.unwrap();
    assert_eq!(refused(store, &key, back(changed.version)).await, Refusal::HasWritten);
    // The next attempt has written nothing yet.
    let next = Change { unwritten: Some((&r1, 2)), ..change(Some(changed.version), "again") };
    store.write(&key, Write { change: Some(next), ..one() }).await.unwrap();
}

pub async fn a_write_after_its_time_is_refused<S: Store>(store: &S) {
    let (key, first) = created(store).await;
    let until = |at| Write { not_after: Some(at), ..one() };
    assert_eq!(refused(store, &key, until(Millis(first.at.0 - 1))).await, Refusal::Late);
    store.write(&key, until(first.at.plus(60_000))).await.unwrap();
}

pub async fn checks_come_in_their_order<S: Store>(store: &S) {
    let (key, _) = granted(store).await;
    let r1 = run("r1");
    store.write(&key, Write { producer: producer("run:r1", 1, 1), ..one() }).await.unwrap();
    let wrong = Write {
        producer: producer("run:r1", 1, 9),
        fence: Some((&r1, Fence(1))),
        change: Some(Change { unwritten: Some((&r1, 1)), ..change(stale(), "never") }),
        not_after: Some(Millis(1)),
        ..one()
    };
    assert_eq!(refused(store, &key, wrong).await, Refusal::Late);
    let wrong = Write { not_after: None, ..wrong };
    assert_eq!(refused(store, &key, wrong).await, Refusal::Fenced);
    let wrong = Write { fence: None, ..wrong };
    assert_eq!(refused(store, &key, wrong).await, Refusal::Gap { expected: 2 });
    let wrong = Write { producer: None, ..wrong };
    let current = store.load(&key).await.unwrap().unwrap().version;
    assert_eq!(refused(store, &key, wrong).await, Refusal::Conflict { current });
    let silence = Change { unwritten: Some((&r1, 1)), ..change(Some(current), "never") };
    let wrong = Write { change: Some(silence), ..wrong };
    assert_eq!(refused(store, &key, wrong).await, Refusal::HasWritten);
}

pub async fn a_write_without_entries_changes_only_the_state<S: Store>(store: &S) {
    let (key, first) = created(store).await;
    let quiet = Write { change: Some(change(Some(first.version), "quiet")), ..append("[]", 0) };
    let written = store.write(&key, quiet).await.unwrap();
    assert_eq!(written.to, Seq(1));
    assert_ne!(written.version, first.version);
    assert_eq!(read_all(store, &key, Seq(0), ALL).await.len(), 1);
    assert_eq!(store.write(&key, one()).await.unwrap().to, Seq(2));
    assert_eq!(store.load(&key).await.unwrap().unwrap().state, "quiet");
}

pub async fn a_refused_write_changes_nothing<S: Store>(store: &S) {
    let (key, granted) = granted(store).await;
    let r1 = run("r1");
    let before = store.load(&key).await.unwrap().unwrap();
    let text = entries("never", 3);
    let wrong = Write {
        producer: producer("run:r1", 1, 1),
        fence: Some((&r1, granted.fence.unwrap())),
        change: Some(Change {
            grant: Some(&run("r2")),
            revoke: std::slice::from_ref(&r1),
            ..change(stale(), "never")
        }),
        ..append(&text, 3)
    };
    assert!(matches!(refused(store, &key, wrong).await, Refusal::Conflict { .. }));
    let after = store.load(&key).await.unwrap().unwrap();
    assert_eq!(everthread_store::Loaded { now: before.now, ..after }, before);
    assert_eq!(read_all(store, &key, Seq(0), ALL).await.len(), 2);
}

pub async fn load_knows_fences_producers_and_time<S: Store>(store: &S) {
    let (key, first) = created(store).await;
    let (mut version, mut fences) = (first.version, Vec::new());
    for name in ["r2", "r1", "r3"] {
        let run = run(name);
        let grant = Change { grant: Some(&run), ..change(Some(version), name) };
        let written = store.write(&key, Write { change: Some(grant), ..one() }).await.unwrap();
        version = written.version;
        fences.push((run, written.fence.unwrap()));
    }
    fences.sort();
    for (who, incarnation, batch) in
        [("run:r1", 4, 1), ("run:r1", 4, 2), ("run:r2", 1, 1), ("put:ann:9", 1, 1)]
    {
        store.write(&key, Write { producer: producer(who, incarnation, batch), ..one() }).await.unwrap();
    }
    let loaded = store.load(&key).await.unwrap().unwrap();
    assert_eq!((loaded.state.as_str(), loaded.version, loaded.head), ("r3", version, Seq(8)));
    assert_eq!(loaded.fences, fences);
    assert_eq!(loaded.producers, [(run("r1"), 4, 2), (run("r2"), 1, 1)]);
    assert_eq!(loaded.epochs, [(first.epoch, Seq(1))]);
    assert!(loaded.now >= first.at);
}

pub async fn two_hundred_writers_get_dense_seqs_and_lose_nothing<S: Store>(store: &S) {
    const WRITERS: usize = 200;
    let (key, _) = created(store).await;
    let writers = (0..WRITERS).map(|writer| {
        let key = &key;
        async move {
            let mut acks = Vec::new();
            let name = format!("run:w{writer}");
            for batch in 1..=5_u32 {
                let count = batch % 3 + 1;
                let numbered = producer(&name, 1, batch.into());
                let text = entries(&format!("{writer}-{batch}"), count);
                let write = Write { producer: numbered, ..append(&text, count) };
                let written = store.write(key, write).await.unwrap();
                acks.push((written.to.0, count, format!("{writer}-{batch}")));
            }
            acks
        }
    });
    let mut acks: Vec<_> = join_all(writers).await.into_iter().flatten().collect();
    acks.sort();
    let mut head = 1;
    for (to, count, _) in &acks {
        head += u64::from(*count);
        assert_eq!(*to, head, "seqs are dense");
    }
    let found = texts(&read_all(store, &key, Seq(0), 10_000).await);
    let expected =
        acks.iter().flat_map(|(_, count, tag)| (0..*count).map(move |i| (tag.as_str(), u64::from(i))));
    let found: Vec<_> =
        found[1..].iter().map(|e| (e["tag"].as_str().unwrap(), e["i"].as_u64().unwrap())).collect();
    assert_eq!(found, expected.collect::<Vec<_>>());
    assert_eq!(found.iter().collect::<HashSet<_>>().len(), found.len());
}

pub async fn of_many_deciders_at_one_version_exactly_one_wins<S: Store>(store: &S) {
    let (key, first) = created(store).await;
    let deciders = (0..50).map(|n| {
        let key = &key;
        async move {
            let state = format!("winner {n}");
            let write = Write { change: Some(change(Some(first.version), &state)), ..one() };
            store.write(key, write).await.is_ok().then_some(state)
        }
    });
    let winners: Vec<String> = join_all(deciders).await.into_iter().flatten().collect();
    let loaded = store.load(&key).await.unwrap().unwrap();
    assert_eq!(winners, [loaded.state]);
    assert_eq!(loaded.head, Seq(2));
}
