//! The writer: one thread that owns every session, pool and deadline as plain Rust.
//!
//! Life of a group: take what is queued → apply it in memory → one transaction → publish to readers → wake followers →
//! answer. Invariant: nobody is answered, woken or shown anything before it is committed. After a failed commit memory
//! and file may differ, so the writer refuses everything from then on; a new start reads what the file holds.

use super::Shared;
use super::group::{DeadlineRow, FoldRows, Group, Numbers};
use super::people::Devices;
use super::plant::{OwnedPlant, OwnedStage, OwnedStub, Staging};
use super::pools::{Deadlines, Pools};
use super::session::{Applied, Moment, OwnedWrite, Session};
use super::trim::OwnedTrim;
use crate::{
    Deleted, Due, Error, Folded, Interest, Planted, Refusal, Stubbed, Taken, Trimmed, WorkItem, Written,
};
use everthread_protocol::{Cursor, DeviceId, Epoch, Millis, PoolKey, Seq, SessionKey, Version};
use std::collections::HashMap;
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot};

/// Requests of one commit. More would make the first of them wait for the work of the last.
const GROUP_MAX: usize = 512;
/// Where the answer goes.
pub(super) type Reply<T> = oneshot::Sender<Result<T, Error>>;

/// Everything the writer is asked for.
pub(super) enum Request {
    /// [`crate::Store::write`].
    Write(SessionKey, Box<OwnedWrite>, Reply<Written>),
    /// [`crate::Store::fold`].
    Fold(SessionKey, Box<OwnedFold>, Reply<Folded>),
    /// [`crate::Store::delete`]: makes a group of its own.
    Delete(SessionKey, Option<(Version, Seq)>, Reply<Option<Deleted>>),
    /// [`crate::Store::unindex`].
    Unindex(SessionKey, Millis, Reply<()>),
    /// [`crate::Store::trim`].
    Trim(SessionKey, Box<OwnedTrim>, Reply<Trimmed>),
    /// [`crate::Store::stage`]: for which session, under which name.
    Stage((SessionKey, String), Box<OwnedStage>, Reply<()>),
    /// [`crate::Store::plant`].
    Plant((SessionKey, String), Box<OwnedPlant>, Reply<Planted>),
    /// [`crate::Store::stub`].
    Stub(SessionKey, Box<OwnedStub>, Reply<Stubbed>),
    /// [`crate::Store::index`].
    Index(SessionKey, Millis, Reply<()>),
    /// [`crate::Store::enqueue`].
    Enqueue(PoolKey, Box<WorkItem>, Reply<()>),
    /// [`crate::Store::take`].
    Take(PoolKey, usize, Reply<Vec<Taken>>),
    /// [`crate::Store::finish_item`].
    FinishItem(PoolKey, String, Reply<()>),
    /// [`crate::Store::arm`].
    Arm(SessionKey, Millis, Reply<()>),
    /// [`crate::Store::claim_due`].
    ClaimDue(usize, Reply<Vec<Due>>),
    /// [`crate::Store::finish_due`].
    FinishDue(Due, Option<Millis>, Reply<()>),
    /// [`crate::Store::ack`].
    Ack(SessionKey, DeviceId, Cursor, Reply<Option<Cursor>>),
    /// [`crate::Store::forget_device`].
    ForgetDevice(SessionKey, DeviceId, Reply<bool>),
}

/// A [`crate::Fold`] that can travel to the writer.
pub(super) struct OwnedFold {
    epoch: Epoch,
    range: (Seq, Seq),
    bytes: u64,
    records: Vec<(u64, Vec<u8>)>,
}

impl OwnedFold {
    /// Encodes what the caller lent.
    pub fn of(fold: crate::Fold<'_>) -> Result<Self, Error> {
        let records = fold.records.iter().map(|record| (record.to.0, record.to_stored_folded())).collect();
        Ok(Self { epoch: fold.epoch, range: fold.range()?, bytes: fold.bytes(), records })
    }
}

/// The state of the writer.
pub(super) struct Writer {
    /// What readers share.
    pub shared: Arc<Shared>,
    /// Epoch of everything that is written from here on.
    pub boot: Epoch,
    /// Stored with every group.
    pub numbers: Numbers,
    /// Cached sessions: each as it is after everything applied so far.
    pub sessions: HashMap<SessionKey, Session>,
    /// What is staged.
    pub staging: Staging,
    /// What waits for workers.
    pub pools: Pools,
    /// When sessions are due.
    pub deadlines: Deadlines,
    /// Durable cursors of devices.
    pub devices: Devices,
    /// Groups so far.
    pub groups: u64,
    /// About the bytes of the cached sessions with their views.
    pub cached_bytes: usize,
    /// Beyond this many, the sessions not used for longest are read from the file again.
    pub cached_bytes_max: usize,
}

impl Writer {
    /// Serves requests until every handle is gone.
    pub fn run(mut self, mut requests: mpsc::Receiver<Request>) {
        let mut batch = Vec::with_capacity(GROUP_MAX);
        // Waits only when nothing is queued; what arrives during a commit becomes the next group.
        while requests.blocking_recv_many(&mut batch, GROUP_MAX) > 0 {
            let mut group = self.next_group();
            for request in batch.drain(..) {
                // What a deletion removes must be in the file, and a session made anew after it must not be removed.
                let is_alone = matches!(request, Request::Delete(..));
                if is_alone {
                    let before = std::mem::replace(&mut group, self.next_group());
                    self.finish(before);
                }
                self.apply(request, &mut group);
                if is_alone {
                    let alone = std::mem::replace(&mut group, self.next_group());
                    self.finish(alone);
                }
            }
            self.finish(group);
        }
    }

    fn next_group(&mut self) -> Group {
        self.groups += 1;
        Group::default()
    }

    fn apply(&mut self, request: Request, group: &mut Group) {
        if let Some(reason) = self.shared.failure() {
            return refuse(request, &Error::Unavailable(reason));
        }
        match request {
            Request::Write(key, write, reply) => {
                let result = self.write(&key, &write, group);
                answer(group, reply, result);
            }
            Request::Fold(key, fold, reply) => {
                let result = self.fold(&key, *fold, group);
                answer(group, reply, result);
            }
            Request::Delete(key, expect, reply) => {
                let result = self.delete(&key, expect, group);
                answer(group, reply, result);
            }
            Request::Unindex(key, at, reply) => {
                group.unindex.push((key, at));
                answer(group, reply, Ok(()));
            }
            Request::Trim(key, trim, reply) => {
                let result = self.trim(&key, *trim, group);
                answer(group, reply, result);
            }
            Request::Stage(id, stage, reply) => {
                let result = self.stage(id, *stage, group);
                answer(group, reply, result);
            }
            Request::Plant(id, plant, reply) => {
                let result = self.plant(id, *plant, group);
                answer(group, reply, result);
            }
            Request::Stub(key, stub, reply) => {
                let result = self.stub(&key, *stub, group);
                answer(group, reply, result);
            }
            Request::Index(key, at, reply) => {
                group.index.push((key, at));
                answer(group, reply, Ok(()));
            }
            Request::Enqueue(pool, item, reply) => {
                group.pools.push(self.pools.add(&pool, *item));
                group.woken.insert(pool);
                answer(group, reply, Ok(()));
            }
            Request::Take(pool, limit, reply) => {
                let (taken, changes) = self.pools.take(&pool, limit, self.shared.clock.now());
                group.pools.extend(changes);
                answer(group, reply, Ok(taken));
            }
            Request::FinishItem(pool, ticket, reply) => {
                group.pools.extend(self.pools.finish(&pool, &ticket));
                answer(group, reply, Ok(()));
            }
            Request::Arm(key, at, reply) => {
                if self.deadlines.arm(&key, at) {
                    group.deadlines.push((key, DeadlineRow::Earlier(at)));
                }
                answer(group, reply, Ok(()));
            }
            Request::ClaimDue(limit, reply) => {
                let due = self.deadlines.claim(limit, self.shared.clock.now());
                answer(group, reply, Ok(due));
            }
            Request::Ack(key, device, cursor, reply) => {
                let result = self.ack(&key, &device, cursor).map(|(changes, cursor)| {
                    group.devices.extend(changes);
                    cursor
                });
                answer(group, reply, result);
            }
            Request::ForgetDevice(key, device, reply) => {
                let result = self.forget_device(&key, &device).map(|change| {
                    let was_known = change.is_some();
                    group.devices.extend(change);
                    was_known
                });
                answer(group, reply, result);
            }
            Request::FinishDue(due, next, reply) => {
                if self.deadlines.finish(&due, next) {
                    let row = next.map_or(DeadlineRow::Gone, DeadlineRow::At);
                    group.deadlines.push((due.key, row));
                }
                answer(group, reply, Ok(()));
            }
        }
    }

    fn write(&mut self, key: &SessionKey, write: &OwnedWrite, group: &mut Group) -> Result<Written, Error> {
        if !self.bring(key)? && write.creates() {
            self.numbers.sessions += 1;
            let session = Session::new(self.numbers.sessions);
            self.cached_bytes += session.bytes();
            self.sessions.insert(key.clone(), session);
        }
        let Some(session) = self.sessions.get_mut(key) else { return Err(Refusal::NoSession.into()) };
        session.touched = self.groups;
        let (now, now_us) = self.shared.clock.both();
        let before = session.bytes();
        let is_new = !session.exists();
        let fresh = if is_new { self.numbers.next_epoch(now_us) } else { self.boot };
        let applied = session.write(write, Moment { boot: self.boot, fresh, now, now_us });
        self.cached_bytes = self.cached_bytes + session.bytes() - before;
        if applied.is_err() && !session.exists() {
            // A creation that was refused leaves nothing behind.
            self.cached_bytes -= session.bytes();
            self.sessions.remove(key);
            return applied.map(|applied| applied.written);
        }
        let Applied { written, record, changed, lease } = applied?;
        if is_new {
            self.shared.gone.forget(key);
        }
        if written.duplicate.is_none() {
            group.sessions.entry(key.clone()).or_default().changed |= changed;
        }
        group.leases.extend(lease.map(|(run, lease)| (key.clone(), run, lease)));
        if let Some((stored, record)) = record {
            group.records.push((session.meta.number, written.to.0, stored));
            group.feed.push((key.clone(), record));
        }
        Ok(written)
    }

    /// Sees to it that the session is in memory, if it exists.
    pub(super) fn bring(&mut self, key: &SessionKey) -> Result<bool, Error> {
        if self.sessions.contains_key(key) {
            return Ok(true);
        }
        let Some((meta, state)) = self.shared.disk.session(key)? else { return Ok(false) };
        let producers = self.shared.disk.producers(meta.number)?;
        let session = Session::stored(meta, state, producers);
        self.cached_bytes += session.bytes();
        self.sessions.insert(key.clone(), session);
        Ok(true)
    }

    fn fold(&mut self, key: &SessionKey, fold: OwnedFold, group: &mut Group) -> Result<Folded, Error> {
        self.bring(key)?;
        let Some(session) = self.sessions.get_mut(key) else { return Err(Refusal::NoSession.into()) };
        session.meta.must_be_whole()?;
        session.touched = self.groups;
        let (epoch, folded_to) = (session.meta.epoch().0, session.meta.folded_to);
        let (number, (from, to)) = (session.meta.number, fold.range);
        if epoch != fold.epoch {
            return Ok(Folded::NewEpoch { epoch });
        }
        if folded_to.next() != from {
            return Ok(Folded::Elsewhere { folded_to });
        }
        // What was read is committed, so it is in the file; but this group may have it, too.
        let is_new = group.records.iter().any(|(of, end, _)| (*of, *end) == (number, to.0));
        if !is_new && !self.shared.disk.has_record(number, to)? {
            return Ok(Folded::NoSuchRecord);
        }
        session.meta.folded_to = to;
        session.meta.folded_bytes += fold.bytes;
        group.folds.push(FoldRows { number, range: (from.0, to.0), records: fold.records });
        group.sessions.entry(key.clone()).or_default();
        Ok(Folded::Done)
    }

    /// Commits a group, shows it, tells of it, and answers.
    fn finish(&mut self, mut group: Group) {
        // A whole second: the clock is then stored anew once a second, not with every group.
        self.numbers.clock = self.shared.clock.now().0 / 1000 * 1000;
        let result =
            if group.is_empty() { Ok(()) } else { group.commit(&self.shared, &self.sessions, self.numbers) };
        match &result {
            Ok(()) => self.publish(&mut group),
            Err(e) => self.shared.fail(e),
        }
        for answer in group.answers {
            answer(result.clone());
        }
        self.devices.trim();
        self.evict();
    }

    fn publish(&mut self, group: &mut Group) {
        let deleted = group.deleted.take();
        if let Some((key, _)) = &deleted {
            self.forget_deleted(key);
        }
        let deleted = deleted.map(|(key, _)| (key, Millis(0)));
        let listed = group.index.drain(..).chain(group.unindex.drain(..)).chain(deleted).collect::<Vec<_>>();
        let sessions = &mut self.sessions;
        let recent = |views: &super::views::Views| -> usize {
            group.sessions.keys().map(|key| views.recent_bytes(key)).sum()
        };
        let before = recent(&self.shared.views);
        for key in group.sessions.keys() {
            if let Some(session) = sessions.get_mut(key) {
                session.state_dirty = false;
                session.producers_dirty.clear();
            }
        }
        let written = group.sessions.keys().filter_map(|key| Some((key, sessions.get(key)?)));
        self.shared.views.publish(written, group.feed.iter().cloned(), group.leases.drain(..));
        self.cached_bytes = self.cached_bytes + recent(&self.shared.views) - before;
        for (key, record) in group.feed.drain(..) {
            for (interest, follower) in self.shared.followers.of(&key) {
                if interest == Interest::Log {
                    follower.record(record.clone());
                }
            }
        }
        for (key, _) in group.sessions.iter().filter(|(_, touched)| touched.changed) {
            for (interest, follower) in self.shared.followers.of(key) {
                if interest == Interest::Control {
                    follower.changed();
                }
            }
        }
        for (key, at) in listed {
            for follower in self.shared.tenants.of(&key.tenant) {
                follower.changed(key.session.clone(), at);
            }
        }
        for pool in group.woken.drain() {
            for wake in self.shared.watchers.of(&pool) {
                wake();
            }
        }
    }

    /// Drops the sessions that were not used for longest. Everything they hold is committed.
    fn evict(&mut self) {
        if self.cached_bytes <= self.cached_bytes_max || self.shared.failure().is_some() {
            return;
        }
        let mut by_age: Vec<(u64, SessionKey)> =
            self.sessions.iter().map(|(key, session)| (session.touched, key.clone())).collect();
        by_age.sort_unstable();
        let mut gone = Vec::new();
        for (_, key) in by_age {
            if self.cached_bytes <= self.cached_bytes_max / 2 {
                break;
            }
            let Some(session) = self.sessions.remove(&key) else { continue };
            self.cached_bytes -= session.bytes() + self.shared.views.recent_bytes(&key);
            gone.push(key);
        }
        self.shared.views.forget(gone.iter());
    }
}

/// Sends `result` when the group's fate is known. Whoever asked may be gone: then nobody needs it.
fn answer<T: Send + 'static>(group: &mut Group, reply: Reply<T>, result: Result<T, Error>) {
    group.answers.push(Box::new(move |fate| drop(reply.send(fate.and(result)))));
}

fn refuse(request: Request, error: &Error) {
    let error = error.clone();
    match request {
        Request::Write(.., reply) => drop(reply.send(Err(error))),
        Request::Fold(.., reply) => drop(reply.send(Err(error))),
        Request::Delete(.., reply) => drop(reply.send(Err(error))),
        Request::Trim(.., reply) => drop(reply.send(Err(error))),
        Request::Plant(.., reply) => drop(reply.send(Err(error))),
        Request::Stub(.., reply) => drop(reply.send(Err(error))),
        Request::Index(.., reply)
        | Request::Stage(.., reply)
        | Request::Unindex(.., reply)
        | Request::Enqueue(.., reply)
        | Request::FinishItem(.., reply)
        | Request::Arm(.., reply)
        | Request::FinishDue(.., reply) => drop(reply.send(Err(error))),
        Request::Take(.., reply) => drop(reply.send(Err(error))),
        Request::Ack(.., reply) => drop(reply.send(Err(error))),
        Request::ForgetDevice(.., reply) => drop(reply.send(Err(error))),
        Request::ClaimDue(.., reply) => drop(reply.send(Err(error))),
    }
}
