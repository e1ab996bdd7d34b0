//! Nodes within this process, into which faults can be planted; each has a way of its own to Redis, which can fail.

use axum::serve::ListenerExt as _;
use everthread_chaos::asker::{self, Pace, Shared};
use everthread_chaos::check::{Promise, Rule, Verdict, check};
use everthread_chaos::client::{Client, Options as ClientOptions};
use everthread_chaos::history::{Level, Recorder};
use everthread_chaos::log::Log;
use everthread_chaos::worker::{self, WRITER};
use everthread_control::{Leases, TaskGroup};
use everthread_edge::auth::Auth;
use everthread_edge::presence::Times;
use everthread_edge::{Config, Edge, folder, http, retention};
use everthread_store::planted::{Fault, plant};
use everthread_store::redis::{Options, Redis};
use everthread_testkit::{Proxy, RedisOptions, RedisServer};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

const TOKEN: &str = "chaos-token";
/// For anything that must come to be.
pub const PATIENCE: Duration = Duration::from_secs(60);
const NODES: usize = 2;
const SESSIONS: usize = 2;
const CLIENTS: usize = 8;
/// A run stays so long with a worker that nobody hears of.
pub const LEASE: Duration = Duration::from_millis(1_000);

struct Node {
    edge: Edge<Redis>,
    url: String,
    proxy: Proxy,
    server: TaskGroup,
}

/// Nodes, workers, and everybody who asks and follows.
pub struct Small {
    pub redis: RedisServer,
    nodes: Vec<Node>,
    recorder: Recorder,
    shared: Arc<Shared>,
    sessions: Vec<String>,
    tasks: JoinSet<()>,
    following: JoinSet<()>,
    ends: watch::Sender<Option<BTreeMap<String, u64>>>,
    stop: CancellationToken,
    http: reqwest::Client,
}

impl Small {
    /// Starts all of it with a fault in the nodes.
    pub async fn start(fault: Option<Fault>, seed: u64) -> Small {
        plant(fault);
        drop(rustls::crypto::ring::default_provider().install_default());
        let redis =
            RedisServer::start_with(RedisOptions { tcp: true, ..RedisOptions::default() }).await.unwrap();
        let stop = CancellationToken::new();
        let mut nodes = Vec::new();
        for number in 0..NODES {
            nodes.push(Node::start(number, &redis, &stop).await);
        }
        let urls: Vec<String> = nodes.iter().map(|node| node.url.clone()).collect();
        let recorder = Recorder::memory();
        let pace = Pace { tokens_max: 200, pause_ms: 4, mark_ms: 100 };
        let shared = Shared::new(urls.clone(), TOKEN, recorder.clone(), pace).unwrap();
        let (mut tasks, mut following) = (JoinSet::new(), JoinSet::new());
        for (number, url) in urls.iter().enumerate() {
            let (url, recorder, stop) = (url.clone(), recorder.clone(), stop.clone());
            let name = format!("worker-{number}");
            let serve = async move {
                worker::serve(&url, TOKEN, &name, Level::Accepted, recorder, stop).await.unwrap()
            };
            tasks.spawn(serve);
        }
        let sessions: Vec<String> = (0..SESSIONS).map(|number| format!("s{number}")).collect();
        let (ends, seen) = watch::channel(None);
        for (number, session) in sessions.iter().enumerate() {
            shared.make(session, WRITER).await.unwrap();
            let seed = seed + 10 * number as u64;
            tasks.spawn(asker::ask_for_runs(shared.clone(), session.clone(), seed));
            tasks.spawn(asker::leave_marks(shared.clone(), session.clone(), seed + 1));
            tasks.spawn(asker::press_buttons(shared.clone(), session.clone(), seed + 2));
        }
        for number in 0..CLIENTS {
            let options = ClientOptions {
                name: format!("client-{number}"),
                urls: urls.clone(),
                token: TOKEN.to_owned(),
                session: sessions[number % SESSIONS].clone(),
                silence_max: Duration::from_secs(5),
                leaves_after: 0,
                seed: seed + 100 + number as u64,
            };
            following.spawn(Client::new(options, recorder.clone(), seen.clone()).run());
        }
        let http = reqwest::Client::new();
        Small { redis, nodes, recorder, shared, sessions, tasks, following, ends, stop, http }
    }

    /// The way of a node to Redis.
    pub fn proxy(&self, node: usize) -> &Proxy {
        &self.nodes[node].proxy
    }

    /// Does something again and again until the checker finds that `rule` is broken.
    pub async fn until_found(
        &mut self,
        rule: Rule,
        promise: Promise,
        mut injure: impl AsyncFnMut(&mut Small),
    ) {
        let began = Instant::now();
        let mut last = Verdict::default();
        while began.elapsed() < PATIENCE {
            injure(self).await;
            let verdict = self.verdict(promise).await;
            if verdict.violations.iter().any(|violation| violation.rule == rule) {
                return self.end().await;
            }
            last = verdict;
        }
        panic!("the checker has not found {rule:?}, but {:?} in {:?}", last.by_rule(), last.looked);
    }

    /// What the checker says now; those who follow are not at the end of the log, of course.
    async fn verdict(&self, promise: Promise) -> Verdict {
        let logs = self.logs().await;
        check(&self.recorder.finish().unwrap(), &logs, promise)
    }

    /// Lets everything come to rest; what the checker says then.
    pub async fn verdict_at_rest(mut self, promise: Promise) -> Verdict {
        self.shared.stopping.cancel();
        let began = Instant::now();
        loop {
            let logs = self.logs().await;
            let is_over = |log: &Log| {
                let state = serde_json::to_value(&log.view).unwrap();
                let runs = state["runs"].as_array().unwrap().iter().all(|run| run["status"] == "ended");
                runs && state["controls"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .all(|control| control["outcome"].is_string())
            };
            if logs.values().flatten().all(is_over) {
                break;
            }
            assert!(began.elapsed() < PATIENCE, "it is never at rest");
            sleep(Duration::from_millis(100)).await;
        }
        self.shared.giving_up.cancel();
        let logs = self.logs().await;
        let ends = logs.iter().map(|(session, told)| (session.clone(), told[0].head)).collect();
        self.ends.send_replace(Some(ends));
        let all = async { while self.following.join_next().await.is_some() {} };
        drop(timeout(PATIENCE, all).await);
        let verdict = check(&self.recorder.finish().unwrap(), &logs, promise);
        self.end().await;
        verdict
    }

    /// Every session as each node tells it.
    async fn logs(&self) -> BTreeMap<String, Vec<Log>> {
        let mut logs = BTreeMap::new();
        for session in &self.sessions {
            let mut told = Vec::new();
            for node in &self.nodes {
                told.push(self.log(session, &node.url).await);
            }
            logs.insert(session.clone(), told);
        }
        logs
    }

    async fn log(&self, session: &str, url: &str) -> Log {
        let began = Instant::now();
        loop {
            let answer =
                self.http.get(format!("{url}/v1/sessions/{session}/export")).bearer_auth(TOKEN).send();
            let text = async { answer.await?.error_for_status()?.text().await };
            match text.await.map_err(anyhow::Error::from).and_then(|text| Log::parse(&text)) {
                Ok(log) => return log,
                Err(error) => assert!(began.elapsed() < PATIENCE, "{session} cannot be read: {error:#}"),
            }
            sleep(Duration::from_millis(50)).await;
        }
    }

    async fn end(&mut self) {
        self.shared.stopping.cancel();
        self.shared.giving_up.cancel();
        self.tasks.shutdown().await;
        self.following.shutdown().await;
        for node in &self.nodes {
            node.server.token().cancel();
            node.edge.tasks.token().cancel();
        }
        self.stop.cancel();
        plant(None);
    }
}

impl Node {
    async fn start(number: usize, redis: &RedisServer, stop: &CancellationToken) -> Node {
        let proxy = Proxy::start(redis.tcp_address()).await.unwrap();
        let id: everthread_protocol::NodeId = format!("n{number}").parse().unwrap();
        let options = Options {
            // What is on its way when a node is cut off must arrive when it is not any more.
            response_timeout: LEASE * 6,
            ..Options::new(format!("redis://{}", proxy.address()), "et", id.clone())
        };
        let store = Arc::new(Redis::connect(options, &TaskTracker::new(), stop).await.unwrap());
        let leases =
            Leases { lease: LEASE, heartbeat: LEASE / 4, return_grace: LEASE / 2, cancel_grace: LEASE / 2 };
        let edge = Edge::start(
            store,
            Config {
                node: id,
                auth: Auth::new(TOKEN.into(), "default".parse().unwrap(), Vec::new()),
                leases,
                heartbeat: Duration::from_secs(1),
                stall_max: Duration::from_secs(60),
                presence: Times::default(),
                acks: everthread_control::Acks::default(),
                rebuild_every: Duration::from_secs(600),
                folding: folder::Options::default(),
                archive: None,
                upgrades_per_s: everthread_edge::admission::UPGRADES_PER_S,
                retention: retention::Options::default(),
            },
        );
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let listener = listener.tap_io(|stream| drop(stream.set_nodelay(true)));
        let server = TaskGroup::new();
        let routes = http::router(edge.clone());
        let stopped = server.token();
        server.spawn(async move {
            axum::serve(listener, routes).with_graceful_shutdown(stopped.cancelled_owned()).await.unwrap();
        });
        Node { edge, url, proxy, server }
    }
}
