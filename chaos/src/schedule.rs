//! What is broken when: a plan that follows from the seed alone.

use crate::random::Random;
use serde::Serialize;
use std::fmt;
use std::time::Duration;

/// Something that can be broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A node is killed (`kill -9`) and started again.
    KillEdge,
    /// A node is frozen (SIGSTOP) and woken.
    FreezeEdge,
    /// A node is asked to stop (SIGTERM), drains, and is started again.
    DrainEdge,
    /// A worker is killed and started again.
    KillWorker,
    /// A worker is frozen and woken.
    FreezeWorker,
    /// The store is killed and started again from its append-only file.
    RestartStore,
    /// The store is frozen and woken.
    FreezeStore,
    /// Every subscription at the store is cut.
    CutSubscriptions,
    /// Packets between a node and the store are dropped, both ways or one way.
    PartitionEdge,
    /// Connections of clients are cut.
    CutClients,
    /// What clients send and get is late.
    DelayClients,
    /// Connections of clients are open one way only.
    HalfOpenClients,
    /// The clock of a single process jumps.
    StepClock,
    /// A primary is frozen until another takes over, and woken.
    FreezePrimary,
    /// A primary is cut off together with a node, so that the node goes on writing to what nobody else sees.
    PartitionPrimary,
    /// A primary is killed, and another takes over.
    KillPrimary,
    /// A replica is asked to take over.
    Failover,
    /// Slots move to another primary while they are used.
    MoveSlots,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::KillEdge => "kill edge",
            Kind::FreezeEdge => "freeze edge",
            Kind::DrainEdge => "drain edge",
            Kind::KillWorker => "kill worker",
            Kind::FreezeWorker => "freeze worker",
            Kind::RestartStore => "restart store",
            Kind::FreezeStore => "freeze store",
            Kind::CutSubscriptions => "cut subscriptions",
            Kind::PartitionEdge => "partition edge",
            Kind::CutClients => "cut clients",
            Kind::DelayClients => "delay clients",
            Kind::HalfOpenClients => "half-open clients",
            Kind::StepClock => "step clock",
            Kind::FreezePrimary => "freeze primary",
            Kind::PartitionPrimary => "partition primary",
            Kind::KillPrimary => "kill primary",
            Kind::Failover => "failover",
            Kind::MoveSlots => "move slots",
        })
    }
}

impl Kind {
    /// What every deployment can have, whatever its store.
    pub const COMMON: [Kind; 9] = [
        Kind::KillEdge,
        Kind::FreezeEdge,
        Kind::DrainEdge,
        Kind::KillWorker,
        Kind::FreezeWorker,
        Kind::CutClients,
        Kind::DelayClients,
        Kind::HalfOpenClients,
        Kind::StepClock,
    ];

    /// How long it lasts, in milliseconds: some of each kind outlive a lease of four seconds, a failover, or a heartbeat.
    fn lasts(self) -> (u64, u64) {
        match self {
            Kind::CutSubscriptions | Kind::Failover | Kind::MoveSlots => (0, 0),
            Kind::CutClients => (0, 1_500),
            Kind::KillEdge | Kind::KillWorker | Kind::DrainEdge => (200, 4_000),
            Kind::FreezeEdge | Kind::FreezeWorker | Kind::PartitionEdge => (500, 9_000),
            Kind::RestartStore => (50, 3_000),
            Kind::FreezeStore | Kind::DelayClients | Kind::StepClock => (1_000, 6_000),
            Kind::HalfOpenClients => (2_000, 10_000),
            // As long as it takes until another is primary, and then some.
            Kind::FreezePrimary | Kind::PartitionPrimary | Kind::KillPrimary => (6_000, 10_000),
        }
    }
}

/// One fault.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Planned {
    /// From 0.
    pub number: usize,
    /// When, from the beginning.
    pub at: Duration,
    /// What.
    pub kind: Kind,
    /// Which of those that it can hit, modulo how many there are.
    pub target: u64,
    /// How: what that means is the kind's.
    pub how: u64,
    /// How long it stays broken.
    pub lasts: Duration,
}

impl fmt::Display for Planned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Planned { number, at, kind, target, lasts, .. } = self;
        write!(
            f,
            "{number:>4} {:>7.1}s {kind} (target {target}) for {:.1}s",
            at.as_secs_f64(),
            lasts.as_secs_f64()
        )
    }
}

/// The plan of a seed: all kinds in a random order, again and again; one time in four the next begins before the last has ended.
pub fn plan(seed: u64, length: Duration, kinds: &[Kind]) -> Vec<Planned> {
    let mut random = Random::seeded(seed);
    let (mut planned, mut deck): (Vec<Planned>, Vec<Kind>) = (Vec::new(), Vec::new());
    let mut at = 1_000;
    while !kinds.is_empty() {
        if deck.is_empty() {
            deck = kinds.to_vec();
            random.shuffle(&mut deck);
        }
        let Some(kind) = deck.pop() else { break };
        let (low, high) = kind.lasts();
        let lasts = random.between(low, high);
        let (target, how) = (random.below(64), random.below(1 << 16));
        if Duration::from_millis(at + lasts) > length {
            break;
        }
        let number = planned.len();
        let at_time = Duration::from_millis(at);
        planned.push(Planned { number, at: at_time, kind, target, how, lasts: Duration::from_millis(lasts) });
        let is_overlapped = random.below(4) == 0;
        let rest = random.between(1_000, 4_000);
        at += if is_overlapped { lasts / 2 + 100 } else { lasts + rest };
    }
    planned
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_is_a_plan_and_another_seed_is_another() {
        let minutes = Duration::from_secs(300);
        assert_eq!(plan(7, minutes, &Kind::COMMON), plan(7, minutes, &Kind::COMMON));
        assert_ne!(plan(7, minutes, &Kind::COMMON), plan(8, minutes, &Kind::COMMON));
    }

    #[test]
    fn every_kind_has_its_turn_and_all_is_over_in_time() {
        let minutes = Duration::from_secs(300);
        let planned = plan(3, minutes, &Kind::COMMON);
        for kind in Kind::COMMON {
            assert!(planned.iter().filter(|planned| planned.kind == kind).count() >= 2, "{kind}");
        }
        assert!(planned.iter().all(|planned| planned.at + planned.lasts <= minutes));
    }
}
