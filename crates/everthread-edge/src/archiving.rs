//! When sessions are archived: so long after their last entry, if nothing goes on in them.
//!
//! The keeper of deadlines brings every session here from time to time, and must not wait for an object store: what is to
//! be archived goes into a bounded queue, a few sessions are archived at once, and the keeper looks again later. Whatever
//! goes wrong is tried again at that look. What is archived costs the keeper no load.

use crate::reader::Reader;
use crate::tail::lock;
use everthread_control::{AtHead, Failure, TaskGroup, Upkeep, millis};
use everthread_protocol::{Millis, Seq, SessionKey};
use everthread_session::State;
use everthread_store::{Archived, Archiver, Error, Head, Loaded, Store};
use futures_util::future::{BoxFuture, FutureExt as _, ready};
use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{Semaphore, mpsc};

/// Sessions that wait to be archived; further ones are left to their next look.
const QUEUE_MAX: usize = 1024;
/// Sessions that are archived at once: nobody waits for it, and others may need the network.
const AT_ONCE: usize = 2;
/// When a session that was to be archived is looked at again, at the latest.
const LOOK_AGAIN_MAX: Duration = Duration::from_secs(10 * 60);

/// What is archived, and by whom.
#[derive(Clone)]
pub struct Options {
    /// Does it.
    pub archiver: Arc<dyn Archiver>,
    /// How long after its last entry a session is archived.
    pub after: Duration,
}

impl std::fmt::Debug for Options {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "after {:?}", self.after)
    }
}

/// The upkeep that archives. Without options it leaves alone what others have archived.
pub(crate) struct Archiving<S> {
    reader: Reader<S>,
    work: Option<Work>,
}

/// Sessions on their way into the archive. Cheap to clone.
#[derive(Clone)]
struct Work {
    options: Options,
    queue: mpsc::Sender<SessionKey>,
    /// Sessions that are queued or being archived.
    pending: Arc<Mutex<HashSet<SessionKey>>>,
}

impl<S: Store> Archiving<S> {
    /// Starts, with its tasks in `tasks`.
    pub fn start(reader: Reader<S>, options: Option<Options>, tasks: &TaskGroup) -> Self {
        let work = options.map(|options| {
            let (queue, queued) = mpsc::channel(QUEUE_MAX);
            let work = Work { options, queue, pending: Arc::default() };
            tasks.spawn_until_stopped(work.clone().serve(queued, tasks.clone()));
            work
        });
        Self { reader, work }
    }

    /// When the last entry was written.
    async fn last_at(&self, key: &SessionKey, loaded: &Loaded) -> Result<Option<Millis>, Failure> {
        let before = Seq(loaded.head.0.saturating_sub(1));
        let page = self.reader.page(key, before, 1).await?;
        let Some(record) = page.records.last() else { return Ok(None) };
        let blocks = record.parse_blocks().map_err(|error| Error::Corrupt(error.to_string()))?;
        Ok(blocks.iter().map(|block| block.at).max())
    }
}

impl<S: Store> Upkeep for Archiving<S> {
    fn first_look(&self, _key: &SessionKey, _state: &State, now: Millis) -> Option<Millis> {
        self.work.as_ref().map(|work| now.plus(millis(work.options.after)))
    }

    fn at_head<'a>(
        &'a self,
        _key: &'a SessionKey,
        head: &'a Head,
        _now: Millis,
    ) -> BoxFuture<'a, Result<AtHead, Failure>> {
        let at_head = if head.archived { AtHead::Leave(None) } else { AtHead::Load };
        ready(Ok(at_head)).boxed()
    }

    fn keep<'a>(
        &'a self,
        key: &'a SessionKey,
        _head: &'a Head,
        loaded: &'a Loaded,
        state: &'a State,
    ) -> BoxFuture<'a, Result<Option<Millis>, Failure>> {
        let kept = async move {
            let Some(work) = &self.work else { return Ok(None) };
            let after = millis(work.options.after);
            let later = Some(loaded.now.plus(after));
            if state.next_due().is_some() || state.open_runs().next().is_some() || !loaded.fences.is_empty() {
                return Ok(later);
            }
            let Some(last_at) = self.last_at(key, loaded).await? else { return Ok(later) };
            let idle_at = last_at.plus(after);
            if idle_at > loaded.now {
                return Ok(Some(idle_at));
            }
            work.put(key);
            Ok(Some(loaded.now.plus(after.min(millis(LOOK_AGAIN_MAX)))))
        };
        kept.boxed()
    }
}

impl Work {
    fn put(&self, key: &SessionKey) {
        if lock(&self.pending).insert(key.clone()) && self.queue.try_send(key.clone()).is_err() {
            lock(&self.pending).remove(key);
        }
    }

    async fn serve(self, mut queued: mpsc::Receiver<SessionKey>, tasks: TaskGroup) {
        let places = Arc::new(Semaphore::new(AT_ONCE));
        while let Some(key) = queued.recv().await {
            let Ok(place) = places.clone().acquire_owned().await else { return };
            let this = self.clone();
            tasks.spawn_until_stopped(async move {
                match this.options.archiver.archive(&key).await {
                    Ok(Archived::Done) => tracing::debug!(%key, "archived"),
                    Ok(Archived::Already | Archived::Busy) => {}
                    Err(error) => tracing::warn!(%key, %error, "a session is archived later"),
                }
                drop(place);
                lock(&this.pending).remove(&key);
            });
        }
    }
}
