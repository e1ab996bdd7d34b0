//! Words that stand only in their place, or nowhere.
//!
//! This file names them all and is therefore exempt.

use super::Finding;
use crate::tree::Tree;
use serde_json::Value;

const THIS_FILE: &str = "crates/xtask/src/tidy/words.rs";

/// A word of Rust source.
struct Rule {
    /// As it stands in code.
    word: &'static str,
    /// Whether it counts in comments and in any case, too.
    everywhere: bool,
    /// Whether the rule is about this file.
    is_about: fn(&Source<'_>) -> bool,
    /// What to do.
    why: &'static str,
}

/// A Rust file as the rules see it.
struct Source<'a> {
    /// Its crate.
    of: &'a str,
    /// Whether it is product code, not a test, example or benchmark.
    is_product: bool,
}

fn is_pure(source: &Source<'_>) -> bool {
    source.is_product && matches!(source.of, "everthread-protocol" | "everthread-session")
}

/// Library code: neither the binary nor tools of development.
fn is_library(source: &Source<'_>) -> bool {
    source.is_product && !matches!(source.of, "everthread" | "everthread-testkit" | "xtask")
}

fn knows_no_engine(source: &Source<'_>) -> bool {
    is_library(source) && source.of != "everthread-store"
}

const fn code(word: &'static str, is_about: fn(&Source<'_>) -> bool, why: &'static str) -> Rule {
    Rule { word, everywhere: false, is_about, why }
}

const PURE: &str = "this crate does no I/O and knows no clock";
const SETTINGS: &str = "only the binary reads the environment; pass a Config";
const SIGNALS: &str = "only the binary installs signal handlers; take a shutdown token";
const NEVER: &str = "not in this project";

const RULES: &[Rule] = &[
    code("std::net", is_pure, PURE),
    code("std::fs", is_pure, PURE),
    code("std::thread", is_pure, PURE),
    code("tokio", is_pure, PURE),
    code("SystemTime", is_pure, PURE),
    code("Instant", is_pure, PURE),
    code("std::env", is_library, SETTINGS),
    code("env::var", is_library, SETTINGS),
    code("tokio::signal", is_library, SIGNALS),
    code("signal::unix", is_library, SIGNALS),
    code("ctrl_c", is_library, SIGNALS),
    Rule {
        word: "redis",
        everywhere: true,
        is_about: knows_no_engine,
        why: "only everthread-store says it; speak of the store",
    },
    code("unsafe", |_| true, NEVER),
    code("todo!", |_| true, NEVER),
    code("unimplemented!", |_| true, NEVER),
    code("#[ignore", |_| true, "a test that is not run is not a test"),
];

/// The words of [`RULES`].
pub fn forbidden(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (path, text) in tree.ending(".rs").filter(|(path, _)| *path != THIS_FILE) {
        let tests_from = tests_begin(text);
        for (number, line) in text.lines().enumerate() {
            let source = source(path, number >= tests_from);
            for rule in RULES.iter().filter(|rule| (rule.is_about)(&source)) {
                let is_there = if rule.everywhere {
                    line.to_lowercase().contains(rule.word)
                } else {
                    !line.trim_start().starts_with("//") && has_word(line, rule.word)
                };
                if is_there {
                    findings.push(Finding::at(path, number + 1, format!("`{}`: {}", rule.word, rule.why)));
                }
            }
        }
    }
    for (path, text) in tree.ending(".ts").chain(tree.ending(".mjs")) {
        for (number, line) in text.lines().enumerate() {
            if let Some(word) = [".only(", ".skip("].iter().find(|word| line.contains(**word)) {
                let text = format!("`{word}`: a test that is not run is not a test");
                findings.push(Finding::at(path, number + 1, text));
            }
        }
    }
    findings
}

fn source(path: &str, is_in_tests: bool) -> Source<'_> {
    let mut parts = path.split('/');
    let of = match parts.next() {
        Some("crates") => parts.next().unwrap_or_default(),
        _ => "",
    };
    let is_tests = is_in_tests || path.ends_with("tests.rs");
    Source { of, is_product: !of.is_empty() && parts.next() == Some("src") && !is_tests }
}

/// The line at which the test module at the end of a file begins.
fn tests_begin(text: &str) -> usize {
    let lines: Vec<&str> = text.lines().collect();
    let begins =
        |pair: &[&str]| pair[0] == "#[cfg(test)]" && pair[1].starts_with("mod ") && pair[1].ends_with('{');
    lines.windows(2).position(begins).unwrap_or(lines.len())
}

/// Whether `word` stands in `line` with nothing of a name beside it.
fn has_word(line: &str, word: &str) -> bool {
    let is_name = |c: char| c.is_alphanumeric() || c == '_';
    let starts = word.starts_with(is_name);
    let ends = word.ends_with(is_name);
    line.match_indices(word).any(|(at, _)| {
        let before = line[..at].chars().next_back().is_some_and(is_name);
        let after = line[at + word.len()..].chars().next().is_some_and(is_name);
        !(starts && before || ends && after)
    })
}

/// Places of one machine, and hosts that packages come from: both differ from reader to reader.
const MACHINE: &[&str] = &["/root/", "/home/", "/Users/", "/tmp/"];
const REGISTRIES: &[&str] =
    &["npmjs.org", "yarnpkg.com", "crates.io", "pypi.org", concat!("python", "hosted.org")];

/// No path of a machine and no host of a registry, but in Cargo's own lock file.
pub fn machine(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (path, text) in tree.texts().filter(|(path, _)| !matches!(*path, THIS_FILE | "Cargo.lock")) {
        for (number, line) in text.lines().enumerate() {
            if let Some(word) = MACHINE.iter().find(|word| begins_a_path(line, word)) {
                let text = format!("`{word}`: a path of one machine");
                findings.push(Finding::at(path, number + 1, text));
            }
            if let Some(word) = REGISTRIES.iter().find(|word| line.contains(**word)) {
                findings.push(Finding::at(path, number + 1, format!("`{word}`: a host of a registry")));
            }
        }
    }
    findings
}

fn begins_a_path(line: &str, word: &str) -> bool {
    let goes_on = |c: char| c.is_alphanumeric() || "._-~}{)*/$@".contains(c);
    line.match_indices(word).any(|(at, _)| !line[..at].chars().next_back().is_some_and(goes_on))
}

/// Lock files of npm name no host. Links to other parts of the project are fine.
pub fn lock_files(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (path, text) in tree.ending("package-lock.json") {
        let Ok(lock) = serde_json::from_str::<Value>(text) else {
            findings.push(Finding::error(path, "this is not JSON"));
            continue;
        };
        for (name, package) in lock["packages"].as_object().into_iter().flatten() {
            if package["resolved"].as_str().is_some_and(|from| from.contains("://")) {
                let text =
                    format!("{name} has `resolved`: set omit-lockfile-registry-resolved=true in .npmrc");
                findings.push(Finding::error(path, text));
            }
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bites(path: &str, text: &str) -> bool {
        !forbidden(&Tree::of(&[(path, text)])).is_empty()
    }

    #[test]
    fn only_the_store_says_redis() {
        let line = "// as Redis does\n";
        for of in ["everthread-edge", "everthread-control", "everthread-protocol", "everthread-client"] {
            assert!(bites(&format!("crates/{of}/src/a.rs"), line), "{of}");
            assert!(!bites(&format!("crates/{of}/tests/it/main.rs"), line), "{of}");
        }
        for of in ["everthread-store", "everthread", "everthread-testkit"] {
            assert!(!bites(&format!("crates/{of}/src/a.rs"), line), "{of}");
        }
    }

    #[test]
    fn the_pure_crates_have_no_clock_and_no_io() {
        for line in ["use std::fs;", "let now = SystemTime::now();", "use tokio::sync::mpsc;"] {
            assert!(bites("crates/everthread-session/src/a.rs", line), "{line}");
        }
        assert!(!bites(
            "crates/everthread-session/src/a.rs",
            "/// Unlike `SystemTime`.\nstruct InstantNoodles;"
        ));
        assert!(!bites(
            "crates/everthread-session/src/a.rs",
            "#[cfg(test)]\nmod tests {\n    use std::fs;\n}"
        ));
        assert!(bites("crates/everthread-session/src/a.rs", "#[cfg(test)]\nmod tests;\nuse std::fs;"));
        assert!(!bites("crates/everthread-session/src/a/tests.rs", "use std::fs;"));
    }

    #[test]
    fn only_the_binary_reads_the_environment_and_takes_signals() {
        for line in ["std::env::var(\"X\")", "tokio::signal::ctrl_c()"] {
            assert!(bites("crates/everthread-edge/src/a.rs", line), "{line}");
            assert!(!bites("crates/everthread/src/main.rs", line), "{line}");
        }
        assert!(!bites("crates/everthread-edge/src/a.rs", "env!(\"CARGO_PKG_VERSION\")"));
    }

    #[test]
    fn what_is_never_wanted_is_not_wanted_in_tests_either() {
        for line in ["unsafe { x() }", "todo!()", "#[ignore = \"slow\"]", "#[ignore]"] {
            assert!(bites("crates/everthread-edge/tests/it/a.rs", line), "{line}");
            assert!(bites("crates/everthread/src/a.rs", line), "{line}");
        }
        assert!(!bites("crates/everthread/src/a.rs", "#![forbid(unsafe_code)]"));
        assert!(bites("console/tests/a.mjs", "test.only(\"x\", () => {});"));
    }

    #[test]
    fn a_path_of_a_machine_is_named_and_an_address_is_not() {
        let found = |text: &str| !machine(&Tree::of(&[("a.md", text)])).is_empty();
        assert!(found("see /home/ann/x"));
        assert!(found("\"resolved\": \"https://npmjs.org/x\""));
        assert!(!found("GET /v1/tmp/x, https://example.org/home/x, ./home/x, ${top}/tmp/x"));
        assert!(
            machine(&Tree::of(&[("Cargo.lock", "https://github.com/rust-lang/crates.io-index")])).is_empty()
        );
    }

    #[test]
    fn a_lock_file_may_link_and_not_name_a_host() {
        let link = r#"{"packages":{"node_modules/a":{"resolved":"../sdk","link":true}}}"#;
        assert!(lock_files(&Tree::of(&[("x/package-lock.json", link)])).is_empty());
        let host = link.replace("../sdk", "https://example.org/a.tgz");
        assert_eq!(lock_files(&Tree::of(&[("x/package-lock.json", &host)])).len(), 1);
    }
}
