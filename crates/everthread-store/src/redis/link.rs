//! One connection to Redis that comes back by itself.
//!
//! A task of its own connects, loads the scripts, and waits until the connection is broken: closed by the other side, or
//! retired because an answer did not come in time (a route that swallows packets closes nothing). A request takes the
//! connection of the moment; during an outage it waits a moment for the next one and then fails, surely unsent. A
//! request that was sent and got no answer is [`Failure::Lost`]: only the caller knows whether it had effects.

use super::script::{By, Script, Scripts};
use crate::Error;
use ::redis::aio::MultiplexedConnection;
use ::redis::io::tcp::TcpSettings;
use ::redis::{
    AsyncConnectionConfig, Client, Cmd, ErrorKind, FromRedisValue, IntoConnectionInfo as _, Pipeline,
    ProtocolVersion, PushInfo, PushKind, RedisError, ServerErrorKind,
};
use std::hash::{BuildHasher as _, Hasher as _};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

/// How long connecting and loading the scripts may take together.
const CONNECT_MAX: Duration = Duration::from_secs(3);
/// How long a request waits for a connection during an outage. Covers a quick restart, and fails fast in a long one.
const OUTAGE_PATIENCE: Duration = Duration::from_millis(500);
/// First pause between two attempts to connect …
const BACKOFF_MIN: Duration = Duration::from_millis(50);
/// … and the longest: a healed server is found within this, however long it was away.
const BACKOFF_MAX: Duration = Duration::from_secs(2);
/// Requests that wait for a place in the connection's write buffer; more wait at their callers, within the deadline.
const REQUEST_QUEUE: usize = 512;

/// Why a request failed.
#[derive(Debug)]
pub(super) enum Failure {
    /// There is no connection; it was not sent.
    Down(String),
    /// It was sent, and no answer came.
    Lost(String),
    /// The server refused to execute it, for now.
    Refused(String),
    /// The server or its answer makes no sense here.
    Broken(String),
}

impl Failure {
    /// As the failure of a request that may have had effects.
    pub(super) fn of_write(self) -> Error {
        match self {
            Failure::Lost(why) => Error::Indeterminate(why),
            Failure::Down(why) | Failure::Refused(why) => Error::Unavailable(why),
            Failure::Broken(why) => Error::Corrupt(why),
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
        let why = error.to_string();
        if let ErrorKind::Io = error.kind() {
            return Failure::Lost(why);
        }
        if let ErrorKind::Parse | ErrorKind::UnexpectedReturnType = error.kind() {
            return Failure::Broken(why);
        }
        // A pipeline's error has its codes one level down.
        let errors = error.clone().into_server_errors();
        let first = errors.as_ref().and_then(|errors| errors.first()).map(|(_, error)| error.code());
        match error.code().or(first) {
            // Said before anything was executed: a script checks these at its first write.
            Some(
                "EXECABORT" | "LOADING" | "BUSY" | "TRYAGAIN" | "CLUSTERDOWN" | "MASTERDOWN" | "READONLY"
                | "MOVED" | "ASK" | "OOM" | "MISCONF" | "NOREPLICAS" | "NOAUTH" | "NOPERM" | "WRONGPASS",
            ) => Failure::Refused(why),
            _ => Failure::Broken(why),
        }
    }
}

/// How to open connections.
#[derive(Debug, Clone)]
pub(super) struct Dialer {
    client: Client,
    response_timeout: Duration,
}

impl Dialer {
    /// Connections to `url`, which answer within `response_timeout` or count as broken.
    pub(super) fn new(url: &str, response_timeout: Duration) -> Result<Self, Error> {
        let unusable = |e: RedisError| Error::Unavailable(format!("the address of Redis is not usable: {e}"));
        let info = url.into_connection_info().map_err(unusable)?;
        let settings = info.redis_settings().clone().set_protocol(ProtocolVersion::RESP3);
        // Nagle's delay costs more than half of the throughput on a network.
        let info =
            info.set_redis_settings(settings).set_tcp_settings(TcpSettings::default().set_nodelay(true));
        Ok(Self { client: Client::open(info).map_err(unusable)?, response_timeout })
    }

    /// One connection; `on_push` is called with what the server sends unasked, in the order in which it comes.
    pub(super) async fn dial(
        &self,
        on_push: impl Fn(PushInfo) + Send + Sync + 'static,
    ) -> Result<(MultiplexedConnection, CancellationToken), Failure> {
        let broken = CancellationToken::new();
        let ended = broken.clone();
        let push = move |info: PushInfo| {
            if info.kind == PushKind::Disconnection {
                ended.cancel();
            }
            on_push(info);
            Ok::<(), std::convert::Infallible>(())
        };
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_MAX))
            .set_response_timeout(Some(self.response_timeout))
            .set_pipeline_buffer_size(REQUEST_QUEUE)
            .set_push_sender(push);
        let connection = self.client.get_multiplexed_async_connection_with_config(&config).await?;
        Ok((connection, broken))
    }
}

/// The connection of the moment.
#[derive(Clone)]
struct Live {
    connection: MultiplexedConnection,
    /// Cancelled when it is of no more use.
    broken: CancellationToken,
}

/// A connection that comes back by itself.
pub(super) struct Link {
    /// `None` during an outage. Changed by [`Link::keep`] only.
    live: watch::Sender<Option<Live>>,
    scripts: Arc<Scripts>,
}

impl Link {
    /// A link that [`Link::keep`] will connect.
    pub(super) fn new(scripts: Arc<Scripts>) -> Self {
        Self { live: watch::Sender::new(None), scripts }
    }

    /// Connects, and connects again, for ever.
    pub(super) async fn keep(&self, dialer: &Dialer, name: &str) -> std::convert::Infallible {
        let mut backoff = Backoff::default();
        loop {
            match timeout(CONNECT_MAX, self.open(dialer)).await {
                Ok(Ok(live)) => {
                    backoff = Backoff::default();
                    let broken = live.broken.clone();
                    self.live.send_replace(Some(live));
                    tracing::info!(link = name, "connected to redis");
                    broken.cancelled().await;
                    self.live.send_replace(None);
                    tracing::warn!(link = name, "lost the connection to redis");
                }
                Ok(Err(error)) => tracing::debug!(link = name, ?error, "redis cannot be reached"),
                Err(_) => tracing::debug!(link = name, "redis does not answer"),
            }
            sleep(backoff.next()).await;
        }
    }

    async fn open(&self, dialer: &Dialer) -> Result<Live, Failure> {
        let (mut connection, broken) = dialer.dial(|_| {}).await?;
        self.scripts.load_all().query_async::<()>(&mut connection).await?;
        Ok(Live { connection, broken })
    }

    /// Waits for a connection.
    pub(super) async fn connected(&self, patience: Duration) -> Result<(), Failure> {
        self.live(patience).await.map(drop)
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
            Ok(Ok(live)) => live.clone().ok_or_else(down),
            _ => Err(down()),
        }
    }

    /// Sends one command.
    pub(super) async fn command<T: FromRedisValue>(&self, command: &Cmd) -> Result<T, Failure> {
        let mut live = self.live(OUTAGE_PATIENCE).await?;
        let answer = command.query_async(&mut live.connection).await;
        answer.map_err(|e| live.failed(e))
    }

    /// Sends several commands at once.
    pub(super) async fn pipeline<T: FromRedisValue>(&self, pipeline: &Pipeline) -> Result<T, Failure> {
        let mut live = self.live(OUTAGE_PATIENCE).await?;
        let answer = pipeline.query_async(&mut live.connection).await;
        answer.map_err(|e| live.failed(e))
    }

    /// Calls a script.
    pub(super) async fn script<T: FromRedisValue>(
        &self,
        script: &Script,
        keys: &[&str],
        args: &[&[u8]],
    ) -> Result<T, Failure> {
        self.call(|by| script.call(by, keys, args)).await
    }

    /// Sends the call of a script that `call` makes.
    pub(super) async fn call<T: FromRedisValue>(&self, call: impl Fn(By) -> Cmd) -> Result<T, Failure> {
        let mut live = self.live(OUTAGE_PATIENCE).await?;
        let mut answer = call(By::Hash).query_async(&mut live.connection).await;
        if let Err(error) = &answer
            && error.kind() == ErrorKind::Server(ServerErrorKind::NoScript)
        {
            answer = call(By::Text).query_async(&mut live.connection).await;
        }
        answer.map_err(|e| live.failed(e))
    }

    /// Calls a script many times at once, each time with one key. Where the server does not know the script, calls that
    /// were made already are made again: the script must bear that.
    pub(super) async fn scripts<T: FromRedisValue>(
        &self,
        script: &Script,
        calls: &[(String, Vec<String>)],
    ) -> Result<T, Failure> {
        let pipeline = |told: bool| {
            let mut pipeline = ::redis::pipe();
            for (n, (key, args)) in calls.iter().enumerate() {
                let args: Vec<&[u8]> = args.iter().map(String::as_bytes).collect();
                // The text of the first makes the script known to the others.
                let by = if told || n > 0 { By::Hash } else { By::Text };
                pipeline.add_command(script.call(by, &[key.as_str()], &args));
            }
            pipeline
        };
        let mut live = self.live(OUTAGE_PATIENCE).await?;
        let mut answer = pipeline(true).query_async(&mut live.connection).await;
        if let Err(error) = &answer
            && error.kind() == ErrorKind::Server(ServerErrorKind::NoScript)
        {
            answer = pipeline(false).query_async(&mut live.connection).await;
        }
        answer.map_err(|e| live.failed(e))
    }
}

impl Live {
    /// Sorts the error; a connection that did not answer, or talks to what is no primary any more, is given up.
    fn failed(&self, error: RedisError) -> Failure {
        if error.is_io_error() || error.kind() == ErrorKind::Server(ServerErrorKind::ReadOnly) {
            self.broken.cancel();
        }
        error.into()
    }
}

fn down() -> Failure {
    Failure::Down("redis is not connected".into())
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
