//! A primary, its replicas, and the sentinels that watch them: real processes, on ports of 127.0.0.1.
//!
//! Owns all of them and their directories. The sentinels are quick (two seconds of silence are death), so that a failover
//! takes three to five; nothing else differs from a set-up in production.

use crate::redis_server::{RedisOptions, RedisServer, free_port};
use crate::wait_for;
use anyhow::{Context as _, bail};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// What the sentinels call the primary.
const NAME: &str = "everthread";
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
        let options = RedisOptions { tcp: true, args, ..RedisOptions::default() };
        let primary = RedisServer::start_with(options.clone()).await?;
        let mut replica = options;
        let port = primary.port().to_string();
        replica.args.extend(["--replicaof", "127.0.0.1", &port].map(str::to_owned));
        replica.args.extend(["--repl-diskless-sync-delay", "0"].map(str::to_owned));
        let mut servers = vec![primary];
        for _ in 0..2 {
            servers.push(RedisServer::start_with(replica.clone()).await?);
        }
        wait_for("replicas that follow", START_MAX, async || {
            let told = servers[0].command("INFO replication").await?;
            Ok((told.matches("state=online").count() == 2).then_some(()))
        })
        .await?;
        let mut sentinels = Vec::new();
        for _ in 0..3 {
            sentinels.push(Sentinel::start(servers[0].port()).await?);
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
        let sentinels: Vec<_> =
            self.sentinels.iter().map(|sentinel| format!("127.0.0.1:{}", sentinel.port)).collect();
        format!("redis-sentinel://{}/{NAME}", sentinels.join(","))
    }

    /// A server; 0 was the primary at the start.
    pub fn server(&mut self, n: usize) -> &mut RedisServer {
        &mut self.servers[n]
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

/// A process that watches.
#[derive(Debug)]
struct Sentinel {
    port: u16,
    child: Option<Child>,
    /// Its configuration, which it writes itself.
    _dir: TempDir,
}

impl Sentinel {
    async fn start(primary: u16) -> anyhow::Result<Self> {
        let dir = tempfile::Builder::new().prefix("sentinel-").tempdir()?;
        let port = free_port().await?;
        let lines = [
            format!("port {port}"),
            "bind 127.0.0.1".to_owned(),
            format!("sentinel monitor {NAME} 127.0.0.1 {primary} 2"),
            format!("sentinel down-after-milliseconds {NAME} 2000"),
            format!("sentinel failover-timeout {NAME} 4000"),
            format!("sentinel parallel-syncs {NAME} 2"),
        ];
        let path = dir.path().join("sentinel.conf");
        std::fs::write(&path, lines.join("\n") + "\n")?;
        let child = Command::new("redis-server")
            .current_dir(dir.path())
            .arg(&path)
            .arg("--sentinel")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("redis-server does not start: is it installed?")?;
        let sentinel = Self { port, child: Some(child), _dir: dir };
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
            let mut socket = TcpStream::connect(("127.0.0.1", self.port)).await?;
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
