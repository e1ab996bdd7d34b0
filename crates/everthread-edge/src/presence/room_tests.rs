//! Tests of [`super`].

use super::*;
use everthread_store::Told;
use serde_json::{Value, json};
use std::time::Duration;

fn node(name: &str) -> NodeId {
    name.parse().unwrap()
}

fn card(subject: &str, device: Option<&str>) -> Card {
    let author = json!({ "kind": "user", "id": subject, "device": device });
    Card::new(&serde_json::from_value(author).unwrap(), "c1")
}

/// A store of one session, without limits.
#[derive(Default)]
struct Store(BTreeMap<(String, String), (u64, u64, String)>, u64);

impl Store {
    fn hold(&mut self, node: &str, news: News) {
        self.1 += 1;
        for change in news.changes {
            let place = (node.to_owned(), change.member);
            match change.about {
                Some((about, since)) => {
                    let since = since.map_or(self.1, |since| since.0);
                    self.0.insert(place, (since, self.1, about));
                }
                None => drop(self.0.remove(&place)),
            }
        }
    }

    fn present(&self) -> Vec<Present> {
        let present = self.0.iter().map(|((node, member), (since, at, about))| Present {
            node: node.parse().unwrap(),
            member: member.clone(),
            told: Some(Told { since: Millis(*since), at: Millis(*at), about: about.clone() }),
        });
        present.collect()
    }

    /// A pass of a node.
    fn pass(&mut self, node: &str, room: &mut Room) -> bool {
        if !room.is_known() {
            room.learn(&self.present());
        }
        self.hold(node, room.take_news());
        room.learn(&self.present())
    }
}

fn frame(end: &Bytes) -> Value {
    serde_json::from_str(&format!("{{\"t\":\"presence\"{}", std::str::from_utf8(end).unwrap())).unwrap()
}

fn frames(room: &mut Room, seen: &mut Option<u64>) -> Vec<Value> {
    let Some((frames, now)) = room.after(*seen) else { return Vec::new() };
    *seen = Some(now);
    frames.iter().map(frame).collect()
}

#[test]
fn who_joins_tells_something_and_leaves_is_told_to_others_once() {
    let (mut store, mut room, mut seen) = (Store::default(), Room::new(node("n1")), None);
    assert!(frames(&mut room, &mut seen).is_empty(), "nothing is known yet");
    room.join(card("ann", Some("phone")));
    store.pass("n1", &mut room);
    let all = frames(&mut room, &mut seen);
    assert_eq!(all[0]["members"][0]["member"], "user/ann/phone");
    room.join(card("bob", None));
    assert!(store.pass("n1", &mut room) && !store.pass("n1", &mut room));
    let bob = json!({ "member": "user/bob/c1", "kind": "user", "subject": "bob", "since": 2 });
    assert_eq!(frames(&mut room, &mut seen), [json!({ "t": "presence", "joined": [bob] })]);
    room.tell("user/bob/c1", r#"{"typing":true}"#.into());
    store.pass("n1", &mut room);
    let told = frames(&mut room, &mut seen);
    assert_eq!((&told[0]["changed"][0]["data"]["typing"], &told[0]["joined"]), (&json!(true), &Value::Null));
    room.tell("user/bob/c1", r#"{"typing":true}"#.into());
    assert!(!room.has_news());
    let now = Instant::now();
    room.leave("user/bob/c1", now);
    assert!(room.expire(now));
    store.pass("n1", &mut room);
    assert_eq!(frames(&mut room, &mut seen), [json!({ "t": "presence", "left": ["user/bob/c1"] })]);
    assert!(frames(&mut room, &mut seen).is_empty());
}

#[test]
fn who_comes_back_in_time_is_seen_by_nobody_to_have_been_away() {
    let mut store = Store::default();
    let (mut here, mut there) = (Room::new(node("n1")), Room::new(node("n2")));
    let (now, phone) = (Instant::now(), "user/ann/phone");
    here.join(card("ann", Some("phone")));
    here.tell(phone, r#"{"a":1}"#.into());
    store.pass("n1", &mut here);
    // Through the same node.
    here.leave(phone, now + Duration::from_secs(3));
    here.join(card("ann", Some("phone")));
    assert!(!here.expire(now + Duration::from_secs(9)) && !here.has_news());
    // Through another one, which knows nothing yet.
    here.leave(phone, now + Duration::from_secs(3));
    there.join(card("ann", Some("phone")));
    store.pass("n2", &mut there);
    assert!(!store.pass("n1", &mut here), "the same member");
    assert!(here.expire(now + Duration::from_secs(3)));
    assert!(!store.pass("n1", &mut here) && !store.pass("n2", &mut there));
    assert_eq!(store.0.len(), 1);
}

#[test]
fn two_attachments_of_a_device_are_one_member_until_both_are_gone() {
    let (mut store, mut room, now) = (Store::default(), Room::new(node("n1")), Instant::now());
    room.join(card("ann", Some("phone")));
    room.join(card("ann", Some("phone")));
    store.pass("n1", &mut room);
    room.leave("user/ann/phone", now);
    assert!(!room.expire(now));
    room.leave("user/ann/phone", now);
    assert!(room.expire(now));
}

#[test]
fn what_the_store_lost_is_said_again_and_what_it_kept_too_long_is_taken_back() {
    let (mut store, mut room) = (Store::default(), Room::new(node("n1")));
    room.join(card("ann", None));
    store.pass("n1", &mut room);
    store.0.clear();
    room.learn(&store.present());
    assert!(room.has_news());
    store.pass("n1", &mut room);
    assert_eq!(store.0.len(), 1);
    let about = r#"{"kind":"user","subject":"old"}"#.to_owned();
    store.0.insert(("n1".into(), "old".into()), (1, 1, about));
    room.learn(&store.present());
    store.pass("n1", &mut room);
    assert_eq!(store.0.len(), 1);
    // What could not be said is said later.
    room.say_all_again();
    let news = room.take_news();
    assert!(!room.has_news());
    room.take_back(news);
    assert!(room.has_news());
}

#[test]
fn of_too_many_only_the_number_is_told_until_they_are_few_again() {
    let (mut store, mut room, mut seen) = (Store::default(), Room::new(node("n1")), None);
    store.pass("n1", &mut room);
    assert_eq!(frames(&mut room, &mut seen), [json!({ "t": "presence", "members": [] })]);
    for n in 0..=PRESENCE_LIST_MAX {
        room.join(card(&format!("m{n}"), None));
    }
    store.pass("n1", &mut room);
    assert!(room.is_counted());
    let counted = json!({ "t": "presence", "count": PRESENCE_LIST_MAX + 1 });
    assert_eq!(frames(&mut room, &mut seen), std::slice::from_ref(&counted));
    assert_eq!(frames(&mut room, &mut None), [counted]);
    let now = Instant::now();
    room.leave("user/m0/c1", now);
    room.expire(now);
    store.pass("n1", &mut room);
    let listed = frames(&mut room, &mut seen);
    assert_eq!(listed[0]["members"].as_array().unwrap().len(), PRESENCE_LIST_MAX);
}

#[test]
fn who_was_away_for_too_many_changes_gets_everybody() {
    let (mut store, mut room, mut seen) = (Store::default(), Room::new(node("n1")), None);
    room.join(card("ann", None));
    store.pass("n1", &mut room);
    frames(&mut room, &mut seen);
    let mut late = seen;
    for n in 0..=CHANGES_KEPT {
        room.tell("user/ann/c1", format!("{{\"n\":{n}}}"));
        store.pass("n1", &mut room);
        let told = frames(&mut room, &mut seen);
        assert_eq!((told.len(), &told[0]["changed"][0]["data"]["n"]), (1, &json!(n)));
        if n + 1 == CHANGES_KEPT {
            assert_eq!(frames(&mut room, &mut late.clone()).len(), CHANGES_KEPT);
        }
    }
    let told = frames(&mut room, &mut late);
    assert_eq!((told.len(), &told[0]["members"][0]["data"]["n"]), (1, &json!(CHANGES_KEPT)));
}
