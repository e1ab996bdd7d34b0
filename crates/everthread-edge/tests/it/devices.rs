//! Devices: how far each has read is kept for it, wherever it connects.

use crate::harness::http::{create, input};
use crate::harness::{Engine, OnRedis, Request, Socket, Worker, World, client, until};
use everthread_store::Store as _;
use futures_util::{StreamExt as _, stream};
use serde_json::{Value, json};
use std::net::SocketAddr;
use tokio::task::JoinSet;

on_both_engines!(
    an_ack_is_kept_for_the_device_and_never_goes_back_or_beyond_what_was_sent,
    unread_are_the_messages_of_others_that_began_after_the_mark,
    a_device_resumes_at_its_own_cursor_and_a_new_one_begins_with_the_last_messages,
    a_device_that_stood_in_another_log_gets_a_reset_and_no_mark_that_is_not_there,
    devices_are_acknowledged_listed_and_forgotten_over_http,
    a_list_of_sessions_tells_what_a_device_has_not_read,
    what_a_device_says_in_a_hurry_is_written_a_few_times_and_its_last_word_stands,
    a_node_that_drains_stores_what_was_acknowledged,
    a_thousand_devices_of_one_session_are_all_known,
);

/// A connection of a device, attached to `s`, with what `attach` was answered.
async fn device(address: SocketAddr, name: &str, from: Value) -> (Socket, Value) {
    let mut socket = client::hello_as(address, json!({ "subject": "ann", "device": name })).await;
    let attached = socket.ask(json!({ "t": "attach", "session": "s", "from": from })).await;
    assert_eq!(attached["t"], "attached", "{attached}");
    (socket, attached)
}

/// Reads until it has everything; up to where.
async fn live(socket: &mut Socket) -> u64 {
    socket.wait(|frame| frame["t"] == "live").await["seq"].as_u64().unwrap()
}

async fn ack(socket: &mut Socket, seq: u64) {
    socket.send(&json!({ "t": "ack", "attachment": 1, "seq": seq })).await;
}

/// Sends something whose answer comes after that of everything before: errors that came until then.
async fn errors(socket: &mut Socket) -> Vec<Value> {
    let id = socket.fresh_id();
    socket.send(&json!({ "t": "history", "id": id, "attachment": 1, "limit": 1 })).await;
    let mut errors = Vec::new();
    loop {
        let frame = socket.frame().await;
        if frame["id"] == id.as_str() {
            return errors;
        }
        if frame["t"] == "error" {
            errors.push(frame);
        }
    }
}

/// Where the devices of `s` stand.
async fn devices(address: SocketAddr) -> Vec<Value> {
    let list = Request::get("/v1/sessions/s/devices").send(address).await.with(200);
    list["devices"].as_array().unwrap().clone()
}

/// Waits until a device has acknowledged so much.
async fn stands_at(address: SocketAddr, name: &str, seq: u64) {
    until(&format!("{name} at {seq}"), async || {
        devices(address).await.iter().any(|d| d["device"] == name && d["acked"] == seq).then_some(())
    })
    .await;
}

async fn an_ack_is_kept_for_the_device_and_never_goes_back_or_beyond_what_was_sent<E: Engine>() {
    let world = World::<E>::start().await;
    let (here, there) = (world.node().await, world.node().await);
    create(here.address, "s").await;
    input(here.address, "s", "Hi").await;
    let (mut phone, attached) = device(here.address, "phone", json!("start")).await;
    assert_eq!((&attached["acked"], &attached["unread"]), (&Value::Null, &Value::Null), "{attached}");
    let head = live(&mut phone).await;
    ack(&mut phone, head - 1).await;
    ack(&mut phone, head + 1).await;
    ack(&mut phone, 1).await;
    phone.send(&json!({ "t": "ack", "attachment": 2, "seq": 1 })).await;
    let refused = errors(&mut phone).await;
    let codes: Vec<_> = refused.iter().map(|error| error["code"].as_str().unwrap()).collect();
    assert_eq!(codes, ["bad_cursor", "bad_request"]);
    stands_at(there.address, "phone", head - 1).await;
    drop(phone);

    let (mut phone, attached) = device(there.address, "phone", json!("start")).await;
    assert_eq!(attached["acked"], head - 1, "{attached}");
    let head = live(&mut phone).await;
    ack(&mut phone, head).await;
    assert_eq!(errors(&mut phone).await, [] as [Value; 0]);
    drop(phone);
    stands_at(here.address, "phone", head).await;
    let (_, attached) = device(here.address, "phone", json!({ "recent": 1 })).await;
    assert_eq!((&attached["acked"], &attached["unread"]), (&json!(head), &json!(0)), "{attached}");

    let mut nobody = client::hello(here.address).await;
    nobody.ask(json!({ "t": "attach", "session": "s", "from": "start" })).await;
    ack(&mut nobody, 1).await;
    assert_eq!(errors(&mut nobody).await[0]["code"], "bad_request");
}

async fn unread_are_the_messages_of_others_that_began_after_the_mark<E: Engine>() {
    let world = World::<E>::start().await;
    let (here, there) = (world.node().await, world.node().await);
    create(here.address, "s").await;
    let (mut phone, _) = device(here.address, "phone", json!("start")).await;
    let head = live(&mut phone).await;
    ack(&mut phone, head).await;
    drop(phone);
    stands_at(there.address, "phone", head).await;

    // One of bob, one of ann herself, and the agent's answer to each.
    let say = async |subject: &str| {
        let post = Request::post("/v1/sessions/s/input", &json!({ "text": "Hi" }));
        post.header("everthread-subject", subject).send(here.address).await.with(202);
    };
    say("bob").await;
    let mut worker = Worker::join(here.address, "w1", "guide", 1).await;
    worker.serve(&["one ", "two"]).await;
    let (_, attached) = device(there.address, "phone", json!({ "recent": 1 })).await;
    assert_eq!((&attached["acked"], &attached["unread"]), (&json!(head), &json!(2)), "{attached}");
    say("ann").await;
    worker.serve(&["three"]).await;
    let (mut phone, attached) = device(there.address, "phone", json!("device")).await;
    assert_eq!(attached["unread"], 3, "{attached}");
    let head = live(&mut phone).await;
    ack(&mut phone, head).await;
    // What is answered after it finds it taken in.
    assert!(errors(&mut phone).await.is_empty());
    drop(phone);
    let (_, attached) = device(there.address, "phone", json!({ "recent": 1 })).await;
    assert_eq!(
        (&attached["acked"], &attached["unread"]),
        (&json!(head), &json!(0)),
        "it is known here at once"
    );
}

async fn a_device_resumes_at_its_own_cursor_and_a_new_one_begins_with_the_last_messages<E: Engine>() {
    let world = World::<E>::start().await;
    let (here, there) = (world.node().await, world.node().await);
    create(here.address, "s").await;
    input(here.address, "s", "Hi").await;
    let (mut phone, attached) = device(here.address, "phone", json!("device")).await;
    assert_eq!((&attached["resumed"], &attached["acked"]), (&json!(true), &Value::Null), "{attached}");
    assert_eq!(phone.frame().await["t"], "snapshot");
    let head = live(&mut phone).await;
    ack(&mut phone, head).await;
    drop(phone);
    stands_at(there.address, "phone", head).await;
    input(here.address, "s", "More").await;
    let (mut phone, attached) = device(there.address, "phone", json!("device")).await;
    assert_eq!((&attached["resumed"], &attached["acked"]), (&json!(true), &json!(head)), "{attached}");
    let entries = phone.frame().await;
    assert_eq!((&entries["t"], &entries["from"]), (&json!("entries"), &json!(head + 1)), "{entries}");
    // A device without local state: a snapshot, and its mark besides.
    let (mut phone, attached) = device(there.address, "phone", json!({ "recent": 5 })).await;
    assert_eq!(attached["acked"], head, "{attached}");
    assert_eq!(phone.frame().await["t"], "snapshot");
    let mut nobody = client::hello(here.address).await;
    let refused = nobody.ask(json!({ "t": "attach", "session": "s", "from": "device" })).await;
    assert_eq!(refused["code"], "bad_request", "{refused}");
}

async fn a_device_that_stood_in_another_log_gets_a_reset_and_no_mark_that_is_not_there<E: Engine>() {
    let world = World::<E>::start().await;
    let node = world.node().await;
    create(node.address, "s").await;
    let (mut phone, attached) = device(node.address, "phone", json!("start")).await;
    let head = live(&mut phone).await;
    let cursor = format!("{}.{head}", attached["epoch"].as_str().unwrap());
    let strange = format!("1.{head}");
    let put = |cursor: &str| {
        Request::new("PUT", "/v1/sessions/s/devices/phone").body(json!({ "cursor": cursor }).to_string())
    };
    put(&strange).send(node.address).await.is_error(400, "bad_cursor");
    put("1").send(node.address).await.is_error(400, "bad_request");
    assert_eq!(put(&cursor).send(node.address).await.with(200)["cursor"], cursor);
    let resumed = phone.ask(json!({ "t": "attach", "session": "s", "from": strange })).await;
    assert_eq!((&resumed["resumed"], &resumed["acked"]), (&json!(false), &json!(head)), "{resumed}");
}

async fn devices_are_acknowledged_listed_and_forgotten_over_http<E: Engine>() {
    let world = World::<E>::start().await;
    let (here, there) = (world.node().await, world.node().await);
    create(here.address, "s").await;
    let shown = Request::get("/v1/sessions/s").send(here.address).await.with(200);
    let cursor = shown["cursor"].as_str().unwrap();
    let path = "/v1/sessions/s/devices/phone";
    let put = |path: &str| Request::new("PUT", path).body(json!({ "cursor": cursor }).to_string());
    put("/v1/sessions/none/devices/phone").send(here.address).await.is_error(404, "no_session");
    put("/v1/sessions/s/devices/a%20b").send(here.address).await.is_error(400, "bad_request");
    put(path).send(here.address).await.with(200);
    input(here.address, "s", "Hi").await;
    let known = devices(there.address).await;
    assert_eq!((known.len(), &known[0]["device"], &known[0]["cursor"]), (1, &json!("phone"), &json!(cursor)));
    assert_eq!((&known[0]["acked"], &known[0]["unread_entries"]), (&json!(1), &json!(2)), "{known:?}");
    assert!(known[0]["at"].is_u64());
    let forget = async || Request::new("DELETE", path).send(there.address).await.with(200);
    assert_eq!(forget().await["forgotten"], true);
    assert_eq!(forget().await["forgotten"], false);
    let nowhere = Request::new("DELETE", "/v1/sessions/nowhere/devices/phone");
    nowhere.send(there.address).await.is_error(404, "no_session");
    assert_eq!(devices(here.address).await, [] as [Value; 0]);
    Request::get("/v1/sessions/none/devices").send(here.address).await.is_error(404, "no_session");
}

async fn a_list_of_sessions_tells_what_a_device_has_not_read<E: Engine>() {
    let world = World::<E>::start().await;
    let node = world.node().await;
    for session in ["a", "b"] {
        create(node.address, session).await;
        input(node.address, session, "Hi").await;
    }
    let cursor = Request::get("/v1/sessions/a").send(node.address).await.with(200)["cursor"].clone();
    let put =
        Request::new("PUT", "/v1/sessions/a/devices/phone").body(json!({ "cursor": cursor }).to_string());
    put.send(node.address).await.with(200);
    input(node.address, "a", "More").await;
    let list = async |query: &str| {
        let listed = Request::get(format!("/v1/sessions{query}")).send(node.address).await.with(200);
        let mut sessions = listed["sessions"].as_array().unwrap().clone();
        sessions.sort_by_key(|session| session["session"].to_string());
        let fields = |s: &Value| (s["unread_entries"].as_u64(), s["acked"].as_u64());
        sessions.iter().map(fields).collect::<Vec<_>>()
    };
    assert_eq!(list("?device=phone").await, [(Some(2), Some(3)), (Some(3), None)]);
    assert_eq!(list("?device=tv").await, [(Some(5), None), (Some(3), None)]);
    assert_eq!(list("").await, [(None, None), (None, None)]);
}

async fn what_a_device_says_in_a_hurry_is_written_a_few_times_and_its_last_word_stands<E: Engine>() {
    let world = World::<E>::start().await;
    let node = world.node().await;
    create(node.address, "s").await;
    let entries: Vec<Value> = (0..1_000).map(|n| json!({ "type": "x-a", "n": n })).collect();
    let post = Request::post("/v1/sessions/s/entries", &json!({ "entries": entries }));
    post.send(node.address).await.with(202);
    let (mut phone, _) = device(node.address, "phone", json!("start")).await;
    let head = live(&mut phone).await;
    let begun = tokio::time::Instant::now();
    for seq in 1..=head {
        ack(&mut phone, seq).await;
    }
    stands_at(node.address, "phone", head).await;
    // It is counted when its answer is here, which is after it can be read.
    let written = until("a write that is counted", async || {
        Some(node.edge.metrics.acks.with_label_values(&["ok"]).get()).filter(|written| *written > 0)
    })
    .await;
    // One at once, one a second, one at the end.
    let most = begun.elapsed().as_secs() + 2;
    assert!((1..=most).contains(&written), "{written} writes for {head} acks, {most} at most");
}

async fn a_node_that_drains_stores_what_was_acknowledged<E: Engine>() {
    let world = World::<E>::start().await;
    let (here, there) = (world.node().await, world.node().await);
    create(here.address, "s").await;
    let mut followers = Vec::new();
    for n in 0..20 {
        let (mut socket, _) = device(here.address, &format!("d{n}"), json!("start")).await;
        ack(&mut socket, 0).await;
        let head = live(&mut socket).await;
        // The first was written just now: this one waits for its second.
        ack(&mut socket, head).await;
        assert_eq!(errors(&mut socket).await, [] as [Value; 0]);
        followers.push(socket);
    }
    here.drain().await;
    let known = devices(there.address).await;
    assert_eq!(known.len(), 20);
    assert!(known.iter().all(|device| device["acked"] == 1), "{known:?}");
}

/// Devices at once.
const DEVICES: usize = 1_000;

/// Attaches a device, acknowledges everything, and stays.
async fn read_all(address: SocketAddr, name: String) -> Socket {
    let (mut socket, _) = device(address, &name, json!("start")).await;
    let head = live(&mut socket).await;
    ack(&mut socket, head).await;
    socket
}

/// Connects a thousand devices to two nodes, and calls `meanwhile` while all of them are there.
async fn with_a_thousand_devices<E: Engine>(world: &World<E>, meanwhile: impl AsyncFn()) {
    let (here, there) = (world.node().await, world.node().await);
    create(here.address, "s").await;
    input(here.address, "s", "Hi").await;
    meanwhile().await;
    let (mut joining, mut sockets) = (JoinSet::new(), Vec::new());
    for n in 0..DEVICES {
        let address = [here.address, there.address][n % 2];
        joining.spawn(read_all(address, format!("d{n}")));
        if joining.len() >= 32 {
            sockets.push(joining.join_next().await.unwrap().unwrap());
        }
    }
    while let Some(socket) = joining.join_next().await {
        sockets.push(socket.unwrap());
    }
    until("every device has read everything", async || {
        let known = devices(there.address).await;
        (known.len() == DEVICES && known.iter().all(|device| device["unread_entries"] == 0)).then_some(())
    })
    .await;
    meanwhile().await;
}

async fn a_thousand_devices_of_one_session_are_all_known<E: Engine>() {
    let world = World::<E>::start().await;
    with_a_thousand_devices(&world, async || {}).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_has_as_many_connections_with_a_thousand_devices_as_with_none_and_shows_each_as_a_group() {
    let world = World::<OnRedis>::start().await;
    let connections = std::sync::Mutex::new(Vec::new());
    with_a_thousand_devices(&world, async || {
        let listed = world.engine.server.command("CLIENT LIST").await.unwrap();
        connections.lock().unwrap().push(listed.matches("id=").count());
    })
    .await;
    let connections = connections.into_inner().unwrap();
    assert_eq!(connections[0], connections[1]);
    // The answer to XINFO GROUPS itself is longer than one read: name and last id of each are field 2 and 8.
    let at_the_end = "local n = 0 for _, g in ipairs(redis.call('XINFO', 'GROUPS', 'et:{default/s}:log')) do \
                      if g[8] == '3-0' then n = n + 1 end end return n";
    let groups = world.engine.server.command(&format!("EVAL \"{at_the_end}\" 0")).await.unwrap();
    assert_eq!(groups, format!(":{DEVICES}\r\n"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_ack_during_an_outage_of_redis_is_stored_after_it() {
    let world = World::<OnRedis>::on_file().await;
    let node = world.node().await;
    create(node.address, "s").await;
    let (mut phone, _) = device(node.address, "phone", json!("start")).await;
    let head = live(&mut phone).await;
    let proxy = world.engine.proxy(&node.edge.config.node);
    proxy.cut();
    ack(&mut phone, head).await;
    until("the store has refused", async || {
        let failed = ["unavailable", "indeterminate"];
        let count = |code| node.edge.metrics.acks.with_label_values(&[code]).get();
        failed.into_iter().any(|code| count(code) > 0).then_some(())
    })
    .await;
    proxy.heal();
    until("redis is back", async || node.edge.reader.store().is_ready().then_some(())).await;
    stands_at(node.address, "phone", head).await;
    assert_eq!(errors(&mut phone).await, [] as [Value; 0], "the connection lives on");
}

/// Sessions attached over a node's connections, and over how many.
const ATTACHED: usize = 10_000;
const SHARED_BY: usize = 10;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_has_as_many_connections_with_ten_thousand_sessions_attached_as_with_none() {
    let world = World::<OnRedis>::start().await;
    let node = world.node().await;
    let connections = async || {
        let listed = world.engine.server.command("CLIENT LIST").await.unwrap();
        listed.matches("id=").count()
    };
    create(node.address, "s").await;
    let before = connections().await;
    stream::iter(0..ATTACHED)
        .for_each_concurrent(32, |n| async move { create(node.address, &format!("s{n}")).await })
        .await;
    let mut sockets = Vec::new();
    for part in 0..SHARED_BY {
        let mut socket = client::hello(node.address).await;
        for n in (part..ATTACHED).step_by(SHARED_BY) {
            let attach =
                json!({ "t": "attach", "id": format!("a{n}"), "session": format!("s{n}"), "from": "start" });
            socket.send(&attach).await;
        }
        for _ in 0..ATTACHED / SHARED_BY {
            socket.wait(|frame| frame["t"] == "live").await;
        }
        sockets.push(socket);
    }
    assert_eq!(node.edge.metrics.attachments.get(), i64::try_from(ATTACHED).unwrap());
    assert_eq!(connections().await, before);
    // Each of them hears what is written to its session.
    for (part, socket) in sockets.iter_mut().enumerate() {
        let n = ATTACHED - SHARED_BY + part;
        input(node.address, &format!("s{n}"), "Hi").await;
        socket.wait(|frame| frame["t"] == "entries" && frame.to_string().contains("message.put")).await;
    }
}
