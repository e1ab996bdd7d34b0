//! An agent's worker, frame by frame.

use super::socket::{Heard, Socket};
use serde_json::{Value, json};
use std::net::SocketAddr;

/// A connection of a worker.
pub struct Worker {
    pub socket: Socket,
    /// Runs it still holds, as `welcome` said.
    pub kept: Vec<String>,
}

/// A run that a worker was given, and how far it has written.
#[derive(Debug, Clone)]
pub struct Job {
    pub work: Value,
    pub run: String,
    pub session: String,
    pub fence: String,
    pub attempt: u64,
    pub batch: u64,
    length: usize,
}

impl Worker {
    /// Serves `agent` with room for `capacity` runs.
    pub async fn join(address: SocketAddr, worker: &str, agent: &str, capacity: u32) -> Self {
        Self::rejoin(address, worker, agent, capacity, &[]).await
    }

    /// Comes back with runs.
    pub async fn rejoin(
        address: SocketAddr,
        worker: &str,
        agent: &str,
        capacity: u32,
        jobs: &[&Job],
    ) -> Self {
        let offer = json!({ "name": agent, "capacity": capacity });
        Self::join_with(address, worker, offer, jobs).await
    }

    /// Serves `agent`, whose runs go on with another worker if this one dies.
    pub async fn join_retrying(address: SocketAddr, worker: &str, agent: &str, capacity: u32) -> Self {
        let offer = json!({ "name": agent, "capacity": capacity, "on_lost": "retry" });
        Self::join_with(address, worker, offer, &[]).await
    }

    async fn join_with(address: SocketAddr, worker: &str, offer: Value, jobs: &[&Job]) -> Self {
        let mut socket = Socket::open(address, "/v1/worker").await;
        let held =
            jobs.iter().map(|job| json!({ "session": job.session, "run": job.run, "fence": job.fence }));
        let runs: Vec<Value> = held.collect();
        let agents = json!([offer]);
        let hello = json!({ "t": "hello", "worker": worker, "agents": agents, "runs": runs });
        let welcome = socket.ask(hello).await;
        assert_eq!(welcome["t"], "welcome", "{welcome}");
        let kept = serde_json::from_value(welcome["kept"].clone()).unwrap();
        Self { socket, kept }
    }

    /// The next run it is given.
    pub async fn work(&mut self) -> Job {
        let work = self.socket.wait(|frame| frame["t"] == "work").await;
        Job::of(work)
    }

    /// The next run it is given, whenever that is; acks are dropped, errors are not expected.
    pub async fn work_patiently(&mut self) -> Job {
        loop {
            match self.socket.hear_whenever().await {
                Heard::Frame(frame) if frame["t"] == "work" => return Job::of(frame),
                Heard::Frame(frame) => assert_ne!(frame["t"], "error", "{frame}"),
                Heard::Closed(code) => panic!("closed with {code:?}"),
            }
        }
    }

    /// Writes a block and waits for the answer.
    pub async fn append(&mut self, job: &mut Job, entries: Value) -> Value {
        let frame = job.append(entries);
        self.socket.ask(frame).await
    }

    /// Adds to the run's one message, which it begins if need be.
    pub async fn say(&mut self, job: &mut Job, text: &str) {
        let frame = job.say(text);
        let ack = self.socket.ask(frame).await;
        assert_eq!(ack["t"], "ok", "{ack}");
    }

    /// Ends a run.
    pub async fn end(&mut self, job: &mut Job, outcome: &str) -> Value {
        let frame = job.end(outcome);
        self.socket.ask(frame).await
    }

    /// The control with this id, as it is told.
    pub async fn told(&mut self, control: &str) -> Value {
        self.socket.wait(|frame| frame["t"] == "control" && frame["control"] == control).await
    }

    /// The next control of a kind, as it is told.
    pub async fn told_to(&mut self, kind: &str) -> Value {
        self.socket.wait(|frame| frame["t"] == "control" && frame["kind"] == kind).await
    }

    /// Learns that a run is not its own any more.
    pub async fn fenced(&mut self, run: &str) {
        self.socket.wait(|frame| frame["t"] == "fenced" && frame["run"] == run).await;
    }

    /// Says what became of a control; the answer.
    pub async fn settle(&mut self, job: &mut Job, control: &str, outcome: &str) -> Value {
        let frame = job.settle(control, outcome, None);
        self.socket.ask(frame).await
    }

    /// Waits for people; the answer.
    pub async fn suspend(&mut self, job: &mut Job, approvals: Value) -> Value {
        let frame = job.suspend(approvals);
        self.socket.ask(frame).await
    }

    /// Lives on while something else goes on: answers pings and keeps what it is told.
    pub async fn meanwhile<T>(&mut self, other: impl Future<Output = T>) -> T {
        tokio::select! {
            biased;
            done = other => done,
            code = self.socket.hear_on() => panic!("closed with {code:?}"),
        }
    }

    /// Gets the next run, writes `pieces`, and completes it; its id.
    pub async fn serve(&mut self, pieces: &[&str]) -> String {
        let mut job = self.work().await;
        for piece in pieces {
            self.say(&mut job, piece).await;
        }
        let ack = self.end(&mut job, "completed").await;
        assert_eq!(ack["t"], "ok", "{ack}");
        job.run
    }
}

impl Job {
    pub fn of(work: Value) -> Self {
        let text = |name: &str| work[name].as_str().unwrap().to_owned();
        Self {
            run: text("run"),
            session: text("session"),
            fence: text("fence"),
            attempt: work["attempt"].as_u64().unwrap(),
            batch: 0,
            length: 0,
            work,
        }
    }

    fn numbered(&mut self, mut frame: Value) -> Value {
        self.batch += 1;
        frame["run"] = self.run.clone().into();
        frame["fence"] = self.fence.clone().into();
        frame["producer"] = json!({ "incarnation": self.attempt, "batch": self.batch });
        frame
    }

    /// The next block.
    pub fn append(&mut self, entries: Value) -> Value {
        self.numbered(json!({ "t": "append", "entries": entries }))
    }

    /// The block that adds `text`.
    pub fn say(&mut self, text: &str) -> Value {
        let mut entries = Vec::new();
        if self.length == 0 {
            entries.push(json!({ "type": "message.start", "message": "m", "role": "assistant" }));
            entries.push(json!({ "type": "part.start", "message": "m", "part": "p", "kind": "text" }));
        }
        let offset = self.length;
        entries.push(
            json!({ "type": "part.append", "message": "m", "part": "p", "offset": offset, "text": text }),
        );
        self.length += text.len();
        self.append(entries.into())
    }

    /// The end.
    pub fn end(&mut self, outcome: &str) -> Value {
        let mut frame = json!({ "t": "end", "outcome": outcome });
        if outcome == "failed" {
            frame["error"] = json!({ "code": "model_error", "message": "no answer" });
        }
        self.numbered(frame)
    }

    /// What became of a control.
    pub fn settle(&mut self, control: &str, outcome: &str, reason: Option<&str>) -> Value {
        let mut frame = json!({ "t": "settle", "control": control, "outcome": outcome });
        if let Some(reason) = reason {
            frame["reason"] = reason.into();
        }
        self.numbered(frame)
    }

    /// What the run waits for.
    pub fn suspend(&mut self, approvals: Value) -> Value {
        self.numbered(json!({ "t": "suspend", "approvals": approvals }))
    }

    /// Goes on at the end of what earlier attempts wrote; the text so far.
    pub fn go_on(&mut self) -> String {
        let messages = self.work["messages"].as_array().unwrap();
        let own = messages.iter().find(|message| message["run"] == self.run.as_str()).unwrap();
        assert_eq!(
            (&own["status"], &own["parts"][0]["status"]),
            (&json!("streaming"), &json!("open")),
            "{own}"
        );
        let text = own["parts"][0]["value"].as_str().unwrap().to_owned();
        self.length = text.len();
        text
    }

    /// Texts of the messages that came with the run and are its input, in the order of the input.
    pub fn input_texts(&self) -> Vec<&str> {
        let messages = self.work["messages"].as_array().unwrap();
        let of = |id: &Value| messages.iter().find(|m| m["message"] == *id && m["run"].is_null()).unwrap();
        let input = self.work["input"].as_array().unwrap();
        input.iter().map(|id| of(id)["parts"][0]["value"].as_str().unwrap()).collect()
    }

    /// A child's request.
    pub fn start_child(&mut self, child: &str, agent: &str) -> Value {
        let parts = json!([{ "kind": "text", "value": "look" }]);
        self.numbered(json!({ "t": "start_child", "child": child, "agent": agent, "parts": parts }))
    }
}
