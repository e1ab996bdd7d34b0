//! Writes that were answered, for as long as a failover may lose them with the end of the log. No I/O.
//!
//! Whoever asked has the answer and has gone on, so nobody else would write them again. They are asked for under their ids:
//! the server answers those that it still has as what they are, repeats.

use crate::connection::Body;
use crate::error::Error;
use everthread_protocol::frame::Done;
use everthread_protocol::{Cursor, Level};
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// A replica takes over within seconds, and whoever follows learns of it soon after. The server knows ids for ten minutes.
const KEPT_FOR: Duration = Duration::from_secs(60);
/// Of one client. The oldest are forgotten first.
const KEPT_MAX: usize = 1024;
/// After an error that may go away.
const RETRY: Duration = Duration::from_millis(500);

struct Write {
    /// Of the follower it was asked with.
    key: u64,
    body: Body,
    /// Where it stands, by the last answer.
    at: Cursor,
    /// Forgotten then; if it is lost by then, given up at the first error after it.
    until: Instant,
    phase: Phase,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// It is there, as far as is known.
    Answered,
    /// To be asked for, not before then.
    Due(Instant),
    /// Asked for on this socket.
    Asked,
}

/// Writes of a client.
#[derive(Default)]
pub(crate) struct Kept {
    writes: VecDeque<Write>,
}

impl Kept {
    /// Keeps what has this answer, unless replicas or a disk have it.
    pub(crate) fn keep(&mut self, key: u64, body: Body, done: &Done, now: Instant) {
        self.forget_old(now);
        let Some(at) = done.cursor.filter(|_| done.ack.is_none_or(|level| level == Level::Accepted)) else {
            return;
        };
        if self.writes.len() == KEPT_MAX {
            self.writes.pop_front();
        }
        self.writes.push_back(Write { key, body, at, until: now + KEPT_FOR, phase: Phase::Answered });
    }

    /// The log of a session has lost what stood where `is_lost`, or may have.
    pub(crate) fn lost(&mut self, key: u64, now: Instant, is_lost: impl Fn(Cursor) -> bool) {
        self.forget_old(now);
        for write in self.writes.iter_mut().filter(|write| write.key == key && is_lost(write.at)) {
            if write.phase == Phase::Answered {
                (write.phase, write.until) = (Phase::Due(now), now + KEPT_FOR);
            }
        }
    }

    /// When one is asked for next, of those whose session is attached.
    pub(crate) fn next_try(&self, is_attached: impl Fn(u64) -> bool) -> Option<Instant> {
        let due = |write: &Write| if let Phase::Due(at) = write.phase { Some(at) } else { None };
        self.writes.iter().filter(|write| is_attached(write.key)).filter_map(due).min()
    }

    /// The frames of those that are due, in the order in which they were written.
    pub(crate) fn due(&mut self, now: Instant, number: impl Fn(u64) -> Option<u32>) -> Vec<String> {
        let mut frames = Vec::new();
        let is_due = |write: &&mut Write| matches!(write.phase, Phase::Due(at) if at <= now);
        for write in self.writes.iter_mut().filter(is_due) {
            if let Some(number) = number(write.key) {
                frames.push(write.body.frame(number));
                write.phase = Phase::Asked;
            }
        }
        frames
    }

    /// The socket is gone: what was asked for is asked for on the next one.
    pub(crate) fn disconnected(&mut self, now: Instant) {
        for write in self.writes.iter_mut().filter(|write| write.phase == Phase::Asked) {
            write.phase = Phase::Due(now);
        }
    }

    /// The answer to a request; false if it is to none of these.
    pub(crate) fn answered(&mut self, done: &Done, now: Instant) -> bool {
        let Some(at) = self.asked(done.id.as_str()) else { return false };
        if let Some(Write { key, body, .. }) = self.writes.remove(at) {
            self.keep(key, body, done, now);
        }
        true
    }

    /// A request of that id failed: false if it is none of these. What can never be written again is handed to `give_up`.
    pub(crate) fn failed(
        &mut self,
        id: &str,
        error: &Error,
        now: Instant,
        give_up: impl FnOnce(u64),
    ) -> bool {
        let Some(at) = self.asked(id) else { return false };
        if error.is_retryable() && !error.is_verdict() && self.writes[at].until > now {
            self.writes[at].phase = Phase::Due(now + RETRY);
        } else if let Some(write) = self.writes.remove(at) {
            give_up(write.key);
        }
        true
    }

    /// Nobody follows that session any more.
    pub(crate) fn forget(&mut self, key: u64) {
        self.writes.retain(|write| write.key != key);
    }

    /// Forgets what has been there for long. What is lost is asked for once more, however long there was no connection.
    fn forget_old(&mut self, now: Instant) {
        self.writes.retain(|write| write.phase != Phase::Answered || write.until > now);
    }

    fn asked(&self, id: &str) -> Option<usize> {
        self.writes.iter().position(|write| write.phase == Phase::Asked && write.body.id() == id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::value::RawValue;

    fn keep(kept: &mut Kept, id: &str, now: Instant) {
        let entries = RawValue::from_string("[]".to_owned()).unwrap().into();
        let id = id.parse().unwrap();
        let (agent, when_busy, replaces, ack) = (None, None, None, None);
        let done = serde_json::from_str(&format!(r#"{{"id":"{id}","cursor":"5.1"}}"#)).unwrap();
        kept.keep(7, Body::Put { id, agent, when_busy, replaces, ack, entries }, &done, now);
    }

    #[test]
    fn what_is_known_to_be_lost_is_asked_for_however_long_there_was_no_connection() {
        let (mut kept, begun) = (Kept::default(), Instant::now());
        keep(&mut kept, "lost", begun);
        kept.lost(7, begun, |_| true);
        assert_eq!(kept.due(begun, |_| None).len(), 0, "it is not attached");
        let later = begun + KEPT_FOR * 10;
        keep(&mut kept, "other", later);
        let frames = kept.due(later, |_| Some(1));
        assert!(frames.iter().any(|frame| frame.contains(r#""lost""#)), "{frames:?}");
        // It had its time and its try.
        let mut given_up = None;
        assert!(kept.failed("lost", &Error::Closed, later, |key| given_up = Some(key)));
        assert_eq!(given_up, Some(7));
    }
}
