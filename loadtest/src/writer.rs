//! Synthetic workers: connections that hold many runs and write their scripts by the clock.
//!
//! Open loop: a token is sent when it is due, whatever became of the ones before. If the node takes them slower, they wait
//! here or in the socket, and the time they wait is in every figure. One task per thread sends for all its connections; a
//! clock in a thread of its own wakes it, because the runtime's timers count in whole milliseconds.

use crate::corpus::Script;
use crate::meter::{Kind, micros};
use crate::shared::{Local, Phase};
use crate::socket::{Reader, Socket, Target, Writer};
use crate::wire;
use anyhow::{Context as _, bail, ensure};
use everthread_protocol::AgentName;
use everthread_protocol::worker_frame::{Offer, OnLost, Work, WorkerFrame, WorkerHello, WorkerServerFrame};
use std::cell::RefCell;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::io::Write as _;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// The clock looks this often whether the start is set.
const LOOK: Duration = Duration::from_millis(2);
/// Bytes that may wait for one socket: beyond them the node is so far behind that the run has failed.
const WAITING_BYTES_MAX: usize = 256 * 1024 * 1024;

/// How workers write.
#[derive(Debug, Clone, Copy)]
pub struct Manner {
    /// Tokens are gathered for this long and written together; zero: each by itself, at once.
    pub gather: Duration,
    /// Batches of one run that may be under way; what is due meanwhile is gathered. 0: no bound.
    pub under_way_max: usize,
    /// Tokens of one batch.
    pub block_tokens_max: u64,
    /// Between two looks at what is due, at least.
    pub tick: Duration,
}

struct Batch {
    number: u64,
    handed_us: u64,
    from: u64,
    to: u64,
}

struct Run {
    session: usize,
    script: Arc<Script>,
    connection: usize,
    /// From the run's id to the number of the batch, as it stands in a frame.
    middle: String,
    next: u64,
    batch: u64,
    under_way: VecDeque<Batch>,
    /// When it last wrote, in µs after the start.
    wrote_us: Option<u64>,
    /// It has something to write, but too much is under way.
    is_held: bool,
    has_ended: bool,
}

/// All worker connections of a thread.
pub struct Workers {
    local: Rc<Local>,
    manner: Manner,
    state: RefCell<State>,
    clock: Arc<Clock>,
}

struct State {
    runs: Vec<Run>,
    by_id: HashMap<String, usize>,
    writers: Vec<Writer>,
    /// Whose turn it is when, in µs after the start.
    due: BinaryHeap<Reverse<(u64, usize)>>,
    dirty: Vec<bool>,
    by_name: HashMap<String, usize>,
}

/// Wakes the sender when something is due.
#[derive(Debug, Default)]
struct Clock {
    /// In µs after the start.
    next: AtomicU64,
    wake: Notify,
}

impl Workers {
    /// No connections yet.
    pub fn new(local: Rc<Local>, manner: Manner) -> Workers {
        let sessions = local.shared.sessions.iter().enumerate();
        let by_name = sessions.map(|(index, session)| (session.name.as_str().to_owned(), index)).collect();
        let state = State {
            runs: Vec::new(),
            by_id: HashMap::new(),
            writers: Vec::new(),
            due: BinaryHeap::new(),
            dirty: Vec::new(),
            by_name,
        };
        Workers { local, manner, state: RefCell::new(state), clock: Arc::default() }
    }

    /// Connects and offers `capacity` for one agent; what reads that connection.
    pub async fn join(
        self: &Rc<Self>,
        target: &Target,
        name: &str,
        agent: &AgentName,
        capacity: u32,
    ) -> anyhow::Result<Connection> {
        let socket = Socket::connect(target, "/v1/worker").await.context("a worker cannot join")?;
        let (reader, mut writer) = socket.split();
        let hello = WorkerHello {
            id: "1".parse()?,
            token: None,
            worker: name.parse()?,
            agents: vec![Offer { name: agent.clone(), capacity, on_lost: OnLost::default() }],
            runs: Vec::new(),
        };
        writer.queue(WorkerFrame::Hello(hello).encode().as_bytes());
        ensure!(writer.flush()?, "a new socket takes nothing");
        let mut state = self.state.borrow_mut();
        state.writers.push(writer);
        state.dirty.push(false);
        Ok(Connection { workers: self.clone(), number: state.writers.len() - 1, reader })
    }

    /// Sends what is due, until everything is over.
    pub async fn send(self: Rc<Self>) -> anyhow::Result<()> {
        let mut phase = self.local.shared.phase.subscribe();
        let _phase = phase.wait_for(|phase| *phase >= Phase::Begun).await?.to_owned();
        let start = *self.local.shared.start.get().context("no start")?;
        {
            let mut state = self.state.borrow_mut();
            let state = &mut *state;
            let first =
                state.runs.iter().enumerate().map(|(index, run)| Reverse((run.script.due_us(0), index)));
            state.due = first.collect();
        }
        self.spawn_clock(start)?;
        loop {
            let next = self.send_due(start)?;
            self.clock.next.store(next, Ordering::Release);
            tokio::select! {
                biased;
                () = self.clock.wake.notified() => {}
                over = phase.wait_for(|phase| *phase == Phase::Over) => { let _over = over?; return Ok(()); }
            }
        }
    }

    /// A thread, because a sleeping thread is woken to some tens of µs; it ends with the last [`Workers`].
    fn spawn_clock(&self, start: Instant) -> anyhow::Result<()> {
        let (clock, tick) = (Arc::downgrade(&self.clock), self.manner.tick);
        let run = move || {
            loop {
                let Some(clock) = clock.upgrade() else { return };
                let next = start + Duration::from_micros(clock.next.load(Ordering::Acquire));
                let now = Instant::now();
                let wait = if next <= now {
                    clock.wake.notify_one();
                    tick
                } else {
                    (next - now).min(LOOK)
                };
                drop(clock);
                std::thread::sleep(wait);
            }
        };
        std::thread::Builder::new().name("clock".into()).spawn(run)?;
        Ok(())
    }

    /// Sends what is due by now; when something is due next, in µs after the start.
    fn send_due(&self, start: Instant) -> anyhow::Result<u64> {
        let mut state = self.state.borrow_mut();
        let state = &mut *state;
        let now = Instant::now();
        let next = if now < start {
            0
        } else {
            let now = micros(now - start);
            while let Some(Reverse((at, index))) = state.due.peek().copied() {
                if at > now {
                    break;
                }
                state.due.pop();
                self.turn(state, index, now)?;
            }
            state.due.peek().map_or(u64::MAX / 2, |Reverse((at, _))| *at)
        };
        state.flush()?;
        Ok(next)
    }

    /// A run's turn: writes what is due, and says when it is due again.
    fn turn(&self, state: &mut State, index: usize, now: u64) -> anyhow::Result<()> {
        let run = &mut state.runs[index];
        while run.next < run.script.tokens && run.script.due_us(run.next) <= now {
            if self.manner.under_way_max > 0 && run.under_way.len() >= self.manner.under_way_max {
                run.is_held = true;
                return Ok(());
            }
            let gathers = self.manner.gather > Duration::ZERO || self.manner.under_way_max == 1;
            let end = run.script.block_end(run.next).min(run.next + self.manner.block_tokens_max);
            let mut to = run.next + 1;
            while gathers && to < end && run.script.due_us(to) <= now {
                to += 1;
            }
            self.write(index, run, &mut state.writers, to, now)?;
            state.dirty[run.connection] = true;
        }
        if run.next == run.script.tokens {
            if !run.has_ended {
                run.has_ended = true;
                run.batch += 1;
                let (number, middle) = (run.batch, &run.middle);
                let end = format!(
                    r#"{{"t":"end","id":"{index}.{number}{middle}{number}}},"outcome":"completed"}}"#
                );
                state.writers[run.connection].queue(end.as_bytes());
                state.dirty[run.connection] = true;
            }
            return Ok(());
        }
        let gathered = run.wrote_us.map_or(0, |wrote| wrote + micros(self.manner.gather));
        state.due.push(Reverse((run.script.due_us(run.next).max(gathered), index)));
        Ok(())
    }

    /// Queues an append of the tokens up to `to`.
    fn write(
        &self,
        index: usize,
        run: &mut Run,
        writers: &mut [Writer],
        to: u64,
        now: u64,
    ) -> anyhow::Result<()> {
        let shared = &self.local.shared;
        let (from, number) = (run.next, run.batch + 1);
        let writer = &mut writers[run.connection];
        writer.queue_with(|out| {
            // Writing to a Vec cannot fail.
            drop(write!(out, r#"{{"t":"append","id":"{index}.{number}{}{number}}},"entries":"#, run.middle));
            run.script.write_block(out, from, to);
            out.push(b'}');
        })?;
        ensure!(writer.waiting() < WAITING_BYTES_MAX, "the node takes what is sent far too slowly");
        shared.sessions[run.session].hand(to, now);
        run.under_way.push_back(Batch { number, handed_us: now, from, to });
        (run.next, run.batch, run.wrote_us) = (to, number, Some(now));
        let mut window = self.local.window.borrow_mut();
        window.counts.tokens_sent += to - from;
        window.counts.batches_sent += 1;
        shared.board.tokens_sent.fetch_add(to - from, Ordering::Relaxed);
        for due in (from..to).map(|token| run.script.due_us(token)).filter(|due| *due >= shared.warmup_us) {
            window.record(Kind::SendLate, now.saturating_sub(due));
        }
        Ok(())
    }

    fn on_frame(&self, connection: usize, frame: &[u8], arrived: Instant) -> anyhow::Result<()> {
        if let Some((run, _, batch)) = wire::ack(frame) {
            return self.on_ack(crate::corpus::index(run), batch, arrived);
        }
        if frame.starts_with(br#"{"t":"work""#) {
            // Apart from the others: a tagged enum cannot borrow the messages as they stand.
            return self.on_work(connection, &serde_json::from_slice(frame)?);
        }
        let mut state = self.state.borrow_mut();
        match serde_json::from_slice(frame)? {
            WorkerServerFrame::Ping {} => {
                state.writers[connection].queue(br#"{"t":"pong"}"#);
                state.writers[connection].flush()?;
            }
            WorkerServerFrame::Ok(ack) => {
                let index = state.by_id.get(ack.run.as_str()).copied();
                drop(state);
                self.on_ack(index.context("an ack of a run that is not ours")?, ack.batch, arrived)?;
            }
            // Nothing is kept here.
            WorkerServerFrame::Safe { .. } => {}
            WorkerServerFrame::Welcome(_) => self.local.shared.count(&self.local.shared.joined),
            _ => bail!("the worker got {}", String::from_utf8_lossy(frame)),
        }
        Ok(())
    }

    fn on_work(&self, connection: usize, work: &Work<'_>) -> anyhow::Result<()> {
        let shared = &self.local.shared;
        ensure!(shared.start.get().is_none(), "a run was handed out after the start: it moved");
        let mut state = self.state.borrow_mut();
        let session = *state.by_name.get(work.session.as_str()).context("work of a session not ours")?;
        let index = state.runs.len();
        state.by_id.insert(work.run.as_str().to_owned(), index);
        let (run, fence, incarnation) = (&work.run, work.fence, work.attempt);
        let middle =
            format!(r#"","run":"{run}","fence":"{fence}","producer":{{"incarnation":{incarnation},"batch":"#);
        state.runs.push(Run {
            session,
            script: shared.sessions[session].script.clone(),
            connection,
            middle,
            next: 0,
            batch: 0,
            under_way: VecDeque::new(),
            wrote_us: None,
            is_held: false,
            has_ended: false,
        });
        shared.count(&shared.taken);
        Ok(())
    }

    fn on_ack(&self, index: usize, batch: u64, arrived: Instant) -> anyhow::Result<()> {
        let mut state = self.state.borrow_mut();
        let state = &mut *state;
        let run = state.runs.get_mut(index).context("an ack of a run that is not ours")?;
        ensure!(batch <= run.batch, "batch {batch} was confirmed, but not sent");
        let shared = &self.local.shared;
        let arrived = shared.micros(arrived).context("an ack before the start")?;
        let mut window = self.local.window.borrow_mut();
        while let Some(first) = run.under_way.front().filter(|first| first.number <= batch) {
            for due in (first.from..first.to).map(|token| run.script.due_us(token)) {
                if due >= shared.warmup_us {
                    window.record(Kind::Ack, arrived.saturating_sub(due));
                }
            }
            if run.script.due_us(first.from) >= shared.warmup_us {
                window.record(Kind::AckFromSocket, arrived.saturating_sub(first.handed_us));
            }
            shared.board.tokens_acked.fetch_add(first.to - first.from, Ordering::Relaxed);
            shared.board.batches_acked.fetch_add(1, Ordering::Relaxed);
            run.under_way.pop_front();
        }
        if run.has_ended && batch == run.batch {
            shared.count(&shared.ended);
        }
        drop(window);
        if std::mem::take(&mut run.is_held) {
            self.turn(state, index, arrived)?;
        }
        Ok(())
    }
}

impl State {
    fn flush(&mut self) -> anyhow::Result<()> {
        for (writer, dirty) in self.writers.iter_mut().zip(&mut self.dirty) {
            if *dirty {
                *dirty = !writer.flush()?;
            }
        }
        Ok(())
    }
}

/// What reads one of the connections.
pub struct Connection {
    workers: Rc<Workers>,
    number: usize,
    reader: Reader,
}

impl Connection {
    /// Reads until everything is over.
    pub async fn read(mut self) -> anyhow::Result<()> {
        let mut phase = self.workers.local.shared.phase.subscribe();
        let over = phase.wait_for(|phase| *phase == Phase::Over);
        tokio::pin!(over);
        loop {
            let (workers, mut arrived) = (&self.workers, None);
            let mut on_frame = |frame: &[u8]| {
                let arrived = *arrived.get_or_insert_with(Instant::now);
                workers.on_frame(self.number, frame, arrived)
            };
            tokio::select! {
                biased;
                read = self.reader.pump(&workers.local.scratch, usize::MAX, &mut on_frame) => {
                    read?.context("the node hung up on a worker")?;
                    // What was held back until an ack goes out at once.
                    let mut state = workers.state.borrow_mut();
                    state.flush()?;
                    let next = state.due.peek().map_or(u64::MAX, |Reverse((at, _))| *at);
                    workers.clock.next.fetch_min(next, Ordering::AcqRel);
                }
                over = &mut over => { let _over = over?; return Ok(()); }
            }
        }
    }
}
