//! Wrong, huge and malicious input on every door: a typed answer, and the node and the connection live on.

use crate::harness::http::{create, state};
use crate::harness::{Client, Engine, PATIENCE, Request, Socket, TOKEN, Worker, World, client};
use futures_util::SinkExt as _;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::{Error, Message};

on_both_engines!(
    wrong_requests_get_typed_errors,
    bodies_are_checked_like_everything_that_is_kept,
    limits_of_a_session_are_typed_refusals,
    handshakes_that_are_not_ours_are_refused,
    the_token_opens_in_each_of_its_three_places,
    frames_that_end_a_connection_say_why,
    frames_that_are_wrong_are_answered_and_the_connection_lives,
    bytes_that_are_no_websocket_frames_close_the_connection,
    frames_may_be_pipelined_before_the_welcome,
    pages_of_other_origins_are_turned_away,
);

async fn wrong_requests_get_typed_errors<E: Engine>() {
    let world = World::<E>::start().await;
    let node = world.node().await;
    create(node.address, "s").await;
    let long = "s".repeat(129);
    let cases: Vec<(Request, u16, &str)> = vec![
        (Request::get("/v1/sessions").header("authorization", ""), 401, "unauthorized"),
        (Request::get("/v1/sessions").header("authorization", "Bearer wrong"), 401, "unauthorized"),
        (Request::get("/v1/sessions").header("authorization", format!("Basic {TOKEN}")), 401, "unauthorized"),
        (Request::get("/v1/sessions").header("everthread-subject", "a b"), 400, "bad_request"),
        (Request::get("/"), 404, "not_found"),
        (Request::get("/v2/sessions"), 404, "not_found"),
        (Request::get("/v1/sessions/s/nothing"), 404, "not_found"),
        (Request::new("PUT", "/v1/sessions/s"), 405, "not_supported"),
        (Request::get("/v1/sessions/s/input"), 405, "not_supported"),
        (Request::post("/v1/sessions/s/state", &json!({})), 405, "not_supported"),
        (Request::get("/v1/sessions/none"), 404, "no_session"),
        (Request::get("/v1/sessions/none/state"), 404, "no_session"),
        (Request::get("/v1/sessions/none/entries"), 404, "no_session"),
        (Request::get("/v1/sessions/none/follow"), 404, "no_session"),
        (Request::post("/v1/sessions/none/input", &json!({ "text": "a" })), 404, "no_session"),
        (
            Request::post("/v1/sessions/none/entries", &json!({ "entries": [{ "type": "x-a" }] })),
            404,
            "no_session",
        ),
        (Request::new("PATCH", "/v1/sessions/none").body(r#"{"meta":{}}"#), 404, "no_session"),
        (Request::get("/v1/sessions/a%7Bb%7D/state"), 400, "bad_request"),
        (Request::get("/v1/sessions/a%3Ab"), 400, "bad_request"),
        (Request::get("/v1/sessions/%ff"), 400, "bad_request"),
        (Request::get("/v1/sessions/%2e%2e%2f/state"), 400, "bad_request"),
        (Request::get("/v1/sessions/s/control/%ff"), 400, "bad_request"),
        (Request::get("/v1/sessions/%ff/control/c"), 400, "bad_request"),
        (Request::new("PUT", "/v1/sessions/s/devices/%ff").body(r#"{"cursor":"1.1"}"#), 400, "bad_request"),
        (Request::new("DELETE", "/v1/sessions/s/devices/%ff"), 400, "bad_request"),
        (Request::get(format!("/v1/sessions/{long}")), 400, "bad_request"),
        (Request::get("/v1/sessions?limit=0"), 400, "bad_request"),
        (Request::get("/v1/sessions?limit=-1"), 400, "bad_request"),
        (Request::get("/v1/sessions?limit=100000"), 400, "bad_request"),
        (Request::get("/v1/sessions?after=x"), 400, "bad_request"),
        (Request::get("/v1/sessions?color=red"), 400, "bad_request"),
        (Request::get("/v1/sessions/s/entries?limit=0"), 400, "bad_request"),
        (Request::get("/v1/sessions/s/entries?limit=1000000"), 400, "bad_request"),
        (Request::get("/v1/sessions/s/entries?after=x"), 400, "bad_cursor"),
        (Request::get("/v1/sessions/s/entries?after=1.1"), 400, "bad_cursor"),
        (Request::get("/v1/sessions/s/entries?after=-1"), 400, "bad_cursor"),
        (Request::get("/v1/sessions/s/follow?after=x"), 400, "bad_cursor"),
        (Request::get("/v1/sessions/s/follow").header("last-event-id", "x"), 400, "bad_cursor"),
        (Request::post("/v1/sessions/s/control?wait_ms=x", &json!({})), 400, "bad_request"),
    ];
    let mut counted = BTreeMap::new();
    for (number, (request, status, code)) in cases.into_iter().enumerate() {
        let answer = request.send(node.address).await;
        assert_eq!(answer.status.as_u16(), status, "case {number}: {}", answer.text);
        answer.is_error(status, code);
        *counted.entry(code).or_insert(0) += 1;
    }
    for (code, count) in counted {
        assert_eq!(node.edge.metrics.errors.with_label_values(&[code]).get(), count, "{code} is counted");
    }
    Request::get("/v1/sessions/s").send(node.address).await.with(200);
}

type WrongBody = (&'static str, &'static str, String, u16, &'static str);

fn wrong_bodies_of_sessions_and_input() -> Vec<WrongBody> {
    let deep = format!("{{\"text\":{}{}}}", "[".repeat(5000), "]".repeat(5000));
    let huge = format!("{{\"text\":\"{}\"}}", "x".repeat(400_000));
    let params = json!({ "text": "a", "params": { "a": "x".repeat(70_000) } }).to_string();
    vec![
        ("POST", "/v1/sessions", r#"["a",null,null,{}]"#.into(), 400, "bad_request"),
        (
            "POST",
            "/v1/sessions",
            r#"{"meta":{"forked_from":{"session":"s","seq":1}}}"#.into(),
            400,
            "bad_request",
        ),
        ("POST", "/v1/sessions/s/input", params, 413, "too_large"),
        ("POST", "/v1/sessions", "{".into(), 400, "bad_request"),
        ("POST", "/v1/sessions", "[]".into(), 400, "bad_request"),
        ("POST", "/v1/sessions", "\u{feff}{}".into(), 400, "bad_request"),
        ("POST", "/v1/sessions", r#"{"session":"a b"}"#.into(), 400, "bad_request"),
        ("POST", "/v1/sessions", r#"{"session":"a","session":"b"}"#.into(), 400, "bad_request"),
        ("POST", "/v1/sessions", r#"{"colour":"red"}"#.into(), 400, "bad_request"),
        ("POST", "/v1/sessions", r#"{"agent":"a/b"}"#.into(), 400, "bad_request"),
        ("POST", "/v1/sessions", r#"{"meta":{"agent":7}}"#.into(), 400, "bad_request"),
        ("POST", "/v1/sessions", r#"{"meta":{"a":"\ud800"}}"#.into(), 400, "bad_request"),
        ("POST", "/v1/sessions", r#"{"meta":{"a":1e999}}"#.into(), 400, "bad_request"),
        ("POST", "/v1/sessions", huge.clone(), 413, "too_large"),
        ("POST", "/v1/sessions/s/input", String::new(), 400, "bad_request"),
        ("POST", "/v1/sessions/s/input", deep, 400, "bad_request"),
        ("POST", "/v1/sessions/s/input", huge, 413, "too_large"),
        ("POST", "/v1/sessions/s/input", r#"{"text":1}"#.into(), 400, "bad_request"),
        ("POST", "/v1/sessions/s/input", r#"{"text":"a","parts":[]}"#.into(), 400, "bad_request"),
        ("POST", "/v1/sessions/s/input", r#"{"parts":[]}"#.into(), 400, "bad_request"),
        (
            "POST",
            "/v1/sessions/s/input",
            r#"{"parts":[{"kind":"text","value":{}}]}"#.into(),
            400,
            "bad_request",
        ),
        (
            "POST",
            "/v1/sessions/s/input",
            r#"{"parts":[{"kind":"song","value":"a"}]}"#.into(),
            400,
            "bad_request",
        ),
        ("POST", "/v1/sessions/s/input", r#"{"text":"a","id":"{}"}"#.into(), 400, "bad_request"),
        (
            "POST",
            "/v1/sessions/s/input",
            r#"{"text":"a","id":"00000000000000000000000000"}"#.into(),
            410,
            "too_old",
        ),
    ]
}

fn wrong_bodies_of_the_rest() -> Vec<WrongBody> {
    let deep_entry =
        format!("{{\"entries\":[{{\"type\":\"x-a\",\"a\":{}{}}}]}}", "[".repeat(70), "]".repeat(70));
    let many = json!({ "entries": vec![json!({ "type": "x-a" }); 1025] }).to_string();
    let value =
        json!({ "entries": [{ "type": "state.set", "key": "k", "value": "x".repeat(17_000) }] }).to_string();
    vec![
        ("POST", "/v1/sessions/s/fork", r#"[null,"f",{}]"#.into(), 400, "bad_request"),
        ("POST", "/v1/sessions/s/entries", value, 413, "too_large"),
        (
            "PATCH",
            "/v1/sessions/s",
            r#"{"meta":{"forked_from":{"session":"x","seq":1}}}"#.into(),
            400,
            "bad_request",
        ),
        ("POST", "/v1/sessions/s/control", r#"{"kind":"cancel"}"#.into(), 400, "bad_request"),
        (
            "POST",
            "/v1/sessions/s/control",
            r#"{"kind":"dance","target":{"run":"r"}}"#.into(),
            400,
            "bad_request",
        ),
        (
            "POST",
            "/v1/sessions/s/control",
            r#"{"kind":"cancel","target":{"run":"r","input":"i"}}"#.into(),
            400,
            "bad_request",
        ),
        ("POST", "/v1/sessions/s/entries", r#"{"entries":[]}"#.into(), 400, "bad_request"),
        ("POST", "/v1/sessions/s/entries", r#"{"entries":{}}"#.into(), 400, "bad_request"),
        (
            "POST",
            "/v1/sessions/s/entries",
            r#"{"entries":[{"type":"nope"}]}"#.into(),
            403,
            "entry_not_allowed",
        ),
        (
            "POST",
            "/v1/sessions/s/entries",
            r#"{"entries":[{"type":"run.ended"}]}"#.into(),
            403,
            "entry_not_allowed",
        ),
        (
            "POST",
            "/v1/sessions/s/entries",
            r#"{"entries":[{"type":"message.start","message":"m","role":"user"}]}"#.into(),
            403,
            "entry_not_allowed",
        ),
        (
            "POST",
            "/v1/sessions/s/entries",
            r#"{"entries":[{"type":"x-a"},{"type":"state.set","key":"k","value":1}]}"#.into(),
            400,
            "bad_request",
        ),
        (
            "POST",
            "/v1/sessions/s/entries",
            r#"{"entries":[{"type":"x-a","b":1,"b":2}]}"#.into(),
            400,
            "bad_request",
        ),
        ("POST", "/v1/sessions/s/entries", deep_entry, 400, "bad_request"),
        ("POST", "/v1/sessions/s/entries", many, 413, "too_large"),
        ("PATCH", "/v1/sessions/s", r#"{"meta":{"agent":[]}}"#.into(), 400, "bad_request"),
        ("PATCH", "/v1/sessions/s", r#"{"meta":7}"#.into(), 400, "bad_request"),
        ("PATCH", "/v1/sessions/s", "{}".into(), 400, "bad_request"),
    ]
}

async fn bodies_are_checked_like_everything_that_is_kept<E: Engine>() {
    let world = World::<E>::start().await;
    let node = world.node().await;
    create(node.address, "s").await;
    let before = state(node.address, "s").await;
    for (method, path, body, status, code) in
        wrong_bodies_of_sessions_and_input().into_iter().chain(wrong_bodies_of_the_rest())
    {
        let shown: String = body.chars().take(80).collect();
        let answer = Request::new(method, path).body(body).send(node.address).await;
        assert_eq!(answer.status.as_u16(), status, "{method} {path} {shown}: {}", answer.text);
        answer.is_error(status, code);
        assert_eq!(answer.body["error"]["no_side_effects"], true);
    }
    assert_eq!(state(node.address, "s").await, before, "nothing was written");
}

async fn limits_of_a_session_are_typed_refusals<E: Engine>() {
    let world = World::<E>::start().await;
    let node = world.node().await;
    create(node.address, "s").await;
    let big = json!({ "session": "big", "meta": { "a": "x".repeat(9000) } });
    Request::post("/v1/sessions", &big).send(node.address).await.is_error(413, "too_large");
    for number in 0..64 {
        let entries =
            json!({ "entries": [{ "type": "state.set", "key": format!("k{number}"), "value": number }] });
        Request::post("/v1/sessions/s/entries", &entries).send(node.address).await.with(202);
        Request::post("/v1/sessions/s/input", &json!({ "text": "Hi" })).send(node.address).await.with(202);
        let early = json!({ "kind": "cancel", "target": { "input": format!("later-{number}") } });
        Request::post("/v1/sessions/s/control", &early).send(node.address).await.with(202);
    }
    let over = json!({ "entries": [{ "type": "state.set", "key": "one-more", "value": 1 }] });
    Request::post("/v1/sessions/s/entries", &over).send(node.address).await.is_error(429, "limit_reached");
    let half =
        |key: &str| json!({ "entries": [{ "type": "state.set", "key": key, "value": "x".repeat(9_000) }] });
    Request::post("/v1/sessions/s/entries", &half("k1")).send(node.address).await.with(202);
    let over = Request::post("/v1/sessions/s/entries", &half("k2")).send(node.address).await;
    over.is_error(429, "limit_reached");
    let answer = Request::post("/v1/sessions/s/input", &json!({ "text": "Hi" })).send(node.address).await;
    answer.is_error(429, "limit_reached");
    let over = json!({ "kind": "cancel", "target": { "input": "later-64" } });
    Request::post("/v1/sessions/s/control", &over).send(node.address).await.is_error(429, "limit_reached");
    let mut client = Client::attach(node.address, "s", json!("start")).await;
    client.holds_the_state(node.address).await;
}

async fn handshakes_that_are_not_ours_are_refused<E: Engine>() {
    let world = World::<E>::start().await;
    let node = world.node().await;
    for path in ["/v1/connect", "/v1/worker"] {
        Request::get(path).send(node.address).await.is_error(400, "bad_request");
        let plain = Request::get(path).header("connection", "upgrade").header("upgrade", "websocket");
        plain.send(node.address).await.is_error(400, "bad_request");
        for headers in [
            vec![("sec-websocket-protocol", "chat")],
            vec![("sec-websocket-protocol", "everthread.token.secret")],
            vec![("sec-websocket-version", "8")],
        ] {
            match Socket::open_with(node.address, path, &headers).await {
                Err(Error::Http(response)) => assert_eq!(response.status(), 400, "{headers:?}"),
                other => panic!("{headers:?}: {:?}", other.map(|_| "open").map_err(|e| e.to_string())),
            }
        }
        Request::post(path, &json!({})).send(node.address).await.is_error(405, "not_supported");
    }
}

async fn the_token_opens_in_each_of_its_three_places<E: Engine>() {
    let world = World::<E>::start().await;
    let node = world.node().await;
    let (bearer, wrong_bearer) = (format!("Bearer {TOKEN}"), "Bearer wrong");
    let ours = "everthread.v1";
    let (both, wrong) =
        (format!("{ours}, everthread.token.{TOKEN}"), format!("{ours}, everthread.token.nope"));
    let good = [
        (vec![("authorization", &*bearer)], Value::Null),
        (vec![("authorization", &*bearer), ("sec-websocket-protocol", ours)], Value::Null),
        (vec![("sec-websocket-protocol", &*both)], Value::Null),
        (vec![("sec-websocket-protocol", ours)], json!(TOKEN)),
        (vec![], json!(TOKEN)),
    ];
    let bad = [
        (vec![("authorization", wrong_bearer)], Value::Null),
        (vec![("sec-websocket-protocol", &*wrong)], Value::Null),
        (vec![("sec-websocket-protocol", ours)], Value::Null),
        (vec![("sec-websocket-protocol", ours)], json!("nope")),
        (vec![("authorization", &*bearer)], json!("nope")),
    ];
    let doors = [
        ("/v1/connect", json!({ "t": "hello", "id": "1" })),
        (
            "/v1/worker",
            json!({ "t": "hello", "id": "1", "worker": "w1", "agents": [{ "name": "guide", "capacity": 1 }] }),
        ),
    ];
    for (path, hello) in doors {
        for (is_good, (headers, token)) in
            good.iter().map(|g| (true, g)).chain(bad.iter().map(|b| (false, b)))
        {
            let mut socket = Socket::open_with(node.address, path, headers).await.unwrap();
            let mut hello = hello.clone();
            if !token.is_null() {
                hello["token"] = token.clone();
            }
            let answer = socket.ask(hello).await;
            if is_good {
                assert_eq!(answer["t"], "welcome", "{path} {headers:?} {token}: {answer}");
            } else {
                assert_eq!(answer["code"], "unauthorized", "{path} {headers:?} {token}: {answer}");
                assert_eq!(socket.closed().await, Some(4401));
            }
        }
    }
}

async fn frames_that_end_a_connection_say_why<E: Engine>() {
    let world = World::<E>::start().await;
    let node = world.node().await;
    for path in ["/v1/connect", "/v1/worker"] {
        for (first, code) in [
            (r#"{"t":"pong"} x"#, 4400),
            (r#"{"t":"hello"}"#, 4400),
            (r#"{"t":"attach","id":"1","session":"s","from":"start"}"#, 4400),
            (r#"{"t":"decline","run":"r","fence":"1"}"#, 4400),
            ("", 4400),
        ] {
            let mut socket = Socket::open(node.address, path).await;
            socket.send_text(first).await;
            let error = socket.frame().await;
            assert_eq!(
                (&error["t"], &error["code"]),
                (&json!("error"), &json!("bad_request")),
                "{first}: {error}"
            );
            let bye = socket.frame().await;
            assert_eq!((&bye["t"], &bye["reconnect"]), (&json!("bye"), &json!(false)), "{bye}");
            assert_eq!(socket.closed().await, Some(code), "{path} {first}");
        }
        for (message, code) in
            [(Message::binary(&b"{}"[..]), 4400), (Message::text(" ".repeat(330_000)), 4413)]
        {
            let mut socket = Socket::open(node.address, path).await;
            socket.inner.send(message).await.unwrap();
            assert_eq!(socket.closed().await, Some(code), "{path}");
        }
    }
    // After hello too.
    let mut socket = client::hello(node.address).await;
    socket.inner.send(Message::binary(&b"{}"[..])).await.unwrap();
    assert_eq!(socket.closed().await, Some(4400));
}

async fn frames_that_are_wrong_are_answered_and_the_connection_lives<E: Engine>() {
    let world = World::<E>::start().await;
    let node = world.node().await;
    create(node.address, "s").await;
    let mut socket = client::hello(node.address).await;
    socket.ask(json!({ "t": "attach", "session": "s", "from": "start" })).await;
    let cases = [
        (json!({ "t": "hello" }), "bad_request"),
        (json!({ "t": "attach", "session": "none", "from": "start" }), "no_session"),
        (json!({ "t": "attach", "session": "a:b", "from": "start" }), "bad_request"),
        (json!({ "t": "detach", "attachment": 9 }), "bad_request"),
        (json!({ "t": "put", "attachment": 9, "entries": [{ "type": "x-a" }] }), "bad_request"),
        (json!({ "t": "put", "attachment": 1, "entries": [] }), "bad_request"),
        (
            json!({ "t": "put", "attachment": 1, "entries": [{ "type": "run.step", "phase": "start" }] }),
            "entry_not_allowed",
        ),
        (
            json!({ "t": "put", "attachment": 1, "entries": [{ "type": "x-a", "a": "x".repeat(262_200) }] }),
            "too_large",
        ),
        (
            json!({ "t": "control", "attachment": 9, "kind": "cancel", "target": { "run": "r" } }),
            "bad_request",
        ),
        (json!({ "t": "control", "attachment": 1, "kind": "cancel", "target": { "run": "r" } }), "no_run"),
        (
            json!({ "t": "control", "attachment": 1, "kind": "dance", "target": { "run": "r" } }),
            "bad_request",
        ),
        (json!({ "t": "history", "attachment": 9 }), "bad_request"),
        (json!({ "t": "history", "attachment": 1, "limit": 0 }), "bad_request"),
        (json!({ "t": "drain" }), "bad_request"),
    ];
    for (frame, code) in cases {
        let answer = socket.ask(frame.clone()).await;
        assert_eq!((&answer["t"], &answer["code"]), (&json!("error"), &json!(code)), "{frame}: {answer}");
        assert_eq!(answer["no_side_effects"], true, "{answer}");
    }
    let done = socket.ask(json!({ "t": "put", "attachment": 1, "entries": [{ "type": "x-fine" }] })).await;
    assert_eq!(done["t"], "ok", "{done}");
    let mut worker = Worker::join(node.address, "w1", "guide", 1).await;
    for frame in [
        json!({ "t": "hello", "worker": "w1", "agents": [] }),
        json!({ "t": "attach" }),
        json!({ "t": "append" }),
    ] {
        assert_eq!(worker.socket.ask(frame).await["code"], "bad_request");
    }
    let run = crate::harness::http::input(node.address, "s", "Hi").await;
    assert_eq!(worker.serve(&["alive"]).await, run);
}

/// The bytes of a client's handshake.
fn handshake(address: SocketAddr, path: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
         sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
         authorization: Bearer {TOKEN}\r\n\r\n"
    )
}

/// Sends raw bytes behind the handshake and reads to the end; the code of the close frame that ends it.
async fn close_code_for(address: SocketAddr, path: &str, bytes: &[u8]) -> Option<u16> {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(handshake(address, path).as_bytes()).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    let mut all = Vec::new();
    // A reset ends it too.
    drop(tokio::time::timeout(PATIENCE, stream.read_to_end(&mut all)).await.expect("the connection stayed"));
    match all.as_slice() {
        [.., 0x88, 2, high, low] => Some(u16::from_be_bytes([*high, *low])),
        _ => None,
    }
}

async fn bytes_that_are_no_websocket_frames_close_the_connection<E: Engine>() {
    let world = World::<E>::start().await;
    let node = world.node().await;
    let masked = |first: u8, payload: &[u8]| {
        let mut out = vec![first, 0x80 | u8::try_from(payload.len()).unwrap(), 0, 0, 0, 0];
        out.extend_from_slice(payload);
        out
    };
    let mut huge = vec![0x81, 0xff];
    huge.extend(u64::MAX.to_be_bytes());
    huge.extend([0; 4]);
    let cases = [
        (b"\x81\x02{}".to_vec(), Some(4400)),
        (masked(0x82, b"{}"), Some(4400)),
        (masked(0xc1, b"{}"), Some(4400)),
        (masked(0x83, b"{}"), Some(4400)),
        (masked(0x80, b"{}"), Some(4400)),
        (masked(0x09, b"ping"), Some(4400)),
        (huge, Some(4413)),
        // Valid frames, but no valid text in them.
        (masked(0x81, b"\xff\xfe"), Some(4400)),
        // A polite good-bye.
        (masked(0x88, &1000_u16.to_be_bytes()), None),
    ];
    for path in ["/v1/connect", "/v1/worker"] {
        for (bytes, code) in &cases {
            assert_eq!(close_code_for(node.address, path, bytes).await, *code, "{path} {bytes:x?}");
        }
    }
    let connections = &node.edge.metrics.connections;
    crate::harness::until("all are gone", async || {
        let open = |kind| connections.with_label_values(&[kind]).get();
        (open("client") + open("worker") == 0).then_some(())
    })
    .await;
}

async fn frames_may_be_pipelined_before_the_welcome<E: Engine>() {
    let world = World::<E>::start().await;
    let node = world.node().await;
    create(node.address, "s").await;
    let mut socket = Socket::open(node.address, "/v1/connect").await;
    let put = json!([{ "type": "message.put", "message": "m1", "role": "user", "parts": [{ "kind": "text", "value": "Hi" }] }]);
    for frame in [
        json!({ "t": "hello", "id": "1" }),
        json!({ "t": "attach", "id": "2", "session": "s", "from": { "recent": 5 } }),
        json!({ "t": "put", "id": "3", "attachment": 1, "entries": put }),
        json!({ "t": "control", "id": "4", "attachment": 1, "kind": "cancel", "target": { "input": "m1" } }),
        json!({ "t": "history", "id": "5", "attachment": 1 }),
        json!({ "t": "detach", "id": "6", "attachment": 1 }),
    ] {
        socket.send(&frame).await;
    }
    for (id, t) in
        [("1", "welcome"), ("2", "attached"), ("3", "ok"), ("4", "receipt"), ("5", "history"), ("6", "ok")]
    {
        let answer = loop {
            let frame = socket.frame().await;
            if !frame["id"].is_null() || frame["t"] == "receipt" {
                break frame;
            }
        };
        let answered = if t == "receipt" { &answer["control"] } else { &answer["id"] };
        assert_eq!((&answer["t"], answered), (&json!(t), &json!(id)), "in order: {answer}");
    }
}

async fn pages_of_other_origins_are_turned_away<E: Engine>() {
    let mut world = World::<E>::start().await;
    world.hosts = vec!["127.0.0.1".into(), "localhost".into()];
    let node = world.node().await;
    create(node.address, "s").await;
    for path in ["/v1/connect", "/v1/worker", "/v1/sessions", "/v1/sessions/s/state", "/v1/sessions/s/follow"]
    {
        let foreign = Request::get(path).header("origin", "https://evil.example");
        foreign.send(node.address).await.is_error(403, "forbidden");
        let rebound = Request::get(path).header("host", "evil.example");
        rebound.send(node.address).await.is_error(403, "forbidden");
    }
    match Socket::open_with(node.address, "/v1/connect", &[("origin", "https://evil.example")]).await {
        Err(Error::Http(response)) => assert_eq!(response.status(), 403),
        _ => panic!("a foreign page got in"),
    }
    let ours = [("origin", "http://localhost:3000")];
    assert!(Socket::open_with(node.address, "/v1/connect", &ours).await.is_ok());
}
