//! Documents are complete, and their links lead somewhere.

use super::Finding;
use super::markdown::{self, anchor, headings};
use crate::tree::Tree;
use everthread_protocol::Code;

const README: &str = "README.md";
const OPERATIONS: &str = "docs/OPERATIONS.md";

/// What a newcomer and a contributor type first.
const COMMANDS: [&str; 2] = ["cargo run --release -- dev", "cargo xtask test"];

/// The README names the command that starts it and the one that tests it.
pub fn readme(tree: &Tree) -> Vec<Finding> {
    let Some(text) = tree.text(README) else { return Vec::new() };
    let missing = COMMANDS.iter().filter(|command| !text.contains(**command));
    missing.map(|command| Finding::error(README, format!("the command `{command}` is missing"))).collect()
}

/// The runbook has a section for every error code.
pub fn runbook(tree: &Tree) -> Vec<Finding> {
    let Some(text) = tree.text(OPERATIONS) else { return Vec::new() };
    let sections: Vec<&str> = headings(text).collect();
    let missing =
        Code::ALL.iter().filter(|code| !sections.contains(&format!("`{}`", code.as_str()).as_str()));
    let complain = |code: &Code| Finding::error(OPERATIONS, format!("no section about `{}`", code.as_str()));
    missing.map(complain).collect()
}

/// Every variable that the binary reads and every metric that a node counts stands in the tables of the operators.
pub fn settings(tree: &Tree) -> Vec<Finding> {
    let Some(text) = tree.text(OPERATIONS) else { return Vec::new() };
    let mut findings = Vec::new();
    for (path, source) in tree.ending(".rs").filter(|(path, _)| path.starts_with("crates/everthread/src/")) {
        let variables = literals(source, "EVERTHREAD_");
        let missing = variables.filter(|name| !text.contains(&format!("`{name}`")));
        findings
            .extend(missing.map(|name| Finding::error(OPERATIONS, format!("`{name}` of {path} is missing"))));
    }
    for (path, source) in tree.ending("/metrics.rs").chain(tree.ending("/counts.rs")) {
        let missing = literals(source, "everthread_").filter(|name| !text.contains(&format!("`{name}`")));
        findings
            .extend(missing.map(|name| Finding::error(OPERATIONS, format!("`{name}` of {path} is missing"))));
    }
    findings
}

/// String literals that are a name with this beginning.
fn literals<'a>(source: &'a str, prefix: &'a str) -> impl Iterator<Item = &'a str> {
    let is_name = |text: &str| text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    source.split('"').filter(move |text| text.starts_with(prefix) && is_name(text))
}

/// Every relative link leads to a file, and every anchor to a heading.
pub fn links(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (path, text) in tree.ending(".md") {
        for (line, link) in markdown::links(text) {
            findings.extend(dead(tree, path, &link).map(|text| Finding::at(path, line, text)));
        }
    }
    findings
}

/// Why a link in the file `path` is dead, if it is.
fn dead(tree: &Tree, path: &str, link: &str) -> Option<String> {
    if link.contains("://") || link.starts_with("mailto:") {
        return None;
    }
    let (file, fragment) = link.split_once('#').unwrap_or((link, ""));
    let target = if file.is_empty() { Some(path.to_owned()) } else { join(path, file) };
    let Some(target) = target.filter(|target| tree.has(target)) else {
        return Some(format!("the link {link:?} leads nowhere"));
    };
    let has_heading = |text: &str| headings(text).any(|heading| anchor(heading) == fragment);
    let is_checked = target.ends_with(".md") && !fragment.is_empty();
    let is_dead = is_checked && !tree.text(&target).is_some_and(has_heading);
    is_dead.then(|| format!("no heading for {link:?} in {target}"))
}

/// `link` as seen from the file `from`; none if it leaves the project.
fn join(from: &str, link: &str) -> Option<String> {
    let mut parts: Vec<&str> = from.split('/').collect();
    parts.pop();
    for part in link.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop()?;
            }
            _ => parts.push(part),
        }
    }
    Some(parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_readme_names_both_commands() {
        assert_eq!(readme(&Tree::of(&[(README, "nothing")])).len(), 2);
        assert!(readme(&Tree::of(&[(README, &COMMANDS.join("\n"))])).is_empty());
    }

    #[test]
    fn a_code_without_a_section_is_named() {
        let all: String = Code::ALL.iter().map(|code| format!("### `{}`\n", code.as_str())).collect();
        assert!(runbook(&Tree::of(&[(OPERATIONS, &all)])).is_empty());
        let without = all.replace("### `gap`\n", "");
        assert!(runbook(&Tree::of(&[(OPERATIONS, &without)]))[0].text.contains("`gap`"));
    }

    #[test]
    fn a_variable_or_metric_that_no_table_explains_is_named() {
        let config =
            r#"#[arg(env = "EVERTHREAD_LISTEN", default_value = "x")] #[arg(env = "EVERTHREAD_NEW")]"#;
        let metrics = r#"counter("everthread_new_total", "New things.")"#;
        let tree = Tree::of(&[
            (OPERATIONS, "| `--listen` | `EVERTHREAD_LISTEN` |"),
            ("crates/everthread/src/config.rs", config),
            ("crates/everthread-edge/src/metrics.rs", metrics),
        ]);
        let found: Vec<_> = settings(&tree).into_iter().map(|finding| finding.text).collect();
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].contains("EVERTHREAD_NEW") && found[1].contains("everthread_new_total"));
    }

    #[test]
    fn a_link_that_leads_nowhere_is_named() {
        let found = |link: &str| {
            let text = format!("# Here\n[x]({link})\n");
            links(&Tree::of(&[("docs/a.md", text.as_str()), ("b.md", "## There you are\n")])).len()
        };
        for good in ["../b.md", "../b.md#there-you-are", "#here", "a.md", "https://example.org/x", "..", "."]
        {
            assert_eq!(found(good), 0, "{good}");
        }
        for bad in ["b.md", "../b.md#not-there", "#nowhere", "../../b.md", "../c"] {
            assert_eq!(found(bad), 1, "{bad}");
        }
    }
}
