//! The command: `everthread-chaos run`, and `everthread-chaos worker`, which the first starts.
#![expect(clippy::print_stdout, reason = "a command-line tool talks on stdout")]

use anyhow::{Context as _, ensure};
use clap::{Args, Parser, Subcommand, ValueEnum};
use everthread_chaos::asker::Pace;
use everthread_chaos::check::Promise;
use everthread_chaos::drive::{self, Load};
use everthread_chaos::history::{Level, Recorder};
use everthread_chaos::setup::{Replicated, Shape, Standalone, StoreSetup};
use everthread_chaos::world::{Size, World};
use everthread_chaos::{process, report, worker};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

/// Faults from a seed against a whole deployment.
#[derive(Debug, Parser)]
#[command(name = "everthread-chaos", version)]
struct Cli {
    #[command(subcommand)]
    command: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Starts a deployment, breaks it by the plan of a seed, and checks what everybody saw.
    Run(RunArgs),
    /// The checker once more, over what a run has left.
    Check(CheckArgs),
    /// A worker of it.
    Worker(WorkerArgs),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Redis {
    /// One server that keeps what it has answered.
    Standalone,
    /// A primary, two replicas and three sentinels.
    Sentinel,
    /// Three primaries with a replica each.
    Cluster,
    /// All of these.
    All,
}

#[derive(Debug, Args)]
struct RunArgs {
    /// How long things are broken.
    #[arg(long, default_value_t = 1.0)]
    minutes: f64,
    /// Decides what is broken when, and everything else that is chosen.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// What Redis the nodes have; `all`: one after the other, each for its share of the time.
    #[arg(long, value_enum, default_value_t = Redis::Standalone)]
    redis: Redis,
    /// The everthread binary; the one that EVERTHREAD_BIN names otherwise.
    #[arg(long)]
    binary: Option<PathBuf>,
    /// Where histories, logs and the report go; a directory of its own otherwise, which is kept if anything is found.
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Nodes.
    #[arg(long, default_value_t = 3)]
    edges: usize,
    /// Workers.
    #[arg(long, default_value_t = 3)]
    workers: usize,
    /// Clients.
    #[arg(long, default_value_t = 240)]
    clients: usize,
    /// Sessions.
    #[arg(long, default_value_t = 12)]
    sessions: usize,
    /// Only these kinds of faults, as reports name them, with hyphens: `partition-primary,kill-edge`.
    #[arg(long, value_delimiter = ',')]
    faults: Vec<String>,
    /// How sure it is what nodes acknowledge to workers, and what is checked of it.
    #[arg(long, value_enum, default_value_t = Level::Accepted)]
    ack: Level,
    /// How long a run stays with a worker that nobody hears. Longer than a failover, workers that were cut off keep theirs.
    #[arg(long, default_value_t = 4_000)]
    lease_ms: u64,
    /// A fault planted in the nodes, whose binary must have them: what the checker should find.
    #[arg(long)]
    planted: Option<String>,
    /// Set by this program for itself: it has a network of its own, in which packets can be dropped.
    #[arg(long, hide = true)]
    own_network: bool,
}

#[derive(Debug, Args)]
struct CheckArgs {
    /// Where its histories and exports are.
    #[arg(long)]
    dir: PathBuf,
    /// What Redis the nodes had.
    #[arg(long, value_enum, default_value_t = Redis::Standalone)]
    redis: Redis,
}

#[derive(Debug, Args)]
struct WorkerArgs {
    #[arg(long)]
    url: String,
    #[arg(long)]
    token: String,
    #[arg(long)]
    name: String,
    #[arg(long)]
    history: PathBuf,
    #[arg(long, value_enum, default_value_t = Level::Accepted)]
    ack: Level,
}

fn main() -> ExitCode {
    let verb = Cli::parse().command;
    if let Verb::Run(args) = &verb
        && !args.own_network
        && can_have_network()
    {
        return again_in_own_network().unwrap_or_else(complain);
    }
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => return complain(error.into()),
    };
    runtime.block_on(async {
        match verb {
            Verb::Run(args) => run(args).await.unwrap_or_else(complain),
            Verb::Check(args) => check(&args).unwrap_or_else(complain),
            Verb::Worker(args) => work(args).await.map_or_else(complain, |()| ExitCode::SUCCESS),
        }
    })
}

fn complain(error: anyhow::Error) -> ExitCode {
    println!("error: {error:#}");
    ExitCode::FAILURE
}

/// Whether packets can be dropped without harm to anybody else.
fn can_have_network() -> bool {
    process::is_there("iptables") && process::run("unshare", &["--net", "true"]).is_ok()
}

/// This program again, in a network of its own.
fn again_in_own_network() -> anyhow::Result<ExitCode> {
    let program = std::env::current_exe()?;
    let status = Command::new("unshare")
        .args(["--net", "sh", "-c", "ip link set lo up && exec \"$@\"", "sh"])
        .arg(program)
        .args(std::env::args_os().skip(1))
        .arg("--own-network")
        .stdin(Stdio::null())
        .status()
        .context("unshare does not start")?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn check(args: &CheckArgs) -> anyhow::Result<ExitCode> {
    let promise = if args.redis == Redis::Standalone { Promise::Kept } else { Promise::MayLoseTail };
    let outcome = drive::again(&args.dir, promise)?;
    let title = args.dir.display().to_string();
    println!("{}", report::markdown(&title, &outcome));
    std::fs::write(args.dir.join("report.json"), report::json(&title, &outcome)?)?;
    Ok(if outcome.verdict.violations.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn work(args: WorkerArgs) -> anyhow::Result<()> {
    drop(
        tracing_subscriber::fmt()
            .with_env_filter("info")
            .with_writer(std::io::stderr)
            .with_ansi(false)
            .try_init(),
    );
    let recorder = Recorder::direct(&args.history)?;
    let stop = everthread_worker::CancellationToken::new();
    worker::serve(&args.url, &args.token, &args.name, args.ack, recorder, stop).await
}

async fn run(args: RunArgs) -> anyhow::Result<ExitCode> {
    drop(rustls::crypto::ring::default_provider().install_default());
    let named = || std::env::var_os("EVERTHREAD_BIN").map(PathBuf::from);
    let binary = args.binary.clone().or_else(named).context("--binary is missing")?;
    ensure!(binary.is_file(), "{} is not there", binary.display());
    let dir = match &args.dir {
        Some(dir) => dir.clone(),
        None => tempfile::Builder::new().prefix("everthread-chaos-").tempdir()?.keep(),
    };
    std::fs::create_dir_all(&dir)?;
    println!("seed {}, {} minutes, in {}", args.seed, args.minutes, dir.display());
    if !args.own_network {
        println!("SKIPPED: partitions. They take root, iptables and unshare");
    }
    let all = [Redis::Standalone, Redis::Sentinel, Redis::Cluster];
    let setups = if args.redis == Redis::All { &all[..] } else { std::slice::from_ref(&args.redis) };
    let minutes = args.minutes / f64::from(u8::try_from(setups.len())?);
    let mut is_clean = true;
    for setup in setups {
        let dir = if setups.len() == 1 { dir.clone() } else { dir.join(format!("{setup:?}").to_lowercase()) };
        // The next one is run whatever comes of this one.
        match run_one(*setup, minutes, &args, &binary, &dir).await {
            Ok(clean) => is_clean &= clean,
            Err(error) => {
                println!("error: {setup:?}: {error:#}");
                is_clean = false;
            }
        }
    }
    if is_clean && args.dir.is_none() {
        std::fs::remove_dir_all(&dir)?;
    }
    Ok(if is_clean { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Whether nothing was found.
async fn run_one(
    setup: Redis,
    minutes: f64,
    args: &RunArgs,
    binary: &Path,
    dir: &Path,
) -> anyhow::Result<bool> {
    std::fs::create_dir_all(dir)?;
    let (edges, own_network) = (args.edges, args.own_network);
    let store: Box<dyn StoreSetup> = match setup {
        Redis::Sentinel => Box::new(Replicated::start(Shape::Sentinel, edges, own_network).await?),
        Redis::Cluster => Box::new(Replicated::start(Shape::Cluster, edges, own_network).await?),
        Redis::Standalone | Redis::All => Box::new(Standalone::start(edges, own_network).await?),
    };
    let planted = args.planted.clone();
    let size =
        Size { edges, workers: args.workers, proxies: 4, ack: args.ack, lease_ms: args.lease_ms, planted };
    let mut world = World::start(dir, binary, &size, store).await?;
    let load = Load {
        sessions: args.sessions,
        clients: args.clients,
        pace: Pace { tokens_max: 120, pause_ms: 60, mark_ms: 800 },
        only: args.faults.clone(),
        seed: args.seed,
        length: Duration::from_secs_f64(minutes * 60.0),
    };
    let outcome = drive::run(&mut world, &load, dir, &|line| println!("{line}")).await?;
    let title = format!("{}, seed {}, {minutes:.1} minutes", world.store.name(), args.seed);
    let text = report::markdown(&title, &outcome);
    println!("{text}");
    std::fs::write(dir.join("report.md"), &text)?;
    std::fs::write(dir.join("report.json"), report::json(&title, &outcome)?)?;
    Ok(outcome.verdict.violations.is_empty())
}
