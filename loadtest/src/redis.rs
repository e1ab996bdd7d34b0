//! How often Redis was asked to do what, and what it holds.

use anyhow::{Context as _, bail};
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixStream};

/// Calls by command; those that scripts make are among them.
pub type Calls = BTreeMap<String, u64>;

/// How long Redis may take to answer.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// Of the commands those are named that are asked for this often per batch.
const NAMED_PER_BATCH: f64 = 0.005;
/// What nodes ask for over the wire; everything else they ask for from within scripts.
const REQUESTS: [&str; 10] = [
    "evalsha",
    "eval",
    "fcall",
    "ssubscribe",
    "sunsubscribe",
    "xack",
    "xdel",
    "ping",
    "hello",
    "script|load",
];

/// What INFO said at some time.
#[derive(Debug, Clone, Default)]
pub struct Info {
    /// By command.
    pub calls: Calls,
    /// All commands so far.
    pub commands: u64,
    /// Connections, this one left out.
    pub connections: u64,
    /// Bytes that it holds.
    pub memory: u64,
}

/// Figures of Redis over the measured stretch.
#[derive(Debug, Clone, Serialize)]
pub struct RedisUse {
    /// By name, scripts' own among them.
    pub commands: Calls,
    /// The same per batch, if any was written.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub commands_per_batch: BTreeMap<String, f64>,
    /// Requests over the wire.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requests_per_batch: Option<f64>,
    /// Of everybody.
    pub connections: u64,
    /// When it began.
    pub memory_begin_mib: f64,
    /// When it ended.
    pub memory_end_mib: f64,
}

impl RedisUse {
    /// Between two looks, while so many batches were written.
    pub fn between(before: &Info, after: &Info, batches: u64) -> RedisUse {
        let made = |(name, now): (&String, &u64)| {
            (name.clone(), now.saturating_sub(before.calls.get(name).copied().unwrap_or(0)))
        };
        let commands: Calls = after.calls.iter().map(made).filter(|(_, made)| *made > 0).collect();
        let per_batch = |made: u64| crate::report::per(made) / crate::report::per(batches);
        let all: BTreeMap<String, f64> =
            commands.iter().map(|(name, made)| (name.clone(), per_batch(*made))).collect();
        let is_written = batches > 0;
        let requests = || REQUESTS.iter().filter_map(|name| all.get(*name)).sum();
        let mib = |bytes: u64| crate::report::per(bytes) / 1_048_576.0;
        RedisUse {
            requests_per_batch: is_written.then(requests),
            commands_per_batch: all
                .into_iter()
                .filter(|(_, made)| is_written && *made >= NAMED_PER_BATCH)
                .collect(),
            commands,
            connections: after.connections,
            memory_begin_mib: mib(before.memory),
            memory_end_mib: mib(after.memory),
        }
    }
}

/// The counters of the Redis at `url`.
pub async fn info(url: &str) -> anyhow::Result<Info> {
    let text = match (url.strip_prefix("unix://"), url.strip_prefix("redis://")) {
        (Some(path), _) => ask(UnixStream::connect(path).await?).await?,
        (_, Some(address)) => ask(TcpStream::connect(address).await?).await?,
        _ => bail!("--redis is unix:///path or redis://host:port"),
    };
    read(&text)
}

fn read(text: &str) -> anyhow::Result<Info> {
    let lines = text.lines().filter_map(|line| line.strip_prefix("cmdstat_")?.split_once(":calls="));
    let calls: anyhow::Result<Calls> = lines
        .map(|(name, rest)| Ok((name.to_owned(), rest.split(',').next().unwrap_or_default().parse()?)))
        .collect();
    let number = |name: &str| {
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        value.and_then(|value| value.trim().parse::<u64>().ok()).unwrap_or(0)
    };
    Ok(Info {
        calls: calls?,
        commands: number("total_commands_processed"),
        connections: number("connected_clients").saturating_sub(1),
        memory: number("used_memory"),
    })
}

/// The calls alone.
pub async fn calls(url: &str) -> anyhow::Result<Calls> {
    Ok(info(url).await?.calls)
}

async fn ask(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> anyhow::Result<String> {
    stream.write_all(b"INFO all\r\nQUIT\r\n").await?;
    let mut text = String::new();
    let read = tokio::time::timeout(ANSWER_MAX, stream.read_to_string(&mut text));
    read.await.context("Redis does not answer")?.context("INFO")?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_per_batch_are_what_came_between_and_requests_leave_out_what_scripts_call() {
        let at = |evalsha, xadd, ping| {
            read(&format!(
                "# Clients\r\nconnected_clients:4\r\nused_memory:1048576\r\ntotal_commands_processed:9\r\n\
                 cmdstat_evalsha:calls={evalsha},usec=1\r\ncmdstat_xadd:calls={xadd},usec=1\r\ncmdstat_ping:calls={ping},usec=1\r\n"
            ))
            .unwrap()
        };
        let used = RedisUse::between(&at(10, 10, 1), &at(110, 110, 21), 100);
        assert_eq!((used.commands_per_batch["evalsha"], used.commands_per_batch["xadd"]), (1.0, 1.0));
        assert!((used.requests_per_batch.unwrap() - 1.2).abs() < 1e-9);
        let idle = RedisUse::between(&at(10, 10, 1), &at(10, 10, 2), 0);
        assert_eq!((idle.requests_per_batch, idle.commands["ping"]), (None, 1));
        assert_eq!((used.connections, used.memory_end_mib), (3, 1.0));
    }
}
