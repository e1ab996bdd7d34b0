//! `everthread health`: asks a node's admin port whether the process is alive, and says so by its exit status.
//!
//! For images that have no shell and no HTTP client: a container's own health check is this binary. One request, read up to
//! its status line, within one deadline.

use anyhow::{Context as _, ensure};
use clap::Args;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Connecting, asking and the answer together: shorter than what runs health checks waits.
const ANSWER_MAX: Duration = Duration::from_secs(2);
/// Of a status line that is read. A longer one is not that of a node.
const LINE_BYTES_MAX: u64 = 256;

/// Configuration of `health`.
#[derive(Debug, Clone, Args)]
pub struct HealthArgs {
    /// The node's address for /livez and /readyz.
    #[arg(long, env = "EVERTHREAD_ADMIN", default_value = "127.0.0.1:7401")]
    pub admin: SocketAddr,
    /// Whether it is ready for traffic, not only alive. Never restart by this: an outage of the store is not healed by it.
    #[arg(long)]
    pub ready: bool,
}

/// Fails if the node does not answer with 200.
pub async fn run(args: HealthArgs) -> anyhow::Result<()> {
    let path = if args.ready { "/readyz" } else { "/livez" };
    let status = timeout(ANSWER_MAX, status_line(args.admin, path))
        .await
        .with_context(|| format!("{path}: no answer within {} s", ANSWER_MAX.as_secs()))?
        .with_context(|| format!("{path} at {}", args.admin))?;
    ensure!(status.split(' ').nth(1) == Some("200"), "{path}: {status}");
    Ok(())
}

async fn status_line(address: SocketAddr, path: &str) -> anyhow::Result<String> {
    // An address to listen on is also one to connect to: the unspecified one means this machine.
    let mut stream = TcpStream::connect(address).await?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut line = String::new();
    let head = tokio::io::AsyncReadExt::take(stream, LINE_BYTES_MAX);
    BufReader::new(head).read_line(&mut line).await?;
    Ok(line.trim_end().to_owned())
}
