//! The runs at hand: who they are, and the tasks that execute them.
//!
//! A run stands here from its `work` frame until its end is confirmed or it is lost; that is what `hello` names after a
//! reconnect. Two tasks per run: the function, and one that watches it, turns its result, panic or deafness into the
//! run's end, and never outlives the worker.

use crate::asked::Asked;
use crate::outbox::{Name, Outbox, Request};
use crate::run::{Cause, Finish, Run};
use crate::shared::{Ready, Shared, lock};
use crate::work::Input;
use crate::worker::Served;
use everthread_protocol::entry::Outcome;
use everthread_protocol::worker_frame::{Held, OnLost, Work};
use everthread_protocol::{AgentName, RunId};
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::Notify;
use tokio::task::JoinError;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

/// A function that was told that nothing of it counts any more gets this long to leave by itself.
const DEAF_DEADLINE: Duration = Duration::from_secs(10);

/// The runs of a worker.
pub(crate) struct Runs {
    agents: BTreeMap<AgentName, Served>,
    runs: Mutex<HashMap<RunId, Arc<Shared>>>,
    /// The same, by their number in this process: what request ids begin with.
    by_local: Mutex<HashMap<u64, Arc<Shared>>>,
    /// A run was removed.
    removed: Notify,
    next_local: AtomicU64,
    pub(crate) ready: Arc<Ready>,
    tasks: TaskTracker,
    abort: CancellationToken,
}

impl Runs {
    pub(crate) fn new(agents: BTreeMap<AgentName, Served>) -> Self {
        Self {
            agents,
            runs: Mutex::default(),
            by_local: Mutex::default(),
            removed: Notify::new(),
            next_local: AtomicU64::new(1),
            ready: Arc::default(),
            tasks: TaskTracker::new(),
            abort: CancellationToken::new(),
        }
    }

    /// Aborts the functions when dropped.
    pub(crate) fn abort_guard(&self) -> DropGuard {
        self.abort.clone().drop_guard()
    }

    /// Completes when there is no run.
    pub(crate) async fn none(&self) {
        loop {
            let mut removed = std::pin::pin!(self.removed.notified());
            removed.as_mut().enable();
            if self.is_empty() {
                return;
            }
            removed.await;
        }
    }

    /// Whether no run is at hand.
    pub(crate) fn is_empty(&self) -> bool {
        lock(&self.runs).is_empty()
    }

    /// What `hello` names.
    pub(crate) fn held(&self) -> Vec<Held> {
        let held =
            |run: &Arc<Shared>| Held { session: run.session.clone(), run: run.run.clone(), fence: run.fence };
        lock(&self.runs).values().map(held).collect()
    }

    /// The run, if it is at hand.
    pub(crate) fn get(&self, run: &RunId) -> Option<Arc<Shared>> {
        lock(&self.runs).get(run).cloned()
    }

    /// The run with that number in this process, if it is at hand.
    pub(crate) fn by_local(&self, local: u64) -> Option<Arc<Shared>> {
        lock(&self.by_local).get(&local).cloned()
    }

    /// All runs at hand.
    pub(crate) fn all(&self) -> Vec<Arc<Shared>> {
        lock(&self.runs).values().cloned().collect()
    }

    /// The connection is gone.
    pub(crate) fn disconnected(&self) {
        self.ready.clear();
        for run in self.all() {
            run.with(Outbox::disconnected);
        }
    }

    /// Tells every function to stop.
    pub(crate) fn stop_all(&self, cause: Cause) {
        for run in self.all() {
            run.stop(cause);
        }
    }

    /// The run is done with.
    pub(crate) fn remove(&self, run: &Arc<Shared>) {
        let mut runs = lock(&self.runs);
        // A later attempt of the same run may have taken its place.
        if runs.get(&run.run).is_some_and(|current| Arc::ptr_eq(current, run)) {
            runs.remove(&run.run);
        }
        drop(runs);
        lock(&self.by_local).remove(&run.local);
        self.removed.notify_waiters();
    }

    /// The run is no longer this worker's.
    pub(crate) fn fence(&self, run: &Arc<Shared>) {
        run.fence();
        self.remove(run);
    }

    /// Begins a run. False if no agent of that name is served here.
    pub(crate) fn begin(&self, work: &Work<'_>, block_bytes_max: usize) -> bool {
        let Some(served) = self.agents.get(&work.agent) else { return false };
        match self.get(&work.run) {
            // The same claim told twice.
            Some(known) if known.fence == work.fence => return true,
            Some(earlier) => self.fence(&earlier),
            None => {}
        }
        let name = Name {
            local: self.next_local.fetch_add(1, Ordering::Relaxed),
            run: work.run.clone(),
            fence: work.fence,
            incarnation: u64::from(work.attempt),
            ack: served.ack,
        };
        let outbox = Outbox::new(name, block_bytes_max);
        let (session, agent) = (work.session.clone(), work.agent.clone());
        let asked = Asked::new(served.is_steerable);
        let on_lost = served.on_lost;
        let shared = Shared::new(session, agent, work.attempt, outbox, asked, self.ready.clone());
        let shared = Arc::new(shared);
        lock(&self.by_local).insert(shared.local, shared.clone());
        lock(&self.runs).insert(work.run.clone(), shared.clone());
        let run = Run { shared: shared.clone(), input: Arc::new(Input::new(work)) };
        let task = self.tasks.spawn((served.function)(run));
        let abort = self.abort.clone();
        self.tasks.spawn(async move {
            let stopping = async {
                shared.stop.cancelled().await;
                shared.until(|outbox| outbox.is_over().then_some(())).await;
                tokio::time::sleep(DEAF_DEADLINE).await;
            };
            let handle = task.abort_handle();
            let result = tokio::select! {
                result = task => Some(result),
                () = stopping => None,
                () = abort.cancelled() => None,
            };
            let Some(result) = result else {
                handle.abort();
                return;
            };
            // A paused run does not end behind the back of whoever paused it.
            tokio::select! {
                () = shared.until(|_| (!shared.is_held()).then_some(())) => end(&shared, on_lost, result),
                () = abort.cancelled() => {}
            }
        });
        true
    }

    /// Forgets what was written long ago and never called safe.
    pub(crate) fn forget_old(&self, now: Instant) {
        for run in self.all() {
            run.with(|outbox| outbox.forget_old(now));
            run.settle(Vec::new());
        }
    }
}

/// Ends the run with what its function returned.
fn end(shared: &Arc<Shared>, on_lost: OnLost, result: Result<Finish, JoinError>) {
    let finish = match result {
        Ok(finish) => finish,
        Err(error) => {
            let message = panic_message(error);
            tracing::error!(run = %shared.run, agent = %shared.agent, message, "a run function panicked");
            crate::run::Failure::new("panic", message).into()
        }
    };
    let request = match shared.cause() {
        // A worker cannot refuse a cancel: the function has had its time to finish what it was writing.
        Some(Cause::Cancel) => Request::End { outcome: Outcome::Cancelled, error: None, usage: finish.usage },
        // The server finds that this worker is gone, and gives the run to another.
        Some(Cause::Stopped) if finish.outcome != Outcome::Completed && on_lost == OnLost::Retry => return,
        Some(Cause::Stopped) if finish.outcome != Outcome::Completed => {
            Request::failed("worker_stopped", "the worker that did this run was stopped")
        }
        Some(Cause::Stopped | Cause::Suspended | Cause::Fenced | Cause::Broken) | None => {
            // `lost` is not a worker's to say.
            let outcome = if finish.outcome == Outcome::Lost { Outcome::Failed } else { finish.outcome };
            Request::End { outcome, error: finish.error, usage: finish.usage }
        }
    };
    shared.with(|outbox| outbox.end(request));
    shared.offer();
}

fn panic_message(error: JoinError) -> String {
    match error.try_into_panic() {
        Ok(panic) => match panic.downcast::<String>() {
            Ok(text) => *text,
            Err(panic) => {
                panic.downcast::<&'static str>().map_or("the function panicked", |text| *text).to_owned()
            }
        },
        Err(_) => "the function was aborted".to_owned(),
    }
}
