//! HTTP by hand, so that wrong requests can be made too.

use super::{PATIENCE, TOKEN};
use axum::body::Body;
use http::{HeaderMap, StatusCode};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use std::net::SocketAddr;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;

/// A request in the making.
pub struct Request {
    method: &'static str,
    path: String,
    headers: Vec<(String, String)>,
    body: Body,
}

/// A response, read.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub text: String,
    pub body: Value,
}

impl Request {
    pub fn new(method: &'static str, path: impl Into<String>) -> Self {
        let headers = vec![("authorization".into(), format!("Bearer {TOKEN}"))];
        Self { method, path: path.into(), headers, body: Body::empty() }
    }

    pub fn get(path: impl Into<String>) -> Self {
        Self::new("GET", path)
    }

    pub fn post(path: impl Into<String>, body: &Value) -> Self {
        Self::new("POST", path).body(body.to_string())
    }

    pub fn body(mut self, body: impl Into<Body>) -> Self {
        self.body = body.into();
        self
    }

    /// Sets a header; an empty value leaves it out.
    pub fn header(mut self, name: &str, value: impl Into<String>) -> Self {
        let value = value.into();
        self.headers.retain(|(known, _)| known != name);
        if !value.is_empty() {
            self.headers.push((name.into(), value));
        }
        self
    }

    /// Sends it, and leaves the body to be read.
    pub async fn open(self, address: SocketAddr) -> Opened {
        let exchange = async {
            let stream = TcpStream::connect(address).await.unwrap();
            let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
            let mut tasks = JoinSet::new();
            tasks.spawn(async move { drop(connection.with_upgrades().await) });
            let mut request = http::Request::builder().method(self.method).uri(self.path);
            if !self.headers.iter().any(|(name, _)| name == "host") {
                request = request.header("host", address.to_string());
            }
            for (name, value) in self.headers {
                request = request.header(name, value);
            }
            let response = sender.send_request(request.body(self.body).unwrap()).await.unwrap();
            let (parts, body) = response.into_parts();
            Opened { status: parts.status, headers: parts.headers, body: Body::new(body), _connection: tasks }
        };
        timeout(PATIENCE, exchange).await.expect("no response")
    }

    pub async fn send(self, address: SocketAddr) -> Answer {
        let opened = self.open(address).await;
        let bytes = timeout(PATIENCE, axum::body::to_bytes(opened.body, usize::MAX)).await;
        let text = String::from_utf8(bytes.expect("no body").unwrap().to_vec()).unwrap();
        let body = serde_json::from_str(&text).unwrap_or(Value::Null);
        Answer { status: opened.status, text, body }
    }
}

/// A response whose body is still to come.
pub struct Opened {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Body,
    _connection: JoinSet<()>,
}

impl Answer {
    /// The body of a response with this status.
    #[track_caller]
    pub fn with(self, status: u16) -> Value {
        assert_eq!(self.status.as_u16(), status, "{}", self.text);
        self.body
    }

    /// Checks that it is this error, in every one of its parts.
    #[track_caller]
    pub fn is_error(&self, status: u16, code: &str) {
        assert_eq!(
            (self.status.as_u16(), &self.body["error"]["code"]),
            (status, &json!(code)),
            "{}",
            self.text
        );
        assert!(self.body["error"]["message"].as_str().is_some_and(|m| !m.is_empty()), "{}", self.text);
        assert!(self.body["error"]["retryable"].is_boolean(), "{}", self.text);
        assert!(self.body["error"]["no_side_effects"].is_boolean(), "{}", self.text);
    }
}

/// Makes a session whose input goes to `guide`.
pub async fn create(address: SocketAddr, session: &str) {
    let body = json!({ "session": session, "agent": "guide", "title": "A talk" });
    Request::post("/v1/sessions", &body).send(address).await.with(201);
}

/// Puts input; the run that it requests.
pub async fn input(address: SocketAddr, session: &str, text: &str) -> String {
    let path = format!("/v1/sessions/{session}/input");
    let done = Request::post(path, &json!({ "text": text })).send(address).await.with(202);
    done["run"].as_str().unwrap().to_owned()
}

/// Asks something of runs: status and receipt.
pub async fn control(address: SocketAddr, session: &str, body: &Value, wait_ms: u32) -> (u16, Value) {
    let path = format!("/v1/sessions/{session}/control?wait_ms={wait_ms}");
    let answer = Request::post(path, body).send(address).await;
    (answer.status.as_u16(), answer.body)
}

/// As long as a request may wait for an outcome.
pub const WAIT_MS: u32 = 30_000;

/// Asks something of runs that has its outcome at once, or soon; the last receipt.
pub async fn settled(address: SocketAddr, session: &str, body: &Value) -> Value {
    let (status, receipt) = control(address, session, body, WAIT_MS).await;
    assert_eq!((status, &receipt["stage"]), (200, &json!("settled")), "{receipt}");
    receipt
}

/// Types of the entries of the log, block by block.
pub async fn blocks(address: SocketAddr, session: &str) -> Vec<Vec<String>> {
    let path = format!("/v1/sessions/{session}/entries?limit=5000");
    let page = Request::get(path).send(address).await.with(200);
    let records = page["records"].as_array().unwrap();
    let blocks = records.iter().flat_map(|record| record["blocks"].as_array().unwrap());
    let types = |block: &Value| {
        let entries = block["entries"].as_array().unwrap();
        entries.iter().map(|entry| entry["type"].as_str().unwrap().to_owned()).collect()
    };
    blocks.map(types).collect()
}

/// When the one entry of a type was written that `matches`.
pub async fn written_at(address: SocketAddr, session: &str, matches: impl Fn(&Value) -> bool) -> u64 {
    let path = format!("/v1/sessions/{session}/entries?limit=5000");
    let page = Request::get(path).send(address).await.with(200);
    let records = page["records"].as_array().unwrap();
    let blocks = records.iter().flat_map(|record| record["blocks"].as_array().unwrap());
    let mut found = blocks.filter(|block| block["entries"].as_array().unwrap().iter().any(&matches));
    found.next().unwrap()["at"].as_u64().unwrap()
}

/// The state as the server tells it.
pub async fn state(address: SocketAddr, session: &str) -> String {
    let answer = Request::get(format!("/v1/sessions/{session}/state")).send(address).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    answer.text
}
