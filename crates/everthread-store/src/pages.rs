//! Reading a whole log, page by page, while others write, fold, trim and delete it.
//!
//! No I/O but the base: whoever reads decides how, and takes every page through here. Invariant: what is taken is of one
//! log, from the first seq that is kept, without a hole.

use crate::{Base, Error, Page, Store};
use everthread_protocol::frame::ResetReason;
use everthread_protocol::{Cursor, Epoch, Record, Seq, SessionKey};

/// A log that is read from what is left of its beginning on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pages {
    /// What stands for what was before the floor, if anything was.
    pub base: Option<Base>,
    read: Cursor,
}

impl Pages {
    /// Begins with the base that belongs to `first`, a page that was read after 0. `first` itself is to be taken next.
    /// `None` if the log was trimmed in between: then it is to be begun again.
    pub async fn begin<S: Store>(store: &S, key: &SessionKey, first: &Page) -> Result<Option<Self>, Error> {
        let read = start_of(first);
        if first.head.floor <= Seq(1) {
            return Ok(Some(Self { base: None, read }));
        }
        let base = store.base(key).await?.filter(|base| base.floor == first.head.floor);
        Ok(base.map(|base| Self { base: Some(base), read }))
    }

    /// Everything up to here was taken: the next page is the one after it.
    pub fn after(&self) -> Seq {
        self.read.seq
    }

    /// Takes a page that was read after [`Pages::after`]. False if it does not go on there, because the log was trimmed
    /// beyond it, has lost a tail, or was deleted and made anew: then it is to be begun again.
    ///
    /// If something was folded meanwhile, the page may begin before that: see [`Pages::is_exact`].
    pub fn take(&mut self, page: &Page) -> bool {
        let is_next = goes_on(page, self.read);
        if let Some(last) = page.records.last().filter(|_| is_next) {
            self.read = Cursor { epoch: last.epoch, seq: last.to };
        }
        is_next
    }

    /// Whether a page that is not taken yet begins right after what was, and the floor is where it was: for those who keep
    /// records as they come.
    pub fn is_exact(&self, page: &Page) -> bool {
        let floor = self.base.as_ref().map_or(Seq(1), |base| base.floor);
        page.head.floor == floor
            && page.records.first().is_none_or(|first| first.from == self.read.seq.next())
    }
}

/// Whether a cursor is of the log with these epochs and this head.
pub fn is_valid(epochs: &[(Epoch, Seq)], head: Seq, cursor: Cursor) -> bool {
    let Some(index) = epochs.iter().position(|(epoch, _)| *epoch == cursor.epoch) else { return false };
    cursor.seq <= head && epochs.get(index + 1).is_none_or(|(_, next)| cursor.seq < *next)
}

/// Why nobody can go on from a cursor; `None` if they can.
pub fn lost(page: &Page, cursor: Cursor) -> Option<ResetReason> {
    if !is_valid(&page.epochs, page.head.seq, cursor) {
        return Some(ResetReason::Epoch);
    }
    (cursor.seq.next() < page.head.floor).then_some(ResetReason::Retention)
}

/// Whether a page goes on where an earlier one ended: not if the log was trimmed, has lost a tail, or was deleted and made
/// anew in between. Epochs that are too old for the table are of the same log if it goes back further.
pub fn goes_on(page: &Page, end: Cursor) -> bool {
    let is_old = page.epochs.first().is_some_and(|(epoch, since)| end.epoch < *epoch && end.seq < *since);
    end.seq.next() >= page.head.floor && (end.seq == Seq::ZERO || is_old || lost(page, end).is_none())
}

/// The epoch that was in force at a seq, or the first one that is known.
pub fn epoch_at(epochs: &[(Epoch, Seq)], seq: Seq) -> Epoch {
    let known = epochs.iter().rev().find(|(_, since)| *since <= seq);
    known.or(epochs.first()).map_or(Epoch(0), |(epoch, _)| *epoch)
}

/// The cursor before the first entry of a log that is kept.
pub fn start_of(page: &Page) -> Cursor {
    let seq = Seq(page.head.floor.0.saturating_sub(1));
    let known = page.epochs.iter().rev().find(|(_, since)| *since <= seq).or(page.epochs.first());
    Cursor { epoch: known.map_or(page.head.epoch, |(epoch, _)| *epoch), seq }
}

/// First seq of a record's epoch. Epochs older than the table are taken to begin with the record: whoever has the one
/// before it may go on.
pub fn since_of(epochs: &[(Epoch, Seq)], record: &Record) -> Seq {
    epochs.iter().find(|(known, _)| *known == record.epoch).map_or(record.from, |(_, since)| *since)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Head;
    use everthread_protocol::Version;

    fn page(epochs: &[(u64, u64)], floor: u64, records: &[(u64, u64, u64)], head: u64) -> Page {
        let epochs: Vec<_> = epochs.iter().map(|(epoch, since)| (Epoch(*epoch), Seq(*since))).collect();
        let (epoch, since) = *epochs.last().unwrap();
        let record = |(epoch, from, to): &(u64, u64, u64)| Record {
            epoch: Epoch(*epoch),
            from: Seq(*from),
            to: Seq(*to),
            blocks: "[]".into(),
        };
        let head = Head {
            epoch,
            since,
            seq: Seq(head),
            version: Version { epoch, n: 1 },
            active: 0,
            folded_to: Seq(0),
            floor: Seq(floor),
            folded_bytes: 0,
            archived: false,
        };
        Page { records: records.iter().map(record).collect(), head, epochs }
    }

    fn from_start(first: &Page) -> Pages {
        let floor = first.head.floor;
        let base = (floor > Seq(1)).then(|| Base { floor, text: String::new() });
        Pages { base, read: start_of(first) }
    }

    #[test]
    fn a_page_that_does_not_go_on_is_not_taken() {
        let first = page(&[(5, 1)], 1, &[(5, 1, 4)], 9);
        let mut pages = from_start(&first);
        assert!(pages.is_exact(&first) && pages.take(&first));
        assert_eq!(pages.after(), Seq(4));
        for other in [
            // Trimmed beyond it, a tail lost and written anew, another session of the name.
            page(&[(5, 1)], 6, &[(5, 6, 9)], 9),
            page(&[(5, 1), (6, 3)], 1, &[(6, 5, 9)], 9),
            page(&[(7, 1)], 1, &[(7, 5, 9)], 9),
        ] {
            assert!(!pages.take(&other), "{other:?}");
            assert_eq!(pages.after(), Seq(4));
        }
        let next = page(&[(5, 1), (6, 5)], 1, &[(6, 5, 9)], 9);
        assert!(pages.is_exact(&next) && pages.take(&next));
        assert_eq!(pages.after(), Seq(9));
    }

    #[test]
    fn what_was_folded_or_trimmed_meanwhile_is_told_from_what_is_exact() {
        let first = page(&[(5, 1)], 3, &[(5, 3, 4)], 9);
        let mut pages = from_start(&first);
        assert!(pages.is_exact(&first) && pages.take(&first));
        let folded = page(&[(5, 1)], 3, &[(5, 3, 9)], 9);
        let trimmed = page(&[(5, 1)], 5, &[(5, 5, 9)], 9);
        assert!(!pages.is_exact(&folded) && !pages.is_exact(&trimmed));
        // Enough for a view: it skips what it has, and needs nothing of what is gone.
        assert!(pages.clone().take(&folded) && pages.take(&trimmed));
        assert_eq!(pages.after(), Seq(9));
    }
}
