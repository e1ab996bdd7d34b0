//! The embedded engine: the store on a local disk, or in memory, in one process.
//!
//! [`Embedded`] is a handle. One thread, the [`writer`], owns every session as plain Rust, and commits requests in groups
//! to redb; it answers and wakes followers only after the commit. Readers see what is committed: in memory ([`views`])
//! what was written lately, else the file, without waiting for the writer.
//!
//! Invariant: what was acknowledged is in the file, and a restart finds it. A start begins a new epoch; a session moves to
//! it with its first write. Liveness of workers, leases and marks of delivered controls are kept in memory only.
//!
//! A request has a deadline on tokio's clock, while the writer works on a thread that a paused clock does not wait for:
//! tests with a paused clock may see deadlines pass at once.

mod delivered;
mod disk;
mod gone;
mod group;
mod leases;
mod lenient;
mod liveness;
mod people;
mod plant;
mod pools;
mod presence;
mod registry;
mod scan;
mod session;
mod trim;
mod views;
mod whole;
mod writer;

use crate::{
    Base, Deleted, Device, Due, Error, Fold, Folded, Follower, Following, Head, Interest, Keeping, Listed,
    Loaded, Page, Plant, Planted, PresenceChange, Present, Refusal, Renewal, Scanned, Store, Stub, StubInfo,
    Stubbed, Taken, TenantFollower, Trim, Trimmed, Turn, Waiting, WorkItem, Write, Written,
};
use everthread_protocol::{
    ControlId, Cursor, DeviceId, Epoch, Level, Millis, NodeId, PoolKey, Record, Seq, SessionId, SessionKey,
    TenantId, Version, WorkerId,
};
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use writer::{Reply, Request};

/// Requests that wait for the writer; more wait in their callers.
const QUEUE_MAX: usize = 1024;
/// How long a request waits for a place in that queue. Nothing is written if it gets none.
const QUEUE_WAIT: Duration = Duration::from_secs(5);
/// How long it then waits for its commit.
const ANSWER_WAIT: Duration = Duration::from_secs(10);

/// How long a reader that is ahead of what is shown waits for it.
const SHOWN_PAUSE: Duration = Duration::from_millis(1);
/// Memory for sessions and their recent records.
const CACHE_BYTES_MAX: usize = 128 * 1024 * 1024;

/// What [`Embedded::open`] needs.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where the database is. None: in memory only, and gone with the process.
    pub dir: Option<PathBuf>,
    /// What an acknowledged write survives.
    pub durability: Durability,
}

/// What an acknowledged write survives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Durability {
    /// The machine losing power: every group of writes is synced to the disk before its answers.
    #[default]
    PowerCut,
    /// The process being killed: every group is handed to the operating system before its answers, and synced once a
    /// second. A power cut may cost the database as a whole, not only its last second: for development.
    Crash,
}

/// The embedded engine. Clones are handles of the same one; dropping the last one waits for the writer to finish what is
/// queued, and closes the file.
#[derive(Debug, Clone)]
pub struct Embedded(Arc<Handle>);

#[derive(Debug)]
struct Handle {
    shared: Arc<Shared>,
    /// None only while it is dropped.
    requests: Option<mpsc::Sender<Request>>,
    writer: Option<JoinHandle<()>>,
}

/// What readers and the writer share.
struct Shared {
    disk: disk::Disk,
    views: views::Views,
    followers: Arc<registry::Registry<SessionKey, Interested>>,
    watchers: Arc<registry::Registry<PoolKey, Wake>>,
    tenants: Arc<registry::Registry<TenantId, Arc<dyn TenantFollower>>>,
    liveness: liveness::Liveness,
    delivered: delivered::Delivered,
    presence: presence::Presence,
    gone: gone::Gone,
    clock: Clock,
    failure: OnceLock<String>,
    opened: Instant,
    /// Whether what is answered is on the disk.
    is_synced: bool,
}

type Interested = (Interest, Arc<dyn Follower>);
type Wake = Arc<dyn Fn() + Send + Sync>;

impl Embedded {
    /// Opens or creates the database. Blocks: for long if the last process was killed and the database is large.
    pub fn open(options: Options) -> Result<Self, Error> {
        Self::open_with(&options, CACHE_BYTES_MAX)
    }

    fn open_with(options: &Options, cached_bytes_max: usize) -> Result<Self, Error> {
        let disk::Opened { disk, boot, clock, sessions, pools, deadlines } =
            disk::Disk::open(options, wall_us())?;
        let shared = Arc::new(Shared {
            disk,
            views: views::Views::default(),
            followers: Arc::default(),
            watchers: Arc::default(),
            tenants: Arc::default(),
            liveness: liveness::Liveness::default(),
            delivered: delivered::Delivered::default(),
            presence: presence::Presence::default(),
            gone: gone::Gone::default(),
            clock: Clock(AtomicU64::new(clock.0)),
            failure: OnceLock::new(),
            opened: Instant::now(),
            is_synced: options.dir.is_some() && options.durability == Durability::PowerCut,
        });
        let writer = writer::Writer {
            shared: shared.clone(),
            boot,
            numbers: group::Numbers { sessions, clock: clock.0, epoch: boot.0 },
            sessions: HashMap::new(),
            staging: plant::Staging::default(),
            pools: pools::Pools::stored(pools),
            deadlines: pools::Deadlines::stored(deadlines),
            devices: people::Devices::default(),
            groups: 0,
            cached_bytes: 0,
            cached_bytes_max,
        };
        let (requests, queue) = mpsc::channel(QUEUE_MAX);
        let writer = std::thread::Builder::new()
            .name("store-writer".to_owned())
            .spawn(move || writer.run(queue))
            .map_err(|e| Error::Unavailable(format!("no thread for the writer: {e}")))?;
        Ok(Self(Arc::new(Handle { shared, requests: Some(requests), writer: Some(writer) })))
    }

    /// One in memory only.
    pub fn memory() -> Result<Self, Error> {
        Self::open(Options { dir: None, durability: Durability::default() })
    }

    /// Asks the writer. Not cancel safe: the request may be carried out.
    async fn ask<T>(&self, request: impl FnOnce(Reply<T>) -> Request + Send) -> Result<T, Error>
    where
        T: Send,
    {
        let closed = || Error::Unavailable("the writer has stopped".to_owned());
        let requests = self.0.requests.as_ref().ok_or_else(closed)?;
        let (reply, answer) = oneshot::channel();
        match tokio::time::timeout(QUEUE_WAIT, requests.reserve()).await {
            Ok(Ok(place)) => place.send(request(reply)),
            Ok(Err(_)) => return Err(closed()),
            Err(_) => return Err(Error::Unavailable("the writer's queue is full".to_owned())),
        }
        match tokio::time::timeout(ANSWER_WAIT, answer).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(Error::Indeterminate("the writer has stopped".to_owned())),
            Err(_) => Err(Error::Indeterminate("the local database is slow".to_owned())),
        }
    }

    /// Reads the file on a thread that may block.
    async fn on_disk<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Shared) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let shared = self.0.shared.clone();
        let reading = tokio::task::spawn_blocking(move || read(&shared));
        match tokio::time::timeout(ANSWER_WAIT, reading).await {
            Ok(Ok(result)) => result,
            Ok(Err(e)) => Err(Error::Unavailable(format!("a read of the local database ended: {e}"))),
            Err(_) => Err(Error::Unavailable("the local database is slow".to_owned())),
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        drop(self.requests.take());
        let Some(writer) = self.writer.take() else { return };
        // A follower may hold the last handle; the writer cannot wait for itself.
        if writer.thread().id() != std::thread::current().id() && writer.join().is_err() {
            tracing::error!("the writer of the embedded store panicked");
        }
    }
}

impl Store for Embedded {
    type Here = Self;

    fn here(&self) -> &Self {
        self
    }

    async fn load(&self, key: &SessionKey) -> Result<Option<Loaded>, Error> {
        let now = self.0.shared.clock.now();
        if let Some(loaded) = self.0.shared.views.load(key, now) {
            return Ok(Some(loaded));
        }
        let key = key.clone();
        self.on_disk(move |shared| {
            let stored = shared.disk.loaded(&key)?;
            Ok(stored.map(|stored| shared.views.load_stored(&key, stored, now)))
        })
        .await
    }

    async fn write(&self, key: &SessionKey, write: Write<'_>) -> Result<Written, Error> {
        let (key, write) = (key.clone(), Box::new(session::OwnedWrite::of(&write)));
        self.ask(|reply| Request::Write(key, write, reply)).await
    }

    fn offers(&self, level: Level) -> bool {
        match level {
            Level::Accepted => true,
            Level::Replicated => false,
            Level::Fsynced => self.0.shared.is_synced,
        }
    }

    fn usual_level(&self, _key: &SessionKey) -> Level {
        Level::Accepted
    }

    /// What was answered was committed before.
    async fn confirm(&self, _key: &SessionKey, _written: &Written, level: Level) -> Result<(), Error> {
        crate::check_level(self, level)
    }

    fn keeping(&self, _key: &SessionKey) -> Keeping {
        Keeping::Answered
    }

    async fn read(&self, key: &SessionKey, after: Seq, bytes_max: usize) -> Result<Page, Error> {
        let shared = &self.0.shared;
        loop {
            if let Some(page) = shared.views.page(key, after, bytes_max) {
                return Ok(page);
            }
            let of = key.clone();
            let page = self.on_disk(move |shared| shared.disk.page(&of, after, bytes_max)).await?;
            let page = page.ok_or(Refusal::NoSession)?;
            // A commit is in the file a moment before it is shown. Whoever got it now could get less with the next read, from
            // memory, and would take it for a log that has lost its end.
            if !shared.views.is_before(key, &page.head) || shared.failure().is_some() {
                return Ok(page);
            }
            tokio::time::sleep(SHOWN_PAUSE).await;
        }
    }

    async fn fold(&self, key: &SessionKey, fold: Fold<'_>) -> Result<Folded, Error> {
        let (key, fold) = (key.clone(), Box::new(writer::OwnedFold::of(fold)?));
        self.ask(|reply| Request::Fold(key, fold, reply)).await
    }

    async fn trim(&self, key: &SessionKey, trim: Trim<'_>) -> Result<Trimmed, Error> {
        let (key, trim) = (key.clone(), Box::new(trim::OwnedTrim::of(trim)?));
        self.ask(|reply| Request::Trim(key, trim, reply)).await
    }

    async fn base(&self, key: &SessionKey) -> Result<Option<Base>, Error> {
        let key = key.clone();
        self.on_disk(move |shared| shared.disk.base(&key)).await
    }

    async fn stage(&self, key: &SessionKey, name: &str, records: &[Record]) -> Result<(), Error> {
        self.stage_records(key, name, records).await
    }

    async fn plant(&self, key: &SessionKey, name: &str, plant: Plant<'_>) -> Result<Planted, Error> {
        self.plant_session(key, name, plant).await
    }

    async fn stub(&self, key: &SessionKey, stub: Stub<'_>) -> Result<Stubbed, Error> {
        self.stub_session(key, stub).await
    }

    async fn stubbed(&self, keys: &[SessionKey]) -> Result<Vec<Option<StubInfo>>, Error> {
        self.stubs_of(keys).await
    }

    async fn heads(&self, keys: &[SessionKey]) -> Result<Vec<Option<Head>>, Error> {
        let mut heads: Vec<Option<Head>> = keys.iter().map(|key| self.0.shared.views.head(key)).collect();
        let missing: Vec<usize> = (0..keys.len()).filter(|&at| heads[at].is_none()).collect();
        if !missing.is_empty() {
            let keys: Vec<SessionKey> = missing.iter().map(|&at| keys[at].clone()).collect();
            let found = self.on_disk(move |shared| shared.disk.metas(&keys)).await?;
            for (at, meta) in missing.into_iter().zip(found) {
                heads[at] = meta.map(|meta| meta.to_head());
            }
        }
        Ok(heads)
    }

    async fn states(&self, keys: &[SessionKey]) -> Result<Vec<Option<Listed>>, Error> {
        self.listed(keys).await
    }

    async fn delete(&self, key: &SessionKey) -> Result<Option<Deleted>, Error> {
        let key = key.clone();
        self.ask(|reply| Request::Delete(key, None, reply)).await
    }

    async fn delete_if(&self, key: &SessionKey, expect: Version, head: Seq) -> Result<bool, Error> {
        let (key, expect) = (key.clone(), Some((expect, head)));
        Ok(self.ask(|reply| Request::Delete(key, expect, reply)).await?.is_some())
    }

    async fn gone(&self, key: &SessionKey) -> Result<Option<Epoch>, Error> {
        Ok(self.0.shared.gone.of(key, Instant::now()))
    }

    async fn renew(&self, renewals: &[Renewal]) -> Result<Vec<Option<Head>>, Error> {
        let Shared { views, clock, .. } = &*self.0.shared;
        let now = clock.now();
        let mut heads: Vec<Option<Head>> = renewals.iter().map(|one| views.renew(one, None, now)).collect();
        let missing: Vec<usize> = (0..heads.len()).filter(|&at| heads[at].is_none()).collect();
        if !missing.is_empty() {
            // Not in memory, as after a restart: the file knows the fences.
            let keys: Vec<SessionKey> = missing.iter().map(|&at| renewals[at].key.clone()).collect();
            let found = self.on_disk(move |shared| shared.disk.metas(&keys)).await?;
            let now = clock.now();
            for (at, meta) in missing.into_iter().zip(found) {
                heads[at] = meta.and_then(|meta| views.renew(&renewals[at], Some(&meta), now));
            }
        }
        Ok(heads)
    }

    async fn mark_delivered(
        &self,
        key: &SessionKey,
        control: &ControlId,
        worker: &WorkerId,
    ) -> Result<(), Error> {
        if self.heads(std::slice::from_ref(key)).await? == [None] {
            return Ok(());
        }
        self.0.shared.delivered.mark(key, control, worker, Instant::now());
        for (interest, follower) in self.0.shared.followers.of(key) {
            if interest == Interest::Control {
                follower.changed();
            }
        }
        Ok(())
    }

    async fn delivered(
        &self,
        key: &SessionKey,
        controls: &[ControlId],
    ) -> Result<Vec<Option<WorkerId>>, Error> {
        Ok(self.0.shared.delivered.to(key, controls, Instant::now()))
    }

    fn follow(&self, key: &SessionKey, interest: Interest, follower: Arc<dyn Follower>) -> Following {
        let following = self.0.shared.followers.add(key, (interest, follower.clone()));
        // Whatever was written before this line may have been missed.
        follower.doubt();
        following
    }

    async fn index(&self, key: &SessionKey, at: Millis) -> Result<(), Error> {
        let key = key.clone();
        self.ask(|reply| Request::Index(key, at, reply)).await
    }

    fn follow_tenant(&self, tenant: &TenantId, follower: Arc<dyn TenantFollower>) -> Following {
        let following = self.0.shared.tenants.add(tenant, follower.clone());
        // Whatever was indexed before this line may have been missed.
        follower.doubt();
        following
    }

    async fn unindex(&self, key: &SessionKey, at: Millis) -> Result<(), Error> {
        let key = key.clone();
        self.ask(|reply| Request::Unindex(key, at, reply)).await
    }

    async fn sessions(
        &self,
        tenant: &TenantId,
        after: Option<(Millis, SessionId)>,
        limit: usize,
    ) -> Result<Vec<(SessionId, Millis)>, Error> {
        let tenant = tenant.clone();
        self.on_disk(move |shared| shared.disk.sessions(&tenant, after, limit)).await
    }

    async fn enqueue(&self, pool: &PoolKey, item: &WorkItem) -> Result<(), Error> {
        let (pool, item) = (pool.clone(), Box::new(item.clone()));
        self.ask(|reply| Request::Enqueue(pool, item, reply)).await
    }

    async fn take(&self, pool: &PoolKey, _consumer: &NodeId, limit: usize) -> Result<Vec<Taken>, Error> {
        let pool = pool.clone();
        self.ask(|reply| Request::Take(pool, limit, reply)).await
    }

    async fn finish_item(&self, pool: &PoolKey, ticket: &str) -> Result<(), Error> {
        let (pool, ticket) = (pool.clone(), ticket.to_owned());
        self.ask(|reply| Request::FinishItem(pool, ticket, reply)).await
    }

    fn watch_pool(&self, pool: &PoolKey, wake: Wake) -> Following {
        self.0.shared.watchers.add(pool, wake)
    }

    async fn arm(&self, key: &SessionKey, at: Millis) -> Result<(), Error> {
        let key = key.clone();
        self.ask(|reply| Request::Arm(key, at, reply)).await
    }

    async fn claim_due(&self, limit: usize) -> Result<Vec<Due>, Error> {
        self.ask(|reply| Request::ClaimDue(limit, reply)).await
    }

    async fn finish_due(&self, due: &Due, next: Option<Millis>) -> Result<(), Error> {
        let due = due.clone();
        self.ask(|reply| Request::FinishDue(due, next, reply)).await
    }

    async fn beat(
        &self,
        tenant: &TenantId,
        worker: &WorkerId,
        holder: &str,
        ttl_ms: u64,
    ) -> Result<(), Error> {
        self.0.shared.liveness.beat(tenant, worker, holder, Duration::from_millis(ttl_ms));
        Ok(())
    }

    async fn holder(&self, tenant: &TenantId, worker: &WorkerId) -> Result<Option<String>, Error> {
        Ok(self.0.shared.liveness.holder(tenant, worker))
    }

    async fn bury(&self, tenant: &TenantId, worker: &WorkerId, holder: &str) -> Result<bool, Error> {
        Ok(self.0.shared.liveness.bury(tenant, worker, holder))
    }

    async fn ack(
        &self,
        key: &SessionKey,
        device: &DeviceId,
        cursor: Cursor,
    ) -> Result<Option<Cursor>, Error> {
        let (key, device) = (key.clone(), device.clone());
        self.ask(|reply| Request::Ack(key, device, cursor, reply)).await
    }

    async fn devices(&self, key: &SessionKey) -> Result<Vec<Device>, Error> {
        let (key, now) = (key.clone(), self.0.shared.clock.now());
        let mut devices = self.on_disk(move |shared| shared.disk.devices(&key)).await?;
        devices.retain(|device| !device.is_idle(now));
        Ok(devices)
    }

    async fn device_in(&self, keys: &[SessionKey], device: &DeviceId) -> Result<Vec<Option<Device>>, Error> {
        let (keys, device, now) = (keys.to_vec(), device.clone(), self.0.shared.clock.now());
        let found = self.on_disk(move |shared| shared.disk.device_in(&keys, &device)).await?;
        Ok(found.into_iter().map(|device| device.filter(|device| !device.is_idle(now))).collect())
    }

    async fn forget_device(&self, key: &SessionKey, device: &DeviceId) -> Result<bool, Error> {
        let (key, device) = (key.clone(), device.clone());
        self.ask(|reply| Request::ForgetDevice(key, device, reply)).await
    }

    async fn beat_node(&self, node: &NodeId, ttl_ms: u64) -> Result<bool, Error> {
        let ttl = Duration::from_millis(ttl_ms);
        Ok(self.0.shared.presence.beat(node, ttl, Instant::now()))
    }

    async fn living(&self, nodes: &[NodeId]) -> Result<Vec<bool>, Error> {
        Ok(self.0.shared.presence.living(nodes, Instant::now()))
    }

    async fn hold_present(
        &self,
        key: &SessionKey,
        node: &NodeId,
        changes: &[PresenceChange],
    ) -> Result<(), Error> {
        let Shared { presence, followers, clock, .. } = &*self.0.shared;
        presence.hold(key, node, changes, clock.now());
        for (interest, follower) in followers.of(key) {
            if interest == Interest::Presence {
                follower.changed();
            }
        }
        Ok(())
    }

    async fn present(&self, key: &SessionKey, told_max: usize) -> Result<Vec<Present>, Error> {
        Ok(self.0.shared.presence.present(key, told_max, Instant::now()))
    }

    async fn scan(&self, from: Option<&str>, limit: usize) -> Result<Scanned, Error> {
        let from = from.map(str::to_owned);
        self.on_disk(move |shared| shared.disk.scan(from.as_deref(), limit)).await
    }

    async fn waiting(&self, pool: &PoolKey, after: Option<&str>, limit: usize) -> Result<Waiting, Error> {
        let (pool, after) = (pool.clone(), after.map(str::to_owned));
        self.on_disk(move |shared| shared.disk.waiting(&pool, after.as_deref(), limit)).await
    }

    /// There is one node, and one commit has a session and its indexes.
    async fn rebuild_turn(&self, _node: &NodeId, _wanted: Duration, _lease: Duration) -> Result<Turn, Error> {
        Ok(Turn::Done)
    }

    async fn end_rebuild(&self, _node: &NodeId) -> Result<(), Error> {
        Ok(())
    }

    fn upheavals(&self) -> u64 {
        0
    }

    fn steady_for(&self, _key: &SessionKey) -> Option<Duration> {
        self.is_ready().then(|| self.0.shared.opened.elapsed())
    }

    fn is_ready(&self) -> bool {
        let working = self.0.requests.as_ref().is_some_and(|requests| !requests.is_closed());
        working && self.0.shared.failure.get().is_none()
    }

    fn probe_age(&self) -> Option<Duration> {
        None
    }
}

impl Shared {
    /// Why nothing is written any more, if so.
    fn failure(&self) -> Option<String> {
        self.failure.get().cloned()
    }

    /// Nothing is written any more.
    fn fail(&self, error: &Error) {
        tracing::error!(%error, "the embedded store has failed: it refuses writes until it is started anew");
        // Only the first failure counts; later ones follow from it.
        drop(self.failure.set(format!("{error}; start it anew")));
    }
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("failure", &self.failure).finish_non_exhaustive()
    }
}

/// The store's clock: the machine's, but never backwards, also over restarts.
#[derive(Debug)]
struct Clock(AtomicU64);

impl Clock {
    fn now(&self) -> Millis {
        self.both().0
    }

    /// The time in milliseconds and microseconds.
    fn both(&self) -> (Millis, u64) {
        let wall = wall_us();
        let last = self.0.fetch_max(wall / 1000, Ordering::Relaxed);
        let now = last.max(wall / 1000);
        (Millis(now), wall.max(now * 1000))
    }
}

fn wall_us() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Change;
    fn write(n: u64, expect: Option<Version>, state: &str) -> Write<'_> {
        let change =
            Change { expect, state, next_due: None, grant: None, lease_ms: 0, revoke: &[], unwritten: None };
        Write {
            by: r#"{"kind":"system","id":"t"}"#,
            run: None,
            entries: r#"[{"type":"x-a"}]"#,
            count: 1,
            producer: Some(crate::Producer { key: "run:r", incarnation: 1, batch: n, answer: "" }),
            fence: None,
            change: Some(change),
            not_after: None,
        }
    }

    #[tokio::test]
    async fn sessions_that_leave_the_memory_are_as_they_were_when_they_come_back() {
        const SESSIONS: u64 = 40;
        let options = Options { dir: None, durability: Durability::default() };
        // Room for a few sessions only.
        let store = Embedded::open_with(&options, 20_000).unwrap();
        let key = |n: u64| -> SessionKey { format!("acme/s{n}").parse().unwrap() };
        let mut evicted = 0;
        for round in 1..=6 {
            for n in 0..SESSIONS {
                let key = key(n);
                let version = store.load(&key).await.unwrap().map(|loaded| loaded.version);
                evicted += u64::from(round > 1 && store.0.shared.views.head(&key).is_none());
                let state = "s".repeat(usize::try_from(n * 37 + round).unwrap());
                let written = store.write(&key, write(round, version, &state)).await.unwrap();
                assert_eq!((written.to, written.version.n), (Seq(round), round));
                let repeated =
                    store.write(&key, Write { change: None, ..write(round, None, "") }).await.unwrap();
                assert!(repeated.duplicate.is_some());
                assert_eq!(store.load(&key).await.unwrap().unwrap().state, state);
                let page = store.read(&key, Seq(0), 1 << 20).await.unwrap();
                assert_eq!(page.records.len(), usize::try_from(round).unwrap());
            }
        }
        assert!(evicted > SESSIONS, "{evicted} were evicted");
    }

    #[tokio::test]
    async fn sessions_that_leave_the_memory_keep_their_leases() {
        let store =
            Embedded::open_with(&Options { dir: None, durability: Durability::default() }, 1).unwrap();
        let (key, run): (SessionKey, everthread_protocol::RunId) =
            ("acme/s".parse().unwrap(), "r1".parse().unwrap());
        let granting = |expect| {
            let whole = write(1, expect, "s");
            let change = whole.change.map(|c| Change { grant: Some(&run), lease_ms: 50, ..c });
            Write { change, ..whole }
        };
        let written = store.write(&key, granting(None)).await.unwrap();
        // The answer comes before the session leaves; the next request comes after.
        store.index(&key, Millis(1)).await.unwrap();
        assert_eq!(store.0.shared.views.head(&key), None);
        let lease = async || store.load(&key).await.unwrap().unwrap().leases;
        assert_eq!(lease().await, [(run.clone(), written.at.plus(50))]);
        let runs = vec![(run.clone(), written.fence.unwrap())];
        let renewal = Renewal { key: key.clone(), runs, left_ms: 60_000 };
        assert_eq!(store.renew(&[renewal]).await.unwrap()[0].unwrap().seq, written.to);
        assert_eq!(store.0.shared.views.head(&key), None, "a renewal brings no session into memory");
        assert!(lease().await[0].1 >= written.at.plus(60_000));
    }

    #[tokio::test]
    async fn after_a_failed_commit_nothing_is_written_and_what_was_is_read() {
        let store = Embedded::memory().unwrap();
        let key: SessionKey = "acme/s".parse().unwrap();
        let first = store.write(&key, write(1, None, "s")).await.unwrap();
        store.0.shared.fail(&Error::Indeterminate("the disk is full".to_owned()));
        let Err(Error::Unavailable(why)) = store.write(&key, write(2, Some(first.version), "t")).await else {
            panic!("written after a failure")
        };
        assert!(why.contains("the disk is full"), "{why}");
        assert!(matches!(store.claim_due(1).await, Err(Error::Unavailable(_))));
        assert!(!store.is_ready());
        assert_eq!(store.read(&key, Seq(0), 1000).await.unwrap().records.len(), 1);
    }

    #[test]
    fn the_clock_does_not_go_back_and_its_microseconds_agree() {
        let ahead = wall_us() / 1000 + 50_000;
        let clock = Clock(AtomicU64::new(ahead));
        assert_eq!(clock.both(), (Millis(ahead), ahead * 1000));
        let clock = Clock(AtomicU64::new(0));
        let (now, now_us) = clock.both();
        assert_eq!(now.0, now_us / 1000);
    }
}
