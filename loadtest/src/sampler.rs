//! Second by second while a scenario runs: what is shown in the terminal, and the timeline of the report.

use crate::meter::{Board, Latency, Progress};
use crate::process::{Look, Used, Watched};
use crate::redis::{Info, RedisUse, info};
use crate::report::{Report, Second, per};
use crate::shared::Shared;
use std::collections::BTreeMap;
use std::io::{IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

/// What is watched besides the load itself.
#[derive(Debug, Clone)]
pub struct Watch {
    /// Processes.
    pub processes: Watched,
    /// A Redis.
    pub redis: Option<String>,
    /// Nothing in the terminal.
    pub quiet: bool,
}

/// An instant, as far as anybody looked.
#[derive(Debug, Clone)]
pub struct Instantly {
    processes: Look,
    redis: Option<Info>,
    progress: Progress,
}

impl Watch {
    /// Looks at everything.
    pub async fn look(&self, board: &Board) -> anyhow::Result<Instantly> {
        let redis = match &self.redis {
            Some(url) => Some(info(url).await?),
            None => None,
        };
        Ok(Instantly { processes: self.processes.look()?, redis, progress: board.progress() })
    }
}

/// Looks once a second.
pub struct Sampler<'a> {
    watch: &'a Watch,
    board: &'a Board,
    last: Instantly,
    begun: Instant,
    /// Second by second.
    pub timeline: Vec<Second>,
    most: BTreeMap<String, f64>,
}

impl<'a> Sampler<'a> {
    /// Begins now; seconds count from `begun`.
    pub async fn new(watch: &'a Watch, board: &'a Board, begun: Instant) -> anyhow::Result<Sampler<'a>> {
        let last = watch.look(board).await?;
        Ok(Sampler { watch, board, last, begun, timeline: Vec::new(), most: BTreeMap::new() })
    }

    /// Looks once a second until an instant. Cancel safe: a second that is cut off is left out.
    pub async fn until(&mut self, end: Option<Instant>) -> anyhow::Result<()> {
        loop {
            let next = self.last.processes.at + Duration::from_secs(1);
            match end {
                Some(end) if end <= next => {
                    tokio::time::sleep_until(end.into()).await;
                    return Ok(());
                }
                _ => tokio::time::sleep_until(next.into()).await,
            }
            self.sample().await?;
        }
    }

    async fn sample(&mut self) -> anyhow::Result<()> {
        let now = self.watch.look(self.board).await?;
        let (_, latency) = self.board.look()?;
        let spent = (now.processes.at - self.last.processes.at).as_secs_f64();
        let rate = |now: u64, before: u64| if now == before { 0.0 } else { per(now - before) / spent };
        let commands = now.redis.as_ref().zip(self.last.redis.as_ref());
        let resident_mib = now.processes.resident_mib();
        for (name, mib) in &resident_mib {
            let most = self.most.entry(name.clone()).or_default();
            *most = most.max(*mib);
        }
        let of = |read: fn(&Latency) -> f64| latency.as_ref().map(read);
        let second = Second {
            at_s: now.processes.at.saturating_duration_since(self.begun).as_secs_f64(),
            tokens_per_s: rate(now.progress.sent, self.last.progress.sent),
            deliveries_per_s: rate(now.progress.deliveries, self.last.progress.deliveries),
            p50_ms: of(|latency| latency.p50_ms),
            p99_ms: of(|latency| latency.p99_ms),
            max_ms: of(|latency| latency.max_ms),
            cpu_cores: now.processes.cores_since(&self.last.processes),
            resident_mib,
            redis_commands_per_s: commands.map(|(now, before)| rate(now.commands, before.commands)),
        };
        self.show(&second)?;
        self.timeline.push(second);
        self.last = now;
        Ok(())
    }

    fn show(&self, second: &Second) -> anyhow::Result<()> {
        if self.watch.quiet {
            return Ok(());
        }
        let mut line = format!(
            "{:5.0} s  sent {:.0}/s  delivered {:.0}/s",
            second.at_s, second.tokens_per_s, second.deliveries_per_s
        );
        if let (Some(p50), Some(p99), Some(max)) = (second.p50_ms, second.p99_ms, second.max_ms) {
            line += &format!("  p50 {p50:.1}  p99 {p99:.1}  max {max:.1} ms");
        }
        for (name, cores) in &second.cpu_cores {
            let mib = second.resident_mib.get(name).copied().unwrap_or_default();
            line += &format!("  {name} {cores:.2} cores {mib:.0} MiB");
        }
        let mut out = std::io::stderr().lock();
        if out.is_terminal() {
            write!(out, "\r\x1b[2K{line}")?;
        } else {
            writeln!(out, "{line}")?;
        }
        Ok(out.flush()?)
    }

    /// Ends the line in the terminal.
    pub fn done(&self) -> anyhow::Result<()> {
        let mut out = std::io::stderr().lock();
        if !self.watch.quiet && out.is_terminal() {
            writeln!(out)?;
        }
        Ok(())
    }

    /// Writes what was used between two instants into a report.
    pub fn fill(&mut self, report: &mut Report, before: &Instantly, after: &Instantly) {
        let window = after.processes.at.saturating_duration_since(before.processes.at).as_secs_f64();
        report.window_s = window;
        report.timeline = std::mem::take(&mut self.timeline);
        report.processes = Used::between(&before.processes, &after.processes, &self.most);
        // What was done counts, not what was asked for: a node that is behind has not earned it yet.
        let sent = after.progress.sent - before.progress.sent;
        let tokens = after.progress.acked - before.progress.acked;
        let batches = after.progress.batches - before.progress.batches;
        let deliveries = after.progress.deliveries - before.progress.deliveries;
        if let Some((before, after)) = before.redis.as_ref().zip(after.redis.as_ref()) {
            report.redis = Some(RedisUse::between(before, after, batches));
        }
        if tokens > 0 {
            report.rates.insert("tokens_sent_per_s", per(sent) / window);
            report.rates.insert("tokens_per_s", per(tokens) / window);
            report.rates.insert("batches_per_s", per(batches) / window);
            report.rates.insert("deliveries_per_s", per(deliveries) / window);
        }
        let cpu = |is: fn(&str) -> bool| {
            let all = report.processes.iter().filter(|(name, _)| is(name));
            all.map(|(_, used)| used.cpu_s).sum::<f64>()
        };
        let (server, store) = (cpu(crate::process::is_server), cpu(crate::process::is_store));
        if server > 0.0 && deliveries > 0 {
            report.rates.insert("deliveries_per_cpu_s", per(deliveries) / server);
            report.rates.insert("tokens_per_cpu_s", per(tokens) / server);
        }
        if store > 0.0 && tokens > 0 {
            report.rates.insert("tokens_per_cpu_s_store", per(tokens) / store);
        }
    }
}

/// Writes what was measured and verified into a report.
pub fn measured(report: &mut Report, shared: &Shared, what: &str) -> anyhow::Result<()> {
    use crate::meter::Kind;
    shared.board.all(|all| {
        report.count(&all.counts);
        for kind in Kind::ALL {
            if let Some(latency) = all.latency(kind) {
                report.latency_ms.insert(kind.name(), latency);
                report.percentiles.insert(kind.name(), all.percentiles(kind));
            }
        }
    })?;
    let mut verified = crate::shared::Verified::default();
    shared.verify(|found| verified = found.clone());
    report.verified = verified.judged(what);
    let retries = shared.retries.load(std::sync::atomic::Ordering::Relaxed);
    report.counts.insert("retries", retries);
    Ok(())
}
