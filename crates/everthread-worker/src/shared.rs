//! What a run function, its handles and the connection share about one run.
//!
//! The outbox is under a lock that is never held across an await. Whoever makes it sendable puts the run on the ready list
//! of the connection, at most once; whoever frees room or changes its fate wakes the run's waiters.

use crate::asked::{Asked, Settlement};
use crate::error::Error;
use crate::outbox::{Event, Outbox, Request};
use crate::run::Cause;
use everthread_protocol::entry::Outcome;
use everthread_protocol::worker_frame::{NewApproval, WorkerControl};
use everthread_protocol::{AgentName, Fence, RunId, SessionId};
use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

/// Locks, also after a panic elsewhere: every holder leaves the data whole.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How far a child run is.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum ChildState {
    /// Not yet confirmed.
    Asked,
    /// In the log.
    Started,
    /// It will never be.
    Refused(Error),
    /// Over.
    Ended(Outcome),
}

/// Runs with something to send, each at most once: as long as the list of runs at most.
#[derive(Debug, Default)]
pub(crate) struct Ready {
    runs: Mutex<VecDeque<Arc<Shared>>>,
    some: Notify,
}

impl Ready {
    /// The next run that has something to send.
    pub(crate) fn pop(&self) -> Option<Arc<Shared>> {
        let run = lock(&self.runs).pop_front()?;
        run.is_queued.store(false, Ordering::Release);
        Some(run)
    }

    /// Waits until there may be one. Cancel safe.
    pub(crate) async fn some(&self) {
        while lock(&self.runs).is_empty() {
            self.some.notified().await;
        }
    }

    /// Forgets the list; the next connection asks every run.
    pub(crate) fn clear(&self) {
        while self.pop().is_some() {}
    }
}

/// One run.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) local: u64,
    pub(crate) run: RunId,
    pub(crate) session: SessionId,
    pub(crate) agent: AgentName,
    pub(crate) fence: Fence,
    pub(crate) attempt: u32,
    /// Fires when the function should stop; `cause` says why.
    pub(crate) stop: CancellationToken,
    cause: Mutex<Option<Cause>>,
    outbox: Mutex<Outbox>,
    /// May be locked while `outbox` is, never the other way round.
    asked: Mutex<Asked>,
    /// Something changed: room, confirmation, fate, what is asked.
    changed: Notify,
    children: Mutex<HashMap<RunId, watch::Sender<ChildState>>>,
    /// Numbers the run's messages.
    pub(crate) messages: AtomicU64,
    is_queued: AtomicBool,
    ready: Arc<Ready>,
}

impl Shared {
    pub(crate) fn new(
        session: SessionId,
        agent: AgentName,
        attempt: u32,
        outbox: Outbox,
        asked: Asked,
        ready: Arc<Ready>,
    ) -> Self {
        let name = outbox.name().clone();
        Self {
            local: name.local,
            run: name.run,
            fence: name.fence,
            session,
            agent,
            attempt,
            stop: CancellationToken::new(),
            cause: Mutex::new(None),
            outbox: Mutex::new(outbox),
            asked: Mutex::new(asked),
            changed: Notify::new(),
            children: Mutex::default(),
            messages: AtomicU64::new(0),
            is_queued: AtomicBool::new(false),
            ready,
        }
    }

    /// Why the function should stop, if it should.
    pub(crate) fn cause(&self) -> Option<Cause> {
        *lock(&self.cause)
    }

    /// Tells the function to stop. The first cause stands, except that losing the run outdoes a request.
    pub(crate) fn stop(&self, cause: Cause) {
        let mut now = lock(&self.cause);
        if now.is_none() || cause == Cause::Fenced {
            *now = Some(cause);
        }
        drop(now);
        self.stop.cancel();
        self.changed.notify_waiters();
    }

    /// The run is no longer this worker's.
    pub(crate) fn fence(&self) {
        self.with(Outbox::fence);
        self.refuse_children(&Error::Fenced);
        self.stop(Cause::Fenced);
    }

    /// Takes in a control other than `cancel`.
    pub(crate) fn hear(self: &Arc<Self>, asked: WorkerControl) {
        let settlement = lock(&self.asked).hear(asked, Instant::now());
        if let Some(Settlement { control, refusal }) = settlement {
            // After the end there is nothing to settle: the end does it.
            drop(self.with(|outbox| outbox.settle(control, refusal)));
            self.offer();
        }
        self.changed.notify_waiters();
    }

    /// Looks at or changes what is asked of the run.
    pub(crate) fn with_asked<T>(&self, change: impl FnOnce(&mut Asked) -> T) -> T {
        change(&mut lock(&self.asked))
    }

    /// Whether the function stands still at its next write. What it writes after it was told to stop is its last word.
    pub(crate) fn is_held(&self) -> bool {
        self.cause().is_none() && self.with_asked(|asked| asked.is_paused())
    }

    /// Asks people. Completes with why the run does not go on here. **Not** cancel safe: the question may be under way.
    pub(crate) async fn suspend(self: &Arc<Self>, approvals: Vec<NewApproval>) -> Error {
        let request = Request::Suspend { approvals };
        match self.write(|outbox| outbox.request(request.clone())).await {
            Ok(()) => self.until(Outbox::suspended).await,
            Err(error) => error,
        }
    }

    /// Looks at or changes the outbox, and tells the connection if there is something to send now.
    pub(crate) fn with<T>(&self, change: impl FnOnce(&mut Outbox) -> T) -> T {
        change(&mut lock(&self.outbox))
    }

    /// Puts the run on the ready list if it has something to send.
    pub(crate) fn offer(self: &Arc<Self>) {
        let is_sendable = self.with(|outbox| outbox.is_sendable(Instant::now()));
        if is_sendable && !self.is_queued.swap(true, Ordering::AcqRel) {
            lock(&self.ready.runs).push_back(self.clone());
            self.ready.some.notify_one();
        }
    }

    /// Writes when there is room: what the server has not yet confirmed holds the function back, and so does a pause.
    pub(crate) async fn write<T>(
        self: &Arc<Self>,
        mut change: impl FnMut(&mut Outbox) -> Result<T, Error>,
    ) -> Result<T, Error> {
        // A function that writes without ever waiting for anything else must not keep its thread for itself.
        tokio::task::consume_budget().await;
        let done = self.until(|outbox| match outbox.check_open() {
            Err(error) => Some(Err(error)),
            Ok(()) if outbox.has_room() && !self.is_held() => Some(change(outbox)),
            Ok(()) => None,
        });
        let done = done.await;
        self.offer();
        done
    }

    /// Waits until `look` has an answer. Cancel safe.
    pub(crate) async fn until<T>(&self, mut look: impl FnMut(&mut Outbox) -> Option<T>) -> T {
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            // Registered before the look: a change in between is not missed.
            changed.as_mut().enable();
            if let Some(answer) = self.with(&mut look) {
                return answer;
            }
            changed.await;
        }
    }

    /// What replies mean for those who wait. True if the run is over.
    pub(crate) fn settle(&self, events: Vec<Event>) -> bool {
        let mut is_over = false;
        for event in events {
            match event {
                Event::ChildStarted(child) => self.child(&child, ChildState::Started),
                Event::ChildRefused(child, error) => self.child(&child, ChildState::Refused(error)),
                Event::SettleRefused(control) => self.with_asked(|asked| asked.refused(&control)),
                Event::Suspended => {
                    is_over = true;
                    self.refuse_children(&Error::Suspended);
                    self.stop(Cause::Suspended);
                }
                Event::Broken(_) => self.stop(Cause::Broken),
                // The function is done already.
                Event::EndRefused(_) => {}
                Event::Over => is_over = true,
            }
        }
        self.changed.notify_waiters();
        is_over
    }

    /// Begins to wait for a child run.
    pub(crate) fn expect_child(&self, child: RunId) -> watch::Receiver<ChildState> {
        let (sender, receiver) = watch::channel(ChildState::Asked);
        lock(&self.children).insert(child, sender);
        receiver
    }

    /// A child run got further.
    pub(crate) fn child(&self, child: &RunId, state: ChildState) {
        let mut children = lock(&self.children);
        let is_last = matches!(state, ChildState::Refused(_) | ChildState::Ended(_));
        if let Some(sender) = children.get(child) {
            sender.send_if_modified(|now| {
                // An end may overtake the confirmation of the start.
                let moves = !matches!(now, ChildState::Ended(_));
                if moves {
                    *now = state;
                }
                moves
            });
        }
        if is_last {
            children.remove(child);
        }
    }

    fn refuse_children(&self, error: &Error) {
        for (_, sender) in lock(&self.children).drain() {
            sender.send_replace(ChildState::Refused(error.clone()));
        }
    }
}
