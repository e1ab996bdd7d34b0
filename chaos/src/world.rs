//! The deployment: nodes behind HAProxy, workers, fault proxies before it all, and a store; and what can be done to each.

use crate::history::Level;
use crate::process::{Process, Recipe};
use crate::schedule::{Kind, Planned};
use crate::setup::{StoreSetup, index};
use anyhow::{Context as _, bail};
use everthread_testkit::{Direction, Proxy};
use std::fmt::Write as _;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// Opens every node.
pub const TOKEN: &str = "chaos-token";
/// For anything that must come to be.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// Heartbeat of clients' connections in milliseconds: a dead one is noticed soon.
const HEARTBEAT_MS: u64 = 2_000;
/// Connections through the last proxy are cut at this age, always.
const AGE_MAX: Duration = Duration::from_secs(9);
/// Where Debian's libfaketime lies.
const FAKETIME: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1";

/// How large it is.
#[derive(Debug, Clone)]
pub struct Size {
    /// Nodes.
    pub edges: usize,
    /// Workers.
    pub workers: usize,
    /// Fault proxies before HAProxy; the last one cuts connections at a fixed age.
    pub proxies: usize,
    /// How sure it is what nodes acknowledge to workers.
    pub ack: Level,
    /// How long a run stays with a worker that nobody hears.
    pub lease_ms: u64,
    /// A fault planted in the nodes.
    pub planted: Option<String>,
}

/// Everything that runs.
pub struct World {
    edges: Vec<Process>,
    workers: Vec<Process>,
    balancer: Process,
    proxies: Vec<Proxy>,
    /// Where each node listens.
    urls: Vec<String>,
    admins: Vec<String>,
    /// The store.
    pub store: Box<dyn StoreSetup>,
    dir: PathBuf,
    has_faketime: bool,
    http: reqwest::Client,
}

/// Ports that are free now. All are held until the last is found, so that none comes twice.
fn free_ports(count: usize) -> anyhow::Result<Vec<u16>> {
    let held: Vec<TcpListener> =
        (0..count).map(|_| TcpListener::bind("127.0.0.1:0")).collect::<Result<_, _>>()?;
    held.iter().map(|listener| Ok(listener.local_addr()?.port())).collect()
}

impl World {
    /// Starts all of it and waits until requests come through.
    pub async fn start(
        dir: &Path,
        binary: &Path,
        size: &Size,
        store: Box<dyn StoreSetup>,
    ) -> anyhow::Result<World> {
        let ports = free_ports(2 * size.edges + 1)?;
        let (listens, rest) = ports.split_at(size.edges);
        let (admins, balancer_port) = rest.split_at(size.edges);
        let balancer_port = *balancer_port.first().context("no port")?;
        let has_faketime = Path::new(FAKETIME).is_file();
        let local = |port: &u16| format!("127.0.0.1:{port}");
        let mut edges = Vec::new();
        for (number, (listen, admin)) in listens.iter().zip(admins).enumerate() {
            let args = [
                "serve",
                "--redis",
                &store.url(number),
                "--token",
                TOKEN,
                "--log",
                "info,everthread_edge=debug",
                "--listen",
                &local(listen),
            ]
            .into_iter()
            .chain(["--admin", &local(admin), "--heartbeat-ms", &HEARTBEAT_MS.to_string()])
            .chain(["--drain-ms", "1500", "--lease-ms", &size.lease_ms.to_string()])
            .map(str::to_owned)
            .collect();
            let mut env = clock(dir, &format!("edge-{number}"), has_faketime)?;
            let planted = size.planted.iter();
            env.extend(planted.map(|fault| ("EVERTHREAD_PLANTED_FAULT".to_owned(), fault.clone())));
            env.push(("EVERTHREAD_ACK".to_owned(), size.ack.as_str().to_owned()));
            let recipe = Recipe {
                name: format!("edge-{number}"),
                program: binary.to_owned(),
                args,
                env,
                group: store.group(number),
                dir: dir.to_owned(),
            };
            edges.push(Process::start(recipe)?);
        }
        let balancer = start_balancer(dir, balancer_port, listens, admins)?;
        let behind = format!("127.0.0.1:{balancer_port}");
        let mut proxies = Vec::new();
        for _ in 0..size.proxies {
            proxies.push(Proxy::start(behind.clone()).await?);
        }
        if let [_, .., last] = proxies.as_slice() {
            last.cut_at_age(Some(AGE_MAX));
        }
        let mut workers = Vec::new();
        for number in 0..size.workers {
            let name = format!("worker-{number}");
            let history = dir.join(format!("history-{name}")).display().to_string();
            let args = [
                "worker",
                "--url",
                &format!("http://{behind}"),
                "--token",
                TOKEN,
                "--name",
                &name,
                "--history",
                &history,
                "--ack",
                size.ack.as_str(),
            ];
            let args = args.map(str::to_owned).to_vec();
            let program = std::env::current_exe()?;
            let env = clock(dir, &name, has_faketime)?;
            let (group, dir) = (None, dir.to_owned());
            workers.push(Process::start(Recipe { name, program, args, env, group, dir })?);
        }
        let urls = listens.iter().map(|port| format!("http://{}", local(port))).collect();
        let admins = admins.iter().map(|port| format!("http://{}", local(port))).collect();
        let http = reqwest::Client::builder().timeout(Duration::from_secs(5)).build()?;
        let dir = dir.to_owned();
        let world = World { edges, workers, balancer, proxies, urls, admins, store, dir, has_faketime, http };
        world.ready().await?;
        Ok(world)
    }

    /// Where clients connect: every fault proxy.
    pub fn entrances(&self) -> Vec<String> {
        self.proxies.iter().map(|proxy| format!("http://{}", proxy.address())).collect()
    }

    /// Where each node listens, past everything.
    pub fn nodes(&self) -> &[String] {
        &self.urls
    }

    /// Histories of the workers.
    pub fn histories(&self) -> Vec<PathBuf> {
        self.workers.iter().map(|worker| self.dir.join(format!("history-{}", worker.name()))).collect()
    }

    /// What can be broken here.
    pub fn faults(&self) -> Vec<Kind> {
        let mut kinds = Kind::COMMON.to_vec();
        kinds.retain(|kind| *kind != Kind::StepClock || self.has_faketime);
        kinds.extend(self.store.faults());
        kinds
    }

    /// Waits until every node is ready.
    pub async fn ready(&self) -> anyhow::Result<()> {
        let began = Instant::now();
        for admin in &self.admins {
            let url = format!("{admin}/readyz");
            while !self.http.get(&url).send().await.is_ok_and(|answer| answer.status().is_success()) {
                if began.elapsed() > PATIENCE {
                    bail!("{admin} is not ready within {PATIENCE:?}; its log is in {}", self.dir.display());
                }
                sleep(Duration::from_millis(100)).await;
            }
        }
        Ok(())
    }

    /// Breaks something; what was hit.
    pub async fn begin(&mut self, planned: &Planned) -> anyhow::Result<String> {
        let (edges, workers, proxies) = (self.edges.len(), self.workers.len(), self.proxies.len());
        let edge = index(planned.target, edges);
        let worker = index(planned.target, workers);
        // The last one has a fault of its own.
        let proxy = index(planned.target, proxies.max(2) - 1);
        match planned.kind {
            Kind::KillEdge => self.edges[edge].kill9(),
            Kind::FreezeEdge => self.edges[edge].freeze()?,
            Kind::DrainEdge => self.edges[edge].terminate()?,
            Kind::KillWorker => self.workers[worker].kill9(),
            Kind::FreezeWorker => self.workers[worker].freeze()?,
            Kind::CutClients => self.proxies[proxy].cut(),
            Kind::DelayClients => self.proxies[proxy].delay(Duration::from_millis(20 + planned.how % 400)),
            Kind::HalfOpenClients => {
                let way = if planned.how.is_multiple_of(2) { Direction::Up } else { Direction::Down };
                self.proxies[proxy].half_open(way);
                return Ok(format!("proxy {proxy}, {way:?} held up"));
            }
            Kind::StepClock => {
                let all: Vec<&str> = self.edges.iter().chain(&self.workers).map(Process::name).collect();
                let name = all[index(planned.target, all.len())];
                let seconds = [-3_600, -30, -3, 3, 30, 3_600][index(planned.how, 6)];
                std::fs::write(self.dir.join(format!("clock-{name}")), format!("{seconds:+}\n"))?;
                return Ok(format!("{name} {seconds:+} s"));
            }
            _ => return self.store.begin(planned).await,
        }
        Ok(match planned.kind {
            Kind::KillWorker | Kind::FreezeWorker => format!("worker {worker}"),
            Kind::KillEdge | Kind::FreezeEdge | Kind::DrainEdge => format!("edge {edge}"),
            _ => format!("proxy {proxy}"),
        })
    }

    /// Mends it.
    pub async fn end(&mut self, planned: &Planned) -> anyhow::Result<()> {
        let edge = index(planned.target, self.edges.len());
        let worker = index(planned.target, self.workers.len());
        let proxy = index(planned.target, self.proxies.len().max(2) - 1);
        match planned.kind {
            Kind::KillEdge | Kind::DrainEdge => self.edges[edge].restart(),
            Kind::KillWorker => self.workers[worker].restart(),
            // It may have been killed meanwhile.
            Kind::FreezeEdge => self.edges[edge].wake().or(Ok(())),
            Kind::FreezeWorker => self.workers[worker].wake().or(Ok(())),
            Kind::CutClients | Kind::DelayClients | Kind::HalfOpenClients => {
                self.proxies[proxy].heal();
                Ok(())
            }
            // A clock that is set right again is a second step.
            Kind::StepClock => {
                let all: Vec<&str> = self.edges.iter().chain(&self.workers).map(Process::name).collect();
                let name = all[index(planned.target, all.len())];
                Ok(std::fs::write(self.dir.join(format!("clock-{name}")), "+0\n")?)
            }
            _ => self.store.end(planned).await,
        }
    }

    /// Brings back whatever does not run, and waits until all is ready.
    pub async fn mend(&mut self) -> anyhow::Result<()> {
        for proxy in &self.proxies {
            proxy.heal();
        }
        self.store.mend().await?;
        for process in self.edges.iter_mut().chain(&mut self.workers) {
            // One that is not frozen does not mind.
            if !process.is_alive() || process.wake().is_err() {
                process.restart()?;
            }
        }
        if !self.balancer.is_alive() {
            bail!("HAProxy has ended; its log is in {}", self.dir.display());
        }
        self.ready().await
    }
}

/// What gives a process a clock of its own, which a file moves.
fn clock(dir: &Path, name: &str, has_faketime: bool) -> anyhow::Result<Vec<(String, String)>> {
    if !has_faketime {
        return Ok(Vec::new());
    }
    let file = dir.join(format!("clock-{name}"));
    std::fs::write(&file, "+0\n")?;
    let file = file.display().to_string();
    // The clock that measures time does not jump when the one on the wall does.
    let env = [
        ("LD_PRELOAD", FAKETIME),
        ("FAKETIME_TIMESTAMP_FILE", file.as_str()),
        ("FAKETIME_CACHE_DURATION", "1"),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
        ("FAKETIME_DONT_RESET", "1"),
    ];
    Ok(env.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec())
}

/// HAProxy as deploy/haproxy has it, on other ports.
fn start_balancer(dir: &Path, port: u16, listens: &[u16], admins: &[u16]) -> anyhow::Result<Process> {
    let mut config = format!(
        "global\n    fd-hard-limit 20000\n\
         defaults\n    mode http\n    timeout connect 2s\n    timeout http-request 10s\n    timeout queue 5s\n    \
         timeout client 75s\n    timeout server 75s\n    timeout tunnel 75s\n    timeout client-fin 5s\n    \
         retries 3\n    retry-on conn-failure\n    option redispatch 1\n\
         frontend public\n    bind 127.0.0.1:{port}\n    default_backend edges\n\
         backend edges\n    balance leastconn\n    option httpchk\n    http-check send meth GET uri /readyz\n    \
         http-check expect status 200\n    default-server check inter 1s fastinter 250ms fall 2 rise 1\n"
    );
    for (number, (listen, admin)) in listens.iter().zip(admins).enumerate() {
        writeln!(config, "    server edge-{number} 127.0.0.1:{listen} port {admin}")?;
    }
    let file = dir.join("haproxy.cfg");
    std::fs::write(&file, config)?;
    let args = vec!["-db".to_owned(), "-f".to_owned(), file.display().to_string()];
    let recipe = Recipe {
        name: "haproxy".to_owned(),
        program: "haproxy".into(),
        args,
        env: Vec::new(),
        group: None,
        dir: dir.to_owned(),
    };
    Process::start(recipe)
}
