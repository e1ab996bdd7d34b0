//! Traces: from the append of a worker to the frames of its followers, one in so many.
//!
//! A block that is traced carries its trace through the store, so whichever node delivers it goes on with it. Spans are
//! made here and exported by whoever holds the other end of the queue. **Invariant:** nothing waits for a trace: a span for
//! which the queue has no room is counted and dropped.

use crate::Edge;
use crate::metrics::{Metrics, Mode, outcome_label};
use crate::tail::{Frames, Tail};
use everthread_protocol::frame::Stage;
use everthread_protocol::trace::{of_frame, stamped};
use everthread_protocol::{Fault, Seq, SessionKey, TraceContext};
use everthread_store::{Store, Written};
use prometheus::IntCounterVec;
use std::hash::{BuildHasher as _, Hasher as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::mpsc;

/// Spans that wait to be exported; those beyond are dropped.
const QUEUE_MAX: usize = 4096;

/// What a span is to the one before it, as OpenTelemetry counts kinds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Somebody asked for it.
    Server,
    /// It asks somebody else.
    Client,
    /// It came by the store, later and elsewhere.
    Consumer,
}

/// A value of a span.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// Text.
    Text(String),
    /// A number.
    Number(u64),
}

/// Something that took time.
#[derive(Debug, Clone)]
pub struct Span {
    /// Its trace, and itself.
    pub context: TraceContext,
    /// What led to it.
    pub parent: Option<u64>,
    /// What it is.
    pub name: &'static str,
    /// To its parent.
    pub kind: Kind,
    /// Nanoseconds since the Unix epoch.
    pub began: u64,
    /// Nanoseconds since the Unix epoch.
    pub ended: u64,
    /// What it was about.
    pub attributes: Vec<(&'static str, Value)>,
    /// Why it failed, if it did.
    pub error: Option<&'static str>,
}

/// Decides what is traced, and takes spans. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Tracer {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    /// Of all numbers, those below are traced.
    below: u64,
    /// Where the next number is drawn.
    drawn: AtomicU64,
    spans: mpsc::Sender<Span>,
    results: IntCounterVec,
}

impl Tracer {
    /// Traces this part of all appends that come without a trace of their own. What is traced comes out of the receiver.
    pub fn new(ratio: f64, metrics: &Metrics) -> (Tracer, mpsc::Receiver<Span>) {
        let (spans, exported) = mpsc::channel(QUEUE_MAX);
        #[expect(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a part of all numbers, more or less"
        )]
        let below = (ratio.clamp(0.0, 1.0) * u64::MAX as f64) as u64;
        // Of this process alone: ids of others do not meet its own.
        let drawn = AtomicU64::new(std::hash::RandomState::new().build_hasher().finish());
        let results = metrics.spans.clone();
        (Tracer { inner: Arc::new(Inner { below, drawn, spans, results }) }, exported)
    }

    /// A number that is like no other, and not 0.
    fn draw(&self) -> u64 {
        let mut number = self.inner.drawn.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
        number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (number ^ (number >> 31)).max(1)
    }

    /// A block was read. Whether it is traced is its worker's decision, if that has made one.
    pub(crate) fn begin(&self, asked: Option<&TraceContext>) -> Option<Box<Traced>> {
        let is_traced = asked.map_or_else(|| self.draw() <= self.inner.below, |asked| asked.is_sampled);
        is_traced.then(|| {
            let new = || u128::from(self.draw()) << 64 | u128::from(self.draw());
            let trace = asked.map_or_else(new, |asked| asked.trace);
            let context = TraceContext { trace, span: self.draw(), is_sampled: true };
            let (parent, read) = (asked.map(|asked| asked.span), Instant::now());
            Box::new(Traced { context, parent, read, sent: read, by: String::new() })
        })
    }

    fn export(&self, span: Span) {
        if self.inner.spans.try_send(span).is_err() {
            self.inner.results.with_label_values(&["dropped"]).inc();
        }
    }

    fn child_of(&self, parent: &TraceContext) -> TraceContext {
        TraceContext { span: self.draw(), ..*parent }
    }

    /// The store has answered a write of the block.
    fn stored(&self, traced: &Traced, key: &SessionKey, result: &Result<Written, Fault>) {
        self.export(Span {
            context: self.child_of(&traced.context),
            parent: Some(traced.context.span),
            name: "store write",
            kind: Kind::Client,
            began: nanos(traced.sent),
            ended: nanos(Instant::now()),
            attributes: vec![("everthread.session", text(&key.session))],
            error: result.as_ref().err().map(|fault| fault.code.as_str()),
        });
    }

    /// The block has its answer.
    pub(crate) fn acked(&self, traced: &Traced, about: About<'_>, result: Result<Seq, &Fault>) {
        let mut attributes = vec![
            ("everthread.session", text(&about.key.session)),
            ("everthread.run", Value::Text(about.run.to_owned())),
            ("everthread.agent", Value::Text(about.agent.to_owned())),
            ("everthread.batch", Value::Number(about.batch)),
        ];
        attributes.extend(result.ok().map(|to| ("everthread.seq", Value::Number(to.0))));
        self.export(Span {
            context: traced.context,
            parent: traced.parent,
            name: "append",
            kind: Kind::Server,
            began: nanos(traced.read),
            ended: nanos(Instant::now()),
            attributes,
            error: result.err().map(|fault| fault.code.as_str()),
        });
    }

    /// A control that was asked for here is at this stage: the last one is the span that all others belong to.
    fn control(&self, traced: &Traced, key: &SessionKey, control: &str, stage: &Stage) {
        let (context, parent, name, said) = match stage {
            Stage::Accepted => return,
            Stage::Delivered { worker } => {
                let (context, parent) = (self.child_of(&traced.context), Some(traced.context.span));
                (context, parent, "control delivered", ("everthread.worker", text(worker)))
            }
            Stage::Settled { outcome, .. } => (
                traced.context,
                None,
                "control",
                ("everthread.outcome", Value::Text(outcome_label(*outcome).into())),
            ),
        };
        let attributes = vec![
            ("everthread.session", text(&key.session)),
            ("everthread.control", Value::Text(control.to_owned())),
            said,
        ];
        let (began, ended) = (nanos(traced.read), nanos(Instant::now()));
        self.export(Span {
            context,
            parent,
            name,
            kind: Kind::Server,
            began,
            ended,
            attributes,
            error: None,
        });
    }

    fn delivered(&self, key: &SessionKey, frames: &Frames, arrived: Instant) {
        for context in frames.iter().filter_map(|suffix| of_frame(suffix)) {
            self.export(Span {
                context: self.child_of(&context),
                parent: Some(context.span),
                name: "deliver",
                kind: Kind::Consumer,
                began: nanos(arrived),
                ended: nanos(Instant::now()),
                attributes: vec![
                    ("everthread.session", text(&key.session)),
                    ("everthread.seq", Value::Number(frames.to.seq.0)),
                ],
                error: None,
            });
        }
    }
}

/// What an append is about.
pub(crate) struct About<'a> {
    pub key: &'a SessionKey,
    pub run: &'a str,
    pub agent: &'a str,
    pub batch: u64,
}

/// A block that is traced, on its way.
#[derive(Debug)]
pub(crate) struct Traced {
    context: TraceContext,
    /// The span of its worker that led to it.
    parent: Option<u64>,
    /// When it was read.
    read: Instant,
    /// When the store was given it.
    sent: Instant,
    /// Its author as the store is to keep it.
    pub by: String,
}

impl Traced {
    /// The store is given it now, by this author.
    pub fn send(&mut self, by: &str) {
        self.by = stamped(by, &self.context);
        self.sent = Instant::now();
    }
}

impl<S: Store> Edge<S> {
    /// Traces what goes on here from now on. Once.
    pub fn trace(&self, tracer: Tracer) {
        drop(self.tracer.set(tracer));
    }

    /// Frames from the ring are in the outbox of somebody who follows.
    pub(crate) fn trace_delivery(&self, tail: &Tail, mode: Mode, frames: &Frames) {
        let Some(tracer) = self.tracer.get() else { return };
        // Who comes later finds it there: that is no delivery.
        if let Some(arrived) = frames.arrived.filter(|_| mode == Mode::Live) {
            tracer.delivered(tail.key(), frames, arrived);
        }
    }

    /// Whether a control that was asked for just now is traced.
    pub(crate) fn trace_of_control(&self) -> Option<Box<Traced>> {
        self.tracer.get().and_then(|tracer| tracer.begin(None))
    }

    /// A control that is traced has come to a stage.
    pub(crate) fn trace_control(&self, traced: &Traced, key: &SessionKey, control: &str, stage: &Stage) {
        if let Some(tracer) = self.tracer.get() {
            tracer.control(traced, key, control, stage);
        }
    }

    /// A write of the store is done.
    pub(crate) fn trace_write(
        &self,
        traced: Option<&Traced>,
        key: &SessionKey,
        result: &Result<Written, Fault>,
    ) {
        if let Some((tracer, traced)) = self.tracer.get().zip(traced) {
            tracer.stored(traced, key, result);
        }
    }
}

fn text(value: &impl std::fmt::Display) -> Value {
    Value::Text(value.to_string())
}

/// A moment of this process on the clock of everybody, in nanoseconds since the Unix epoch.
fn nanos(at: Instant) -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.saturating_sub(at.elapsed()).as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ASKED: TraceContext = TraceContext { trace: 7, span: 8, is_sampled: true };

    #[test]
    fn a_part_is_traced_and_what_its_worker_says_goes_before_that() {
        let count = |ratio| {
            let (tracer, _spans) = Tracer::new(ratio, &Metrics::new());
            (0..10_000).filter(|_| tracer.begin(None).is_some()).count()
        };
        assert_eq!((count(0.0), count(1.0)), (0, 10_000));
        assert!((800..1200).contains(&count(0.1)), "{}", count(0.1));
        let (never, _spans) = Tracer::new(0.0, &Metrics::new());
        let traced = never.begin(Some(&ASKED)).unwrap();
        assert_eq!((traced.context.trace, traced.parent), (7, Some(8)));
        assert_ne!(traced.context.span, 8);
        let (always, _spans) = Tracer::new(1.0, &Metrics::new());
        assert!(always.begin(Some(&TraceContext { is_sampled: false, ..ASKED })).is_none());
    }

    #[test]
    fn spans_for_which_there_is_no_room_are_counted_and_dropped() {
        let metrics = Metrics::new();
        let (tracer, mut spans) = Tracer::new(1.0, &metrics);
        let key = SessionKey { tenant: "default".parse().unwrap(), session: "s".parse().unwrap() };
        let about = || About { key: &key, run: "r", agent: "a", batch: 1 };
        for _ in 0..QUEUE_MAX + 3 {
            let traced = tracer.begin(None).unwrap();
            tracer.acked(&traced, about(), Ok(Seq(5)));
        }
        assert_eq!(metrics.spans.with_label_values(&["dropped"]).get(), 3);
        let span = spans.try_recv().unwrap();
        assert_eq!((span.name, span.parent, span.error), ("append", None, None));
        assert!(span.attributes.contains(&("everthread.seq", Value::Number(5))));
        assert!(span.began <= span.ended);
    }

    #[test]
    fn ids_are_not_drawn_twice() {
        let (tracer, _spans) = Tracer::new(1.0, &Metrics::new());
        let drawn: std::collections::HashSet<u64> = (0..10_000).map(|_| tracer.draw()).collect();
        assert_eq!(drawn.len(), 10_000);
    }
}
