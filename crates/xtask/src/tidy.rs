//! Checks of what no compiler checks. Each is a function from a [`Tree`] to findings; [`CHECKS`] lists them.
//!
//! A new rule of the project becomes a function here with a test that shows it biting.

mod arrows;
mod deploy;
mod documents;
mod markdown;
mod parts;
mod regressions;
mod sources;
mod tables;
mod words;

use crate::test::cargo;
use crate::tree::Tree;
use anyhow::{Context, ensure};
use std::fmt;
use std::path::Path;
use std::process::{Command, Stdio};

/// Something that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The file, and the line if there is one.
    pub place: String,
    /// What is wrong, and what to do.
    pub text: String,
    /// Worth knowing, not wrong.
    pub is_warning: bool,
}

impl Finding {
    fn error(place: impl Into<String>, text: impl Into<String>) -> Finding {
        Finding { place: place.into(), text: text.into(), is_warning: false }
    }

    fn at(path: &str, line: usize, text: impl Into<String>) -> Finding {
        Finding::error(format!("{path}:{line}"), text)
    }

    fn warning(place: impl Into<String>, text: impl Into<String>) -> Finding {
        Finding { is_warning: true, ..Finding::error(place, text) }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.is_warning { "warning" } else { "error" };
        write!(f, "{kind}: {}: {}", self.place, self.text)
    }
}

/// A check over the project's files.
type Check = fn(&Tree) -> Vec<Finding>;

/// All but the arrows between crates, which come from cargo.
const CHECKS: &[Check] = &[
    parts::all_are_there,
    sources::length,
    sources::header,
    sources::lua_header,
    words::forbidden,
    words::machine,
    words::lock_files,
    tables::error_codes,
    tables::entry_types,
    documents::readme,
    documents::runbook,
    documents::settings,
    documents::links,
    regressions::tests,
    deploy::names,
    deploy::runbooks,
];

/// Runs every check and prints what it finds. Whether the project is tidy.
pub fn run(top: &Path) -> anyhow::Result<bool> {
    let tree = Tree::load(top)?;
    let mut findings = arrows::check(&metadata(top)?);
    for check in CHECKS {
        findings.extend(check(&tree));
    }
    findings.sort_by_key(|finding| !finding.is_warning);
    for finding in &findings {
        println!("{finding}");
    }
    let errors = findings.iter().filter(|finding| !finding.is_warning).count();
    println!("tidy: {errors} errors, {} warnings", findings.len() - errors);
    Ok(errors == 0)
}

fn metadata(top: &Path) -> anyhow::Result<serde_json::Value> {
    let args = ["metadata", "--no-deps", "--format-version", "1"];
    let output = Command::new(cargo()).args(args).current_dir(top).stdin(Stdio::null()).output()?;
    ensure!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).context("cargo metadata")
}
