//! `control`: many active runs on one or two nodes, steered and cancelled at a steady rate and then all at once.

mod plan;
mod watcher;
mod worker;

pub use plan::{Phase, Plan};
pub use watcher::Watcher;
pub use worker::Worker;

use crate::cli::ControlLoad;
use crate::meter::{Board, Latency};
use crate::redis::{Calls, calls};
use crate::report::{Report, per};
use crate::sampler::Sampler;
use crate::scenario::{Env, latencies};
use crate::setup::{create, request_runs};
use crate::shared::{Start, Verified};
use crate::socket::Target;
use anyhow::{Context as _, ensure};
use everthread_protocol::{AgentName, SessionId};
use plan::Kind;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

/// Connections that are made at once.
const JOINS_MAX: usize = 64;
/// How long it may take until every run is with a worker.
const TAKE_MAX: Duration = Duration::from_secs(60);
/// Between the last run handed out and the start.
const LEAD: Duration = Duration::from_millis(500);
/// After the last outcome, for anything that comes twice.
const QUIET: Duration = Duration::from_secs(1);
/// How long Redis is left alone to see what it does by itself.
const IDLE: Duration = Duration::from_secs(5);
/// Of the commands of Redis those are named that are asked for this often per run.
const NAMED_PER_RUN: f64 = 0.05;

const VERIFIED: &str = "every control had one outcome, every run one end, at every follower, which got every entry once and in order";

/// Runs it.
pub async fn run(env: &Env, load: &ControlLoad) -> anyhow::Result<()> {
    ensure!(load.cancels > 0 && load.followers > 0 && load.workers > 0 && load.rate > 0.0, "nothing to do");
    let (targets, stamp, redis) = (&env.targets, env.stamp, env.watch.redis.as_deref());
    let agent: AgentName = format!("lt-{stamp}").parse()?;
    let (singles, storm) = (load.cancels as usize, load.runs as usize);
    let plan = Arc::new(Plan::new(singles, storm, load.rate, load.followers, !load.no_steers));
    let names: Result<Vec<SessionId>, _> =
        (0..plan.sessions).map(|n| format!("lt-{stamp}-{n}").parse()).collect();
    let names = names?;
    create(&targets[0], &names, &agent).await?;
    let watchers = join_all(targets, &names, load.followers as usize).await?;

    let start = Arc::new(Start::new());
    let (phase, phases) = watch::channel(Phase::SetUp);
    let ((taken, mut is_taken), (ended, mut is_ended)) = (watch::channel(0), watch::channel(0));
    let (taken, ended) = (Arc::new(taken), Arc::new(ended));
    let mut works = JoinSet::new();
    let capacity = u32::try_from(plan.sessions)?.div_ceil(load.workers);
    for number in 0..load.workers {
        let (name, target) = (format!("lt-{stamp}-{number}"), &targets[number as usize % targets.len()]);
        let joined =
            Worker::join(target, &name, &agent, capacity, plan.clone(), start.clone(), taken.clone());
        works.spawn(joined.await?.run(Duration::from_secs_f64(load.every), phases.clone()));
    }
    let mut tasks: JoinSet<anyhow::Result<(usize, watcher::Seen)>> = JoinSet::new();
    let expected = watchers.len();
    for (session, nth, watcher) in watchers {
        let (plan, start, phases) = (plan.clone(), start.clone(), phases.clone());
        let watched = watcher.watch(plan, session, nth == 0, start, phases, ended.clone());
        tasks.spawn(async move { Ok((session, watched.await?)) });
    }
    let before = Usage::look(redis).await?;
    request_runs(&targets[0], &names, &agent).await?;
    tokio::select! {
        taken = tokio::time::timeout(TAKE_MAX, is_taken.wait_for(|taken| *taken == names.len())) => {
            let _count = taken.context("not every run found its worker in time")??;
        }
        Some(stopped) = works.join_next() => stopped??,
    }

    let begun = Instant::now();
    start.set(begun + LEAD).map_err(|_| anyhow::anyhow!("started twice"))?;
    phase.send_replace(Phase::Begun);
    let last = plan.due(if storm > 0 { Kind::Storm } else { Kind::Cancel }, plan.sessions - 1);
    let patience = LEAD + last + Duration::from_secs_f64(load.patience);
    let board = Board::new()?;
    let from = env.watch.look(&board).await?;
    let mut sampler = Sampler::new(&env.watch, &board, begun + LEAD).await?;
    tokio::select! {
        all = tokio::time::timeout(patience, is_ended.wait_for(|ended| *ended == expected)) => {
            let _count = all.context("not every run has ended in time for every follower")??;
        }
        Some(stopped) = tasks.join_next() => { drop(stopped??); anyhow::bail!("a follower left") }
        Some(stopped) = works.join_next() => { stopped??; anyhow::bail!("a worker left") }
        sampled = sampler.until(None) => sampled?,
    }
    let to = env.watch.look(&board).await?;
    sampler.done()?;
    let redis_per_run = before.per_run(redis, plan.sessions).await?;
    tokio::time::sleep(QUIET).await;
    phase.send_replace(Phase::Over);
    let mut verified = Verified::default();
    while let Some(seen) = tasks.join_next().await {
        let (session, seen) = seen??;
        verified.followers += 1;
        if let Err(error) = verify(&plan, session, &seen) {
            verified.changed += 1;
            verified.problem(format!("{error:#}"));
        }
    }

    let mut report = env.report("control");
    sampler.fill(&mut report, &from, &to);
    report.verified = verified.judged(VERIFIED);
    figures(&mut report, &plan, load)?;
    for (name, calls) in redis_per_run.into_iter().flatten() {
        report.figure(&format!("redis_{name}_per_run"), calls);
    }
    report.finish(&env.output)
}

fn figures(report: &mut Report, plan: &Plan, load: &ControlLoad) -> anyhow::Result<()> {
    let storm = plan.sessions - plan.singles;
    for (name, value) in [
        ("runs", plan.sessions),
        ("followers_per_session", load.followers as usize),
        ("worker_connections", load.workers as usize),
        ("storm", storm),
    ] {
        report.params.insert(name.to_owned(), value.into());
    }
    report.params.insert("controls_per_s".to_owned(), load.rate.into());
    report.params.insert("block_every_s".to_owned(), load.every.into());
    // From the time it was due to the worker; from the requester's socket to it; from due until the last follower knows.
    let names = [
        (plan.has_steers, Kind::Steer, ["steer_worker", "steer_worker_from_socket", "steer_settled"]),
        (true, Kind::Cancel, ["cancel_worker", "cancel_worker_from_socket", "cancel_ended"]),
        (storm > 0, Kind::Storm, ["storm_worker", "storm_worker_from_socket", "storm_ended"]),
    ];
    for (is_there, kind, names) in names {
        for (name, all) in names.into_iter().zip(plan.latencies(kind)) {
            latencies(report, &[(name, is_there.then(|| Latency::of_micros(&all)).transpose()?)]);
        }
    }
    Ok(())
}

/// One end, and one outcome of each control, each as it must be.
fn verify(plan: &Plan, session: usize, seen: &watcher::Seen) -> anyhow::Result<()> {
    ensure!(seen.ends == ["cancelled"], "session {session} ended as {:?}", seen.ends);
    let mut settled = seen.settled.clone();
    settled.sort();
    let mut expected = vec![(format!("c{session}"), "applied".to_owned())];
    if plan.has_steers {
        expected.push((format!("s{session}"), "applied".to_owned()));
    }
    ensure!(settled == expected, "the controls of session {session} came to {settled:?}");
    Ok(())
}

/// Followers of every session, on one node after the other: session, number, follower.
async fn join_all(
    targets: &[Target],
    names: &[SessionId],
    followers: usize,
) -> anyhow::Result<Vec<(usize, usize, Watcher)>> {
    let gate = Arc::new(Semaphore::new(JOINS_MAX));
    let mut joins = JoinSet::new();
    for (session, name) in names.iter().enumerate() {
        for nth in 0..followers {
            let permit = gate.clone().acquire_owned().await?;
            let (target, name) = (targets[(session + nth) % targets.len()].clone(), name.clone());
            joins.spawn(async move {
                let watcher = Watcher::join(&target, &name).await?;
                drop(permit);
                anyhow::Ok((session, nth, watcher))
            });
        }
    }
    let mut all = Vec::new();
    while let Some(joined) = joins.join_next().await {
        all.push(joined.context("a follower broke")?.context(
            "a follower could not join (if files are the limit: raise `ulimit -n` here and for the nodes)",
        )?);
    }
    Ok(all)
}

/// What Redis had done at some time, and what it does by itself per second.
struct Usage(Option<(Instant, Calls, Calls)>);

impl Usage {
    async fn look(redis: Option<&str>) -> anyhow::Result<Usage> {
        let Some(url) = redis else { return Ok(Usage(None)) };
        let first = calls(url).await?;
        tokio::time::sleep(IDLE).await;
        let second = calls(url).await?;
        let idle =
            second.iter().map(|(name, now)| (name.clone(), now - first.get(name).unwrap_or(&0))).collect();
        Ok(Usage(Some((Instant::now(), second, idle))))
    }

    /// Commands per run since then, without those that come anyway; `total` leaves out what scripts call.
    async fn per_run(
        self,
        redis: Option<&str>,
        runs: usize,
    ) -> anyhow::Result<Option<BTreeMap<String, f64>>> {
        let (Some(url), Some((since, before, idle))) = (redis, self.0) else { return Ok(None) };
        let after = calls(url).await?;
        let idles = since.elapsed().as_secs_f64() / IDLE.as_secs_f64();
        let per_run = after.into_iter().map(|(name, now)| {
            let of = |calls: &Calls| {
                calls.get(&name).copied().map_or(0.0, |calls| if calls == 0 { 0.0 } else { per(calls) })
            };
            let made = if now == 0 { 0.0 } else { per(now) } - of(&before) - of(&idle) * idles;
            (name, made / per(runs as u64))
        });
        Ok(Some(per_run.filter(|(_, made)| *made >= NAMED_PER_RUN).collect()))
    }
}
