//! The live feed: one supervised subscription connection per node.
//!
//! Owns the table of followers and the connection. Pushes are routed where they arrive, in the connection's own task, so
//! no message is queued. A probe travels every second through the write path and back through the subscription; when it
//! does not come back in time, connection and subscriptions are built anew, and every follower is told to compare with
//! the log. Invariant: between a follower's loss and its [`crate::Follower::doubt`] lie at most a few seconds.

mod table;

pub(super) use self::table::Sink;
use self::table::Table;
use super::keys::Keys;
use super::link::{Backoff, Dialer, Failure, Link, random};
use super::script::Scripts;
use crate::Following;
use ::redis::aio::MultiplexedConnection;
use ::redis::{PushInfo, PushKind, Value};
use everthread_protocol::NodeId;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout};

/// Between two probes.
const PROBE_EVERY: Duration = Duration::from_secs(1);
/// How long a probe may be under way.
const PROBE_MAX: Duration = Duration::from_secs(2);
/// A probe that came back says this long that the feed works.
const READY_FOR: Duration = Duration::from_secs(3);
/// Commands in one go: enough to be fast, few enough that messages get through between.
const SUBSCRIBE_BATCH: usize = 512;

/// The node's followers and the connection that serves them.
pub(super) struct Feed {
    table: Mutex<Table>,
    /// The table has something to do.
    dirty: Notify,
    /// Where probes come back.
    probe_channel: String,
    /// Tells this process's probes from those of another with the same node id.
    nonce: String,
    /// Last probe that came back.
    echo: watch::Sender<u64>,
    /// When it did, unless the feed is being rebuilt.
    echoed_at: Mutex<Option<Instant>>,
}

/// What the feed needs to run.
pub(super) struct Supplies {
    /// Opens connections.
    pub(super) dialer: Dialer,
    /// Carry the probes, in turn.
    pub(super) links: Vec<Arc<Link>>,
    /// For the probe.
    pub(super) scripts: Arc<Scripts>,
    /// The node's slot.
    pub(super) node_key: String,
}

impl Feed {
    /// A feed that [`Feed::keep`] will connect.
    pub(super) fn new(keys: &Keys, node: &NodeId) -> Self {
        Self {
            table: Mutex::default(),
            dirty: Notify::new(),
            probe_channel: keys.probe(node),
            nonce: format!("{:04x}{:04x}{:04x}", random(), random(), random()),
            echo: watch::Sender::new(0),
            echoed_at: Mutex::default(),
        }
    }

    /// Registers `sink` until the guard is dropped.
    pub(super) fn follow(self: &Arc<Self>, channel: String, sink: Sink) -> Following {
        let id = self.table().add(&channel, sink);
        self.dirty.notify_one();
        let feed = Arc::downgrade(self);
        Following::new(move || {
            if let Some(feed) = feed.upgrade() {
                let gone = feed.table().remove(&channel, id, Instant::now());
                drop(gone);
            }
        })
    }

    /// Whether the last probe came back in time.
    pub(super) fn is_ready(&self) -> bool {
        lock(&self.echoed_at).is_some_and(|at| at.elapsed() < READY_FOR)
    }

    /// Connects, serves, and connects again, for ever.
    pub(super) async fn keep(self: &Arc<Self>, supplies: &Supplies) -> Infallible {
        let mut backoff = Backoff::default();
        let mut generation = 0;
        let mut probe = Probe::default();
        loop {
            generation += 1;
            let Err(why) = self.serve(supplies, generation, &mut probe).await;
            if lock(&self.echoed_at).take().is_some() {
                backoff = Backoff::default();
                tracing::warn!(why, "the live feed is rebuilt");
            }
            sleep(backoff.next()).await;
        }
    }

    /// One connection's life.
    async fn serve(
        self: &Arc<Self>,
        supplies: &Supplies,
        generation: u64,
        probe: &mut Probe,
    ) -> Result<Infallible, String> {
        let feed = self.clone();
        let dialled = supplies.dialer.dial(move |push| feed.on_push(generation, &push)).await;
        let (mut connection, broken) = dialled.map_err(|e| format!("{e:?}"))?;
        send(&mut connection, &[(&self.probe_channel, true)]).await.map_err(|e| format!("{e:?}"))?;
        self.table().restart(generation);
        tokio::select! {
            result = self.subscribe(connection) => result.map_err(|e| format!("{e:?}")),
            result = self.probe(supplies, probe) => result,
            () = broken.cancelled() => Err("the connection is lost".into()),
        }
    }

    /// Keeps the server's subscriptions as the table wants them.
    async fn subscribe(&self, mut connection: MultiplexedConnection) -> Result<Infallible, Failure> {
        loop {
            let batch = {
                let mut table = self.table();
                table.sweep(Instant::now());
                table.next_batch(SUBSCRIBE_BATCH)
            };
            if batch.is_empty() {
                // The time-out is for the sweep.
                drop(timeout(PROBE_EVERY, self.dirty.notified()).await);
                continue;
            }
            batch.live.iter().for_each(Sink::doubt);
            let subscribe = batch.subscribe.iter().map(|channel| (channel, true));
            let commands: Vec<_> =
                subscribe.chain(batch.unsubscribe.iter().map(|channel| (channel, false))).collect();
            if !commands.is_empty() {
                send(&mut connection, &commands).await?;
            }
        }
    }

    /// Sends probes and waits for each to come back.
    async fn probe(&self, supplies: &Supplies, probe: &mut Probe) -> Result<Infallible, String> {
        loop {
            let started = Instant::now();
            probe.number += 1;
            let number = probe.number;
            let turn = usize::try_from(number).unwrap_or(0) % supplies.links.len();
            let link = &supplies.links[turn];
            let payload = format!("{} {number}", self.nonce);
            let round_trip = async {
                let args = [self.probe_channel.as_bytes(), payload.as_bytes()];
                let primary: String =
                    link.script(&supplies.scripts.probe, &[&supplies.node_key], &args).await?;
                drop(self.echo.subscribe().wait_for(|echo| *echo >= number).await);
                Ok::<_, Failure>(primary)
            };
            match timeout(PROBE_MAX, round_trip).await {
                Ok(Ok(primary)) => {
                    *lock(&self.echoed_at) = Some(Instant::now());
                    if probe.primary.replace(primary.clone()).is_some_and(|before| before != primary) {
                        tracing::warn!("another primary serves the store");
                        let everybody = self.table().everybody();
                        everybody.iter().for_each(Sink::doubt);
                    }
                }
                Ok(Err(error)) => return Err(format!("the probe was not sent: {error:?}")),
                Err(_) => {
                    // It may as well be the link that swallows what it is given.
                    link.retire();
                    return Err("the probe did not come back".into());
                }
            }
            sleep_until(started + PROBE_EVERY).await;
        }
    }

    /// Routes what the server sends. Called by the connection's own task, so it must not block.
    fn on_push(&self, generation: u64, push: &PushInfo) {
        let [Value::BulkString(channel), rest @ ..] = push.data.as_slice() else { return };
        let Ok(channel) = std::str::from_utf8(channel) else { return };
        // No follower is called while the table is locked: it may follow or leave.
        match (&push.kind, rest) {
            (PushKind::SMessage, [Value::BulkString(payload)]) if channel == self.probe_channel => {
                self.on_echo(payload);
            }
            (PushKind::SMessage, [Value::BulkString(payload)]) => {
                let sinks = self.table().sinks(channel);
                table::deliver(&sinks, payload);
            }
            (PushKind::SSubscribe, _) => {
                let sinks = self.table().subscribed(generation, channel);
                sinks.iter().for_each(|(_, sink)| sink.doubt());
            }
            (PushKind::SUnsubscribe, _) => {
                if self.table().unsubscribed(generation, channel) {
                    tracing::warn!(channel, "redis ended a subscription by itself");
                }
                self.dirty.notify_one();
            }
            _ => {}
        }
    }

    fn on_echo(&self, payload: &[u8]) {
        let number = std::str::from_utf8(payload).ok().and_then(|text| text.strip_prefix(&self.nonce));
        if let Some(number) = number.and_then(|text| text.trim_start().parse().ok()) {
            self.echo.send_replace(number);
        }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        lock(&self.table)
    }
}

/// What the probes know from one connection to the next.
#[derive(Default)]
struct Probe {
    number: u64,
    /// The primary that sent the last one.
    primary: Option<String>,
}

/// Subscribes (`true`) and unsubscribes channels. One command each: in a cluster, one command takes only one slot.
async fn send(connection: &mut MultiplexedConnection, commands: &[(&String, bool)]) -> Result<(), Failure> {
    let mut pipeline = ::redis::pipe();
    for (channel, subscribe) in commands {
        pipeline.cmd(if *subscribe { "SSUBSCRIBE" } else { "SUNSUBSCRIBE" }).arg(channel).ignore();
    }
    Ok(pipeline.query_async::<()>(connection).await?)
}

/// Nothing here panics while it holds a lock, so what a lock guards is whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
