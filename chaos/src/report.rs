//! What a run comes to, for people and for programs: how much was delivered, what was broken, how long clients stood still.

use crate::check::{Kept, Tails, Verdict};
use crate::drive::Outcome;
use crate::history::{Event, What};
use crate::schedule::Kind;
use serde::Serialize;
use std::collections::BTreeMap;

/// What one kind of fault did to clients.
#[derive(Debug, Clone, Default, Serialize)]
pub struct OfKind {
    /// How often it was done.
    pub injected: usize,
    /// How often it could not be done.
    pub not_done: usize,
    /// The longest time that a client was sent nothing around one, in milliseconds.
    pub longest_stall_ms: u64,
    /// From the fault to the next frame of each client: the median over faults and clients, in milliseconds.
    pub first_frame_p50_ms: u64,
    /// The same, the 99th of a hundred.
    pub first_frame_p99_ms: u64,
    /// The same, the longest.
    pub first_frame_max_ms: u64,
    #[serde(skip)]
    firsts: Vec<u64>,
}

/// Frames of each client: when a stretch of them began and ended.
fn stretches(events: &[Event]) -> BTreeMap<&str, Vec<(u64, u64)>> {
    let mut all: BTreeMap<&str, Vec<(u64, u64)>> = BTreeMap::new();
    for event in events {
        if let What::Frames { first, .. } = event.what {
            all.entry(&event.who).or_default().push((first, event.at));
        }
    }
    for stretches in all.values_mut() {
        stretches.sort_unstable();
    }
    all
}

/// What each kind of fault did. A stall is counted for the fault that began last before it ended.
pub fn by_kind(events: &[Event]) -> BTreeMap<String, OfKind> {
    let mut kinds: BTreeMap<String, OfKind> = BTreeMap::new();
    let mut begins: Vec<(u64, &str)> = Vec::new();
    for event in events {
        if let What::Fault { kind, phase, .. } = &event.what {
            let of = kinds.entry(kind.clone()).or_default();
            match phase.as_str() {
                "begin" => {
                    of.injected += 1;
                    begins.push((event.at, kind));
                }
                "end" => {}
                _ => of.not_done += 1,
            }
        }
    }
    begins.sort_unstable();
    for stretches in stretches(events).values() {
        for pair in stretches.windows(2) {
            let (stopped, went_on) = (pair[0].1, pair[1].0);
            let last = begins.partition_point(|(at, _)| *at < went_on);
            if let Some((_, kind)) = last.checked_sub(1).and_then(|at| begins.get(at))
                && let Some(of) = kinds.get_mut(*kind)
            {
                of.longest_stall_ms = of.longest_stall_ms.max(went_on.saturating_sub(stopped) / 1_000);
            }
        }
        for (at, kind) in &begins {
            let next = stretches.partition_point(|(_, last)| last < at);
            if let (Some((first, _)), Some(of)) = (stretches.get(next), kinds.get_mut(*kind)) {
                of.firsts.push(first.saturating_sub(*at) / 1_000);
            }
        }
    }
    for of in kinds.values_mut() {
        of.firsts.sort_unstable();
        let at = |hundredths: usize| {
            of.firsts
                .get((of.firsts.len() * hundredths / 100).min(of.firsts.len().saturating_sub(1)))
                .copied()
        };
        let (p50, p99, max) = (at(50), at(99), at(100));
        of.first_frame_p50_ms = p50.unwrap_or(0);
        of.first_frame_p99_ms = p99.unwrap_or(0);
        of.first_frame_max_ms = max.unwrap_or(0);
    }
    kinds
}

/// A primary that was replaced, and when sessions went on.
#[derive(Debug, Clone, Serialize)]
pub struct Failover {
    /// Number of the fault in the plan.
    pub number: usize,
    /// What was done.
    pub kind: String,
    /// To whom.
    pub target: String,
    /// Sessions of which clients saw that the log went on, on another primary.
    pub sessions: usize,
    /// From the fault to the first entry written there that any client was sent, in milliseconds.
    pub first_ms: u64,
    /// The same, in the session that came last: its first client.
    pub last_session_ms: u64,
    /// The same, for the client that came last.
    pub last_client_ms: u64,
}

/// All of them. An incarnation of a log is named by when the store began it, in microseconds: so what a client is sent tells
/// by itself whether it was written after a fault, and on another primary.
pub fn failovers(events: &[Event]) -> Vec<Failover> {
    const KINDS: [Kind; 4] = [Kind::KillPrimary, Kind::FreezePrimary, Kind::PartitionPrimary, Kind::Failover];
    let kinds = KINDS.map(|kind| kind.to_string());
    let begun = events.iter().filter_map(|event| match &event.what {
        What::Fault { number, kind, target, phase } if phase == "begin" && kinds.contains(kind) => {
            Some((event.at, *number, kind, target))
        }
        _ => None,
    });
    let mut begun: Vec<_> = begun.collect();
    begun.sort_unstable();
    let mut all = Vec::new();
    for (at, (began, number, kind, target)) in begun.iter().enumerate() {
        let until = begun.get(at + 1).map_or(u64::MAX, |next| next.0);
        let mut firsts: BTreeMap<(&str, &str), u64> = BTreeMap::new();
        for event in events {
            if let What::Frames { session, epoch, first, .. } = &event.what
                && (*began..until).contains(epoch)
            {
                let known = firsts.entry((session, &event.who)).or_insert(u64::MAX);
                *known = (*known).min(first.saturating_sub(*began) / 1_000);
            }
        }
        let mut sessions: BTreeMap<&str, u64> = BTreeMap::new();
        for ((session, _), first) in &firsts {
            let known = sessions.entry(session).or_insert(u64::MAX);
            *known = (*known).min(*first);
        }
        all.push(Failover {
            number: *number,
            kind: (*kind).clone(),
            target: (*target).clone(),
            sessions: sessions.len(),
            first_ms: sessions.values().copied().min().unwrap_or(0),
            last_session_ms: sessions.values().copied().max().unwrap_or(0),
            last_client_ms: firsts.values().copied().max().unwrap_or(0),
        });
    }
    all
}

/// As a table.
pub fn markdown(title: &str, outcome: &Outcome) -> String {
    let mut out = format!("## {title}\n\n");
    let looked: Vec<String> =
        outcome.verdict.looked.0.iter().map(|(what, n)| format!("{what} {n}")).collect();
    out.push_str(&format!("Checked: {}.\n\n", looked.join(", ")));
    out.push_str(&format!("Violations: {}.\n\n", outcome.verdict.violations.len()));
    for violation in outcome.verdict.violations.iter().take(50) {
        out.push_str(&format!("- {violation}\n"));
    }
    lost(&mut out, &outcome.verdict);
    out.push_str("| Fault | Injected | Longest stall | First frame after it: median | p99 | longest |\n");
    out.push_str("| --- | --- | --- | --- | --- | --- |\n");
    for (kind, of) in by_kind(&outcome.events) {
        out.push_str(&format!(
            "| {kind} | {} | {} ms | {} ms | {} ms | {} ms |\n",
            of.injected,
            of.longest_stall_ms,
            of.first_frame_p50_ms,
            of.first_frame_p99_ms,
            of.first_frame_max_ms
        ));
    }
    let failovers = failovers(&outcome.events);
    if !failovers.is_empty() {
        out.push_str("\n| Failover | By | Sessions | First token after it | In the last session | At the last client |\n");
        out.push_str("| --- | --- | --- | --- | --- | --- |\n");
    }
    for Failover { number, kind, target, sessions, first_ms, last_session_ms, last_client_ms } in failovers {
        out.push_str(&format!(
            "| {number} | {kind}: {target} | {sessions} | {first_ms} ms | {last_session_ms} ms | {last_client_ms} ms |\n"
        ));
    }
    out
}

/// What failovers have lost, and what became of it.
fn lost(out: &mut String, verdict: &Verdict) {
    let Tails { count, entries, longest } = verdict.tails;
    out.push_str(&format!(
        "Tails that the store lost: {count}, with {entries} entries that somebody had seen, the longest {longest}.\n\n"
    ));
    out.push_str(
        "| Acknowledged as | Inputs and marks | Lost and healed | Gone | Tokens confirmed | Gone | With attempts that were taken away |\n",
    );
    out.push_str("| --- | --- | --- | --- | --- | --- | --- |\n");
    for (level, Kept { acknowledged, healed, gone, tokens, tokens_gone, taken }) in &verdict.levels {
        let level = format!("{level:?}").to_lowercase();
        out.push_str(&format!(
            "| {level} | {acknowledged} | {healed} | {gone} | {tokens} | {tokens_gone} | {taken} |\n"
        ));
    }
    out.push('\n');
}

/// As JSON.
pub fn json(title: &str, outcome: &Outcome) -> serde_json::Result<String> {
    serde_json::to_string_pretty(&serde_json::json!({
        "title": title,
        "verdict": outcome.verdict,
        "faults": by_kind(&outcome.events),
        "failovers": failovers(&outcome.events),
        "plan": outcome.planned,
    }))
}
