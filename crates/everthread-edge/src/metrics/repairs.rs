//! Tails that were in doubt, by what the log said.

use everthread_store::Error;
use prometheus::IntCounterVec;

/// What a look at the log found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Repaired {
    /// The tail had everything.
    Idle,
    /// A tail that was new has learned where the log ends.
    Learned,
    /// What the feed had lost was read.
    Filled,
    /// More was lost than is read at once, or the log is another: its followers read it themselves.
    Begun,
    /// The session was deleted.
    Gone,
}

impl Repaired {
    /// Of a tail that was known or not, whose head has moved or not, and whose ring has something or not.
    pub(crate) fn of(is_known: bool, has_moved: bool, has_items: bool) -> Self {
        match (is_known, has_moved, has_items) {
            (false, ..) => Repaired::Learned,
            (true, false, _) => Repaired::Idle,
            (true, true, true) => Repaired::Filled,
            (true, true, false) => Repaired::Begun,
        }
    }

    fn label(self) -> &'static str {
        match self {
            Repaired::Idle => "idle",
            Repaired::Learned => "learned",
            Repaired::Filled => "filled",
            Repaired::Begun => "begun",
            Repaired::Gone => "gone",
        }
    }
}

/// Counter of repairs. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Repairs(IntCounterVec);

impl Repairs {
    pub(super) const LABELS: [&str; 6] = ["idle", "learned", "filled", "begun", "gone", "error"];

    pub(super) fn new(by_result: IntCounterVec) -> Self {
        Self(by_result)
    }

    /// A look at the log is done.
    pub(crate) fn done(&self, repaired: &Result<Repaired, Error>) {
        let result = repaired.as_ref().map_or("error", |repaired| repaired.label());
        self.0.with_label_values(&[result]).inc();
    }

    /// How many came to this.
    pub fn get(&self, repaired: Repaired) -> u64 {
        self.0.with_label_values(&[repaired.label()]).get()
    }
}

#[cfg(test)]
mod tests {
    use super::super::Metrics;
    use super::*;

    #[test]
    fn a_repair_counts_by_what_it_found() {
        let repairs = Metrics::new().repairs;
        let found = [(false, true, true), (true, false, true), (true, true, true), (true, true, false)];
        let found =
            found.map(|(is_known, has_moved, has_items)| Repaired::of(is_known, has_moved, has_items));
        assert_eq!(found, [Repaired::Learned, Repaired::Idle, Repaired::Filled, Repaired::Begun]);
        found.iter().for_each(|repaired| repairs.done(&Ok(*repaired)));
        repairs.done(&Err(Error::Unavailable(String::new())));
        assert!(found.iter().all(|repaired| repairs.get(*repaired) == 1));
        assert_eq!(repairs.0.with_label_values(&["error"]).get(), 1);
    }
}
