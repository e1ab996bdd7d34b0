//! Which crate may depend on which. Dependencies point one way; tests may use anything.

use super::Finding;
use serde_json::Value;

/// Every crate with the crates of this project that it may depend on.
const ARROWS: &[(&str, &[&str])] = &[
    ("everthread-protocol", &[]),
    ("everthread-session", &["everthread-protocol"]),
    ("everthread-store", &["everthread-protocol", "everthread-session"]),
    ("everthread-control", &["everthread-protocol", "everthread-session", "everthread-store"]),
    (
        "everthread-archive",
        &["everthread-protocol", "everthread-session", "everthread-store", "everthread-control"],
    ),
    (
        "everthread-edge",
        &["everthread-protocol", "everthread-session", "everthread-store", "everthread-control"],
    ),
    // What the two libraries share: one WebSocket to a node.
    ("everthread-socket", &["everthread-protocol"]),
    // Speaks the wire itself: it measures the libraries' server, not the libraries.
    ("everthread-loadtest", &["everthread-protocol"]),
    ("everthread-worker", &["everthread-protocol", "everthread-socket"]),
    ("everthread-client", &["everthread-protocol", "everthread-session", "everthread-socket"]),
    (
        "everthread",
        &[
            "everthread-protocol",
            "everthread-session",
            "everthread-store",
            "everthread-archive",
            "everthread-control",
            "everthread-edge",
            "everthread-worker",
            "everthread-client",
        ],
    ),
    // It checks histories as clients see them; it knows nothing of the server, which it starts as a process.
    ("everthread-testkit", &["everthread-protocol", "everthread-session", "everthread-client"]),
    // It drives a deployment from outside: the node is a process, workers use their library, clients speak the wire themselves.
    (
        "everthread-chaos",
        &[
            "everthread-protocol",
            "everthread-session",
            "everthread-socket",
            "everthread-testkit",
            "everthread-worker",
        ],
    ),
    ("xtask", &["everthread-protocol"]),
];

/// Crates that do no I/O, and what would bring it in.
const PURE: &[&str] = &["everthread-protocol", "everthread-session"];
const IMPURE: &[&str] = &[
    "tokio",
    "async-std",
    "smol",
    "mio",
    "socket2",
    "hyper",
    "axum",
    "reqwest",
    "redis",
    "redb",
    "tracing",
    "rand",
];

/// Who alone may depend on an outside crate.
const OWNERS: &[(&str, &[&str])] = &[
    ("redis", &["everthread-store"]),
    ("redb", &["everthread-store"]),
    ("object_store", &["everthread-archive"]),
    // Programs, and nothing that is linked into another.
    ("clap", &["everthread", "everthread-chaos", "everthread-loadtest"]),
];

/// Compares what `cargo metadata` says with the tables above.
pub fn check(metadata: &Value) -> Vec<Finding> {
    let mut findings = Vec::new();
    let packages: Vec<&Value> = metadata["packages"].as_array().into_iter().flatten().collect();
    let names: Vec<&str> = packages.iter().filter_map(|package| package["name"].as_str()).collect();
    for (name, _) in ARROWS {
        if !names.contains(name) {
            findings.push(Finding::error("Cargo.toml", format!("the crate {name} is missing")));
        }
    }
    for package in packages {
        let Some(name) = package["name"].as_str() else { continue };
        let Some((_, allowed)) = ARROWS.iter().find(|(known, _)| *known == name) else {
            let text = "this crate is not in the table of arrows in crates/xtask/src/tidy/arrows.rs";
            findings.push(Finding::error(name, text));
            continue;
        };
        for dependency in package["dependencies"].as_array().into_iter().flatten() {
            if dependency["kind"].as_str() == Some("dev") {
                continue;
            }
            let on = dependency["name"].as_str().unwrap_or_default();
            findings.extend(wrong(name, allowed, on).map(|text| Finding::error(name, text)));
        }
    }
    findings
}

/// Why `name` may not depend on `on`, if it may not.
fn wrong(name: &str, allowed: &[&str], on: &str) -> Option<String> {
    let is_ours = ARROWS.iter().any(|(known, _)| *known == on);
    if is_ours && !allowed.contains(&on) {
        return Some(format!("may not depend on {on}: arrows point the other way"));
    }
    let is_impure = IMPURE.contains(&on) || on.starts_with("tokio-") || on.starts_with("futures");
    if PURE.contains(&name) && is_impure {
        return Some(format!("may not depend on {on}: this crate does no I/O and knows no runtime"));
    }
    let (_, owners) = OWNERS.iter().find(|(outside, _)| *outside == on)?;
    (!owners.contains(&name)).then(|| format!("may not depend on {on}: only {} may", owners.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// Findings if all crates are there and `name` has one dependency.
    fn with(name: &str, on: &str, kind: Option<&str>) -> Vec<String> {
        let dependency = json!({"name": on, "kind": kind});
        let packages: Vec<Value> = ARROWS
            .iter()
            .map(|(known, _)| {
                let dependencies = if *known == name { vec![dependency.clone()] } else { vec![] };
                json!({"name": known, "dependencies": dependencies})
            })
            .collect();
        check(&json!({"packages": packages})).into_iter().map(|finding| finding.text).collect()
    }

    #[test]
    fn arrows_point_one_way() {
        assert!(with("everthread-store", "everthread-session", None).is_empty());
        assert_eq!(with("everthread-session", "everthread-store", None).len(), 1);
        assert_eq!(with("everthread-worker", "everthread-session", Some("build")).len(), 1);
    }

    #[test]
    fn tests_may_use_anything() {
        assert!(with("everthread-protocol", "everthread-edge", Some("dev")).is_empty());
        assert!(with("everthread-session", "tokio", Some("dev")).is_empty());
    }

    #[test]
    fn the_pure_crates_do_no_io() {
        for on in ["tokio", "tokio-util", "futures-util", "redb"] {
            assert_eq!(with("everthread-session", on, None).len(), 1, "{on}");
        }
        assert!(with("everthread-session", "serde", None).is_empty());
    }

    #[test]
    fn a_driver_has_one_owner() {
        assert!(with("everthread-store", "redis", None).is_empty());
        assert!(with("everthread", "redis", None)[0].contains("only everthread-store"));
    }

    #[test]
    fn no_crate_is_missing_or_unknown() {
        let findings = check(&json!({"packages": [{"name": "stray", "dependencies": []}]}));
        assert_eq!(findings.len(), ARROWS.len() + 1);
    }
}
