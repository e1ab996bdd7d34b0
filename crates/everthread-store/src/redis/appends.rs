//! Appends of runs: what nearly every write is. Those that come while a call is under way go together in the next one.
//!
//! Redis spends as much on a call, its check of who is primary and its answer as on the append itself, so calls of many
//! appends are what makes a busy primary faster; an idle one gets each at once. [`Appends`] owns what waits for one
//! connection, in order. In a cluster sessions have slots of their own, so there each append is a call.
//!
//! An append that is not as usual changes nothing, and is left to `write.lua`.

use super::Redis;
use super::keys::{Keys, Tag};
use super::link::{Failure, Link};
use super::read::{broken, parse, text};
use super::route::Shards;
use super::script::{By, Script, Scripts};
use super::shard::Way;
use super::slots::slot_of_tag;
use crate::{Error, Write, Written};
use ::redis::{Cmd, RedisWrite as _, Value};
use everthread_protocol::record::{stored_tail_len, write_stored_tail};
use everthread_protocol::{Epoch, Millis, Seq, SessionKey, Version};
use std::fmt::Display;
use std::io::Write as _;
use tokio::sync::{mpsc, oneshot};

/// Appends in one call at most: Redis serves nobody else for a third of a millisecond.
const CALL_APPENDS_MAX: usize = 32;
/// Bytes from which on a call takes no further append.
const CALL_BYTES_MAX: usize = 256 * 1024;
/// Appends that wait for one connection at most; whoever has another one waits to have it taken.
const WAITING_MAX: usize = 1024;
/// Bytes of keys and numbers of an append, more or less.
const ROOM: usize = 256;

/// Keys of an append.
const KEYS: usize = 2;
/// Arguments of an append.
const ARGS: usize = 6;

impl Redis {
    /// Makes an ordinary append. `None` if it is none: nothing is written.
    pub(super) async fn append(&self, key: &SessionKey, write: &Write<'_>) -> Result<Option<Written>, Error> {
        let Some(append) = Append::of(&self.inner.keys, key, write) else { return Ok(None) };
        let answer = match &self.inner.shards {
            Shards::One(shard) => shard.appends(slot_of_tag(Tag::Session(key))).make(append).await,
            Shards::Many(_) => {
                let script = &self.inner.scripts.append;
                let route = self.inner.shards.route(Tag::Session(key), Way::Commands);
                let answers = route.call(|by| call(script, by, std::slice::from_ref(&append))).await;
                answers.and_then(only)
            }
        };
        match answer.map_err(Failure::of_write)? {
            Value::Nil => Ok(None),
            answer => written(text(&answer)?).map(Some),
        }
    }
}

fn only(answers: Vec<Value>) -> Result<Value, Failure> {
    let [answer] = <[Value; 1]>::try_from(answers).map_err(|_| miscounted())?;
    Ok(answer)
}

fn miscounted() -> Failure {
    Failure::Broken("not as many answers as appends".into())
}

/// Keys and arguments of one append, in the order of the script's header.
struct Append {
    bytes: Vec<u8>,
    /// Where each ends.
    ends: [usize; KEYS + ARGS],
}

impl Append {
    /// `None` if it is more than that, or the run's first.
    fn of(keys: &Keys, key: &SessionKey, write: &Write<'_>) -> Option<Self> {
        let ((run, fence), producer) = (write.fence?, write.producer?);
        let is_plain = write.change.is_none() && write.not_after.is_none() && write.count > 0;
        let is_own = producer.key.strip_prefix("run:") == Some(run.as_str());
        let is_next = producer.batch > 1 && producer.answer.is_empty();
        if !(is_plain && is_own && is_next) {
            return None;
        }
        let (incarnation, batch) = (producer.incarnation, producer.batch);
        let tail = stored_tail_len(write.by, write.run, write.entries);
        let mut append = Self { bytes: Vec::with_capacity(tail + ROOM), ends: [0; KEYS + ARGS] };
        append.put(0, keys.name(key, "meta"));
        append.put(1, keys.name(key, "log"));
        // Writing to a Vec cannot fail.
        drop(write_stored_tail(&mut append.bytes, write.by, write.run, write.entries));
        append.ends[2] = append.bytes.len();
        append.put(3, run);
        append.put(4, fence);
        append.put(5, format_args!("{incarnation} {} ", batch - 1));
        append.put(6, format_args!("{incarnation} {batch} "));
        append.put(7, write.count);
        Some(append)
    }

    fn put(&mut self, place: usize, part: impl Display) {
        // Writing to a Vec cannot fail.
        drop(write!(self.bytes, "{part}"));
        self.ends[place] = self.bytes.len();
    }

    fn part(&self, place: usize) -> &[u8] {
        let start = place.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.bytes[start..self.ends[place]]
    }
}

/// One call for all of them.
fn call(script: &Script, by: By, appends: &[impl AsRef<Append>]) -> Cmd {
    let bytes = appends.iter().map(|append| append.as_ref().bytes.len()).sum();
    let mut call = script.begin(by, appends.len() * KEYS, appends.len() * ARGS, bytes);
    for places in [0..KEYS, KEYS..KEYS + ARGS] {
        for append in appends {
            places.clone().for_each(|place| call.write_arg(append.as_ref().part(place)));
        }
    }
    call
}

/// The answer to one append.
fn written(answer: &str) -> Result<Written, Error> {
    let mut numbers = answer.split(' ').map(parse::<u64>);
    let mut number = || numbers.next().unwrap_or_else(|| Err(broken("a short answer to an append")));
    let epoch = Epoch(number()?);
    let (to, at) = (Seq(number()?), Millis(number()?));
    let version = Version { epoch, n: number()? };
    Ok(Written { epoch, to, at, version, fence: None, folded_to: Seq(number()?), duplicate: None })
}

/// An append that waits for its answer.
struct Waiting {
    append: Append,
    answer: oneshot::Sender<Result<Value, Failure>>,
}

impl AsRef<Append> for Append {
    fn as_ref(&self) -> &Append {
        self
    }
}

impl AsRef<Append> for Waiting {
    fn as_ref(&self) -> &Append {
        &self.append
    }
}

/// Where appends wait for one connection. A cheap handle.
pub(super) struct Appends(mpsc::Sender<Waiting>);

impl Appends {
    /// The queue, and what is to be run for it.
    pub(super) fn new() -> (Self, Calls) {
        let (sender, waiting) = mpsc::channel(WAITING_MAX);
        (Self(sender), Calls { waiting })
    }

    /// The answer has a deadline because every call has.
    async fn make(&self, append: Append) -> Result<Value, Failure> {
        let (answer, answered) = oneshot::channel();
        let is_taken = self.0.send(Waiting { append, answer }).await.is_ok();
        match answered.await {
            Ok(answer) => answer,
            Err(_) if is_taken => Err(Failure::Lost("the node stops".into())),
            Err(_) => Err(Failure::Down("the node stops".into())),
        }
    }
}

/// Makes the calls for one connection, one after the other.
pub(super) struct Calls {
    waiting: mpsc::Receiver<Waiting>,
}

impl Calls {
    /// Until there is nobody left who could append.
    pub(super) async fn keep(mut self, link: &Link, scripts: &Scripts) {
        let mut batch = Vec::with_capacity(CALL_APPENDS_MAX);
        while let Some(first) = self.waiting.recv().await {
            let mut bytes = first.append.bytes.len();
            batch.push(first);
            while batch.len() < CALL_APPENDS_MAX
                && bytes < CALL_BYTES_MAX
                && let Ok(next) = self.waiting.try_recv()
            {
                bytes += next.append.bytes.len();
                batch.push(next);
            }
            let answers: Result<Vec<Value>, Failure> =
                link.call(|by| call(&scripts.append, by, &batch)).await;
            match answers {
                Ok(answers) if answers.len() == batch.len() => {
                    for (waiting, answer) in batch.drain(..).zip(answers) {
                        // Whoever does not wait any more does not need it.
                        drop(waiting.answer.send(Ok(answer)));
                    }
                }
                Ok(_) => fail(batch.drain(..), &miscounted()),
                Err(failure) => {
                    fail(batch.drain(..), &failure);
                    if let Failure::Down(_) = failure {
                        // The others would wait for the connection as long, one call after the other.
                        fail(std::iter::from_fn(|| self.waiting.try_recv().ok()), &failure);
                    }
                }
            }
        }
    }
}

fn fail(waiting: impl Iterator<Item = Waiting>, failure: &Failure) {
    waiting.for_each(|waiting| drop(waiting.answer.send(Err(failure.clone()))));
}
