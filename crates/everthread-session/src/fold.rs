//! The fold: merges the token appends of each part and leaves everything else in order.
//!
//! It serves compaction of the log, catch-up of late joiners and conflation for slow clients. Every entry keeps its seq;
//! a merged append stands where its first one stood and keeps first and last seq.
//!
//! **Invariant:** [`crate::view::View`] after the folded records equals the view after the raw ones, for every cut of the
//! range and from every cursor, also one inside a merged append.

use everthread_protocol::entry::{EXTENSION_PREFIX, Keep, Phase};
use everthread_protocol::limits::FOLDED_TEXT_BYTES_MAX;
use everthread_protocol::record::InvalidRecord;
use everthread_protocol::{Block, Entry, Epoch, MessageId, Millis, PartId, Record, RunId, Seq};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::collections::HashMap;
use std::io::Write as _;

/// Bytes of blocks in one folded record, where its input can be cut so.
pub const FOLDED_RECORD_BYTES: usize = 64 * 1024;

/// How far a fold goes.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// About how many bytes of blocks one output record has. Input records are never split.
    pub record_bytes: usize,
    /// How many bytes of text one merged append has at most.
    pub text_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { record_bytes: FOLDED_RECORD_BYTES, text_bytes: FOLDED_TEXT_BYTES_MAX }
    }
}

/// Why records cannot be folded.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The bytes of one are not a record.
    #[error(transparent)]
    Invalid(#[from] InvalidRecord),
    /// They do not follow each other.
    #[error("a record that begins at {from} does not follow {to}")]
    NotContiguous {
        /// Where the one before ends.
        to: Seq,
        /// Where the next begins.
        from: Seq,
    },
}

/// Folds what of contiguous records lies past the seam, up to which the store has folded them for good: those stay as they
/// are. So they may all be kept as folded.
pub fn fold_past(records: &[Record], folded_to: Seq, limits: Limits) -> Result<Vec<Record>, Error> {
    let seam = records.partition_point(|record| record.to <= folded_to);
    let mut out = records[..seam].to_vec();
    out.extend(fold(&records[seam..], limits)?);
    Ok(out)
}

/// Folds contiguous records, raw or folded, into records that together cover the same range.
///
/// No output record spans two epochs. A cut lies only between input records, so no merged append ever spans one.
pub fn fold(records: &[Record], limits: Limits) -> Result<Vec<Record>, Error> {
    let mut out = Vec::new();
    let mut piece: Option<Piece<'_>> = None;
    for record in records {
        if let Some(before) = piece.take_if(|piece| !piece.takes(record, limits)) {
            out.push(before.finish());
        }
        let last = piece.as_ref().map(|piece| piece.to).or(out.last().map(|record| record.to));
        if let Some(to) = last.filter(|to| to.next() != record.from) {
            return Err(Error::NotContiguous { to, from: record.from });
        }
        piece.get_or_insert_with(|| Piece::new(record)).add(record, limits)?;
    }
    out.extend(piece.map(Piece::finish));
    Ok(out)
}

/// The entries of a block with first and last seq; `from` is that of its record.
pub fn numbered<'a>(block: &Block<'a>, from: Seq) -> Result<Vec<(Seq, Seq, &'a RawValue)>, InvalidRecord> {
    let entries: Vec<&'a RawValue> = serde_json::from_str(block.entries.get())?;
    if let Some(spans) = &block.spans {
        if spans.len() != entries.len() {
            return Err(<serde_json::Error as serde::de::Error>::custom(
                "spans and entries differ in number",
            )
            .into());
        }
        return Ok(spans.iter().zip(entries).map(|((first, last), raw)| (*first, *last, raw)).collect());
    }
    let first = block.from.unwrap_or(from).0;
    Ok((first..).map(Seq).zip(entries).map(|(seq, raw)| (seq, seq, raw)).collect())
}

/// What the entries of one output block have in common.
#[derive(Debug, Clone, PartialEq)]
struct Writer<'a> {
    by: &'a str,
    at: Millis,
    run: Option<RunId>,
}

/// One entry of the output.
struct Item<'a> {
    first: Seq,
    last: Seq,
    writer: Writer<'a>,
    body: Body<'a>,
}

enum Body<'a> {
    /// As it came.
    Verbatim(&'a str),
    /// An append, as it came unless others were merged into it.
    Append { raw: Option<&'a str>, append: Append },
    /// An event that a later one replaces.
    Dropped,
}

/// An append as it is written: this order of keys is part of the format.
#[derive(Serialize)]
struct Append {
    #[serde(rename = "type")]
    kind: &'static str,
    message: MessageId,
    part: PartId,
    offset: u64,
    text: String,
}

/// The last append of each part that more may be merged into, as a position in [`Piece::items`].
type Chains = HashMap<Option<RunId>, HashMap<MessageId, HashMap<PartId, usize>>>;

/// What becomes one output record.
struct Piece<'a> {
    epoch: Epoch,
    from: Seq,
    to: Seq,
    items: Vec<Item<'a>>,
    chains: Chains,
    /// Where the last event of each name and run is, of those that keep the latest.
    events: HashMap<(Option<RunId>, String), usize>,
    /// About how many bytes it has.
    bytes: usize,
}

/// About what a block costs besides its author and entries, and an entry besides its bytes.
const BLOCK_OVERHEAD_BYTES: usize = 80;
const ENTRY_OVERHEAD_BYTES: usize = 16;

impl<'a> Piece<'a> {
    fn new(record: &Record) -> Self {
        Self {
            epoch: record.epoch,
            from: record.from,
            to: record.to,
            items: Vec::new(),
            chains: HashMap::new(),
            events: HashMap::new(),
            bytes: 0,
        }
    }

    /// Whether the record may go into this piece.
    fn takes(&self, record: &Record, limits: Limits) -> bool {
        self.epoch == record.epoch && self.bytes + record.blocks.len() <= limits.record_bytes
    }

    fn add(&mut self, record: &'a Record, limits: Limits) -> Result<(), InvalidRecord> {
        for block in record.parse_blocks()? {
            let entries = numbered(&block, record.from)?;
            let writer = Writer { by: block.by.get(), at: block.at, run: block.run };
            for (first, last, raw) in entries {
                self.entry(&writer, (first, last), raw.get(), limits);
            }
        }
        self.to = record.to;
        Ok(())
    }

    fn entry(&mut self, writer: &Writer<'a>, span: (Seq, Seq), raw: &'a str, limits: Limits) {
        let run = &writer.run;
        let mut body = Body::Verbatim(raw);
        match read(raw) {
            Entry::PartAppend { message, part, offset, text } => {
                let append = Append { kind: "part.append", message, part, offset, text };
                if self.merge(writer, span.1, &append, limits) {
                    return;
                }
                let parts =
                    self.chains.entry(run.clone()).or_default().entry(append.message.clone()).or_default();
                parts.insert(append.part.clone(), self.items.len());
                body = Body::Append { raw: Some(raw), append };
            }
            Entry::PartStart { message, part, .. }
            | Entry::PartSet { message, part, .. }
            | Entry::PartEnd { message, part, .. } => {
                if let Some(parts) = self.chains.get_mut(run).and_then(|messages| messages.get_mut(&message))
                {
                    parts.remove(&part);
                }
            }
            Entry::MessageStart { message, .. } | Entry::MessageEnd { message, .. } => {
                if let Some(messages) = self.chains.get_mut(run) {
                    messages.remove(&message);
                }
            }
            Entry::RunStep { phase: Phase::Reset, .. } => drop(self.chains.remove(run)),
            // What one attempt at a run wrote stays apart from what the next one writes.
            Entry::RunEnded { run, .. }
            | Entry::RunReturned { run, .. }
            | Entry::RunSuspended { run, .. } => {
                drop(self.chains.remove(&Some(run)));
            }
            Entry::Event { name, keep: Keep::Latest, .. } => {
                if let Some(old) = self.events.insert((run.clone(), name), self.items.len()) {
                    self.items[old].body = Body::Dropped;
                }
            }
            // What a later release writes may touch any part: nothing moves past it.
            Entry::Other if !is_extension(raw) => self.chains.clear(),
            _ => {}
        }
        let same_block = self.items.last().is_some_and(|item| item.writer == *writer);
        self.bytes += raw.len() + ENTRY_OVERHEAD_BYTES;
        self.bytes += if same_block { 0 } else { BLOCK_OVERHEAD_BYTES + writer.by.len() };
        self.items.push(Item { first: span.0, last: span.1, writer: writer.clone(), body });
    }

    /// Merges an append into the one before it of the same part, if it goes on where that one ended.
    fn merge(&mut self, writer: &Writer<'a>, last: Seq, next: &Append, limits: Limits) -> bool {
        let chain =
            self.chains.get(&writer.run).and_then(|messages| messages.get(&next.message)?.get(&next.part));
        let Some(item) = chain.and_then(|at| self.items.get_mut(*at)) else { return false };
        let Body::Append { raw, append } = &mut item.body else { return false };
        let contiguous = append.offset.checked_add(append.text.len() as u64) == Some(next.offset);
        let fits = append.text.len() + next.text.len() <= limits.text_bytes;
        if !contiguous || !fits || item.writer.by != writer.by {
            return false;
        }
        append.text.push_str(&next.text);
        (*raw, item.last) = (None, last);
        self.bytes += next.text.len();
        true
    }

    fn finish(self) -> Record {
        let mut out = Vec::with_capacity(self.bytes + 2);
        let items: Vec<&Item<'_>> =
            self.items.iter().filter(|item| !matches!(item.body, Body::Dropped)).collect();
        out.push(b'[');
        for (at, block) in items.chunk_by(|a, b| a.writer == b.writer).enumerate() {
            out.extend_from_slice(if at == 0 { b"" } else { b"," });
            write_block(&mut out, block);
        }
        out.push(b']');
        Record { epoch: self.epoch, from: self.from, to: self.to, blocks: out.into() }
    }
}

/// Writes a block; `items` are not empty and of one writer. Writing to a Vec cannot fail.
fn write_block(out: &mut Vec<u8>, items: &[&Item<'_>]) {
    let Some(Item { first: from, writer, .. }) = items.first() else { return };
    drop(write!(out, "{{\"from\":{from},\"by\":{},\"at\":{}", writer.by, writer.at.0));
    if let Some(run) = &writer.run {
        drop(write!(out, ",\"run\":\"{run}\""));
    }
    let counts_up = (from.0..).zip(items).all(|(seq, item)| item.first.0 == seq && item.last.0 == seq);
    if !counts_up {
        for (at, item) in items.iter().enumerate() {
            drop(write!(out, "{}[{},{}]", if at == 0 { ",\"spans\":[" } else { "," }, item.first, item.last));
        }
        out.push(b']');
    }
    for (at, item) in items.iter().enumerate() {
        out.extend_from_slice(if at == 0 { b",\"entries\":[" } else { b"," });
        match &item.body {
            Body::Verbatim(raw) | Body::Append { raw: Some(raw), .. } => {
                out.extend_from_slice(raw.as_bytes())
            }
            // Plain fields with text keys always encode.
            Body::Append { raw: None, append } => drop(serde_json::to_writer(&mut *out, append)),
            Body::Dropped => {}
        }
    }
    out.extend_from_slice(b"]}");
}

/// [`Entry::read`], quicker where it is an append as servers and most workers write it: nearly all of a log is.
fn read(raw: &str) -> Entry {
    #[derive(Deserialize)]
    struct Plain {
        message: MessageId,
        part: PartId,
        offset: u64,
        text: String,
    }
    if raw.starts_with(r#"{"type":"part.append","#)
        && let Ok(Plain { message, part, offset, text }) = serde_json::from_str(raw)
    {
        return Entry::PartAppend { message, part, offset, text };
    }
    Entry::read(raw)
}

/// Whether the entry is of a type that belongs to an application, and so means nothing to a view.
fn is_extension(raw: &str) -> bool {
    #[derive(Deserialize)]
    struct Peek<'a> {
        #[serde(borrow, rename = "type")]
        kind: Cow<'a, str>,
    }
    serde_json::from_str::<Peek<'_>>(raw).is_ok_and(|peek| peek.kind.starts_with(EXTENSION_PREFIX))
}
