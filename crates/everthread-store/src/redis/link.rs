//! One connection to Redis that comes back by itself.
//!
//! A task of its own connects, loads the scripts, and drives the connection until it is broken: closed by the other side,
//! retired because an answer did not come in time (a route that swallows packets closes nothing), or leading to what is no
//! primary any more. A request takes the connection of the moment; during an outage it waits a moment for the next one and
//! then fails, surely unsent. A request that was sent and got no answer is [`Failure::Lost`]: only the caller knows
//! whether it had effects. With the connection ends the wait for its answers: what a replaced primary says later, when it
//! wakes, reaches nobody.

use super::address::Endpoint;
use super::dial::{Dialer, Dialled, pause};
use super::script::{By, Scripts};
use crate::Error;
use ::redis::aio::MultiplexedConnection;
use ::redis::{Cmd, ErrorKind, FromRedisValue, Pipeline, RedisError, RedisResult, ServerErrorKind, Value};
use std::hash::{BuildHasher as _, Hasher as _};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// How long loading the scripts may take.
const LOAD_MAX: Duration = Duration::from_secs(3);
/// How long a request waits for a connection during an outage. Covers a quick restart, and fails fast in a long one.
const OUTAGE_PATIENCE: Duration = Duration::from_millis(500);
/// First pause between two attempts to connect …
const BACKOFF_MIN: Duration = Duration::from_millis(50);
/// … and the longest: a healed server is found within this, however long it was away.
const BACKOFF_MAX: Duration = Duration::from_secs(2);

/// Why a request failed.
#[derive(Debug, Clone)]
pub(super) enum Failure {
    /// There is no connection; it was not sent.
    Down(String),
    /// It was sent, and no answer came.
    Lost(String),
    /// The server refused to execute it, for now.
    Refused(String),
    /// It was not executed here: the slot is another server's.
    Moved {
        slot: u16,
        /// As the server says it.
        to: String,
    },
    /// It was not executed here: this part of the slot has moved on already.
    Ask {
        slot: u16,
        /// As the server says it.
        to: String,
    },
    /// It was not executed: the slot is on the move, and a part of what is needed is not here.
    Again(String),
    /// The server or its answer makes no sense here.
    Broken(String),
}

impl Failure {
    /// As the failure of a request that may have had effects.
    pub(super) fn of_write(self) -> Error {
        match self {
            Failure::Lost(why) => Error::Indeterminate(why),
            Failure::Down(why) | Failure::Refused(why) | Failure::Again(why) => Error::Unavailable(why),
            Failure::Moved { .. } | Failure::Ask { .. } => Error::Unavailable(self.why()),
            Failure::Broken(why) => Error::Corrupt(why),
        }
    }

    /// In words.
    pub(super) fn why(self) -> String {
        match self {
            Failure::Down(why)
            | Failure::Lost(why)
            | Failure::Refused(why)
            | Failure::Again(why)
            | Failure::Broken(why) => why,
            Failure::Moved { slot, to } | Failure::Ask { slot, to } => format!(
                "slot {slot} is at {to}: this Redis is part of a cluster, so its address begins with redis-cluster://"
            ),
        }
    }

    /// Of a server with others beside it.
    pub(super) fn at(self, endpoint: &Endpoint) -> Self {
        match self {
            Failure::Down(why) => Failure::Down(format!("{endpoint}: {why}")),
            Failure::Lost(why) => Failure::Lost(format!("{endpoint}: {why}")),
            Failure::Refused(why) => Failure::Refused(format!("{endpoint}: {why}")),
            Failure::Broken(why) => Failure::Broken(format!("{endpoint}: {why}")),
            other => other,
        }
    }

    /// As the failure of a request without effects.
    pub(super) fn of_read(self) -> Error {
        match self {
            Failure::Lost(why) => Error::Unavailable(why),
            other => other.of_write(),
        }
    }
}

impl From<RedisError> for Failure {
    fn from(error: RedisError) -> Self {
        let why = in_short(&error);
        if let ErrorKind::Io = error.kind() {
            return Failure::Lost(why);
        }
        if let ErrorKind::Parse | ErrorKind::UnexpectedReturnType = error.kind() {
            return Failure::Broken(why);
        }
        // A pipeline's error has its codes one level down.
        let errors = error.clone().into_server_errors();
        let first = errors.as_ref().and_then(|errors| errors.first()).map(|(_, error)| error);
        let detail = error.detail().or_else(|| first.and_then(|error| error.details()));
        // `<slot> <host>:<port>`
        let elsewhere = || {
            let (slot, to) = detail?.split_once(' ')?;
            Some((slot.parse().ok()?, to.to_owned()))
        };
        let code = error.code().or_else(|| first.map(|error| error.code()));
        match (code, elsewhere()) {
            (Some("MOVED"), Some((slot, to))) => return Failure::Moved { slot, to },
            (Some("ASK"), Some((slot, to))) => return Failure::Ask { slot, to },
            (Some("TRYAGAIN"), _) => return Failure::Again(why),
            _ => {}
        }
        match code {
            // Said before anything was executed: a script checks these at its first write.
            Some(
                "EXECABORT" | "LOADING" | "BUSY" | "CLUSTERDOWN" | "MASTERDOWN" | "READONLY" | "OOM"
                | "MISCONF" | "NOREPLICAS" | "NOAUTH" | "NOPERM" | "WRONGPASS",
            ) => Failure::Refused(why),
            _ => Failure::Broken(why),
        }
    }
}

/// In words; of a pipeline of which all failed for the same reason, once.
fn in_short(error: &RedisError) -> String {
    let errors = error.clone().into_server_errors().unwrap_or_default();
    match &errors[..] {
        [(_, first), _, ..] => format!("{first} (and {} more of its commands)", errors.len() - 1),
        _ => error.to_string(),
    }
}

/// The connection of the moment.
#[derive(Clone)]
struct Live {
    connection: MultiplexedConnection,
    /// Cancelled when it does not answer.
    broken: CancellationToken,
    /// What opened it, and others to the same server.
    dialer: Dialer,
}

/// A connection that comes back by itself.
pub(super) struct Link {
    /// `None` during an outage. Changed by [`Link::keep`] only.
    live: watch::Sender<Option<Live>>,
    dialer: Dialer,
    scripts: Arc<Scripts>,
    /// Why there is no connection.
    trouble: Mutex<String>,
}

impl Link {
    /// A link that [`Link::keep`] will connect.
    pub(super) fn new(dialer: Dialer, scripts: Arc<Scripts>) -> Self {
        let trouble = Mutex::new("it was not tried yet".to_owned());
        Self { live: watch::Sender::new(None), dialer, scripts, trouble }
    }

    /// Connects, and connects again, for ever.
    pub(super) async fn keep(&self, name: &str) -> std::convert::Infallible {
        let mut backoff = Backoff::default();
        let mut finds = self.dialer.finds();
        loop {
            match self.open().await {
                Ok(mut dialled) => {
                    backoff = Backoff::default();
                    self.dialer.found();
                    let why = self.serve(&mut dialled, name).await;
                    // What was found before that is lost again.
                    finds.mark_unchanged();
                    self.in_trouble(why.to_owned());
                    tracing::warn!(link = name, why, "lost the connection to redis");
                }
                Err(failure) => {
                    tracing::debug!(link = name, ?failure, "redis cannot be used");
                    self.in_trouble(failure.why());
                }
            }
            pause(backoff.next(), &mut finds).await;
        }
    }

    async fn open(&self) -> Result<Dialled, Failure> {
        let mut dialled = self.dialer.dial(|_| {}).await?;
        let load = self.scripts.load_all();
        let loading = dialled.request(async |connection| Ok(load.query_async::<()>(connection).await?));
        match timeout(LOAD_MAX, loading).await {
            Ok(loaded) => loaded.map(|()| dialled),
            Err(_) => Err(Failure::Down("it does not answer".into())),
        }
    }

    /// Until the connection is of no more use; says why.
    async fn serve(&self, dialled: &mut Dialled, name: &str) -> &'static str {
        let broken = CancellationToken::new();
        let live = Live {
            connection: dialled.connection.clone(),
            broken: broken.clone(),
            dialer: self.dialer.clone(),
        };
        self.live.send_replace(Some(live));
        tracing::info!(link = name, "connected to redis");
        let why = tokio::select! {
            () = &mut dialled.driver => "the connection was closed",
            () = broken.cancelled() => "it does not answer",
            () = dialled.stale.wait() => "it is not the primary any more",
        };
        self.live.send_replace(None);
        why
    }

    fn in_trouble(&self, why: String) {
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = why;
    }

    /// Waits for a connection.
    pub(super) async fn connected(&self, patience: Duration) -> Result<(), Failure> {
        self.live(patience).await.map(drop)
    }

    /// Whether there is a connection at the moment.
    pub(super) fn is_live(&self) -> bool {
        self.live.borrow().as_ref().is_some_and(|live| !live.broken.is_cancelled())
    }

    /// It leads to a replica: it and all others to the same server are given up.
    pub(super) fn suspect(&self) {
        self.dialer.suspect();
    }

    /// Gives the connection up: something says that it does not work.
    pub(super) fn retire(&self) {
        if let Some(live) = &*self.live.borrow() {
            live.broken.cancel();
        }
    }

    async fn live(&self, patience: Duration) -> Result<Live, Failure> {
        let usable = |live: &Option<Live>| live.as_ref().is_some_and(|live| !live.broken.is_cancelled());
        if let Some(live) = self.live.borrow().as_ref().filter(|live| !live.broken.is_cancelled()) {
            return Ok(live.clone());
        }
        let mut changes = self.live.subscribe();
        match timeout(patience, changes.wait_for(usable)).await {
            Ok(Ok(live)) => live.clone().ok_or_else(|| self.down()),
            _ => Err(self.down()),
        }
    }

    /// The connection of the moment, for requests that must all go by one.
    pub(super) async fn same(&self) -> Result<Same, Failure> {
        self.live(OUTAGE_PATIENCE).await.map(Same)
    }

    fn down(&self) -> Failure {
        let trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        Failure::Down(format!("redis is not connected: {trouble}"))
    }

    /// A connection for a request of this moment.
    async fn live_now(&self) -> Result<Live, Failure> {
        self.live(OUTAGE_PATIENCE).await.inspect_err(|failure| self.scripts.counts.failed(failure))
    }

    fn failed(&self, live: &Live, error: RedisError) -> Failure {
        let failure = live.failed(error);
        self.scripts.counts.failed(&failure);
        failure
    }

    /// Sends one command.
    pub(super) async fn command<T: FromRedisValue>(&self, command: &Cmd) -> Result<T, Failure> {
        let mut live = self.live_now().await?;
        self.scripts.counts.sent(command);
        let answer = command.query_async(&mut live.connection).await;
        answer.map_err(|e| self.failed(&live, e))
    }

    /// Sends several commands at once.
    pub(super) async fn pipeline<T: FromRedisValue>(&self, pipeline: &Pipeline) -> Result<T, Failure> {
        let mut live = self.live_now().await?;
        self.scripts.counts.sent_pipeline();
        let answer = pipeline.query_async(&mut live.connection).await;
        answer.map_err(|e| self.failed(&live, e))
    }

    /// Sends the call of a script that `call` makes.
    pub(super) async fn call<T: FromRedisValue>(
        &self,
        call: impl Fn(By) -> Cmd + Sync,
    ) -> Result<T, Failure> {
        let mut live = self.live_now().await?;
        let mut answer = call(By::Hash).query_async(&mut live.connection).await;
        if let Err(error) = &answer
            && error.kind() == ErrorKind::Server(ServerErrorKind::NoScript)
        {
            answer = call(By::Text).query_async(&mut live.connection).await;
        }
        answer.map_err(|e| self.failed(&live, e))
    }

    /// Sends many commands at once, one for each of `places`. Where the server does not know a script, calls that were made
    /// already are made again: the script must bear that. `is_asking` is for what is being moved to this server.
    pub(super) async fn many<T: FromRedisValue>(
        &self,
        places: &[usize],
        make: &(impl Fn(usize, By) -> Cmd + Sync),
        is_asking: bool,
    ) -> Result<Vec<T>, Failure> {
        let pipeline = |told: bool| {
            let mut pipeline = ::redis::pipe();
            for (n, place) in places.iter().enumerate() {
                if is_asking {
                    pipeline.cmd("ASKING").ignore();
                }
                // The text of the first makes the script known to the others.
                let command = make(*place, if told || n > 0 { By::Hash } else { By::Text });
                self.scripts.counts.sent(&command);
                pipeline.add_command(command);
            }
            pipeline
        };
        let mut live = self.live_now().await?;
        let mut answer = pipeline(true).query_async(&mut live.connection).await;
        if let Err(error) = &answer
            && error.kind() == ErrorKind::Server(ServerErrorKind::NoScript)
        {
            answer = pipeline(false).query_async(&mut live.connection).await;
        }
        answer.map_err(|e| self.failed(&live, e))
    }
}

/// One connection to one server, however long that lives: it does not come back.
pub(super) struct Same(Live);

impl Same {
    /// Sends several commands at once; each has an answer of its own.
    pub(super) async fn pipeline(&mut self, pipeline: &Pipeline) -> Result<Vec<RedisResult<Value>>, Failure> {
        let mut pipeline = pipeline.clone();
        let answers = pipeline.ignore_errors().query_async(&mut self.0.connection).await;
        answers.map_err(|e| self.0.failed(e))
    }
}

impl Live {
    /// Sorts the error. A connection that did not answer is given up; where a write finds a replica, all of them are: what
    /// only reads would not notice.
    fn failed(&self, error: RedisError) -> Failure {
        if error.is_io_error() {
            self.broken.cancel();
        }
        if error.kind() == ErrorKind::Server(ServerErrorKind::ReadOnly) {
            self.dialer.suspect();
        }
        error.into()
    }
}

/// Pauses between attempts: doubling, capped, and jittered so that nodes do not come back in step.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    attempts: u32,
}

impl Backoff {
    /// The next pause.
    pub(super) fn next(&mut self) -> Duration {
        let full = BACKOFF_MIN.saturating_mul(1 << self.attempts.min(10)).min(BACKOFF_MAX);
        self.attempts = self.attempts.saturating_add(1);
        // Between half and all of it.
        full / 2 + full.mul_f64(f64::from(random() % 1000) / 2000.0)
    }
}

/// A number that differs from process to process and call to call. Not for secrets.
pub(super) fn random() -> u16 {
    let bytes = std::hash::RandomState::new().build_hasher().finish().to_le_bytes();
    u16::from_le_bytes([bytes[0], bytes[1]])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_cap_and_stay_there() {
        let mut backoff = Backoff::default();
        let pauses: Vec<_> = (0..40).map(|_| backoff.next()).collect();
        assert!(pauses[0] <= BACKOFF_MIN);
        assert!(pauses.iter().all(|pause| *pause <= BACKOFF_MAX));
        assert!(pauses[20..].iter().all(|pause| *pause >= BACKOFF_MAX / 2));
    }
}
