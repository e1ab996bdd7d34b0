//! Presence: who else is here now, across nodes.

use crate::harness::http::{create, state};
use crate::harness::socket::Heard;
use crate::harness::{Engine, Node, OnRedis, PATIENCE, Request, Socket, World, client, until};
use everthread_edge::metrics::Metrics;
use everthread_protocol::Record;
use everthread_protocol::limits::PRESENCE_LIST_MAX;
use everthread_store::{Follower, Interest, Store};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

on_both_engines!(
    who_comes_tells_something_and_goes_is_seen_at_every_node,
    who_comes_back_to_another_node_in_time_is_never_seen_to_have_been_away,
    a_device_with_two_attachments_leaves_when_both_are_gone,
    members_of_a_node_that_is_gone_vanish_by_themselves,
    of_more_than_two_hundred_only_the_number_is_told,
    however_many_come_at_once_a_few_frames_tell_of_them,
    a_thousand_who_come_and_go_cost_a_few_messages_a_second,
    everybody_is_told_again_to_who_asks_and_to_who_has_heard_of_changes_for_long,
    presence_is_only_for_those_who_attach_with_it_and_leaves_no_trace_in_the_log,
    who_is_present_is_told_over_http,
    a_session_made_anew_has_none_of_the_members_of_the_one_that_was_deleted,
);

/// Somebody who is present in `s`, and what they know of the others.
struct Person {
    socket: Socket,
    members: BTreeMap<String, Value>,
    count: Option<u64>,
    n: u64,
    /// Every frame, in order.
    frames: Vec<Value>,
}

impl Person {
    async fn join(address: SocketAddr, subject: &str, device: Option<&str>) -> Self {
        let hello = json!({ "subject": subject, "device": device });
        let mut socket = client::hello_as(address, hello).await;
        let attached = socket.ask(Self::attach()).await;
        assert_eq!(attached["t"], "attached", "{attached}");
        Self::attached(socket)
    }

    /// As [`Person::join`], through a node that has just come back: what may be asked again is asked again.
    async fn join_patiently(address: SocketAddr, subject: &str) -> Self {
        let mut socket = client::hello_as(address, json!({ "subject": subject })).await;
        until("the node lets somebody in", async || {
            let answer = socket.ask(Self::attach()).await;
            assert!(answer["t"] == "attached" || answer["retryable"] == true, "{answer}");
            (answer["t"] == "attached").then_some(())
        })
        .await;
        Self::attached(socket)
    }

    fn attach() -> Value {
        json!({ "t": "attach", "session": "s", "from": "start", "presence": true })
    }

    fn attached(socket: Socket) -> Self {
        Self { socket, members: BTreeMap::new(), count: None, n: 0, frames: Vec::new() }
    }

    /// Comes with what it tells of itself.
    async fn tell(&mut self, data: Value) {
        self.socket.send(&json!({ "t": "presence", "attachment": 1, "data": data })).await;
    }

    /// Takes the next frame; false if the connection is closed.
    async fn read(&mut self) -> bool {
        match self.socket.hear().await {
            Heard::Closed(_) => false,
            Heard::Frame(frame) => {
                if frame["t"] == "presence" {
                    self.take(frame);
                }
                true
            }
        }
    }

    fn take(&mut self, frame: Value) {
        self.n += 1;
        assert_eq!(frame["n"], self.n, "{frame}");
        let list = |name: &str| frame[name].as_array().cloned().unwrap_or_default();
        if frame["members"].is_array() {
            self.members.clear();
        }
        self.count = frame["count"].as_u64();
        let name = |member: &Value| member["member"].as_str().unwrap().to_owned();
        for member in list("members").into_iter().chain(list("joined")) {
            assert!(self.members.insert(name(&member), member.clone()).is_none(), "{member} is there");
        }
        for member in list("changed") {
            let before = self.members.insert(name(&member), member.clone());
            assert!(before.is_some_and(|before| before != member), "{member} is the same or not there");
        }
        for member in list("left") {
            assert!(self.members.remove(member.as_str().unwrap()).is_some(), "{member} is not there");
        }
        self.frames.push(frame);
    }

    /// Reads until `done`, and fails with `what` if it never is.
    async fn until(&mut self, what: &str, done: impl Fn(&Self) -> bool) {
        let reading = async {
            while !done(self) {
                assert!(self.read().await, "closed before {what}");
            }
        };
        if timeout(PATIENCE, reading).await.is_err() {
            panic!("never {what}: {:?}", self.frames);
        }
    }

    /// Reads until these are present, and nobody else.
    async fn sees(&mut self, subjects: &[&str]) {
        let what = format!("{subjects:?} are here");
        self.until(&what, |person| person.n > 0 && person.count.is_none() && person.subjects() == subjects)
            .await;
    }

    fn subjects(&self) -> Vec<&str> {
        let mut all: Vec<_> = self.members.values().map(|m| m["subject"].as_str().unwrap()).collect();
        all.sort_unstable();
        all
    }

    /// Every subject that came, changed or left, in whatever frame.
    fn has_heard_of(&self, subject: &str) -> bool {
        let told = |frame: &Value| {
            let mut parts = ["joined", "changed", "left"].into_iter().map(|name| frame[name].to_string());
            parts.any(|part| part.contains(subject))
        };
        self.frames.iter().any(told)
    }
}

/// How many nodes hold a member, as the store has it.
async fn holders<S: Store>(node: &Node<S>, member: &str) -> usize {
    let key = "default/s".parse().unwrap();
    let present = node.edge.reader.store().present(&key, 1_000).await.unwrap();
    present.iter().filter(|one| one.member == member).count()
}

async fn who_comes_tells_something_and_goes_is_seen_at_every_node<E: Engine>() {
    let world = World::<E>::start().await;
    let (here, there) = (world.node().await, world.node().await);
    create(here.address, "s").await;
    let mut ann = Person::join(here.address, "ann", Some("phone")).await;
    ann.sees(&["ann"]).await;
    assert!(ann.frames[0]["members"].is_array(), "the first frame tells everybody, oneself too");
    let mut bob = Person::join(there.address, "bob", None).await;
    ann.sees(&["ann", "bob"]).await;
    bob.sees(&["ann", "bob"]).await;
    let phone = &bob.members["user/ann/phone"];
    assert_eq!(
        (&phone["kind"], &phone["device"], &phone["data"]),
        (&json!("user"), &json!("phone"), &Value::Null)
    );
    assert!(phone["since"].is_u64());
    for typing in [json!({ "typing": true, "in": [1, "a b", null] }), json!({ "typing": false }), json!({})] {
        ann.tell(typing.clone()).await;
        let shown = if typing == json!({}) { Value::Null } else { typing };
        let is_told = |person: &Person| person.members["user/ann/phone"]["data"] == shown;
        bob.until("ann tells something", is_told).await;
        ann.until("ann hears of it too", is_told).await;
    }
    let since = bob.members["user/ann/phone"]["since"].clone();
    assert_eq!(ann.members["user/ann/phone"]["since"], since, "it came when it came");
    drop(bob);
    ann.sees(&["ann"]).await;
    let seen = ann.members.clone();
    let mut carl = Person::join(there.address, "carl", None).await;
    carl.sees(&["ann", "carl"]).await;
    assert_eq!(carl.members["user/ann/phone"], seen["user/ann/phone"]);
}

async fn who_comes_back_to_another_node_in_time_is_never_seen_to_have_been_away<E: Engine>() {
    let mut world = World::<E>::start().await;
    let grace = Duration::from_secs(4);
    world.presence.grace = grace;
    let (here, there) = (world.node().await, world.node().await);
    create(here.address, "s").await;
    let mut watcher = Person::join(there.address, "watcher", None).await;
    let mut ann = Person::join(here.address, "ann", Some("phone")).await;
    ann.tell(json!({ "viewing": "m1" })).await;
    let has_told =
        |person: &Person| person.members.get("user/ann/phone").is_some_and(|m| m["data"].is_object());
    watcher.until("ann is here", has_told).await;
    let mut before = watcher.frames.len();
    let (mut elsewhere, mut now_at) = (&there, &here);
    // On a machine so slow that she is late, once more.
    loop {
        drop(ann);
        let away = Instant::now();
        ann = Person::join(elsewhere.address, "ann", Some("phone")).await;
        ann.until("ann is here", |ann| ann.members.contains_key("user/ann/phone")).await;
        let place = format!("{}.", elsewhere.edge.config.node);
        until("the node holds her", async || {
            let held = here.edge.reader.store().present(&"default/s".parse().unwrap(), 9).await.unwrap();
            let is_it = |one: &everthread_store::Present| {
                one.member == "user/ann/phone" && one.node.as_str().starts_with(&place)
            };
            held.iter().any(is_it).then_some(())
        })
        .await;
        if away.elapsed() < grace {
            break;
        }
        ann.tell(json!({ "viewing": "m1" })).await;
        ann.until("ann tells it again", has_told).await;
        watcher.until("ann is here again", has_told).await;
        before = watcher.frames.len();
        std::mem::swap(&mut elsewhere, &mut now_at);
    }
    assert!(has_told(&ann), "what she told is still known");
    until("only the other node holds her", async || {
        let held = there.edge.reader.store().present(&"default/s".parse().unwrap(), 9).await.unwrap();
        let hers: Vec<_> = held.iter().filter(|one| one.member == "user/ann/phone").collect();
        let place = elsewhere.edge.config.node.as_str();
        (hers.len() == 1 && hers[0].node.as_str().starts_with(&format!("{place}."))).then_some(())
    })
    .await;
    let _marker = Person::join(here.address, "marker", None).await;
    watcher.sees(&["ann", "marker", "watcher"]).await;
    watcher.frames.drain(..before);
    assert!(!watcher.has_heard_of("ann"), "{:?}", watcher.frames);
}

async fn a_device_with_two_attachments_leaves_when_both_are_gone<E: Engine>() {
    let world = World::<E>::start().await;
    let (here, there) = (world.node().await, world.node().await);
    create(here.address, "s").await;
    let mut watcher = Person::join(here.address, "watcher", None).await;
    let one = Person::join(here.address, "ann", Some("laptop")).await;
    let other = Person::join(there.address, "ann", Some("laptop")).await;
    let bob = Person::join(here.address, "bob", None).await;
    watcher.sees(&["ann", "bob", "watcher"]).await;
    until("both nodes hold her", async || (holders(&here, "user/ann/laptop").await == 2).then_some(())).await;
    drop((one, bob));
    watcher.sees(&["ann", "watcher"]).await;
    until("one node holds her", async || (holders(&here, "user/ann/laptop").await == 1).then_some(())).await;
    assert!(
        !watcher.frames.iter().any(|frame| frame["left"].to_string().contains("ann")),
        "{:?}",
        watcher.frames
    );
    drop(other);
    watcher.sees(&["watcher"]).await;
}

async fn members_of_a_node_that_is_gone_vanish_by_themselves<E: Engine>() {
    let world = World::<E>::start().await;
    let (here, there) = (world.node().await, world.node().await);
    create(here.address, "s").await;
    let mut ann = Person::join(here.address, "ann", None).await;
    let bob = Person::join(there.address, "bob", None).await;
    let carl = Person::join(there.address, "carl", Some("tv")).await;
    ann.sees(&["ann", "bob", "carl"]).await;
    drop(there);
    ann.sees(&["ann"]).await;
    until("the store has forgotten them", async || {
        let present = here.edge.reader.store().present(&"default/s".parse().unwrap(), 9).await.unwrap();
        (present.len() == 1).then_some(())
    })
    .await;
    drop((bob, carl));
}

async fn of_more_than_two_hundred_only_the_number_is_told<E: Engine>() {
    let world = World::<E>::start().await;
    let (here, there) = (world.node().await, world.node().await);
    create(here.address, "s").await;
    let mut watcher = Person::join(here.address, "watcher", None).await;
    watcher.sees(&["watcher"]).await;
    let mut joining = JoinSet::new();
    for n in 0..PRESENCE_LIST_MAX {
        let address = [here.address, there.address][n % 2];
        joining.spawn(async move { Person::join(address, &format!("p{n}"), None).await });
    }
    let mut others = joining.join_all().await;
    let all = PRESENCE_LIST_MAX as u64 + 1;
    watcher.until("all are counted", |watcher| watcher.count == Some(all)).await;
    let last = watcher.frames.last().unwrap();
    assert!(["members", "joined", "changed", "left"].iter().all(|name| last[*name].is_null()), "{last}");
    let told = Request::get("/v1/sessions/s/presence").send(there.address).await.with(200);
    assert_eq!(told, json!({ "count": all }));
    // One less, and they are listed again.
    drop(others.pop());
    watcher.until("they are listed", |watcher| watcher.members.len() == PRESENCE_LIST_MAX).await;
    assert!(watcher.frames.last().unwrap()["members"].is_array());
}

/// People who come at once.
const CROWD: usize = 100;

async fn however_many_come_at_once_a_few_frames_tell_of_them<E: Engine>() {
    let world = World::<E>::start().await;
    let (here, there) = (world.node().await, world.node().await);
    create(here.address, "s").await;
    let mut watcher = Person::join(here.address, "watcher", None).await;
    watcher.sees(&["watcher"]).await;
    let (begun, read_before) = (Instant::now(), here.edge.metrics.presence_reads.get());
    let mut joining = JoinSet::new();
    for n in 0..CROWD {
        let address = [here.address, there.address][n % 2];
        joining.spawn(async move { Person::join(address, &format!("p{n}"), None).await });
    }
    let _others = joining.join_all().await;
    watcher.until("all are here", |watcher| watcher.members.len() == CROWD + 1).await;
    let times = &world.presence;
    // One frame in each such time, the whole list now and then, and the one before.
    let most = begun.elapsed().as_millis() / times.coalesce.as_millis()
        + begun.elapsed().as_millis() / times.whole.as_millis()
        + 3;
    assert!((watcher.frames.len() as u128) <= most, "{} frames, {most} at most", watcher.frames.len());
    let reads = here.edge.metrics.presence_reads.get() - read_before;
    assert!(u128::from(reads) <= most, "{reads} reads, {most} at most");
}

/// Members of a large room.
const THOUSAND: usize = 1_000;

/// Counts what is published about who is present.
#[derive(Default)]
struct Published(AtomicU64);

impl Follower for Published {
    fn record(&self, _record: Record) {}

    fn changed(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn doubt(&self) {}
}

async fn a_thousand_who_come_and_go_cost_a_few_messages_a_second<E: Engine>() {
    let world = World::<E>::start().await;
    let (here, there) = (world.node().await, world.node().await);
    create(here.address, "s").await;
    let published = Arc::<Published>::default();
    let store = here.edge.reader.store();
    let _following = store.follow(&"default/s".parse().unwrap(), Interest::Presence, published.clone());
    let mut watcher = Person::join(here.address, "watcher", None).await;
    watcher.sees(&["watcher"]).await;
    let counts = |counter: fn(&Metrics) -> u64| counter(&here.edge.metrics) + counter(&there.edge.metrics);
    let (reads, frames) = (|m: &Metrics| m.presence_reads.get(), |m: &Metrics| m.presence_frames.get());
    let (begun, before) = (Instant::now(), (counts(reads), counts(frames)));
    let (mut joining, mut others) = (JoinSet::new(), Vec::new());
    for n in 0..THOUSAND {
        let address = [here.address, there.address][n % 2];
        joining.spawn(async move { Person::join(address, &format!("p{n}"), None).await });
        if joining.len() >= 32 {
            others.push(joining.join_next().await.unwrap().unwrap());
        }
    }
    others.extend(joining.join_all().await);
    watcher.until("all are counted", |watcher| watcher.count == Some(THOUSAND as u64 + 1)).await;
    drop(others);
    watcher.sees(&["watcher"]).await;
    let took = begun.elapsed();
    let (messages, reads) = (published.0.load(Ordering::Relaxed), counts(reads) - before.0);
    eprintln!(
        "{THOUSAND} came and went in {:.1} s: {messages} messages published, {reads} reads, {} frames to all of them",
        took.as_secs_f64(),
        counts(frames) - before.1
    );
    // Two nodes, each with one look in each such time, and the one before.
    let most = 2 * (took.as_millis() / world.presence.coalesce.as_millis() + 2);
    assert!(u128::from(messages) <= most, "{messages} messages, {most} at most");
    assert!(u128::from(reads) <= most, "{reads} reads, {most} at most");
}

async fn everybody_is_told_again_to_who_asks_and_to_who_has_heard_of_changes_for_long<E: Engine>() {
    let world = World::<E>::start().await;
    let node = world.node().await;
    create(node.address, "s").await;
    let mut ann = Person::join(node.address, "ann", None).await;
    ann.sees(&["ann"]).await;
    let lists = |person: &Person| person.frames.iter().filter(|frame| frame["members"].is_array()).count();
    ann.socket.send(&json!({ "t": "presence", "attachment": 1 })).await;
    ann.until("the list has come again", |ann| lists(ann) == 2).await;
    let _bob = Person::join(node.address, "bob", None).await;
    ann.sees(&["ann", "bob"]).await;
    ann.until("the list comes by itself", |ann| lists(ann) == 3).await;
    assert_eq!(ann.subjects(), ["ann", "bob"]);
}

async fn presence_is_only_for_those_who_attach_with_it_and_leaves_no_trace_in_the_log<E: Engine>() {
    let world = World::<E>::start().await;
    let (here, there) = (world.node().await, world.node().await);
    create(here.address, "s").await;
    let before = state(here.address, "s").await;
    let mut silent = client::hello_as(there.address, json!({ "subject": "silent" })).await;
    silent.ask(json!({ "t": "attach", "session": "s", "from": "start" })).await;
    while silent.frame().await["t"] != "live" {}
    let mut ann = Person::join(here.address, "ann", None).await;
    ann.tell(json!({ "typing": true })).await;
    ann.until("ann types", |ann| ann.members.values().any(|m| m["data"].is_object())).await;
    assert_eq!(ann.subjects(), ["ann"]);
    silent.send(&json!({ "t": "presence", "attachment": 1, "data": {} })).await;
    assert_eq!(silent.frame().await["code"], "bad_request", "the first that it hears since it is live");
    silent.send(&json!({ "t": "presence", "attachment": 2, "data": {} })).await;
    assert_eq!(silent.frame().await["code"], "bad_request");
    let large = json!({ "a": "x".repeat(2_000) });
    ann.tell(large).await;
    let refused = ann.socket.wait(|frame| frame["t"] == "error").await;
    assert_eq!(refused["code"], "too_large", "{refused}");
    assert_eq!(ann.socket.ask(json!({ "t": "detach", "attachment": 1 })).await["t"], "ok");
    until("ann is gone", async || {
        let present = there.edge.reader.store().present(&"default/s".parse().unwrap(), 9).await.unwrap();
        present.is_empty().then_some(())
    })
    .await;
    assert_eq!(state(there.address, "s").await, before);
}

async fn who_is_present_is_told_over_http<E: Engine>() {
    let world = World::<E>::start().await;
    let (here, there) = (world.node().await, world.node().await);
    create(here.address, "s").await;
    let get = async || Request::get("/v1/sessions/s/presence").send(there.address).await.with(200);
    assert_eq!(get().await, json!({ "members": [] }));
    let mut ann = Person::join(here.address, "ann", Some("phone")).await;
    ann.sees(&["ann"]).await;
    let members: Vec<Value> = ann.members.values().cloned().collect();
    assert_eq!(get().await, json!({ "members": members }));
    Request::get("/v1/sessions/none/presence").send(here.address).await.is_error(404, "no_session");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_of_a_node_that_dies_without_a_word_vanish_and_one_that_was_only_cut_off_brings_them_back() {
    let mut world = World::<OnRedis>::start().await;
    world.presence.node_ttl = Duration::from_secs(2);
    let (here, there) = (world.node().await, world.node().await);
    create(here.address, "s").await;
    let mut ann = Person::join(here.address, "ann", None).await;
    let mut bob = Person::join(there.address, "bob", None).await;
    ann.sees(&["ann", "bob"]).await;
    bob.sees(&["ann", "bob"]).await;
    let proxy = world.engine.proxy(&there.edge.config.node);
    proxy.cut();
    ann.sees(&["ann"]).await;
    proxy.heal();
    ann.sees(&["ann", "bob"]).await;
    let carl = Person::join_patiently(there.address, "carl").await;
    ann.sees(&["ann", "bob", "carl"]).await;
    proxy.cut();
    drop(there);
    ann.sees(&["ann"]).await;
    drop((bob, carl));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_redis_has_lost_of_the_presence_is_said_again() {
    let world = World::<OnRedis>::start().await;
    let (here, there) = (world.node().await, world.node().await);
    create(here.address, "s").await;
    let mut ann = Person::join(here.address, "ann", None).await;
    let mut bob = Person::join(there.address, "bob", None).await;
    ann.sees(&["ann", "bob"]).await;
    bob.sees(&["ann", "bob"]).await;
    let lose = "DEL et:{default/s}:presence";
    assert_eq!(world.engine.server.command(lose).await.unwrap(), ":1\r\n");
    let fields = async || world.engine.server.command("HLEN et:{default/s}:presence").await.unwrap();
    until("both are said again", async || (fields().await == ":2\r\n").then_some(())).await;
    let mut carl = Person::join(there.address, "carl", None).await;
    carl.sees(&["ann", "bob", "carl"]).await;
    ann.sees(&["ann", "bob", "carl"]).await;
    let ttl = world.engine.server.command("PTTL et:{default/s}:presence").await.unwrap();
    assert!(ttl.trim().trim_start_matches(':').parse::<i64>().unwrap() > 0, "{ttl}");
}

async fn a_session_made_anew_has_none_of_the_members_of_the_one_that_was_deleted<E: Engine>() {
    let mut world = World::<E>::start().await;
    // Nobody leaves by time alone.
    world.presence.grace = Duration::from_secs(3600);
    let (here, there) = (world.node().await, world.node().await);
    create(here.address, "s").await;
    let mut ann = Person::join(here.address, "ann", Some("phone")).await;
    let mut bob = Person::join(there.address, "bob", None).await;
    let carl = Person::join(here.address, "carl", None).await;
    for person in [&mut ann, &mut bob] {
        person.sees(&["ann", "bob", "carl"]).await;
    }
    // Away, and still a member: nobody will tell that connection anything.
    drop(carl);
    Request::new("DELETE", "/v1/sessions/s").send(there.address).await.with(200);
    create(there.address, "s").await;
    let mut dora = Person::join(here.address, "dora", None).await;
    let mut emil = Person::join(there.address, "emil", None).await;
    dora.sees(&["dora", "emil"]).await;
    emil.sees(&["dora", "emil"]).await;
    // Not even in the first list of somebody who comes to a node that knew them.
    let mut late = Person::join(here.address, "late", None).await;
    late.sees(&["dora", "emil", "late"]).await;
    assert!(
        !["ann", "bob", "carl"].iter().any(|name| late.frames[0].to_string().contains(name)),
        "{:?}",
        late.frames
    );
    // Who was told that the first one is gone may come to the second.
    for person in [&mut ann, &mut bob] {
        let heard = person.socket.wait(|frame| frame["t"] == "gone").await;
        assert_eq!(heard["attachment"], 1);
    }
    let mut ann = Person::join(here.address, "ann", Some("phone")).await;
    ann.sees(&["ann", "dora", "emil", "late"]).await;
    emil.sees(&["ann", "dora", "emil", "late"]).await;
}
