//! A client's connection: one task that reads requests, serves attachments, and writes, until the socket ends.
//!
//! The loop never waits for the socket: it fills the outbox only while the outbox is empty, so what a slow client costs is
//! the frames of one turn and a number per attachment. Requests are carried out one after the other; while one is under
//! way, nothing more is read, and the client's own TCP window holds it back.

mod attachment;
mod paced;
mod request;
mod watching;

use crate::Edge;
use crate::auth::Identity;
use crate::departure::{Guest, Role};
use crate::devices::Open;
use crate::socket::{Inbound, Message, Outbox, ReadError};
use crate::tail::{STOPPED, Wake};
use attachment::{Attachment, Fetch, Fetched};
use everthread_protocol::error::{ErrorBody, close};
use everthread_protocol::frame::{Bye, ClientFrame, ErrorFrame, Hello, ServerFrame, Welcome};
use everthread_protocol::limits::{BLOCK_BYTES_MAX, FRAME_BYTES_MAX};
use everthread_protocol::{Code, Fault};
use everthread_store::Store;
use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use request::{Reply, Tracked};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tokio::time::{Instant, Sleep};
use watching::{FEED, Watching};

/// How long a client may take to say `hello`.
const HELLO_MAX: Duration = Duration::from_secs(10);
/// How often a connection looks at its own health.
const LOOK: Duration = Duration::from_secs(5);
/// And at the very most.
const LOOK_MIN: Duration = Duration::from_millis(10);
/// Rounds before the other tasks of the node have their turn.
const ROUNDS_MAX: usize = 8;
/// Messages read in one round.
const MESSAGES_MAX: usize = 32;
/// Lists of attachments that are longer are given back when they are empty.
const MARKS_KEPT: usize = 64;
/// Bytes of frames put into the outbox in one turn of an attachment.
const TURN_BYTES: usize = 64 * 1024;
/// Bytes that wait for the socket, beyond which no more requests are read: each of them is answered.
const REPLIES_BYTES_MAX: usize = 1024 * 1024;
/// How long a peer that was told good-bye may take to go.
pub(crate) const LINGER_MAX: Duration = Duration::from_millis(500);
/// How much longer than its time a connection of a draining node stays for the answer to a request.
const LATER_MAX: Duration = Duration::from_secs(1);
/// How often it is looked at whether that is there.
const LATER_LOOK: Duration = Duration::from_millis(20);

/// Serves a client's socket to its end. Not an async function: those keep what they are given beside what they make of it.
pub fn serve<S: Store>(
    edge: Edge<S>,
    inbound: Inbound,
    outbox: Outbox,
    token: Option<String>,
    guest: Guest,
) -> BoxFuture<'static, ()> {
    let gauge = edge.metrics.connections.with_label_values(&["client"]);
    gauge.inc();
    let id = crate::put::fresh_id::<everthread_protocol::RequestId>().to_string();
    let open = edge.acks.open();
    let mut connection = Connection {
        id,
        edge,
        inbound,
        outbox,
        token,
        guest,
        identity: None,
        wake: Arc::default(),
        attachments: BTreeMap::new(),
        attachments_made: 0,
        _open: open,
        ready: VecDeque::new(),
        marked: Vec::new(),
        paced: BTreeSet::new(),
        request: None,
        tracked: None,
        fetch: None,
        fetching: None,
        page: None,
        watching: None,
        reading: None,
        opened: Instant::now(),
        heard: Instant::now(),
        pinged: None,
        next_look: Instant::now() + LOOK,
    };
    Box::pin(async move {
        connection.run().await;
        gauge.dec();
    })
}

struct Connection<S> {
    id: String,
    edge: Edge<S>,
    inbound: Inbound,
    outbox: Outbox,
    /// The token that came with the handshake.
    token: Option<String>,
    guest: Guest,
    /// Set by `hello`.
    identity: Option<Identity>,
    wake: Arc<Wake>,
    /// In boxes: a map has room for eleven from the first, and most connections have one.
    attachments: BTreeMap<u32, Box<Attachment>>,
    attachments_made: u32,
    /// Keeps whoever stores acknowledgements from ending before this connection does.
    _open: Open<S>,
    /// Attachments that may have something to send, in turn.
    ready: VecDeque<u32>,
    /// Kept for what the next wake-up brings.
    marked: Vec<u32>,
    /// When attachments on hold look again.
    paced: BTreeSet<(Instant, u32)>,
    /// The request under way.
    request: Option<BoxFuture<'static, Reply>>,
    /// Controls of this connection whose outcome is not known yet; `None` if there are none.
    tracked: Option<Box<FuturesUnordered<BoxFuture<'static, Tracked<S>>>>>,
    /// The read of the log under way, for one attachment.
    fetch: Option<BoxFuture<'static, Fetched>>,
    /// Whom it is for: until it is done, that attachment's cursor stays where the read began.
    fetching: Option<u32>,
    /// What a read brought and the socket has not taken yet.
    page: Option<attachment::Pending>,
    /// Its part in the feed, if it watches.
    watching: Option<Watching>,
    /// What is read for that.
    reading: Option<BoxFuture<'static, watching::Read>>,
    opened: Instant,
    heard: Instant,
    /// When it was asked whether it lives, if it has not been heard since.
    pinged: Option<Instant>,
    /// When the connection's health is looked at next.
    next_look: Instant,
}

/// Why a connection ends.
enum End {
    /// The peer is gone or has said so.
    Gone,
    /// The peer is told this code.
    Close(u16),
}

impl<S: Store> Connection<S> {
    async fn run(&mut self) {
        let token = self.edge.departures.token();
        let end = {
            let mut stopped = pin!(token.cancelled());
            // Polled once here: from now on it marks the wake, and is polled again only then.
            let marks = Waker::from(self.wake.clone());
            if stopped.as_mut().poll(&mut Context::from_waker(&marks)).is_ready() {
                self.wake.mark(STOPPED);
            }
            let mut timer = pin!(tokio::time::sleep_until(self.next_look));
            poll_fn(|cx| self.poll(cx, timer.as_mut())).await
        };
        if let End::Close(code) = end {
            self.edge.metrics.closed("client", code);
            let reconnect = code >= 4500;
            let after_ms =
                if reconnect { self.edge.departures.pause_ms(&self.guest, Role::Client) } else { 0 };
            self.outbox.text(ServerFrame::Bye(Bye { code, reconnect, after_ms }).encode());
            self.outbox.close(code);
            // One try: a peer that takes nothing learns it from the closed socket.
            if let Ok(Ok(())) = tokio::time::timeout(Duration::from_millis(200), self.flush_all()).await {
                drop(tokio::time::timeout(LINGER_MAX, self.inbound.gone()).await);
            }
        }
        self.attachments.keys().copied().collect::<Vec<_>>().into_iter().for_each(|id| self.store_acks(id));
    }

    async fn flush_all(&mut self) -> std::io::Result<()> {
        loop {
            self.outbox.flush()?;
            if self.outbox.is_empty() {
                return Ok(());
            }
            self.outbox.writable().await?;
        }
    }

    /// Does whatever can be done, in rounds that pass by every source, until there is nothing more or others are to have
    /// their turn. What one round has to say is written at once.
    fn poll(&mut self, cx: &mut Context<'_>, mut timer: Pin<&mut Sleep>) -> Poll<End> {
        for _ in 0..ROUNDS_MAX {
            match self.round(cx, timer.as_mut()) {
                Ok(true) => {}
                Ok(false) => return Poll::Pending,
                Err(end) => return Poll::Ready(end),
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// One round; false if there was nothing to do, and everything that may come will wake the task.
    fn round(&mut self, cx: &mut Context<'_>, timer: Pin<&mut Sleep>) -> Result<bool, End> {
        let (is_clear, takes) = (self.outbox.is_empty(), self.takes_replies());
        let mut has_done = self.round_in(cx)?;
        // Only while the socket has taken everything: a slow client costs one turn.
        if is_clear {
            self.fill();
        }
        self.outbox.flush().map_err(|_| End::Gone)?;
        // What was passed by because too much was waiting is looked at now.
        has_done |= !takes && self.takes_replies();
        has_done |= self.round_read(cx);
        if self.outbox.is_empty() {
            has_done |= self.has_work();
        } else {
            self.next_look = self.next_look.min(self.outbox.progress() + LOOK);
            if let Poll::Ready(writable) = self.outbox.poll_writable(cx) {
                writable.map_err(|_| End::Gone)?;
                has_done = true;
            }
        }
        Ok(self.poll_time(cx, timer)? || has_done)
    }

    /// What has come in; false if nothing has.
    fn round_in(&mut self, cx: &mut Context<'_>) -> Result<bool, End> {
        let mut has_done = false;
        if self.wake.poll_woken(cx).is_ready() {
            self.on_wake()?;
            // What was marked is served in this round: another is needed only if more came meanwhile.
            has_done = self.wake.poll_woken(cx).is_ready();
        }
        // A client that takes no replies is not read either.
        for _ in 0..MESSAGES_MAX {
            if self.request.is_some() || !self.takes_replies() {
                break;
            }
            let Poll::Ready(message) = self.inbound.poll_next(cx) else { break };
            self.on_message(message)?;
            has_done = true;
        }
        if let Some(reply) = poll_slot(&mut self.request, cx) {
            self.on_reply(reply);
            has_done = true;
        }
        // Nor is it sent receipts: they wait in the store.
        let takes_replies = self.takes_replies();
        if let Some(all) = &mut self.tracked
            && takes_replies
            && let Poll::Ready(next) = all.poll_next_unpin(cx)
        {
            match next {
                Some(tracked) => self.on_tracked(tracked),
                // The last one is told: most connections never ask for anything.
                None => self.tracked = None,
            }
            has_done = true;
        }
        Ok(has_done)
    }

    /// What is read, behind the filling that begins reads: each is polled in the round that it begins in.
    fn round_read(&mut self, cx: &mut Context<'_>) -> bool {
        let mut has_done = false;
        if let Some(fetched) = poll_slot(&mut self.fetch, cx) {
            self.fetching = None;
            self.on_fetched(fetched);
            has_done = true;
        }
        if let Some(read) = poll_slot(&mut self.reading, cx) {
            self.on_read(read);
            has_done = true;
        }
        has_done
    }

    fn takes_replies(&self) -> bool {
        self.outbox.bytes() < REPLIES_BYTES_MAX
    }

    fn has_work(&self) -> bool {
        let all_wait = self.fetch.is_some() && self.all_ready_wait();
        self.has_news() || self.page.is_some() || !(self.ready.is_empty() || all_wait)
    }

    /// Whether every ready attachment waits for the one read that is under way.
    fn all_ready_wait(&self) -> bool {
        self.ready.iter().all(|id| self.attachments.get(id).is_some_and(|a| a.wants_fetch))
    }

    fn on_wake(&mut self) -> Result<(), End> {
        let mut marked = std::mem::take(&mut self.marked);
        self.wake.take(&mut marked);
        for id in marked.drain(..) {
            match id {
                FEED => self.on_news(),
                // It goes when its time comes: from now on that is looked at.
                STOPPED => self.next_look = Instant::now(),
                id => self.make_ready(id),
            }
        }
        if marked.capacity() <= MARKS_KEPT {
            self.marked = marked;
        }
        Ok(())
    }

    /// Has an attachment served in its turn.
    fn make_ready(&mut self, id: u32) {
        let Some(attachment) = self.attachments.get_mut(&id) else { return };
        if !std::mem::replace(&mut attachment.is_ready, true) {
            self.ready.push_back(id);
        }
    }

    fn look(&mut self) -> Result<(), End> {
        self.look_at_health()?;
        let Some(goes_at) = self.edge.departures.goes_at(&self.guest, Role::Client) else { return Ok(()) };
        let now = Instant::now();
        // Whoever waits for an answer would have to ask again.
        let is_busy = self.request.is_some() && now < goes_at + LATER_MAX;
        if now >= goes_at && !is_busy {
            return Err(End::Close(close::DRAINING));
        }
        self.next_look = self.next_look.min(goes_at.max(now + LATER_LOOK));
        Ok(())
    }

    fn look_at_health(&mut self) -> Result<(), End> {
        let now = Instant::now();
        if self.identity.is_none() && self.opened.elapsed() > HELLO_MAX {
            return Err(End::Close(close::PROTOCOL));
        }
        if !self.outbox.is_empty() && self.outbox.progress().elapsed() > self.edge.config.stall_max {
            return Err(End::Close(close::STALLED));
        }
        let mut is_idle = self.identity.is_some() && self.outbox.is_empty();
        for (id, attachment) in &mut self.attachments {
            let Some(joined) = &mut attachment.joined else { continue };
            is_idle = false;
            if joined.look() && !std::mem::replace(&mut attachment.is_ready, true) {
                self.ready.push_back(*id);
            }
        }
        let heartbeat = self.edge.config.heartbeat;
        // However late this look is, nobody is given up who was not asked.
        if self.pinged.is_some_and(|at| now - at >= heartbeat) && self.outbox.is_empty() {
            return Err(End::Close(close::STALLED));
        }
        if now - self.heard >= heartbeat && self.pinged.is_none() {
            self.pinged = Some(now);
            self.outbox.text(ServerFrame::Ping {}.encode());
        }
        // Who is silent and owed nothing is looked at only when it is to be asked whether it lives.
        let quiet = (self.pinged.unwrap_or(self.heard) + heartbeat).max(now + LOOK_MIN);
        self.next_look = if is_idle { quiet } else { quiet.min(now + LOOK) };
        Ok(())
    }

    fn on_message(&mut self, message: Result<Message, ReadError>) -> Result<(), End> {
        self.heard = Instant::now();
        self.pinged = None;
        match message {
            Ok(Message::Text(bytes)) => self.on_text(&bytes),
            Ok(Message::Ping(payload)) => {
                // A peer that pings faster than it reads gets no answer to most of them.
                if self.outbox.bytes() < TURN_BYTES {
                    self.outbox.pong(&payload);
                }
                Ok(())
            }
            Ok(Message::Pong) => Ok(()),
            Ok(Message::Close) | Err(ReadError::Gone) => Err(End::Gone),
            Err(error @ ReadError::Protocol(_)) => {
                self.error(None, Fault::bad_request(error.to_string()));
                Err(End::Close(close::PROTOCOL))
            }
            Err(error @ ReadError::TooLarge) => {
                self.error(None, Fault::new(Code::TooLarge, error.to_string()));
                Err(End::Close(close::TOO_LARGE))
            }
        }
    }

    fn on_text(&mut self, bytes: &bytes::Bytes) -> Result<(), End> {
        let frame = match ClientFrame::decode(bytes) {
            Ok(frame) => frame,
            Err(fault) => {
                self.error(id_of(bytes), fault);
                return if self.identity.is_some() { Ok(()) } else { Err(End::Close(close::PROTOCOL)) };
            }
        };
        match (frame, &self.identity) {
            (ClientFrame::Pong {}, _) => Ok(()),
            (ClientFrame::Hello(hello), None) => {
                let token = hello.token.or(self.token.take());
                let Hello { subject, device, kind, .. } = hello;
                match self.edge.config.auth.check(token.as_deref(), subject, device, kind) {
                    Ok(identity) => {
                        self.identity = Some(identity);
                        self.request = Some(request::welcome(hello.id));
                        Ok(())
                    }
                    Err(fault) => {
                        let is_known = fault.code == Code::Forbidden;
                        self.error(Some(hello.id.to_string()), fault);
                        Err(End::Close(if is_known { close::NOT_ALLOWED } else { close::TOKEN }))
                    }
                }
            }
            (ClientFrame::Hello(hello), Some(_)) => {
                self.error(Some(hello.id.to_string()), Fault::bad_request("hello comes once"));
                Ok(())
            }
            (_, None) => {
                self.error(id_of(bytes), Fault::bad_request("the first frame is hello"));
                Err(End::Close(close::PROTOCOL))
            }
            (frame, Some(identity)) => {
                let identity = identity.clone();
                self.on_request(frame, identity);
                Ok(())
            }
        }
    }

    fn error(&mut self, id: Option<String>, fault: Fault) {
        self.edge.metrics.errors.with_label_values(&[fault.code.as_str()]).inc();
        self.outbox.text(ServerFrame::Error(ErrorFrame { id, error: ErrorBody::from(fault) }).encode());
    }

    /// Fills the outbox by one turn.
    fn fill(&mut self) {
        self.serve_feed();
        if let Some(pending) = self.page.take() {
            self.send_pending(pending);
            return;
        }
        for _ in 0..self.ready.len() {
            let Some(id) = self.ready.pop_front() else { break };
            if let Some(attachment) = self.attachments.get_mut(&id) {
                attachment.is_ready = false;
            }
            self.serve_attachment(id);
            if self.outbox.bytes() >= TURN_BYTES {
                break;
            }
        }
        if self.ready.is_empty() && self.ready.capacity() > MARKS_KEPT {
            self.ready = VecDeque::new();
        }
    }

    fn start_fetch(&mut self, id: u32, fetch: Fetch) {
        let Some(attachment) = self.attachments.get_mut(&id) else { return };
        if self.fetch.is_some() || self.page.is_some() {
            attachment.wants_fetch = true;
            return self.make_ready(id);
        }
        attachment.wants_fetch = false;
        let (reader, key, cursor) =
            (self.edge.reader.clone(), attachment.tail.key().clone(), attachment.cursor);
        self.fetching = Some(id);
        self.fetch = Some(Box::pin(attachment::fetch(reader, key, id, cursor, fetch)));
    }

    fn welcome_frame(&self, id: everthread_protocol::RequestId, now: u64) -> Welcome {
        let heartbeat = self.edge.config.heartbeat.as_millis();
        Welcome {
            id,
            connection: self.id.clone(),
            node: self.edge.config.node.to_string(),
            now,
            heartbeat_ms: u64::try_from(heartbeat).unwrap_or(u64::MAX),
            frame_bytes_max: FRAME_BYTES_MAX,
            block_bytes_max: BLOCK_BYTES_MAX,
        }
    }
}

/// The id of a frame that could not be read otherwise, so that its sender learns which one it was.
pub(crate) fn id_of(bytes: &[u8]) -> Option<String> {
    #[derive(serde::Deserialize)]
    struct WithId {
        id: everthread_protocol::RequestId,
    }
    serde_json::from_slice::<WithId>(bytes).ok().map(|with| with.id.to_string())
}

/// What a future in a slot came to; the slot is empty then.
fn poll_slot<T>(slot: &mut Option<BoxFuture<'static, T>>, cx: &mut Context<'_>) -> Option<T> {
    match slot.as_mut()?.as_mut().poll(cx) {
        Poll::Ready(value) => {
            *slot = None;
            Some(value)
        }
        Poll::Pending => None,
    }
}
