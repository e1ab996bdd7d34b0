//! What an archive counts. The table in docs/OPERATIONS.md has the same names.

use prometheus::core::Collector;
use prometheus::{Histogram, HistogramOpts, IntCounterVec, Opts};

/// Counters of an archive.
#[derive(Debug, Clone)]
pub struct Counts {
    /// Sessions that were to be archived, by result: archived, found, busy, failed.
    pub archives: IntCounterVec,
    /// Requests that met an archived session, by result: restored, found (another one brought it back), failed, late.
    pub restores: IntCounterVec,
    /// How long those took that brought one back.
    pub restore_seconds: Histogram,
}

impl Counts {
    /// All zero.
    #[expect(clippy::unwrap_used, reason = "names and labels are literals; a test makes every one")]
    pub fn new() -> Self {
        let counters = |name, help, results: [&str; 4]| {
            let made = IntCounterVec::new(Opts::new(name, help), &["result"]).unwrap();
            results.iter().for_each(|result| drop(made.with_label_values(&[result])));
            made
        };
        let seconds =
            HistogramOpts::new("everthread_restore_seconds", "How long archived sessions took to come back.")
                .buckets(vec![0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0]);
        Self {
            archives: counters(
                "everthread_archives_total",
                "Sessions that were to be archived by result.",
                ["archived", "found", "busy", "failed"],
            ),
            restores: counters(
                "everthread_restores_total",
                "Requests that met an archived session by result.",
                ["restored", "found", "failed", "late"],
            ),
            restore_seconds: Histogram::with_opts(seconds).unwrap(),
        }
    }

    /// For whoever shows them.
    pub fn collectors(&self) -> Vec<Box<dyn Collector>> {
        vec![
            Box::new(self.archives.clone()),
            Box::new(self.restores.clone()),
            Box::new(self.restore_seconds.clone()),
        ]
    }
}

impl Default for Counts {
    fn default() -> Self {
        Self::new()
    }
}
