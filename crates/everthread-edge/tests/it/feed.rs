//! The feed: what the sessions of a tenant are doing, as it happens.

use crate::harness::client::{hello, hello_as};
use crate::harness::http::{create, input, settled};
use crate::harness::{Client, Engine, OnRedis, PATIENCE, Request, Socket, Worker, World, until};
use everthread_edge::Edge;
use everthread_protocol::{Seq, SessionKey};
use everthread_store::Store;
use futures_util::StreamExt as _;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::time::{Instant, timeout};

on_both_engines!(
    a_watcher_sees_what_sessions_do_at_every_node,
    a_beginning_has_the_most_recent_sessions_and_what_comes_later_comes_too,
    a_device_is_told_what_it_has_not_read,
    a_session_that_is_deleted_is_gone,
    a_slow_watcher_is_told_how_sessions_are_and_not_how_they_were,
    the_list_and_the_events_tell_the_same_as_the_socket,
    a_connection_has_one_watch_and_may_end_it,
);

/// Changes of a session within this time are told together.
const COALESCE: Duration = Duration::from_millis(250);

/// Waits until the list has the session's last block: it is noted there behind the answer.
async fn is_listed<S: Store>(edge: &Edge<S>, session: &str) {
    let key: SessionKey = format!("default/{session}").parse().unwrap();
    let store = edge.desk.store();
    until("the list is up", async || {
        let page = store.read(&key, Seq(0), usize::MAX).await.unwrap();
        let last = page.records.last()?.parse_blocks().unwrap().last()?.at;
        let listed = store.sessions(&key.tenant, None, 100).await.unwrap();
        listed.into_iter().find(|(id, at)| *id == key.session && *at == last)
    })
    .await;
}

/// What a watcher has been told.
struct Watcher {
    socket: Socket,
    n: u64,
    beginnings: u32,
    sessions: BTreeMap<String, Value>,
    gone: Vec<String>,
}

impl Watcher {
    async fn of(mut socket: Socket, recent: u32) -> Self {
        let ok = socket.ask(json!({ "t": "watch", "recent": recent })).await;
        assert_eq!(ok["t"], "ok", "{ok}");
        let mut this = Self { socket, n: 0, beginnings: 0, sessions: BTreeMap::new(), gone: vec![] };
        this.read().await;
        assert_eq!(this.beginnings, 1);
        this
    }

    async fn join(address: SocketAddr) -> Self {
        Self::of(hello(address).await, 50).await
    }

    async fn read(&mut self) {
        let frame = self.socket.wait(|frame| frame["t"] == "sessions").await;
        assert_eq!(frame["n"], self.n + 1, "{frame}");
        self.take(&frame);
    }

    fn take(&mut self, frame: &Value) {
        self.n += 1;
        if let Some(sessions) = frame["sessions"].as_array() {
            self.beginnings += 1;
            self.sessions.clear();
            self.put(sessions);
        }
        self.put(frame["changed"].as_array().unwrap_or(&vec![]));
        for gone in frame["gone"].as_array().unwrap_or(&vec![]) {
            self.sessions.remove(gone.as_str().unwrap());
            self.gone.push(gone.as_str().unwrap().into());
        }
    }

    fn put(&mut self, sessions: &[Value]) {
        for session in sessions {
            self.sessions.insert(session["session"].as_str().unwrap().into(), session.clone());
        }
    }

    async fn until(&mut self, what: &str, done: impl Fn(&Self) -> bool) {
        let reading = async {
            while !done(self) {
                self.read().await;
            }
        };
        timeout(PATIENCE * 2, reading).await.unwrap_or_else(|_| panic!("never {what}"));
    }
}

async fn a_watcher_sees_what_sessions_do_at_every_node<E: Engine>() {
    let world = World::<E>::start().await;
    let (here, there) = (world.node().await, world.node().await);
    let mut watcher = Watcher::join(there.address).await;
    assert!(watcher.sessions.is_empty());
    create(here.address, "s").await;
    let run = input(here.address, "s", "Hi").await;
    watcher
        .until("the request", |w| w.sessions.get("s").is_some_and(|s| s["runs"][0]["status"] == "requested"))
        .await;
    assert_eq!(watcher.sessions["s"]["meta"]["title"], "A talk");
    let mut worker = Worker::join(here.address, "w1", "guide", 1).await;
    let mut job = worker.work().await;
    watcher
        .until("work", |w| {
            w.sessions["s"]["runs"] == json!([{ "run": run, "agent": "guide", "status": "active" }])
        })
        .await;
    worker.say(&mut job, "May I?").await;
    worker.suspend(&mut job, json!([{ "approval": "pay", "reason": "costs 5" }])).await;
    watcher.until("the approval", |w| w.sessions["s"]["approvals"][0]["approval"] == "pay").await;
    let session = &watcher.sessions["s"];
    assert_eq!(
        (&session["runs"][0]["status"], &session["approvals"][0]["run"]),
        (&json!("suspended"), &json!(run))
    );
    let answer = json!({ "id": "a", "kind": "answer", "target": { "run": run },
        "payload": { "approval": "pay", "decision": "approved" } });
    assert_eq!(settled(there.address, "s", &answer).await["outcome"], "applied");
    let mut job = worker.work().await;
    worker.end(&mut job, "completed").await;
    watcher.until("the end", |w| w.sessions["s"]["ended"]["outcome"] == "completed").await;
    let session = &watcher.sessions["s"];
    assert_eq!(
        (&session["ended"]["run"], &session["runs"], &session["approvals"]),
        (&json!(run), &json!([]), &json!([]))
    );
    Request::post("/v1/sessions/s/hold", &json!({})).send(here.address).await.with(200);
    watcher.until("the hold", |w| w.sessions["s"]["held"] == true).await;
    Request::post("/v1/sessions/s/release", &json!({})).send(here.address).await.with(200);
    watcher.until("the release", |w| w.sessions["s"]["held"].is_null()).await;
    let patch = json!({ "meta": { "title": "Another" } });
    Request::new("PATCH", "/v1/sessions/s").body(patch.to_string()).send(here.address).await.with(200);
    watcher.until("the title", |w| w.sessions["s"]["meta"]["title"] == "Another").await;
    assert_eq!(watcher.beginnings, 1);
}

async fn a_beginning_has_the_most_recent_sessions_and_what_comes_later_comes_too<E: Engine>() {
    let world = World::<E>::start().await;
    let node = world.node().await;
    for n in 0..12 {
        create(node.address, &format!("s{n}")).await;
    }
    // The times of the store are milliseconds: the last one is later than all others.
    tokio::time::sleep(Duration::from_millis(5)).await;
    input(node.address, "s3", "Hi").await;
    is_listed(&node.edge, "s3").await;
    let mut watcher = Watcher::of(hello(node.address).await, 4).await;
    assert_eq!(watcher.sessions.len(), 4);
    assert!(watcher.sessions.contains_key("s3"), "{:?}", watcher.sessions.keys());
    // One that was not among them.
    let other = (0..12).map(|n| format!("s{n}")).find(|s| !watcher.sessions.contains_key(s)).unwrap();
    input(node.address, &other, "Hi").await;
    watcher.until("what came later", |w| w.sessions.contains_key(&other)).await;
    let none = Watcher::of(hello(node.address).await, 0).await;
    assert!(none.sessions.is_empty());
}

async fn a_device_is_told_what_it_has_not_read<E: Engine>() {
    let world = World::<E>::start().await;
    let node = world.node().await;
    create(node.address, "s").await;
    let socket = hello_as(node.address, json!({ "subject": "ann", "device": "phone" })).await;
    let mut watcher = Watcher::of(socket, 50).await;
    assert_eq!(
        (&watcher.sessions["s"]["acked"], &watcher.sessions["s"]["unread_entries"]),
        (&Value::Null, &json!(1))
    );
    let entries = Request::get("/v1/sessions/s/entries").send(node.address).await.with(200);
    let cursor = json!({ "cursor": entries["cursor"] });
    Request::new("PUT", "/v1/sessions/s/devices/phone")
        .body(cursor.to_string())
        .send(node.address)
        .await
        .with(200);
    let events = json!({ "entries": [{ "type": "event", "name": "e" }, { "type": "event", "name": "f" }] });
    Request::post("/v1/sessions/s/entries", &events).send(node.address).await.with(202);
    watcher.until("the events", |w| w.sessions["s"]["seq"] == 3).await;
    assert_eq!(
        (&watcher.sessions["s"]["acked"], &watcher.sessions["s"]["unread_entries"]),
        (&json!(1), &json!(2))
    );
    let plain = Watcher::join(node.address).await;
    assert!(plain.sessions["s"]["unread_entries"].is_null());
}

async fn a_session_that_is_deleted_is_gone<E: Engine>() {
    let world = World::<E>::start().await;
    let (here, there) = (world.node().await, world.node().await);
    create(here.address, "s").await;
    create(here.address, "t").await;
    let mut watcher = Watcher::join(there.address).await;
    use everthread_store::Store as _;
    here.edge.desk.store().delete(&"default/s".parse().unwrap()).await.unwrap();
    watcher.until("the end", |w| w.gone == ["s"]).await;
    assert_eq!(watcher.sessions.len(), 1);
    create(here.address, "s").await;
    watcher.until("the new one", |w| w.sessions.contains_key("s")).await;
}

async fn a_slow_watcher_is_told_how_sessions_are_and_not_how_they_were<E: Engine>() {
    let world = World::<E>::start().await;
    let node = world.node().await;
    let mut slow = Watcher::join(node.address).await;
    let mut quick = Watcher::join(node.address).await;
    let rounds = 300;
    let begun = Instant::now();
    create(node.address, "s").await;
    for round in 0..rounds {
        let patch = json!({ "meta": { "round": round } });
        Request::new("PATCH", "/v1/sessions/s").body(patch.to_string()).send(node.address).await.with(200);
    }
    let is_last = |w: &Watcher| w.sessions.get("s").is_some_and(|s| s["meta"]["round"] == rounds - 1);
    quick.until("the last round", is_last).await;
    slow.until("the last round", is_last).await;
    // One in each such time, and the beginnings.
    let most = u64::try_from(begun.elapsed().as_millis() / COALESCE.as_millis()).unwrap() + 4;
    assert!(quick.n <= most && slow.n <= most, "{} {}, {most} at most", quick.n, slow.n);
    let reads = node.edge.metrics.feed_reads.get();
    assert!(reads <= most, "{reads} reads, {most} at most");
}

async fn the_list_and_the_events_tell_the_same_as_the_socket<E: Engine>() {
    let world = World::<E>::start().await;
    let node = world.node().await;
    for session in ["a", "b"] {
        create(node.address, session).await;
        input(node.address, session, "Hi").await;
        is_listed(&node.edge, session).await;
    }
    let watcher =
        Watcher::of(hello_as(node.address, json!({ "device": "d", "subject": "ann" })).await, 9).await;
    let list = Request::get("/v1/sessions?device=d").send(node.address).await.with(200);
    let mut listed = BTreeMap::new();
    for session in list["sessions"].as_array().unwrap() {
        listed.insert(session["session"].as_str().unwrap().to_owned(), session.clone());
    }
    assert_eq!(listed, watcher.sessions);
    let opened = Request::get("/v1/feed?recent=9&device=d").open(node.address).await;
    assert_eq!(
        (opened.status.as_u16(), &opened.headers["content-type"]),
        (200, &"text/event-stream".parse().unwrap())
    );
    let mut text = String::new();
    let mut chunks = opened.body.into_data_stream();
    while !text.contains("\n\n") {
        let chunk = timeout(PATIENCE, chunks.next()).await.expect("no event").unwrap().unwrap();
        text.push_str(std::str::from_utf8(&chunk).unwrap());
    }
    assert!(text.starts_with("event: sessions\ndata: "), "{text}");
    let data: Value =
        serde_json::from_str(text.lines().nth(1).unwrap().strip_prefix("data: ").unwrap()).unwrap();
    let mut told =
        Watcher { sessions: BTreeMap::new(), n: 0, beginnings: 0, gone: vec![], socket: watcher.socket };
    told.take(&data);
    assert_eq!((told.sessions, &data["n"]), (watcher.sessions, &json!(1)));
    let refused = Request::get("/v1/feed?recent=201").send(node.address).await;
    refused.is_error(400, "bad_request");
}

async fn a_connection_has_one_watch_and_may_end_it<E: Engine>() {
    let world = World::<E>::start().await;
    let node = world.node().await;
    create(node.address, "s").await;
    let mut watcher = Watcher::join(node.address).await;
    watcher.socket.ask(json!({ "t": "watch", "recent": 1 })).await;
    watcher.n = 0;
    watcher.read().await;
    assert_eq!(watcher.beginnings, 2, "the second takes the place of the first");
    assert_eq!(watcher.socket.ask(json!({ "t": "unwatch" })).await["t"], "ok");
    let mut other = Watcher::join(node.address).await;
    create(node.address, "t").await;
    other.until("the new session", |w| w.sessions.contains_key("t")).await;
    // What the first was sent until now is all that it is ever sent.
    watcher.socket.ask(json!({ "t": "attach", "session": "t", "from": "start" })).await;
    let next = watcher.socket.frame().await;
    assert_ne!(next["t"], "sessions", "{next}");
}

/// The feed's connection is lost and what happens meanwhile with it: the index tells.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_happens_while_the_store_is_away_is_told_when_it_is_back() {
    let world = World::<OnRedis>::start().await;
    let (here, there) = (world.node().await, world.node().await);
    create(here.address, "old").await;
    let mut watcher = Watcher::join(there.address).await;
    let proxy = world.engine.proxy(&"n2".parse().unwrap());
    proxy.cut();
    create(here.address, "new").await;
    input(here.address, "old", "Hi").await;
    proxy.heal();
    watcher
        .until("what was missed", |w| {
            w.sessions.contains_key("new") && w.sessions["old"]["runs"][0]["status"] == "requested"
        })
        .await;
    let mut client = Client::attach(there.address, "old", json!("start")).await;
    client.holds_the_state(here.address).await;
}
