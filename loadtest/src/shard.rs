//! Threads, each with a runtime of its own: connections never move between them, so nothing in them is locked.

use crate::link::{Link, LinkPlan};
use crate::shared::{Local, Phase, Shared};
use crate::writer::{Manner, Workers};
use anyhow::Context as _;
use everthread_protocol::AgentName;
use std::rc::Rc;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::task::{JoinSet, LocalSet};

/// Connections of one thread that join at once before the start.
const JOINS_MAX: usize = 64;
/// How often a thread hands in what it saw.
const HAND_IN: Duration = Duration::from_millis(250);

/// A worker's connection.
#[derive(Debug, Clone)]
pub struct WorkerPlan {
    /// Which node, modulo how many there are.
    pub target: usize,
    /// Its name.
    pub name: String,
    /// Whom it serves.
    pub agent: AgentName,
    /// Runs at once.
    pub capacity: u32,
}

/// What one thread does.
#[derive(Debug, Clone, Default)]
pub struct ShardPlan {
    /// Clients.
    pub links: Vec<LinkPlan>,
    /// Workers.
    pub workers: Vec<WorkerPlan>,
}

impl ShardPlan {
    /// Spreads clients and workers over so many threads.
    pub fn spread(links: Vec<LinkPlan>, workers: Vec<WorkerPlan>, threads: usize) -> Vec<ShardPlan> {
        let mut all = vec![ShardPlan::default(); threads.max(1)];
        let count = all.len();
        links.into_iter().enumerate().for_each(|(nth, link)| all[nth % count].links.push(link));
        workers.into_iter().enumerate().for_each(|(nth, worker)| all[nth % count].workers.push(worker));
        all
    }
}

/// Starts the threads. Whatever fails in one is told to `shared`.
pub fn spawn(
    shared: &Arc<Shared>,
    plans: Vec<ShardPlan>,
    manner: Manner,
) -> anyhow::Result<Vec<JoinHandle<()>>> {
    plans
        .into_iter()
        .enumerate()
        .map(|(nth, plan)| {
            let shared = shared.clone();
            let run = move || {
                let failed = serve(shared.clone(), plan, manner, nth).err();
                failed.into_iter().for_each(|error| shared.fail(error));
            };
            std::thread::Builder::new().name(format!("shard-{nth}")).spawn(run).context("no thread")
        })
        .collect()
}

fn serve(shared: Arc<Shared>, plan: ShardPlan, manner: Manner, nth: usize) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, served(shared, plan, manner, nth))
}

async fn served(shared: Arc<Shared>, plan: ShardPlan, manner: Manner, nth: usize) -> anyhow::Result<()> {
    let local = Rc::new(Local::new(shared.clone())?);
    let workers = Rc::new(Workers::new(local.clone(), manner));
    let mut tasks: JoinSet<anyhow::Result<()>> = JoinSet::new();
    for worker in &plan.workers {
        let target = &shared.targets[worker.target % shared.targets.len()];
        let connection = workers.join(target, &worker.name, &worker.agent, worker.capacity).await?;
        tasks.spawn_local(connection.read());
    }
    if !plan.workers.is_empty() {
        tasks.spawn_local(workers.send());
    }
    let gate = Arc::new(Semaphore::new(JOINS_MAX));
    for (number, link) in plan.links.into_iter().enumerate() {
        let (gate, is_late) = (gate.clone(), link.join_at.is_some());
        let link = Link::new(local.clone(), link, (nth * 1_000_003 + number) as u64);
        tasks.spawn_local(async move {
            let permit = if is_late { None } else { Some(gate.acquire_owned().await?) };
            link.run(permit).await
        });
    }
    let mut phase = shared.phase.subscribe();
    let mut tick = tokio::time::interval(HAND_IN);
    loop {
        tokio::select! {
            Some(ended) = tasks.join_next() => ended.context("a connection broke")??,
            _ = tick.tick() => local.hand_in()?,
            over = phase.wait_for(|phase| *phase == Phase::Over) => { let _over = over?; break; }
        }
    }
    while let Some(ended) = tasks.join_next().await {
        ended.context("a connection broke")??;
    }
    local.hand_in()
}
