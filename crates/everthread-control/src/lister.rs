//! Keeps the lists of sessions up behind the decisions, so that nobody's answer waits for an index.
//!
//! Owns one queue and the task that serves it: what waits together for one session is told once. Invariant: the latest
//! time that was taken is told, or lost with a failure of the store or of this node; the list is then behind until the
//! session's next decision; one that is not in it at all is put there when the indexes are built anew.

use crate::TaskGroup;
use everthread_protocol::{Millis, SessionKey};
use everthread_store::Store;
use futures_util::{StreamExt as _, stream};
use std::collections::HashMap;
use std::sync::Arc;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Sessions that wait to be told. More are told by whoever decided.
const QUEUE: usize = 4_096;
/// Taken from the queue in one go.
const BATCH: usize = 256;
/// Told at once: one pipeline's worth, so that a slow store is not slower for decisions.
const AT_ONCE: usize = 16;

/// Tells the store which sessions were active. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Lister {
    queue: mpsc::Sender<(SessionKey, Millis)>,
}

impl Lister {
    /// Starts the task.
    pub(crate) fn start<S: Store>(store: Arc<S>, tasks: &TaskGroup) -> Self {
        let (queue, waiting) = mpsc::channel(QUEUE);
        tasks.spawn(serve(store, waiting, tasks.token()));
        Self { queue }
    }

    /// Takes it; false if the queue is full or the node drains: then the caller tells the store.
    pub(crate) fn take(&self, key: &SessionKey, at: Millis) -> bool {
        self.queue.try_send((key.clone(), at)).is_ok()
    }
}

/// Ends when it is told to stop, after what it has taken.
async fn serve<S: Store>(
    store: Arc<S>,
    mut waiting: mpsc::Receiver<(SessionKey, Millis)>,
    stop: CancellationToken,
) {
    let mut batch = Vec::new();
    loop {
        // Both are cancel safe.
        tokio::select! {
            taken = waiting.recv_many(&mut batch, BATCH) => if taken == 0 { return },
            () = stop.cancelled(), if !waiting.is_closed() => waiting.close(),
        }
        let mut latest: HashMap<SessionKey, Millis> = HashMap::new();
        for (key, at) in batch.drain(..) {
            let known = latest.entry(key).or_insert(at);
            *known = at.max(*known);
        }
        stream::iter(latest).for_each_concurrent(AT_ONCE, |(key, at)| tell(&*store, key, at)).await;
    }
}

async fn tell<S: Store>(store: &S, key: SessionKey, at: Millis) {
    if let Err(error) = store.index(&key, at).await {
        tracing::debug!(%key, %error, "the list of sessions is behind");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use everthread_store::embedded::Embedded;
    use std::time::Duration;

    #[tokio::test]
    async fn what_was_taken_is_told_once_per_session_with_its_latest_time_also_at_the_end() {
        let store = Arc::new(Embedded::memory().unwrap());
        let tasks = TaskGroup::new();
        let lister = Lister::start(store.clone(), &tasks);
        let keys: Vec<SessionKey> = (0..3).map(|n| format!("acme/s{n}").parse().unwrap()).collect();
        for at in [5, 9, 7] {
            assert!(keys.iter().all(|key| lister.take(key, Millis(at))));
        }
        // Nothing has run yet on this thread: all of it is still in the queue.
        assert!(tasks.close(Duration::from_secs(10)).await);
        let listed = store.sessions(&keys[0].tenant, None, 10).await.unwrap();
        assert_eq!(listed.len(), 3);
        assert!(listed.iter().all(|(_, at)| *at == Millis(9)));
        assert!(!lister.take(&keys[0], Millis(10)), "nobody would tell it");
    }
}
