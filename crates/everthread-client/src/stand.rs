//! Where an attachment stands, and whether a frame is the next one for it. No I/O.

use everthread_protocol::{Cursor, Epoch, Seq};

/// What to do with an `entries` frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// Apply it, and stand at its end.
    Next,
    /// Drop it.
    Old,
    /// Something lies between: attach again from the own cursor.
    Gap,
}

/// Whether a frame that covers `from..=to` of `epoch`, which begins at `since`, is the next one after `at`.
pub(crate) fn place(at: Cursor, epoch: Epoch, since: Seq, from: Seq, to: Seq) -> Place {
    let same_log = epoch == at.epoch || since > at.seq;
    if same_log && from <= at.seq.next() && at.seq < to {
        Place::Next
    } else if to <= at.seq && epoch <= at.epoch {
        Place::Old
    } else {
        // Also a later epoch that ends before the own position: the log lost a tail that this side holds.
        Place::Gap
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_next_old_or_beyond_a_gap() {
        let at = Cursor { epoch: Epoch(5), seq: Seq(10) };
        let of = |epoch, since, from, to| place(at, Epoch(epoch), Seq(since), Seq(from), Seq(to));
        assert_eq!(of(5, 1, 11, 12), Place::Next);
        assert_eq!(of(5, 1, 3, 11), Place::Next, "folded, with an overlap");
        assert_eq!(of(5, 1, 3, 10), Place::Old);
        assert_eq!(of(5, 1, 12, 12), Place::Gap);
        assert_eq!(of(6, 11, 11, 11), Place::Next, "a new epoch that begins after all this side holds");
        assert_eq!(of(6, 9, 9, 11), Place::Gap, "a new epoch that replaced what this side holds");
        assert_eq!(of(6, 9, 9, 9), Place::Gap);
    }
}
