//! What a node counts. The table in docs/OPERATIONS.md has the same names, types and labels.
//!
//! Whatever labels are known are there from the start, at 0: a rate sees the first count. On the way of a token there are
//! atomic additions and nothing else; of its times only a sample is taken.

mod attachments;
mod repairs;

pub use attachments::{Attachments, Counted, Mode};
pub use repairs::{Repaired, Repairs};

use everthread_protocol::Code;
use everthread_protocol::entry::ControlOutcome;
use everthread_protocol::error::close;
use everthread_protocol::frame::{ResetReason, Stage};
use prometheus::core::Collector;
use prometheus::{
    Encoder as _, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec,
    Opts, Registry, TextEncoder,
};
use std::time::Instant;

/// Of so many tokens the time of one is taken: two looks at a clock and a histogram would cost each of them as much as the
/// rest of what is counted.
const SAMPLED_BITS: u32 = 4;
/// Times within a data centre, in seconds.
const FAST: [f64; 13] = [0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.3, 1.0, 5.0];
/// Times in which people wait, in seconds.
const SLOW: [f64; 11] = [0.005, 0.02, 0.05, 0.1, 0.3, 1.0, 3.0, 5.0, 10.0, 30.0, 120.0];

/// Whether the time of this one is taken: of any stretch of numbers about one in sixteen, whatever the steps between them.
pub(crate) fn is_sampled(number: u64) -> bool {
    number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - SAMPLED_BITS) == 0
}

/// Counters and gauges of a node.
#[derive(Clone)]
pub struct Metrics {
    registry: Registry,
    /// Open connections by kind: client, worker, sse.
    pub connections: IntGaugeVec,
    /// Attachments of clients and of SSE followers, by mode.
    pub attachments: Attachments,
    /// Blocks of workers by result: ok, duplicate, or an error code.
    pub appends: IntCounterVec,
    /// Of them, those with `ok`: counted for every token.
    pub appended: IntCounter,
    /// From the read of a block of a worker to its ack, of a sample.
    append_seconds: Histogram,
    /// From the feed's arrival to the frame in the outbox, of a sample.
    delivery_seconds: Histogram,
    /// Connections that the node closed, by kind and reason.
    closes: IntCounterVec,
    /// What became of controls, by stage and outcome.
    controls: HistogramVec,
    /// Tails that were compared with the log, by what that came to.
    pub repairs: Repairs,
    /// `entries` frames put on sockets.
    pub frames_sent: IntCounter,
    /// What attachments that were not live were served from, by source and result.
    replays: IntCounterVec,
    /// Times that an attachment fell behind and was served folded.
    pub lags: IntCounter,
    /// Times that what a client held was replaced, by reason.
    pub resets: IntCounterVec,
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
    /// Spans of traces by what became of them: exported, dropped, failed.
    pub spans: IntCounterVec,
}

/// Where an attachment stands that has not everything, as a label.
#[derive(Debug, Clone, Copy)]
pub enum Source {
    /// The ring of the tail.
    Ring,
    /// A page of the log.
    Log,
    /// A snapshot of the whole session.
    Snapshot,
}

impl Source {
    const ALL: [Source; 3] = [Source::Ring, Source::Log, Source::Snapshot];

    fn label(self) -> &'static str {
        match self {
            Source::Ring => "ring",
            Source::Log => "log",
            Source::Snapshot => "snapshot",
        }
    }
}

/// What a replay came to, as a label.
#[derive(Debug, Clone, Copy)]
pub enum Replayed {
    /// There was something to send.
    Ok,
    /// There was nothing: the log's end.
    Empty,
    /// The cursor is not of this log.
    Reset,
    /// The store did not answer.
    Error,
}

impl Replayed {
    const ALL: [Replayed; 4] = [Replayed::Ok, Replayed::Empty, Replayed::Reset, Replayed::Error];

    fn label(self) -> &'static str {
        match self {
            Replayed::Ok => "ok",
            Replayed::Empty => "empty",
            Replayed::Reset => "reset",
            Replayed::Error => "error",
        }
    }
}

/// Makes metrics, and lists them.
struct Maker(Registry);

#[expect(clippy::unwrap_used, reason = "names and labels are literals; a test makes every one")]
impl Maker {
    fn list<T: Collector + Clone + 'static>(&self, made: T) -> T {
        self.0.register(Box::new(made.clone())).unwrap();
        made
    }

    fn counter(&self, name: &str, help: &str) -> IntCounter {
        self.list(IntCounter::new(name, help).unwrap())
    }

    /// One for each of the values that are known; all of them are shown from the start.
    fn counters<'a>(
        &self,
        name: &str,
        help: &str,
        label: &str,
        values: impl IntoIterator<Item = &'a str>,
    ) -> IntCounterVec {
        let made = self.list(IntCounterVec::new(Opts::new(name, help), &[label]).unwrap());
        values.into_iter().for_each(|value| drop(made.with_label_values(&[value])));
        made
    }

    fn gauge(&self, name: &str, help: &str) -> IntGauge {
        self.list(IntGauge::new(name, help).unwrap())
    }

    fn gauges(&self, name: &str, help: &str, label: &str, values: &[&str]) -> IntGaugeVec {
        let made = self.list(IntGaugeVec::new(Opts::new(name, help), &[label]).unwrap());
        values.iter().for_each(|value| drop(made.with_label_values(&[value])));
        made
    }

    fn histogram(&self, name: &str, help: &str, buckets: &[f64]) -> Histogram {
        self.list(Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets.to_vec())).unwrap())
    }

    fn controls(&self) -> HistogramVec {
        let help = "From asking for a control to a stage of it, as its asker was told.";
        let options = HistogramOpts::new("everthread_control_seconds", help).buckets(SLOW.to_vec());
        let made = self.list(HistogramVec::new(options, &["stage", "outcome"]).unwrap());
        for (stage, outcomes) in CONTROL_STAGES {
            outcomes.iter().for_each(|outcome| drop(made.with_label_values(&[stage, outcome])));
        }
        made
    }

    fn replays(&self) -> IntCounterVec {
        let help = "What attachments that were not live were served from.";
        let options = Opts::new("everthread_replays_total", help);
        let made = self.list(IntCounterVec::new(options, &["source", "result"]).unwrap());
        for source in Source::ALL {
            Replayed::ALL
                .iter()
                .for_each(|result| drop(made.with_label_values(&[source.label(), result.label()])));
        }
        made
    }

    fn folds(&self) -> IntCounterVec {
        self.counters(
            "everthread_folds_total",
            "Folds of logs in the store by result.",
            "result",
            ["done", "raced", "stale", "dropped", "error"],
        )
    }

    fn retained(&self) -> IntCounterVec {
        self.counters(
            "everthread_retention_total",
            "What retention did to sessions.",
            "what",
            ["trimmed", "deleted", "raced"],
        )
    }

    fn spans(&self) -> IntCounterVec {
        self.counters(
            "everthread_spans_total",
            "Spans of traces by what became of them.",
            "result",
            ["exported", "dropped", "failed"],
        )
    }

    fn closes(&self) -> IntCounterVec {
        let options = Opts::new("everthread_closes_total", "Connections that the node closed.");
        let made = self.list(IntCounterVec::new(options, &["kind", "reason"]).unwrap());
        for kind in ["client", "worker"] {
            CLOSE_REASONS.iter().for_each(|(_, reason)| drop(made.with_label_values(&[kind, reason])));
        }
        made
    }
}

/// Stages of a control with their outcomes.
const CONTROL_STAGES: [(&str, &[&str]); 3] =
    [("accepted", &["ok", "error"]), ("delivered", &["ok"]), ("settled", &["applied", "refused", "expired"])];

/// Why the node closes a connection.
const CLOSE_REASONS: [(u16, &str); 7] = [
    (close::PROTOCOL, "protocol"),
    (close::TOKEN, "token"),
    (close::NOT_ALLOWED, "not_allowed"),
    (close::TOO_LARGE, "too_large"),
    (close::INTERNAL, "internal"),
    (close::DRAINING, "draining"),
    (close::STALLED, "stalled"),
];

fn codes() -> impl Iterator<Item = &'static str> {
    Code::ALL.iter().map(|code| code.as_str())
}

impl Metrics {
    /// A set of its own, all zero.
    pub fn new() -> Metrics {
        let make = Maker(Registry::new());
        let results = ["ok", "duplicate"].into_iter().chain(codes());
        let appends =
            make.counters("everthread_appends_total", "Blocks of workers by result.", "result", results);
        let acks = ["ok", "foreign", "dropped"].into_iter().chain(codes());
        Metrics {
            appended: appends.with_label_values(&["ok"]),
            presence_members: make.gauge("everthread_presence_members", "Members present through this node."),
            presence_frames: make
                .counter("everthread_presence_frames_total", "Presence frames put on sockets."),
            presence_reads: make.counter(
                "everthread_presence_reads_total",
                "Times that who is present was read from the store.",
            ),
            feed_frames: make.counter("everthread_feed_frames_total", "Frames of the feed put on sockets."),
            feed_reads: make.counter("everthread_feed_reads_total", "Sessions read for the feed."),
            connections: make.gauges(
                "everthread_connections",
                "Open connections.",
                "kind",
                &["client", "worker", "sse"],
            ),
            attachments: Attachments::new(&make.gauges(
                "everthread_attachments",
                "Sessions followed, over all connections.",
                "mode",
                &Mode::ALL.map(Mode::label),
            )),
            appends,
            append_seconds: make.histogram(
                "everthread_append_seconds",
                "From the read of a worker's block to its ack in the outbox, of one block in sixteen.",
                &FAST,
            ),
            delivery_seconds: make.histogram(
                "everthread_delivery_seconds",
                "From a block's arrival from the store's feed at this node to its frame in a follower's outbox, of one \
                 turn in sixteen.",
                &FAST,
            ),
            frames_sent: make.counter("everthread_frames_sent_total", "Entries frames put on sockets."),
            repairs: Repairs::new(make.counters(
                "everthread_tail_repairs_total",
                "Tails that were compared with the log, by what was found.",
                "result",
                Repairs::LABELS,
            )),
            replays: make.replays(),
            closes: make.closes(),
            controls: make.controls(),
            lags: make.counter("everthread_lags_total", "Attachments that fell behind and were served folded."),
            resets: make.counters(
                "everthread_resets_total",
                "Clients whose state was replaced, by reason.",
                "reason",
                [ResetReason::Epoch, ResetReason::Retention].map(reason_label),
            ),
            gone: make.counter("everthread_gone_total", "Followers whose session was deleted."),
            deletions: make.counter("everthread_deletions_total", "Sessions deleted through this node."),
            controls_delivered: make.counter(
                "everthread_controls_delivered_total",
                "Controls that a worker has confirmed to have got.",
            ),
            acks: make.counters(
                "everthread_acks_total",
                "Acknowledgements of devices by result.",
                "result",
                acks,
            ),
            folds: make.folds(),
            folded_entries: make
                .counter("everthread_folded_entries_total", "Entries that were folded in the store."),
            retained: make.retained(),
            dropped_bytes: make
                .counter("everthread_dropped_bytes_total", "Bytes of old blocks that were dropped."),
            errors: make.counters(
                "everthread_errors_total",
                "Requests refused or failed by error code.",
                "code",
                codes(),
            ),
            spans: make.spans(),
            registry: make.0,
        }
    }

    /// A worker's block that was read then has its ack.
    pub(crate) fn acked(&self, read: Option<Instant>) {
        if let Some(read) = read {
            self.append_seconds.observe(read.elapsed().as_secs_f64());
        }
    }

    /// What the ring had, since its beginning came from the feed then, is in a follower's outbox, up to the entry of this
    /// number.
    pub(crate) fn sent(&self, mode: &Counted, arrived: Option<Instant>, to: u64) {
        if *mode != Mode::Live {
            // It lay there for whoever comes.
            self.replayed(Source::Ring, Replayed::Ok);
        } else if is_sampled(to)
            && let Some(arrived) = arrived
        {
            self.delivery_seconds.observe(arrived.elapsed().as_secs_f64());
        }
    }

    /// An attachment that was not live was served, or tried to be.
    pub(crate) fn replayed(&self, source: Source, result: Replayed) {
        self.replays.with_label_values(&[source.label(), result.label()]).inc();
    }

    /// What a client holds is replaced.
    pub(crate) fn reset(&self, reason: ResetReason) {
        self.resets.with_label_values(&[reason_label(reason)]).inc();
    }

    /// The node closes a connection with this code.
    pub(crate) fn closed(&self, kind: &str, code: u16) {
        if let Some((_, reason)) = CLOSE_REASONS.iter().find(|(known, _)| *known == code) {
            self.closes.with_label_values(&[kind, reason]).inc();
        }
    }

    /// A control that was asked for then is at this stage, as its asker is told.
    pub(crate) fn control(&self, asked: Instant, stage: &Stage) {
        let (stage, outcome) = match stage {
            Stage::Accepted => ("accepted", "ok"),
            Stage::Delivered { .. } => ("delivered", "ok"),
            Stage::Settled { outcome, .. } => ("settled", outcome_label(*outcome)),
        };
        self.controls.with_label_values(&[stage, outcome]).observe(asked.elapsed().as_secs_f64());
    }

    /// A control that was asked for then is refused: nothing is in the log.
    pub(crate) fn control_failed(&self, asked: Instant) {
        self.controls.with_label_values(&["accepted", "error"]).observe(asked.elapsed().as_secs_f64());
    }

    /// Shows what somebody else counts, too.
    pub fn also(&self, collectors: Vec<Box<dyn Collector>>) {
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

fn reason_label(reason: ResetReason) -> &'static str {
    match reason {
        ResetReason::Epoch => "epoch",
        ResetReason::Retention => "retention",
    }
}

pub(crate) fn outcome_label(outcome: ControlOutcome) -> &'static str {
    match outcome {
        ControlOutcome::Applied => "applied",
        ControlOutcome::Refused => "refused",
        ControlOutcome::Expired => "expired",
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

    #[test]
    fn of_any_stretch_of_numbers_about_one_in_sixteen_is_sampled() {
        for step in [1, 2, 3, 7, 16, 64, 256, 1000, 4096] {
            let sampled = (1..=16_000).filter(|n| is_sampled(n * step)).count();
            assert!((800..=1200).contains(&sampled), "{sampled} with steps of {step}");
        }
    }

    #[test]
    fn what_is_known_is_shown_before_it_counts() {
        let text = Metrics::new().render();
        for line in [
            "everthread_errors_total{code=\"unavailable\"} 0",
            "everthread_closes_total{kind=\"client\",reason=\"stalled\"} 0",
            "everthread_replays_total{result=\"empty\",source=\"log\"} 0",
            "everthread_control_seconds_count{outcome=\"refused\",stage=\"settled\"} 0",
            "everthread_attachments{mode=\"live\"} 0",
        ] {
            assert!(text.contains(line), "{line} in {text}");
        }
    }

    #[test]
    fn stages_of_a_control_have_their_times() {
        let metrics = Metrics::new();
        let asked = Instant::now();
        metrics.control(asked, &Stage::Accepted);
        let outcome = ControlOutcome::Expired;
        metrics.control(asked, &Stage::Settled { outcome, reason: None, run: None, answered_by: None });
        metrics.control_failed(asked);
        let count = |stage, outcome| metrics.controls.with_label_values(&[stage, outcome]).get_sample_count();
        assert_eq!(
            (count("accepted", "ok"), count("settled", "expired"), count("accepted", "error")),
            (1, 1, 1)
        );
        assert_eq!(count("delivered", "ok"), 0);
    }
}
