//! One session as the writer holds it, and the one write on it.
//!
//! Owns the order of checks and what a write changes. Pure: no I/O and no clock. Invariant: a refused write changes nothing.

use super::disk::Meta;
use super::leases::Lease;
use crate::{Duplicate, Error, LEASE_MS_MAX, Refusal, Written, types::stored_record};
use bytes::Bytes;
use everthread_protocol::limits::{REQUEST_MEMORY_MS, REQUESTS_MAX};
use everthread_protocol::record::stored_tail;
use everthread_protocol::{Epoch, Fence, Millis, Record, RunId, Seq, Version};
use serde::{Deserialize, Serialize};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// Producers are looked through for old ones this often at most …
const PRUNE_EVERY_MS: u64 = 60_000;
/// … or when there are this many, so that a burst of requests cannot fill the memory.
const PRUNE_AT: usize = 2 * REQUESTS_MAX;

/// A [`crate::Write`] that can travel to the writer.
#[derive(Debug)]
pub(super) struct OwnedWrite {
    tail: Vec<u8>,
    count: u32,
    producer: Option<OwnedProducer>,
    fence: Option<(RunId, Fence)>,
    change: Option<OwnedChange>,
    not_after: Option<Millis>,
}

#[derive(Debug)]
struct OwnedProducer {
    key: String,
    incarnation: u64,
    batch: u64,
    answer: String,
}

#[derive(Debug)]
struct OwnedChange {
    expect: Option<Version>,
    state: Arc<str>,
    next_due: Option<Millis>,
    grant: Option<RunId>,
    lease_ms: u64,
    revoke: Vec<RunId>,
    unwritten: Option<(RunId, u64)>,
}

impl OwnedWrite {
    /// Copies what the caller lent.
    pub fn of(write: &crate::Write<'_>) -> Self {
        Self {
            tail: stored_tail(write.by, write.run, write.entries),
            count: write.count,
            producer: write.producer.map(|p| OwnedProducer {
                key: p.key.to_owned(),
                incarnation: p.incarnation,
                batch: p.batch,
                answer: p.answer.to_owned(),
            }),
            fence: write.fence.map(|(run, fence)| (run.clone(), fence)),
            change: write.change.map(|c| OwnedChange {
                expect: c.expect,
                state: c.state.into(),
                next_due: c.next_due,
                grant: c.grant.cloned(),
                lease_ms: c.lease_ms.min(LEASE_MS_MAX),
                revoke: c.revoke.to_vec(),
                unwritten: c.unwritten.map(|(run, incarnation)| (run.clone(), incarnation)),
            }),
            not_after: write.not_after,
        }
    }

    /// Whether the session must not exist yet.
    pub fn creates(&self) -> bool {
        self.change.as_ref().is_some_and(|change| change.expect.is_none())
    }
}

/// What is remembered of a producer: its last batch and what that was answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Producer {
    /// Restart of its numbering.
    pub incarnation: u64,
    /// The last batch that is written.
    pub batch: u64,
    /// Seq of that batch's last entry.
    pub to: Seq,
    /// When it was written.
    pub at: Millis,
    /// What is handed back to a duplicate.
    pub answer: String,
}

impl Producer {
    /// The key of a run's own producer.
    pub fn key_of(run: &RunId) -> String {
        format!("run:{run}")
    }
}

/// The numbers that a write needs from outside the session.
#[derive(Debug, Clone, Copy)]
pub(super) struct Moment {
    /// Epoch of this start of the engine: no session that was there before stays below it.
    pub boot: Epoch,
    /// Greater than every epoch and fence of sessions that are gone: a new session's own.
    pub fresh: Epoch,
    /// The store's clock.
    pub now: Millis,
    /// The same in microseconds: the least fence that may be granted.
    pub now_us: u64,
}

/// What a write did, for those who store it and tell of it.
#[derive(Debug)]
pub(super) struct Applied {
    /// The answer.
    pub written: Written,
    /// The record as stored and as read, if it had entries.
    pub record: Option<(Bytes, Record)>,
    /// The version moved.
    pub changed: bool,
    /// The lease of the run that was granted a fence.
    pub lease: Option<(RunId, Lease)>,
}

/// A session in the writer's memory.
#[derive(Debug)]
pub(super) struct Session {
    /// What is written with every write.
    pub meta: Meta,
    /// The core state.
    pub state: Arc<str>,
    /// The state differs from the committed one.
    pub state_dirty: bool,
    /// Every producer that is remembered.
    pub producers: HashMap<String, Producer>,
    /// Producers that differ from the committed ones, or are gone.
    pub producers_dirty: HashSet<String>,
    pruned_at: Millis,
    /// Number of the group that used it last; the oldest leave the memory first.
    pub touched: u64,
}

impl Session {
    /// One that does not exist until its first write.
    pub fn new(number: u64) -> Self {
        Self::stored(Meta { number, ..Meta::default() }, String::new(), HashMap::new())
    }

    /// One that was read from the file.
    pub fn stored(meta: Meta, state: String, producers: HashMap<String, Producer>) -> Self {
        Self {
            meta,
            state: state.into(),
            state_dirty: false,
            producers,
            producers_dirty: HashSet::new(),
            pruned_at: Millis(0),
            touched: 0,
        }
    }

    /// Whether it was ever written.
    pub fn exists(&self) -> bool {
        !self.meta.epochs.is_empty()
    }

    /// The one write.
    pub fn write(&mut self, write: &OwnedWrite, moment: Moment) -> Result<Applied, Error> {
        match (self.exists(), write.creates()) {
            (false, false) => return Err(Refusal::NoSession.into()),
            (true, true) => return Err(Refusal::Exists.into()),
            _ => self.meta.must_be_whole()?,
        }
        if let Some(written) = self.duplicate(write) {
            return Ok(Applied { written, record: None, changed: false, lease: None });
        }
        self.check(write, moment.now)?;
        self.apply(write, moment)
    }

    /// The first answer, if the producer has written this batch before.
    fn duplicate(&self, write: &OwnedWrite) -> Option<Written> {
        let asked = write.producer.as_ref()?;
        let known = self.producers.get(&asked.key)?;
        (known.incarnation == asked.incarnation && asked.batch <= known.batch).then(|| Written {
            epoch: self.meta.epoch().0,
            to: known.to,
            at: Millis(0),
            version: self.meta.version(),
            fence: None,
            folded_to: self.meta.folded_to,
            duplicate: Some(Duplicate { batch: known.batch, answer: known.answer.clone() }),
        })
    }

    /// Late, fence, gap, version, unwritten: in this order.
    fn check(&self, write: &OwnedWrite, now: Millis) -> Result<(), Refusal> {
        if write.not_after.is_some_and(|limit| now > limit) {
            return Err(Refusal::Late);
        }
        if let Some((run, fence)) = &write.fence
            && self.meta.fences.get(run) != Some(fence)
        {
            return Err(Refusal::Fenced);
        }
        if let Some(asked) = &write.producer {
            let expected = match self.producers.get(&asked.key) {
                Some(known) if asked.incarnation < known.incarnation => return Err(Refusal::Fenced),
                Some(known) if asked.incarnation == known.incarnation => known.batch + 1,
                _ => 1,
            };
            if asked.batch != expected {
                return Err(Refusal::Gap { expected });
            }
        }
        if let Some(change) = &write.change {
            let current = self.meta.version();
            // Compared before the epoch moves: the decision was made on what was readable then.
            if change.expect.is_some_and(|expected| expected != current) {
                return Err(Refusal::Conflict { current });
            }
            if let Some((run, incarnation)) = &change.unwritten
                && let Some(known) = self.producers.get(&Producer::key_of(run))
                && known.incarnation >= *incarnation
            {
                return Err(Refusal::HasWritten);
            }
        }
        Ok(())
    }

    fn apply(&mut self, write: &OwnedWrite, moment: Moment) -> Result<Applied, Error> {
        let (from, to) = (self.meta.head.next(), Seq(self.meta.head.0 + u64::from(write.count)));
        // One that was made since the start has an epoch of its own, later than the start.
        let epoch = if self.exists() { self.meta.epoch().0.max(moment.boot) } else { moment.fresh };
        let record = if write.count == 0 {
            None
        } else {
            let stored = stored_record(epoch, from, moment.now, &write.tail);
            // Read back before anything changes: what cannot be read must not get in.
            let record = Record::from_stored(&stored, to).map_err(|e| {
                Error::Corrupt(format!("the write was refused, its block cannot be read back: {e}"))
            })?;
            Some((stored, record))
        };
        if !self.exists() {
            self.meta.fence_last = epoch.0;
        }
        let moved = self.meta.begin_epoch(epoch);
        self.meta.head = to;
        let lease = write.change.as_ref().and_then(|change| self.change(change, moment));
        if let Some(asked) = &write.producer {
            self.prune(moment.now);
            let producer = Producer {
                incarnation: asked.incarnation,
                batch: asked.batch,
                to,
                at: moment.now,
                answer: asked.answer.clone(),
            };
            self.producers.insert(asked.key.clone(), producer);
            self.producers_dirty.insert(asked.key.clone());
        }
        let written = Written {
            epoch,
            to,
            at: moment.now,
            version: self.meta.version(),
            fence: lease.as_ref().map(|(_, lease)| lease.fence),
            folded_to: self.meta.folded_to,
            duplicate: None,
        };
        Ok(Applied { written, record, changed: moved || write.change.is_some(), lease })
    }

    fn change(&mut self, change: &OwnedChange, moment: Moment) -> Option<(RunId, Lease)> {
        self.state = change.state.clone();
        self.state_dirty = true;
        self.meta.changes += 1;
        self.meta.next_due = change.next_due;
        // Revoke first: a take-over names the same run in both.
        for run in &change.revoke {
            self.meta.fences.remove(run);
        }
        change.grant.as_ref().map(|run| {
            self.meta.fence_last = moment.now_us.max(self.meta.fence_last + 1);
            let fence = Fence(self.meta.fence_last);
            self.meta.fences.insert(run.clone(), fence);
            (run.clone(), Lease { fence, ends: moment.now.plus(change.lease_ms) })
        })
    }

    /// Forgets producers that nobody will ask for again. Those of runs with a fence stay.
    fn prune(&mut self, now: Millis) {
        if self.producers.len() < PRUNE_AT && now < self.pruned_at.plus(PRUNE_EVERY_MS) {
            return;
        }
        self.pruned_at = now;
        let held: HashSet<String> = self.meta.fences.keys().map(Producer::key_of).collect();
        let mut idle: Vec<(Millis, String)> = self
            .producers
            .iter()
            .filter(|(key, _)| !held.contains(*key))
            .map(|(key, producer)| (producer.at, key.clone()))
            .collect();
        idle.sort_unstable();
        let excess = self.producers.len().saturating_sub(REQUESTS_MAX);
        for (index, (at, key)) in idle.into_iter().enumerate() {
            if index >= excess && now < at.plus(REQUEST_MEMORY_MS) {
                break;
            }
            self.producers.remove(&key);
            self.producers_dirty.insert(key);
        }
    }

    /// About how many bytes of memory it takes.
    pub fn bytes(&self) -> usize {
        const EACH: usize = 1024;
        const PRODUCER: usize = 256;
        EACH + self.state.len() + self.producers.len() * PRODUCER
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbered(session: &mut Session, key: &str, at: u64) {
        let write = OwnedWrite {
            tail: Vec::new(),
            count: 0,
            producer: Some(OwnedProducer {
                key: key.to_owned(),
                incarnation: 1,
                batch: 1,
                answer: String::new(),
            }),
            fence: None,
            change: None,
            not_after: None,
        };
        let moment = Moment { boot: Epoch(1), fresh: Epoch(1), now: Millis(at), now_us: at * 1000 };
        session.apply(&write, moment).unwrap();
    }

    #[test]
    fn producers_are_forgotten_after_ten_minutes_but_not_those_of_a_run_with_a_fence() {
        let mut session = Session::new(1);
        session.meta.fences.insert("held".parse().unwrap(), Fence(1));
        let start = 1_000_000;
        for key in ["run:held", "run:ended", "put:ann:1"] {
            numbered(&mut session, key, start);
        }
        numbered(&mut session, "put:ann:2", start + REQUEST_MEMORY_MS - 1);
        assert_eq!(session.producers.len(), 4);
        session.producers_dirty.clear();
        numbered(&mut session, "put:ann:3", start + REQUEST_MEMORY_MS + PRUNE_EVERY_MS);
        let mut left: Vec<_> = session.producers.keys().map(String::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["put:ann:2", "put:ann:3", "run:held"]);
        // Those that are gone are removed from the file too.
        assert!(
            session.producers_dirty.contains("run:ended") && session.producers_dirty.contains("put:ann:1")
        );
    }

    #[test]
    fn a_burst_of_requests_leaves_the_latest_and_those_of_runs() {
        let mut session = Session::new(1);
        session.meta.fences.insert("held".parse().unwrap(), Fence(1));
        numbered(&mut session, "run:held", 1);
        for n in 0..10_000 {
            numbered(&mut session, &format!("put:ann:{n}"), 10 + n);
            assert!(session.producers.len() <= PRUNE_AT);
        }
        assert!(session.producers.contains_key("run:held"));
        assert!(
            session.producers.contains_key("put:ann:9999") && !session.producers.contains_key("put:ann:5")
        );
        assert!(session.producers.len() >= REQUESTS_MAX);
    }
}
