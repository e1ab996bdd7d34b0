//! Leases of runs, and which worker has got which control.
//!
//! Leases stand beside the fences in the session's meta; the one write sets and removes them. Marks of delivered controls
//! are a hash of their own that expires. Both are idempotent, so a lost answer may be asked for again.

use super::Redis;
use super::keys::Tag;
use super::link::Failure;
use super::read::{broken, head_of, parse, text};
use super::script::By;
use super::shard::Way;
use super::slots::slot_of_tag;
use crate::{DELIVERED_MAX, DELIVERED_MEMORY, Error, Head, LEASE_MS_MAX, Renewal};
use ::redis::Value;
use everthread_protocol::{ControlId, SessionKey, WorkerId};

/// Sessions that one request renews: below a millisecond of the server's time (6 µs each), since writes wait behind it.
const RENEWALS_BATCH: usize = 128;

impl Redis {
    /// See [`crate::Store::each_renewed`].
    pub(super) async fn renew_leases(&self, renewals: &[Renewal]) -> Vec<Result<Option<Head>, Error>> {
        let slots: Vec<u16> =
            renewals.iter().map(|renewal| slot_of_tag(Tag::Session(&renewal.key))).collect();
        let call = |place: usize, by: By| {
            let (key, args) = self.renewal(&renewals[place]);
            let args: Vec<&[u8]> = args.iter().map(String::as_bytes).collect();
            self.inner.scripts.renew.call(by, &[&key], &args)
        };
        // Not the way of large replies: a lease must not wait behind somebody's catch-up.
        let answers: Vec<Result<Vec<Value>, Failure>> =
            self.inner.shards.each(Way::Commands, RENEWALS_BATCH, &slots, call).await;
        answers.into_iter().map(|answer| head_of(&answer.map_err(Failure::of_write)?)).collect()
    }

    /// Key and arguments of one call of the script.
    fn renewal(&self, renewal: &Renewal) -> (String, Vec<String>) {
        let left = renewal.left_ms.min(LEASE_MS_MAX).to_string();
        let runs = renewal.runs.iter().flat_map(|(run, fence)| [run.to_string(), fence.to_string()]);
        (self.inner.keys.meta(&renewal.key), std::iter::once(left).chain(runs).collect())
    }

    /// See [`crate::Store::mark_delivered`].
    pub(super) async fn note_delivered(
        &self,
        key: &SessionKey,
        control: &ControlId,
        worker: &WorkerId,
    ) -> Result<(), Error> {
        let keys = &self.inner.keys;
        let (marks, meta, channel) = (keys.delivered(key), keys.meta(key), keys.control(key));
        let (memory, most) = (DELIVERED_MEMORY.as_millis().to_string(), DELIVERED_MAX.to_string());
        let args = [control.as_str(), worker.as_str(), &memory, &most, &channel].map(str::as_bytes);
        let script = &self.inner.scripts.deliver;
        let answer = self.at(Tag::Session(key)).script(script, &[&marks, &meta], &args).await;
        answer.map_err(Failure::of_write)
    }

    /// See [`crate::Store::delivered`].
    pub(super) async fn delivered_to(
        &self,
        key: &SessionKey,
        controls: &[ControlId],
    ) -> Result<Vec<Option<WorkerId>>, Error> {
        if controls.is_empty() {
            return Ok(Vec::new());
        }
        let mut request = ::redis::cmd("HMGET");
        request.arg(self.inner.keys.delivered(key));
        for control in controls {
            request.arg(control.as_str());
        }
        let marks: Vec<Value> =
            self.at(Tag::Session(key)).command(&request).await.map_err(Failure::of_read)?;
        marks.iter().map(worker_of).collect()
    }
}

/// The worker in a mark: when it was made, and the worker.
fn worker_of(mark: &Value) -> Result<Option<WorkerId>, Error> {
    if *mark == Value::Nil {
        return Ok(None);
    }
    let (_, worker) = text(mark)?.split_once(' ').ok_or_else(|| broken("a mark of a delivery"))?;
    parse(worker).map(Some)
}
