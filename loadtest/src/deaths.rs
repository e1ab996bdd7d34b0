//! `deaths`: workers in processes of their own, each with one run that writes, are killed or frozen; what counts is the time
//! until a follower sees the outcome.

use crate::control::{Phase, Plan, Watcher, Worker};
use crate::meter::Latency;
use crate::scenario::{Env, latencies};
use crate::setup::{create, request_runs};
use crate::shared::{Start, Verified};
use crate::socket::Target;
use anyhow::{Context as _, ensure};
use everthread_protocol::AgentName;
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::process::Command;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

/// How long each step may take.
const STEP_MAX: Duration = Duration::from_secs(60);
/// How often a victim writes.
const EVERY: Duration = Duration::from_millis(500);

/// Runs it.
pub async fn run(env: &Env, url: &str, kills: u32, side_by_side: usize, freeze: bool) -> anyhow::Result<()> {
    ensure!(kills > 0 && side_by_side > 0, "nothing to do");
    let (target, stamp) = (&env.targets[0], env.stamp);
    let gate = Arc::new(Semaphore::new(side_by_side));
    let mut tasks = JoinSet::new();
    for number in 0..kills {
        let permit = gate.clone().acquire_owned().await?;
        let (target, name, url) = (target.clone(), format!("lt-{stamp}-{number}"), url.to_owned());
        tasks.spawn(async move {
            let took = one(&target, &url, &name, freeze).await;
            drop(permit);
            took
        });
    }
    let mut took = Vec::new();
    while let Some(one) = tasks.join_next().await {
        took.push(u64::try_from(one??.as_micros())?);
    }
    let kind = if freeze { "SIGSTOP" } else { "SIGKILL" };
    let mut report = env.report("deaths");
    report.params.insert("signal".to_owned(), kind.into());
    latencies(&mut report, &[("outcome_seen", Some(Latency::of_micros(&took)?))]);
    let verified = Verified { followers: kills.into(), ..Verified::default() };
    report.verified = verified.judged("every run has ended once, as lost");
    report.finish(&env.output)
}

async fn one(target: &Target, url: &str, name: &str, freeze: bool) -> anyhow::Result<Duration> {
    let (session, agent): (_, AgentName) = (name.parse()?, name.parse()?);
    create(target, std::slice::from_ref(&session), &agent).await?;
    let mut watcher = Watcher::join(target, &session).await?;
    let mut victim = Command::new(std::env::current_exe()?)
        .args(["--url", url, "victim", "--agent", name])
        .env("EVERTHREAD_TOKEN", &target.token)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .kill_on_drop(true)
        .spawn()?;
    request_runs(target, std::slice::from_ref(&session), &agent).await?;
    let writes = watcher.until(|seen| seen.has_written);
    tokio::time::timeout(STEP_MAX, writes).await.context("the victim does not write")??;
    let died = Instant::now();
    if freeze {
        let pid = victim.id().context("the victim is gone")?.to_string();
        ensure!(Command::new("kill").args(["-STOP", &pid]).status().await?.success(), "kill -STOP failed");
    } else {
        victim.start_kill()?;
    }
    tokio::time::timeout(STEP_MAX, watcher.until_ended()).await.context("the run has no outcome")??;
    let took = died.elapsed();
    ensure!(watcher.seen().ends == ["lost"], "the run of {name} ended as {:?}", watcher.seen().ends);
    victim.kill().await?;
    Ok(took)
}

/// A worker that takes one run and writes until it is killed.
pub async fn victim(env: &Env, agent: &str) -> anyhow::Result<()> {
    let target = &env.targets[0];
    let (plan, start) = (Arc::new(Plan::new(1, 0, 1.0, 1, false)), Arc::new(Start::new()));
    let (taken, _runs) = watch::channel(0);
    let (_phase, phases) = watch::channel(Phase::SetUp);
    let name = format!("victim-{}", std::process::id());
    let worker = Worker::join(target, &name, &agent.parse()?, 1, plan, start, Arc::new(taken)).await?;
    worker.run(EVERY, phases).await
}
