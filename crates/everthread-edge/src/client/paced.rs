//! Attachments with a pace: one timer for all of a connection's.

use super::attachment::Mode;
use super::{Connection, End};
use everthread_store::Store;
use tokio::time::Instant;

impl<S: Store> Connection<S> {
    /// When this connection does something by itself next.
    pub(super) fn next_time(&self) -> Instant {
        self.paced.first().map_or(self.next_look, |(at, _)| self.next_look.min(*at))
    }

    /// Serves those on hold whose time has come, and looks at the connection's health when that is due.
    pub(super) fn on_time(&mut self) -> Result<(), End> {
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
        self.ready.push_back(id);
    }
}
