//! Lists of whole sessions, and deletion.

use super::*;
use everthread_protocol::{ControlId, Cursor, DeviceId, Millis, NodeId};
use everthread_session::fold::{Limits, fold};
use everthread_store::{Fold, Interest, PresenceChange, Stub, Stubbed, Trim, Trimmed};

/// A session with something in each of its places.
pub async fn furnished<S: Store>(store: &S) -> (SessionKey, Written, RunId) {
    let (key, first) = granted(store).await;
    let r1 = run("r1");
    let mut last = first.clone();
    for batch in 1..=3 {
        let write = Write {
            producer: producer("run:r1", 1, batch),
            fence: Some((&r1, first.fence.unwrap())),
            ..one()
        };
        last = store.write(&key, write).await.unwrap();
    }
    let page = store.read(&key, Seq::ZERO, ALL).await.unwrap();
    let records = fold(&page.records[..2], Limits::default()).unwrap();
    store.fold(&key, Fold { epoch: page.head.epoch, records: &records }).await.unwrap();
    let head = store.heads(std::slice::from_ref(&key)).await.unwrap()[0].unwrap();
    let (floor, bytes) = (head.folded_to.next(), head.folded_bytes);
    let trim = Trim { expect: head.version, from: head.floor, floor, bytes, base: "base" };
    assert_eq!(store.trim(&key, trim).await, Ok(Trimmed::Done));
    let version = store.heads(std::slice::from_ref(&key)).await.unwrap()[0].unwrap().version;
    let device: DeviceId = "phone".parse().unwrap();
    store.ack(&key, &device, Cursor { epoch: last.epoch, seq: last.to }).await.unwrap();
    store.mark_delivered(&key, &"c1".parse::<ControlId>().unwrap(), &"w1".parse().unwrap()).await.unwrap();
    let node: NodeId = "n1".parse().unwrap();
    store.beat_node(&node, 60_000).await.unwrap();
    let change = PresenceChange { member: "ann".into(), about: Some(("{}".into(), None)) };
    store.hold_present(&key, &node, &[change]).await.unwrap();
    store.index(&key, Millis(5)).await.unwrap();
    (key, Written { fence: first.fence, version, ..last }, r1)
}

async fn listed<S: Store>(store: &S, key: &SessionKey) -> bool {
    let sessions = store.sessions(&key.tenant, None, 1000).await.unwrap();
    sessions.iter().any(|(session, _)| *session == key.session)
}

pub async fn nothing_is_left_of_a_deleted_session<S: Store>(store: &S) {
    let (key, last, r1) = furnished(store).await;
    let (other, _, _) = furnished(store).await;
    let deleted = store.delete(&key).await.unwrap().unwrap();
    assert_eq!((deleted.epoch, deleted.head), (last.epoch, last.to));
    assert_eq!(store.load(&key).await.unwrap(), None);
    assert_eq!(store.heads(std::slice::from_ref(&key)).await.unwrap(), [None]);
    assert_eq!(store.states(std::slice::from_ref(&key)).await.unwrap(), [None]);
    assert_eq!(store.base(&key).await.unwrap(), None);
    assert_eq!(store.read(&key, Seq::ZERO, ALL).await.unwrap_err(), Refusal::NoSession.into());
    assert_eq!(refused(store, &key, one()).await, Refusal::NoSession);
    // Also for a batch that was written before: its session is gone, and so is the first answer.
    let repeat =
        Write { producer: producer("run:r1", 1, 3), fence: Some((&r1, last.fence.unwrap())), ..one() };
    assert_eq!(refused(store, &key, repeat).await, Refusal::NoSession);
    let device: DeviceId = "phone".parse().unwrap();
    let ack = store.ack(&key, &device, Cursor { epoch: last.epoch, seq: last.to }).await;
    assert_eq!(ack.unwrap_err(), Refusal::NoSession.into());
    assert_eq!(store.devices(&key).await.unwrap(), []);
    // Nor of what was under way when it went.
    store.mark_delivered(&key, &"c1".parse::<ControlId>().unwrap(), &"w1".parse().unwrap()).await.unwrap();
    assert_eq!(store.delivered(&key, &["c1".parse().unwrap()]).await.unwrap(), [None]);
    assert_eq!(store.present(&key, 100).await.unwrap(), []);
    let renewal =
        everthread_store::Renewal { key: key.clone(), runs: vec![(r1, last.fence.unwrap())], left_ms: 9 };
    assert_eq!(store.renew(&[renewal]).await.unwrap(), [None]);
    assert!(!listed(store, &key).await);
    // And all of the other one.
    assert_eq!(read_all(store, &other, Seq::ZERO, ALL).await.last().unwrap().to, last.to);
    assert_eq!(store.devices(&other).await.unwrap().len(), 1);
    assert_eq!(store.present(&other, 100).await.unwrap().len(), 1);
    assert!(listed(store, &other).await);
}

pub async fn a_session_that_went_on_is_not_deleted_for_what_it_was<S: Store>(store: &S) {
    let (key, last, _) = furnished(store).await;
    let appended = store.write(&key, one()).await.unwrap();
    assert!(!store.delete_if(&key, last.version, last.to).await.unwrap(), "an entry came");
    let decided = Write { change: Some(change(Some(last.version), "s2")), count: 0, entries: "[]", ..one() };
    let decided = store.write(&key, decided).await.unwrap();
    assert!(!store.delete_if(&key, last.version, appended.to).await.unwrap(), "something was decided");
    assert_eq!(read_all(store, &key, Seq::ZERO, ALL).await.last().unwrap().to, appended.to);
    assert!(listed(store, &key).await);
    assert!(store.delete_if(&key, decided.version, decided.to).await.unwrap());
    assert_eq!(store.load(&key).await.unwrap(), None);
    assert!(!listed(store, &key).await);
    assert!(!store.delete_if(&key, decided.version, decided.to).await.unwrap(), "twice");
}

pub async fn deleting_nothing_or_twice_is_harmless<S: Store>(store: &S) {
    let key = fresh();
    assert_eq!(store.delete(&key).await.unwrap(), None);
    let (key, ..) = furnished(store).await;
    assert!(store.delete(&key).await.unwrap().is_some());
    // As after a failure between the session and its places in the indexes.
    store.index(&key, Millis(9)).await.unwrap();
    assert_eq!(store.delete(&key).await.unwrap(), None);
    assert!(!listed(store, &key).await);
}

pub async fn a_session_made_anew_has_greater_numbers_and_nothing_of_before<S: Store>(store: &S) {
    let (key, before, r1) = furnished(store).await;
    store.delete(&key).await.unwrap();
    let made = Write { change: Some(change(None, "t0")), ..one() };
    let made = store.write(&key, made).await.unwrap();
    assert_eq!(made.to, Seq(1));
    assert!(made.epoch > before.epoch, "{made:?} after {before:?}");
    assert_eq!((made.version.n, made.folded_to), (1, Seq::ZERO));
    assert_eq!(store.base(&key).await.unwrap(), None);
    let page = store.read(&key, Seq::ZERO, ALL).await.unwrap();
    assert_eq!(page.head.floor, Seq(1));
    assert_eq!(page.epochs, [(made.epoch, Seq(1))]);
    assert_eq!(page.records.len(), 1);
    let loaded = store.load(&key).await.unwrap().unwrap();
    assert_eq!((loaded.state.as_str(), loaded.fences, loaded.leases), ("t0", vec![], vec![]));
    assert_eq!(store.devices(&key).await.unwrap(), []);
    let device: DeviceId = "phone".parse().unwrap();
    let old = Cursor { epoch: before.epoch, seq: Seq(1) };
    assert_eq!(store.ack(&key, &device, old).await.unwrap(), None, "a cursor of the old log");
    // Its fences are above those of before, also where the clock has not moved.
    let grant = Change { grant: Some(&r1), ..change(Some(made.version), "t1") };
    let granted = store.write(&key, Write { change: Some(grant), ..one() }).await.unwrap();
    assert!(granted.fence.unwrap() > before.fence.unwrap());
    let stale =
        Write { producer: producer("run:r1", 1, 1), fence: Some((&r1, before.fence.unwrap())), ..one() };
    assert_eq!(refused(store, &key, stale).await, Refusal::Fenced);
    assert_eq!(granted.epoch, made.epoch);
    // Many times within the same millisecond.
    let mut last = granted.epoch;
    for _ in 0..20 {
        store.delete(&key).await.unwrap().unwrap();
        let made = store.write(&key, Write { change: Some(change(None, "u")), ..one() }).await.unwrap();
        assert!(made.epoch > last);
        last = made.epoch;
    }
}

pub async fn followers_of_every_interest_are_told_to_look<S: Store>(store: &S) {
    let (key, ..) = furnished(store).await;
    let mut ears = Vec::new();
    for interest in [Interest::Log, Interest::Control, Interest::Presence] {
        let (ear, mut rx) = ear();
        let following = store.follow(&key, interest, ear);
        doubt(&mut rx).await;
        ears.push((rx, following));
    }
    store.delete(&key).await.unwrap();
    for (rx, _following) in &mut ears {
        let heard = tokio::time::timeout(PATIENCE, rx.recv()).await.expect("nothing was heard").unwrap();
        assert!(matches!(heard, Heard::Doubt | Heard::Changed), "{heard:?}");
    }
    // By then it is gone.
    assert_eq!(store.load(&key).await.unwrap(), None);
}

pub async fn a_deadline_of_a_deleted_session_fires_at_once<S: Store>(store: &S) {
    let (key, ..) = furnished(store).await;
    let now = store.load(&key).await.unwrap().unwrap().now;
    store.arm(&key, now.plus(3_600_000)).await.unwrap();
    store.delete(&key).await.unwrap();
    let due = until(async || store.claim_due(64).await.unwrap().into_iter().find(|due| due.key == key)).await;
    store.finish_due(&due, None).await.unwrap();
}

pub async fn a_stub_is_listed_and_deleted_like_any_session<S: Store>(store: &S) {
    let (key, written) = created(store).await;
    let (expect, head) = (written.version, written.to);
    let stub = Stub { expect, head, object: "o", state: "brief", at: Millis(3) };
    assert_eq!(store.stub(&key, stub).await.unwrap(), Stubbed::Done);
    let listed = store.states(std::slice::from_ref(&key)).await.unwrap().pop().unwrap().unwrap();
    assert_eq!((listed.state.as_str(), listed.head.archived, listed.head.seq), ("brief", true, head));
    let deleted = store.delete(&key).await.unwrap().unwrap();
    assert_eq!((deleted.epoch, deleted.head), (written.epoch, head));
    assert_eq!(store.stubbed(std::slice::from_ref(&key)).await.unwrap(), [None]);
    let made = store.write(&key, Write { change: Some(change(None, "s")), ..one() }).await.unwrap();
    assert!(made.epoch > written.epoch);
}

pub async fn states_come_in_the_order_asked<S: Store>(store: &S) {
    let (a, first) = created(store).await;
    let (b, _) = created(store).await;
    let next = Write { change: Some(change(Some(first.version), "a1")), ..one() };
    store.write(&a, next).await.unwrap();
    let keys = [b.clone(), fresh(), a.clone(), a.clone()];
    let states = store.states(&keys).await.unwrap();
    let heads = store.heads(&keys).await.unwrap();
    assert_eq!(states.iter().map(|s| s.as_ref().map(|s| s.head)).collect::<Vec<_>>(), heads);
    let texts: Vec<_> = states.iter().map(|s| s.as_ref().map(|s| s.state.as_str())).collect();
    assert_eq!(texts, [Some("s0"), None, Some("a1"), Some("a1")]);
    assert_eq!(states[2].as_ref().unwrap().epochs, store.load(&a).await.unwrap().unwrap().epochs);
    assert_eq!(store.states(&[]).await.unwrap(), []);
    let many: Vec<SessionKey> = (0..300).map(|n| if n % 3 == 0 { fresh() } else { a.clone() }).collect();
    let states = store.states(&many).await.unwrap();
    assert!(states.iter().enumerate().all(|(n, state)| state.is_none() == (n % 3 == 0)));
}

pub async fn a_session_leaves_the_list_unless_it_was_active_since<S: Store>(store: &S) {
    let key = fresh();
    store.index(&key, Millis(7)).await.unwrap();
    store.unindex(&key, Millis(6)).await.unwrap();
    assert!(listed(store, &key).await);
    store.unindex(&key, Millis(7)).await.unwrap();
    assert!(!listed(store, &key).await);
    store.unindex(&key, Millis(7)).await.unwrap();
    store.index(&key, Millis(3)).await.unwrap();
    assert!(listed(store, &key).await, "it may be listed again, at any time");
}

/// Writers, folders and readers get all of the session or `NoSession`, never a part of it, and never two logs in one.
pub async fn deleting_while_others_write_fold_and_read<S: Store>(store: &S) {
    let key = fresh();
    let mut epochs = std::collections::BTreeSet::new();
    for _ in 0..12 {
        let made = store.write(&key, Write { change: Some(change(None, "s")), ..one() }).await.unwrap();
        assert!(epochs.insert(made.epoch), "an epoch of before");
        let writing = async {
            let mut n = 0;
            loop {
                match store.write(&key, append(&entries("w", 2), 2)).await {
                    Ok(written) => assert_eq!(written.epoch, made.epoch),
                    Err(error) => break assert_eq!(error, Refusal::NoSession.into()),
                }
                n += 1;
                if n == 20 {
                    store.delete(&key).await.unwrap().unwrap();
                }
            }
        };
        let folding = async {
            loop {
                let Ok(page) = store.read(&key, Seq::ZERO, ALL).await else { break };
                let seam = page.records.partition_point(|record| record.to <= page.head.folded_to);
                assert!(page.records.iter().all(|record| record.epoch == made.epoch));
                let raw = &page.records[seam..];
                if raw.len() > 1 {
                    let records = fold(&raw[..raw.len() / 2], Limits::default()).unwrap();
                    match store.fold(&key, Fold { epoch: made.epoch, records: &records }).await {
                        Ok(_) => {}
                        Err(error) => break assert_eq!(error, Refusal::NoSession.into()),
                    }
                }
            }
        };
        let reading = async {
            loop {
                match store.read(&key, Seq::ZERO, 64).await {
                    Ok(page) => assert_eq!(page.records[0].from, Seq(1)),
                    Err(error) => break assert_eq!(error, Refusal::NoSession.into()),
                }
            }
        };
        tokio::join!(writing, folding, reading);
    }
}
