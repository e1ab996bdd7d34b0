//! Finding every session, and who builds the indexes anew.
//!
//! A scan goes from primary to primary in the order of their lanes. A session whose slot moves meanwhile may be missed: the next
//! one finds it.

use super::Redis;
use super::feed::Lane;
use super::keys::Tag;
use super::link::Failure;
use super::read::{broken, parse, text};
use super::shard::Way;
use crate::{Error, Scanned, Turn, Waiting};
use ::redis::{Value, cmd};
use everthread_protocol::{Millis, NodeId, PoolKey, SessionKey, millis};
use std::time::Duration;

impl Redis {
    /// See [`crate::Store::scan`].
    pub(super) async fn scan_sessions(&self, from: Option<&str>, limit: usize) -> Result<Scanned, Error> {
        let (lane, cursor) = match from {
            None => (0, 0),
            Some(from) => from
                .split_once(' ')
                .and_then(|(lane, cursor)| Some((lane.parse().ok()?, cursor.parse().ok()?)))
                .ok_or_else(|| broken("a scan that goes on from nowhere"))?,
        };
        let mut shards = self.inner.shards.all();
        shards.sort_by_key(|shard| shard.lane);
        let Some(shard) = shards.iter().find(|shard| shard.lane >= Lane(lane)) else {
            return Ok(Scanned { keys: Vec::new(), next: None, has_missed: false });
        };
        // The one that was scanned may be gone.
        let cursor: u64 = if shard.lane == Lane(lane) { cursor } else { 0 };
        let after = shards.iter().map(|other| other.lane).find(|lane| *lane > shard.lane);
        let after = after.map(|Lane(lane)| format!("{lane} 0"));
        let keys = &self.inner.keys;
        let mut request = cmd("SCAN");
        request.arg(cursor).arg("MATCH").arg(keys.any_meta()).arg("COUNT").arg(limit).arg("TYPE").arg("hash");
        let answer = shard.link(0, Way::Ranges).command::<(u64, Vec<String>)>(&request).await;
        match answer {
            Ok((cursor, found)) => {
                let found = found.iter().filter_map(|key| keys.session_of_meta(key)).collect();
                let next = if cursor == 0 { after } else { Some(format!("{} {cursor}", shard.lane.0)) };
                Ok(Scanned { keys: found, next, has_missed: false })
            }
            Err(failure) => {
                tracing::debug!(at = %shard.endpoint, why = failure.why(), "a primary is not scanned");
                Ok(Scanned { keys: Vec::<SessionKey>::new(), next: after, has_missed: true })
            }
        }
    }

    /// See [`crate::Store::waiting`].
    pub(super) async fn waiting_items(
        &self,
        pool: &PoolKey,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Waiting, Error> {
        let mut request = cmd("XRANGE");
        request.arg(self.inner.keys.pool(pool));
        match after {
            Some(after) => request.arg(format!("({after}")),
            None => request.arg("-"),
        };
        request.arg("+").arg("COUNT").arg(limit);
        let answer: Vec<Value> =
            self.ranges(Tag::Pool(pool)).command(&request).await.map_err(Failure::of_read)?;
        let (mut items, mut last) = (Vec::with_capacity(answer.len()), None);
        for entry in &answer {
            let Value::Array(entry) = entry else { return Err(broken("an item of a pool that is none")) };
            let [ticket, Value::Array(fields)] = entry.as_slice() else {
                return Err(broken("an item of a pool that is none"));
            };
            last = Some(text(ticket)?.to_owned());
            // One that cannot be read is dropped by whoever takes it.
            items.extend(fields.get(1).and_then(|field| serde_json::from_str(text(field).ok()?).ok()));
        }
        Ok(Waiting { items, next: last.filter(|_| answer.len() == limit) })
    }

    /// See [`crate::Store::rebuild_turn`]; without `lease` the turn ends.
    pub(super) async fn turn_of(
        &self,
        node: &NodeId,
        wanted: Duration,
        lease: Option<Duration>,
    ) -> Result<Turn, Error> {
        let wanted = millis(wanted).to_string();
        let lease = lease.map(|lease| millis(lease).to_string()).unwrap_or_default();
        let args = [node.as_str().as_bytes(), wanted.as_bytes(), lease.as_bytes()];
        let key = self.inner.keys.rebuild();
        let answer: Value = self
            .at(Tag::Rebuild)
            .script(&self.inner.scripts.rebuild, &[&key], &args)
            .await
            .map_err(Failure::of_read)?;
        match text(&answer)?.split_once(' ').unwrap_or((text(&answer)?, "")) {
            ("yours", now) => Ok(Turn::Yours(Millis(parse(now)?))),
            ("anothers", _) => Ok(Turn::Anothers),
            ("done", _) => Ok(Turn::Done),
            _ => Err(broken("an unknown answer about a turn")),
        }
    }
}
