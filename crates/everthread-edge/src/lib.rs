//! The front: HTTP and WebSocket for clients and workers.
//!
//! Life of a connection: [`http`] routes the request, [`auth`] says who it is, `socket` makes it a WebSocket, and one task
//! ([`mod@client`] or [`mod@worker`]) serves it to its end. Life of an entry: a worker's block is checked once, written by the
//! store, pushed by the store's feed into the session's [`tail`], and read from there by every attachment with its cursor.
//! Between the socket and the store there is no queue in either direction but the worker's batch in flight and the ring.
//!
//! A node holds nothing that another cannot rebuild from the store.

pub mod admission;
pub mod archiving;
pub mod auth;
mod branch;
mod client;
mod conflate;
mod control;
pub mod departure;
pub mod devices;
pub mod feed;
mod flights;
pub mod folder;
mod fork;
pub mod http;
pub mod listen;
pub mod metrics;
pub mod presence;
pub mod put;
pub mod reader;
pub mod retention;
mod run_token;
pub mod socket;
mod sse;
pub mod tail;
pub mod trace;
mod worker;

use admission::Admission;
use archiving::Archiving;
use auth::Auth;
use departure::Departures;
use devices::Acks;
use everthread_control::{
    Acks as Levels, Desk, Dispatcher, Keeper, Leases, Rebuilder, TaskGroup, Upkeep, Upkeeps,
};
use everthread_protocol::NodeId;
use everthread_store::Store;
use feed::Feeds;
use folder::Folder;
use metrics::Metrics;
use presence::Presences;
use reader::Reader;
use retention::Retainer;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tail::Tails;
use tokio::sync::Semaphore;
use trace::Tracer;

/// How long what works behind the connections may take to end.
const BEHIND_MAX: Duration = Duration::from_secs(1);

/// What an edge node is told at its start.
#[derive(Debug, Clone)]
pub struct Config {
    /// This node.
    pub node: NodeId,
    /// Who may come in.
    pub auth: Auth,
    /// The deployment's times.
    pub leases: Leases,
    /// A client that is silent for this long is pinged; for twice as long, it is gone.
    pub heartbeat: Duration,
    /// A client whose socket takes no byte for this long is closed.
    pub stall_max: Duration,
    /// The times of presence.
    pub presence: presence::Times,
    /// How sure answers are where a request does not say.
    pub acks: Levels,
    /// How often pools, deadlines and lists are built anew from the sessions, besides after every failover.
    pub rebuild_every: Duration,
    /// When logs are folded in the store.
    pub folding: folder::Options,
    /// When sessions are archived, if there is an archive.
    pub archive: Option<archiving::Options>,
    /// How long sessions, and how much of them, are kept.
    pub retention: retention::Options,
    /// How many clients may connect within a second.
    pub upgrades_per_s: u32,
}

/// One edge node. Cheap to clone.
pub struct Edge<S> {
    shared: Arc<Shared<S>>,
}

impl<S> Clone for Edge<S> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone() }
    }
}

impl<S> std::ops::Deref for Edge<S> {
    type Target = Shared<S>;
    fn deref(&self) -> &Shared<S> {
        &self.shared
    }
}

/// What all connections of a node share.
pub struct Shared<S> {
    /// As it was told.
    pub config: Config,
    /// Carries out requests.
    pub desk: Desk<S>,
    /// Brings runs to workers.
    pub dispatcher: Dispatcher<S>,
    /// Reads logs.
    pub reader: Reader<S>,
    /// Live ends of sessions.
    pub tails: Tails<S>,
    /// Keeps the durable cursors of devices.
    pub acks: Acks<S>,
    /// Who is present in the sessions followed here.
    pub presences: Presences<S>,
    /// What the sessions of tenants are doing.
    pub feeds: Feeds<S>,
    /// Folds logs in the store.
    pub folder: Folder<S>,
    /// Turns to make forks.
    pub forks: Semaphore,
    /// How many clients may connect now.
    pub admission: Admission,
    /// Who has connected, and when they go.
    pub departures: Departures,
    /// Every task of the node.
    pub tasks: TaskGroup,
    /// What is counted.
    pub metrics: Metrics,
    /// Traces, if they are on.
    pub(crate) tracer: OnceLock<Tracer>,
}

impl<S: Store> Edge<S> {
    /// A node on a store. Its keeper of deadlines starts at once.
    pub fn start(store: Arc<S>, config: Config) -> Edge<S> {
        let tasks = TaskGroup::new();
        let metrics = Metrics::new();
        metrics.also(store.collectors());
        let reader = Reader::new(store.clone());
        let folder = Folder::start(reader.clone(), config.folding, metrics.clone(), &tasks);
        let options = config.retention.clone();
        let retainer = Retainer::new(reader.clone(), folder.clone(), options, metrics.clone());
        // Retention comes first: it knows how long those are kept that are archived, too.
        let archiving = Archiving::start(config.archive.clone(), &tasks);
        let upkeeps: [Arc<dyn Upkeep>; 2] = [Arc::new(retainer), Arc::new(archiving)];
        let desk = Desk::new(store.clone(), config.leases.clone());
        metrics.also(desk.counts().collectors());
        let desk =
            desk.with_upkeep(Arc::new(Upkeeps::new(upkeeps))).with_lister(&tasks).with_acks(config.acks);
        let dispatcher = Dispatcher::new(desk.clone(), config.node.clone(), tasks.clone());
        let acks = Acks::new(store.clone(), &metrics);
        let (keeper_of_acks, stop) = (acks.clone(), tasks.token());
        tasks.spawn(async move { keeper_of_acks.run(stop).await });
        let times = config.presence.clone();
        let feeds = Feeds::new(store.clone(), &metrics, &tasks);
        let presences = Presences::start(store, &config.node, times, &metrics, &tasks);
        let tails = Tails::new(reader.clone(), metrics.repairs.clone(), tasks.clone());
        let keeper = Keeper::new(desk.clone());
        tasks.spawn_until_stopped(keeper.run());
        let rebuilder = Rebuilder::new(desk.clone(), config.node.clone(), config.rebuild_every);
        tasks.spawn_until_stopped(rebuilder.run());
        Edge {
            shared: Arc::new(Shared {
                admission: Admission::new(config.upgrades_per_s),
                departures: Departures::new(&tasks.token()),
                config,
                desk,
                dispatcher,
                reader,
                tails,
                feeds,
                folder,
                forks: Semaphore::new(fork::FORKS_MAX),
                acks,
                presences,
                tasks,
                metrics,
                tracer: OnceLock::new(),
            }),
        }
    }

    /// Takes no more runs, says good-bye to every connection, spread over `patience`, and waits for them; then ends what
    /// works behind them. False if somebody, or something, was still there when it had to end.
    pub async fn drain(&self, patience: Duration) -> bool {
        self.dispatcher.close();
        let have_gone = self.departures.begin(patience).await;
        self.tasks.close(BEHIND_MAX).await && have_gone
    }
}
