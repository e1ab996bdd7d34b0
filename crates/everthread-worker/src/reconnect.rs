//! How long a worker that has lost its connection waits before it tries again: not long while it can still come back to
//! its runs, longer and longer when nothing hangs on it.

use everthread_socket::Backoff;
use std::time::{Duration, Instant};

const FIRST: Duration = Duration::from_millis(100);
const CAP: Duration = Duration::from_secs(3);
/// A connection that lasted this long was a good one: the next may be made at once.
const GOOD: Duration = Duration::from_millis(250);
/// With runs at hand it tries at least this often. Unless told otherwise a node gives them away 1.5 seconds after a
/// socket closed.
const RETURN_CAP: Duration = Duration::from_millis(400);
/// … for so long after it lost its connection: then they have gone to others, unless leases are longer than usual.
const RETURN_WITHIN: Duration = Duration::from_secs(10);

/// The waits between tries.
#[derive(Debug)]
pub(crate) struct Reconnect {
    backoff: Backoff,
    /// … while there are runs to come back to.
    hurried: Backoff,
    /// Since when there is no connection.
    lost: Option<Instant>,
}

impl Reconnect {
    pub(crate) fn new() -> Self {
        Self { backoff: Backoff::new(FIRST, CAP), hurried: Backoff::new(FIRST, RETURN_CAP), lost: None }
    }

    /// How long to wait after a try that failed at `now`, or after a connection that ended then and had `lasted` so long
    /// since its welcome.
    pub(crate) fn wait(&mut self, lasted: Option<Duration>, holds_runs: bool, now: Instant) -> Duration {
        if lasted.is_some() {
            self.lost = None;
        }
        if lasted.is_some_and(|lasted| lasted >= GOOD) {
            self.backoff.reset();
            self.hurried.reset();
        }
        let lost = *self.lost.get_or_insert(now);
        let (wait, hurried) = (self.backoff.step(), self.hurried.step());
        let hurries = holds_runs && now.duration_since(lost) < RETURN_WITHIN;
        if hurries { hurried } else { wait }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Option<Duration> = Some(Duration::from_millis(10));

    /// The waits of a worker that fails each time, as long as `lasted`.
    fn waits(lasted: Option<Duration>, holds_runs: bool) -> Vec<Duration> {
        let (mut reconnect, mut now) = (Reconnect::new(), Instant::now());
        let step = |_| {
            let wait = reconnect.wait(lasted, holds_runs, now);
            now += wait;
            wait
        };
        (0..40).map(step).collect()
    }

    #[test]
    fn a_worker_whose_good_connections_are_cut_comes_back_at_once_each_time() {
        assert!(waits(Some(GOOD), false).iter().all(|wait| *wait <= FIRST));
    }

    #[test]
    fn a_worker_with_runs_comes_back_soon_however_short_its_connections_are() {
        assert!(waits(SHORT, true).iter().all(|wait| *wait <= RETURN_CAP));
    }

    #[test]
    fn waits_grow_where_nothing_hangs_on_them() {
        for lasted in [SHORT, None] {
            assert!(*waits(lasted, false).last().unwrap() >= CAP / 2);
        }
    }

    #[test]
    fn a_worker_that_does_not_come_back_in_time_does_not_hurry_any_more() {
        let waits = waits(None, true);
        let hurried = waits.iter().take_while(|wait| **wait <= RETURN_CAP);
        let hurried: Duration = hurried.sum();
        assert!(hurried >= RETURN_WITHIN && hurried <= RETURN_WITHIN + RETURN_CAP, "{hurried:?}");
        assert!(*waits.last().unwrap() >= CAP / 2);
    }
}
