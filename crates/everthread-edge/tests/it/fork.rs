//! Sessions that begin with a part of another one.

use crate::harness::begun::key;
use crate::harness::http::{blocks, create, input, state};
use crate::harness::{Begun, Client, Engine, NO_FOLDING, Node, Request, Worker, World};
use everthread_protocol::{Millis, Seq};
use everthread_session::view::{MessageState, View};
use everthread_store::{Store, Trim, Trimmed, Write};
use futures_util::future::join_all;
use serde_json::{Value, json};
use std::net::SocketAddr;

on_both_engines!(
    a_fork_and_its_source_go_on_each_by_itself,
    a_fork_at_any_seq_is_what_the_source_was_there,
    what_was_open_ends_in_the_fork_and_goes_on_in_the_source,
    a_fork_of_a_held_session_is_held_by_nobody,
    branches_come_along,
    a_long_session_is_forked_inside_a_merged_append,
    a_cursor_of_the_source_is_good_in_the_fork_up_to_the_cut,
    a_repeat_finds_the_fork_and_anything_else_is_a_conflict,
    of_many_forks_with_one_id_one_is_made,
    a_fork_of_a_fork_says_where_it_comes_from,
    a_fork_of_a_trimmed_session_begins_at_its_floor,
    wrong_forks_are_told_apart,
);

async fn fork(address: SocketAddr, session: &str, body: Value) -> Value {
    Request::post(format!("/v1/sessions/{session}/fork"), &body).send(address).await.with(201)
}

async fn state_at(address: SocketAddr, session: &str, at: u64) -> Value {
    let path = format!("/v1/sessions/{session}/state?at={at}");
    Request::get(path).send(address).await.with(200)
}

async fn view(address: SocketAddr, session: &str) -> Value {
    serde_json::from_str(&state(address, session).await).unwrap()
}

/// Runs that are not over, controls without outcome, messages that are being written.
fn open(view: &Value) -> Vec<&Value> {
    let all = |list: &str| view[list].as_array().unwrap().iter();
    let runs = all("runs").filter(|run| run["status"] != "ended");
    let controls = all("controls").filter(|control| control["outcome"].is_null());
    let messages = all("messages").filter(|message| message["status"] == "streaming");
    runs.chain(controls).chain(messages).collect()
}

/// A session `s` with some answers, and its worker.
async fn answered<E: Engine>(world: &World<E>, rounds: u32) -> (Node<E::Store>, Worker) {
    let node = world.node().await;
    create(node.address, "s").await;
    let mut worker = Worker::join(node.address, "w1", "guide", 1).await;
    for round in 0..rounds {
        input(node.address, "s", &format!("Question {round}")).await;
        worker.serve(&["some ", "wörds ", "more"]).await;
    }
    (node, worker)
}

async fn a_fork_and_its_source_go_on_each_by_itself<E: Engine>() {
    let world = World::<E>::start().await;
    let (node, mut worker) = answered(&world, 2).await;
    let before = state(node.address, "s").await;
    let head = view(node.address, "s").await["seq"].as_u64().unwrap();
    let made =
        fork(node.address, "s", json!({ "session": "f", "meta": { "title": "Another", "x": 1 } })).await;
    assert_eq!((&made["session"], &made["at"]), (&json!("f"), &json!(head)), "{made}");
    let meta = json!({
        "agent": "guide", "title": "Another", "x": 1, "forked_from": { "session": "s", "seq": head },
    });
    assert_eq!(made["meta"], meta);
    assert_eq!(state(node.address, "s").await, before, "nothing of the source changes");
    let log = blocks(node.address, "f").await;
    assert_eq!(log.last().unwrap()[..], ["session.updated"]);
    let listed = Request::get("/v1/sessions").send(node.address).await.with(200);
    let names: Vec<&Value> = listed["sessions"].as_array().unwrap().iter().map(|s| &s["session"]).collect();
    assert!(names.contains(&&json!("f")), "{listed}");

    // Work in the fork, then in the source.
    let run = input(node.address, "f", "Only here").await;
    let mut job = worker.work().await;
    assert_eq!((job.session.as_str(), job.run.as_str()), ("f", run.as_str()));
    let texts: Vec<&str> = job.work["messages"]
        .as_array()
        .unwrap()
        .iter()
        .map(|m| m["parts"][0]["value"].as_str().unwrap())
        .collect();
    let said = ["Question 0", "some wörds more", "Question 1", "some wörds more", "Only here"];
    assert_eq!(texts, said, "the agent knows what was said before");
    worker.say(&mut job, "Yes").await;
    worker.end(&mut job, "completed").await;
    input(node.address, "s", "Only there").await;
    worker.serve(&["No"]).await;
    let (source, forked) = (view(node.address, "s").await, view(node.address, "f").await);
    let messages = |view: &Value| view["messages"].as_array().unwrap().clone();
    assert_eq!(messages(&source)[..4], messages(&forked)[..4]);
    assert_eq!(messages(&source)[4]["parts"][0]["value"], "Only there");
    assert_eq!(messages(&forked)[4]["parts"][0]["value"], "Only here");
    let mut client = Client::attach(node.address, "f", json!("start")).await;
    client.holds_the_state(node.address).await;
}

async fn a_fork_at_any_seq_is_what_the_source_was_there<E: Engine>() {
    // First all of it raw, then folded so that cuts lie inside merged appends.
    for world in [World::<E>::folding(NO_FOLDING).await, World::<E>::start().await] {
        let (node, _worker) = answered(&world, 3).await;
        node.edge.folder.fold(&key("s")).await.unwrap();
        let head = view(node.address, "s").await["seq"].as_u64().unwrap();
        for at in 1..=head {
            let name = format!("f{at}");
            let made = fork(node.address, "s", json!({ "at": at, "session": name })).await;
            let exact = made["at"].as_u64().unwrap();
            assert!(exact <= at);
            let then = state_at(node.address, "s", at).await;
            assert_eq!(then["seq"], made["at"], "at {at}");
            assert_eq!(state_at(node.address, &name, exact).await, then, "at {at}");
            let now = view(node.address, &name).await;
            assert_eq!(open(&now), Vec::<&Value>::new(), "at {at}");
            let from = match exact == at {
                true => json!({ "session": "s", "seq": exact }),
                false => json!({ "session": "s", "seq": exact, "at": at }),
            };
            assert_eq!(now["session"]["meta"]["forked_from"], from);
            // And it takes what comes.
            let path = format!("/v1/sessions/{name}/input");
            Request::post(path, &json!({ "text": "On", "agent": "nobody" }))
                .send(node.address)
                .await
                .with(202);
        }
    }
}

async fn what_was_open_ends_in_the_fork_and_goes_on_in_the_source<E: Engine>() {
    let mut begun = Begun::<E>::start().await;
    let address = begun.here.address;
    begun.say("Hel").await;
    let child = begun.job.start_child("c1", "helper");
    assert_eq!(begun.worker.socket.ask(child).await["t"], "ok");
    let waiting = input(address, "s", "And you?").await;
    begun.ask("steer", json!({ "kind": "steer", "payload": { "text": "Shorter" } })).await;
    begun.client.receipt("steer", "accepted").await;
    let value = json!([{ "type": "state.set", "key": "k", "value": 1 }]);
    Request::post("/v1/sessions/s/entries", &json!({ "entries": value })).send(address).await.with(202);

    let made = fork(begun.there.address, "s", json!({ "session": "f" })).await;
    let forked = view(address, "f").await;
    assert_eq!(open(&forked), Vec::<&Value>::new());
    for run in [begun.run.as_str(), "c1", &waiting] {
        let run = forked["runs"].as_array().unwrap().iter().find(|r| r["run"] == run).unwrap();
        assert_eq!((&run["outcome"], &run["reason"]), (&json!("cancelled"), &json!("forked")), "{run}");
    }
    let steer = &forked["controls"][0];
    assert_eq!((&steer["outcome"], &steer["reason"]), (&json!("refused"), &json!("forked")), "{steer}");
    assert_eq!(forked["values"], json!({ "k": 1 }));
    let answer =
        forked["messages"].as_array().unwrap().iter().find(|m| m["run"] == begun.run.as_str()).unwrap();
    assert_eq!((&answer["status"], &answer["parts"][0]["value"]), (&json!("cancelled"), &json!("Hel")));
    let loaded = begun.here.edge.desk.store().load(&key("f")).await.unwrap().unwrap();
    assert_eq!(
        (loaded.fences, made["at"].as_u64()),
        (Vec::new(), Some(loaded.epochs.last().unwrap().1.0 - 1))
    );

    // The worker of the source hears nothing of it, and cannot write to the fork.
    begun.worker.told_to("steer").await;
    begun.worker.settle(&mut begun.job, "steer", "applied").await;
    begun.say("lo").await;
    begun.end("completed").await;
    assert_eq!(begun.client.history.answer(&begun.run), "Hello");
    assert_eq!(view(address, "f").await, forked);
    begun.all_agree().await;
}

async fn a_fork_of_a_held_session_is_held_by_nobody<E: Engine>() {
    let world = World::<E>::start().await;
    let (node, mut worker) = answered(&world, 1).await;
    Request::post("/v1/sessions/s/hold", &json!({ "reason": "mine" }))
        .header("everthread-kind", "operator")
        .send(node.address)
        .await
        .with(200);
    fork(node.address, "s", json!({ "session": "f" })).await;
    assert_eq!(view(node.address, "f").await["session"]["held"], Value::Null);
    assert!(view(node.address, "s").await["session"]["held"].is_object());
    assert_eq!(blocks(node.address, "f").await.last().unwrap()[..], ["session.updated", "session.released"]);
    let run = input(node.address, "f", "Go on").await;
    assert_eq!(worker.serve(&["Yes"]).await, run, "agents work there");
}

async fn branches_come_along<E: Engine>() {
    let world = World::<E>::start().await;
    let (node, mut worker) = answered(&world, 2).await;
    let first = view(node.address, "s").await["messages"][0]["message"].clone();
    let edit = json!({ "text": "Otherwise", "replaces": first });
    Request::post("/v1/sessions/s/input", &edit).send(node.address).await.with(202);
    worker.serve(&["so"]).await;
    let source = view(node.address, "s").await;
    fork(node.address, "s", json!({ "session": "f" })).await;
    let forked = view(node.address, "f").await;
    assert!(source["session"]["branches"].is_array());
    assert_eq!(source["session"]["branches"], forked["session"]["branches"]);
    input(node.address, "f", "On").await;
    let job = worker.work().await;
    let texts: Vec<&Value> =
        job.work["messages"].as_array().unwrap().iter().map(|m| &m["parts"][0]["value"]).collect();
    assert_eq!(texts, ["Otherwise", "so", "On"]);
    // The other branch can be selected there.
    Request::post("/v1/sessions/f/select", &json!({ "message": first })).send(node.address).await.with(200);
    assert_eq!(view(node.address, "s").await, source);
}

async fn a_long_session_is_forked_inside_a_merged_append<E: Engine>() {
    const BLOCKS: u64 = 500;
    const TOKENS: u64 = 100;
    let world = World::<E>::folding(NO_FOLDING).await;
    let node = world.node().await;
    create(node.address, "s").await;
    let run_name = input(node.address, "s", "Tell me everything").await;
    let store = node.edge.desk.store();
    let run = run_name.parse().unwrap();
    let write = async |entries: Vec<Value>| {
        let (count, entries) = (u32::try_from(entries.len()).unwrap(), json!(entries).to_string());
        let by = r#"{"kind":"agent","id":"guide"}"#;
        let run = Some(&run);
        let write = Write {
            by,
            run,
            entries: &entries,
            count,
            producer: None,
            fence: None,
            change: None,
            not_after: None,
        };
        store.write(&key("s"), write).await.unwrap().to.0
    };
    let start = write(vec![
        json!({ "type": "message.start", "message": "m", "role": "assistant" }),
        json!({ "type": "part.start", "message": "m", "part": "p", "kind": "text" }),
    ])
    .await;
    for block in 0..BLOCKS {
        let token = |n: u64| json!({ "type": "part.append", "message": "m", "part": "p", "offset": (block * TOKENS + n) * 6, "text": format!("{n:>5} ") });
        write((0..TOKENS).map(token).collect()).await;
    }
    let head = start + BLOCKS * TOKENS;
    // The first half is folded in the store, the second is raw.
    let folder = everthread_edge::folder::Folder::start(
        node.edge.reader.clone(),
        everthread_edge::folder::Options { at_entries: 1, at_end_entries: 1, keep_entries: 25_000 },
        node.edge.metrics.clone(),
        &node.edge.tasks,
    );
    folder.fold(&key("s")).await.unwrap();
    let folded_to = store.heads(&[key("s")]).await.unwrap()[0].unwrap().folded_to.0;
    assert!(folded_to > 20_000 && folded_to < head, "{folded_to}");
    let mut names = Vec::new();
    for at in [start + 12_345, folded_to, folded_to + 7, head - 3, head] {
        let made = fork(node.address, "s", json!({ "at": at })).await;
        let (name, exact) = (made["session"].as_str().unwrap(), made["at"].as_u64().unwrap());
        assert_eq!(exact == at, at >= folded_to, "only what is folded rounds down");
        let then = state_at(node.address, "s", at).await;
        assert_eq!(state_at(node.address, name, exact).await, then);
        let text = then["messages"][1]["parts"][0]["value"].as_str().unwrap().len() as u64;
        assert_eq!(text, (exact - start) * 6);
        let forked = store.heads(&[key(name)]).await.unwrap()[0].unwrap();
        assert_eq!(forked.folded_to.0, exact);
        names.push((at, made.clone()));
        let source = store.heads(&[key("s")]).await.unwrap()[0].unwrap();
        assert_eq!((source.folded_to.0, source.seq.0), (folded_to, head), "the source is left alone");
        let page = store.read(&key(name), Seq(0), usize::MAX).await.unwrap();
        assert!(page.records.len() < 60, "{} records", page.records.len());
        let bytes: usize =
            page.records.iter().filter(|r| r.to <= forked.folded_to).map(|r| r.blocks.len()).sum();
        assert_eq!(forked.folded_bytes, bytes as u64);
    }
    // A repeat is known by the seq that it asks for, also when nobody can tell any more where that was rounded to.
    Request::new("DELETE", "/v1/sessions/s").send(node.address).await.with(200);
    for (at, made) in names {
        let again = async |at: &Value| {
            let body = json!({ "session": made["session"], "at": at });
            Request::post("/v1/sessions/s/fork", &body).send(node.address).await
        };
        for at in [&json!(at), &made["at"]] {
            assert_eq!(again(at).await.with(200)["at"], made["at"], "{at}");
        }
        again(&json!(2)).await.is_error(404, "no_session");
    }
}

async fn a_cursor_of_the_source_is_good_in_the_fork_up_to_the_cut<E: Engine>() {
    let world = World::<E>::folding(NO_FOLDING).await;
    let (node, _worker) = answered(&world, 2).await;
    let there = world.node().await;
    let mut client = Client::attach(node.address, "s", json!("start")).await;
    client.holds_the_state(node.address).await;
    let history = client.history.clone();
    let head = history.view.seq().0;
    fork(node.address, "s", json!({ "session": "whole" })).await;
    fork(node.address, "s", json!({ "session": "part", "at": head - 1 })).await;
    // Who has everything up to the cut goes on without being sent it again.
    let mut client = Client::resume(there.address, "whole", history.clone()).await;
    client.holds_the_state(there.address).await;
    assert!(!client.told.contains(&"reset".to_owned()), "{:?}", client.told);
    assert_eq!(client.history.seqs - history.seqs, 1);
    let mut client = Client::resume(there.address, "part", history).await;
    client.told("reset").await;
    client.until("the fork", |history| history.view.session().meta.contains_key("forked_from")).await;
    client.holds_the_state(there.address).await;
}

async fn a_repeat_finds_the_fork_and_anything_else_is_a_conflict<E: Engine>() {
    let world = World::<E>::start().await;
    let (node, _worker) = answered(&world, 1).await;
    let again = async |from: &str, body: Value| {
        Request::post(format!("/v1/sessions/{from}/fork"), &body).send(node.address).await
    };
    let head = view(node.address, "s").await["seq"].as_u64().unwrap();
    let first = fork(node.address, "s", json!({ "session": "f", "at": head })).await;
    assert_eq!(again("s", json!({ "session": "f", "at": head })).await.with(200), first);
    // The source has gone on, and the fork too.
    input(node.address, "s", "On").await;
    let cursor =
        Request::post("/v1/sessions/f/input", &json!({ "text": "On" })).send(node.address).await.with(202);
    let repeat = again("s", json!({ "session": "f" })).await.with(200);
    assert_eq!((&repeat["at"], &repeat["cursor"]), (&first["at"], &cursor["cursor"]));
    again("s", json!({ "session": "f", "at": 1 })).await.is_error(409, "id_conflict");
    again("s", json!({ "session": "s" })).await.is_error(409, "id_conflict");
    create(node.address, "other").await;
    again("s", json!({ "session": "other" })).await.is_error(409, "id_conflict");
    again("other", json!({ "session": "f" })).await.is_error(409, "id_conflict");
    assert_eq!(view(node.address, "f").await["session"]["meta"]["forked_from"]["session"], "s");
}

async fn of_many_forks_with_one_id_one_is_made<E: Engine>() {
    let world = World::<E>::start().await;
    let (here, _worker) = answered(&world, 2).await;
    let there = world.node().await;
    let head = view(here.address, "s").await["seq"].as_u64().unwrap();
    let asking = (0..8).map(|n| {
        let address = if n % 2 == 0 { here.address } else { there.address };
        Request::post("/v1/sessions/s/fork", &json!({ "session": "f", "at": head })).send(address)
    });
    let answers = join_all(asking).await;
    let made = answers.iter().filter(|answer| answer.status == 201).count();
    assert_eq!(made, 1, "{answers:?}");
    for answer in &answers {
        assert!(answer.status.is_success(), "{}", answer.text);
        assert_eq!(answer.body, answers[0].body);
    }
    assert_eq!(view(there.address, "f").await["seq"], head + 1);
}

async fn a_fork_of_a_fork_says_where_it_comes_from<E: Engine>() {
    let world = World::<E>::start().await;
    let (node, mut worker) = answered(&world, 1).await;
    fork(node.address, "s", json!({ "session": "f" })).await;
    input(node.address, "f", "More").await;
    worker.serve(&["of it"]).await;
    let made = fork(node.address, "f", json!({ "session": "g", "meta": { "agent": null } })).await;
    assert_eq!(made["meta"]["forked_from"]["session"], "f");
    assert_eq!(made["meta"]["agent"], Value::Null);
    let (f, g) = (view(node.address, "f").await, view(node.address, "g").await);
    assert_eq!(f["messages"], g["messages"]);
    let epochs = node.edge.desk.store().load(&key("g")).await.unwrap().unwrap().epochs;
    assert_eq!(epochs.len(), 3);
    assert!(epochs.is_sorted());
}

async fn a_fork_of_a_trimmed_session_begins_at_its_floor<E: Engine>() {
    let world = World::<E>::folding(NO_FOLDING).await;
    let (node, mut worker) = answered(&world, 2).await;
    let folder = everthread_edge::folder::Folder::start(
        node.edge.reader.clone(),
        everthread_edge::folder::Options { at_entries: 1, at_end_entries: 1, keep_entries: 0 },
        node.edge.metrics.clone(),
        &node.edge.tasks,
    );
    // A folded record ends where nothing is being written.
    folder.fold(&key("s")).await.unwrap();
    for _ in 0..2 {
        input(node.address, "s", "More").await;
        worker.serve(&["of it"]).await;
    }
    folder.fold(&key("s")).await.unwrap();
    let store = node.edge.desk.store();
    let head = store.heads(&[key("s")]).await.unwrap()[0].unwrap();
    let page = store.read(&key("s"), Seq(0), usize::MAX).await.unwrap();
    // Behind a folded record somewhere in the middle, at which nothing is being written.
    let mut view = View::new();
    let (mut bytes, mut cut) = (0, None);
    for record in page.records.iter().filter(|record| record.to <= head.folded_to) {
        view.apply(record, page.epochs[0].1).unwrap();
        bytes += record.blocks.len() as u64;
        let is_quiet = view.messages().iter().all(|m| m.status != MessageState::Streaming);
        if is_quiet && view.messages().len() >= 3 {
            cut = Some((record.to.next(), view.base(Millis(1)).unwrap()));
            break;
        }
    }
    let (floor, base) = cut.unwrap();
    let trim = Trim { expect: head.version, from: Seq(1), floor, bytes, base: &base };
    assert_eq!(store.trim(&key("s"), trim).await, Ok(Trimmed::Done));

    let made = fork(node.address, "s", json!({ "session": "f" })).await;
    let forked = store.heads(&[key("f")]).await.unwrap()[0].unwrap();
    assert_eq!((forked.floor, json!(forked.folded_to)), (floor, made["at"].clone()));
    let (source, now) = (self::view(node.address, "s").await, self::view(node.address, "f").await);
    assert_eq!(source["messages"], now["messages"]);
    assert_eq!(open(&now), Vec::<&Value>::new());
    let below = json!({ "at": floor.0 - 2 });
    Request::post("/v1/sessions/s/fork", &below).send(node.address).await.is_error(400, "bad_cursor");
    // Where nothing is left but the base.
    let least = fork(node.address, "s", json!({ "session": "g", "at": floor.0 - 1 })).await;
    assert_eq!(least["at"], floor.0 - 1);
    for name in ["f", "g"] {
        let run = input(node.address, name, "Go on").await;
        assert_eq!(worker.serve(&["Yes"]).await, run);
    }
}

async fn wrong_forks_are_told_apart<E: Engine>() {
    let world = World::<E>::start().await;
    let (node, _worker) = answered(&world, 1).await;
    let ask = async |from: &str, body: Value| {
        Request::post(format!("/v1/sessions/{from}/fork"), &body).send(node.address).await
    };
    let head = view(node.address, "s").await["seq"].as_u64().unwrap();
    ask("nobody", json!({})).await.is_error(404, "no_session");
    ask("s", json!({ "at": 0 })).await.is_error(400, "bad_request");
    ask("s", json!({ "at": head + 1 })).await.is_error(400, "bad_request");
    ask("s", json!({ "at": "x" })).await.is_error(400, "bad_request");
    ask("s", json!({ "session": "a b" })).await.is_error(400, "bad_request");
    ask("s", json!({ "more": 1 })).await.is_error(400, "bad_request");
    ask("s", json!({ "meta": { "agent": 7 } })).await.is_error(400, "bad_request");
    ask("s", json!({ "meta": { "x": "x".repeat(9_000) } })).await.is_error(413, "too_large");
    let count = async || {
        let listed = Request::get("/v1/sessions").send(node.address).await.with(200);
        listed["sessions"].as_array().unwrap().len()
    };
    assert_eq!(count().await, 1, "nothing was made");
}
