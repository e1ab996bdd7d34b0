//! `bench`: a node on one core, Redis and the load test on another, a fresh pair for every line of a list, and one page and
//! one table of everything.

use crate::cli::{BenchArgs, Store};
use crate::html;
use anyhow::{Context as _, bail, ensure};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::time::Instant;

/// How long a node or Redis may take to be ready, and to go.
const READY_MAX: Duration = Duration::from_secs(30);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(50);
const TOKEN: &str = "lt-bench-token";
/// What is measured if nothing else is asked for: the loads that the targets in docs/performance.md speak of.
const LIST: &str = "\
idle    idle --connections 15000
tokens  tokens --sessions 2000 --rate 5
gather  tokens --sessions 2000 --rate 60 --gather-ms 40 --under-way 1
fold    tokens --sessions 2000 --rate 5 --fold-ms 40
fanout  fanout --followers 1000
join    join
storm   storm
control control
slow    slow
mixed   mixed --seconds 30
";

/// Runs it.
pub async fn run(args: &BenchArgs) -> anyhow::Result<()> {
    let list = match &args.list {
        Some(path) => {
            std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?
        }
        None => LIST.to_owned(),
    };
    let binary = args.binary.canonicalize();
    let binary = binary.with_context(|| format!("--binary {}", args.binary.display()))?;
    std::fs::create_dir_all(&args.out)?;
    let out = args.out.canonicalize()?;
    let (mut reports, mut failed) = (Vec::new(), Vec::new());
    let lines = list.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    for line in lines {
        let (name, what) = line.split_once(char::is_whitespace).context("a line is a name and a scenario")?;
        ensure!(everthread_protocol::id::is_valid(name), "{name} is no name for a run");
        println!("== {name}: {}", what.trim());
        let report = out.join(format!("{name}.json"));
        let up = Up::new(args, &binary, &out, name).await?;
        let is_good = up.measure(args, name, what, &report).await;
        up.down().await?;
        if !is_good? {
            failed.push(name.to_owned());
        }
        if report.exists() {
            reports.push(report);
        }
    }
    html::of_files(&reports, Some(&out.join("report.html")))?;
    let table = table(&reports)?;
    std::fs::write(out.join("table.md"), &table)?;
    println!("\n{table}\nreports: {}", out.display());
    ensure!(failed.is_empty(), "these runs have failed: {}", failed.join(" "));
    Ok(())
}

/// A node, and Redis if it is asked for.
struct Up {
    node: Child,
    redis: Option<Child>,
    socket: PathBuf,
}

impl Up {
    async fn new(args: &BenchArgs, binary: &Path, out: &Path, name: &str) -> anyhow::Result<Up> {
        let data = out.join(format!("{name}.data"));
        if data.exists() {
            std::fs::remove_dir_all(&data)?;
        }
        std::fs::create_dir_all(&data)?;
        let socket = data.join("redis.sock");
        let redis = match args.store {
            Store::Redis => Some(start_redis(args, &data, &socket).await?),
            Store::Crash | Store::PowerCut => None,
        };
        let mut command = pinned(&args.node_cpus, binary.as_os_str());
        command.args(["serve", "--token", TOKEN, "--log", "warn"]);
        command.args(["--listen", &format!("127.0.0.1:{}", args.port)]);
        command.args(["--admin", &format!("127.0.0.1:{}", args.port + 1)]);
        match args.store {
            Store::Redis => command.arg("--redis").arg(format!("unix://{}", socket.display())),
            Store::Crash => command.args(["--durability", "crash"]),
            Store::PowerCut => command.args(["--durability", "power-cut"]),
        };
        command.arg("--data-dir").arg(data.join("node")).args(&args.node_arg);
        let log = std::fs::File::create(out.join(format!("{name}.node.log")))?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).kill_on_drop(true);
        let mut node = command.spawn().context("the node does not start (is there a taskset?)")?;
        let deadline = Instant::now() + READY_MAX;
        while !is_ready(args.port + 1).await {
            if let Some(status) = node.try_wait()? {
                bail!("the node has ended: {status}; see {name}.node.log");
            }
            ensure!(Instant::now() < deadline, "the node is not ready; see {name}.node.log");
            tokio::time::sleep(LOOK).await;
        }
        Ok(Up { node, redis, socket })
    }

    /// Whether the run was good.
    async fn measure(&self, args: &BenchArgs, name: &str, what: &str, report: &Path) -> anyhow::Result<bool> {
        if report.exists() {
            std::fs::remove_file(report)?;
        }
        let mut command = pinned(&args.other_cpus, std::env::current_exe()?.as_os_str());
        command.args(["--url", &format!("ws://127.0.0.1:{}", args.port), "--label", name, "--quiet"]);
        let pid = |child: &Child| child.id().context("it has ended");
        command.args(["--pid", &format!("node={}", pid(&self.node)?)]);
        if let Some(redis) = &self.redis {
            command.args(["--pid", &format!("redis={}", pid(redis)?)]);
            command.arg("--redis").arg(format!("unix://{}", self.socket.display()));
        }
        command.arg("--json").arg(report).args(what.split_whitespace());
        command.env("EVERTHREAD_TOKEN", TOKEN).stdin(Stdio::null()).kill_on_drop(true);
        Ok(command.status().await?.success())
    }

    async fn down(mut self) -> anyhow::Result<()> {
        self.node.kill().await?;
        if let Some(mut redis) = self.redis {
            redis.kill().await?;
        }
        Ok(())
    }
}

async fn start_redis(args: &BenchArgs, data: &Path, socket: &Path) -> anyhow::Result<Child> {
    let mut command = pinned(&args.other_cpus, "redis-server".as_ref());
    command.args(["--port", "0", "--save", "", "--appendonly", "yes", "--appendfsync", "everysec"]);
    // As in deploy/redis/redis.conf, where the reasons are.
    command.args(["--auto-aof-rewrite-min-size", "256mb", "--stream-node-max-bytes", "1024"]);
    command.arg("--unixsocket").arg(socket).arg("--dir").arg(data);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    let redis = command.spawn().context("redis-server does not start (is it, and taskset, there?)")?;
    let url = format!("unix://{}", socket.display());
    let deadline = Instant::now() + READY_MAX;
    while crate::redis::info(&url).await.is_err() {
        ensure!(Instant::now() < deadline, "redis-server does not answer");
        tokio::time::sleep(LOOK).await;
    }
    Ok(redis)
}

/// A command on some CPUs.
fn pinned(cpus: &str, program: &std::ffi::OsStr) -> Command {
    if cpus.is_empty() {
        return Command::new(program);
    }
    let mut command = Command::new("taskset");
    command.args(["-c", cpus]).arg(program);
    command
}

async fn is_ready(port: u16) -> bool {
    let asked = async {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
        stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n").await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        std::io::Result::Ok(answer.starts_with("HTTP/1.1 200"))
    };
    matches!(tokio::time::timeout(Duration::from_secs(2), asked).await, Ok(Ok(true)))
}

/// One line per report, in Markdown.
fn table(reports: &[PathBuf]) -> anyhow::Result<String> {
    let mut out = String::from(
        "| run | verified | deliveries/s | per CPU-s of the node | tokens per CPU-s of Redis | delivery p50 / p99 ms | ack p50 / p99 ms | figures |\n\
         | --- | --- | --- | --- | --- | --- | --- | --- |\n",
    );
    for path in reports {
        out.push_str(&row(&serde_json::from_str(&std::fs::read_to_string(path)?)?));
    }
    Ok(out)
}

fn row(report: &Value) -> String {
    let rate =
        |name: &str| report["rates"][name].as_f64().map_or_else(String::new, |number| format!("{number:.0}"));
    let latency = |kind: &str| {
        let of = |quantile: &str| report["latency_ms"][kind][quantile].as_f64();
        of("p50_ms").zip(of("p99_ms")).map_or_else(String::new, |(p50, p99)| format!("{p50:.1} / {p99:.1}"))
    };
    let mut figures: Vec<String> = report["figures"]
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(name, _)| !name.starts_with("redis_"))
        .map(|(name, value)| match value.as_f64() {
            Some(number) if value.is_f64() => format!("{name} {number:.1}"),
            _ => format!("{name} {value}"),
        })
        .collect();
    for (kind, latency) in report["latency_ms"].as_object().into_iter().flatten() {
        let is_named = ["delivery", "ack", "send_late"].iter().any(|name| kind.starts_with(name));
        if let Some((p50, p99)) = latency["p50_ms"].as_f64().zip(latency["p99_ms"].as_f64())
            && !is_named
        {
            figures.push(format!("{kind} {p50:.1} / {p99:.1} ms"));
        }
    }
    format!(
        "| {} | {} | {} | {} | {} | {} | {} | {} |\n",
        report["label"].as_str().unwrap_or_default(),
        if report["verified"]["ok"] == true { "yes" } else { "**no**" },
        rate("deliveries_per_s"),
        rate("deliveries_per_cpu_s"),
        rate("tokens_per_cpu_s_store"),
        latency("delivery"),
        latency("ack"),
        figures.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_says_what_there_is_and_nothing_else() {
        let report = serde_json::json!({
            "label": "storm", "verified": {"ok": false}, "rates": {},
            "latency_ms": {"live": {"p50_ms": 1.25, "p99_ms": 9.0}}, "figures": {"drain_ms": 3.0}
        });
        assert_eq!(row(&report), "| storm | **no** |  |  |  |  |  | drain_ms 3.0, live 1.2 / 9.0 ms |\n");
    }

    #[test]
    fn every_built_in_line_is_a_scenario() {
        use clap::Parser as _;
        for line in LIST.lines() {
            let words = ["everthread-loadtest"].into_iter().chain(line.split_whitespace().skip(1));
            assert!(crate::cli::Cli::try_parse_from(words).is_ok(), "{line}");
        }
    }
}
