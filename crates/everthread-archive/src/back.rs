//! Bringing back: the object is read and checked to its last byte while its records are staged; then the store plants them in
//! the stub's place, in one step.
//!
//! It is a task of its own, one per session and node. Those who need the session wait for it for a while; then they are told
//! to try again, and it goes on: a large session comes back however long nobody waits. A failure is remembered for a while
//! that grows, so that many who ask again and again do not have one large object read again and again.

use crate::Error;
use crate::archive::{PAGE_BYTES, Shared};
use crate::object::{Broken, Head, Item, Reader};
use everthread_protocol::{Record, Seq, SessionKey, millis};
use everthread_store::{ArchiveFault, Error as StoreError, Over, Plant, Planted, Refusal, Store, StubInfo};
use futures_util::StreamExt as _;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long bringing a session back may take.
pub const RESTORE_MAX: Duration = Duration::from_secs(10 * 60);
/// How long somebody who needs it waits for it. Reads of all sessions have their turns, and this holds one.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a session waits for its turn to be brought back.
const PLACE_MAX: Duration = Duration::from_secs(1);
/// The longest pause after failures.
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// Failures that are remembered. Beyond that an object may be read more often than need be.
const FAILURES_MAX: usize = 4096;
/// A session that comes back is looked after at the latest so long after that, and not before: by then it is planted, or
/// the next who plants it has this in mind again.
const LOOK_MIN: Duration = RESTORE_MAX;

const STILL: ArchiveFault =
    ArchiveFault::Busy("the session is on its way back from the archive, and takes longer: try again");
const CROWD: ArchiveFault = ArchiveFault::Busy(
    "too many people wait for archived sessions, or too many come back at once: try again",
);
const AGAIN: ArchiveFault = ArchiveFault::Busy("the session was just archived again: try again");
const STOPPING: ArchiveFault = ArchiveFault::Busy("the node stops: try another one");

/// What came of bringing a session back: whether this node has planted it.
pub(crate) type Back = Result<bool, StoreError>;

/// Sessions that could not be brought back lately.
#[derive(Default)]
pub(crate) struct Failures(Mutex<HashMap<SessionKey, Failure>>);

struct Failure {
    error: StoreError,
    pause: Duration,
    /// Until then nobody tries again.
    until: Instant,
}

impl Failures {
    /// Why it is too early to try again.
    fn of(&self, key: &SessionKey) -> Option<StoreError> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.get(key).filter(|failure| failure.until > Instant::now()).map(|failure| failure.error.clone())
    }

    /// Remembers a failure, for twice as long as the one before.
    fn add(&self, key: &SessionKey, error: &StoreError, first: Duration) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if all.len() >= FAILURES_MAX && !all.contains_key(key) {
            all.retain(|_, failure| failure.until > now);
            if all.len() >= FAILURES_MAX {
                return;
            }
        }
        let pause = all.get(key).map_or(first, |before| before.pause * 2).min(PAUSE_MAX);
        all.insert(key.clone(), Failure { error: error.clone(), pause, until: now + pause });
    }

    pub fn forget(&self, key: &SessionKey) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
    }
}

impl<S: Store> Shared<S> {
    /// The session is back when this returns.
    pub async fn bring_back(self: &Arc<Self>, key: &SessionKey) -> Result<(), StoreError> {
        let counted = |result: &str| self.counts.restores.with_label_values(&[result]).inc();
        if let Some(error) = self.failures.of(key) {
            counted("failed");
            return Err(error);
        }
        let Ok(_waiter) = self.waiters.try_acquire() else {
            counted("late");
            return Err(CROWD.into());
        };
        let this = self.clone();
        let work = || {
            let key = key.clone();
            async move { this.back_in_turn(&key).await }
        };
        let mut flight = self.returning.join(key, &self.tasks, work);
        let Ok(ended) = tokio::time::timeout(PATIENCE, flight.ended()).await else {
            counted("late");
            return Err(STILL.into());
        };
        let result = ended.unwrap_or(Err(STOPPING.into()));
        if !flight.is_first {
            counted(if result.is_ok() { "found" } else { "failed" });
        }
        result.map(drop)
    }

    /// Of somebody who finds a session archived that he has just brought back.
    pub fn archived_again() -> StoreError {
        AGAIN.into()
    }

    async fn back_in_turn(&self, key: &SessionKey) -> Back {
        let Ok(Ok(_place)) = tokio::time::timeout(PLACE_MAX, self.restores.acquire()).await else {
            self.counts.restores.with_label_values(&["late"]).inc();
            return Err(CROWD.into());
        };
        let (began, name) = (Instant::now(), ulid::Ulid::generate().to_string());
        let result = tokio::time::timeout(RESTORE_MAX, self.back(key, &name)).await;
        let result = result.unwrap_or(Err(Error::Slow));
        let outcome = match &result {
            Ok(Some(Planted::Done { .. })) => "restored",
            Ok(_) => "found",
            Err(_) => "failed",
        };
        self.counts.restores.with_label_values(&[outcome]).inc();
        match result {
            Ok(Some(Planted::Done { .. })) => {
                self.failures.forget(key);
                self.counts.restore_seconds.observe(began.elapsed().as_secs_f64());
                tracing::debug!(%key, "an archived session is back");
                Ok(true)
            }
            Ok(_) => {
                self.failures.forget(key);
                Ok(false)
            }
            Err(error) => {
                tracing::warn!(%key, %error, "an archived session cannot be brought back");
                let error = error.of_store();
                self.unstage(key, &name).await;
                self.failures.add(key, &error, self.options.pause);
                Err(error)
            }
        }
    }

    /// `None`: somebody else has brought it back meanwhile, or deleted it.
    async fn back(&self, key: &SessionKey, name: &str) -> Result<Option<Planted>, Error> {
        let Some(stub) = self.stub_of(key).await? else { return Ok(None) };
        match self.plant(key, &stub, name).await {
            Ok(planted) => {
                if let Planted::Done { .. } = planted {
                    self.look_after(key).await;
                }
                Ok(Some(planted))
            }
            // A session that was deleted, or archived anew, leaves objects that go while they are read.
            Err(error) => match self.stub_of(key).await? {
                Some(now) if now.object == stub.object => Err(error),
                _ => {
                    self.unstage(key, name).await;
                    Ok(None)
                }
            },
        }
    }

    /// Reads the object, stages it, and plants it over the stub.
    async fn plant(&self, key: &SessionKey, stub: &StubInfo, name: &str) -> Result<Planted, Error> {
        let mut pieces = self.options.bucket.read(key, &stub.object).await?;
        let mut staging = Staging { name, key, page: Vec::new(), bytes: 0, folded_bytes: 0 };
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
        // Before it is there: whoever plants it and dies must not leave it without anybody who looks after it.
        self.due_later(key, self.options.after.max(LOOK_MIN)).await?;
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
            // Nothing is archived that has anything due.
            next_due: None,
            first: None,
        };
        Ok(self.store.plant(key, name, plant).await?)
    }

    /// Takes what was staged out of the store again: a plant that cannot be does that. What stays goes by itself later.
    async fn unstage(&self, key: &SessionKey, name: &str) {
        let plant = Plant {
            // No object has the name of what is staged.
            over: Over::Stub { object: name },
            epochs: &[],
            head: Seq(1),
            changes: 0,
            fence_last: 0,
            floor: Seq(1),
            base: None,
            folded_bytes: 0,
            state: "",
            next_due: None,
            first: None,
        };
        match self.store.plant(key, name, plant).await {
            Ok(_) | Err(StoreError::Refused(Refusal::NotStaged)) => {}
            Err(error) => tracing::debug!(%key, %error, "what was staged is forgotten later"),
        }
    }

    /// What is back is looked after as before it was archived.
    async fn look_after(&self, key: &SessionKey) {
        let armed = async {
            let Some(loaded) = self.store.load(key).await? else { return Ok(()) };
            self.store.arm(key, loaded.now.plus(millis(self.options.after))).await
        };
        if let Err(error) = armed.await {
            tracing::debug!(%key, %error, "a session that is back is looked after later");
        }
    }
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
