//! The handle: one connection, many sessions.

use crate::connection::{Body, Command, Connection, Reply};
use crate::control::{Ask, Asked, RECEIPTS_MAX};
use crate::error::Error;
use crate::feed::Feed;
use crate::follow::{Follow, Parts};
use everthread_protocol::control::WhenBusy;
use everthread_protocol::entry::{Role, Target};
use everthread_protocol::error::ErrorBody;
use everthread_protocol::frame::{Done, From, check_recent};
use everthread_protocol::limits::FRAME_BYTES_MAX;
use everthread_protocol::{
    AgentName, AuthorKind, Code, DeviceId, Level, RequestId, RunId, Seq, SessionId, SubjectId,
};
use everthread_socket::Backoff;
use serde_json::value::{RawValue, to_raw_value};
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{sleep, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

/// Commands that wait for the connection's task. When full, the caller waits.
const COMMANDS_MAX: usize = 64;
/// Frames that wait for a follower. When full, the session is detached and attached again from where the follower stands.
pub(crate) const FOLLOW_FRAMES_MAX: usize = 1024;
/// For a request with all its repeats. Far below the ten minutes for which the server remembers an id.
const REQUEST_DEADLINE: Duration = Duration::from_secs(60);
/// For one answer, before the request is repeated.
const ANSWER_DEADLINE: Duration = Duration::from_secs(25);
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_CAP: Duration = Duration::from_secs(3);

/// Who connects, and where.
#[derive(Debug, Clone)]
pub struct Builder {
    pub(crate) url: String,
    pub(crate) token: String,
    pub(crate) subject: Option<SubjectId>,
    pub(crate) kind: Option<AuthorKind>,
    pub(crate) device: Option<DeviceId>,
    pub(crate) name: Option<String>,
}

impl Builder {
    /// Who is speaking; only the development token lets a client say so.
    pub fn subject(mut self, subject: SubjectId) -> Self {
        self.subject = Some(subject);
        self
    }

    /// In which role; only the development token lets a client say so.
    pub fn kind(mut self, kind: AuthorKind) -> Self {
        self.kind = Some(kind);
        self
    }

    /// Stable identity of the device.
    pub fn device(mut self, device: DeviceId) -> Self {
        self.device = Some(device);
        self
    }

    /// Name and version of the software, for the server's logs.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Begins to connect, and goes on for ever until the last handle is gone. Must be called within a runtime.
    pub fn connect(self) -> Client {
        let (commands, receiver) = mpsc::channel(COMMANDS_MAX);
        let (tasks, stop, clock) =
            (TaskTracker::new(), CancellationToken::new(), Arc::new(AtomicI64::new(0)));
        tasks.spawn(Connection::new(self, receiver, clock.clone()).run(stop.clone()));
        tasks.close();
        let guard = stop.drop_guard();
        Client { inner: Arc::new(Inner { commands, tasks, clock, next_key: AtomicU64::new(1), stop: guard }) }
    }
}

#[derive(Debug)]
struct Inner {
    commands: mpsc::Sender<Command>,
    tasks: TaskTracker,
    /// Milliseconds by which the server's clock is ahead.
    clock: Arc<AtomicI64>,
    next_key: AtomicU64,
    stop: DropGuard,
}

/// A connection to Everthread, kept through whatever happens to its socket. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

/// A session as this client uses it: writes, controls, history. Needs its [`Follow`] to be alive.
#[derive(Debug, Clone)]
pub struct Session {
    client: Client,
    key: u64,
    /// How sure answers are to be.
    ack: Option<Level>,
}

/// Whom a user's message asks to work, and how.
#[derive(Debug, Clone, Default)]
pub struct Addressee {
    /// Else the session's own agent.
    pub agent: Option<AgentName>,
    /// What happens if it is at work; else what the session's meta says.
    pub when_busy: Option<WhenBusy>,
}

/// How a session is followed.
#[derive(Debug, Clone, Copy, Default)]
pub struct How {
    /// Keep no view of it. There is none anyway where it begins at a cursor: there is nothing to add to.
    pub is_raw: bool,
    /// Be present: see [`Follow::present`] and [`Session::tell`].
    pub is_present: bool,
    /// At most one frame of entries in so many milliseconds, 500 at most, into which what was written meanwhile is folded.
    /// It saves most of the frames of a token stream. Ends, approvals and controls come at once all the same.
    pub fold_ms: Option<u64>,
}

/// A page of older messages, as JSON in View form.
#[derive(Debug, Clone)]
pub struct Page {
    /// Oldest first.
    pub messages: Vec<Value>,
    /// Whether there are older ones.
    pub more: bool,
}

impl Client {
    /// A client of the node at `url` (`ws:`, `wss:`, `http:` or `https:`).
    pub fn builder(url: impl Into<String>, token: impl Into<String>) -> Builder {
        Builder { url: url.into(), token: token.into(), subject: None, kind: None, device: None, name: None }
    }

    /// Follows a session and keeps its view, unless it begins at a cursor, where there is no view to add to.
    pub async fn follow(&self, session: SessionId, from: From) -> Result<Follow, Error> {
        self.follow_how(session, from, How::default()).await
    }

    /// Follows a session without keeping its view.
    pub async fn follow_raw(&self, session: SessionId, from: From) -> Result<Follow, Error> {
        self.follow_how(session, from, How { is_raw: true, ..How::default() }).await
    }

    /// [`Client::follow`], and be present: see [`Follow::present`] and [`Session::tell`].
    pub async fn follow_present(&self, session: SessionId, from: From) -> Result<Follow, Error> {
        self.follow_how(session, from, How { is_present: true, ..How::default() }).await
    }

    /// Follows a session in some way of one's own.
    pub async fn follow_how(&self, session: SessionId, from: From, how: How) -> Result<Follow, Error> {
        let How { is_raw, is_present: presence, fold_ms } = how;
        let keeps_view = !is_raw && !is_cursor(from);
        let key = self.inner.next_key.fetch_add(1, Ordering::Relaxed);
        let (queue, events) = mpsc::channel(FOLLOW_FRAMES_MAX);
        let (reply, attached) = oneshot::channel();
        let handle = Session { client: self.clone(), key, ack: None };
        // Made before the wait: dropping it detaches, also if the caller gives up.
        let overflowed = Arc::<AtomicBool>::default();
        let (commands, mark) = (self.inner.commands.clone(), overflowed.clone());
        let parts = Parts { session: handle, commands, key, queue: events, overflowed };
        let follow = Follow::new(parts, from, keeps_view);
        let attach =
            Command::Attach { key, session, from, presence, fold_ms, queue, overflowed: mark, reply };
        self.command(attach).await?;
        attached.await.map_err(|_| Error::Closed)??;
        Ok(follow)
    }

    /// Follows what all sessions of the tenant are doing, beginning with the `recent` ones (200 at most) that were active
    /// last. With a [`Builder::device`] each tells what that has not read. A client watches once: the feed before ends.
    pub async fn watch(&self, recent: usize) -> Result<Feed, Error> {
        check_recent(recent).map_err(|fault| Error::from(ErrorBody::from(fault)))?;
        let (shown, looks) = watch::channel(None);
        self.command(Command::Watch { recent, shown }).await?;
        Ok(Feed::new(looks))
    }

    async fn command(&self, command: Command) -> Result<(), Error> {
        self.inner.commands.send(command).await.map_err(|_| Error::Closed)
    }

    /// A new ULID by the server's clock, so that a wrong clock here does not make ids that are refused as old.
    pub fn fresh_id(&self) -> String {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now = i64::try_from(now.as_millis()).unwrap_or(i64::MAX);
        let ahead = self.inner.clock.load(Ordering::Relaxed);
        let now = u64::try_from(now.saturating_add(ahead)).unwrap_or(0);
        ulid::Ulid::from_datetime(UNIX_EPOCH + Duration::from_millis(now)).to_string()
    }

    /// Closes the connection and waits until its task has ended.
    pub async fn close(self) {
        let tasks = self.inner.tasks.clone();
        match Arc::try_unwrap(self.inner) {
            Ok(inner) => drop(inner.stop),
            // Somebody else still uses it: it ends with the last handle.
            Err(_) => return,
        }
        tasks.wait().await;
    }
}

/// A view cannot begin in the middle of a log.
fn is_cursor(from: From) -> bool {
    matches!(from, From::Cursor(_) | From::Device)
}

impl Session {
    /// The same, for writes and controls that are to be as sure as that before they are answered, where the deployment says
    /// less or more. A level that it cannot give is refused, and nothing is written.
    pub fn acknowledged(mut self, level: Level) -> Self {
        self.ack = Some(level);
        self
    }

    /// Puts a user's text; `agent` is asked to work, or the session's own.
    pub async fn input(&self, text: &str, agent: Option<&str>) -> Result<Done, Error> {
        self.input_for(text, &Addressee { agent: agent.map(str::parse).transpose()?, when_busy: None }).await
    }

    /// [`Session::input`], with what happens if the agent is at work.
    pub async fn input_for(&self, text: &str, to: &Addressee) -> Result<Done, Error> {
        let entries = to_raw_value(&self.user_text(text))?;
        self.put_for(&self.client.fresh_id(), entries, to).await
    }

    fn user_text(&self, text: &str) -> Value {
        json!([{
            "type": "message.put", "message": self.client.fresh_id(), "role": Role::User,
            "parts": [{ "kind": "text", "value": text }],
        }])
    }

    /// Puts a user's text in place of `message` (`message` or `run/message`), on a branch of its own, for the agent that the
    /// replaced one was for unless `to` names one. What works on the replaced message is cancelled.
    pub async fn edit(&self, message: &str, text: &str, to: &Addressee) -> Result<Done, Error> {
        let entries = to_raw_value(&self.user_text(text))?;
        self.put_in_place(&self.client.fresh_id(), entries, to, Some(message)).await
    }

    /// Has a run that has ended done again, for an answer beside the first. The answer names the new run.
    pub async fn regenerate(&self, run: RunId) -> Result<Done, Error> {
        self.done(Body::Regenerate { id: self.client.fresh_id().parse()?, run, params: None }).await
    }

    /// Makes the newest branch through `message` (`message` or `run/message`) the current one, for everybody.
    pub async fn select(&self, message: &str) -> Result<Done, Error> {
        self.done(Body::Select { id: self.client.fresh_id().parse()?, message: message.to_owned() }).await
    }

    /// Writes entries under `id`; a repeat with the same id is answered with what the first one got.
    pub async fn put(&self, id: &str, entries: Box<RawValue>, agent: Option<&str>) -> Result<Done, Error> {
        let to = Addressee { agent: agent.map(str::parse).transpose()?, when_busy: None };
        self.put_for(id, entries, &to).await
    }

    /// [`Session::put`], with what happens to a user's message if the agent is at work.
    pub async fn put_for(&self, id: &str, entries: Box<RawValue>, to: &Addressee) -> Result<Done, Error> {
        self.put_in_place(id, entries, to, None).await
    }

    async fn put_in_place(
        &self,
        id: &str,
        entries: Box<RawValue>,
        to: &Addressee,
        replaces: Option<&str>,
    ) -> Result<Done, Error> {
        let (Addressee { agent, when_busy }, entries) = (to.clone(), entries.into());
        let (replaces, ack) = (replaces.map(str::to_owned), self.ack);
        self.done(Body::Put { id: id.parse()?, agent, when_busy, replaces, ack, entries }).await
    }

    /// This device has read everything up to `seq`: what its next connection, anywhere, is told as `acked`. Needs a
    /// [`Builder::device`]. It never goes back, and is not waited for.
    pub async fn ack(&self, seq: Seq) -> Result<(), Error> {
        self.client.command(Command::Ack { key: self.key, seq }).await
    }

    /// Tells the others who are present something of oneself: an object of at most 1 KiB, in place of what was told before.
    /// Only with [`Client::follow_present`].
    pub async fn tell(&self, data: &Value) -> Result<(), Error> {
        let data = to_raw_value(data)?;
        self.client.command(Command::Tell { key: self.key, data }).await
    }

    /// Takes the session over: its agents stop, and none begins until it is released.
    pub async fn hold(&self, reason: Option<&str>) -> Result<Done, Error> {
        let id: RequestId = self.client.fresh_id().parse()?;
        self.done(Body::Hold { id, reason: reason.map(str::to_owned) }).await
    }

    /// Hands the session back to `agent`, or to its own, which gets what was said meanwhile as input.
    pub async fn release(&self, agent: Option<&str>) -> Result<Done, Error> {
        self.released(agent, true).await
    }

    /// Hands the session back; nobody works until there is new input.
    pub async fn release_only(&self) -> Result<Done, Error> {
        self.released(None, false).await
    }

    async fn released(&self, agent: Option<&str>, run: bool) -> Result<Done, Error> {
        let id: RequestId = self.client.fresh_id().parse()?;
        let agent = agent.map(str::parse).transpose()?;
        self.done(Body::Release { id, reason: None, agent, run }).await
    }

    async fn done(&self, body: Body) -> Result<Done, Error> {
        match self.request(body).await? {
            Reply::Done(done) => Ok(done),
            other => Err(other.unexpected()),
        }
    }

    /// Asks for the end of runs.
    pub async fn cancel(&self, target: Target) -> Result<Asked, Error> {
        self.control(Ask::cancel(target)).await
    }

    /// Asks something of a run. Returns when it is in the log: from then on it has exactly one outcome, which the handle
    /// tells however often the connection is lost meanwhile.
    pub async fn control(&self, ask: Ask) -> Result<Asked, Error> {
        let body = ask.into_body(self.ack, || self.client.fresh_id())?;
        check_size(&body.frame(u32::MAX))?;
        let id = body.id.clone();
        let (receipts, mut handle) = mpsc::channel(RECEIPTS_MAX);
        self.client.command(Command::Control { key: self.key, body, receipts }).await?;
        // It may have arrived: without an answer nobody can say that nothing happened.
        let first = timeout(REQUEST_DEADLINE, handle.recv()).await.map_err(|_| Error::Indeterminate)?;
        Ok(Asked::new(id, first.ok_or(Error::Closed)??, handle))
    }

    /// Messages that began before `before`, or the newest.
    pub async fn history(&self, before: Option<Seq>, limit: usize) -> Result<Page, Error> {
        let id: RequestId = self.client.fresh_id().parse()?;
        match self.request(Body::History { id, before, limit }).await? {
            Reply::History { messages, more } => {
                Ok(Page { messages: serde_json::from_str(messages.get())?, more })
            }
            other => Err(other.unexpected()),
        }
    }

    /// Sends a request, and again under the same id while that may help.
    async fn request(&self, body: Body) -> Result<Reply, Error> {
        check_size(&body.frame(u32::MAX))?;
        let mut backoff = Backoff::new(RETRY_FIRST, RETRY_CAP);
        let trying = async {
            loop {
                let (reply, answer) = oneshot::channel();
                let command = Command::Request { key: self.key, body: body.clone(), reply };
                self.client.command(command).await?;
                let error = match timeout(ANSWER_DEADLINE, answer).await {
                    Ok(Ok(Err(error))) if error.is_retryable() && !error.is_verdict() => error,
                    Ok(Ok(result)) => return result,
                    Ok(Err(_)) => return Err(Error::Closed),
                    Err(_) => Error::Indeterminate,
                };
                tracing::debug!(%error, "will ask again");
                sleep(backoff.step()).await;
            }
        };
        // Some try may have arrived: without an answer nobody can say that nothing happened.
        timeout(REQUEST_DEADLINE, trying).await.unwrap_or(Err(Error::Indeterminate))
    }
}

/// A frame that is too large would close the connection for good, and with it every session of this client.
fn check_size(frame: &str) -> Result<(), Error> {
    if frame.len() <= FRAME_BYTES_MAX {
        return Ok(());
    }
    let message = format!("a request of {} bytes; one has at most {FRAME_BYTES_MAX}", frame.len());
    Err(Error::Refused { code: Code::TooLarge, message, retryable: false, after_ms: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_request_that_no_frame_holds_is_refused_here_and_costs_nothing_else() {
        // Nobody listens there: nothing of this is to be sent.
        let client = Client::builder("ws://127.0.0.1:9", "t").connect();
        let session = Session { client, key: 1, ack: None };
        let text = "x".repeat(FRAME_BYTES_MAX);
        let too_large = |error: Error| matches!(error, Error::Refused { code: Code::TooLarge, .. });
        assert!(too_large(session.input(&text, None).await.unwrap_err()));
        assert!(too_large(session.hold(Some(&text)).await.unwrap_err()));
        let ask = Ask::steer(Target::Run("r".parse().unwrap()), &text);
        assert!(too_large(session.control(ask).await.unwrap_err()));
        // What fits gets as far as the connection, which does not follow such a session.
        assert!(matches!(session.input("hi", None).await, Err(Error::Closed)));
    }
}
