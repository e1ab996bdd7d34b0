//! Archived sessions as clients meet them: nobody can tell them from others.

use crate::harness::history::History;
use crate::harness::http::{create, input, state};
use crate::harness::{Client, Engine, Node, Request, World, client, until};
use everthread_archive::{Archive, Bucket};
use everthread_control::Failure;
use everthread_protocol::SessionKey;
use everthread_store::{Error, Head, Refusal, Store};
use futures_util::future::join_all;
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::time::Duration;

on_both_engines!(
    many_attach_to_an_archived_session_through_two_nodes_and_resume_where_they_were,
    an_attachment_stays_live_while_its_session_goes_and_comes_back,
    input_to_an_archived_session_is_put_and_asks_for_a_run,
    lists_devices_and_feeds_leave_a_session_in_the_archive,
    folds_and_upkeep_that_come_late_leave_a_session_in_the_archive,
    a_session_that_is_idle_is_archived_by_itself_and_again_after_it_came_back,
    a_session_at_work_is_busy_and_without_an_archive_it_is_not_supported,
    an_archived_session_is_read_forked_and_deleted,
    an_archive_that_is_away_is_named_and_what_is_not_in_it_goes_on,
    an_object_that_is_gone_is_told_as_a_broken_archive_until_it_is_put_back,
    what_a_deletion_left_in_the_archive_is_swept_when_it_answers_again,
    an_archived_session_is_deleted_so_long_after_its_last_entry,
    what_is_too_old_goes_from_the_archive_too,
);

/// Never by itself.
const DAYS: Duration = Duration::from_secs(30 * 86_400);

type Nodes<E> = Vec<Node<Archive<<E as Engine>::Store>>>;

async fn two_nodes<E: Engine>() -> (World<E>, Bucket, Nodes<E>) {
    let (world, bucket) = (World::<E>::start().await, Bucket::open("memory:///", []).unwrap());
    let nodes = vec![world.archiving_node(&bucket, DAYS).await, world.archiving_node(&bucket, DAYS).await];
    (world, bucket, nodes)
}

/// Makes `s`, with some messages and nothing going on in it.
async fn talk(address: SocketAddr) {
    create(address, "s").await;
    for n in 0..12 {
        say(address, &format!("message {n}")).await;
    }
}

/// Puts a message that asks for nothing.
async fn say(address: SocketAddr, text: &str) {
    let message = json!({
        "type": "message.put", "message": format!("m-{}", text.replace(' ', "-")), "role": "operator",
        "parts": [{ "kind": "text", "value": text }]
    });
    let body = json!({ "entries": [message] });
    Request::post("/v1/sessions/s/entries", &body)
        .header("Everthread-Kind", "operator")
        .send(address)
        .await
        .with(202);
}

async fn archive(address: SocketAddr) -> Value {
    Request::post("/v1/sessions/s/archive", &json!({})).send(address).await.with(200)["archived"].clone()
}

async fn head<S: Store>(node: &Node<S>) -> Head {
    let key: SessionKey = "default/s".parse().unwrap();
    node.edge.desk.store().heads(&[key]).await.unwrap()[0].unwrap()
}

async fn many_attach_to_an_archived_session_through_two_nodes_and_resume_where_they_were<E: Engine>() {
    let (_world, bucket, nodes) = two_nodes::<E>().await;
    talk(nodes[0].address).await;
    let mut early = Client::attach(nodes[0].address, "s", json!("start")).await;
    early.until("half of it", |history| history.view.seq().0 >= 7).await;
    let held = early.history;
    let (before, seen) = (head(&nodes[0]).await, state(nodes[0].address, "s").await);
    assert_eq!(archive(nodes[0].address).await, true);
    assert_eq!(archive(nodes[1].address).await, false, "it was archived before");
    assert!(head(&nodes[0]).await.archived);

    let follow = async |n: usize| {
        let address = nodes[n % 2].address;
        // Some held a part of it, some nothing.
        let history = if n.is_multiple_of(3) { held.clone() } else { History::new() };
        let mut client = Client::resume(address, "s", history).await;
        client.until("all of it", |history| history.view.seq() == before.seq).await;
        assert!(!client.told.iter().any(|told| told == "reset"), "{:?}", client.told);
        serde_json::to_value(&client.history.view).unwrap()
    };
    let seen: Value = serde_json::from_str(&seen).unwrap();
    for view in join_all((0..10).map(follow)).await {
        assert_eq!(view, seen);
    }
    let now = head(&nodes[1]).await;
    assert_eq!((now.archived, now.epoch, now.version.n), (false, before.epoch, before.version.n + 1));
    assert_eq!(bucket.list(&"default/s".parse().unwrap()).await.unwrap().len(), 1);
}

async fn an_attachment_stays_live_while_its_session_goes_and_comes_back<E: Engine>() {
    let (_world, _bucket, nodes) = two_nodes::<E>().await;
    talk(nodes[0].address).await;
    let mut client = Client::attach(nodes[1].address, "s", json!("start")).await;
    client.until("all of it", |history| history.view.seq().0 >= 13).await;
    for n in 0..3 {
        assert_eq!(archive(nodes[0].address).await, true);
        say(nodes[0].address, &format!("once more {n}")).await;
        client.until("what is new", |history| history.view.seq().0 >= 14 + n).await;
    }
    assert!(!client.told.iter().any(|told| told == "reset"), "{:?}", client.told);
}

async fn input_to_an_archived_session_is_put_and_asks_for_a_run<E: Engine>() {
    let (_world, _bucket, nodes) = two_nodes::<E>().await;
    talk(nodes[0].address).await;
    archive(nodes[0].address).await;
    let run = input(nodes[1].address, "s", "Are you there?").await;
    let seen: Value = serde_json::from_str(&state(nodes[0].address, "s").await).unwrap();
    assert_eq!((&seen["runs"][0]["run"], &seen["runs"][0]["status"]), (&json!(run), &json!("requested")));
    assert_eq!(seen["messages"].as_array().unwrap().len(), 13);
}

async fn lists_devices_and_feeds_leave_a_session_in_the_archive<E: Engine>() {
    let (_world, _bucket, nodes) = two_nodes::<E>().await;
    let address = nodes[0].address;
    talk(address).await;
    let shown = Request::get("/v1/sessions/s").send(address).await.with(200);
    let half = format!("{}.6", shown["cursor"].as_str().unwrap().split('.').next().unwrap());
    assert!(shown.get("archived").is_none(), "{shown}");
    archive(address).await;
    let archived = Request::get("/v1/sessions/s").send(address).await.with(200);
    assert_eq!((&archived["archived"], &archived["meta"]), (&json!(true), &shown["meta"]), "{archived}");
    assert_eq!(archived["cursor"], shown["cursor"]);
    let body = json!({ "cursor": half }).to_string();
    let put =
        Request::new("PUT", "/v1/sessions/s/devices/phone").body(body).send(nodes[1].address).await.with(200);
    assert_eq!(put["cursor"], half);
    let devices = Request::get("/v1/sessions/s/devices").send(address).await.with(200);
    assert_eq!(devices["devices"][0]["unread_entries"], 7);
    let list = Request::get("/v1/sessions?device=phone").send(address).await.with(200);
    let listed = &list["sessions"][0];
    assert_eq!((&listed["session"], &listed["meta"]["title"]), (&json!("s"), &json!("A talk")), "{list}");
    assert_eq!(listed["unread_entries"], 7, "{list}");
    let mut socket = client::hello(address).await;
    socket.ask(json!({ "t": "watch" })).await;
    let feed = socket.wait(|frame| frame["t"] == "sessions").await;
    assert_eq!(feed["sessions"][0]["session"], "s", "{feed}");
    assert!(head(&nodes[0]).await.archived);
}

async fn folds_and_upkeep_that_come_late_leave_a_session_in_the_archive<E: Engine>() {
    let (_world, _bucket, nodes) = two_nodes::<E>().await;
    let key: SessionKey = "default/s".parse().unwrap();
    talk(nodes[0].address).await;
    archive(nodes[0].address).await;
    for node in &nodes {
        // As one that was queued by the last write, on a machine so slow that the session is archived first.
        node.edge.folder.fold(&key).await.unwrap();
        // As the keeper, who has read its head before.
        let refused = node.edge.desk.load_here(&key).await.unwrap_err();
        assert!(matches!(refused, Failure::Store(Error::Refused(Refusal::Archived))), "{refused}");
        assert!(head(node).await.archived);
    }
    state(nodes[0].address, "s").await;
    assert!(!head(&nodes[0]).await.archived, "who asks for it brings it back");
}

async fn a_session_that_is_idle_is_archived_by_itself_and_again_after_it_came_back<E: Engine>() {
    let (world, bucket) = (World::<E>::start().await, Bucket::open("memory:///", []).unwrap());
    let node = world.archiving_node(&bucket, Duration::from_millis(300)).await;
    talk(node.address).await;
    let is_archived = async || head(&node).await.archived.then_some(());
    until("archived", is_archived).await;
    say(node.address, "once more").await;
    until("archived again", is_archived).await;
    // Reading it does not keep it for ever.
    let seen: Value = serde_json::from_str(&state(node.address, "s").await).unwrap();
    assert_eq!(seen["messages"].as_array().unwrap().len(), 13);
    until("archived after it was read", is_archived).await;
    // Those before the last two go after the stub stands.
    let two = async || (bucket.list(&"default/s".parse().unwrap()).await.unwrap().len() == 2).then_some(());
    until("two objects", two).await;
}

async fn a_session_at_work_is_busy_and_without_an_archive_it_is_not_supported<E: Engine>() {
    let (world, _bucket, nodes) = two_nodes::<E>().await;
    let address = nodes[0].address;
    create(address, "s").await;
    let run = input(address, "s", "Hi").await;
    let ask = |address| Request::post("/v1/sessions/s/archive", &json!({})).send(address);
    ask(address).await.is_error(409, "busy");
    let cancel = json!({ "id": "c1", "kind": "cancel", "target": { "run": run } });
    crate::harness::http::settled(address, "s", &cancel).await;
    assert_eq!(archive(address).await, true);

    let without = world.node().await;
    ask(without.address).await.is_error(405, "not_supported");
    Request::get("/v1/sessions/s/state").send(without.address).await.is_error(503, "unavailable");
    let nobody = Request::post("/v1/sessions/nobody/archive", &json!({})).send(address).await;
    nobody.is_error(404, "no_session");
}

async fn an_archived_session_is_read_forked_and_deleted<E: Engine>() {
    let (_world, bucket, nodes) = two_nodes::<E>().await;
    let address = nodes[0].address;
    talk(address).await;
    let seen = state(address, "s").await;
    for path in ["state", "messages", "entries", "export"] {
        archive(address).await;
        let read = Request::get(format!("/v1/sessions/s/{path}")).send(nodes[1].address).await;
        assert_eq!(read.status, 200, "{}", read.text);
        assert!(read.text.contains("message 11"), "{path}: {}", read.text);
        assert!(!head(&nodes[0]).await.archived, "{path}");
    }
    archive(address).await;
    let at = Request::get("/v1/sessions/s/state?at=5").send(address).await.with(200);
    assert_eq!(at["seq"], 5);
    archive(address).await;
    let forked = Request::post("/v1/sessions/s/fork", &json!({ "session": "f", "at": 9 }))
        .send(address)
        .await
        .with(201);
    assert_eq!(forked["at"], 9, "{forked}");
    assert_eq!(state(address, "s").await, seen);

    archive(address).await;
    let gone = Request::new("DELETE", "/v1/sessions/s").send(nodes[1].address).await.with(200);
    assert_eq!(gone["deleted"], true);
    assert!(bucket.list(&"default/s".parse().unwrap()).await.unwrap().is_empty());
    Request::get("/v1/sessions/s").send(address).await.is_error(404, "no_session");
}

/// An archive in a directory, that can be moved away.
struct Place {
    dir: tempfile::TempDir,
    bucket: Bucket,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let bucket = Bucket::open(&format!("file://{}/archive", dir.path().display()), []).unwrap();
        Self { dir, bucket }
    }

    fn go(&self) {
        std::fs::rename(self.dir.path().join("archive"), self.dir.path().join("aside")).unwrap();
    }

    fn come(&self) {
        std::fs::rename(self.dir.path().join("aside"), self.dir.path().join("archive")).unwrap();
    }

    /// Names of the session's objects.
    async fn objects(&self) -> Vec<String> {
        self.bucket.list(&"default/s".parse().unwrap()).await.unwrap()
    }
}

async fn an_archive_that_is_away_is_named_and_what_is_not_in_it_goes_on<E: Engine>() {
    let (world, place) = (World::<E>::start().await, Place::new());
    let node = world.archiving_node(&place.bucket, DAYS).await;
    talk(node.address).await;
    let seen = state(node.address, "s").await;
    let body = json!({ "session": "live", "agent": "guide", "meta": {} });
    Request::post("/v1/sessions", &body).send(node.address).await.with(201);
    archive(node.address).await;
    place.go();
    let unavailable = |answer: crate::harness::http::Answer| {
        assert!(answer.text.contains("the archive does not answer"), "{}", answer.text);
        answer.is_error(503, "unavailable");
    };
    unavailable(Request::get("/v1/sessions/s/state").send(node.address).await);
    unavailable(Request::new("DELETE", "/v1/sessions/s").send(node.address).await);
    unavailable(Request::post("/v1/sessions/live/archive", &json!({})).send(node.address).await);
    Request::get("/v1/sessions/s").send(node.address).await.with(200);
    input(node.address, "live", "Hi").await;
    let gone = Request::new("DELETE", "/v1/sessions/live").send(node.address).await.with(200);
    assert_eq!(gone["deleted"], true);
    place.come();
    until("it is back", async || {
        let answer = Request::get("/v1/sessions/s/state").send(node.address).await;
        (answer.status == 200).then(|| assert_eq!(answer.text, seen))
    })
    .await;
}

async fn an_object_that_is_gone_is_told_as_a_broken_archive_until_it_is_put_back<E: Engine>() {
    let (world, place) = (World::<E>::start().await, Place::new());
    let node = world.archiving_node(&place.bucket, DAYS).await;
    talk(node.address).await;
    archive(node.address).await;
    let name = place.objects().await.pop().unwrap();
    let object = place.dir.path().join("archive/default/s").join(name);
    let copy = place.dir.path().join("copy");
    std::fs::rename(&object, &copy).unwrap();
    Request::get("/v1/sessions/s/state").send(node.address).await.is_error(500, "archive_broken");
    let mut socket = client::hello(node.address).await;
    let refused = socket.ask(json!({ "t": "attach", "session": "s", "from": "start" })).await;
    assert_eq!((&refused["t"], &refused["code"]), (&json!("error"), &json!("archive_broken")), "{refused}");
    assert!(refused["message"].as_str().unwrap().contains("archive"), "{refused}");
    assert!(head(&node).await.archived, "nothing is lost");
    std::fs::rename(&copy, &object).unwrap();
    until("it is found", async || {
        (Request::get("/v1/sessions/s/state").send(node.address).await.status == 200).then_some(())
    })
    .await;
}

async fn what_a_deletion_left_in_the_archive_is_swept_when_it_answers_again<E: Engine>() {
    let (world, place) = (World::<E>::start().await, Place::new());
    let node = world.archiving_node(&place.bucket, DAYS).await;
    talk(node.address).await;
    archive(node.address).await;
    state(node.address, "s").await;
    assert_eq!(place.objects().await.len(), 1, "it stays when the session is back");
    place.go();
    let gone = Request::new("DELETE", "/v1/sessions/s").send(node.address).await.with(200);
    assert_eq!(gone["deleted"], true);
    place.come();
    until("it is swept", async || place.objects().await.is_empty().then_some(())).await;
}

/// Nodes that look as often as they are asked to, and a session that keeps this much.
async fn keeping<E: Engine>(retention: Value) -> (World<E>, Bucket, Node<Archive<E::Store>>) {
    let mut world = World::<E>::start().await;
    world.retention = everthread_edge::retention::Options { pause: Duration::ZERO, ..Default::default() };
    let bucket = Bucket::open("memory:///", []).unwrap();
    let node = world.archiving_node(&bucket, DAYS).await;
    let meta = json!({ "title": "A talk", "retention": retention });
    let body = json!({ "session": "s", "agent": "guide", "meta": meta });
    Request::post("/v1/sessions", &body).send(node.address).await.with(201);
    (world, bucket, node)
}

async fn an_archived_session_is_deleted_so_long_after_its_last_entry<E: Engine>() {
    let (_world, bucket, node) = keeping::<E>(json!({ "ttl_ms": 6_000 })).await;
    say(node.address, "the last one").await;
    assert_eq!(archive(node.address).await, true);
    let key: SessionKey = "default/s".parse().unwrap();
    until("it is deleted", async || {
        (Request::get("/v1/sessions/s").send(node.address).await.status == 404).then_some(())
    })
    .await;
    until("its object is gone", async || bucket.list(&key).await.unwrap().is_empty().then_some(())).await;
}

async fn what_is_too_old_goes_from_the_archive_too<E: Engine>() {
    let (_world, _bucket, node) = keeping::<E>(json!({ "max_age_ms": 1_500 })).await;
    for n in 0..3 {
        say(node.address, &format!("message {n}")).await;
    }
    assert_eq!(archive(node.address).await, true);
    let last = until("everything went", async || {
        let head = head(&node).await;
        (head.floor > head.seq).then_some(head)
    })
    .await;
    // It goes on, in the archive or not.
    say(node.address, "still here").await;
    assert_eq!(head(&node).await.seq, last.seq.next());
}
