//! Builds pools, deadlines and the lists of sessions anew from the sessions.
//!
//! They live apart from the sessions, so a failover may take from them what it leaves to those. Whenever another server
//! serves a part of the store, and every few minutes, one node goes through all sessions at a bounded rate: it arms what is
//! due, and puts runs that wait for a worker into their pools, and sessions into their tenants' lists, where they are missing.
//! Everything about it may be done twice, by whomever, at any time. **Invariant:** it decides nothing; what it finds is what
//! the sessions say.

use crate::desk::{Desk, read_state};
use everthread_protocol::{Millis, NodeId, PoolKey, RunId, SessionId, SessionKey, TenantId};
use everthread_session::State;
use everthread_session::state::RunStatus;
use everthread_store::{Error, Listed, Store, Turn, WorkItem};
use std::collections::{HashMap, HashSet};
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// Between two looks whether it is wanted.
const LOOK: Duration = Duration::from_millis(500);
/// A node that is at it and shows no sign of life for so long is not at it any more.
const TURN: Duration = Duration::from_secs(15);
/// Sessions of one step …
const STEP: usize = 200;
/// … and the pause after it, so that it takes a little of what the store can do: at most a thousand sessions a second.
const STEP_PAUSE: Duration = Duration::from_millis(200);
/// Pause before what failed is tried again.
const AGAIN: Duration = Duration::from_secs(5);
/// Items of a pool that are read at once …
const ITEMS: usize = 512;
/// … and at most: a longer pool is not short of items.
const ITEMS_MAX: usize = 32 * ITEMS;

/// Sessions of a list that are read at most, the most recently active ones: what was lost of a longer one lies there, too.
const LISTED_MAX: usize = 128 * ITEMS;

/// Builds the indexes anew until dropped.
pub struct Rebuilder<S> {
    desk: Desk<S>,
    node: NodeId,
    every: Duration,
    upheavals: u64,
}

/// Since when it is wanted.
struct Wanted {
    since: Instant,
    /// What was done so long before that is good enough.
    before: Duration,
}

impl Wanted {
    fn age(&self) -> Duration {
        self.since.elapsed() + self.before
    }
}

/// What a pass through all sessions came to.
#[derive(Debug, Default)]
struct Pass {
    /// About what the store's clock says.
    now: Millis,
    sessions: u64,
    armed: u64,
    put_back: u64,
    relisted: u64,
    has_missed: bool,
    /// What the tenants' lists hold.
    lists: HashMap<TenantId, List>,
    /// Runs that the pools hold, by pool, as they were when first looked at; none for a pool that is too long to tell.
    pools: HashMap<PoolKey, Option<HashSet<(SessionKey, RunId)>>>,
}

/// The list of a tenant's sessions, as it was when first looked at.
#[derive(Debug, Default)]
struct List {
    known: HashSet<SessionId>,
    /// Of whoever was active since then it is known.
    since: Millis,
}

impl<S: Store> Rebuilder<S> {
    /// One that goes through all sessions at least so often.
    pub fn new(desk: Desk<S>, node: NodeId, every: Duration) -> Self {
        let upheavals = desk.store().upheavals();
        Self { desk, node, every, upheavals }
    }

    /// Builds for ever.
    pub async fn run(mut self) {
        // Nobody may have been there when it was needed.
        let mut wanted = Some(Wanted { since: Instant::now(), before: self.every });
        let mut next = Instant::now();
        loop {
            let upheavals = self.desk.store().upheavals();
            let is_time = Instant::now() >= next;
            if upheavals != self.upheavals {
                self.upheavals = upheavals;
                wanted = Some(Wanted { since: Instant::now(), before: Duration::ZERO });
            } else if is_time && wanted.is_none() {
                // Whoever has done it within the time has done it for all.
                wanted = Some(Wanted { since: Instant::now(), before: self.every });
            }
            if let Some(at) = &wanted
                && self.desk.store().is_ready()
            {
                match self.turn(at).await {
                    Ok(true) => (wanted, next) = (None, Instant::now() + self.every),
                    Ok(false) => sleep(AGAIN).await,
                    Err(error) => {
                        tracing::warn!(%error, "the indexes are not built anew yet");
                        sleep(AGAIN).await;
                    }
                }
            }
            sleep(LOOK).await;
        }
    }

    /// Whether what was wanted at a time is done, by this node or another.
    async fn turn(&self, wanted: &Wanted) -> Result<bool, Error> {
        match self.desk.store().rebuild_turn(&self.node, wanted.age(), TURN).await? {
            Turn::Done => Ok(true),
            Turn::Anothers => Ok(false),
            Turn::Yours(now) => {
                let mut pass = Pass { now, ..Pass::default() };
                let is_done = self.pass(&mut pass, wanted).await?;
                let Pass { sessions, armed, put_back, relisted, has_missed, .. } = pass;
                tracing::info!(
                    sessions,
                    armed,
                    put_back,
                    relisted,
                    has_missed,
                    "pools, deadlines and lists were built anew"
                );
                if has_missed || !is_done {
                    return Ok(false);
                }
                self.desk.store().end_rebuild(&self.node).await?;
                Ok(true)
            }
        }
    }

    /// Goes through all sessions. False if another has taken its place.
    async fn pass(&self, pass: &mut Pass, wanted: &Wanted) -> Result<bool, Error> {
        let (store, mut from, mut held) = (self.desk.store(), None::<String>, Instant::now());
        loop {
            let found = store.scan(from.as_deref(), STEP).await?;
            pass.has_missed |= found.has_missed;
            for keys in found.keys.chunks(STEP) {
                let listed = store.each_state(keys).await;
                for (key, listed) in keys.iter().zip(listed) {
                    match listed {
                        Ok(Some(listed)) => self.arm(key, &listed, pass).await?,
                        Ok(None) => {}
                        // Its turn comes with the next pass; the others do not wait for it.
                        Err(error) => {
                            tracing::debug!(%key, %error, "a session is left out of a pass");
                            pass.has_missed = true;
                        }
                    }
                }
            }
            if held.elapsed() > TURN / 3 {
                held = Instant::now();
                match store.rebuild_turn(&self.node, wanted.age(), TURN).await? {
                    Turn::Yours(now) => pass.now = now,
                    Turn::Anothers | Turn::Done => return Ok(false),
                }
            }
            from = found.next;
            if from.is_none() {
                return Ok(true);
            }
            if !found.keys.is_empty() {
                sleep(STEP_PAUSE).await;
            }
        }
    }

    /// Puts one session back into the indexes.
    async fn arm(&self, key: &SessionKey, listed: &Listed, pass: &mut Pass) -> Result<(), Error> {
        pass.sessions += 1;
        self.relist(key, listed, pass).await?;
        // One that a newer release wrote is a newer node's.
        let Ok(state) = read_state(&listed.state) else { return Ok(()) };
        let store = self.desk.store();
        let mut due = state.next_due();
        if state.active_runs().next().is_some() {
            // When leases end is not in the state.
            let Some(loaded) = store.load(key).await? else { return Ok(()) };
            due = self.desk.next_due(&state, &loaded);
        }
        let look = self.desk.upkeep().first_look(key, &state, pass.now);
        if let Some(at) = due.into_iter().chain(look).min() {
            store.arm(key, at).await?;
            pass.armed += 1;
        }
        self.put_back(key, &state, pass).await
    }

    /// Puts a session into its tenant's list, if it is not there.
    async fn relist(&self, key: &SessionKey, listed: &Listed, pass: &mut Pass) -> Result<(), Error> {
        if !pass.lists.contains_key(&key.tenant) {
            let list = self.list(&key.tenant).await?;
            pass.lists.insert(key.tenant.clone(), list);
        }
        let Some(list) = pass.lists.get_mut(&key.tenant) else { return Ok(()) };
        // When it was last active only the list knew. Its last epoch began before that, at the number that it has in
        // microseconds.
        let at = Millis(listed.epochs.last().map_or(0, |(epoch, _)| epoch.0 / 1000));
        if at >= list.since && list.known.insert(key.session.clone()) {
            self.desk.store().index(key, at).await?;
            pass.relisted += 1;
        }
        Ok(())
    }

    async fn list(&self, tenant: &TenantId) -> Result<List, Error> {
        let (mut list, mut after) = (List::default(), None::<(Millis, SessionId)>);
        while list.known.len() < LISTED_MAX {
            let page = self.desk.store().sessions(tenant, after.take(), ITEMS).await?;
            let is_last = page.len() < ITEMS;
            after = page.last().map(|(session, at)| (*at, session.clone()));
            list.known.extend(page.into_iter().map(|(session, _)| session));
            if is_last {
                return Ok(list);
            }
        }
        list.since = after.map_or(Millis(0), |(at, _)| at);
        Ok(list)
    }

    /// Puts runs that wait for a worker into their pools, if they are not there.
    async fn put_back(&self, key: &SessionKey, state: &State, pass: &mut Pass) -> Result<(), Error> {
        let waits = state.open_runs().filter(|(_, run)| run.status == RunStatus::Requested && !run.paused);
        for (id, run) in waits {
            let pool = PoolKey { tenant: key.tenant.clone(), agent: run.agent.clone() };
            if !pass.pools.contains_key(&pool) {
                let items = self.items(&pool).await?;
                pass.pools.insert(pool.clone(), items);
            }
            let Some(Some(items)) = pass.pools.get_mut(&pool) else { continue };
            if items.insert((key.clone(), id.clone())) {
                let (tenant, session, run) = (key.tenant.clone(), key.session.clone(), id.clone());
                // The write that asks for it is made.
                let item = WorkItem { tenant, session, run, not_after: Millis(0) };
                self.desk.store().enqueue(&pool, &item).await?;
                pass.put_back += 1;
            }
        }
        Ok(())
    }

    async fn items(&self, pool: &PoolKey) -> Result<Option<HashSet<(SessionKey, RunId)>>, Error> {
        let (mut items, mut after) = (HashSet::new(), None::<String>);
        while items.len() < ITEMS_MAX {
            let waiting = self.desk.store().waiting(pool, after.as_deref(), ITEMS).await?;
            let of = |item: WorkItem| (SessionKey { tenant: item.tenant, session: item.session }, item.run);
            items.extend(waiting.items.into_iter().map(of));
            after = waiting.next;
            if after.is_none() {
                return Ok(Some(items));
            }
        }
        Ok(None)
    }
}
