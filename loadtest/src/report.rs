//! The report: one form for every scenario and every server, described in loadtest/README.md.

use crate::meter::{Counts, Latency};
use crate::process::Used;
use crate::redis::RedisUse;
use crate::shared::Verified;
use anyhow::{Context as _, bail};
use serde::Serialize;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Version of the form.
pub const FORMAT: &str = "everthread-loadtest/1";

/// Everything about one run.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Always [`FORMAT`].
    pub format: &'static str,
    /// What was done.
    pub scenario: String,
    /// To what.
    pub server: &'static str,
    /// Its release.
    pub server_version: &'static str,
    /// What distinguishes this run from others.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub label: String,
    /// When it began.
    pub started_unix_ms: u64,
    /// What was asked for.
    pub params: Map<String, Value>,
    /// How long the measured stretch is.
    pub window_s: f64,
    /// What was found.
    pub verified: Verified,
    /// What was counted.
    pub counts: BTreeMap<&'static str, u64>,
    /// Per second, and per second of a process.
    pub rates: BTreeMap<&'static str, f64>,
    /// By kind.
    pub latency_ms: BTreeMap<&'static str, Latency>,
    /// By name.
    pub processes: BTreeMap<String, Used>,
    /// The store, if it was looked at.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub redis: Option<RedisUse>,
    /// What only this scenario has.
    pub figures: Map<String, Value>,
    /// What this server cannot do.
    pub cannot: Vec<String>,
    /// Second by second.
    pub timeline: Vec<Second>,
    /// For drawing: percentiles by kind.
    #[serde(skip)]
    pub percentiles: BTreeMap<&'static str, Vec<(f64, f64)>>,
}

/// One second of a run.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Second {
    /// Which, after the start.
    pub at_s: f64,
    /// Tokens sent.
    pub tokens_per_s: f64,
    /// Tokens delivered.
    pub deliveries_per_s: f64,
    /// Of the deliveries that arrived in it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p50_ms: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p99_ms: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_ms: Option<f64>,
    /// By process.
    pub cpu_cores: BTreeMap<String, f64>,
    /// By process.
    pub resident_mib: BTreeMap<String, f64>,
    /// Commands that Redis carried out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub redis_commands_per_s: Option<f64>,
}

/// Where a report goes.
#[derive(Debug, Clone)]
pub struct Output {
    /// As JSON; `-` is the standard output.
    pub json: Option<PathBuf>,
    /// As a page.
    pub html: Option<PathBuf>,
    /// What distinguishes this run.
    pub label: String,
}

impl Report {
    /// Of a scenario, with nothing in it yet.
    pub fn new(scenario: &str, label: &str, started_unix_ms: u64) -> Report {
        Report {
            format: FORMAT,
            scenario: scenario.to_owned(),
            server: "everthread",
            server_version: env!("CARGO_PKG_VERSION"),
            label: label.to_owned(),
            started_unix_ms,
            params: Map::new(),
            window_s: 0.0,
            verified: Verified::default(),
            counts: BTreeMap::new(),
            rates: BTreeMap::new(),
            latency_ms: BTreeMap::new(),
            processes: BTreeMap::new(),
            redis: None,
            figures: Map::new(),
            cannot: Vec::new(),
            timeline: Vec::new(),
            percentiles: BTreeMap::new(),
        }
    }

    /// Takes over what was counted.
    pub fn count(&mut self, counts: &Counts) {
        self.counts.extend([
            ("tokens_sent", counts.tokens_sent),
            ("batches_sent", counts.batches_sent),
            ("deliveries", counts.deliveries),
            ("frames", counts.frames),
            ("bytes", counts.bytes),
            ("lags", counts.lags),
            ("reconnects", counts.reconnects),
        ]);
    }

    /// Notes a figure of this scenario.
    pub fn figure(&mut self, name: &str, value: impl Into<Value>) {
        self.figures.insert(name.to_owned(), value.into());
    }

    /// Writes it where it is wanted, and says what was found; an error if that is not what was sent.
    pub fn finish(&self, output: &Output) -> anyhow::Result<()> {
        let json = serde_json::to_string(self)?;
        match &output.json {
            Some(path) if path.as_os_str() == "-" => println!("{json}"),
            Some(path) => {
                std::fs::write(path, json + "\n")
                    .with_context(|| format!("cannot write {}", path.display()))?;
                print!("{}", self.table());
            }
            None => print!("{}", self.table()),
        }
        if let Some(path) = &output.html {
            std::fs::write(path, crate::html::page(std::slice::from_ref(self)))
                .with_context(|| format!("cannot write {}", path.display()))?;
        }
        if !self.verified.ok {
            bail!(
                "the run has failed: {} lost, {} doubled, {} changed, {} broken, {} unfinished of {} followers\n  {}",
                self.verified.lost,
                self.verified.doubled,
                self.verified.changed,
                self.verified.broken,
                self.verified.unfinished,
                self.verified.followers,
                self.verified.problems.join("\n  ")
            );
        }
        Ok(())
    }

    /// For people.
    pub fn table(&self) -> String {
        let mut out = String::new();
        let mut line = |name: &str, value: String| out.push_str(&format!("{name:<26}{value}\n"));
        line("scenario", format!("{} {}", self.scenario, self.label).trim_end().to_owned());
        let pairs = |map: &Map<String, Value>| {
            map.iter()
                .filter(|(_, value)| !value.is_null())
                .map(|(name, value)| format!("{name} {}", number(value)))
                .collect::<Vec<_>>()
                .join("  ")
        };
        line("params", pairs(&self.params));
        for (name, count) in &self.counts {
            line(name, count.to_string());
        }
        for (name, rate) in &self.rates {
            line(name, format!("{rate:.0}"));
        }
        for (name, latency) in &self.latency_ms {
            let Latency { count, p50_ms, p90_ms, p99_ms, p999_ms, max_ms, .. } = latency;
            line(
                name,
                format!(
                    "p50 {p50_ms:.2}  p90 {p90_ms:.2}  p99 {p99_ms:.2}  p99.9 {p999_ms:.2}  max {max_ms:.2} ms  ({count})"
                ),
            );
        }
        for (name, used) in &self.processes {
            let Used { cpu_cores, cpu_s, resident_begin_mib, resident_end_mib, resident_max_mib } = used;
            line(
                name,
                format!(
                    "{cpu_cores:.3} cores ({cpu_s:.2} s)  resident {resident_begin_mib:.1} → {resident_end_mib:.1} MiB (most {resident_max_mib:.1})"
                ),
            );
        }
        if let Some(redis) = &self.redis {
            let per_batch = redis.commands_per_batch.iter();
            let per_batch = per_batch.map(|(name, calls)| format!("{name} {calls:.2}"));
            let counts = redis.commands.iter().filter(|_| redis.requests_per_batch.is_none());
            let all: Vec<String> =
                per_batch.chain(counts.map(|(name, calls)| format!("{name} {calls}"))).collect();
            line("redis commands", all.join("  "));
            let requests =
                redis.requests_per_batch.map(|requests| format!("{requests:.3} requests per batch  "));
            line(
                "redis",
                format!(
                    "{}{} connections  {:.1} → {:.1} MiB",
                    requests.unwrap_or_default(),
                    redis.connections,
                    redis.memory_begin_mib,
                    redis.memory_end_mib
                ),
            );
        }
        for (name, value) in &self.figures {
            line(name, number(value));
        }
        if self.verified.ok {
            line("verified", self.verified.what.clone());
        }
        out
    }
}

/// A count as a divisor or dividend; beyond 2^53 nobody counts here.
#[expect(clippy::cast_precision_loss, reason = "counts and bytes of one run of the load test")]
pub fn per(count: u64) -> f64 {
    count.max(1) as f64
}

fn number(value: &Value) -> String {
    match value.as_f64() {
        Some(number) if value.is_f64() => format!("{number:.2}"),
        _ => value.as_str().map_or_else(|| value.to_string(), str::to_owned),
    }
}
