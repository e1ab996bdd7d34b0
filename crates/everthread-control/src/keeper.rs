//! The keeper of deadlines. Any node may keep any session's: a claim hides a due session from the others for a while, so a
//! node that dies with one in hand loses nothing; handlers read the session anew and let the core decide, so early or double
//! firing is harmless.

use crate::AtHead;
use crate::desk::{Desk, Failure, Numbered, lease_of, system_author};
use everthread_protocol::{Millis, RunId, SessionKey, WorkerId};
use everthread_session::{Refusal, Request, State};
use everthread_store::{DUE_VISIBILITY, Due, Error, Head, Loaded, Refusal as WriteRefusal, Store};
use futures_util::{StreamExt as _, stream};
use std::time::{Duration, Instant};

/// How often the index is looked at.
const LOOK: Duration = Duration::from_millis(200);
/// Sessions claimed at once, and handled side by side.
const CLAIM_MAX: usize = 64;
const SIDE_BY_SIDE: usize = 16;
/// Pause before upkeep that failed is tried again.
const UPKEEP_PAUSE: Duration = Duration::from_secs(30);

/// A run whose lease is over.
struct Dead {
    run: RunId,
    worker: WorkerId,
    attempt: u32,
    /// When it ended, if the store knows.
    lease: Option<Millis>,
}

/// Keeps deadlines until dropped.
pub struct Keeper<S> {
    desk: Desk<S>,
    /// Since when the store has answered without a break. A lease is declared over only after a full term of that: before,
    /// the worker may have been unable to show that it lives.
    ready_since: Option<Instant>,
}

impl<S: Store> Keeper<S> {
    /// A keeper on a desk's store.
    pub fn new(desk: Desk<S>) -> Self {
        Self { desk, ready_since: None }
    }

    /// Keeps deadlines for ever.
    pub async fn run(mut self) {
        let mut is_more = false;
        loop {
            if !std::mem::take(&mut is_more) {
                tokio::time::sleep(LOOK).await;
            }
            if !self.desk.store().is_ready() {
                self.ready_since = None;
                continue;
            }
            self.ready_since.get_or_insert_with(Instant::now);
            match self.desk.store().claim_due(CLAIM_MAX).await {
                Ok(due) => {
                    is_more = due.len() == CLAIM_MAX;
                    self.keep_all(due).await;
                }
                Err(error) => {
                    // Once: where the rest of the store works, this is tried many times.
                    if self.ready_since.take().is_some() {
                        tracing::warn!(%error, "cannot look at the deadlines");
                    }
                }
            }
        }
    }

    async fn keep_all(&self, due: Vec<Due>) {
        if due.is_empty() {
            return;
        }
        let keys: Vec<SessionKey> = due.iter().map(|due| due.key.clone()).collect();
        match self.desk.store().heads(&keys).await {
            Ok(heads) => {
                let all = stream::iter(due.into_iter().zip(heads));
                all.for_each_concurrent(SIDE_BY_SIDE, |(due, head)| self.keep(due, head)).await;
            }
            // A part of the store may be down: the sessions of the others must not wait for it.
            Err(_) => stream::iter(due).for_each_concurrent(SIDE_BY_SIDE, |due| self.keep_one(due)).await,
        }
    }

    async fn keep_one(&self, due: Due) {
        match self.desk.store().heads(std::slice::from_ref(&due.key)).await {
            Ok(mut heads) => self.keep(due, heads.pop().flatten()).await,
            Err(error) => tracing::debug!(key = %due.key, %error, "a deadline fires again"),
        }
    }

    async fn keep(&self, due: Due, head: Option<Head>) {
        // A claim runs out so long after it was made.
        let now = Millis(due.claim.0.saturating_sub(crate::millis(DUE_VISIBILITY)));
        let handled = match head {
            Some(head) => self.handle(&due.key, &head, now).await,
            None => self.desk.upkeep().gone(&due.key, now).await,
        };
        match handled {
            Ok(next) => {
                if let Err(error) = self.desk.store().finish_due(&due, next).await {
                    tracing::debug!(key = %due.key, %error, "a deadline fires again");
                }
            }
            // It was deleted meanwhile, which has armed it anew, or will find nothing of it here.
            Err(Failure::Store(Error::Refused(WriteRefusal::NoSession))) => {
                let next = self.desk.upkeep().gone(&due.key, now).await.unwrap_or(Some(now));
                drop(self.desk.store().finish_due(&due, next).await);
            }
            // It was archived since its head was read: what is due of it is found there.
            Err(Failure::Store(Error::Refused(WriteRefusal::Archived))) => {
                drop(self.desk.store().finish_due(&due, Some(now)).await);
            }
            Err(failure) => tracing::warn!(key = %due.key, %failure, "a deadline fires again"),
        }
    }

    /// Does what is due in a session and says when to look again.
    async fn handle(&self, key: &SessionKey, head: &Head, now: Millis) -> Result<Option<Millis>, Failure> {
        match self.desk.upkeep().at_head(key, head, now).await? {
            AtHead::Leave(next) => return Ok(next),
            AtHead::Load => {}
        }
        let (loaded, state) = self.settle(key).await?;
        // What the core promised must not wait for upkeep that does not succeed.
        let look = match self.desk.upkeep().keep(key, head, &loaded, &state).await {
            Ok(look) => look,
            Err(gone @ Failure::Store(Error::Refused(WriteRefusal::NoSession | WriteRefusal::Archived))) => {
                return Err(gone);
            }
            Err(failure) => {
                tracing::warn!(%key, %failure, "upkeep of a session is tried again");
                Some(loaded.now.plus(crate::millis(UPKEEP_PAUSE)))
            }
        };
        Ok(self.later(&state, &loaded, look))
    }

    /// Does what the core has due in a session, and tells how it then stands.
    async fn settle(&self, key: &SessionKey) -> Result<(Loaded, State), Failure> {
        let (loaded, state) = self.desk.load_here(key).await?;
        let dead = self.dead(key, &loaded, &state);
        let is_due = state.next_due().is_some_and(|due| due <= loaded.now);
        if dead.is_empty() && !is_due {
            return Ok((loaded, state));
        }
        let ends = dead.iter().filter_map(|dead| dead.lease);
        if let Some(due) = state.next_due().filter(|_| is_due).into_iter().chain(ends).min() {
            self.desk.counts().late(loaded.now.0.saturating_sub(due.0));
        }
        for Dead { run, worker, attempt, lease } in dead {
            // The lease may have been renewed since this node looked.
            let (loaded, _) = self.desk.load_here(key).await?;
            if lease_of(&loaded, &run) == lease && self.desk.worker_died(key, &run, &worker, attempt).await? {
                self.desk.counts().lease_expired();
            }
        }
        match self.desk.decide(key, &system_author(), &Request::Due, Numbered::No).await {
            Ok(_) | Err(Failure::Refused(Refusal::NotDue)) => {}
            Err(failure) => return Err(failure),
        }
        self.desk.load_here(key).await
    }

    /// When to look again. What is due and was left, because the store has not been there for long enough, is looked at
    /// again soon.
    fn later(&self, state: &State, loaded: &Loaded, look: Option<Millis>) -> Option<Millis> {
        let soon = loaded.now.plus(crate::millis(LOOK));
        self.desk.next_due(state, loaded).into_iter().chain(look).min().map(|due| due.max(soon))
    }

    /// Runs whose lease is over: nobody has renewed it, for a full term of a store that was there.
    fn dead(&self, key: &SessionKey, loaded: &Loaded, state: &State) -> Vec<Dead> {
        let term = self.desk.leases().lease;
        let is_steady = |steady: Option<Duration>| steady.is_some_and(|steady| steady >= term);
        // Of a store of many servers, the one that has the session is where leases are renewed.
        if !is_steady(self.ready_since.map(|since| since.elapsed()))
            || !is_steady(self.desk.store().steady_for(key))
        {
            return Vec::new();
        }
        let over = state.active_runs().filter_map(|(run, worker)| {
            let lease = lease_of(loaded, run);
            let attempt = state.runs.get(run)?.attempts;
            let is_over = lease.is_none_or(|ends| ends <= loaded.now);
            is_over.then(|| Dead { run: run.clone(), worker: worker.clone(), attempt, lease })
        });
        over.collect()
    }
}

/// Whether the run's present attempt has written anything.
fn has_written(loaded: &Loaded, state: &State, run: &RunId) -> bool {
    let attempt = state.runs.get(run).map_or(0, |run| u64::from(run.attempts));
    loaded.producers.iter().any(|(id, incarnation, batch)| id == run && *incarnation >= attempt && *batch > 0)
}

/// Longest pause between two tries to give a run back.
const GIVE_BACK_PAUSE_MAX: Duration = Duration::from_secs(2);

impl<S: Store> Desk<S> {
    /// Nobody works on an attempt that was claimed: the run goes back to its pool. False if it has written, so that
    /// somebody does. Tries until the store has an answer: nobody else looks at the run before its lease ends.
    pub async fn give_back(&self, key: &SessionKey, run: &RunId, worker: &WorkerId, attempt: u32) -> bool {
        let mut pause = Duration::from_millis(100);
        loop {
            let request = Request::Decline { run: run.clone(), worker: worker.clone(), attempt };
            match self.decide(key, &system_author(), &request, Numbered::No).await {
                Ok(_)
                | Err(Failure::Refused(_))
                | Err(Failure::Store(Error::Refused(WriteRefusal::NoSession))) => return true,
                Err(Failure::Store(Error::Refused(WriteRefusal::HasWritten))) => return false,
                Err(failure) => tracing::warn!(%key, %run, %failure, "a run is given back again"),
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(GIVE_BACK_PAUSE_MAX);
        }
    }

    /// A worker is dead: its run goes back to the pool, or ends as lost if it has written. Nothing happens to a later attempt:
    /// false.
    pub async fn worker_died(
        &self,
        key: &SessionKey,
        run: &RunId,
        worker: &WorkerId,
        attempt: u32,
    ) -> Result<bool, Failure> {
        let (loaded, state) = match self.load(key).await {
            // It was deleted, and the run with it.
            Err(Failure::Store(Error::Refused(WriteRefusal::NoSession))) => return Ok(false),
            loaded => loaded?,
        };
        let mut wrote = has_written(&loaded, &state, run);
        loop {
            let request = Request::WorkerDied { run: run.clone(), worker: worker.clone(), attempt, wrote };
            match self.decide(key, &system_author(), &request, Numbered::No).await {
                Err(Failure::Store(Error::Refused(WriteRefusal::HasWritten))) if !wrote => wrote = true,
                // It ended or moved meanwhile, or was deleted.
                Err(Failure::Refused(Refusal::NotHeld))
                | Err(Failure::Store(Error::Refused(WriteRefusal::NoSession))) => return Ok(false),
                Ok(_) => return Ok(true),
                Err(failure) => return Err(failure),
            }
        }
    }
}
