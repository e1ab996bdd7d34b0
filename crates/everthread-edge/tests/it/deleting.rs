//! Deletion: whoever follows a session that is deleted, works in it or waits for it is told, on every node; and one that is
//! made anew is another.

use crate::harness::begun::key;
use crate::harness::http::{Opened, WAIT_MS, control, create, input};
use crate::harness::{
    Begun, Client, Engine, NO_FOLDING, OnRedis, PATIENCE, Request, Socket, Worker, World, client, until,
};
use everthread_store::Store as _;
use futures_util::StreamExt as _;
use serde_json::{Value, json};
use std::net::SocketAddr;
use tokio::time::timeout;

on_both_engines!(
    everybody_learns_on_every_node_that_a_session_was_deleted_in_the_middle_of_a_stream,
    a_worker_that_was_given_a_run_is_fenced_and_takes_the_next,
    who_waits_for_the_outcome_of_a_control_learns_that_there_is_no_session,
    a_session_made_anew_is_another_and_cursors_of_before_get_a_reset,
    a_session_deleted_and_made_anew_at_once_ends_those_who_followed_the_first,
    a_deleted_session_is_not_listed_and_its_place_in_the_index_goes,
    deleting_races_writers_and_attaches_and_nobody_sees_two_logs_in_one,
    deleting_what_is_not_there_says_so,
);

/// Deletes a session; whether it was there.
async fn delete(address: SocketAddr, session: &str) -> bool {
    let answer = Request::new("DELETE", format!("/v1/sessions/{session}")).send(address).await.with(200);
    answer["deleted"].as_bool().unwrap()
}

/// Reads until the attachment is over; what came before.
async fn gone(socket: &mut Socket, attachment: u32) -> Vec<Value> {
    let mut before = Vec::new();
    loop {
        let frame = socket.frame().await;
        if frame["t"] == "gone" {
            assert_eq!(frame, json!({ "t": "gone", "attachment": attachment, "reason": "deleted" }));
            return before;
        }
        before.push(frame);
    }
}

/// An SSE follower.
struct Follower {
    body: axum::body::BodyDataStream,
    _opened: Opened,
}

impl Follower {
    /// One that has everything.
    async fn open(address: SocketAddr, session: &str) -> Self {
        let mut opened = Request::get(format!("/v1/sessions/{session}/follow")).open(address).await;
        assert_eq!(opened.status, 200);
        let body = std::mem::replace(&mut opened.body, axum::body::Body::empty()).into_data_stream();
        let mut this = Self { body, _opened: opened };
        let mut text = String::new();
        while !text.contains("event: live") {
            text += &this.next().await.unwrap();
        }
        this
    }

    async fn next(&mut self) -> Option<String> {
        let bytes = timeout(PATIENCE, self.body.next()).await.expect("nothing came")?;
        Some(String::from_utf8_lossy(&bytes.unwrap()).into_owned())
    }
}

async fn everybody_learns_on_every_node_that_a_session_was_deleted_in_the_middle_of_a_stream<E: Engine>() {
    let mut begun = Begun::<E>::start().await;
    let (here, there) = (begun.here.address, begun.there.address);
    begun.say("Hel").await;
    let mut present = client::hello(there).await;
    present.ask(json!({ "t": "attach", "session": "s", "from": { "recent": 5 }, "presence": true })).await;
    let (mut sse, mut other_sse) = (Follower::open(here, "s").await, Follower::open(there, "s").await);
    create(here, "other").await;
    let mut other = Client::attach(here, "other", json!("start")).await;
    other.told("live").await;

    assert!(delete(there, "s").await);
    // In the middle of the answer: the worker learns it, whatever it was about to write.
    begun.worker.fenced(&begun.run).await;
    let refused = begun.worker.append(&mut begun.job, json!([{ "type": "x-late" }])).await;
    assert_eq!((&refused["t"], &refused["code"]), (&json!("error"), &json!("fenced")), "{refused}");
    gone(&mut begun.client.socket, 1).await;
    gone(&mut present, 1).await;
    for follower in [&mut sse, &mut other_sse] {
        let mut text = String::new();
        while let Some(more) = follower.next().await {
            text += &more;
        }
        assert!(text.ends_with("event: gone\ndata: {\"reason\":\"deleted\"}\n\n"), "{text}");
    }

    // Frames that ask for no answer may cross with `gone`: they get none, unlike those for what was never there.
    for attachment in [1, 2] {
        present.send(&json!({ "t": "ack", "attachment": attachment, "seq": 1 })).await;
        present.send(&json!({ "t": "presence", "attachment": attachment, "data": { "typing": true } })).await;
    }
    present.send(&json!({ "t": "detach", "id": "mark", "attachment": 1 })).await;
    let mut errors = Vec::new();
    while errors.last().is_none_or(|error: &Value| error["id"] != "mark") {
        errors.push(present.wait(|frame| frame["t"] == "error").await);
    }
    assert_eq!(errors.len(), 3, "{errors:?}");
    // The number is not used again, and nothing can be asked of it.
    let answer = present
        .ask(json!({ "t": "put", "attachment": 1, "entries": [{ "type": "event", "name": "x" }] }))
        .await;
    assert_eq!(answer["code"], "bad_request", "{answer}");
    let answer = present.ask(json!({ "t": "attach", "session": "s", "from": "start" })).await;
    assert_eq!(answer["code"], "no_session", "{answer}");
    create(here, "s").await;
    let answer = present.ask(json!({ "t": "attach", "session": "s", "from": "start" })).await;
    assert_eq!((&answer["t"], &answer["attachment"]), (&json!("attached"), &json!(3)), "{answer}");
    // Of the present attachment only that one is there; and another session is left alone.
    let members = Request::get("/v1/sessions/s/presence").send(there).await.with(200);
    assert_eq!(members["members"].as_array().map(Vec::len), Some(0), "{members}");
    input(there, "other", "Still there").await;
    other.until("the input", |history| history.text().contains("Still there")).await;
}

async fn a_worker_that_was_given_a_run_is_fenced_and_takes_the_next<E: Engine>() {
    let mut begun = Begun::<E>::start().await;
    let there = begun.there.address;
    // Another run waits in the pool, for the one place that the worker has.
    create(there, "next").await;
    let waits = input(there, "next", "Later").await;
    // And one that nobody will ever need.
    create(there, "third").await;
    input(there, "third", "Never").await;
    assert!(delete(there, "third").await);
    assert!(delete(there, "s").await);
    begun.worker.fenced(&begun.run).await;
    let mut job = begun.worker.work().await;
    assert_eq!((job.run.as_str(), job.session.as_str()), (waits.as_str(), "next"));
    begun.worker.say(&mut job, "Now").await;
    assert_eq!(begun.worker.end(&mut job, "completed").await["t"], "ok");

    // Whoever comes back with a run of a deleted session does not hold it.
    let back = Worker::rejoin(begun.here.address, "w2", "guide", 1, &[&begun.job]).await;
    assert_eq!(back.kept, [] as [&str; 0]);
}

async fn who_waits_for_the_outcome_of_a_control_learns_that_there_is_no_session<E: Engine>() {
    let mut begun = Begun::<E>::start().await;
    let (here, there) = (begun.here.address, begun.there.address);
    begun.ask("c1", json!({ "kind": "pause" })).await;
    begun.client.receipt("c1", "accepted").await;
    let body =
        json!({ "id": "c2", "kind": "steer", "target": { "run": begun.run }, "payload": { "text": "Hm" } });
    let deleting = async {
        begun.worker.told("c2").await;
        assert!(delete(here, "s").await);
    };
    let asked = async { tokio::join!(control(there, "s", &body, WAIT_MS), deleting) };
    let ((status, answer), ()) = timeout(PATIENCE, asked).await.unwrap();
    assert_eq!((status, &answer["error"]["code"]), (404, &json!("no_session")), "{answer}");
    let error = begun.client.socket.wait(|frame| frame["t"] == "error").await;
    assert_eq!((&error["id"], &error["code"]), (&json!("c1"), &json!("no_session")), "{error}");
}

async fn a_session_made_anew_is_another_and_cursors_of_before_get_a_reset<E: Engine>() {
    let world = World::<E>::start().await;
    let (here, there) = (world.node().await, world.node().await);
    create(here.address, "s").await;
    for n in 0..6 {
        input(here.address, "s", &format!("old {n}")).await;
    }
    let mut old = Client::attach(there.address, "s", json!("start")).await;
    old.until("the last input", |history| history.text().contains("old 5")).await;
    let cursor = old.history.cursor();
    // Everything that this node has of it is a tail that nobody follows any more.
    drop(old);
    assert!(delete(here.address, "s").await);
    Request::get("/v1/sessions/s").send(there.address).await.is_error(404, "no_session");
    Request::get("/v1/sessions/s/state").send(here.address).await.is_error(404, "no_session");
    create(here.address, "s").await;
    for n in 0..9 {
        input(here.address, "s", &format!("new {n}")).await;
    }
    for node in [&here, &there] {
        let mut socket = client::hello(node.address).await;
        let attached = socket.ask(json!({ "t": "attach", "session": "s", "from": cursor })).await;
        assert_eq!(attached["resumed"], false, "{attached}");
        let reset = socket.frame().await;
        assert_eq!(reset, json!({ "t": "reset", "attachment": 1, "reason": "epoch" }));
        let snapshot = socket.frame().await.to_string();
        assert!(snapshot.contains("new 8") && !snapshot.contains("old"), "{snapshot}");
        let path = format!("/v1/sessions/s/entries?after={cursor}");
        Request::get(path).send(node.address).await.is_error(400, "bad_cursor");
        let mut fresh = Client::attach(node.address, "s", json!("start")).await;
        fresh.holds_the_state(node.address).await;
    }
}

async fn a_session_deleted_and_made_anew_at_once_ends_those_who_followed_the_first<E: Engine>() {
    let world = World::<E>::start().await;
    let (here, there) = (world.node().await, world.node().await);
    create(here.address, "s").await;
    let mut follower = Client::attach(there.address, "s", json!("start")).await;
    follower.told("live").await;
    for round in 0..8 {
        // As many entries as the first has had, and more, so that numbers seem to fit.
        let store = here.edge.desk.store();
        store.delete(&key("s")).await.unwrap().unwrap();
        create(here.address, "s").await;
        for n in 0..4 {
            input(here.address, "s", &format!("{round}.{n}")).await;
        }
        let before = gone(&mut follower.socket, 1).await;
        let text = json!(before).to_string();
        assert!(!text.contains(&format!("{round}.")), "of the next session: {text}");
        follower = Client::attach(there.address, "s", json!("start")).await;
        follower.holds_the_state(here.address).await;
    }
}

async fn a_deleted_session_is_not_listed_and_its_place_in_the_index_goes<E: Engine>() {
    let world = World::<E>::start().await;
    let node = world.node().await;
    let listed = async || -> Vec<String> {
        let list = Request::get("/v1/sessions").send(node.address).await.with(200);
        list["sessions"].as_array().unwrap().iter().map(|s| s["session"].as_str().unwrap().into()).collect()
    };
    for session in ["a", "b", "c"] {
        create(node.address, session).await;
        input(node.address, session, "Hi").await;
    }
    assert!(delete(node.address, "b").await);
    assert_eq!(listed().await, ["c", "a"]);
    // As if the deletion had been cut off, or somebody had been late.
    let store = node.edge.desk.store();
    store.index(&key("b"), everthread_protocol::Millis(9_000_000_000_000)).await.unwrap();
    assert_eq!(listed().await, ["c", "a"]);
    let index = store.sessions(&key("b").tenant, None, 10).await.unwrap();
    assert_eq!(index.len(), 2, "{index:?}");
}

/// Inputs, attaches, folds and deletions by two nodes at once. Every follower sees whole logs, from their beginning.
async fn deleting_races_writers_and_attaches_and_nobody_sees_two_logs_in_one<E: Engine>() {
    let world = World::<E>::folding(NO_FOLDING).await;
    let (here, there) = (world.node().await, world.node().await);
    let stop = tokio_util::sync::CancellationToken::new();
    let writing = async {
        let mut n = 0;
        while !stop.is_cancelled() {
            n += 1;
            let body = json!({ "text": format!("m{n}") });
            let answer = Request::post("/v1/sessions/s/input", &body).send(here.address).await;
            assert!(matches!(answer.status.as_u16(), 202 | 404 | 429), "{}", answer.text);
            if answer.status == 404 {
                let body = json!({ "session": "s", "agent": "guide" });
                Request::post("/v1/sessions", &body).send(there.address).await;
            }
        }
    };
    let folding = async {
        while !stop.is_cancelled() {
            there.edge.folder.fold(&key("s")).await.ok();
            tokio::task::yield_now().await;
        }
    };
    let deleting = async {
        for _ in 0..12 {
            // Not before it is there, and has something.
            until("a session with input", async || {
                let head = there.edge.desk.store().heads(&[key("s")]).await.unwrap().pop().unwrap();
                head.filter(|head| head.seq.0 > 6)
            })
            .await;
            delete(there.address, "s").await;
        }
    };
    let following = async {
        let mut ends = 0;
        let mut socket = client::hello(there.address).await;
        while !stop.is_cancelled() {
            let attached = socket.ask(json!({ "t": "attach", "session": "s", "from": "start" })).await;
            if attached["t"] == "error" {
                assert_eq!(attached["code"], "no_session", "{attached}");
                continue;
            }
            let number = u32::try_from(attached["attachment"].as_u64().unwrap()).unwrap();
            let (mut epoch, mut seq) = (Value::Null, 0);
            loop {
                let frame = socket.frame().await;
                match frame["t"].as_str().unwrap() {
                    "gone" => break,
                    "entries" => {
                        assert_eq!(frame["attachment"], number);
                        assert!(epoch.is_null() || epoch == frame["epoch"], "{frame} after {epoch}");
                        assert!(frame["from"].as_u64().unwrap() <= seq + 1, "a gap after {seq}: {frame}");
                        epoch = frame["epoch"].clone();
                        seq = frame["to"].as_u64().unwrap();
                    }
                    "reset" => panic!("the start is of every log: {frame}"),
                    _ => {}
                }
            }
            ends += 1;
        }
        ends
    };
    let scenario = async {
        deleting.await;
        stop.cancel();
        // The last follower waits for this one.
        delete(there.address, "s").await;
    };
    // What was made anew after the last deletion is deleted, too, until the follower has seen its end.
    let (ends, (), (), ()) = tokio::join!(
        async {
            tokio::pin!(following);
            loop {
                tokio::select! {
                    ends = &mut following => break ends,
                    () = tokio::time::sleep(std::time::Duration::from_millis(100)) => {
                        if stop.is_cancelled() {
                            delete(there.address, "s").await;
                        }
                    }
                }
            }
        },
        writing,
        folding,
        scenario
    );
    assert!(ends > 0);
}

async fn deleting_what_is_not_there_says_so<E: Engine>() {
    let world = World::<E>::start().await;
    let node = world.node().await;
    assert!(!delete(node.address, "nobody").await);
    create(node.address, "s").await;
    assert!(delete(node.address, "s").await);
    assert!(!delete(node.address, "s").await);
    Request::new("DELETE", "/v1/sessions/a%20b").send(node.address).await.is_error(400, "bad_request");
    let stranger = Request::new("DELETE", "/v1/sessions/s").header("authorization", "Bearer wrong");
    stranger.send(node.address).await.is_error(401, "unauthorized");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_deleted_session_redis_keeps_a_tombstone_and_nothing_else() {
    let mut begun = Begun::<OnRedis>::start().await;
    let there = begun.there.address;
    begun.say("Hello").await;
    begun.ask("c1", json!({ "kind": "pause" })).await;
    begun.client.receipt("c1", "accepted").await;
    let mut phone = client::hello_as(there, json!({ "subject": "ann", "device": "phone" })).await;
    phone.ask(json!({ "t": "attach", "session": "s", "from": "start", "presence": true })).await;
    let seq = phone.wait(|frame| frame["t"] == "live").await["seq"].clone();
    phone.send(&json!({ "t": "ack", "attachment": 1, "seq": seq })).await;
    let server = &begun.world.engine.server;
    let keys = async || server.command("KEYS et:{default/s}:*").await.unwrap();
    until("a device and a member in the store", async || {
        let keys = keys().await;
        (keys.contains(":devices") && keys.contains(":presence")).then_some(())
    })
    .await;
    assert!(delete(there, "s").await);
    gone(&mut phone, 1).await;
    until("nothing but the tombstone", async || {
        let keys = keys().await;
        (keys.starts_with("*1\r\n") && keys.contains("et:{default/s}:gone")).then_some(())
    })
    .await;
    until("no deadline", async || {
        (server.command("ZSCORE et:{deadlines:0} default/s").await.unwrap() == "$-1\r\n").then_some(())
    })
    .await;
    until("no place in the list", async || {
        (server.command("ZSCORE et:{sessions:default:0} s").await.unwrap() == "$-1\r\n").then_some(())
    })
    .await;
}
