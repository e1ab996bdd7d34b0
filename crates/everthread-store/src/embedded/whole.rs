//! Whole sessions: many for a list, and the end of one.
//!
//! A deletion is a group of its own, so that its one transaction removes what is in the file and nothing that came after.

use super::Embedded;
use super::disk::{self, DEVICES, Disk, Meta, Snapshot, failed};
use super::group::{DeadlineRow, Group};
use super::writer::Writer;
use crate::{Deleted, Error, Listed};
use everthread_protocol::{Millis, Seq, SessionKey, Version};
use redb::WriteTransaction;
use tokio::time::Instant;

impl Meta {
    /// The session for a list.
    pub fn to_listed(&self, state: String) -> Listed {
        Listed { head: self.to_head(), epochs: self.epochs.clone(), state }
    }
}

impl Disk {
    /// Sessions for a list, from one snapshot.
    fn listed(&self, keys: &[SessionKey]) -> Result<Vec<Option<Listed>>, Error> {
        let snapshot = Snapshot::of(self)?;
        let listed = |key| Ok(snapshot.session(key)?.map(|(meta, state)| meta.to_listed(state)));
        keys.iter().map(listed).collect()
    }
}

impl Embedded {
    /// See [`crate::Store::states`].
    pub(super) async fn listed(&self, keys: &[SessionKey]) -> Result<Vec<Option<Listed>>, Error> {
        let mut listed: Vec<Option<Listed>> =
            keys.iter().map(|key| self.0.shared.views.listed(key)).collect();
        let missing: Vec<usize> = (0..keys.len()).filter(|&at| listed[at].is_none()).collect();
        if !missing.is_empty() {
            let keys: Vec<SessionKey> = missing.iter().map(|&at| keys[at].clone()).collect();
            let found = self.on_disk(move |shared| shared.disk.listed(&keys)).await?;
            for (at, found) in missing.into_iter().zip(found) {
                listed[at] = found;
            }
        }
        Ok(listed)
    }
}

impl Writer {
    /// See [`crate::Store::delete`], and with what is expected [`crate::Store::delete_if`]: then `None` if it is otherwise.
    pub(super) fn delete(
        &mut self,
        key: &SessionKey,
        expect: Option<(Version, Seq)>,
        group: &mut Group,
    ) -> Result<Option<Deleted>, Error> {
        let meta = match self.sessions.get(key) {
            Some(session) => Some(session.meta.clone()),
            None => self.shared.disk.metas(std::slice::from_ref(key))?.pop().flatten(),
        };
        if let (Some(expect), Some(meta)) = (expect, &meta)
            && expect != (meta.version(), meta.head)
        {
            return Ok(None);
        }
        group.deleted = Some((key.clone(), meta.as_ref().map(|meta| meta.number)));
        if self.deadlines.hurry(key) {
            group.deadlines.push((key.clone(), DeadlineRow::Earlier(Millis(0))));
        }
        Ok(meta.map(|meta| {
            let (epoch, _) = meta.epoch();
            // The next session of this name begins above all of these.
            self.numbers.epoch = self.numbers.epoch.max(epoch.0).max(meta.fence_last);
            // Said before it is durable, or not at all: it only ever keeps somebody from planting.
            self.shared.gone.note(key, epoch, Instant::now());
            Deleted { epoch, head: meta.head }
        }))
    }

    /// The session is not in the file any more: nor is it in memory from here on, and who follows it is told to look.
    pub(super) fn forget_deleted(&mut self, key: &SessionKey) {
        if let Some(session) = self.sessions.remove(key) {
            self.cached_bytes -= session.bytes() + self.shared.views.recent_bytes(key);
        }
        self.devices.forget(key);
        self.shared.views.delete(key);
        self.shared.delivered.forget(key);
        self.shared.presence.forget(key);
        for (_, follower) in self.shared.followers.of(key) {
            follower.doubt();
        }
    }
}

impl Group {
    /// Removes every row of the session that is deleted.
    pub(super) fn store_deletion(&self, txn: &WriteTransaction) -> Result<(), Error> {
        let Some((key, number)) = &self.deleted else { return Ok(()) };
        let name = key.to_string();
        txn.open_table(disk::META).map_err(failed)?.remove(name.as_str()).map_err(failed)?;
        txn.open_table(disk::STATE).map_err(failed)?.remove(name.as_str()).map_err(failed)?;
        if let Some(number) = *number {
            super::plant::clear(txn, number)?;
        }
        let mut devices = txn.open_table(DEVICES).map_err(failed)?;
        // `~` comes after every character of an id.
        devices.retain_in((name.as_str(), "")..(name.as_str(), "~"), |_, _| false).map_err(failed)?;
        let (tenant, session) = (key.tenant.as_str(), key.session.as_str());
        let mut index = txn.open_table(disk::INDEX).map_err(failed)?;
        let at = index.remove((tenant, session)).map_err(failed)?.map(|at| at.value());
        if let Some(at) = at {
            let mut recent = txn.open_table(disk::RECENT).map_err(failed)?;
            recent.remove((tenant, at, session)).map_err(failed)?;
        }
        Ok(())
    }
}
