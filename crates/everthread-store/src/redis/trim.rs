//! Trimming: a [`Trim`] as arguments of `trim.lua`, its answer as a [`Trimmed`], and the base that it leaves.

use super::Redis;
use super::keys::Tag;
use super::link::Failure;
use super::read::{broken, number, parse, text};
use super::write::version_of;
use crate::{Base, Error, Refusal, Trim, Trimmed};
use ::redis::Value;
use everthread_protocol::limits::EPOCHS_MAX;
use everthread_protocol::{Seq, SessionKey};

impl Redis {
    /// See [`crate::Store::trim`].
    pub(super) async fn trim_log(&self, key: &SessionKey, trim: Trim<'_>) -> Result<Trimmed, Error> {
        trim.check()?;
        let numbers = [trim.from.0, trim.floor.0, trim.floor.0 - 1, trim.bytes];
        let numbers = numbers.map(|number| number.to_string());
        let (expect, epochs_max) = (trim.expect.to_string(), EPOCHS_MAX.to_string());
        let texts =
            std::iter::once(&expect).chain(&numbers).map(String::as_str).chain([trim.base, &epochs_max]);
        let args: Vec<&[u8]> = texts.map(str::as_bytes).collect();
        let keys = &self.inner.keys;
        let keys = [keys.meta(key), keys.folded(key), keys.base(key)];
        let keys = keys.each_ref().map(String::as_str);
        let answer = self.ranges(Tag::Session(key)).script(&self.inner.scripts.trim, &keys, &args).await;
        trimmed_of(answer.map_err(Failure::of_write)?)
    }

    /// See [`crate::Store::base`].
    pub(super) async fn base_of(&self, key: &SessionKey) -> Result<Option<Base>, Error> {
        let keys = &self.inner.keys;
        let mut request = ::redis::pipe();
        request.cmd("HGET").arg(keys.meta(key)).arg("archived");
        request.cmd("GET").arg(keys.base(key));
        let answer: Vec<Value> =
            self.ranges(Tag::Session(key)).pipeline(&request).await.map_err(Failure::of_read)?;
        let [archived, base] = answer.as_slice() else { return Err(broken("two answers that are not two")) };
        if *archived != Value::Nil {
            return Err(Refusal::Archived.into());
        }
        if *base == Value::Nil {
            return Ok(None);
        }
        let (floor, text) = text(base)?.split_once(' ').ok_or_else(|| broken("a base"))?;
        Ok(Some(Base { floor: Seq(parse(floor)?), text: text.to_owned() }))
    }
}

fn trimmed_of(answer: Vec<Value>) -> Result<Trimmed, Error> {
    let word = answer.first().ok_or_else(|| broken("an empty answer to a trim"))?;
    match (text(word)?, &answer[1..]) {
        ("ok", []) => Ok(Trimmed::Done),
        ("none", []) => Err(Refusal::NoSession.into()),
        ("archived", []) => Err(Refusal::Archived.into()),
        ("moved", [version]) => Ok(Trimmed::Moved { version: version_of(version)? }),
        ("elsewhere", [floor]) => Ok(Trimmed::Elsewhere { floor: Seq(number(floor)?) }),
        ("gone", []) => Ok(Trimmed::NoSuchRecord),
        (other, _) => Err(broken(&format!("an unknown answer to a trim: {other:?}"))),
    }
}
