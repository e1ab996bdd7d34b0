//! Devices and presence: how far each device has read, and who is there.

use super::{Heard, append, change, created, doubt, ear, entries, fresh, next, one, until};
use everthread_protocol::limits::DEVICES_MAX;
use everthread_protocol::{Cursor, DeviceId, Epoch, Millis, NodeId, Seq, SessionKey};
use everthread_store::{Error, Interest, PresenceChange, Present, Refusal, Store, Write};
use futures_util::stream::{self, StreamExt as _};

fn device(name: &str) -> DeviceId {
    name.parse().unwrap()
}

/// A session of ten entries, and the cursor at a seq of it.
async fn session<S: Store>(store: &S) -> (SessionKey, impl Fn(u64) -> Cursor) {
    let (key, first) = created(store).await;
    store.write(&key, append(&entries("d", 9), 9)).await.unwrap();
    (key, move |seq| Cursor { epoch: first.epoch, seq: Seq(seq) })
}

pub async fn a_device_goes_forward_and_never_back<S: Store>(store: &S) {
    let (key, at) = session(store).await;
    let phone = device("phone");
    assert_eq!(store.devices(&key).await.unwrap(), []);
    assert_eq!(store.ack(&key, &phone, at(0)).await.unwrap(), Some(at(0)));
    for (acked, stands) in [(4, 4), (2, 4), (4, 4), (10, 10), (9, 10)] {
        assert_eq!(store.ack(&key, &phone, at(acked)).await.unwrap(), Some(at(stands)));
        assert_eq!(store.devices(&key).await.unwrap()[0].cursor, at(stands));
    }
    let now = store.load(&key).await.unwrap().unwrap().now;
    let known = &store.devices(&key).await.unwrap()[0];
    assert_eq!(known.device, phone);
    assert!(known.at <= now && known.at.plus(60_000) > now, "{known:?} at {now:?}");
}

pub async fn a_cursor_that_the_log_has_not_is_not_taken<S: Store>(store: &S) {
    let (key, at) = session(store).await;
    let phone = device("phone");
    store.ack(&key, &phone, at(3)).await.unwrap();
    let strange = |epoch: u64, seq: u64| Cursor { epoch: Epoch(epoch), seq: Seq(seq) };
    let foreign = [at(11), at(u64::MAX), strange(at(0).epoch.0 + 1, 2), strange(1, 2), strange(u64::MAX, 2)];
    for cursor in foreign {
        assert_eq!(store.ack(&key, &phone, cursor).await.unwrap(), None, "{cursor}");
        assert_eq!(store.ack(&key, &device("new"), cursor).await.unwrap(), None, "{cursor}");
    }
    let known = store.devices(&key).await.unwrap();
    assert_eq!((known.len(), known[0].cursor), (1, at(3)));
    let nowhere = store.ack(&fresh(), &phone, at(1)).await.unwrap_err();
    assert_eq!(nowhere, Error::Refused(Refusal::NoSession));
}

pub async fn devices_of_a_session_are_told_apart_and_forgotten_one_by_one<S: Store>(store: &S) {
    let ((key, at), (other, other_at)) = (session(store).await, session(store).await);
    for (name, seq) in [("phone", 3), ("a.b", 7), ("Laptop", 5)] {
        store.ack(&key, &device(name), at(seq)).await.unwrap();
    }
    store.ack(&other, &device("phone"), other_at(9)).await.unwrap();
    let known = async |key: &SessionKey| {
        let devices = store.devices(key).await.unwrap();
        devices.iter().map(|d| (d.device.to_string(), d.cursor.seq.0)).collect::<Vec<_>>()
    };
    let all = [("Laptop".to_owned(), 5), ("a.b".to_owned(), 7), ("phone".to_owned(), 3)];
    assert_eq!(known(&key).await, all);
    assert!(store.forget_device(&key, &device("a.b")).await.unwrap());
    assert!(!store.forget_device(&key, &device("a.b")).await.unwrap());
    assert_eq!(known(&key).await, [all[0].clone(), all[2].clone()]);
    assert_eq!(known(&other).await, [("phone".to_owned(), 9)]);
    // It begins anew: nothing is left of where it was.
    assert_eq!(store.ack(&key, &device("a.b"), at(2)).await.unwrap(), Some(at(2)));
    assert!(!store.forget_device(&fresh(), &device("phone")).await.unwrap());
}

pub async fn one_device_is_found_in_many_sessions<S: Store>(store: &S) {
    let phone = device("phone");
    let (mut keys, mut expected) = (Vec::new(), Vec::new());
    for n in 0..6_u64 {
        let (key, at) = session(store).await;
        store.ack(&key, &device("laptop"), at(9)).await.unwrap();
        if n % 2 == 0 {
            store.ack(&key, &phone, at(n)).await.unwrap();
        }
        keys.push(key);
        expected.push((n % 2 == 0).then(|| at(n)));
    }
    keys.push(fresh());
    expected.push(None);
    let found = store.device_in(&keys, &phone).await.unwrap();
    let cursors: Vec<Option<Cursor>> = found.iter().map(|d| d.as_ref().map(|d| d.cursor)).collect();
    assert_eq!(cursors, expected);
    assert!(found.iter().flatten().all(|d| d.device == phone));
    assert_eq!(store.device_in(&[], &phone).await.unwrap(), []);
}

pub async fn of_many_acknowledgements_at_once_the_furthest_stands<S: Store>(store: &S) {
    let (key, at) = session(store).await;
    let (key, phone) = (&key, &device("phone"));
    let acks = (0..100_u64).map(|n| store.ack(key, phone, at(n * 7 % 11)));
    let stood: Vec<_> = stream::iter(acks).buffer_unordered(16).collect().await;
    assert!(stood.iter().all(|stood| matches!(stood, Ok(Some(_)))));
    assert_eq!(store.devices(key).await.unwrap()[0].cursor, at(10));
}

pub async fn of_too_many_devices_the_one_idle_for_longest_is_forgotten<S: Store>(store: &S) {
    let (key, at) = session(store).await;
    let (key, at) = (&key, &at);
    store.ack(key, &device("first"), at(1)).await.unwrap();
    // The store's clock counts milliseconds.
    let first = store.devices(key).await.unwrap()[0].at;
    until(async || (store.load(key).await.unwrap().unwrap().now > first).then_some(())).await;
    let others =
        (1..DEVICES_MAX).map(|n| async move { store.ack(key, &device(&format!("d{n}")), at(2)).await });
    stream::iter(others).buffer_unordered(64).for_each(async |acked| assert!(acked.unwrap().is_some())).await;
    let names = async || {
        let known = store.devices(key).await.unwrap();
        known.into_iter().map(|d| d.device.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(names().await.len(), DEVICES_MAX);
    store.ack(key, &device("last"), at(3)).await.unwrap();
    let known = names().await;
    assert_eq!(known.len(), DEVICES_MAX);
    assert!(known.contains(&"last".to_owned()) && !known.contains(&"first".to_owned()));
}

/// A node that no other test has.
fn node() -> NodeId {
    fresh().session.as_str().parse().unwrap()
}

fn comes(member: &str, about: &str) -> PresenceChange {
    PresenceChange { member: member.into(), about: Some((about.into(), None)) }
}

fn goes(member: &str) -> PresenceChange {
    PresenceChange { member: member.into(), about: None }
}

/// Long enough for any test.
const LONG_MS: u64 = 600_000;

async fn present<S: Store>(store: &S, key: &SessionKey) -> Vec<Present> {
    let mut present = store.present(key, 100).await.unwrap();
    present.sort_by(|a, b| (&a.member, &a.node).cmp(&(&b.member, &b.node)));
    present
}

async fn names<S: Store>(store: &S, key: &SessionKey) -> Vec<String> {
    present(store, key).await.into_iter().map(|one| one.member).collect()
}

pub async fn a_member_is_present_while_its_node_lives_and_holds_it<S: Store>(store: &S) {
    let (key, (here, there)) = (fresh(), (node(), node()));
    assert_eq!(store.living(&[here.clone(), there.clone()]).await.unwrap(), [false, false]);
    assert!(!store.beat_node(&here, LONG_MS).await.unwrap());
    assert!(!store.beat_node(&there, LONG_MS).await.unwrap());
    assert!(store.beat_node(&here, LONG_MS).await.unwrap());
    assert_eq!(store.living(&[node(), there.clone(), here.clone()]).await.unwrap(), [false, true, true]);
    let changes = [comes("user/ann/phone", r#"{"a": "b c"}"#), comes("user/ann/tv", "x")];
    store.hold_present(&key, &here, &changes).await.unwrap();
    store.hold_present(&key, &there, &[comes("user/bob/1", "y")]).await.unwrap();
    let found = present(store, &key).await;
    let about: Vec<_> = found.iter().map(|one| one.told.as_ref().unwrap().about.as_str()).collect();
    assert_eq!(about, [r#"{"a": "b c"}"#, "x", "y"]);
    assert_eq!((&found[0].node, &found[2].node), (&here, &there));
    // A node releases only what it holds itself.
    store.hold_present(&key, &there, &[goes("user/ann/tv"), goes("user/bob/1")]).await.unwrap();
    assert_eq!(names(store, &key).await, ["user/ann/phone", "user/ann/tv"]);
    // The node dies.
    store.beat_node(&here, 1).await.unwrap();
    until(async || names(store, &key).await.is_empty().then_some(())).await;
    assert!(!store.beat_node(&here, LONG_MS).await.unwrap());
    assert_eq!(names(store, &key).await, [] as [&str; 0], "what the dead held is forgotten");
    assert_eq!(present(store, &fresh()).await, []);
}

pub async fn what_is_told_of_a_member_changes_and_its_beginning_stays<S: Store>(store: &S) {
    let (key, here) = (fresh(), node());
    store.beat_node(&here, LONG_MS).await.unwrap();
    let told = async || present(store, &key).await.remove(0).told.unwrap();
    store.hold_present(&key, &here, &[comes("ann", "one")]).await.unwrap();
    let first = told().await;
    assert_eq!((first.since, first.about.as_str()), (first.at, "one"));
    let later = until(async || {
        store.hold_present(&key, &here, &[comes("ann", "two")]).await.unwrap();
        let told = told().await;
        (told.at > first.at).then_some(told)
    })
    .await;
    assert_eq!((later.since, later.about.as_str()), (first.since, "two"));
    let since = Some(Millis(5));
    let back = PresenceChange { member: "ann".into(), about: Some(("three".into(), since)) };
    store.hold_present(&key, &here, &[back]).await.unwrap();
    assert_eq!(told().await.since, Millis(5));
}

pub async fn the_same_member_may_be_held_by_two_nodes<S: Store>(store: &S) {
    let (key, nodes) = (fresh(), [node(), node()]);
    for node in &nodes {
        store.beat_node(node, LONG_MS).await.unwrap();
        store.hold_present(&key, node, &[comes("ann", node.as_str())]).await.unwrap();
    }
    let found = present(store, &key).await;
    let mut holders: Vec<_> = found.iter().map(|one| (one.member.as_str(), one.node.clone())).collect();
    holders.sort();
    let mut expected = nodes.clone().map(|node| ("ann", node));
    expected.sort();
    assert_eq!(holders, expected);
    store.hold_present(&key, &nodes[0], &[goes("ann")]).await.unwrap();
    assert_eq!(present(store, &key).await[0].node, nodes[1]);
}

pub async fn of_too_many_members_nothing_is_told_but_who_they_are<S: Store>(store: &S) {
    let (key, here) = (fresh(), node());
    store.beat_node(&here, LONG_MS).await.unwrap();
    let changes: Vec<_> = (0..600).map(|n| comes(&format!("m{n}"), "x")).collect();
    store.hold_present(&key, &here, &changes).await.unwrap();
    let all = store.present(&key, 600).await.unwrap();
    assert!(all.len() == 600 && all.iter().all(|one| one.told.is_some()));
    let many = store.present(&key, 599).await.unwrap();
    assert!(many.len() == 600 && many.iter().all(|one| one.told.is_none() && one.node == here));
}

pub async fn a_node_that_missed_its_beat_learns_it<S: Store>(store: &S) {
    let here = node();
    store.beat_node(&here, 1).await.unwrap();
    until(async || (!store.living(std::slice::from_ref(&here)).await.unwrap()[0]).then_some(())).await;
    assert!(!store.beat_node(&here, LONG_MS).await.unwrap());
    assert!(store.beat_node(&here, LONG_MS).await.unwrap());
}

pub async fn a_presence_follower_hears_of_members_and_of_nothing_else<S: Store>(store: &S) {
    let (key, first) = created(store).await;
    let here = node();
    store.beat_node(&here, LONG_MS).await.unwrap();
    let ((presence, mut members), (control, mut changes)) = (ear(), ear());
    let _presence = store.follow(&key, Interest::Presence, presence);
    let _control = store.follow(&key, Interest::Control, control);
    doubt(&mut members).await;
    doubt(&mut changes).await;
    store.write(&key, Write { change: Some(change(Some(first.version), "s1")), ..one() }).await.unwrap();
    assert!(matches!(next(&mut changes).await, Heard::Changed));
    assert!(members.try_recv().is_err(), "a change of the state");
    store.hold_present(&key, &here, &[comes("ann", "x")]).await.unwrap();
    assert!(matches!(next(&mut members).await, Heard::Changed));
    assert_eq!(names(store, &key).await, ["ann"]);
    assert!(changes.try_recv().is_err(), "somebody has come");
}
