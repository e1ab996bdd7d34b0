//! A worker that does at once what it is told: it settles what steers it, and ends what is cancelled. Meanwhile each of its
//! runs writes a little.

use super::plan::{Kind, Phase, Plan};
use crate::shared::Start;
use crate::socket::{Socket, Target, Turn};
use anyhow::{Context as _, bail};
use everthread_protocol::entry::{ControlKind, ControlOutcome, Outcome};
use everthread_protocol::worker_frame::{
    Append, AppendTag, End, Offer, OnLost, Producer, Settle, Work, WorkerControl, WorkerFrame, WorkerHello,
    WorkerServerFrame,
};
use everthread_protocol::{AgentName, Fence, RequestId, RunId};
use serde_json::value::RawValue;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// What is said with each block.
const WORDS: &str = "a few words ";

struct Run {
    fence: Fence,
    incarnation: u64,
    /// Which session it is in.
    session: usize,
    batch: u64,
    /// Bytes written.
    length: usize,
}

/// A worker's connection.
pub struct Worker {
    socket: Socket,
    plan: Arc<Plan>,
    start: Arc<Start>,
    taken: Arc<watch::Sender<usize>>,
    runs: HashMap<RunId, Run>,
}

impl Worker {
    /// Connects and offers `capacity` for one agent.
    pub async fn join(
        target: &Target,
        name: &str,
        agent: &AgentName,
        capacity: u32,
        plan: Arc<Plan>,
        start: Arc<Start>,
        taken: Arc<watch::Sender<usize>>,
    ) -> anyhow::Result<Worker> {
        let mut socket = Socket::connect(target, "/v1/worker").await?;
        let hello = WorkerHello {
            id: "1".parse()?,
            token: None,
            worker: name.parse()?,
            agents: vec![Offer { name: agent.clone(), capacity, on_lost: OnLost::default() }],
            runs: Vec::new(),
        };
        socket.send(&WorkerFrame::Hello(hello).encode()).await?;
        Ok(Worker { socket, plan, start, taken, runs: HashMap::new() })
    }

    /// Serves until all is over. Every run writes a block each `every`, spread over that time; none if it is zero.
    pub async fn run(mut self, every: Duration, mut phase: watch::Receiver<Phase>) -> anyhow::Result<()> {
        const PARTS: u64 = 64;
        let pause = if every.is_zero() { Duration::from_secs(3600) } else { every / 64 };
        let mut tick = tokio::time::interval(pause.max(Duration::from_millis(1)));
        let mut part = 0;
        loop {
            tokio::select! {
                turn = self.socket.turn() => if let Turn::Message(message) = turn? {
                    self.on_message(&message.context("the node hung up on the worker")?)?;
                },
                _ = tick.tick() => {
                    part = (part + 1) % PARTS;
                    let due = |run: &Run| run.session as u64 % PARTS == part;
                    let due: Vec<RunId> = self.runs.iter().filter(|(_, run)| due(run)).map(|(id, _)| id.clone()).collect();
                    due.iter().try_for_each(|run| self.say(run))?;
                }
                _ = phase.wait_for(|phase| *phase == Phase::Over) => return Ok(()),
            }
        }
    }

    fn on_message(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        if bytes.starts_with(br#"{"t":"work""#) {
            return self.on_work(serde_json::from_slice(bytes)?);
        }
        match serde_json::from_slice(bytes)? {
            WorkerServerFrame::Ping {} => self.send(&WorkerFrame::Pong {}),
            WorkerServerFrame::Ok(_) | WorkerServerFrame::Safe { .. } | WorkerServerFrame::Welcome(_) => {
                Ok(())
            }
            WorkerServerFrame::Control(control) => self.on_control(control),
            _ => bail!("the worker got {}", String::from_utf8_lossy(bytes)),
        }
    }

    fn on_work(&mut self, work: Work<'_>) -> anyhow::Result<()> {
        let number = work.session.as_str().rsplit_once('-').and_then(|(_, number)| number.parse().ok());
        let session = number.context("work of a session that is not ours")?;
        let (fence, incarnation) = (work.fence, u64::from(work.attempt));
        self.runs.insert(work.run.clone(), Run { fence, incarnation, session, batch: 0, length: 0 });
        self.say(&work.run)?;
        self.taken.send_modify(|taken| *taken += 1);
        Ok(())
    }

    fn say(&mut self, id: &RunId) -> anyhow::Result<()> {
        let Some(run) = self.runs.get_mut(id) else { return Ok(()) };
        let begin = if run.length == 0 {
            r#"{"type":"message.start","message":"m","role":"assistant"},{"type":"part.start","message":"m","part":"p","kind":"text"},"#
        } else {
            ""
        };
        let offset = run.length;
        let entries = format!(
            r#"[{begin}{{"type":"part.append","message":"m","part":"p","offset":{offset},"text":"{WORDS}"}}]"#
        );
        run.length += WORDS.len();
        let entries = RawValue::from_string(entries)?;
        let (t, fence, (request, producer)) = (AppendTag::Append, run.fence, run.next()?);
        let (run, ack, traceparent) = (id.clone(), None, None);
        let append = Append { t, id: request, run, fence, producer, ack, traceparent, entries: &entries };
        self.send(&WorkerFrame::Append(append))
    }

    fn on_control(&mut self, control: WorkerControl) -> anyhow::Result<()> {
        let WorkerControl { run: id, control, kind, .. } = control;
        let Some(run) = self.runs.get_mut(&id) else { return Ok(()) };
        let (session, fence) = (run.session, run.fence);
        let is_first = |kind| self.start.get().is_some_and(|start| self.plan.told(kind, session, *start));
        let frame = match kind {
            ControlKind::Steer if is_first(Kind::Steer) => {
                let (id, run, (outcome, (request, producer))) =
                    (id, fence, (ControlOutcome::Applied, run.next()?));
                let settle =
                    Settle { id: request, run: id, fence: run, producer, control, outcome, reason: None };
                WorkerFrame::Settle(settle)
            }
            ControlKind::Cancel if is_first(self.plan.cancel_of(session)) => {
                let (outcome, (request, producer)) = (Outcome::Cancelled, run.next()?);
                self.runs.remove(&id);
                let (error, usage) = (None, None);
                WorkerFrame::End(End { id: request, run: id, fence, producer, outcome, error, usage })
            }
            ControlKind::Steer | ControlKind::Cancel => return Ok(()),
            other => bail!("nobody asked for {other:?}"),
        };
        self.send(&frame)
    }

    fn send(&mut self, frame: &WorkerFrame<'_>) -> anyhow::Result<()> {
        self.socket.queue(&frame.encode());
        self.socket.flush()?;
        Ok(())
    }
}

impl Run {
    fn next(&mut self) -> anyhow::Result<(RequestId, Producer)> {
        self.batch += 1;
        let producer = Producer { incarnation: self.incarnation, batch: self.batch };
        Ok((format!("{}", self.batch).parse()?, producer))
    }
}
