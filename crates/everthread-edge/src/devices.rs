//! Devices: what they acknowledge is stored, at most once a second each, and what they have not read is counted.
//!
//! Owns the acknowledgements that wait for the store: one per device of a session, the furthest. One task writes them;
//! repeating a write is harmless and the store never moves a cursor back, so neither order nor failures matter. When the
//! node stops, it writes what is left after the last connection has ended.

use crate::Edge;
use crate::metrics::Metrics;
use crate::reader::PAGE_BYTES;
use crate::tail::lock;
use everthread_protocol::limits::UNREAD_MAX;
use everthread_protocol::{Author, Cursor, DeviceId, Record, Seq, SessionKey};
use everthread_store::{Error, Page, Store};
use futures_util::StreamExt as _;
use futures_util::stream;
use prometheus::IntCounterVec;
use serde::Deserialize;
use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Least time between two writes for one device of a session.
const WRITE_EVERY: Duration = Duration::from_secs(1);
/// Least time between two looks at what is due: what comes meanwhile is written together.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Writes under way at once.
const WRITES_MAX: usize = 64;
/// Devices whose acknowledgements wait. Of more, further ones are dropped: the device has read, and acknowledges again.
const WAITING_MAX: usize = 64 * 1024;
/// Bytes of the log that are read to count what is unread; what lies behind them is not counted.
const UNREAD_BYTES_MAX: usize = 4 * 1024 * 1024;

type Place = (SessionKey, DeviceId);

/// Stores acknowledgements. Cheap to clone.
pub struct Acks<S> {
    inner: Arc<Inner<S>>,
}

impl<S> Clone for Acks<S> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone() }
    }
}

struct Inner<S> {
    store: Arc<S>,
    waiting: Mutex<HashMap<Place, Waiting>>,
    /// Something is to be written, or a connection has ended.
    changed: Notify,
    /// Connections that may still acknowledge something.
    open: AtomicUsize,
    results: IntCounterVec,
}

/// One device of a session.
#[derive(Debug)]
struct Waiting {
    /// What is to be written; none if it is there only because something was written less than a second ago.
    cursor: Option<Cursor>,
    /// What is being written: until that is done only this node knows it.
    writing: Option<Cursor>,
    due: Instant,
}

/// A connection that may acknowledge something.
pub struct Open<S>(Acks<S>);

impl<S> Drop for Open<S> {
    fn drop(&mut self) {
        self.0.inner.open.fetch_sub(1, Ordering::SeqCst);
        self.0.inner.changed.notify_one();
    }
}

impl<S: Store> Acks<S> {
    /// Nothing waits; [`Acks::run`] writes.
    pub fn new(store: Arc<S>, metrics: &Metrics) -> Self {
        let (open, results) = (AtomicUsize::new(0), metrics.acks.clone());
        let inner = Inner { store, waiting: Mutex::default(), changed: Notify::new(), open, results };
        Self { inner: Arc::new(inner) }
    }

    /// Makes [`Acks::run`] wait for a connection to end.
    pub fn open(&self) -> Open<S> {
        self.inner.open.fetch_add(1, Ordering::SeqCst);
        Open(self.clone())
    }

    /// The device has read up to `cursor`.
    pub fn note(&self, key: &SessionKey, device: &DeviceId, cursor: Cursor) {
        let mut waiting = lock(&self.inner.waiting);
        let is_full = waiting.len() >= WAITING_MAX;
        match waiting.get_mut(&(key.clone(), device.clone())) {
            Some(known) => known.cursor = later(known.cursor, cursor),
            None if is_full => return self.count("dropped"),
            None => {
                let new = Waiting { cursor: Some(cursor), writing: None, due: Instant::now() };
                waiting.insert((key.clone(), device.clone()), new);
            }
        }
        drop(waiting);
        self.inner.changed.notify_one();
    }

    /// What the device has acknowledged is written now.
    pub fn hurry(&self, key: &SessionKey, device: &DeviceId) {
        if let Some(known) = lock(&self.inner.waiting).get_mut(&(key.clone(), device.clone())) {
            known.due = Instant::now();
            self.inner.changed.notify_one();
        }
    }

    /// What the store may not have yet of a device. What is not here any more, the store has: so this is asked first.
    fn unwritten(&self, key: &SessionKey, device: &DeviceId) -> Option<Cursor> {
        let waiting = lock(&self.inner.waiting);
        let known = waiting.get(&(key.clone(), device.clone()))?;
        known.cursor.map_or(known.writing, |cursor| later(known.writing, cursor))
    }

    /// Writes until `stop`, then what is left.
    pub async fn run(&self, stop: CancellationToken) {
        while !stop.is_cancelled() {
            let (due, next) = self.take(Some(Instant::now()));
            self.write(due).await;
            // Both may be passed by: nothing but this task takes what waits.
            tokio::select! {
                () = stop.cancelled() => break,
                () = self.inner.changed.notified() => {}
                () = tokio::time::sleep_until(next) => {}
            }
            drop(tokio::time::timeout(LOOK_EVERY, stop.cancelled()).await);
        }
        while self.inner.open.load(Ordering::SeqCst) > 0 {
            self.inner.changed.notified().await;
        }
        let (left, _) = self.take(None);
        self.write(left).await;
    }

    /// What is due `now`, or everything, and when to look again.
    fn take(&self, now: Option<Instant>) -> (Vec<(Place, Cursor)>, Instant) {
        let mut waiting = lock(&self.inner.waiting);
        let (mut due, start) = (Vec::new(), Instant::now());
        let mut next = start + WRITE_EVERY;
        waiting.retain(|place, known| {
            if now.is_some_and(|now| known.due > now) {
                next = next.min(known.due);
                return true;
            }
            let Some(cursor) = known.cursor.take() else { return false };
            (known.writing, known.due) = (Some(cursor), start + WRITE_EVERY);
            due.push((place.clone(), cursor));
            true
        });
        (due, next)
    }

    async fn write(&self, due: Vec<(Place, Cursor)>) {
        stream::iter(due)
            .for_each_concurrent(WRITES_MAX, |(place, cursor)| self.write_one(place, cursor))
            .await;
    }

    async fn write_one(&self, (key, device): Place, cursor: Cursor) {
        let result = self.inner.store.ack(&key, &device, cursor).await;
        let is_again = matches!(result, Err(Error::Unavailable(_) | Error::Indeterminate(_)));
        if let Some(known) = lock(&self.inner.waiting).get_mut(&(key.clone(), device.clone())) {
            known.writing = None;
            if is_again {
                known.cursor = later(known.cursor, cursor);
            }
        }
        match result {
            Ok(Some(_)) => self.count("ok"),
            // The log has lost what the device has read; it is told so by the log itself.
            Ok(None) => self.count("foreign"),
            Err(error) => {
                self.count(error.fault().code.as_str());
                tracing::debug!(%key, %device, %error, "an acknowledgement was not stored");
            }
        }
    }

    fn count(&self, result: &str) {
        self.inner.results.with_label_values(&[result]).inc();
    }
}

/// The later of two cursors of one device.
fn later(known: Option<Cursor>, new: Cursor) -> Option<Cursor> {
    Some(known.filter(|known| (known.epoch, known.seq) > (new.epoch, new.seq)).unwrap_or(new))
}

/// Where a device stands in a session.
#[derive(Debug, Default)]
pub(crate) struct Mark {
    /// Its durable cursor.
    pub cursor: Option<Cursor>,
    /// Up to where it has read this log.
    pub acked: Option<Seq>,
    /// Messages of others that began after that.
    pub unread: Option<u64>,
}

/// The mark of the author's device in a session whose end is `page`.
pub(crate) async fn mark<S: Store>(
    edge: &Edge<S>,
    key: &SessionKey,
    author: &Author,
    page: &Page,
) -> Result<Mark, Error> {
    let Some(device) = &author.device else { return Ok(Mark::default()) };
    let unwritten = edge.acks.unwritten(key, device);
    let stored = edge.reader.store().device_in(std::slice::from_ref(key), device).await?;
    let mut known = stored.into_iter().flatten().next();
    // It may come back before what it said last is written.
    if let Some(cursor) = unwritten
        && crate::tail::is_valid(&page.epochs, page.head.seq, cursor)
    {
        let at = everthread_protocol::Millis(0);
        let mut device =
            known.take().unwrap_or(everthread_store::Device { device: device.clone(), cursor, at });
        device.cursor = later(Some(device.cursor), cursor).unwrap_or(cursor);
        known = Some(device);
    }
    let Some(known) = known else { return Ok(Mark::default()) };
    let acked = known.acked(&page.epochs, page.head.seq);
    let unread = match acked {
        Some(acked) => Some(unread(edge, key, author, acked, page.head.seq).await?),
        None => None,
    };
    Ok(Mark { cursor: Some(known.cursor), acked, unread })
}

/// Messages of others that began after `acked`: at most [`UNREAD_MAX`], and within [`UNREAD_BYTES_MAX`] of log.
async fn unread<S: Store>(
    edge: &Edge<S>,
    key: &SessionKey,
    author: &Author,
    acked: Seq,
    head: Seq,
) -> Result<u64, Error> {
    let (mut count, mut bytes, mut after) = (0, 0, acked);
    while after < head && count < UNREAD_MAX && bytes < UNREAD_BYTES_MAX {
        let page = edge.reader.page(key, after, PAGE_BYTES).await?;
        let Some(last) = page.records.last() else { break };
        after = last.to;
        for record in &page.records {
            bytes += record.blocks.len();
            count += begun_in(record, author, acked)?;
        }
    }
    Ok(count.min(UNREAD_MAX))
}

/// How many messages of others begin in a record, after `acked`.
fn begun_in(record: &Record, author: &Author, acked: Seq) -> Result<u64, Error> {
    #[derive(Deserialize)]
    struct Kind<'a> {
        #[serde(rename = "type", borrow)]
        kind: Cow<'a, str>,
    }
    let broken = |e: serde_json::Error| Error::Corrupt(format!("a record's entries: {e}"));
    let mut count = 0;
    for block in record.parse_blocks().map_err(|e| Error::Corrupt(e.to_string()))? {
        let by: Author = serde_json::from_str(block.by.get()).map_err(broken)?;
        if (by.kind, &by.id) == (author.kind, &author.id) {
            continue;
        }
        let entries: Vec<Kind<'_>> = serde_json::from_str(block.entries.get()).map_err(broken)?;
        let from = block.from.unwrap_or(record.from);
        for (seq, (index, entry)) in (from.0..).zip(entries.iter().enumerate()) {
            let seq = block.spans.as_ref().and_then(|spans| spans.get(index)).map_or(Seq(seq), |span| span.0);
            if seq > acked && matches!(&*entry.kind, "message.put" | "message.start") {
                count += 1;
            }
        }
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;
    use everthread_protocol::record::stored_tail;

    fn record(by: &str, from: u64, entries: &str) -> Record {
        let mut stored = format!("[\"1\",{from},5").into_bytes();
        stored.extend(stored_tail(by, None, entries));
        let count =
            u64::try_from(serde_json::from_str::<Vec<serde_json::Value>>(entries).unwrap().len()).unwrap();
        Record::from_stored(&stored, Seq(from + count - 1)).unwrap()
    }

    #[test]
    fn messages_of_others_that_begin_after_the_mark_are_unread() {
        let ann: Author = serde_json::from_str(r#"{"kind":"user","id":"ann","device":"phone"}"#).unwrap();
        let entries =
            r#"[{"type":"message.put"},{"type":"part.append","text":"a"},{"type":"message.start"}]"#;
        let unread = |by, acked| begun_in(&record(by, 10, entries), &ann, Seq(acked)).unwrap();
        let (bob, own) = (r#"{"kind":"user","id":"bob"}"#, r#"{"kind":"user","id":"ann"}"#);
        assert_eq!((unread(bob, 9), unread(bob, 10), unread(bob, 12)), (2, 1, 0));
        assert_eq!(unread(own, 0), 0, "from whatever device");
        assert_eq!(unread(r#"{"kind":"agent","id":"ann"}"#, 0), 2, "an agent of that name is somebody else");
    }

    #[test]
    fn of_two_acknowledgements_the_later_waits() {
        let at = |epoch, seq| Cursor { epoch: everthread_protocol::Epoch(epoch), seq: Seq(seq) };
        assert_eq!(later(None, at(1, 5)), Some(at(1, 5)));
        assert_eq!(later(Some(at(1, 7)), at(1, 5)), Some(at(1, 7)));
        assert_eq!(later(Some(at(1, 7)), at(2, 5)), Some(at(2, 5)));
    }
    #[tokio::test]
    async fn what_is_being_written_is_known_here_until_the_store_has_it() {
        let store = Arc::new(everthread_store::embedded::Embedded::memory().unwrap());
        let acks = Acks::new(store, &Metrics::new());
        let (key, device) = ("acme/s".parse().unwrap(), "phone".parse().unwrap());
        let at = |seq| Cursor { epoch: everthread_protocol::Epoch(1), seq: Seq(seq) };
        acks.note(&key, &device, at(5));
        let (due, _) = acks.take(None);
        assert_eq!(acks.unwritten(&key, &device), Some(at(5)));
        acks.note(&key, &device, at(7));
        assert_eq!(acks.unwritten(&key, &device), Some(at(7)));
        acks.write(due).await;
        let (due, _) = acks.take(None);
        acks.write(due).await;
        assert_eq!(acks.unwritten(&key, &device), None);
    }
}
