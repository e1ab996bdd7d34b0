//! Folding: a [`Fold`] as arguments of `fold.lua`, and its answer as a [`Folded`].

use super::Redis;
use super::keys::Tag;
use super::link::Failure;
use super::read::{broken, number, text};
use crate::{Error, Fold, Folded, Refusal};
use ::redis::Value;
use everthread_protocol::{Epoch, Seq, SessionKey};

impl Redis {
    /// See [`crate::Store::fold`].
    pub(super) async fn fold_records(&self, key: &SessionKey, fold: Fold<'_>) -> Result<Folded, Error> {
        let (from, to) = fold.range()?;
        let numbers = [fold.epoch.0, from.0, to.0, to.next().0, fold.bytes()];
        let numbers = numbers.map(|number| number.to_string().into_bytes());
        let records = fold
            .records
            .iter()
            .flat_map(|record| [record.to.to_string().into_bytes(), record.to_stored_folded()]);
        let args: Vec<Vec<u8>> = numbers.into_iter().chain(records).collect();
        let args: Vec<&[u8]> = args.iter().map(Vec::as_slice).collect();
        let keys = &self.inner.keys;
        let keys = [keys.meta(key), keys.log(key), keys.folded(key)];
        let keys = keys.each_ref().map(String::as_str);
        // Large, and in no hurry: not on a link where writes would wait behind it.
        let answer = self.ranges(Tag::Session(key)).script(&self.inner.scripts.fold, &keys, &args).await;
        folded_of(answer.map_err(Failure::of_write)?)
    }
}

fn folded_of(answer: Vec<Value>) -> Result<Folded, Error> {
    let word = answer.first().ok_or_else(|| broken("an empty answer to a fold"))?;
    match (text(word)?, &answer[1..]) {
        ("ok", []) => Ok(Folded::Done),
        ("none", []) => Err(Refusal::NoSession.into()),
        ("archived", []) => Err(Refusal::Archived.into()),
        ("epoch", [epoch]) => Ok(Folded::NewEpoch { epoch: Epoch(number(epoch)?) }),
        ("elsewhere", [to]) => Ok(Folded::Elsewhere { folded_to: Seq(number(to)?) }),
        ("gone", []) => Ok(Folded::NoSuchRecord),
        (other, _) => Err(broken(&format!("an unknown answer to a fold: {other:?}"))),
    }
}
