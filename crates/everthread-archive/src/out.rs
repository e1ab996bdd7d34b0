//! Archiving: the log is read page by page, folded, and written into an object under a name that is new; then the store puts
//! a stub in the session's place, if nothing has happened since it was read.
//!
//! It is a task of its own, one per session and node, that goes on when nobody waits for it. Whoever dies on the way leaves
//! the session whole and an object that nobody names; whatever fails takes its upload back.

use crate::Error;
use crate::archive::{PAGE_BYTES, Shared};
use crate::brief::brief;
use crate::bucket::{Bucket, Upload};
use crate::object::{FORMAT, Head, Writer};
use everthread_protocol::{Millis, Record, Seq, SessionKey, millis};
use everthread_session::fold::{Limits, fold};
use everthread_session::view::View;
use everthread_store::{ArchiveFault, Archived, Error as StoreError, Loaded, Refusal, Store, Stub, Stubbed};
use std::sync::Arc;
use std::time::Duration;

/// How long an archiving may take. A session that is too large for that stays in the store.
pub const ARCHIVE_MAX: Duration = Duration::from_secs(10 * 60);
/// How long a session waits for its turn.
const PLACE_MAX: Duration = Duration::from_secs(5);

const CROWD: ArchiveFault = ArchiveFault::Busy("too many sessions are archived at once: try again");
const STOPPING: ArchiveFault = ArchiveFault::Busy("the node stops: try another one");

impl<S: Store> Shared<S> {
    /// Archives a session, if its last entry is that old. Whoever goes does not stop it.
    pub async fn archive_idle(
        self: &Arc<Self>,
        key: &SessionKey,
        idle: Duration,
    ) -> Result<Archived, StoreError> {
        loop {
            let this = self.clone();
            let work = || {
                let key = key.clone();
                async move { this.archive_in_turn(&key, idle).await }
            };
            let mut flight = self.leaving.join(key, &self.tasks, work);
            let result = flight.ended().await.unwrap_or(Err(STOPPING.into()));
            // Somebody else's task may have asked for more.
            if flight.is_first || !matches!(result, Ok(Archived::Recent { .. })) {
                return result;
            }
        }
    }

    async fn archive_in_turn(&self, key: &SessionKey, idle: Duration) -> Result<Archived, StoreError> {
        let Ok(Ok(_place)) = tokio::time::timeout(PLACE_MAX, self.archives.acquire()).await else {
            self.counts.archives.with_label_values(&["failed"]).inc();
            return Err(CROWD.into());
        };
        let result = self.archive_now(key, idle).await;
        let outcome = match &result {
            Ok(Archived::Done) => "archived",
            Ok(Archived::Already) => "found",
            Ok(Archived::Busy | Archived::Recent { .. }) => "busy",
            Err(_) => "failed",
        };
        self.counts.archives.with_label_values(&[outcome]).inc();
        result.map_err(Error::of_store)
    }

    async fn archive_now(&self, key: &SessionKey, idle: Duration) -> Result<Archived, Error> {
        let loaded = match self.store.load(key).await {
            Ok(loaded) => loaded.ok_or(StoreError::Refused(Refusal::NoSession))?,
            Err(StoreError::Refused(Refusal::Archived)) => return Ok(Archived::Already),
            Err(error) => return Err(error.into()),
        };
        let last_at = match self.last_at(key, &loaded).await {
            Err(StoreError::Refused(Refusal::Archived)) => return Ok(Archived::Already),
            last_at => last_at?,
        };
        let idle_at = last_at.plus(millis(idle));
        if idle_at > loaded.now && !idle.is_zero() {
            return Ok(Archived::Recent { idle_at });
        }
        let Some(brief) = brief(&loaded, last_at)? else { return Ok(Archived::Busy) };
        let name = Bucket::fresh_name(key, loaded.version.n);
        let mut upload = self.options.bucket.upload(key, &name);
        let writing = async {
            let is_written = self.write(key, &loaded, &mut upload).await?;
            if is_written {
                upload.finish().await?;
            }
            Ok(is_written)
        };
        let written = tokio::time::timeout(ARCHIVE_MAX, writing).await.unwrap_or(Err(Error::Slow));
        match written {
            Ok(true) => {}
            Ok(false) => {
                upload.abort().await;
                return Ok(Archived::Busy);
            }
            // Another node was faster.
            Err(Error::Store(StoreError::Refused(Refusal::Archived))) => {
                upload.abort().await;
                return Ok(Archived::Already);
            }
            Err(error) => {
                upload.abort().await;
                return Err(error);
            }
        }
        let stub =
            Stub { expect: loaded.version, head: loaded.head, object: &name, state: &brief, at: loaded.now };
        match self.store.stub(key, stub).await {
            Ok(Stubbed::Done) => {
                self.tidy(key, &name).await;
                Ok(Archived::Done)
            }
            Ok(Stubbed::Elsewhere) => {
                upload.abort().await;
                Ok(Archived::Busy)
            }
            // Deleted while it was written: nothing will ever name the object.
            Err(error @ StoreError::Refused(Refusal::NoSession)) => {
                upload.abort().await;
                Err(error.into())
            }
            // Whether the stub names it is not known: so it stays.
            Err(error) => Err(error.into()),
        }
    }

    /// When the last entry was written.
    async fn last_at(&self, key: &SessionKey, loaded: &Loaded) -> Result<Millis, StoreError> {
        let page = self.store.read(key, Seq(loaded.head.0.saturating_sub(1)), 1).await?;
        if let Some(record) = page.records.last() {
            let blocks = record.parse_blocks().map_err(|error| StoreError::Corrupt(error.to_string()))?;
            return Ok(blocks.iter().map(|block| block.at).max().unwrap_or_default());
        }
        // All of it was dropped.
        let base = self.store.base(key).await?;
        let written = base.and_then(|base| View::base_written(&base.text).ok());
        Ok(written.unwrap_or(loaded.now))
    }

    /// Writes the session into an object; false if it is not what was loaded any more.
    async fn write(&self, key: &SessionKey, loaded: &Loaded, upload: &mut Upload) -> Result<bool, Error> {
        let mut page = self.store.read(key, Seq::ZERO, PAGE_BYTES).await?;
        let floor = page.head.floor;
        let base = self.base_at(key, floor).await?;
        if base.is_none() && floor > Seq(1) {
            return Ok(false);
        }
        let head = Head {
            everthread: FORMAT,
            session: key.to_string(),
            at: loaded.now,
            epochs: loaded.epochs.clone(),
            head: loaded.head,
            changes: loaded.version.n,
            floor,
            state: loaded.state.clone(),
        };
        let mut writer = Writer::new(&head, base.as_deref())?;
        let mut next = floor;
        loop {
            let is_same = page.head.version == loaded.version && page.head.seq == loaded.head;
            // What was folded meanwhile may begin before the place that was asked for.
            let follows = page.records.first().is_none_or(|record| record.from == next);
            if !is_same || !follows || page.head.floor != floor {
                return Ok(false);
            }
            for record in whole_records(&page.records, page.head.folded_to)? {
                next = record.to.next();
                writer.push(&record)?;
            }
            upload.push(&writer.take()).await?;
            if next > loaded.head {
                break;
            }
            if page.records.is_empty() {
                return Err(StoreError::Corrupt("a log that ends before its head".to_owned()).into());
            }
            page = self.store.read(key, Seq(next.0 - 1), PAGE_BYTES).await?;
        }
        upload.push(&writer.finish()?).await?;
        Ok(true)
    }

    /// What stands for what was before the floor.
    async fn base_at(&self, key: &SessionKey, floor: Seq) -> Result<Option<String>, StoreError> {
        let base = self.store.base(key).await?;
        Ok(base.filter(|base| base.floor == floor).map(|base| base.text))
    }
}

/// A page as it is archived: folded, so that it may be planted as folded.
fn whole_records(records: &[Record], folded_to: Seq) -> Result<Vec<Record>, Error> {
    let seam = records.partition_point(|record| record.to <= folded_to);
    let mut out = records[..seam].to_vec();
    let raw = fold(&records[seam..], Limits::default());
    out.extend(raw.map_err(|error| StoreError::Corrupt(error.to_string()))?);
    Ok(out)
}
