//! When the leases of runs end: in memory only, since a renewal must not cost a commit.
//!
//! Kept by [`super::views`] under the lock of what it shows, so that nobody sees a fence without its lease; and apart from
//! the views, so that a session which leaves the memory keeps its leases. Invariant: a lease counts only together with
//! the fence that it was given with, so one that is left over is never seen. After a restart nothing is known of any
//! lease until it is renewed.

use everthread_protocol::{Fence, Millis, RunId, SessionKey};
use std::collections::{BTreeMap, HashMap};

/// The lease that came with a fence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Lease {
    /// The fence.
    pub fence: Fence,
    /// When it ends.
    pub ends: Millis,
}

/// The leases of all sessions.
#[derive(Debug, Default)]
pub(super) struct Leases(HashMap<SessionKey, BTreeMap<RunId, Lease>>);

impl Leases {
    /// A run has got a fence and a lease.
    pub fn grant(&mut self, key: &SessionKey, run: RunId, lease: Lease) {
        self.0.entry(key.clone()).or_default().insert(run, lease);
    }

    /// These are the fences of the session: forgets the leases of all others.
    pub fn keep(&mut self, key: &SessionKey, fences: &BTreeMap<RunId, Fence>) {
        let Some(leases) = self.0.get_mut(key) else { return };
        leases.retain(|run, lease| fences.get(run) == Some(&lease.fence));
        if leases.is_empty() {
            self.0.remove(key);
        }
    }

    /// Leases of these runs end at `ends` or later, where the session's fences are as named. `fences` may be older than
    /// the lease that is here: then that one stays.
    pub fn renew(
        &mut self,
        key: &SessionKey,
        fences: &BTreeMap<RunId, Fence>,
        runs: &[(RunId, Fence)],
        ends: Millis,
    ) {
        for (run, fence) in runs.iter().filter(|(run, fence)| fences.get(run) == Some(fence)) {
            let leases = self.0.entry(key.clone()).or_default();
            let lease = leases.entry(run.clone()).or_insert(Lease { fence: *fence, ends });
            if lease.fence < *fence {
                *lease = Lease { fence: *fence, ends };
            } else if lease.fence == *fence {
                lease.ends = lease.ends.max(ends);
            }
        }
    }

    /// When the leases that belong to these fences end.
    pub fn of(&self, key: &SessionKey, fences: &BTreeMap<RunId, Fence>) -> Vec<(RunId, Millis)> {
        let Some(leases) = self.0.get(key) else { return Vec::new() };
        let lease = |(run, fence): (&RunId, &Fence)| {
            let lease = leases.get(run).filter(|lease| lease.fence == *fence)?;
            Some((run.clone(), lease.ends))
        };
        fences.iter().filter_map(lease).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run() -> RunId {
        "r1".parse().unwrap()
    }

    fn fences(fence: u64) -> BTreeMap<RunId, Fence> {
        BTreeMap::from([(run(), Fence(fence))])
    }

    #[test]
    fn fences_read_before_a_takeover_do_not_bring_back_the_lease_of_before() {
        let (mut leases, key) = (Leases::default(), "acme/s".parse().unwrap());
        leases.grant(&key, run(), Lease { fence: Fence(2), ends: Millis(20) });
        leases.renew(&key, &fences(1), &[(run(), Fence(1))], Millis(99));
        assert_eq!(leases.of(&key, &fences(2)), [(run(), Millis(20))]);
        assert_eq!(leases.of(&key, &fences(1)), []);
    }

    #[test]
    fn nothing_stays_behind_of_a_run_that_has_lost_its_fence() {
        let (mut leases, key) = (Leases::default(), "acme/s".parse().unwrap());
        leases.grant(&key, run(), Lease { fence: Fence(1), ends: Millis(20) });
        leases.keep(&key, &fences(1));
        assert_eq!(leases.of(&key, &fences(1)).len(), 1);
        leases.keep(&key, &fences(2));
        assert!(leases.0.is_empty());
    }
}
