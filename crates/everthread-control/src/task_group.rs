//! The one way to spawn: tasks that are told to stop and waited for.

use std::future::Future;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Tasks that belong together: one token stops them, and [`TaskGroup::close`] waits until they have.
#[derive(Debug, Clone)]
pub struct TaskGroup {
    stop: CancellationToken,
    tasks: TaskTracker,
    /// Where the group was made: a store may ask for a task from a thread of its own, which knows of no runtime.
    runtime: Option<Handle>,
}

impl Default for TaskGroup {
    fn default() -> Self {
        let runtime = Handle::try_current().ok();
        Self { stop: CancellationToken::new(), tasks: TaskTracker::new(), runtime }
    }
}

impl TaskGroup {
    /// A group of its own.
    pub fn new() -> Self {
        Self::default()
    }

    /// Spawns a task. It should end soon after [`TaskGroup::stopped`].
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        match &self.runtime {
            Some(runtime) => drop(self.tasks.spawn_on(task, runtime)),
            None => drop(self.tasks.spawn(task)),
        }
    }

    /// Spawns a task that may be dropped at any await once the group stops.
    pub fn spawn_until_stopped(&self, task: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        self.spawn(async move {
            stop.run_until_cancelled(task).await;
        });
    }

    /// Ready once the group is told to stop. Cancel safe.
    pub async fn stopped(&self) {
        self.stop.cancelled().await;
    }

    /// The token that stops the group.
    pub fn token(&self) -> CancellationToken {
        self.stop.clone()
    }

    /// How many tasks there are.
    pub fn len(&self) -> usize {
        self.tasks.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.tasks.is_empty()
    }

    /// Tells all tasks to stop and waits for them; false if some were still there after `patience`.
    pub async fn close(&self, patience: Duration) -> bool {
        self.stop.cancel();
        self.tasks.close();
        tokio::time::timeout(patience, self.tasks.wait()).await.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::oneshot;

    #[tokio::test]
    async fn a_thread_without_a_runtime_can_spawn_into_the_group_of_one() {
        let group = TaskGroup::new();
        let (told, tells) = oneshot::channel();
        let spawning = group.clone();
        std::thread::spawn(move || spawning.spawn_until_stopped(async move { told.send(7).unwrap() }))
            .join()
            .unwrap();
        assert_eq!(tells.await, Ok(7));
        assert!(group.close(Duration::from_secs(10)).await);
    }
}
