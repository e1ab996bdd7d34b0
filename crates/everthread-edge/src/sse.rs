//! `GET …/follow`: a session as server-sent events. The `id` of every event is the cursor after it, so a browser's own
//! reconnect with `Last-Event-ID` resumes where it was.

use crate::Edge;
use crate::departure::{Departures, Guest, Role};
use crate::http::{Answer, Named, enter, query, read_after, stream_response};
use crate::metrics::{Mode, Replayed, Source};
use crate::reader::fault_of;
use crate::tail::{Found, Tail, Wake, lost, since_of, start_of};
use axum::body::Body;
use axum::extract::{Request, State};
use bytes::Bytes;
use everthread_protocol::error::close;
use everthread_protocol::frame::ResetReason;
use everthread_protocol::{Cursor, Fault, Seq};
use everthread_session::view::View;
use everthread_store::{Error, Follower as _, Head, Page, Refusal, Store};
use futures_util::stream::{self, Stream};
use serde::Deserialize;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Bytes taken from the ring in one step.
const STEP_BYTES: usize = 64 * 1024;
/// A comment is sent after this much silence, so that proxies keep the connection.
pub(crate) const HEARTBEAT: Duration = Duration::from_secs(15);
/// Pause before a read that failed is tried again.
const PAUSE: Duration = Duration::from_millis(500);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FollowQuery {
    after: Option<String>,
}

/// The route.
pub(crate) async fn follow<S: Store>(
    State(edge): State<Edge<S>>,
    Named(session): Named,
    request: Request,
) -> Answer {
    let (_, key) = enter(&edge, request.headers(), &session)?;
    let asked: FollowQuery = query(&request)?;
    let last = request.headers().get("last-event-id").and_then(|v| v.to_str().ok()).map(str::to_owned);
    let after = read_after(last.as_deref().or(asked.after.as_deref()))?;
    let (tail, page) = edge.tails.open(&key).await.map_err(|e| fault_of(&key, &e))?;
    let (cursor, queue) = (start_of(&page), VecDeque::new());
    let (guest, mode) = (edge.departures.enter(), edge.metrics.attachments.joining());
    let mut events = Events { cursor, edge, tail, mode, is_over: false, queue, guest };
    match after {
        // What the ring still has is told, too, but whoever comes new or late begins where the log does.
        Some(cursor) if lost(&page, cursor) == Some(ResetReason::Retention) => {
            events.reset(ResetReason::Retention).await
        }
        Some(cursor) => {
            events.cursor = cursor;
            Ok(Step::Events)
        }
        None => events.begin(&page).await,
    }
    .map_err(|e| fault_of(&key, &e))?;
    Ok(stream_response(Body::from_stream(events.into_stream())))
}

/// One follower: a cursor, and the events of one step.
struct Events<S> {
    edge: Edge<S>,
    tail: Arc<Tail>,
    cursor: Cursor,
    /// `live` once it was told so.
    mode: crate::metrics::Counted,
    is_over: bool,
    queue: VecDeque<Bytes>,
    guest: Guest,
}

/// What a step came to.
enum Step {
    Events,
    Wait,
}

impl<S: Store> Events<S> {
    /// Ends with the session, and when the node drains: then the client comes back by itself, with `Last-Event-ID`.
    fn into_stream(self) -> impl Stream<Item = Result<Bytes, std::convert::Infallible>> + Send {
        let wake = Arc::new(Wake::default());
        let waiter = self.tail.wait(wake.clone(), 0);
        let gauge = Counted::new(self.edge.metrics.connections.with_label_values(&["sse"]));
        stream::unfold((self, wake, waiter, gauge), |(mut this, wake, waiter, gauge)| async move {
            loop {
                this.look_at_time();
                if let Some(event) = this.queue.pop_front() {
                    return Some((Ok(event), (this, wake, waiter, gauge)));
                }
                if this.is_over {
                    return None;
                }
                waiter.rearm();
                let step = match this.step().await {
                    Err(Error::Refused(Refusal::NoSession)) => {
                        // The tail finds the same, and wakes everybody.
                        this.tail.doubt();
                        Ok(Step::Wait)
                    }
                    step => step,
                };
                match step {
                    Ok(Step::Events) => {}
                    Ok(Step::Wait) => tokio::select! {
                        () = wake.woken() => wake.take(&mut Vec::new()),
                        () = tokio::time::sleep(HEARTBEAT) => this.queue.push_back(Bytes::from_static(b":\n\n")),
                        () = this.edge.departures.goes(&this.guest, Role::Client) => {}
                    },
                    Err(error) => {
                        let fault: Fault = fault_of(this.tail.key(), &error);
                        tracing::debug!(key = %this.tail.key(), %fault, "a follower waits for the store");
                        tokio::time::sleep(PAUSE).await;
                    }
                }
            }
        })
    }

    /// If the node stops and the time has come, the next event is the last, after which the client comes back.
    fn look_at_time(&mut self) {
        let goes_at = self.edge.departures.goes_at(&self.guest, Role::Client);
        if !self.is_over && goes_at.is_some_and(|at| at <= Instant::now()) {
            self.is_over = true;
            self.queue.clear();
            self.queue.push_back(bye_event(&self.edge.departures, &self.guest));
        }
    }

    async fn step(&mut self) -> Result<Step, Error> {
        match self.tail.after(self.cursor, STEP_BYTES) {
            Found::Frames(frames) => {
                let last = frames.len() - 1;
                for (index, suffix) in frames.iter().enumerate() {
                    // Only the last frame's cursor is known here; the others carry their own `to`.
                    let at = (index == last).then_some(frames.to);
                    self.queue.push_back(entries_event(at, suffix));
                }
                self.edge.metrics.sent(&self.mode, frames.arrived, frames.to.seq.0);
                self.edge.trace_delivery(&self.tail, self.mode.get(), &frames);
                self.cursor = frames.to;
                Ok(Step::Events)
            }
            Found::Nothing(head) => {
                self.cursor = head;
                if self.mode == Mode::Live {
                    return Ok(Step::Wait);
                }
                self.mode.set(Mode::Live);
                self.queue.push_back(event("live", Some(head), &format!("{{\"seq\":{}}}", head.seq)));
                Ok(Step::Events)
            }
            Found::Behind(_) | Found::Ahead => self.read_log().await,
            Found::Invalid => self.reset(ResetReason::Epoch).await,
            Found::Gone => {
                self.is_over = true;
                self.edge.metrics.gone.inc();
                self.queue.push_back(event("gone", None, r#"{"reason":"deleted"}"#));
                Ok(Step::Events)
            }
        }
    }

    async fn read_log(&mut self) -> Result<Step, Error> {
        if self.mode == Mode::Live {
            self.mode.set(Mode::Lagging);
        }
        let key = self.tail.key().clone();
        let read = self.edge.reader.folded_page(&key, self.cursor.seq).await;
        let page = read.inspect_err(|_| self.edge.metrics.replayed(Source::Log, Replayed::Error))?;
        if let Some(reason) = lost(&page, self.cursor) {
            self.edge.metrics.replayed(Source::Log, Replayed::Reset);
            return self.reset(reason).await;
        }
        let result = if page.records.is_empty() { Replayed::Empty } else { Replayed::Ok };
        self.edge.metrics.replayed(Source::Log, result);
        if page.records.is_empty() {
            // The log's end, and the feed has not brought it here yet. The repair wakes everybody.
            self.tail.doubt();
            return Ok(Step::Wait);
        }
        for record in &page.records {
            self.cursor = Cursor { epoch: record.epoch, seq: record.to };
            let suffix = record.frame_suffix(since_of(&page.epochs, record));
            self.queue.push_back(entries_event(Some(self.cursor), &suffix));
        }
        Ok(Step::Events)
    }

    /// From the start: with what stands for what was dropped, if anything was.
    async fn begin(&mut self, page: &Page) -> Result<Step, Error> {
        if page.head.floor > Seq(1) {
            let reason = ResetReason::Retention;
            let Some(base) = self.edge.reader.base(self.tail.key()).await? else {
                return self.reset(reason).await;
            };
            self.edge.metrics.reset(reason);
            let head = Head { floor: base.seq().next(), ..page.head };
            self.cursor = start_of(&Page { head, ..page.clone() });
            self.queue.push_back(reset_event(self.cursor, &base)?);
        }
        Ok(Step::Events)
    }

    async fn reset(&mut self, reason: ResetReason) -> Result<Step, Error> {
        self.edge.metrics.reset(reason);
        let key = self.tail.key().clone();
        let (view, _) = self.edge.reader.view(&key).await?;
        self.edge.metrics.replayed(Source::Snapshot, Replayed::Ok);
        self.cursor = Cursor { epoch: view.epoch(), seq: view.seq() };
        self.queue.push_back(reset_event(self.cursor, &view)?);
        Ok(Step::Events)
    }
}

fn reset_event(cursor: Cursor, view: &View) -> Result<Bytes, Error> {
    let view = serde_json::to_string(view).map_err(|e| Error::Corrupt(e.to_string()))?;
    Ok(event("reset", Some(cursor), &view))
}

/// An `entries` event from the suffix of a frame, which begins with a comma.
fn entries_event(cursor: Option<Cursor>, suffix: &[u8]) -> Bytes {
    let text = String::from_utf8_lossy(&suffix[1..]);
    event("entries", cursor, &format!("{{{text}"))
}

/// JSON has no raw line breaks, so one `data` line always holds it.
pub(crate) fn event(name: &str, cursor: Option<Cursor>, data: &str) -> Bytes {
    let data = data.replace(['\n', '\r'], " ");
    match cursor {
        Some(cursor) => Bytes::from(format!("id: {cursor}\nevent: {name}\ndata: {data}\n\n")),
        None => Bytes::from(format!("event: {name}\ndata: {data}\n\n")),
    }
}

/// Says when to come back, also to a browser that reads no events: `retry` is for those.
pub(crate) fn bye_event(departures: &Departures, guest: &Guest) -> Bytes {
    let after_ms = departures.pause_ms(guest, Role::Client);
    let code = close::DRAINING;
    let data = format!("{{\"code\":{code},\"reconnect\":true,\"after_ms\":{after_ms}}}");
    Bytes::from(format!("retry: {after_ms}\nevent: bye\ndata: {data}\n\n"))
}

/// Counts a connection for as long as it lives.
pub(crate) struct Counted(prometheus::IntGauge);

impl Counted {
    pub(crate) fn new(gauge: prometheus::IntGauge) -> Self {
        gauge.inc();
        Self(gauge)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}
