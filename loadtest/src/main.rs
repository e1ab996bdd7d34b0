//! The load test: scenarios that measure a running node and verify what it delivers, at once.
//!
//! It speaks the real protocols, with clients that cost little, from one process, so that one clock measures both ends. A
//! scenario in which anything was lost, doubled, reordered or changed has failed: the process says so and exits with 1.
//!
//! `corpus` knows what is said and when; `writer` says it, by the clock; `link` follows, and `track` checks what arrives;
//! `meter` has the histograms, `sampler` looks at processes and Redis once a second; `report` and `html` write it down.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "the figures are what this program is for")]

mod bench;
mod cli;
mod control;
mod corpus;
mod deaths;
mod html;
mod http;
mod link;
mod meter;
mod process;
mod redis;
mod report;
mod sampler;
mod scenario;
mod setup;
mod shard;
mod shared;
mod socket;
mod svg;
mod track;
mod wire;
mod writer;

use clap::Parser as _;
use cli::{Cli, NodeArgs, Scenario};
use scenario::{Env, idle, join, stream};
use std::process::ExitCode;

fn main() -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return complain(&error.into()),
    };
    match runtime.block_on(run(Cli::parse())) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => complain(&error),
    }
}

fn complain(error: &anyhow::Error) -> ExitCode {
    eprintln!("everthread-loadtest: {error:#}");
    ExitCode::FAILURE
}

async fn run(Cli { node, scenario }: Cli) -> anyhow::Result<()> {
    let name = match &scenario {
        Scenario::Tokens(_) => "tokens",
        Scenario::Fanout(_) => "fanout",
        Scenario::Slow(_) => "slow",
        Scenario::Storm(_) => "storm",
        Scenario::Mixed(_) => "mixed",
        Scenario::Soak(_) => "soak",
        Scenario::Page { reports } => return html::of_files(reports, node.html.as_deref()),
        Scenario::Bench(args) => return bench::run(args).await,
        _ => "",
    };
    let env = Env::new(&node).await?;
    match &scenario {
        Scenario::Tokens(load)
        | Scenario::Fanout(load)
        | Scenario::Slow(load)
        | Scenario::Storm(load)
        | Scenario::Mixed(load)
        | Scenario::Soak(load) => stream::run(&env, name, &load.options(&scenario)).await,
        Scenario::Join(load) => join::run(&env, load).await,
        Scenario::Idle(load) => idle::run(&env, load, &holder_arguments(&node)).await,
        Scenario::Hold { stamp, sessions, from, to } => idle::hold(&env, *stamp, *sessions, *from, *to).await,
        Scenario::Control(load) => control::run(&env, load).await,
        Scenario::Deaths { kills, side_by_side, freeze } => {
            deaths::run(&env, &node.url[0], *kills, *side_by_side, *freeze).await
        }
        Scenario::Victim { agent } => deaths::victim(&env, agent).await,
        Scenario::Page { .. } | Scenario::Bench(_) => Ok(()),
    }
}

/// What a process that holds connections of `idle` needs to be told.
fn holder_arguments(node: &NodeArgs) -> Vec<String> {
    let urls = node.url.iter().flat_map(|url| ["--url".to_owned(), url.clone()]);
    let sources = node.sources.map(|sources| ["--sources".to_owned(), sources.to_string()]);
    urls.chain(["--quiet".to_owned()]).chain(sources.into_iter().flatten()).collect()
}
