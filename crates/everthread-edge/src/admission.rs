//! How many connections become WebSockets within a second.
//!
//! When a node or a load balancer is gone, everybody it carried comes back at once. Each upgrade costs a handshake, a `hello`
//! and an attach; a node that takes more of them than it can carry out serves nobody. So a token bucket passes as many as
//! are good for it, and tells the others when to come again, each another time.

use crate::departure::random;
use crate::tail::lock;
use std::sync::Mutex;
use std::time::Duration;
use tokio::time::Instant;

/// Upgrades in a second, unless told otherwise: more than two cores carry out, with the attach that follows each.
pub const UPGRADES_PER_S: u32 = 10_000;
/// The shortest pause of who is refused.
const PAUSE_MIN: Duration = Duration::from_millis(500);
/// The longest.
const PAUSE_MAX: Duration = Duration::from_secs(10);

/// Passes a number of upgrades per second, and a second's worth of them at once.
#[derive(Debug)]
pub struct Admission {
    per_s: u32,
    bucket: Mutex<Bucket>,
}

#[derive(Debug)]
struct Bucket {
    /// At most a second's worth.
    tokens: f64,
    /// Those that were refused and are expected back.
    refused: f64,
    at: Instant,
}

impl Admission {
    /// A full bucket.
    pub fn new(per_s: u32) -> Self {
        let bucket = Bucket { tokens: f64::from(per_s), refused: 0.0, at: Instant::now() };
        Self { per_s, bucket: Mutex::new(bucket) }
    }

    /// Takes a token; if there is none, how long to stay away.
    pub fn pass(&self) -> Result<(), Duration> {
        self.pass_at(Instant::now())
    }

    fn pass_at(&self, now: Instant) -> Result<(), Duration> {
        let (mut bucket, per_s) = (lock(&self.bucket), f64::from(self.per_s));
        let gained = per_s * now.saturating_duration_since(bucket.at).as_secs_f64();
        bucket.at = now.max(bucket.at);
        bucket.tokens = (bucket.tokens + gained).min(per_s);
        bucket.refused = (bucket.refused - gained).max(0.0);
        if bucket.tokens >= 1.0 {
            bucket.tokens -= 1.0;
            return Ok(());
        }
        bucket.refused += 1.0;
        // Spread over the time that all of them take.
        let all = Duration::from_secs_f64((bucket.refused / per_s.max(1.0)).min(PAUSE_MAX.as_secs_f64()));
        drop(bucket);
        let spread = (PAUSE_MIN + all).min(PAUSE_MAX - PAUSE_MIN);
        let thousandth = u32::try_from(random() % 1000).unwrap_or(0);
        Err(PAUSE_MIN + spread * thousandth / 1000)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_storm_passes_at_the_rate_and_those_refused_are_told_different_times() {
        let (admission, now) = (Admission::new(100), Instant::now());
        let refused: Vec<Duration> = (0..600).filter_map(|_| admission.pass_at(now).err()).collect();
        assert!((499..=500).contains(&refused.len()), "{}", refused.len());
        let told: std::collections::HashSet<Duration> = refused.iter().copied().collect();
        assert!(told.len() > 100, "they would come back together: {told:?}");
        assert!(refused.iter().all(|pause| (PAUSE_MIN..=PAUSE_MAX).contains(pause)));
        assert!(refused.iter().max() > Some(&Duration::from_secs(3)), "500 need five seconds");
        let later = now + Duration::from_secs(1);
        let passed = (0..600).filter(|_| admission.pass_at(later).is_ok()).count();
        assert!((99..=101).contains(&passed), "{passed}");
    }

    #[test]
    fn what_is_not_used_is_kept_for_a_second_and_no_longer() {
        let admission = Admission::new(10);
        let later = Instant::now() + Duration::from_secs(3600);
        assert_eq!((0..100).filter(|_| admission.pass_at(later).is_ok()).count(), 10);
    }
}
