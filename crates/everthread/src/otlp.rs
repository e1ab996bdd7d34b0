//! Exports traces by OTLP over HTTP, as JSON: a collector of OpenTelemetry and most backends take it.
//!
//! One task takes what has gathered and sends it. What cannot be sent is counted and forgotten: no trace is worth a byte of
//! memory that grows while nobody takes it.

use crate::config::without_password;
use anyhow::{Context as _, ensure};
use clap::Args;
use everthread_edge::metrics::Metrics;
use everthread_edge::trace::{Kind, Span, Tracer, Value as Attribute};
use reqwest::{Client, Url};
use serde_json::{Value, json};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Spans of one request.
const BATCH_MAX: usize = 512;
/// How long spans wait for others.
const GATHER: Duration = Duration::from_secs(1);
/// How long a request may take.
const REQUEST_MAX: Duration = Duration::from_secs(10);
/// The same for all that is left when the node stops.
const LAST_REQUESTS_MAX: Duration = Duration::from_secs(1);

/// The flags of traces.
#[derive(Debug, Clone, Args)]
pub struct OtlpArgs {
    /// Send traces to this collector, by OTLP over HTTP (JSON): http://host:4318.
    #[arg(long, env = "EVERTHREAD_OTLP", hide_env_values = true)]
    pub otlp: Option<String>,
    /// The part of all appends and controls that is traced, 0 to 1, of those that come without a trace of their own.
    #[arg(long, env = "EVERTHREAD_OTLP_RATIO", default_value_t = 0.01)]
    pub otlp_ratio: f64,
}

impl OtlpArgs {
    /// Where traces go, if they go anywhere; checked.
    pub fn target(&self) -> anyhow::Result<Option<Url>> {
        ensure!(
            (0.0..=1.0).contains(&self.otlp_ratio),
            "--otlp-ratio ({}) must be between 0 and 1",
            self.otlp_ratio
        );
        let Some(text) = self.otlp.as_deref().filter(|text| !text.is_empty()) else { return Ok(None) };
        let base = text.parse::<Url>().ok();
        ensure!(
            base.is_some_and(|base| matches!(base.scheme(), "http" | "https") && base.has_host()),
            "--otlp {}: must be http://host:port or https://…",
            without_password(text)
        );
        let url = format!("{}/v1/traces", text.trim_end_matches('/'));
        Ok(Some(url.parse().with_context(|| format!("--otlp {}", without_password(text)))?))
    }
}

/// Sends what is traced to where it is to go.
pub struct Exporter {
    client: Client,
    target: Url,
    resource: Value,
    spans: mpsc::Receiver<Span>,
    metrics: Metrics,
    /// The last request failed: said once.
    is_failing: bool,
}

impl Exporter {
    /// Makes both ends: what traces, and what exports that.
    pub fn new(target: Url, ratio: f64, node: &str, metrics: &Metrics) -> anyhow::Result<(Tracer, Exporter)> {
        // Somebody may have installed one already.
        drop(rustls::crypto::ring::default_provider().install_default());
        let client = Client::builder()
            .timeout(REQUEST_MAX)
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .context("--otlp")?;
        let resource = attributes(&[
            ("service.name", text("everthread")),
            ("service.version", text(env!("CARGO_PKG_VERSION"))),
            ("service.instance.id", text(node)),
        ]);
        let (tracer, spans) = Tracer::new(ratio, metrics);
        let metrics = metrics.clone();
        Ok((tracer, Exporter { client, target, resource, spans, metrics, is_failing: false }))
    }

    /// Exports until the node stops, and then what there is.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut batch = Vec::new();
        loop {
            tokio::select! {
                taken = self.spans.recv_many(&mut batch, BATCH_MAX) => if taken == 0 { return },
                () = stop.cancelled() => break,
            }
            if batch.len() < BATCH_MAX || self.is_failing {
                tokio::select! {
                    () = tokio::time::sleep(GATHER) => {}
                    () = stop.cancelled() => break,
                }
                self.top_up(&mut batch);
            }
            tokio::select! {
                () = self.send(&mut batch) => {}
                // It is sent again: who gets it twice knows it by its ids.
                () = stop.cancelled() => break,
            }
        }
        let last = tokio::time::timeout(LAST_REQUESTS_MAX, self.send_all(&mut batch)).await;
        if last.is_err() {
            self.count("failed", batch.len() + self.spans.len());
        }
    }

    async fn send_all(&mut self, batch: &mut Vec<Span>) {
        loop {
            self.top_up(batch);
            if batch.is_empty() {
                return;
            }
            self.send(batch).await;
        }
    }

    /// Takes what has gathered since.
    fn top_up(&mut self, batch: &mut Vec<Span>) {
        while batch.len() < BATCH_MAX
            && let Ok(span) = self.spans.try_recv()
        {
            batch.push(span);
        }
    }

    async fn send(&mut self, batch: &mut Vec<Span>) {
        let spans: Vec<Value> = batch.iter().map(encode).collect();
        let scope = json!({ "name": "everthread", "version": env!("CARGO_PKG_VERSION") });
        let resource = json!({ "attributes": self.resource });
        let body = json!({ "resourceSpans": [{
            "resource": resource, "scopeSpans": [{ "scope": scope, "spans": spans }],
        }] });
        let request = self.client.post(self.target.clone()).header("content-type", "application/json");
        let answer =
            request.body(body.to_string()).send().await.and_then(reqwest::Response::error_for_status);
        match answer {
            Ok(_) => {
                self.is_failing = false;
                self.count("exported", batch.len());
            }
            Err(error) => {
                if !std::mem::replace(&mut self.is_failing, true) {
                    let error = error.without_url();
                    tracing::warn!(%error, "traces cannot be exported; they are dropped until they can");
                }
                self.count("failed", batch.len());
            }
        }
        batch.clear();
    }

    fn count(&self, result: &str, spans: usize) {
        self.metrics.spans.with_label_values(&[result]).inc_by(spans as u64);
    }
}

fn text(value: &str) -> Attribute {
    Attribute::Text(value.to_owned())
}

/// Attributes as OTLP has them: whole numbers are texts, since they have 64 bits.
fn attributes(all: &[(&'static str, Attribute)]) -> Value {
    let one = |(key, value): &(&'static str, Attribute)| {
        let value = match value {
            Attribute::Text(text) => json!({ "stringValue": text }),
            Attribute::Number(number) => json!({ "intValue": number.to_string() }),
        };
        json!({ "key": key, "value": value })
    };
    all.iter().map(one).collect()
}

/// A span as OTLP has it in JSON: ids in hex, times as texts, kinds and states by number.
fn encode(span: &Span) -> Value {
    let kind = match span.kind {
        Kind::Server => 2,
        Kind::Client => 3,
        Kind::Consumer => 5,
    };
    let mut out = json!({
        "traceId": format!("{:032x}", span.context.trace),
        "spanId": format!("{:016x}", span.context.span),
        "name": span.name,
        "kind": kind,
        "startTimeUnixNano": span.began.to_string(),
        "endTimeUnixNano": span.ended.max(span.began).to_string(),
        "attributes": attributes(&span.attributes),
    });
    if let Some(parent) = span.parent {
        out["parentSpanId"] = json!(format!("{parent:016x}"));
    }
    if let Some(error) = span.error {
        out["status"] = json!({ "code": 2, "message": error });
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use everthread_protocol::TraceContext;

    fn args(otlp: &str, otlp_ratio: f64) -> anyhow::Result<Option<Url>> {
        OtlpArgs { otlp: Some(otlp.to_owned()), otlp_ratio }.target()
    }

    #[test]
    fn an_address_is_that_of_a_collector_or_an_error() {
        for good in ["http://h:4318", "http://h:4318/"] {
            assert_eq!(args(good, 0.5).unwrap().unwrap().as_str(), "http://h:4318/v1/traces");
        }
        assert_eq!(args("https://h/otlp", 1.0).unwrap().unwrap().as_str(), "https://h/otlp/v1/traces");
        assert!(args("", 0.0).unwrap().is_none());
        for (bad, ratio) in [
            ("h:4318", 0.5),
            ("grpc://h:4317", 0.5),
            ("http://h", 1.5),
            ("http://h", -0.1),
            ("http://h", f64::NAN),
        ] {
            assert!(args(bad, ratio).is_err(), "{bad} {ratio}");
        }
    }

    #[test]
    fn a_span_is_written_as_the_protocol_has_it() {
        let span = Span {
            context: TraceContext { trace: 0xab, span: 0xc, is_sampled: true },
            parent: Some(0xd),
            name: "append",
            kind: Kind::Server,
            began: 1_763_700_000_000_000_123,
            ended: 1_763_700_000_000_000_456,
            attributes: vec![("everthread.seq", Attribute::Number(7)), ("everthread.run", text("r"))],
            error: Some("fenced"),
        };
        let expected = json!({
            "traceId": "000000000000000000000000000000ab", "spanId": "000000000000000c", "parentSpanId": "000000000000000d",
            "name": "append", "kind": 2,
            "startTimeUnixNano": "1763700000000000123", "endTimeUnixNano": "1763700000000000456",
            "attributes": [
                { "key": "everthread.seq", "value": { "intValue": "7" } },
                { "key": "everthread.run", "value": { "stringValue": "r" } },
            ],
            "status": { "code": 2, "message": "fenced" },
        });
        assert_eq!(encode(&span), expected);
        let root = encode(&Span { parent: None, error: None, ..span });
        assert!(root.get("parentSpanId").is_none() && root.get("status").is_none());
    }
}
