//! A worker's connection: one task that hosts the runs it was given, writes their blocks, and passes controls on to it.
//!
//! Blocks of one run are written one after the other, those of different runs side by side. What a block's entries share
//! is checked once here; the bytes go to the store as they came. The store's answer, and nothing before it, is the ack.
//!
//! **Invariant:** a run is hosted here only under the fence that it was claimed or kept with.

mod controls;
mod hosted;
mod job;
mod parts;
mod safety;

use crate::Edge;
use crate::client::LINGER_MAX;
use crate::departure::{Guest, Role};
use crate::run_token::RunRight;
use crate::socket::{Inbound, Message, Outbox, ReadError};
use crate::tail::{STOPPED, Wake};
use controls::Delivery;
use everthread_control::{Assignment, Seat};
use everthread_protocol::error::{ErrorBody, close};
use everthread_protocol::frame::{Bye, ErrorFrame};
use everthread_protocol::limits::BLOCK_BYTES_MAX;
use everthread_protocol::worker_frame::{
    self, Held, PlainAppend, Settle, StartChild, Suspend, WorkerFrame, WorkerHello, WorkerServerFrame,
    WorkerWelcome,
};
use everthread_protocol::{
    AgentName, Code, Fault, PoolKey, RequestId, RunId, SessionKey, TenantId, WorkerId,
};
use everthread_store::{Renewal, Store};
use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use hosted::{Hosted, Queued, Watched};
use job::Job;
use std::collections::{HashMap, VecDeque};
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, Sleep};

/// How long a worker may take to say `hello`.
const HELLO_MAX: Duration = Duration::from_secs(10);
/// How long it may take to find out what a worker holds that comes back.
const GREET_MAX: Duration = Duration::from_secs(20);
/// A worker that has not been heard from for so many heartbeats gets no new runs until it is.
const SILENT_HEARTBEATS: u32 = 2;
/// Bytes of blocks that wait behind the one of their run that is being written; beyond it nothing more is read.
const QUEUED_BYTES_MAX: usize = 2 * 1024 * 1024;
/// Jobs of one connection at once; beyond it nothing more is read.
const JOBS_MAX: usize = 512;
/// How long it may take to carry out what a worker has asked before it is told good-bye.
const FINISH_MAX: Duration = Duration::from_millis(500);
/// How long the good-bye may take to be written.
const BYE_MAX: Duration = Duration::from_millis(200);
/// Rounds before the other tasks of the node have their turn.
const ROUNDS_MAX: usize = 8;
/// So much is written before the rounds are over.
const FLUSH_BYTES: usize = 64 * 1024;
/// Messages read in one round.
const MESSAGES_MAX: usize = 64;

/// Serves a worker's socket to its end, and sees to its runs after that.
pub async fn serve<S: Store>(
    edge: Edge<S>,
    inbound: Inbound,
    outbox: Outbox,
    token: Option<String>,
    guest: Guest,
) {
    let gauge = edge.metrics.connections.with_label_values(&["worker"]);
    gauge.inc();
    let (assign, assigned) = mpsc::channel(1);
    let connection = Connection {
        id: crate::put::fresh_id::<RequestId>().to_string(),
        edge,
        inbound,
        outbox,
        token,
        guest,
        goes: None,
        me: None,
        assign,
        assigned,
        seats: HashMap::new(),
        runs: HashMap::new(),
        watched: HashMap::new(),
        watches_made: 0,
        queued_bytes: 0,
        wake: Arc::default(),
        jobs: FuturesUnordered::new(),
        is_welcomed: false,
        is_draining: false,
        pings: 0,
        pongs: 0,
        deliveries: VecDeque::new(),
        opened: Instant::now(),
        heard: Instant::now(),
        is_silent: false,
    };
    connection.run().await;
    gauge.dec();
}

/// Who is connected.
#[derive(Clone)]
struct Me {
    tenant: TenantId,
    worker: WorkerId,
    /// With the token of a run: that run, and nothing else.
    right: Option<RunRight>,
}

struct Connection<S> {
    id: String,
    edge: Edge<S>,
    inbound: Inbound,
    outbox: Outbox,
    /// The token that came with the handshake.
    token: Option<String>,
    guest: Guest,
    /// Fires when it is to go; set when the node stops.
    goes: Option<Pin<Box<Sleep>>>,
    /// Set by `hello`.
    me: Option<Me>,
    assign: mpsc::Sender<Assignment>,
    assigned: mpsc::Receiver<Assignment>,
    seats: HashMap<AgentName, Arc<Seat>>,
    runs: HashMap<RunId, Hosted>,
    /// Sessions of hosted runs, by number.
    watched: HashMap<u32, Watched>,
    watches_made: u32,
    queued_bytes: usize,
    /// Marked with the numbers of watched sessions whose state changed.
    wake: Arc<Wake>,
    jobs: FuturesUnordered<BoxFuture<'static, Job>>,
    /// `welcome` is sent: nothing goes before it.
    is_welcomed: bool,
    /// The worker wants no new runs.
    is_draining: bool,
    /// Pings sent and answered: an answer shows that everything before the ping has arrived.
    pings: u64,
    pongs: u64,
    /// Controls that were sent and not confirmed yet, oldest first.
    deliveries: VecDeque<Delivery>,
    opened: Instant,
    heard: Instant,
    /// Its seats get nothing until it is heard again.
    is_silent: bool,
}

/// Why a connection ends.
enum End {
    /// The peer is gone or has said so.
    Gone,
    /// The peer is told this code.
    Close(u16),
}

impl<S: Store> Connection<S> {
    async fn run(mut self) {
        let token = self.edge.departures.token();
        let end = {
            let mut stopped = pin!(token.cancelled());
            // Polled once here: from now on it marks the wake.
            let marks = Waker::from(self.wake.clone());
            if stopped.as_mut().poll(&mut Context::from_waker(&marks)).is_ready() {
                self.wake.mark(STOPPED);
            }
            let mut tick = tokio::time::interval(self.edge.config.leases.heartbeat);
            tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
            poll_fn(|cx| self.poll(cx, &mut tick)).await
        };
        if let End::Close(code) = end {
            self.edge.metrics.closed("worker", code);
            self.say_bye(code).await;
        }
        self.leave();
    }

    /// The node stops. The worker goes when its time comes, and is given nothing until then.
    fn begin_to_go(&mut self) {
        self.seats.values().for_each(|seat| seat.drain());
        let goes_at = self.edge.departures.goes_at(&self.guest, Role::Worker);
        self.goes = goes_at.map(|at| Box::pin(tokio::time::sleep_until(at)));
    }

    async fn say_bye(&mut self, code: u16) {
        if code == close::DRAINING {
            // What is answered here need not be sent again elsewhere.
            drop(tokio::time::timeout(FINISH_MAX, self.finish()).await);
        }
        let after_ms = self.edge.departures.pause_ms(&self.guest, Role::Worker);
        self.outbox.text(WorkerServerFrame::Bye(Bye { code, reconnect: code >= 4500, after_ms }).encode());
        self.outbox.close(code);
        let written = tokio::time::timeout(BYE_MAX, async {
            self.outbox.flush()?;
            while !self.outbox.is_empty() {
                self.outbox.writable().await?;
                self.outbox.flush()?;
            }
            Ok::<_, std::io::Error>(())
        });
        // A peer that takes nothing learns it from the closed socket.
        if let Ok(Ok(())) = written.await {
            drop(tokio::time::timeout(LINGER_MAX, self.inbound.gone()).await);
        }
    }

    /// Hands out what was claimed for the worker, and carries out what it has asked.
    async fn finish(&mut self) {
        while let Ok(assignment) = self.assigned.try_recv() {
            self.on_assignment(assignment);
        }
        while let Some(job) = self.jobs.next().await {
            if self.on_job(job).is_err() {
                return;
            }
        }
    }

    /// Does whatever can be done, in rounds that pass by every source, until there is nothing more or others are to have
    /// their turn; then writes out what that has come to, all acks at once.
    fn poll(&mut self, cx: &mut Context<'_>, tick: &mut tokio::time::Interval) -> Poll<End> {
        for _ in 0..ROUNDS_MAX {
            let has_done = match self.round(cx, tick) {
                Ok(has_done) => has_done,
                Err(end) => return Poll::Ready(end),
            };
            if has_done && self.outbox.bytes() < FLUSH_BYTES {
                continue;
            }
            let was_full = self.outbox.bytes() >= QUEUED_BYTES_MAX;
            if self.outbox.flush().is_err() {
                return Poll::Ready(End::Gone);
            }
            // What was not read because too much was waiting is looked at now.
            if has_done || was_full && self.outbox.bytes() < QUEUED_BYTES_MAX {
                continue;
            }
            if self.outbox.is_empty() {
                return Poll::Pending;
            }
            match self.outbox.poll_writable(cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(_)) => return Poll::Ready(End::Gone),
                Poll::Pending => return Poll::Pending,
            }
        }
        if self.outbox.flush().is_err() {
            return Poll::Ready(End::Gone);
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// One round; false if there was nothing to do.
    fn round(&mut self, cx: &mut Context<'_>, tick: &mut tokio::time::Interval) -> Result<bool, End> {
        let mut has_done = false;
        if self.wake.poll_woken(cx).is_ready() {
            self.on_wake()?;
            has_done = true;
        }
        for _ in 0..MESSAGES_MAX {
            if !self.reads() {
                break;
            }
            let Poll::Ready(message) = self.inbound.poll_next(cx) else { break };
            self.on_message(message)?;
            has_done = true;
        }
        while let Poll::Ready(Some(assignment)) = self.assigned.poll_recv(cx) {
            self.on_assignment(assignment);
            has_done = true;
        }
        for _ in 0..JOBS_MAX {
            let Poll::Ready(Some(job)) = self.jobs.poll_next_unpin(cx) else { break };
            self.on_job(job)?;
            has_done = true;
        }
        if self.goes.as_mut().is_some_and(|goes| goes.as_mut().poll(cx).is_ready()) {
            return Err(End::Close(close::DRAINING));
        }
        if tick.poll_tick(cx).is_ready() {
            self.on_tick()?;
            has_done = true;
        }
        Ok(has_done)
    }

    /// Whether more is read. A worker that does not take its acks is not read either.
    fn reads(&mut self) -> bool {
        let reads = self.queued_bytes < QUEUED_BYTES_MAX
            && self.jobs.len() < JOBS_MAX
            && self.outbox.bytes() < QUEUED_BYTES_MAX;
        if !reads {
            // Whether it lives cannot be heard now. While it takes bytes it does; and if we are what is slow, it is not dead.
            let takes = self.outbox.bytes() >= QUEUED_BYTES_MAX;
            self.heard = if takes { self.heard.max(self.outbox.progress()) } else { Instant::now() };
        }
        reads
    }

    fn on_message(&mut self, message: Result<Message, ReadError>) -> Result<(), End> {
        self.heard = Instant::now();
        if std::mem::take(&mut self.is_silent) {
            self.seats.values().for_each(|seat| seat.set_silent(false));
        }
        match message {
            Ok(Message::Text(bytes)) => self.on_text(bytes),
            Ok(Message::Ping(payload)) => {
                self.outbox.pong(&payload);
                Ok(())
            }
            Ok(Message::Pong) => Ok(()),
            Ok(Message::Close) | Err(ReadError::Gone) => Err(End::Gone),
            Err(error @ ReadError::Protocol(_)) => {
                self.error(None, Fault::bad_request(error.to_string()));
                Err(End::Close(close::PROTOCOL))
            }
            Err(error @ ReadError::TooLarge) => {
                self.error(None, Fault::new(Code::TooLarge, error.to_string()));
                Err(End::Close(close::TOO_LARGE))
            }
        }
    }

    fn on_text(&mut self, bytes: bytes::Bytes) -> Result<(), End> {
        if self.me.is_some()
            && let Some(append) = PlainAppend::read(&bytes)
        {
            let (run, queued) = Queued::plain(append, &bytes);
            self.on_write(&run, queued);
            return Ok(());
        }
        let frame = match WorkerFrame::decode(&bytes) {
            Ok(frame) => frame,
            Err(fault) => {
                self.error(crate::client::id_of(&bytes), fault);
                return if self.me.is_some() { Ok(()) } else { Err(End::Close(close::PROTOCOL)) };
            }
        };
        match frame {
            WorkerFrame::Pong {} => self.on_pong(),
            WorkerFrame::Hello(hello) if self.me.is_none() => return self.on_hello(hello),
            WorkerFrame::Hello(hello) => {
                self.error(Some(hello.id.to_string()), Fault::bad_request("hello comes once"));
            }
            _ if self.me.is_none() => {
                self.error(crate::client::id_of(&bytes), Fault::bad_request("the first frame is hello"));
                return Err(End::Close(close::PROTOCOL));
            }
            WorkerFrame::Drain {} => {
                self.is_draining = true;
                self.seats.values().for_each(|seat| seat.drain());
            }
            WorkerFrame::Decline(decline) => self.on_decline(&decline),
            WorkerFrame::Append(append) => {
                let (run, queued) = Queued::append(append, &bytes);
                self.on_write(&run, queued);
            }
            WorkerFrame::End(worker_frame::End { run, id, .. })
            | WorkerFrame::Suspend(Suspend { run, id, .. })
            | WorkerFrame::Settle(Settle { run, id, .. })
            | WorkerFrame::StartChild(StartChild { run, id, .. }) => {
                self.on_write(&run, Queued::other(id, bytes.clone()));
            }
        }
        Ok(())
    }

    fn on_hello(&mut self, hello: WorkerHello) -> Result<(), End> {
        let token = hello.token.clone().or(self.token.take());
        let me = match self.identify(token.as_deref(), &hello) {
            Ok(me) => me,
            Err(fault) => {
                let close = if fault.code == Code::Forbidden { close::NOT_ALLOWED } else { close::TOKEN };
                self.error(Some(hello.id.to_string()), fault);
                return Err(End::Close(close));
            }
        };
        let capacity: u32 = hello.agents.iter().map(|agent| agent.capacity).sum();
        let (assign, assigned) = mpsc::channel(capacity.max(1) as usize);
        (self.assign, self.assigned) = (assign, assigned);
        self.me = Some(me.clone());
        let work = job::greet(self.edge.clone(), self.id.clone(), me, hello);
        self.jobs.push(Box::pin(work));
        Ok(())
    }

    fn identify(&self, token: Option<&str>, hello: &WorkerHello) -> Result<Me, Fault> {
        let auth = &self.edge.config.auth;
        let worker = hello.worker.clone();
        if let Some(right) = token.and_then(|token| auth.check_run_token(token)) {
            let right = right?;
            let is_it = |held: &Held| {
                held.session == right.session && held.run == right.run && held.fence == right.fence
            };
            if !hello.agents.is_empty() || !hello.runs.iter().all(is_it) {
                let message = "the token of a run is for that run alone: offer no agents, name only that run";
                return Err(Fault::new(Code::Forbidden, message));
            }
            return Ok(Me { tenant: right.tenant.clone(), worker, right: Some(right) });
        }
        let identity = auth.check(token, None, None, None)?;
        Ok(Me { tenant: identity.tenant, worker, right: None })
    }

    /// `hello` is done: the worker counts as alive, and what it still holds is known.
    fn on_greeted(&mut self, greeted: job::Greeted) {
        let job::Greeted { hello, kept } = greeted;
        let Some(me) = self.me.clone() else { return };
        for offer in &hello.agents {
            let pool = PoolKey { tenant: me.tenant.clone(), agent: offer.name.clone() };
            let occupied = kept.iter().filter(|kept| kept.agent == offer.name).count();
            let occupied = u32::try_from(occupied).unwrap_or(u32::MAX);
            let (worker, assign) = (me.worker.clone(), self.assign.clone());
            let seat = self.edge.dispatcher.seat(pool, worker, offer, occupied, assign);
            if self.is_draining {
                seat.drain();
            }
            self.seats.insert(offer.name.clone(), seat);
        }
        let leases = &self.edge.config.leases;
        let welcome = WorkerWelcome {
            id: hello.id,
            connection: self.id.clone(),
            node: self.edge.config.node.to_string(),
            heartbeat_ms: job::millis(leases.heartbeat),
            lease_ms: job::millis(leases.lease),
            block_bytes_max: BLOCK_BYTES_MAX,
            kept: kept.iter().map(|kept| kept.run.clone()).collect(),
        };
        self.outbox.text(WorkerServerFrame::Welcome(welcome).encode());
        self.is_welcomed = true;
        for kept in kept {
            self.host_kept(kept);
        }
    }

    fn on_tick(&mut self) -> Result<(), End> {
        let Some(me) = &self.me else {
            let is_late = self.opened.elapsed() > HELLO_MAX;
            return if is_late { Err(End::Close(close::PROTOCOL)) } else { Ok(()) };
        };
        if !self.is_welcomed {
            // It waits for us, and is not asked whether it lives.
            self.heard = Instant::now();
            let is_late = self.opened.elapsed() > HELLO_MAX + GREET_MAX;
            return if is_late { Err(End::Close(close::INTERNAL)) } else { Ok(()) };
        }
        if self.heard.elapsed() > self.edge.config.leases.lease {
            return Err(End::Close(close::STALLED));
        }
        if self.heard.elapsed() > self.edge.config.leases.heartbeat * SILENT_HEARTBEATS {
            self.is_silent = true;
            self.seats.values().for_each(|seat| seat.set_silent(true));
        }
        let me = me.clone();
        self.ping();
        // The lease runs from the worker's last sign of life, not from this node's last heartbeat.
        let left = self.edge.config.leases.lease.saturating_sub(self.heard.elapsed());
        let (edge, holder) = (self.edge.clone(), self.id.clone());
        let left_ms = job::millis(left);
        let renewal = |watched: &Watched| Renewal { key: watched.key.clone(), runs: Vec::new(), left_ms };
        let mut hosted: HashMap<u32, Renewal> =
            self.watched.iter().map(|(number, watched)| (*number, renewal(watched))).collect();
        for (run, held) in &self.runs {
            if let Some(renewal) = hosted.get_mut(&held.watch) {
                renewal.runs.push((run.clone(), held.fence));
            }
        }
        let hosted = hosted.into_iter().collect();
        self.jobs.push(Box::pin(job::renew(edge, me, holder, left, hosted)));
        self.on_safety_tick();
        Ok(())
    }

    fn ping(&mut self) {
        self.pings += 1;
        self.outbox.text(WorkerServerFrame::Ping {}.encode());
    }

    fn error(&mut self, id: Option<String>, fault: Fault) {
        self.edge.metrics.errors.with_label_values(&[fault.code.as_str()]).inc();
        self.outbox.text(WorkerServerFrame::Error(ErrorFrame { id, error: ErrorBody::from(fault) }).encode());
    }

    /// The socket is gone. The worker may come back, here or elsewhere, within the grace; else its runs are over.
    fn leave(&mut self) {
        // Whoever still holds a seat may not think that somebody sits there.
        self.seats.values().for_each(|seat| seat.drain());
        let Some(me) = self.me.take() else { return };
        if me.right.is_some() {
            // The run is its worker's still, or its lease ends.
            return;
        }
        let left = |(run, hosted): (RunId, Hosted)| Left {
            key: hosted.writing.key.clone(),
            run,
            attempt: hosted.attempt,
            is_handed: hosted.is_handed,
        };
        let mut runs: Vec<Left> = self.runs.drain().map(left).collect();
        // What was assigned and not looked at yet is this worker's too.
        self.assigned.close();
        while let Ok(Assignment { key, id, run, .. }) = self.assigned.try_recv() {
            runs.push(Left { key, run: id, attempt: run.attempts, is_handed: false });
        }
        let (edge, holder) = (self.edge.clone(), self.id.clone());
        if edge.departures.is_begun() {
            // It was asked to go, and goes on elsewhere: nobody is buried for that. If it does not come, its leases end.
            edge.tasks.clone().spawn(async move { never_sent(&edge, &me, runs).await });
            return;
        }
        let left = edge.config.leases.lease.saturating_sub(self.heard.elapsed());
        self.edge.tasks.spawn_until_stopped(async move {
            // Not less than a heartbeat: a newer connection of the worker must have had the time to show that it lives. If
            // there is none, the keeper sees to leases that end meanwhile.
            let pause = edge.config.leases.return_grace.min(left).max(edge.config.leases.heartbeat);
            tokio::time::sleep(pause).await;
            match edge.desk.store().bury(&me.tenant, &me.worker, &holder).await {
                Ok(true) => {}
                Ok(false) => return never_sent(&edge, &me, runs).await,
                Err(error) => {
                    tracing::warn!(worker = %me.worker, %error, "a dead worker's runs wait for their leases to end");
                    return;
                }
            }
            for Left { key, run, attempt, .. } in runs {
                // It may come back while this goes on: then its leases decide.
                if !matches!(edge.desk.store().holder(&me.tenant, &me.worker).await, Ok(None)) {
                    return;
                }
                match edge.desk.worker_died(&key, &run, &me.worker, attempt).await {
                    Ok(true) => edge.desk.counts().lease_closed(),
                    Ok(false) => {}
                    Err(failure) => {
                        tracing::warn!(%key, %run, %failure, "a dead worker's run waits for its lease to end");
                    }
                }
            }
        });
    }
}

/// A run of a connection that has ended.
struct Left {
    key: SessionKey,
    run: RunId,
    attempt: u32,
    /// Whether its `work` was sent.
    is_handed: bool,
}

/// The worker is back on another connection, where it has named the runs it knows of. Those it was never sent go back to
/// the pool at once; one whose `work` was lost on the way is nobody's, and its lease ends.
async fn never_sent<S: Store>(edge: &Edge<S>, me: &Me, runs: Vec<Left>) {
    for Left { key, run, attempt, .. } in runs.into_iter().filter(|left| !left.is_handed) {
        edge.desk.give_back(&key, &run, &me.worker, attempt).await;
    }
}
