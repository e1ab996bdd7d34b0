//! Whole sessions: many for a list, and the end of one.
//!
//! What there is of a session in its own slot goes in one script. Its places in the indexes, which live in other slots, go
//! after that: until they do, whoever finds it there finds no session, and drops it.

use super::Redis;
use super::keys::Tag;
use super::link::Failure;
use super::read::{HEAD_FIELDS, broken, epochs_of, head_of, number, parse, text};
use crate::{Deleted, Error, Listed, TOMBSTONE_KEPT};
use ::redis::{Value, cmd};
use everthread_protocol::{Epoch, Millis, Seq, SessionKey, Version};

/// Sessions that one request asks for: each state may have 64 KB.
const STATES_BATCH: usize = 64;

impl Redis {
    /// See [`crate::Store::each_state`].
    pub(super) async fn states_of(&self, keys: &[SessionKey]) -> Vec<Result<Option<Listed>, Error>> {
        let answers = self.each_session(STATES_BATCH, keys, |key| {
            let mut request = cmd("HMGET");
            request.arg(self.inner.keys.meta(key)).arg(&HEAD_FIELDS).arg("epochs").arg("state");
            request
        });
        let listed = |answer: Result<Vec<Value>, Error>| listed_of(&answer?);
        answers.await.into_iter().map(listed).collect()
    }

    /// See [`crate::Store::delete`], and with what is expected [`crate::Store::delete_if`]: then `None` if it is otherwise.
    pub(super) async fn delete_session(
        &self,
        key: &SessionKey,
        expect: Option<(Version, Seq)>,
    ) -> Result<Option<Deleted>, Error> {
        // Before the session goes: one that is made anew is listed with a later time, and stays.
        let mut request = cmd("ZSCORE");
        request.arg(self.inner.keys.sessions(&key.tenant)).arg(key.session.as_str());
        let at: Option<f64> =
            self.at(Tag::Sessions(&key.tenant)).command(&request).await.map_err(Failure::of_read)?;
        let Some(deleted) = self.delete_keys(key, expect).await? else { return Ok(None) };
        if let Some(at) = at
            && let Err(error) = self.unindex_at(key, &at.to_string()).await
        {
            tracing::debug!(%key, %error, "a deleted session is listed until somebody reads the list");
        }
        if let Err(error) = self.due_at_once(key).await {
            tracing::debug!(%key, %error, "the deadline of a deleted session fires in its time");
        }
        Ok(deleted)
    }

    /// See [`crate::Store::gone`].
    pub(super) async fn gone_epoch(&self, key: &SessionKey) -> Result<Option<Epoch>, Error> {
        let mut request = cmd("GET");
        request.arg(self.inner.keys.gone(key));
        let tombstone: Option<String> =
            self.at(Tag::Session(key)).command(&request).await.map_err(Failure::of_read)?;
        let epoch = |tombstone: String| {
            let (epoch, _) = tombstone.split_once(' ').ok_or_else(|| broken("a tombstone"))?;
            Ok(Epoch(parse(epoch)?))
        };
        tombstone.map(epoch).transpose()
    }

    /// `None` if the session is not as expected.
    async fn delete_keys(
        &self,
        key: &SessionKey,
        expect: Option<(Version, Seq)>,
    ) -> Result<Option<Option<Deleted>>, Error> {
        let keys = &self.inner.keys;
        let control = keys.control(key);
        let names = [
            keys.meta(key),
            keys.gone(key),
            keys.log(key),
            keys.presence(key),
            keys.folded(key),
            keys.base(key),
            keys.producers(key),
            keys.devices(key),
            keys.delivered(key),
        ];
        let names = names.each_ref().map(String::as_str);
        let kept = TOMBSTONE_KEPT.as_millis().to_string();
        let (version, head) =
            expect.map(|(version, head)| (version.to_string(), head.to_string())).unwrap_or_default();
        let args = [&kept, &control, &version, &head].map(String::as_bytes);
        let answer = self.at(Tag::Session(key)).script(&self.inner.scripts.delete, &names, &args).await;
        let answer: Vec<Value> = answer.map_err(Failure::of_write)?;
        let word = answer.first().ok_or_else(|| broken("an empty answer to a deletion"))?;
        match (text(word)?, &answer[1..]) {
            ("ok", [epoch, head]) => {
                Ok(Some(Some(Deleted { epoch: Epoch(number(epoch)?), head: Seq(number(head)?) })))
            }
            ("none", []) => Ok(Some(None)),
            ("moved", []) => Ok(None),
            (other, _) => Err(broken(&format!("an unknown answer to a deletion: {other:?}"))),
        }
    }

    /// See [`crate::Store::unindex`].
    pub(super) async fn unindex_session(&self, key: &SessionKey, at: Millis) -> Result<(), Error> {
        self.unindex_at(key, &at.0.to_string()).await
    }

    async fn unindex_at(&self, key: &SessionKey, at: &str) -> Result<(), Error> {
        let sessions = self.inner.keys.sessions(&key.tenant);
        let changed = self.inner.keys.changed(&key.tenant);
        let args = [key.session.as_str().as_bytes(), at.as_bytes(), changed.as_bytes()];
        let script = &self.inner.scripts.unindex;
        self.at(Tag::Sessions(&key.tenant))
            .script(script, &[&sessions], &args)
            .await
            .map_err(Failure::of_write)
    }

    /// A deadline of the session, if it has one, fires now: whoever claims it finds no session, and removes it. Removing it
    /// here could remove one that was armed for a session made anew.
    async fn due_at_once(&self, key: &SessionKey) -> Result<(), Error> {
        let mut request = cmd("ZADD");
        request.arg(self.inner.keys.deadlines()).arg("XX").arg("LT").arg(0).arg(key.to_string());
        self.at(Tag::Deadlines).command::<()>(&request).await.map_err(Failure::of_write)
    }
}

fn listed_of(fields: &[Value]) -> Result<Option<Listed>, Error> {
    let [head @ .., epochs, state] = fields else { return Err(broken("a session of other fields")) };
    let Some(head) = head_of(head)? else { return Ok(None) };
    Ok(Some(Listed { head, epochs: epochs_of(text(epochs)?)?, state: text(state)?.to_owned() }))
}
