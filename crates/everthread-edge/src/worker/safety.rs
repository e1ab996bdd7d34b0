//! Which batches of a run its worker may forget. No I/O.
//!
//! A worker keeps what a failover could lose, and sends it again when the store finds a gap. **Invariant:** what is called safe
//! was confirmed by the store, or is as old as it says that it must be, or was more than a worker should have to keep where
//! nobody can confirm anything.

use everthread_protocol::{Fence, RunId, SessionKey};
use everthread_store::{Keeping, Written};
use tokio::time::Instant;

/// Bytes of a run that its worker keeps before it is told sooner than usual: half of what makes it hold its agent back.
const KEPT_BYTES_MAX: usize = 512 * 1024;

/// What is to be confirmed.
#[derive(Debug)]
pub(super) struct Unsure {
    pub run: RunId,
    pub fence: Fence,
    pub batch: u64,
    pub written: Written,
}

/// The batches of one run.
#[derive(Debug)]
pub(super) struct Safety {
    keeping: Keeping,
    incarnation: u64,
    /// Up to here they may be forgotten.
    safe: u64,
    /// The last that is written, if it is not safe.
    last: Option<(u64, Written)>,
    /// It becomes safe by age.
    ageing: Option<(u64, Instant)>,
    is_confirming: bool,
    /// Of frames since something was last called safe.
    bytes: usize,
}

impl Safety {
    pub fn new(keeping: Keeping) -> Self {
        let (last, ageing) = (None, None);
        Self { keeping, incarnation: 0, safe: 0, last, ageing, is_confirming: false, bytes: 0 }
    }

    /// A frame of so many bytes goes to the store.
    pub fn sent(&mut self, bytes: usize) {
        self.bytes += bytes;
    }

    /// A batch is written; tells up to which one they may be forgotten. `is_sure`: this one was confirmed.
    pub fn written(&mut self, batch: u64, incarnation: u64, written: &Written, is_sure: bool) -> u64 {
        if incarnation > self.incarnation {
            (self.incarnation, self.safe, self.last, self.ageing) = (incarnation, 0, None, None);
        }
        if self.last.as_ref().is_some_and(|(last, _)| *last > batch) {
            // The log has lost its end, and gets it again.
            self.ageing = None;
        }
        self.safe = self.safe.min(batch);
        let is_much = self.bytes > KEPT_BYTES_MAX && matches!(self.keeping, Keeping::For(_));
        if is_sure || is_much || self.keeping == Keeping::Answered {
            (self.safe, self.last, self.bytes) = (batch, None, 0);
        } else if batch > self.safe {
            self.last = Some((batch, Written { duplicate: None, ..written.clone() }));
        }
        self.safe
    }

    /// Whether its worker keeps so much that confirming cannot wait for the next heartbeat.
    pub fn is_pressing(&self) -> bool {
        self.bytes > KEPT_BYTES_MAX && self.keeping == Keeping::Confirmed && !self.is_confirming
    }

    /// What the store is to be asked about, if anything; it is answered by [`Safety::confirmed`].
    pub fn confirm(&mut self) -> Option<(u64, Written)> {
        let unsure = self.last.as_ref().filter(|_| !self.is_confirming)?.clone();
        (self.is_confirming, self.bytes) = (true, 0);
        Some(unsure)
    }

    /// The store has answered; tells up to which batch they may be forgotten now, if that is news.
    pub fn confirmed(&mut self, batch: u64, is_sure: bool) -> Option<u64> {
        self.is_confirming = false;
        is_sure.then(|| self.release(batch)).flatten()
    }

    /// A heartbeat has gone by. Tells what has become safe by age, if anything has.
    pub fn tick(&mut self, keeping: Keeping, now: Instant) -> Option<u64> {
        self.keeping = keeping;
        let age = match keeping {
            Keeping::For(age) => age,
            Keeping::Answered | Keeping::Confirmed => {
                self.ageing = None;
                return None;
            }
        };
        let old = self.ageing.take_if(|(_, since)| now.duration_since(*since) >= age);
        if self.ageing.is_none() {
            self.ageing = self.last.as_ref().map(|(batch, _)| (*batch, now));
        }
        old.and_then(|(batch, _)| self.release(batch))
    }

    fn release(&mut self, batch: u64) -> Option<u64> {
        self.last.take_if(|(last, _)| *last <= batch);
        if batch <= self.safe {
            return None;
        }
        self.safe = batch;
        Some(batch)
    }

    /// Whether the store is to be asked.
    pub fn wants_confirming(&self) -> bool {
        self.keeping == Keeping::Confirmed
    }
}

/// What became of a question to the store.
#[derive(Debug)]
pub(super) struct Confirmed {
    pub run: RunId,
    pub fence: Fence,
    pub batch: u64,
    pub is_sure: bool,
}

/// What is asked about one session.
pub(super) type Question = (SessionKey, Unsure);

#[cfg(test)]
mod tests {
    use super::*;
    use everthread_protocol::{Epoch, Millis, Seq, Version};
    use std::time::Duration;

    const AGE: Duration = Duration::from_secs(2);

    fn written() -> Written {
        let epoch = Epoch(1);
        let version = Version { epoch, n: 1 };
        let (to, at, folded_to) = (Seq(1), Millis(1), Seq(0));
        Written { epoch, to, at, version, fence: None, folded_to, duplicate: None }
    }

    #[test]
    fn what_is_durable_with_its_answer_is_safe_at_once() {
        let mut safety = Safety::new(Keeping::Answered);
        assert_eq!(safety.written(1, 1, &written(), false), 1);
        assert_eq!(safety.written(2, 1, &written(), false), 2);
        assert!(safety.confirm().is_none());
    }

    #[test]
    fn what_replicas_are_to_have_is_safe_when_they_do() {
        let mut safety = Safety::new(Keeping::Confirmed);
        assert_eq!(safety.written(1, 1, &written(), false), 0);
        assert_eq!(safety.written(2, 1, &written(), false), 0);
        assert_eq!(safety.confirm().map(|(batch, _)| batch), Some(2));
        assert_eq!(safety.written(3, 1, &written(), false), 0);
        assert!(safety.confirm().is_none(), "one question at a time");
        assert_eq!(safety.confirmed(2, true), Some(2));
        assert_eq!(safety.written(4, 1, &written(), false), 2);
        assert_eq!(safety.confirm().map(|(batch, _)| batch), Some(4));
        assert_eq!(safety.confirmed(4, false), None);
        assert_eq!(safety.written(5, 1, &written(), true), 5, "it was confirmed by itself");
        assert!(safety.confirm().is_none());
    }

    #[tokio::test]
    async fn what_nobody_can_confirm_is_safe_by_age() {
        let (mut safety, start) = (Safety::new(Keeping::For(AGE)), Instant::now());
        assert_eq!(safety.written(1, 1, &written(), false), 0);
        assert_eq!(safety.tick(Keeping::For(AGE), start), None);
        assert_eq!(safety.written(2, 1, &written(), false), 0);
        assert_eq!(safety.tick(Keeping::For(AGE), start + AGE / 2), None);
        assert_eq!(safety.tick(Keeping::For(AGE), start + AGE), Some(1));
        assert_eq!(safety.tick(Keeping::For(AGE), start + AGE * 3 / 2), None);
        assert_eq!(safety.tick(Keeping::For(AGE), start + AGE * 2), Some(2));
        assert_eq!(safety.tick(Keeping::For(AGE), start + AGE * 9), None, "nothing is left");
    }

    #[tokio::test]
    async fn a_tail_that_is_lost_and_written_again_is_not_safe_because_it_once_was_there() {
        let (mut safety, start) = (Safety::new(Keeping::For(AGE)), Instant::now());
        safety.written(9, 1, &written(), false);
        assert_eq!(safety.tick(Keeping::For(AGE), start), None);
        assert_eq!(safety.written(5, 1, &written(), false), 0);
        assert_eq!(safety.tick(Keeping::For(AGE), start + AGE), None, "it is five that ages now");
        assert_eq!(safety.tick(Keeping::For(AGE), start + AGE * 2), Some(5));
    }

    #[test]
    fn a_worker_that_must_keep_much_is_told_sooner() {
        let mut safety = Safety::new(Keeping::Confirmed);
        safety.sent(KEPT_BYTES_MAX);
        safety.written(1, 1, &written(), false);
        assert!(!safety.is_pressing());
        safety.sent(1);
        assert!(safety.is_pressing());
        assert!(safety.confirm().is_some());
        assert!(!safety.is_pressing());
        let mut alone = Safety::new(Keeping::For(AGE));
        alone.sent(KEPT_BYTES_MAX + 1);
        assert!(!alone.is_pressing());
        assert_eq!(alone.written(1, 1, &written(), false), 1, "there is nobody to ask");
        assert_eq!(alone.written(2, 1, &written(), false), 1);
    }

    #[test]
    fn another_attempt_begins_anew() {
        let mut safety = Safety::new(Keeping::Confirmed);
        safety.written(7, 1, &written(), true);
        assert_eq!(safety.written(1, 2, &written(), false), 0);
    }
}
