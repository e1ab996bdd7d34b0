//! What one follower has got of one session, and whether it is what was sent.
//!
//! It follows the client's rule of docs/PROTOCOL.md to the letter. Whatever does not fit is a [`Fault`]: a run with one has
//! failed, however fast it was.

use crate::corpus::{HASH_OF_NOTHING, Script, hash_on};
use crate::wire::{PlainAppend, plain_append};
use everthread_protocol::frame::Entries;
use everthread_protocol::{Block, Cursor, Epoch, Seq};
use serde::Deserialize;
use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

/// What was wrong with a delivery.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// Something between is missing.
    #[error("lost: {0}")]
    Lost(String),
    /// Something came again.
    #[error("doubled: {0}")]
    Doubled(String),
    /// The text is another, or the run ended otherwise.
    #[error("changed: {0}")]
    Changed(String),
    /// Not a frame of this log, or none at all.
    #[error("broken: {0}")]
    Broken(String),
}

/// One follower of one session.
#[derive(Debug)]
pub struct Track {
    script: Arc<Script>,
    /// Where it stands.
    epoch: Epoch,
    /// Up to where everything is applied.
    seq: Seq,
    /// Tokens that have arrived whole, and the byte at which the next ends.
    tokens: u64,
    next_end: u64,
    /// Bytes of text that have arrived, and a hash of them.
    position: u64,
    hash: u64,
    /// The message under way, and where it begins.
    message: (u64, u64),
    /// The run has ended.
    is_over: bool,
    /// Bytes before what it began with: more than none after a snapshot.
    began_at: u64,
    hint: usize,
}

/// A snapshot, as far as a follower looks at it.
#[derive(Deserialize)]
struct Snapshot<'a> {
    epoch: Epoch,
    seq: Seq,
    #[serde(borrow)]
    messages: Vec<Message<'a>>,
}

#[derive(Deserialize)]
struct Message<'a> {
    #[serde(borrow)]
    message: Cow<'a, str>,
    #[serde(borrow)]
    role: Cow<'a, str>,
    #[serde(borrow)]
    status: Cow<'a, str>,
    #[serde(borrow)]
    parts: Vec<Part<'a>>,
}

#[derive(Deserialize)]
struct Part<'a> {
    #[serde(borrow)]
    value: Cow<'a, str>,
}

#[derive(Deserialize)]
struct Entry<'a> {
    #[serde(rename = "type", borrow)]
    kind: Cow<'a, str>,
    #[serde(borrow, default)]
    message: Option<Cow<'a, str>>,
    offset: Option<u64>,
    #[serde(borrow, default)]
    text: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    outcome: Option<Cow<'a, str>>,
}

impl Track {
    /// Before the first entry.
    pub fn new(script: Arc<Script>) -> Track {
        let next_end = script.byte_of(1);
        Track {
            script,
            epoch: Epoch(0),
            seq: Seq::ZERO,
            tokens: 0,
            next_end,
            position: 0,
            hash: HASH_OF_NOTHING,
            message: (0, 0),
            is_over: false,
            began_at: 0,
            hint: 0,
        }
    }

    /// The node has said which epoch it follows.
    pub fn attached(&mut self, epoch: Epoch) {
        if self.seq == Seq::ZERO {
            self.epoch = epoch;
        }
    }

    /// Where to resume; none before the first entry.
    pub fn cursor(&self) -> Option<Cursor> {
        (self.seq > Seq::ZERO).then_some(Cursor { epoch: self.epoch, seq: self.seq })
    }

    /// Tokens that have arrived.
    pub fn tokens(&self) -> u64 {
        self.tokens
    }

    /// Bytes of the text up to where it stands, and before what it began with.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// See [`Track::position`].
    pub fn began_at(&self) -> u64 {
        self.began_at
    }

    /// A hash of the text that has arrived.
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// The run has ended, and everything is there.
    pub fn is_over(&self) -> bool {
        self.is_over
    }

    /// What it follows.
    pub fn script(&self) -> &Arc<Script> {
        &self.script
    }

    /// Applies the rest of an `entries` frame after its attachment; which tokens it has completed.
    pub fn take(&mut self, frame: &[u8], rest: &[u8]) -> Result<Range<u64>, Fault> {
        let before = self.tokens;
        let mut hint = self.hint;
        match plain_append(rest, &mut hint) {
            Some(plain) => {
                self.hint = hint;
                self.take_plain(&plain)?;
            }
            None => self.take_any(frame)?,
        }
        while self.position >= self.next_end && self.tokens < self.script.tokens {
            self.tokens += 1;
            self.next_end = self.script.byte_of(self.tokens + 1);
        }
        Ok(before..self.tokens)
    }

    /// Begins with a snapshot of the last messages, each of which must be what was sent.
    pub fn snapshot(&mut self, frame: &[u8]) -> Result<(), Fault> {
        let snapshot: Snapshot<'_> =
            serde_json::from_slice(frame).map_err(|error| Fault::Broken(error.to_string()))?;
        if self.seq > Seq::ZERO {
            return Err(Fault::Doubled("a snapshot in the middle".to_owned()));
        }
        (self.epoch, self.seq) = (snapshot.epoch, snapshot.seq);
        let mut is_first = true;
        let mut is_open = false;
        for message in snapshot.messages.iter().filter(|message| message.role == "assistant") {
            let number = message.message.strip_prefix('m').and_then(|number| number.parse().ok());
            let number: u64 =
                number.ok_or_else(|| Fault::Changed(format!("a message {}", message.message)))?;
            let begin = self.script.message_at(number);
            if is_first {
                (self.began_at, self.position, is_first) = (begin, begin, false);
            }
            if begin != self.position {
                return Err(Fault::Lost(format!("message {number} follows byte {}", self.position)));
            }
            let text = message.parts.first().map_or("", |part| &*part.value);
            self.script
                .check(begin, text.as_bytes())
                .map_err(|byte| Fault::Changed(format!("in a snapshot, at byte {byte}")))?;
            self.position += text.len() as u64;
            is_open = message.status == "streaming";
        }
        while self.script.byte_of(self.tokens + 1) <= self.position && self.tokens < self.script.tokens {
            self.tokens += 1;
        }
        self.next_end = self.script.byte_of(self.tokens + 1);
        self.is_over = !is_open && self.position == self.script.bytes();
        Ok(())
    }

    /// Whether a frame continues what is here.
    fn fits(&self, epoch: Epoch, since: Seq, from: Seq, to: Seq) -> Result<(), Fault> {
        let place = || format!("frame {from}..{to} of epoch {epoch} at {} of {}", self.seq, self.epoch);
        if epoch != self.epoch && since <= self.seq {
            return Err(Fault::Broken(format!("not this log's: {}", place())));
        }
        // A single attachment has no reason to get anything twice.
        if to <= self.seq || to < from {
            return Err(Fault::Doubled(place()));
        }
        if from > self.seq.next() {
            return Err(Fault::Lost(place()));
        }
        if self.is_over {
            return Err(Fault::Changed(format!("after the end of the run: {}", place())));
        }
        Ok(())
    }

    fn take_plain(&mut self, plain: &PlainAppend<'_>) -> Result<(), Fault> {
        let epoch = plain.epoch.iter().fold(0_u64, |epoch, digit| {
            epoch.wrapping_mul(10).wrapping_add(u64::from(digit.wrapping_sub(b'0')))
        });
        let (epoch, seq) = (Epoch(epoch), Seq(plain.seq));
        self.fits(epoch, Seq(plain.since), seq, seq)?;
        self.append(plain.message, plain.offset, plain.text)?;
        (self.epoch, self.seq) = (epoch, seq);
        Ok(())
    }

    fn take_any(&mut self, frame: &[u8]) -> Result<(), Fault> {
        let frame = Entries::decode(frame).map_err(|fault| Fault::Broken(fault.to_string()))?;
        self.fits(frame.epoch, frame.since, frame.from, frame.to)?;
        let is_plain =
            frame.blocks.len() == 1 && frame.blocks[0].from.is_none() && frame.blocks[0].spans.is_none();
        for block in &frame.blocks {
            let count = self.take_block(block, frame.from)?;
            let covers = frame.to.0 - frame.from.0 + 1;
            if is_plain && count != covers {
                let range = format!("{}..{}", frame.from, frame.to);
                return Err(Fault::Lost(format!("frame {range} has {count} entries")));
            }
        }
        (self.epoch, self.seq) = (frame.epoch, frame.to);
        Ok(())
    }

    fn take_block(&mut self, block: &Block<'_>, from: Seq) -> Result<u64, Fault> {
        let broken = |why: &dyn std::fmt::Display| Fault::Broken(why.to_string());
        let entries: Vec<Entry<'_>> =
            serde_json::from_str(block.entries.get()).map_err(|error| broken(&error))?;
        let mut seq = block.from.unwrap_or(from);
        for (index, entry) in entries.iter().enumerate() {
            let last = block.spans.as_ref().and_then(|spans| spans.get(index)).map_or(seq, |span| span.1);
            seq = seq.next();
            if last <= self.seq {
                continue;
            }
            match entry.kind.as_ref() {
                "part.append" => {
                    let message = entry.message.as_deref().and_then(|name| name.strip_prefix('m'));
                    let message = message.and_then(|number| number.parse().ok());
                    match (message, entry.offset, entry.text.as_deref()) {
                        (Some(message), Some(offset), Some(text)) => {
                            self.append(message, offset, text.as_bytes())?;
                        }
                        _ => return Err(broken(&"an append without message, offset or text")),
                    }
                }
                "part.set" | "run.returned" => {
                    return Err(Fault::Changed(format!("nobody wrote a {}", entry.kind)));
                }
                "run.ended" => self.end(entry.outcome.as_deref())?,
                _ => {}
            }
        }
        Ok(entries.len() as u64)
    }

    fn end(&mut self, outcome: Option<&str>) -> Result<(), Fault> {
        if outcome != Some("completed") {
            return Err(Fault::Changed(format!("the run ended as {outcome:?}")));
        }
        if self.position != self.script.bytes() {
            let (have, of) = (self.position, self.script.bytes());
            return Err(Fault::Lost(format!("the run ended after {have} of {of} bytes")));
        }
        self.is_over = true;
        Ok(())
    }

    /// Appends what is new of `text`, which must be what the script says.
    fn append(&mut self, message: u64, offset: u64, text: &[u8]) -> Result<(), Fault> {
        if self.message.0 != message {
            self.message = (message, self.script.message_at(message));
        }
        let at = self.message.1 + offset;
        if at > self.position {
            let have = self.position;
            return Err(Fault::Lost(format!("text for byte {at} when {have} bytes are there")));
        }
        let known = crate::corpus::index(self.position - at);
        // An append that was partly there before may come again; one that brings nothing was not asked for.
        let Some(new) = text.get(known..).filter(|new| !new.is_empty()) else {
            return Err(Fault::Doubled(format!("text for byte {at} again")));
        };
        self.script
            .check(self.position, new)
            .map_err(|byte| Fault::Changed(format!("the text differs from what was sent, at byte {byte}")))?;
        self.hash = hash_on(self.hash, new);
        self.position += new.len() as u64;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::corpus::tests::script;
    use crate::wire::entries;

    /// Frames of a run that writes its script in blocks of `size` tokens.
    fn frames(script: &Script, size: u64) -> Vec<String> {
        let (mut token, mut seq, mut all) = (0, 1, Vec::new());
        while token < script.tokens {
            let to = (token + size).min(script.block_end(token));
            let mut out = Vec::new();
            script.write_block(&mut out, token, to);
            let text = String::from_utf8(out).unwrap();
            let count = serde_json::from_str::<Vec<serde_json::Value>>(&text).unwrap().len() as u64;
            all.push(frame(seq, seq + count - 1, &text));
            seq += count;
            token = to;
        }
        all.push(frame(seq, seq, r#"[{"type":"run.ended","run":"r","outcome":"completed"}]"#));
        all
    }

    fn frame(from: u64, to: u64, entries: &str) -> String {
        format!(
            r#"{{"t":"entries","attachment":1,"epoch":"5","since":1,"from":{from},"to":{to},"blocks":[{{"by":{{"kind":"agent","id":"a"}},"at":1,"run":"r","entries":{entries}}}]}}"#
        )
    }

    fn take(track: &mut Track, frame: &str) -> Result<Range<u64>, Fault> {
        let (_, rest) = entries(frame.as_bytes()).unwrap();
        track.take(frame.as_bytes(), rest)
    }

    #[test]
    fn what_was_sent_is_accepted_and_every_token_counts_once() {
        for size in [1, 3] {
            let script = script(1_000);
            let mut track = Track::new(script.clone());
            let mut next = 0;
            for frame in frames(&script, size) {
                let tokens = take(&mut track, &frame).unwrap();
                assert_eq!(tokens.start, next);
                next = tokens.end;
            }
            assert!(track.is_over() && next == 1_000);
            assert_eq!(track.hash(), script.hash(HASH_OF_NOTHING, 0, 1_000));
        }
    }

    #[test]
    fn a_planted_loss_is_found_wherever_it_is_and_so_is_a_repeat_an_exchange_and_a_change() {
        let script = script(300);
        let all = frames(&script, 1);
        for at in [1, 57, 100, 298] {
            for plant in ["lost", "doubled", "exchanged", "changed"] {
                let mut planted = all.clone();
                match plant {
                    "lost" => drop(planted.remove(at)),
                    "doubled" => planted.insert(at, all[at - 1].clone()),
                    "exchanged" => planted.swap(at, at + 1),
                    _ => planted[at] = planted[at].replacen(r#""text":""#, r#""text":"!"#, 1),
                }
                let mut track = Track::new(script.clone());
                let result: Result<Vec<_>, _> = planted.iter().map(|frame| take(&mut track, frame)).collect();
                match (plant, result.unwrap_err()) {
                    ("lost" | "exchanged", Fault::Lost(_))
                    | ("doubled", Fault::Doubled(_))
                    | ("changed", Fault::Changed(_)) => {}
                    (plant, other) => panic!("{plant} at {at} was found as {other:?}"),
                }
            }
        }
    }

    #[test]
    fn a_loss_whose_seqs_were_closed_up_is_found_by_the_text() {
        let script = script(50);
        let mut track = Track::new(script.clone());
        let mut seq = 0;
        let renumbered = frames(&script, 1).into_iter().enumerate().filter(|(at, _)| *at != 20);
        let result: Result<Vec<_>, _> = renumbered
            .map(|(_, frame)| {
                let mut value: serde_json::Value = serde_json::from_str(&frame).unwrap();
                let count = value["blocks"][0]["entries"].as_array().unwrap().len() as u64;
                (value["from"], value["to"]) = ((seq + 1).into(), (seq + count).into());
                seq += count;
                take(&mut track, &rewritten(&value))
            })
            .collect();
        assert!(matches!(result, Err(Fault::Lost(_))), "{result:?}");
    }

    /// With the fields that the reader looks for in their places.
    fn rewritten(value: &serde_json::Value) -> String {
        let (from, to) = (value["from"].as_u64().unwrap(), value["to"].as_u64().unwrap());
        frame(from, to, &value["blocks"][0]["entries"].to_string())
    }

    #[test]
    fn a_snapshot_is_checked_too_and_what_follows_continues_it() {
        let script = script(250);
        let text = |from: u64, to: u64| {
            let all: String = frames(&script, 1)[..]
                .iter()
                .flat_map(|frame| {
                    let value: serde_json::Value = serde_json::from_str(frame).unwrap();
                    let texts = value["blocks"][0]["entries"].as_array().unwrap().clone();
                    texts.into_iter().filter_map(|entry| entry["text"].as_str().map(str::to_owned))
                })
                .collect();
            let at = |token| usize::try_from(script.byte_of(token)).unwrap();
            all[at(from)..at(to)].to_owned()
        };
        let message = |number: u64, to: u64, status: &str| {
            let value = text(number * 100, to);
            serde_json::json!({"message": format!("m{number}"), "role": "assistant", "status": status,
                "parts": [{"part": "p", "kind": "text", "status": "open", "value": value}]})
        };
        // 99 appends and four more of the first two messages' blocks, and so on: what counts is that it goes on from there.
        let snapshot = |messages: Vec<serde_json::Value>| {
            serde_json::json!({"t": "snapshot", "attachment": 1, "epoch": "5", "seq": 40, "since": 1, "messages": messages})
                .to_string()
        };
        let mut track = Track::new(script.clone());
        let good = snapshot(vec![message(1, 200, "complete"), message(2, 210, "streaming")]);
        track.snapshot(good.as_bytes()).unwrap();
        assert_eq!((track.tokens(), track.is_over()), (210, false));
        let mut out = Vec::new();
        script.write_block(&mut out, 210, 212);
        assert_eq!(take(&mut track, &frame(41, 41, std::str::from_utf8(&out).unwrap())), Ok(210..212));

        let holed = snapshot(vec![message(0, 100, "complete"), message(2, 210, "streaming")]);
        assert!(matches!(Track::new(script.clone()).snapshot(holed.as_bytes()), Err(Fault::Lost(_))));
        let other = good.replacen("the", "thy", 1);
        assert!(matches!(Track::new(script.clone()).snapshot(other.as_bytes()), Err(Fault::Changed(_))));
    }

    #[test]
    fn a_folded_frame_that_overlaps_is_applied_from_where_the_follower_stands() {
        let script = script(40);
        let all = frames(&script, 1);
        let mut track = Track::new(script.clone());
        all[..10].iter().for_each(|frame| assert!(take(&mut track, frame).is_ok()));
        let text: String = (0..40)
            .map(|token| {
                let mut out = Vec::new();
                script.write_block(&mut out, token, token + 1);
                let entries: Vec<serde_json::Value> = serde_json::from_slice(&out).unwrap();
                let of = |entry: &serde_json::Value| entry["text"].as_str().map(str::to_owned);
                entries.iter().find_map(of).unwrap()
            })
            .collect();
        let text = serde_json::Value::from(text);
        // message.start, part.start, 40 appends, part.end, message.end
        let folded = format!(
            r#"{{"t":"entries","attachment":1,"epoch":"5","since":1,"from":1,"to":44,"blocks":[{{"from":1,"by":{{}},"at":1,"run":"r","spans":[[1,1],[2,2],[3,42],[43,43],[44,44]],"entries":[{{"type":"message.start","message":"m0","role":"assistant"}},{{"type":"part.start","message":"m0","part":"p","kind":"text"}},{{"type":"part.append","message":"m0","part":"p","offset":0,"text":{text}}},{{"type":"part.end","message":"m0","part":"p","status":"done"}},{{"type":"message.end","message":"m0","status":"complete"}}]}}]}}"#
        );
        assert_eq!(take(&mut track, &folded), Ok(10..40));
        assert_eq!(track.cursor().unwrap().seq, Seq(44));
        assert!(matches!(take(&mut track, &folded), Err(Fault::Doubled(_))));
    }
}
