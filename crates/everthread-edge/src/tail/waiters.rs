//! Who waits for something on this node, and how it is woken: one wake-up per connection, however much there is for it.

use super::lock;
use futures_util::task::AtomicWaker;
use std::future::poll_fn;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

/// Marked when the node stops, by a [`Wake`] that is used as a waker.
pub const STOPPED: u32 = u32::MAX;

/// Wakes one connection, and tells it which of its attachments have something new. Only one task may wait for it.
///
/// As a [`std::task::Wake`] it marks [`STOPPED`]: so a connection polls the one future that the whole node shares only when
/// there is something in it.
#[derive(Debug, Default)]
pub struct Wake {
    task: AtomicWaker,
    /// Something was marked since the last look; set behind what was marked, cleared before it is taken.
    is_marked: AtomicBool,
    dirty: Mutex<Vec<u32>>,
}

impl Wake {
    /// Marks an attachment and wakes the connection.
    pub fn mark(&self, attachment: u32) {
        lock(&self.dirty).push(attachment);
        if !self.is_marked.swap(true, Ordering::SeqCst) {
            self.task.wake();
        }
    }

    /// Ready when something was marked since the last call of `take`.
    pub fn poll_woken(&self, cx: &Context<'_>) -> Poll<()> {
        if self.is_marked.load(Ordering::SeqCst) {
            return Poll::Ready(());
        }
        self.task.register(cx.waker());
        // What was marked before the waker stood there has woken nobody.
        if self.is_marked.load(Ordering::SeqCst) { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Ready when something was marked since the last call of `take`. Cancel safe.
    pub async fn woken(&self) {
        poll_fn(|cx| self.poll_woken(cx)).await;
    }

    /// What was marked.
    pub fn take(&self, into: &mut Vec<u32>) {
        self.is_marked.store(false, Ordering::SeqCst);
        let mut dirty = lock(&self.dirty);
        if into.is_empty() { std::mem::swap(into, &mut dirty) } else { into.append(&mut dirty) }
    }
}

impl std::task::Wake for Wake {
    fn wake(self: Arc<Self>) {
        self.mark(STOPPED);
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
        let mut all = lock(&self.list.all);
        if let Ok(index) = all.binary_search_by_key(&self.id, |waiting| waiting.id) {
            all.remove(index);
            if all.capacity() > 8 && all.len() < all.capacity() / 4 {
                all.shrink_to_fit();
            }
        }
    }
}

/// Attachments that wait for the same thing.
#[derive(Default)]
pub(crate) struct Waiters {
    /// In the order of their ids.
    all: Mutex<Vec<Waiting>>,
    next: AtomicU64,
}

struct Waiting {
    id: u64,
    wake: Arc<Wake>,
    attachment: u32,
    state: Arc<AtomicU8>,
}

impl Waiters {
    /// Marks `attachment` at `wake` whenever all are woken from here on.
    pub(crate) fn wait(self: &Arc<Self>, wake: Arc<Wake>, attachment: u32) -> Waiter {
        let state = Arc::new(AtomicU8::new(ARMED));
        let mut all = lock(&self.all);
        // Under the lock, so that the list stays in order.
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        if all.is_empty() {
            // Most have one: a list grows to four by itself.
            all.reserve_exact(1);
        }
        all.push(Waiting { id, wake, attachment, state: state.clone() });
        drop(all);
        Waiter { list: self.clone(), id, state }
    }

    /// Marks everybody who is not marked yet.
    pub(crate) fn wake_all(&self) {
        self.wake(true);
    }

    /// Marks everybody who waits for this and is not marked yet: those on hold only if it is urgent.
    pub(super) fn wake(&self, is_urgent: bool) {
        for waiting in lock(&self.all).iter() {
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
        lock(&self.all).len() > 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::task::noop_waker_ref;
    use std::sync::atomic::AtomicUsize;
    use std::task::Waker;

    /// Counts how often a task would have been run again.
    #[derive(Default)]
    struct Runs(AtomicUsize);

    impl std::task::Wake for Runs {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn taken(wake: &Wake) -> Vec<u32> {
        let mut marked = Vec::new();
        wake.take(&mut marked);
        marked
    }

    #[test]
    fn what_was_marked_before_anybody_looked_is_found_at_once() {
        let wake = Wake::default();
        wake.mark(7);
        let cx = Context::from_waker(noop_waker_ref());
        assert!(wake.poll_woken(&cx).is_ready());
        assert_eq!(taken(&wake), [7]);
        assert!(wake.poll_woken(&cx).is_pending());
    }

    #[test]
    fn many_marks_are_one_wake_up_until_they_are_taken() {
        let (wake, runs) = (Wake::default(), Arc::<Runs>::default());
        let waker = Waker::from(runs.clone());
        let cx = Context::from_waker(&waker);
        assert!(wake.poll_woken(&cx).is_pending());
        (1..=3).for_each(|attachment| wake.mark(attachment));
        assert_eq!(runs.0.load(Ordering::SeqCst), 1);
        assert_eq!(taken(&wake), [1, 2, 3]);
        assert!(wake.poll_woken(&cx).is_pending());
        wake.mark(4);
        assert_eq!(runs.0.load(Ordering::SeqCst), 2);
    }

    #[test]
    fn what_is_taken_comes_behind_what_was_not_served_yet() {
        let wake = Wake::default();
        wake.mark(2);
        let mut marked = vec![1];
        wake.take(&mut marked);
        assert_eq!(marked, [1, 2]);
    }

    #[test]
    fn as_a_waker_it_says_that_the_node_stops() {
        let wake = Arc::<Wake>::default();
        Waker::from(wake.clone()).wake();
        assert_eq!(taken(&wake), [STOPPED]);
    }

    #[test]
    fn an_attachment_is_marked_once_until_it_looks_again() {
        let (all, wake) = (Arc::<Waiters>::default(), Arc::<Wake>::default());
        let waiter = all.wait(wake.clone(), 1);
        all.wake_all();
        all.wake_all();
        assert_eq!(taken(&wake), [1]);
        all.wake_all();
        assert_eq!(taken(&wake), [0; 0], "it has not looked");
        waiter.rearm();
        all.wake(false);
        assert_eq!(taken(&wake), [1]);
    }

    #[test]
    fn who_is_on_hold_hears_only_of_what_is_urgent() {
        let (all, wake) = (Arc::<Waiters>::default(), Arc::<Wake>::default());
        let (held, other) = (all.wait(wake.clone(), 1), all.wait(wake.clone(), 2));
        held.hold();
        all.wake(false);
        assert_eq!(taken(&wake), [2]);
        all.wake(true);
        assert_eq!(taken(&wake), [1], "the other has not looked yet");
        drop(other);
    }

    #[test]
    fn who_leaves_is_not_marked_any_more_and_all_others_are() {
        let (all, wake) = (Arc::<Waiters>::default(), Arc::<Wake>::default());
        let mut waiters: Vec<_> = (0..40).map(|attachment| all.wait(wake.clone(), attachment)).collect();
        assert!(all.is_shared());
        drop(waiters.remove(17));
        waiters.drain(..10);
        all.wake_all();
        let expected: Vec<u32> = (10..40).filter(|attachment| *attachment != 17).collect();
        assert_eq!(taken(&wake), expected);
        waiters.truncate(1);
        assert!(!all.is_shared());
        assert!(lock(&all.all).capacity() <= 8, "room that nobody needs is given back");
    }
}
