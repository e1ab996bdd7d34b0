//! What every test needs: a store of its own, nodes on it, HTTP, and people and workers that speak raw frames.

pub mod begun;
pub mod client;
pub mod history;
pub mod http;
pub mod socket;
pub mod worker;

use everthread_archive::{Archive, Bucket};
use everthread_control::{Leases, TaskGroup};
use everthread_edge::auth::Auth;
use everthread_edge::presence::Times;
use everthread_edge::{Config, Edge, archiving, folder, http as routes, listen, retention};
use everthread_protocol::NodeId;
use everthread_store::Store;
use everthread_store::embedded::{Durability, Embedded, Options as EmbeddedOptions};
use everthread_store::redis::{Options, Redis};
use everthread_testkit::{Proxy, RedisOptions, RedisServer};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tempfile::TempDir;
use tokio::net::{TcpSocket, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use begun::Begun;
pub use client::Client;
pub use http::Request;
pub use socket::{Heard, Socket};
pub use worker::Worker;

/// Opens every node of the tests.
pub const TOKEN: &str = "secret";
/// How long anything may take that is expected to happen.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// Long enough to answer pings in, and short enough to wait for its end.
pub const SHORT_LEASE: Duration = Duration::from_secs(4);
/// As the binary sets it.
const SEND_BUFFER_BYTES: u32 = 256 * 1024;

/// Runs each test on both engines.
macro_rules! on_both_engines {
    ($($name:ident),+ $(,)?) => {
        mod embedded {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$name::<crate::harness::OnEmbedded>().await;
            })+
        }
        mod redis {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$name::<crate::harness::OnRedis>().await;
            })+
        }
    };
}

/// A store that nodes are started on.
pub trait Engine: Sized + Send + Sync + 'static {
    type Store: Store;
    async fn start() -> Self;
    /// The store as one node has it.
    async fn store(&self, node: &NodeId) -> Arc<Self::Store>;
}

/// The embedded engine in a directory of its own. Its nodes share the one process that it allows.
pub struct OnEmbedded {
    store: Arc<Embedded>,
    _dir: TempDir,
}

impl Engine for OnEmbedded {
    type Store = Embedded;

    async fn start() -> Self {
        let dir = TempDir::new().unwrap();
        let options = EmbeddedOptions { dir: Some(dir.path().to_owned()), durability: Durability::PowerCut };
        Self { store: Arc::new(Embedded::open(options).unwrap()), _dir: dir }
    }

    async fn store(&self, _node: &NodeId) -> Arc<Embedded> {
        self.store.clone()
    }
}

/// A Redis server of its own. Each node reaches it through a proxy of its own, which can fail.
pub struct OnRedis {
    pub server: RedisServer,
    /// Of nodes that are started from now on: as patient as the tests are, unless Redis is to be found frozen.
    pub response_timeout: Duration,
    proxies: Mutex<HashMap<NodeId, Arc<Proxy>>>,
    stop: CancellationToken,
}

impl OnRedis {
    async fn start_with(append_only: bool) -> Self {
        let options = RedisOptions { tcp: true, append_only, ..RedisOptions::default() };
        let server = RedisServer::start_with(options).await.unwrap();
        let response_timeout = PATIENCE / 2;
        Self { server, response_timeout, proxies: Mutex::default(), stop: CancellationToken::new() }
    }

    /// The way of a node to Redis.
    pub fn proxy(&self, node: &NodeId) -> Arc<Proxy> {
        self.proxies.lock().unwrap()[node].clone()
    }
}

impl Engine for OnRedis {
    type Store = Redis;

    async fn start() -> Self {
        Self::start_with(false).await
    }

    async fn store(&self, node: &NodeId) -> Arc<Redis> {
        let proxy = Proxy::start(self.server.tcp_address()).await.unwrap();
        let options = Options::new(format!("redis://{}", proxy.address()), "et", node.clone());
        let options = Options { response_timeout: self.response_timeout, ..options };
        self.proxies.lock().unwrap().insert(node.clone(), Arc::new(proxy));
        Arc::new(Redis::connect(options, &TaskTracker::new(), &self.stop).await.unwrap())
    }
}

impl Drop for OnRedis {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// Folds that leave hardly anything raw: every test reads across seams.
const FOLDING: folder::Options = folder::Options { at_entries: 4, at_end_entries: 3, keep_entries: 1 };
/// None at all.
pub const NO_FOLDING: folder::Options =
    folder::Options { at_entries: u64::MAX, at_end_entries: u64::MAX, keep_entries: 0 };

/// A store and the settings of the nodes on it.
pub struct World<E> {
    pub engine: E,
    pub leases: Leases,
    pub hosts: Vec<String>,
    pub presence: Times,
    pub acks: everthread_control::Acks,
    pub rebuild_every: Duration,
    pub folding: folder::Options,
    /// Of clients.
    pub heartbeat: Duration,
    pub retention: retention::Options,
    pub upgrades_per_s: u32,
    nodes_made: std::sync::atomic::AtomicU32,
}

impl World<OnRedis> {
    /// On a Redis that keeps what it acknowledged through a restart.
    pub async fn on_file() -> Self {
        Self::on(OnRedis::start_with(true).await)
    }
}

impl<E: Engine> World<E> {
    pub async fn start() -> Self {
        Self::on(E::start().await)
    }

    /// Leases end soon: for tests of what happens then. Whoever is to keep one is to be heard meanwhile.
    pub async fn hurried() -> Self {
        let mut world = Self::start().await;
        world.leases.lease = SHORT_LEASE;
        world
    }

    /// Cancels are forced soon, and leases last.
    pub async fn forcing() -> Self {
        let mut world = Self::start().await;
        world.leases.cancel_grace = Duration::from_millis(800);
        world
    }

    /// Its nodes fold as they are told.
    pub async fn folding(folding: folder::Options) -> Self {
        Self { folding, ..Self::start().await }
    }

    fn on(engine: E) -> Self {
        let leases = Leases {
            // Who is slow is neither dead nor deaf, however slow this machine is: see `hurried` and `forcing`.
            lease: PATIENCE * 2,
            heartbeat: Duration::from_millis(250),
            return_grace: Duration::from_millis(600),
            cancel_grace: PATIENCE * 2,
        };
        let presence =
            Times { grace: Duration::from_millis(1_500), whole: Duration::from_secs(2), ..Times::default() };
        Self {
            engine,
            leases,
            hosts: Vec::new(),
            acks: everthread_control::Acks::default(),
            rebuild_every: Duration::from_secs(600),
            folding: FOLDING,
            // Many sockets of the tests are not read for as long as a test lasts, and answer no ping.
            heartbeat: Duration::from_secs(3_600),
            presence,
            retention: retention::Options::default(),
            upgrades_per_s: everthread_edge::admission::UPGRADES_PER_S,
            nodes_made: 0.into(),
        }
    }

    /// One more node.
    pub async fn node(&self) -> Node<E::Store> {
        let config = self.config();
        Node::start(Edge::start(self.engine.store(&config.node).await, config))
    }

    /// One more node, with an archive that takes sessions so long after their last entry.
    pub async fn archiving_node(&self, bucket: &Bucket, after: Duration) -> Node<Archive<E::Store>> {
        let config = self.config();
        bucket.begin().await.unwrap();
        let options = everthread_archive::Options::new(bucket.clone(), after);
        let store = Arc::new(Archive::new(self.engine.store(&config.node).await, Some(options)));
        let again = Duration::from_millis(200);
        let archive = Some(archiving::Options { again, ..archiving::Options::new(store.clone(), after) });
        Node::start(Edge::start(store, Config { archive, ..config }))
    }

    fn config(&self) -> Config {
        let number = self.nodes_made.fetch_add(1, std::sync::atomic::Ordering::Relaxed) + 1;
        let id: NodeId = format!("n{number}").parse().unwrap();
        Config {
            node: id,
            auth: Auth::new(TOKEN.into(), "default".parse().unwrap(), self.hosts.clone()),
            leases: self.leases.clone(),
            heartbeat: self.heartbeat,
            stall_max: Duration::from_secs(60),
            presence: self.presence.clone(),
            acks: self.acks,
            rebuild_every: self.rebuild_every,
            folding: self.folding,
            archive: None,
            upgrades_per_s: self.upgrades_per_s,
            retention: self.retention.clone(),
        }
    }
}

/// A node on a port of its own.
pub struct Node<S> {
    pub edge: Edge<S>,
    pub address: SocketAddr,
    server: TaskGroup,
}

impl<S: Store> Node<S> {
    fn start(edge: Edge<S>) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_send_buffer_size(SEND_BUFFER_BYTES).unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener = socket.listen(1024).unwrap();
        let address = listener.local_addr().unwrap();
        let server = TaskGroup::new();
        let tune = |stream: &TcpStream| drop(stream.set_nodelay(true));
        server.spawn(listen::serve(listener, routes::router(edge.clone()), tune, server.token()));
        Self { edge, address, server }
    }

    /// Stops as a deployment stops it.
    pub async fn drain(&self) {
        self.server.token().cancel();
        assert!(self.edge.drain(PATIENCE).await, "tasks did not end");
    }
}

impl<S> Drop for Node<S> {
    fn drop(&mut self) {
        self.server.token().cancel();
        self.edge.tasks.token().cancel();
    }
}

/// Numbers that look random and are the same every time.
pub struct Random(u64);

impl Random {
    pub fn seeded(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

/// Waits until `done` brings something, and fails with `what` if it never does.
pub async fn until<T>(what: &str, mut done: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        if let Some(found) = done().await {
            return found;
        }
        assert!(tokio::time::Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
