//! `join`: late joiners into long sessions. First the sessions are written, as fast as the node takes it; then clients come by
//! the clock, read until they are live, and have everything.

use super::stream::{Options, joined, stream};
use super::{Env, fields};
use crate::cli::JoinLoad;
use crate::corpus::Random;
use crate::link::{Begin, LinkPlan};
use crate::sampler::{Sampler, measured};
use crate::shard::{self, ShardPlan};
use crate::shared::{Phase, Shared};
use anyhow::{Context as _, ensure};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

/// Batches of one session under way while it is written.
const UNDER_WAY: usize = 128;
/// Between the start and the first joiner.
const LEAD: Duration = Duration::from_millis(200);

/// Runs it.
pub async fn run(env: &Env, load: &JoinLoad) -> anyhow::Result<()> {
    ensure!(load.sessions > 0 && load.joins > 0 && load.tokens > 0 && load.rate > 0.0, "nothing to do");
    let mut report = env.report("join");
    let options = fill_options(load);
    report.params.extend(fields(load)?);
    let filling = Instant::now();
    let filled = stream(env, &options, &mut env.report("fill")).await?;
    let tokens: u64 = filled.sessions.iter().map(|session| session.script.tokens).sum();
    report.figure("fill_tokens", tokens);
    report.figure("fill_s", filling.elapsed().as_secs_f64());
    tokio::time::sleep(Duration::from_secs_f64(load.settle_s)).await;

    let shared = Arc::new(Shared::new(env.targets.clone(), options.sessions(env.stamp)?, 0)?);
    // They were said already, and all of it.
    shared.sessions.iter().for_each(|session| session.hand(session.script.tokens, 0));
    let mut random = Random(5);
    let links: Vec<LinkPlan> = (0..load.joins)
        .map(|nth| {
            let session = usize::try_from(random.below(load.sessions.into())).unwrap_or(0);
            let mut link = LinkPlan::follow(nth as usize, vec![session]);
            link.join_at = Some(Duration::from_secs_f64(f64::from(nth) / load.rate));
            link.leaves = true;
            link.begin = load.recent.map_or(Begin::Start, Begin::Recent);
            link
        })
        .collect();
    let joiners = links.len();
    let threads = shard::spawn(&shared, ShardPlan::spread(links, Vec::new(), env.threads), options.manner())?;
    let before = env.watch.look(&shared.board).await?;
    let start = Instant::now() + LEAD;
    shared.start.set(start).map_err(|_| anyhow::anyhow!("started twice"))?;
    // Nothing more is said: who joins must have everything.
    shared.phase.send_replace(Phase::Drain);
    let mut sampler = Sampler::new(&env.watch, &shared.board, start).await?;
    let due = Duration::from_secs_f64(f64::from(load.joins) / load.rate + load.patience_s);
    let all = tokio::time::timeout(due, shared.reached(&shared.left, joiners));
    tokio::select! {
        all = all => all.context("not every joiner was live in time")??,
        sampled = sampler.until(None) => sampled?,
    }
    let after = env.watch.look(&shared.board).await?;
    sampler.done()?;
    shared.phase.send_replace(Phase::Over);
    for thread in threads {
        let _joined = tokio::task::spawn_blocking(move || thread.join()).await?;
    }
    sampler.fill(&mut report, &before, &after);
    measured(&mut report, &shared, "every joiner got the whole of its session, as it was sent")?;
    joined(&mut report, &shared.joins.lock().unwrap_or_else(PoisonError::into_inner));
    report.counts.insert("connections", joiners as u64);
    report.finish(&env.output)
}

fn fill_options(load: &JoinLoad) -> Options {
    Options {
        sessions: load.sessions,
        followers_per_session: 0,
        attachments_per_connection: 1,
        worker_connections: load.sessions.min(4),
        tokens_per_s_per_session: load.fill_rate,
        seconds_s: f64::from(load.tokens) / load.fill_rate,
        warmup_s: 0.0,
        even: true,
        message_tokens: load.message_tokens,
        gather_ms: 0,
        fold_ms: 0,
        under_way_max: UNDER_WAY,
        tick_us: 1_000,
        slow_per_mille: 0,
        slow_bytes_per_s: 0,
        storm_at_s: None,
        drops_every_s: None,
        joins_per_s: 0.0,
        patience_s: load.patience_s + 300.0,
    }
}
