//! Finding every session, and what waits in a pool. Nothing of it can be lost by itself here: it is as with Redis so that
//! whoever builds indexes anew need not know where it is.

use super::disk::{Disk, META, POOLS, Snapshot, corrupt_key, failed, from_json};
use super::pools::PoolRow;
use crate::{Error, Scanned, Waiting};
use everthread_protocol::PoolKey;

impl Disk {
    /// See [`crate::Store::scan`].
    pub fn scan(&self, from: Option<&str>, limit: usize) -> Result<Scanned, Error> {
        let snapshot = Snapshot::of(self)?;
        let table = snapshot.table(META)?;
        let (mut keys, mut last) = (Vec::new(), None);
        for row in table.range(from.unwrap_or_default()..).map_err(failed)?.take(limit.max(1)) {
            let (key, _) = row.map_err(failed)?;
            keys.push(key.value().parse().map_err(|_| corrupt_key(key.value()))?);
            last = Some(key.value().to_owned());
        }
        // The least text that is greater.
        let next = last.filter(|_| keys.len() >= limit.max(1)).map(|last| last + "\0");
        Ok(Scanned { keys, next, has_missed: false })
    }

    /// See [`crate::Store::waiting`].
    pub fn waiting(&self, pool: &PoolKey, after: Option<&str>, limit: usize) -> Result<Waiting, Error> {
        let from = after.and_then(|ticket| ticket.parse::<u64>().ok()).map_or(0, |ticket| ticket + 1);
        let snapshot = Snapshot::of(self)?;
        let table = snapshot.table(POOLS)?;
        let pool = pool.to_string();
        let (mut items, mut last) = (Vec::new(), None);
        for row in table.range((&*pool, from)..=(&*pool, u64::MAX)).map_err(failed)?.take(limit) {
            let (key, row) = row.map_err(failed)?;
            items.push(from_json::<PoolRow>(row.value())?.item);
            last = Some(key.value().1.to_string());
        }
        let next = last.filter(|_| items.len() == limit);
        Ok(Waiting { items, next })
    }
}
