//! Sessions that were deleted lately, in memory only: who plants one lives in this process, and must not plant over a
//! deletion that it has not seen.

use crate::TOMBSTONE_KEPT;
use everthread_protocol::{Epoch, SessionKey};
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::time::Instant;

/// So many are known before those that are old are cleared away.
const CLEAR_AT: usize = 4096;

/// The tombstones of all sessions.
#[derive(Debug, Default)]
pub(super) struct Gone(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    sessions: HashMap<SessionKey, (Epoch, Instant)>,
    clear_at: usize,
}

impl Gone {
    /// The session was deleted, in this epoch of its log.
    pub fn note(&self, key: &SessionKey, epoch: Epoch, now: Instant) {
        let mut known = self.lock();
        known.sessions.insert(key.clone(), (epoch, now + TOMBSTONE_KEPT));
        if known.sessions.len() > known.clear_at.max(CLEAR_AT) {
            known.sessions.retain(|_, (_, until)| *until > now);
            known.clear_at = 2 * known.sessions.len();
        }
    }

    /// There is one of this name again.
    pub fn forget(&self, key: &SessionKey) {
        self.lock().sessions.remove(key);
    }

    /// The last epoch of the session, if it was deleted.
    pub fn of(&self, key: &SessionKey, now: Instant) -> Option<Epoch> {
        self.lock().sessions.get(key).filter(|(_, until)| *until > now).map(|(epoch, _)| *epoch)
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_remembered_of_sessions_that_are_gone_is_cleared_away_in_time() {
        let key = |n: usize| format!("acme/s{n}").parse().unwrap();
        let (gone, start) = (Gone::default(), Instant::now());
        for n in 0..CLEAR_AT {
            gone.note(&key(n), Epoch(1), start);
        }
        gone.note(&key(0), Epoch(2), start + TOMBSTONE_KEPT / 2);
        let end = start + TOMBSTONE_KEPT;
        assert_eq!((gone.of(&key(0), end), gone.of(&key(1), end)), (Some(Epoch(2)), None));
        gone.note(&key(CLEAR_AT), Epoch(3), end);
        assert_eq!(gone.lock().sessions.len(), 2);
        gone.forget(&key(0));
        assert_eq!(gone.of(&key(0), start), None);
    }
}
