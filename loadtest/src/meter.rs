//! Histograms: each thread fills a window of its own, without locks, and hands it in once a second; together they are the
//! figures and the timeline.
//!
//! Latency counts from the time at which a token was due, never from when the generator got round to it: what waits behind a
//! stall has waited, and says so. That is what corrects for coordinated omission.

use anyhow::Context as _;
use hdrhistogram::Histogram;
use serde::Serialize;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Latencies beyond this count as this.
const LATENCY_US_MAX: u64 = 600_000_000;

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A token, from due to a follower.
    Delivery,
    /// A token, from the worker's socket to a follower.
    DeliveryFromSocket,
    /// A token, from due to a follower that is slow on purpose.
    DeliverySlow,
    /// A token, from due to the node's receipt.
    Ack,
    /// A batch, from the worker's socket to the node's receipt.
    AckFromSocket,
    /// A token, from due to the worker's socket.
    SendLate,
    /// A client, from when it was due until it is connected.
    Join,
    /// A client, from when it was due until it is live.
    Live,
    /// An attachment, from its request until it is live.
    Attach,
}

impl Kind {
    /// All of them, in the order of their numbers.
    pub const ALL: [Kind; 9] = [
        Kind::Delivery,
        Kind::DeliveryFromSocket,
        Kind::DeliverySlow,
        Kind::Ack,
        Kind::AckFromSocket,
        Kind::SendLate,
        Kind::Join,
        Kind::Live,
        Kind::Attach,
    ];

    /// As reports name it.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Delivery => "delivery",
            Kind::DeliveryFromSocket => "delivery_from_socket",
            Kind::DeliverySlow => "delivery_slow",
            Kind::Ack => "ack",
            Kind::AckFromSocket => "ack_from_socket",
            Kind::SendLate => "send_late",
            Kind::Join => "join",
            Kind::Live => "live",
            Kind::Attach => "attach",
        }
    }
}

/// What is counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Tokens handed to the node.
    pub tokens_sent: u64,
    /// Writes handed to the node.
    pub batches_sent: u64,
    /// Tokens that reached a follower.
    pub deliveries: u64,
    /// Frames with content.
    pub frames: u64,
    /// Bytes that followers' sockets brought, in frames of any kind.
    pub bytes: u64,
    /// How often the node said that somebody lags.
    pub lags: u64,
    /// Connections that were made again.
    pub reconnects: u64,
}

impl Counts {
    /// Adds what another counted.
    pub fn add(&mut self, other: &Counts) {
        self.tokens_sent += other.tokens_sent;
        self.batches_sent += other.batches_sent;
        self.deliveries += other.deliveries;
        self.frames += other.frames;
        self.bytes += other.bytes;
        self.lags += other.lags;
        self.reconnects += other.reconnects;
    }
}

/// What one thread saw in a while.
pub struct Window {
    histograms: [Histogram<u64>; Kind::ALL.len()],
    /// What it counted.
    pub counts: Counts,
}

impl Window {
    /// Nothing seen yet.
    pub fn new() -> anyhow::Result<Window> {
        let empty = || Histogram::new_with_bounds(1, LATENCY_US_MAX, 3);
        let all: Result<Vec<_>, _> = Kind::ALL.iter().map(|_| empty()).collect();
        let histograms = all?.try_into().ok().context("as many histograms as kinds")?;
        Ok(Window { histograms, counts: Counts::default() })
    }

    /// Notes a latency.
    pub fn record(&mut self, kind: Kind, micros: u64) {
        self.histograms[kind as usize].saturating_record(micros.max(1));
    }

    /// The quantiles of a kind; none if nothing was measured.
    pub fn latency(&self, kind: Kind) -> Option<Latency> {
        let histogram = &self.histograms[kind as usize];
        (!histogram.is_empty()).then(|| Latency::of(histogram))
    }

    /// The distribution of a kind, for drawing: percentiles and milliseconds.
    pub fn percentiles(&self, kind: Kind) -> Vec<(f64, f64)> {
        let histogram = &self.histograms[kind as usize];
        if histogram.is_empty() {
            return Vec::new();
        }
        // Evenly in "nines": 0 %, 90 %, 99 %, 99.9 %, 99.99 %.
        (0..=80)
            .map(|step| 1.0 - 10_f64.powf(-f64::from(step) / 20.0))
            .map(|q| (q * 100.0, millis(histogram.value_at_quantile(q))))
            .collect()
    }

    fn add(&mut self, other: &Window) -> anyhow::Result<()> {
        for (mine, theirs) in self.histograms.iter_mut().zip(&other.histograms) {
            if !theirs.is_empty() {
                mine.add(theirs)?;
            }
        }
        self.counts.add(&other.counts);
        Ok(())
    }

    fn clear(&mut self) {
        self.histograms.iter_mut().filter(|histogram| !histogram.is_empty()).for_each(Histogram::reset);
        self.counts = Counts::default();
    }
}

/// Where threads hand in what they saw.
pub struct Board {
    boards: Mutex<Boards>,
    /// What was done so far: to be read at an instant.
    pub deliveries: AtomicU64,
    /// Tokens handed to the node.
    pub tokens_sent: AtomicU64,
    /// Tokens that the node has confirmed.
    pub tokens_acked: AtomicU64,
    /// Batches that it has confirmed.
    pub batches_acked: AtomicU64,
}

/// What was done so far.
#[derive(Debug, Clone, Copy, Default)]
pub struct Progress {
    /// Tokens handed to the node.
    pub sent: u64,
    /// Tokens that it has confirmed.
    pub acked: u64,
    /// Batches that it has confirmed.
    pub batches: u64,
    /// Tokens that reached a follower.
    pub deliveries: u64,
}

struct Boards {
    /// Since the last look.
    recent: Window,
    all: Window,
}

impl Board {
    /// Nothing handed in yet.
    pub fn new() -> anyhow::Result<Board> {
        Ok(Board {
            boards: Mutex::new(Boards { recent: Window::new()?, all: Window::new()? }),
            deliveries: AtomicU64::new(0),
            tokens_sent: AtomicU64::new(0),
            tokens_acked: AtomicU64::new(0),
            batches_acked: AtomicU64::new(0),
        })
    }

    /// Takes what a thread saw, and leaves it with nothing.
    pub fn hand_in(&self, window: &mut Window) -> anyhow::Result<()> {
        self.boards.lock().unwrap_or_else(PoisonError::into_inner).recent.add(window)?;
        window.clear();
        Ok(())
    }

    /// What came since the last look: counts, and quantiles of the deliveries or else of another kind.
    pub fn look(&self) -> anyhow::Result<(Counts, Option<Latency>)> {
        let mut boards = self.boards.lock().unwrap_or_else(PoisonError::into_inner);
        let Boards { recent, all } = &mut *boards;
        all.add(recent)?;
        let latency = recent.latency(Kind::Delivery).or_else(|| recent.latency(Kind::Live));
        let counts = recent.counts;
        recent.clear();
        Ok((counts, latency))
    }

    /// Everything.
    pub fn all<T>(&self, read: impl FnOnce(&Window) -> T) -> anyhow::Result<T> {
        self.look()?;
        Ok(read(&self.boards.lock().unwrap_or_else(PoisonError::into_inner).all))
    }

    /// How far it is.
    pub fn progress(&self) -> Progress {
        let load = |of: &AtomicU64| of.load(Ordering::Relaxed);
        Progress {
            sent: load(&self.tokens_sent),
            acked: load(&self.tokens_acked),
            batches: load(&self.batches_acked),
            deliveries: load(&self.deliveries),
        }
    }
}

/// A duration in whole microseconds.
pub fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

fn millis(micros: u64) -> f64 {
    Duration::from_micros(micros).as_secs_f64() * 1e3
}

/// Quantiles in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Latency {
    /// How many were measured.
    pub count: u64,
    /// Their mean.
    pub mean_ms: f64,
    /// Half of them took at most this.
    pub p50_ms: f64,
    /// Nine of ten.
    pub p90_ms: f64,
    /// Ninety-nine of a hundred.
    pub p99_ms: f64,
    /// Of a thousand all but one.
    pub p999_ms: f64,
    /// All.
    pub max_ms: f64,
}

impl Latency {
    /// Of figures in microseconds.
    pub fn of_micros(all: &[u64]) -> anyhow::Result<Latency> {
        let mut histogram = Histogram::new_with_bounds(1, LATENCY_US_MAX, 3)?;
        all.iter().for_each(|micros| histogram.saturating_record((*micros).max(1)));
        Ok(Latency::of(&histogram))
    }

    fn of(histogram: &Histogram<u64>) -> Latency {
        let ms = |q: f64| millis(histogram.value_at_quantile(q));
        Latency {
            count: histogram.len(),
            mean_ms: histogram.mean() / 1e3,
            p50_ms: ms(0.5),
            p90_ms: ms(0.9),
            p99_ms: ms(0.99),
            p999_ms: ms(0.999),
            max_ms: ms(1.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(have: f64, want: f64) {
        assert!((have - want).abs() <= want / 500.0, "{have} is not {want}");
    }

    #[test]
    fn windows_of_several_threads_add_up_to_one_distribution() {
        let board = Board::new().unwrap();
        for thread in 0..4_u64 {
            let mut window = Window::new().unwrap();
            for n in 0..250 {
                window.record(Kind::Delivery, (thread * 250 + n + 1) * 1_000);
                window.counts.deliveries += 1;
            }
            board.hand_in(&mut window).unwrap();
            assert_eq!(window.latency(Kind::Delivery), None, "it was handed in");
        }
        let (counts, second) = board.look().unwrap();
        assert_eq!((counts.deliveries, second.unwrap().count), (1_000, 1_000));
        assert_eq!(board.look().unwrap().1, None, "since the last look there was nothing");
        let all = board.all(|all| all.latency(Kind::Delivery)).unwrap().unwrap();
        near(all.p50_ms, 500.0);
        near(all.p90_ms, 900.0);
        near(all.p99_ms, 990.0);
        near(all.p999_ms, 999.0);
        near(all.max_ms, 1_000.0);
        near(all.mean_ms, 500.5);
    }

    #[test]
    fn a_stall_is_paid_for_by_every_token_that_was_due_in_it() {
        // 1 000 tokens, one per millisecond; nothing arrives for half of the time, then everything at once.
        let mut window = Window::new().unwrap();
        for due in 0..1_000_u64 {
            let arrived = if (250..750).contains(&due) { 750 } else { due };
            window.record(Kind::Delivery, (arrived - due) * 1_000);
        }
        let latency = window.latency(Kind::Delivery).unwrap();
        near(latency.max_ms, 500.0);
        near(latency.p90_ms, 400.0);
        assert!(latency.p50_ms < 1.0);
    }

    #[test]
    fn the_drawing_of_a_distribution_never_goes_down() {
        let mut window = Window::new().unwrap();
        (1..5_000).for_each(|n| window.record(Kind::Ack, n * 7));
        let points = window.percentiles(Kind::Ack);
        assert!(points.windows(2).all(|pair| pair[0].0 <= pair[1].0 && pair[0].1 <= pair[1].1));
    }
}
