//! The report as a page: tables, and plots of the timeline. Made from the JSON form, so that reports of any generator can
//! stand on one page.

use crate::svg::{Axis, Line, chart, escape};
use anyhow::Context as _;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

const STYLE: &str = "\
:root{color-scheme:light dark;--line:#8884;--soft:#8882}\
body{font:15px/1.5 system-ui,sans-serif;max-width:1080px;margin:2rem auto;padding:0 1rem}\
h1{font-size:1.4rem}h2{font-size:1.15rem;margin-top:2.5rem;border-top:1px solid var(--line);padding-top:1rem}\
table{border-collapse:collapse;margin:.5rem 0}td,th{padding:.15rem .7rem .15rem 0;text-align:left;font-variant-numeric:tabular-nums;vertical-align:top}\
th{font-weight:600}td.n{text-align:right}.ok{color:#059669}.bad{color:#dc2626;font-weight:600}\
.plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(300px,1fr));gap:1rem;align-items:start}.plots.wide{grid-template-columns:repeat(auto-fit,minmax(460px,1fr))}figure{margin:0}figcaption{font-weight:600}\
svg{width:100%;height:auto}svg text{font-size:11px;fill:currentColor;opacity:.75}\
.grid{stroke:var(--line);stroke-width:1}polyline{fill:none;stroke-width:1.6;stroke-linejoin:round}\
.key{margin-right:1rem;font-size:.85rem;white-space:nowrap}.key i{display:inline-block;width:.8em;height:.8em;border-radius:2px;margin-right:.35em}figure p{margin:.1rem 0}";

const QUANTILES: [&str; 7] = ["count", "mean_ms", "p50_ms", "p90_ms", "p99_ms", "p999_ms", "max_ms"];

/// A page of one or several reports.
pub fn page(reports: &[crate::report::Report]) -> String {
    let values: Vec<(Value, Percentiles)> = reports
        .iter()
        .map(|report| (serde_json::to_value(report).unwrap_or_default(), report.percentiles.clone()))
        .collect();
    whole(&values)
}

/// Distributions by kind. The JSON form has only the usual quantiles.
type Percentiles = BTreeMap<&'static str, Vec<(f64, f64)>>;

/// A page of reports that were written as JSON.
pub fn of_files(reports: &[PathBuf], html: Option<&Path>) -> anyhow::Result<()> {
    let html = html.context("--html is needed: where should the page go?")?;
    let read = |path: &PathBuf| -> anyhow::Result<(Value, Percentiles)> {
        let text =
            std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        let value = serde_json::from_str(&text);
        Ok((value.with_context(|| format!("{} is no report", path.display()))?, Percentiles::new()))
    };
    let values: Vec<_> = reports.iter().map(read).collect::<anyhow::Result<_>>()?;
    std::fs::write(html, whole(&values)).with_context(|| format!("cannot write {}", html.display()))
}

fn whole(reports: &[(Value, Percentiles)]) -> String {
    let mut out = format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
         <title>Load test</title><style>{STYLE}</style><h1>Load test</h1>"
    );
    if reports.len() > 1 {
        out.push_str(&overview(reports));
    }
    for (report, percentiles) in reports {
        section(&mut out, report, percentiles);
    }
    out.push_str("</html>\n");
    out
}

fn text(value: &Value) -> String {
    match value {
        Value::String(text) => escape(text),
        Value::Number(number) if number.is_f64() => short(number.as_f64().unwrap_or_default()),
        other => escape(&other.to_string()),
    }
}

fn short(number: f64) -> String {
    match number.abs() {
        n if n >= 1000.0 => format!("{number:.0}"),
        n if n >= 10.0 => format!("{number:.1}"),
        _ => format!("{number:.3}"),
    }
}

fn name(report: &Value) -> String {
    let of = |field: &str| report[field].as_str().unwrap_or_default().to_owned();
    let (scenario, server, label) = (of("scenario"), of("server"), of("label"));
    let label = if label.is_empty() { label } else { format!(" · {label}") };
    escape(&format!("{scenario} · {server}{label}"))
}

/// One line per report.
fn overview(reports: &[(Value, Percentiles)]) -> String {
    let mut out = String::from(
        "<table><tr><th>run<th>verified<th>deliveries/s<th>deliveries per CPU-second<th>tokens per CPU-second of the store<th>delivery p50 / p99 ms<th>ack p50 / p99 ms</tr>",
    );
    for (report, _) in reports {
        let rate = |field: &str| report["rates"][field].as_f64().map_or_else(String::new, short);
        let latency = |kind: &str| {
            let of = |field: &str| report["latency_ms"][kind][field].as_f64();
            of("p50_ms")
                .zip(of("p99_ms"))
                .map_or_else(String::new, |(p50, p99)| format!("{} / {}", short(p50), short(p99)))
        };
        let ok = if report["verified"]["ok"] == true { "ok" } else { "bad" };
        out.push_str(&format!("<tr><td>{}<td class=\"{ok}\">{ok}<td class=n>{}<td class=n>{}<td class=n>{}<td class=n>{}<td class=n>{}</tr>",
            name(report),
            rate("deliveries_per_s"),
            rate("deliveries_per_cpu_s"),
            rate("tokens_per_cpu_s_store"),
            latency("delivery"),
            latency("ack"),
        ));
    }
    out + "</table>"
}

fn section(out: &mut String, report: &Value, percentiles: &Percentiles) {
    out.push_str(&format!("<h2>{}</h2>", name(report)));
    let verified = &report["verified"];
    if verified["ok"] == true {
        out.push_str(&format!("<p class=ok>Verified: {}.</p>", text(&verified["what"])));
    } else {
        out.push_str("<p class=bad>The run has failed.</p><ul>");
        for problem in verified["problems"].as_array().into_iter().flatten() {
            out.push_str(&format!("<li>{}", text(problem)));
        }
        out.push_str("</ul>");
    }
    for sentence in report["cannot"].as_array().into_iter().flatten() {
        out.push_str(&format!("<p>Cannot: {}</p>", text(sentence)));
    }
    for field in ["latency_ms", "processes"] {
        out.push_str(&table_of_objects(field, &report[field]));
    }
    out.push_str("<div class=plots>");
    for field in ["rates", "figures", "counts", "params"] {
        let all = report[field].as_object();
        if let Some(all) = all.filter(|all| !all.is_empty()) {
            out.push_str(&format!("<table><tr><th colspan=2>{field}</tr>"));
            for (name, value) in all.iter().filter(|(_, value)| !value.is_null()) {
                out.push_str(&format!("<tr><td>{}<td class=n>{}</tr>", escape(name), text(value)));
            }
            out.push_str("</table>");
        }
    }
    let redis = &report["redis"];
    let per_batch = redis["commands_per_batch"].as_object();
    if let Some(redis) = per_batch.or_else(|| redis["commands"].as_object()) {
        let what = if per_batch.is_some() { "commands per batch" } else { "commands" };
        out.push_str(&format!("<table><tr><th colspan=2>Redis: {what}</tr>"));
        for (name, value) in redis {
            out.push_str(&format!("<tr><td>{}<td class=n>{}</tr>", escape(name), text(value)));
        }
        out.push_str("</table>");
    }
    out.push_str("</div><div class=\"plots wide\">");
    plots(out, report, percentiles);
    out.push_str("</div>");
}

fn table_of_objects(title: &str, value: &Value) -> String {
    let rows: Vec<_> = value.as_object().into_iter().flatten().collect();
    let Some(columns) = rows.first().and_then(|(_, row)| row.as_object()) else { return String::new() };
    // As people read them, not by the alphabet; others after them.
    let known = QUANTILES.iter().copied().filter(|name| columns.contains_key(*name));
    let others = columns.keys().map(String::as_str).filter(|name| !QUANTILES.contains(name));
    let columns: Vec<&str> = known.chain(others).collect();
    let mut out = format!("<table><tr><th>{title}");
    columns.iter().for_each(|column| out.push_str(&format!("<th>{}", escape(column))));
    out.push_str("</tr>");
    for (name, row) in rows {
        out.push_str(&format!("<tr><td>{}", escape(name)));
        columns.iter().for_each(|column| out.push_str(&format!("<td class=n>{}", text(&row[*column]))));
        out.push_str("</tr>");
    }
    out + "</table>"
}

fn plots(out: &mut String, report: &Value, percentiles: &Percentiles) {
    let seconds: Vec<&Value> = report["timeline"].as_array().into_iter().flatten().collect();
    let line = |name: &str, of: &dyn Fn(&Value) -> Option<f64>| Line {
        name: name.to_owned(),
        points: seconds.iter().filter_map(|second| Some((second["at_s"].as_f64()?, of(second)?))).collect(),
    };
    let field = |name: &'static str| move |second: &Value| second[name].as_f64();
    let latency =
        [line("p50", &field("p50_ms")), line("p99", &field("p99_ms")), line("max", &field("max_ms"))];
    out.push_str(&chart("Latency of deliveries over time", "ms", Axis::Seconds, &latency));
    let kinds: Vec<Line> = percentiles
        .iter()
        .map(|(name, points)| Line { name: (*name).to_owned(), points: points.clone() })
        .collect();
    out.push_str(&chart("Latency by percentile", "ms", Axis::Percentiles, &kinds));
    let rates = [line("sent", &field("tokens_per_s")), line("delivered", &field("deliveries_per_s"))];
    out.push_str(&chart("Tokens", "per second", Axis::Seconds, &rates));
    for (title, unit, of) in [("CPU", "cores", "cpu_cores"), ("Memory", "MiB resident", "resident_mib")] {
        let names = seconds.first().and_then(|second| second[of].as_object());
        let lines: Vec<Line> = names
            .into_iter()
            .flat_map(|names| names.keys())
            .map(|name| line(name, &|second: &Value| second[of][name].as_f64()))
            .collect();
        out.push_str(&chart(title, unit, Axis::Seconds, &lines));
    }
    let commands = |second: &Value| second["redis_commands_per_s"].as_f64();
    out.push_str(&chart("Redis", "commands per second", Axis::Seconds, &[line("commands", &commands)]));
    let per_token = |second: &Value| {
        let tokens = second["tokens_per_s"].as_f64().filter(|tokens| *tokens > 0.0)?;
        Some(second["redis_commands_per_s"].as_f64()? / tokens)
    };
    let line = line("commands per token", &per_token);
    out.push_str(&chart("Redis", "commands per token, those within scripts too", Axis::Seconds, &[line]));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_tells_what_failed_and_draws_what_there_is() {
        let report = serde_json::json!({
            "scenario": "tokens", "server": "<x>", "label": "", "verified": {"ok": false, "problems": ["lost: 3"]},
            "latency_ms": {"delivery": {"p50_ms": 1.5, "p99_ms": 3.0}},
            "timeline": [{"at_s": 1.0, "p50_ms": 1.0, "cpu_cores": {"node": 0.5}}, {"at_s": 2.0, "p50_ms": 2.0, "cpu_cores": {"node": 0.6}}]
        });
        let page = whole(&[(report, Percentiles::new())]);
        assert!(page.contains("&lt;x&gt;") && page.contains("lost: 3") && page.contains("has failed"));
        assert!(page.contains("Latency of deliveries over time") && page.contains("CPU"));
        assert!(!page.contains("Redis"), "nobody looked at it");
        assert!(!page.contains("http"), "it needs nothing else");
    }
}
