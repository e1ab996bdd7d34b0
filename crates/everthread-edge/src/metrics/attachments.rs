//! Attachments by what they are served from: each counts itself, for as long as it lives.

use prometheus::{IntGauge, IntGaugeVec};
use std::sync::Arc;

/// What the follower was told last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// It is catching up after `attach` or a reset.
    Joining,
    /// It has everything.
    Live,
    /// It fell behind.
    Lagging,
}

impl Mode {
    pub(super) const ALL: [Mode; 3] = [Mode::Joining, Mode::Live, Mode::Lagging];

    pub(super) fn label(self) -> &'static str {
        match self {
            Mode::Joining => "joining",
            Mode::Live => "live",
            Mode::Lagging => "lagging",
        }
    }

    fn index(self) -> usize {
        match self {
            Mode::Joining => 0,
            Mode::Live => 1,
            Mode::Lagging => 2,
        }
    }
}

/// Attachments of a node. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Attachments(Arc<[IntGauge; 3]>);

impl Attachments {
    pub(super) fn new(by_mode: &IntGaugeVec) -> Self {
        Self(Arc::new(Mode::ALL.map(|mode| by_mode.with_label_values(&[mode.label()]))))
    }

    /// In all modes.
    pub fn get(&self) -> i64 {
        self.0.iter().map(IntGauge::get).sum()
    }

    /// In this mode.
    pub fn in_mode(&self, mode: Mode) -> i64 {
        self.0[mode.index()].get()
    }

    /// One more, that joins.
    pub(crate) fn joining(&self) -> Counted {
        self.0[Mode::Joining.index()].inc();
        Counted { mode: Mode::Joining, all: self.clone() }
    }
}

/// The mode of an attachment, counted until it is dropped.
#[derive(Debug)]
pub struct Counted {
    mode: Mode,
    all: Attachments,
}

impl PartialEq<Mode> for Counted {
    fn eq(&self, mode: &Mode) -> bool {
        self.mode == *mode
    }
}

impl Counted {
    /// Which one it is in.
    pub(crate) fn get(&self) -> Mode {
        self.mode
    }

    /// It is in this one from now on.
    pub(crate) fn set(&mut self, mode: Mode) {
        self.all.0[self.mode.index()].dec();
        self.all.0[mode.index()].inc();
        self.mode = mode;
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.all.0[self.mode.index()].dec();
    }
}

#[cfg(test)]
mod tests {
    use super::super::Metrics;
    use super::*;

    #[test]
    fn an_attachment_counts_in_its_mode_until_it_is_gone() {
        let all = Metrics::new().attachments;
        let (mut one, other) = (all.joining(), all.joining());
        one.set(Mode::Live);
        assert!(one == Mode::Live && other == Mode::Joining);
        assert_eq!(Mode::ALL.map(|mode| all.in_mode(mode)), [1, 1, 0]);
        one.set(Mode::Lagging);
        drop(other);
        assert_eq!((all.get(), all.in_mode(Mode::Lagging)), (1, 1));
        drop(one);
        assert_eq!(all.get(), 0);
    }
}
