//! The Redis engine: Redis 7.0 or later, as one server, a primary that sentinels watch, or a cluster.
//!
//! Owns a constant number of connections to each primary: a few for commands, one for large replies, one for the live feed.
//! Every change of a session is one Lua script, so that Redis itself is the point where writers meet; nothing is
//! cached here. Invariant: a request that may have had effects and got no answer is [`Error::Indeterminate`], never a
//! clean failure.
//!
//! [`address`] reads what the operator wrote, [`dial`] opens connections, [`start`] waits for the first of them and looks whom it has found ([`check`]), [`sentinel`] knows where the primary is and
//! [`cluster`] which primary has which slot ([`slots`]); [`shard`] is what is connected to one primary, [`route`] the way of
//! a request to it; [`link`] keeps connections alive, [`confirm`] asks how sure writes are ([`sure`]), [`feed`] keeps subscriptions alive, [`keys`] names every key, `lua/` holds the scripts; [`write`], [`appends`], [`read`], [`fold`], [`plant`], [`whole`], [`leases`], [`people`], [`presence`] and [`index`]
//! translate between them and the trait.

mod address;
mod appends;
mod check;
mod cluster;
mod confirm;
mod counts;
mod dial;
mod feed;
mod fold;
mod index;
mod keys;
mod leases;
mod link;
mod people;
mod plant;
mod presence;
mod read;
mod rebuild;
mod route;
mod script;
mod sentinel;
mod shard;
mod slots;
mod start;
mod sure;
mod trim;
mod whole;
mod write;

use self::address::{Address, Endpoint, Kind};
pub use self::check::{Finding, Level, examine};
use self::cluster::Cluster;
use self::dial::Dialer;
use self::feed::{Feed, Homes, Lane, Sink};
use self::keys::{Keys, Tag};
use self::route::{Route, Shards};
use self::script::Scripts;
use self::sentinel::Sentinels;
use self::shard::{Crew, Way};
pub use self::start::StartError;
use crate::{
    Base, Deleted, Device, Due, Error, Fold, Folded, Follower, Following, Head, Interest, Keeping, Listed,
    Loaded, Page, Plant, Planted, PresenceChange, Present, Renewal, Scanned, Store, Stub, StubInfo, Stubbed,
    Taken, TenantFollower, Trim, Trimmed, Turn, Waiting, WorkItem, Write, Written,
};
use everthread_protocol::{
    ControlId, Cursor, DeviceId, Epoch, Millis, NodeId, PoolKey, Record, Seq, SessionId, SessionKey,
    TenantId, Version, WorkerId,
};
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// The lane of the one server.
const ONE: Lane = Lane(1);

/// Where Redis is and how to use it.
#[derive(Debug, Clone)]
pub struct Options {
    /// `redis://[user:password@]host:port[/db]`, `unix://path`,
    /// `redis-sentinel://[user:password@]host:port,host:port,…/NAME`, or
    /// `redis-cluster://[user:password@]host:port,host:port,…`; `rediss…` for TLS, with `?ca=`, `cert=` and `key=`
    /// for files, `sentinel-user=` and `sentinel-pass=` for the sentinels.
    pub url: String,
    /// First part of every key: two deployments on one Redis do not see each other.
    pub prefix: String,
    /// This node.
    pub node: NodeId,
    /// Connections for commands to each primary, at least 1. A few are enough for any load that one Redis takes.
    pub command_connections: usize,
    /// A request without an answer for so long has failed, and its connection is given up.
    pub response_timeout: Duration,
}

impl Options {
    /// A few connections, and five seconds for an answer.
    pub fn new(url: impl Into<String>, prefix: impl Into<String>, node: NodeId) -> Self {
        let response_timeout = Duration::from_secs(5);
        Self { url: url.into(), prefix: prefix.into(), node, command_connections: 2, response_timeout }
    }

    /// Whether they can be meant, and the files that they name be used. Asks nobody.
    pub fn check(&self) -> Result<(), Error> {
        Keys::new(&self.prefix)?;
        let address = Address::parse(&self.url)?;
        let nowhere = Endpoint::Tcp(String::new(), 0);
        Dialer::new(&address, nowhere, self.response_timeout).map(drop)
    }
}

/// The store on Redis. A cheap handle.
#[derive(Clone)]
pub struct Redis {
    inner: Arc<Inner>,
}

struct Inner {
    keys: Keys,
    scripts: Arc<Scripts>,
    shards: Shards,
    feed: Arc<Feed>,
}

impl std::fmt::Debug for Redis {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Redis").field("keys", &self.inner.keys).finish_non_exhaustive()
    }
}

impl Redis {
    /// Connects, and stays connected by tasks in `tasks` until `stop`. Fails if Redis cannot be used, or not within a few
    /// seconds: then whoever goes on trying cancels `stop` first.
    pub async fn connect(
        options: Options,
        tasks: &TaskTracker,
        stop: &CancellationToken,
    ) -> Result<Self, StartError> {
        let redis = Self::begin(&options, tasks, stop).map_err(|e| StartError::Lasting(e.to_string()))?;
        redis.started(&options).await?;
        Ok(redis)
    }

    /// A store whose tasks have begun to connect.
    fn begin(options: &Options, tasks: &TaskTracker, stop: &CancellationToken) -> Result<Self, Error> {
        let keys = Keys::new(&options.prefix)?;
        let address = Address::parse(&options.url)?;
        let (scripts, timeout) = (Arc::new(Scripts::new()), options.response_timeout);
        let crew = |homes| Crew {
            tasks: tasks.clone(),
            stop: stop.clone(),
            scripts: scripts.clone(),
            command_connections: options.command_connections,
            feed: Arc::new(Feed::new(homes)),
            response_timeout: timeout,
            moved: Arc::default(),
            lanes: AtomicU32::new(ONE.0),
        };
        let one = |dialer, endpoint: Endpoint| {
            let crew = crew(Homes::One(ONE));
            let shard = crew.shard(dialer, endpoint, None, Some(keys.probe(&options.node, 0)));
            (Shards::One(shard), crew.feed)
        };
        let (shards, feed) = match &address.kind {
            Kind::One(endpoint) => one(Dialer::new(&address, endpoint.clone(), timeout)?, endpoint.clone()),
            Kind::Sentinel { sentinels, name, login } => {
                let dialer = Dialer::new(&address, sentinels[0].clone(), timeout)?;
                let sentinels = Arc::new(Sentinels::new(&dialer, sentinels, name, login));
                let (kept, stop) = (sentinels.clone(), stop.clone());
                tasks.spawn(async move { stop.run_until_cancelled(kept.keep()).await });
                // For people: where it is may change.
                one(dialer.watched(sentinels), Endpoint::Tcp(name.clone(), 0))
            }
            Kind::Cluster(seeds) => {
                let dialer = Dialer::new(&address, seeds[0].clone(), timeout)?;
                let crew = crew(Homes::Many(Arc::new([])));
                let feed = crew.feed.clone();
                let by_name = address.tls.is_some();
                let cluster = Arc::new(Cluster::new(crew, dialer, seeds, by_name, &keys, &options.node));
                let (kept, stop) = (cluster.clone(), stop.clone());
                tasks.spawn(async move { stop.run_until_cancelled(kept.keep()).await });
                (Shards::Many(cluster), feed)
            }
        };
        Ok(Self { inner: Arc::new(Inner { keys, scripts, shards, feed }) })
    }

    /// The way to what `tag` names.
    fn at(&self, tag: Tag<'_>) -> Route<'_> {
        self.inner.shards.route(tag, Way::Commands)
    }

    /// The same for what is large.
    fn ranges(&self, tag: Tag<'_>) -> Route<'_> {
        self.inner.shards.route(tag, Way::Ranges)
    }
}

impl Store for Redis {
    type Here = Self;

    fn here(&self) -> &Self {
        self
    }

    async fn load(&self, key: &SessionKey) -> Result<Option<Loaded>, Error> {
        self.load_session(key).await
    }

    async fn write(&self, key: &SessionKey, write: Write<'_>) -> Result<Written, Error> {
        self.write_once(key, &write).await
    }

    fn offers(&self, level: everthread_protocol::Level) -> bool {
        self.offers_level(level)
    }

    fn usual_level(&self, key: &SessionKey) -> everthread_protocol::Level {
        self.usual_level_of(key)
    }

    async fn confirm(
        &self,
        key: &SessionKey,
        written: &Written,
        level: everthread_protocol::Level,
    ) -> Result<(), Error> {
        self.confirm_write(key, written, level).await
    }

    fn keeping(&self, key: &SessionKey) -> Keeping {
        self.keeping_of(key)
    }

    async fn read(&self, key: &SessionKey, after: Seq, bytes_max: usize) -> Result<Page, Error> {
        self.read_page(key, after, bytes_max).await
    }

    async fn fold(&self, key: &SessionKey, fold: Fold<'_>) -> Result<Folded, Error> {
        self.fold_records(key, fold).await
    }

    async fn trim(&self, key: &SessionKey, trim: Trim<'_>) -> Result<Trimmed, Error> {
        self.trim_log(key, trim).await
    }

    async fn base(&self, key: &SessionKey) -> Result<Option<Base>, Error> {
        self.base_of(key).await
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
        self.stubs_of(keys).await.into_iter().collect()
    }

    async fn heads(&self, keys: &[SessionKey]) -> Result<Vec<Option<Head>>, Error> {
        self.heads_of(keys).await.into_iter().collect()
    }

    async fn each_head(&self, keys: &[SessionKey]) -> Vec<Result<Option<Head>, Error>> {
        self.heads_of(keys).await
    }

    async fn states(&self, keys: &[SessionKey]) -> Result<Vec<Option<Listed>>, Error> {
        self.states_of(keys).await.into_iter().collect()
    }

    async fn each_state(&self, keys: &[SessionKey]) -> Vec<Result<Option<Listed>, Error>> {
        self.states_of(keys).await
    }

    async fn delete(&self, key: &SessionKey) -> Result<Option<Deleted>, Error> {
        self.delete_session(key, None).await
    }

    async fn delete_if(&self, key: &SessionKey, expect: Version, head: Seq) -> Result<bool, Error> {
        Ok(self.delete_session(key, Some((expect, head))).await?.is_some())
    }

    async fn gone(&self, key: &SessionKey) -> Result<Option<Epoch>, Error> {
        self.gone_epoch(key).await
    }

    async fn renew(&self, renewals: &[Renewal]) -> Result<Vec<Option<Head>>, Error> {
        self.renew_leases(renewals).await.into_iter().collect()
    }

    async fn each_renewed(&self, renewals: &[Renewal]) -> Vec<Result<Option<Head>, Error>> {
        self.renew_leases(renewals).await
    }

    async fn mark_delivered(
        &self,
        key: &SessionKey,
        control: &ControlId,
        worker: &WorkerId,
    ) -> Result<(), Error> {
        self.note_delivered(key, control, worker).await
    }

    async fn delivered(
        &self,
        key: &SessionKey,
        controls: &[ControlId],
    ) -> Result<Vec<Option<WorkerId>>, Error> {
        self.delivered_to(key, controls).await
    }

    fn follow(&self, key: &SessionKey, interest: Interest, follower: Arc<dyn Follower>) -> Following {
        let (channel, sink) = match interest {
            Interest::Log => (self.inner.keys.log(key), Sink::Log(follower)),
            Interest::Control => (self.inner.keys.control(key), Sink::Control(follower)),
            Interest::Presence => (self.inner.keys.presence(key), Sink::Control(follower)),
        };
        self.inner.feed.follow(channel, sink)
    }

    async fn index(&self, key: &SessionKey, at: Millis) -> Result<(), Error> {
        self.index_session(key, at).await
    }

    fn follow_tenant(&self, tenant: &TenantId, follower: Arc<dyn TenantFollower>) -> Following {
        self.inner.feed.follow(self.inner.keys.changed(tenant), Sink::Tenant(follower))
    }

    async fn unindex(&self, key: &SessionKey, at: Millis) -> Result<(), Error> {
        self.unindex_session(key, at).await
    }

    async fn sessions(
        &self,
        tenant: &TenantId,
        after: Option<(Millis, SessionId)>,
        limit: usize,
    ) -> Result<Vec<(SessionId, Millis)>, Error> {
        self.list_sessions(tenant, after, limit).await
    }

    async fn enqueue(&self, pool: &PoolKey, item: &WorkItem) -> Result<(), Error> {
        self.add_item(pool, item).await
    }

    async fn take(&self, pool: &PoolKey, consumer: &NodeId, limit: usize) -> Result<Vec<Taken>, Error> {
        self.take_items(pool, consumer, limit).await
    }

    async fn finish_item(&self, pool: &PoolKey, ticket: &str) -> Result<(), Error> {
        self.drop_item(pool, ticket).await
    }

    fn watch_pool(&self, pool: &PoolKey, wake: Arc<dyn Fn() + Send + Sync>) -> Following {
        self.inner.feed.follow(self.inner.keys.pool_wake(pool), Sink::Pool(wake))
    }

    async fn arm(&self, key: &SessionKey, at: Millis) -> Result<(), Error> {
        self.arm_session(key, at).await
    }

    async fn claim_due(&self, limit: usize) -> Result<Vec<Due>, Error> {
        self.claim_sessions(limit).await
    }

    async fn finish_due(&self, due: &Due, next: Option<Millis>) -> Result<(), Error> {
        self.finish_session(due, next).await
    }

    async fn beat(
        &self,
        tenant: &TenantId,
        worker: &WorkerId,
        holder: &str,
        ttl_ms: u64,
    ) -> Result<(), Error> {
        self.beat_worker(tenant, worker, holder, ttl_ms).await
    }

    async fn holder(&self, tenant: &TenantId, worker: &WorkerId) -> Result<Option<String>, Error> {
        self.holder_of(tenant, worker).await
    }

    async fn bury(&self, tenant: &TenantId, worker: &WorkerId, holder: &str) -> Result<bool, Error> {
        self.bury_worker(tenant, worker, holder).await
    }

    async fn ack(
        &self,
        key: &SessionKey,
        device: &DeviceId,
        cursor: Cursor,
    ) -> Result<Option<Cursor>, Error> {
        self.ack_device(key, device, cursor).await
    }

    async fn devices(&self, key: &SessionKey) -> Result<Vec<Device>, Error> {
        self.list_devices(key).await
    }

    async fn device_in(&self, keys: &[SessionKey], device: &DeviceId) -> Result<Vec<Option<Device>>, Error> {
        self.device_in_many(keys, device).await
    }

    async fn forget_device(&self, key: &SessionKey, device: &DeviceId) -> Result<bool, Error> {
        self.drop_device(key, device).await
    }

    async fn beat_node(&self, node: &NodeId, ttl_ms: u64) -> Result<bool, Error> {
        self.beat_for_node(node, ttl_ms).await
    }

    async fn living(&self, nodes: &[NodeId]) -> Result<Vec<bool>, Error> {
        self.living_of(nodes).await
    }

    async fn hold_present(
        &self,
        key: &SessionKey,
        node: &NodeId,
        changes: &[PresenceChange],
    ) -> Result<(), Error> {
        self.change_present(key, node, changes).await
    }

    async fn present(&self, key: &SessionKey, told_max: usize) -> Result<Vec<Present>, Error> {
        self.present_in(key, told_max).await
    }

    async fn scan(&self, from: Option<&str>, limit: usize) -> Result<Scanned, Error> {
        self.scan_sessions(from, limit).await
    }

    async fn waiting(&self, pool: &PoolKey, after: Option<&str>, limit: usize) -> Result<Waiting, Error> {
        self.waiting_items(pool, after, limit).await
    }

    async fn rebuild_turn(&self, node: &NodeId, wanted: Duration, lease: Duration) -> Result<Turn, Error> {
        self.turn_of(node, wanted, Some(lease)).await
    }

    async fn end_rebuild(&self, node: &NodeId) -> Result<(), Error> {
        self.turn_of(node, Duration::ZERO, None).await.map(drop)
    }

    fn upheavals(&self) -> u64 {
        self.inner.feed.upheavals()
    }

    fn steady_for(&self, key: &SessionKey) -> Option<Duration> {
        let shard = self.inner.shards.shard(Tag::Session(key))?;
        self.inner.feed.steady_for(shard.lane)
    }

    fn is_ready(&self) -> bool {
        self.inner.feed.is_ready()
    }

    fn probe_age(&self) -> Option<Duration> {
        self.inner.feed.probe_age()
    }

    fn collectors(&self) -> Vec<Box<dyn prometheus::core::Collector>> {
        self.inner.scripts.counts.collectors()
    }
}
