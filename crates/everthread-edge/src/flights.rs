//! Reads that are shared: when many want the same of a session at once, the store is asked once.
//!
//! Whoever comes back after a node is gone comes with everybody else who followed the session there. A **flight** is one
//! read for all who asked before it began. Those who ask while it is under way share the next: what a flight brings must
//! not be older than the question, or somebody would not find what they were told they had written.
//!
//! **Invariant:** of each key at most one flight is under way and one waits; none outlives those who wait for it.

use crate::tail::lock;
use everthread_store::Error;
use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, Shared, WeakShared};
use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex};
use tokio::sync::Semaphore;

type Flight<T> = BoxFuture<'static, Result<T, Error>>;

/// Flights by what they bring. Cheap to clone.
pub(crate) struct Flights<K, T> {
    queues: Arc<Mutex<HashMap<K, Queue<T>>>>,
}

impl<K, T> Clone for Flights<K, T> {
    fn clone(&self) -> Self {
        Self { queues: self.queues.clone() }
    }
}

impl<K, T> Default for Flights<K, T> {
    fn default() -> Self {
        Self { queues: Arc::default() }
    }
}

struct Queue<T> {
    /// The one that has not begun.
    waiting: Option<WeakShared<Flight<T>>>,
    /// Held by the one that is under way.
    turn: Arc<Semaphore>,
    /// Flights that are not over.
    flights: usize,
}

/// Takes the queue away with its last flight, whether that came to an end or not.
struct Leave<K: Hash + Eq, T> {
    queues: Arc<Mutex<HashMap<K, Queue<T>>>>,
    key: K,
}

impl<K: Hash + Eq, T> Drop for Leave<K, T> {
    fn drop(&mut self) {
        let mut queues = lock(&self.queues);
        let Some(queue) = queues.get_mut(&self.key) else { return };
        queue.flights -= 1;
        if queue.flights == 0 {
            queues.remove(&self.key);
        }
    }
}

impl<K, T> Flights<K, T>
where
    K: Hash + Eq + Clone + Send + 'static,
    T: Clone + Send + Sync + 'static,
{
    /// What `read` brings, or the `read` of somebody else who asked for the same and whose flight has not begun. Cancel safe.
    pub(crate) async fn share<F>(&self, key: K, read: impl FnOnce() -> F + Send + 'static) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Error>> + Send,
    {
        let flight = self.join(key, read);
        flight.await
    }

    fn join<F>(&self, key: K, read: impl FnOnce() -> F + Send + 'static) -> Shared<Flight<T>>
    where
        F: Future<Output = Result<T, Error>> + Send,
    {
        let mut queues = lock(&self.queues);
        let queue = queues.entry(key.clone()).or_insert_with(|| Queue {
            waiting: None,
            turn: Arc::new(Semaphore::new(1)),
            flights: 0,
        });
        if let Some(waiting) = queue.waiting.as_ref().and_then(WeakShared::upgrade) {
            return waiting;
        }
        queue.flights += 1;
        let (turn, leave) = (queue.turn.clone(), Leave { queues: self.queues.clone(), key });
        let flight: Flight<T> = Box::pin(async move {
            let _turn = turn.acquire().await.map_err(|_| Error::Unavailable("no turn".into()))?;
            // It begins: whoever comes now shares the next.
            if let Some(queue) = lock(&leave.queues).get_mut(&leave.key) {
                queue.waiting = None;
            }
            read().await
        });
        let flight = flight.shared();
        queue.waiting = flight.downgrade();
        flight
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::future::join_all;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use tokio::sync::Notify;

    /// Reads that wait until they are let through, and bring their number.
    #[derive(Clone, Default)]
    struct Log {
        begun: Arc<AtomicUsize>,
        passes: Arc<Notify>,
    }

    impl Log {
        async fn read(self) -> Result<usize, Error> {
            let number = self.begun.fetch_add(1, Ordering::SeqCst) + 1;
            self.passes.notified().await;
            Ok(number)
        }
    }

    #[tokio::test]
    async fn who_asks_while_a_read_is_under_way_shares_the_next() {
        let (flights, log) = (Flights::<u32, usize>::default(), Log::default());
        let ask = |key| {
            let log = log.clone();
            flights.join(key, || log.read())
        };
        let first = ask(1);
        assert!(futures_util::poll!(first.clone()).is_pending());
        let later: Vec<_> = (0..100).map(|_| ask(1)).collect();
        for flight in &later {
            assert!(futures_util::poll!(flight.clone()).is_pending());
        }
        let other = ask(2);
        assert!(futures_util::poll!(other.clone()).is_pending());
        assert_eq!(log.begun.load(Ordering::SeqCst), 2, "one for each key");
        log.passes.notify_waiters();
        assert_eq!((first.await, other.await), (Ok(1), Ok(2)));
        let all = join_all(later);
        tokio::pin!(all);
        assert!(futures_util::poll!(&mut all).is_pending());
        log.passes.notify_waiters();
        assert!(all.await.into_iter().all(|brought| brought == Ok(3)));
        assert!(lock(&flights.queues).is_empty());
    }

    #[tokio::test]
    async fn who_gives_up_leaves_the_read_to_the_others_and_the_last_one_ends_it() {
        let (flights, log) = (Flights::<u32, usize>::default(), Log::default());
        let ask = || {
            let log = log.clone();
            flights.join(1, || log.read())
        };
        let first = ask();
        let second = ask();
        assert!(futures_util::poll!(first.clone()).is_pending());
        drop(first);
        assert!(futures_util::poll!(second.clone()).is_pending());
        log.passes.notify_waiters();
        assert_eq!(second.await, Ok(1));
        let alone = ask();
        assert!(futures_util::poll!(alone.clone()).is_pending());
        drop(alone);
        assert!(lock(&flights.queues).is_empty());
    }

    #[tokio::test]
    async fn a_read_that_fails_fails_for_all_who_shared_it_and_for_nobody_later() {
        let flights = Flights::<u32, usize>::default();
        let fails = || async { Err(Error::Unavailable("away".into())) };
        let shared = join_all((0..3).map(|_| flights.join(1, fails))).await;
        assert!(shared.iter().all(Result::is_err));
        assert_eq!(flights.share(1, || async { Ok(7) }).await, Ok(7));
    }
}
