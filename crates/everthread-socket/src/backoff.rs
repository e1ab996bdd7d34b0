//! How long to wait before the next try: doubled each time up to a cap, with jitter so that a thousand clients that lost
//! the same node do not come back in the same millisecond.

use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::time::Duration;

/// Waiting times between tries.
#[derive(Debug, Clone)]
pub struct Backoff {
    first: Duration,
    cap: Duration,
    next: Duration,
}

impl Backoff {
    /// Begins with about `first` and never waits longer than `cap`.
    pub fn new(first: Duration, cap: Duration) -> Self {
        Self { first, cap, next: first }
    }

    /// The next waiting time: between half of it and the whole.
    pub fn step(&mut self) -> Duration {
        let whole = self.next;
        self.next = (whole * 2).min(self.cap);
        jitter(whole)
    }

    /// It worked: begin anew.
    pub fn reset(&mut self) {
        self.next = self.first;
    }
}

/// Between half of `whole` and the whole.
fn jitter(whole: Duration) -> Duration {
    let half = whole / 2;
    let nanos = u64::try_from(half.as_nanos()).unwrap_or(u64::MAX);
    half + Duration::from_nanos(random() % nanos.max(1))
}

/// A number nobody can guess cheaply: the standard library seeds its hash maps from the system's randomness. Good for
/// jitter and names, not for secrets.
pub fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_the_cap_and_begin_anew_after_a_success() {
        let (first, cap) = (Duration::from_millis(100), Duration::from_secs(1));
        let mut backoff = Backoff::new(first, cap);
        for whole in [100, 200, 400, 800, 1000, 1000] {
            let wait = backoff.step();
            assert!(
                wait >= Duration::from_millis(whole / 2) && wait <= Duration::from_millis(whole),
                "{wait:?}"
            );
        }
        backoff.reset();
        assert!(backoff.step() <= first);
    }
}
