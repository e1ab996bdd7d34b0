//! Trimming: folded records that leave a log, and the base that stands for them.

use super::disk::{self, Disk, failed};
use super::group::Group;
use super::writer::Writer;
use crate::{Base, Error, Refusal, Trim, Trimmed};
use everthread_protocol::{Seq, SessionKey, Version};
use redb::WriteTransaction;

/// A [`Trim`] that can travel to the writer.
pub(super) struct OwnedTrim {
    expect: Version,
    from: Seq,
    floor: Seq,
    bytes: u64,
    base: String,
}

impl OwnedTrim {
    /// Copies what the caller lent.
    pub fn of(trim: Trim<'_>) -> Result<Self, Error> {
        trim.check()?;
        let Trim { expect, from, floor, bytes, base } = trim;
        Ok(Self { expect, from, floor, bytes, base: base.to_owned() })
    }
}

/// What a trim changes in the file.
pub(super) struct TrimRows {
    /// The session's number.
    number: u64,
    floor: Seq,
    base: String,
}

impl Writer {
    /// See [`crate::Store::trim`].
    pub fn trim(&mut self, key: &SessionKey, trim: OwnedTrim, group: &mut Group) -> Result<Trimmed, Error> {
        self.bring(key)?;
        let Some(session) = self.sessions.get_mut(key) else { return Err(Refusal::NoSession.into()) };
        session.touched = self.groups;
        if session.meta.archived.is_some() {
            return Err(Refusal::Archived.into());
        }
        let (version, number) = (session.meta.version(), session.meta.number);
        if version != trim.expect {
            return Ok(Trimmed::Moved { version });
        }
        let floor = session.meta.to_head().floor;
        if floor != trim.from {
            return Ok(Trimmed::Elsewhere { floor });
        }
        // In the file, or folded by this very group.
        let last = trim.floor.0 - 1;
        let of_group = group.folds.iter().filter(|fold| fold.number == number);
        let is_new = of_group.flat_map(|fold| &fold.records).any(|(to, _)| *to == last);
        if !is_new && !self.shared.disk.has_folded(number, last)? {
            return Ok(Trimmed::NoSuchRecord);
        }
        // The version moves, so the epoch comes first.
        session.meta.begin_epoch(session.meta.epoch().0.max(self.boot));
        session.meta.floor = trim.floor;
        session.meta.folded_bytes = session.meta.folded_bytes.saturating_sub(trim.bytes);
        session.meta.changes += 1;
        group.trims.push(TrimRows { number, floor: trim.floor, base: trim.base });
        group.sessions.entry(key.clone()).or_default();
        Ok(Trimmed::Done)
    }
}

/// Stores trims, after the folds of their group.
pub(super) fn store(txn: &WriteTransaction, trims: &[TrimRows]) -> Result<(), Error> {
    if trims.is_empty() {
        return Ok(());
    }
    let mut folded = txn.open_table(disk::FOLDED).map_err(failed)?;
    let mut bases = txn.open_table(disk::BASES).map_err(failed)?;
    for TrimRows { number, floor, base } in trims {
        folded.retain_in((*number, 0)..(*number, floor.0), |_, _| false).map_err(failed)?;
        bases.insert(number, (floor.0, base.as_str())).map_err(failed)?;
    }
    Ok(())
}

impl Disk {
    /// Whether a folded record ends there.
    fn has_folded(&self, number: u64, to: u64) -> Result<bool, Error> {
        let table = self.reading()?.open_table(disk::FOLDED).map_err(failed)?;
        Ok(table.get((number, to)).map_err(failed)?.is_some())
    }

    /// What stands for what was dropped of a session.
    pub fn base(&self, key: &SessionKey) -> Result<Option<Base>, Error> {
        let reading = self.reading()?;
        let metas = reading.open_table(disk::META).map_err(failed)?;
        let Some(meta) = metas.get(key.to_string().as_str()).map_err(failed)? else { return Ok(None) };
        let meta: disk::Meta = disk::from_json(meta.value())?;
        if meta.archived.is_some() {
            return Err(Refusal::Archived.into());
        }
        let row = reading.open_table(disk::BASES).map_err(failed)?.get(meta.number).map_err(failed)?;
        Ok(row.map(|row| {
            let (floor, text) = row.value();
            Base { floor: Seq(floor), text: text.to_owned() }
        }))
    }
}
