//! Brings waiting runs to the workers of this node.
//!
//! A [`Seat`] is a worker's place for runs of one agent. While a pool has free seats here, the dispatcher takes items from
//! it (on a wake-up, when a seat becomes free, and once a second), claims each run in its session, and hands it to the seat.
//! The claim decides who runs; the pool's pending list does not.

use crate::TaskGroup;
use crate::desk::Failure;
use crate::desk::{Desk, Numbered, system_author};
use everthread_protocol::{Epoch, Fence, NodeId, PoolKey, RunId, Seq, SessionKey, WorkerId};
use everthread_session::{Refusal, Request, state::Run};
use everthread_store::{Error, Following, Refusal as WriteRefusal, Store, Taken};

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;
use tokio::sync::{Notify, mpsc};

const NO_SESSION: Error = Error::Refused(WriteRefusal::NoSession);
/// How often a pool is looked at when nothing wakes it.
const POLL: Duration = Duration::from_secs(1);
/// How long after `not_after` an item is kept whose run is not there.
const LATE_MS: u64 = 1_000;
/// Items taken from a pool at once; more come with the next look.
const TAKE_MAX: usize = 64;

/// A run that was claimed for a worker.
#[derive(Debug)]
pub struct Assignment {
    /// Its session.
    pub key: SessionKey,
    /// The run.
    pub id: RunId,
    /// What was asked.
    pub run: Run,
    /// What its writes must name.
    pub fence: Fence,
    /// Incarnation of the log.
    pub epoch: Epoch,
    /// Seq of `run.started`.
    pub seq: Seq,
}

/// A worker's place for runs of one agent. Dropping it takes the worker out of the pool.
#[derive(Debug)]
pub struct Seat {
    pool: PoolKey,
    worker: WorkerId,
    free: AtomicU32,
    assignments: mpsc::Sender<Assignment>,
    wake: Arc<Notify>,
}

impl Seat {
    /// A run of this seat is over.
    pub fn release(&self) {
        self.free.fetch_add(1, Ordering::AcqRel);
        self.wake.notify_one();
    }

    /// A reserved place is not needed: nobody needs to look again.
    fn unreserve(&self) {
        self.free.fetch_add(1, Ordering::AcqRel);
    }

    /// A run that the worker held from before takes a place, also beyond the capacity offered.
    pub fn occupy(&self) {
        // A seat that is overbooked stays at 0: it gets nothing new until enough of its runs are over.
        self.try_reserve();
    }

    /// No new runs.
    pub fn drain(&self) {
        self.free.store(0, Ordering::Release);
    }

    fn try_reserve(&self) -> bool {
        self.free.fetch_update(Ordering::AcqRel, Ordering::Acquire, |free| free.checked_sub(1)).is_ok()
    }
}

struct Pool {
    seats: Vec<Weak<Seat>>,
    wake: Arc<Notify>,
}

/// Brings waiting runs to the workers of this node. Cheap to clone.
pub struct Dispatcher<S> {
    inner: Arc<Inner<S>>,
}

impl<S> Clone for Dispatcher<S> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone() }
    }
}

struct Inner<S> {
    desk: Desk<S>,
    node: NodeId,
    tasks: TaskGroup,
    pools: Mutex<HashMap<PoolKey, Pool>>,
}

impl<S: Store> Dispatcher<S> {
    /// A dispatcher for this node.
    pub fn new(desk: Desk<S>, node: NodeId, tasks: TaskGroup) -> Self {
        Self { inner: Arc::new(Inner { desk, node, tasks, pools: Mutex::default() }) }
    }

    /// Seats a worker for `capacity` runs of one agent. Runs come through `assignments`, which must hold that many.
    pub fn seat(
        &self,
        pool: PoolKey,
        worker: WorkerId,
        capacity: u32,
        assignments: mpsc::Sender<Assignment>,
    ) -> Arc<Seat> {
        let mut pools = self.inner.pools.lock().unwrap_or_else(PoisonError::into_inner);
        let is_new = !pools.contains_key(&pool);
        let entry = pools
            .entry(pool.clone())
            .or_insert_with(|| Pool { seats: Vec::new(), wake: Arc::new(Notify::new()) });
        let wake = entry.wake.clone();
        let free = AtomicU32::new(capacity);
        let seat = Arc::new(Seat { pool: pool.clone(), worker, free, assignments, wake: wake.clone() });
        entry.seats.push(Arc::downgrade(&seat));
        wake.notify_one();
        if is_new {
            let this = self.clone();
            let woken = wake.clone();
            let following = self.inner.desk.store().watch_pool(&pool, Arc::new(move || woken.notify_one()));
            self.inner.tasks.spawn_until_stopped(async move { this.serve(pool, wake, following).await });
        }
        seat
    }

    /// Serves one pool until no seat is left.
    async fn serve(self, pool: PoolKey, wake: Arc<Notify>, _following: Following) {
        loop {
            // Elapsed or woken: the same.
            drop(tokio::time::timeout(POLL, wake.notified()).await);
            let Some(seats) = self.reserve(&pool) else { return };
            if seats.is_empty() {
                continue;
            }
            match self.inner.desk.store().take(&pool, &self.inner.node, seats.len()).await {
                Ok(taken) => {
                    if taken.len() == seats.len() {
                        wake.notify_one();
                    }
                    let mut items = taken.into_iter();
                    for seat in seats {
                        let Some(item) = items.next() else {
                            seat.unreserve();
                            continue;
                        };
                        let (this, pool) = (self.clone(), pool.clone());
                        self.inner
                            .tasks
                            .spawn_until_stopped(async move { this.place(pool, seat, item).await });
                    }
                }
                Err(error) => {
                    seats.iter().for_each(|seat| seat.unreserve());
                    tracing::warn!(%pool, %error, "cannot take work");
                }
            }
        }
    }

    /// Places for as many runs as this node can take now, the emptiest worker first; `None`, and the pool is forgotten, if
    /// nobody sits there any more. Reserved before anything is taken: an item without a place would be hidden for a while.
    fn reserve(&self, pool: &PoolKey) -> Option<Vec<Arc<Seat>>> {
        let mut pools = self.inner.pools.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = pools.get_mut(pool)?;
        entry.seats.retain(|seat| seat.strong_count() > 0);
        if entry.seats.is_empty() {
            pools.remove(pool);
            return None;
        }
        let seats: Vec<Arc<Seat>> = entry.seats.iter().filter_map(Weak::upgrade).collect();
        let mut reserved = Vec::new();
        while reserved.len() < TAKE_MAX {
            let emptiest = seats.iter().max_by_key(|seat| seat.free.load(Ordering::Acquire));
            match emptiest.filter(|seat| seat.try_reserve()) {
                Some(seat) => reserved.push(seat.clone()),
                None => break,
            }
        }
        Some(reserved)
    }

    /// Claims one run for one reserved seat. With a store that does not answer, the item stays pending and comes again.
    async fn place(&self, pool: PoolKey, seat: Arc<Seat>, taken: Taken) {
        match self.claim(&seat, &taken).await {
            Claim::Won(assignment) => {
                self.finish(&pool, &taken).await;
                if let Err(lost) = seat.assignments.try_send(*assignment) {
                    // The connection is gone: its own clean-up does not know of this run, so it is given back here.
                    let assignment = lost.into_inner();
                    let request = Request::Decline { run: assignment.id, worker: seat.worker.clone() };
                    let decided = self
                        .inner
                        .desk
                        .decide(&assignment.key, &system_author(), &request, Numbered::No)
                        .await;
                    if let Err(failure) = decided {
                        tracing::warn!(key = %assignment.key, %failure, "a claimed run waits for its lease to end");
                    }
                }
            }
            Claim::NotNeeded => {
                seat.release();
                self.finish(&pool, &taken).await;
            }
            Claim::Unknown => seat.release(),
        }
    }

    async fn finish(&self, pool: &PoolKey, taken: &Taken) {
        if let Err(error) = self.inner.desk.store().finish_item(pool, &taken.ticket).await {
            tracing::debug!(%pool, %error, "an item comes again; its claim will be refused");
        }
    }

    async fn claim(&self, seat: &Seat, taken: &Taken) -> Claim {
        let key = SessionKey { tenant: taken.item.tenant.clone(), session: taken.item.session.clone() };
        let request = Request::Claim { run: taken.item.run.clone(), worker: seat.worker.clone() };
        let mut pause = Duration::from_millis(2);
        loop {
            let decided = self.inner.desk.decide(&key, &system_author(), &request, Numbered::No).await;
            match decided {
                Ok(decided) => {
                    let (Some(decision), Some(fence)) = (decided.decision, decided.written.fence) else {
                        return Claim::Unknown;
                    };
                    let Some(run) = decision.state.runs.get(&taken.item.run).cloned() else {
                        return Claim::Unknown;
                    };
                    let (epoch, seq) = (decided.written.epoch, decided.written.to);
                    let id = taken.item.run.clone();
                    return Claim::Won(Box::new(Assignment { key, id, run, fence, epoch, seq }));
                }
                // The write that requests the run is under way, or was never made.
                Err(Failure::Refused(Refusal::NoRun) | Failure::Store(NO_SESSION)) => {
                    match self.inner.desk.load(&key).await {
                        Ok((loaded, _)) if loaded.now <= taken.item.not_after.plus(LATE_MS) => {}
                        Ok(_) | Err(Failure::Store(NO_SESSION)) => return Claim::NotNeeded,
                        Err(_) => return Claim::Unknown,
                    }
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(Duration::from_millis(250));
                }
                // It ended, somebody else has it, or it waits behind a run whose end puts it into the pool again.
                Err(Failure::Refused(Refusal::NotHeld | Refusal::Closed | Refusal::Waits)) => {
                    return Claim::NotNeeded;
                }
                Err(failure) => {
                    tracing::warn!(%key, %failure, "cannot claim a run");
                    return Claim::Unknown;
                }
            }
        }
    }
}

enum Claim {
    Won(Box<Assignment>),
    NotNeeded,
    Unknown,
}

impl Assignment {
    /// Which attempt this is, from 1.
    pub fn attempt(&self) -> u32 {
        self.run.attempts
    }
}

impl Seat {
    /// The pool it belongs to.
    pub fn pool(&self) -> &PoolKey {
        &self.pool
    }
}
