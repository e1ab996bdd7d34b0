//! `idle`: connections that are attached and silent: what they cost in memory and CPU. One process may not have files for all
//! of them, so others can hold a part: `hold` is one of those.

use super::Env;
use crate::cli::IdleLoad;
use crate::corpus::{Corpus, Pace, Script};
use crate::link::LinkPlan;
use crate::report::per;
use crate::sampler::{Sampler, measured};
use crate::setup::create;
use crate::shard::{self, ShardPlan};
use crate::shared::{Phase, Session, Shared};
use crate::writer::Manner;
use anyhow::{Context as _, ensure};
use everthread_protocol::SessionId;
use std::process::Stdio;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};

/// How long joining may take.
const JOIN_MAX: Duration = Duration::from_secs(600);
/// What a holder says once all are live.
const READY: &str = "ready";
const MIB: f64 = 1_048_576.0;

struct Held {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Held {
    /// Holds connections `from..to` of all.
    async fn new(env: &Env, load: &IdleLoad, stamp: u64, from: u32, to: u32) -> anyhow::Result<Held> {
        let sessions = load.sessions_or_connections();
        let names = names(stamp, sessions)?;
        let corpus = Arc::new(Corpus::new(1.0, Pace::Even));
        let script = || Script::new(&corpus, 0, Duration::ZERO, 0, 1);
        let sessions: Vec<Session> = names.into_iter().map(|name| Session::new(name, script())).collect();
        let shared = Arc::new(Shared::new(env.targets.clone(), sessions, 0)?);
        let count = shared.sessions.len();
        let of = |nth: u32| LinkPlan::follow(nth as usize, vec![nth as usize % count]);
        let links: Vec<LinkPlan> = (from..to).map(of).collect();
        let expected = links.len();
        let manner = Manner {
            gather: Duration::ZERO,
            under_way_max: 0,
            block_tokens_max: 1,
            tick: Duration::from_millis(100),
        };
        let threads = shard::spawn(&shared, ShardPlan::spread(links, Vec::new(), env.threads), manner)?;
        let joined = tokio::time::timeout(JOIN_MAX, shared.reached(&shared.joined, expected)).await;
        joined.context("not everybody could join in time")??;
        shared.start.set(Instant::now()).map_err(|_| anyhow::anyhow!("started twice"))?;
        shared.phase.send_replace(Phase::Begun);
        Ok(Held { shared, threads })
    }

    async fn release(self) -> anyhow::Result<Arc<Shared>> {
        self.shared.phase.send_replace(Phase::Over);
        for thread in self.threads {
            let _joined = tokio::task::spawn_blocking(move || thread.join()).await?;
        }
        self.shared.failure().map_or(Ok(self.shared), Err)
    }
}

fn names(stamp: u64, sessions: u32) -> anyhow::Result<Vec<SessionId>> {
    (0..sessions).map(|number| Ok(format!("lt-{stamp}-{number}").parse()?)).collect()
}

/// Runs it.
pub async fn run(env: &Env, load: &IdleLoad, arguments: &[String]) -> anyhow::Result<()> {
    ensure!(load.connections > 0 && load.processes > 0, "nothing to do");
    let pid = env.watch.processes.node().context("--pid is needed: whose memory is to be read?")?;
    let mut report = env.report("idle");
    let settle = Duration::from_secs_f64(load.settle_s);
    let sessions = load.sessions_or_connections();
    for (name, value) in
        [("connections", load.connections), ("sessions", sessions), ("processes", load.processes)]
    {
        report.params.insert(name.to_owned(), value.into());
    }
    create(&env.targets[0], &names(env.stamp, sessions)?, &"lt-idle".parse()?).await?;
    tokio::time::sleep(settle).await;
    let resident = || anyhow::Ok(per(crate::process::Process::look(pid)?.resident));
    let before = resident()?;
    let joining = Instant::now();
    let part = load.connections.div_ceil(load.processes);
    let mut holders = Vec::new();
    for nth in 1..load.processes {
        let to = ((nth + 1) * part).min(load.connections);
        holders.push(holder(env, load, arguments, nth * part, to).await?);
    }
    let held = Held::new(env, load, env.stamp, 0, part.min(load.connections)).await?;
    let join_s = joining.elapsed().as_secs_f64();
    tokio::time::sleep(settle).await;
    let shared = held.shared.clone();
    let from = env.watch.look(&shared.board).await?;
    let mut sampler = Sampler::new(&env.watch, &shared.board, Instant::now()).await?;
    let until = Instant::now() + settle;
    tokio::select! {
        sampled = sampler.until(Some(until)) => sampled?,
        failed = shared.reached(&shared.finished, usize::MAX) => failed?,
    }
    let to = env.watch.look(&shared.board).await?;
    sampler.done()?;
    let after = resident()?;
    let shared = held.release().await?;
    for mut holder in holders {
        drop(holder.stdin.take());
        let status = holder.wait().await?;
        if !status.success() {
            shared.verify(|verified| verified.problem(format!("a process that held connections: {status}")));
        }
    }
    sampler.fill(&mut report, &from, &to);
    measured(&mut report, &shared, "every connection stayed, and nobody got anything")?;
    report.counts.insert("connections", load.connections.into());
    report.figure("resident_before_mib", before / MIB);
    report.figure("resident_after_mib", after / MIB);
    report.figure("bytes_per_connection", (after - before) / f64::from(load.connections));
    report.figure("join_s", join_s);
    report.figure("joins_per_s", f64::from(load.connections) / join_s);
    report.finish(&env.output)
}

/// Another process that holds some of the connections, once they are live.
async fn holder(
    env: &Env,
    load: &IdleLoad,
    arguments: &[String],
    from: u32,
    to: u32,
) -> anyhow::Result<Child> {
    let sessions = load.sessions_or_connections();
    let mut child = Command::new(std::env::current_exe()?)
        .args(arguments)
        .args(["hold", "--stamp", &env.stamp.to_string(), "--sessions", &sessions.to_string()])
        .args(["--from", &from.to_string(), "--to", &to.to_string()])
        .env("EVERTHREAD_TOKEN", &env.targets[0].token)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let mut lines = BufReader::new(child.stdout.take().context("no output")?).lines();
    let line = tokio::time::timeout(JOIN_MAX, lines.next_line()).await.context("a process is too slow")??;
    ensure!(line.as_deref() == Some(READY), "a process that holds connections said {line:?}");
    Ok(child)
}

/// Holds connections until its standard input is closed.
pub async fn hold(env: &Env, stamp: u64, sessions: u32, from: u32, to: u32) -> anyhow::Result<()> {
    let load = IdleLoad { connections: to, sessions: Some(sessions), settle_s: 0.0, processes: 1 };
    let held = Held::new(env, &load, stamp, from, to).await?;
    println!("{READY}");
    let (close, closed) = tokio::sync::oneshot::channel();
    // A thread that nobody waits for: reading the standard input cannot be given up.
    std::thread::spawn(move || {
        let _ended = std::io::read_to_string(std::io::stdin());
        let _told = close.send(());
    });
    tokio::select! {
        closed = closed => closed?,
        failed = held.shared.reached(&held.shared.finished, usize::MAX) => failed?,
    }
    held.release().await?;
    Ok(())
}
