//! The checker: from what everybody recorded and from the logs in the end, what went wrong. Pure.
//!
//! - [`clients`]: every client's sequence is contiguous, whoever stood on a lost tail was told so, and what everybody holds in
//!   the end is what the log holds.
//! - [`acks`]: nothing that was acknowledged is missing at its level, and nothing is there twice.
//! - [`runs`]: nobody wrote a run but the holder of its fence; every run, control and approval has exactly one outcome.
//! - [`tails`]: how much was lost by failovers, which is no violation where no more was promised, and is counted.
//!
//! It knows nothing of what was broken: that is no excuse for anything.

mod acks;
mod clients;
mod runs;
mod tails;
#[cfg(test)]
mod tests;

use crate::history::{Event, Level, What};
use crate::log::Log;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;

/// What must hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Rule {
    /// A client is never sent a frame that leaves something out.
    Gap,
    /// A client is never sent what it has.
    Repeated,
    /// Who stands on what the log has lost is told so before anything else.
    MissingReset,
    /// Nobody is reset who could have gone on.
    NeedlessReset,
    /// In the end everybody holds what the log holds.
    Differs,
    /// Everybody gets to the end of the log.
    NotArrived,
    /// All nodes tell the same log.
    NodesDiffer,
    /// Whoever puts something is answered in the end, and not with a refusal.
    Unanswered,
    /// No node fails by itself.
    Internal,
    /// When nothing new is asked for, every run and every control comes to its end.
    NotAtRest,
    /// What was acknowledged is in the log.
    Lost,
    /// What was asked for once is there once.
    Doubled,
    /// Only who holds the fence writes a run.
    StaleFence,
    /// What a run has written is what its worker wrote, from the beginning and without a hole.
    Torn,
    /// Every run ends exactly once.
    RunOutcome,
    /// Every control is settled exactly once, and everybody is told the same.
    ControlOutcome,
    /// Every approval is settled exactly once, unless its run ended before.
    ApprovalOutcome,
}

/// Something that does not hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Violation {
    /// Which rule.
    pub rule: Rule,
    /// Where.
    pub session: String,
    /// Whose history or entry shows it.
    pub who: String,
    /// What was seen.
    pub text: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} in {} ({}): {}", self.rule, self.session, self.who, self.text)
    }
}

/// What was looked at: a check of nothing finds nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Looked(pub BTreeMap<&'static str, u64>);

impl Looked {
    fn add(&mut self, what: &'static str, n: u64) {
        *self.0.entry(what).or_default() += n;
    }

    /// How many of these.
    pub fn of(&self, what: &str) -> u64 {
        self.0.get(what).copied().unwrap_or(0)
    }
}

/// What became of what was acknowledged at a level.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Kept {
    /// Inputs and marks.
    pub acknowledged: u64,
    /// Of these, stood on a tail that was lost, and are there again.
    pub healed: u64,
    /// Of these, are gone with such a tail.
    pub gone: u64,
    /// Tokens that were confirmed to workers.
    pub tokens: u64,
    /// Of these, are gone with a tail.
    pub tokens_gone: u64,
    /// Attempts that had written those: each was taken from its worker before that could write them again.
    pub taken: u64,
}

/// What was lost by failovers, whether or not it is there again.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Tails {
    /// How many times a session lost its tail.
    pub count: u64,
    /// Entries that somebody had been sent or told of.
    pub entries: u64,
    /// The longest.
    pub longest: u64,
}

/// What came of a check.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// What does not hold.
    pub violations: Vec<Violation>,
    /// What was looked at.
    pub looked: Looked,
    /// What became of what was acknowledged.
    pub levels: BTreeMap<Level, Kept>,
    /// What was lost by failovers.
    pub tails: Tails,
}

impl Verdict {
    pub(crate) fn found(&mut self, rule: Rule, session: &str, who: &str, text: impl Into<String>) {
        let (session, who) = (session.to_owned(), who.to_owned());
        self.violations.push(Violation { rule, session, who, text: text.into() });
    }

    /// How many violations of each rule.
    pub fn by_rule(&self) -> BTreeMap<Rule, usize> {
        let mut counts = BTreeMap::new();
        for violation in &self.violations {
            *counts.entry(violation.rule).or_default() += 1;
        }
        counts
    }
}

/// What the store has promised for what it acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Promise {
    /// It is kept, whatever happens.
    Kept,
    /// A tail of the log may be lost with the place where it was: then what was acknowledged there as no more than
    /// [`Level::Accepted`] may be gone, unless whoever wrote it has written it again. A worker does, while it has its run.
    MayLoseTail,
}

impl Promise {
    /// Whether what was acknowledged so may be gone with a tail.
    fn may_lose(self, level: Level) -> bool {
        self == Promise::MayLoseTail && level == Level::Accepted
    }
}

/// Checks histories against logs; `logs` has each session as each node tells it, all nodes of a session side by side.
pub fn check(events: &[Event], logs: &BTreeMap<String, Vec<Log>>, promise: Promise) -> Verdict {
    let mut verdict = Verdict::default();
    let mut one_each = BTreeMap::new();
    for (session, told) in logs {
        let Some((first, others)) = told.split_first() else { continue };
        for other in others.iter().filter(|other| other.view != first.view || other.head != first.head) {
            let text = format!("one tells {} entries, the other {}", first.head, other.head);
            verdict.found(Rule::NodesDiffer, session, "nodes", text);
        }
        verdict.looked.add("entries", first.head);
        runs::check(first, &mut verdict);
        one_each.insert(session.as_str(), first);
    }
    for event in events {
        if let What::Internal { path, why } = &event.what {
            verdict.found(Rule::Internal, path, &event.who, why);
        }
    }
    clients::check(events, &one_each, promise, &mut verdict);
    acks::check(events, &one_each, promise, &mut verdict);
    tails::count(events, &one_each, &mut verdict);
    verdict
}
