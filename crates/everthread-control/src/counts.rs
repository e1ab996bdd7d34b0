//! What is counted of leases and deadlines. The table in docs/OPERATIONS.md has the same names.

use prometheus::core::Collector;
use prometheus::{Histogram, HistogramOpts, IntCounterVec, Opts};

/// How a lease was lost, as a label.
const CAUSES: [&str; 2] = ["expired", "closed"];

/// Counters of a desk and of whoever decides at it. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Counts {
    /// Runs that were taken from a worker that is dead, by how that was found: expired, closed.
    leases_lost: IntCounterVec,
    /// How long after their time deadlines were kept.
    deadline_late: Histogram,
}

impl Counts {
    /// All zero.
    #[expect(clippy::unwrap_used, reason = "names and labels are literals; a test makes every one")]
    pub fn new() -> Self {
        let lost = Opts::new("everthread_leases_lost_total", "Runs taken from workers that were dead.");
        let leases_lost = IntCounterVec::new(lost, &["cause"]).unwrap();
        for cause in CAUSES {
            leases_lost.with_label_values(&[cause]);
        }
        let late = HistogramOpts::new(
            "everthread_deadline_late_seconds",
            "How long after their time deadlines and ends of leases were kept, by the store's clock.",
        );
        let late = late.buckets(vec![0.1, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 100.0, 300.0]);
        Self { leases_lost, deadline_late: Histogram::with_opts(late).unwrap() }
    }

    /// A run was taken from its worker because its lease was over.
    pub(crate) fn lease_expired(&self) {
        self.leases_lost.with_label_values(&["expired"]).inc();
    }

    /// A run was taken from its worker because its connection was over and it did not come back.
    pub fn lease_closed(&self) {
        self.leases_lost.with_label_values(&["closed"]).inc();
    }

    /// A promise that was due so many milliseconds ago is kept now.
    pub(crate) fn late(&self, ms: u64) {
        // Exact far beyond any lateness.
        #[expect(clippy::cast_precision_loss, reason = "milliseconds below 2^53")]
        self.deadline_late.observe(ms as f64 / 1000.0);
    }

    /// For whoever shows them.
    pub fn collectors(&self) -> Vec<Box<dyn Collector>> {
        vec![Box::new(self.leases_lost.clone()), Box::new(self.deadline_late.clone())]
    }
}

impl Default for Counts {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_lease_counts_by_its_cause_and_a_late_deadline_in_seconds() {
        let counts = Counts::new();
        counts.lease_closed();
        counts.lease_expired();
        counts.lease_expired();
        counts.late(1500);
        let lost = |cause| counts.leases_lost.with_label_values(&[cause]).get();
        assert_eq!((lost("closed"), lost("expired")), (1, 2));
        assert!((counts.deadline_late.get_sample_sum() - 1.5).abs() < 1e-9);
    }
}
