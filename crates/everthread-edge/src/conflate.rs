//! Conflation: what is written between two frames to an attachment becomes one frame, if its client asked for that.
//!
//! An attachment with a pace is on hold after each frame: the tail wakes it only for what cannot wait, and it looks by itself
//! when its pace lets it. So a token that waits costs a place on the ring and nothing else. Folding is that of
//! [`everthread_session::fold`], of what the ring holds.
//!
//! **Invariant:** nobody on hold waits longer than its pace, and nothing of what it is sent is missing.

use bytes::Bytes;
use everthread_protocol::{Cursor, Record, Seq};
use everthread_session::fold::{self, Limits};
use memchr::memmem::Finder;
use std::sync::LazyLock;
use std::time::Duration;
use tokio::time::Instant;

/// How long a folded stretch is good for others at the same place: far less than any pace, and longer than it takes to
/// serve all that were due together.
const SHARED_FOR: Duration = Duration::from_millis(5);

/// How often an attachment is sent `entries`.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    every: Duration,
    /// Nothing that may wait is sent before.
    next: Instant,
}

impl Pace {
    /// Of an attachment that asked for it; 0 is none.
    pub fn new(fold_ms: Option<u64>) -> Option<Pace> {
        let every = Duration::from_millis(fold_ms.filter(|ms| *ms > 0)?);
        Some(Pace { every, next: Instant::now() })
    }

    /// A frame was sent.
    pub fn sent(&mut self) {
        self.next = Instant::now() + self.every;
    }

    /// When the next frame may be sent, if that is not now.
    pub fn waits(&self) -> Option<Instant> {
        (self.next > Instant::now()).then_some(self.next)
    }
}

/// A stretch of a ring, folded.
pub struct Folded {
    after: Cursor,
    made: Instant,
    /// Where who takes it stands then.
    pub to: Cursor,
    /// Ends of frames, as the ring has them.
    pub frames: Vec<Bytes>,
}

impl Folded {
    /// What follows `after`, up to `to`, as of now.
    pub fn new(after: Cursor, to: Cursor, frames: Vec<Bytes>) -> Self {
        Self { after, made: Instant::now(), to, frames }
    }

    /// Whether somebody who stands there can have it.
    pub fn is_for(&self, cursor: Cursor) -> bool {
        self.after == cursor && self.made.elapsed() < SHARED_FOR
    }
}

/// Contiguous records, each with the first seq of its epoch, as ends of frames: as few as may be.
pub fn fold(records: &[(Record, Seq)]) -> Vec<Bytes> {
    let raw: Vec<Record> = records.iter().map(|(record, _)| record.clone()).collect();
    let folded = fold::fold(&raw, Limits::default()).unwrap_or_else(|error| {
        tracing::error!(%error, "a ring holds what cannot be folded");
        raw
    });
    let since =
        |of: &Record| records.iter().find(|(record, _)| record.epoch == of.epoch).map(|(_, since)| *since);
    folded.iter().map(|record| record.frame_suffix(since(record).unwrap_or(record.from))).collect()
}

/// Whether blocks hold something that is not to wait for a pace: what is decided, and the ends of messages.
///
/// It looks for the types of entries without reading them. A nested key of that name costs freshness nothing, and a type
/// that is written with escapes waits: both are rare, and neither is wrong.
pub fn is_urgent(blocks: &[u8]) -> bool {
    static TYPE: LazyLock<Finder<'_>> = LazyLock::new(|| Finder::new(b"\"type\""));
    TYPE.find_iter(blocks).any(|at| {
        let rest = &blocks[at + b"\"type\"".len()..];
        let value = rest.iter().position(|byte| !b" \t\r\n:".contains(byte)).map_or(rest, |at| &rest[at..]);
        URGENT.iter().any(|kind| value.starts_with(kind)) && !value.starts_with(b"\"run.step\"")
    })
}

/// How types begin that do not wait.
const URGENT: [&[u8]; 7] = [
    b"\"message.end\"",
    b"\"message.put\"",
    b"\"run.",
    b"\"approval.",
    b"\"control.",
    b"\"session.",
    b"\"branch.",
];

#[cfg(test)]
mod tests {
    use super::*;
    use everthread_protocol::Epoch;

    fn record(epoch: u64, seq: u64, entries: &str) -> Record {
        let blocks =
            format!(r#"[{{"by":{{"kind":"agent","id":"a"}},"at":1,"run":"r","entries":[{entries}]}}]"#);
        Record { epoch: Epoch(epoch), from: Seq(seq), to: Seq(seq), blocks: blocks.into() }
    }

    fn append(offset: usize, text: &str) -> String {
        format!(r#"{{"type":"part.append","message":"m","part":"p","offset":{offset},"text":"{text}"}}"#)
    }

    #[test]
    fn only_what_is_decided_and_the_ends_of_messages_do_not_wait() {
        for waits in [
            append(0, "run.ended"),
            append(0, r#"\"type\":\"run.ended\""#),
            r#"{"type":"run.step","phase":"start"}"#.into(),
            r#"{"type" : "message.start","message":"m","role":"assistant"}"#.into(),
            r#"{"type":"x-mine"}"#.into(),
        ] {
            assert!(!is_urgent(&record(1, 1, &waits).blocks), "{waits}");
        }
        for urgent in [
            r#"{"type":"message.end","message":"m","status":"complete"}"#,
            r#"{"message":"m","type" : "message.end","status":"complete"}"#,
            r#"{"type":"run.ended","run":"r","outcome":"completed"}"#,
            r#"{"type":"approval.settled"}"#,
            r#"{"type":"control.requested"}"#,
            r#"{"type":"session.held"}"#,
        ] {
            assert!(is_urgent(&record(1, 1, urgent).blocks), "{urgent}");
        }
    }

    #[test]
    fn records_become_one_frame_per_epoch() {
        let records = [
            (record(1, 4, &append(0, "a")), Seq(1)),
            (record(1, 5, &append(1, "b")), Seq(1)),
            (record(2, 6, &append(2, "c")), Seq(6)),
        ];
        let frames = fold(&records);
        let texts: Vec<&str> = frames.iter().map(|frame| std::str::from_utf8(frame).unwrap()).collect();
        assert_eq!(texts.len(), 2);
        assert!(
            texts[0].contains(r#""since":1,"from":4,"to":5"#) && texts[0].contains(r#""text":"ab""#),
            "{texts:?}"
        );
        assert!(texts[1].contains(r#""since":6,"from":6,"to":6"#), "{texts:?}");
    }

    #[test]
    fn what_cannot_be_folded_is_sent_as_it_is() {
        let mut broken = record(1, 4, "");
        broken.blocks = Bytes::from_static(b"[1]");
        assert_eq!(fold(&[(broken, Seq(1)), (record(1, 5, ""), Seq(1))]).len(), 2);
    }
}
