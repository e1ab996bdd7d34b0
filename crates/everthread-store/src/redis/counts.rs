//! What the engine asks of Redis, counted. The table in docs/OPERATIONS.md has the same names.

use super::link::Failure;
use ::redis::{Arg, Cmd};
use prometheus::core::Collector;
use prometheus::{IntCounter, IntCounterVec, Opts};

/// Why a request failed, as a label.
const REASONS: [&str; 6] = ["down", "lost", "refused", "moved", "again", "broken"];

/// Counters of the engine. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Counts {
    /// Requests by what they are: a script's name, a command in upper case, or `pipeline`.
    commands: IntCounterVec,
    /// Requests that failed, by reason.
    failures: IntCounterVec,
}

impl Counts {
    /// All zero.
    #[expect(clippy::unwrap_used, reason = "names and labels are literals; a test makes every one")]
    pub(super) fn new() -> Self {
        let counters = |name, help, label| IntCounterVec::new(Opts::new(name, help), &[label]).unwrap();
        let commands =
            counters("everthread_redis_commands_total", "Requests to Redis by what they are.", "command");
        let failures =
            counters("everthread_redis_failures_total", "Requests to Redis that failed.", "reason");
        for reason in REASONS {
            failures.with_label_values(&[reason]);
        }
        Self { commands, failures }
    }

    /// Those of one script.
    pub(super) fn of_script(&self, name: &str) -> IntCounter {
        self.commands.with_label_values(&[name])
    }

    /// A command is sent. Calls of scripts count by themselves.
    pub(super) fn sent(&self, command: &Cmd) {
        let Some(Arg::Simple(name)) = command.args_iter().next() else { return };
        if !matches!(name, b"EVALSHA" | b"EVAL")
            && let Ok(name) = std::str::from_utf8(name)
        {
            self.commands.with_label_values(&[name]).inc();
        }
    }

    /// Several commands are sent at once.
    pub(super) fn sent_pipeline(&self) {
        self.commands.with_label_values(&["pipeline"]).inc();
    }

    /// A request failed.
    pub(super) fn failed(&self, failure: &Failure) {
        let reason = match failure {
            Failure::Down(_) => "down",
            Failure::Lost(_) => "lost",
            Failure::Refused(_) => "refused",
            Failure::Moved { .. } | Failure::Ask { .. } => "moved",
            Failure::Again(_) => "again",
            Failure::Broken(_) => "broken",
        };
        self.failures.with_label_values(&[reason]).inc();
    }

    /// For whoever shows them.
    pub(super) fn collectors(&self) -> Vec<Box<dyn Collector>> {
        vec![Box::new(self.commands.clone()), Box::new(self.failures.clone())]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_counts_under_its_name_and_a_script_not_twice() {
        let counts = Counts::new();
        let append = counts.of_script("append");
        append.inc();
        counts.sent(::redis::cmd("EVALSHA").arg("x"));
        counts.sent(::redis::cmd("XRANGE").arg("k"));
        counts.sent(::redis::cmd("XRANGE").arg("k"));
        let count = |name| counts.commands.with_label_values(&[name]).get();
        assert_eq!((count("append"), count("XRANGE"), count("EVALSHA")), (1, 2, 0));
    }

    #[test]
    fn every_failure_has_a_reason_that_is_shown_from_the_start() {
        let counts = Counts::new();
        let text = || String::new();
        let to = || ("x".to_owned(), 1u16);
        let all = [
            Failure::Down(text()),
            Failure::Lost(text()),
            Failure::Refused(text()),
            Failure::Moved { slot: to().1, to: to().0 },
            Failure::Ask { slot: to().1, to: to().0 },
            Failure::Again(text()),
            Failure::Broken(text()),
        ];
        all.iter().for_each(|failure| counts.failed(failure));
        let each: Vec<u64> =
            REASONS.iter().map(|reason| counts.failures.with_label_values(&[reason]).get()).collect();
        assert_eq!(each, [1, 1, 1, 2, 1, 1]);
    }
}
