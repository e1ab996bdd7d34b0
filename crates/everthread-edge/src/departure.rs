//! How the connections of a node that stops take their leave: not all at once.
//!
//! Everybody whose connection ends comes back through the load balancer, attaches, and reads what it has missed. If ten
//! thousand did so in the same moment, the nodes that stay would be busy with nothing else. So every connection goes at a
//! moment of its own within a window, and is told a pause of its own besides. Workers go at the beginning: no new run is
//! brought to them here.
//!
//! **Invariant:** once it has begun, every connection knows when it goes; the window ends before patience does.

use std::sync::OnceLock;
use std::time::Duration;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

/// Connections that leave within a second, unless the node has no time for that.
const LEAVING_PER_S: u32 = 200;
/// The part of the patience in which good-byes are said, in percent; the rest is for those that are slow to go.
const WINDOW_PERCENT: u32 = 75;
/// Workers go within this time: a worker sits idle while no new runs come to it.
const WORKERS_WINDOW: Duration = Duration::from_millis(500);
/// A peer is asked to stay away for less than this: its good-bye came at a moment of its own already.
const PAUSE: Duration = Duration::from_millis(250);
/// … unless the window was too short for all; and at the very most this.
const PAUSE_MAX: Duration = Duration::from_secs(10);
/// Workers in particular: their runs wait for them no longer than the return grace.
const WORKER_PAUSE: Duration = Duration::from_millis(100);
/// Steps into which a window is divided.
const STEPS: u32 = 4096;

/// Who has connected, and when they go.
#[derive(Debug, Default)]
pub struct Departures {
    begun: CancellationToken,
    plan: OnceLock<Plan>,
    present: TaskTracker,
}

#[derive(Debug, Clone, Copy)]
struct Plan {
    at: Instant,
    window: Duration,
    pause: Duration,
}

/// One connection. The node waits for it until it is dropped.
#[derive(Debug)]
pub struct Guest {
    /// Its place in any window, below [`STEPS`].
    step: u32,
    _here: TaskTrackerToken,
}

/// What a connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// It follows, and asks.
    Client,
    /// It executes runs.
    Worker,
}

impl Departures {
    /// Nobody has connected. They all go at once when `stop` fires before it has begun.
    pub fn new(stop: &CancellationToken) -> Self {
        Self { begun: stop.child_token(), ..Self::default() }
    }

    /// Somebody has connected.
    pub fn enter(&self) -> Guest {
        let step = u32::try_from(random() % u64::from(STEPS)).unwrap_or(0);
        Guest { step, _here: self.present.token() }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.present.len()
    }

    /// Whether there is nobody.
    pub fn is_empty(&self) -> bool {
        self.present.is_empty()
    }

    /// Fires when it begins.
    pub fn token(&self) -> CancellationToken {
        self.begun.clone()
    }

    /// Whether it has begun.
    pub fn is_begun(&self) -> bool {
        self.begun.is_cancelled()
    }

    /// Tells everybody to go, and waits for them; false if somebody was still there after `patience`.
    pub async fn begin(&self, patience: Duration) -> bool {
        let crowd = u32::try_from(self.len()).unwrap_or(u32::MAX);
        let at = Instant::now();
        self.plan.get_or_init(|| Plan::new(at, crowd, patience));
        self.begun.cancel();
        self.present.close();
        tokio::time::timeout_at(at + patience, self.present.wait()).await.is_ok()
    }

    /// When this one goes, if it has begun.
    pub fn goes_at(&self, guest: &Guest, role: Role) -> Option<Instant> {
        let go = |plan: &Plan| plan.at + plan.window_of(role) * guest.step / STEPS;
        self.is_begun().then(|| self.plan.get().map_or_else(Instant::now, go))
    }

    /// How long this one is asked to stay away, in milliseconds.
    pub fn pause_ms(&self, guest: &Guest, role: Role) -> u64 {
        let pause = match role {
            Role::Client => self.plan.get().map_or(PAUSE, |plan| plan.pause),
            Role::Worker => WORKER_PAUSE,
        };
        // Not in the order in which they go.
        let step = guest.step.reverse_bits() >> (u32::BITS - STEPS.trailing_zeros());
        u64::try_from((pause * step / STEPS).as_millis()).unwrap_or(0)
    }

    /// Ready when this one is to go. Cancel safe.
    pub async fn goes(&self, guest: &Guest, role: Role) {
        self.begun.cancelled().await;
        if let Some(at) = self.goes_at(guest, role) {
            sleep_until(at).await;
        }
    }
}

impl Plan {
    fn new(at: Instant, crowd: u32, patience: Duration) -> Self {
        let wanted = Duration::from_secs(1) * crowd / LEAVING_PER_S;
        let window = wanted.min(patience * WINDOW_PERCENT / 100);
        let pause = (wanted - window).clamp(PAUSE, PAUSE_MAX);
        Self { at, window, pause }
    }

    fn window_of(&self, role: Role) -> Duration {
        match role {
            Role::Client => self.window,
            Role::Worker => self.window.min(WORKERS_WINDOW),
        }
    }
}

/// Good for spreading, and for nothing else: the standard library seeds its hash maps from the system's randomness.
pub(crate) fn random() -> u64 {
    use std::hash::{BuildHasher as _, Hasher as _, RandomState};
    RandomState::new().build_hasher().finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// When each of so many goes, in milliseconds after the beginning, and the longest pause.
    fn leave(crowd: u32, patience: Duration, role: Role) -> (Vec<u128>, u64) {
        let (departures, at) = (Departures::default(), Instant::now());
        let guests: Vec<Guest> = (0..crowd).map(|_| departures.enter()).collect();
        departures.plan.set(Plan::new(at, crowd, patience)).unwrap();
        departures.begun.cancel();
        let goes = |guest| (departures.goes_at(guest, role).unwrap() - at).as_millis();
        let pauses = guests.iter().map(|guest| departures.pause_ms(guest, role));
        (guests.iter().map(goes).collect(), pauses.max().unwrap())
    }

    #[test]
    fn a_crowd_is_spread_over_the_window_and_a_few_go_soon() {
        let (left, pause) = leave(2_000, Duration::from_secs(8), Role::Client);
        assert!(left.iter().all(|at| *at <= 6_000));
        for second in 0..6 {
            let within = left.iter().filter(|at| (second * 1000..(second + 1) * 1000).contains(*at)).count();
            assert!((200..500).contains(&within), "{within} in second {second}");
        }
        assert!(pause > 3_000 && pause <= 4_000, "the window was too short for all: {pause}");
        let (left, pause) = leave(20, Duration::from_secs(8), Role::Client);
        assert!(left.iter().all(|at| *at <= 100) && pause <= 250);
    }

    #[test]
    fn workers_go_first() {
        let (left, pause) = leave(2_000, Duration::from_secs(8), Role::Worker);
        assert!(left.iter().all(|at| *at <= 500) && pause <= 100);
    }

    #[tokio::test]
    async fn whoever_does_not_go_is_waited_for_until_patience_ends() {
        let departures = Departures::default();
        let guest = departures.enter();
        assert!(departures.goes_at(&guest, Role::Client).is_none());
        assert!(!departures.begin(Duration::from_millis(50)).await);
        departures.goes(&guest, Role::Client).await;
        drop(guest);
        assert!(departures.begin(Duration::from_secs(60)).await);
    }

    #[tokio::test]
    async fn a_node_that_is_just_stopped_sends_everybody_away_at_once() {
        let stop = CancellationToken::new();
        let departures = Departures::new(&stop);
        let guest = departures.enter();
        stop.cancel();
        departures.goes(&guest, Role::Client).await;
        assert!(departures.goes_at(&guest, Role::Worker).unwrap() <= Instant::now());
    }
}
