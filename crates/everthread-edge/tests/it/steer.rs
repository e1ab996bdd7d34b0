//! A steer reaches the run at work, and its text is never lost.

use crate::harness::http::{control, create, input, settled};
use crate::harness::{Begun, Client, Engine, PATIENCE, Request, Worker, World};
use serde_json::{Value, json};

on_both_engines!(
    a_steer_reaches_the_worker_with_its_message_and_is_input_once_it_is_applied,
    a_steer_that_the_worker_refuses_is_the_input_of_a_new_run,
    a_steer_that_is_not_taken_in_time_is_the_input_of_a_new_run,
    a_run_that_ends_without_its_steers_leaves_them_to_one_new_run,
    a_steer_for_when_the_agent_is_idle_is_a_run_of_its_own,
    a_steer_of_a_run_that_waits_is_its_input_at_once,
    a_steer_of_a_suspended_run_is_input_of_its_next_attempt,
    a_steer_of_an_agent_means_the_run_at_work_or_asks_for_one,
    input_steers_where_the_session_says_so,
    input_may_say_for_itself_that_it_steers,
    a_steer_of_a_run_that_has_just_ended_is_not_lost,
    steers_and_the_end_that_race_lose_no_text,
    a_steer_that_was_told_to_a_worker_that_dies_is_input_of_the_next_attempt,
    a_steer_of_a_run_that_is_lost_is_the_input_of_a_new_run,
    a_steer_that_was_not_settled_is_told_again_on_the_next_connection,
    steers_are_told_in_the_order_in_which_they_were_asked,
);

/// Of a steer that is told before it expires, and then waited for.
const EXPIRES_MS: u64 = 3_000;

fn steer(text: &str) -> Value {
    json!({ "kind": "steer", "payload": { "text": text } })
}

fn steer_of(id: &str, run: &str, text: &str) -> Value {
    json!({ "id": id, "kind": "steer", "target": { "run": run }, "payload": { "text": text } })
}

#[track_caller]
fn came_to(control: &Value, outcome: &str, reason: Option<&str>) {
    assert_eq!((&control["outcome"], control["reason"].as_str()), (&json!(outcome), reason), "{control}");
}

async fn a_steer_reaches_the_worker_with_its_message_and_is_input_once_it_is_applied<E: Engine>() {
    let mut begun = Begun::<E>::start().await;
    begun.say("Hel").await;
    let parts = json!([{ "kind": "text", "value": "shorter" }, { "kind": "data", "value": { "max": 3 } }]);
    let payload = json!({ "message": "m1", "parts": parts });
    begun.ask("c1", json!({ "kind": "steer", "mode": "now", "payload": payload })).await;
    let told = begun.worker.told("c1").await;
    assert_eq!(
        (&told["run"], &told["kind"], &told["mode"]),
        (&json!(begun.run), &json!("steer"), &json!("now"))
    );
    assert!(told["grace_ms"].as_u64().unwrap() <= 120_000, "{told}");
    // In View form: as it stands in the state.
    begun
        .client
        .until("the message", |history| history.view.messages().iter().any(|m| m.message.as_str() == "m1"))
        .await;
    let messages = serde_json::to_value(begun.client.history.view.messages()).unwrap();
    let put = messages.as_array().unwrap().iter().find(|m| m["message"] == "m1").unwrap();
    assert_eq!(told["message"], *put);
    assert_eq!(
        (&put["role"], &put["by"]["id"], &put["parts"][1]["value"]["max"]),
        (&json!("user"), &json!("ann"), &json!(3))
    );
    assert_eq!(
        begun.client.history.run(&begun.run)["input"].as_array().unwrap().len(),
        1,
        "not before it is applied"
    );
    let ack = begun.worker.settle(&mut begun.job, "c1", "applied").await;
    assert_eq!(ack["t"], "ok", "{ack}");
    let control = begun.client.settled("c1").await;
    came_to(&control, "applied", None);
    assert_eq!(
        (&control["run"], &control["message"], &control["mode"]),
        (&json!(begun.run), &json!("m1"), &json!("now"))
    );
    assert_eq!(begun.client.history.run(&begun.run)["input"][1], "m1");
    begun.say("lo").await;
    begun.end("completed").await;
    assert_eq!(begun.client.history.count("run.requested"), 1);
    begun.all_agree().await;
}

async fn a_steer_that_the_worker_refuses_is_the_input_of_a_new_run<E: Engine>() {
    let mut begun = Begun::<E>::start().await;
    for (id, reason, expected) in [("c1", None, "not_supported"), ("c2", Some("not_allowed"), "not_allowed")]
    {
        begun.ask(id, steer(id)).await;
        let told = begun.worker.told(id).await;
        assert_eq!(told["mode"], "next_step");
        let frame = begun.job.settle(id, "refused", reason);
        assert_eq!(begun.worker.socket.ask(frame).await["t"], "ok");
        let control = begun.client.settled(id).await;
        came_to(&control, "refused", Some(expected));
        let new = begun.client.history.run(control["run"].as_str().unwrap());
        assert_eq!(
            (&new["status"], &new["input"]),
            (&json!("requested"), &json!([control["message"]])),
            "{new}"
        );
    }
    assert_eq!(begun.client.history.run(&begun.run)["input"].as_array().unwrap().len(), 1);
    begun.end("completed").await;
    for id in ["c1", "c2"] {
        let mut job = begun.worker.work().await;
        assert_eq!(job.input_texts(), [id]);
        begun.worker.end(&mut job, "completed").await;
        assert_eq!(begun.client.history.control(id)["run"], job.run);
    }
    begun.all_agree().await;
}

async fn a_steer_that_is_not_taken_in_time_is_the_input_of_a_new_run<E: Engine>() {
    let mut begun = Begun::<E>::start().await;
    let mut asked = steer("in time, please");
    asked["expires_ms"] = EXPIRES_MS.into();
    begun.ask("c1", asked).await;
    let told = begun.worker.told("c1").await;
    assert!(told["grace_ms"].as_u64().unwrap() <= EXPIRES_MS, "{told}");
    let control = begun.worker.meanwhile(begun.client.settled("c1")).await;
    came_to(&control, "expired", Some("timeout"));
    // The worker could not know: it is told, and nothing is written.
    let head = begun.client.history.view.seq();
    let late = begun.worker.socket.ask(begun.job.clone().settle("c1", "applied", None)).await;
    assert_eq!((&late["code"], &late["no_side_effects"]), (&json!("id_conflict"), &json!(true)), "{late}");
    begun.end("completed").await;
    assert_eq!(begun.client.history.view.seq(), head.next(), "only the end");
    let mut job = begun.worker.work().await;
    assert_eq!((json!(job.run), job.input_texts()), (control["run"].clone(), vec!["in time, please"]));
    begun.worker.end(&mut job, "completed").await;
    begun.all_agree().await;
}

async fn a_run_that_ends_without_its_steers_leaves_them_to_one_new_run<E: Engine>() {
    let mut begun = Begun::<E>::start().await;
    for id in ["c1", "c2", "c3"] {
        begun.ask(id, steer(id)).await;
        begun.worker.told(id).await;
    }
    begun.end("failed").await;
    let mut runs = Vec::new();
    for id in ["c1", "c2", "c3"] {
        let control = begun.client.settled(id).await;
        came_to(&control, "refused", Some("run_ended"));
        runs.push(control["run"].clone());
    }
    let mut job = begun.worker.work().await;
    assert_eq!(runs, vec![json!(job.run); 3]);
    assert_eq!(job.input_texts(), ["c1", "c2", "c3"]);
    begun.worker.end(&mut job, "completed").await;
    begun.all_agree().await;
}

async fn a_steer_for_when_the_agent_is_idle_is_a_run_of_its_own<E: Engine>() {
    let mut begun = Begun::<E>::start().await;
    let mut asked = steer("afterwards");
    asked["mode"] = "when_idle".into();
    begun.ask("c1", asked).await;
    let receipt = begun.client.receipt("c1", "settled").await;
    came_to(&receipt, "applied", None);
    let control = begun.client.settled("c1").await;
    assert_eq!((&control["run"], &control["mode"]), (&receipt["run"], &json!("when_idle")));
    assert_ne!(receipt["run"], begun.run);
    begun.say("Hello").await;
    begun.end("completed").await;
    let mut job = begun.worker.work().await;
    assert_eq!((json!(job.run), job.input_texts()), (receipt["run"].clone(), vec!["afterwards"]));
    begun.worker.end(&mut job, "completed").await;
    begun.all_agree().await;
}

async fn a_steer_of_a_run_that_waits_is_its_input_at_once<E: Engine>() {
    let world = World::<E>::start().await;
    let (here, there) = (world.node().await, world.node().await);
    create(here.address, "s").await;
    let run = input(here.address, "s", "Hi").await;
    let receipt = settled(there.address, "s", &steer_of("c1", &run, "and more")).await;
    came_to(&receipt, "applied", None);
    assert_eq!(receipt["run"], run);
    let mut worker = Worker::join(here.address, "w1", "guide", 1).await;
    let mut job = worker.work().await;
    assert_eq!((&*job.run, job.input_texts()), (&*run, vec!["Hi", "and more"]));
    worker.end(&mut job, "completed").await;
    let mut client = Client::attach(there.address, "s", json!("start")).await;
    client.ended(&run).await;
    client.holds_the_state(here.address).await;
}

async fn a_steer_of_a_suspended_run_is_input_of_its_next_attempt<E: Engine>() {
    let mut begun = Begun::<E>::start().await;
    begun.say("Hel").await;
    begun.worker.suspend(&mut begun.job, json!([{ "approval": "a1", "reason": "pay?" }])).await;
    begun.client.run_is(&begun.run, "suspended").await;
    begun.ask("c1", steer("by the way")).await;
    came_to(&begun.client.settled("c1").await, "applied", None);
    let answer = json!({ "kind": "answer", "payload": { "approval": "a1", "decision": "approved" } });
    begun.ask("c2", answer).await;
    came_to(&begun.client.settled("c2").await, "applied", None);
    let mut job = begun.worker.work().await;
    assert_eq!((job.attempt, job.input_texts()), (2, vec!["Hi", "by the way"]));
    assert_eq!(job.go_on(), "Hel");
    begun.worker.say(&mut job, "lo").await;
    begun.worker.end(&mut job, "completed").await;
    assert_eq!(begun.client.ended(&begun.run).await, "completed");
    assert_eq!(begun.client.history.answer(&begun.run), "Hello");
    begun.all_agree().await;
}

async fn a_steer_of_an_agent_means_the_run_at_work_or_asks_for_one<E: Engine>() {
    let mut begun = Begun::<E>::start().await;
    let waiting = input(begun.there.address, "s", "Next").await;
    let of_agent =
        |text: &str| json!({ "kind": "steer", "target": { "agent": "guide" }, "payload": { "text": text } });
    begun.client.ask("c1", of_agent("you")).await;
    assert_eq!(begun.worker.told("c1").await["run"], begun.run);
    begun.worker.settle(&mut begun.job, "c1", "applied").await;
    assert_eq!(begun.client.settled("c1").await["run"], begun.run);
    begun.end("completed").await;
    let mut job = begun.worker.work().await;
    assert_eq!(job.run, waiting);
    begun.worker.end(&mut job, "completed").await;
    begun.client.ended(&waiting).await;
    // Nobody is at work: it asks for a run.
    begun.client.ask("c2", of_agent("anybody?")).await;
    let control = begun.client.settled("c2").await;
    came_to(&control, "refused", Some("no_active_run"));
    let mut job = begun.worker.work().await;
    assert_eq!((json!(job.run), job.input_texts()), (control["run"].clone(), vec!["anybody?"]));
    begun.worker.end(&mut job, "completed").await;
    begun.all_agree().await;
}

async fn input_steers_where_the_session_says_so<E: Engine>() {
    let mut begun = Begun::<E>::start().await;
    let patch = json!({ "meta": { "when_busy": "steer" } }).to_string();
    Request::new("PATCH", "/v1/sessions/s").body(patch).send(begun.there.address).await.with(200);
    let put = json!({ "id": "p1", "text": "shorter" });
    let done = Request::post("/v1/sessions/s/input", &put).send(begun.there.address).await.with(202);
    assert_eq!(done["run"], begun.run, "{done}");
    let id = done["control"].as_str().unwrap();
    let told = begun.worker.told(id).await;
    assert_eq!(
        (&told["message"]["message"], &told["mode"]),
        (&done["message"], &json!("next_step")),
        "{told}"
    );
    begun.worker.settle(&mut begun.job, id, "applied").await;
    came_to(&begun.client.settled(id).await, "applied", None);
    // A repeat gets the same answer, from any node, and does nothing.
    let again = Request::post("/v1/sessions/s/input", &put).send(begun.here.address).await.with(202);
    let same = |name: &str| assert_eq!(again[name], done[name], "{again}");
    ["run", "control", "message"].into_iter().for_each(same);
    assert_eq!(again["duplicate"], true);
    begun.end("completed").await;
    // Nobody to steer: an ordinary run.
    let put = json!({ "text": "Again" });
    let done = Request::post("/v1/sessions/s/input", &put).send(begun.there.address).await.with(202);
    assert_eq!(done["control"], Value::Null, "{done}");
    let mut job = begun.worker.work().await;
    assert_eq!(done["run"], job.run);
    begun.worker.end(&mut job, "completed").await;
    begun.client.ended(&job.run).await;
    assert_eq!(begun.client.history.count("control.requested"), 1);
    begun.all_agree().await;
}

async fn input_may_say_for_itself_that_it_steers<E: Engine>() {
    let mut begun = Begun::<E>::start().await;
    let entry =
        json!({ "type": "message.put", "role": "user", "parts": [{ "kind": "text", "value": "by socket" }] });
    let put = json!({ "t": "put", "when_busy": "steer", "entries": [entry] });
    let done = begun.client.request(put).await;
    assert_eq!((&done["t"], &done["run"]), (&json!("ok"), &json!(begun.run)), "{done}");
    let put = json!({ "text": "by post", "when_busy": "steer" });
    let posted = Request::post("/v1/sessions/s/input", &put).send(begun.there.address).await.with(202);
    assert_eq!(posted["run"], begun.run, "{posted}");
    for (done, text) in [(done, "by socket"), (posted, "by post")] {
        let id = done["control"].as_str().unwrap();
        let told = begun.worker.told(id).await;
        assert_eq!(told["message"]["parts"][0]["value"], text, "{told}");
        begun.worker.settle(&mut begun.job, id, "applied").await;
        came_to(&begun.client.settled(id).await, "applied", None);
    }
    begun.end("completed").await;
    assert_eq!(begun.client.history.run(&begun.run)["input"].as_array().unwrap().len(), 3);
    begun.all_agree().await;
}

async fn a_steer_of_a_run_that_has_just_ended_is_not_lost<E: Engine>() {
    let mut begun = Begun::<E>::start().await;
    assert_eq!(begun.worker.end(&mut begun.job, "completed").await["t"], "ok");
    let receipt = settled(begun.there.address, "s", &steer_of("c1", &begun.run, "wait, ...")).await;
    came_to(&receipt, "refused", Some("run_ended"));
    let mut job = begun.worker.work().await;
    assert_eq!((json!(job.run), job.input_texts()), (receipt["run"].clone(), vec!["wait, ..."]));
    begun.worker.end(&mut job, "completed").await;
    begun.client.ended(&job.run).await;
    begun.all_agree().await;
}

async fn steers_and_the_end_that_race_lose_no_text<E: Engine>() {
    let mut begun = Begun::<E>::start().await;
    let mut expected = Vec::new();
    let mut heard: Vec<String> = Vec::new();
    for round in 0..15 {
        let (a, b) = (format!("a{round}"), format!("b{round}"));
        let (run, here, there) = (begun.job.run.clone(), begun.here.address, begun.there.address);
        let (first, second) = (steer_of(&a, &run, &a), steer_of(&b, &run, &b));
        let asking = async { tokio::join!(control(here, "s", &first, 0), control(there, "s", &second, 0)) };
        let (asked, ack) = tokio::join!(asking, begun.worker.end(&mut begun.job, "completed"));
        assert_eq!(ack["t"], "ok", "{ack}");
        for (status, receipt) in [asked.0, asked.1] {
            assert!(matches!(status, 200 | 202), "{receipt}");
        }
        expected.extend([a, b]);
        begun.job = begun.worker.work().await;
        heard.extend(begun.job.input_texts().into_iter().map(str::to_owned));
        // Those of this round came in one run or in two.
        while heard.len() < expected.len() {
            begun.worker.end(&mut begun.job, "completed").await;
            begun.job = begun.worker.work().await;
            heard.extend(begun.job.input_texts().into_iter().map(str::to_owned));
        }
    }
    heard.sort();
    expected.sort();
    assert_eq!(heard, expected);
    begun.worker.end(&mut begun.job, "completed").await;
    begun.client.ended(&begun.job.run).await;
    begun.all_agree().await;
}

async fn a_steer_that_was_told_to_a_worker_that_dies_is_input_of_the_next_attempt<E: Engine>() {
    let mut begun = Begun::<E>::retrying().await;
    begun.say("Hel").await;
    begun.ask("c1", steer("shorter")).await;
    begun.worker.told("c1").await;
    let mut other = Worker::join(begun.there.address, "w2", "guide", 1).await;
    drop(begun.worker);
    let mut job = other.work().await;
    assert_eq!((&*job.run, job.attempt, job.input_texts()), (&*begun.run, 2, vec!["Hi", "shorter"]));
    came_to(&begun.client.settled("c1").await, "applied", None);
    assert_eq!(job.go_on(), "Hel");
    other.say(&mut job, "lo").await;
    other.end(&mut job, "completed").await;
    assert_eq!(begun.client.ended(&begun.run).await, "completed");
    assert_eq!(begun.client.history.answer(&begun.run), "Hello");
    begun.client.holds_the_state(begun.here.address).await;
}

async fn a_steer_of_a_run_that_is_lost_is_the_input_of_a_new_run<E: Engine>() {
    let mut begun = Begun::<E>::start().await;
    begun.say("Hel").await;
    begun.ask("c1", steer("shorter")).await;
    begun.worker.told("c1").await;
    let mut other = Worker::join(begun.there.address, "w2", "guide", 1).await;
    drop(begun.worker);
    let mut job = other.work().await;
    assert_eq!(job.input_texts(), ["shorter"]);
    other.end(&mut job, "completed").await;
    assert_eq!(begun.client.ended(&begun.run).await, "lost");
    let control = begun.client.settled("c1").await;
    came_to(&control, "refused", Some("run_ended"));
    assert_eq!(control["run"], job.run);
    begun.client.ended(&job.run).await;
    begun.client.holds_the_state(begun.here.address).await;
}

async fn a_steer_that_was_not_settled_is_told_again_on_the_next_connection<E: Engine>() {
    let mut world = World::<E>::start().await;
    world.leases.return_grace = PATIENCE;
    let mut begun = Begun::on(world, false).await;
    begun.say("Hel").await;
    begun.ask("c1", steer("shorter")).await;
    let told = begun.worker.told("c1").await;
    drop(begun.worker);
    let mut worker = Worker::rejoin(begun.there.address, "w1", "guide", 1, &[&begun.job]).await;
    assert_eq!(worker.kept, [&*begun.run]);
    assert_eq!(worker.told("c1").await["message"], told["message"]);
    assert_eq!(worker.settle(&mut begun.job, "c1", "applied").await["t"], "ok");
    came_to(&begun.client.settled("c1").await, "applied", None);
    worker.end(&mut begun.job, "completed").await;
    assert_eq!(begun.client.ended(&begun.run).await, "completed");
    begun.client.holds_the_state(begun.here.address).await;
}

async fn steers_are_told_in_the_order_in_which_they_were_asked<E: Engine>() {
    let mut begun = Begun::<E>::start().await;
    let ids: Vec<String> = (0..40).map(|number| format!("c{number}")).collect();
    for id in &ids {
        begun.ask(id, steer(id)).await;
    }
    for id in &ids {
        let told = begun.worker.told_to("steer").await;
        assert_eq!((&told["control"], &told["message"]["parts"][0]["value"]), (&json!(id), &json!(id)));
    }
    for id in &ids {
        begun.worker.settle(&mut begun.job, id, "applied").await;
    }
    begun.end("completed").await;
    assert_eq!(begun.client.history.run(&begun.run)["input"].as_array().unwrap().len(), 41);
    begun.all_agree().await;
}
