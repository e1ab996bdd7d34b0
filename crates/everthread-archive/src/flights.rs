//! Tasks of which there is one per session, and that several may wait for: whoever comes second joins the first.
//!
//! **Invariant:** a task goes on when those who wait for it have gone, and is off the list when it has ended.

use everthread_control::TaskGroup;
use everthread_protocol::SessionKey;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;

/// The tasks under way.
pub(crate) struct Flights<T> {
    under_way: Mutex<HashMap<SessionKey, watch::Receiver<Option<T>>>>,
}

/// A task that was joined, or begun.
pub(crate) struct Flight<T> {
    result: watch::Receiver<Option<T>>,
    /// Whether it was begun for this.
    pub is_first: bool,
}

impl<T> Default for Flights<T> {
    fn default() -> Self {
        Self { under_way: Mutex::default() }
    }
}

impl<T: Clone + Send + Sync + 'static> Flights<T> {
    /// Joins the task of a session, or begins it with what `work` makes.
    pub fn join<F>(
        self: &Arc<Self>,
        key: &SessionKey,
        tasks: &TaskGroup,
        work: impl FnOnce() -> F,
    ) -> Flight<T>
    where
        F: Future<Output = T> + Send + 'static,
    {
        let mut all = self.all();
        if let Some(result) = all.get(key) {
            return Flight { result: result.clone(), is_first: false };
        }
        let (tell, result) = watch::channel(None);
        all.insert(key.clone(), result.clone());
        // A task that cannot be begun any more is dropped at once, and takes itself off the list.
        drop(all);
        let (work, listed) = (work(), Listed { flights: self.clone(), key: key.clone() });
        tasks.spawn_until_stopped(async move {
            let result = work.await;
            // Off the list first: who comes from here on asks anew.
            drop(listed);
            tell.send_replace(Some(result));
        });
        Flight { result, is_first: true }
    }

    fn all(&self) -> MutexGuard<'_, HashMap<SessionKey, watch::Receiver<Option<T>>>> {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T: Clone> Flight<T> {
    /// What came of it; `None` if the node stops. Cancel safe.
    pub async fn ended(&mut self) -> Option<T> {
        self.result.wait_for(Option::is_some).await.ok()?.clone()
    }
}

/// Takes a task off the list, also if it is dropped in the middle.
struct Listed<T> {
    flights: Arc<Flights<T>>,
    key: SessionKey,
}

impl<T> Drop for Listed<T> {
    fn drop(&mut self) {
        self.flights.under_way.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};
    use tokio::sync::Semaphore;

    #[tokio::test]
    async fn of_one_session_there_is_one_task_and_it_goes_on_without_those_who_wait() {
        let (flights, tasks) = (Arc::new(Flights::default()), TaskGroup::new());
        let (a, b): (SessionKey, SessionKey) = ("t/a".parse().unwrap(), "t/b".parse().unwrap());
        let (begun, gate) = (Arc::new(AtomicU32::new(0)), Arc::new(Semaphore::new(0)));
        let join = |key| {
            flights.join(key, &tasks, || {
                let (begun, gate) = (begun.clone(), gate.clone());
                async move {
                    gate.acquire().await.unwrap().forget();
                    begun.fetch_add(1, Ordering::SeqCst)
                }
            })
        };
        let (first, mut second) = (join(&a), join(&a));
        assert!(first.is_first && !second.is_first);
        drop(first);
        let mut other = join(&b);
        gate.add_permits(2);
        let (of_a, of_b) = (second.ended().await, other.ended().await);
        assert_eq!(of_a.unwrap() + of_b.unwrap(), 1);
        assert!(flights.all().is_empty());
        assert!(join(&a).is_first, "what has ended is not joined");
        // A node that stops says so, and keeps nothing.
        let mut last = join(&b);
        assert!(tasks.close(std::time::Duration::from_secs(10)).await);
        assert_eq!(last.ended().await, None);
        assert!(flights.all().is_empty());
    }
}
