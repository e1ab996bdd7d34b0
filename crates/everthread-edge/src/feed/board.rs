//! The board: what a node knows of a tenant's sessions, and since when. No I/O.
//!
//! Every change gets the next number, and a session that changes again leaves its old one. Whoever watches holds a number:
//! what is above it is new to them, each session once, as it is now. So nobody has a queue, and who is slow gets less.
//!
//! **Invariant:** what a watcher has not seen is above its number, or its number is below the floor, and it begins anew.

use super::summary::Row;
use everthread_protocol::{Millis, SessionId};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

/// Sessions that a board has, the most recently active ones, and as many that are gone.
const ROWS_MAX: usize = 1024;

/// Sessions of a tenant.
#[derive(Debug, Default)]
pub struct Board {
    /// The number of the last change.
    last: u64,
    /// Changes up to here may have been forgotten.
    floor: u64,
    rows: HashMap<SessionId, (u64, Arc<Row>)>,
    gone: HashMap<SessionId, u64>,
    by_number: BTreeMap<u64, SessionId>,
    by_time: BTreeSet<(Millis, SessionId)>,
}

/// What is new to a watcher.
#[derive(Debug, Default)]
pub struct News {
    /// It begins anew: nothing that it was told before counts.
    pub is_beginning: bool,
    /// Sessions, the most recent first at a beginning, else in the order in which they changed.
    pub rows: Vec<Arc<Row>>,
    /// Sessions that were deleted.
    pub gone: Vec<SessionId>,
}

impl Board {
    /// When the session was last active, as it stands here.
    pub fn active_at(&self, session: &SessionId) -> Option<Millis> {
        self.rows.get(session).map(|(_, row)| row.summary.active_at)
    }

    /// All that stand here.
    pub fn rows(&self) -> impl Iterator<Item = &Arc<Row>> {
        self.rows.values().map(|(_, row)| row)
    }

    /// The session is like this now. Returns whether that is new.
    pub fn put(&mut self, row: Row) -> bool {
        let session = row.summary.session.clone();
        if let Some((_, known)) = self.rows.get(&session)
            && (known.summary == row.summary || known.head.version.epoch > row.head.version.epoch)
        {
            return false;
        }
        self.forget(&session);
        self.last += 1;
        self.by_number.insert(self.last, session.clone());
        self.by_time.insert((row.summary.active_at, session.clone()));
        self.rows.insert(session, (self.last, Arc::new(row)));
        while self.rows.len() > ROWS_MAX {
            let Some((_, oldest)) = self.by_time.first().cloned() else { break };
            self.drop_for_good(&oldest);
        }
        true
    }

    /// The session is not there any more. Returns whether that is new. One that does not stand here may have left for want
    /// of room, and watchers may have been told of it: that it is gone is news as well.
    pub fn remove(&mut self, session: &SessionId) -> bool {
        if self.gone.contains_key(session) {
            return false;
        }
        self.forget(session);
        self.last += 1;
        self.by_number.insert(self.last, session.clone());
        self.gone.insert(session.clone(), self.last);
        if self.gone.len() > ROWS_MAX {
            let oldest =
                self.gone.iter().min_by_key(|(_, number)| **number).map(|(session, _)| session.clone());
            oldest.into_iter().for_each(|session| self.drop_for_good(&session));
        }
        true
    }

    /// What has changed since `seen`, which then is now; everything, if that is not known any more. `recent` are told of at
    /// a beginning.
    pub fn news(&self, seen: &mut Option<u64>, recent: usize) -> Option<News> {
        let since = seen.replace(self.last).filter(|seen| *seen >= self.floor);
        let Some(since) = since else {
            let latest = self.by_time.iter().rev().take(recent);
            let rows = latest.filter_map(|(_, session)| self.rows.get(session).map(|(_, row)| row.clone()));
            return Some(News { is_beginning: true, rows: rows.collect(), gone: Vec::new() });
        };
        let mut news = News::default();
        for session in self.by_number.range(since + 1..).map(|(_, session)| session) {
            match self.rows.get(session) {
                Some((_, row)) => news.rows.push(row.clone()),
                None => news.gone.push(session.clone()),
            }
        }
        (!news.rows.is_empty() || !news.gone.is_empty()).then_some(news)
    }

    /// Takes a session off; its number is not needed because it gets another, or is not missed.
    fn forget(&mut self, session: &SessionId) -> Option<u64> {
        let number = match self.rows.remove(session) {
            Some((number, row)) => {
                self.by_time.remove(&(row.summary.active_at, session.clone()));
                number
            }
            None => self.gone.remove(session)?,
        };
        self.by_number.remove(&number);
        Some(number)
    }

    /// Takes a session off for want of room: whoever has not seen it begins anew.
    fn drop_for_good(&mut self, session: &SessionId) {
        self.floor = self.floor.max(self.forget(session).unwrap_or(0));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use everthread_protocol::{Epoch, Seq, Version};
    use everthread_store::{Head, Listed};

    fn row(session: &str, at: u64, seq: u64) -> Row {
        let epoch = Epoch(1);
        let version = Version { epoch, n: seq };
        let head = Head {
            epoch,
            since: Seq(1),
            seq: Seq(seq),
            version,
            active: 0,
            folded_to: Seq(0),
            floor: Seq(1),
            folded_bytes: 0,
            archived: false,
        };
        let state = r#"{"schema":1,"meta":{}}"#.to_owned();
        Row::of(session.parse().unwrap(), Millis(at), Listed { head, epochs: vec![], state })
    }

    fn told(news: Option<News>) -> (bool, Vec<String>, usize) {
        let news = news.unwrap_or_default();
        let names = news.rows.iter().map(|row| format!("{}@{}", row.summary.session, row.summary.seq));
        (news.is_beginning, names.collect(), news.gone.len())
    }

    #[test]
    fn a_watcher_is_told_each_session_once_as_it_is_now() {
        let mut board = Board::default();
        board.put(row("a", 1, 1));
        board.put(row("b", 2, 1));
        board.put(row("c", 3, 1));
        let mut seen = None;
        assert_eq!(told(board.news(&mut seen, 2)), (true, vec!["c@1".into(), "b@1".into()], 0));
        assert!(board.news(&mut seen, 2).is_none());
        for seq in 2..100 {
            board.put(row("a", 3 + seq, seq));
            board.put(row("b", 3 + seq, seq));
        }
        assert!(!board.put(row("b", 102, 99)), "as it is");
        assert!(board.remove(&"c".parse().unwrap()));
        assert!(!board.remove(&"c".parse().unwrap()));
        assert_eq!(told(board.news(&mut seen, 2)), (false, vec!["a@99".into(), "b@99".into()], 1));
        assert_eq!((board.by_number.len(), board.by_time.len()), (3, 2));
        board.put(row("c", 200, 1));
        assert_eq!(told(board.news(&mut seen, 2)), (false, vec!["c@1".into()], 0), "made anew");
    }

    #[test]
    fn who_misses_what_the_board_had_no_room_for_begins_anew() {
        let mut board = Board::default();
        board.put(row("a", 1, 1));
        let (mut slow, mut quick) = (None, None);
        board.news(&mut slow, 9);
        board.news(&mut quick, 9);
        for n in 0..3 * ROWS_MAX as u64 {
            board.put(row(&format!("s{n}"), 10 + n, 1));
            assert_eq!(told(board.news(&mut quick, 9)).1.len(), 1);
        }
        assert!(board.rows.len() == ROWS_MAX && board.by_number.len() == ROWS_MAX);
        let (is_beginning, rows, _) = told(board.news(&mut slow, 3));
        assert!(is_beginning);
        assert_eq!(rows, ["s3071@1", "s3070@1", "s3069@1"]);
        for n in 0..3 * ROWS_MAX as u64 {
            assert!(board.remove(&format!("s{n}").parse().unwrap()));
            assert_eq!(
                told(board.news(&mut quick, 9)),
                (false, vec![], 1),
                "told of it, and told that it is gone"
            );
        }
        assert!(board.rows.is_empty() && board.by_number.len() <= ROWS_MAX);
    }
}
