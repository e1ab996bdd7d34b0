//! An archive in front of a store: sessions go out of it into the [`Bucket`], and come back when somebody needs them.
//!
//! **Out**: the log is read page by page, folded, and written into an object under a name that is new; then the store puts
//! a stub in the session's place, if nothing has happened since it was read. So whoever dies on the way leaves the session
//! whole and an object that nobody names. **Back**: the object is read and checked to its last byte while its records are
//! staged; then the store plants them in the stub's place, in one step. Of two nodes that bring back one session one
//! plants, and the other finds it planted.
//!
//! An object stays when its session comes back, until the session is archived again or deleted: a store that loses its
//! last moments in a failover may bring back the stub, and then the object is all there is.
//!
//! **Invariant:** at every moment either the store holds the session, or a stub in it names an object that is whole.

use crate::brief::brief;
use crate::bucket::Bucket;
use crate::object::{Broken, FORMAT, Head, Item, Reader, Writer};
use crate::turns::Turns;
use crate::{Counts, Error};
use everthread_control::TaskGroup;
use everthread_protocol::{Record, Seq, SessionKey};
use everthread_session::fold::{Limits, fold};
use everthread_store::{
    Archived, Archiver, Error as StoreError, Loaded, Over, Plant, Planted, Refusal, Store, Stub, StubInfo,
    Stubbed,
};
use futures_util::{FutureExt as _, StreamExt as _};
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;

/// How long somebody who needs an archived session waits for it.
pub const RESTORE_MAX: Duration = Duration::from_secs(30);
/// How long an archiving may take. A session that is too large for that stays in the store.
pub const ARCHIVE_MAX: Duration = Duration::from_secs(10 * 60);
/// Sessions brought back at once per node. Each holds about two pages and what the network has brought.
const RESTORES_MAX: usize = 16;
/// Sessions archived at once per node. Each holds a page and a part of an upload.
const ARCHIVES_MAX: usize = 4;
/// How often an object is deleted before it is left behind, and the pause before the second time.
const DELETES_MAX: u32 = 4;
const DELETE_PAUSE: Duration = Duration::from_millis(200);
/// Pause before a cloud that did not answer at the start is asked again.
const BEGIN_PAUSE: Duration = Duration::from_secs(5);
/// Bytes of blocks that are read, or staged, at once.
const PAGE_BYTES: usize = 512 * 1024;

/// What an archive is told.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where sessions go.
    pub bucket: Bucket,
    /// How long after it was brought back a session is looked at again.
    pub after: Duration,
}

/// A store, and an archive behind it if one is configured.
pub struct Archive<S> {
    pub(crate) store: Arc<S>,
    options: Option<Options>,
    turns: Turns,
    restores: Semaphore,
    archives: Semaphore,
    counts: Counts,
    tasks: TaskGroup,
}

impl<S> Drop for Archive<S> {
    fn drop(&mut self) {
        self.tasks.token().cancel();
    }
}

impl<S: Store> Archive<S> {
    /// Puts an archive behind a store. Without options nothing is archived, and what others have archived stays so.
    pub fn new(store: Arc<S>, options: Option<Options>) -> Self {
        Self {
            store,
            options,
            turns: Turns::default(),
            restores: Semaphore::new(RESTORES_MAX),
            archives: Semaphore::new(ARCHIVES_MAX),
            counts: Counts::new(),
            tasks: TaskGroup::new(),
        }
    }

    /// Takes the archive into use: see [`Bucket::begin`]. A node without a directory that it was told does not start; one
    /// whose cloud does not answer does, and goes on asking.
    pub async fn begin(&self) -> Result<(), Error> {
        let Some(Options { bucket, .. }) = &self.options else { return Ok(()) };
        let begun = bucket.begin().await;
        if bucket.is_directory() {
            begun?;
            let (bucket, stop) = (bucket.clone(), self.tasks.token());
            self.tasks.spawn_until_stopped(async move {
                let swept = bucket.sweep(move || stop.is_cancelled()).await;
                if swept > 0 {
                    tracing::info!(
                        swept,
                        "files of uploads that nobody will finish are gone from the archive"
                    );
                }
            });
        } else if let Err(error) = begun {
            tracing::warn!(%error, "the archive does not answer: what is archived is unavailable until it does");
            let bucket = bucket.clone();
            self.tasks.spawn_until_stopped(async move {
                loop {
                    tokio::time::sleep(BEGIN_PAUSE).await;
                    match bucket.begin().await {
                        Ok(()) => break tracing::info!("the archive answers"),
                        Err(error) => tracing::debug!(%error, "the archive does not answer yet"),
                    }
                }
            });
        }
        Ok(())
    }

    /// Ends its tasks and waits for them; false if some were still there after `patience`.
    pub async fn close(&self, patience: Duration) -> bool {
        self.tasks.close(patience).await
    }

    /// What it counts.
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Does something that needs the whole session, and brings it back if it is archived.
    pub(crate) async fn whole<T, F>(
        &self,
        key: &SessionKey,
        operation: impl Fn() -> F,
    ) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, StoreError>>,
    {
        let result = operation().await;
        if !matches!(result, Err(StoreError::Refused(Refusal::Archived))) {
            return result;
        }
        self.bring_back(key).await?;
        match operation().await {
            // It was archived again in between: once is enough for one request.
            Err(StoreError::Refused(Refusal::Archived)) => {
                Err(StoreError::Unavailable("the session was just archived".to_owned()))
            }
            result => result,
        }
    }

    async fn bring_back(&self, key: &SessionKey) -> Result<(), StoreError> {
        let Some(options) = &self.options else { return Err(Refusal::Archived.into()) };
        let began = Instant::now();
        let result = tokio::time::timeout(RESTORE_MAX, self.bring_back_in_turn(key, options)).await;
        let result = result.unwrap_or(Err(Error::Slow));
        let outcome = match &result {
            Ok(Some(Planted::Done { .. })) => "restored",
            Ok(_) => "found",
            Err(_) => "failed",
        };
        self.counts.restores.with_label_values(&[outcome]).inc();
        match result {
            Ok(Some(Planted::Done { .. })) => {
                self.counts.restore_seconds.observe(began.elapsed().as_secs_f64());
                tracing::debug!(%key, "an archived session is back");
                Ok(())
            }
            Ok(_) => Ok(()),
            Err(error) => {
                tracing::warn!(%key, %error, "an archived session cannot be brought back");
                Err(error.of_store())
            }
        }
    }

    /// `None`: somebody else has brought it back meanwhile.
    async fn bring_back_in_turn(
        &self,
        key: &SessionKey,
        options: &Options,
    ) -> Result<Option<Planted>, Error> {
        let _turn = self.turns.of(key).await;
        let Some(stub) = self.stub_of(key).await? else { return Ok(None) };
        let Ok(_place) = self.restores.acquire().await else { return Err(Error::Slow) };
        let planted = match self.plant(key, options, &stub).await {
            Ok(planted) => planted,
            // A session that was deleted, or archived anew, leaves objects that go while they are read.
            Err(error) => match self.stub_of(key).await? {
                Some(now) if now.object == stub.object => return Err(error),
                _ => return Ok(None),
            },
        };
        if let Planted::Done { .. } = planted {
            self.look_again(key, options).await;
        }
        Ok(Some(planted))
    }

    async fn stub_of(&self, key: &SessionKey) -> Result<Option<StubInfo>, StoreError> {
        Ok(self.store.stubbed(std::slice::from_ref(key)).await?.pop().flatten())
    }

    /// Reads the object, stages it, and plants it over the stub.
    async fn plant(&self, key: &SessionKey, options: &Options, stub: &StubInfo) -> Result<Planted, Error> {
        let name = ulid::Ulid::generate().to_string();
        let mut pieces = options.bucket.read(key, &stub.object).await?;
        let mut staging = Staging { name: &name, key, page: Vec::new(), bytes: 0, folded_bytes: 0 };
        let (mut reader, mut head, mut base) = (Reader::default(), None::<Box<Head>>, None);
        loop {
            let is_more = match pieces.next().await {
                Some(piece) => reader.feed(&piece?).map(|()| true)?,
                None => reader.finish().map(|()| false)?,
            };
            while let Some(item) = reader.next_item() {
                match item {
                    Item::Head(read) if read.session != key.to_string() => {
                        return Err(Broken::Other(read.session).into());
                    }
                    Item::Head(read) => head = Some(read),
                    Item::Base(text) => base = Some(text),
                    Item::Record(record) => staging.push(&*self.store, record).await?,
                }
            }
            if !is_more {
                break;
            }
        }
        staging.flush(&*self.store).await?;
        let Some(head) = head else { return Err(Broken::Shape("it has no beginning").into()) };
        let plant = Plant {
            over: Over::Stub { object: &stub.object },
            epochs: &head.epochs,
            head: head.head,
            changes: head.changes,
            fence_last: 0,
            floor: head.floor,
            base: base.as_deref(),
            folded_bytes: staging.folded_bytes,
            state: &head.state,
            next_due: head.next_due,
            first: None,
        };
        Ok(self.store.plant(key, &name, plant).await?)
    }

    /// What is back is looked after as before it was archived.
    async fn look_again(&self, key: &SessionKey, options: &Options) {
        let armed = async {
            let Some(loaded) = self.store.load(key).await? else { return Ok(()) };
            let after = u64::try_from(options.after.as_millis()).unwrap_or(u64::MAX);
            self.store.arm(key, loaded.now.plus(after)).await
        };
        if let Err(error) = armed.await {
            tracing::warn!(%key, %error, "a session that is back is not looked after before its next run");
        }
    }

    async fn archive_now(&self, key: &SessionKey, options: &Options) -> Result<Archived, Error> {
        let Ok(_place) = self.archives.acquire().await else { return Err(Error::Slow) };
        let loaded = match self.store.load(key).await {
            Ok(loaded) => loaded.ok_or(StoreError::Refused(Refusal::NoSession))?,
            Err(StoreError::Refused(Refusal::Archived)) => return Ok(Archived::Already),
            Err(error) => return Err(error.into()),
        };
        let Some(brief) = brief(&loaded)? else { return Ok(Archived::Busy) };
        let name = Bucket::fresh_name(key, loaded.version.n);
        let mut upload = options.bucket.upload(key, &name);
        match self.write(key, &loaded, &mut upload).await {
            Ok(true) => {
                if let Err(error) = upload.finish().await {
                    upload.abort().await;
                    return Err(error);
                }
            }
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
                self.tidy(key, options, &name).await;
                Ok(Archived::Done)
            }
            Ok(Stubbed::Elsewhere) => {
                self.delete_quietly(key, options, &name).await;
                Ok(Archived::Busy)
            }
            // Deleted while it was written: nothing will ever name the object.
            Err(error @ StoreError::Refused(Refusal::NoSession)) => {
                self.delete_quietly(key, options, &name).await;
                Err(error.into())
            }
            // Whether the stub names it is not known: so it stays.
            Err(error) => Err(error.into()),
        }
    }

    /// Writes the session into an object; false if it is not what was loaded any more.
    async fn write(
        &self,
        key: &SessionKey,
        loaded: &Loaded,
        upload: &mut crate::bucket::Upload,
    ) -> Result<bool, Error> {
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
            next_due: None,
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

    /// After a stub that names `name`: other objects of the session are of no use any more.
    ///
    /// Not even one that is being written elsewhere: whoever writes it has read the session before this stub, and a
    /// session that comes back from it has another version. They are listed before it is made sure that the stub still
    /// stands, so none of them can be of a later one.
    async fn tidy(&self, key: &SessionKey, options: &Options, name: &str) {
        let tidied = async {
            let all = options.bucket.list(key).await?;
            let stub = self.stub_of(key).await?;
            let of_no_use: Vec<&String> = if stub.is_some_and(|stub| stub.object == name) {
                all.iter().filter(|other| *other != name).collect()
            } else if self.store.heads(std::slice::from_ref(key)).await? == [None] {
                // Deleted meanwhile, by somebody who has not seen this object.
                all.iter().filter(|other| *other == name).collect()
            } else {
                Vec::new()
            };
            for other in of_no_use {
                options.bucket.delete(key, other).await?;
            }
            Ok::<_, Error>(())
        };
        if let Err(error) = tidied.await {
            tracing::debug!(%key, %error, "objects of a session are left behind");
        }
    }

    async fn delete_quietly(&self, key: &SessionKey, options: &Options, name: &str) {
        if let Err(error) = options.bucket.delete(key, name).await {
            tracing::debug!(%key, %error, "an object is left behind");
        }
    }

    /// Names of all objects of a session that is about to be deleted. Without an archive an archived one is refused: what
    /// was said to be deleted would be in its object for ever.
    pub(crate) async fn objects(&self, key: &SessionKey) -> Result<Vec<String>, StoreError> {
        let Some(options) = &self.options else {
            let is_archived = self.stub_of(key).await?.is_some();
            return if is_archived { Err(Refusal::Archived.into()) } else { Ok(Vec::new()) };
        };
        options.bucket.list(key).await.map_err(Error::of_store)
    }

    /// Deletes objects of a session that is deleted, and tries for a while: nobody looks for them later.
    pub(crate) async fn forget(&self, key: &SessionKey, objects: &[String]) -> Result<(), StoreError> {
        let Some(options) = &self.options else { return Ok(()) };
        for name in objects {
            let mut tries = 1;
            while let Err(error) = options.bucket.delete(key, name).await {
                if tries == DELETES_MAX {
                    tracing::warn!(%key, name, %error, "an object of a deleted session is left behind");
                    return Err(error.of_store());
                }
                tokio::time::sleep(DELETE_PAUSE * tries).await;
                tries += 1;
            }
        }
        Ok(())
    }
}

impl<S: Store> Archiver for Archive<S> {
    fn archive<'a>(
        &'a self,
        key: &'a SessionKey,
    ) -> Pin<Box<dyn Future<Output = Result<Archived, StoreError>> + Send + 'a>> {
        let archived = async move {
            let Some(options) = &self.options else {
                return Err(StoreError::Unavailable("no archive is configured".to_owned()));
            };
            let result = tokio::time::timeout(ARCHIVE_MAX, self.archive_now(key, options)).await;
            let result = result.unwrap_or(Err(Error::Slow));
            let outcome = match &result {
                Ok(Archived::Done) => "archived",
                Ok(Archived::Already) => "found",
                Ok(Archived::Busy) => "busy",
                Err(_) => "failed",
            };
            self.counts.archives.with_label_values(&[outcome]).inc();
            result.map_err(Error::of_store)
        };
        archived.boxed()
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

/// Records on their way into the store.
struct Staging<'a> {
    name: &'a str,
    key: &'a SessionKey,
    page: Vec<Record>,
    /// Of the page.
    bytes: usize,
    /// Of everything.
    folded_bytes: u64,
}

impl Staging<'_> {
    async fn push(&mut self, store: &impl Store, record: Record) -> Result<(), Error> {
        self.bytes += record.blocks.len();
        self.folded_bytes += record.blocks.len() as u64;
        self.page.push(record);
        if self.bytes >= PAGE_BYTES { self.flush(store).await } else { Ok(()) }
    }

    async fn flush(&mut self, store: &impl Store) -> Result<(), Error> {
        let page = std::mem::take(&mut self.page);
        self.bytes = 0;
        if page.is_empty() {
            return Ok(());
        }
        Ok(store.stage(self.key, self.name, &page).await?)
    }
}
