//! Runs that write by the clock, and followers: the scenarios `tokens`, `fanout`, `slow`, `storm`, `mixed` and `soak` are this
//! with different numbers.

use super::{Env, fields};
use crate::corpus::{Corpus, Pace, Random, Script};
use crate::link::{Begin, LinkPlan};
use crate::report::{Report, per};
use crate::sampler::{Sampler, measured};
use crate::setup::{create, request_runs};
use crate::shard::{self, ShardPlan, WorkerPlan};
use crate::shared::{Joined, Phase, Session, Shared};
use crate::writer::Manner;
use anyhow::{Context as _, ensure};
use everthread_protocol::limits::{ATTACHMENTS_MAX, WORKER_CAPACITY_MAX};
use everthread_protocol::{AgentName, SessionId};
use serde::Serialize;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

/// How long it may take until all have joined, and until every run is with a worker.
const TAKE_MAX: Duration = Duration::from_secs(300);
/// Between the last run handed out and the start.
const LEAD: Duration = Duration::from_millis(500);
/// Nothing that is planned happens in the last part of a run: what it causes is to be seen.
const QUIET_SHARE: f64 = 0.1;

const VERIFIED: &str = "every follower got every token once, in order, as it was sent";

/// Everything that can be chosen.
#[derive(Debug, Clone, Serialize)]
pub struct Options {
    /// Sessions, each with one run that writes.
    pub sessions: u32,
    /// Followers of each.
    pub followers_per_session: u32,
    /// Sessions that one connection follows.
    pub attachments_per_connection: u32,
    /// Worker connections that share the runs.
    pub worker_connections: u32,
    /// Tokens per second and session.
    pub tokens_per_s_per_session: f64,
    /// For how long.
    pub seconds_s: f64,
    /// Tokens due earlier are not measured.
    pub warmup_s: f64,
    /// Tokens at equal distances instead of as models write.
    pub even: bool,
    /// Tokens of one message.
    pub message_tokens: u64,
    /// Workers gather for so long.
    pub gather_ms: u64,
    /// Followers ask for what is written within so long as one frame; 0: they do not ask.
    pub fold_ms: u64,
    /// Batches of a run under way, beyond which they gather; 0: no bound.
    pub under_way_max: usize,
    /// The sender looks at what is due so often.
    pub tick_us: u64,
    /// Of a thousand connections so many read slowly.
    pub slow_per_mille: u32,
    /// How slowly.
    pub slow_bytes_per_s: u32,
    /// All lose their connection at this time and come back at once.
    pub storm_at_s: Option<f64>,
    /// Each loses its connection so often, on average.
    pub drops_every_s: Option<f64>,
    /// Clients per second that join, read until they are live, and go.
    pub joins_per_s: f64,
    /// Everything must have arrived so long after the last token was due.
    pub patience_s: f64,
}

impl Options {
    fn check(&self) -> anyhow::Result<()> {
        ensure!(self.sessions > 0 && self.worker_connections > 0, "nothing to do");
        ensure!(
            self.tokens_per_s_per_session > 0.0 && self.seconds_s > self.warmup_s,
            "--seconds is longer than --warmup, and --rate more than 0"
        );
        let per_connection = self.attachments_per_connection as usize;
        ensure!((1..=ATTACHMENTS_MAX).contains(&per_connection), "--attachments is 1 to {ATTACHMENTS_MAX}");
        ensure!(self.slow_per_mille <= 1000, "--slow is of a thousand");
        Ok(())
    }

    /// Workers write by these rules.
    pub fn manner(&self) -> Manner {
        Manner {
            gather: Duration::from_millis(self.gather_ms),
            under_way_max: self.under_way_max,
            block_tokens_max: 512,
            tick: Duration::from_micros(self.tick_us.max(50)),
        }
    }

    /// The sessions, with their scripts.
    pub fn sessions(&self, stamp: u64) -> anyhow::Result<Vec<Session>> {
        let pace = if self.even { Pace::Even } else { Pace::Natural };
        let corpus = Arc::new(Corpus::new(self.tokens_per_s_per_session, pace));
        let period = 1.0 / self.tokens_per_s_per_session;
        (0..self.sessions)
            .map(|number| {
                // Spread over the period, as strangers are.
                let phase = period * f64::from(number) / f64::from(self.sessions);
                let phase = Duration::from_secs_f64(phase);
                let script = Script::new(&corpus, number.into(), phase, 0, self.message_tokens);
                let script = script.lasting(Duration::from_secs_f64(self.seconds_s));
                Ok(Session::new(format!("lt-{stamp}-{number}").parse()?, script))
            })
            .collect()
    }

    fn links(&self, targets: usize) -> Vec<LinkPlan> {
        let mut random = Random(11);
        let sessions: Vec<usize> = (0..self.followers_per_session)
            .flat_map(|_| 0..usize::try_from(self.sessions).unwrap_or(usize::MAX))
            .collect();
        let mut links: Vec<LinkPlan> = sessions
            .chunks(self.attachments_per_connection as usize)
            .enumerate()
            .map(|(nth, part)| LinkPlan::follow(nth % targets, part.to_vec()))
            .collect();
        for link in &mut links {
            link.fold_ms = (self.fold_ms > 0).then_some(self.fold_ms);
            if random.below(1000) < u64::from(self.slow_per_mille) {
                link.slow = Some(self.slow_bytes_per_s);
                continue;
            }
            link.drops.extend(self.storm_at_s.map(Duration::from_secs_f64));
            let mut at = self.warmup_s;
            while let Some(mean) = self.drops_every_s {
                at += mean * exponential(&mut random);
                if at > self.seconds_s * (1.0 - QUIET_SHARE) {
                    break;
                }
                link.drops.push(Duration::from_secs_f64(at));
            }
            link.drops.sort();
        }
        let mut at = self.warmup_s;
        while self.joins_per_s > 0.0 && at < self.seconds_s * (1.0 - QUIET_SHARE) {
            let session = usize::try_from(random.below(self.sessions.into())).unwrap_or(0);
            let mut link = LinkPlan::follow(links.len() % targets, vec![session]);
            (link.leaves, link.join_at) = (true, Some(Duration::from_secs_f64(at)));
            link.begin = if random.below(2) == 0 { Begin::Start } else { Begin::Recent(10) };
            links.push(link);
            at += exponential(&mut random) / self.joins_per_s;
        }
        links
    }

    /// Connections of workers that serve `agent`.
    pub fn workers(&self, stamp: u64, agent: &AgentName) -> Vec<WorkerPlan> {
        let connections = self.worker_connections.max(self.sessions.div_ceil(WORKER_CAPACITY_MAX));
        // Some room: which connection gets how many is the nodes' choice.
        let capacity = self.sessions.div_ceil(connections).saturating_mul(2).clamp(1, WORKER_CAPACITY_MAX);
        (0..connections)
            .map(|nth| WorkerPlan {
                target: nth as usize,
                name: format!("lt-{stamp}-{nth}"),
                agent: agent.clone(),
                capacity,
            })
            .collect()
    }
}

/// Exponentially distributed, with a mean of 1.
fn exponential(random: &mut Random) -> f64 {
    let thousandths = f64::from(u32::try_from(random.below(1_000_000)).unwrap_or(0) + 1) / 1_000_001.0;
    -thousandths.ln()
}

/// Runs it, and reports.
pub async fn run(env: &Env, scenario: &str, options: &Options) -> anyhow::Result<()> {
    options.check()?;
    let mut report = env.report(scenario);
    report.params.extend(fields(options)?);
    let shared = stream(env, options, &mut report).await?;
    measured(&mut report, &shared, VERIFIED)?;
    figures(&mut report, &shared);
    report.finish(&env.output)
}

/// Writes and follows as the options say; fills what the sampler sees into the report.
pub async fn stream(env: &Env, options: &Options, report: &mut Report) -> anyhow::Result<Arc<Shared>> {
    let agent: AgentName = format!("lt-{}", env.stamp).parse()?;
    let warmup_us = crate::meter::micros(Duration::from_secs_f64(options.warmup_s));
    let shared = Arc::new(Shared::new(env.targets.clone(), options.sessions(env.stamp)?, warmup_us)?);
    let names: Vec<SessionId> = shared.sessions.iter().map(|session| session.name.clone()).collect();
    create(&env.targets[0], &names, &agent).await?;
    let (links, workers) = (options.links(env.targets.len()), options.workers(env.stamp, &agent));
    let followers: usize = links.iter().filter(|link| !link.leaves).map(|link| link.sessions.len()).sum();
    let joiners = links.iter().filter(|link| link.leaves).count();
    let joining = links.len() - joiners + workers.len();
    report.counts.insert("connections", (links.len() - joiners) as u64);
    let threads = shard::spawn(&shared, ShardPlan::spread(links, workers, env.threads), options.manner())?;
    let joined = tokio::time::timeout(TAKE_MAX, shared.reached(&shared.joined, joining)).await;
    joined.context("not everybody could join in time")??;
    request_runs(&env.targets[0], &names, &agent).await?;
    let taken = tokio::time::timeout(TAKE_MAX, shared.reached(&shared.taken, names.len())).await;
    taken.context("not every run found its worker in time")??;

    let start = Instant::now() + LEAD;
    shared.start.set(start).map_err(|_| anyhow::anyhow!("started twice"))?;
    shared.phase.send_replace(Phase::Begun);
    let last = shared.sessions.iter().map(|session| session.script.due_us(session.script.tokens - 1)).max();
    let due = start + Duration::from_micros(last.unwrap_or_default());
    let warm = start + Duration::from_micros(warmup_us);
    let mut sampler = Sampler::new(&env.watch, &shared.board, start).await?;
    failing(&shared, sampler.until(Some(warm))).await?;
    let before = env.watch.look(&shared.board).await?;
    failing(&shared, sampler.until(Some(due))).await?;
    let after = env.watch.look(&shared.board).await?;
    shared.phase.send_replace(Phase::Drain);
    let patience = Duration::from_secs_f64(options.patience_s);
    let arrived = async {
        shared.reached(&shared.finished, followers).await?;
        shared.reached(&shared.ended, names.len()).await?;
        shared.reached(&shared.left, joiners).await
    };
    let in_time = tokio::select! {
        arrived = tokio::time::timeout(patience, arrived) => match arrived {
            Ok(Ok(())) => true,
            Ok(Err(error)) => {
                shared.verify(|verified| verified.problem(format!("{error:#}")));
                false
            }
            Err(_) => false,
        },
        sampled = sampler.until(None) => { sampled?; false }
    };
    let drain = Instant::now().saturating_duration_since(due);
    sampler.done()?;
    shared.phase.send_replace(Phase::Over);
    for thread in threads {
        let _joined = tokio::task::spawn_blocking(move || thread.join()).await?;
    }
    if let Some(error) = shared.failure() {
        return Err(error);
    }
    if !in_time {
        shared.verify(|verified| verified.problem("not everything was there in time".to_owned()));
    }
    sampler.fill(report, &before, &after);
    report.figure("drain_ms", drain.as_secs_f64() * 1e3);
    Ok(shared)
}

/// Goes on with something until it is done or anything has failed.
async fn failing(shared: &Shared, work: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    tokio::select! {
        done = work => done,
        failed = shared.reached(&shared.finished, usize::MAX) => failed,
    }
}

/// What joiners needed, and what was packed how.
fn figures(report: &mut Report, shared: &Shared) {
    let joins = shared.joins.lock().unwrap_or_else(PoisonError::into_inner);
    joined(report, &joins);
    let counts = &report.counts;
    let of = |name: &str| counts.get(name).copied().unwrap_or(0);
    let (tokens, batches) = (of("tokens_sent"), of("batches_sent"));
    let (frames, bytes) = (of("frames"), of("bytes"));
    report.figure("tokens_per_batch", per(tokens) / per(batches));
    if frames > 0 {
        report.figure("tokens_per_frame", per(of_delivered(report)) / per(frames));
        report.figure("bytes_per_token", per(bytes) / per(of_delivered(report)));
    }
}

fn of_delivered(report: &Report) -> u64 {
    report.verified.tokens_delivered
}

/// What late joiners needed.
pub fn joined(report: &mut Report, joins: &[Joined]) {
    if joins.is_empty() {
        return;
    }
    let (bytes, text): (u64, u64) =
        joins.iter().fold((0, 0), |(bytes, text), one| (bytes + one.bytes, text + one.text_bytes));
    report.figure("joins", joins.len());
    report.figure("join_bytes_mean", per(bytes) / per(joins.len() as u64));
    report.figure("join_bytes_per_text_byte", per(bytes) / per(text));
}
