//! Histograms, and what the kernel says about a process.

use crate::script::Script;
use anyhow::Context as _;
use hdrhistogram::Histogram;
use serde::Serialize;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Latencies beyond this count as this.
const LATENCY_US_MAX: u64 = 120_000_000;
/// `CLK_TCK` of Linux on every architecture that matters.
const TICKS_PER_SECOND: f64 = 100.0;

/// Latencies of one scenario.
pub struct Measure {
    /// Blocks due earlier than this after the start are verified but not measured.
    warmup: Duration,
    all: Mutex<All>,
}

struct All {
    due: Histogram<u64>,
    handed: Histogram<u64>,
    ack: Histogram<u64>,
}

impl Measure {
    /// Nothing measured yet.
    pub fn new(warmup: Duration) -> anyhow::Result<Measure> {
        let empty = || Histogram::new_with_bounds(1, LATENCY_US_MAX, 3);
        let all = Mutex::new(All { due: empty()?, handed: empty()?, ack: empty()? });
        Ok(Measure { warmup, all })
    }

    /// A follower has got a block.
    pub fn delivered(&self, script: &Script, block: usize, start: Instant, arrived: Instant) {
        let due = script.due(block);
        if due < self.warmup {
            return;
        }
        let after = arrived.saturating_duration_since(start);
        let handed = script.handed_us(block).map_or(after, Duration::from_micros);
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        all.due.saturating_record(micros(after.saturating_sub(due)));
        all.handed.saturating_record(micros(after.saturating_sub(handed)));
    }

    /// The worker has got the ack of a block.
    pub fn acked(&self, script: &Script, block: usize, start: Instant) {
        if script.due(block) < self.warmup {
            return;
        }
        let handed = script.handed_us(block).map_or(Duration::ZERO, Duration::from_micros);
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        all.ack.saturating_record(micros(start.elapsed().saturating_sub(handed)));
    }

    /// Delivery since due, delivery since handed over, acks since handed over.
    pub fn latencies(&self) -> [Latency; 3] {
        let all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        [Latency::of(&all.due), Latency::of(&all.handed), Latency::of(&all.ack)]
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX).max(1)
}

/// Quantiles in milliseconds.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Latency {
    /// How many were measured.
    pub count: u64,
    /// Half of them took at most this.
    pub p50_ms: f64,
    /// Nine of ten.
    pub p90_ms: f64,
    /// Ninety-nine of a hundred.
    pub p99_ms: f64,
    /// All.
    pub max_ms: f64,
}

impl Latency {
    /// Of figures in microseconds.
    pub fn of_micros(all: &[u64]) -> anyhow::Result<Latency> {
        let mut histogram = Histogram::new_with_bounds(1, LATENCY_US_MAX, 3)?;
        all.iter().for_each(|micros| histogram.saturating_record((*micros).max(1)));
        Ok(Latency::of(&histogram))
    }

    fn of(histogram: &Histogram<u64>) -> Latency {
        let ms = |q: f64| Duration::from_micros(histogram.value_at_quantile(q)).as_secs_f64() * 1e3;
        Latency {
            count: histogram.len(),
            p50_ms: ms(0.5),
            p90_ms: ms(0.9),
            p99_ms: ms(0.99),
            max_ms: ms(1.0),
        }
    }
}

/// A process, as `/proc` shows it.
#[derive(Debug, Clone, Copy)]
pub struct Process {
    /// CPU time so far.
    pub cpu: Duration,
    /// Resident memory in bytes.
    pub resident: u64,
}

impl Process {
    /// Looks at a process; `self` is one too.
    pub fn look(pid: &str) -> anyhow::Result<Process> {
        let read = |file: &str| {
            let path = format!("/proc/{pid}/{file}");
            std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))
        };
        let stat = read("stat")?;
        // The name in brackets may hold anything; what follows it is fields, of which user and system time are 12 and 13.
        let (_, fields) = stat.rsplit_once(')').context("/proc/…/stat has another form")?;
        let ticks: f64 =
            fields.split_whitespace().skip(11).take(2).filter_map(|field| field.parse::<f64>().ok()).sum();
        let status = read("status")?;
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        let kib: u64 = resident.trim().trim_end_matches("kB").trim().parse()?;
        Ok(Process { cpu: Duration::from_secs_f64(ticks / TICKS_PER_SECOND), resident: kib * 1024 })
    }
}
