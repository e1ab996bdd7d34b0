//! A primary, its replicas, and the sentinels that watch them: real processes, on ports of 127.0.0.1.
//!
//! Owns all of them and their directories. The sentinels are quick (two seconds of silence are death), so that a failover
//! takes three to five; nothing else differs from a set-up in production.

use crate::redis_server::{PROGRAM, RedisOptions, RedisServer, free_port};
use crate::wait_for;
use anyhow::{Context as _, bail, ensure};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// What the sentinels call the primary.
const NAME: &str = "everthread";
/// The number of the first sentinel where hosts are asked for.
const FIRST_SENTINEL: usize = 3;
/// How long all may take until they know of each other.
const START_MAX: Duration = Duration::from_secs(20);
/// How long the sentinels may take to replace a primary.
const FAILOVER_MAX: Duration = Duration::from_secs(30);
/// How long one answer may take.
const ANSWER_MAX: Duration = Duration::from_secs(2);

/// A running set-up.
#[derive(Debug)]
pub struct RedisSentinels {
    /// The first was the primary at the start.
    servers: Vec<RedisServer>,
    sentinels: Vec<Sentinel>,
}

impl RedisSentinels {
    /// A primary, two replicas, and three sentinels of which two must agree; ready for a failover.
    pub async fn start() -> anyhow::Result<Self> {
        Self::start_with(Vec::new()).await
    }

    /// The same, with more arguments for the servers.
    pub async fn start_with(args: Vec<String>) -> anyhow::Result<Self> {
        Self::start_at(|_| None, args).await
    }

    /// The same, each at an address of its own: servers are asked for as 0 to 2, sentinels as 3 to 5.
    pub async fn start_at(host: impl Fn(usize) -> Option<String>, args: Vec<String>) -> anyhow::Result<Self> {
        let mut options = RedisOptions { tcp: true, args, host: host(0), ..RedisOptions::default() };
        options.args.extend(["--repl-diskless-sync-delay", "0"].map(str::to_owned));
        let mut servers = vec![RedisServer::start_with(options.clone()).await?];
        for n in 1..3 {
            options.host = host(n);
            let mut replica = options.clone();
            replica.args.extend(replica_of(&servers[0]));
            servers.push(RedisServer::start_with(replica).await?);
        }
        wait_for("replicas that follow", START_MAX, async || {
            let told = servers[0].command("INFO replication").await?;
            Ok((told.matches("state=online").count() == 2).then_some(()))
        })
        .await?;
        let mut sentinels = Vec::new();
        for _ in 0..3 {
            let host = host(FIRST_SENTINEL + sentinels.len());
            sentinels.push(Sentinel::start(&servers[0], host).await?);
        }
        let all = Self { servers, sentinels };
        for sentinel in &all.sentinels {
            wait_for("sentinels that know of each other", START_MAX, async || {
                let told = sentinel.command(&format!("SENTINEL MASTER {NAME}")).await?;
                let field =
                    |name: &str, value: &str| told.contains(&format!("\r\n{name}\r\n$1\r\n{value}\r\n"));
                Ok((field("num-slaves", "2") && field("num-other-sentinels", "2")).then_some(()))
            })
            .await?;
        }
        Ok(all)
    }

    /// The address of the primary by way of the sentinels.
    pub fn url(&self) -> String {
        let address = |sentinel: &Sentinel| format!("{}:{}", sentinel.host, sentinel.port);
        let sentinels: Vec<_> = self.sentinels.iter().map(address).collect();
        format!("redis-sentinel://{}/{NAME}", sentinels.join(","))
    }

    /// A server; 0 was the primary at the start.
    pub fn server(&mut self, n: usize) -> &mut RedisServer {
        &mut self.servers[n]
    }

    /// Asks a sentinel to make a replica the primary.
    pub async fn fail_over(&self) -> anyhow::Result<()> {
        let sentinel = &self.sentinels[0];
        let answer = sentinel.command(&format!("SENTINEL FAILOVER {NAME}")).await?;
        ensure!(answer.starts_with('+'), "SENTINEL FAILOVER: {answer}");
        Ok(())
    }

    /// Starts a server that was killed, as a replica of who is the primary now: as its configuration file would say, which
    /// the sentinels write.
    pub async fn rejoin(&mut self, n: usize) -> anyhow::Result<()> {
        let primary = self.primary().await?;
        let mut args = self.servers[n].args().to_vec();
        if let Some(at) = args.iter().position(|arg| arg == "--replicaof") {
            args.drain(at..at + 3);
        }
        if primary != n {
            args.extend(replica_of(&self.servers[primary]));
        }
        self.servers[n].set_args(args);
        self.servers[n].restart().await
    }

    /// Waits until all replicas follow the primary, which is the one by word of all sentinels; says which it is.
    pub async fn is_whole(&self) -> anyhow::Result<usize> {
        wait_for("replicas that all follow", FAILOVER_MAX, async || {
            let primary = self.primary().await?;
            let told = self.servers[primary].command("INFO replication").await?;
            Ok((told.matches("state=online").count() == 2).then_some(primary))
        })
        .await
    }

    /// Ends a sentinel.
    pub fn kill_sentinel(&mut self, n: usize) {
        self.sentinels[n].kill();
    }

    /// Which server is the primary by word of the sentinels that live, once they agree.
    pub async fn primary(&self) -> anyhow::Result<usize> {
        wait_for("sentinels that agree", FAILOVER_MAX, async || {
            let mut ports = Vec::new();
            for sentinel in self.sentinels.iter().filter(|sentinel| sentinel.child.is_some()) {
                ports.push(sentinel.primary().await?);
            }
            ports.dedup();
            let [port] = ports.as_slice() else { return Ok(None) };
            Ok(self.servers.iter().position(|server| server.port() == *port))
        })
        .await
    }

    /// Waits until another than `before` is the primary, and says which.
    pub async fn failover_from(&self, before: usize) -> anyhow::Result<usize> {
        wait_for("another primary", FAILOVER_MAX, async || {
            let primary = self.primary().await?;
            Ok((primary != before).then_some(primary))
        })
        .await
    }
}

fn replica_of(primary: &RedisServer) -> [String; 3] {
    ["--replicaof".to_owned(), primary.host().to_owned(), primary.port().to_string()]
}

/// A process that watches.
#[derive(Debug)]
struct Sentinel {
    host: String,
    port: u16,
    child: Option<Child>,
    /// Its configuration, which it writes itself.
    _dir: TempDir,
}

impl Sentinel {
    async fn start(primary: &RedisServer, host: Option<String>) -> anyhow::Result<Self> {
        let dir = tempfile::Builder::new().prefix("sentinel-").tempdir()?;
        let port = free_port().await?;
        let host = host.unwrap_or_else(|| "127.0.0.1".to_owned());
        let lines = [
            format!("port {port}"),
            format!("bind {host}"),
            // From where it connects.
            format!("bind-source-addr {host}"),
            format!("sentinel monitor {NAME} {} {} 2", primary.host(), primary.port()),
            format!("sentinel down-after-milliseconds {NAME} 2000"),
            format!("sentinel failover-timeout {NAME} 4000"),
            format!("sentinel parallel-syncs {NAME} 2"),
        ];
        let path = dir.path().join("sentinel.conf");
        std::fs::write(&path, lines.join("\n") + "\n")?;
        let child = Command::new(PROGRAM)
            .current_dir(dir.path())
            .arg(&path)
            .arg("--sentinel")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("redis-server does not start: is it installed?")?;
        let sentinel = Self { host, port, child: Some(child), _dir: dir };
        wait_for("a sentinel that answers", START_MAX, async || {
            Ok(sentinel.command("PING").await?.starts_with("+PONG").then_some(()))
        })
        .await?;
        Ok(sentinel)
    }

    fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // An error says that it has ended already.
            drop(child.kill());
            drop(child.wait());
        }
    }

    async fn primary(&self) -> anyhow::Result<u16> {
        let told = self.command(&format!("SENTINEL GET-MASTER-ADDR-BY-NAME {NAME}")).await?;
        let Some(port) = told.lines().nth(4).and_then(|port| port.parse().ok()) else {
            bail!("an unknown answer of a sentinel: {told:?}");
        };
        Ok(port)
    }

    async fn command(&self, line: &str) -> anyhow::Result<String> {
        let ask = async {
            let mut socket = TcpStream::connect((self.host.as_str(), self.port)).await?;
            socket.write_all(format!("{line}\r\n").as_bytes()).await?;
            let mut answer = vec![0; 16 * 1024];
            let len = socket.read(&mut answer).await?;
            Ok::<_, std::io::Error>(String::from_utf8_lossy(&answer[..len]).into_owned())
        };
        Ok(timeout(ANSWER_MAX, ask).await??)
    }
}

impl Drop for Sentinel {
    fn drop(&mut self) {
        self.kill();
    }
}
