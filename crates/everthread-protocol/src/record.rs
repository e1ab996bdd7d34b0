//! Records: what one stream entry of the store holds, and the shared part of the frame that delivers it.
//!
//! Stored form of a block: `["<epoch>",from,at,by,run|null,entries]`. Stored form of a folded series:
//! `["<epoch>",from,[block,…]]`. In both the number of the last entry, `to`, is the id of the stream entry. The bytes of
//! `by` and `entries` are copied between store and socket, never re-encoded. The author of a stored block that is traced
//! carries the trace besides; in a frame it stands beside the author ([`crate::trace`]), and a fold forgets it.

use crate::id::{DeviceId, RunId, SubjectId};
use crate::plain::{Plain, push_number};
use crate::position::{Epoch, Millis, Seq};
use crate::trace;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use std::io;

/// Who wrote a block; stamped by the server from the token.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Author {
    /// In which role.
    pub kind: AuthorKind,
    /// Which one.
    pub id: SubjectId,
    /// From which device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<DeviceId>,
}

/// The role in which somebody writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AuthorKind {
    /// A person or the program that acts for one.
    User,
    /// A worker, under its run's agent name.
    Agent,
    /// A person of the operating side.
    Operator,
    /// A backend, or Everthread itself.
    System,
}

/// What one writer wrote in one atomic step, or a stretch of it after a fold. As it stands in frames.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Block<'a> {
    /// After a fold: seq of the first entry. Else it is the frame's or record's `from`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<Seq>,
    /// Who wrote it, as JSON.
    #[serde(borrow)]
    pub by: &'a RawValue,
    /// When the store took it.
    pub at: Millis,
    /// The run whose worker wrote it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<RunId>,
    /// After a fold, where an entry stands for several: `[first,last]` per entry. Else entries count up from `from`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spans: Option<Vec<(Seq, Seq)>>,
    /// The entry array as its writer sent it.
    #[serde(borrow)]
    pub entries: &'a RawValue,
}

/// Why stored or received bytes are not a record. For stored ones a broken invariant: the store wrote them.
#[derive(Debug, thiserror::Error)]
#[error("not a record: {0}")]
pub struct InvalidRecord(#[from] serde_json::Error);

/// One block or folded series with its positions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Incarnation of the log it was written in.
    pub epoch: Epoch,
    /// Seq of its first entry.
    pub from: Seq,
    /// Seq of its last entry.
    pub to: Seq,
    /// The `blocks` array as it stands in a frame.
    pub blocks: Bytes,
}

impl Record {
    /// Reads the stored form; `to` is the id of the stream entry.
    pub fn from_stored(stored: &[u8], to: Seq) -> Result<Record, InvalidRecord> {
        if let Some(record) = Record::from_plain(stored, to) {
            return Ok(record);
        }
        let raw: StoredRaw<'_> = serde_json::from_slice(stored)?;
        let (epoch, from, blocks) = match raw {
            StoredRaw::Block(epoch, from, at, by, run, entries) => {
                let run = Some(run.get().as_bytes()).filter(|run| *run != b"null");
                (epoch, from, block(by.get().as_bytes(), at, run, entries.get().as_bytes()))
            }
            StoredRaw::Folded(epoch, from, all) => (epoch, from, all.get().as_bytes().to_vec()),
        };
        Ok(Record { epoch, from, to, blocks: blocks.into() })
    }

    /// A stored block, as the store's scripts write it: a node does this for every record that it is told of.
    fn from_plain(stored: &[u8], to: Seq) -> Option<Record> {
        std::str::from_utf8(stored).ok()?;
        let mut plain = Plain::new(stored);
        plain.eat(b"[\"")?;
        let epoch = Epoch(plain.number()?);
        plain.eat(b"\",")?;
        let from = Seq(plain.number()?);
        plain.eat(b",")?;
        let at = Millis(plain.number()?);
        plain.eat(b",")?;
        let by = plain.nested()?;
        plain.eat(b",")?;
        let run = match plain.eat(b"null,") {
            Some(()) => None,
            None => {
                let before = plain.rest();
                plain.eat(b"\"")?;
                let run = plain.string()?;
                plain.eat(b",")?;
                // With its quotes.
                Some(&before[..run.len() + 2])
            }
        };
        let entries = plain.nested()?;
        plain.eat(b"]")?;
        let is_block = by.starts_with(b"{") && entries.starts_with(b"[") && plain.rest().is_empty();
        is_block.then(|| Record { epoch, from, to, blocks: block(by, at, run, entries).into() })
    }

    /// The stored form of a folded series.
    pub fn to_stored_folded(&self) -> Vec<u8> {
        let mut out = format!("[\"{}\",{},", self.epoch, self.from).into_bytes();
        out.extend_from_slice(&self.blocks);
        out.push(b']');
        out
    }

    /// The blocks, read.
    pub fn parse_blocks(&self) -> Result<Vec<Block<'_>>, InvalidRecord> {
        Ok(serde_json::from_slice(&self.blocks)?)
    }

    /// The part of an `entries` frame that is the same for every follower: all after the attachment's number. `since` is
    /// the first seq of the record's epoch.
    pub fn frame_suffix(&self, since: Seq) -> Bytes {
        let mut out = Vec::with_capacity(self.blocks.len() + 128);
        let numbers: [(&[u8], u64); 4] = [
            (b",\"epoch\":\"", self.epoch.0),
            (b"\",\"since\":", since.0),
            (b",\"from\":", self.from.0),
            (b",\"to\":", self.to.0),
        ];
        for (name, number) in numbers {
            out.extend_from_slice(name);
            push_number(&mut out, number);
        }
        out.extend_from_slice(b",\"blocks\":");
        out.extend_from_slice(&self.blocks);
        out.push(b'}');
        out.into()
    }
}

/// One block as it stands in a frame, in its list. `run` has its quotes.
fn block(by: &[u8], at: Millis, run: Option<&[u8]>, entries: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(by.len() + run.map_or(0, <[u8]>::len) + entries.len() + 64);
    let (by, trace) = trace::split(by);
    out.extend_from_slice(b"[{\"by\":");
    out.extend_from_slice(by);
    if let Some(trace) = trace {
        out.push(b'}');
        out.extend_from_slice(trace::NAME);
        out.extend_from_slice(trace);
        out.push(b'"');
    }
    out.extend_from_slice(b",\"at\":");
    push_number(&mut out, at.0);
    if let Some(run) = run {
        out.extend_from_slice(b",\"run\":");
        out.extend_from_slice(run);
    }
    out.extend_from_slice(b",\"entries\":");
    out.extend_from_slice(entries);
    out.extend_from_slice(b"}]");
    out
}

/// The stored form of a block without the three numbers that only the store knows: what comes after them.
///
/// The store writes `["<epoch>",<from>,<at>` before it, in the same atomic step in which it picks them.
pub fn stored_tail(by: &str, run: Option<&RunId>, entries: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(stored_tail_len(by, run, entries));
    // Writing to a Vec cannot fail.
    drop(write_stored_tail(&mut out, by, run, entries));
    out
}

/// Bytes of [`stored_tail`].
pub fn stored_tail_len(by: &str, run: Option<&RunId>, entries: &str) -> usize {
    // Three commas, a bracket, and the quotes of the run.
    by.len() + run.map_or(4, |run| run.as_str().len() + 2) + entries.len() + 4
}

/// Writes [`stored_tail`] straight to where it is needed.
pub fn write_stored_tail(
    out: &mut impl io::Write,
    by: &str,
    run: Option<&RunId>,
    entries: &str,
) -> io::Result<()> {
    out.write_all(b",")?;
    out.write_all(by.as_bytes())?;
    match run {
        Some(run) => {
            out.write_all(b",\"")?;
            out.write_all(run.as_str().as_bytes())?;
            out.write_all(b"\",")?;
        }
        None => out.write_all(b",null,")?,
    }
    out.write_all(entries.as_bytes())?;
    out.write_all(b"]")
}

enum StoredRaw<'a> {
    Block(Epoch, Seq, Millis, &'a RawValue, &'a RawValue, &'a RawValue),
    Folded(Epoch, Seq, &'a RawValue),
}

impl<'de> Deserialize<'de> for StoredRaw<'de> {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = StoredRaw<'de>;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("[epoch,from,at,by,run,entries] or [epoch,from,blocks]")
            }

            fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
                let short = |n| serde::de::Error::invalid_length(n, &Visitor);
                let epoch = seq.next_element()?.ok_or_else(|| short(0))?;
                let from = seq.next_element()?.ok_or_else(|| short(1))?;
                let third: &'de RawValue = seq.next_element()?.ok_or_else(|| short(2))?;
                let Some(by) = seq.next_element()? else {
                    return Ok(StoredRaw::Folded(epoch, from, third));
                };
                let at = serde_json::from_str(third.get()).map_err(serde::de::Error::custom)?;
                let run = seq.next_element()?.ok_or_else(|| short(4))?;
                let entries = seq.next_element()?.ok_or_else(|| short(5))?;
                Ok(StoredRaw::Block(epoch, from, at, by, run, entries))
            }
        }
        d.deserialize_seq(Visitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn stored(tail: &[u8]) -> Vec<u8> {
        [br#"["17",5,1700"#.as_slice(), tail].concat()
    }

    #[test]
    fn the_short_way_reads_what_the_general_one_does_and_leaves_it_all_else() {
        let by = r#"{"kind":"agent","id":"guide"}"#;
        let entries = r#"[{"type":"x-a","v":"]}\\\"[","w":[1.50,{}]}]"#;
        for run in [None, Some("r1".parse().unwrap())] {
            let plain = stored(&stored_tail(by, run.as_ref(), entries));
            let record = Record::from_plain(&plain, Seq(5)).unwrap();
            // A space makes it something that we do not write.
            let spaced = [b" ".as_slice(), &plain].concat();
            assert!(Record::from_plain(&spaced, Seq(5)).is_none());
            assert_eq!(Record::from_stored(&spaced, Seq(5)).unwrap(), record);
        }
        let whole = stored(&stored_tail(by, None, entries));
        for cut in 0..whole.len() {
            assert!(Record::from_plain(&whole[..cut], Seq(5)).is_none(), "{cut}");
        }
        assert!(Record::from_plain(&[&whole[..], b"]"].concat(), Seq(5)).is_none());
        assert!(Record::from_plain(br#"["17",5,[{"from":5}]]"#, Seq(5)).is_none(), "folded");
        assert!(Record::from_plain(b"[\"17\",5,1,{},null,[\"\xff\"]]", Seq(5)).is_none(), "not UTF-8");
    }

    #[test]
    fn a_stored_block_becomes_a_frame_with_its_entries_verbatim() {
        let entries = r#"[{"type":"x-a", "v" : 1.50}]"#;
        let tail = stored_tail(r#"{"kind":"agent","id":"guide"}"#, Some(&"r1".parse().unwrap()), entries);
        assert_eq!(text(&tail), format!(r#",{{"kind":"agent","id":"guide"}},"r1",{entries}]"#));
        assert_eq!(
            tail.len(),
            stored_tail_len(r#"{"kind":"agent","id":"guide"}"#, Some(&"r1".parse().unwrap()), entries)
        );
        assert_eq!(stored_tail("1", None, "[]").len(), stored_tail_len("1", None, "[]"));
        let record = Record::from_stored(&stored(&tail), Seq(5)).unwrap();
        assert_eq!((record.epoch, record.from, record.to), (Epoch(17), Seq(5), Seq(5)));
        let blocks = record.parse_blocks().unwrap();
        assert_eq!(blocks[0].entries.get(), entries);
        assert_eq!(blocks[0].run.as_ref().unwrap().as_str(), "r1");
        assert_eq!(blocks[0].at, Millis(1700));
        let frame = format!("{{\"t\":\"entries\",\"attachment\":1{}", text(&record.frame_suffix(Seq(1))));
        let frame: serde_json::Value = serde_json::from_str(&frame).unwrap();
        assert_eq!(frame["epoch"], "17");
        assert_eq!(frame["since"], 1);
    }

    #[test]
    fn the_trace_of_a_block_stands_beside_its_author() {
        let by = r#"{"kind":"agent","id":"guide"}"#;
        let context: trace::TraceContext =
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".parse().unwrap();
        let run = Some("r1".parse().unwrap());
        let tail = stored_tail(&trace::stamped(by, &context), run.as_ref(), r#"[{"type":"x-a"}]"#);
        let record = Record::from_stored(&stored(&tail), Seq(5)).unwrap();
        // The general way finds the same.
        assert_eq!(Record::from_stored(&[b" ".as_slice(), &stored(&tail)].concat(), Seq(5)).unwrap(), record);
        let json: serde_json::Value = serde_json::from_slice(&record.blocks).unwrap();
        assert_eq!(json[0]["by"], serde_json::from_str::<serde_json::Value>(by).unwrap());
        assert_eq!(json[0]["trace"], context.to_string());
        assert_eq!(record.parse_blocks().unwrap()[0].by.get(), by, "a reader need not know of it");
        assert_eq!(trace::of_frame(&record.frame_suffix(Seq(1))), Some(context));
        // What its writer says is not taken for one.
        let said = format!(r#"[{{"type":"x-a","trace":"{context}"}}]"#);
        let tail = stored_tail(by, run.as_ref(), &said);
        let record = Record::from_stored(&stored(&tail), Seq(5)).unwrap();
        assert_eq!(trace::of_frame(&record.frame_suffix(Seq(1))), None);
    }

    #[test]
    fn a_folded_series_survives_the_store() {
        let blocks = r#"[{"from":1,"by":{"kind":"system","id":"x"},"at":3,"spans":[[1,9]],"entries":[{"type":"x-a"}]}]"#;
        let record = Record {
            epoch: Epoch(2),
            from: Seq(1),
            to: Seq(9),
            blocks: Bytes::from_static(blocks.as_bytes()),
        };
        let again = Record::from_stored(&record.to_stored_folded(), Seq(9)).unwrap();
        assert_eq!(again, record);
        assert_eq!(again.parse_blocks().unwrap()[0].spans, Some(vec![(Seq(1), Seq(9))]));
    }

    #[test]
    fn bytes_that_are_no_record_are_an_error() {
        for bad in ["", "[]", "[1]", "{}", r#"["1",1]"#, r#"["1",1,2,{}]"#, r#"["x",1,2,{},null,[]]"#] {
            assert!(Record::from_stored(bad.as_bytes(), Seq(1)).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_record_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..120)) {
            drop(Record::from_stored(&bytes, Seq(1)));
        }

        #[test]
        fn a_damaged_record_is_a_record_or_an_error(at: prop::sample::Index, byte: u8) {
            let tail = stored_tail(r#"{"kind":"user","id":"ann"}"#, None, r#"[{"type":"x-a","v":[1,"é"]}]"#);
            let mut bytes = stored(&tail);
            let at = at.index(bytes.len());
            bytes[at] = byte;
            if let Ok(record) = Record::from_stored(&bytes, Seq(5)) {
                drop(record.parse_blocks());
            }
        }
    }

    fn text(bytes: &[u8]) -> &str {
        std::str::from_utf8(bytes).unwrap()
    }
}
