//! The form of an archived session: JSON Lines, compressed as gzip, so that `zcat` shows it.
//!
//! The first line says what it is ([`Head`]), a second one carries the base where a beginning was dropped, each further
//! one is a record with its blocks as they stood in the log, and the last one tells how many records there were and the
//! digest of all lines before it. [`Writer`] and [`Reader`] do no I/O and hold one page of it at a time.
//!
//! **Invariant:** a [`Reader`] that finishes has given out exactly what a [`Writer`] took; anything else is [`Broken`].

use everthread_protocol::{Epoch, Millis, Record, Seq};
use flate2::Compression;
use flate2::write::{GzDecoder, GzEncoder};
use ring::digest::{Context, SHA256};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use std::collections::VecDeque;
use std::io::Write as _;

/// The form that this release writes, and the highest that it reads.
pub const FORMAT: u32 = 1;
/// Bytes of one line. The longest is a record, a few hundred kilobytes, or the base.
const LINE_BYTES_MAX: usize = 64 * 1024 * 1024;
/// What is decompressed at once: at most a thousand times as much comes out.
const FEED_BYTES: usize = 8 * 1024;

/// What an archived session is, besides its records.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// The form of the rest.
    pub everthread: u32,
    /// Which session, as `tenant/session`.
    pub session: String,
    /// When it was archived.
    pub at: Millis,
    /// Known epochs with the first seq of each, oldest first.
    pub epochs: Vec<(Epoch, Seq)>,
    /// Seq of the last entry.
    pub head: Seq,
    /// Number of its version.
    pub changes: u64,
    /// The first seq that is there.
    pub floor: Seq,
    /// The core state, as stored.
    pub state: String,
}

/// Why bytes are not an archived session.
#[derive(Debug, thiserror::Error)]
pub enum Broken {
    /// They are not what was compressed.
    #[error("it cannot be decompressed: {0}")]
    Compressed(#[from] std::io::Error),
    /// A line is not what it should be.
    #[error("line {line} cannot be read: {error}")]
    Line {
        /// Which, from 1.
        line: u64,
        /// Why.
        error: serde_json::Error,
    },
    /// A newer release wrote it.
    #[error("it has form {0}, and this release reads {FORMAT}")]
    Newer(u32),
    /// It is another session than it should be.
    #[error("it is session {0}")]
    Other(String),
    /// Lines are missing, or too many, or changed.
    #[error("{0}")]
    Shape(&'static str),
}

#[derive(Serialize, Deserialize)]
struct BaseLine {
    base: String,
}

#[derive(Deserialize)]
struct RecordLine<'a> {
    epoch: Epoch,
    from: Seq,
    to: Seq,
    #[serde(borrow)]
    blocks: &'a RawValue,
}

#[derive(Serialize, Deserialize)]
struct EndLine {
    records: u64,
    sha256: String,
}

/// Writes one object.
pub struct Writer {
    out: GzEncoder<Vec<u8>>,
    digest: Context,
    records: u64,
}

impl Writer {
    /// Begins an object.
    pub fn new(head: &Head, base: Option<&str>) -> Result<Writer, Broken> {
        let out = GzEncoder::new(Vec::new(), Compression::default());
        let mut this = Writer { out, digest: Context::new(&SHA256), records: 0 };
        this.json(head)?;
        if let Some(base) = base {
            this.json(&BaseLine { base: base.to_owned() })?;
        }
        Ok(this)
    }

    /// Adds the record that follows.
    pub fn push(&mut self, record: &Record) -> Result<(), Broken> {
        let Record { epoch, from, to, blocks } = record;
        let mut line = format!(r#"{{"epoch":"{epoch}","from":{from},"to":{to},"blocks":"#).into_bytes();
        let start = line.len();
        line.extend_from_slice(blocks);
        // Within a text a line feed is escaped, so these are blanks between two tokens.
        line[start..].iter_mut().filter(|byte| **byte == b'\n').for_each(|byte| *byte = b' ');
        line.push(b'}');
        self.records += 1;
        self.line(line)
    }

    /// What has been compressed since this was last asked. More is held back until it pays.
    pub fn take(&mut self) -> Vec<u8> {
        std::mem::take(self.out.get_mut())
    }

    /// Ends the object: its last bytes.
    pub fn finish(mut self) -> Result<Vec<u8>, Broken> {
        let sha256 = hex(self.digest.clone().finish().as_ref());
        self.json(&EndLine { records: self.records, sha256 })?;
        Ok(self.out.finish()?)
    }

    fn json(&mut self, value: &impl Serialize) -> Result<(), Broken> {
        self.line(serde_json::to_vec(value).map_err(|error| Broken::Line { line: 0, error })?)
    }

    fn line(&mut self, mut line: Vec<u8>) -> Result<(), Broken> {
        line.push(b'\n');
        // What could not be read back must not be taken out of the store.
        if line.len() > LINE_BYTES_MAX {
            return Err(Broken::Shape("a line is too long"));
        }
        self.digest.update(&line);
        Ok(self.out.write_all(&line)?)
    }
}

/// Something that stands in an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Item {
    /// What it is. The first.
    Head(Box<Head>),
    /// What came before its floor.
    Base(String),
    /// A record.
    Record(Record),
}

/// Reads one object, whatever pieces it comes in.
pub struct Reader {
    unpacked: GzDecoder<Vec<u8>>,
    digest: Context,
    /// Bytes of what is unpacked that have no end of a line.
    looked: usize,
    /// Lines read so far.
    lines: u64,
    /// What the first line said: up to where, and the last epoch.
    head: Option<(Seq, Epoch)>,
    /// That of the last record. Those of old records may not be known any more: the table forgets.
    epoch: Epoch,
    records: u64,
    /// The seq that comes next.
    next: Seq,
    is_ended: bool,
    items: VecDeque<Item>,
}

impl Default for Reader {
    fn default() -> Self {
        Self {
            unpacked: GzDecoder::new(Vec::new()),
            digest: Context::new(&SHA256),
            looked: 0,
            lines: 0,
            head: None,
            epoch: Epoch::default(),
            records: 0,
            next: Seq::ZERO,
            is_ended: false,
            items: VecDeque::new(),
        }
    }
}

impl Reader {
    /// Takes the next piece of the object. What stands in it is then there for [`Reader::next_item`].
    pub fn feed(&mut self, piece: &[u8]) -> Result<(), Broken> {
        for piece in piece.chunks(FEED_BYTES) {
            self.unpacked.write_all(piece)?;
            self.unpacked.flush()?;
            self.split()?;
        }
        Ok(())
    }

    /// The next thing that was read.
    pub fn next_item(&mut self) -> Option<Item> {
        self.items.pop_front()
    }

    /// The object has no more pieces: whether it was whole.
    pub fn finish(&mut self) -> Result<(), Broken> {
        self.unpacked.try_finish()?;
        self.split()?;
        if !self.is_ended || !self.unpacked.get_ref().is_empty() {
            return Err(Broken::Shape("it has no end"));
        }
        Ok(())
    }

    /// Takes the whole lines out of what is unpacked. What is left of the last one was looked through already.
    fn split(&mut self) -> Result<(), Broken> {
        let mut bytes = std::mem::take(self.unpacked.get_mut());
        let (mut taken, mut looked) = (0, std::mem::take(&mut self.looked));
        while let Some(at) = bytes[looked..].iter().position(|byte| *byte == b'\n') {
            let end = looked + at + 1;
            self.lines += 1;
            self.line(&bytes[taken..end])?;
            (taken, looked) = (end, end);
        }
        let left = bytes.len() - taken;
        if left > LINE_BYTES_MAX {
            return Err(Broken::Shape("a line is too long"));
        }
        if taken > 0 {
            bytes.drain(..taken);
        }
        self.looked = left;
        *self.unpacked.get_mut() = bytes;
        Ok(())
    }

    fn line(&mut self, line: &[u8]) -> Result<(), Broken> {
        let number = self.lines;
        let bad = |error| Broken::Line { line: number, error };
        if self.is_ended {
            return Err(Broken::Shape("it goes on after its end"));
        }
        if self.head.is_none() {
            #[derive(Deserialize)]
            struct Form {
                everthread: u32,
            }
            // The form first: a newer one may not be readable as this one at all.
            let Form { everthread } = serde_json::from_slice(line).map_err(bad)?;
            if everthread > FORMAT {
                return Err(Broken::Newer(everthread));
            }
            let head: Head = serde_json::from_slice(line).map_err(bad)?;
            self.next = head.floor;
            let last = head.epochs.last().ok_or(Broken::Shape("it has no epoch"))?;
            self.head = Some((head.head, last.0));
            self.items.push_back(Item::Head(Box::new(head)));
        } else if line.starts_with(b"{\"records\":") {
            self.end(serde_json::from_slice(line).map_err(bad)?)?;
        } else if self.lines == 2 && line.starts_with(b"{\"base\":") {
            let BaseLine { base } = serde_json::from_slice(line).map_err(bad)?;
            self.items.push_back(Item::Base(base));
        } else {
            let RecordLine { epoch, from, to, blocks } = serde_json::from_slice(line).map_err(bad)?;
            let blocks = bytes::Bytes::copy_from_slice(blocks.get().as_bytes());
            self.record(Record { epoch, from, to, blocks })?;
        }
        self.digest.update(line);
        Ok(())
    }

    fn record(&mut self, record: Record) -> Result<(), Broken> {
        let Some((head, last)) = self.head else { return Err(Broken::Shape("it has no beginning")) };
        let is_of_epoch = self.epoch <= record.epoch && record.epoch <= last;
        if record.from != self.next || record.to < record.from || record.to > head || !is_of_epoch {
            return Err(Broken::Shape("a record is not the one that follows"));
        }
        record.parse_blocks().map_err(|_| Broken::Shape("a record has no blocks"))?;
        (self.next, self.epoch) = (record.to.next(), record.epoch);
        self.records += 1;
        self.items.push_back(Item::Record(record));
        Ok(())
    }

    fn end(&mut self, end: EndLine) -> Result<(), Broken> {
        let digest = hex(self.digest.clone().finish().as_ref());
        let is_all = self.head.as_ref().is_some_and(|(head, _)| self.next == head.next());
        if end.records != self.records || !is_all {
            return Err(Broken::Shape("records are missing"));
        }
        if end.sha256 != digest {
            return Err(Broken::Shape("it is not what was written"));
        }
        self.is_ended = true;
        Ok(())
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests;
