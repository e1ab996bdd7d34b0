//! A run that waits for people: each approval has one outcome, and any worker goes on with the run.

use crate::harness::client::hello_as;
use crate::harness::http::{control, create, input, settled};
use crate::harness::{Begun, Client, Engine, Request, Worker};
use serde_json::{Value, json};

on_both_engines!(
    a_suspended_run_gives_its_place_to_another,
    an_approved_run_goes_on_elsewhere_where_it_stopped,
    of_two_answers_that_race_one_counts_and_the_other_is_told_whose,
    answers_count_only_from_those_who_may_give_them,
    an_answer_that_approves_names_the_digest_of_what_was_asked,
    an_approval_that_nobody_answers_expires_and_the_run_goes_on,
    a_suspended_run_that_is_cancelled_ends_at_once,
    a_click_that_is_repeated_approves_once,
    a_run_goes_on_with_the_last_of_its_answers,
    a_second_suspension_adds_to_the_first,
    a_suspended_run_counts_as_at_work,
    an_answer_to_nothing_that_is_asked_is_refused,
    a_suspension_whose_answer_was_lost_is_not_doubled,
    a_run_waits_for_its_answers_without_any_worker,
    a_run_gets_its_input_and_its_own_words_however_much_was_said_since,
);

fn ask_for(approval: &str) -> Value {
    json!([{ "approval": approval, "reason": "pay 3 EUR?" }])
}

fn yes(approval: &str) -> Value {
    json!({ "kind": "answer", "payload": { "approval": approval, "decision": "approved" } })
}

fn answer_of(id: &str, run: &str, payload: Value) -> Value {
    json!({ "id": id, "kind": "answer", "target": { "run": run }, "payload": payload })
}

#[track_caller]
fn came_to(control: &Value, outcome: &str, reason: Option<&str>) {
    assert_eq!((&control["outcome"], control["reason"].as_str()), (&json!(outcome), reason), "{control}");
}

/// A run that waits for one approval.
async fn suspended<E: Engine>(approvals: Value) -> Begun<E> {
    let mut begun = Begun::<E>::start().await;
    begun.say("Hel").await;
    let ack = begun.worker.suspend(&mut begun.job, approvals).await;
    assert_eq!(ack["t"], "ok", "{ack}");
    begun.client.run_is(&begun.run, "suspended").await;
    begun
}

/// The worker gets the run again, under this attempt, and completes it.
async fn completes<E: Engine>(begun: &mut Begun<E>, attempt: u64) -> Value {
    let mut job = begun.worker.work().await;
    assert_eq!((&*job.run, job.attempt), (&*begun.run, attempt));
    begun.worker.end(&mut job, "completed").await;
    assert_eq!(begun.client.ended(&begun.run).await, "completed");
    job.work["answers"].clone()
}

async fn a_suspended_run_gives_its_place_to_another<E: Engine>() {
    let mut begun = Begun::<E>::start().await;
    create(begun.there.address, "other").await;
    let other = input(begun.there.address, "other", "Hi").await;
    begun.say("May I?").await;
    let data = json!({ "tool": "pay", "args": { "eur": 3 } });
    let schema = json!({ "type": "object", "properties": { "eur": { "type": "number" } } });
    let who = json!({ "kinds": ["user"], "subjects": ["ann", "bob"] });
    let approval = json!({ "approval": "a1", "reason": "pay?", "schema": schema, "digest": "d1", "expires_ms": 60_000, "who": who, "data": data });
    let ack = begun.worker.suspend(&mut begun.job, json!([approval])).await;
    assert_eq!(ack["t"], "ok", "{ack}");
    // It had room for one run: the other session's is begun while this one waits.
    assert_eq!(begun.worker.serve(&["x"]).await, other);
    let run = begun.client.run_is(&begun.run, "suspended").await;
    let shown = &run["approvals"][0];
    for name in ["approval", "reason", "schema", "digest", "who", "data"] {
        assert_eq!(shown[name], approval[name], "{shown}");
    }
    assert!(shown["expires"].is_u64(), "{shown}");
    let shown = Request::get("/v1/sessions/s").send(begun.there.address).await.with(200);
    assert_eq!(shown["runs"][0]["status"], "suspended", "{shown}");
    // It is nobody's now.
    let late = begun.worker.append(&mut begun.job.clone(), json!([{ "type": "x-late" }])).await;
    assert_eq!(late["code"], "fenced", "{late}");
    let late = begun.worker.end(&mut begun.job.clone(), "completed").await;
    assert_eq!(late["code"], "fenced", "{late}");
    let value = json!({ "eur": 2 });
    let payload = json!({ "approval": "a1", "decision": "approved", "digest": "d1", "value": value });
    begun.ask("c1", json!({ "kind": "answer", "payload": payload })).await;
    came_to(&begun.client.settled("c1").await, "applied", None);
    let answers = completes(&mut begun, 2).await;
    let by = json!({ "kind": "user", "id": "ann" });
    assert_eq!(
        answers,
        json!([{ "approval": "a1", "verdict": "approved", "answered_by": by, "value": value, "digest": "d1" }])
    );
    let run = begun.client.history.run(&begun.run);
    assert_eq!(
        (&run["approvals"][0]["verdict"], &run["approvals"][0]["answered_by"]),
        (&json!("approved"), &by),
        "{run}"
    );
    begun.all_agree().await;
}

async fn an_approved_run_goes_on_elsewhere_where_it_stopped<E: Engine>() {
    let mut begun = suspended::<E>(ask_for("a1")).await;
    drop(begun.worker);
    let mut other = Worker::join(begun.there.address, "w2", "guide", 1).await;
    let receipt =
        settled(begun.here.address, "s", &answer_of("c1", &begun.run, yes("a1")["payload"].clone())).await;
    came_to(&receipt, "applied", None);
    let mut job = other.work().await;
    assert_eq!((&*job.run, job.attempt), (&*begun.run, 2));
    assert_eq!(job.work["answers"][0]["answered_by"], json!({ "kind": "user", "id": "dev" }));
    // Its open part is continued at its length; numbering begins anew.
    assert_eq!(job.go_on(), "Hel");
    let wrong = json!([{ "type": "part.append", "message": "m", "part": "p", "offset": 0, "text": "x" }]);
    let refused = other.append(&mut job.clone(), wrong).await;
    assert_eq!(refused["code"], "bad_offset", "{refused}");
    let frame = job.say("lo");
    assert_eq!(frame["producer"], json!({ "incarnation": 2, "batch": 1 }));
    assert_eq!(other.socket.ask(frame).await["t"], "ok");
    let end = json!([{ "type": "message.end", "message": "m", "status": "complete" }]);
    assert_eq!(other.append(&mut job, end).await["t"], "ok");
    assert_eq!(other.end(&mut job, "completed").await["t"], "ok");
    assert_eq!(begun.client.ended(&begun.run).await, "completed");
    assert_eq!(begun.client.history.answer(&begun.run), "Hello");
    let started = begun.client.history.run(&begun.run);
    assert_eq!((&started["worker"], &started["attempt"]), (&json!("w2"), &json!(2)), "{started}");
    begun.client.holds_the_state(begun.here.address).await;
}

async fn of_two_answers_that_race_one_counts_and_the_other_is_told_whose<E: Engine>() {
    let mut begun = suspended::<E>(ask_for("a0")).await;
    for round in 0..6 {
        let approval = format!("a{round}");
        let (here, there, run) = (begun.here.address, begun.there.address, begun.run.clone());
        let answer = async |address, who: &str, decision: &str| {
            let payload = json!({ "approval": approval, "decision": decision });
            let body = answer_of(&format!("{who}{round}"), &run, payload);
            let path = "/v1/sessions/s/control?wait_ms=30000";
            let request = Request::post(path, &body).header("everthread-subject", who);
            request.send(address).await.with(200)
        };
        let (ann, bob) = tokio::join!(answer(here, "ann", "approved"), answer(there, "bob", "denied"));
        let (winner, loser, verdict) =
            if ann["outcome"] == "applied" { ("ann", &bob, "approved") } else { ("bob", &ann, "denied") };
        assert_ne!(ann["outcome"], bob["outcome"], "{ann} {bob}");
        came_to(loser, "refused", Some("already_answered"));
        assert_eq!(loser["answered_by"], json!({ "kind": "user", "id": winner }));
        let mut job = begun.worker.work().await;
        let last = job.work["answers"].as_array().unwrap().last().unwrap().clone();
        assert_eq!(
            (&last["approval"], &last["verdict"], &last["answered_by"]["id"]),
            (&json!(approval), &json!(verdict), &json!(winner))
        );
        let id = if winner == "ann" { format!("bob{round}") } else { format!("ann{round}") };
        assert_eq!(begun.client.settled(&id).await["answered_by"]["id"], winner, "the log says so too");
        begun.worker.suspend(&mut job, ask_for(&format!("a{}", round + 1))).await;
        begun
            .client
            .until("the next one", |h| h.run(&run)["approvals"].as_array().unwrap().len() == round + 2)
            .await;
    }
    assert_eq!(begun.client.history.count("approval.settled"), 6);
    begun.all_agree().await;
}

async fn answers_count_only_from_those_who_may_give_them<E: Engine>() {
    let approvals = json!([
        { "approval": "kind", "reason": "?", "who": { "kinds": ["operator"] } },
        { "approval": "subject", "reason": "?", "who": { "subjects": ["cleo"] } },
        { "approval": "both", "reason": "?", "who": { "kinds": ["operator", "system"], "subjects": ["cleo"] } },
    ]);
    let mut begun = suspended::<E>(approvals).await;
    let (run, address) = (begun.run.clone(), begun.there.address);
    let ask = async |id: &str, approval: &str, subject: &str, kind: &str| {
        let body = answer_of(id, &run, json!({ "approval": approval, "decision": "approved" }));
        let request = Request::post("/v1/sessions/s/control", &body);
        let request = request.header("everthread-subject", subject).header("everthread-kind", kind);
        request.send(address).await.with(200)
    };
    let wrong = [
        ("kind", "cleo", ""),
        ("kind", "cleo", "system"),
        ("subject", "ann", "operator"),
        ("both", "cleo", "user"),
        ("both", "ann", "operator"),
    ];
    for (number, (approval, subject, kind)) in wrong.into_iter().enumerate() {
        came_to(&ask(&format!("no{number}"), approval, subject, kind).await, "refused", Some("not_allowed"));
    }
    came_to(&ask("yes1", "kind", "olga", "operator").await, "applied", None);
    came_to(&ask("yes2", "subject", "cleo", "").await, "applied", None);
    // Over WebSocket the role comes with hello.
    let mut socket = hello_as(begun.here.address, json!({ "subject": "cleo", "kind": "operator" })).await;
    socket.ask(json!({ "t": "attach", "session": "s", "from": "start" })).await;
    let mut asked = answer_of("yes3", &run, json!({ "approval": "both", "decision": "approved" }));
    (asked["t"], asked["attachment"]) = ("control".into(), 1.into());
    came_to(&socket.ask(asked).await, "applied", None);
    let answers = completes(&mut begun, 2).await;
    assert_eq!(answers[2]["answered_by"], json!({ "kind": "operator", "id": "cleo" }));
    let agent = Request::post("/v1/sessions/s/control", &answer_of("x", &run, json!({})))
        .header("everthread-kind", "agent");
    assert_eq!(agent.send(address).await.status, 400);
    begun.all_agree().await;
}

async fn an_answer_that_approves_names_the_digest_of_what_was_asked<E: Engine>() {
    let mut begun = suspended::<E>(json!([
        { "approval": "a1", "reason": "pay?", "digest": "sha256.abc" },
        { "approval": "a2", "reason": "pay?", "digest": "sha256.abc" },
        { "approval": "a3", "reason": "pay?" },
    ]))
    .await;
    let answer = |approval: &str, decision: &str, digest: Option<&str>| {
        let mut payload = json!({ "approval": approval, "decision": decision });
        if let Some(digest) = digest {
            payload["digest"] = digest.into();
        }
        json!({ "kind": "answer", "payload": payload })
    };
    let cases = [
        ("c1", answer("a1", "approved", None), Some("wrong_digest")),
        ("c2", answer("a1", "approved", Some("sha256.abd")), Some("wrong_digest")),
        ("c3", answer("a1", "denied", Some("sha256.abd")), Some("wrong_digest")),
        ("c4", answer("a1", "approved", Some("sha256.abc")), None),
        ("c5", answer("a2", "denied", None), None),
        ("c6", answer("a3", "approved", None), None),
    ];
    for (id, asked, reason) in cases {
        begun.ask(id, asked).await;
        let outcome = if reason.is_some() { "refused" } else { "applied" };
        came_to(&begun.client.settled(id).await, outcome, reason);
    }
    let answers = completes(&mut begun, 2).await;
    let verdicts: Vec<&Value> = answers.as_array().unwrap().iter().map(|answer| &answer["verdict"]).collect();
    assert_eq!(verdicts, ["approved", "denied", "approved"]);
    begun.all_agree().await;
}

async fn an_approval_that_nobody_answers_expires_and_the_run_goes_on<E: Engine>() {
    let mut begun = suspended::<E>(json!([
        { "approval": "a1", "reason": "pay?", "expires_ms": 400 },
        { "approval": "a2", "reason": "pay?", "digest": "d" },
    ]))
    .await;
    begun.ask("c1", json!({ "kind": "answer", "payload": { "approval": "a2", "decision": "denied" } })).await;
    came_to(&begun.client.settled("c1").await, "applied", None);
    let answers = completes(&mut begun, 2).await;
    assert_eq!(
        (&answers[0]["verdict"], &answers[0]["answered_by"]),
        (&json!("expired"), &Value::Null),
        "{answers}"
    );
    assert_eq!((&answers[1]["verdict"], &answers[1]["digest"]), (&json!("denied"), &json!("d")), "{answers}");
    let run = begun.client.history.run(&begun.run);
    assert_eq!(run["approvals"][0]["verdict"], "expired", "{run}");
    begun.all_agree().await;
}

async fn a_suspended_run_that_is_cancelled_ends_at_once<E: Engine>() {
    let mut begun = suspended::<E>(ask_for("a1")).await;
    let cancel = json!({ "id": "c1", "kind": "cancel", "target": { "run": begun.run } });
    let (status, receipt) = control(begun.there.address, "s", &cancel, 0).await;
    assert_eq!(
        (status, &receipt["stage"], &receipt["outcome"]),
        (200, &json!("settled"), &json!("applied")),
        "{receipt}"
    );
    assert_eq!(begun.client.ended(&begun.run).await, "cancelled");
    assert_eq!(begun.client.history.run(&begun.run)["forced"], Value::Null);
    begun.ask("c2", yes("a1")).await;
    came_to(&begun.client.settled("c2").await, "refused", Some("run_ended"));
    let next = input(begun.here.address, "s", "Next").await;
    assert_eq!(begun.worker.serve(&["x"]).await, next);
    begun.client.ended(&next).await;
    assert_eq!(begun.client.history.count("run.resumed"), 0);
    begun.all_agree().await;
}

async fn a_click_that_is_repeated_approves_once<E: Engine>() {
    let mut begun = suspended::<E>(ask_for("a1")).await;
    let payload = yes("a1")["payload"].clone();
    let (here, there) = (begun.here.address, begun.there.address);
    // The same request again and again, and others of the same person, through both nodes.
    let bodies: Vec<Value> =
        ["c1", "c1", "c1", "c2", "c3"].iter().map(|id| answer_of(id, &begun.run, payload.clone())).collect();
    let asks = bodies.iter().enumerate().map(|(number, body)| settled([here, there][number % 2], "s", body));
    let receipts = futures_util::future::join_all(asks).await;
    let applied: Vec<&Value> =
        receipts.iter().filter(|r| r["outcome"] == "applied").map(|r| &r["control"]).collect();
    assert!(!applied.is_empty() && applied.iter().all(|id| id == &applied[0]), "{receipts:?}");
    for receipt in receipts.iter().filter(|receipt| receipt["control"] != *applied[0]) {
        came_to(receipt, "refused", Some("already_answered"));
    }
    completes(&mut begun, 2).await;
    // Late clicks do nothing either.
    assert_eq!(settled(there, "s", &bodies[0]).await["outcome"], receipts[0]["outcome"]);
    let late = settled(there, "s", &answer_of("c4", &begun.run, payload)).await;
    came_to(&late, "refused", Some("already_answered"));
    assert_eq!(late["answered_by"]["id"], "dev", "also after the end: {late}");
    for (kind, count) in
        [("approval.settled", 1), ("run.resumed", 1), ("run.started", 2), ("control.requested", 4)]
    {
        begun.client.until(kind, |history| history.count(kind) >= count).await;
        assert_eq!(begun.client.history.count(kind), count, "{kind}");
    }
    begun.all_agree().await;
}

async fn a_run_goes_on_with_the_last_of_its_answers<E: Engine>() {
    let approvals: Vec<Value> =
        (0..32).map(|n| json!({ "approval": format!("a{n}"), "reason": "?" })).collect();
    let mut begun = suspended::<E>(approvals.into()).await;
    // In another order than they were asked.
    for number in (0..32).rev() {
        let run = begun.client.history.run(&begun.run);
        assert_eq!(run["status"], "suspended");
        let id = format!("c{number}");
        begun.ask(&id, yes(&format!("a{number}"))).await;
        came_to(&begun.client.settled(&id).await, "applied", None);
    }
    let answers = completes(&mut begun, 2).await;
    let names: Vec<String> =
        answers.as_array().unwrap().iter().map(|a| a["approval"].as_str().unwrap().into()).collect();
    assert_eq!(names, (0..32).map(|n| format!("a{n}")).collect::<Vec<_>>());
    begun.all_agree().await;
}

async fn a_second_suspension_adds_to_the_first<E: Engine>() {
    let mut begun = suspended::<E>(ask_for("a1")).await;
    begun.ask("c1", yes("a1")).await;
    let mut job = begun.worker.work().await;
    job.go_on();
    begun.worker.say(&mut job, "lo").await;
    let again = begun.worker.suspend(&mut job.clone(), ask_for("a1")).await;
    assert_eq!(again["code"], "id_conflict", "an approval is used once: {again}");
    let ack = begun.worker.suspend(&mut job, ask_for("a2")).await;
    assert_eq!(ack["t"], "ok", "{ack}");
    begun.client.run_is(&begun.run, "suspended").await;
    begun.ask("c2", yes("a1")).await;
    came_to(&begun.client.settled("c2").await, "refused", Some("already_answered"));
    begun.ask("c3", yes("a2")).await;
    let mut job = begun.worker.work().await;
    assert_eq!((job.attempt, job.work["answers"].as_array().unwrap().len()), (3, 2));
    assert_eq!(job.go_on(), "Hello");
    begun.worker.say(&mut job, "!").await;
    begun.worker.end(&mut job, "completed").await;
    assert_eq!(begun.client.ended(&begun.run).await, "completed");
    assert_eq!(begun.client.history.answer(&begun.run), "Hello!");
    begun.all_agree().await;
}

async fn a_suspended_run_counts_as_at_work<E: Engine>() {
    let mut begun = suspended::<E>(ask_for("a1")).await;
    let body = json!({ "text": "Now", "when_busy": "reject" });
    Request::post("/v1/sessions/s/input", &body).send(begun.there.address).await.is_error(409, "busy");
    let body = json!({ "text": "and this", "when_busy": "steer" });
    let done = Request::post("/v1/sessions/s/input", &body).send(begun.there.address).await.with(202);
    assert_eq!(done["run"], begun.run, "{done}");
    let next = input(begun.there.address, "s", "Next").await;
    let idle = tokio::time::timeout(
        begun.world.leases.heartbeat * 5,
        begun.worker.socket.wait(|frame| frame["t"] == "work"),
    );
    assert!(idle.await.is_err(), "what waits behind a suspended run was begun");
    begun.ask("c1", yes("a1")).await;
    completes(&mut begun, 2).await;
    assert_eq!(begun.worker.serve(&["x"]).await, next);
    begun.client.ended(&next).await;
    begun.all_agree().await;
}

async fn an_answer_to_nothing_that_is_asked_is_refused<E: Engine>() {
    let mut begun = Begun::<E>::start().await;
    begun.ask("c1", yes("a1")).await;
    came_to(&begun.client.settled("c1").await, "refused", Some("no_approval"));
    begun.worker.suspend(&mut begun.job, ask_for("a1")).await;
    begun.client.run_is(&begun.run, "suspended").await;
    begun.ask("c2", yes("a2")).await;
    came_to(&begun.client.settled("c2").await, "refused", Some("no_approval"));
    let path = "/v1/sessions/s/control";
    let body = answer_of("c3", "nobody", yes("a1")["payload"].clone());
    Request::post(path, &body).send(begun.there.address).await.is_error(404, "no_run");
    begun.ask("c4", yes("a1")).await;
    completes(&mut begun, 2).await;
    begun.all_agree().await;
}

async fn a_suspension_whose_answer_was_lost_is_not_doubled<E: Engine>() {
    let mut begun = Begun::<E>::start().await;
    begun.say("Hel").await;
    let mut frame = begun.job.suspend(ask_for("a1"));
    frame["id"] = "lost".into();
    begun.worker.socket.send(&frame).await;
    begun.client.run_is(&begun.run, "suspended").await;
    drop(begun.worker);
    // It comes back elsewhere and learns that the run is not its own any more: that is what it asked for.
    let mut worker = Worker::rejoin(begun.there.address, "w1", "guide", 1, &[&begun.job]).await;
    assert!(worker.kept.is_empty(), "{:?}", worker.kept);
    assert_eq!(worker.socket.ask(frame).await["code"], "fenced");
    begun.client.ask("c1", answer_of("c1", &begun.run, yes("a1")["payload"].clone())).await;
    let mut job = worker.work().await;
    assert_eq!(job.attempt, 2);
    worker.end(&mut job, "completed").await;
    assert_eq!(begun.client.ended(&begun.run).await, "completed");
    assert_eq!(begun.client.history.count("run.suspended"), 1);
    begun.client.holds_the_state(begun.here.address).await;
}

async fn a_run_waits_for_its_answers_without_any_worker<E: Engine>() {
    // With a lease that is over before anybody answers.
    let mut begun = Begun::<E>::hurried().await;
    begun.say("Hel").await;
    assert_eq!(begun.worker.suspend(&mut begun.job, ask_for("a1")).await["t"], "ok");
    begun.client.run_is(&begun.run, "suspended").await;
    // Neither the worker nor its node is needed, and nobody's lease ends meanwhile.
    drop(begun.worker);
    begun.here.drain().await;
    tokio::time::sleep(begun.world.leases.lease + begun.world.leases.heartbeat * 2).await;
    let node = begun.world.node().await;
    let mut client = Client::attach(node.address, "s", json!({ "recent": 10 })).await;
    client.told("live").await;
    assert_eq!(client.history.run(&begun.run)["status"], "suspended");
    client.ask("c1", answer_of("c1", &begun.run, yes("a1")["payload"].clone())).await;
    came_to(&client.settled("c1").await, "applied", None);
    let mut worker = Worker::join(begun.there.address, "w2", "guide", 1).await;
    let mut job = worker.work().await;
    assert_eq!((job.attempt, &*job.go_on()), (2, "Hel"));
    worker.say(&mut job, "lo").await;
    worker.end(&mut job, "completed").await;
    assert_eq!(client.ended(&begun.run).await, "completed");
    client.holds_the_state(begun.there.address).await;
    assert_eq!(begun.client.ended(&begun.run).await, "completed");
}

async fn a_run_gets_its_input_and_its_own_words_however_much_was_said_since<E: Engine>() {
    let mut begun = suspended::<E>(ask_for("a1")).await;
    // People talk on among themselves, well beyond what comes with `work`.
    for number in 0..130 {
        let parts = json!([{ "kind": "text", "value": format!("talk {number}") }]);
        let entries = json!([{ "type": "message.put", "role": "operator", "parts": parts }]);
        let path = "/v1/sessions/s/entries";
        let body = json!({ "entries": entries });
        Request::post(path, &body).send(begun.there.address).await.with(202);
    }
    begun.ask("c1", yes("a1")).await;
    let mut job = begun.worker.work().await;
    assert_eq!((job.attempt, job.input_texts()), (2, vec!["Hi"]));
    assert_eq!(job.go_on(), "Hel");
    let messages = job.work["messages"].as_array().unwrap();
    assert!(messages.iter().map(|message| message["seq"].as_u64().unwrap()).is_sorted(), "in their order");
    assert_eq!(messages.last().unwrap()["parts"][0]["value"], "talk 129");
    assert!(messages.len() < 130, "{}", messages.len());
    begun.worker.say(&mut job, "lo").await;
    begun.worker.end(&mut job, "completed").await;
    assert_eq!(begun.client.ended(&begun.run).await, "completed");
    assert_eq!(begun.client.history.answer(&begun.run), "Hello");
    begun.all_agree().await;
}
