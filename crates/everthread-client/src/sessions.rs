//! What the connection knows of its sessions and requests, across sockets. No I/O.
//!
//! It decides what to send when a socket is there, and where what comes in belongs; [`crate::connection`] does the rest.
//!
//! **Invariant:** a follower's queue holds exactly the log after the position it began at, in order and once. What does
//! not fit in the queue is not counted as received.

use crate::connection::{Body, Command, Reply};
use crate::controls::Controls;
use crate::error::Error;
use crate::feed::{Watching, is_of_watch};
use crate::follow::{Event, Frame};
use crate::kept::Kept;
use crate::people::People;
use crate::stand::{Place, place};
use everthread_protocol::frame::{
    self, Attach, Attached, ClientFrame, Detach, From, History, Hold, Put, Receipt, Regenerate, Release,
    ResetReason, Select,
};
use everthread_protocol::{Cursor, Epoch, RequestId, Seq, SessionId};
use everthread_socket::Utf8Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};

/// Before a session that the server could not attach is asked for again.
const ATTACH_PAUSE: Duration = Duration::from_millis(500);

type Answer<T> = oneshot::Sender<Result<T, Error>>;

/// One followed session.
struct Followed {
    session: SessionId,
    /// From where it is attached next.
    from: From,
    /// Where the queue ends; none until a snapshot says so.
    at: Option<Cursor>,
    /// Its number on this socket.
    number: Option<u32>,
    phase: Phase,
    queue: mpsc::Sender<Event>,
    overflowed: Arc<AtomicBool>,
    people: People,
    fold_ms: Option<u64>,
    /// Who waits for the first `attached`.
    reply: Option<Answer<()>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// To be attached when a socket is there.
    Wanted,
    /// Not before then.
    Later(Instant),
    /// Asked for on this socket.
    Asked,
    /// Attached on this socket.
    Attached,
    /// Its queue was full; attached again when the follower has emptied it.
    Full,
}

struct Pending {
    key: u64,
    body: Body,
    reply: Answer<Reply>,
    /// It was sent on this socket.
    is_sent: bool,
}

/// Sessions and requests of a client.
#[derive(Default)]
pub(crate) struct Sessions {
    followed: BTreeMap<u64, Followed>,
    /// Attachments of this socket.
    numbers: HashMap<u32, u64>,
    /// In the order they were asked.
    pending: BTreeMap<u64, Pending>,
    controls: Controls,
    kept: Kept,
    watching: Option<Watching>,
    next: u64,
    /// Frames to send.
    pub(crate) outgoing: std::collections::VecDeque<String>,
    has_socket: bool,
}

/// The fields by which a frame is sorted; the rest is read only by whom it is for.
#[derive(Debug, Deserialize)]
pub(crate) struct Head {
    pub attachment: u32,
    #[serde(default)]
    pub epoch: Epoch,
    #[serde(default)]
    pub since: Seq,
    #[serde(default)]
    pub from: Seq,
    #[serde(default)]
    pub to: Seq,
    #[serde(default)]
    pub seq: Seq,
    #[serde(default)]
    pub behind: u64,
    #[serde(default, deserialize_with = "known")]
    pub reason: Option<ResetReason>,
}

/// What this release knows; what a later one says besides is nothing.
fn known<'de, D: Deserializer<'de>, T: DeserializeOwned>(value: D) -> Result<Option<T>, D::Error> {
    let value = serde_json::Value::deserialize(value)?;
    Ok(serde_json::from_value(value).ok())
}

/// A `gone` frame, whatever its reason.
#[derive(Debug, Deserialize)]
pub(crate) struct Ended {
    pub attachment: u32,
}

impl Sessions {
    /// How many requests wait for an answer, and controls for their outcome.
    pub(crate) fn pending(&self) -> usize {
        self.pending.len() + self.controls.len()
    }

    /// When a session or a control is to be asked for again, if one is.
    pub(crate) fn next_try(&self) -> Option<Instant> {
        let is_attached = |key| self.followed.get(&key).is_some_and(|f| f.number.is_some());
        self.followed
            .values()
            .filter_map(|f| if let Phase::Later(at) = f.phase { Some(at) } else { None })
            .chain(self.controls.next_try(is_attached))
            .chain(self.kept.next_try(is_attached))
            .min()
    }

    pub(crate) fn command(&mut self, command: Command) {
        match command {
            Command::Attach { key, session, from, presence, fold_ms, queue, overflowed, reply } => {
                let at = if let From::Cursor(cursor) = from { Some(cursor) } else { None };
                let (number, phase, reply) = (None, Phase::Wanted, Some(reply));
                let people = People::new(presence);
                let followed =
                    Followed { session, from, at, number, phase, queue, overflowed, people, fold_ms, reply };
                self.followed.insert(key, followed);
            }
            Command::Detach { key } => self.detach(key),
            Command::Ack { key, seq } => {
                if let Some(followed) = self.followed.get_mut(&key) {
                    followed.people.ack(seq);
                }
            }
            Command::Tell { key, data } => {
                if let Some(followed) = self.followed.get_mut(&key) {
                    followed.people.tell(data);
                }
            }
            Command::Watch { recent, shown } => self.watching = Some(Watching::new(recent, shown)),
            Command::Drained { key } => {
                if let Some(followed) = self.followed.get_mut(&key)
                    && followed.phase == Phase::Full
                {
                    followed.phase = Phase::Wanted;
                }
            }
            Command::Restart { key, from, queue } => {
                self.leave(key, Phase::Wanted);
                if let Some(followed) = self.followed.get_mut(&key) {
                    (followed.from, followed.at, followed.queue) = (from, None, queue);
                }
            }
            Command::Control { key, body, receipts } => {
                if self.followed.contains_key(&key) {
                    self.controls.ask(key, body, receipts);
                } else {
                    drop(receipts.try_send(Err(Error::Closed)));
                }
            }
            Command::Request { key, body, reply } => {
                if self.followed.contains_key(&key) {
                    self.next += 1;
                    self.pending.insert(self.next, Pending { key, body, reply, is_sent: false });
                } else {
                    drop(reply.send(Err(Error::Closed)));
                }
            }
        }
        self.advance(Instant::now());
    }

    /// Makes the frames that can be sent now.
    pub(crate) fn advance(&mut self, now: Instant) {
        if !self.has_socket {
            return;
        }
        let due = |phase| phase == Phase::Wanted || matches!(phase, Phase::Later(at) if at <= now);
        for (key, followed) in self.followed.iter_mut().filter(|(_, f)| due(f.phase)) {
            let Some(id) = attach_id(*key) else { continue };
            let attach = Attach {
                id,
                session: followed.session.clone(),
                from: followed.from,
                presence: followed.people.is_present,
                fold_ms: followed.fold_ms,
            };
            self.outgoing.push_back(ClientFrame::Attach(attach).encode());
            followed.phase = Phase::Asked;
        }
        for followed in self.followed.values_mut() {
            let Some(number) = followed.number else { continue };
            self.outgoing.extend(followed.people.due(number));
        }
        let number = |key| self.followed.get(&key)?.number;
        // Before what is asked for the first time: it was first.
        self.outgoing.extend(self.kept.due(now, number));
        // A caller that gave up is not answered; what was sent may have happened all the same.
        self.pending.retain(|_, pending| !pending.reply.is_closed());
        for pending in self.pending.values_mut().filter(|p| !p.is_sent) {
            let Some(number) = number(pending.key) else { continue };
            self.outgoing.push_back(pending.body.frame(number));
            pending.is_sent = true;
        }
        self.outgoing.extend(self.controls.due(now, number));
        self.outgoing.extend(self.watching.as_mut().and_then(Watching::due));
    }

    /// A socket is there and has been welcomed.
    pub(crate) fn connected(&mut self) {
        self.has_socket = true;
        self.advance(Instant::now());
    }

    /// The socket is gone. What was not answered is sent again on the next one.
    pub(crate) fn disconnected(&mut self) {
        self.has_socket = false;
        self.numbers.clear();
        self.outgoing.clear();
        let keys: Vec<u64> = self.followed.keys().copied().collect();
        for key in keys {
            let Some(followed) = self.followed.get_mut(&key) else { continue };
            followed.number = None;
            if followed.phase != Phase::Full {
                let was_attached = followed.phase == Phase::Attached;
                followed.phase = Phase::Wanted;
                if was_attached {
                    self.deliver(key, Event::Disconnected, None);
                }
            }
        }
        for pending in self.pending.values_mut() {
            pending.is_sent = false;
        }
        self.controls.disconnected();
        self.kept.disconnected(Instant::now());
        if let Some(watching) = &mut self.watching {
            watching.disconnected();
        }
    }

    /// There will be no socket any more.
    pub(crate) fn end(&mut self, error: &Error) {
        for (_, followed) in std::mem::take(&mut self.followed) {
            if let Some(reply) = followed.reply {
                drop(reply.send(Err(error.clone())));
            }
            // A follower whose queue is full finds it closed after the last event.
            drop(followed.queue.try_send(Event::Gone(error.clone())));
        }
        for (_, pending) in std::mem::take(&mut self.pending) {
            drop(pending.reply.send(Err(error.clone())));
        }
        self.controls.give_up(None, error);
        self.watching = None;
    }

    /// The sessions of the tenant have changed.
    pub(crate) fn watched(&mut self, frame: frame::Sessions) {
        let Some(watching) = &mut self.watching else { return };
        if let Some(unwatch) = watching.end() {
            self.watching = None;
            return self.outgoing.push_back(unwatch);
        }
        watching.receive(frame);
        self.advance(Instant::now());
    }

    /// The answer to an attach: false if the id is not of one.
    pub(crate) fn attached(&mut self, attached: &Attached) -> bool {
        let Attached { attachment: number, epoch, head, resumed, acked, unread, .. } = *attached;
        let Some(key) = attach_key(attached.id.as_str()) else { return false };
        let Some(followed) = self.followed.get_mut(&key).filter(|f| f.phase == Phase::Asked) else {
            // The follower left meanwhile.
            self.send_detach(number);
            return true;
        };
        (followed.number, followed.phase) = (Some(number), Phase::Attached);
        followed.people.begin();
        if followed.from == From::Start {
            followed.at = Some(Cursor { epoch, seq: Seq::ZERO });
        } else if !matches!(followed.from, From::Cursor(_)) || !resumed {
            // A snapshot follows.
            followed.at = None;
        }
        if let Some(reply) = followed.reply.take() {
            drop(reply.send(Ok(())));
        }
        self.numbers.insert(number, key);
        self.kept.lost(key, Instant::now(), |at| at.epoch != epoch || at.seq > head);
        self.deliver(key, Event::Attached { head, resumed, acked, unread }, None);
        self.advance(Instant::now());
        true
    }

    /// A frame of an attachment.
    pub(crate) fn frame(&mut self, kind: &str, head: &Head, text: Utf8Bytes) {
        let Some(&key) = self.numbers.get(&head.attachment) else { return };
        let Some(followed) = self.followed.get(&key) else { return };
        let (event, at) = match kind {
            "entries" => {
                // Where the device stands only the server knows: the first frame tells.
                let begins = Cursor { epoch: head.epoch, seq: Seq(head.from.0.saturating_sub(1)) };
                let Some(at) = followed.at.or((followed.from == From::Device).then_some(begins)) else {
                    return;
                };
                match place(at, head.epoch, head.since, head.from, head.to) {
                    Place::Next if at.epoch == head.epoch => {}
                    Place::Next => self.lost(key, |at| at.epoch != head.epoch && at.seq >= head.since),
                    Place::Old => return,
                    Place::Gap => {
                        tracing::debug!(%at, from = %head.from, to = %head.to, "a gap: attaching again");
                        return self.leave(key, Phase::Wanted);
                    }
                }
                let frame = Frame { text, epoch: head.epoch, from: head.from, to: head.to };
                (Event::Entries(frame), Some(Cursor { epoch: head.epoch, seq: head.to }))
            }
            "snapshot" => {
                let frame = Frame { text, epoch: head.epoch, from: head.seq, to: head.seq };
                (Event::Snapshot(frame), Some(Cursor { epoch: head.epoch, seq: head.seq }))
            }
            "presence" => match self.followed.get_mut(&key).and_then(|f| f.people.receive(&text)) {
                Some(presence) => (Event::Presence(presence), None),
                None => return self.advance(Instant::now()),
            },
            "live" => (Event::Live(head.seq), None),
            "lag" => (Event::Lag(head.behind), None),
            "reset" => {
                let reason = head.reason.unwrap_or(ResetReason::Epoch);
                if reason == ResetReason::Epoch {
                    self.lost(key, |_| true);
                }
                (Event::Reset(reason), None)
            }
            _ => return,
        };
        self.deliver(key, event, at);
    }

    /// The log of a session has lost what stood where `is_lost`, or may have: it is written again, and what has no outcome is
    /// asked for again.
    fn lost(&mut self, key: u64, is_lost: impl Fn(Cursor) -> bool) {
        self.kept.lost(key, Instant::now(), is_lost);
        self.controls.ask_again(key);
        self.advance(Instant::now());
    }

    /// The session of an attachment was deleted: whoever waits for something of it is told so.
    pub(crate) fn gone(&mut self, number: u32) {
        let Some(key) = self.numbers.remove(&number) else { return };
        let error = Error::deleted();
        let Some(followed) = self.followed.get_mut(&key) else { return };
        followed.number = None;
        match followed.queue.try_send(Event::Gone(error.clone())) {
            Err(mpsc::error::TrySendError::Full(_)) => {
                // When the follower has emptied its queue, it is attached again and learns that there is no session.
                followed.overflowed.store(true, Ordering::Release);
                followed.phase = Phase::Full;
            }
            Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => drop(self.followed.remove(&key)),
        }
        self.refuse_pending(key, &error);
    }

    /// Puts an event into the follower's queue; if it fits, the follower stands at `at`.
    fn deliver(&mut self, key: u64, event: Event, at: Option<Cursor>) {
        let Some(followed) = self.followed.get_mut(&key) else { return };
        match followed.queue.try_send(event) {
            Ok(()) => {
                if let Some(at) = at {
                    followed.at = Some(at);
                    followed.from = From::Cursor(at);
                }
            }
            Err(mpsc::error::TrySendError::Full(_)) => {
                followed.overflowed.store(true, Ordering::Release);
                self.leave(key, Phase::Full);
            }
            Err(mpsc::error::TrySendError::Closed(_)) => self.detach(key),
        }
    }

    /// Gives up the attachment of this socket.
    fn leave(&mut self, key: u64, phase: Phase) {
        let Some(followed) = self.followed.get_mut(&key) else { return };
        followed.phase = phase;
        if let Some(number) = followed.number.take() {
            self.numbers.remove(&number);
            self.send_detach(number);
        }
        self.advance(Instant::now());
    }

    fn detach(&mut self, key: u64) {
        if let Some(followed) = self.followed.remove(&key)
            && let Some(number) = followed.number
        {
            self.numbers.remove(&number);
            self.send_detach(number);
        }
        self.refuse_pending(key, &Error::Closed);
    }

    /// Nothing that was asked with a follower is answered any more.
    fn refuse_pending(&mut self, key: u64, error: &Error) {
        let (gone, rest) = std::mem::take(&mut self.pending).into_iter().partition(|(_, p)| p.key == key);
        self.pending = rest;
        let gone: BTreeMap<u64, Pending> = gone;
        for (_, pending) in gone {
            drop(pending.reply.send(Err(error.clone())));
        }
        self.controls.give_up(Some(key), error);
        self.kept.forget(key);
    }

    fn send_detach(&mut self, attachment: u32) {
        if self.has_socket
            && let Ok(id) = format!("detach-{attachment}").parse::<RequestId>()
        {
            self.outgoing.push_back(ClientFrame::Detach(Detach { id, attachment }).encode());
        }
    }

    /// A control got further.
    pub(crate) fn receipt(&mut self, receipt: Receipt) {
        self.controls.receipt(receipt);
    }

    /// The answer to a request. False if nobody waits for it.
    pub(crate) fn reply(&mut self, id: &str, reply: Result<Reply, Error>) -> bool {
        let reply = match reply {
            Ok(reply) => Ok(reply),
            Err(error) => match self.controls.failed(id, error, Instant::now()) {
                Some(error) => Err(error),
                None => return true,
            },
        };
        if is_of_watch(id) {
            // Refused, which nothing but a wrong number is: nobody is told anything.
            self.watching.take_if(|_| reply.is_err());
            return true;
        }
        if let Some(key) = attach_key(id) {
            if let Err(error) = reply {
                self.not_attached(key, error);
            }
            return true;
        }
        let Some(order) =
            self.pending.iter().find(|(_, p)| p.is_sent && p.body.id() == id).map(|(order, _)| *order)
        else {
            return self.kept_reply(id, &reply);
        };
        if let Some(Pending { key, body, reply: answer, .. }) = self.pending.remove(&order) {
            if let Ok(Reply::Done(done)) = &reply {
                self.kept.keep(key, body, done, Instant::now());
            }
            drop(answer.send(reply));
        }
        true
    }

    /// The answer to a write that was answered before.
    fn kept_reply(&mut self, id: &str, reply: &Result<Reply, Error>) -> bool {
        let now = Instant::now();
        match reply {
            Ok(Reply::Done(done)) => self.kept.answered(done, now),
            Ok(Reply::History { .. }) => false,
            Err(error) => {
                let mut whose = None;
                let is_known = self.kept.failed(id, error, now, |key| whose = Some(key));
                if let Some(key) = whose {
                    tracing::warn!(id, %error, "what was answered was lost with the end of the log, for good");
                    self.deliver(key, Event::Lost(error.clone()), None);
                }
                is_known
            }
        }
    }

    fn not_attached(&mut self, key: u64, error: Error) {
        let Some(followed) = self.followed.get_mut(&key) else { return };
        if error.is_retryable() {
            followed.phase = Phase::Later(Instant::now() + ATTACH_PAUSE);
            return;
        }
        match followed.reply.take() {
            Some(reply) => drop(reply.send(Err(error))),
            None => drop(followed.queue.try_send(Event::Gone(error))),
        }
        self.detach(key);
    }
}

const ATTACH_PREFIX: &str = "attach-";

fn attach_id(key: u64) -> Option<RequestId> {
    format!("{ATTACH_PREFIX}{key}").parse().ok()
}

fn attach_key(id: &str) -> Option<u64> {
    id.strip_prefix(ATTACH_PREFIX)?.parse().ok()
}

impl Body {
    pub(crate) fn id(&self) -> &str {
        match self {
            Body::Put { id, .. }
            | Body::History { id, .. }
            | Body::Regenerate { id, .. }
            | Body::Select { id, .. }
            | Body::Hold { id, .. }
            | Body::Release { id, .. } => id.as_str(),
        }
    }

    pub(crate) fn frame(&self, attachment: u32) -> String {
        match self.clone() {
            Body::Put { id, agent, when_busy, replaces, ack, entries } => {
                let (t, entries) = (frame::PutTag::Put, &*entries);
                ClientFrame::Put(Put { t, id, attachment, agent, when_busy, replaces, ack, entries }).encode()
            }
            Body::Regenerate { id, run, params } => {
                ClientFrame::Regenerate(Regenerate { id, attachment, run, params }).encode()
            }
            Body::Select { id, message } => ClientFrame::Select(Select { id, attachment, message }).encode(),
            Body::Hold { id, reason } => ClientFrame::Hold(Hold { id, attachment, reason }).encode(),
            Body::Release { id, reason, agent, run } => {
                ClientFrame::Release(Release { id, attachment, reason, agent, run }).encode()
            }
            Body::History { id, before, limit } => {
                ClientFrame::History(History { id, attachment, before, limit }).encode()
            }
        }
    }
}

#[cfg(test)]
mod tests;
