//! `doctor`: looks at the store that a node would use, and says what is good, what will hurt, and what is wrong.
//!
//! Asks, and changes nothing. Ends with 1 if something is wrong; warnings alone end with 0.

use crate::config::{NodeArgs, without_password};
use anyhow::{Context as _, bail};
use everthread_store::redis::{Finding, Level, Options, examine};

/// Who asks, where no name is given.
const NODE: &str = "doctor";

/// Runs it.
#[expect(clippy::print_stdout, reason = "the answer of a command")]
pub async fn run(args: NodeArgs) -> anyhow::Result<()> {
    let Some(url) = &args.redis else {
        println!("store: embedded in {}; there is no server to look at", args.data_dir.display());
        return Ok(());
    };
    println!("store: Redis at {}, prefix {}", without_password(url), args.redis_prefix);
    let node = args.node.as_deref().unwrap_or(NODE).parse().context("--node")?;
    let findings = examine(&Options::new(url, &args.redis_prefix, node)).await;
    let widest = findings.iter().map(|finding| finding.server.len()).max().unwrap_or(0);
    for Finding { level, server, about, told } in &findings {
        println!("{level:<8} {server:<widest$} {about:<12} {told}");
    }
    let count = |level| findings.iter().filter(|finding| finding.level == level).count();
    match (count(Level::Fault), count(Level::Warning)) {
        (0, 0) => println!("all is well"),
        (0, warnings) => println!("it works; {warnings} warning(s)"),
        (faults, warnings) => {
            bail!("{faults} error(s), {warnings} warning(s)")
        }
    }
    Ok(())
}
