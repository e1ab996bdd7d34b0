//! One at a time per session: whoever comes second waits, and finds it done.

use everthread_protocol::SessionKey;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::OwnedMutexGuard;

type Turnstile = Arc<tokio::sync::Mutex<()>>;

/// The sessions that somebody has the turn of, or waits for.
#[derive(Debug, Default)]
pub struct Turns(Mutex<HashMap<SessionKey, Turnstile>>);

/// The turn, until dropped.
pub struct Turn<'a> {
    turns: &'a Turns,
    key: SessionKey,
    guard: Option<OwnedMutexGuard<()>>,
}

impl Turns {
    /// Waits for the turn. Cancel safe.
    pub async fn of(&self, key: &SessionKey) -> Turn<'_> {
        // Made before the wait, so that whoever gives up waiting takes the session off the list, too.
        let turnstile = self.all().entry(key.clone()).or_default().clone();
        let mut turn = Turn { turns: self, key: key.clone(), guard: None };
        turn.guard = Some(turnstile.lock_owned().await);
        turn
    }

    fn all(&self) -> MutexGuard<'_, HashMap<SessionKey, Turnstile>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.guard = None;
        let mut all = self.turns.all();
        if all.get(&self.key).is_some_and(|turnstile| Arc::strong_count(turnstile) == 1) {
            all.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[tokio::test]
    async fn of_one_session_one_has_the_turn_and_nothing_is_left() {
        let turns = Turns::default();
        let (a, b): (SessionKey, SessionKey) = ("t/a".parse().unwrap(), "t/b".parse().unwrap());
        let (inside, most) = (AtomicU32::new(0), AtomicU32::new(0));
        let of_b = turns.of(&b).await;
        let one = async || {
            let _turn = turns.of(&a).await;
            most.fetch_max(inside.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Relaxed);
            tokio::task::yield_now().await;
            inside.fetch_sub(1, Ordering::Relaxed);
        };
        futures_util::future::join_all((0..20).map(|_| one())).await;
        assert_eq!(most.into_inner(), 1);

        // Who gives up waiting leaves nothing either.
        assert!(futures_util::FutureExt::now_or_never(turns.of(&b)).is_none());
        drop(of_b);
        assert!(turns.all().is_empty());
    }
}
