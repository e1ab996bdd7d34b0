//! Devices in the writer's memory, and their rows.
//!
//! The devices of a session are read from the file when one of them first acknowledges something, and kept while they are
//! in use. Each change names the rows to store.

use super::disk::{self, Disk, failed};
use super::writer::Writer;
use crate::people::acknowledged;
use crate::{Device, Error, Refusal};
use everthread_protocol::limits::{DEVICE_IDLE_MS, DEVICES_MAX};
use everthread_protocol::{Cursor, DeviceId, Epoch, Millis, Seq, SessionKey};
use std::collections::{BTreeMap, HashMap};

/// Sessions whose devices are kept in memory; of more, all are read anew.
const SESSIONS_MAX: usize = 4096;

/// Devices of the sessions in use.
#[derive(Debug, Default)]
pub(super) struct Devices(HashMap<SessionKey, Known>);

/// The devices of a session.
type Known = BTreeMap<DeviceId, Row>;

/// Where a device stands, and when it last acknowledged something.
type Row = (Cursor, Millis);

/// A row of a device that changed; `None` removes it.
pub(super) type DeviceChange = (SessionKey, DeviceId, Option<Row>);

impl Devices {
    /// Moves a cursor forward within the log. The rows to store, and where the cursor stands.
    fn ack(
        known: &mut Known,
        device: &DeviceId,
        log: (&[(Epoch, Seq)], Seq),
        acked: Cursor,
        now: Millis,
    ) -> (Vec<(DeviceId, Option<Row>)>, Option<Cursor>) {
        let before = known.get(device).map(|(cursor, _)| *cursor);
        let Some(cursor) = acknowledged(log.0, log.1, before, acked) else { return (Vec::new(), None) };
        let mut changes = Vec::new();
        if before.is_none() {
            // Room for a new one: first those that were not heard of for long, then the one idle for longest.
            let idle = |at: Millis| at.plus(DEVICE_IDLE_MS) < now;
            let mut gone: Vec<DeviceId> =
                known.iter().filter(|(_, (_, at))| idle(*at)).map(|(device, _)| device.clone()).collect();
            if known.len() - gone.len() >= DEVICES_MAX {
                let oldest = known.iter().min_by_key(|(device, (_, at))| (*at, *device));
                gone.extend(oldest.map(|(device, _)| device.clone()));
            }
            for device in gone {
                known.remove(&device);
                changes.push((device, None));
            }
        }
        known.insert(device.clone(), (cursor, now));
        changes.push((device.clone(), Some((cursor, now))));
        (changes, Some(cursor))
    }

    /// Forgets the devices of a session that is gone.
    pub fn forget(&mut self, key: &SessionKey) {
        self.0.remove(key);
    }

    /// Keeps the memory bounded. Everything it holds must be committed.
    pub fn trim(&mut self) {
        if self.0.len() > SESSIONS_MAX {
            self.0.clear();
        }
    }
}

impl Writer {
    /// See [`crate::Store::ack`].
    pub(super) fn ack(
        &mut self,
        key: &SessionKey,
        device: &DeviceId,
        cursor: Cursor,
    ) -> Result<(Vec<DeviceChange>, Option<Cursor>), Error> {
        let now = self.shared.clock.now();
        let (epochs, head) = match self.sessions.get(key) {
            Some(session) => (session.meta.epochs.clone(), session.meta.head),
            None => match self.shared.disk.metas(std::slice::from_ref(key))?.pop().flatten() {
                Some(meta) => (meta.epochs, meta.head),
                None => return Err(Refusal::NoSession.into()),
            },
        };
        let known = self.known_devices(key)?;
        let (changes, cursor) = Devices::ack(known, device, (&epochs, head), cursor, now);
        Ok((changes.into_iter().map(|(device, row)| (key.clone(), device, row)).collect(), cursor))
    }

    /// See [`crate::Store::forget_device`].
    pub(super) fn forget_device(
        &mut self,
        key: &SessionKey,
        device: &DeviceId,
    ) -> Result<Option<DeviceChange>, Error> {
        let known = self.known_devices(key)?;
        Ok(known.remove(device).map(|_| (key.clone(), device.clone(), None)))
    }

    fn known_devices(&mut self, key: &SessionKey) -> Result<&mut Known, Error> {
        if !self.devices.0.contains_key(key) {
            let stored = self.shared.disk.devices(key)?;
            let known = stored.into_iter().map(|d| (d.device, (d.cursor, d.at))).collect();
            self.devices.0.insert(key.clone(), known);
        }
        Ok(self.devices.0.entry(key.clone()).or_default())
    }
}

impl Disk {
    /// Every device of a session, also those that were idle for long.
    pub fn devices(&self, key: &SessionKey) -> Result<Vec<Device>, Error> {
        let table = self.reading()?.open_table(disk::DEVICES).map_err(failed)?;
        let session = key.to_string();
        let mut devices = Vec::new();
        // `~` comes after every character of an id.
        for row in table.range((session.as_str(), "")..(session.as_str(), "~")).map_err(failed)? {
            let (id, row) = row.map_err(failed)?;
            devices.push(device_of(id.value().1, row.value())?);
        }
        Ok(devices)
    }

    /// One device in many sessions, from one snapshot.
    pub fn device_in(&self, keys: &[SessionKey], device: &DeviceId) -> Result<Vec<Option<Device>>, Error> {
        let table = self.reading()?.open_table(disk::DEVICES).map_err(failed)?;
        let find = |key: &SessionKey| {
            let row = table.get((key.to_string().as_str(), device.as_str())).map_err(failed)?;
            row.map(|row| device_of(device.as_str(), row.value())).transpose()
        };
        keys.iter().map(find).collect()
    }
}

/// Stores changed rows.
pub(super) fn store(txn: &redb::WriteTransaction, changes: &[DeviceChange]) -> Result<(), Error> {
    if changes.is_empty() {
        return Ok(());
    }
    let mut table = txn.open_table(disk::DEVICES).map_err(failed)?;
    for (key, device, row) in changes {
        let session = key.to_string();
        let id = (session.as_str(), device.as_str());
        match row {
            Some((cursor, at)) => {
                table.insert(id, (cursor.epoch.0, cursor.seq.0, at.0)).map_err(failed)?;
            }
            None => drop(table.remove(id).map_err(failed)?),
        }
    }
    Ok(())
}

fn device_of(device: &str, (epoch, seq, at): (u64, u64, u64)) -> Result<Device, Error> {
    let device = device.parse().map_err(|_| Error::Corrupt(format!("{device:?} is not a device")))?;
    Ok(Device { device, cursor: Cursor { epoch: Epoch(epoch), seq: Seq(seq) }, at: Millis(at) })
}

#[cfg(test)]
mod tests {
    use super::*;

    const EPOCHS: [(Epoch, Seq); 1] = [(Epoch(1), Seq(1))];

    fn ack(known: &mut Known, device: &str, at: u64) -> usize {
        let cursor = Cursor { epoch: Epoch(1), seq: Seq(5) };
        let (changes, after) =
            Devices::ack(known, &device.parse().unwrap(), (&EPOCHS, Seq(9)), cursor, Millis(at));
        assert_eq!(after, Some(cursor));
        changes.len()
    }

    #[test]
    fn a_new_device_takes_the_place_of_those_that_are_idle() {
        let mut known = Known::new();
        ack(&mut known, "old", 1);
        ack(&mut known, "older", 0);
        assert_eq!(ack(&mut known, "old", DEVICE_IDLE_MS + 1), 1, "one that is known makes no room");
        assert_eq!(ack(&mut known, "new", DEVICE_IDLE_MS + 2), 2);
        assert_eq!(known.keys().map(DeviceId::as_str).collect::<Vec<_>>(), ["new", "old"]);
    }

    #[test]
    fn of_too_many_devices_the_one_idle_for_longest_goes() {
        let mut known = Known::new();
        for n in 0..DEVICES_MAX as u64 {
            ack(&mut known, &format!("d{n}"), 10 + n);
        }
        ack(&mut known, "d0", 10_000);
        assert_eq!(ack(&mut known, "new", 10_001), 2);
        assert_eq!(known.len(), DEVICES_MAX);
        let has = |device: &str| known.contains_key(&device.parse::<DeviceId>().unwrap());
        assert!(has("new") && has("d0") && !has("d1"));
    }
}
