//! One connection of a worker: hello, then frames in both directions until it ends.
//!
//! Reading and writing are two futures of one task. The reading side makes a run's next batch only when the writing side
//! has room, so batches grow while the socket is busy.

use crate::error::WorkerError;
use crate::outbox::Event;
use crate::run::Cause;
use crate::runs::Runs;
use crate::shared::{ChildState, Shared};
use crate::worker::Config;
use everthread_protocol::entry::ControlKind;
use everthread_protocol::frame::{Bye, ErrorFrame};
use everthread_protocol::limits::FRAME_BYTES_MAX;
use everthread_protocol::worker_frame::{
    Ack, ChildEnded, Decline, Held, Work, WorkerControl, WorkerFrame, WorkerHello, WorkerWelcome,
};
use everthread_protocol::{Code, RequestId, RunId};
use everthread_socket::{RawConnection, Receiver, SocketError, Utf8Bytes};
use serde::Deserialize;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

/// Frames between the side that makes them and the side that writes them. When full, nothing more is made.
const OUTBOUND_FRAMES_MAX: usize = 16;
/// For the answer to `hello`.
const WELCOME_DEADLINE: Duration = Duration::from_secs(10);
/// After this many heartbeats without a frame the connection is taken for dead.
const SILENT_HEARTBEATS: u64 = 4;
/// … but not before this much: a busy machine pauses.
const SILENCE_MIN: Duration = Duration::from_secs(3);
/// How often batches that were never called safe are looked at.
const FORGET_EVERY: Duration = Duration::from_secs(1);
/// A peer that says goodbye names how long to stay away; no longer than this.
const BYE_WAIT_MAX: Duration = Duration::from_secs(60);

/// Why a connection ended.
pub(crate) enum Left {
    /// It broke, or never was.
    Lost(SocketError),
    /// The server asked to come back after this time.
    Bye(Duration),
    /// The server will not have this worker.
    Refused(WorkerError),
}

/// How a connection ended.
pub(crate) struct Ended {
    pub left: Left,
    /// How long it lasted since its welcome, if it had one.
    pub lasted: Option<Duration>,
}

impl From<SocketError> for Left {
    fn from(error: SocketError) -> Self {
        Left::Lost(error)
    }
}

/// Frames besides writes that wait to be sent. None is dropped, and they take no more room than was offered.
#[derive(Default)]
struct Signals {
    /// Pings that have no answer yet.
    pongs: u64,
    /// At most as many as the server may give runs: one that is declined counts until the server has read it.
    declines: VecDeque<Decline>,
    drains: bool,
}

impl Signals {
    fn is_empty(&self) -> bool {
        self.pongs == 0 && self.declines.is_empty() && !self.drains
    }

    /// Pongs go first: the server waits for them.
    fn pop(&mut self) -> Option<WorkerFrame<'static>> {
        if self.pongs > 0 {
            self.pongs -= 1;
            return Some(WorkerFrame::Pong {});
        }
        if let Some(decline) = self.declines.pop_front() {
            return Some(WorkerFrame::Decline(decline));
        }
        std::mem::take(&mut self.drains).then_some(WorkerFrame::Drain {})
    }
}

/// One connection.
pub(crate) struct Connection<'a> {
    config: &'a Config,
    runs: &'a Runs,
    shutdown: &'a CancellationToken,
    signals: Signals,
    /// Runs that wait before they send again.
    paused: Vec<Arc<Shared>>,
    block_bytes_max: usize,
    silence_max: Duration,
}

#[derive(Deserialize)]
struct Peek<'a> {
    #[serde(borrow)]
    t: std::borrow::Cow<'a, str>,
}

#[derive(Deserialize)]
struct SafeFrame {
    run: RunId,
    batch: u64,
}

#[derive(Deserialize)]
struct FencedFrame {
    run: RunId,
}

fn read<'a, T: Deserialize<'a>>(frame: &'a str) -> Result<T, Left> {
    let broken =
        |e: serde_json::Error| Left::Lost(SocketError::Broken(format!("a frame that is not readable: {e}")));
    serde_json::from_str(frame).map_err(broken)
}

impl<'a> Connection<'a> {
    pub(crate) fn new(config: &'a Config, runs: &'a Runs, shutdown: &'a CancellationToken) -> Self {
        Self {
            config,
            runs,
            shutdown,
            signals: Signals::default(),
            paused: Vec::new(),
            block_bytes_max: everthread_protocol::limits::BLOCK_BYTES_MAX,
            silence_max: SILENCE_MIN,
        }
    }

    /// Says hello and works until the connection ends.
    pub(crate) async fn serve(mut self, mut connection: RawConnection) -> Ended {
        let greeted = timeout(WELCOME_DEADLINE, self.hello(&mut connection)).await;
        let greeted = greeted.unwrap_or_else(|_| Err(SocketError::Deadline(WELCOME_DEADLINE).into()));
        if let Err(left) = greeted {
            return Ended { left, lasted: None };
        }
        let welcomed = Instant::now();
        let (sender, receiver) = connection.split();
        let (outbound, frames) = mpsc::channel(OUTBOUND_FRAMES_MAX);
        let left = tokio::select! {
            error = sender.write_all(frames) => error.into(),
            left = self.work(receiver, outbound) => left,
        };
        Ended { left, lasted: Some(welcomed.elapsed()) }
    }

    async fn hello(&mut self, connection: &mut RawConnection) -> Result<(), Left> {
        let (hello, held) = self.greeting()?;
        connection.send(hello).await?;
        let frame = connection.receive().await?;
        let welcome: WorkerWelcome = match &*read::<Peek<'_>>(&frame)?.t {
            "welcome" => read(&frame)?,
            "error" => {
                let ErrorFrame { error, .. } = read(&frame)?;
                return Err(if error.retryable {
                    SocketError::Broken(error.message).into()
                } else {
                    Left::Refused(WorkerError::Refused { code: error.code, message: error.message })
                });
            }
            "bye" => return Err(bye(&frame)?),
            other => return Err(SocketError::Broken(format!("{other:?} instead of welcome")).into()),
        };
        self.block_bytes_max = welcome.block_bytes_max;
        self.silence_max = Duration::from_millis(welcome.heartbeat_ms * SILENT_HEARTBEATS).max(SILENCE_MIN);
        tracing::info!(node = welcome.node, connection = welcome.connection, runs = held.len(), "connected");
        for Held { run, fence, .. } in held.into_iter().filter(|held| !welcome.kept.contains(&held.run)) {
            if let Some(shared) = self.runs.get(&run).filter(|shared| shared.fence == fence) {
                tracing::info!(%run, "the run is no longer this worker's");
                self.runs.fence(&shared);
            }
        }
        for run in self.runs.all() {
            run.offer();
        }
        Ok(())
    }

    /// The first frame, and the runs that it names.
    fn greeting(&self) -> Result<(String, Vec<Held>), Left> {
        let id: RequestId = "hello".parse().map_err(|_| SocketError::Broken("hello is no id".to_owned()))?;
        let mut hello = WorkerHello {
            id,
            token: None,
            worker: self.config.id.clone(),
            agents: self.config.offers.clone(),
            runs: Vec::new(),
        };
        let mut bytes = WorkerFrame::Hello(hello.clone()).encode().len() + "\"runs\":[],".len();
        for held in self.runs.held() {
            bytes += serde_json::to_string(&held).map_or(0, |held| held.len()) + ",".len();
            if bytes <= FRAME_BYTES_MAX {
                hello.runs.push(held);
            } else if let Some(run) = self.runs.get(&held.run) {
                // A larger frame would cost the connection, and with it every run.
                tracing::warn!(run = %held.run, "more runs than a connection can be begun with: giving it up");
                self.runs.fence(&run);
            }
        }
        let held = hello.runs.clone();
        Ok((WorkerFrame::Hello(hello).encode(), held))
    }

    async fn work(&mut self, mut receiver: Receiver, outbound: mpsc::Sender<Utf8Bytes>) -> Left {
        let mut heard = Instant::now();
        let mut forget = interval(FORGET_EVERY);
        forget.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut is_draining = false;
        loop {
            let resume = self.paused.iter().filter_map(|run| run.with(|outbox| outbox.paused_until())).min();
            let has_signals = !self.signals.is_empty();
            let room = async {
                if !has_signals {
                    self.runs.ready.some().await;
                }
                outbound.reserve().await
            };
            tokio::select! {
                frame = receiver.receive() => {
                    heard = Instant::now();
                    let handled = match frame {
                        Ok(frame) => self.frame(&frame),
                        Err(error) => Err(error.into()),
                    };
                    if let Err(left) = handled {
                        return left;
                    }
                }
                permit = room => {
                    let Ok(permit) = permit else {
                        return SocketError::Broken("nobody writes".to_owned()).into();
                    };
                    if let Some(frame) = self.next_frame() {
                        permit.send(frame);
                    }
                }
                () = sleep_until(heard + self.silence_max) => return SocketError::Deadline(self.silence_max).into(),
                () = sleep_until(resume.map_or(heard + self.silence_max, Into::into)) => self.resume_paused(),
                _ = forget.tick() => self.runs.forget_old(std::time::Instant::now()),
                () = self.shutdown.cancelled(), if !is_draining => {
                    is_draining = true;
                    self.signals.drains = true;
                }
            }
        }
    }

    /// What is to be sent next: signals before writes.
    fn next_frame(&mut self) -> Option<Utf8Bytes> {
        if let Some(signal) = self.signals.pop() {
            return Some(signal.encode().into());
        }
        while let Some(run) = self.runs.ready.pop() {
            let now = std::time::Instant::now();
            // The list may hold runs that have nothing to send any more.
            let Some(frame) = run.with(|outbox| outbox.next_frame(now)) else { continue };
            if frame.len() <= FRAME_BYTES_MAX {
                return Some(frame);
            }
            // The server would close the connection, and every run would go with this one.
            let events = run.with(|outbox| outbox.too_large(now));
            self.settle(&run, events);
        }
        None
    }

    fn resume_paused(&mut self) {
        for run in std::mem::take(&mut self.paused) {
            run.offer();
            if run.with(|outbox| outbox.paused_until()).is_some_and(|until| until > std::time::Instant::now())
            {
                self.paused.push(run);
            }
        }
    }

    fn frame(&mut self, frame: &str) -> Result<(), Left> {
        match &*read::<Peek<'_>>(frame)?.t {
            "ok" | "duplicate" => self.written(&read(frame)?),
            "safe" => {
                let SafeFrame { run, batch } = read(frame)?;
                if let Some(run) = self.runs.get(&run) {
                    run.with(|outbox| outbox.safe(batch));
                    run.settle(Vec::new());
                }
            }
            "error" => self.refused(&read(frame)?),
            "work" => self.begin(&read(frame)?)?,
            "control" => {
                // A later release may ask for more: what is not understood gets its outcome by its deadline.
                match serde_json::from_str(frame) {
                    Ok(asked) => self.asked(asked),
                    Err(error) => tracing::warn!(%error, "a control that is not understood"),
                }
            }
            "fenced" => {
                let FencedFrame { run } = read(frame)?;
                if let Some(run) = self.runs.get(&run) {
                    tracing::info!(run = %run.run, "the run is no longer this worker's");
                    self.runs.fence(&run);
                }
            }
            "child_ended" => {
                let ChildEnded { run, child, outcome } = read(frame)?;
                if let Some(run) = self.runs.get(&run) {
                    run.child(&child, ChildState::Ended(outcome));
                }
            }
            "ping" => self.signals.pongs += 1,
            "bye" => return Err(bye(frame)?),
            // A later release may say more.
            other => tracing::debug!(t = other, "a frame of an unknown type"),
        }
        Ok(())
    }

    fn begin(&mut self, work: &Work<'_>) -> Result<(), Left> {
        if !self.shutdown.is_cancelled() && self.runs.begin(work, self.block_bytes_max) {
            return Ok(());
        }
        let offered: u64 = self.config.offers.iter().map(|offer| u64::from(offer.capacity)).sum();
        if self.signals.declines.len() as u64 >= offered {
            return Err(SocketError::Broken("the server gives more runs than were offered".to_owned()).into());
        }
        self.signals.declines.push_back(Decline { run: work.run.clone(), fence: work.fence });
        Ok(())
    }

    fn asked(&mut self, asked: WorkerControl) {
        let Some(run) = self.runs.get(&asked.run) else { return };
        tracing::debug!(run = %run.run, kind = ?asked.kind, control = %asked.control, "control");
        match asked.kind {
            ControlKind::Cancel => run.stop(Cause::Cancel),
            _ => run.hear(asked),
        }
    }

    fn written(&mut self, ack: &Ack) {
        let Some((run, _)) = self.named(ack.id.as_str()) else { return };
        let events = run.with(|outbox| outbox.written(ack.batch, ack.safe, std::time::Instant::now()));
        self.settle(&run, events);
    }

    fn refused(&mut self, frame: &ErrorFrame) {
        let ErrorFrame { id, error } = frame;
        let Some((run, batch)) = id.as_deref().and_then(|id| self.named(id)) else {
            tracing::warn!(
                ?id,
                code = error.code.as_str(),
                message = error.message,
                "the server reports an error"
            );
            return;
        };
        if matches!(error.code, Code::Fenced | Code::NoRun | Code::NoSession) {
            tracing::info!(run = %run.run, code = error.code.as_str(), "the run is no longer this worker's");
            return self.runs.fence(&run);
        }
        let level_is_retry = error.retryable || error.code == Code::Gap;
        tracing::debug!(run = %run.run, batch, code = error.code.as_str(), retry = level_is_retry, "write refused");
        let events = run.with(|outbox| outbox.refused(batch, error, std::time::Instant::now()));
        if run.with(|outbox| outbox.paused_until()).is_some() {
            self.paused.push(run.clone());
        }
        self.settle(&run, events);
    }

    fn settle(&self, run: &Arc<Shared>, events: Vec<Event>) {
        for event in &events {
            match event {
                Event::Broken(error) => {
                    tracing::warn!(run = %run.run, %error, "the run cannot be written any more and fails");
                }
                Event::EndRefused(error) => {
                    tracing::warn!(run = %run.run, %error, "the end of the run was refused: it fails");
                }
                _ => {}
            }
        }
        if run.settle(events) {
            self.runs.remove(run);
        }
        run.offer();
    }

    /// The run and batch that a request id of ours names.
    fn named(&self, id: &str) -> Option<(Arc<Shared>, u64)> {
        let (local, batch) = id.split_once('-')?;
        let run = self.runs.by_local(local.parse().ok()?)?;
        Some((run, batch.parse().ok()?))
    }
}

fn bye(frame: &str) -> Result<Left, Left> {
    let Bye { code, reconnect, after_ms } = read(frame)?;
    if reconnect {
        return Ok(Left::Bye(Duration::from_millis(after_ms).min(BYE_WAIT_MAX)));
    }
    let reason = "the server says goodbye for good".to_owned();
    Ok(Left::Refused(SocketError::Closed { code, reason }.into()))
}

#[cfg(test)]
mod tests;
