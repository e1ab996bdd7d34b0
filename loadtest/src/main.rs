//! The load test: scenarios that measure a running node and verify what it delivers, at once.
//!
//! It speaks the real protocols, with clients that cost little, from one process, so that one clock measures both ends. A
//! scenario in which anything was lost, doubled, reordered or changed has no figures: the process says so and exits with 1.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "the figures are what this program is for")]

mod control;
mod deaths;
mod follower;
mod http;
mod measure;
mod redis;
mod scenario;
mod script;
mod socket;
mod worker;

use clap::{Args, Parser, Subcommand};
use std::process::ExitCode;

/// Measures a running node and verifies what it delivers.
#[derive(Debug, Parser)]
#[command(name = "everthread-loadtest", version, about, long_about = None)]
struct Cli {
    #[command(flatten)]
    node: NodeArgs,
    #[command(subcommand)]
    scenario: Scenario,
}

/// Which node.
#[derive(Debug, Clone, Args)]
struct NodeArgs {
    /// Where the node listens.
    #[arg(long, global = true, default_value = "ws://127.0.0.1:7400")]
    url: String,
    /// Its token.
    #[arg(long, global = true, env = "EVERTHREAD_TOKEN", default_value = "", hide_env_values = true)]
    token: String,
    /// Process id of the node: adds its CPU time and memory to the figures.
    #[arg(long, global = true)]
    pid: Option<String>,
    /// The figures as one JSON object instead of a table.
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Scenario {
    /// One session with many followers.
    Fanout {
        /// Connections that follow it.
        #[arg(long, default_value_t = 100)]
        followers: u32,
        #[command(flatten)]
        load: Load,
    },
    /// Many sessions with a follower and a run each.
    Sessions {
        /// How many.
        #[arg(long, default_value_t = 100)]
        sessions: u32,
        /// Worker connections that share the runs.
        #[arg(long, default_value_t = 4)]
        workers: u32,
        #[command(flatten)]
        load: Load,
    },
    /// Many active runs that are steered and cancelled: how soon their workers and followers know.
    Control(ControlLoad),
    /// Workers in processes of their own that are killed at work: how soon the outcome is seen.
    Deaths {
        /// How many.
        #[arg(long, default_value_t = 50)]
        kills: u32,
        /// How many at once.
        #[arg(long, default_value_t = 5)]
        side_by_side: usize,
        /// Freeze them (SIGSTOP) instead: their sockets stay open.
        #[arg(long)]
        freeze: bool,
    },
    /// A worker of `deaths`.
    #[command(hide = true)]
    Victim {
        #[arg(long)]
        agent: String,
    },
    /// Connections that are attached and silent: what they cost in memory. Needs --pid.
    Idle {
        /// How many.
        #[arg(long, default_value_t = 1000)]
        connections: u32,
        /// Sessions that they are spread over; as many as connections if not given.
        #[arg(long)]
        sessions: Option<u32>,
        /// How long the node is left alone before its memory is read, in seconds.
        #[arg(long, default_value_t = 10)]
        settle: u64,
    },
}

/// What `control` does.
#[derive(Debug, Clone, Args)]
struct ControlLoad {
    /// A second node of the same deployment: followers and workers are spread over both.
    #[arg(long)]
    other: Option<String>,
    /// Runs that are active all the time; at the end all are cancelled at one instant.
    #[arg(long, default_value_t = 1000)]
    runs: u32,
    /// Further runs, which are cancelled one by one before that.
    #[arg(long, default_value_t = 500)]
    cancels: u32,
    /// Controls per second, but for the last instant.
    #[arg(long, default_value_t = 50.0)]
    rate: f64,
    /// Followers of each session.
    #[arg(long, default_value_t = 2)]
    followers: u32,
    /// Worker connections that share the runs.
    #[arg(long, default_value_t = 4)]
    workers: u32,
    /// Each run writes a block this often, in seconds; 0: only one, at its start.
    #[arg(long, default_value_t = 5.0)]
    every: f64,
    /// Leaves the steers out.
    #[arg(long)]
    no_steers: bool,
    /// Counts the commands of this Redis (unix:///path or redis://host:port), which nobody else may use meanwhile.
    #[arg(long)]
    redis: Option<String>,
    /// How long everything may take after the last control was due, in seconds.
    #[arg(long, default_value_t = 60.0)]
    patience: f64,
}

/// How much is written.
#[derive(Debug, Clone, Copy, Args)]
struct Load {
    /// Blocks per second in each session.
    #[arg(long, default_value_t = 50.0)]
    rate: f64,
    /// For how long, in seconds.
    #[arg(long, default_value_t = 20.0)]
    seconds: f64,
    /// Blocks due within this time after the start are verified but not measured, in seconds.
    #[arg(long, default_value_t = 2.0)]
    warmup: f64,
    /// How long everything may take to arrive after the last block was due, in seconds.
    #[arg(long, default_value_t = 60.0)]
    patience: f64,
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(Cli::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("everthread-loadtest: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(Cli { node, scenario }: Cli) -> anyhow::Result<()> {
    match scenario {
        Scenario::Fanout { followers, load } => {
            scenario::stream(&node, "fanout", 1, followers, 1, load).await
        }
        Scenario::Sessions { sessions, workers, load } => {
            scenario::stream(&node, "sessions", sessions, 1, workers, load).await
        }
        Scenario::Control(load) => control::run(&node, &load).await,
        Scenario::Deaths { kills, side_by_side, freeze } => {
            deaths::run(&node, kills, side_by_side, freeze).await
        }
        Scenario::Victim { agent } => deaths::victim(&node, &agent).await,
        Scenario::Idle { connections, sessions, settle } => {
            scenario::idle(&node, connections, sessions.unwrap_or(connections), settle).await
        }
    }
}
