//! What a node counts. The table in docs/OPERATIONS.md has the same names.

use prometheus::{
    Encoder as _, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder,
};

/// Counters and gauges of a node.
#[derive(Clone)]
pub struct Metrics {
    registry: Registry,
    /// Open connections by kind: client, worker, sse.
    pub connections: IntGaugeVec,
    /// Attachments of clients and of SSE followers.
    pub attachments: IntGauge,
    /// Blocks of workers by result: ok, duplicate, or an error code.
    pub appends: IntCounterVec,
    /// Of them, those with `ok`: counted for every token.
    pub appended: IntCounter,
    /// `entries` frames put on sockets.
    pub frames_sent: IntCounter,
    /// Pages of the log read for attachments that were off their tail's ring.
    pub replays: IntCounter,
    /// Times that an attachment fell behind and was served folded.
    pub lags: IntCounter,
    /// Times that what a client held was not of the log.
    pub resets: IntCounter,
    /// Attachments and SSE followers that were told that their session is gone.
    pub gone: IntCounter,
    /// Sessions that were deleted through this node.
    pub deletions: IntCounter,
    /// Controls that a worker has confirmed to have got.
    pub controls_delivered: IntCounter,
    /// Acknowledgements of devices by what became of them: ok, foreign, dropped, or an error code.
    pub acks: IntCounterVec,
    /// Members that are present through this node.
    pub presence_members: IntGauge,
    /// `presence` frames put on sockets.
    pub presence_frames: IntCounter,
    /// Times that who is present was read from the store.
    pub presence_reads: IntCounter,
    /// Frames of the feed put on sockets.
    pub feed_frames: IntCounter,
    /// Sessions read for the feed.
    pub feed_reads: IntCounter,
    /// Folds of logs in the store by result: done, raced, stale, dropped, error.
    pub folds: IntCounterVec,
    /// Entries that were folded in the store.
    pub folded_entries: IntCounter,
    /// What retention did to sessions: trimmed, deleted, raced.
    pub retained: IntCounterVec,
    /// Bytes of blocks that were dropped.
    pub dropped_bytes: IntCounter,
    /// Requests refused or failed, by error code.
    pub errors: IntCounterVec,
}

impl Metrics {
    /// A set of its own, all zero.
    #[expect(clippy::unwrap_used, reason = "names and labels are literals; a test makes every one")]
    pub fn new() -> Metrics {
        let registry = Registry::new();
        let counter = |name, help| {
            let made = IntCounter::new(name, help).unwrap();
            registry.register(Box::new(made.clone())).unwrap();
            made
        };
        let counters = |name, help, label| {
            let made = IntCounterVec::new(Opts::new(name, help), &[label]).unwrap();
            registry.register(Box::new(made.clone())).unwrap();
            made
        };
        let connections =
            IntGaugeVec::new(Opts::new("everthread_connections", "Open connections."), &["kind"]).unwrap();
        registry.register(Box::new(connections.clone())).unwrap();
        let attachments =
            IntGauge::new("everthread_attachments", "Sessions followed, over all connections.").unwrap();
        registry.register(Box::new(attachments.clone())).unwrap();
        let presence_members =
            IntGauge::new("everthread_presence_members", "Members present through this node.").unwrap();
        registry.register(Box::new(presence_members.clone())).unwrap();
        let appends = counters("everthread_appends_total", "Blocks of workers by result.", "result");
        Metrics {
            appended: appends.with_label_values(&["ok"]),
            presence_members,
            presence_frames: counter("everthread_presence_frames_total", "Presence frames put on sockets."),
            presence_reads: counter(
                "everthread_presence_reads_total",
                "Times that who is present was read from the store.",
            ),
            feed_frames: counter("everthread_feed_frames_total", "Frames of the feed put on sockets."),
            feed_reads: counter("everthread_feed_reads_total", "Sessions read for the feed."),
            connections,
            attachments,
            appends,
            frames_sent: counter("everthread_frames_sent_total", "Entries frames put on sockets."),
            replays: counter(
                "everthread_replays_total",
                "Pages of the log read for attachments off the ring.",
            ),
            lags: counter("everthread_lags_total", "Attachments that fell behind and were served folded."),
            resets: counter("everthread_resets_total", "Clients whose state was not of the log."),
            gone: counter("everthread_gone_total", "Followers whose session was deleted."),
            deletions: counter("everthread_deletions_total", "Sessions deleted through this node."),
            controls_delivered: counter(
                "everthread_controls_delivered_total",
                "Controls that a worker has confirmed to have got.",
            ),
            acks: counters("everthread_acks_total", "Acknowledgements of devices by result.", "result"),
            folds: counters("everthread_folds_total", "Folds of logs in the store by result.", "result"),
            folded_entries: counter(
                "everthread_folded_entries_total",
                "Entries that were folded in the store.",
            ),
            retained: counters("everthread_retention_total", "What retention did to sessions.", "what"),
            dropped_bytes: counter(
                "everthread_dropped_bytes_total",
                "Bytes of old blocks that were dropped.",
            ),
            errors: counters("everthread_errors_total", "Requests refused or failed by error code.", "code"),
            registry,
        }
    }

    /// Shows what somebody else counts, too.
    pub fn also(&self, collectors: Vec<Box<dyn prometheus::core::Collector>>) {
        for collector in collectors {
            if let Err(error) = self.registry.register(collector) {
                tracing::error!(%error, "something that is counted is not shown");
            }
        }
    }

    /// All of it in Prometheus' text format.
    pub fn render(&self) -> String {
        let mut out = Vec::new();
        if let Err(error) = TextEncoder::new().encode(&self.registry.gather(), &mut out) {
            tracing::error!(%error, "metrics cannot be written");
        }
        String::from_utf8(out).unwrap_or_default()
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_can_be_made_and_rendered() {
        let metrics = Metrics::new();
        metrics.frames_sent.inc();
        assert!(metrics.render().contains("everthread_frames_sent_total 1"));
    }
}
