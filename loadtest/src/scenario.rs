//! The scenarios: set up, start everything at one instant, wait for all of it, report.

use crate::follower::{Counts, Follower};
use crate::http::Http;
use crate::measure::{Latency, Measure, Process};
use crate::script::{Script, Start};
use crate::socket::Target;
use crate::worker::{Shared, Worker};
use crate::{Load, NodeArgs};
use anyhow::{Context as _, ensure};
use everthread_protocol::{AgentName, SessionId};
use serde::Serialize;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

/// Connections that are made at once.
pub const JOINS_MAX: usize = 64;
/// How long it may take until every run is with a worker.
pub const TAKE_MAX: Duration = Duration::from_secs(60);
/// Between the last run handed out and the start.
pub const LEAD: Duration = Duration::from_millis(500);

const VERIFIED: &str = "every follower got every entry once, in order, with the text that was sent";

/// Figures of `fanout` and `sessions`.
#[derive(Debug, Serialize)]
struct Streamed {
    scenario: &'static str,
    sessions: u32,
    followers: usize,
    workers: u32,
    rate_per_session: f64,
    seconds: f64,
    blocks_sent: u64,
    blocks_delivered: u64,
    entries_delivered: u64,
    frames_delivered: u64,
    bytes_delivered: u64,
    lags: u64,
    /// From the time the block was due to its receipt: the figure that counts.
    delivery: Latency,
    /// From the time it was handed to the worker's socket: without the lateness of the load test itself.
    delivery_from_socket: Latency,
    /// From the worker's socket to the store's answer.
    ack: Latency,
    /// From the last block's due time until everything had arrived everywhere.
    drain_ms: f64,
    node: Option<Used>,
    loadtest: Used,
}

/// What a process used while the load ran.
#[derive(Debug, Serialize)]
struct Used {
    cpu_cores: f64,
    cpu_us_per_delivery: f64,
    resident_mib: f64,
}

impl Used {
    fn of(before: Process, after: Process, spent: Duration, delivered: u64) -> Used {
        let cpu = after.cpu.saturating_sub(before.cpu).as_secs_f64();
        Used {
            cpu_cores: cpu / spent.as_secs_f64(),
            cpu_us_per_delivery: cpu * 1e6 / per(delivered),
            resident_mib: per(after.resident) / 1_048_576.0,
        }
    }
}

fn check(sessions: u32, followers: u32, workers: u32, load: Load) -> anyhow::Result<()> {
    ensure!(sessions > 0 && followers > 0 && workers > 0, "nothing to do");
    ensure!(
        load.rate > 0.0 && load.seconds > load.warmup,
        "--seconds is longer than --warmup, and --rate more than 0"
    );
    Ok(())
}

/// `sessions` sessions with `followers` each, written by `workers` connections.
pub async fn stream(
    node: &NodeArgs,
    scenario: &'static str,
    sessions: u32,
    followers: u32,
    workers: u32,
    load: Load,
) -> anyhow::Result<()> {
    check(sessions, followers, workers, load)?;
    let target = Target::resolve(&node.url, &node.token).await?;
    let stamp = stamp();
    let agent: AgentName = format!("lt-{stamp}").parse()?;
    let scripts = scripts(&stamp, sessions, load)?;
    let all: HashMap<SessionId, Arc<Script>> = scripts.iter().cloned().collect();
    let names: Vec<SessionId> = scripts.iter().map(|(name, _)| name.clone()).collect();
    create(&target, &names, &agent).await?;
    let plan = names.iter().flat_map(|name| std::iter::repeat_n(name.clone(), followers as usize)).collect();
    let joined = join_all(&target, plan).await?;

    let measure = Arc::new(Measure::new(Duration::from_secs_f64(load.warmup))?);
    let start = Arc::new(Start::new());
    let ((taken, mut is_taken), (begin, begun)) = (watch::channel(0), watch::channel(None));
    let (scripts_shared, taken) = (Arc::new(all.clone()), Arc::new(taken));
    let shared = Shared {
        scripts: scripts_shared,
        taken,
        begin: begun,
        start: start.clone(),
        measure: measure.clone(),
    };
    let mut tasks: JoinSet<anyhow::Result<Counts>> = JoinSet::new();
    let mut works = JoinSet::new();
    let capacity = sessions.div_ceil(workers);
    for number in 0..workers {
        let worker =
            Worker::join(&target, &format!("lt-{stamp}-{number}"), &agent, capacity, shared.clone()).await?;
        works.spawn(worker.run());
    }
    for (session, follower) in joined {
        let script = all.get(&session).context("a session without a script")?.clone();
        tasks.spawn(follower.follow(script, start.clone(), measure.clone()));
    }
    request_runs(&target, &names, &agent).await?;
    tokio::select! {
        taken = tokio::time::timeout(TAKE_MAX, is_taken.wait_for(|taken| *taken == names.len())) => {
            let _count = taken.context("not every run found its worker in time")??;
        }
        Some(ended) = works.join_next() => ended??,
    }

    let before = look(node)?;
    let from = Instant::now() + LEAD;
    start.set(from).map_err(|_| anyhow::anyhow!("started twice"))?;
    begin.send_replace(Some(from));
    let due = from + scripts.iter().map(|(_, script)| script.due(script.blocks())).max().unwrap_or_default();
    let at_due = async {
        tokio::time::sleep_until(due.into()).await;
        look(node)
    };
    let patience = tokio::time::Instant::from(due) + Duration::from_secs_f64(load.patience);
    let all_arrived = async {
        let arrived = tokio::time::timeout_at(patience, wait_for(&mut tasks, &mut works)).await;
        arrived.context("not everything arrived in time")?
    };
    let (after, counts) = tokio::try_join!(at_due, all_arrived)?;
    let drain = Instant::now().saturating_duration_since(due);

    let [delivery, delivery_from_socket, ack] = measure.latencies();
    let blocks_sent: u64 = scripts.iter().map(|(_, script)| script.blocks() as u64).sum();
    let blocks_delivered = blocks_sent * u64::from(followers);
    let spent = due.saturating_duration_since(from) + LEAD;
    report(
        node,
        &Streamed {
            scenario,
            sessions,
            followers: names.len() * followers as usize,
            workers,
            rate_per_session: load.rate,
            seconds: load.seconds,
            blocks_sent,
            blocks_delivered,
            entries_delivered: counts.entries,
            frames_delivered: counts.frames,
            bytes_delivered: counts.bytes,
            lags: counts.lags,
            delivery,
            delivery_from_socket,
            ack,
            drain_ms: drain.as_secs_f64() * 1e3,
            node: before
                .0
                .zip(after.0)
                .map(|(before, after)| Used::of(before, after, spent, blocks_delivered)),
            loadtest: Used::of(before.1, after.1, spent, blocks_delivered),
        },
        VERIFIED,
    )
}

/// The first error of any task, or what all followers counted.
async fn wait_for(
    followers: &mut JoinSet<anyhow::Result<Counts>>,
    workers: &mut JoinSet<anyhow::Result<()>>,
) -> anyhow::Result<Counts> {
    let mut all = Counts::default();
    let mut is_working = true;
    loop {
        tokio::select! {
            ended = followers.join_next() => {
                let Some(ended) = ended else { return Ok(all) };
                let counts = ended??;
                all.frames += counts.frames;
                all.entries += counts.entries;
                all.bytes += counts.bytes;
                all.lags += counts.lags;
            }
            ended = workers.join_next(), if is_working => match ended {
                Some(ended) => ended??,
                None => is_working = false,
            },
        }
    }
}

/// Figures of `idle`.
#[derive(Debug, Serialize)]
struct Idled {
    scenario: &'static str,
    connections: u32,
    sessions: u32,
    resident_before_mib: f64,
    resident_after_mib: f64,
    bytes_per_connection: f64,
    join_seconds: f64,
    cpu_cores_idle: f64,
}

/// `connections` that are attached and silent.
pub async fn idle(node: &NodeArgs, connections: u32, sessions: u32, settle: u64) -> anyhow::Result<()> {
    ensure!(connections > 0 && sessions > 0, "nothing to do");
    let pid = node.pid.as_deref().context("--pid is needed: whose memory is to be read?")?;
    let target = Target::resolve(&node.url, &node.token).await?;
    let (stamp, settle) = (stamp(), Duration::from_secs(settle));
    let names: Result<Vec<SessionId>, _> = (0..sessions).map(|n| format!("lt-{stamp}-{n}").parse()).collect();
    let names = names?;
    create(&target, &names, &"lt-idle".parse()?).await?;
    tokio::time::sleep(settle).await;
    let before = Process::look(pid)?;
    let begun = Instant::now();
    let plan = names.iter().cycle().take(connections as usize).cloned().collect();
    let joined = join_all(&target, plan).await?;
    let join_seconds = begun.elapsed().as_secs_f64();
    let mut tasks = JoinSet::new();
    for (_, follower) in joined {
        tasks.spawn(follower.idle());
    }
    let settled = async {
        tokio::time::sleep(settle).await;
        let between = Process::look(pid)?;
        tokio::time::sleep(settle).await;
        anyhow::Ok((between, Process::look(pid)?))
    };
    let (between, after) = tokio::select! {
        Some(ended) = tasks.join_next() => { ended??; anyhow::bail!("an idle connection ended") }
        looked = settled => looked?,
    };
    report(
        node,
        &Idled {
            scenario: "idle",
            connections,
            sessions,
            resident_before_mib: per(before.resident) / 1_048_576.0,
            resident_after_mib: per(after.resident) / 1_048_576.0,
            bytes_per_connection: per(after.resident.saturating_sub(before.resident))
                / f64::from(connections),
            join_seconds,
            cpu_cores_idle: after.cpu.saturating_sub(between.cpu).as_secs_f64()
                / settle.as_secs_f64().max(0.001),
        },
        VERIFIED,
    )
}

pub fn stamp() -> String {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    format!("{}", now.as_millis())
}

fn scripts(stamp: &str, sessions: u32, load: Load) -> anyhow::Result<Vec<(SessionId, Arc<Script>)>> {
    let period = Duration::from_secs_f64(1.0 / load.rate);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a rate times a time, both checked"
    )]
    let blocks = (load.rate * load.seconds).ceil() as usize;
    (0..sessions)
        .map(|number| {
            // Spread over the period, as strangers are.
            let phase = period.mul_f64(f64::from(number) / f64::from(sessions));
            let script = Script::new(u64::from(number) + 1, blocks, period, phase);
            Ok((format!("lt-{stamp}-{number}").parse()?, Arc::new(script)))
        })
        .collect()
}

pub async fn create(target: &Target, names: &[SessionId], agent: &AgentName) -> anyhow::Result<()> {
    post_all(target, names, move |name| {
        (
            "/v1/sessions".to_owned(),
            serde_json::json!({"session": name.as_str(), "agent": agent.as_str()}).to_string(),
        )
    })
    .await
}

pub async fn request_runs(target: &Target, names: &[SessionId], agent: &AgentName) -> anyhow::Result<()> {
    post_all(target, names, move |name| {
        let body = serde_json::json!({"text": "go", "agent": agent.as_str()}).to_string();
        (format!("/v1/sessions/{name}/input"), body)
    })
    .await
}

/// One request per session, over a few connections side by side.
async fn post_all(
    target: &Target,
    names: &[SessionId],
    request: impl Fn(&SessionId) -> (String, String),
) -> anyhow::Result<()> {
    let mut posts = JoinSet::new();
    for part in names.chunks(names.len().div_ceil(8).max(1)) {
        let requests: Vec<(String, String)> = part.iter().map(&request).collect();
        let target = target.clone();
        posts.spawn(async move {
            let mut http = Http::connect(&target).await?;
            for (path, body) in requests {
                http.post(&path, &body).await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(posted) = posts.join_next().await {
        posted??;
    }
    Ok(())
}

async fn join_all(target: &Target, plan: Vec<SessionId>) -> anyhow::Result<Vec<(SessionId, Follower)>> {
    let gate = Arc::new(Semaphore::new(JOINS_MAX));
    let mut joins = JoinSet::new();
    for session in plan {
        let permit = gate.clone().acquire_owned().await?;
        let target = target.clone();
        joins.spawn(async move {
            let follower = Follower::join(&target, &session).await?;
            drop(permit);
            anyhow::Ok((session, follower))
        });
    }
    let mut all = Vec::new();
    while let Some(joined) = joins.join_next().await {
        all.push(joined.context("a follower broke")?.context(
            "a follower could not join (if files are the limit: raise `ulimit -n` here and for the node)",
        )?);
    }
    Ok(all)
}

/// The node, if its pid is known, and the load test itself.
fn look(node: &NodeArgs) -> anyhow::Result<(Option<Process>, Process)> {
    let other = node.pid.as_deref().map(Process::look).transpose()?;
    Ok((other, Process::look("self")?))
}

/// A count as a divisor or dividend; beyond 2^53 nobody counts here.
#[expect(clippy::cast_precision_loss, reason = "counts and bytes of one run of the load test")]
pub fn per(count: u64) -> f64 {
    count.max(1) as f64
}

/// Prints the figures: every field of the JSON form, nested ones on one line.
pub fn report(node: &NodeArgs, figures: &impl Serialize, verified: &str) -> anyhow::Result<()> {
    let value = serde_json::to_value(figures)?;
    if node.json {
        println!("{value}");
        return Ok(());
    }
    for (name, value) in value.as_object().into_iter().flatten() {
        match value.as_object() {
            None => println!("{name:<24}{}", number(value)),
            Some(fields) => {
                let fields: Vec<String> =
                    fields.iter().map(|(name, value)| format!("{name} {}", number(value))).collect();
                println!("{name:<24}{}", fields.join("  "));
            }
        }
    }
    println!("verified: {verified}");
    Ok(())
}

fn number(value: &serde_json::Value) -> String {
    match value.as_f64() {
        Some(number) if value.is_f64() => format!("{number:.2}"),
        _ => value.as_str().map_or_else(|| value.to_string(), str::to_owned),
    }
}
