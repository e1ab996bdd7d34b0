//! The live feed.

use super::{Heard, append, change, created, doubt, ear, entries, next, one};
use everthread_protocol::Seq;
use everthread_store::{Interest, Store, Write};

pub async fn a_follower_is_told_to_doubt_first<S: Store>(store: &S) {
    let (key, _) = created(store).await;
    for interest in [Interest::Log, Interest::Control] {
        let (ear, mut heard) = ear();
        let _following = store.follow(&key, interest, ear);
        doubt(&mut heard).await;
    }
}

pub async fn a_log_follower_gets_every_record_in_order<S: Store>(store: &S) {
    let (key, first) = created(store).await;
    let (ear, mut heard) = ear();
    let _following = store.follow(&key, Interest::Log, ear);
    doubt(&mut heard).await;
    let mut expected = Vec::new();
    for n in 1..=50 {
        let count = n % 3 + 1;
        let written = store.write(&key, append(&entries("f", count), count)).await.unwrap();
        expected.push((written.to.0 - u64::from(count) + 1, written.to.0));
    }
    let quiet = Write { change: Some(change(Some(first.version), "quiet")), ..append("[]", 0) };
    store.write(&key, quiet).await.unwrap();
    store.write(&key, one()).await.unwrap();
    expected.push((expected[49].1 + 1, expected[49].1 + 1));
    // The same record may come twice, but never an older one.
    let mut got: Vec<(u64, u64)> = Vec::new();
    let mut records = Vec::new();
    while got.len() < expected.len() {
        let Heard::Record(record) = next(&mut heard).await else { panic!("a log follower hears records") };
        if got.last() != Some(&(record.from.0, record.to.0)) {
            got.push((record.from.0, record.to.0));
            records.push(record);
        }
    }
    assert_eq!(got, expected);
    assert_eq!(super::read_all(store, &key, Seq(1), super::ALL).await, records);
}

pub async fn a_control_follower_hears_of_changes_and_not_of_appends<S: Store>(store: &S) {
    let (key, first) = created(store).await;
    let (control, mut changes) = ear();
    let (log, mut records) = ear();
    let _following = store.follow(&key, Interest::Control, control);
    let _log = store.follow(&key, Interest::Log, log);
    doubt(&mut changes).await;
    doubt(&mut records).await;
    store.write(&key, one()).await.unwrap();
    assert!(matches!(next(&mut records).await, Heard::Record(_)));
    assert!(changes.try_recv().is_err(), "an append is no change");
    let write = Write { change: Some(change(Some(first.version), "s1")), ..append("[]", 0) };
    store.write(&key, write).await.unwrap();
    assert!(matches!(next(&mut changes).await, Heard::Changed));
    let version = store.load(&key).await.unwrap().unwrap().version;
    assert_ne!(version, first.version);
}

pub async fn what_a_follower_is_given_can_be_read_back<S: Store>(store: &S) {
    let (key, _) = created(store).await;
    let (ear, mut heard) = ear();
    let _following = store.follow(&key, Interest::Log, ear);
    doubt(&mut heard).await;
    let write = async {
        for _ in 0..200 {
            store.write(&key, one()).await.unwrap();
        }
    };
    let check = async {
        let mut last = 1;
        while last < 201 {
            let Heard::Record(record) = next(&mut heard).await else {
                panic!("a log follower hears records")
            };
            last = record.to.0;
            let page = store.read(&key, Seq(last - 1), 0).await.unwrap();
            assert_eq!(page.records[0], record);
        }
    };
    tokio::join!(write, check);
}

pub async fn a_dropped_follower_hears_nothing<S: Store>(store: &S) {
    let (key, _) = created(store).await;
    let (gone, mut silence) = ear();
    let (stays, mut heard) = ear();
    let following = store.follow(&key, Interest::Log, gone);
    let _stays = store.follow(&key, Interest::Log, stays);
    doubt(&mut silence).await;
    doubt(&mut heard).await;
    drop(following);
    store.write(&key, one()).await.unwrap();
    assert!(matches!(next(&mut heard).await, Heard::Record(_)));
    assert!(!matches!(silence.try_recv(), Ok(Heard::Record(_))));
}
