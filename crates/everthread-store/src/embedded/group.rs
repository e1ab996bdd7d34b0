//! One group of requests: the rows it changes, and their one transaction.

use super::Shared;
use super::disk::{self, failed, to_json};
use super::leases::Lease;
use super::people::{self, DeviceChange};
use super::plant::PlantRows;
use super::pools::PoolChange;
use super::session::Session;
use super::trim::{self, TrimRows};
use crate::Error;
use bytes::Bytes;
use everthread_protocol::{Epoch, Millis, PoolKey, Record, RunId, SessionKey};
use redb::{ReadableTable as _, WriteTransaction};
use std::collections::{BTreeMap, HashMap, HashSet};

/// Answers one request, with the fate of its group.
pub(super) type Answer = Box<dyn FnOnce(Result<(), Error>) + Send>;

/// What a group of requests changes, and what is told to whom after its commit.
#[derive(Default)]
pub(super) struct Group {
    /// Sessions that were written, in a fixed order.
    pub sessions: BTreeMap<SessionKey, Touched>,
    /// (session number, seq) and stored bytes of new records.
    pub records: Vec<(u64, u64, Bytes)>,
    /// Ranges of raw records that folded ones take the place of.
    pub folds: Vec<FoldRows>,
    /// Folded records that leave their logs.
    pub trims: Vec<TrimRows>,
    /// Rows of sessions that are planted or become stubs.
    pub planting: PlantRows,
    /// New records as followers get them, in order.
    pub feed: Vec<(SessionKey, Record)>,
    /// Leases that were granted, in order.
    pub leases: Vec<(SessionKey, RunId, Lease)>,
    /// Rows of pools.
    pub pools: Vec<PoolChange>,
    /// Pools with something new.
    pub woken: HashSet<PoolKey>,
    /// Rows of the deadline index, in order.
    pub deadlines: Vec<(SessionKey, DeadlineRow)>,
    /// Rows of devices, in order.
    pub devices: Vec<DeviceChange>,
    /// Sessions that were active.
    pub index: Vec<(SessionKey, Millis)>,
    /// Sessions that go from the index, if it says this time.
    pub unindex: Vec<(SessionKey, Millis)>,
    /// The session that is deleted, and its number. It is alone in its group.
    pub deleted: Option<(SessionKey, Option<u64>)>,
    /// One per request.
    pub answers: Vec<Answer>,
}

/// Folded records of one session, and the range of raw ones that they stand for.
pub(super) struct FoldRows {
    /// The session's number.
    pub number: u64,
    /// First and last seq.
    pub range: (u64, u64),
    /// Seq of the last entry and stored bytes of each.
    pub records: Vec<(u64, Vec<u8>)>,
}

/// What happened to a session in this group.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Touched {
    /// Its version moved.
    pub changed: bool,
}

/// A change of a stored deadline.
#[derive(Debug, Clone, Copy)]
pub(super) enum DeadlineRow {
    /// Due then or earlier.
    Earlier(Millis),
    /// Due then.
    At(Millis),
    /// Not due.
    Gone,
}

/// Numbers of the engine that are stored when they have moved.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Numbers {
    /// Sessions so far.
    pub sessions: u64,
    /// The clock, rounded to seconds.
    pub clock: u64,
    /// The greatest epoch that was handed out, or more: the next start, and the next new session, begin above it.
    pub epoch: u64,
}

impl Numbers {
    /// An epoch that no session has had.
    pub fn next_epoch(&mut self, now_us: u64) -> Epoch {
        self.epoch = now_us.max(self.epoch + 1);
        Epoch(self.epoch)
    }
}

impl Group {
    /// Whether there is nothing to store.
    pub fn is_empty(&self) -> bool {
        self.sessions.is_empty()
            && self.planting.is_empty()
            && self.pools.is_empty()
            && self.deadlines.is_empty()
            && self.devices.is_empty()
            && self.index.is_empty()
            && self.unindex.is_empty()
            && self.deleted.is_none()
    }

    /// Stores everything, all or nothing.
    pub fn commit(
        &self,
        shared: &Shared,
        sessions: &HashMap<SessionKey, Session>,
        numbers: Numbers,
    ) -> Result<(), Error> {
        let txn = shared.disk.begin()?;
        self.store_records(&txn)?;
        self.planting.store(&txn)?;
        self.store_sessions(&txn, sessions)?;
        self.store_pools(&txn)?;
        self.store_deadlines(&txn)?;
        self.store_index(&txn)?;
        people::store(&txn, &self.devices)?;
        self.store_deletion(&txn)?;
        {
            let mut engine = txn.open_table(disk::ENGINE).map_err(failed)?;
            engine.insert("sessions", numbers.sessions).map_err(failed)?;
            engine.insert("clock", numbers.clock).map_err(failed)?;
            // The next start begins a greater one.
            engine.insert("boot", numbers.epoch).map_err(failed)?;
        }
        // From here on a failure leaves open whether the group is stored.
        txn.commit().map_err(|e| Error::Indeterminate(format!("the local database did not commit: {e}")))
    }

    fn store_records(&self, txn: &WriteTransaction) -> Result<(), Error> {
        if self.sessions.is_empty() {
            return Ok(());
        }
        let mut records = txn.open_table(disk::RECORDS).map_err(failed)?;
        for (number, to, stored) in &self.records {
            records.insert((*number, *to), stored.as_ref()).map_err(failed)?;
        }
        if !self.folds.is_empty() {
            let mut folded = txn.open_table(disk::FOLDED).map_err(failed)?;
            for FoldRows { number, range: (from, to), records: rows } in &self.folds {
                for (to, stored) in rows {
                    folded.insert((*number, *to), stored.as_slice()).map_err(failed)?;
                }
                records.retain_in((*number, *from)..=(*number, *to), |_, _| false).map_err(failed)?;
            }
        }
        trim::store(txn, &self.trims)?;
        Ok(())
    }

    fn store_sessions(
        &self,
        txn: &WriteTransaction,
        sessions: &HashMap<SessionKey, Session>,
    ) -> Result<(), Error> {
        if self.sessions.is_empty() {
            return Ok(());
        }
        let mut metas = txn.open_table(disk::META).map_err(failed)?;
        let mut states = txn.open_table(disk::STATE).map_err(failed)?;
        let mut producers = txn.open_table(disk::PRODUCERS).map_err(failed)?;
        for key in self.sessions.keys() {
            let Some(session) = sessions.get(key) else { continue };
            let name = key.to_string();
            metas.insert(name.as_str(), to_json(&session.meta)?.as_slice()).map_err(failed)?;
            if session.state_dirty {
                states.insert(name.as_str(), session.state.as_ref()).map_err(failed)?;
            }
            for producer in &session.producers_dirty {
                let id = (session.meta.number, producer.as_str());
                match session.producers.get(producer) {
                    Some(row) => drop(producers.insert(id, to_json(row)?.as_slice()).map_err(failed)?),
                    None => drop(producers.remove(id).map_err(failed)?),
                }
            }
        }
        Ok(())
    }

    fn store_pools(&self, txn: &WriteTransaction) -> Result<(), Error> {
        if self.pools.is_empty() {
            return Ok(());
        }
        let mut table = txn.open_table(disk::POOLS).map_err(failed)?;
        for (pool, ticket, row) in &self.pools {
            let id = (pool.as_str(), *ticket);
            match row {
                Some(row) => drop(table.insert(id, to_json(row)?.as_slice()).map_err(failed)?),
                None => drop(table.remove(id).map_err(failed)?),
            }
        }
        Ok(())
    }

    fn store_deadlines(&self, txn: &WriteTransaction) -> Result<(), Error> {
        if self.deadlines.is_empty() {
            return Ok(());
        }
        let mut table = txn.open_table(disk::DEADLINES).map_err(failed)?;
        for (key, row) in &self.deadlines {
            let name = key.to_string();
            let stored = table.get(name.as_str()).map_err(failed)?.map(|at| at.value());
            match row {
                DeadlineRow::Earlier(at) if stored.is_some_and(|stored| stored <= at.0) => {}
                DeadlineRow::Earlier(at) | DeadlineRow::At(at) => {
                    table.insert(name.as_str(), at.0).map_err(failed)?;
                }
                DeadlineRow::Gone => drop(table.remove(name.as_str()).map_err(failed)?),
            }
        }
        Ok(())
    }

    fn store_index(&self, txn: &WriteTransaction) -> Result<(), Error> {
        if self.index.is_empty() && self.unindex.is_empty() {
            return Ok(());
        }
        let mut index = txn.open_table(disk::INDEX).map_err(failed)?;
        let mut recent = txn.open_table(disk::RECENT).map_err(failed)?;
        for (key, at) in &self.unindex {
            let (tenant, session) = (key.tenant.as_str(), key.session.as_str());
            let stored = index.get((tenant, session)).map_err(failed)?.map(|at| at.value());
            if stored == Some(at.0) {
                index.remove((tenant, session)).map_err(failed)?;
                recent.remove((tenant, at.0, session)).map_err(failed)?;
            }
        }
        for (key, at) in &self.index {
            let (tenant, session) = (key.tenant.as_str(), key.session.as_str());
            let stored = index.get((tenant, session)).map_err(failed)?.map(|at| at.value());
            if stored.is_some_and(|stored| stored >= at.0) {
                continue;
            }
            if let Some(stored) = stored {
                recent.remove((tenant, stored, session)).map_err(failed)?;
            }
            index.insert((tenant, session), at.0).map_err(failed)?;
            recent.insert((tenant, at.0, session), ()).map_err(failed)?;
        }
        Ok(())
    }
}
