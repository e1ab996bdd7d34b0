//! Attachments with a pace: one timer for all of a connection's.

use super::attachment::Mode;
use super::{Connection, End};
use everthread_store::Store;
use std::pin::Pin;
use std::task::Context;
use tokio::time::{Instant, Sleep};

impl<S: Store> Connection<S> {
    /// When this connection does something by itself next.
    fn next_time(&self) -> Instant {
        self.paced.first().map_or(self.next_look, |(at, _)| self.next_look.min(*at))
    }

    /// Does what is due; false if nothing was, and the timer wakes the task in time.
    pub(super) fn poll_time(
        &mut self,
        cx: &mut Context<'_>,
        mut timer: Pin<&mut Sleep>,
    ) -> Result<bool, End> {
        // One that is too early is left as it is: to move it costs more than to be woken for nothing.
        let next = self.next_time();
        if next < timer.deadline() {
            timer.as_mut().reset(next);
        }
        if timer.as_mut().poll(cx).is_pending() {
            return Ok(false);
        }
        self.on_time()?;
        timer.reset(self.next_time());
        Ok(true)
    }

    /// Serves those on hold whose time has come, and looks at the connection's health when that is due.
    fn on_time(&mut self) -> Result<(), End> {
        let now = Instant::now();
        while let Some((_, id)) = self.paced.first().filter(|(at, _)| *at <= now).copied() {
            self.paced.pop_first();
            self.make_ready(id);
        }
        if self.next_look <= now { self.look() } else { Ok(()) }
    }

    /// Whether an attachment is not to be sent anything yet; then it is on hold. Who is catching up never is.
    pub(super) fn holds(&mut self, id: u32) -> bool {
        let Some(attachment) = self.attachments.get(&id) else { return false };
        let pace = attachment.pace.filter(|_| attachment.mode == Mode::Live);
        let Some(until) = pace.and_then(|pace| pace.waits()) else { return false };
        // Before the ring is looked at: what is urgent and comes after the look must mark the attachment.
        attachment.waiter.hold();
        if !attachment.tail.may_wait(attachment.cursor) {
            return false;
        }
        // In here once: the time moves only when something is sent.
        self.paced.insert((until, id));
        true
    }

    /// An attachment was sent something of the ring: it may have more, now or when its pace lets it.
    pub(super) fn sent(&mut self, id: u32) {
        let Some(attachment) = self.attachments.get_mut(&id) else { return };
        if let Some(pace) = attachment.pace.as_mut().filter(|_| attachment.mode == Mode::Live) {
            pace.sent();
            if self.holds(id) {
                return;
            }
        }
        self.make_ready(id);
    }
}
