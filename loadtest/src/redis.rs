//! How often Redis was asked to do what.

use anyhow::{Context as _, bail};
use std::collections::BTreeMap;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixStream};

/// Calls by command; those that scripts make are among them.
pub type Calls = BTreeMap<String, u64>;

/// The counters of the Redis at `url`.
pub async fn calls(url: &str) -> anyhow::Result<Calls> {
    let text = match (url.strip_prefix("unix://"), url.strip_prefix("redis://")) {
        (Some(path), _) => ask(UnixStream::connect(path).await?).await?,
        (_, Some(address)) => ask(TcpStream::connect(address).await?).await?,
        _ => bail!("--redis is unix:///path or redis://host:port"),
    };
    let lines = text.lines().filter_map(|line| line.strip_prefix("cmdstat_")?.split_once(":calls="));
    lines
        .map(|(name, rest)| Ok((name.to_owned(), rest.split(',').next().unwrap_or_default().parse()?)))
        .collect()
}

async fn ask(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> anyhow::Result<String> {
    stream.write_all(b"INFO commandstats\r\nQUIT\r\n").await?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await.context("INFO")?;
    Ok(text)
}
