//! The data of the vectors other than `view.json`.

use crate::vectors_feed;
use serde_json::{Value, json};

pub fn cursors() -> Value {
    let valid =
        |epoch: &str, seq: u64| json!({"cursor": format!("{epoch}.{seq}"), "epoch": epoch, "seq": seq});
    json!({
        "valid": [
            valid("0", 0),
            valid("1", 0),
            valid("1763700000000000", 42),
            valid("18446744073709551615", 9_007_199_254_740_991),
        ],
        "invalid": [
            "", ".", "1", "1.", ".1", "01.1", "1.01", "1.+1", "+1.1", "1.-1", "1.1.1", " 1.1", "1.1 ", "1.1\n", "1,1",
            "0x1.1", "1e3.1", "1.1e3", "١.١", "18446744073709551616.0", "0.18446744073709551616", "start", "null",
        ],
    })
}

pub fn accepted(name: &str, frame: impl ToString) -> Value {
    json!({"name": name, "frame": frame.to_string(), "accepted": true})
}

pub fn refused(name: &str, code: &str, frame: impl ToString) -> Value {
    json!({"name": name, "frame": frame.to_string(), "code": code})
}

fn put(entries: Value) -> Value {
    json!({"t": "put", "id": "p1", "attachment": 1, "entries": entries})
}

fn attach(from: Value) -> Value {
    json!({"t": "attach", "id": "a1", "session": "s1", "from": from})
}

fn control(kind: &str, target: Value) -> Value {
    json!({"t": "control", "id": "c1", "attachment": 1, "kind": kind, "target": target})
}

pub fn client_frames() -> Vec<Value> {
    let input = json!({"type": "message.put", "message": "i1", "role": "user", "parts": [{"kind": "text", "value": "Hi"}]});
    let mut odd_part = input.clone();
    odd_part["parts"][0]["color"] = json!("red");
    let mut unnamed = input.clone();
    unnamed.as_object_mut().unwrap().remove("message");
    let mut cases = client_requests();
    cases.extend(client_controls().into_iter().chain(client_levels(&input)));
    cases.extend(client_branches());
    cases.extend(client_people());
    cases.extend(vectors_feed::client_feed());
    cases.extend([
        accepted("put: a message", put(json!([input]))),
        accepted("put: a message whose id the server makes", put(json!([unnamed]))),
        accepted("put: a value", put(json!([{"type": "state.set", "key": "k", "value": null}]))),
        accepted(
            "put: events and extensions",
            put(json!([{"type": "event", "name": "e"}, {"type": "x-mine", "a": [1]}])),
        ),
        accepted(
            "put: with an agent",
            json!({"t": "put", "id": "p1", "attachment": 1, "agent": "guide", "entries": [input]}),
        ),
        accepted(
            "put: in place of another message",
            json!({"t": "put", "id": "p1", "attachment": 1, "replaces": "r1/m1", "entries": [input]}),
        ),
        accepted(
            "put: with a policy for an agent at work",
            json!({"t": "put", "id": "p1", "attachment": 1, "when_busy": "steer", "entries": [input]}),
        ),
        refused(
            "put: a policy that nobody knows",
            "bad_request",
            json!({"t": "put", "id": "p1", "attachment": 1, "when_busy": "shout", "entries": [input]}),
        ),
        accepted(
            "put: numbers and escapes as they are",
            r#"{"t":"put","id":"p","attachment":1,"entries":[{"type":"x-a","n":1.50,"s":"\ud83d\ude80"}]}"#,
        ),
        refused("put: no entries", "bad_request", put(json!([]))),
        refused("put: not a list", "bad_request", put(json!({"type": "x-a"}))),
        refused(
            "put: an entry of the run's worker",
            "entry_not_allowed",
            put(json!([{"type": "run.step", "phase": "start"}])),
        ),
        refused(
            "put: an entry that is decided",
            "entry_not_allowed",
            put(json!([{"type": "run.ended", "run": "r", "outcome": "completed"}])),
        ),
        refused("put: a type that nobody knows", "entry_not_allowed", put(json!([{"type": "nope"}]))),
        refused(
            "put: a field that nobody knows",
            "bad_request",
            put(json!([{"type": "event", "name": "e", "color": 1}])),
        ),
        refused("put: a part with a field that nobody knows", "bad_request", put(json!([odd_part]))),
        refused(
            "put: a message with a bad id",
            "bad_request",
            put(json!([{"type": "message.put", "message": "a b", "role": "user", "parts": []}])),
        ),
        refused(
            "put: a role that nobody knows",
            "bad_request",
            put(json!([{"type": "message.put", "message": "a", "role": "king", "parts": []}])),
        ),
        refused(
            "put: a doubled key",
            "bad_request",
            r#"{"t":"put","id":"p","attachment":1,"entries":[{"type":"x-a","a":1,"\u0061":2}]}"#,
        ),
        refused(
            "put: half a surrogate pair",
            "bad_request",
            r#"{"t":"put","id":"p","attachment":1,"entries":[{"type":"x-a","s":"\ud83d"}]}"#,
        ),
        refused(
            "put: without attachment",
            "bad_request",
            json!({"t": "put", "id": "p1", "entries": [input]}),
        ),
        refused(
            "put: a negative attachment",
            "bad_request",
            json!({"t": "put", "id": "p1", "attachment": -1, "entries": [input]}),
        ),
    ]);
    cases
}

fn client_levels(input: &Value) -> Vec<Value> {
    let put =
        |level: &str| json!({"t": "put", "id": "p1", "attachment": 1, "ack": level, "entries": [input]});
    let mut cancel = control("cancel", json!({"run": "r1"}));
    cancel["ack"] = json!("fsynced");
    vec![
        accepted("put: with a level", put("replicated")),
        refused("put: a level that nobody knows", "bad_request", put("sure")),
        accepted("control: with a level", cancel),
    ]
}

fn client_controls() -> Vec<Value> {
    let run = json!({"run": "r1"});
    let with = |kind: &str, payload: Value| {
        let mut frame = control(kind, json!({"run": "r1"}));
        frame["payload"] = payload;
        frame
    };
    let wait = |ms: Value| {
        let mut frame = control("pause", json!({"run": "r1"}));
        frame["expires_ms"] = ms;
        frame
    };
    let mode = |kind: &str, mode: &str| {
        let mut frame = with(kind, json!({"text": "Shorter"}));
        frame["mode"] = json!(mode);
        frame
    };
    let hold = json!({"t": "hold", "id": "1", "attachment": 1});
    let release = json!({"t": "release", "id": "1", "attachment": 1});
    let and = |frame: &Value, key: &str, value: Value| {
        let mut frame = frame.clone();
        frame[key] = value;
        frame
    };
    let yes =
        json!({"approval": "pay", "decision": "approved", "digest": "sha256-1", "value": {"limit": 20}});
    vec![
        accepted("control: cancel what an agent works on", control("cancel", json!({"agent": "guide"}))),
        accepted("control: cancel all", control("cancel", json!({"all": true}))),
        refused(
            "control: two targets",
            "bad_request",
            control("cancel", json!({"run": "r1", "agent": "guide"})),
        ),
        refused("control: cancel with a payload", "bad_request", with("cancel", json!({}))),
        accepted("control: steer", with("steer", json!({"text": "Shorter"}))),
        accepted("control: steer now", mode("steer", "now")),
        accepted("control: steer when idle", mode("steer", "when_idle")),
        accepted(
            "control: steer with parts and an id",
            with("steer", json!({"message": "i2", "parts": [{"kind": "text", "value": "Shorter"}]})),
        ),
        refused("control: steer in a mode that nobody knows", "bad_request", mode("steer", "soon")),
        refused("control: steer without text", "bad_request", control("steer", run.clone())),
        refused(
            "control: steer with text and parts",
            "bad_request",
            with("steer", json!({"text": "a", "parts": [{"kind": "text", "value": "a"}]})),
        ),
        refused(
            "control: steer with a field that nobody knows",
            "bad_request",
            with("steer", json!({"text": "a", "color": 1})),
        ),
        accepted("control: interrupt", with("interrupt", json!({"text": "Do this"}))),
        refused("control: interrupt with a mode", "bad_request", mode("interrupt", "now")),
        accepted("control: pause", control("pause", run.clone())),
        accepted("control: resume", control("resume", run.clone())),
        refused("control: pause with a payload", "bad_request", with("pause", json!({"text": "a"}))),
        accepted("control: a wait of an hour", wait(json!(3_600_000))),
        refused("control: a wait of more than an hour", "bad_request", wait(json!(3_600_001))),
        refused("control: no wait at all", "bad_request", wait(json!(0))),
        accepted("control: answer", with("answer", yes)),
        accepted("control: answer no", with("answer", json!({"approval": "pay", "decision": "denied"}))),
        refused(
            "control: answer without decision",
            "bad_request",
            with("answer", json!({"approval": "pay"})),
        ),
        refused(
            "control: answer that is neither yes nor no",
            "bad_request",
            with("answer", json!({"approval": "pay", "decision": "expired"})),
        ),
        refused(
            "control: answer that is too long",
            "too_large",
            with("answer", json!({"approval": "pay", "decision": "denied", "value": "x".repeat(4096)})),
        ),
        accepted("hold", hold.clone()),
        accepted("hold: with a reason", and(&hold, "reason", json!("the customer asked"))),
        refused("hold: a field that nobody knows", "bad_request", and(&hold, "agent", json!("guide"))),
        accepted("release", release.clone()),
        accepted("release: to an agent", and(&release, "agent", json!("guide"))),
        accepted("release: to nobody", and(&release, "run", json!(false))),
        refused("release: a run that is no yes or no", "bad_request", and(&release, "run", json!("r1"))),
    ]
}

fn client_branches() -> Vec<Value> {
    let regenerate = json!({"t": "regenerate", "id": "1", "attachment": 1, "run": "r1"});
    let and = |frame: &Value, key: &str, value: Value| {
        let mut frame = frame.clone();
        frame[key] = value;
        frame
    };
    vec![
        accepted("regenerate", regenerate.clone()),
        accepted("regenerate: with params", and(&regenerate, "params", json!({"temperature": 1}))),
        refused("regenerate: no run", "bad_request", json!({"t": "regenerate", "id": "1", "attachment": 1})),
        refused("regenerate: params that are no object", "bad_request", and(&regenerate, "params", json!(1))),
        accepted("select", json!({"t": "select", "id": "1", "attachment": 1, "message": "r1/m1"})),
        refused("select: no message", "bad_request", json!({"t": "select", "id": "1", "attachment": 1})),
    ]
}

fn client_requests() -> Vec<Value> {
    vec![
        accepted("hello", json!({"t": "hello", "id": "1"})),
        accepted(
            "hello: all fields",
            json!({"t": "hello", "id": "1", "token": "dev", "client": "sdk 1.0", "device": "d1", "subject": "ann"}),
        ),
        refused("hello: no id", "bad_request", json!({"t": "hello"})),
        refused("hello: an empty id", "bad_request", json!({"t": "hello", "id": ""})),
        refused(
            "hello: a device that is no id",
            "bad_request",
            json!({"t": "hello", "id": "1", "device": "a/b"}),
        ),
        refused("hello: an unknown field", "bad_request", json!({"t": "hello", "id": "1", "agents": []})),
        accepted("attach: from the start", attach(json!("start"))),
        accepted("attach: from a cursor", attach(json!("1763700000000000.42"))),
        accepted("attach: the last messages", attach(json!({"recent": 50}))),
        accepted("attach: no messages", attach(json!({"recent": 0}))),
        accepted("attach: as many messages as there may be", attach(json!({"recent": 1000}))),
        refused("attach: more messages than there may be", "bad_request", attach(json!({"recent": 1001}))),
        refused("attach: less than no messages", "bad_request", attach(json!({"recent": -1}))),
        refused("attach: from something else", "bad_request", attach(json!("end"))),
        refused("attach: from a number", "bad_request", attach(json!(42))),
        refused("attach: from a cursor that is none", "bad_request", attach(json!("1.01"))),
        refused(
            "attach: a session with a brace",
            "bad_request",
            json!({"t": "attach", "id": "1", "session": "s}", "from": "start"}),
        ),
        refused(
            "attach: a session with a long id",
            "bad_request",
            json!({"t": "attach", "id": "1", "session": "s".repeat(129), "from": "start"}),
        ),
        accepted("detach", json!({"t": "detach", "id": "1", "attachment": 1})),
        accepted("control: cancel a run", control("cancel", json!({"run": "r1"}))),
        accepted("control: cancel by input", control("cancel", json!({"input": "i1"}))),
        refused("control: of everything", "bad_request", control("cancel", json!("all"))),
        refused("control: a kind that nobody knows", "bad_request", control("explode", json!({"run": "r1"}))),
        refused(
            "control: without target",
            "bad_request",
            json!({"t": "control", "id": "c", "attachment": 1, "kind": "cancel"}),
        ),
        accepted("history", json!({"t": "history", "id": "1", "attachment": 1})),
        accepted(
            "history: before a seq",
            json!({"t": "history", "id": "1", "attachment": 1, "before": 9, "limit": 200}),
        ),
        refused(
            "history: nothing",
            "bad_request",
            json!({"t": "history", "id": "1", "attachment": 1, "limit": 0}),
        ),
        refused(
            "history: too much",
            "bad_request",
            json!({"t": "history", "id": "1", "attachment": 1, "limit": 201}),
        ),
        accepted("pong", json!({"t": "pong"})),
        refused("a frame of no known type", "bad_request", json!({"t": "nope"})),
        refused("a worker's frame", "bad_request", json!({"t": "drain"})),
        refused("a frame without type", "bad_request", json!({"id": "1"})),
        refused("a list", "bad_request", "[]"),
        refused("no JSON", "bad_request", "{\"t\":\"pong\""),
        refused("JSON with something after it", "bad_request", "{\"t\":\"pong\"} x"),
        refused("nothing", "bad_request", ""),
    ]
}

/// Devices and presence.
fn client_people() -> Vec<Value> {
    vec![
        accepted("attach: from the device's cursor", attach(json!("device"))),
        accepted(
            "attach: with presence",
            json!({"t": "attach", "id": "a1", "session": "s1", "from": "start", "presence": true}),
        ),
        refused(
            "attach: with somebody's presence",
            "bad_request",
            json!({"t": "attach", "id": "a1", "session": "s1", "from": "start", "presence": "ann"}),
        ),
        accepted("ack", ack(json!(0))),
        refused("ack: less than nothing", "bad_request", ack(json!(-1))),
        refused("ack: a cursor", "bad_request", ack(json!("1763700000000000.1"))),
        refused("ack: with an id", "bad_request", json!({"t": "ack", "id": "1", "attachment": 1, "seq": 0})),
        refused("ack: without seq", "bad_request", json!({"t": "ack", "attachment": 1})),
        accepted("presence: data", presence(json!({"typing": true, "at": {"message": "m1"}}))),
        accepted("presence: nothing more", presence(json!({}))),
        accepted("presence: everybody again", json!({"t": "presence", "attachment": 1})),
        accepted("presence: as much as there may be", presence(json!({"a": "x".repeat(1016)}))),
        refused("presence: too much", "too_large", presence(json!({"a": "x".repeat(1017)}))),
        refused("presence: a list", "bad_request", presence(json!([]))),
        refused("presence: a text", "bad_request", presence(json!("typing"))),
        refused(
            "presence: a doubled key",
            "bad_request",
            r#"{"t":"presence","attachment":1,"data":{"a":1,"\u0061":2}}"#,
        ),
        refused(
            "presence: a field that nobody knows",
            "bad_request",
            json!({"t": "presence", "attachment": 1, "typing": true}),
        ),
    ]
}

fn ack(seq: Value) -> Value {
    json!({"t": "ack", "attachment": 1, "seq": seq})
}

fn presence(data: Value) -> Value {
    json!({"t": "presence", "attachment": 1, "data": data})
}

fn append(entries: Value) -> Value {
    json!({"t": "append", "id": "1", "run": "r1", "fence": "1763700000000001", "producer": {"incarnation": 1, "batch": 3}, "entries": entries})
}

fn hello(agents: Value) -> Value {
    json!({"t": "hello", "id": "1", "worker": "w1", "agents": agents})
}

fn end(outcome: &str) -> Value {
    json!({"t": "end", "id": "1", "run": "r1", "fence": "9", "producer": {"incarnation": 1, "batch": 3}, "outcome": outcome})
}

pub fn worker_frames() -> Vec<Value> {
    let guide = json!({"name": "guide", "capacity": 2});
    let mut named = hello(json!([guide]));
    named["runs"] = json!([{"session": "s1", "run": "r1", "fence": "9"}]);
    let mut failed = end("failed");
    failed["error"] = json!({"code": "model_error", "message": "no answer"});
    let mut number_fence = append(json!([{"type": "x-a"}]));
    number_fence["fence"] = json!(9);
    let child = json!({"t": "start_child", "id": "1", "run": "r1", "fence": "9", "producer": {"incarnation": 1, "batch": 4},
        "agent": "searcher", "child": "r2", "parts": [{"kind": "text", "value": "Look"}], "params": {"depth": 1}});
    let mut odd_error = failed.clone();
    odd_error["error"]["color"] = json!("red");
    let mut odd_child = child.clone();
    odd_child["parts"][0]["color"] = json!("red");
    let mut childless = child.clone();
    childless.as_object_mut().unwrap().remove("child");
    let mut sure = append(json!([{"type": "x-a"}]));
    sure["ack"] = json!("replicated");
    let mut cases = vec![
        accepted("append: with a level", sure),
        accepted("hello", hello(json!([guide]))),
        accepted("hello: with runs that it holds", named),
        refused("hello: no agents", "bad_request", hello(json!([]))),
        refused("hello: no capacity", "bad_request", hello(json!([{"name": "guide", "capacity": 0}]))),
        refused(
            "hello: too much capacity",
            "bad_request",
            hello(json!([{"name": "guide", "capacity": 4097}])),
        ),
        refused("hello: too many agents", "bad_request", hello(json!(vec![guide.clone(); 65]))),
        refused("hello: without worker", "bad_request", json!({"t": "hello", "id": "1", "agents": [guide]})),
        accepted("end", end("completed")),
        accepted("end: failed", failed),
        refused("end: an error with a field that nobody knows", "bad_request", odd_error),
        refused("end: an outcome that nobody knows", "bad_request", end("fine")),
        accepted("start_child", child),
        refused("start_child: without child", "bad_request", childless),
        refused("start_child: a part with a field that nobody knows", "bad_request", odd_child),
        accepted("decline", json!({"t": "decline", "run": "r1", "fence": "9"})),
        accepted("drain", json!({"t": "drain"})),
        accepted("pong", json!({"t": "pong"})),
        refused("a fence that is a number", "bad_request", number_fence),
        refused("a client's frame", "bad_request", attach(json!("start"))),
    ];
    cases.extend(worker_appends());
    cases.extend(worker_controls());
    cases
}

fn worker_controls() -> Vec<Value> {
    let write = |t: &str, more: Value| {
        let mut frame =
            json!({"t": t, "id": "1", "run": "r1", "fence": "9", "producer": {"incarnation": 1, "batch": 5}});
        for (key, value) in more.as_object().into_iter().flatten() {
            frame[key] = value.clone();
        }
        frame
    };
    let settle = |outcome: &str| write("settle", json!({"control": "c1", "outcome": outcome}));
    let approval = json!({"approval": "pay", "reason": "May I pay?", "schema": {"type": "object"}, "digest": "sha256-1",
        "expires_ms": 60_000, "who": {"kinds": ["operator"], "subjects": ["bea"]}, "data": {"amount": 12}});
    let mut odd = approval.clone();
    odd["color"] = json!("red");
    let mut retry = hello(json!([{"name": "guide", "capacity": 1, "on_lost": "retry"}]));
    let with_retry = retry.clone();
    retry["agents"][0]["on_lost"] = json!("shrug");
    let token = json!({"t": "hello", "id": "1", "worker": "w2", "agents": [], "runs": [{"session": "s1", "run": "r1", "fence": "9"}]});
    vec![
        accepted("hello: runs that are tried again", with_retry),
        refused("hello: a loss that nobody knows how to take", "bad_request", retry),
        accepted("hello: with the token of a run", token),
        accepted("settle: applied", settle("applied")),
        accepted(
            "settle: refused",
            write("settle", json!({"control": "c1", "outcome": "refused", "reason": "not_supported"})),
        ),
        refused("settle: an outcome that nobody knows", "bad_request", settle("fine")),
        refused("settle: no control", "bad_request", write("settle", json!({"outcome": "applied"}))),
        accepted(
            "suspend",
            write("suspend", json!({"approvals": [{"approval": "pay", "reason": "May I pay?"}]})),
        ),
        accepted("suspend: all fields", write("suspend", json!({"approvals": [approval]}))),
        refused(
            "suspend: a field that nobody knows",
            "bad_request",
            write("suspend", json!({"approvals": [odd]})),
        ),
        refused("suspend: without approvals", "bad_request", write("suspend", json!({}))),
    ]
}

fn worker_appends() -> Vec<Value> {
    let all = json!([
        {"type": "run.step", "phase": "start", "name": "plan"},
        {"type": "message.start", "message": "m1", "role": "assistant"},
        {"type": "part.start", "message": "m1", "part": "p1", "kind": "text", "attrs": {"a": 1}},
        {"type": "part.append", "message": "m1", "part": "p1", "offset": 0, "text": "Hi 🦀"},
        {"type": "part.set", "message": "m1", "part": "p1", "value": {"a": 1}},
        {"type": "part.end", "message": "m1", "part": "p1", "status": "done"},
        {"type": "message.end", "message": "m1", "status": "complete", "usage": {"tokens": 1}},
        {"type": "event", "name": "e", "data": 1, "keep": "latest"},
        {"type": "x-mine"},
    ]);
    let part = |offset: Value| json!([{"type": "part.append", "message": "m", "part": "p", "offset": offset, "text": "a"}]);
    let decided = [
        "session.opened",
        "session.updated",
        "session.closed",
        "message.put",
        "run.requested",
        "run.started",
        "run.returned",
        "run.suspended",
        "run.resumed",
        "run.ended",
        "approval.settled",
        "session.held",
        "session.released",
        "control.requested",
        "control.settled",
        "state.set",
    ];
    let mut cases = vec![
        accepted("append: everything that a worker writes", append(all)),
        refused("append: no entries", "bad_request", append(json!([]))),
        refused("append: a negative offset", "bad_request", append(part(json!(-1)))),
        refused("append: an offset with a fraction", "bad_request", append(part(json!(1.5)))),
        refused(
            "append: without offset",
            "bad_request",
            append(json!([{"type": "part.append", "message": "m", "part": "p", "text": "a"}])),
        ),
        refused(
            "append: a role that nobody knows",
            "bad_request",
            append(json!([{"type": "message.start", "message": "m", "role": "king"}])),
        ),
        refused(
            "append: a field that nobody knows",
            "bad_request",
            append(json!([{"type": "run.step", "phase": "start", "color": 1}])),
        ),
        refused(
            "append: a type that nobody knows",
            "entry_not_allowed",
            append(json!([{"type": "message.deleted"}])),
        ),
        refused("append: an entry without type", "bad_request", append(json!([{"message": "m"}]))),
        refused(
            "append: the second entry counts too",
            "entry_not_allowed",
            append(json!([{"type": "x-a"}, {"type": "nope"}])),
        ),
    ];
    for kind in decided {
        let name = format!("append: {kind} is decided");
        cases.push(refused(&name, "entry_not_allowed", append(json!([{"type": kind}]))));
    }
    cases
}

pub fn server_frames() -> Value {
    let by = json!({"kind": "user", "id": "ann"});
    let message = json!({"message": "i1", "seq": 2, "at": 1_763_700_000_000_u64, "by": by, "role": "user", "status": "complete",
        "parts": [{"part": "1", "kind": "text", "status": "done", "value": "Hello"}]});
    let state = json!({"session": {"meta": {"title": "Trip"}, "closed": false}, "runs": [], "controls": [], "values": {}, "events": []});
    let block = json!({"by": by, "at": 1_763_700_000_000_u64, "entries": [{"type": "x-mine", "n": 1}]});
    let epoch = "1763700000000000";
    let member = json!({"member": "user/ann/phone", "kind": "user", "subject": "ann", "device": "phone", "data": {"typing": true},
        "since": 1_763_700_000_000_u64});
    let error = |code: &str, retryable: bool, quiet: bool| json!({"t": "error", "id": "1", "code": code, "message": "what to do", "retryable": retryable, "no_side_effects": quiet});
    let mut late = error("unavailable", true, true);
    late["after_ms"] = json!(500);
    let mut gap = error("gap", false, true);
    gap["expected"] = json!(3);
    let mut nameless = error("bad_request", false, true);
    nameless.as_object_mut().unwrap().remove("id");
    json!({
        "client": [
            {"t": "welcome", "id": "1", "connection": "c-1", "node": "n-1", "now": 1_763_700_000_000_u64, "heartbeat_ms": 15_000,
             "frame_bytes_max": 327_680, "block_bytes_max": 262_144},
            {"t": "attached", "id": "2", "attachment": 1, "session": "s1", "epoch": epoch, "head": 42, "resumed": true},
            {"t": "entries", "attachment": 1, "epoch": epoch, "since": 1, "from": 43, "to": 43, "blocks": [block]},
            {"t": "snapshot", "attachment": 1, "epoch": epoch, "seq": 42, "since": 1, "floor": 1, "state": state,
             "messages": [message], "more": true},
            {"t": "live", "attachment": 1, "seq": 43},
            {"t": "lag", "attachment": 1, "behind": 120},
            {"t": "reset", "attachment": 1, "reason": "epoch"},
            {"t": "reset", "attachment": 1, "reason": "retention"},
            {"t": "gone", "attachment": 1, "reason": "deleted"},
            {"t": "ok", "id": "3"},
            {"t": "ok", "id": "3", "cursor": format!("{epoch}.44"), "message": "i2", "run": "r2", "duplicate": true},
            error("indeterminate", true, false),
            late,
            nameless,
            {"t": "ok", "id": "3", "cursor": format!("{epoch}.44"), "message": "i2", "run": "r2", "ack": "replicated"},
            {"t": "receipt", "control": "c1", "stage": "accepted", "seq": 45},
            {"t": "receipt", "control": "c1", "stage": "accepted", "seq": 45, "ack": "fsynced"},
            {"t": "receipt", "control": "c1", "stage": "settled", "outcome": "refused", "reason": "run_ended", "seq": 45},
            {"t": "receipt", "control": "c1", "stage": "delivered", "worker": "w1", "seq": 45},
            {"t": "receipt", "control": "c2", "stage": "settled", "outcome": "applied", "run": "r2", "seq": 46},
            {"t": "receipt", "control": "c3", "stage": "settled", "outcome": "refused", "reason": "already_answered", "run": "r2",
             "answered_by": by, "seq": 47},
            {"t": "ok", "id": "3", "cursor": format!("{epoch}.44"), "message": "i2", "run": "r2", "control": "c4"},
            {"t": "attached", "id": "3", "attachment": 2, "session": "s1", "epoch": epoch, "head": 42, "resumed": true,
             "acked": 40, "unread": 1},
            {"t": "presence", "attachment": 2, "n": 1, "members": [member]},
            {"t": "presence", "attachment": 2, "n": 2, "joined": [member], "changed": [member], "left": ["user/bob/tv"]},
            {"t": "presence", "attachment": 2, "n": 3, "count": 201},
            {"t": "history", "id": "4", "messages": [message], "more": false},
            {"t": "sessions", "n": 1, "sessions": [vectors_feed::summary()]},
            {"t": "sessions", "n": 2, "changed": [vectors_feed::brief()], "gone": ["s3"]},
            {"t": "ping"},
            {"t": "bye", "code": 4503, "reconnect": true, "after_ms": 250},
        ],
        "worker": [
            {"t": "welcome", "id": "1", "connection": "c-2", "node": "n-1", "heartbeat_ms": 1000, "lease_ms": 4000,
             "block_bytes_max": 262_144, "kept": ["r1"]},
            {"t": "work", "run": "r2", "session": "s1", "agent": "guide", "fence": "1763700000000001", "attempt": 1, "epoch": epoch,
             "seq": 44, "parent_run": "r1", "params": {"depth": 1}, "input": ["i1"], "token": "et1.run", "messages": [message]},
            {"t": "work", "run": "r2", "session": "s1", "agent": "guide", "fence": "1763700000000009", "attempt": 2, "epoch": epoch,
             "seq": 44, "input": ["i1", "i2"], "answers": [
                 {"approval": "pay", "verdict": "approved", "answered_by": by, "value": {"limit": 20}, "digest": "sha256-1"},
                 {"approval": "send", "verdict": "expired"}],
             "token": "et1.run", "messages": [message]},
            {"t": "ok", "id": "2", "run": "r2", "batch": 3, "to": 47, "version": format!("{epoch}.5"), "safe": 2},
            {"t": "duplicate", "id": "2", "run": "r2", "batch": 3, "to": 47, "version": format!("{epoch}.5"), "safe": 3},
            {"t": "ok", "id": "2", "run": "r2", "batch": 4, "to": 48, "version": format!("{epoch}.5"), "safe": 4, "ack": "replicated"},
            {"t": "safe", "run": "r2", "batch": 4},
            gap,
            {"t": "control", "run": "r2", "control": "c1", "kind": "cancel", "grace_ms": 5000},
            {"t": "control", "run": "r2", "control": "c2", "kind": "steer", "grace_ms": 120_000, "mode": "next_step", "message": message},
            {"t": "control", "run": "r2", "control": "c3", "kind": "pause", "grace_ms": 30_000},
            {"t": "control", "run": "r2", "control": "c4", "kind": "resume", "grace_ms": 30_000},
            {"t": "fenced", "run": "r2"},
            {"t": "child_ended", "run": "r1", "child": "r2", "outcome": "completed"},
            {"t": "ping"},
            {"t": "bye", "code": 4503, "reconnect": true, "after_ms": 250},
        ],
    })
}

pub fn scans() -> Vec<Value> {
    let good = |name: &str, count: usize, text: &str| json!({"name": name, "text": text, "accepted": count});
    let bad = |name: &str, problem: &str, text: &str| json!({"name": name, "text": text, "refused": problem});
    let nest = |n: usize| json!([["[{\"type\":\"x-a\",\"v\":", 1], ["[", n], ["]", n], ["}]", 1]]);
    vec![
        good(
            "spaces, escapes and numbers",
            2,
            " [ {\"a\" : [1, -2.5e3 ] , \"type\":\"x-a\"} ,\n{\"type\":\"x\\u002db\",\"é\":\"\\ud83d\\ude00\"}] ",
        ),
        good("an escaped control character", 1, r#"[{"type":"x-a","s":"\u0000\u001f\u007f"}]"#),
        good("a type that nobody knows", 1, r#"[{"type":"nope"}]"#),
        good("the same key in different objects", 1, r#"[{"type":"x-a","a":{"a":{"a":1}}}]"#),
        good("keys that differ in normal form only", 1, "[{\"type\":\"x-a\",\"\u{e9}\":1,\"e\u{301}\":2}]"),
        good("minus zero and a tiny number", 1, r#"[{"type":"x-a","n":[-0,1e-999,9007199254740993]}]"#),
        bad("nothing", "syntax", ""),
        bad("no list", "syntax", r#"{"type":"x-a"}"#),
        bad("an empty list", "empty", "[]"),
        bad("an entry that is no object", "syntax", "[1]"),
        bad("a comma too many", "syntax", r#"[{"type":"x-a"},]"#),
        bad("a comma too many in an object", "syntax", r#"[{"type":"x-a",}]"#),
        bad("something after the list", "syntax", r#"[{"type":"x-a"}] 1"#),
        bad("an unfinished list", "syntax", r#"[{"type":"x-a"}"#),
        bad("single quotes", "syntax", "[{'type':'x-a'}]"),
        bad("a comment", "syntax", r#"[{"type":"x-a"/**/}]"#),
        bad("a byte order mark", "syntax", "\u{feff}[{\"type\":\"x-a\"}]"),
        bad("a raw control character", "syntax", "[{\"type\":\"x-a\",\"s\":\"a\nb\"}]"),
        bad("an escape that is none", "syntax", r#"[{"type":"x-a","s":"\x41"}]"#),
        bad("a hex digit missing", "syntax", r#"[{"type":"x-a","s":"\u12g4"}]"#),
        bad("a leading zero", "syntax", r#"[{"type":"x-a","n":01}]"#),
        bad("a leading plus", "syntax", r#"[{"type":"x-a","n":+1}]"#),
        bad("a bare point", "syntax", r#"[{"type":"x-a","n":1.}]"#),
        bad("not a number", "syntax", r#"[{"type":"x-a","n":NaN}]"#),
        bad("infinity", "syntax", r#"[{"type":"x-a","n":Infinity}]"#),
        bad("a number beyond a double", "not_finite", r#"[{"type":"x-a","n":1e999}]"#),
        bad("a negative number beyond a double", "not_finite", r#"[{"type":"x-a","n":-1e999}]"#),
        bad("a doubled key", "doubled_key", r#"[{"type":"x-a","b":1,"b":2}]"#),
        bad("a doubled key in disguise", "doubled_key", r#"[{"type":"x-a","b":1,"\u0062":2}]"#),
        bad("a doubled type", "doubled_key", r#"[{"type":"x-a","type":"x-b"}]"#),
        bad("a doubled key deep down", "doubled_key", r#"[{"type":"x-a","b":[{"c":1,"c":1}]}]"#),
        bad("the first half of a pair", "lone_surrogate", r#"[{"type":"x-a","s":"\ud83d"}]"#),
        bad("the second half of a pair", "lone_surrogate", r#"[{"type":"x-a","s":"\ude00"}]"#),
        bad("halves in the wrong order", "lone_surrogate", r#"[{"type":"x-a","s":"\ude00\ud83d"}]"#),
        bad("half a pair in a key", "lone_surrogate", r#"[{"type":"x-a","\ud83d":1}]"#),
        bad("no type", "no_type", r#"[{"a":1}]"#),
        bad("a type that is no text", "no_type", r#"[{"type":1}]"#),
        bad("a type further down", "no_type", r#"[{"a":{"type":"x-a"}}]"#),
        json!({"name": "bytes that are no text", "hex": "5b7b2274797065223a22ff227d5d", "refused": "not_utf8"}),
        json!({"name": "a surrogate as bytes", "hex": "5b7b2274797065223a22eda080227d5d", "refused": "not_utf8"}),
        json!({"name": "as deep as allowed", "pieces": nest(62), "accepted": 1}),
        json!({"name": "one deeper", "pieces": nest(63), "refused": "too_deep"}),
        json!({"name": "deep enough to end a reader that recurses",
            "pieces": [["[{\"type\":\"x-a\",\"v\":", 1], ["[", 200_000]], "refused": "too_deep"}),
        json!({"name": "as many entries as allowed",
            "pieces": [["[", 1], ["{\"type\":\"x-a\"},", 1023], ["{\"type\":\"x-a\"}]", 1]], "accepted": 1024}),
        json!({"name": "one more", "pieces": [["[", 1], ["{\"type\":\"x-a\"},", 1024], ["{\"type\":\"x-a\"}]", 1]], "refused": "too_many"}),
        json!({"name": "as long as allowed",
            "pieces": [["[{\"type\":\"x-a\",\"s\":\"", 1], ["a", 262_120], ["\"}]", 1]], "accepted": 1}),
        json!({"name": "too long", "pieces": [[" ", 262_145]], "refused": "too_large"}),
    ]
}
