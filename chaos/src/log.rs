//! The log of a session as a node exports it in the end: what histories are compared with.

use anyhow::{Context as _, ensure};
use everthread_protocol::frame::Entries;
use everthread_session::fold::numbered;
use everthread_session::view::{Message, View};
use serde_json::Value;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

/// An entry, or what several were merged into.
#[derive(Debug, Clone)]
pub struct Logged {
    /// First seq that it stands for.
    pub first: u64,
    /// Last one.
    pub last: u64,
    /// Where its block ends, or the record that it was folded into.
    pub to: u64,
    /// Incarnation in which it was written.
    pub epoch: u64,
    /// The run whose worker wrote it, if one did.
    pub by_run: Option<String>,
    /// Its type.
    pub kind: String,
    /// As written.
    pub body: Value,
}

/// A whole session.
#[derive(Debug, Clone, Default)]
pub struct Log {
    /// Which.
    pub session: String,
    /// Incarnations with their first seqs, as far as the store still knows them.
    pub epochs: Vec<(u64, u64)>,
    /// All that have entries.
    pub all_epochs: Vec<(u64, u64)>,
    /// First seq that is kept.
    pub floor: u64,
    /// Last seq.
    pub head: u64,
    /// In order.
    pub entries: Vec<Logged>,
    /// What they come to.
    pub view: View,
}

impl Log {
    /// Reads an export. A gap or an overlap in it is an error.
    pub fn parse(text: &str) -> anyhow::Result<Log> {
        let mut lines = text.lines();
        let head: Value = serde_json::from_str(lines.next().context("an empty export")?)?;
        let mut log = Log {
            session: head["session"].as_str().context("no session")?.to_owned(),
            epochs: epochs(&head["epochs"])?,
            all_epochs: epochs(&head["epochs"])?,
            floor: head["floor"].as_u64().unwrap_or(1),
            head: 0,
            entries: Vec::new(),
            view: View::new(),
        };
        ensure!(log.floor == 1, "{}: the beginning of the log was dropped", log.session);
        for line in lines {
            let mut record: Value = serde_json::from_str(line)?;
            ensure!(
                record["from"] == log.head + 1,
                "{}: a hole or an overlap after {}",
                log.session,
                log.head
            );
            record["t"] = "entries".into();
            record["attachment"] = 1.into();
            let text = record.to_string();
            let frame =
                Entries::decode(text.as_bytes()).map_err(|fault| anyhow::anyhow!("{fault:?}: {text}"))?;
            log.take(&frame)?;
        }
        log.all_epochs.sort_unstable();
        ensure!(Some(log.head) >= head["seq"].as_u64(), "{}: an export that was cut off", log.session);
        Ok(log)
    }

    fn take(&mut self, frame: &Entries<'_>) -> anyhow::Result<()> {
        if !self.all_epochs.iter().any(|(known, _)| *known == frame.epoch.0) {
            self.all_epochs.push((frame.epoch.0, frame.since.0));
        }
        for block in &frame.blocks {
            for (first, last, raw) in numbered(block, frame.from)? {
                let body: Value = serde_json::from_str(raw.get())?;
                self.entries.push(Logged {
                    first: first.0,
                    last: last.0,
                    to: frame.to.0,
                    epoch: frame.epoch.0,
                    by_run: block.run.as_ref().map(ToString::to_string),
                    kind: body["type"].as_str().unwrap_or_default().to_owned(),
                    body,
                });
            }
        }
        self.view.apply_blocks(frame)?;
        self.head = frame.to.0;
        Ok(())
    }

    /// Whether somebody who stood there could go on in this log.
    pub fn is_valid(&self, epoch: u64, seq: u64) -> bool {
        seq <= self.head && is_before_next(&self.epochs, epoch, seq)
    }

    /// Whether what was written there is still there, also if that is too long ago for anybody to go on from it.
    pub fn is_kept(&self, epoch: u64, seq: u64) -> bool {
        seq <= self.head && is_before_next(&self.all_epochs, epoch, seq)
    }
}

fn is_before_next(epochs: &[(u64, u64)], epoch: u64, seq: u64) -> bool {
    let Some(index) = epochs.iter().position(|(known, _)| *known == epoch) else { return false };
    epochs.get(index + 1).is_none_or(|(_, next)| seq < *next)
}

/// `[[epoch, since], …]`, the epoch as text or number; or objects with these names.
fn epochs(value: &Value) -> anyhow::Result<Vec<(u64, u64)>> {
    let number = |value: &Value| value.as_u64().or_else(|| value.as_str()?.parse().ok());
    let pair = |pair: &Value| {
        let (epoch, since) =
            if pair.is_array() { (&pair[0], &pair[1]) } else { (&pair["epoch"], &pair["since"]) };
        number(epoch).zip(number(since)).with_context(|| format!("an epoch that is none: {pair}"))
    };
    value.as_array().context("no epochs")?.iter().map(pair).collect()
}

/// A digest of messages, the same in every process.
pub fn digest(messages: &[Message]) -> u64 {
    let mut hasher = DefaultHasher::new();
    for message in messages {
        // What cannot be written as JSON was not read from JSON either.
        serde_json::to_string(message).unwrap_or_default().hash(&mut hasher);
    }
    hasher.finish()
}
