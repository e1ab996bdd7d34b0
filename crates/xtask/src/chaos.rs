//! `cargo xtask chaos`: builds the node and the program that breaks it, and runs that.

use crate::test::{run_within, target_dir};
use crate::tools;
use std::path::Path;
use std::time::Duration;

/// Beyond the minutes of a run: for builds, and for everything to come to rest.
const EXTRA: Duration = Duration::from_secs(45 * 60);

/// Runs it with arguments of its own.
pub fn run(top: &Path, args: &[&str]) -> anyhow::Result<()> {
    tools::install_for_chaos()?;
    let is_planted = args.contains(&"--planted");
    let features: &[&str] = if is_planted { &["--features", "everthread/planted-faults"] } else { &[] };
    let build = ["cargo", "build", "--locked", "--package", "everthread", "--package", "everthread-chaos"];
    run_within(top, ".", &[&build, features].concat(), EXTRA)?;
    let dir = target_dir(top).join("debug");
    let (program, node) = (dir.join("everthread-chaos"), dir.join("everthread"));
    let (program, node) = (program.to_string_lossy(), node.to_string_lossy());
    let command = [&[&*program, "run", "--binary", &*node], args].concat();
    run_within(top, ".", &command, EXTRA + length(args))
}

/// The minutes that are asked for, if they are a number.
fn length(args: &[&str]) -> Duration {
    let given = args.windows(2).find(|pair| pair[0] == "--minutes").and_then(|pair| pair[1].parse().ok());
    Duration::try_from_secs_f64(given.unwrap_or(1.0) * 60.0).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_has_the_time_that_it_asks_for() {
        assert_eq!(length(&["--seed", "3", "--minutes", "60"]), Duration::from_secs(3600));
        assert_eq!(length(&["--minutes", "many"]), Duration::from_secs(60));
    }
}
