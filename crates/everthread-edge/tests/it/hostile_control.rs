//! Wrong, huge and malicious control: a typed answer, nothing lost, nothing that hangs, and every run has its end.

use crate::harness::http::{control, create, input, settled, state};
use crate::harness::socket::Heard;
use crate::harness::worker::Job;
use crate::harness::{Begun, Client, Engine, Request, Socket, Worker, until};
use futures_util::{StreamExt as _, stream};
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::net::SocketAddr;

on_both_engines!(
    controls_that_are_wrong_get_typed_errors_and_write_nothing,
    the_same_mistakes_over_a_socket_are_answered_and_it_lives,
    holds_and_releases_that_are_wrong_get_typed_errors,
    what_does_not_fit_one_block_is_refused_and_nothing_is_written,
    policies_that_nobody_knows_are_refused,
    settlements_that_are_wrong_are_refused_and_the_run_goes_on,
    suspensions_that_are_wrong_are_refused_and_the_run_goes_on,
    a_suspension_of_a_run_that_is_being_cancelled_ends_it,
    nothing_is_written_after_a_suspension,
    a_session_takes_so_many_controls_and_no_more,
    a_flood_of_steers_loses_none_that_was_accepted,
    ids_that_belong_to_something_else_are_refused,
    pongs_that_nobody_asked_for_harm_nobody,
    controls_of_many_kinds_at_once_each_have_one_outcome,
    nobody_but_a_worker_speaks_as_an_agent,
);

fn nested(depth: usize) -> String {
    format!("{}{}", "[".repeat(depth), "]".repeat(depth))
}

/// Bodies that are wrong, with status and code.
fn wrong_controls(run: &str) -> Vec<(String, u16, &'static str)> {
    let of = |rest: &str| format!("{{\"target\":{{\"run\":\"{run}\"}},{rest}}}");
    let huge = "x".repeat(5 * 1024);
    let bad = |body: String| (body, 400, "bad_request");
    vec![
        bad("{}".into()),
        bad(of(r#""kind":"explode""#)),
        bad(of(r#""kind":"cancel","mode":"now""#)),
        bad(of(r#""kind":"cancel","payload":{}"#)),
        bad(of(r#""kind":"pause","payload":{"text":"a"}"#)),
        bad(of(r#""kind":"resume","mode":"next_step""#)),
        bad(of(r#""kind":"answer","mode":"now","payload":{"approval":"a","decision":"denied"}"#)),
        bad(of(r#""kind":"interrupt","mode":"now","payload":{"text":"a"}"#)),
        bad(of(r#""kind":"steer""#)),
        bad(of(r#""kind":"interrupt""#)),
        bad(of(r#""kind":"answer""#)),
        bad(of(r#""kind":"steer","payload":null"#)),
        bad(of(r#""kind":"steer","payload":"text""#)),
        bad(of(r#""kind":"steer","payload":[]"#)),
        bad(of(r#""kind":"steer","payload":{}"#)),
        bad(of(r#""kind":"steer","payload":{"text":1}"#)),
        bad(of(r#""kind":"steer","payload":{"parts":[]}"#)),
        bad(of(r#""kind":"steer","payload":{"parts":[{"kind":"text","value":1}]}"#)),
        bad(of(r#""kind":"steer","payload":{"parts":[{"kind":"hologram","value":1}]}"#)),
        bad(of(r#""kind":"steer","payload":{"parts":[{"kind":"text","value":"a","color":1}]}"#)),
        bad(of(r#""kind":"steer","payload":{"text":"a","parts":[]}"#)),
        bad(of(r#""kind":"steer","payload":{"text":"a","color":1}"#)),
        bad(of(r#""kind":"steer","payload":{"text":"a","message":"a b"}"#)),
        bad(of(r#""kind":"steer","payload":{"text":"a"},"mode":"later""#)),
        bad(of(r#""kind":"steer","payload":{"text":"\ud800"}"#)),
        bad(of(r#""kind":"steer","payload":{"text":"a","text":"b"}"#)),
        bad(of(&format!(
            r#""kind":"steer","payload":{{"parts":[{{"kind":"data","value":{}}}]}}"#,
            nested(80)
        ))),
        bad(of(&format!(r#""kind":"steer","payload":{}"#, nested(5000)))),
        bad(of(r#""kind":"answer","payload":{"approval":"a"}"#)),
        bad(of(r#""kind":"answer","payload":{"decision":"approved"}"#)),
        bad(of(r#""kind":"answer","payload":{"approval":"a","decision":"expired"}"#)),
        bad(of(r#""kind":"answer","payload":{"approval":"a b","decision":"denied"}"#)),
        bad(of(r#""kind":"answer","payload":{"approval":"a","decision":"denied","digest":1}"#)),
        bad(of(&format!(
            r#""kind":"answer","payload":{{"approval":"a","decision":"denied","value":{}}}"#,
            nested(80)
        ))),
        (
            of(&format!(
                r#""kind":"answer","payload":{{"approval":"a","decision":"denied","value":"{huge}"}}"#
            )),
            413,
            "too_large",
        ),
        bad(of(r#""kind":"steer","payload":{"text":"a"},"expires_ms":0"#)),
        bad(of(r#""kind":"steer","payload":{"text":"a"},"expires_ms":-1"#)),
        bad(of(r#""kind":"steer","payload":{"text":"a"},"expires_ms":3600001"#)),
        bad(of(r#""kind":"cancel","expires_ms":1e300"#)),
        bad(of(r#""kind":"cancel","id":"a b""#)),
        bad(of(r#""kind":"cancel","color":1"#)),
        bad(format!("{{\"kind\":\"cancel\",\"target\":{{\"run\":\"{}\"}}}}", "r".repeat(129))),
        bad(r#"{"kind":"cancel"}"#.into()),
        bad(r#"{"kind":"cancel","target":null}"#.into()),
        bad(r#"{"kind":"cancel","target":"all"}"#.into()),
        bad(r#"{"kind":"cancel","target":{}}"#.into()),
        bad(r#"{"kind":"cancel","target":{"planet":"earth"}}"#.into()),
        bad(r#"{"kind":"cancel","target":{"all":false}}"#.into()),
        bad(r#"{"kind":"cancel","target":{"all":1}}"#.into()),
        bad(format!("{{\"kind\":\"cancel\",\"target\":{{\"all\":true,\"run\":\"{run}\"}}}}")),
        bad(r#"{"kind":"pause","target":{"all":true}}"#.into()),
        bad(r#"{"kind":"steer","target":{"all":true},"payload":{"text":"a"}}"#.into()),
        bad(r#"{"kind":"cancel","target":{"run":7}}"#.into()),
        bad(r#"{"kind":"cancel","target":{"agent":"a/b"}}"#.into()),
        (r#"{"kind":"cancel","target":{"run":"nobody"}}"#.into(), 404, "no_run"),
        (r#"{"kind":"pause","target":{"run":"nobody"}}"#.into(), 404, "no_run"),
        (r#"{"kind":"steer","target":{"run":"nobody"},"payload":{"text":"a"}}"#.into(), 404, "no_run"),
        (r#"{"kind":"interrupt","target":{"input":"nothing"},"payload":{"text":"a"}}"#.into(), 404, "no_run"),
        (r#"{"kind":"resume","target":{"input":"nothing"}}"#.into(), 404, "no_run"),
    ]
}

async fn controls_that_are_wrong_get_typed_errors_and_write_nothing<E: Engine>() {
    let mut begun = Begun::<E>::start().await;
    let before = state(begun.here.address, "s").await;
    for (body, status, code) in wrong_controls(&begun.run) {
        let request = Request::new("POST", "/v1/sessions/s/control").body(body.clone());
        let answer = request.send(begun.there.address).await;
        assert_eq!(answer.status.as_u16(), status, "{body}: {}", answer.text);
        answer.is_error(status, code);
    }
    assert_eq!(state(begun.here.address, "s").await, before);
    begun.end("completed").await;
    begun.all_agree().await;
}

async fn the_same_mistakes_over_a_socket_are_answered_and_it_lives<E: Engine>() {
    let mut begun = Begun::<E>::start().await;
    let before = state(begun.here.address, "s").await;
    for (number, (body, _, code)) in wrong_controls(&begun.run).into_iter().enumerate() {
        if body.contains("\"id\":\"a b\"") {
            continue;
        }
        let id = format!("x{number}");
        let frame = format!(
            "{{\"t\":\"control\",\"id\":\"{id}\",\"attachment\":1,{}",
            body.replacen('{', "", 1).replacen("\"id\":", "\"old\":", 1)
        );
        let frame = if body == "{}" { frame.replace(",}", "}") } else { frame };
        begun.client.socket.send_text(frame.clone()).await;
        let answer = begun.client.socket.wait(|heard| heard["t"] == "error").await;
        assert_eq!(answer["code"], code, "{frame}: {answer}");
        assert!(answer["id"] == id.as_str() || answer["id"].is_null(), "{frame}: {answer}");
    }
    let stranger = json!({ "t": "control", "id": "y", "attachment": 9, "kind": "cancel", "target": { "run": begun.run } });
    assert_eq!(begun.client.socket.ask(stranger).await["code"], "bad_request");
    assert_eq!(state(begun.here.address, "s").await, before);
    begun.end("completed").await;
    begun.all_agree().await;
}

async fn holds_and_releases_that_are_wrong_get_typed_errors<E: Engine>() {
    let mut begun = Begun::<E>::start().await;
    let before = state(begun.here.address, "s").await;
    let deep = format!("{{\"reason\":{}}}", nested(5000));
    for body in
        ["[]", "{\"color\":1}", "{\"reason\":1}", "{\"id\":\"a b\"}", "{\"reason\":\"\\ud800\"}", &deep, "{"]
    {
        for route in ["hold", "release"] {
            let request = Request::new("POST", format!("/v1/sessions/s/{route}")).body(body.to_owned());
            request.send(begun.there.address).await.is_error(400, "bad_request");
        }
    }
    for body in ["{\"run\":1}", "{\"agent\":\"a/b\"}"] {
        let request = Request::new("POST", "/v1/sessions/s/release").body(body);
        request.send(begun.there.address).await.is_error(400, "bad_request");
    }
    assert_eq!(state(begun.here.address, "s").await, before);
    let huge = json!({ "reason": "x".repeat(300_000) });
    Request::post("/v1/sessions/s/hold", &huge).send(begun.there.address).await.is_error(413, "too_large");
    let refused = begun.client.request(json!({ "t": "hold", "reason": huge["reason"] })).await;
    assert_eq!(refused["code"], "too_large", "{refused}");
    assert_eq!(state(begun.here.address, "s").await, before);
    begun.end("completed").await;
    begun.all_agree().await;
}

async fn what_does_not_fit_one_block_is_refused_and_nothing_is_written<E: Engine>() {
    let mut begun = Begun::<E>::start().await;
    let before = state(begun.here.address, "s").await;
    let huge = "x".repeat(300_000);
    let input = json!({ "text": huge });
    Request::post("/v1/sessions/s/input", &input).send(begun.there.address).await.is_error(413, "too_large");
    for kind in ["steer", "interrupt"] {
        let asked = json!({ "kind": kind, "target": { "run": begun.run }, "payload": { "text": huge } });
        Request::post("/v1/sessions/s/control", &asked)
            .send(begun.there.address)
            .await
            .is_error(413, "too_large");
        begun.ask("c", asked).await;
        let refused = begun.client.socket.wait(|frame| frame["t"] == "error").await;
        assert_eq!((&refused["id"], &refused["code"]), (&json!("c"), &json!("too_large")), "{refused}");
    }
    let approval = json!({ "approval": "a", "reason": "?", "data": { "a": huge } });
    let mut child = begun.job.clone().start_child("child", "searcher");
    child["parts"][0]["value"] = huge.clone().into();
    let mut end = begun.job.clone().end("completed");
    end["usage"] = json!({ "a": huge });
    for frame in [begun.job.clone().suspend(json!([approval])), child, end] {
        let refused = begun.worker.socket.ask(frame).await;
        assert_eq!(
            (&refused["code"], &refused["no_side_effects"]),
            (&json!("too_large"), &json!(true)),
            "{refused}"
        );
    }
    assert_eq!(state(begun.here.address, "s").await, before);
    // What fits is taken, and every reader gets it.
    begun.ask("c1", json!({ "kind": "steer", "payload": { "text": "x".repeat(250_000) } })).await;
    let told = begun.worker.told("c1").await;
    assert_eq!(told["message"]["parts"][0]["value"].as_str().unwrap().len(), 250_000);
    begun.worker.settle(&mut begun.job, "c1", "applied").await;
    begun.end("completed").await;
    begun.all_agree().await;
}

async fn policies_that_nobody_knows_are_refused<E: Engine>() {
    let mut begun = Begun::<E>::start().await;
    let before = state(begun.here.address, "s").await;
    for policy in [json!("explode"), json!(1), json!({}), json!(["steer"])] {
        let body = json!({ "text": "a", "when_busy": policy });
        Request::post("/v1/sessions/s/input", &body)
            .send(begun.there.address)
            .await
            .is_error(400, "bad_request");
        let entry =
            json!({ "type": "message.put", "role": "user", "parts": [{ "kind": "text", "value": "a" }] });
        let put = json!({ "t": "put", "id": "p", "attachment": 1, "when_busy": policy, "entries": [entry] });
        assert_eq!(begun.client.socket.ask(put).await["code"], "bad_request");
        let patch = json!({ "meta": { "when_busy": policy } }).to_string();
        let request = Request::new("PATCH", "/v1/sessions/s").body(patch);
        request.send(begun.there.address).await.is_error(400, "bad_request");
        let create = json!({ "session": "n", "meta": { "when_busy": policy } });
        Request::post("/v1/sessions", &create).send(begun.there.address).await.is_error(400, "bad_request");
    }
    assert_eq!(state(begun.here.address, "s").await, before);
    begun.end("completed").await;
}

async fn settlements_that_are_wrong_are_refused_and_the_run_goes_on<E: Engine>() {
    let mut begun = Begun::<E>::start().await;
    create(begun.here.address, "t").await;
    let other = input(begun.here.address, "t", "Hi").await;
    let mut second = Worker::join(begun.there.address, "w2", "guide", 1).await;
    let mut theirs = second.work().await;
    let foreign = json!({ "id": "foreign", "kind": "pause", "target": { "run": other } });
    control(begun.there.address, "t", &foreign, 0).await;
    second.told("foreign").await;
    begun.ask("mine", json!({ "kind": "pause" })).await;
    begun.worker.told("mine").await;
    // A run of the same session that is another worker's.
    let frame = begun.job.start_child("child", "searcher");
    begun.worker.socket.ask(frame).await;
    let mut searcher = Worker::join(begun.there.address, "w3", "searcher", 1).await;
    let mut child = searcher.work().await;
    begun.client.ask("childs", json!({ "kind": "pause", "target": { "run": "child" } })).await;
    searcher.told("childs").await;
    let wrong = [
        ("mine", "expired", None),
        ("mine", "applied", Some("held")),
        ("mine", "explode", None),
        ("childs", "applied", None),
        ("childs", "refused", Some("not_allowed")),
    ];
    for (id, outcome, reason) in wrong {
        let answer = begun.worker.socket.ask(begun.job.clone().settle(id, outcome, reason)).await;
        assert_eq!(
            (&answer["code"], &answer["no_side_effects"]),
            (&json!("bad_request"), &json!(true)),
            "{id} {outcome}: {answer}"
        );
    }
    // What it was never asked, or not here, changes nothing; the worker could not know.
    for id in ["never", "foreign"] {
        let answer = begun.worker.settle(&mut begun.job, id, "applied").await;
        assert_eq!(answer["t"], "ok", "{id}: {answer}");
    }
    assert_eq!(control(begun.there.address, "t", &foreign, 0).await.1["stage"], "accepted");
    // Twice, and in both ways: the first counts. A repeat of the frame is a duplicate.
    let frame = begun.job.settle("mine", "applied", None);
    assert_eq!(begun.worker.socket.ask(frame.clone()).await["t"], "ok");
    assert_eq!(begun.worker.socket.ask(frame).await["t"], "duplicate");
    let other = begun.worker.socket.ask(begun.job.clone().settle("mine", "refused", None)).await;
    assert_eq!(other["code"], "id_conflict", "{other}");
    assert_eq!(begun.client.settled("mine").await["outcome"], "applied");
    // A cancel is answered by the end, and by nothing else.
    begun.ask("cancel", json!({ "kind": "cancel" })).await;
    begun.worker.told("cancel").await;
    for outcome in ["applied", "refused"] {
        let answer = begun.worker.socket.ask(begun.job.clone().settle("cancel", outcome, None)).await;
        assert_eq!(answer["code"], "bad_request", "{answer}");
    }
    let deep = format!("{{\"t\":\"settle\",\"id\":\"d\",\"run\":{}}}", nested(5000));
    begun.worker.socket.send_text(deep).await;
    begun.worker.socket.wait(|frame| frame["code"] == "bad_request").await;
    begun.end("cancelled").await;
    searcher.told_to("cancel").await;
    searcher.end(&mut child, "cancelled").await;
    assert_eq!(begun.client.ended("child").await, "cancelled");
    second.end(&mut theirs, "completed").await;
    begun.all_agree().await;
}

async fn suspensions_that_are_wrong_are_refused_and_the_run_goes_on<E: Engine>() {
    let mut begun = Begun::<E>::start().await;
    begun.say("Hel").await;
    let before = state(begun.here.address, "s").await;
    let many = |count: usize| -> Value {
        (0..count).map(|n| json!({ "approval": format!("a{n}"), "reason": "?" })).collect()
    };
    let one = |name: &str, value: Value| {
        let mut approval = json!({ "approval": "a", "reason": "?" });
        approval[name] = value;
        json!([approval])
    };
    let mut wrong = vec![
        (json!([]), "bad_request"),
        (json!({}), "bad_request"),
        (json!([{ "reason": "?" }]), "bad_request"),
        (json!([{ "approval": "a" }]), "bad_request"),
        (many(33), "limit_reached"),
        (json!([{ "approval": "a", "reason": "?" }, { "approval": "a", "reason": "!" }]), "id_conflict"),
        (one("approval", json!("a b")), "bad_request"),
        (one("expires_ms", json!(0)), "bad_request"),
        (one("expires_ms", json!(-1)), "bad_request"),
        (one("expires_ms", json!(31_u64 * 24 * 60 * 60 * 1000)), "bad_request"),
        (one("expires_ms", json!(u64::MAX)), "bad_request"),
        (one("who", json!({ "kinds": ["martian"] })), "bad_request"),
        (one("who", json!({ "everybody": true })), "bad_request"),
        (one("data", json!([])), "bad_request"),
        (one("color", json!(1)), "bad_request"),
    ];
    // The session's state has a bound, and approvals stand in it.
    let wide: Vec<Value> = (0..32)
        .map(|n| json!({ "approval": format!("a{n}"), "reason": "?", "digest": "d".repeat(8_000) }))
        .collect();
    wrong.push((wide.into(), "limit_reached"));
    for (approvals, code) in wrong {
        let answer = begun.worker.suspend(&mut begun.job.clone(), approvals.clone()).await;
        let approvals: String = approvals.to_string().chars().take(200).collect();
        assert_eq!(
            (&answer["t"], &answer["code"], &answer["no_side_effects"]),
            (&json!("error"), &json!(code), &json!(true)),
            "{approvals}: {answer}"
        );
    }
    for name in ["schema", "data"] {
        let mut frame = begun.job.clone().suspend(one("x", Value::Null));
        frame["id"] = format!("deep-{name}").into();
        let inner = if name == "data" { format!("{{\"a\":{}}}", nested(100)) } else { nested(100) };
        let text = frame.to_string().replace("\"x\":null", &format!("\"{name}\":{inner}"));
        begun.worker.socket.send_text(text).await;
        let answer = begun.worker.socket.wait(|heard| heard["t"] == "error").await;
        assert_eq!(answer["code"], "bad_request", "{name}: {answer}");
    }
    assert_eq!(state(begun.here.address, "s").await, before);
    // As many as there may be, as deep as it may be, and long texts.
    let deep: Value = serde_json::from_str(&nested(50)).unwrap();
    let mut most = many(32);
    most[0] = json!({ "approval": "a0", "reason": "r".repeat(20_000), "schema": deep, "data": { "a": "d".repeat(20_000) } });
    let ack = begun.worker.suspend(&mut begun.job, most).await;
    assert_eq!(ack["t"], "ok", "{ack}");
    let run = begun.client.run_is(&begun.run, "suspended").await;
    assert_eq!(run["approvals"].as_array().unwrap().len(), 32);
    let cancel = json!({ "id": "c", "kind": "cancel", "target": { "run": begun.run } });
    assert_eq!(settled(begun.there.address, "s", &cancel).await["outcome"], "applied");
    assert_eq!(begun.client.ended(&begun.run).await, "cancelled");
    begun.all_agree().await;
}

async fn a_suspension_of_a_run_that_is_being_cancelled_ends_it<E: Engine>() {
    let mut begun = Begun::<E>::start().await;
    begun.say("Hel").await;
    begun.ask("c1", json!({ "kind": "cancel" })).await;
    begun.client.receipt("c1", "accepted").await;
    let ack = begun.worker.suspend(&mut begun.job, json!([{ "approval": "a1", "reason": "?" }])).await;
    assert_eq!(ack["t"], "ok", "{ack}");
    assert_eq!(begun.client.ended(&begun.run).await, "cancelled");
    assert_eq!(begun.client.settled("c1").await["outcome"], "applied");
    let run = begun.client.history.run(&begun.run);
    assert_eq!((&run["forced"], &run["approvals"]), (&Value::Null, &Value::Null), "{run}");
    // The worker has its place back.
    let next = input(begun.there.address, "s", "Next").await;
    assert_eq!(begun.worker.serve(&["x"]).await, next);
    begun.client.ended(&next).await;
    begun.all_agree().await;
}

async fn nothing_is_written_after_a_suspension<E: Engine>() {
    let mut begun = Begun::<E>::start().await;
    begun.say("Hel").await;
    // All of it in one go: the suspension, and what a careless worker sends behind it.
    let frames = [
        begun.job.suspend(json!([{ "approval": "a1", "reason": "?" }])),
        begun.job.append(json!([{ "type": "x-late" }])),
        begun.job.say("late"),
        begun.job.settle("c", "applied", None),
        begun.job.suspend(json!([{ "approval": "a2", "reason": "?" }])),
        begun.job.start_child("child", "searcher"),
        begun.job.end("completed"),
    ];
    for (number, frame) in frames.iter().enumerate() {
        let mut frame = frame.clone();
        frame["id"] = format!("f{number}").into();
        begun.worker.socket.send(&frame).await;
    }
    for number in 0..frames.len() {
        let id = format!("f{number}");
        let answer = begun.worker.socket.wait(|frame| frame["id"] == id).await;
        let expected = if number == 0 { Value::Null } else { json!("fenced") };
        assert_eq!(answer["code"], expected, "{number}: {answer}");
    }
    let refused = begun.worker.append(&mut begun.job, json!([{ "type": "x-late" }])).await;
    assert_eq!(refused["code"], "fenced", "{refused}");
    begun.client.run_is(&begun.run, "suspended").await;
    begun.ask("c1", json!({ "kind": "answer", "payload": { "approval": "a1", "decision": "denied" } })).await;
    let mut job = begun.worker.work().await;
    assert_eq!((job.attempt, &*job.go_on(), job.work["answers"].as_array().unwrap().len()), (2, "Hel", 1));
    begun.worker.end(&mut job, "completed").await;
    assert_eq!(begun.client.ended(&begun.run).await, "completed");
    for kind in ["x-late", "part.append"] {
        assert_eq!(begun.client.history.count(kind), usize::from(kind == "part.append"));
    }
    begun.all_agree().await;
}

async fn a_session_takes_so_many_controls_and_no_more<E: Engine>() {
    let mut begun = Begun::<E>::start().await;
    let nodes = [begun.here.address, begun.there.address];
    let pause = |number: usize| {
        let target = json!({ "run": begun.run });
        json!({ "id": format!("c{number}"), "kind": "pause", "target": target, "expires_ms": 600_000 })
    };
    for number in 0..64 {
        let (status, receipt) = control(nodes[number % 2], "s", &pause(number), 0).await;
        assert_eq!(status, 202, "{receipt}");
    }
    let path = "/v1/sessions/s/control";
    Request::post(path, &pause(64)).send(nodes[0]).await.is_error(429, "limit_reached");
    // A repeat is none more.
    assert_eq!(control(nodes[1], "s", &pause(0), 0).await.0, 202);
    for number in 0..64 {
        let told = begun.worker.told_to("pause").await;
        assert_eq!(told["control"], format!("c{number}"), "in their order");
    }
    assert_eq!(begun.worker.settle(&mut begun.job, "c0", "applied").await["t"], "ok");
    assert_eq!(control(nodes[0], "s", &pause(64), 0).await.0, 202, "there is room again");
    begun.end("completed").await;
    for number in 0..=64 {
        let control = begun.client.settled(&format!("c{number}")).await;
        let expected = if number == 0 { "applied" } else { "refused" };
        assert_eq!(control["outcome"], expected, "{control}");
    }
    begun.all_agree().await;
}

async fn a_flood_of_steers_loses_none_that_was_accepted<E: Engine>() {
    let mut begun = Begun::<E>::start().await;
    let (run, nodes) = (begun.run.clone(), [begun.here.address, begun.there.address]);
    let ask = async |number: usize| {
        let text = format!("t{number}");
        let mut body = json!({ "id": format!("c{number}"), "kind": "steer", "target": { "run": run } });
        (body["payload"], body["expires_ms"]) = (json!({ "text": text }), json!(600_000));
        let answer = Request::post("/v1/sessions/s/control", &body).send(nodes[number % 2]).await;
        match answer.status.as_u16() {
            200 | 202 => Some(text),
            _ => {
                assert_eq!(answer.body["error"]["retryable"], true, "{}", answer.text);
                None
            }
        }
    };
    let asks = futures_util::future::join_all((0..120).map(ask));
    let answered = begun.worker.meanwhile(asks).await;
    let mut accepted: Vec<String> = answered.into_iter().flatten().collect();
    assert!(!accepted.is_empty());
    // It takes some of them in, and leaves the others to whoever comes next.
    let mut taken = 0;
    while taken < accepted.len() / 2 {
        let told = begun.worker.told_to("steer").await;
        let id = told["control"].as_str().unwrap();
        assert_eq!(begun.worker.settle(&mut begun.job, id, "applied").await["t"], "ok");
        taken += 1;
    }
    begun.end("completed").await;
    let mut heard = Vec::new();
    while heard.len() < accepted.len() - taken {
        let mut job = begun.worker.work().await;
        heard.extend(job.input_texts().into_iter().map(str::to_owned));
        begun.worker.end(&mut job, "completed").await;
        begun.client.ended(&job.run).await;
    }
    let messages = serde_json::to_value(begun.client.history.view.messages()).unwrap();
    let input = begun.client.history.run(&run)["input"].clone();
    let own =
        messages.as_array().unwrap().iter().filter(|m| input.as_array().unwrap().contains(&m["message"]));
    heard
        .extend(own.map(|m| m["parts"][0]["value"].as_str().unwrap().to_owned()).filter(|text| text != "Hi"));
    heard.sort();
    accepted.sort();
    assert_eq!(heard, accepted);
    begun.all_agree().await;
}

async fn ids_that_belong_to_something_else_are_refused<E: Engine>() {
    let mut begun = Begun::<E>::start().await;
    let steer = |id: &str, message: &str| json!({ "id": id, "kind": "steer", "target": { "run": begun.run }, "payload": { "text": "a", "message": message } });
    assert_eq!(control(begun.there.address, "s", &steer("c1", "m1"), 0).await.0, 202);
    // Two texts under one id would be one text for every reader.
    let path = "/v1/sessions/s/control";
    Request::post(path, &steer("c2", "m1")).send(begun.here.address).await.is_error(409, "id_conflict");
    let put = json!({ "text": "b", "message": "m1" });
    Request::post("/v1/sessions/s/input", &put).send(begun.here.address).await.is_error(409, "id_conflict");
    // The same control with other contents is the first one still.
    let (status, receipt) = control(begun.here.address, "s", &steer("c1", "m2"), 0).await;
    assert_eq!((status, &receipt["stage"]), (202, &json!("accepted")), "{receipt}");
    // Something else under its id is not answered with its outcome.
    let cancel = json!({ "id": "c1", "kind": "cancel", "target": { "all": true } });
    Request::post(path, &cancel).send(begun.here.address).await.is_error(409, "id_conflict");
    let stranger = Request::post(path, &steer("c1", "m3")).header("everthread-subject", "bea");
    stranger.send(begun.here.address).await.is_error(409, "id_conflict");
    begun.worker.told("c1").await;
    begun.worker.settle(&mut begun.job, "c1", "applied").await;
    begun.end("completed").await;
    assert_eq!(begun.client.history.count("control.requested"), 1);
    begun.all_agree().await;
}

async fn pongs_that_nobody_asked_for_harm_nobody<E: Engine>() {
    let mut begun = Begun::<E>::start().await;
    for _ in 0..200 {
        begun.worker.socket.send(&json!({ "t": "pong" })).await;
    }
    begun.ask("c1", json!({ "kind": "pause" })).await;
    begun.worker.told("c1").await;
    begun.worker.settle(&mut begun.job, "c1", "applied").await;
    begun.client.receipt("c1", "settled").await;
    begun.say("Hello").await;
    begun.end("completed").await;
    begun.all_agree().await;
}

/// Controls that race each other.
const AT_ONCE: usize = 30;

/// Everything at once, through two nodes, at a worker that answers what it is told.
async fn controls_of_many_kinds_at_once_each_have_one_outcome<E: Engine>() {
    let mut begun = Begun::<E>::start().await;
    let nodes: [SocketAddr; 2] = [begun.here.address, begun.there.address];
    let stop = tokio_util::sync::CancellationToken::new();
    let worker = async {
        // One answer at a time, and each until it is taken.
        let (mut job, mut asked, mut sent) = (begun.job.clone(), VecDeque::<Value>::new(), None::<Value>);
        loop {
            if sent.is_none()
                && let Some(control) = asked.pop_front()
            {
                let mut answer = match control["kind"].as_str() {
                    Some("cancel") => job.end("cancelled"),
                    _ => job.settle(control["control"].as_str().unwrap(), "applied", None),
                };
                answer["id"] = begun.worker.socket.fresh_id().into();
                begun.worker.socket.send(&answer).await;
                sent = Some(answer);
            }
            let heard = tokio::select! {
                heard = begun.worker.socket.hear_whenever() => heard,
                () = stop.cancelled() => return,
            };
            let Heard::Frame(frame) = heard else { panic!("closed: {heard:?}") };
            let is_answer = sent.as_ref().is_some_and(|sent| sent["id"] == frame["id"]);
            match frame["t"].as_str().unwrap() {
                "work" => (job, asked, sent) = (Job::of(frame), VecDeque::new(), None),
                "control" if frame["run"] == job.run.as_str() => asked.push_back(frame),
                "ok" | "duplicate" if is_answer => sent = None,
                "error" if is_answer && frame["retryable"] == true => {
                    begun.worker.socket.send(sent.as_ref().unwrap()).await;
                }
                // It came too late, and its number is free.
                "error" if is_answer => (job.batch, sent) = (job.batch - 1, None),
                _ => {}
            }
        }
    };
    let asking = async {
        let asks = (0..90).map(async |number: usize| {
            let kinds = ["steer", "pause", "resume", "interrupt", "cancel", "steer"];
            let kind = kinds[number % kinds.len()];
            let mut body =
                json!({ "id": format!("c{number}"), "kind": kind, "target": { "agent": "guide" } });
            if kind == "steer" || kind == "interrupt" {
                body["payload"] = json!({ "text": format!("t{number}") });
            }
            // Asked again, it is the same one: for as long as it takes until all others have their outcome, too.
            until("an outcome", async || {
                let path = "/v1/sessions/s/control?wait_ms=20000";
                let answer = Request::post(path, &body).send(nodes[number % 2]).await;
                (answer.status != 202).then_some(answer)
            })
            .await
        });
        // So many race as a machine carries out that has time for little else.
        let answers: Vec<_> = stream::iter(asks).buffer_unordered(AT_ONCE).collect().await;
        for answer in answers {
            match answer.status.as_u16() {
                200 => assert_eq!(answer.body["stage"], "settled", "{}", answer.text),
                _ => assert_eq!(answer.body["error"]["retryable"], true, "{}", answer.text),
            }
        }
        let cancel = json!({ "id": "last", "kind": "cancel", "target": { "all": true } });
        settled(nodes[0], "s", &cancel).await;
        stop.cancel();
    };
    tokio::join!(worker, asking);
    let mut client = Client::attach(nodes[1], "s", json!("start")).await;
    client.settled("last").await;
    client.holds_the_state(nodes[0]).await;
    assert_eq!(client.history.count("control.requested"), client.history.count("control.settled"));
    assert_eq!(client.history.count("run.requested"), client.history.count("run.ended"));
    // No text is lost: each is the input of some run.
    let view: Value = serde_json::from_str(&state(nodes[0], "s").await).unwrap();
    let inputs: Vec<&Value> =
        view["runs"].as_array().unwrap().iter().flat_map(|run| run["input"].as_array().unwrap()).collect();
    for message in view["messages"].as_array().unwrap().iter().filter(|m| m["role"] == "user") {
        assert!(inputs.contains(&&message["message"]), "{message}");
    }
}

async fn nobody_but_a_worker_speaks_as_an_agent<E: Engine>() {
    let mut begun = Begun::<E>::start().await;
    let mut socket = Socket::open(begun.there.address, "/v1/connect").await;
    let refused = socket.ask(json!({ "t": "hello", "subject": "guide", "kind": "agent" })).await;
    assert_eq!(refused["code"], "forbidden", "{refused}");
    assert_eq!(socket.closed().await, Some(4403));
    let mut socket = Socket::open(begun.there.address, "/v1/connect").await;
    assert_eq!(socket.ask(json!({ "t": "hello", "kind": "martian" })).await["code"], "bad_request");
    assert_eq!(socket.closed().await, Some(4400));
    for kind in ["agent", "martian", ""] {
        let request = Request::get("/v1/sessions/s").header("everthread-kind", "x");
        let request = request.header("everthread-kind", kind);
        let expected = if kind.is_empty() { 200 } else { 400 };
        assert_eq!(request.send(begun.there.address).await.status, expected, "{kind:?}");
    }
    begun.end("completed").await;
}
