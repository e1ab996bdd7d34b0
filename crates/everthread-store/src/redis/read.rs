//! Reading sessions: state, pages of the log, heads.
//!
//! A page begins in one script with the head and the seam between folded and raw, so that an entry which should be there
//! and is not is a broken log, never a race. Records move from `log` to `folded` while a long page is being read: what the
//! seam says is folded stays so, and a raw record that has gone since ends the page, at least one record later.

use super::Redis;
use super::keys::Tag;
use super::link::Failure;
use super::shard::Way;
use super::slots::slot_of_tag;
use crate::{Error, Head, Loaded, Page};
use ::redis::{Cmd, FromRedisValue, Value};
use everthread_protocol::{Epoch, Fence, Millis, Record, RunId, Seq, SessionKey, Version};
use std::collections::HashMap;
use std::str::FromStr;

/// Records that the first request for a page asks for …
const FIRST_COUNT: usize = 32;
/// … and the most that a later one does.
const COUNT_MAX: usize = 1024;
/// Folded records that the first request for them asks for: each may have 64 KB …
const FOLDED_FIRST_COUNT: usize = 8;
/// … and the most that a later one does.
const FOLDED_COUNT_MAX: usize = 64;
/// Heads that one request asks for.
const HEADS_BATCH: usize = 512;
/// Fields of a head, in the order in which [`head_of`] takes them.
pub(super) const HEAD_FIELDS: [&str; 9] =
    ["epoch", "since", "head", "n", "active", "folded_to", "floor", "folded_bytes", "archived"];

impl Redis {
    /// See [`crate::Store::load`].
    pub(super) async fn load_session(&self, key: &SessionKey) -> Result<Option<Loaded>, Error> {
        let meta = self.inner.keys.meta(key);
        let answer = self.at(Tag::Session(key)).script(&self.inner.scripts.load, &[&meta], &[]).await;
        let answer: Vec<Value> = answer.map_err(Failure::of_read)?;
        match answer.as_slice() {
            [] => Ok(None),
            [now, Value::Array(meta)] => loaded(now, meta).map(Some),
            _ => Err(broken("an unknown answer to a load")),
        }
    }

    /// See [`crate::Store::read`].
    pub(super) async fn read_page(
        &self,
        key: &SessionKey,
        after: Seq,
        bytes_max: usize,
    ) -> Result<Page, Error> {
        let keys = &self.inner.keys;
        let (meta, log, folded) = (keys.meta(key), keys.log(key), keys.folded(key));
        // A cursor is a client's word and may be any number.
        let next = Seq(after.0.saturating_add(1));
        let args = [next.to_string(), FIRST_COUNT.to_string(), FOLDED_FIRST_COUNT.to_string()];
        let args = args.each_ref().map(String::as_bytes);
        let script = &self.inner.scripts.read;
        let answer = self.ranges(Tag::Session(key)).script(script, &[&meta, &log, &folded], &args).await;
        let answer: Vec<Value> = answer.map_err(Failure::of_read)?;
        let (meta, first) = match answer.as_slice() {
            [] => return Err(crate::Refusal::NoSession.into()),
            [Value::Array(meta), Value::Array(first)] if meta.len() == HEAD_FIELDS.len() + 1 => (meta, first),
            _ => return Err(broken("an unknown answer to a read")),
        };
        let epochs = epochs_of(text(&meta[HEAD_FIELDS.len()])?)?;
        let head = head_of(&meta[..HEAD_FIELDS.len()])?.ok_or(crate::Refusal::NoSession)?;
        if head.archived {
            return Err(crate::Refusal::Archived.into());
        }
        let next = next.max(head.floor);
        let mut taking =
            Taking { records: Vec::new(), bytes: 0, bytes_max, next, head: head.seq, epoch: head.epoch };
        let mut open = taking.take(first)?;
        while open {
            let more = if taking.next <= head.folded_to {
                self.range(key, &folded, (taking.next, head.folded_to), taking.folded_count()).await?
            } else {
                self.range(key, &log, (taking.next, head.seq), taking.count()).await?
            };
            open = taking.take(&more)?;
        }
        Ok(Page { records: taking.records, head, epochs })
    }

    async fn range(
        &self,
        key: &SessionKey,
        stream: &str,
        (from, to): (Seq, Seq),
        count: usize,
    ) -> Result<Vec<Value>, Error> {
        let mut request = ::redis::cmd("XRANGE");
        request.arg(stream).arg(id(from)).arg(id(to)).arg("COUNT").arg(count);
        self.ranges(Tag::Session(key)).command(&request).await.map_err(Failure::of_read)
    }

    /// See [`crate::Store::each_head`].
    pub(super) async fn heads_of(&self, keys: &[SessionKey]) -> Vec<Result<Option<Head>, Error>> {
        let answers = self.each_session(HEADS_BATCH, keys, |key| {
            let mut request = ::redis::cmd("HMGET");
            request.arg(self.inner.keys.meta(key)).arg(&HEAD_FIELDS);
            request
        });
        let head = |answer: Result<Vec<Value>, Error>| head_of(&answer?);
        answers.await.into_iter().map(head).collect()
    }

    /// One reading command about each of many sessions, at most `batch` at once to one server.
    pub(super) async fn each_session<T: FromRedisValue + Send>(
        &self,
        batch: usize,
        keys: &[SessionKey],
        command: impl Fn(&SessionKey) -> Cmd + Sync,
    ) -> Vec<Result<T, Error>> {
        let slots: Vec<u16> = keys.iter().map(|key| slot_of_tag(Tag::Session(key))).collect();
        let make = |place: usize, _| command(&keys[place]);
        let answers = self.inner.shards.each(Way::Ranges, batch, &slots, make).await;
        answers.into_iter().map(|answer| answer.map_err(Failure::of_read)).collect()
    }
}

/// A page while it is being read.
struct Taking {
    records: Vec<Record>,
    bytes: usize,
    bytes_max: usize,
    /// What the next record must cover.
    next: Seq,
    /// Where the page ends at the latest.
    head: Seq,
    /// The epoch at that place.
    epoch: Epoch,
}

impl Taking {
    /// Takes records as long as there is room. Returns whether to ask for more.
    fn take(&mut self, entries: &[Value]) -> Result<bool, Error> {
        let has_some = !self.records.is_empty();
        for (at, entry) in entries.iter().enumerate() {
            let record = record_of(entry)?;
            if has_some && record.epoch > self.epoch {
                // The session was deleted and made anew since the page was begun, or has lost a tail that it has written anew.
                return Ok(false);
            }
            if at == 0 && has_some && record.from > self.next {
                // What comes between was folded since the page was begun. If it is lost instead, the next page says so.
                return Ok(false);
            }
            // The log is dense. What is missing here is lost, and must not be skipped in silence.
            if record.from > self.next || record.to < self.next || record.to > self.head {
                return Err(broken(&format!("the log has no entry {}", self.next)));
            }
            self.bytes += record.blocks.len();
            if self.bytes > self.bytes_max && !self.records.is_empty() {
                return Ok(false);
            }
            self.next = record.to.next();
            self.records.push(record);
        }
        let at_end = self.next > self.head;
        if !at_end && entries.is_empty() && !has_some {
            return Err(broken(&format!("the log has no entry {}", self.next)));
        }
        Ok(!at_end && !entries.is_empty() && self.bytes < self.bytes_max)
    }

    /// How many records the room that is left may take, by the size of those before, and one to see that it is full.
    fn count(&self) -> usize {
        let average = self.bytes / self.records.len().max(1);
        let room = self.bytes_max.saturating_sub(self.bytes);
        (room / average.max(1)).saturating_add(1).min(COUNT_MAX)
    }

    /// The same for folded records, which may be a hundred times as large as those before.
    fn folded_count(&self) -> usize {
        self.count().min(FOLDED_COUNT_MAX)
    }
}

fn id(seq: Seq) -> String {
    format!("{seq}-0")
}

fn record_of(entry: &Value) -> Result<Record, Error> {
    if let Value::Array(entry) = entry
        && let [id, Value::Array(fields)] = entry.as_slice()
        && let [_, Value::BulkString(stored)] = fields.as_slice()
        && let Some(to) = text(id)?.strip_suffix("-0").and_then(|to| to.parse().ok())
    {
        return Record::from_stored(stored, Seq(to)).map_err(|e| broken(&e.to_string()));
    }
    Err(broken("an entry of the log that is no record"))
}

/// The head in an answer of [`HEAD_FIELDS`].
pub(super) fn head_of(fields: &[Value]) -> Result<Option<Head>, Error> {
    let [epoch, since, seq, n, active, folded_to, floor, folded_bytes, archived] = fields else {
        return Err(broken("a head of other fields"));
    };
    if *epoch == Value::Nil {
        return Ok(None);
    }
    let epoch = Epoch(number(epoch)?);
    let or = |field: &Value, absent| if *field == Value::Nil { Ok(absent) } else { number(field) };
    Ok(Some(Head {
        epoch,
        since: Seq(number(since)?),
        seq: Seq(number(seq)?),
        version: Version { epoch, n: number(n)? },
        active: u32::try_from(number(active)?).map_err(|_| broken("a count of fences"))?,
        // Absent until the first fold, and the floor until something is dropped.
        folded_to: Seq(or(folded_to, 0)?),
        floor: Seq(or(floor, 1)?),
        folded_bytes: or(folded_bytes, 0)?,
        archived: *archived != Value::Nil,
    }))
}

fn loaded(now: &Value, meta: &[Value]) -> Result<Loaded, Error> {
    let mut fields = HashMap::with_capacity(meta.len() / 2);
    for pair in meta.chunks_exact(2) {
        fields.insert(text(&pair[0])?, text(&pair[1])?);
    }
    if fields.contains_key("archived") {
        return Err(crate::Refusal::Archived.into());
    }
    let field =
        |name: &str| fields.get(name).copied().ok_or_else(|| broken(&format!("a session without {name}")));
    let (mut fences, mut leases, mut producers) = (Vec::new(), Vec::new(), Vec::new());
    for (name, fence) in &fields {
        let Some(run) = name.strip_prefix("f:") else { continue };
        let id: RunId = parse(run)?;
        if let Some(producer) = fields.get(format!("p:{run}").as_str()) {
            let mut numbers = producer.split(' ');
            let mut number = || parse(numbers.next().unwrap_or_default());
            producers.push((id.clone(), number()?, number()?));
        }
        if let Some(ends) = fields.get(format!("l:{run}").as_str()) {
            leases.push((id.clone(), Millis(parse(ends)?)));
        }
        fences.push((id, Fence(parse(fence)?)));
    }
    fences.sort();
    leases.sort();
    producers.sort();
    Ok(Loaded {
        state: field("state")?.to_owned(),
        version: Version { epoch: Epoch(parse(field("epoch")?)?), n: parse(field("n")?)? },
        now: Millis(number(now)?),
        head: Seq(parse(field("head")?)?),
        epochs: epochs_of(field("epochs")?)?,
        fences,
        leases,
        producers,
    })
}

/// A table of epochs.
pub(super) fn epochs_of(list: &str) -> Result<Vec<(Epoch, Seq)>, Error> {
    let pair = |pair: &str| {
        let (epoch, since) = pair.split_once(':').ok_or_else(|| broken("a table of epochs"))?;
        Ok((Epoch(parse(epoch)?), Seq(parse(since)?)))
    };
    list.split(' ').map(pair).collect()
}

/// What the store holds and cannot have written.
pub(super) fn broken(why: &str) -> Error {
    Error::Corrupt(why.to_owned())
}

/// The text of an answer.
pub(super) fn text(value: &Value) -> Result<&str, Error> {
    match value {
        Value::BulkString(bytes) => {
            std::str::from_utf8(bytes).map_err(|_| broken("a text that is not UTF-8"))
        }
        Value::SimpleString(text) => Ok(text),
        _ => Err(broken("something else where a text should be")),
    }
}

/// The number of an answer.
pub(super) fn number(value: &Value) -> Result<u64, Error> {
    match value {
        Value::Int(number) => u64::try_from(*number).map_err(|_| broken("a negative number")),
        other => parse(text(other)?),
    }
}

/// Something in a text.
pub(super) fn parse<T: FromStr>(text: &str) -> Result<T, Error> {
    text.parse().map_err(|_| broken(&format!("{text:?} where something else should be")))
}
