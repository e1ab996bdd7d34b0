//! The one write: a [`Write`] as arguments of `write.lua`, and its answer as a [`Written`].
//!
//! Nearly all are appends of a run: [`super::appends`] makes those, in half the time, and leaves here what is not as usual.

use super::Redis;
use super::keys::Tag;
use super::read::{broken, number, text};
use crate::{Duplicate, Error, LEASE_MS_MAX, Refusal, Write, Written};
use ::redis::Value;
use everthread_protocol::limits::{EPOCHS_MAX, REQUEST_MEMORY_MS, REQUESTS_MAX};
use everthread_protocol::record::stored_tail;
use everthread_protocol::{Epoch, Fence, Millis, RunId, Seq, SessionKey, Version};

impl Redis {
    /// See [`crate::Store::write`].
    pub(super) async fn write_once(&self, key: &SessionKey, write: &Write<'_>) -> Result<Written, Error> {
        if let Some(written) = self.append(key, write).await? {
            return Ok(written);
        }
        let keys = &self.inner.keys;
        let (meta, log, producers) = (keys.meta(key), keys.log(key), keys.producers(key));
        let gone = keys.gone(key);
        let args = arguments(write, keys.control(key));
        let args: Vec<&[u8]> = args.iter().map(Vec::as_slice).collect();
        let script = &self.inner.scripts.write;
        let answer =
            self.at(Tag::Session(key)).script(script, &[&meta, &log, &producers, &gone], &args).await;
        answer_of(answer.map_err(super::link::Failure::of_write)?)
    }
}

/// In the order of the script's header.
fn arguments(write: &Write<'_>, control: String) -> Vec<Vec<u8>> {
    let id = |run: Option<&RunId>| run.map(|run| run.as_str().to_owned()).unwrap_or_default();
    let (tail, empty) = (stored_tail(write.by, write.run, write.entries), String::new);
    let producer = write.producer;
    let change = write.change;
    let mode = match change {
        None => String::new(),
        Some(change) => change.expect.map_or_else(|| "new".to_owned(), |version| version.to_string()),
    };
    let texts = [
        write.count.to_string(),
        write.not_after.map_or_else(empty, |at| at.0.to_string()),
        producer.map_or_else(empty, |p| p.key.to_owned()),
        producer.map_or_else(empty, |p| p.incarnation.to_string()),
        producer.map_or_else(empty, |p| p.batch.to_string()),
        producer.map_or_else(empty, |p| p.answer.to_owned()),
        id(write.fence.map(|(run, _)| run)),
        write.fence.map_or_else(empty, |(_, fence)| fence.to_string()),
        mode,
        change.map_or_else(empty, |c| c.state.to_owned()),
        change.and_then(|c| c.next_due).map_or_else(empty, |at| at.0.to_string()),
        id(change.and_then(|c| c.grant)),
        id(change.and_then(|c| c.unwritten).map(|(run, _)| run)),
        change.and_then(|c| c.unwritten).map_or_else(empty, |(_, incarnation)| incarnation.to_string()),
        control,
        REQUEST_MEMORY_MS.to_string(),
        REQUESTS_MAX.to_string(),
        EPOCHS_MAX.to_string(),
        change.map_or(0, |c| c.lease_ms.min(LEASE_MS_MAX)).to_string(),
    ];
    let revoke = change.map_or(&[][..], |c| c.revoke);
    let revoke = revoke.iter().map(|run| run.as_str().as_bytes().to_vec());
    std::iter::once(tail).chain(texts.into_iter().map(String::into_bytes)).chain(revoke).collect()
}

fn answer_of(answer: Vec<Value>) -> Result<Written, Error> {
    let word = answer.first().ok_or_else(|| broken("an empty answer to a write"))?;
    match (text(word)?, &answer[1..]) {
        ("ok", [epoch, to, at, version, fence, folded_to]) => Ok(Written {
            epoch: Epoch(number(epoch)?),
            to: Seq(number(to)?),
            at: Millis(number(at)?),
            version: version_of(version)?,
            fence: if text(fence)?.is_empty() { None } else { Some(Fence(number(fence)?)) },
            folded_to: Seq(number(folded_to)?),
            duplicate: None,
        }),
        ("duplicate", [epoch, to, version, batch, answer, folded_to]) => Ok(Written {
            epoch: Epoch(number(epoch)?),
            to: Seq(number(to)?),
            at: Millis(0),
            version: version_of(version)?,
            fence: None,
            folded_to: Seq(number(folded_to)?),
            duplicate: Some(Duplicate { batch: number(batch)?, answer: text(answer)?.to_owned() }),
        }),
        ("none", []) => Err(Refusal::NoSession.into()),
        ("archived", []) => Err(Refusal::Archived.into()),
        ("exists", []) => Err(Refusal::Exists.into()),
        ("late", []) => Err(Refusal::Late.into()),
        ("fenced", []) => Err(Refusal::Fenced.into()),
        ("gap", [expected]) => Err(Refusal::Gap { expected: number(expected)? }.into()),
        ("conflict", [version]) => Err(Refusal::Conflict { current: version_of(version)? }.into()),
        ("written", []) => Err(Refusal::HasWritten.into()),
        ("corrupt", [why]) => Err(broken(text(why)?)),
        (other, _) => Err(broken(&format!("an unknown answer to a write: {other:?}"))),
    }
}

/// A version in an answer.
pub(super) fn version_of(value: &Value) -> Result<Version, Error> {
    text(value)?.parse().map_err(|_| broken("a version that is none"))
}
