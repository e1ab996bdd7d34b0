//! What is asked when, and what came of it: the figures of a control, from its due time to its outcome everywhere.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Pause between two kinds.
const PAUSE: Duration = Duration::from_secs(1);

/// One control, in µs after the start. Zero: not yet.
#[derive(Debug, Default)]
pub struct Slot {
    sent: AtomicU64,
    told: AtomicU64,
    settled: AtomicU64,
    /// Followers that have seen its outcome.
    seen: AtomicU32,
}

/// What was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A message for the run at work.
    Steer,
    /// Its end, asked at a steady rate.
    Cancel,
    /// Its end, asked of many at one instant.
    Storm,
}

/// How far a scenario is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Connections and runs are being made.
    SetUp,
    /// The start is set.
    Begun,
    /// Everybody goes home.
    Over,
}

/// All controls of a scenario: each session is cancelled once, and before that perhaps steered.
#[derive(Debug)]
pub struct Plan {
    /// Sessions that are cancelled one by one; the others come all at once, after them.
    pub singles: usize,
    /// Sessions.
    pub sessions: usize,
    /// Controls per second.
    pub rate: f64,
    /// Followers of each session.
    pub followers: u32,
    /// Whether each run is steered before.
    pub has_steers: bool,
    /// Pause between two kinds.
    pub pause: Duration,
    steers: Vec<Slot>,
    cancels: Vec<Slot>,
}

impl Plan {
    /// `singles` cancels at `rate`, then `storm` at once.
    pub fn new(singles: usize, storm: usize, rate: f64, followers: u32, has_steers: bool) -> Plan {
        let sessions = singles + storm;
        let slots = || (0..sessions).map(|_| Slot::default()).collect();
        let (steers, cancels) = (slots(), slots());
        Plan { singles, sessions, rate, followers, has_steers, pause: PAUSE, steers, cancels }
    }

    fn nth(&self, number: usize) -> Duration {
        Duration::from_secs_f64(f64::from(u32::try_from(number).unwrap_or(u32::MAX)) / self.rate)
    }

    /// What is asked of a session, the last first.
    pub fn asked_of(&self, session: usize) -> Vec<Kind> {
        let steer = self.has_steers.then_some(Kind::Steer);
        [self.cancel_of(session)].into_iter().chain(steer).collect()
    }

    /// The kind of a session's cancel.
    pub fn cancel_of(&self, session: usize) -> Kind {
        if session < self.singles { Kind::Cancel } else { Kind::Storm }
    }

    /// When a control of a session is due, after the start.
    pub fn due(&self, kind: Kind, session: usize) -> Duration {
        let steered = if self.has_steers { self.nth(self.sessions) + self.pause } else { Duration::ZERO };
        match kind {
            Kind::Steer => self.nth(session),
            Kind::Cancel => steered + self.nth(session),
            Kind::Storm => steered + self.nth(self.singles) + self.pause,
        }
    }

    fn slot(&self, kind: Kind, session: usize) -> &Slot {
        match kind {
            Kind::Steer => &self.steers[session],
            Kind::Cancel | Kind::Storm => &self.cancels[session],
        }
    }

    /// The request is handed to the socket.
    pub fn sent(&self, kind: Kind, session: usize, start: Instant) {
        self.slot(kind, session).sent.store(micros(start.elapsed()), Ordering::Release);
    }

    /// The worker has it; false if it had it already.
    pub fn told(&self, kind: Kind, session: usize, start: Instant) -> bool {
        let slot = self.slot(kind, session);
        slot.told.compare_exchange(0, micros(start.elapsed()), Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// One more follower has seen the outcome.
    pub fn settled(&self, kind: Kind, session: usize, start: Instant) {
        let slot = self.slot(kind, session);
        if slot.seen.fetch_add(1, Ordering::AcqRel) + 1 == self.followers {
            slot.settled.store(micros(start.elapsed()), Ordering::Release);
        }
    }

    /// Latencies in µs of the controls of a kind: from due to the worker, from the socket to the worker, from due to the
    /// outcome at the last follower.
    pub fn latencies(&self, kind: Kind) -> [Vec<u64>; 3] {
        let sessions = match kind {
            Kind::Steer => 0..self.sessions,
            Kind::Cancel => 0..self.singles,
            Kind::Storm => self.singles..self.sessions,
        };
        let mut out = [Vec::new(), Vec::new(), Vec::new()];
        for session in sessions {
            let slot = self.slot(kind, session);
            let due = micros(self.due(kind, session));
            let [sent, told, settled] =
                [&slot.sent, &slot.told, &slot.settled].map(|at| at.load(Ordering::Acquire));
            out[0].push(told.saturating_sub(due));
            out[1].push(told.saturating_sub(sent));
            out[2].push(settled.saturating_sub(due));
        }
        out
    }
}

/// After zero, which says "not yet".
fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steers_come_first_then_single_cancels_then_the_storm() {
        let plan = Plan::new(10, 30, 10.0, 2, true);
        assert_eq!(plan.due(Kind::Steer, 39), Duration::from_millis(3_900));
        assert_eq!(plan.due(Kind::Cancel, 0), Duration::from_secs(5));
        assert_eq!((plan.cancel_of(9), plan.cancel_of(10)), (Kind::Cancel, Kind::Storm));
        assert_eq!(plan.due(Kind::Storm, 10), plan.due(Kind::Storm, 39));
        assert_eq!(plan.due(Kind::Storm, 10), Duration::from_secs(7));
        assert_eq!(plan.latencies(Kind::Storm)[0].len(), 30);
    }

    #[test]
    fn an_outcome_counts_when_the_last_follower_has_it() {
        let plan = Plan::new(1, 0, 1000.0, 2, true);
        let start = Instant::now() - Duration::from_secs(1);
        plan.settled(Kind::Steer, 0, start);
        assert_eq!(plan.latencies(Kind::Steer)[2], [0]);
        plan.settled(Kind::Steer, 0, start);
        assert!(plan.latencies(Kind::Steer)[2][0] >= 1_000_000);
        assert!(plan.told(Kind::Steer, 0, start) && !plan.told(Kind::Steer, 0, start));
    }
}
