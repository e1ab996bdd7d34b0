//! What a node says of itself: the table of the operators and `/metrics` name the same, and what happens is counted.

use crate::follower::Streamer;
use crate::node::{Node, TOKEN};
use everthread_client::{Client, Event, From};
use everthread_protocol::Code;
use everthread_testkit::{RedisOptions, RedisServer};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

const OPERATIONS: &str = include_str!("../../../../docs/OPERATIONS.md");
/// Stands in the table for all error codes.
const ANY_CODE: &str = "an error code";

/// A metric: its type, and its labels with their values. No values: anything.
#[derive(Debug, Default, PartialEq, Eq)]
struct Metric {
    kind: String,
    labels: BTreeMap<String, BTreeSet<String>>,
}

/// What stands between the first two backticks, and what comes behind them.
fn code(text: &str) -> Option<(&str, &str)> {
    let (_, rest) = text.split_once('`')?;
    rest.split_once('`')
}

/// The table of metrics.
fn table() -> BTreeMap<String, Metric> {
    let section = OPERATIONS.split("\n## Metrics\n").nth(1).unwrap().split("\n## ").next().unwrap();
    let mut table = BTreeMap::new();
    for row in section.lines().filter(|line| line.starts_with("| `")) {
        let [_, name, kind, labels, means, ..] = row.split('|').map(str::trim).collect::<Vec<_>>()[..] else {
            panic!("{row}")
        };
        assert!(!means.is_empty(), "{row}");
        let mut metric = Metric { kind: kind.to_owned(), ..Metric::default() };
        for label in labels.split(';').filter(|label| !label.trim().is_empty()) {
            let (label, mut rest) = code(label).unwrap();
            let values = metric.labels.entry(label.to_owned()).or_default();
            if rest.contains(ANY_CODE) {
                values.extend(Code::ALL.iter().map(|code| code.as_str().to_owned()));
            }
            while let Some((value, behind)) = code(rest) {
                values.insert(value.to_owned());
                rest = behind;
            }
        }
        let name = code(name).unwrap().0.to_owned();
        assert!(table.insert(name, metric).is_none(), "twice: {row}");
    }
    table
}

/// The labels of a sample, in the text format.
fn labels(sample: &str) -> impl Iterator<Item = (&str, &str)> {
    let inside =
        sample.split_once('{').and_then(|(_, rest)| rest.rsplit_once('}')).map_or("", |(inside, _)| inside);
    inside.split("\",").filter_map(|pair| pair.trim_end_matches('"').split_once("=\""))
}

/// What a node says, and what is wrong with how it says it.
fn said(text: &str) -> BTreeMap<String, Metric> {
    let mut said: BTreeMap<String, Metric> = BTreeMap::new();
    let mut helped = BTreeSet::new();
    for line in text.lines() {
        if let Some((name, help)) = line.strip_prefix("# HELP ").and_then(|line| line.split_once(' ')) {
            assert!(help.ends_with('.'), "not a sentence: {line}");
            helped.insert(name);
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|line| line.split_once(' '))
        {
            assert!(helped.contains(name), "no help: {line}");
            said.insert(name.to_owned(), Metric { kind: kind.to_owned(), ..Metric::default() });
        } else {
            let sample = line.split(['{', ' ']).next().unwrap();
            let of_histogram = ["_bucket", "_sum", "_count"].iter().find_map(|end| sample.strip_suffix(end));
            let name = of_histogram.filter(|name| said.contains_key(*name)).unwrap_or(sample);
            let metric = said.get_mut(name).unwrap_or_else(|| panic!("no type: {line}"));
            for (label, value) in labels(line).filter(|(label, _)| *label != "le") {
                metric.labels.entry(label.to_owned()).or_default().insert(value.to_owned());
            }
        }
    }
    said
}

fn compare(table: &BTreeMap<String, Metric>, said: &BTreeMap<String, Metric>) -> Vec<String> {
    let mut wrong = Vec::new();
    let names: BTreeSet<&String> = table.keys().chain(said.keys()).collect();
    for name in names {
        let (Some(told), Some(is)) = (table.get(name), said.get(name)) else {
            wrong.push(format!(
                "{name} stands only {}",
                if said.contains_key(name) { "in /metrics" } else { "in the table" }
            ));
            continue;
        };
        if told.kind != is.kind {
            wrong.push(format!("{name} is a {} and not a {}", is.kind, told.kind));
        }
        let of = |metric: &Metric| metric.labels.keys().cloned().collect::<Vec<_>>();
        if of(told) != of(is) {
            wrong.push(format!("{name} has the labels {:?} and not {:?}", of(is), of(told)));
        }
        for (label, values) in told.labels.iter().filter(|(_, values)| !values.is_empty()) {
            if is.labels.get(label).is_some_and(|is| is != values) {
                wrong.push(format!("{name}: {label} is one of {:?} and not of {values:?}", is.labels[label]));
            }
        }
        let unit = if told.kind == "histogram" { "_seconds" } else { "_total" };
        if told.kind != "gauge" && !name.ends_with(unit) {
            wrong.push(format!("a {} has a name that ends in {unit}: {name}", told.kind));
        }
    }
    wrong
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_happens_is_counted_and_metrics_and_their_table_name_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let redis = RedisServer::start_with(RedisOptions { tcp: true, ..RedisOptions::default() }).await.unwrap();
    let node = Node::start(dir.path(), &["serve", "--redis", &redis.tcp_url()]).await;
    assert_eq!(compare(&table(), &said(&node.metrics().await)), [""; 0], "before anything has happened");

    let _worker = Streamer { tokens: 100_000, pause_ms: 1, each_alone: true }.serve(&node, 1);
    let run = node.ask("s", "streamer", "go").await;
    let client = Client::builder(&node.url, TOKEN).connect();
    let mut follow = client.follow("s".parse().unwrap(), From::Start).await.unwrap();
    let mut frames = 0;
    while frames < 400 {
        if let Event::Entries(_) = follow.next().await.unwrap() {
            frames += 1;
        }
    }
    for (name, label) in [
        ("everthread_append_seconds_count", ""),
        ("everthread_delivery_seconds_count", ""),
        ("everthread_appends_total", "\"ok\""),
        ("everthread_replays_total", "result=\"ok\""),
        ("everthread_redis_commands_total", "\"append\""),
        ("everthread_redis_commands_total", "\"probe\""),
        ("everthread_runtime_tasks", ""),
        ("everthread_runtime_workers", ""),
        ("everthread_runtime_busy_seconds_total", ""),
    ] {
        assert!(node.metric(name, label).await > 0.0, "{name} {label}: {}", node.metrics().await);
    }
    // A sample: far fewer than there were, and not none.
    let (appends, timed) = (
        node.metric("everthread_appends_total", "\"ok\"").await,
        node.metric("everthread_append_seconds_count", "").await,
    );
    assert!(timed < appends / 4.0, "{timed} of {appends}");
    assert_eq!(node.metric("everthread_attachments", "live").await, 1.0);

    // A feed that breaks: the tail is compared with the log.
    let repairs = node.metric("everthread_tail_repairs_total", "").await;
    let port = redis.tcp_address().rsplit_once(':').unwrap().1.to_owned();
    let killed =
        Command::new("redis-cli").args(["-p", &port, "client", "kill", "type", "pubsub"]).output().unwrap();
    assert!(killed.status.success(), "{killed:?}");
    let repaired = async |node: &Node| node.metric("everthread_tail_repairs_total", "").await > repairs;
    node.wait_until("repaired", repaired).await;

    let ask = json!({ "id": "c1", "kind": "cancel", "target": { "run": run } });
    assert_eq!(node.control("s", ask, 20_000).await["outcome"], "applied");
    for stage in ["accepted", "settled"] {
        assert_eq!(node.metric("everthread_control_seconds_count", stage).await, 1.0, "{stage}");
    }
    assert_eq!(compare(&table(), &said(&node.metrics().await)), [""; 0], "after all that");
}

#[test]
fn what_differs_is_named() {
    let table = || table();
    let text = |table: &BTreeMap<String, Metric>| {
        let mut text = String::new();
        for (name, metric) in table {
            text += &format!("# HELP {name} Help.\n# TYPE {name} {}\n", metric.kind);
            let end = if metric.kind == "histogram" { "_count" } else { "" };
            let values = metric.labels.values().map(|values| values.len().max(1)).max().unwrap_or(1);
            for n in 0..values {
                let pair = |(label, values): (&String, &BTreeSet<String>)| {
                    let value = values.iter().cycle().nth(n).map_or("x", String::as_str);
                    format!("{label}=\"{value}\"")
                };
                let pairs: Vec<_> = metric.labels.iter().map(pair).collect();
                text += &format!("{name}{end}{{{}}} 0\n", pairs.join(","));
            }
        }
        text
    };
    let good = text(&table());
    assert_eq!(compare(&table(), &said(&good)), [""; 0]);
    let without = |name: &str| {
        let mut table = table();
        table.remove(name).unwrap();
        table
    };
    let found = |told: &BTreeMap<String, Metric>, text: &str| compare(told, &said(text)).join("; ");
    let lags = "everthread_lags_total";
    assert_eq!(found(&without(lags), &good), format!("{lags} stands only in /metrics"));
    assert_eq!(found(&table(), &text(&without(lags))), format!("{lags} stands only in the table"));
    let changed = good.replace(&format!("{lags} counter"), &format!("{lags} gauge"));
    assert_eq!(found(&table(), &changed), format!("{lags} is a gauge and not a counter"));
    assert!(found(&table(), &good.replace("cause=", "why=")).contains("has the labels [\"why\"]"));
    assert!(found(&table(), &good.replace("\"lagging\"", "\"slow\"")).contains("mode is one of"));
}
