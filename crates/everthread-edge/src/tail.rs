//! Tails: a node's live end of each session that somebody here follows.
//!
//! A tail owns a byte-bounded ring of encoded records, shared by all attachments. The store's feed pushes into it without a
//! queue in between; an attachment is a cursor that reads it. Whatever the feed loses, the tail repairs from the log: a
//! record that does not follow the head, a doubt of the feed, or a silence that lasts too long leads to a read.
//!
//! **Invariant:** the ring's records are contiguous, end at the head, and nothing reaches an attachment but in order.

mod found;
mod waiters;

use crate::conflate::{self, Folded};
use crate::metrics::{Repaired, Repairs};
use crate::reader::Reader;
use bytes::Bytes;
use everthread_control::TaskGroup;
use everthread_protocol::{Cursor, Epoch, Record, Seq, SessionKey};
use everthread_store::pages::epoch_at;
use everthread_store::{Error, Follower, Following, Interest, Page, Refusal, Store};
use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

pub use everthread_store::pages::{goes_on, is_valid, lost, since_of, start_of};
pub use found::{Found, Frames};
pub(crate) use waiters::Waiters;
pub use waiters::{STOPPED, Waiter, Wake};

/// Bytes of encoded records that one tail keeps. A follower that is further behind reads the log.
const RING_BYTES_MAX: usize = 256 * 1024;
/// A follower with more than this before it, besides the next block, gets the log folded instead of the ring raw.
pub const LAG_BYTES_MAX: usize = 64 * 1024;
/// After this much silence a tail whose session has an active run, or had until just now, compares itself with the log.
const SILENCE_ACTIVE: Duration = Duration::from_millis(1500);
/// After this much silence any other tail does.
const SILENCE_IDLE: Duration = Duration::from_secs(15);
/// How often that is looked at. Together: what the feed has lost is noticed within 2 s and 20 s, and of the latter a good part
/// is left for a node or a store that is busy.
const LOOK: Duration = Duration::from_millis(375);
/// Sessions compared with one request.
const CHECK_BATCH: usize = 256;
/// Pause before a repair that failed is tried again.
const REPAIR_PAUSE: Duration = Duration::from_millis(250);

/// The live end of one session on this node.
pub struct Tail {
    key: SessionKey,
    ring: Mutex<Ring>,
    waiters: Arc<Waiters>,
    /// The last stretch of the ring that was folded: who follows at the same pace wants the same.
    folded: Mutex<Option<Box<Folded>>>,
    repair: Repair,
    following: OnceLock<Following>,
}

/// Brings a tail back in line with the log. One repair at a time; what is wanted meanwhile is done after it.
struct Repair {
    wanted: AtomicBool,
    is_running: AtomicBool,
    start: Arc<dyn Fn(Arc<Tail>) + Send + Sync>,
    tail: Weak<Tail>,
}

#[derive(Debug)]
struct Ring {
    items: VecDeque<Item>,
    /// Bytes that were ever pushed; positions of items are counted in them.
    pushed: usize,
    bytes: usize,
    epochs: Vec<(Epoch, Seq)>,
    head: Cursor,
    /// Whether a run was active when the log was last looked at.
    active: bool,
    heard: Instant,
    /// Whether the head was learned from the store at all.
    known: bool,
    /// The session was deleted. What has its name now has another tail.
    is_gone: bool,
}

#[derive(Debug)]
struct Item {
    from: Seq,
    to: Seq,
    /// `pushed` before this item.
    at: usize,
    suffix: Bytes,
    epoch: Epoch,
    /// Where in the suffix its blocks begin.
    blocks_at: usize,
    /// Whether those on hold are to be told.
    is_urgent: bool,
    /// When it was brought here.
    arrived: Instant,
}

impl Item {
    fn record(&self) -> Record {
        // All but the brace that closes the frame.
        let blocks = self.suffix.slice(self.blocks_at..self.suffix.len() - 1);
        Record { epoch: self.epoch, from: self.from, to: self.to, blocks }
    }
}

impl Ring {
    fn new() -> Self {
        Ring {
            items: VecDeque::new(),
            pushed: 0,
            bytes: 0,
            epochs: Vec::new(),
            head: Cursor { epoch: Epoch(0), seq: Seq::ZERO },
            active: false,
            heard: Instant::now(),
            known: false,
            is_gone: false,
        }
    }

    /// Takes a record from the feed; false if it does not follow the head and the log must be read.
    fn push(&mut self, record: &Record) -> bool {
        if self.is_gone || !self.known || record.epoch < self.head.epoch {
            return self.known;
        }
        #[cfg(feature = "planted-faults")]
        if everthread_store::planted::is(everthread_store::planted::Fault::GapCheck)
            && record.epoch == self.head.epoch
            && record.from > self.head.seq.next()
        {
            self.append(record);
            return true;
        }
        // Of another epoch: it may follow by its numbers only, on a tail that was lost and is written anew, or in a session
        // that was deleted and made anew.
        if record.epoch > self.head.epoch || record.from > self.head.seq.next() {
            return false;
        }
        if record.to > self.head.seq {
            self.append(record);
        }
        true
    }

    /// Takes the record that follows the head.
    fn append(&mut self, record: &Record) {
        let suffix = record.frame_suffix(since_of(&self.epochs, record));
        self.bytes += suffix.len();
        let (at, len) = (self.pushed, suffix.len());
        // Nobody on hold may come to be far behind.
        let is_much = at / LAG_BYTES_MAX != (at + len) / LAG_BYTES_MAX;
        self.heard = Instant::now();
        self.items.push_back(Item {
            arrived: self.heard,
            from: record.from,
            to: record.to,
            at,
            blocks_at: len - 1 - record.blocks.len(),
            suffix,
            epoch: record.epoch,
            is_urgent: is_much || conflate::is_urgent(&record.blocks),
        });
        self.pushed += len;
        self.head = Cursor { epoch: record.epoch, seq: record.to };
        while self.bytes > RING_BYTES_MAX && self.items.len() > 1 {
            if let Some(item) = self.items.pop_front() {
                self.bytes -= item.suffix.len();
            }
        }
    }

    /// The session is gone, if this is still where it stood before that was found.
    fn end(&mut self, head: Cursor) -> bool {
        self.is_gone |= self.known && self.head == head;
        if self.is_gone {
            self.items.clear();
            self.bytes = 0;
        }
        self.is_gone
    }

    /// Whether a log with these epochs was begun after everything here was written: one of this name was deleted.
    fn is_before(&self, epochs: &[(Epoch, Seq)]) -> bool {
        self.known
            && epochs.first().is_some_and(|(first, since)| *since == Seq(1) && *first > self.head.epoch)
    }

    /// Whether a page was read before the log here was begun.
    fn is_after(&self, page: &Page) -> bool {
        let began = self.epochs.first().filter(|(_, since)| self.known && *since == Seq(1));
        began.is_some_and(|(first, _)| *first > page.head.epoch)
    }

    /// Takes what a read of the log brought. If the log is not the one that the ring is of, the ring begins anew.
    ///
    /// The page may be older than the ring: the feed does not wait for reads. Such a page teaches nothing, unless the ring
    /// stood where it stands when the read was begun (`asked`): then the log has lost its end, and nobody has written since.
    fn learn(&mut self, page: &Page, asked: Option<Cursor>) {
        let end = cursor_of(page);
        if self.is_before(&page.epochs) {
            self.end(self.head);
        }
        if self.is_gone || self.is_after(page) {
            return;
        }
        let has_shrunk = asked == Some(self.head) && end.epoch == self.head.epoch && end.seq < self.head.seq;
        if self.known && end != self.head && !has_shrunk && is_valid(&self.epochs, self.head.seq, end) {
            // The feed was faster than the read: what the page tells is known, and its end is not the end any more.
            return;
        }
        let is_continued = self.known && is_valid(&page.epochs, page.head.seq, self.head);
        self.active = page.head.active > 0;
        self.heard = Instant::now();
        if is_continued {
            self.epochs.clone_from(&page.epochs);
            for record in &page.records {
                if record.to > self.head.seq && record.from <= self.head.seq.next() {
                    self.append(record);
                }
            }
        }
        // What one page cannot bridge is left to those who need it: the ring begins anew at the head.
        if !is_continued || self.head.seq < page.head.seq {
            self.items.clear();
            self.bytes = 0;
            self.head = end;
        } else if self.head.seq == page.head.seq {
            self.head.epoch = page.head.epoch;
        }
        if self.head.epoch <= page.head.epoch {
            self.epochs.clone_from(&page.epochs);
        }
        self.known = true;
    }

    /// Where in the ring what follows `cursor` begins, unless that is more than `far` bytes.
    fn index_after(&self, cursor: Cursor, far: usize) -> Result<usize, Found> {
        if self.is_gone {
            return Err(Found::Gone);
        }
        if (cursor.epoch, cursor.seq) > (self.head.epoch, self.head.seq) {
            return Err(Found::Ahead);
        }
        if !is_valid(&self.epochs, self.head.seq, cursor) {
            return Err(Found::Invalid);
        }
        if cursor.seq == self.head.seq {
            return Err(Found::Nothing(self.head));
        }
        // Mostly it is the last one.
        let is_after = |item: &Item| item.to <= cursor.seq;
        let index = match self.items.len().checked_sub(2) {
            Some(before) if is_after(&self.items[before]) => before + 1,
            _ => self.items.partition_point(is_after),
        };
        let first = self.items.get(index).filter(|item| item.from <= cursor.seq.next());
        // One block may be larger than that: whoever has all but the last is not behind.
        let is_near = |item: &Item| self.pushed - item.at - item.suffix.len() <= far;
        match first {
            Some(first) if is_near(first) => Ok(index),
            _ => Err(Found::Behind(self.head.seq.0 - cursor.seq.0)),
        }
    }

    /// About `bytes_max` of what stands there and behind it.
    fn stretch(&self, index: usize, bytes_max: usize) -> impl Iterator<Item = &Item> {
        let mut bytes = 0;
        self.items.range(index..).take_while(move |item| {
            let is_first = bytes == 0;
            bytes += item.suffix.len();
            is_first || bytes <= bytes_max
        })
    }

    /// The item that stands there, if it is the last.
    fn only_at(&self, index: usize) -> Option<Frames> {
        let only = self.items.get(index).filter(|_| index + 1 == self.items.len())?;
        Some(Frames::one(only.suffix.clone(), self.cursor(only.to), true).since(only.arrived))
    }

    fn cursor(&self, seq: Seq) -> Cursor {
        Cursor { epoch: epoch_at(&self.epochs, seq), seq }
    }

    fn after(&self, cursor: Cursor, bytes_max: usize) -> Found {
        let index = match self.index_after(cursor, LAG_BYTES_MAX) {
            Ok(index) => index,
            Err(found) => return found,
        };
        if let Some(only) = self.only_at(index) {
            return Found::Frames(only);
        }
        let to = self.stretch(index, bytes_max).last().map_or(cursor.seq, |item| item.to);
        let frames = self.stretch(index, bytes_max).map(|item| item.suffix.clone());
        let frames = Frames::of(frames, self.cursor(to), to == self.head.seq);
        let arrived = self.items.get(index).map_or(self.heard, |item| item.arrived);
        frames.map_or(Found::Nothing(cursor), |frames| Found::Frames(frames.since(arrived)))
    }

    /// [`Ring::after`], as records, unless there is only one.
    fn records_after(&self, cursor: Cursor, bytes_max: usize) -> Result<Vec<(Record, Seq)>, Found> {
        let index = self.index_after(cursor, RING_BYTES_MAX)?;
        if let Some(only) = self.only_at(index) {
            return Err(Found::Frames(only));
        }
        let records = self.stretch(index, bytes_max).map(Item::record);
        let with_since = |record| {
            let since = since_of(&self.epochs, &record);
            (record, since)
        };
        Ok(records.map(with_since).collect())
    }

    /// Whether what follows `cursor` is there, and nothing of it urgent.
    fn may_wait(&self, cursor: Cursor) -> bool {
        match self.index_after(cursor, LAG_BYTES_MAX) {
            Ok(index) => !self.items.range(index..).any(|item| item.is_urgent),
            Err(found) => matches!(found, Found::Nothing(_)),
        }
    }
}

impl Tail {
    /// The session.
    pub fn key(&self) -> &SessionKey {
        &self.key
    }

    /// The session was deleted: nothing comes any more.
    pub fn is_gone(&self) -> bool {
        lock(&self.ring).is_gone
    }

    /// The epoch that the session's log was begun in, if that is still known: one that is made anew has another.
    pub fn begun(&self) -> Option<Epoch> {
        let ring = lock(&self.ring);
        ring.epochs.first().filter(|(_, since)| *since == Seq(1)).map(|(epoch, _)| *epoch)
    }

    /// What follows `cursor`, about `bytes_max` of it.
    pub fn after(&self, cursor: Cursor, bytes_max: usize) -> Found {
        lock(&self.ring).after(cursor, bytes_max)
    }

    /// [`Tail::after`], folded into as few frames as may be.
    pub fn folded_after(&self, cursor: Cursor, bytes_max: usize) -> Found {
        let is_shared = self.waiters.is_shared();
        if is_shared && let Some(folded) = lock(&self.folded).as_ref().filter(|f| f.is_for(cursor)) {
            // What came since is not urgent, or it would have been made anew: it goes with the next frame.
            if self.may_wait(folded.to) {
                let frames = Frames::of(folded.frames.iter().cloned(), folded.to, false);
                return frames.map_or(Found::Nothing(cursor), Found::Frames);
            }
        }
        let records = match lock(&self.ring).records_after(cursor, bytes_max) {
            Ok(records) => records,
            Err(found) => return found,
        };
        let Some((last, _)) = records.last() else { return Found::Nothing(cursor) };
        let to = Cursor { epoch: last.epoch, seq: last.to };
        let frames = conflate::fold(&records);
        if is_shared {
            *lock(&self.folded) = Some(Box::new(Folded::new(cursor, to, frames.clone())));
        }
        Frames::of(frames, to, false).map_or(Found::Nothing(cursor), Found::Frames)
    }

    /// Whether all that follows `cursor` is here, and may wait to be folded.
    pub fn may_wait(&self, cursor: Cursor) -> bool {
        lock(&self.ring).may_wait(cursor)
    }

    /// The cursor at `seq`, as somebody means it who was sent everything up to `sent`.
    pub fn cursor_at(&self, seq: Seq, sent: Cursor) -> Cursor {
        let ring = lock(&self.ring);
        let mut known = ring.epochs.iter().rev().map(|(epoch, since)| (*epoch, *since));
        let found = known.find(|(epoch, since)| *epoch <= sent.epoch && *since <= seq);
        Cursor { epoch: found.map_or(sent.epoch, |(epoch, _)| epoch), seq }
    }

    /// Marks `attachment` at `wake` at every change from here on.
    pub fn wait(&self, wake: Arc<Wake>, attachment: u32) -> Waiter {
        self.waiters.wait(wake, attachment)
    }

    fn want_repair(&self) {
        self.repair.wanted.store(true, Ordering::SeqCst);
        if !self.repair.is_running.swap(true, Ordering::SeqCst)
            && let Some(tail) = self.repair.tail.upgrade()
        {
            (self.repair.start)(tail);
        }
    }

    /// Whether it has been silent for so long that the log should be asked.
    fn is_overdue(&self) -> bool {
        let ring = lock(&self.ring);
        ring.heard.elapsed() >= if ring.active { SILENCE_ACTIVE } else { SILENCE_IDLE }
    }
}

impl Follower for Tail {
    fn record(&self, record: Record) {
        let (follows, is_urgent) = {
            let mut ring = lock(&self.ring);
            ring.active = true;
            (ring.push(&record), ring.items.back().is_none_or(|item| item.is_urgent))
        };
        if follows {
            self.waiters.wake(is_urgent);
        } else {
            self.want_repair();
        }
    }

    fn changed(&self) {}

    fn doubt(&self) {
        self.want_repair();
    }
}

/// All tails of a node. Cheap to clone.
pub struct Tails<S> {
    inner: Arc<Inner<S>>,
}

impl<S> Clone for Tails<S> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone() }
    }
}

struct Inner<S> {
    reader: Reader<S>,
    repairs: Repairs,
    tasks: TaskGroup,
    tails: Mutex<HashMap<SessionKey, Weak<Tail>>>,
}

impl<S: Store> Tails<S> {
    /// No tails yet; one task looks after all that will be.
    pub fn new(reader: Reader<S>, repairs: Repairs, tasks: TaskGroup) -> Self {
        let this = Self {
            inner: Arc::new(Inner { reader, repairs, tasks: tasks.clone(), tails: Mutex::default() }),
        };
        let checks = this.clone();
        tasks.spawn_until_stopped(async move { checks.check_for_ever().await });
        this
    }

    /// How many sessions are followed here.
    pub fn len(&self) -> usize {
        lock(&self.inner.tails).len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The tail of a session that exists, and the log's end as read just now: the tail itself may still wait for the feed.
    pub async fn open(&self, key: &SessionKey) -> Result<(Arc<Tail>, Arc<Page>), Error> {
        loop {
            let tail = self.get(key);
            let page = self.inner.reader.end(key).await?;
            let (is_behind, has_moved, is_its) = {
                let mut ring = lock(&tail.ring);
                let before = ring.head;
                let is_behind = ring.known && page.head.seq > before.seq && !ring.is_before(&page.epochs);
                if !is_behind {
                    // Others may have begun this read before.
                    ring.learn(&page, None);
                }
                (is_behind, ring.head != before, !ring.is_gone && !ring.is_after(&page))
            };
            if is_behind {
                tail.want_repair();
            } else if has_moved || !is_its {
                tail.waiters.wake_all();
            }
            // Else the session was deleted and made anew just now.
            if is_its {
                return Ok((tail, page));
            }
        }
    }

    fn get(&self, key: &SessionKey) -> Arc<Tail> {
        let mut tails = lock(&self.inner.tails);
        if let Some(tail) = tails.get(key).and_then(Weak::upgrade)
            && !lock(&tail.ring).is_gone
        {
            return tail;
        }
        let this = self.clone();
        let start = Arc::new(move |tail: Arc<Tail>| {
            let (this, tasks) = (this.clone(), this.inner.tasks.clone());
            tasks.spawn_until_stopped(async move { this.repair_until_done(&tail).await });
        });
        let tail = Arc::new_cyclic(|weak: &Weak<Tail>| Tail {
            key: key.clone(),
            ring: Mutex::new(Ring::new()),
            waiters: Arc::default(),
            folded: Mutex::default(),
            repair: Repair {
                wanted: AtomicBool::new(false),
                is_running: AtomicBool::new(false),
                start,
                tail: weak.clone(),
            },
            following: OnceLock::new(),
        });
        tails.insert(key.clone(), Arc::downgrade(&tail));
        drop(tails);
        // The feed holds the follower for as long as the guard lives, and the tail holds the guard: a relay breaks the ring.
        let relay = Arc::new(Relay(Arc::downgrade(&tail)));
        let following = self.inner.reader.store().follow(key, Interest::Log, relay);
        drop(tail.following.set(following));
        tail
    }

    /// Repairs for as long as somebody wants it and somebody follows.
    async fn repair_until_done(&self, tail: &Arc<Tail>) {
        loop {
            while tail.repair.wanted.swap(false, Ordering::SeqCst) {
                let repaired = self.repair(tail).await;
                self.inner.repairs.done(&repaired);
                if let Err(error) = repaired {
                    tail.repair.wanted.store(true, Ordering::SeqCst);
                    if Arc::strong_count(tail) == 1 {
                        // Whoever takes it up at this very moment checks it, and wants it anew.
                        tail.repair.is_running.store(false, Ordering::SeqCst);
                        return;
                    }
                    tracing::debug!(key = %tail.key, %error, "a tail waits for the store");
                    tokio::time::sleep(REPAIR_PAUSE).await;
                }
            }
            tail.repair.is_running.store(false, Ordering::SeqCst);
            // Somebody may have wanted it after the last look and seen it still running.
            let is_missed = tail.repair.wanted.load(Ordering::SeqCst);
            if !is_missed || tail.repair.is_running.swap(true, Ordering::SeqCst) {
                return;
            }
        }
    }

    /// Whether the log ends there.
    async fn is_at(&self, tail: &Tail, end: Cursor) -> Result<bool, Error> {
        let heads = self.inner.reader.store().heads(std::slice::from_ref(&tail.key)).await?;
        let Some(Some(head)) = heads.first() else { return Ok(false) };
        let is_same = (head.epoch, head.seq) == (end.epoch, end.seq);
        if is_same {
            let mut ring = lock(&tail.ring);
            ring.active = head.active > 0;
            ring.heard = Instant::now();
        }
        Ok(is_same)
    }

    async fn repair(&self, tail: &Tail) -> Result<Repaired, Error> {
        let (after, is_gone, is_known) = {
            let ring = lock(&tail.ring);
            (ring.head, ring.is_gone, ring.known)
        };
        // Mostly a doubt is idle. And whoever follows a session that is archived must not bring it back by that.
        if is_gone || (is_known && self.is_at(tail, after).await?) {
            return Ok(Repaired::Idle);
        }
        let repaired = match self.inner.reader.page(&tail.key, after.seq, RING_BYTES_MAX).await {
            Ok(page) => {
                let mut ring = lock(&tail.ring);
                let before = ring.head;
                ring.learn(&page, Some(after));
                Repaired::of(is_known, ring.head != before, !ring.items.is_empty())
            }
            // What nobody has opened yet is not there to be ended.
            Err(Error::Refused(Refusal::NoSession)) => {
                let mut ring = lock(&tail.ring);
                if !ring.end(after) && ring.known {
                    tail.repair.wanted.store(true, Ordering::SeqCst);
                }
                Repaired::Gone
            }
            Err(error) => return Err(error),
        };
        tail.waiters.wake_all();
        Ok(repaired)
    }

    async fn check_for_ever(&self) {
        let mut tick = tokio::time::interval(LOOK);
        loop {
            tick.tick().await;
            let overdue: Vec<Arc<Tail>> = {
                let mut tails = lock(&self.inner.tails);
                tails.retain(|_, tail| tail.strong_count() > 0);
                tails.values().filter_map(Weak::upgrade).filter(|tail| tail.is_overdue()).collect()
            };
            for batch in overdue.chunks(CHECK_BATCH) {
                self.check(batch).await;
            }
        }
    }

    async fn check(&self, batch: &[Arc<Tail>]) {
        let keys: Vec<SessionKey> = batch.iter().map(|tail| tail.key.clone()).collect();
        let heads = self.inner.reader.store().each_head(&keys).await;
        for (tail, head) in batch.iter().zip(heads) {
            // What cannot be reached now is looked at again; it keeps nobody from the others.
            let Ok(head) = head else { continue };
            let mut ring = lock(&tail.ring);
            let Some(head) = head else {
                ring.heard = Instant::now();
                drop(ring);
                tail.want_repair();
                continue;
            };
            ring.active = head.active > 0;
            ring.heard = Instant::now();
            let is_same = (head.epoch, head.seq) == (ring.head.epoch, ring.head.seq);
            drop(ring);
            if !is_same {
                tail.want_repair();
            }
        }
    }
}

fn cursor_of(page: &Page) -> Cursor {
    Cursor { epoch: page.head.epoch, seq: page.head.seq }
}

/// Passes the feed on to a tail for as long as somebody follows it.
struct Relay(Weak<Tail>);

impl Follower for Relay {
    fn record(&self, record: Record) {
        if let Some(tail) = self.0.upgrade() {
            tail.record(record);
        }
    }

    fn changed(&self) {}

    fn doubt(&self) {
        if let Some(tail) = self.0.upgrade() {
            tail.doubt();
        }
    }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
#[path = "tail_tests.rs"]
mod tests;
