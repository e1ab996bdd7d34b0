//! Folding of logs in the store: what is older than the most recent stretch is read raw, folded, and put in its place.
//!
//! Every node folds the sessions that it writes, after a write that finds too much raw, or that ends a run. One task takes
//! sessions from a bounded queue; a few are folded at once. Whatever goes wrong changes nothing: the next write asks again,
//! here or on another node, and the store lets only one of several folders win.
//!
//! **Invariant:** nothing waits for a fold, and a fold that was not made, or not to its end, is missed by nobody.

use crate::metrics::Metrics;
use crate::reader::Reader;
use crate::tail::lock;
use everthread_control::TaskGroup;
use everthread_protocol::record::InvalidRecord;
use everthread_protocol::{Entry, Millis, Record, Seq, SessionKey};
use everthread_session::fold::{Limits, fold, numbered};
use everthread_store::{Error, Fold, Folded, Head, Refusal, Store, Written};
use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{Semaphore, mpsc};

/// Sessions that wait to be folded; further ones are left to their next write.
const QUEUE_MAX: usize = 1024;
/// Sessions that are folded at once: a fold is work for a core, and nobody waits for it.
const FOLDS_MAX: usize = 2;
/// Bytes of raw blocks that one fold takes, several hundred tokens: bounds how long one step keeps a core and the store.
const STEP_BYTES: usize = 128 * 1024;
/// Before every time.
const AT_ONCE: Millis = Millis(1);
/// Pause before a session whose fold has failed may be folded again.
const FAILED_PAUSE: Duration = Duration::from_secs(1);

/// When to fold, and how much to leave raw. In entries: what lies between the end of the log and what is folded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// So many raw entries are folded after any write …
    pub at_entries: u64,
    /// … and so many after the end of a run.
    pub at_end_entries: u64,
    /// The most recent entries stay raw: who was away for a moment gets exactly what was missed.
    pub keep_entries: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self { at_entries: 1024, at_end_entries: 512, keep_entries: 256 }
    }
}

/// Folds the sessions of a node. Cheap to clone.
pub struct Folder<S> {
    inner: Arc<Inner<S>>,
}

impl<S> Clone for Folder<S> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone() }
    }
}

struct Inner<S> {
    reader: Reader<S>,
    options: Options,
    metrics: Metrics,
    queue: mpsc::Sender<SessionKey>,
    /// Sessions that are queued or being folded.
    pending: Mutex<HashSet<SessionKey>>,
}

impl<S: Store> Folder<S> {
    /// A folder whose tasks are in `tasks`.
    pub fn start(reader: Reader<S>, options: Options, metrics: Metrics, tasks: &TaskGroup) -> Self {
        let (queue, queued) = mpsc::channel(QUEUE_MAX);
        let inner = Inner { reader, options, metrics, queue, pending: Mutex::default() };
        let this = Self { inner: Arc::new(inner) };
        tasks.spawn_until_stopped(this.clone().serve(queued, tasks.clone()));
        this
    }

    /// A write was made, and may have been the end of a run. Does not wait.
    pub fn after_write(&self, key: &SessionKey, written: &Written, ends: bool) {
        let Options { at_entries, at_end_entries, .. } = self.inner.options;
        let raw = written.to.0.saturating_sub(written.folded_to.0);
        if raw < if ends { at_end_entries } else { at_entries }
            || !lock(&self.inner.pending).insert(key.clone())
        {
            return;
        }
        if self.inner.queue.try_send(key.clone()).is_err() {
            self.count("dropped");
            lock(&self.inner.pending).remove(key);
        }
    }

    async fn serve(self, mut queued: mpsc::Receiver<SessionKey>, tasks: TaskGroup) {
        let places = Arc::new(Semaphore::new(FOLDS_MAX));
        while let Some(key) = queued.recv().await {
            let Ok(place) = places.clone().acquire_owned().await else { return };
            let this = self.clone();
            tasks.spawn_until_stopped(async move {
                let result = this.fold(&key).await;
                drop(place);
                if let Err(error) = result {
                    this.count("error");
                    tracing::debug!(%key, %error, "a session could not be folded");
                    tokio::time::sleep(FAILED_PAUSE).await;
                }
                lock(&this.inner.pending).remove(&key);
            });
        }
    }

    /// Folds a session step by step, until little more than what stays raw is raw, or somebody else folds it.
    pub async fn fold(&self, key: &SessionKey) -> Result<(), Error> {
        let mut has_folded = false;
        let result = match self.fold_on(key, &mut has_folded).await {
            // It is folded there.
            Err(Error::Refused(Refusal::Archived)) => Ok(()),
            result => result,
        };
        if has_folded {
            // It weighs more now, also if it could not be folded to the end: upkeep looks whether that is too much.
            self.inner.reader.store().arm(key, AT_ONCE).await?;
        }
        result
    }

    async fn fold_on(&self, key: &SessionKey, has_folded: &mut bool) -> Result<(), Error> {
        let Options { at_entries, at_end_entries, keep_entries } = self.inner.options;
        let reader = &self.inner.reader;
        let Some(Some(head)) = reader.store().heads(std::slice::from_ref(key)).await?.pop() else {
            return Ok(());
        };
        let mut folded_to = head.folded_to;
        let mut least = at_end_entries;
        loop {
            let page = reader.page_here(key, folded_to, STEP_BYTES).await?;
            let head = page.head;
            if head.folded_to != folded_to {
                self.count("raced");
                return Ok(());
            }
            let raw = head.seq.0 - folded_to.0;
            let old = cut(&page.records, Seq(head.seq.0.saturating_sub(keep_entries)))?;
            if raw < least || old.is_empty() {
                return Ok(());
            }
            let Some(to) = self.put(key, &head, old).await? else { return Ok(()) };
            *has_folded = true;
            // What the cut has left is a beginning: it is folded with what comes after it.
            (folded_to, least) = (to, at_entries);
        }
    }

    /// Folds everything that was written up to a time, also what would stay raw otherwise, but not beyond the first message
    /// that is `needed`: what is folded together with it would have to stay with it.
    pub async fn fold_until(
        &self,
        key: &SessionKey,
        until: Millis,
        needed: &HashSet<String>,
    ) -> Result<(), Error> {
        let reader = &self.inner.reader;
        let Some(Some(head)) = reader.store().heads(std::slice::from_ref(key)).await?.pop() else {
            return Ok(());
        };
        let mut folded_to = head.folded_to;
        loop {
            let page = reader.page_here(key, folded_to, STEP_BYTES).await?;
            if page.head.folded_to != folded_to {
                self.count("raced");
                return Ok(());
            }
            let mut old = 0;
            for record in &page.records {
                if written_at(record)? > until || begins_one_of(record, needed)? {
                    break;
                }
                old += 1;
            }
            // Where more follows that is as old, up to an end of something.
            let is_all = page.records.last().is_none_or(|last| last.to == page.head.seq);
            let old = if is_all || old < page.records.len() {
                &page.records[..old]
            } else {
                cut(&page.records, page.head.seq)?
            };
            if old.is_empty() {
                return Ok(());
            }
            let Some(to) = self.put(key, &page.head, old).await? else { return Ok(()) };
            folded_to = to;
        }
    }

    /// Puts raw records into the store folded; up to where, if it took them.
    async fn put(&self, key: &SessionKey, head: &Head, raw: &[Record]) -> Result<Option<Seq>, Error> {
        let records = fold(raw, Limits::default()).map_err(|e| Error::Corrupt(e.to_string()))?;
        let fold = Fold { epoch: head.epoch, records: &records };
        let folded = self.inner.reader.store().fold(key, fold).await?;
        self.count(match folded {
            Folded::Done => "done",
            Folded::Elsewhere { .. } => "raced",
            Folded::NewEpoch { .. } | Folded::NoSuchRecord => "stale",
        });
        let (Folded::Done, Some(first), Some(last)) = (folded, raw.first(), raw.last()) else {
            return Ok(None);
        };
        self.inner.metrics.folded_entries.inc_by(last.to.0 - first.from.0 + 1);
        Ok(Some(last.to))
    }

    fn count(&self, result: &str) {
        self.inner.metrics.folds.with_label_values(&[result]).inc();
    }
}

/// Those records up to `limit` that are folded now: up to the last end of a message or run in their second half, since
/// nothing is merged into what is folded already; else all of them.
fn cut(records: &[Record], limit: Seq) -> Result<&[Record], Error> {
    let old = &records[..records.partition_point(|record| record.to <= limit)];
    for at in (old.len() / 2..old.len()).rev() {
        if has_end(&old[at]).map_err(|e| Error::Corrupt(e.to_string()))? {
            return Ok(&old[..=at]);
        }
    }
    Ok(old)
}

/// When the last block of a record was written.
pub(crate) fn written_at(record: &Record) -> Result<Millis, Error> {
    let blocks = record.parse_blocks().map_err(|e| Error::Corrupt(e.to_string()))?;
    Ok(blocks.iter().map(|block| block.at).max().unwrap_or_default())
}

/// Whether one of these messages, which are references, begins in a record.
fn begins_one_of(record: &Record, messages: &HashSet<String>) -> Result<bool, Error> {
    if messages.is_empty() {
        return Ok(false);
    }
    let corrupt = |e: InvalidRecord| Error::Corrupt(e.to_string());
    for block in record.parse_blocks().map_err(corrupt)? {
        for (_, _, raw) in numbered(&block, record.from).map_err(corrupt)? {
            let begins = match (Entry::read(raw.get()), &block.run) {
                (Entry::MessagePut { message, .. }, _) => messages.contains(message.as_str()),
                (Entry::MessageStart { message, .. }, Some(run)) => {
                    messages.contains(&format!("{run}/{message}"))
                }
                _ => false,
            };
            if begins {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

fn has_end(record: &Record) -> Result<bool, InvalidRecord> {
    for block in record.parse_blocks()? {
        let is_end =
            |raw: &str| matches!(Entry::read(raw), Entry::MessageEnd { .. } | Entry::RunEnded { .. });
        if numbered(&block, record.from)?.iter().any(|(_, _, raw)| is_end(raw.get())) {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use everthread_protocol::Epoch;

    fn record(seq: u64, kind: &str) -> Record {
        let entry = match kind {
            "end" => r#"{"type":"message.end","message":"m","status":"complete"}"#,
            _ => r#"{"type":"x-a","data":{"type":"message.end"}}"#,
        };
        let blocks = format!(r#"[{{"by":{{"kind":"agent","id":"a"}},"at":1,"entries":[{entry}]}}]"#);
        Record { epoch: Epoch(1), from: Seq(seq), to: Seq(seq), blocks: blocks.into() }
    }

    fn cut_at(ends: &[u64], limit: u64) -> usize {
        let kind = |seq| if ends.contains(&seq) { "end" } else { "" };
        let records: Vec<Record> = (1..=20).map(|seq| record(seq, kind(seq))).collect();
        cut(&records, Seq(limit)).unwrap().len()
    }

    #[test]
    fn a_cut_is_at_the_last_end_of_a_message_unless_that_would_leave_more_than_half() {
        assert_eq!(cut_at(&[], 16), 16);
        assert_eq!(cut_at(&[10, 12, 18], 16), 12);
        assert_eq!(cut_at(&[16], 16), 16);
        assert_eq!(cut_at(&[3, 8], 16), 16);
        assert_eq!(cut_at(&[3], 0), 0);
    }
}
