//! The client's one task: makes a socket, says hello, moves frames, and makes the next socket when it breaks.

use crate::client::Builder;
use crate::control::ControlBody;
use crate::error::Error;
use crate::feed::Shown;
use crate::follow::Event;
use crate::sessions::{Ended, Head, Sessions};
use everthread_protocol::control::WhenBusy;
use everthread_protocol::entry::Object;
use everthread_protocol::frame::{
    Bye, ClientFrame, Done, ErrorFrame, From, Hello, HistoryPage, Receipt, Welcome,
};
use everthread_protocol::{AgentName, Level, RequestId, RunId, Seq, SessionId};
use everthread_socket::{Backoff, RawConnection, Receiver, SocketError, Utf8Bytes};
use serde::Deserialize;
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

const RECONNECT_FIRST: Duration = Duration::from_millis(100);
const RECONNECT_CAP: Duration = Duration::from_secs(5);
/// For the answer to `hello`.
const WELCOME_DEADLINE: Duration = Duration::from_secs(10);
/// Frames between the side that makes them and the side that writes them. When full, nothing more is made.
const OUTBOUND_FRAMES_MAX: usize = 32;
/// Requests without an answer. When reached, no further command is taken, so that callers wait.
const PENDING_MAX: usize = 1024;
/// Frames that wait to be written before no further command is taken.
const OUTGOING_MAX: usize = 256;
/// A peer that says goodbye names how long to stay away; no longer than this.
const BYE_WAIT_MAX: Duration = Duration::from_secs(60);
/// Beyond the heartbeat, before a silent connection is taken for dead.
const SILENCE_EXTRA: Duration = Duration::from_secs(5);

/// What handles ask of the task.
pub(crate) enum Command {
    /// Follow a session.
    Attach {
        key: u64,
        session: SessionId,
        from: From,
        /// Be present, too.
        presence: bool,
        fold_ms: Option<u64>,
        queue: mpsc::Sender<Event>,
        overflowed: Arc<AtomicBool>,
        reply: oneshot::Sender<Result<(), Error>>,
    },
    /// No longer.
    Detach { key: u64 },
    /// The queue that was full is empty.
    Drained { key: u64 },
    /// Follow it anew.
    Restart { key: u64, from: From, queue: mpsc::Sender<Event> },
    /// Ask something of its runs.
    Control { key: u64, body: ControlBody, receipts: mpsc::Sender<Result<Receipt, Error>> },
    /// This device has read everything up to there.
    Ack { key: u64, seq: Seq },
    /// Tell the others who are present something else.
    Tell { key: u64, data: Box<RawValue> },
    /// Show the sessions of the tenant, in place of whoever was shown them before.
    Watch { recent: usize, shown: watch::Sender<Shown> },
    /// Ask something of a session.
    Request { key: u64, body: Body, reply: oneshot::Sender<Result<Reply, Error>> },
}

/// A request, without the attachment it goes to: that changes with the socket.
#[derive(Debug, Clone)]
pub(crate) enum Body {
    Put {
        id: RequestId,
        agent: Option<AgentName>,
        when_busy: Option<WhenBusy>,
        replaces: Option<String>,
        ack: Option<Level>,
        entries: Arc<RawValue>,
    },
    Regenerate {
        id: RequestId,
        run: RunId,
        params: Option<Object>,
    },
    Select {
        id: RequestId,
        message: String,
    },
    Hold {
        id: RequestId,
        reason: Option<String>,
    },
    Release {
        id: RequestId,
        reason: Option<String>,
        agent: Option<AgentName>,
        run: bool,
    },
    History {
        id: RequestId,
        before: Option<Seq>,
        limit: usize,
    },
}

/// What a request is answered.
#[derive(Debug)]
pub(crate) enum Reply {
    Done(Done),
    History { messages: Box<RawValue>, more: bool },
}

impl Reply {
    pub(crate) fn unexpected(&self) -> Error {
        Error::Unreadable("an answer of another kind".to_owned())
    }
}

enum Left {
    Lost(SocketError),
    Bye(Duration),
    Refused(Error),
}

impl std::convert::From<SocketError> for Left {
    fn from(error: SocketError) -> Self {
        Left::Lost(error)
    }
}

#[derive(Deserialize)]
struct Peek<'a> {
    #[serde(borrow)]
    t: Cow<'a, str>,
}

fn read<'a, T: Deserialize<'a>>(frame: &'a str) -> Result<T, Left> {
    let broken =
        |e: serde_json::Error| Left::Lost(SocketError::Broken(format!("a frame that is not readable: {e}")));
    serde_json::from_str(frame).map_err(broken)
}

pub(crate) struct Connection {
    config: Builder,
    commands: mpsc::Receiver<Command>,
    /// Milliseconds by which the server's clock is ahead, for the handles.
    clock: Arc<AtomicI64>,
    sessions: Sessions,
}

impl Connection {
    pub(crate) fn new(config: Builder, commands: mpsc::Receiver<Command>, clock: Arc<AtomicI64>) -> Self {
        Self { config, commands, clock, sessions: Sessions::default() }
    }

    /// Runs until `stop` or until the server will not have this client.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        let error = tokio::select! {
            error = self.stay_connected() => error,
            () = stop.cancelled() => Error::Closed,
        };
        self.commands.close();
        while let Ok(command) = self.commands.try_recv() {
            self.sessions.command(command);
        }
        self.sessions.end(&error);
    }

    async fn stay_connected(&mut self) -> Error {
        let mut backoff = Backoff::new(RECONNECT_FIRST, RECONNECT_CAP);
        loop {
            let left = match self.open().await {
                Ok((connection, silence_max)) => {
                    backoff.reset();
                    self.serve(connection, silence_max).await
                }
                Err(left) => left,
            };
            self.sessions.disconnected();
            let wait = match left {
                Left::Refused(error) => return error,
                Left::Lost(error) if error.is_final() => return Error::Socket(error),
                Left::Lost(error) => {
                    // Not sooner than the server asks, and not with everybody else whom it asked the same.
                    let wait = backoff.step() + error.after().unwrap_or_default();
                    tracing::debug!(%error, ?wait, "not connected; will try again");
                    wait
                }
                Left::Bye(after) => after,
            };
            self.pause(wait).await;
        }
    }

    /// Waits, and takes commands meanwhile as far as there is room.
    async fn pause(&mut self, wait: Duration) {
        let until = sleep(wait);
        tokio::pin!(until);
        loop {
            let has_room = self.sessions.pending() < PENDING_MAX;
            tokio::select! {
                () = &mut until => return,
                Some(command) = self.commands.recv(), if has_room => self.sessions.command(command),
            }
        }
    }

    async fn open(&mut self) -> Result<(RawConnection, Duration), Left> {
        let mut connection =
            RawConnection::open(&self.config.url, "/v1/connect", Some(&self.config.token)).await?;
        let hello = Hello {
            id: "hello".parse().map_err(|_| SocketError::Broken("hello is no id".to_owned()))?,
            token: None,
            client: self.config.name.clone(),
            device: self.config.device.clone(),
            subject: self.config.subject.clone(),
            kind: self.config.kind,
        };
        let welcoming = async {
            connection.send(ClientFrame::Hello(hello).encode()).await?;
            connection.receive().await
        };
        let frame = timeout(WELCOME_DEADLINE, welcoming)
            .await
            .map_err(|_| SocketError::Deadline(WELCOME_DEADLINE))??;
        match &*read::<Peek<'_>>(&frame)?.t {
            "welcome" => {
                let Welcome { now, heartbeat_ms, node, .. } = read(&frame)?;
                self.set_clock(now);
                tracing::debug!(node, "connected");
                Ok((connection, Duration::from_millis(heartbeat_ms) * 2 + SILENCE_EXTRA))
            }
            "error" => {
                let ErrorFrame { error, .. } = read(&frame)?;
                Err(if error.retryable {
                    SocketError::Broken(error.message).into()
                } else {
                    Left::Refused(error.into())
                })
            }
            "bye" => Err(bye(&frame)?),
            other => Err(SocketError::Broken(format!("{other:?} instead of welcome")).into()),
        }
    }

    fn set_clock(&self, server_now: u64) {
        let here = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let here = i64::try_from(here.as_millis()).unwrap_or(i64::MAX);
        let there = i64::try_from(server_now).unwrap_or(here);
        self.clock.store(there - here, Ordering::Relaxed);
    }

    async fn serve(&mut self, connection: RawConnection, silence_max: Duration) -> Left {
        let (sender, receiver) = connection.split();
        let (outbound, frames) = mpsc::channel(OUTBOUND_FRAMES_MAX);
        self.sessions.connected();
        tokio::select! {
            error = sender.write_all(frames) => error.into(),
            left = self.move_frames(receiver, outbound, silence_max) => left,
        }
    }

    async fn move_frames(
        &mut self,
        mut receiver: Receiver,
        outbound: mpsc::Sender<Utf8Bytes>,
        silence_max: Duration,
    ) -> Left {
        let mut heard = Instant::now();
        loop {
            let has_outgoing = !self.sessions.outgoing.is_empty();
            let has_room =
                self.sessions.pending() < PENDING_MAX && self.sessions.outgoing.len() < OUTGOING_MAX;
            let next_try = self.sessions.next_try();
            tokio::select! {
                frame = receiver.receive() => {
                    heard = Instant::now();
                    let handled = match frame {
                        Ok(frame) => self.frame(frame),
                        Err(error) => Err(error.into()),
                    };
                    if let Err(left) = handled {
                        return left;
                    }
                }
                permit = outbound.reserve(), if has_outgoing => {
                    let Ok(permit) = permit else {
                        return SocketError::Broken("nobody writes".to_owned()).into();
                    };
                    if let Some(frame) = self.sessions.outgoing.pop_front() {
                        permit.send(frame.into());
                    }
                }
                Some(command) = self.commands.recv(), if has_room => self.sessions.command(command),
                () = sleep_until(next_try.map_or(heard + silence_max, Into::into)), if next_try.is_some() => {
                    self.sessions.advance(std::time::Instant::now());
                }
                () = sleep_until(heard + silence_max) => return SocketError::Deadline(silence_max).into(),
            }
        }
    }

    fn frame(&mut self, frame: Utf8Bytes) -> Result<(), Left> {
        match &*read::<Peek<'_>>(&frame)?.t {
            kind @ ("entries" | "snapshot" | "live" | "lag" | "reset" | "presence") => {
                let head: Head = read(&frame)?;
                self.sessions.frame(kind, &head, frame.clone());
            }
            "gone" => {
                let Ended { attachment } = read(&frame)?;
                self.sessions.gone(attachment);
            }
            "attached" => {
                self.sessions.attached(&read(&frame)?);
            }
            "ok" => {
                let done: Done = read(&frame)?;
                self.sessions.reply(done.id.clone().as_str(), Ok(Reply::Done(done)));
            }
            "sessions" => self.sessions.watched(read(&frame)?),
            "receipt" => {
                let receipt: Receipt = read(&frame)?;
                self.sessions.receipt(receipt);
            }
            "history" => {
                let HistoryPage { id, messages, more } = read(&frame)?;
                let messages = messages.to_owned();
                self.sessions.reply(id.as_str(), Ok(Reply::History { messages, more }));
            }
            "error" => {
                let ErrorFrame { id, error } = read(&frame)?;
                let (code, message) = (error.code, error.message.clone());
                let known = id.as_deref().is_some_and(|id| self.sessions.reply(id, Err(error.into())));
                if !known {
                    tracing::warn!(?id, code = code.as_str(), message, "the server reports an error");
                }
            }
            "ping" => self.sessions.outgoing.push_front(ClientFrame::Pong {}.encode()),
            "bye" => return Err(bye(&frame)?),
            // A later release may say more.
            other => tracing::debug!(t = other, "a frame of an unknown type"),
        }
        Ok(())
    }
}

fn bye(frame: &str) -> Result<Left, Left> {
    let Bye { code, reconnect, after_ms } = read(frame)?;
    if reconnect {
        return Ok(Left::Bye(Duration::from_millis(after_ms).min(BYE_WAIT_MAX)));
    }
    let reason = "the server says goodbye for good".to_owned();
    Ok(Left::Refused(Error::Socket(SocketError::Closed { code, reason })))
}
