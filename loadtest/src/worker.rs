//! The synthetic worker: one connection that holds many runs and writes their scripts by the clock.
//!
//! Open loop: a block is sent when it is due, whatever became of the ones before. If the node takes them slower, they wait
//! here or in the socket, and the time they wait is in every figure.

use crate::measure::Measure;
use crate::script::{Script, Start};
use crate::socket::{Socket, Target, Turn};
use anyhow::{Context as _, bail, ensure};
use everthread_protocol::entry::Outcome;
use everthread_protocol::worker_frame::{
    Append, AppendTag, End, Offer, OnLost, Producer, Work, WorkerFrame, WorkerHello, WorkerServerFrame,
};
use everthread_protocol::{AgentName, Fence, RequestId, RunId, SessionId};
use serde_json::value::RawValue;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::watch;

/// Scripts by session, shared by all workers.
pub type Scripts = Arc<HashMap<SessionId, Arc<Script>>>;

/// What a worker shares with the scenario.
#[derive(Clone)]
pub struct Shared {
    /// What is to be written where.
    pub scripts: Scripts,
    /// Counts the runs that were handed out.
    pub taken: Arc<watch::Sender<usize>>,
    /// Tells when to begin.
    pub begin: watch::Receiver<Option<Instant>>,
    /// The same instant, for measuring.
    pub start: Arc<Start>,
    /// Where acks are measured.
    pub measure: Arc<Measure>,
}

struct Run {
    id: RunId,
    fence: Fence,
    incarnation: u64,
    script: Arc<Script>,
    /// Blocks that were sent; one more with the end.
    sent: usize,
    /// Batches that were confirmed.
    acked: u64,
}

/// A worker's connection.
pub struct Worker {
    socket: Socket,
    shared: Shared,
    runs: Vec<Run>,
    by_id: HashMap<RunId, usize>,
    /// Whose turn it is next.
    due: BinaryHeap<Reverse<(Instant, usize)>>,
    ended: usize,
}

impl Worker {
    /// Connects and offers `capacity` for one agent.
    pub async fn join(
        target: &Target,
        name: &str,
        agent: &AgentName,
        capacity: u32,
        shared: Shared,
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
        Ok(Worker {
            socket,
            shared,
            runs: Vec::new(),
            by_id: HashMap::new(),
            due: BinaryHeap::new(),
            ended: 0,
        })
    }

    /// Serves until every run of this connection has ended; for ever if it never gets one.
    pub async fn run(mut self) -> anyhow::Result<()> {
        let mut begin = self.shared.begin.clone();
        // What this worker has acted upon: the value itself may be there before its change is seen.
        let mut has_begun = false;
        loop {
            let now = Instant::now();
            self.send_due(now)?;
            let next = self.due.peek().map(|Reverse((at, _))| (*at).into());
            tokio::select! {
                turn = self.socket.turn() => if let Turn::Message(message) = turn? {
                    self.on_message(&message.context("the node hung up on the worker")?)?;
                },
                () = tokio::time::sleep_until(next.unwrap_or_else(|| now.into())), if next.is_some() => {}
                changed = begin.changed(), if !has_begun => {
                    changed.context("the scenario is gone")?;
                    self.schedule(begin.borrow_and_update().context("no start")?);
                    has_begun = true;
                }
            }
            if !self.runs.is_empty() && self.ended == self.runs.len() {
                return Ok(());
            }
        }
    }

    fn schedule(&mut self, start: Instant) {
        let first =
            self.runs.iter().enumerate().map(|(index, run)| Reverse((start + run.script.due(0), index)));
        self.due = first.collect();
    }

    /// Sends what is due by now.
    fn send_due(&mut self, now: Instant) -> anyhow::Result<()> {
        let Some(start) = self.shared.start.get().copied() else { return Ok(()) };
        while let Some(Reverse((_, index))) = self.due.peek().copied().filter(|Reverse((at, _))| *at <= now) {
            self.due.pop();
            let run = &mut self.runs[index];
            let producer = Producer { incarnation: run.incarnation, batch: run.sent as u64 + 1 };
            let id: RequestId = format!("{}", run.sent).parse()?;
            if run.sent == run.script.blocks() {
                let (run, fence) = (run.id.clone(), run.fence);
                let end =
                    End { id, run, fence, producer, outcome: Outcome::Completed, error: None, usage: None };
                self.socket.queue(&WorkerFrame::End(end).encode());
                self.runs[index].sent += 1;
                continue;
            }
            let entries = RawValue::from_string(run.script.entries(run.sent))?;
            let (t, fence) = (AppendTag::Append, run.fence);
            let append = Append { t, id, run: run.id.clone(), fence, producer, entries: &entries };
            self.socket.queue(&WorkerFrame::Append(append).encode());
            run.script.hand(run.sent, start);
            self.socket.flush()?;
            run.sent += 1;
            self.due.push(Reverse((start + run.script.due(run.sent), index)));
        }
        self.socket.flush()?;
        Ok(())
    }

    fn on_message(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        if bytes.starts_with(br#"{"t":"work""#) {
            // Apart from the others: a tagged enum cannot borrow the messages as they stand.
            return self.on_work(serde_json::from_slice(bytes)?);
        }
        match serde_json::from_slice(bytes)? {
            WorkerServerFrame::Ping {} => {
                self.socket.queue(&WorkerFrame::Pong {}.encode());
                self.socket.flush()?;
            }
            WorkerServerFrame::Ok(ack) => self.on_ack(&ack.run, ack.batch)?,
            WorkerServerFrame::Welcome(_) => {}
            _ => bail!("the worker got {}", String::from_utf8_lossy(bytes)),
        }
        Ok(())
    }

    fn on_work(&mut self, work: Work<'_>) -> anyhow::Result<()> {
        ensure!(self.shared.start.get().is_none(), "a run was handed out after the start: it moved");
        let script = self.shared.scripts.get(&work.session).context("work of a session that is not ours")?;
        self.by_id.insert(work.run.clone(), self.runs.len());
        self.runs.push(Run {
            id: work.run,
            fence: work.fence,
            incarnation: u64::from(work.attempt),
            script: script.clone(),
            sent: 0,
            acked: 0,
        });
        self.shared.taken.send_modify(|taken| *taken += 1);
        Ok(())
    }

    fn on_ack(&mut self, run: &RunId, batch: u64) -> anyhow::Result<()> {
        let index = *self.by_id.get(run).context("an ack of a run that is not ours")?;
        let run = &mut self.runs[index];
        ensure!(batch == run.acked + 1, "batch {batch} was confirmed after {}", run.acked);
        run.acked = batch;
        let block = usize::try_from(batch)? - 1;
        if block == run.script.blocks() {
            self.ended += 1;
        } else if let Some(start) = self.shared.start.get() {
            self.shared.measure.acked(&run.script, block, *start);
        }
        Ok(())
    }
}
