//! An archive in front of a store: sessions go out of it into the [`Bucket`], and come back when somebody needs them.
//!
//! **Out** is `out.rs`, **back** is `back.rs`, and what goes for good is `forget.rs`. Whoever dies on the way out leaves the
//! session whole and an object that nobody names; on the way back, a stub and its object. Of two nodes that bring back one
//! session one plants, and the other finds it planted.
//!
//! An object stays when its session comes back, until the session was archived twice more or is deleted: a store that loses
//! its last moments in a failover may bring back an older stub, and then the object is all there is.
//!
//! **Invariant:** at every moment either the store holds the session, or a stub in it names an object that is whole.

use crate::back::{Back, Failures};
use crate::bucket::Bucket;
use crate::flights::Flights;
use crate::{Counts, Error};
use everthread_control::TaskGroup;
use everthread_protocol::SessionKey;
use everthread_store::{ArchiveFault, Archived, Archiver, Error as StoreError, Refusal, Store, StubInfo};
use futures_util::FutureExt as _;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;

/// Sessions brought back at once per node. Each holds about two pages and what the network has brought.
const RESTORES_MAX: usize = 16;
/// Who waits at once for sessions to come back: fewer than the reads that a node makes at once, so that a cloud that hangs
/// leaves some for sessions that are there.
const WAITERS_MAX: usize = 48;
/// Sessions archived at once per node. Each holds a page and a part of an upload.
const ARCHIVES_MAX: usize = 4;
/// Bytes of blocks that are read, or staged, at once.
pub(crate) const PAGE_BYTES: usize = 512 * 1024;
/// Pause before a cloud that did not answer at the start is asked again.
const BEGIN_PAUSE: Duration = Duration::from_secs(5);
/// See [`Options::pause`].
const PAUSE: Duration = Duration::from_secs(1);

/// What an archive is told.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where sessions go.
    pub bucket: Bucket,
    /// How long after it was brought back a session is looked at again.
    pub after: Duration,
    /// How long after a failure nobody tries to bring the same session back; after each further one twice as long, up to a
    /// minute.
    pub pause: Duration,
}

impl Options {
    /// With the usual pause.
    pub fn new(bucket: Bucket, after: Duration) -> Self {
        Self { bucket, after, pause: PAUSE }
    }
}

/// A store, and an archive behind it if one is configured.
pub struct Archive<S> {
    pub(crate) store: Arc<S>,
    pub(crate) shared: Option<Arc<Shared<S>>>,
    counts: Counts,
    tasks: TaskGroup,
}

/// What the tasks of an archive share.
pub(crate) struct Shared<S> {
    pub store: Arc<S>,
    pub options: Options,
    pub counts: Counts,
    pub tasks: TaskGroup,
    pub returning: Arc<Flights<Back>>,
    pub leaving: Arc<Flights<Result<Archived, StoreError>>>,
    pub failures: Failures,
    pub waiters: Semaphore,
    pub restores: Semaphore,
    pub archives: Semaphore,
}

impl<S> Drop for Archive<S> {
    fn drop(&mut self) {
        self.tasks.token().cancel();
    }
}

impl<S: Store> Archive<S> {
    /// Puts an archive behind a store. Without options nothing is archived, and what others have archived stays so.
    pub fn new(store: Arc<S>, options: Option<Options>) -> Self {
        let (counts, tasks) = (Counts::new(), TaskGroup::new());
        let shared = options.map(|options| {
            Arc::new(Shared {
                store: store.clone(),
                options,
                counts: counts.clone(),
                tasks: tasks.clone(),
                returning: Arc::default(),
                leaving: Arc::default(),
                failures: Failures::default(),
                waiters: Semaphore::new(WAITERS_MAX),
                restores: Semaphore::new(RESTORES_MAX),
                archives: Semaphore::new(ARCHIVES_MAX),
            })
        });
        Self { store, shared, counts, tasks }
    }

    /// Takes the archive into use: see [`Bucket::begin`]. A node without a directory that it was told does not start; one
    /// whose cloud does not answer does, and goes on asking.
    pub async fn begin(&self) -> Result<(), Error> {
        let Some(shared) = &self.shared else { return Ok(()) };
        let bucket = &shared.options.bucket;
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
        let Some(shared) = &self.shared else { return Err(Refusal::Archived.into()) };
        shared.bring_back(key).await?;
        match operation().await {
            // It was archived again in between: once is enough for one request.
            Err(StoreError::Refused(Refusal::Archived)) => Err(Shared::<S>::archived_again()),
            result => result,
        }
    }
}

impl<S: Store> Shared<S> {
    pub async fn stub_of(&self, key: &SessionKey) -> Result<Option<StubInfo>, StoreError> {
        Ok(self.store.stubbed(std::slice::from_ref(key)).await?.pop().flatten())
    }
}

impl<S: Store> Archiver for Archive<S> {
    fn archive_idle<'a>(
        &'a self,
        key: &'a SessionKey,
        idle: Duration,
    ) -> Pin<Box<dyn Future<Output = Result<Archived, StoreError>> + Send + 'a>> {
        let archived = async move {
            let Some(shared) = &self.shared else { return Err(none()) };
            shared.archive_idle(key, idle).await
        };
        archived.boxed()
    }

    fn sweep<'a>(
        &'a self,
        key: &'a SessionKey,
    ) -> Pin<Box<dyn Future<Output = Result<(), StoreError>> + Send + 'a>> {
        let swept = async move {
            let Some(shared) = &self.shared else { return Err(none()) };
            shared.sweep(key).await.map_err(Error::of_store)
        };
        swept.boxed()
    }
}

fn none() -> StoreError {
    ArchiveFault::Silent("none is configured".to_owned()).into()
}
