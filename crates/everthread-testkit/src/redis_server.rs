//! A real `redis-server` per test, on a Unix socket and, if asked for, a TCP port, in a temporary directory.
//!
//! Owns the process and the directory: dropping the value kills the one and removes the other. The address survives
//! [`RedisServer::kill9`] and [`RedisServer::restart`], so a client can find its way back.

use crate::wait_for;
use anyhow::{Context as _, bail};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, UnixStream};
use tokio::time::{Instant, sleep, timeout};

/// How long a server may take until it answers PING.
const START_MAX: Duration = Duration::from_secs(10);
/// How long replicas may take until they have what was written.
const REPLICATED_MAX: Duration = Duration::from_secs(20);
/// Between two questions whether it is ready.
const READY_POLL: Duration = Duration::from_millis(10);
/// Runs a server until the input ends.
const LEASH: &str =
    "\"$0\" \"$@\" & server=$!; read -r nothing; kill -9 $server; wait $server; rm -rf \"$PWD\"";
/// A port that was free may be taken before the server has it: so many ports are tried.
const PORT_ATTEMPTS_MAX: u32 = 5;

/// What is on the path.
pub(crate) const PROGRAM: &str = "redis-server";
/// Where `cargo xtask test` puts a newer release than distributions have, from where cargo builds.
const NEWER: &str = "tools/redis/redis-server";

/// What a test may want of its server.
#[derive(Debug, Clone, Default)]
pub struct RedisOptions {
    /// Keep an append-only file, written and synced before each answer, so that a restart finds all that was answered.
    /// With `everysec` Redis postpones its writes while a sync is slow, and a kill loses what was answered meanwhile.
    pub append_only: bool,
    /// Listen on a TCP port of 127.0.0.1 too, for a [`crate::Proxy`].
    pub tcp: bool,
    /// More arguments for the command line; `PORT` stands for the TCP port.
    pub args: Vec<String>,
    /// Listens on this address and connects from it, instead of 127.0.0.1: links between servers can then be told apart.
    pub host: Option<String>,
    /// For a server that tests share and nobody drops: it ends, and its directory goes, when this process does. It cannot
    /// be frozen or started again.
    pub leashed: bool,
    /// Which `redis-server`, instead of the one on the path: see [`newer_redis`].
    pub program: Option<PathBuf>,
}

/// A running `redis-server`.
#[derive(Debug)]
pub struct RedisServer {
    dir: TempDir,
    options: RedisOptions,
    /// Fixed by the first start.
    port: Option<u16>,
    /// `None` between a kill and a restart.
    child: Option<Child>,
}

impl RedisServer {
    /// A server on a Unix socket that keeps nothing on disk.
    pub async fn start() -> anyhow::Result<Self> {
        Self::start_with(RedisOptions::default()).await
    }

    /// A server as `options` say, ready to answer.
    pub async fn start_with(options: RedisOptions) -> anyhow::Result<Self> {
        let dir = tempfile::Builder::new().prefix("redis-").tempdir()?;
        let mut server = Self { dir, options, port: None, child: None };
        let mut attempt = 1;
        loop {
            if server.options.tcp {
                server.port = Some(free_port().await?);
            }
            match server.restart().await {
                Ok(()) => return Ok(server),
                Err(e) if !server.options.tcp || attempt == PORT_ATTEMPTS_MAX => return Err(e),
                Err(_) => attempt += 1,
            }
        }
    }

    /// The address of the Unix socket.
    pub fn url(&self) -> String {
        format!("unix://{}", self.socket().display())
    }

    /// The address on TCP. Panics if the server was not started with [`RedisOptions::tcp`].
    pub fn tcp_url(&self) -> String {
        format!("redis://{}", self.tcp_address())
    }

    /// `host:port`, as a [`crate::Proxy`] takes it. Panics if the server was not started with [`RedisOptions::tcp`].
    pub fn tcp_address(&self) -> String {
        format!("{}:{}", self.host(), self.port())
    }

    /// The address that it listens on.
    pub fn host(&self) -> &str {
        self.options.host.as_deref().unwrap_or("127.0.0.1")
    }

    /// Ends the process at once, as a crash does.
    pub fn kill9(&mut self) {
        if let Some(mut child) = self.child.take() {
            // An error says that it has ended already. What is on a leash ends by itself.
            drop(child.stdin.take());
            if !self.options.leashed {
                drop(child.kill());
            }
            drop(child.wait());
        }
    }

    /// Starts the process again in the same directory at the same address; kills the one that runs.
    pub async fn restart(&mut self) -> anyhow::Result<()> {
        self.kill9();
        let port = self.port.unwrap_or(0).to_string();
        let program = self.options.program.as_deref().unwrap_or(Path::new(PROGRAM));
        let mut command = Command::new(if self.options.leashed { Path::new("sh") } else { program });
        if self.options.leashed {
            // Its input ends with this process.
            command.args(["-c", LEASH]).arg(program);
        }
        command
            .current_dir(self.dir.path())
            .args(["--save", "", "--daemonize", "no", "--bind", self.host()])
            .args(self.options.host.iter().flat_map(|host| ["--bind-source-addr", host]))
            .arg("--unixsocket")
            .arg(self.socket())
            .args(["--port", &port])
            .args(["--appendonly", if self.options.append_only { "yes" } else { "no" }])
            .args(["--appendfsync", "always"])
            .args(self.options.args.iter().map(|arg| if arg == "PORT" { &port } else { arg }))
            // A pipe would fill, and would keep the test waiting for a server that outlived it.
            .stdin(if self.options.leashed { Stdio::piped() } else { Stdio::null() })
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        self.child = Some(command.spawn().context("redis-server does not start: is it installed?")?);
        self.ready().await
    }

    /// Freezes the process (SIGSTOP): connections stay, nothing answers.
    pub fn stop(&self) -> anyhow::Result<()> {
        self.signal("STOP")
    }

    /// Wakes a frozen process (SIGCONT).
    pub fn cont(&self) -> anyhow::Result<()> {
        self.signal("CONT")
    }

    /// Waits until every replica has what this server has now: what it writes is sent on without waiting for them.
    pub async fn replicated(&self) -> anyhow::Result<()> {
        let offsets = |told: &str, field: &str| -> Vec<u64> {
            let after = told.split(field).skip(1);
            after.filter_map(|text| text.split([',', '\r']).next()?.parse().ok()).collect()
        };
        let reached = offsets(&self.command("INFO replication").await?, "master_repl_offset:");
        wait_for("replicas that have everything", REPLICATED_MAX, async || {
            let told = self.command("INFO replication").await?;
            let theirs = offsets(&told, ",offset=");
            let have_all = theirs.iter().all(|offset| reached.iter().all(|reached| offset >= reached));
            Ok((!theirs.is_empty() && have_all).then_some(()))
        })
        .await
    }

    /// Sends one inline command on a connection of its own and returns the first bytes of the answer.
    pub async fn command(&self, line: &str) -> anyhow::Result<String> {
        let ask = async {
            let mut socket = UnixStream::connect(self.socket()).await?;
            socket.write_all(format!("{line}\r\n").as_bytes()).await?;
            let mut answer = vec![0; 16 * 1024];
            let len = socket.read(&mut answer).await?;
            Ok::<_, std::io::Error>(String::from_utf8_lossy(&answer[..len]).into_owned())
        };
        Ok(timeout(Duration::from_secs(2), ask).await??)
    }

    /// The port on TCP. Panics if the server was not started with [`RedisOptions::tcp`].
    pub fn port(&self) -> u16 {
        self.port.expect("start the server with `tcp: true`")
    }

    /// Whether the process was not killed.
    pub fn runs(&self) -> bool {
        self.child.is_some()
    }

    /// Arguments for the next [`RedisServer::restart`].
    pub fn set_args(&mut self, args: Vec<String>) {
        self.options.args = args;
    }

    /// What [`RedisServer::set_args`] sets.
    pub fn args(&self) -> &[String] {
        &self.options.args
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("redis.sock")
    }

    fn signal(&self, name: &str) -> anyhow::Result<()> {
        let child = self.child.as_ref().context("the server does not run")?;
        let status = Command::new("kill").arg(format!("-{name}")).arg(child.id().to_string()).status()?;
        if !status.success() {
            bail!("kill -{name} failed: {status}");
        }
        Ok(())
    }

    async fn ready(&mut self) -> anyhow::Result<()> {
        let deadline = Instant::now() + START_MAX;
        loop {
            // While it loads its data it answers -LOADING.
            if self.command("PING").await.is_ok_and(|answer| answer.starts_with("+PONG")) {
                return Ok(());
            }
            if let Some(status) = self.child.as_mut().and_then(|child| child.try_wait().ok().flatten()) {
                bail!("redis-server ended at once: {status}");
            }
            if Instant::now() > deadline {
                bail!("redis-server does not answer PING within {START_MAX:?}");
            }
            sleep(READY_POLL).await;
        }
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        self.kill9();
    }
}

/// A `redis-server` of release 8, which knows what the one of a distribution may not. There is no test of it without it: who
/// has none is told how to get one.
pub fn newer_redis() -> anyhow::Result<PathBuf> {
    let this = std::env::current_exe()?;
    // Tests are a few folders below what cargo builds into.
    let found = this.ancestors().map(|folder| folder.join(NEWER)).find(|file| file.is_file());
    found.context("no Redis 8 for the tests of what it brings: run `cargo xtask test --only tools`")
}

/// A TCP port that nobody has at the moment.
pub(crate) async fn free_port() -> anyhow::Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0").await?.local_addr()?.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_server_that_keeps_a_file_finds_its_data_after_a_kill() {
        let options = RedisOptions { append_only: true, tcp: true, ..RedisOptions::default() };
        let mut server = RedisServer::start_with(options).await.unwrap();
        let url = server.tcp_url();
        assert_eq!(server.command("SET a 1").await.unwrap(), "+OK\r\n");
        server.restart().await.unwrap();
        assert_eq!(server.command("GET a").await.unwrap(), "$1\r\n1\r\n");
        assert_eq!(server.tcp_url(), url);
    }

    #[tokio::test]
    async fn a_frozen_server_answers_only_when_it_is_woken() {
        let server = RedisServer::start().await.unwrap();
        server.stop().unwrap();
        assert!(server.command("PING").await.is_err());
        server.cont().unwrap();
        assert_eq!(server.command("PING").await.unwrap(), "+PONG\r\n");
    }
}
