//! Runs the steps, streams what they say, and sums up.
//!
//! A step that fails does not stop the others: one run names everything that is wrong. A step whose needs have failed is not
//! run and counts as failed.

use crate::steps::{Action, BINARY, BINARY_VARIABLE, COMPOSE, STEPS, Step};
use crate::{tidy, tools};
use anyhow::{Context, bail, ensure};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

/// A step that takes longer hangs. A first build on a small machine takes a good part of it.
const STEP_MAX: Duration = Duration::from_secs(45 * 60);
/// Between two looks at a running program.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// How a step ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Passed,
    Failed,
    /// Something it needs has failed.
    NotRun,
}

/// Runs the steps named, or all.
pub fn run(top: &Path, only: &[&str]) -> anyhow::Result<ExitCode> {
    let mut results: Vec<(&Step, Outcome, Duration)> = Vec::new();
    for step in STEPS.iter().filter(|step| only.is_empty() || only.contains(&step.name)) {
        let before: HashMap<&str, Outcome> =
            results.iter().map(|(s, outcome, _)| (s.name, *outcome)).collect();
        println!("\n==> {}: {}", step.name, step.about);
        let began = Instant::now();
        let outcome = match unmet(step, &before) {
            Some(need) => {
                println!("not run: step {need} has failed");
                Outcome::NotRun
            }
            None => match perform(top, &step.action) {
                Ok(()) => Outcome::Passed,
                Err(error) => {
                    println!("error: {error:#}");
                    Outcome::Failed
                }
            },
        };
        let took = began.elapsed();
        println!("<== {}: {} after {:.1} s", step.name, word(outcome), took.as_secs_f64());
        results.push((step, outcome, took));
    }
    println!();
    for (step, outcome, took) in &results {
        println!("{:<16} {:<8} {:>8.1} s  {}", step.name, word(*outcome), took.as_secs_f64(), step.about);
    }
    let (line, all_passed) = verdict(results.iter().map(|(_, outcome, _)| *outcome));
    println!("\n{line}");
    Ok(if all_passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Brings the compose file up with the binary of this tree, and sees streams survive.
pub fn compose(top: &Path) -> anyhow::Result<()> {
    COMPOSE.iter().try_for_each(|command| run_program(top, ".", command))
}

/// The first need of a step that was run and did not pass.
fn unmet<'a>(step: &Step, before: &HashMap<&'a str, Outcome>) -> Option<&'a str> {
    let failed =
        |need: &&str| before.get_key_value(*need).filter(|(_, outcome)| **outcome != Outcome::Passed);
    step.needs.iter().find_map(|need| failed(need).map(|(name, _)| *name))
}

fn word(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Passed => "passed",
        Outcome::Failed => "FAILED",
        Outcome::NotRun => "NOT RUN",
    }
}

/// The last line, and whether everything passed.
fn verdict(outcomes: impl Iterator<Item = Outcome>) -> (String, bool) {
    let (passed, failed): (Vec<_>, Vec<_>) = outcomes.partition(|outcome| *outcome == Outcome::Passed);
    (format!("{} passed, {} failed", passed.len(), failed.len()), failed.is_empty())
}

fn perform(top: &Path, action: &Action) -> anyhow::Result<()> {
    match action {
        Action::Tools => tools::install(&target_dir(top)),
        Action::Tidy => {
            ensure!(tidy::run(top)?, "the project is not tidy");
            Ok(())
        }
        Action::Run { dir, command } => run_program(top, dir, command),
        Action::Current { dir, remedy } => is_current(top, dir, remedy),
    }
}

fn run_program(top: &Path, dir: &str, command: &[&str]) -> anyhow::Result<()> {
    run_within(top, dir, command, STEP_MAX)
}

/// Runs a program in a directory of the repository; an error if it fails or takes longer.
pub fn run_within(top: &Path, dir: &str, command: &[&str], time_max: Duration) -> anyhow::Result<()> {
    let (program, args) = command.split_first().context("a step without a command")?;
    let text = command.join(" ");
    println!("{dir}$ {text}");
    let place = top.join(dir);
    ensure!(place.is_dir(), "{dir} is missing");
    let program = if *program == "cargo" { cargo() } else { PathBuf::from(program) };
    let mut command = Command::new(program);
    command.args(args).current_dir(place).stdin(Stdio::null());
    command.env(BINARY_VARIABLE, target_dir(top).join(BINARY));
    // What cargo tells this program about itself must not reach the cargo that it starts.
    for (name, _) in std::env::vars_os() {
        let name_text = name.to_string_lossy();
        if name_text.starts_with("CARGO_PKG_") || name_text.starts_with("CARGO_MANIFEST_") {
            command.env_remove(&name);
        }
    }
    let mut child = command.spawn().with_context(|| format!("cannot start {text}"))?;
    let began = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            ensure!(status.success(), "{text}: {status}");
            return Ok(());
        }
        if began.elapsed() > time_max {
            child.kill()?;
            child.wait()?;
            bail!("{text}: no end after {} minutes", time_max.as_secs() / 60);
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

/// The cargo that runs this program.
pub fn cargo() -> PathBuf {
    std::env::var_os("CARGO").map_or_else(|| "cargo".into(), PathBuf::from)
}

/// Where cargo puts what it builds.
pub fn target_dir(top: &Path) -> PathBuf {
    // An absolute path in the variable replaces the top.
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| top.join("target"), |dir| top.join(dir))
}

fn is_current(top: &Path, dir: &str, remedy: &str) -> anyhow::Result<()> {
    ensure!(top.join(dir).is_dir(), "{dir} is missing; run: {remedy}");
    let changed = git(top, &["diff", "--name-status", "--", dir])?;
    let new = git(top, &["ls-files", "--others", "--exclude-standard", "--", dir])?;
    if changed.is_empty() && new.is_empty() {
        return Ok(());
    }
    println!("{}{}", String::from_utf8_lossy(&changed), String::from_utf8_lossy(&new));
    bail!("{dir} is not what the sources compile to; run: {remedy}")
}

/// What a git command answers.
pub fn git(top: &Path, args: &[&str]) -> anyhow::Result<Vec<u8>> {
    // A checkout may belong to somebody else than the user that tests it.
    let trust = ["-c", "safe.directory=*"];
    let output = Command::new("git").args(trust).args(args).current_dir(top).stdin(Stdio::null()).output()?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "git {}: {}", args.join(" "), errors.trim());
    Ok(output.stdout)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_that_is_not_run_counts_as_failed() {
        let outcomes = [Outcome::Passed, Outcome::Failed, Outcome::NotRun];
        assert_eq!(verdict(outcomes.into_iter()), ("1 passed, 2 failed".to_owned(), false));
        assert_eq!(verdict([Outcome::Passed].into_iter()), ("1 passed, 0 failed".to_owned(), true));
    }

    #[test]
    fn a_need_that_was_left_out_by_the_developer_is_not_missed() {
        let step = STEPS.iter().find(|step| step.name == "sdk").unwrap();
        assert_eq!(unmet(step, &HashMap::new()), None);
        assert_eq!(unmet(step, &HashMap::from([("sdk-install", Outcome::Passed)])), None);
        assert_eq!(unmet(step, &HashMap::from([("sdk-install", Outcome::NotRun)])), Some("sdk-install"));
    }

    #[test]
    fn a_program_that_fails_or_is_missing_fails_its_step() {
        let top = std::env::temp_dir();
        assert!(run_program(&top, ".", &["true"]).is_ok());
        assert!(run_program(&top, ".", &["false"]).is_err());
        assert!(run_program(&top, ".", &["no-such-program-anywhere"]).is_err());
        assert!(run_program(&top, "no-such-directory", &["true"]).is_err());
    }
}
