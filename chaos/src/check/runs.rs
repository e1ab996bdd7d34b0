//! What a log says of its runs: who wrote them, and how they, their controls and their approvals came out.
//!
//! The workers of this crate write tokens that say which attempt, and which execution of it, they are of and count up:
//! `1.77:0 1.77:1 1.77:2 …`. So a token tells by itself whose it is, also after a fold.

use super::{Rule, Verdict};
use crate::log::{Log, Logged};
use std::collections::{BTreeMap, HashMap};

/// How far a run is while its log is read.
#[derive(Debug, Default)]
struct Run {
    /// The attempt that may write now.
    holder: Option<u64>,
    ends: usize,
    requests: usize,
    approvals: HashMap<String, usize>,
}

/// Reads one log from its beginning.
pub(super) fn check(log: &Log, verdict: &mut Verdict) {
    let mut runs: BTreeMap<String, Run> = BTreeMap::new();
    let mut controls: BTreeMap<String, (usize, usize)> = BTreeMap::new();
    for logged in &log.entries {
        let text = |field: &str| logged.body[field].as_str().unwrap_or_default().to_owned();
        match logged.kind.as_str() {
            "control.requested" => controls.entry(text("control")).or_default().0 += 1,
            "control.settled" => controls.entry(text("control")).or_default().1 += 1,
            "approval.settled" => {
                let run = runs.entry(text("run")).or_default();
                *run.approvals.entry(text("approval")).or_default() += 1;
            }
            kind if kind.starts_with("run.") && kind != "run.step" => {
                decided(log, logged, runs.entry(text("run")).or_default(), verdict);
            }
            _ => {
                if let Some(run) = &logged.by_run {
                    written(log, logged, runs.entry(run.clone()).or_default(), verdict);
                }
            }
        }
    }
    verdict.looked.add("runs", runs.len() as u64);
    verdict.looked.add("controls", controls.len() as u64);
    for (name, run) in &runs {
        if (run.requests, run.ends) != (1, 1) {
            let text = format!("requested {} times, ended {} times", run.requests, run.ends);
            verdict.found(Rule::RunOutcome, &log.session, name, text);
        }
        for (approval, times) in run.approvals.iter().filter(|(_, times)| **times > 1) {
            let text = format!("{approval} was settled {times} times");
            verdict.found(Rule::ApprovalOutcome, &log.session, name, text);
        }
    }
    check_tokens(log, verdict);
    for (control, times) in controls.iter().filter(|(_, times)| **times != (1, 1)) {
        let text = format!("requested {} times, settled {} times", times.0, times.1);
        verdict.found(Rule::ControlOutcome, &log.session, control, text);
    }
}

/// An entry that the server has decided about a run.
fn decided(log: &Log, logged: &Logged, run: &mut Run, verdict: &mut Verdict) {
    let name = logged.body["run"].as_str().unwrap_or_default();
    if run.ends > 0 && logged.kind != "run.ended" {
        let text = format!("{} at {}, after its end", logged.kind, logged.first);
        verdict.found(Rule::RunOutcome, &log.session, name, text);
    }
    match logged.kind.as_str() {
        "run.requested" => run.requests += 1,
        "run.started" => run.holder = logged.body["attempt"].as_u64(),
        "run.suspended" => {
            run.holder = None;
            for approval in logged.body["approvals"].as_array().into_iter().flatten() {
                let id = approval["approval"].as_str().unwrap_or_default().to_owned();
                run.approvals.entry(id).or_insert(0);
            }
        }
        "run.resumed" => {
            if let Some((approval, _)) = run.approvals.iter().find(|(_, times)| **times == 0) {
                let text = format!("it goes on and {approval} has no verdict");
                verdict.found(Rule::ApprovalOutcome, &log.session, name, text);
            }
        }
        "run.returned" => run.holder = None,
        "run.ended" => {
            run.holder = None;
            run.ends += 1;
        }
        _ => {}
    }
}

/// An entry that somebody wrote for a run.
fn written(log: &Log, logged: &Logged, run: &Run, verdict: &mut Verdict) {
    let name = logged.by_run.as_deref().unwrap_or_default();
    // What the server decides in a worker's block needs no fence.
    if logged.kind.starts_with("control.")
        || logged.kind.starts_with("approval.")
        || logged.kind == "message.put"
    {
        return;
    }
    verdict.looked.add("written by workers", 1);
    let whose = attempt_of(&logged.body);
    let is_holders = run.holder.is_some() && whose.is_none_or(|whose| run.holder == Some(whose));
    if !is_holders {
        let text = format!(
            "{} {}..{} of attempt {whose:?} while {:?} holds it: {}",
            logged.kind, logged.first, logged.last, run.holder, logged.body
        );
        verdict.found(Rule::StaleFence, &log.session, name, text);
    }
}

/// The attempt that wrote an entry, as the name of its message says: `m1`, `a2m1`.
fn attempt_of(body: &serde_json::Value) -> Option<u64> {
    let message = body["message"].as_str()?;
    match message.strip_prefix('a').and_then(|rest| rest.split_once('m')) {
        Some((attempt, _)) => attempt.parse().ok(),
        None => message.strip_prefix('m').map(|_| 1),
    }
}

/// Who wrote a token: an attempt, and which time it was begun. A tail that is lost with the start of an attempt has the next
/// one get its number.
pub(super) type Execution = (u32, u32);

/// How many tokens each execution of each run has, up to the first that does not go on.
pub(super) fn tokens(log: &Log) -> HashMap<&str, BTreeMap<Execution, u64>> {
    let mut counts: HashMap<&str, BTreeMap<Execution, u64>> = HashMap::new();
    for (run, token) in all_tokens(log) {
        let Some((execution, number)) = token else { continue };
        let next = counts.entry(run).or_default().entry(execution).or_default();
        if number == *next {
            *next += 1;
        }
    }
    counts
}

fn check_tokens(log: &Log, verdict: &mut Verdict) {
    let mut counts: HashMap<&str, BTreeMap<Execution, u64>> = HashMap::new();
    for (run, token) in all_tokens(log) {
        verdict.looked.add("tokens", 1);
        let Some((execution, number)) = token else {
            verdict.found(Rule::Torn, &log.session, run, "a token that nobody wrote so");
            continue;
        };
        let next = counts.entry(run).or_default().entry(execution).or_default();
        if number != *next {
            let text = format!("attempt {} goes on with {number} where {next} comes", execution.0);
            verdict.found(Rule::Torn, &log.session, run, text);
        }
        *next = number + 1;
    }
    for (run, executions) in &counts {
        for pair in executions.keys().collect::<Vec<_>>().windows(2).filter(|pair| pair[0].0 == pair[1].0) {
            let text = format!("attempt {} was begun twice, and both have written", pair[0].0);
            verdict.found(Rule::StaleFence, &log.session, run, text);
        }
    }
}

/// Every token that a run has written, in the order of the view; none for one that is no token.
fn all_tokens(log: &Log) -> impl Iterator<Item = (&str, Option<(Execution, u64)>)> {
    let messages = log.view.messages().iter().filter_map(|message| Some((message.run.as_ref()?, message)));
    messages.flat_map(|(run, message)| {
        let values = message.parts.iter().filter_map(|part| part.value.as_str());
        values.flat_map(str::split_whitespace).map(move |token| (run.as_str(), parse(token)))
    })
}

fn parse(token: &str) -> Option<(Execution, u64)> {
    let (whose, number) = token.split_once(':')?;
    let (attempt, execution) = whose.split_once('.')?;
    Some(((attempt.parse().ok()?, execution.parse().ok()?), number.parse().ok()?))
}
