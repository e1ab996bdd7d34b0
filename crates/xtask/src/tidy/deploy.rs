//! What `deploy/` names, the documents explain: metrics, settings, and the runbook that an alert leads to.

use super::Finding;
use super::markdown::{anchor, code, headings, rows};
use crate::tree::Tree;

const OPERATIONS: &str = "docs/OPERATIONS.md";
const ALERTS: &str = "deploy/prometheus/alerts.yml";
/// What Prometheus makes of a histogram.
const SERIES: [&str; 3] = ["_bucket", "_sum", "_count"];

/// Files of the operators, without the programs that check them.
fn files(tree: &Tree) -> impl Iterator<Item = (&str, &str)> {
    tree.texts().filter(|(path, _)| path.starts_with("deploy/") && !path.starts_with("deploy/tests/"))
}

/// Every metric and every setting named there stands in the tables.
pub fn names(tree: &Tree) -> Vec<Finding> {
    let Some(operations) = tree.text(OPERATIONS) else { return Vec::new() };
    let metrics: Vec<&str> =
        rows(operations, "Metrics").iter().filter_map(|(_, cells)| code(cells[0])).collect();
    let mut findings = Vec::new();
    for (path, text) in files(tree) {
        for (number, line) in text.lines().enumerate() {
            for name in words(line, "everthread_") {
                let is_series = |end: &&str| {
                    name.strip_suffix(*end).is_some_and(|histogram| metrics.contains(&histogram))
                };
                if !metrics.contains(&name) && !SERIES.iter().any(is_series) {
                    let text = format!("the metric `{name}` is not in the table of {OPERATIONS}");
                    findings.push(Finding::at(path, number + 1, text));
                }
            }
            for name in words(line, "EVERTHREAD_") {
                if !operations.contains(&format!("`{name}`")) {
                    let text = format!("the setting `{name}` is not explained in {OPERATIONS}");
                    findings.push(Finding::at(path, number + 1, text));
                }
            }
        }
    }
    findings
}

/// Every alert leads to a heading of the runbook.
pub fn runbooks(tree: &Tree) -> Vec<Finding> {
    let (Some(operations), Some(alerts)) = (tree.text(OPERATIONS), tree.text(ALERTS)) else {
        return Vec::new();
    };
    let anchors: Vec<String> = headings(operations).map(anchor).collect();
    let mut findings = Vec::new();
    // What is before the first one is about all of them.
    for rule in alerts.split("- alert: ").skip(1) {
        let name = rule.lines().next().unwrap_or_default();
        let book = rule.lines().find_map(|line| line.trim().strip_prefix("runbook: "));
        match book.and_then(|book| book.strip_prefix(OPERATIONS)?.strip_prefix('#')) {
            Some(fragment) if anchors.iter().any(|known| known == fragment) => {}
            Some(fragment) => {
                findings.push(Finding::error(ALERTS, format!("{name}: no heading for #{fragment}")));
            }
            None => findings.push(Finding::error(ALERTS, format!("{name}: no runbook in {OPERATIONS}"))),
        }
    }
    findings
}

/// Names in a line that begin like this.
fn words<'a>(line: &'a str, prefix: &'a str) -> impl Iterator<Item = &'a str> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    line.split(move |c| !is_name(c)).filter(move |word| word.len() > prefix.len() && word.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOCUMENT: &str = "## Metrics\n\n| Metric |\n| --- |\n| `everthread_lags_total` |\n| `everthread_restore_seconds` |\n\
        \n## Many clients lag\n\n`EVERTHREAD_TOKEN`\n";

    fn found(path: &str, text: &str) -> Vec<String> {
        let tree = Tree::of(&[(OPERATIONS, DOCUMENT), (path, text)]);
        names(&tree).into_iter().chain(runbooks(&tree)).map(|finding| finding.text).collect()
    }

    #[test]
    fn a_metric_or_setting_that_no_table_explains_is_named() {
        let good =
            "rate(everthread_lags_total[1m]) everthread_restore_seconds_bucket{le=\"1\"} EVERTHREAD_TOKEN: x";
        assert!(found("deploy/grafana/board.json", good).is_empty());
        for bad in ["everthread_lag_total", "everthread_lags_total_bucket_x", "EVERTHREAD_TOKENS=1"] {
            assert_eq!(found("deploy/grafana/board.json", bad).len(), 1, "{bad}");
            assert!(found("deploy/tests/check.py", bad).is_empty(), "{bad}");
        }
    }

    #[test]
    fn an_alert_without_a_runbook_is_named() {
        let alert = |book: &str| format!("# what - is\n  - alert: A\n    annotations:\n      {book}\n");
        assert!(found(ALERTS, &alert("runbook: docs/OPERATIONS.md#many-clients-lag")).is_empty());
        for bad in ["runbook: docs/OPERATIONS.md#nowhere", "runbook: elsewhere", "summary: x"] {
            assert_eq!(found(ALERTS, &alert(bad)).len(), 1, "{bad}");
        }
    }
}
