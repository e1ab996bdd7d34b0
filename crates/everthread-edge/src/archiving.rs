//! When sessions are archived: so long after their last entry, if nothing goes on in them. And what the archive has of
//! sessions that are gone goes, too.
//!
//! The keeper of deadlines brings every session here from time to time, and must wait neither for an object store nor for
//! the log: whatever there is to do goes into a bounded queue, a few sessions are seen to at once, and the keeper looks again
//! soon. By then it is known when the next look is due; where it is not, because another node keeps the session now, it is
//! found out again. What is archived costs the keeper no load.

use crate::tail::lock;
use everthread_control::{AtHead, Failure, TaskGroup, Upkeep, millis};
use everthread_protocol::{Millis, SessionKey};
use everthread_session::State;
use everthread_store::{Archived, Archiver, Error, Head, Loaded, Refusal};
use futures_util::future::{BoxFuture, FutureExt as _, ready};
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::{Semaphore, mpsc};

/// Sessions that wait to be seen to; further ones are left to their next look.
const QUEUE_MAX: usize = 1024;
/// Sessions that are seen to at once: nobody waits for it, and others may need the network.
const AT_ONCE: usize = 2;
/// See [`Options::again`].
const AGAIN: Duration = Duration::from_secs(10 * 60);
/// When it is looked what came of a session that was put into the queue.
const SOON: Duration = Duration::from_secs(10);
/// How long that is remembered, and of how many sessions.
const FOUND_KEPT: Duration = Duration::from_secs(60);
const FOUND_MAX: usize = 4096;

/// What is archived, and by whom.
#[derive(Clone)]
pub struct Options {
    /// Does it.
    pub archiver: Arc<dyn Archiver>,
    /// How long after its last entry a session is archived.
    pub after: Duration,
    /// When one that could not be seen to is looked at again, at the latest.
    pub again: Duration,
}

impl Options {
    /// With the usual pause after a failure.
    pub fn new(archiver: Arc<dyn Archiver>, after: Duration) -> Self {
        Self { archiver, after, again: AGAIN }
    }
}

impl std::fmt::Debug for Options {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "after {:?}", self.after)
    }
}

/// The upkeep that archives. Without options it leaves alone what others have archived.
pub(crate) struct Archiving {
    work: Option<Work>,
}

/// What is to be seen to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Job {
    /// A session that may be idle.
    Archive(SessionKey),
    /// One that is gone.
    Sweep(SessionKey),
}

/// What came of a job.
#[derive(Debug, Clone, Copy)]
enum Found {
    /// Nothing more is to be done, until something happens in the session.
    Done,
    /// The session is idle then.
    IdleAt(Millis),
    /// It is to be tried again.
    Again,
}

/// Sessions on their way into the archive. Cheap to clone.
#[derive(Clone)]
struct Work {
    options: Options,
    queue: mpsc::Sender<Job>,
    table: Arc<Mutex<Table>>,
}

/// The jobs of a node.
#[derive(Default)]
struct Table {
    /// Queued, or under way.
    pending: HashSet<Job>,
    /// Lately.
    found: HashMap<Job, (Found, Instant)>,
}

impl Archiving {
    /// Starts, with its tasks in `tasks`.
    pub fn start(options: Option<Options>, tasks: &TaskGroup) -> Self {
        let work = options.map(|options| {
            let (queue, queued) = mpsc::channel(QUEUE_MAX);
            let work = Work { options, queue, table: Arc::default() };
            tasks.spawn_until_stopped(work.clone().serve(queued, tasks.clone()));
            work
        });
        Self { work }
    }
}

impl Upkeep for Archiving {
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

    fn gone<'a>(
        &'a self,
        key: &'a SessionKey,
        now: Millis,
    ) -> BoxFuture<'a, Result<Option<Millis>, Failure>> {
        let Some(work) = &self.work else { return ready(Ok(None)).boxed() };
        let next = match work.look(Job::Sweep(key.clone())) {
            Some(Found::Done | Found::IdleAt(_)) => None,
            Some(Found::Again) => Some(now.plus(millis(work.options.again))),
            None => Some(now.plus(millis(SOON.min(work.options.again)))),
        };
        ready(Ok(next)).boxed()
    }

    fn keep<'a>(
        &'a self,
        key: &'a SessionKey,
        _head: &'a Head,
        loaded: &'a Loaded,
        state: &'a State,
    ) -> BoxFuture<'a, Result<Option<Millis>, Failure>> {
        let Some(work) = &self.work else { return ready(Ok(None)).boxed() };
        let (now, after) = (loaded.now, millis(work.options.after));
        if state.next_due().is_some() || state.open_runs().next().is_some() || !loaded.fences.is_empty() {
            return ready(Ok(Some(now.plus(after)))).boxed();
        }
        let next = match work.look(Job::Archive(key.clone())) {
            Some(Found::IdleAt(at)) if at > now => at,
            // It came back since.
            Some(Found::Done) => now.plus(after),
            Some(Found::Again) => now.plus(after.min(millis(work.options.again))),
            Some(Found::IdleAt(_)) | None => now.plus(after.min(millis(SOON))),
        };
        ready(Ok(Some(next))).boxed()
    }
}

impl Work {
    /// What came of a job lately, which is told once; otherwise it goes into the queue.
    fn look(&self, job: Job) -> Option<Found> {
        let mut table = lock(&self.table);
        if let Some((found, since)) = table.found.remove(&job)
            && since.elapsed() < FOUND_KEPT
        {
            return Some(found);
        }
        if table.pending.insert(job.clone()) && self.queue.try_send(job.clone()).is_err() {
            table.pending.remove(&job);
        }
        None
    }

    async fn serve(self, mut queued: mpsc::Receiver<Job>, tasks: TaskGroup) {
        let places = Arc::new(Semaphore::new(AT_ONCE));
        while let Some(job) = queued.recv().await {
            let Ok(place) = places.clone().acquire_owned().await else { return };
            let this = self.clone();
            tasks.spawn_until_stopped(async move {
                let found = this.perform(&job).await;
                drop(place);
                lock(&this.table).note(job, found);
            });
        }
    }

    async fn perform(&self, job: &Job) -> Found {
        let Options { archiver, after, .. } = &self.options;
        match job {
            Job::Archive(key) => match archiver.archive_idle(key, *after).await {
                Ok(Archived::Done) => {
                    tracing::debug!(%key, "archived");
                    Found::Done
                }
                Ok(Archived::Already) => Found::Done,
                Ok(Archived::Recent { idle_at }) => Found::IdleAt(idle_at),
                Ok(Archived::Busy) => Found::Again,
                // It was deleted while it waited for its turn: nobody need act.
                Err(Error::Refused(Refusal::NoSession)) => Found::Done,
                Err(error) => {
                    tracing::warn!(%key, %error, "a session is archived later");
                    Found::Again
                }
            },
            Job::Sweep(key) => match archiver.sweep(key).await {
                Ok(()) => Found::Done,
                Err(error) => {
                    tracing::warn!(%key, %error, "what the archive has of a deleted session goes later");
                    Found::Again
                }
            },
        }
    }
}

impl Table {
    fn note(&mut self, job: Job, found: Found) {
        self.pending.remove(&job);
        if self.found.len() >= FOUND_MAX {
            self.found.retain(|_, (_, since)| since.elapsed() < FOUND_KEPT);
        }
        // Still full: it is found out again.
        if self.found.len() < FOUND_MAX {
            self.found.insert(job, (found, Instant::now()));
        }
    }
}
