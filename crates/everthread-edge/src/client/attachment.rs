//! Attachments: a cursor on a tail. Joining, resuming, following live and being slow are one operation: read from the cursor.

use super::{Connection, TURN_BYTES};
use crate::conflate::Pace;
pub(super) use crate::metrics::Mode;
use crate::metrics::{Counted, Replayed, Source};
use crate::presence::Joined;
use crate::reader::Reader;
use crate::tail::{Found, Tail, Waiter, lost, since_of, start_of};
use bytes::Bytes;
use everthread_protocol::frame::{GoneReason, ResetReason, ServerFrame, Snapshot};
use everthread_protocol::{Cursor, SessionKey};
use everthread_session::view::{self, View};
use everthread_store::{Error, Follower as _, Head, Page, Refusal, Store};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

/// Messages in the snapshot of a client whose cursor was not taken, and in that which follows a reset.
pub(super) const RESET_MESSAGES: usize = 50;
/// Pause before a read that failed is tried again.
const FETCH_PAUSE: Duration = Duration::from_millis(500);

/// One connection's interest in one session.
pub(super) struct Attachment {
    pub tail: Arc<Tail>,
    /// Everything up to here has been put into the outbox.
    pub cursor: Cursor,
    /// What the client was told last.
    pub mode: Counted,
    /// `{"t":"entries","attachment":N`: what its frames begin with.
    pub prefix: Bytes,
    pub waiter: Waiter,
    /// It needs the log and waits for its turn to read.
    pub wants_fetch: bool,
    /// It stands in the list of those that are to be served.
    pub is_ready: bool,
    /// Its part in the session's presence, if it has one.
    pub joined: Option<Joined>,
    /// Its device has acknowledged something.
    pub has_acked: bool,
    /// How often it is sent entries, if not as they come.
    pub pace: Option<Pace>,
}

/// What is read for an attachment.
#[derive(Debug, Clone, Copy)]
pub(super) enum Fetch {
    /// What follows its cursor, folded.
    Page,
    /// A snapshot, because nobody can go on from its cursor.
    Reset(ResetReason),
}

/// What a read brought.
pub(super) struct Fetched {
    pub attachment: u32,
    pub result: Result<Brought, (SessionKey, Error)>,
}

pub(super) enum Brought {
    Page(Arc<Page>),
    Reset(ResetReason, Cursor, String),
}

/// Frames of a page that the socket has not taken yet.
pub(super) struct Pending {
    pub attachment: u32,
    frames: VecDeque<(Bytes, Cursor)>,
}

impl Pending {
    /// Whether they are for this attachment.
    pub fn is_for(&self, attachment: u32) -> bool {
        self.attachment == attachment
    }
}

pub(super) fn prefix(attachment: u32) -> Bytes {
    Bytes::from(format!("{{\"t\":\"entries\",\"attachment\":{attachment}"))
}

pub(super) async fn fetch<S: Store>(
    reader: Reader<S>,
    key: SessionKey,
    attachment: u32,
    cursor: Cursor,
    fetch: Fetch,
) -> Fetched {
    let result = match fetch {
        Fetch::Page => reader.folded_page(&key, cursor.seq).await.map(Brought::Page),
        Fetch::Reset(reason) => snapshot(&reader, &key, attachment, RESET_MESSAGES)
            .await
            .map(|(cursor, frame)| Brought::Reset(reason, cursor, frame)),
    };
    if result.is_err() {
        tokio::time::sleep(FETCH_PAUSE).await;
    }
    Fetched { attachment, result: result.map_err(|error| (key, error)) }
}

/// The `snapshot` frame of a session, and where it stands.
pub(super) async fn snapshot<S: Store>(
    reader: &Reader<S>,
    key: &SessionKey,
    attachment: u32,
    messages: usize,
) -> Result<(Cursor, String), Error> {
    let read = reader.shared_view(key).await?;
    frame_of(&read.0, &read.1, attachment, messages)
}

/// The `snapshot` frame of a session as it stood below the floor: what is kept of the log follows it. `None` if nothing was
/// dropped.
pub(super) async fn base<S: Store>(
    reader: &Reader<S>,
    key: &SessionKey,
    attachment: u32,
    page: &Page,
) -> Result<Option<(Cursor, String)>, Error> {
    let Some(view) = reader.base(key).await? else { return Ok(None) };
    // The floor may have moved since the page was read.
    let page = Page { head: Head { floor: view.seq().next(), ..page.head }, ..page.clone() };
    let (_, frame) = frame_of(&view, &page, attachment, 0)?;
    Ok(Some((start_of(&page), frame)))
}

fn frame_of(view: &View, page: &Page, attachment: u32, messages: usize) -> Result<(Cursor, String), Error> {
    let broken = |e: serde_json::Error| Error::Corrupt(e.to_string());
    let view::Snapshot { state, messages, more } = view.snapshot(messages).map_err(broken)?;
    let cursor = Cursor { epoch: view.epoch(), seq: view.seq() };
    let known = page.epochs.iter().find(|(epoch, _)| *epoch == cursor.epoch);
    let since = known.map_or(page.head.since, |(_, since)| *since);
    let frame = Snapshot {
        attachment,
        epoch: cursor.epoch,
        seq: cursor.seq,
        since,
        floor: page.head.floor,
        state: &state,
        messages: &messages,
        more,
    };
    Ok((cursor, ServerFrame::Snapshot(frame).encode()))
}

impl<S: Store> Connection<S> {
    /// Sends what an attachment's cursor finds on the ring, or sees to it that the log is read.
    pub(super) fn serve_attachment(&mut self, id: u32) {
        self.serve_presence(id);
        // What the log brings goes on from the cursor: nothing else may move it meanwhile.
        if self.fetching == Some(id) || self.page.as_ref().is_some_and(|page| page.is_for(id)) {
            return;
        }
        if self.holds(id) {
            return;
        }
        let Some(attachment) = self.attachments.get_mut(&id) else { return };
        attachment.wants_fetch = false;
        // Before the ring is read: what comes after the read must mark the attachment again.
        attachment.waiter.rearm();
        let found = match attachment.pace {
            None => attachment.tail.after(attachment.cursor, TURN_BYTES),
            Some(_) => attachment.tail.folded_after(attachment.cursor, TURN_BYTES),
        };
        match found {
            Found::Frames(frames) => {
                self.edge.metrics.frames_sent.inc_by(frames.len() as u64);
                for suffix in frames.iter() {
                    self.outbox.entries(&attachment.prefix, suffix);
                }
                self.edge.metrics.sent(&attachment.mode, frames.arrived, frames.to.seq.0);
                self.edge.trace_delivery(&attachment.tail, attachment.mode.get(), &frames);
                attachment.cursor = frames.to;
                // What comes behind that marks it.
                if !frames.is_all || attachment.mode != Mode::Live || attachment.pace.is_some() {
                    self.sent(id);
                }
            }
            Found::Nothing(head) => {
                attachment.cursor = head;
                if attachment.mode != Mode::Live {
                    attachment.mode.set(Mode::Live);
                    self.outbox.text(ServerFrame::Live { attachment: id, seq: head.seq }.encode());
                }
            }
            Found::Behind(behind) => {
                if attachment.mode == Mode::Live {
                    attachment.mode.set(Mode::Lagging);
                    self.edge.metrics.lags.inc();
                    self.outbox.text(ServerFrame::Lag { attachment: id, behind }.encode());
                }
                self.start_fetch(id, Fetch::Page);
            }
            Found::Ahead => self.start_fetch(id, Fetch::Page),
            Found::Invalid => self.start_fetch(id, Fetch::Reset(ResetReason::Epoch)),
            Found::Gone => self.end_attachment(id),
        }
    }

    /// The session was deleted: nothing comes any more.
    fn end_attachment(&mut self, id: u32) {
        if self.attachments.remove(&id).is_none() {
            return;
        }
        self.edge.metrics.gone.inc();
        self.outbox.text(ServerFrame::Gone { attachment: id, reason: GoneReason::Deleted }.encode());
    }

    /// Sends what is new of who is present.
    fn serve_presence(&mut self, id: u32) {
        let Some(joined) = self.attachments.get_mut(&id).and_then(|a| a.joined.as_mut()) else { return };
        for (n, end) in joined.frames() {
            self.edge.metrics.presence_frames.inc();
            let start = format!("{{\"t\":\"presence\",\"attachment\":{id},\"n\":{n}");
            self.outbox.entries(start.as_bytes(), &end);
        }
    }

    pub(super) fn on_fetched(&mut self, fetched: Fetched) {
        let id = fetched.attachment;
        let Some(attachment) = self.attachments.get_mut(&id) else { return };
        match fetched.result {
            Ok(Brought::Page(page)) => {
                if let Some(reason) = lost(&page, attachment.cursor) {
                    self.edge.metrics.replayed(Source::Log, Replayed::Reset);
                    self.start_fetch(id, Fetch::Reset(reason));
                    return;
                }
                if page.records.is_empty() {
                    self.edge.metrics.replayed(Source::Log, Replayed::Empty);
                    // The log's end, and the feed has not brought it here yet. The repair wakes everybody.
                    attachment.waiter.rearm();
                    attachment.tail.doubt();
                    return;
                }
                self.edge.metrics.replayed(Source::Log, Replayed::Ok);
                let frames = page.records.iter().map(|record| {
                    let since = since_of(&page.epochs, record);
                    (record.frame_suffix(since), Cursor { epoch: record.epoch, seq: record.to })
                });
                self.page = Some(Pending { attachment: id, frames: frames.collect() });
            }
            #[cfg(feature = "planted-faults")]
            Ok(Brought::Reset(_, cursor, _))
                if everthread_store::planted::is(everthread_store::planted::Fault::Reset) =>
            {
                attachment.cursor = cursor;
                self.make_ready(id);
            }
            Ok(Brought::Reset(reason, cursor, frame)) => {
                self.edge.metrics.reset(reason);
                self.edge.metrics.replayed(Source::Snapshot, Replayed::Ok);
                attachment.cursor = cursor;
                attachment.mode.set(Mode::Joining);
                let reset = ServerFrame::Reset { attachment: id, reason };
                self.outbox.text(reset.encode());
                self.outbox.text(frame);
                self.make_ready(id);
            }
            Err((_, Error::Refused(Refusal::NoSession))) => {
                // The tail finds the same, and wakes everybody.
                attachment.waiter.rearm();
                attachment.tail.doubt();
            }
            Err((key, error)) => {
                self.edge.metrics.replayed(Source::Log, Replayed::Error);
                // The attachment keeps its cursor and tries again; the store's trouble is reported once, by the store.
                tracing::debug!(%key, %error, "an attachment waits for the store");
                self.make_ready(id);
            }
        }
    }

    pub(super) fn send_pending(&mut self, mut pending: Pending) {
        let id = pending.attachment;
        let Some(attachment) = self.attachments.get_mut(&id) else { return };
        while let Some((suffix, cursor)) = pending.frames.pop_front() {
            // While the log was read the feed may have caught up, and the ring has served this already.
            if cursor.seq <= attachment.cursor.seq {
                continue;
            }
            self.edge.metrics.frames_sent.inc();
            self.outbox.entries(&attachment.prefix, &suffix);
            attachment.cursor = cursor;
            if self.outbox.bytes() >= TURN_BYTES {
                break;
            }
        }
        if pending.frames.is_empty() {
            self.make_ready(id);
        } else {
            self.page = Some(pending);
        }
    }
}
