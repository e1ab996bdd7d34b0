//! Brings waiting runs to the workers of this node.
//!
//! A [`Seat`] is a worker's place for runs of one agent. While a pool has free seats here, the dispatcher takes items from
//! it (on a wake-up, when a seat becomes free, and once a second), claims each run in its session, and hands it to the seat.
//! The claim decides who runs; the pool's pending list does not.

use crate::TaskGroup;
use crate::desk::Failure;
use crate::desk::{Desk, Numbered, system_author};
use everthread_protocol::worker_frame::{Offer, OnLost};
use everthread_protocol::{Epoch, Fence, NodeId, PoolKey, RunId, Seq, SessionKey, WorkerId};
use everthread_session::state::{Run, RunStatus};
use everthread_session::{Refusal, Request};
use everthread_store::{Error, Following, ITEM_VISIBILITY, Refusal as WriteRefusal, Store, Taken};

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;
use tokio::sync::{Notify, mpsc};

const NO_SESSION: Error = Error::Refused(WriteRefusal::NoSession);
/// How often a pool is looked at when nothing wakes it.
const POLL: Duration = Duration::from_secs(1);
/// How long after `not_after` an item is kept whose run is not there.
const LATE_MS: u64 = 1_000;
/// Pauses between two looks at an item whose run is not free yet, from the first to the longest.
const LATER_PAUSE: Duration = Duration::from_millis(20);
const LATER_PAUSE_MAX: Duration = Duration::from_millis(500);
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
    /// If the worker dies, another goes on with its runs.
    retries: bool,
    /// Below 0 where the worker holds more from before than it offers to take.
    free: AtomicI64,
    is_draining: AtomicBool,
    /// Nothing has been heard from the worker for too long: it may be dead.
    is_silent: AtomicBool,
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

    /// No new runs.
    pub fn drain(&self) {
        self.is_draining.store(true, Ordering::Release);
    }

    /// A worker that is not heard from gets nothing new until it is.
    pub fn set_silent(&self, is_silent: bool) {
        if self.is_silent.swap(is_silent, Ordering::AcqRel) && !is_silent {
            self.wake.notify_one();
        }
    }

    fn free(&self) -> i64 {
        let is_shut = self.is_draining.load(Ordering::Acquire) || self.is_silent.load(Ordering::Acquire);
        if is_shut { 0 } else { self.free.load(Ordering::Acquire) }
    }

    fn try_reserve(&self) -> bool {
        let take = |free: i64| (free > 0).then(|| free - 1);
        self.free() > 0 && self.free.fetch_update(Ordering::AcqRel, Ordering::Acquire, take).is_ok()
    }
}

struct Pool {
    seats: Vec<Weak<Seat>>,
    wake: Arc<Notify>,
}

impl Pool {
    /// Up to `most` places, the emptiest worker first.
    fn reserve(&self, most: usize) -> Vec<Arc<Seat>> {
        let seats: Vec<Arc<Seat>> = self.seats.iter().filter_map(Weak::upgrade).collect();
        let mut reserved = Vec::new();
        while reserved.len() < most {
            let emptiest = seats.iter().max_by_key(|seat| seat.free());
            match emptiest.filter(|seat| seat.try_reserve()) {
                Some(seat) => reserved.push(seat.clone()),
                None => break,
            }
        }
        reserved
    }
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
    /// The node stops: its workers get nothing new.
    is_closed: AtomicBool,
}

impl<S: Store> Dispatcher<S> {
    /// A dispatcher for this node.
    pub fn new(desk: Desk<S>, node: NodeId, tasks: TaskGroup) -> Self {
        let (pools, is_closed) = (Mutex::default(), AtomicBool::new(false));
        Self { inner: Arc::new(Inner { desk, node, tasks, pools, is_closed }) }
    }

    /// From here on nothing is claimed: other nodes bring the runs that wait to their workers.
    pub fn close(&self) {
        self.inner.is_closed.store(true, Ordering::Release);
    }

    fn is_closed(&self) -> bool {
        self.inner.is_closed.load(Ordering::Acquire)
    }

    /// Seats a worker for runs of one agent, of which it has `occupied` places already. Runs come through `assignments`,
    /// which must hold as many as are offered.
    pub fn seat(
        &self,
        pool: PoolKey,
        worker: WorkerId,
        offer: &Offer,
        occupied: u32,
        assignments: mpsc::Sender<Assignment>,
    ) -> Arc<Seat> {
        let mut pools = self.inner.pools.lock().unwrap_or_else(PoisonError::into_inner);
        let is_new = !pools.contains_key(&pool);
        let entry = pools
            .entry(pool.clone())
            .or_insert_with(|| Pool { seats: Vec::new(), wake: Arc::new(Notify::new()) });
        let wake = entry.wake.clone();
        let free = AtomicI64::new(i64::from(offer.capacity) - i64::from(occupied));
        let seat = Arc::new(Seat {
            pool: pool.clone(),
            worker,
            retries: offer.on_lost == OnLost::Retry,
            free,
            is_draining: AtomicBool::new(false),
            is_silent: AtomicBool::new(false),
            assignments,
            wake: wake.clone(),
        });
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
        Some(if self.is_closed() { Vec::new() } else { entry.reserve(TAKE_MAX) })
    }

    fn reserve_one(&self, pool: &PoolKey) -> Option<Arc<Seat>> {
        if self.is_closed() {
            return None;
        }
        let pools = self.inner.pools.lock().unwrap_or_else(PoisonError::into_inner);
        pools.get(pool)?.reserve(1).pop()
    }

    /// Claims one run for one reserved seat. With a store that does not answer, the item stays pending and comes again.
    async fn place(&self, pool: PoolKey, seat: Arc<Seat>, taken: Taken) {
        let (mut seat, mut pause, begun) = (seat, LATER_PAUSE, tokio::time::Instant::now());
        loop {
            match self.claim(&seat, &taken).await {
                Claim::Won(assignment) => return self.hand_over(&pool, &seat, &taken, *assignment).await,
                Claim::NotNeeded => {
                    seat.release();
                    return self.finish(&pool, &taken).await;
                }
                Claim::Unknown => return seat.release(),
                // The place is for others meanwhile.
                Claim::Later => seat.release(),
            }
            drop(seat);
            seat = loop {
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LATER_PAUSE_MAX);
                if begun.elapsed() > ITEM_VISIBILITY {
                    return;
                }
                if let Some(seat) = self.reserve_one(&pool) {
                    break seat;
                }
            };
        }
    }

    async fn hand_over(&self, pool: &PoolKey, seat: &Seat, taken: &Taken, assignment: Assignment) {
        self.finish(pool, taken).await;
        if let Err(lost) = seat.assignments.try_send(assignment) {
            // The connection is gone: its own clean-up does not know of this run, so it is given back here. And shut first,
            // or the run would come back to this very place, which lives for as long as somebody holds it.
            seat.drain();
            let Assignment { key, id, run, .. } = lost.into_inner();
            self.inner.desk.give_back(&key, &id, &seat.worker, run.attempts).await;
        }
    }

    async fn finish(&self, pool: &PoolKey, taken: &Taken) {
        if let Err(error) = self.inner.desk.store().finish_item(pool, &taken.ticket).await {
            tracing::debug!(%pool, %error, "an item comes again; its claim will be refused");
        }
    }

    async fn claim(&self, seat: &Seat, taken: &Taken) -> Claim {
        let key = SessionKey { tenant: taken.item.tenant.clone(), session: taken.item.session.clone() };
        let (run, worker) = (taken.item.run.clone(), seat.worker.clone());
        let request = Request::Claim { run, worker, retries: seat.retries };
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
                    // A write takes a few milliseconds. One that is not there by then may never come.
                    if pause > LATER_PAUSE {
                        return Claim::Later;
                    }
                    tokio::time::sleep(pause).await;
                    pause *= 2;
                }
                Err(Failure::Refused(Refusal::NotHeld | Refusal::Waits)) => {
                    return self.wait_or_drop(&key, taken).await;
                }
                Err(Failure::Refused(Refusal::Closed)) => return Claim::NotNeeded,
                // It may have been made.
                Err(Failure::Store(Error::Indeterminate(_))) => {
                    if let Some(claim) = self.claimed(&key, seat, taken).await {
                        return claim;
                    }
                }
                Err(failure) => {
                    tracing::warn!(%key, %failure, "cannot claim a run");
                    return Claim::Unknown;
                }
            }
        }
    }

    /// The run is with somebody, or waits behind another. The item was put into the pool before the write that makes it
    /// true: until that write is made or can be made no more, the item must stay.
    async fn wait_or_drop(&self, key: &SessionKey, taken: &Taken) -> Claim {
        match self.inner.desk.load(key).await {
            Ok((loaded, state)) => {
                let is_open = state.runs.get(&taken.item.run).is_some_and(Run::is_open);
                let is_early = loaded.now <= taken.item.not_after.plus(LATE_MS);
                if is_open && is_early { Claim::Later } else { Claim::NotNeeded }
            }
            Err(Failure::Store(NO_SESSION)) => Claim::NotNeeded,
            Err(_) => Claim::Unknown,
        }
    }

    /// What became of a claim whose answer was lost; `None` if it was not made. Tries for a lease: after that the claim
    /// is over if it was made, and somebody else gets the run.
    async fn claimed(&self, key: &SessionKey, seat: &Seat, taken: &Taken) -> Option<Claim> {
        let (id, begun) = (&taken.item.run, tokio::time::Instant::now());
        while begun.elapsed() < self.inner.desk.leases().lease {
            match self.inner.desk.load(key).await {
                Ok((loaded, state)) => {
                    let run = state.runs.get(id).filter(|run| run.is_open())?.clone();
                    if run.status == RunStatus::Requested {
                        return None;
                    }
                    // No work is handed out on a claim that a failover may undo.
                    if let Err(failure) = self.inner.desk.settle_loaded(key, &loaded).await {
                        tracing::debug!(%key, %failure, "a claim is not sure yet");
                        tokio::time::sleep(LATER_PAUSE_MAX).await;
                        continue;
                    }
                    let fence = loaded.fences.iter().find(|(run, _)| run == id).map(|(_, fence)| *fence);
                    let Some(fence) = fence.filter(|_| run.is_held_by(&seat.worker)) else {
                        return Some(Claim::NotNeeded);
                    };
                    let (epoch, seq, id) = (loaded.version.epoch, loaded.head, id.clone());
                    return Some(Claim::Won(Box::new(Assignment {
                        key: key.clone(),
                        id,
                        run,
                        fence,
                        epoch,
                        seq,
                    })));
                }
                Err(Failure::Store(NO_SESSION)) => return Some(Claim::NotNeeded),
                Err(failure) => tracing::debug!(%key, %failure, "a claim's outcome is not known yet"),
            }
            tokio::time::sleep(LATER_PAUSE_MAX).await;
        }
        Some(Claim::Unknown)
    }
}

enum Claim {
    Won(Box<Assignment>),
    NotNeeded,
    /// Not yet: what makes the run free may be under way.
    Later,
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
