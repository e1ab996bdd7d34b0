//! What a cursor finds in a ring.

use bytes::Bytes;
use everthread_protocol::Cursor;
use std::time::Instant;

/// What a cursor finds in a ring.
#[derive(Debug)]
pub enum Found {
    /// Frames to send.
    Frames(Frames),
    /// The cursor is at the head.
    Nothing(Cursor),
    /// The cursor is off the ring, or too far behind: read the log. So many entries are missing.
    Behind(u64),
    /// The cursor is beyond what the feed has brought here so far, or of a log that is gone: the log tells which.
    Ahead,
    /// The cursor is not of this log.
    Invalid,
    /// The session was deleted.
    Gone,
}

/// Ends of frames, mostly one.
#[derive(Debug)]
pub struct Frames {
    first: Bytes,
    more: Vec<Bytes>,
    /// Where the cursor stands after them.
    pub to: Cursor,
    /// There was nothing behind them.
    pub is_all: bool,
    /// When the feed brought the first, unless they are folded.
    pub arrived: Option<Instant>,
}

impl Frames {
    /// One frame.
    pub fn one(frame: Bytes, to: Cursor, is_all: bool) -> Frames {
        Frames { first: frame, more: Vec::new(), to, is_all, arrived: None }
    }

    /// Several; none is no stretch at all.
    pub fn of(frames: impl IntoIterator<Item = Bytes>, to: Cursor, is_all: bool) -> Option<Frames> {
        let mut frames = frames.into_iter();
        Some(Frames { first: frames.next()?, more: frames.collect(), to, is_all, arrived: None })
    }

    /// The same, brought by the feed then.
    pub fn since(self, arrived: Instant) -> Frames {
        Frames { arrived: Some(arrived), ..self }
    }

    /// How many; at least one.
    #[expect(clippy::len_without_is_empty, reason = "it never is")]
    pub fn len(&self) -> usize {
        1 + self.more.len()
    }

    /// In their order.
    pub fn iter(&self) -> impl Iterator<Item = &Bytes> {
        std::iter::once(&self.first).chain(&self.more)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use everthread_protocol::{Epoch, Seq};

    #[test]
    fn frames_come_in_their_order_and_none_are_no_frames() {
        let to = Cursor { epoch: Epoch(1), seq: Seq(3) };
        assert!(Frames::of([], to, true).is_none());
        let all = [Bytes::from_static(b"a"), Bytes::from_static(b"b"), Bytes::from_static(b"c")];
        let frames = Frames::of(all.clone(), to, false).unwrap();
        assert_eq!(frames.iter().cloned().collect::<Vec<_>>(), all);
        assert_eq!((frames.len(), frames.to, frames.is_all), (3, to, false));
        let one = Frames::one(all[1].clone(), to, true);
        assert_eq!((one.iter().count(), one.len(), one.is_all), (1, 1, true));
    }
}
