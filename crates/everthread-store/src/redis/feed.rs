//! The live feed: a supervised subscription connection to each primary.
//!
//! Owns the table of followers and the connections. Pushes are routed where they arrive, in the connection's own task, so
//! no message is queued. To each primary a probe travels every second through the write path and comes back through the
//! subscription; when it does not come back in time, connection and subscriptions are built anew, and every follower on
//! them is told to compare with the log. Invariant: between a follower's loss and its [`crate::Follower::doubt`] lie at
//! most a few seconds.

mod table;

use self::table::Table;
pub(super) use self::table::{Homes, Lane, Sink};
use super::dial::{Dialer, Driver, pause};
use super::link::{Backoff, Failure, Link, random};
use super::script::Scripts;
use crate::Following;
use ::redis::aio::MultiplexedConnection;
use ::redis::{PushInfo, PushKind, RedisResult, Value};
use std::collections::{HashMap, HashSet};
use std::convert::Infallible;
use std::sync::atomic::{AtomicU64, Ordering};
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

/// Between two attempts to subscribe what a server has just refused: it is learning who serves a slot.
const REFUSED_PAUSE: Duration = Duration::from_millis(50);

/// Where a lane's probe goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ProbeAt {
    /// In a slot of the lane's primary; there is nothing behind it.
    pub(super) key: String,
    /// In the same slot.
    pub(super) channel: String,
}

/// The node's followers and the connections that serve them.
pub(super) struct Feed {
    table: Mutex<Table>,
    lanes: Mutex<HashMap<Lane, Arc<Serving>>>,
    /// Tells this process's probes from those of another with the same node id.
    nonce: String,
    /// How often another primary was found to serve something.
    upheavals: AtomicU64,
}

/// One lane.
pub(super) struct Serving {
    lane: Lane,
    /// The table has something to do.
    dirty: Notify,
    /// `None` where the primary has no slots.
    probe_at: watch::Sender<Option<ProbeAt>>,
    /// Last probe that came back.
    echo: watch::Sender<u64>,
    /// When the last one did, also of a connection before this one; at first, when the lane was made.
    proved_at: Mutex<Instant>,
    /// Since when probes came back from one primary without a break, and when the last one did; none while the lane is
    /// being rebuilt.
    echoed: Mutex<Option<Echoed>>,
}

#[derive(Debug, Clone, Copy)]
struct Echoed {
    since: Instant,
    last: Instant,
}

/// What a lane needs to run.
pub(super) struct Supplies {
    /// Opens connections.
    pub(super) dialer: Dialer,
    /// Carry the probes, in turn.
    pub(super) links: Vec<Arc<Link>>,
    /// For the probe.
    pub(super) scripts: Arc<Scripts>,
    /// Somebody said that slots are elsewhere.
    pub(super) moved: Arc<Notify>,
}

impl Feed {
    /// A feed without lanes.
    pub(super) fn new(homes: Homes) -> Self {
        Self {
            table: Mutex::new(Table::new(homes)),
            lanes: Mutex::default(),
            nonce: format!("{:04x}{:04x}{:04x}", random(), random(), random()),
            upheavals: AtomicU64::new(0),
        }
    }

    /// A lane that [`Feed::keep`] will serve.
    pub(super) fn open(&self, lane: Lane, probe_at: Option<ProbeAt>) -> Arc<Serving> {
        let serving = Arc::new(Serving {
            lane,
            dirty: Notify::new(),
            probe_at: watch::Sender::new(probe_at),
            echo: watch::Sender::new(0),
            proved_at: Mutex::new(Instant::now()),
            echoed: Mutex::default(),
        });
        lock(&self.lanes).insert(lane, serving.clone());
        // A primary that is new to us may have been a replica.
        self.upheavals.fetch_add(1, Ordering::Relaxed);
        serving
    }

    /// The lane is no more.
    pub(super) fn close(&self, lane: Lane) {
        lock(&self.lanes).remove(&lane);
        self.table().close(lane);
    }

    /// Slots have other owners; `probes` says where each lane's probe goes now.
    pub(super) fn rehome(&self, homes: Homes, mut probes: HashMap<Lane, ProbeAt>) {
        for serving in lock(&self.lanes).values() {
            let probe_at = probes.remove(&serving.lane);
            serving.probe_at.send_if_modified(|now| {
                let is_other = *now != probe_at;
                *now = probe_at;
                is_other
            });
        }
        let busy = self.table().rehome(homes);
        busy.into_iter().for_each(|lane| self.wake(Some(lane)));
    }

    fn wake(&self, lane: Option<Lane>) {
        if let Some(serving) = lane.and_then(|lane| lock(&self.lanes).get(&lane).cloned()) {
            serving.dirty.notify_one();
        }
    }

    /// Registers `sink` until the guard is dropped.
    pub(super) fn follow(self: &Arc<Self>, channel: String, sink: Sink) -> Following {
        let (id, lane) = self.table().add(&channel, sink);
        self.wake(lane);
        let feed = Arc::downgrade(self);
        Following::new(move || {
            if let Some(feed) = feed.upgrade() {
                let gone = feed.table().remove(&channel, id, Instant::now());
                drop(gone);
            }
        })
    }

    /// Whether the last probe of some lane came back in time. One primary of many that does not answer stops its own
    /// sessions, at every node alike: those of the others have nowhere else to go.
    pub(super) fn is_ready(&self) -> bool {
        let lanes = lock(&self.lanes);
        let mut probed = lanes.values().filter(|serving| serving.probe_at.borrow().is_some());
        probed.any(|serving| serving.steady_since().is_some())
    }

    /// For how long the probes of a lane have come back in time, from one and the same primary.
    pub(super) fn steady_for(&self, lane: Lane) -> Option<Duration> {
        Some(lock(&self.lanes).get(&lane)?.steady_since()?.elapsed())
    }

    /// How often another primary was found to serve something.
    pub(super) fn upheavals(&self) -> u64 {
        self.upheavals.load(Ordering::Relaxed)
    }

    /// How long ago the last probe came back, of the lane where that is longest ago.
    pub(super) fn probe_age(&self) -> Option<Duration> {
        let lanes = lock(&self.lanes);
        let probed = lanes.values().filter(|serving| serving.probe_at.borrow().is_some());
        probed.map(|serving| lock(&serving.proved_at).elapsed()).max()
    }

    /// Connects a lane, serves it, and connects it again, for ever.
    pub(super) async fn keep(self: &Arc<Self>, serving: &Arc<Serving>, supplies: &Supplies) -> Infallible {
        let mut backoff = Backoff::default();
        let mut generation = 0;
        let mut probe = Probe::default();
        let mut finds = supplies.dialer.finds();
        loop {
            generation += 1;
            let Err(why) = self.serve(serving, supplies, generation, &mut probe).await;
            if lock(&serving.echoed).take().is_some() {
                backoff = Backoff::default();
                tracing::warn!(why, "the live feed is rebuilt");
                // What was found before that is lost again.
                finds.mark_unchanged();
            }
            supplies.moved.notify_one();
            pause(backoff.next(), &mut finds).await;
        }
    }

    /// One connection's life.
    async fn serve(
        self: &Arc<Self>,
        serving: &Arc<Serving>,
        supplies: &Supplies,
        generation: u64,
        probe: &mut Probe,
    ) -> Result<Infallible, String> {
        let (feed, to) = (self.clone(), serving.clone());
        let dialled = supplies.dialer.dial(move |push| feed.on_push(&to, generation, &push)).await;
        let mut dialled = dialled.map_err(Failure::why)?;
        let driver: Driver = dialled.driver;
        self.table().restart(serving.lane, generation);
        tokio::select! {
            result = self.subscribe(serving, supplies, dialled.connection.clone()) => result.map_err(Failure::why),
            result = self.probe(serving, supplies, dialled.connection.clone(), probe) => result,
            () = driver => Err("the connection is lost".into()),
            () = dialled.stale.wait() => Err("it is not the primary any more".into()),
        }
    }

    /// Keeps the server's subscriptions as the table wants them.
    async fn subscribe(
        &self,
        serving: &Serving,
        supplies: &Supplies,
        mut connection: MultiplexedConnection,
    ) -> Result<Infallible, Failure> {
        let lane = serving.lane;
        loop {
            let batch = {
                let (mut table, now) = (self.table(), Instant::now());
                table.sweep(lane, now);
                table.sweep_asked(lane, now);
                table.next_batch(lane, SUBSCRIBE_BATCH, now)
            };
            if batch.is_empty() {
                // The time-out is for the sweep.
                drop(timeout(PROBE_EVERY, serving.dirty.notified()).await);
                continue;
            }
            batch.live.iter().for_each(Sink::doubt);
            let subscribe = batch.subscribe.iter().map(|channel| (channel, true));
            let commands: Vec<_> =
                subscribe.chain(batch.unsubscribe.iter().map(|channel| (channel, false))).collect();
            if commands.is_empty() {
                continue;
            }
            let refused = send(&mut connection, &commands).await?;
            if !refused.is_empty() {
                refused.into_iter().for_each(|slot| self.table().refused(lane, slot));
                supplies.moved.notify_one();
                sleep(REFUSED_PAUSE).await;
            }
        }
    }

    /// Sends probes and waits for each to come back.
    async fn probe(
        &self,
        serving: &Serving,
        supplies: &Supplies,
        mut connection: MultiplexedConnection,
        probe: &mut Probe,
    ) -> Result<Infallible, String> {
        let mut wanted = serving.probe_at.subscribe();
        let mut subscribed = None;
        loop {
            let started = Instant::now();
            let Some(at) = wanted.borrow_and_update().clone() else {
                drop(wanted.changed().await);
                continue;
            };
            if subscribed.as_ref() != Some(&at) {
                let refused = send(&mut connection, &[(&at.channel, true)]).await.map_err(Failure::why)?;
                if !refused.is_empty() {
                    return Err("the slot of the probe is elsewhere".into());
                }
                subscribed = Some(at.clone());
            }
            probe.number += 1;
            let number = probe.number;
            let turn = usize::try_from(number).unwrap_or(0) % supplies.links.len();
            let link = &supplies.links[turn];
            let payload = format!("{} {number}", self.nonce);
            let round_trip = async {
                let args = [at.channel.as_bytes(), payload.as_bytes()];
                let primary: String =
                    link.call(|by| supplies.scripts.probe.call(by, &[&at.key], &args)).await?;
                if !primary.is_empty() {
                    drop(serving.echo.subscribe().wait_for(|echo| *echo >= number).await);
                }
                Ok::<_, Failure>(primary)
            };
            match timeout(PROBE_MAX, round_trip).await {
                // What only reads would not notice.
                Ok(Ok(primary)) if primary.is_empty() => {
                    link.suspect();
                    return Err("it is not the primary any more".into());
                }
                Ok(Ok(primary)) => {
                    let is_other =
                        probe.primary.replace(primary.clone()).is_some_and(|before| before != primary);
                    serving.on_steady(is_other);
                    if is_other {
                        tracing::warn!("another primary serves the store");
                        self.upheavals.fetch_add(1, Ordering::Relaxed);
                        let everybody = self.table().everybody(serving.lane);
                        everybody.iter().for_each(Sink::doubt);
                    }
                }
                // Its slot is on the move, or has gone elsewhere, and where it goes now is known already.
                Ok(Err(Failure::Ask { .. } | Failure::Again(_))) => {}
                Ok(Err(_)) | Err(_) if wanted.has_changed().unwrap_or(false) => continue,
                Ok(Err(error)) => return Err(format!("the probe was not sent: {}", error.why())),
                Err(_) => {
                    // It may as well be the link that swallows what it is given.
                    link.retire();
                    return Err("the probe did not come back".into());
                }
            }
            sleep_until(started + PROBE_EVERY).await;
        }
    }

    /// Routes what a server sends. Called by the connection's own task, so it must not block.
    fn on_push(&self, serving: &Serving, generation: u64, push: &PushInfo) {
        let [Value::BulkString(channel), rest @ ..] = push.data.as_slice() else { return };
        let Ok(channel) = std::str::from_utf8(channel) else { return };
        let lane = serving.lane;
        // No follower is called while the table is locked: it may follow or leave.
        match (&push.kind, rest) {
            (PushKind::SMessage, [Value::BulkString(payload)]) => {
                let sinks = self.table().sinks(channel);
                if sinks.is_empty() {
                    self.on_echo(serving, payload);
                } else {
                    table::deliver(&sinks, payload);
                }
            }
            (PushKind::SSubscribe, _) => {
                let sinks = self.table().subscribed(lane, generation, channel);
                sinks.iter().for_each(|(_, sink)| sink.doubt());
            }
            (PushKind::SUnsubscribe, _) => {
                if self.table().unsubscribed(lane, generation, channel) {
                    tracing::warn!(channel, "redis ended a subscription by itself");
                }
                serving.dirty.notify_one();
            }
            _ => {}
        }
    }

    /// What nobody follows may be a probe.
    fn on_echo(&self, serving: &Serving, payload: &[u8]) {
        let number = std::str::from_utf8(payload).ok().and_then(|text| text.strip_prefix(&self.nonce));
        if let Some(number) = number.and_then(|text| text.trim_start().parse().ok()) {
            serving.echo.send_replace(number);
        }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        lock(&self.table)
    }
}

impl Serving {
    /// Since when probes came back from one primary, if the last one did in time.
    fn steady_since(&self) -> Option<Instant> {
        let echoed = (*lock(&self.echoed))?;
        (echoed.last.elapsed() < READY_FOR).then_some(echoed.since)
    }

    /// A probe came back.
    fn on_steady(&self, is_other_primary: bool) {
        let (now, before) = (Instant::now(), if is_other_primary { None } else { self.steady_since() });
        *lock(&self.proved_at) = now;
        *lock(&self.echoed) = Some(Echoed { since: before.unwrap_or(now), last: now });
    }
}

/// What the probes know from one connection to the next.
#[derive(Default)]
struct Probe {
    number: u64,
    /// The primary that sent the last one.
    primary: Option<String>,
}

/// Subscribes (`true`) and unsubscribes channels. One command each: in a cluster, one command takes only one slot. Returns
/// the slots that this server does not serve, for now: which answer belongs to which command cannot be told, since the
/// driver takes what a server says unasked for one.
async fn send(
    connection: &mut MultiplexedConnection,
    commands: &[(&String, bool)],
) -> Result<HashSet<u16>, Failure> {
    let mut pipeline = ::redis::pipe();
    for (channel, subscribe) in commands {
        pipeline.cmd(if *subscribe { "SSUBSCRIBE" } else { "SUNSUBSCRIBE" }).arg(channel);
    }
    let answers: Vec<RedisResult<Value>> = pipeline.ignore_errors().query_async(connection).await?;
    let mut elsewhere = HashSet::new();
    for error in answers.into_iter().filter_map(Result::err) {
        match error.redirect_node() {
            Some((_, slot)) => drop(elsewhere.insert(slot)),
            None => return Err(error.into()),
        }
    }
    Ok(elsewhere)
}

/// Nothing here panics while it holds a lock, so what a lock guards is whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
