//! Which worker has got which control, in memory only: it is known for a while and is no part of the log.

use crate::{DELIVERED_MAX, DELIVERED_MEMORY};
use everthread_protocol::{ControlId, SessionKey, WorkerId};
use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::time::Instant;

/// Sessions that are known before those whose marks have all expired are cleared away.
const CLEAR_AT: usize = 1024;

/// The marks of all sessions.
#[derive(Debug, Default)]
pub(super) struct Delivered(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    /// Oldest first, at most [`DELIVERED_MAX`] each.
    sessions: HashMap<SessionKey, VecDeque<Mark>>,
    clear_at: usize,
}

#[derive(Debug)]
struct Mark {
    control: ControlId,
    worker: WorkerId,
    until: Instant,
}

impl Delivered {
    /// The worker has got the control.
    pub fn mark(&self, key: &SessionKey, control: &ControlId, worker: &WorkerId, now: Instant) {
        let mut known = self.lock();
        let marks = known.sessions.entry(key.clone()).or_default();
        marks.retain(|mark| mark.until > now && mark.control != *control);
        if marks.len() >= DELIVERED_MAX {
            marks.pop_front();
        }
        let until = now + DELIVERED_MEMORY;
        marks.push_back(Mark { control: control.clone(), worker: worker.clone(), until });
        if known.sessions.len() > known.clear_at.max(CLEAR_AT) {
            // The last mark of a session is the one that expires last.
            known.sessions.retain(|_, marks| marks.back().is_some_and(|mark| mark.until > now));
            known.clear_at = 2 * known.sessions.len();
        }
    }

    /// Forgets who has got the controls of a session that is gone.
    pub fn forget(&self, key: &SessionKey) {
        self.lock().sessions.remove(key);
    }

    /// Who has got each control, in the order asked.
    pub fn to(&self, key: &SessionKey, controls: &[ControlId], now: Instant) -> Vec<Option<WorkerId>> {
        let known = self.lock();
        let marks = known.sessions.get(key);
        let worker = |control: &ControlId| {
            let mark = marks?.iter().find(|mark| mark.control == *control && mark.until > now)?;
            Some(mark.worker.clone())
        };
        controls.iter().map(worker).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_mark_is_forgotten_after_its_time_and_leaves_nothing_behind() {
        let (delivered, worker, start) = (Delivered::default(), "w1".parse().unwrap(), Instant::now());
        let key = |n: usize| -> SessionKey { format!("acme/s{n}").parse().unwrap() };
        let control: ControlId = "c1".parse().unwrap();
        for n in 0..CLEAR_AT {
            delivered.mark(&key(n), &control, &worker, start);
        }
        delivered.mark(&key(1), &control, &worker, start + DELIVERED_MEMORY / 2);
        let end = start + DELIVERED_MEMORY + Duration::from_secs(1);
        let known = |n| delivered.to(&key(n), std::slice::from_ref(&control), end)[0].is_some();
        assert!(known(1) && !known(0));
        delivered.mark(&key(CLEAR_AT), &control, &worker, end);
        assert_eq!(delivered.lock().sessions.len(), 2);
    }
}
