//! Folding: older records are put in the place of the raw ones that they stand for.
//!
//! The store does not know what a fold is. It takes records that somebody has folded, checks that they cover what the log
//! holds next to what is folded already, and moves the seam between the two in one step. Invariant: every seq up to the
//! seam is covered by folded records, every later one by raw ones, and a seq is never covered by neither.

use crate::Error;
use everthread_protocol::{Epoch, Record, Seq};

/// Folded records that are to stand in the place of raw ones.
#[derive(Debug, Clone, Copy)]
pub struct Fold<'a> {
    /// Epoch of the head when the raw records were read: whatever was lost since then began a new one.
    pub epoch: Epoch,
    /// From the seq after [`crate::Head::folded_to`] on, contiguous, to the end of some raw record. Final: they are never
    /// folded again where they are stored.
    pub records: &'a [Record],
}

/// What became of a fold. All but the first are harmless and changed nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Folded {
    /// The records stand in the place of the raw ones.
    Done,
    /// Somebody else was faster: the log is folded up to another place than the records begin behind.
    Elsewhere {
        /// Where that is.
        folded_to: Seq,
    },
    /// The log is not the one that was read: a new epoch has begun.
    NewEpoch {
        /// The one that it has.
        epoch: Epoch,
    },
    /// The log has no raw record that ends where the last of these does.
    NoSuchRecord,
}

impl Fold<'_> {
    /// First and last seq that the records cover. An error is a bug of the caller.
    pub(crate) fn range(&self) -> Result<(Seq, Seq), Error> {
        let ([first, ..], [.., last]) = (self.records, self.records) else {
            return Err(Error::Corrupt("a fold without records".to_owned()));
        };
        let follows = |pair: &[Record]| pair[0].to.next() == pair[1].from && pair[0].epoch <= pair[1].epoch;
        let is_whole = self.records.iter().all(|record| record.from.0 > 0 && record.from <= record.to);
        if !is_whole || !self.records.windows(2).all(follows) || last.epoch > self.epoch {
            return Err(Error::Corrupt("a fold of records that do not follow each other".to_owned()));
        }
        Ok((first.from, last.to))
    }

    /// Bytes of all blocks.
    pub(crate) fn bytes(&self) -> u64 {
        self.records.iter().map(|record| record.blocks.len() as u64).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(epoch: u64, from: u64, to: u64) -> Record {
        Record { epoch: Epoch(epoch), from: Seq(from), to: Seq(to), blocks: "[]".into() }
    }

    #[test]
    fn a_fold_covers_its_range_without_a_hole_and_its_epochs_ascend() {
        let range = |records: &[Record]| Fold { epoch: Epoch(2), records }.range();
        assert_eq!(range(&[record(1, 3, 4), record(2, 5, 9)]), Ok((Seq(3), Seq(9))));
        for bad in [
            &[][..],
            &[record(1, 0, 4)],
            &[record(1, 4, 3)],
            &[record(1, 1, 4), record(1, 6, 9)],
            &[record(1, 1, 4), record(1, 4, 9)],
            &[record(2, 1, 4), record(1, 5, 9)],
            &[record(3, 1, 4)],
        ] {
            assert!(range(bad).is_err(), "{bad:?}");
        }
    }
}
