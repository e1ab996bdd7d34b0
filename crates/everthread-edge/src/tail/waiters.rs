//! Who waits for something on this node, and how it is woken: one wake-up per connection, however much there is for it.

use super::lock;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use tokio::sync::Notify;

/// Wakes one connection, and tells it which of its attachments have something new.
#[derive(Debug, Default)]
pub struct Wake {
    notify: Notify,
    dirty: Mutex<Vec<u32>>,
}

impl Wake {
    /// Marks an attachment and wakes the connection.
    pub fn mark(&self, attachment: u32) {
        lock(&self.dirty).push(attachment);
        self.notify.notify_one();
    }

    /// Ready when something was marked since the last call of `take`. Cancel safe.
    pub async fn woken(&self) {
        self.notify.notified().await;
    }

    /// What was marked.
    pub fn take(&self, into: &mut Vec<u32>) {
        into.append(&mut lock(&self.dirty));
    }
}

/// One attachment's registration with a tail; dropping it ends the wake-ups.
pub struct Waiter {
    list: Arc<Waiters>,
    id: u64,
    state: Arc<AtomicU8>,
}

/// The next change marks it.
const ARMED: u8 = 0;
/// It is marked, and has not looked yet.
const MARKED: u8 = 1;
/// Only a change that cannot wait marks it: it looks by itself in time.
const HELD: u8 = 2;

impl Waiter {
    /// From here on the next change marks the attachment again. Call before reading the ring.
    pub fn rearm(&self) {
        self.state.store(ARMED, Ordering::SeqCst);
    }

    /// From here on only what cannot wait marks it. Call before looking at the ring.
    pub fn hold(&self) {
        self.state.store(HELD, Ordering::SeqCst);
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        lock(&self.list.by_id).remove(&self.id);
    }
}

/// Attachments that wait for the same thing.
#[derive(Default)]
pub(crate) struct Waiters {
    by_id: Mutex<HashMap<u64, Waiting>>,
    next: AtomicU64,
}

struct Waiting {
    wake: Arc<Wake>,
    attachment: u32,
    state: Arc<AtomicU8>,
}

impl Waiters {
    /// Marks `attachment` at `wake` whenever all are woken from here on.
    pub(crate) fn wait(self: &Arc<Self>, wake: Arc<Wake>, attachment: u32) -> Waiter {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let state = Arc::new(AtomicU8::new(ARMED));
        let waiting = Waiting { wake, attachment, state: state.clone() };
        lock(&self.by_id).insert(id, waiting);
        Waiter { list: self.clone(), id, state }
    }

    /// Marks everybody who is not marked yet.
    pub(crate) fn wake_all(&self) {
        self.wake(true);
    }

    /// Marks everybody who waits for this and is not marked yet: those on hold only if it is urgent.
    pub(super) fn wake(&self, is_urgent: bool) {
        for waiting in lock(&self.by_id).values() {
            let turn = |from| {
                waiting.state.compare_exchange(from, MARKED, Ordering::SeqCst, Ordering::SeqCst).is_ok()
            };
            if turn(ARMED) || is_urgent && turn(HELD) {
                waiting.wake.mark(waiting.attachment);
            }
        }
    }

    /// Whether more than one waits.
    pub(super) fn is_shared(&self) -> bool {
        lock(&self.by_id).len() > 1
    }
}
