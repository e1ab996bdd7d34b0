//! A follower of one session over WebSocket.

use super::history::History;
use super::socket::{Heard, Socket};
use super::{PATIENCE, http};
use serde_json::{Value, json};
use std::net::SocketAddr;
use tokio::time::timeout;

/// A connection with one attachment, and what it was sent.
pub struct Client {
    pub socket: Socket,
    pub history: History,
    /// Frames about the attachment besides entries: `attached`, `reset`, `snapshot`, `live`, `lag`.
    pub told: Vec<String>,
    /// Receipts of controls, in order.
    pub receipts: Vec<Value>,
    pub session: String,
}

/// A connection that has said hello.
pub async fn hello(address: SocketAddr) -> Socket {
    hello_as(address, json!({ "subject": "ann" })).await
}

/// A connection that has said who it is.
pub async fn hello_as(address: SocketAddr, mut hello: Value) -> Socket {
    let mut socket = Socket::open(address, "/v1/connect").await;
    hello["t"] = "hello".into();
    let welcome = socket.ask(hello).await;
    assert_eq!(welcome["t"], "welcome", "{welcome}");
    socket
}

impl Client {
    /// Attaches: `from` is as in the frame.
    pub async fn attach(address: SocketAddr, session: &str, from: Value) -> Self {
        Self::attach_holding(address, session, from, History::new()).await
    }

    /// Comes back, here or elsewhere, with what it held when its connection was lost.
    pub async fn resume(address: SocketAddr, session: &str, history: History) -> Self {
        let from = if history.view.seq().0 == 0 { json!("start") } else { json!(history.cursor()) };
        Self::attach_holding(address, session, from, history).await
    }

    async fn attach_holding(address: SocketAddr, session: &str, from: Value, history: History) -> Self {
        let mut socket = hello(address).await;
        let attached = socket.ask(json!({ "t": "attach", "session": session, "from": from })).await;
        assert_eq!((&attached["t"], &attached["attachment"]), (&json!("attached"), &json!(1)), "{attached}");
        Self { socket, history, told: vec!["attached".into()], receipts: Vec::new(), session: session.into() }
    }

    /// Takes the next frame; false if the connection is closed.
    pub async fn read(&mut self) -> bool {
        match self.socket.hear().await {
            Heard::Closed(_) => return false,
            Heard::Frame(frame) => self.take(&frame),
        }
        true
    }

    fn take(&mut self, frame: &Value) {
        let kind = frame["t"].as_str().unwrap();
        match kind {
            "entries" => self.history.apply(frame),
            "snapshot" => self.history.replace(frame),
            "receipt" => return self.receipts.push(frame.clone()),
            "lag" | "live" | "reset" | "bye" => {}
            other => panic!("{other} was not asked for: {frame}"),
        }
        if kind != "entries" {
            self.told.push(kind.into());
        }
    }

    /// Reads until `done`, and fails with `what` if it never is.
    pub async fn until(&mut self, what: &str, done: impl Fn(&History) -> bool) {
        let reading = async {
            while !done(&self.history) {
                if !self.read().await {
                    return false;
                }
            }
            true
        };
        match timeout(PATIENCE * 2, reading).await {
            Ok(true) => {}
            Ok(false) => panic!("closed before {what}, at {}", self.history.text()),
            Err(_) => panic!("never {what}, at {}", self.history.text()),
        }
    }

    /// Reads until a run has ended; how.
    pub async fn ended(&mut self, run: &str) -> String {
        self.until(&format!("the end of {run}"), |history| history.outcome(run).is_some()).await;
        self.history.outcome(run).unwrap()
    }

    /// Reads until a control has its outcome in the log; the control.
    pub async fn settled(&mut self, control: &str) -> Value {
        let what = format!("the outcome of {control}");
        self.until(&what, |history| history.control(control)["outcome"].is_string()).await;
        self.history.control(control)
    }

    /// Reads until a run is in this state; the run.
    pub async fn run_is(&mut self, run: &str, status: &str) -> Value {
        let what = format!("{run} is {status}");
        self.until(&what, |history| history.run(run)["status"] == status).await;
        self.history.run(run)
    }

    /// Sends a control; what answers it is told later.
    pub async fn ask(&mut self, id: &str, mut control: Value) {
        control["t"] = "control".into();
        control["id"] = id.into();
        control["attachment"] = 1.into();
        self.socket.send(&control).await;
    }

    /// Sends a request other than a control and waits for its answer.
    pub async fn request(&mut self, mut frame: Value) -> Value {
        frame["attachment"] = 1.into();
        self.socket.ask(frame).await
    }

    /// Reads until a control has come to this stage; the receipt.
    pub async fn receipt(&mut self, control: &str, stage: &str) -> Value {
        let is_it = |receipt: &&Value| receipt["control"] == control && receipt["stage"] == stage;
        loop {
            if let Some(receipt) = self.receipts.iter().find(is_it) {
                return receipt.clone();
            }
            let reading = timeout(PATIENCE, self.read()).await;
            assert_eq!(reading, Ok(true), "no receipt {stage} of {control}: {:?}", self.receipts);
        }
    }

    /// Stages that a control came to, as far as its receipts were read.
    pub fn stages(&self, control: &str) -> Vec<&str> {
        let of_it = self.receipts.iter().filter(|receipt| receipt["control"] == control);
        of_it.map(|receipt| receipt["stage"].as_str().unwrap()).collect()
    }

    /// Reads until it has been told this.
    pub async fn told(&mut self, kind: &str) {
        while !self.told.iter().any(|told| told == kind) {
            assert!(self.read().await, "closed before {kind}");
        }
    }

    /// Checks that it holds what the server says the session is, byte by byte. The session must be at rest.
    pub async fn holds_the_state(&mut self, address: SocketAddr) {
        let state = http::state(address, &self.session).await;
        let seq = serde_json::from_str::<Value>(&state).unwrap()["seq"].as_u64().unwrap();
        self.until(&format!("seq {seq}"), |history| history.view.seq().0 >= seq).await;
        assert_eq!(self.history.text(), state);
    }
}
