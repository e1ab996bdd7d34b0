//! What the project consists of besides its crates.

use super::Finding;
use crate::tree::Tree;

/// Files and directories that must be there.
const PARTS: &[&str] = &[
    ".ci/run",
    "CONTRIBUTING.md",
    "LICENSE",
    "README.md",
    "console/dist",
    "console/package-lock.json",
    "deny.toml",
    "deploy/Dockerfile",
    "deploy/docker-compose.yml",
    "deploy/grafana/everthread.json",
    "deploy/helm/everthread/Chart.yaml",
    "deploy/prometheus/alerts.yml",
    "docs/ARCHITECTURE.md",
    "docs/OPERATIONS.md",
    "docs/PROTOCOL.md",
    "docs/decisions/README.md",
    "docs/performance.md",
    "examples/local-model",
    "sdk/conformance/vectors",
    "sdk/typescript/package-lock.json",
];

/// Every part is there.
pub fn all_are_there(tree: &Tree) -> Vec<Finding> {
    let missing = PARTS.iter().filter(|part| !tree.has(part));
    missing.map(|part| Finding::error(*part, "this part of the project is missing")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_that_is_missing_is_named() {
        let files: Vec<(String, &str)> = PARTS.iter().map(|part| (format!("{part}/x"), "")).collect();
        let files: Vec<(&str, &str)> = files.iter().map(|(path, text)| (path.as_str(), *text)).collect();
        assert!(all_are_there(&Tree::of(&files)).is_empty());
        assert_eq!(all_are_there(&Tree::of(&files[1..]))[0].place, ".ci/run");
    }
}
