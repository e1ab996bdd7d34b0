//! Work pools and deadlines in the writer's memory.
//!
//! Both are small: what waits now. Each change names the rows to store, so that a restart finds the same. What was taken
//! or claimed before a restart is handed out again at once: whoever held it is gone.

use crate::{DUE_VISIBILITY, Due, ITEM_VISIBILITY, Taken, WorkItem};
use everthread_protocol::{Millis, PoolKey, SessionKey, millis};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

/// An item as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct PoolRow {
    /// The run.
    pub item: WorkItem,
    /// How many times it was taken.
    pub deliveries: u32,
}

/// All pools.
#[derive(Debug, Default)]
pub(super) struct Pools {
    pools: HashMap<String, Pool>,
    ticket: u64,
}

#[derive(Debug, Default)]
struct Pool {
    items: BTreeMap<u64, PoolRow>,
    /// Nobody has these.
    fresh: BTreeSet<u64>,
    /// Taken, by the time at which they become visible again. Those that are finished meanwhile are skipped.
    taken: VecDeque<(Millis, u64)>,
}

/// A row of a pool that changed; `None` removes it.
pub(super) type PoolChange = (String, u64, Option<PoolRow>);

impl Pools {
    /// With what was stored.
    pub fn stored(rows: Vec<(String, u64, PoolRow)>) -> Self {
        let mut pools = Self::default();
        for (key, ticket, row) in rows {
            pools.ticket = pools.ticket.max(ticket);
            let pool = pools.pools.entry(key).or_default();
            pool.fresh.insert(ticket);
            pool.items.insert(ticket, row);
        }
        pools
    }

    /// Adds an item.
    pub fn add(&mut self, key: &PoolKey, item: WorkItem) -> PoolChange {
        self.ticket += 1;
        let key = key.to_string();
        let row = PoolRow { item, deliveries: 0 };
        let pool = self.pools.entry(key.clone()).or_default();
        pool.fresh.insert(self.ticket);
        pool.items.insert(self.ticket, row.clone());
        (key, self.ticket, Some(row))
    }

    /// Takes items: first those that were taken long ago.
    pub fn take(&mut self, key: &PoolKey, limit: usize, now: Millis) -> (Vec<Taken>, Vec<PoolChange>) {
        let key = key.to_string();
        let (mut taken, mut changes) = (Vec::new(), Vec::new());
        let Some(pool) = self.pools.get_mut(&key) else { return (taken, changes) };
        let visible = now.plus(millis(ITEM_VISIBILITY));
        while taken.len() < limit {
            let Some(ticket) = pool.next(now) else { break };
            let Some(row) = pool.items.get_mut(&ticket) else { continue };
            row.deliveries += 1;
            pool.taken.push_back((visible, ticket));
            taken.push(Taken {
                ticket: ticket.to_string(),
                item: row.item.clone(),
                deliveries: row.deliveries,
            });
            changes.push((key.clone(), ticket, Some(row.clone())));
        }
        (taken, changes)
    }

    /// Removes an item.
    pub fn finish(&mut self, key: &PoolKey, ticket: &str) -> Option<PoolChange> {
        let ticket = ticket.parse().ok()?;
        let key = key.to_string();
        let pool = self.pools.get_mut(&key)?;
        pool.items.remove(&ticket)?;
        pool.fresh.remove(&ticket);
        if pool.items.is_empty() {
            self.pools.remove(&key);
        }
        Some((key, ticket, None))
    }
}

impl Pool {
    fn next(&mut self, now: Millis) -> Option<u64> {
        while let Some((visible, ticket)) = self.taken.front().copied() {
            if self.items.contains_key(&ticket) && visible > now {
                break;
            }
            self.taken.pop_front();
            if self.items.contains_key(&ticket) {
                return Some(ticket);
            }
        }
        self.fresh.pop_first()
    }
}

/// All deadlines: one per session.
#[derive(Debug, Default)]
pub(super) struct Deadlines {
    by_session: HashMap<SessionKey, Deadline>,
    by_time: BTreeSet<(Millis, SessionKey)>,
}

#[derive(Debug, Clone, Copy)]
struct Deadline {
    at: Millis,
    /// The claim in force; none once the session was armed again.
    claim: Option<Millis>,
    /// The greatest claim so far: a later one is always another.
    claim_last: Millis,
}

impl Deadlines {
    /// With what was stored.
    pub fn stored(rows: Vec<(SessionKey, Millis)>) -> Self {
        let mut deadlines = Self::default();
        for (key, at) in rows {
            deadlines.arm(&key, at);
        }
        deadlines
    }

    /// The session is due at `at` or earlier. Returns whether that is news.
    ///
    /// A claim ends even when `at` is later than it: its holder has not seen what this arm is for, so it must not remove
    /// the deadline. The session is then due again when the claim would have run out.
    pub fn arm(&mut self, key: &SessionKey, at: Millis) -> bool {
        let Some(deadline) = self.by_session.get_mut(key) else {
            self.set(key, Deadline { at, claim: None, claim_last: Millis(0) });
            return true;
        };
        deadline.claim = None;
        if at >= deadline.at {
            return false;
        }
        let deadline = Deadline { at, ..*deadline };
        self.set(key, deadline);
        true
    }

    /// The session is due at once if it is ever due. Returns whether that is news.
    pub fn hurry(&mut self, key: &SessionKey) -> bool {
        self.by_session.contains_key(key) && self.arm(key, Millis(0))
    }

    /// Takes sessions that are due. Claims are not stored: after a restart nobody holds them.
    pub fn claim(&mut self, limit: usize, now: Millis) -> Vec<Due> {
        let due: Vec<SessionKey> = self
            .by_time
            .iter()
            .take_while(|(at, _)| *at <= now)
            .take(limit)
            .map(|(_, key)| key.clone())
            .collect();
        let hidden = now.plus(millis(DUE_VISIBILITY));
        due.into_iter()
            .map(|key| {
                let last = self.by_session.get(&key).map_or(Millis(0), |deadline| deadline.claim_last);
                let claim = hidden.max(last.plus(1));
                self.set(&key, Deadline { at: claim, claim: Some(claim), claim_last: claim });
                Due { key, claim }
            })
            .collect()
    }

    /// Ends a claim that is in force. Returns whether it was.
    pub fn finish(&mut self, due: &Due, next: Option<Millis>) -> bool {
        let Some(deadline) = self.by_session.get(&due.key).copied() else { return false };
        if deadline.claim != Some(due.claim) {
            return false;
        }
        match next {
            Some(at) => self.set(&due.key, Deadline { at, claim: None, ..deadline }),
            None => {
                self.by_session.remove(&due.key);
                self.by_time.remove(&(deadline.at, due.key.clone()));
            }
        }
        true
    }

    fn set(&mut self, key: &SessionKey, deadline: Deadline) {
        if let Some(old) = self.by_session.insert(key.clone(), deadline) {
            self.by_time.remove(&(old.at, key.clone()));
        }
        self.by_time.insert((deadline.at, key.clone()));
    }
}
