//! Planting and stubs: what a session is made of comes in as a stream of its own, in the session's slot, and becomes the
//! session's folded stream by being renamed.

use super::Redis;
use super::keys::Tag;
use super::link::Failure;
use super::read::{HEAD_FIELDS, broken, head_of, number, parse, text};
use crate::plant::range;
use crate::{Error, Over, Plant, Planted, Refusal, STAGED_KEPT, Stub, StubInfo, Stubbed};
use ::redis::Value;
use everthread_protocol::limits::{EPOCHS_MAX, REQUEST_MEMORY_MS};
use everthread_protocol::record::stored_tail;
use everthread_protocol::{Epoch, Millis, Record, Seq, SessionKey};

/// Sessions that one request asks for.
const STUBS_BATCH: usize = 512;

impl Redis {
    /// See [`crate::Store::stage`].
    pub(super) async fn stage_records(
        &self,
        key: &SessionKey,
        name: &str,
        records: &[Record],
    ) -> Result<(), Error> {
        let Some((from, to)) = range(records)? else { return Ok(()) };
        let kept = STAGED_KEPT.as_millis();
        let numbers = [kept.to_string(), to.to_string(), from.to_string()].map(String::into_bytes);
        let records =
            records.iter().flat_map(|record| [record.to.to_string().into_bytes(), record.to_stored_folded()]);
        let args: Vec<Vec<u8>> = numbers.into_iter().chain(records).collect();
        let args: Vec<&[u8]> = args.iter().map(Vec::as_slice).collect();
        let staged = self.inner.keys.staged(key, name);
        // Large: not on a link where writes would wait behind it.
        let answer =
            self.ranges(Tag::Session(key)).script(&self.inner.scripts.stage, &[&staged], &args).await;
        let answer: Vec<Value> = answer.map_err(Failure::of_write)?;
        match text(answer.first().ok_or_else(|| broken("an empty answer to a stage"))?)? {
            "ok" => Ok(()),
            "gap" => Err(Refusal::NotStaged.into()),
            other => Err(broken(&format!("an unknown answer to a stage: {other:?}"))),
        }
    }

    /// See [`crate::Store::plant`].
    pub(super) async fn plant_session(
        &self,
        key: &SessionKey,
        name: &str,
        plant: Plant<'_>,
    ) -> Result<Planted, Error> {
        let keys = &self.inner.keys;
        let args = arguments(&plant, keys.control(key))?;
        let args: Vec<&[u8]> = args.iter().map(Vec::as_slice).collect();
        let keys = [
            keys.meta(key),
            keys.log(key),
            keys.folded(key),
            keys.staged(key, name),
            keys.base(key),
            keys.producers(key),
            keys.gone(key),
        ];
        let keys = keys.each_ref().map(String::as_str);
        let answer = self.ranges(Tag::Session(key)).script(&self.inner.scripts.plant, &keys, &args).await;
        let answer: Vec<Value> = answer.map_err(Failure::of_write)?;
        let word = answer.first().ok_or_else(|| broken("an empty answer to a plant"))?;
        match (text(word)?, &answer[1..]) {
            ("ok", [epoch, to, version]) => Ok(Planted::Done {
                epoch: Epoch(number(epoch)?),
                to: Seq(number(to)?),
                version: parse(text(version)?)?,
            }),
            ("elsewhere", []) => Ok(Planted::Elsewhere),
            ("unstaged", []) => Err(Refusal::NotStaged.into()),
            ("corrupt", [why]) => Err(broken(text(why)?)),
            (other, _) => Err(broken(&format!("an unknown answer to a plant: {other:?}"))),
        }
    }

    /// See [`crate::Store::stub`].
    pub(super) async fn stub_session(&self, key: &SessionKey, stub: Stub<'_>) -> Result<Stubbed, Error> {
        let keys = &self.inner.keys;
        let texts = [stub.expect.to_string(), stub.head.to_string(), stub.at.0.to_string()];
        let [expect, head, at] = texts.each_ref().map(String::as_bytes);
        let memory = REQUEST_MEMORY_MS.to_string();
        let args = [expect, head, stub.object.as_bytes(), stub.state.as_bytes(), at, memory.as_bytes()];
        let keys = [
            keys.meta(key),
            keys.log(key),
            keys.folded(key),
            keys.base(key),
            keys.producers(key),
            keys.delivered(key),
        ];
        let keys = keys.each_ref().map(String::as_str);
        let answer = self.at(Tag::Session(key)).script(&self.inner.scripts.stub, &keys, &args).await;
        let answer: Vec<Value> = answer.map_err(Failure::of_write)?;
        match text(answer.first().ok_or_else(|| broken("an empty answer to a stub"))?)? {
            "ok" => Ok(Stubbed::Done),
            "elsewhere" => Ok(Stubbed::Elsewhere),
            "none" => Err(Refusal::NoSession.into()),
            other => Err(broken(&format!("an unknown answer to a stub: {other:?}"))),
        }
    }

    /// See [`crate::Store::stubbed`].
    pub(super) async fn stubs_of(&self, keys: &[SessionKey]) -> Vec<Result<Option<StubInfo>, Error>> {
        let answers = self.each_session(STUBS_BATCH, keys, |key| {
            let mut request = ::redis::cmd("HMGET");
            request.arg(self.inner.keys.meta(key)).arg("archived").arg("archived_at").arg(&HEAD_FIELDS);
            request
        });
        let stub = |answer: Result<Vec<Value>, Error>| match answer?.as_slice() {
            [Value::Nil, ..] => Ok(None),
            [object, at, head @ ..] => {
                let head = head_of(head)?.ok_or_else(|| broken("a stub without a head"))?;
                Ok(Some(StubInfo { object: text(object)?.to_owned(), at: Millis(number(at)?), head }))
            }
            _ => Err(broken("a stub of other fields")),
        };
        answers.await.into_iter().map(stub).collect()
    }
}

/// In the order of the script's header.
fn arguments(plant: &Plant<'_>, control: String) -> Result<Vec<Vec<u8>>, Error> {
    let is_staged = plant.needs_staged()?;
    let (object, gone) = match plant.over {
        Over::Nothing { gone } => ("", gone.map_or_else(String::new, |epoch| epoch.to_string())),
        Over::Stub { object } => (object, String::new()),
    };
    let epochs: Vec<String> = plant.epochs.iter().map(|(epoch, since)| format!("{epoch}:{since}")).collect();
    let tail = plant.first.map(|first| stored_tail(first.by, None, first.entries));
    let texts = [
        object.to_owned(),
        epochs.join(" "),
        plant.head.to_string(),
        plant.changes.to_string(),
        plant.fence_last.to_string(),
        plant.floor.to_string(),
        plant.base.unwrap_or_default().to_owned(),
        plant.folded_bytes.to_string(),
        plant.state.to_owned(),
        plant.next_due.map_or_else(String::new, |at| at.0.to_string()),
        u8::from(is_staged).to_string(),
        plant.head.next().to_string(),
    ];
    let rest =
        [plant.first.map_or(0, |first| first.count).to_string(), EPOCHS_MAX.to_string(), control, gone];
    let texts = texts.into_iter().map(String::into_bytes);
    Ok(texts.chain([tail.unwrap_or_default()]).chain(rest.into_iter().map(String::into_bytes)).collect())
}
