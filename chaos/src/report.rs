//! What a run comes to, for people and for programs: how much was delivered, what was broken, how long clients stood still.

use crate::drive::Outcome;
use crate::history::{Event, What};
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
    out
}

/// As JSON.
pub fn json(title: &str, outcome: &Outcome) -> serde_json::Result<String> {
    serde_json::to_string_pretty(&serde_json::json!({
        "title": title,
        "verdict": outcome.verdict,
        "faults": by_kind(&outcome.events),
        "plan": outcome.planned,
    }))
}
