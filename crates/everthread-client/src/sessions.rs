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
        // A caller that gave up is not answered; what was sent may have happened all the same.
        self.pending.retain(|_, pending| !pending.reply.is_closed());
        for pending in self.pending.values_mut().filter(|p| !p.is_sent) {
            let Some(number) = self.followed.get(&pending.key).and_then(|f| f.number) else { continue };
            self.outgoing.push_back(pending.body.frame(number));
            pending.is_sent = true;
        }
        let number = |key| self.followed.get(&key)?.number;
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
                    Place::Next => {}
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
            "reset" => (Event::Reset(head.reason.unwrap_or(ResetReason::Epoch)), None),
            _ => return,
        };
        self.deliver(key, event, at);
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
            return false;
        };
        if let Some(pending) = self.pending.remove(&order) {
            drop(pending.reply.send(reply));
        }
        true
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
    fn id(&self) -> &str {
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
mod tests {
    use super::*;
    use everthread_protocol::Code;

    struct Harness {
        sessions: Sessions,
        queue: mpsc::Receiver<Event>,
        overflowed: Arc<AtomicBool>,
    }

    /// A follower with room for three events, attached as number 1.
    fn attached() -> Harness {
        let (queue, events) = mpsc::channel(3);
        let overflowed = Arc::<AtomicBool>::default();
        let mark = overflowed.clone();
        let (reply, _) = oneshot::channel();
        let mut sessions = Sessions::default();
        let session = "s".parse().unwrap();
        sessions.command(Command::Attach {
            key: 7,
            session,
            from: From::Start,
            presence: false,
            fold_ms: Some(40),
            queue,
            overflowed: mark,
            reply,
        });
        sessions.connected();
        assert!(sent(&mut sessions).contains(r#""from":"start","fold_ms":40"#));
        assert!(sessions.attached(&as_number(1)));
        Harness { sessions, queue: events, overflowed }
    }

    /// The answer to the attach of the follower 7.
    fn as_number(number: u32) -> Attached {
        let answer = format!(
            r#"{{"id":"attach-7","attachment":{number},"session":"s","epoch":"5","head":9,"resumed":true}}"#
        );
        serde_json::from_str(&answer).unwrap()
    }

    fn sent(sessions: &mut Sessions) -> String {
        sessions.outgoing.drain(..).collect()
    }

    fn entries(sessions: &mut Sessions, number: u32, seqs: std::ops::RangeInclusive<u64>) {
        for seq in seqs {
            let head = format!(r#"{{"attachment":{number},"epoch":"5","since":1,"from":{seq},"to":{seq}}}"#);
            sessions.frame("entries", &serde_json::from_str(&head).unwrap(), head.as_str().into());
        }
    }

    fn seqs(queue: &mut mpsc::Receiver<Event>) -> Vec<u64> {
        let events = std::iter::from_fn(|| queue.try_recv().ok());
        events.filter_map(|e| if let Event::Entries(frame) = e { Some(frame.to.0) } else { None }).collect()
    }

    #[test]
    fn a_full_follower_is_attached_again_from_the_last_entry_that_fitted() {
        let mut h = attached();
        entries(&mut h.sessions, 1, 1..=5);
        assert!(h.overflowed.load(Ordering::Acquire));
        assert!(sent(&mut h.sessions).contains("detach"));
        assert_eq!(seqs(&mut h.queue), [1, 2]);
        h.sessions.command(Command::Drained { key: 7 });
        assert!(sent(&mut h.sessions).contains(r#""from":"5.2""#));
        h.sessions.attached(&as_number(2));
        entries(&mut h.sessions, 2, 3..=4);
        assert_eq!(seqs(&mut h.queue), [3, 4]);
    }

    #[test]
    fn a_deleted_session_ends_its_follower_and_everything_asked_of_it() {
        let no_session = |error: &Error| matches!(error, Error::Refused { code: Code::NoSession, .. });
        let mut h = attached();
        let (reply, mut answer) = oneshot::channel();
        let body = Body::History { id: "h1".parse().unwrap(), before: None, limit: 1 };
        h.sessions.command(Command::Request { key: 7, body, reply });
        sent(&mut h.sessions);
        h.sessions.gone(1);
        assert!(no_session(&answer.try_recv().unwrap().unwrap_err()));
        let events: Vec<Event> = std::iter::from_fn(|| h.queue.try_recv().ok()).collect();
        assert!(matches!(events.last(), Some(Event::Gone(error)) if no_session(error)), "{events:?}");
        h.sessions.disconnected();
        h.sessions.connected();
        assert_eq!(sent(&mut h.sessions), "", "nothing is asked for again, and nothing left");
    }

    #[test]
    fn a_follower_whose_queue_is_full_learns_of_the_deletion_once_it_is_empty() {
        let mut h = attached();
        entries(&mut h.sessions, 1, 1..=2);
        h.sessions.gone(1);
        assert_eq!(sent(&mut h.sessions), "");
        assert_eq!(seqs(&mut h.queue), [1, 2]);
        h.sessions.command(Command::Drained { key: 7 });
        assert!(sent(&mut h.sessions).contains("attach-7"));
        assert!(h.sessions.reply("attach-7", Err(Error::deleted())));
        assert!(matches!(h.queue.try_recv(), Ok(Event::Gone(_))));
    }

    #[test]
    fn a_reset_for_a_reason_of_a_later_release_is_a_reset() {
        let mut h = attached();
        let text = r#"{"t":"reset","attachment":1,"reason":"moonrise"}"#;
        h.sessions.frame("reset", &serde_json::from_str(text).unwrap(), text.into());
        let events: Vec<Event> = std::iter::from_fn(|| h.queue.try_recv().ok()).collect();
        assert!(matches!(events.last(), Some(Event::Reset(ResetReason::Epoch))), "{events:?}");
    }

    #[test]
    fn a_gap_and_a_lost_socket_go_on_from_the_own_cursor_and_repeats_are_dropped() {
        let mut h = attached();
        entries(&mut h.sessions, 1, 1..=1);
        entries(&mut h.sessions, 1, 4..=4);
        assert!(sent(&mut h.sessions).contains(r#""from":"5.1""#));
        h.sessions.disconnected();
        h.sessions.connected();
        assert!(sent(&mut h.sessions).contains(r#""from":"5.1""#));
        assert_eq!(seqs(&mut h.queue), [1]);
        h.sessions.attached(&as_number(1));
        entries(&mut h.sessions, 1, 1..=2);
        assert_eq!(seqs(&mut h.queue), [2]);
    }

    #[test]
    fn a_request_without_an_answer_is_sent_again_under_its_id_and_answered_once() {
        let mut h = attached();
        let (reply, mut answer) = oneshot::channel();
        let body = Body::History { id: "h1".parse().unwrap(), before: None, limit: 1 };
        h.sessions.command(Command::Request { key: 7, body, reply });
        assert!(sent(&mut h.sessions).contains(r#""id":"h1","attachment":1"#));
        h.sessions.disconnected();
        h.sessions.connected();
        assert!(!sent(&mut h.sessions).contains("h1"), "not before the session is attached");
        h.sessions.attached(&as_number(4));
        assert!(sent(&mut h.sessions).contains(r#""id":"h1","attachment":4"#));
        assert!(h.sessions.reply("h1", Err(Error::Closed)));
        assert!(answer.try_recv().unwrap().is_err());
        assert!(!h.sessions.reply("h1", Err(Error::Closed)));
    }
}
