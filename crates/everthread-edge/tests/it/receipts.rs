//! Whoever asks learns what became of it: accepted, delivered, settled, through whichever node.

use crate::harness::client::hello;
use crate::harness::http::{WAIT_MS, control, create, input};
use crate::harness::{Begun, Client, Engine, OnRedis, Request, Worker, until};
use serde_json::{Value, json};
use std::time::Duration;
use tokio::time::timeout;

on_both_engines!(
    a_control_is_accepted_delivered_and_settled,
    a_control_is_not_delivered_while_the_worker_does_not_read,
    a_repeat_on_another_connection_gets_the_receipts_again,
    a_receipt_can_be_fetched_at_every_stage,
    a_request_may_wait_for_the_outcome,
    controls_beyond_those_that_are_followed_have_their_outcome_in_the_log,
    a_client_that_reads_no_receipts_is_not_followed_for_ever,
);

fn pause_of(id: &str, run: &str) -> Value {
    json!({ "id": id, "kind": "pause", "target": { "run": run }, "expires_ms": 600_000 })
}

async fn fetch(address: std::net::SocketAddr, id: &str, wait_ms: u32) -> Value {
    Request::get(format!("/v1/sessions/s/control/{id}?wait_ms={wait_ms}")).send(address).await.with(200)
}

async fn a_control_is_accepted_delivered_and_settled<E: Engine>() {
    let mut begun = Begun::<E>::start().await;
    let delivered_before = begun.here.edge.metrics.controls_delivered.get();
    begun.ask("c1", json!({ "kind": "pause" })).await;
    let accepted = begun.client.receipt("c1", "accepted").await;
    let delivered = begun.worker.meanwhile(begun.client.receipt("c1", "delivered")).await;
    assert_eq!(delivered["worker"], "w1", "{delivered}");
    begun.worker.told("c1").await;
    begun.worker.settle(&mut begun.job, "c1", "applied").await;
    let settled = begun.client.receipt("c1", "settled").await;
    assert_eq!((&settled["outcome"], &settled["run"]), (&json!("applied"), &json!(begun.run)), "{settled}");
    assert_eq!(begun.client.stages("c1"), ["accepted", "delivered", "settled"]);
    let seqs: Vec<u64> =
        [&accepted, &delivered, &settled].iter().map(|r| r["seq"].as_u64().unwrap()).collect();
    assert!(seqs.is_sorted(), "{seqs:?}");
    assert_eq!(begun.here.edge.metrics.controls_delivered.get(), delivered_before + 1);
    begun.end("completed").await;
    // An outcome at once comes alone.
    begun.ask("c2", json!({ "kind": "pause" })).await;
    assert_eq!(begun.client.receipt("c2", "settled").await["reason"], "run_ended");
    assert_eq!(begun.client.stages("c2"), ["settled"]);
    begun.all_agree().await;
}

async fn a_control_is_not_delivered_while_the_worker_does_not_read<E: Engine>() {
    let mut begun = Begun::<E>::start().await;
    begun.ask("c1", json!({ "kind": "pause" })).await;
    begun.client.receipt("c1", "accepted").await;
    // The frame is on its way, and may even be in its socket; nobody has read it.
    let early = timeout(Duration::from_millis(1200), begun.client.receipt("c1", "delivered")).await;
    assert!(early.is_err(), "{early:?}");
    begun.worker.meanwhile(begun.client.receipt("c1", "delivered")).await;
    begun.worker.settle(&mut begun.job, "c1", "applied").await;
    begun.client.receipt("c1", "settled").await;
    begun.end("completed").await;
    begun.all_agree().await;
}

async fn a_repeat_on_another_connection_gets_the_receipts_again<E: Engine>() {
    let mut begun = Begun::<E>::start().await;
    let asked = pause_of("c1", &begun.run);
    begun.client.ask("c1", asked.clone()).await;
    begun.worker.meanwhile(begun.client.receipt("c1", "delivered")).await;
    let mut again = Client::attach(begun.here.address, "s", json!("start")).await;
    again.ask("c1", asked.clone()).await;
    let delivered = begun.worker.meanwhile(again.receipt("c1", "delivered")).await;
    assert_eq!(delivered["worker"], "w1");
    begun.worker.settle(&mut begun.job, "c1", "applied").await;
    for client in [&mut begun.client, &mut again] {
        assert_eq!(client.receipt("c1", "settled").await["outcome"], "applied");
        assert_eq!(client.stages("c1"), ["accepted", "delivered", "settled"]);
    }
    let mut late = Client::attach(begun.there.address, "s", json!("start")).await;
    late.ask("c1", asked).await;
    assert_eq!(late.receipt("c1", "settled").await["outcome"], "applied");
    assert_eq!(late.stages("c1"), ["settled"]);
    begun.end("completed").await;
    assert_eq!(begun.client.history.count("control.requested"), 1);
    begun.all_agree().await;
}

async fn a_receipt_can_be_fetched_at_every_stage<E: Engine>() {
    let mut begun = Begun::<E>::start().await;
    let path = "/v1/sessions/s/control/c1";
    Request::get(path).send(begun.there.address).await.is_error(404, "not_found");
    Request::get("/v1/sessions/none/control/c1").send(begun.there.address).await.is_error(404, "no_session");
    Request::get("/v1/sessions/s/control/a%20b").send(begun.there.address).await.is_error(400, "bad_request");
    let (status, receipt) = control(begun.there.address, "s", &pause_of("c1", &begun.run), 0).await;
    assert_eq!((status, &receipt["stage"]), (202, &json!("accepted")), "{receipt}");
    assert_eq!(fetch(begun.there.address, "c1", 0).await["stage"], "accepted");
    assert_eq!(fetch(begun.here.address, "c1", 300).await["stage"], "accepted");
    let delivered = until("it is delivered", async || {
        let told = fetch(begun.there.address, "c1", 100).await;
        (told["stage"] == "delivered").then_some(told)
    });
    let told = begun.worker.meanwhile(delivered).await;
    assert_eq!(told["worker"], "w1", "{told}");
    for node in [&begun.here, &begun.there] {
        let told = fetch(node.address, "c1", 0).await;
        assert_eq!((&told["stage"], &told["worker"]), (&json!("delivered"), &json!("w1")), "{told}");
    }
    let waiting = fetch(begun.there.address, "c1", WAIT_MS);
    let (settled, ack) = tokio::join!(waiting, begun.worker.settle(&mut begun.job, "c1", "applied"));
    assert_eq!(ack["t"], "ok", "{ack}");
    assert_eq!((&settled["stage"], &settled["outcome"]), (&json!("settled"), &json!("applied")), "{settled}");
    assert_eq!(fetch(begun.here.address, "c1", 0).await["outcome"], "applied");
    begun.end("completed").await;
    begun.all_agree().await;
}

async fn a_request_may_wait_for_the_outcome<E: Engine>() {
    let mut begun = Begun::<E>::start().await;
    let asked = pause_of("c1", &begun.run);
    // It is asked again, which is the same request, on a machine that does not deliver it so soon.
    let delivered = until("it is delivered", async || {
        let (status, receipt) = control(begun.there.address, "s", &asked, 1_000).await;
        assert_eq!(status, 202, "{receipt}");
        (receipt["stage"] == "delivered").then_some(receipt)
    });
    let receipt = begun.worker.meanwhile(delivered).await;
    assert_eq!(receipt["worker"], "w1", "{receipt}");
    let waiting = control(begun.there.address, "s", &asked, WAIT_MS);
    let ((status, receipt), _) = tokio::join!(waiting, begun.worker.settle(&mut begun.job, "c1", "refused"));
    assert_eq!(
        (status, &receipt["outcome"], &receipt["reason"]),
        (200, &json!("refused"), &json!("not_supported"))
    );
    begun.end("completed").await;
    begun.all_agree().await;
}

async fn controls_beyond_those_that_are_followed_have_their_outcome_in_the_log<E: Engine>() {
    let mut begun = Begun::<E>::start().await;
    create(begun.here.address, "t").await;
    let run = input(begun.here.address, "t", "Hi").await;
    let mut other = Worker::join(begun.there.address, "w2", "guide", 1).await;
    let mut job = other.work().await;
    let mut socket = hello(begun.there.address).await;
    for session in ["s", "t"] {
        socket.ask(json!({ "t": "attach", "session": session, "from": "start" })).await;
    }
    let frame = |attachment: u32, id: String, run: &str| {
        let mut asked = pause_of(&id, run);
        (asked["t"], asked["attachment"]) = ("control".into(), attachment.into());
        asked
    };
    for number in 0..64 {
        let receipt = socket.ask(frame(1, format!("s{number}"), &begun.run)).await;
        assert_eq!(receipt["stage"], "accepted", "{receipt}");
    }
    let receipt = begun.worker.meanwhile(socket.ask(frame(2, "t1".into(), &run))).await;
    assert_eq!(receipt["stage"], "accepted", "{receipt}");
    other.told("t1").await;
    assert_eq!(other.settle(&mut job, "t1", "applied").await["t"], "ok");
    let path = "/v1/sessions/t/control/t1?wait_ms=30000";
    let settled = Request::get(path).send(begun.here.address).await.with(200);
    assert_eq!(settled["outcome"], "applied", "{settled}");
    let silence = timeout(Duration::from_millis(500), socket.wait(|frame| frame["control"] == "t1"));
    assert!(begun.worker.meanwhile(silence).await.is_err(), "one too many is followed");
    // Whoever asks again learns it, and the others are followed still.
    assert_eq!(socket.ask(frame(2, "t1".into(), &run)).await["outcome"], "applied");
    begun.end("completed").await;
    for number in 0..64 {
        let id = format!("s{number}");
        let last = socket.wait(|frame| frame["control"] == id && frame["stage"] == "settled").await;
        assert_eq!(last["reason"], "run_ended", "{last}");
    }
    // There is room again.
    assert_eq!(socket.ask(frame(2, "t2".into(), &run)).await["stage"], "accepted");
    other.told("t2").await;
    other.settle(&mut job, "t2", "applied").await;
    socket.wait(|frame| frame["control"] == "t2" && frame["stage"] == "settled").await;
    other.end(&mut job, "completed").await;
}

async fn a_client_that_reads_no_receipts_is_not_followed_for_ever<E: Engine>() {
    let mut begun = Begun::<E>::start().await;
    let mut asking = Client::attach(begun.there.address, "s", json!("start")).await;
    asking.ask("c1", pause_of("c1", &begun.run)).await;
    asking.receipt("c1", "accepted").await;
    drop(asking);
    begun.worker.told("c1").await;
    begun.worker.settle(&mut begun.job, "c1", "applied").await;
    assert_eq!(begun.client.settled("c1").await["outcome"], "applied");
    begun.end("completed").await;
    begun.here.drain().await;
    begun.there.drain().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn receipts_go_on_when_the_askers_node_was_cut_off_from_the_store() {
    let mut begun = Begun::<OnRedis>::start().await;
    let proxy = begun.world.engine.proxy(&"n2".parse().unwrap());
    begun.ask("c1", json!({ "kind": "pause" })).await;
    begun.worker.meanwhile(begun.client.receipt("c1", "delivered")).await;
    proxy.cut();
    begun.worker.settle(&mut begun.job, "c1", "applied").await;
    // Beyond every look that it takes meanwhile.
    begun.worker.meanwhile(tokio::time::sleep(Duration::from_secs(4))).await;
    proxy.heal();
    let settled = begun.worker.meanwhile(begun.client.receipt("c1", "settled")).await;
    assert_eq!(settled["outcome"], "applied", "{settled}");
    begun.worker.end(&mut begun.job, "completed").await;
    assert_eq!(begun.client.ended(&begun.run).await, "completed");
}
