//! Development tasks: `cargo xtask test` runs everything that must pass, `cargo xtask tidy` checks what no compiler checks,
//! `cargo xtask compose` brings the deployment of `deploy/` up in containers, `cargo xtask chaos` breaks one by the plan of a seed.
//!
//! - [`mod@test`] runs steps, which are data, and sums them up; [`tools`] installs what they need.
//! - [`tidy`] is a list of pure functions over a [`tree::Tree`], the text of every file of the project.
//!
//! Invariant: nothing here is part of the product; no other crate depends on it.
#![expect(clippy::print_stdout, reason = "a command-line tool talks on stdout")]

mod chaos;
mod steps;
mod test;
mod tidy;
mod tools;
mod tree;

use anyhow::{Context, bail};
use std::path::PathBuf;
use std::process::ExitCode;

const USAGE: &str = "\
usage: cargo xtask test [--only STEP]...   install what the tests need, then run all of them
       cargo xtask test --list             name the steps
       cargo xtask tidy                    check arrows between crates, file lengths, documents
       cargo xtask compose                 bring deploy/docker-compose.yml up and take nodes away; as root
       cargo xtask chaos --minutes N --seed S [--redis standalone|sentinel|cluster|all] [--planted FAULT] [more]
                                           kill, freeze, cut and part a deployment by the plan of a seed, and check what
                                           everybody saw; as root for partitions; `-- --help` tells the rest";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match run(&args.iter().map(String::as_str).collect::<Vec<_>>()) {
        Ok(code) => code,
        Err(error) => {
            println!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &[&str]) -> anyhow::Result<ExitCode> {
    let top = top()?;
    match args {
        ["test", "--list"] => {
            for step in steps::STEPS {
                println!("{:<16} {}", step.name, step.about);
            }
            Ok(ExitCode::SUCCESS)
        }
        ["test", rest @ ..] => test::run(&top, &only(rest)?),
        ["tidy"] => Ok(if tidy::run(&top)? { ExitCode::SUCCESS } else { ExitCode::FAILURE }),
        ["chaos", rest @ ..] => chaos::run(&top, rest).map(|()| ExitCode::SUCCESS),
        ["compose"] => test::compose(&top).map(|()| ExitCode::SUCCESS),
        _ => bail!("{USAGE}"),
    }
}

/// Names after `--only`; none means all.
fn only<'a>(args: &[&'a str]) -> anyhow::Result<Vec<&'a str>> {
    let mut names = Vec::new();
    for pair in args.chunks(2) {
        match pair {
            ["--only", name] if steps::STEPS.iter().any(|step| step.name == *name) => names.push(*name),
            ["--only", name] => bail!("there is no step {name:?}; `cargo xtask test --list` names them"),
            _ => bail!("{USAGE}"),
        }
    }
    Ok(names)
}

/// The top of the repository: two above this crate.
fn top() -> anyhow::Result<PathBuf> {
    let here = PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").context("run this as `cargo xtask`")?);
    Ok(here.ancestors().nth(2).context("this crate lies in crates/")?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_step_is_refused_by_name() {
        assert_eq!(only(&["--only", "fmt", "--only", "tidy"]).unwrap(), ["fmt", "tidy"]);
        assert!(only(&["--only", "nope"]).unwrap_err().to_string().contains("\"nope\""));
        assert!(only(&["--onyl", "fmt"]).is_err());
        assert!(only(&["--only"]).is_err());
    }
}
