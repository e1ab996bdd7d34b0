//! Controls without an outcome, across sockets. No I/O.
//!
//! Receipts end with the socket they were asked on, so a control is asked again on the next one, under its id: it is
//! answered with how far it is. A socket that lives may have lost sight of one, too (its node forgot it): so it is asked
//! again from time to time. That makes every handle end.

use crate::control::ControlBody;
use crate::error::Error;
use everthread_protocol::ControlId;
use everthread_protocol::frame::{Receipt, Stage};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// How long one is left alone before it is asked again.
const ASK_AGAIN: Duration = Duration::from_secs(25);
/// After an error that may go away.
const RETRY: Duration = Duration::from_millis(500);

/// One control.
struct Open {
    /// Of the follower it was asked with.
    key: u64,
    body: ControlBody,
    receipts: mpsc::Sender<Result<Receipt, Error>>,
    /// How far the handle knows it to be.
    rank: u8,
    /// When it is asked next; none if at once.
    again_at: Option<Instant>,
}

/// Controls without an outcome.
#[derive(Default)]
pub(crate) struct Controls {
    open: Vec<Open>,
}

impl Controls {
    pub(crate) fn len(&self) -> usize {
        self.open.len()
    }

    pub(crate) fn ask(
        &mut self,
        key: u64,
        body: ControlBody,
        receipts: mpsc::Sender<Result<Receipt, Error>>,
    ) {
        self.open.push(Open { key, body, receipts, rank: 0, again_at: None });
    }

    /// When one is asked next, of those whose session is attached.
    pub(crate) fn next_try(&self, is_attached: impl Fn(u64) -> bool) -> Option<Instant> {
        self.open.iter().filter(|open| is_attached(open.key)).filter_map(|open| open.again_at).min()
    }

    /// The frames of those that are due; `number` gives the attachment of a session.
    pub(crate) fn due(&mut self, now: Instant, number: impl Fn(u64) -> Option<u32>) -> Vec<String> {
        self.open.retain(|open| !open.receipts.is_closed());
        let mut frames = Vec::new();
        for open in self.open.iter_mut().filter(|open| open.again_at.is_none_or(|at| at <= now)) {
            if let Some(number) = number(open.key) {
                frames.push(open.body.frame(number));
                open.again_at = Some(now + ASK_AGAIN);
            }
        }
        frames
    }

    /// The socket is gone: all are asked on the next one.
    pub(crate) fn disconnected(&mut self) {
        for open in &mut self.open {
            open.again_at = None;
        }
    }

    /// The log of that session has lost its end, and what was asked there may be gone with it.
    pub(crate) fn ask_again(&mut self, key: u64) {
        for open in self.open.iter_mut().filter(|open| open.key == key) {
            open.again_at = None;
        }
    }

    /// A control got further. What the handle knows already is not said twice.
    pub(crate) fn receipt(&mut self, receipt: Receipt) {
        let Some(at) = self.position(&receipt.control) else { return };
        let open = &mut self.open[at];
        let rank = match receipt.stage {
            Stage::Accepted => 1,
            Stage::Delivered { .. } => 2,
            Stage::Settled { .. } => 3,
        };
        if rank <= open.rank {
            return;
        }
        open.rank = rank;
        // There is room for every stage. Nobody may be listening any more.
        drop(open.receipts.try_send(Ok(receipt)));
        if rank == 3 {
            self.open.swap_remove(at);
        }
    }

    /// A request of that id failed. Gives the error back if it was none of these.
    pub(crate) fn failed(&mut self, id: &str, error: Error, now: Instant) -> Option<Error> {
        let Some(at) = self.open.iter().position(|open| open.body.id.as_str() == id) else {
            return Some(error);
        };
        if error.is_retryable() && !error.is_verdict() {
            let wait = if let Error::Refused { after_ms: Some(ms), .. } = error {
                Duration::from_millis(ms).clamp(RETRY, ASK_AGAIN)
            } else {
                RETRY
            };
            self.open[at].again_at = Some(now + wait);
        } else {
            drop(self.open.swap_remove(at).receipts.try_send(Err(error)));
        }
        None
    }

    /// Nobody follows that session any more, or any if `key` is none.
    pub(crate) fn give_up(&mut self, key: Option<u64>, error: &Error) {
        for open in self.open.extract_if(.., |open| key.is_none_or(|key| open.key == key)) {
            drop(open.receipts.try_send(Err(error.clone())));
        }
    }

    fn position(&self, id: &ControlId) -> Option<usize> {
        self.open.iter().position(|open| open.body.id == *id)
    }
}

#[cfg(test)]
mod tests;
