//! The command line: what every scenario has by default, and what of it can be chosen.

use crate::scenario::stream::Options;
use clap::{Args, Parser, Subcommand};
use serde::Serialize;
use std::path::PathBuf;

/// Measures a running deployment and verifies what it delivers, at once.
#[derive(Debug, Parser)]
#[command(name = "everthread-loadtest", version, about, long_about = None)]
pub struct Cli {
    /// Where it runs.
    #[command(flatten)]
    pub node: NodeArgs,
    /// What it does.
    #[command(subcommand)]
    pub scenario: Scenario,
}

/// Which nodes, what is watched, and where the report goes.
#[derive(Debug, Clone, Args)]
pub struct NodeArgs {
    /// Where a node listens; repeated: connections are spread over all of them.
    #[arg(long, global = true, default_value = "ws://127.0.0.1:7400")]
    pub url: Vec<String>,
    /// Their token.
    #[arg(long, global = true, env = "EVERTHREAD_TOKEN", default_value = "", hide_env_values = true)]
    pub token: String,
    /// A process to watch, name=PID, repeated; `redis…` and `store…` are the store, anything else the server. PID alone is `node`.
    #[arg(long, global = true)]
    pub pid: Vec<String>,
    /// Asks this Redis (unix:///path or redis://host:port) what it did; nobody else should use it meanwhile.
    #[arg(long, global = true)]
    pub redis: Option<String>,
    /// Threads of the load test. One sends and reads about 100 000 tokens per second.
    #[arg(long, global = true, default_value_t = 1)]
    pub threads: usize,
    /// Connect from so many addresses 127.0.0.2 and up, at most 250; 0: from whichever the kernel takes. 32 if a node is at
    /// 127.x.x.x: each has 28 000 ports, and from a single one the kernel searches long for a free one.
    #[arg(long, global = true)]
    pub sources: Option<u32>,
    /// Writes the report as JSON; `-`: to the standard output, in place of the table.
    #[arg(long, global = true, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Writes the report as a page that needs nothing else.
    #[arg(long, global = true, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// What distinguishes this run from others, for the report.
    #[arg(long, global = true, default_value = "")]
    pub label: String,
    /// No line per second.
    #[arg(long, global = true)]
    pub quiet: bool,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Scenario {
    /// Many sessions that write as models do, with followers.
    Tokens(Load),
    /// One session with many followers.
    Fanout(Load),
    /// As `tokens`, and some clients read at 2 KB/s.
    Slow(Load),
    /// All followers lose their connection at once, and come back at once.
    Storm(Load),
    /// Followers that come, go, are slow, and lose their connections, all at the same time.
    Mixed(Load),
    /// As `mixed`, for an hour.
    Soak(Load),
    /// Late joiners into long sessions.
    Join(JoinLoad),
    /// Connections that are attached and silent: what they cost. Needs --pid.
    Idle(IdleLoad),
    /// Holds a part of the connections of `idle`.
    #[command(hide = true)]
    Hold {
        #[arg(long)]
        stamp: u64,
        #[arg(long)]
        sessions: u32,
        #[arg(long)]
        from: u32,
        #[arg(long)]
        to: u32,
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
    /// Makes one page of several reports.
    Page {
        /// Reports, as --json wrote them.
        #[arg(required = true)]
        reports: Vec<PathBuf>,
    },
    /// Starts a node (and Redis), each on a core, and measures a list of scenarios.
    Bench(BenchArgs),
}

/// What can be chosen of a load; the defaults are the scenario's.
#[derive(Debug, Clone, Default, Args)]
pub struct Load {
    /// Sessions, each with one run that writes.
    #[arg(long)]
    pub sessions: Option<u32>,
    /// Followers of each session.
    #[arg(long)]
    pub followers: Option<u32>,
    /// Sessions that one connection follows.
    #[arg(long)]
    pub attachments: Option<u32>,
    /// Worker connections that share the runs.
    #[arg(long)]
    pub workers: Option<u32>,
    /// Tokens per second in each session.
    #[arg(long)]
    pub rate: Option<f64>,
    /// For how long, in seconds.
    #[arg(long)]
    pub seconds: Option<f64>,
    /// Tokens due within this time after the start are verified but not measured, in seconds.
    #[arg(long)]
    pub warmup: Option<f64>,
    /// Tokens at equal distances (true), or as models write (false): bursts, pauses.
    #[arg(long)]
    pub even: Option<bool>,
    /// Tokens of one message.
    #[arg(long)]
    pub message_tokens: Option<u64>,
    /// Workers gather tokens for so long and write them together, in milliseconds; 0: each as it comes.
    #[arg(long)]
    pub gather_ms: Option<u64>,
    /// Followers ask for what is written within so long as one frame, in milliseconds, at most 500; 0: they do not ask.
    #[arg(long)]
    pub fold_ms: Option<u64>,
    /// A run has at most so many batches under way and gathers meanwhile; 1 is what the worker libraries do; 0: no bound.
    #[arg(long)]
    pub under_way: Option<usize>,
    /// The sender looks at what is due so often, in microseconds.
    #[arg(long)]
    pub tick_us: Option<u64>,
    /// Of a thousand connections so many are slow.
    #[arg(long)]
    pub slow: Option<u32>,
    /// Bytes per second that a slow one reads.
    #[arg(long)]
    pub slow_bytes: Option<u32>,
    /// When all lose their connection, in seconds.
    #[arg(long)]
    pub storm_at: Option<f64>,
    /// How often each loses its connection, on average, in seconds.
    #[arg(long)]
    pub drops_every: Option<f64>,
    /// Clients per second that join, read until they are live, and go.
    #[arg(long)]
    pub joins: Option<f64>,
    /// How long everything may take to arrive after the last token was due, in seconds.
    #[arg(long)]
    pub patience: Option<f64>,
}

impl Load {
    /// With a scenario's defaults.
    pub fn options(&self, of: &Scenario) -> Options {
        let preset = preset(of);
        Options {
            sessions: self.sessions.unwrap_or(preset.sessions),
            followers_per_session: self.followers.unwrap_or(preset.followers_per_session),
            attachments_per_connection: self.attachments.unwrap_or(preset.attachments_per_connection),
            worker_connections: self.workers.unwrap_or(preset.worker_connections),
            tokens_per_s_per_session: self.rate.unwrap_or(preset.tokens_per_s_per_session),
            seconds_s: self.seconds.unwrap_or(preset.seconds_s),
            warmup_s: self.warmup.unwrap_or(preset.warmup_s),
            even: self.even.unwrap_or(preset.even),
            message_tokens: self.message_tokens.unwrap_or(preset.message_tokens),
            gather_ms: self.gather_ms.unwrap_or(preset.gather_ms),
            fold_ms: self.fold_ms.unwrap_or(preset.fold_ms),
            under_way_max: self.under_way.unwrap_or(preset.under_way_max),
            tick_us: self.tick_us.unwrap_or(preset.tick_us),
            slow_per_mille: self.slow.unwrap_or(preset.slow_per_mille),
            slow_bytes_per_s: self.slow_bytes.unwrap_or(preset.slow_bytes_per_s),
            storm_at_s: self.storm_at.or(preset.storm_at_s),
            drops_every_s: self.drops_every.or(preset.drops_every_s),
            joins_per_s: self.joins.unwrap_or(preset.joins_per_s),
            patience_s: self.patience.unwrap_or(preset.patience_s),
        }
    }
}

/// What a scenario is if nothing is chosen.
fn preset(of: &Scenario) -> Options {
    let tokens = Options {
        sessions: 100,
        followers_per_session: 1,
        attachments_per_connection: 50,
        worker_connections: 4,
        tokens_per_s_per_session: 60.0,
        seconds_s: 20.0,
        warmup_s: 2.0,
        even: false,
        message_tokens: 400,
        gather_ms: 0,
        fold_ms: 0,
        under_way_max: 0,
        tick_us: 500,
        slow_per_mille: 0,
        slow_bytes_per_s: 2048,
        storm_at_s: None,
        drops_every_s: None,
        joins_per_s: 0.0,
        patience_s: 60.0,
    };
    let mixed = Options {
        sessions: 200,
        followers_per_session: 3,
        attachments_per_connection: 1,
        tokens_per_s_per_session: 20.0,
        seconds_s: 60.0,
        slow_per_mille: 50,
        drops_every_s: Some(20.0),
        joins_per_s: 5.0,
        ..tokens.clone()
    };
    match of {
        Scenario::Fanout(_) => Options {
            sessions: 1,
            followers_per_session: 1000,
            attachments_per_connection: 1,
            worker_connections: 1,
            tokens_per_s_per_session: 50.0,
            even: true,
            tick_us: 100,
            ..tokens
        },
        Scenario::Slow(_) => Options {
            sessions: 50,
            followers_per_session: 4,
            attachments_per_connection: 1,
            slow_per_mille: 250,
            seconds_s: 30.0,
            ..tokens
        },
        Scenario::Storm(_) => Options {
            sessions: 1000,
            followers_per_session: 10,
            attachments_per_connection: 1,
            tokens_per_s_per_session: 1.0,
            seconds_s: 25.0,
            storm_at_s: Some(8.0),
            ..tokens
        },
        Scenario::Mixed(_) => mixed,
        Scenario::Soak(_) => Options { seconds_s: 3600.0, ..mixed },
        _ => tokens,
    }
}

/// What `join` does.
#[derive(Debug, Clone, Args, Serialize)]
pub struct JoinLoad {
    /// Sessions.
    #[arg(long, default_value_t = 4)]
    pub sessions: u32,
    /// Tokens of each.
    #[arg(long, default_value_t = 50_000)]
    pub tokens: u32,
    /// Tokens of one message.
    #[arg(long, default_value_t = 400)]
    pub message_tokens: u64,
    /// Tokens per second and session while they are written, each a block of its own.
    #[arg(long, default_value_t = 4000.0)]
    #[serde(rename = "fill_tokens_per_s_per_session")]
    pub fill_rate: f64,
    /// Pause between that and the first joiner, in seconds: the node folds.
    #[arg(long, default_value_t = 3.0)]
    pub settle_s: f64,
    /// How many join.
    #[arg(long, default_value_t = 200)]
    pub joins: u32,
    /// Joiners per second.
    #[arg(long, default_value_t = 20.0)]
    #[serde(rename = "joins_per_s")]
    pub rate: f64,
    /// With a snapshot of the last n messages, instead of from the start.
    #[arg(long)]
    pub recent: Option<usize>,
    /// How long everything may take after the last one was due, in seconds.
    #[arg(long = "patience", default_value_t = 60.0)]
    pub patience_s: f64,
}

/// What `idle` does.
#[derive(Debug, Clone, Args)]
pub struct IdleLoad {
    /// How many.
    #[arg(long, default_value_t = 1000)]
    pub connections: u32,
    /// Sessions that they are spread over; as many as connections if not given.
    #[arg(long)]
    pub sessions: Option<u32>,
    /// How long the node is left alone before its memory is read, in seconds.
    #[arg(long = "settle", default_value_t = 10.0)]
    pub settle_s: f64,
    /// Processes that hold them: each may have only so many files.
    #[arg(long, default_value_t = 1)]
    pub processes: u32,
}

impl IdleLoad {
    /// How many sessions there are.
    pub fn sessions_or_connections(&self) -> u32 {
        self.sessions.unwrap_or(self.connections).max(1)
    }
}

/// What `control` does.
#[derive(Debug, Clone, Args)]
pub struct ControlLoad {
    /// Runs that are active all the time; at the end all are cancelled at one instant.
    #[arg(long, default_value_t = 1000)]
    pub runs: u32,
    /// Further runs, which are cancelled one by one before that.
    #[arg(long, default_value_t = 500)]
    pub cancels: u32,
    /// Controls per second, but for the last instant.
    #[arg(long, default_value_t = 50.0)]
    pub rate: f64,
    /// Followers of each session.
    #[arg(long, default_value_t = 2)]
    pub followers: u32,
    /// Worker connections that share the runs.
    #[arg(long, default_value_t = 4)]
    pub workers: u32,
    /// Each run writes a block this often, in seconds; 0: only one, at its start.
    #[arg(long, default_value_t = 5.0)]
    pub every: f64,
    /// Leaves the steers out.
    #[arg(long)]
    pub no_steers: bool,
    /// How long everything may take after the last control was due, in seconds.
    #[arg(long, default_value_t = 60.0)]
    pub patience: f64,
}

/// What `bench` starts and measures.
#[derive(Debug, Clone, Args)]
pub struct BenchArgs {
    /// The binary of the node.
    #[arg(long, default_value = "target/release/everthread")]
    pub binary: PathBuf,
    /// Which store.
    #[arg(long, value_enum, default_value_t = Store::Redis)]
    pub store: Store,
    /// Where everything goes: data, logs, reports.
    #[arg(long, default_value = "./bench")]
    pub out: PathBuf,
    /// CPUs of the node, as `taskset -c` takes them; empty: wherever.
    #[arg(long, default_value = "0")]
    pub node_cpus: String,
    /// CPUs of Redis and the load test.
    #[arg(long, default_value = "1")]
    pub other_cpus: String,
    /// Port of the node; its admin port and Redis take the next two.
    #[arg(long, default_value_t = 7460)]
    pub port: u16,
    /// Further arguments of the node.
    #[arg(long, allow_hyphen_values = true, num_args = 1)]
    pub node_arg: Vec<String>,
    /// One line per run: a name, then a scenario with its options; the built-in list if not given.
    #[arg(long)]
    pub list: Option<PathBuf>,
}

/// Which store a node of `bench` has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Store {
    /// A Redis that is started for it.
    Redis,
    /// The embedded one, which survives a crash.
    Crash,
    /// The embedded one, which survives a power cut.
    PowerCut,
}
