//! The indexes beside the sessions: work pools, deadlines, sessions of a tenant, living workers.
//!
//! They live in slots of their own and may lose what sessions do not; the sessions' meta is the truth. Adding is
//! idempotent here, so its failures may be retried whether or not it happened.

use super::Redis;
use super::keys::Tag;
use super::link::Failure;
use super::read::{broken, number, parse, text};
use crate::{DUE_VISIBILITY, Due, Error, ITEM_VISIBILITY, Taken, WorkItem};
use ::redis::{Value, cmd};
use everthread_protocol::{Millis, NodeId, PoolKey, SessionId, SessionKey, TenantId, WorkerId};

impl Redis {
    /// See [`crate::Store::enqueue`].
    pub(super) async fn add_item(&self, pool: &PoolKey, item: &WorkItem) -> Result<(), Error> {
        let payload = serde_json::to_string(item).map_err(|e| broken(&e.to_string()))?;
        let mut request = ::redis::pipe();
        request.cmd("XADD").arg(self.inner.keys.pool(pool)).arg("*").arg("r").arg(payload).ignore();
        request.cmd("SPUBLISH").arg(self.inner.keys.pool_wake(pool)).arg("").ignore();
        self.at(Tag::Pool(pool)).pipeline::<()>(&request).await.map_err(Failure::of_write)
    }

    /// See [`crate::Store::take`].
    pub(super) async fn take_items(
        &self,
        pool: &PoolKey,
        consumer: &NodeId,
        limit: usize,
    ) -> Result<Vec<Taken>, Error> {
        let key = self.inner.keys.pool(pool);
        let (limit, visibility) = (limit.to_string(), ITEM_VISIBILITY.as_millis().to_string());
        let args = [consumer.as_str().as_bytes(), limit.as_bytes(), visibility.as_bytes()];
        let answer = self.at(Tag::Pool(pool)).script(&self.inner.scripts.take, &[&key], &args).await;
        // A lost answer hides the items for a while, no more.
        let answer: Vec<Value> = answer.map_err(Failure::of_read)?;
        let mut taken = Vec::with_capacity(answer.len() / 3);
        for item in answer.chunks_exact(3) {
            let ticket = text(&item[0])?.to_owned();
            match serde_json::from_str(text(&item[1])?) {
                Ok(work) => {
                    let deliveries = u32::try_from(number(&item[2])?).unwrap_or(u32::MAX);
                    taken.push(Taken { ticket, item: work, deliveries });
                }
                // It must not be handed out for ever, nor hide the others. The run is in its session's state.
                Err(error) => {
                    tracing::error!(%pool, ticket, %error, "an item of a pool cannot be read and is dropped");
                    self.drop_item(pool, &ticket).await?;
                }
            }
        }
        Ok(taken)
    }

    /// See [`crate::Store::finish_item`].
    pub(super) async fn drop_item(&self, pool: &PoolKey, ticket: &str) -> Result<(), Error> {
        let key = self.inner.keys.pool(pool);
        let mut request = ::redis::pipe();
        // Both or none: an item that is acknowledged but not deleted would stay for ever.
        request.atomic();
        request.cmd("XACK").arg(&key).arg("workers").arg(ticket).ignore();
        request.cmd("XDEL").arg(&key).arg(ticket).ignore();
        self.at(Tag::Pool(pool)).pipeline::<()>(&request).await.map_err(Failure::of_write)
    }

    /// See [`crate::Store::arm`].
    pub(super) async fn arm_session(&self, key: &SessionKey, at: Millis) -> Result<(), Error> {
        let (member, at) = (key.to_string(), at.0.to_string());
        let args = [member.as_bytes(), at.as_bytes()];
        let key = self.inner.keys.deadlines();
        let answer = self.at(Tag::Deadlines).script(&self.inner.scripts.arm, &[&key], &args).await;
        answer.map_err(Failure::of_write)
    }

    /// See [`crate::Store::claim_due`].
    pub(super) async fn claim_sessions(&self, limit: usize) -> Result<Vec<Due>, Error> {
        let (limit, visibility) = (limit.to_string(), DUE_VISIBILITY.as_millis().to_string());
        let args = [limit.as_bytes(), visibility.as_bytes()];
        let script = &self.inner.scripts.claim_due;
        // A lost answer hides the sessions for a while, no more.
        let answer: Vec<Value> = self
            .at(Tag::Deadlines)
            .script(script, &[&self.inner.keys.deadlines()], &args)
            .await
            .map_err(Failure::of_read)?;
        let due = |pair: &[Value]| Ok(Due { key: parse(text(&pair[0])?)?, claim: Millis(number(&pair[1])?) });
        answer.chunks_exact(2).map(due).collect()
    }

    /// See [`crate::Store::finish_due`].
    pub(super) async fn finish_session(&self, due: &Due, next: Option<Millis>) -> Result<(), Error> {
        let (member, claim) = (due.key.to_string(), due.claim.0.to_string());
        let next = next.map(|at| at.0.to_string()).unwrap_or_default();
        let args = [member.as_bytes(), claim.as_bytes(), next.as_bytes()];
        let key = self.inner.keys.deadlines();
        let answer =
            self.at(Tag::Deadlines).script::<()>(&self.inner.scripts.finish_due, &[&key], &args).await;
        answer.map_err(Failure::of_write)
    }

    /// See [`crate::Store::index`].
    pub(super) async fn index_session(&self, key: &SessionKey, at: Millis) -> Result<(), Error> {
        let mut request = ::redis::pipe();
        let (index, changed) = (self.inner.keys.sessions(&key.tenant), self.inner.keys.changed(&key.tenant));
        request.cmd("ZADD").arg(index).arg("GT").arg(at.0).arg(key.session.as_str()).ignore();
        // After it: whoever is woken finds it.
        request.cmd("SPUBLISH").arg(changed).arg(format!("{} {}", at.0, key.session)).ignore();
        self.at(Tag::Sessions(&key.tenant)).pipeline::<()>(&request).await.map_err(Failure::of_write)
    }

    /// See [`crate::Store::sessions`].
    pub(super) async fn list_sessions(
        &self,
        tenant: &TenantId,
        after: Option<(Millis, SessionId)>,
        limit: usize,
    ) -> Result<Vec<(SessionId, Millis)>, Error> {
        let limit = limit.to_string();
        let (at, id) = after.map_or_else(Default::default, |(at, id)| (at.0.to_string(), id.to_string()));
        let args = [limit.as_bytes(), at.as_bytes(), id.as_bytes()];
        let key = self.inner.keys.sessions(tenant);
        let answer =
            self.at(Tag::Sessions(tenant)).script(&self.inner.scripts.sessions, &[&key], &args).await;
        let answer: Vec<Value> = answer.map_err(Failure::of_read)?;
        let session = |pair: &[Value]| Ok((parse(text(&pair[0])?)?, Millis(number(&pair[1])?)));
        answer.chunks_exact(2).map(session).collect()
    }

    /// See [`crate::Store::beat`].
    pub(super) async fn beat_worker(
        &self,
        tenant: &TenantId,
        worker: &WorkerId,
        holder: &str,
        ttl_ms: u64,
    ) -> Result<(), Error> {
        let mut request = cmd("SET");
        // Redis refuses 0.
        request.arg(self.inner.keys.worker(tenant, worker)).arg(holder).arg("PX").arg(ttl_ms.max(1));
        self.at(Tag::Worker(tenant, worker)).command::<()>(&request).await.map_err(Failure::of_write)
    }

    /// See [`crate::Store::holder`].
    pub(super) async fn holder_of(
        &self,
        tenant: &TenantId,
        worker: &WorkerId,
    ) -> Result<Option<String>, Error> {
        let mut request = cmd("GET");
        request.arg(self.inner.keys.worker(tenant, worker));
        self.at(Tag::Worker(tenant, worker)).command(&request).await.map_err(Failure::of_read)
    }

    /// See [`crate::Store::bury`].
    pub(super) async fn bury_worker(
        &self,
        tenant: &TenantId,
        worker: &WorkerId,
        holder: &str,
    ) -> Result<bool, Error> {
        let key = self.inner.keys.worker(tenant, worker);
        let answer = self
            .at(Tag::Worker(tenant, worker))
            .script(&self.inner.scripts.bury, &[&key], &[holder.as_bytes()])
            .await;
        answer.map_err(Failure::of_write)
    }
}
