//! Tails: a node's live end of each session that somebody here follows.
//!
//! A tail owns a byte-bounded ring of encoded records, shared by all attachments. The store's feed pushes into it without a
//! queue in between; an attachment is a cursor that reads it. Whatever the feed loses, the tail repairs from the log: a
//! record that does not follow the head, a doubt of the feed, or a silence that lasts too long leads to a read.
//!
//! **Invariant:** the ring's records are contiguous, end at the head, and nothing reaches an attachment but in order.

use crate::reader::Reader;
use bytes::Bytes;
use everthread_control::TaskGroup;
use everthread_protocol::{Cursor, Epoch, Record, Seq, SessionKey};
use everthread_store::{Follower, Following, Interest, Page, Store};
use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// Bytes of encoded records that one tail keeps. A follower that is further behind reads the log.
const RING_BYTES_MAX: usize = 256 * 1024;
/// A follower with more than this before it, besides the next block, gets the log folded instead of the ring raw.
pub const LAG_BYTES_MAX: usize = 64 * 1024;
/// After this much silence a tail whose session has an active run, or had until just now, compares itself with the log.
const SILENCE_ACTIVE: Duration = Duration::from_millis(1500);
/// After this much silence any other tail does.
const SILENCE_IDLE: Duration = Duration::from_secs(20);
/// Sessions compared with one request.
const CHECK_BATCH: usize = 256;
/// Beyond every head: seqs are below 2^53.
const BEYOND: Seq = Seq(1 << 53);
/// Pause before a repair that failed is tried again.
const REPAIR_PAUSE: Duration = Duration::from_millis(250);

/// Wakes one connection, and tells it which of its attachments have something new.
#[derive(Debug, Default)]
pub struct Wake {
    notify: Notify,
    dirty: Mutex<Vec<u32>>,
}

impl Wake {
    /// Marks an attachment and wakes the connection.
    pub fn mark(&self, attachment: u32) {
        lock(&self.dirty).push(attachment);
        self.notify.notify_one();
    }

    /// Ready when something was marked since the last call of `take`. Cancel safe.
    pub async fn woken(&self) {
        self.notify.notified().await;
    }

    /// What was marked.
    pub fn take(&self, into: &mut Vec<u32>) {
        into.append(&mut lock(&self.dirty));
    }
}

/// One attachment's registration with a tail; dropping it ends the wake-ups.
pub struct Waiter {
    list: Arc<Waiters>,
    id: u64,
    marked: Arc<AtomicBool>,
}

impl Waiter {
    /// From here on the next change marks the attachment again. Call before reading the ring.
    pub fn rearm(&self) {
        self.marked.store(false, Ordering::Release);
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        lock(&self.list.by_id).remove(&self.id);
    }
}

#[derive(Default)]
struct Waiters {
    by_id: Mutex<HashMap<u64, Waiting>>,
    next: std::sync::atomic::AtomicU64,
}

struct Waiting {
    wake: Arc<Wake>,
    attachment: u32,
    marked: Arc<AtomicBool>,
}

impl Waiters {
    fn wake_all(&self) {
        for waiting in lock(&self.by_id).values() {
            if !waiting.marked.swap(true, Ordering::AcqRel) {
                waiting.wake.mark(waiting.attachment);
            }
        }
    }
}

/// The live end of one session on this node.
pub struct Tail {
    key: SessionKey,
    ring: Mutex<Ring>,
    waiters: Arc<Waiters>,
    repair: Repair,
    following: OnceLock<Following>,
}

#[derive(Default)]
struct Repair {
    wanted: AtomicBool,
    notify: Notify,
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
}

#[derive(Debug)]
struct Item {
    from: Seq,
    to: Seq,
    /// `pushed` before this item.
    at: usize,
    suffix: Bytes,
}

/// What a cursor finds in a ring.
#[derive(Debug)]
pub enum Found {
    /// Frames to send, and where the cursor stands after them.
    Frames(Vec<Bytes>, Cursor),
    /// The cursor is at the head.
    Nothing(Cursor),
    /// The cursor is off the ring, or too far behind: read the log. So many entries are missing.
    Behind(u64),
    /// The cursor comes from a read of the log that the feed has not caught up with: it has everything.
    Ahead,
    /// The cursor is not of this log.
    Invalid,
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
        }
    }

    fn since(&self) -> Seq {
        self.epochs.last().map_or(Seq(1), |(_, since)| *since)
    }

    /// Takes a record from the feed; false if it does not follow the head and the log must be read.
    fn push(&mut self, record: &Record) -> bool {
        if !self.known || record.epoch < self.head.epoch {
            return self.known;
        }
        if record.epoch > self.head.epoch {
            // Its first record tells where the new epoch begins, if it follows what is known.
            if record.from != self.head.seq.next() {
                return false;
            }
            self.epochs.push((record.epoch, record.from));
        } else if record.to <= self.head.seq {
            return true;
        } else if record.from > self.head.seq.next() {
            return false;
        }
        let suffix = record.frame_suffix(self.since());
        self.bytes += suffix.len();
        self.items.push_back(Item {
            from: record.from,
            to: record.to,
            at: self.pushed,
            suffix: suffix.clone(),
        });
        self.pushed += suffix.len();
        self.head = Cursor { epoch: record.epoch, seq: record.to };
        self.heard = Instant::now();
        while self.bytes > RING_BYTES_MAX && self.items.len() > 1 {
            if let Some(item) = self.items.pop_front() {
                self.bytes -= item.suffix.len();
            }
        }
        true
    }

    /// Takes what a read of the log brought. If the log is not the one that the ring is of, the ring begins anew.
    ///
    /// The page may be older than the ring: the feed does not wait for reads. Such a page teaches nothing.
    fn learn(&mut self, page: &Page) {
        let is_older =
            page.head.seq < self.head.seq && is_valid(&self.epochs, self.head.seq, cursor_of(page));
        if self.known && is_older {
            return;
        }
        let is_continued = self.known && is_valid(&page.epochs, page.head.seq, self.head);
        self.active = page.head.active > 0;
        self.heard = Instant::now();
        if is_continued {
            for record in &page.records {
                if record.to > self.head.seq && !self.push(record) {
                    break;
                }
            }
        }
        // What one page cannot bridge is left to those who need it: the ring begins anew at the head.
        if !is_continued || self.head.seq < page.head.seq {
            self.items.clear();
            self.bytes = 0;
            self.head = cursor_of(page);
        } else if self.head.seq == page.head.seq {
            self.head.epoch = page.head.epoch;
        }
        if self.head.epoch <= page.head.epoch {
            self.epochs.clone_from(&page.epochs);
        }
        self.known = true;
    }

    /// Whether the ring has not heard yet of what a cursor points at.
    fn is_before(&self, cursor: Cursor) -> bool {
        cursor.epoch > self.head.epoch || (cursor.epoch == self.head.epoch && cursor.seq > self.head.seq)
    }

    fn after(&self, cursor: Cursor, bytes_max: usize) -> Found {
        if !is_valid(&self.epochs, self.head.seq, cursor) {
            return if self.is_before(cursor) { Found::Ahead } else { Found::Invalid };
        }
        if cursor.seq == self.head.seq {
            return Found::Nothing(self.head);
        }
        let behind = Found::Behind(self.head.seq.0 - cursor.seq.0);
        let index = self.items.partition_point(|item| item.to <= cursor.seq);
        let Some(first) = self.items.get(index).filter(|item| item.from <= cursor.seq.next()) else {
            return behind;
        };
        // One block may be larger than that: whoever has all but the last is not behind.
        if self.pushed - first.at - first.suffix.len() > LAG_BYTES_MAX {
            return behind;
        }
        let (mut frames, mut bytes, mut to) = (Vec::new(), 0, cursor.seq);
        for item in self.items.range(index..) {
            if bytes > 0 && bytes + item.suffix.len() > bytes_max {
                break;
            }
            bytes += item.suffix.len();
            to = item.to;
            frames.push(item.suffix.clone());
        }
        Found::Frames(frames, Cursor { epoch: epoch_at(&self.epochs, to), seq: to })
    }
}

/// Whether a cursor is of the log with these epochs and this head.
pub fn is_valid(epochs: &[(Epoch, Seq)], head: Seq, cursor: Cursor) -> bool {
    let Some(index) = epochs.iter().position(|(epoch, _)| *epoch == cursor.epoch) else { return false };
    cursor.seq <= head && epochs.get(index + 1).is_none_or(|(_, next)| cursor.seq < *next)
}

fn epoch_at(epochs: &[(Epoch, Seq)], seq: Seq) -> Epoch {
    epochs
        .iter()
        .rev()
        .find(|(_, since)| *since <= seq)
        .or(epochs.first())
        .map_or(Epoch(0), |(epoch, _)| *epoch)
}

/// First seq of a record's epoch. Epochs older than the table are taken to begin with the record: whoever has the one
/// before it may go on.
pub fn since_of(epochs: &[(Epoch, Seq)], record: &Record) -> Seq {
    epochs.iter().find(|(known, _)| *known == record.epoch).map_or(record.from, |(_, since)| *since)
}

impl Tail {
    /// The session.
    pub fn key(&self) -> &SessionKey {
        &self.key
    }

    /// What follows `cursor`, about `bytes_max` of it.
    pub fn after(&self, cursor: Cursor, bytes_max: usize) -> Found {
        lock(&self.ring).after(cursor, bytes_max)
    }

    /// Where the tail stands.
    pub fn head(&self) -> Cursor {
        lock(&self.ring).head
    }

    /// Whether a cursor is of this log.
    pub fn knows(&self, cursor: Cursor) -> bool {
        let ring = lock(&self.ring);
        is_valid(&ring.epochs, ring.head.seq, cursor)
    }

    /// The cursor before the first entry.
    pub fn start(&self) -> Cursor {
        let epoch = lock(&self.ring).epochs.first().map_or(Epoch(0), |(epoch, _)| *epoch);
        Cursor { epoch, seq: Seq::ZERO }
    }

    /// Marks `attachment` at `wake` at every change from here on.
    pub fn wait(&self, wake: Arc<Wake>, attachment: u32) -> Waiter {
        let id = self.waiters.next.fetch_add(1, Ordering::Relaxed);
        let marked = Arc::new(AtomicBool::new(false));
        let waiting = Waiting { wake, attachment, marked: marked.clone() };
        lock(&self.waiters.by_id).insert(id, waiting);
        Waiter { list: self.waiters.clone(), id, marked }
    }

    /// Somebody has read the log up to `cursor`: the tail should get there too, also if the feed has lost something.
    pub fn expect(&self, cursor: Cursor) {
        if lock(&self.ring).is_before(cursor) {
            self.want_repair();
        }
    }

    fn want_repair(&self) {
        self.repair.wanted.store(true, Ordering::Release);
        self.repair.notify.notify_one();
    }

    /// Whether it has been silent for so long that the log should be asked.
    fn is_overdue(&self) -> bool {
        let ring = lock(&self.ring);
        ring.heard.elapsed() >= if ring.active { SILENCE_ACTIVE } else { SILENCE_IDLE }
    }
}

impl Follower for Tail {
    fn record(&self, record: Record) {
        let follows = {
            let mut ring = lock(&self.ring);
            ring.active = true;
            ring.push(&record)
        };
        if follows {
            self.waiters.wake_all();
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
    tasks: TaskGroup,
    tails: Mutex<HashMap<SessionKey, Weak<Tail>>>,
}

impl<S: Store> Tails<S> {
    /// No tails yet; one task looks after all that will be.
    pub fn new(reader: Reader<S>, tasks: TaskGroup) -> Self {
        let this = Self { inner: Arc::new(Inner { reader, tasks: tasks.clone(), tails: Mutex::default() }) };
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

    /// The tail of a session that exists, at least as new as this call.
    pub async fn open(&self, key: &SessionKey) -> Result<Arc<Tail>, everthread_store::Error> {
        let tail = self.get(key);
        // Ask for nothing but the head: what lies before is read when somebody wants it.
        let page = self.inner.reader.page(key, BEYOND, 1).await?;
        let (is_behind, has_moved) = {
            let mut ring = lock(&tail.ring);
            let before = ring.head;
            let is_behind = ring.known && page.head.seq > before.seq;
            if !is_behind {
                ring.learn(&page);
            }
            (is_behind, ring.head != before)
        };
        if is_behind {
            // Whoever comes from another node may have more than this one has heard.
            self.repair(&tail).await?;
        } else if has_moved {
            tail.waiters.wake_all();
        }
        Ok(tail)
    }

    fn get(&self, key: &SessionKey) -> Arc<Tail> {
        let mut tails = lock(&self.inner.tails);
        if let Some(tail) = tails.get(key).and_then(Weak::upgrade) {
            return tail;
        }
        let tail = Arc::new(Tail {
            key: key.clone(),
            ring: Mutex::new(Ring::new()),
            waiters: Arc::default(),
            repair: Repair::default(),
            following: OnceLock::new(),
        });
        tails.insert(key.clone(), Arc::downgrade(&tail));
        drop(tails);
        // The feed holds the follower for as long as the guard lives, and the tail holds the guard: a relay breaks the ring.
        let relay = Arc::new(Relay(Arc::downgrade(&tail)));
        let following = self.inner.reader.store().follow(key, Interest::Log, relay);
        drop(tail.following.set(following));
        let (this, weak) = (self.clone(), Arc::downgrade(&tail));
        self.inner.tasks.spawn_until_stopped(async move { this.repair_for_ever(weak).await });
        tail
    }

    /// Serves one tail's wish to be repaired, until the tail is gone.
    async fn repair_for_ever(&self, tail: Weak<Tail>) {
        loop {
            let Some(strong) = tail.upgrade() else { return };
            if !strong.repair.wanted.swap(false, Ordering::AcqRel) {
                // Between looks, hold nothing that keeps the tail alive.
                let notified = tokio::time::timeout(SILENCE_ACTIVE, wait_for(&strong));
                drop(notified.await);
                continue;
            }
            if let Err(error) = self.repair(&strong).await {
                strong.repair.wanted.store(true, Ordering::Release);
                tracing::debug!(key = %strong.key, %error, "a tail waits for the store");
                tokio::time::sleep(REPAIR_PAUSE).await;
            }
        }
    }

    async fn repair(&self, tail: &Tail) -> Result<(), everthread_store::Error> {
        let after = lock(&tail.ring).head;
        let page = self.inner.reader.page(&tail.key, after.seq, RING_BYTES_MAX).await?;
        lock(&tail.ring).learn(&page);
        tail.waiters.wake_all();
        Ok(())
    }

    async fn check_for_ever(&self) {
        let mut tick = tokio::time::interval(SILENCE_ACTIVE / 3);
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
        let Ok(heads) = self.inner.reader.store().heads(&keys).await else { return };
        for (tail, head) in batch.iter().zip(heads) {
            let Some(head) = head else { continue };
            let mut ring = lock(&tail.ring);
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

async fn wait_for(tail: &Tail) {
    tail.repair.notify.notified().await;
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
