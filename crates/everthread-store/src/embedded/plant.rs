//! Planting and stubs.
//!
//! What is staged gets a session number of its own and goes into the table of folded records at once; nobody finds it
//! there, because no session has the number. A plant gives the number to the session. Numbers that are still staged at a
//! start, and those that are staged for too long, are removed with all their rows.

use super::Embedded;
use super::disk::{self, Meta, failed};
use super::group::Group;
use super::session::Session;
use super::writer::{Request, Writer};
use crate::plant::range;
use crate::{
    Error, First, Over, Plant, Planted, Refusal, STAGED_KEPT, Stub, StubInfo, Stubbed, types::stored_record,
};
use bytes::Bytes;
use everthread_protocol::limits::{EPOCHS_MAX, REQUEST_MEMORY_MS};
use everthread_protocol::record::stored_tail;
use everthread_protocol::{Epoch, Millis, Record, Seq, SessionKey, Version, millis};
use redb::{ReadableTable as _, WriteTransaction};
use std::collections::HashMap;
use std::sync::Arc;
use tokio::time::Instant;

/// What is staged, by session and name.
#[derive(Debug, Default)]
pub(super) struct Staging(HashMap<(SessionKey, String), Staged>);

/// Records that wait to be planted.
#[derive(Debug, Clone, Copy)]
struct Staged {
    number: u64,
    from: Seq,
    to: Seq,
    until: Millis,
}

/// Rows that planting changes.
#[derive(Debug, Default)]
pub(super) struct PlantRows {
    /// Folded records: session number, last seq, stored bytes.
    records: Vec<(u64, u64, Vec<u8>)>,
    /// Numbers that become staged (true), or no longer are, in order.
    staged: Vec<(u64, bool)>,
    /// Numbers of which everything goes.
    cleared: Vec<u64>,
    /// Session numbers with the floor and the base that they have from here on.
    bases: Vec<(u64, Seq, String)>,
}

/// Records that can travel to the writer.
pub(super) struct OwnedStage {
    range: (Seq, Seq),
    records: Vec<(Seq, Vec<u8>)>,
}

/// A [`Plant`] that can travel to the writer.
pub(super) struct OwnedPlant {
    over: Option<String>,
    gone: Option<Epoch>,
    epochs: Vec<(Epoch, Seq)>,
    head: Seq,
    changes: u64,
    fence_last: u64,
    floor: Seq,
    base: Option<String>,
    folded_bytes: u64,
    state: Arc<str>,
    next_due: Option<Millis>,
    /// End of the stored record, and how many entries it has.
    first: Option<(Vec<u8>, u32)>,
    needs_staged: bool,
}

/// A [`Stub`] that can travel to the writer.
pub(super) struct OwnedStub {
    expect: Version,
    head: Seq,
    object: String,
    state: Arc<str>,
    at: Millis,
}

impl OwnedPlant {
    fn of(plant: &Plant<'_>) -> Result<Self, Error> {
        let of_first = |first: First<'_>| (stored_tail(first.by, None, first.entries), first.count);
        let (over, gone) = match plant.over {
            Over::Nothing { gone } => (None, gone),
            Over::Stub { object } => (Some(object.to_owned()), None),
        };
        Ok(Self {
            needs_staged: plant.needs_staged()?,
            over,
            gone,
            epochs: plant.epochs.to_vec(),
            head: plant.head,
            changes: plant.changes,
            fence_last: plant.fence_last,
            floor: plant.floor,
            base: plant.base.map(str::to_owned),
            folded_bytes: plant.folded_bytes,
            state: plant.state.into(),
            next_due: plant.next_due,
            first: plant.first.map(of_first),
        })
    }

    /// The session's meta, if what is in its place is what was said.
    fn meta_over(&self, current: Option<&Meta>) -> Option<Meta> {
        match (&self.over, current) {
            (None, None) => Some(Meta {
                changes: self.changes,
                epochs: self.epochs.clone(),
                fence_last: self.fence_last,
                ..Meta::default()
            }),
            (Some(object), Some(meta)) => {
                let is_it = meta.archived.as_ref().is_some_and(|(of, _)| of == object);
                let planted = Meta { changes: meta.changes + 1, archived: None, ..meta.clone() };
                (is_it && meta.head == self.head).then_some(planted)
            }
            _ => None,
        }
    }
}

impl Embedded {
    /// See [`crate::Store::stage`].
    pub(super) async fn stage_records(
        &self,
        key: &SessionKey,
        name: &str,
        records: &[Record],
    ) -> Result<(), Error> {
        let Some(range) = range(records)? else { return Ok(()) };
        let records = records.iter().map(|record| (record.to, record.to_stored_folded())).collect();
        let (id, stage) = ((key.clone(), name.to_owned()), Box::new(OwnedStage { range, records }));
        self.ask(|reply| Request::Stage(id, stage, reply)).await
    }

    /// See [`crate::Store::plant`].
    pub(super) async fn plant_session(
        &self,
        key: &SessionKey,
        name: &str,
        plant: Plant<'_>,
    ) -> Result<Planted, Error> {
        let (id, plant) = ((key.clone(), name.to_owned()), Box::new(OwnedPlant::of(&plant)?));
        self.ask(|reply| Request::Plant(id, plant, reply)).await
    }

    /// See [`crate::Store::stub`].
    pub(super) async fn stub_session(&self, key: &SessionKey, stub: Stub<'_>) -> Result<Stubbed, Error> {
        let stub = Box::new(OwnedStub {
            expect: stub.expect,
            head: stub.head,
            object: stub.object.to_owned(),
            state: stub.state.into(),
            at: stub.at,
        });
        let key = key.clone();
        self.ask(|reply| Request::Stub(key, stub, reply)).await
    }

    /// See [`crate::Store::stubbed`].
    pub(super) async fn stubs_of(&self, keys: &[SessionKey]) -> Result<Vec<Option<StubInfo>>, Error> {
        let keys = keys.to_vec();
        let metas = self.on_disk(move |shared| shared.disk.metas(&keys)).await?;
        let info = |meta: Meta| {
            let head = meta.to_head();
            meta.archived.map(|(object, at)| StubInfo { object, at, head })
        };
        Ok(metas.into_iter().map(|meta| meta.and_then(info)).collect())
    }
}

impl Writer {
    /// See [`crate::Store::stage`].
    pub(super) fn stage(
        &mut self,
        id: (SessionKey, String),
        stage: OwnedStage,
        group: &mut Group,
    ) -> Result<(), Error> {
        let now = self.shared.clock.now();
        self.forget_staged(now, group);
        let until = now.plus(millis(STAGED_KEPT));
        let (from, to) = stage.range;
        let staged = match self.staging.0.get_mut(&id) {
            Some(staged) => staged,
            None => {
                self.numbers.sessions += 1;
                let number = self.numbers.sessions;
                group.planting.staged.push((number, true));
                let before = Seq(from.0 - 1);
                self.staging.0.entry(id).or_insert(Staged { number, from, to: before, until })
            }
        };
        staged.until = until;
        if staged.to >= to {
            return Ok(());
        }
        if staged.to.next() != from {
            return Err(Refusal::NotStaged.into());
        }
        staged.to = to;
        let number = staged.number;
        group.planting.records.extend(stage.records.into_iter().map(|(to, row)| (number, to.0, row)));
        Ok(())
    }

    /// See [`crate::Store::plant`].
    pub(super) fn plant(
        &mut self,
        id: (SessionKey, String),
        plant: OwnedPlant,
        group: &mut Group,
    ) -> Result<Planted, Error> {
        let now = self.shared.clock.now();
        self.forget_staged(now, group);
        let staged = self.staging.0.remove(&id);
        if let Some(staged) = staged {
            group.planting.staged.push((staged.number, false));
        }
        let planted = self.plant_staged(&id.0, plant, staged, group);
        if let (Some(staged), Ok(Planted::Elsewhere) | Err(_)) = (staged, &planted) {
            group.planting.cleared.push(staged.number);
        }
        planted
    }

    fn plant_staged(
        &mut self,
        key: &SessionKey,
        plant: OwnedPlant,
        staged: Option<Staged>,
        group: &mut Group,
    ) -> Result<Planted, Error> {
        self.bring(key)?;
        let current = self.sessions.get(key);
        let Some(mut meta) = plant.meta_over(current.map(|session| &session.meta)) else {
            return Ok(Planted::Elsewhere);
        };
        // One that was planted and deleted since must stay deleted.
        if plant.over.is_none()
            && self.shared.gone.of(key, Instant::now()).is_some_and(|e| Some(e) != plant.gone)
        {
            return Ok(Planted::Elsewhere);
        }
        let is_whole = |staged: Staged| staged.from == plant.floor && staged.to == plant.head;
        if plant.needs_staged && !staged.is_some_and(is_whole) {
            return Err(Refusal::NotStaged.into());
        }
        let old_number = current.map(|session| session.meta.number);
        let producers = current.map(|session| session.producers.clone()).unwrap_or_default();
        meta.number = match staged {
            Some(staged) if plant.needs_staged => staged.number,
            unused => {
                group.planting.cleared.extend(unused.map(|staged| staged.number));
                self.numbers.sessions += 1;
                self.numbers.sessions
            }
        };
        if plant.over.is_some() {
            // The version moves, so the epoch comes first.
            meta.begin_epoch(meta.epoch().0.max(self.boot));
        } else {
            self.shared.gone.forget(key);
            // Above every fence of one of this name that was deleted.
            meta.fence_last = meta.fence_last.max(self.numbers.epoch);
        }
        meta.head = plant.head;
        meta.folded_to = plant.head;
        meta.floor = plant.floor;
        meta.folded_bytes = plant.folded_bytes;
        meta.next_due = plant.next_due;
        let first = plant.first.as_ref().map(|first| self.first(&mut meta, first)).transpose()?;
        group.planting.cleared.extend(old_number);
        group.planting.bases.extend(plant.base.map(|base| (meta.number, meta.floor, base)));
        let done = Planted::Done { epoch: meta.epoch().0, to: meta.head, version: meta.version() };
        let mut session = Session::stored(meta, String::new(), producers);
        session.state = plant.state;
        session.state_dirty = true;
        // They move to the new number.
        session.producers_dirty = session.producers.keys().cloned().collect();
        session.touched = self.groups;
        if let Some((stored, record)) = first {
            group.records.push((session.meta.number, record.to.0, stored));
            group.feed.push((key.clone(), record));
        }
        self.cached_bytes += session.bytes();
        if let Some(old) = self.sessions.insert(key.clone(), session) {
            self.cached_bytes -= old.bytes();
        }
        group.sessions.entry(key.clone()).or_default().changed = true;
        Ok(done)
    }

    /// The entries that begin an epoch of their own, behind what was staged.
    fn first(&mut self, meta: &mut Meta, first: &(Vec<u8>, u32)) -> Result<(Bytes, Record), Error> {
        let (tail, count) = first;
        let (from, to) = (meta.head.next(), Seq(meta.head.0 + u64::from(*count)));
        let (now, now_us) = self.shared.clock.both();
        // Greater than any that a session ever had, also one of this name that was deleted.
        self.numbers.epoch = self.numbers.epoch.max(meta.epoch().0.0);
        let epoch = self.numbers.next_epoch(now_us);
        let stored = stored_record(epoch, from, now, tail);
        let record = Record::from_stored(&stored, to).map_err(|e| {
            Error::Corrupt(format!("the plant was refused, its block cannot be read back: {e}"))
        })?;
        meta.epochs.push((epoch, from));
        let excess = meta.epochs.len().saturating_sub(EPOCHS_MAX);
        meta.epochs.drain(..excess);
        meta.head = to;
        Ok((stored, record))
    }

    /// See [`crate::Store::stub`].
    pub(super) fn stub(
        &mut self,
        key: &SessionKey,
        stub: OwnedStub,
        group: &mut Group,
    ) -> Result<Stubbed, Error> {
        self.bring(key)?;
        let now = self.shared.clock.now();
        let Some(session) = self.sessions.get_mut(key) else { return Err(Refusal::NoSession.into()) };
        let meta = &mut session.meta;
        let is_read = meta.version() == stub.expect && meta.head == stub.head;
        if !is_read || meta.archived.is_some() || !meta.fences.is_empty() {
            return Ok(Stubbed::Elsewhere);
        }
        meta.archived = Some((stub.object, stub.at));
        meta.next_due = None;
        group.planting.cleared.push(meta.number);
        let before = session.bytes();
        session.state = stub.state;
        session.state_dirty = true;
        session.producers.retain(|_, producer| producer.at.plus(REQUEST_MEMORY_MS) > now);
        // Everything of the number goes; these come again.
        session.producers_dirty = session.producers.keys().cloned().collect();
        session.touched = self.groups;
        self.cached_bytes = self.cached_bytes + session.bytes() - before;
        group.sessions.entry(key.clone()).or_default();
        Ok(Stubbed::Done)
    }

    fn forget_staged(&mut self, now: Millis, group: &mut Group) {
        self.staging.0.retain(|_, staged| {
            let is_kept = staged.until > now;
            if !is_kept {
                group.planting.staged.push((staged.number, false));
                group.planting.cleared.push(staged.number);
            }
            is_kept
        });
    }
}

impl PlantRows {
    /// Whether there is nothing to store.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty() && self.staged.is_empty() && self.cleared.is_empty() && self.bases.is_empty()
    }

    /// Stores the rows. Comes after the records of the group, and before its producers.
    pub fn store(&self, txn: &WriteTransaction) -> Result<(), Error> {
        if self.is_empty() {
            return Ok(());
        }
        let mut staged = txn.open_table(disk::STAGED).map_err(failed)?;
        for (number, is_staged) in &self.staged {
            if *is_staged {
                staged.insert(*number, ()).map_err(failed)?;
            } else {
                staged.remove(*number).map_err(failed)?;
            }
        }
        let mut folded = txn.open_table(disk::FOLDED).map_err(failed)?;
        for (number, to, stored) in &self.records {
            folded.insert((*number, *to), stored.as_slice()).map_err(failed)?;
        }
        drop(folded);
        for number in &self.cleared {
            clear(txn, *number)?;
        }
        let mut bases = txn.open_table(disk::BASES).map_err(failed)?;
        for (number, floor, base) in self.bases.iter().filter(|(number, ..)| !self.cleared.contains(number)) {
            bases.insert(*number, (floor.0, base.as_str())).map_err(failed)?;
        }
        Ok(())
    }
}

/// Removes all rows that a session number has.
pub(super) fn clear(txn: &WriteTransaction, number: u64) -> Result<(), Error> {
    for table in [disk::FOLDED, disk::RECORDS] {
        let mut table = txn.open_table(table).map_err(failed)?;
        table.retain_in((number, 0)..=(number, u64::MAX), |_, _| false).map_err(failed)?;
    }
    txn.open_table(disk::BASES).map_err(failed)?.remove(number).map_err(failed)?;
    let mut producers = txn.open_table(disk::PRODUCERS).map_err(failed)?;
    producers.retain_in((number, "")..(number + 1, ""), |_, _| false).map_err(failed)
}

/// Removes what was staged when the engine stopped.
pub(super) fn clear_staged(txn: &WriteTransaction) -> Result<(), Error> {
    let mut staged = txn.open_table(disk::STAGED).map_err(failed)?;
    let mut numbers = Vec::new();
    for row in staged.iter().map_err(failed)? {
        numbers.push(row.map_err(failed)?.0.value());
    }
    for number in numbers {
        staged.remove(number).map_err(failed)?;
        clear(txn, number)?;
    }
    Ok(())
}
