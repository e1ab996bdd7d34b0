//! How sure writes are, as the trait asks.

use super::Redis;
use super::confirm::Sought;
use super::keys::Tag;
use crate::{Error, Keeping, Written, check_level};
use everthread_protocol::{Level, SessionKey};
use std::time::Duration;

/// Where no replica follows, a write is as safe as it gets when Redis has synced its file, which it does once a second.
const SYNCED_AFTER: Duration = Duration::from_secs(2);

impl Redis {
    /// See [`crate::Store::offers`].
    pub(super) fn offers_level(&self, level: Level) -> bool {
        level == Level::Accepted
            || self.inner.shards.all().iter().any(|shard| shard.confirmer_of(level).offers(level))
    }

    /// See [`crate::Store::usual_level`].
    pub(super) fn usual_level_of(&self, key: &SessionKey) -> Level {
        let shard = self.inner.shards.shard(Tag::Session(key));
        if shard.is_some_and(|shard| shard.confirmer.replicas() > 0) {
            Level::Replicated
        } else {
            Level::Accepted
        }
    }

    /// See [`crate::Store::keeping`].
    pub(super) fn keeping_of(&self, key: &SessionKey) -> Keeping {
        match self.usual_level_of(key) {
            Level::Accepted => Keeping::For(SYNCED_AFTER),
            Level::Replicated | Level::Fsynced => Keeping::Confirmed,
        }
    }

    /// See [`crate::Store::confirm`].
    pub(super) async fn confirm_write(
        &self,
        key: &SessionKey,
        written: &Written,
        level: Level,
    ) -> Result<(), Error> {
        if level == Level::Accepted {
            return Ok(());
        }
        check_level(self, level)?;
        let keys = &self.inner.keys;
        let sought = Sought {
            meta: keys.meta(key),
            mark: keys.mark(key),
            epoch: written.epoch,
            to: written.to,
            n: written.version.n,
            level,
        };
        let confirmed = match self.inner.shards.shard(Tag::Session(key)) {
            Some(shard) => shard.confirmer_of(level).confirm(sought).await,
            None => Err("nobody serves the session now".into()),
        };
        confirmed.map_err(|why| {
            tracing::debug!(%key, %level, why, "a write is not confirmed");
            Error::Indeterminate(format!("written, but not known to be {level}: {why}"))
        })
    }
}
