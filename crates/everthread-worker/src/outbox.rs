//! What a run has written and the server has not yet confirmed: gathering, numbering, re-sending. No I/O, no clock.
//!
//! One write is under way per run. While it is, what the run writes is gathered and becomes the next batch, so a quiet
//! run is sent at once and a busy one in larger pieces, without a timer. Batches are numbered when they are made and kept
//! as the bytes that were sent, so a repeat is the same write. Only one that the server has refused leaves a number behind.
//!
//! **Invariant:** kept batches are numbered without gaps up to `next - 1`, and the server has been asked to write batch n
//! only after n - 1 was confirmed on the same log or was sent again before it.

mod batch;
mod end;

use crate::error::Error;
pub(crate) use batch::Request;
use batch::{Gathered, append_frame, renumbered};
use everthread_protocol::entry::RefusalReason;
use everthread_protocol::error::ErrorBody;
use everthread_protocol::limits::{BLOCK_BYTES_MAX, FRAME_BYTES_MAX};
use everthread_protocol::{Code, ControlId, Entry, Fault, Fence, Level, RunId, TraceContext};
use everthread_socket::{Backoff, Utf8Bytes};
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Bytes of a run's writes that are not yet confirmed as safe. When they are reached, writing waits.
pub(crate) const RUN_BUFFER_BYTES_MAX: usize = 1024 * 1024;
/// A batch that is written but was never called safe is forgotten after this: where there is no replica, nobody says so.
pub(crate) const UNSAFE_KEPT_MAX: Duration = Duration::from_secs(30);
/// A bug of the server is given this many chances before the run is given up.
const INTERNAL_ERRORS_MAX: u32 = 6;
/// What people read of a run whose end was refused.
const END_REFUSED: &str = "how the run ended could not be written";
const RETRY_FIRST: Duration = Duration::from_millis(50);
const RETRY_CAP: Duration = Duration::from_secs(2);

/// Names a run in every frame.
#[derive(Debug, Clone)]
pub(crate) struct Name {
    /// Number of the run in this process: the beginning of its request ids, since an error names nothing else.
    pub local: u64,
    /// The run.
    pub run: RunId,
    /// The fence it was given with.
    pub fence: Fence,
    /// First and only incarnation of its producer: the run's attempt.
    pub incarnation: u64,
    /// How sure its entries are to be, where the deployment does not say.
    pub ack: Option<Level>,
}

/// What a reply means for those who wait.
#[derive(Debug, PartialEq)]
pub(crate) enum Event {
    /// A child run is requested.
    ChildStarted(RunId),
    /// A child run was not requested.
    ChildRefused(RunId, Error),
    /// The outcome of a control was not taken: it has another one by now.
    SettleRefused(ControlId),
    /// The run waits for people and is no longer this worker's.
    Suspended,
    /// The run cannot be written any more; it ends as failed.
    Broken(Error),
    /// How the run ended was not taken; it ends as failed.
    EndRefused(Error),
    /// The run has ended, or never will by this worker.
    Over,
}

/// What a batch is, for those who wait for its answer.
#[derive(Debug, Clone)]
enum Kind {
    Append,
    Child(RunId),
    Settle(ControlId),
    Suspend,
    End,
}

/// Whether the run is about to wait for people.
#[derive(Debug, PartialEq)]
enum Suspension {
    No,
    /// Asked for: nobody writes until the answer is there.
    Asked,
    /// The server would not; whoever asked has not heard it yet.
    Refused(Error),
}

#[derive(Debug)]
struct Kept {
    frame: Utf8Bytes,
    kind: Kind,
    /// When it was first confirmed.
    written_at: Option<Instant>,
}

#[derive(Debug)]
enum Slot {
    Entries(Gathered),
    Request(Request),
}

/// A run's writes.
#[derive(Debug)]
pub(crate) struct Outbox {
    name: Name,
    /// What led to what is written from now on.
    traceparent: Option<TraceContext>,
    block_bytes_max: usize,
    /// Not yet batches, oldest first.
    gathering: VecDeque<Slot>,
    gathering_bytes: usize,
    /// Batches that may have to be sent again, oldest first; the last one is `next - 1`.
    kept: VecDeque<Kept>,
    kept_bytes: usize,
    /// Number of the next batch to be made.
    next: u64,
    /// Number of the next batch to be sent: below `next` while batches are sent again.
    cursor: u64,
    /// Sent on this connection and not yet answered.
    in_flight: Option<u64>,
    /// Nothing is sent before this.
    paused_until: Option<Instant>,
    backoff: Backoff,
    internal_errors: u32,
    /// Why nothing more can be written.
    broken: Option<Error>,
    suspension: Suspension,
    /// The end is written or on its way.
    ending: bool,
    /// The server would not take the end; what is on its way now is the last try.
    is_end_refused: bool,
    over: bool,
}

impl Outbox {
    pub(crate) fn new(name: Name, block_bytes_max: usize) -> Self {
        Self {
            name,
            traceparent: None,
            block_bytes_max: block_bytes_max.min(BLOCK_BYTES_MAX),
            gathering: VecDeque::new(),
            gathering_bytes: 0,
            kept: VecDeque::new(),
            kept_bytes: 0,
            next: 1,
            cursor: 1,
            in_flight: None,
            paused_until: None,
            backoff: Backoff::new(RETRY_FIRST, RETRY_CAP),
            internal_errors: 0,
            broken: None,
            suspension: Suspension::No,
            ending: false,
            is_end_refused: false,
            over: false,
        }
    }

    pub(crate) fn name(&self) -> &Name {
        &self.name
    }

    /// What led to whatever is made a batch from now on.
    pub(crate) fn set_trace(&mut self, traceparent: Option<TraceContext>) {
        self.traceparent = traceparent;
    }

    /// Whether another write fits. One that is larger than what is left fits too, so that every write fits some time.
    pub(crate) fn has_room(&self) -> bool {
        self.suspension != Suspension::Asked && self.kept_bytes + self.gathering_bytes < RUN_BUFFER_BYTES_MAX
    }

    /// Whether all that was written is confirmed.
    pub(crate) fn is_settled(&self) -> bool {
        self.gathering.is_empty() && self.cursor == self.next && self.in_flight.is_none()
    }

    pub(crate) fn is_over(&self) -> bool {
        self.over
    }

    /// Whether writing is possible at all.
    pub(crate) fn check_open(&self) -> Result<(), Error> {
        match &self.broken {
            Some(error) => Err(error.clone()),
            None if self.ending => Err(Error::Ended),
            None => Ok(()),
        }
    }

    /// Adds text to a part; `offset` is the part's length before it.
    pub(crate) fn append(&mut self, message: &str, part: &str, offset: u64, text: &str) -> Result<(), Error> {
        self.check_open()?;
        let max = self.block_bytes_max;
        let before = self.gathering_bytes;
        if let Some(Slot::Entries(gathered)) = self.gathering.back_mut() {
            let bytes = gathered.bytes();
            if gathered.append(message, part, offset, text, max) {
                self.gathering_bytes = before + gathered.bytes() - bytes;
                return Ok(());
            }
        }
        let mut gathered = Gathered::default();
        if !gathered.append(message, part, offset, text, max) {
            return Err(Error::TooLarge { bytes: text.len(), bytes_max: max });
        }
        self.gather(gathered);
        Ok(())
    }

    /// Adds any other entry.
    pub(crate) fn entry(&mut self, entry: &Entry) -> Result<(), Error> {
        self.raw_entry(&serde_json::to_string(entry).map_err(|e| Error::Unreadable(e.to_string()))?)
    }

    /// Adds an entry that is JSON already.
    pub(crate) fn raw_entry(&mut self, entry: &str) -> Result<(), Error> {
        self.check_open()?;
        let max = self.block_bytes_max;
        if let Some(Slot::Entries(gathered)) = self.gathering.back_mut() {
            let bytes = gathered.bytes();
            if gathered.entry(entry, max) {
                self.gathering_bytes += gathered.bytes() - bytes;
                return Ok(());
            }
        }
        let mut gathered = Gathered::default();
        if !gathered.entry(entry, max) {
            return Err(Error::TooLarge { bytes: entry.len(), bytes_max: max });
        }
        self.gather(gathered);
        Ok(())
    }

    fn gather(&mut self, gathered: Gathered) {
        self.gathering_bytes += gathered.bytes();
        self.gathering.push_back(Slot::Entries(gathered));
    }

    /// Asks for a child run, or for the run to wait for people. Nobody else writes while the latter is not answered.
    pub(crate) fn request(&mut self, request: Request) -> Result<(), Error> {
        self.check_open()?;
        let bytes = request.bytes();
        if bytes > self.block_bytes_max {
            return Err(Error::TooLarge { bytes, bytes_max: self.block_bytes_max });
        }
        if matches!(request, Request::Suspend { .. }) {
            self.suspension = Suspension::Asked;
        }
        self.gathering_bytes += bytes;
        self.gathering.push_back(Slot::Request(request));
        Ok(())
    }

    /// Why the run does not go on here after it was asked to wait for people; `None` while that is not known.
    pub(crate) fn suspended(&mut self) -> Option<Error> {
        if let Some(error) = &self.broken {
            return Some(error.clone());
        }
        match std::mem::replace(&mut self.suspension, Suspension::No) {
            Suspension::Asked => {
                self.suspension = Suspension::Asked;
                None
            }
            Suspension::Refused(error) => Some(error),
            Suspension::No => Some(Error::Ended),
        }
    }

    /// Gives a control its outcome. It needs no room: there are few of them at a time. Without effect once the run has
    /// ended, which settles what is left.
    pub(crate) fn settle(&mut self, control: ControlId, refusal: Option<RefusalReason>) -> Result<(), Error> {
        self.check_open()?;
        let request = Request::Settle { control, refusal };
        self.gathering_bytes += request.bytes();
        self.gathering.push_back(Slot::Request(request));
        Ok(())
    }

    /// Ends the run, unless that is under way already.
    pub(crate) fn end(&mut self, request: Request) {
        if self.ending || self.over {
            return;
        }
        self.ending = true;
        let request = request.bounded();
        self.gathering_bytes += request.bytes();
        self.gathering.push_back(Slot::Request(request));
    }

    /// Whether [`Outbox::next_frame`] would give one.
    pub(crate) fn is_sendable(&self, now: Instant) -> bool {
        self.in_flight.is_none()
            && !self.over
            && self.paused_until.is_none_or(|until| until <= now)
            && (self.cursor < self.next || !self.gathering.is_empty())
    }

    /// Until when nothing is sent, if there is such a time.
    pub(crate) fn paused_until(&self) -> Option<Instant> {
        self.paused_until
    }

    /// The next frame to send: one that must be sent again, or a new batch of all that was gathered and fits.
    pub(crate) fn next_frame(&mut self, now: Instant) -> Option<Utf8Bytes> {
        if !self.is_sendable(now) {
            return None;
        }
        self.paused_until = None;
        if self.cursor == self.next {
            let slot = self.gathering.pop_front()?;
            self.make_batch(slot);
        }
        let frame = self.kept.get(self.index(self.cursor)?)?.frame.clone();
        self.in_flight = Some(self.cursor);
        self.cursor += 1;
        Some(frame)
    }

    fn make_batch(&mut self, slot: Slot) {
        let number = self.next;
        let (frame, kind) = match slot {
            Slot::Entries(gathered) => {
                self.gathering_bytes -= gathered.bytes();
                (append_frame(&self.name, number, self.traceparent, gathered), Kind::Append)
            }
            Slot::Request(request) => {
                self.gathering_bytes -= request.bytes();
                let kind = request.kind();
                (request.frame(&self.name, number), kind)
            }
        };
        self.next += 1;
        self.kept_bytes += frame.len();
        self.kept.push_back(Kept { frame: frame.into(), kind, written_at: None });
    }

    /// Number of the oldest kept batch.
    fn first(&self) -> u64 {
        self.next - self.kept.len() as u64
    }

    fn index(&self, number: u64) -> Option<usize> {
        usize::try_from(number.checked_sub(self.first())?).ok()
    }

    /// The connection is gone: what was not answered is sent again on the next one.
    pub(crate) fn disconnected(&mut self) {
        self.in_flight = None;
        self.paused_until = None;
        let unconfirmed =
            self.kept.iter().position(|kept| kept.written_at.is_none()).unwrap_or(self.kept.len());
        // A batch is confirmed only after those before it, unless the log lost a tail; then the server answers `gap`.
        self.cursor = self.first() + unconfirmed as u64;
    }

    /// Everything up to `batch` is written, and up to `safe` it may be forgotten.
    pub(crate) fn written(&mut self, batch: u64, safe: u64, now: Instant) -> Vec<Event> {
        let batch = batch.min(self.next - 1);
        if self.in_flight.is_some_and(|number| number <= batch) {
            self.in_flight = None;
        }
        self.backoff.reset();
        self.internal_errors = 0;
        let mut events = Vec::new();
        let first = self.first();
        for (number, kept) in (first..).zip(&mut self.kept) {
            if number > batch {
                break;
            }
            if kept.written_at.is_none() {
                kept.written_at = Some(now);
                match &kept.kind {
                    Kind::Append | Kind::Settle(_) => {}
                    Kind::Child(child) => events.push(Event::ChildStarted(child.clone())),
                    Kind::Suspend => {
                        self.over = true;
                        self.broken = Some(Error::Suspended);
                        events.push(Event::Suspended);
                    }
                    Kind::End => {
                        self.over = true;
                        events.push(Event::Over);
                    }
                }
            }
        }
        self.cursor = self.cursor.max(batch + 1);
        while self.first() <= safe.min(batch) && self.forget_first() {}
        self.forget_old(now);
        events
    }

    /// Up to `batch` what is written may be forgotten.
    pub(crate) fn safe(&mut self, batch: u64) {
        // What is on its way again was lost once.
        let sent = self.in_flight.unwrap_or(self.cursor);
        while self.first() <= batch && self.first() < sent && self.forget_first() {}
    }

    /// Forgets batches that were written long ago.
    pub(crate) fn forget_old(&mut self, now: Instant) {
        let old = |at: Instant| now.saturating_duration_since(at) >= UNSAFE_KEPT_MAX;
        while self.kept.front().is_some_and(|kept| kept.written_at.is_some_and(old))
            && self.first() < self.cursor
        {
            self.forget_first();
        }
    }

    fn forget_first(&mut self) -> bool {
        let forgotten = self.kept.pop_front();
        self.kept_bytes -= forgotten.as_ref().map_or(0, |kept| kept.frame.len());
        forgotten.is_some()
    }

    /// The write `batch` was refused.
    pub(crate) fn refused(&mut self, batch: u64, error: &ErrorBody, now: Instant) -> Vec<Event> {
        if self.in_flight != Some(batch) {
            return Vec::new();
        }
        self.in_flight = None;
        // Whoever asked for more than there may be is told, rather than made to wait.
        let is_one_more = matches!(self.kind(batch), Some(Kind::Child(_) | Kind::Suspend));
        match error.code {
            Code::Gap => self.gap(batch, error, now),
            Code::LimitReached if is_one_more => self.refuse(batch, error),
            Code::Internal if self.internal_errors < INTERNAL_ERRORS_MAX => {
                self.internal_errors += 1;
                self.pause(batch, error, now);
                Vec::new()
            }
            // Whether it was written nobody knows: the end takes the number after it, and a `gap` puts that right.
            Code::Internal => self.give_up(batch + 1, refusal(error)),
            _ if error.retryable => {
                self.pause(batch, error, now);
                Vec::new()
            }
            _ => self.refuse(batch, error),
        }
    }

    /// The frame that [`Outbox::next_frame`] gave is larger than one may be: it is not sent, and refused here instead.
    pub(crate) fn too_large(&mut self, now: Instant) -> Vec<Event> {
        let Some(batch) = self.in_flight else { return Vec::new() };
        let message = format!("a frame has at most {FRAME_BYTES_MAX} bytes");
        self.refused(batch, &Fault::new(Code::TooLarge, message).into(), now)
    }

    fn kind(&self, batch: u64) -> Option<&Kind> {
        self.kept.get(self.index(batch)?).map(|kept| &kept.kind)
    }

    fn pause(&mut self, batch: u64, error: &ErrorBody, now: Instant) {
        self.cursor = batch;
        let wait = self.backoff.step().max(Duration::from_millis(error.after_ms.unwrap_or(0)).min(RETRY_CAP));
        self.paused_until = Some(now + wait);
    }

    fn gap(&mut self, batch: u64, error: &ErrorBody, now: Instant) -> Vec<Event> {
        let expected = error.expected.unwrap_or(0);
        if self.broken.is_some() {
            self.renumber_end(expected);
            self.pause(expected, error, now);
        } else if expected == batch {
            // What it wants is what it got: no more than a hiccup.
            self.pause(batch, error, now);
        } else if expected < batch && expected >= self.first() {
            self.cursor = expected;
        } else {
            let message = format!("the log ends before batch {expected}, and it is no longer kept here");
            return self.give_up(expected, Error::LostTail(message));
        }
        Vec::new()
    }

    /// A write that will never be made. Its number is free again.
    fn refuse(&mut self, batch: u64, error: &ErrorBody) -> Vec<Event> {
        match self.kind(batch) {
            // Without an outcome the run would count as at work for as long as this worker lives.
            Some(Kind::End) if !self.is_end_refused => {
                self.is_end_refused = true;
                self.take_back(batch);
                self.ending = false;
                self.end(Request::failed(error.code.as_str(), END_REFUSED));
                vec![Event::EndRefused(refusal(error))]
            }
            Some(Kind::End) | None => {
                self.over = true;
                vec![Event::Over]
            }
            Some(Kind::Child(child)) => {
                let event = Event::ChildRefused(child.clone(), refusal(error));
                self.take_back(batch);
                vec![event]
            }
            Some(Kind::Settle(control)) => {
                let event = Event::SettleRefused(control.clone());
                self.take_back(batch);
                vec![event]
            }
            Some(Kind::Suspend) => {
                self.suspension = Suspension::Refused(refusal(error));
                self.take_back(batch);
                Vec::new()
            }
            Some(Kind::Append) => self.give_up(batch, refusal(error)),
        }
    }

    /// A batch was not written: its number goes to the next one. Where batches are sent again there are some after it; none
    /// of them is in the log either, so they move up.
    fn take_back(&mut self, batch: u64) {
        let Some(at) = self.index(batch) else { return };
        if let Some(kept) = self.kept.remove(at) {
            self.kept_bytes -= kept.frame.len();
        }
        for (number, kept) in (batch..).zip(self.kept.iter_mut().skip(at)) {
            self.kept_bytes -= kept.frame.len();
            kept.frame = renumbered(&kept.frame, &self.name, number + 1, number).into();
            self.kept_bytes += kept.frame.len();
        }
        self.next -= 1;
        self.cursor = batch;
    }

    /// Ends the run as failed with batch number `number`; all that is not written is dropped, as it can no longer be.
    fn give_up(&mut self, number: u64, error: Error) -> Vec<Event> {
        if matches!(self.kept.back(), Some(Kept { kind: Kind::End, .. })) && self.broken.is_some() {
            self.over = true;
            return vec![Event::Over];
        }
        let mut events = Vec::new();
        let kept = self.kept.drain(..).filter(|kept| kept.written_at.is_none());
        let children = kept.filter_map(|kept| match kept.kind {
            Kind::Child(child) => Some(child),
            Kind::Append | Kind::Settle(_) | Kind::Suspend | Kind::End => None,
        });
        events.extend(children.map(|child| Event::ChildRefused(child, error.clone())));
        for slot in self.gathering.drain(..) {
            if let Slot::Request(Request::StartChild { child, .. }) = slot {
                events.push(Event::ChildRefused(child, error.clone()));
            }
        }
        (self.kept_bytes, self.gathering_bytes) = (0, 0);
        (self.next, self.cursor) = (number, number);
        self.ending = false;
        self.end(Request::failed(error.code(), &error.to_string()));
        self.broken = Some(error.clone());
        events.push(Event::Broken(error));
        events
    }

    /// The end of a broken run is the only write left: it takes whatever number the server wants.
    fn renumber_end(&mut self, expected: u64) {
        let Some(error) = self.broken.clone() else { return };
        self.kept.clear();
        self.kept_bytes = 0;
        (self.next, self.cursor) = (expected, expected);
        self.ending = false;
        self.end(Request::failed(error.code(), &error.to_string()));
    }

    /// The run is no longer this worker's.
    pub(crate) fn fence(&mut self) {
        self.broken = Some(Error::Fenced);
        self.over = true;
        self.in_flight = None;
        self.kept.clear();
        self.gathering.clear();
        (self.kept_bytes, self.gathering_bytes) = (0, 0);
        self.cursor = self.next;
    }
}

#[cfg(test)]
impl Outbox {
    /// What no function can do.
    pub(crate) fn raw_entry_of_any_size(&mut self, entry: &str) {
        self.block_bytes_max = usize::MAX;
        drop(self.raw_entry(entry));
    }
}

#[cfg(test)]
mod tests;

fn refusal(error: &ErrorBody) -> Error {
    Error::Refused { code: error.code, message: error.message.clone() }
}
