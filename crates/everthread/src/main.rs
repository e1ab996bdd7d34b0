//! The `everthread` binary: reads the configuration, binds, starts, waits, drains.
//!
//! Only this crate reads the environment, installs signal handlers and picks defaults.

mod admin;
mod archive;
mod config;
mod console;
mod demo;
mod doctor;
mod health;
mod keeping;
mod metrics;
mod openai;
mod otlp;
mod serve;
mod store;
mod tail;

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use std::process::ExitCode;
use std::time::Duration;

/// A token makes many small allocations on its way: the system's allocator took 23 % of the node's time under load
/// (docs/performance.md). This one needs a C compiler and nothing else, so that a first `cargo run` works.
#[cfg(target_os = "linux")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Blocking work that is still there in the end (the embedded store's last commit) has had its time in the drain.
const BLOCKING_MAX: Duration = Duration::from_secs(2);

/// A durable session layer for AI products.
#[derive(Debug, Parser)]
#[command(name = "everthread", version, about, long_about = None)]
struct Cli {
    /// What to do.
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Everything in one process for a first try: store, node, console and demo agents.
    Dev(config::NodeArgs),
    /// A node.
    Serve(config::NodeArgs),
    /// A worker that serves an agent.
    #[command(subcommand)]
    Worker(WorkerCommand),
    /// Follows a session in the terminal.
    Tail(tail::TailArgs),
    /// Reads the configuration, says what it means, and ends. Asks nobody but the archive, if there is one: an object is
    /// written to it, read and deleted. What Redis is like says `doctor`.
    CheckConfig(config::NodeArgs),
    /// Looks at the Redis that a node with this configuration would use, and says what is wrong with it.
    Doctor(config::NodeArgs),
    /// Asks the node on this machine whether it is alive; for health checks of containers.
    Health(health::HealthArgs),
}

#[derive(Debug, Subcommand)]
enum WorkerCommand {
    /// With any OpenAI-compatible Chat Completions endpoint.
    #[command(name = "openai")]
    OpenAi(openai::OpenAiArgs),
    /// With the demo agents of `dev`, for trying a deployment: they need no model.
    Demo(demo::DemoArgs),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => return config::complain(&format!("the runtime does not start: {error}")),
    };
    let result = runtime.block_on(run(cli.command));
    runtime.shutdown_timeout(BLOCKING_MAX);
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => config::complain(&format!("{error:#}")),
    }
}

async fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Dev(args) => serve::run(config::Mode::Dev, args).await,
        Command::Serve(args) => serve::run(config::Mode::Serve, args).await,
        Command::Worker(WorkerCommand::OpenAi(args)) => {
            config::start_log_with("info", config::LogFormat::Text)?;
            let token = config::client_token(args.token.clone())?;
            openai::run(args, token, serve::stop_on_signal()?).await
        }
        Command::Worker(WorkerCommand::Demo(args)) => {
            config::start_log_with("info", config::LogFormat::Text)?;
            let token = config::client_token(args.token)?;
            demo::run(args.url, token, serve::stop_on_signal()?).await.context("the demo agents have stopped")
        }
        Command::Tail(args) => {
            let token = config::client_token(args.token.clone())?;
            tail::run(args, token, serve::stop_on_signal()?).await
        }
        Command::CheckConfig(args) => config::check(args).await,
        Command::Doctor(args) => doctor::run(args).await,
        Command::Health(args) => health::run(args).await,
    }
}
