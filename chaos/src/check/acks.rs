//! What was acknowledged: all of it is in the log, each thing once, where the answer said.

use super::runs::Execution;
use super::{Promise, Rule, Verdict};
use crate::history::{Event, Level, Place, What};
use crate::log::{Log, Logged};
use std::collections::{BTreeMap, HashMap, HashSet};

/// A request writes at most so many entries: what was asked for lies at most so far before the end that the answer names.
const BLOCK_ENTRIES_MAX: u64 = 8;

/// What is looked up in a log.
struct Index<'a> {
    log: &'a Log,
    /// Messages that were put, and marks, by name.
    puts: HashMap<&'a str, Vec<&'a Logged>>,
    runs: HashSet<&'a str>,
    /// Controls: how often each was asked for, and its last outcome.
    controls: HashMap<&'a str, (usize, Option<&'a str>)>,
    tokens: HashMap<&'a str, BTreeMap<Execution, u64>>,
}

impl<'a> Index<'a> {
    fn of(log: &'a Log) -> Index<'a> {
        let (puts, runs, controls) = (HashMap::new(), HashSet::new(), HashMap::new());
        let mut index = Index { log, puts, runs, controls, tokens: super::runs::tokens(log) };
        for logged in &log.entries {
            let text = |field: &str| logged.body[field].as_str().unwrap_or_default();
            match logged.kind.as_str() {
                "message.put" => index.puts.entry(text("message")).or_default().push(logged),
                "x-mark" => index.puts.entry(text("mark")).or_default().push(logged),
                "run.requested" => drop(index.runs.insert(text("run"))),
                "control.requested" => index.controls.entry(text("control")).or_default().0 += 1,
                "control.settled" => {
                    index.controls.entry(text("control")).or_default().1 = Some(text("outcome"));
                }
                _ => {}
            }
        }
        index
    }
}

impl Index<'_> {
    /// What became of an execution of which tokens are gone.
    fn fate_of(&self, run: &str, (attempt, execution): Execution) -> Fate {
        let whose = format!("{attempt}.{execution}:");
        let is_its = |logged: &Logged| {
            let is_token = || logged.body["text"].as_str().is_some_and(|text| text.contains(&whose));
            (logged.by_run.as_deref() == Some(run) && is_token())
                || (logged.kind == "run.requested" && logged.body["run"] == run)
        };
        let last = self.log.entries.iter().rposition(is_its);
        let (at, behind) = last.map_or((0, &self.log.entries[..]), |last| {
            (self.log.entries[last].last, &self.log.entries[last + 1..])
        });
        // An attempt that wrote all it had ends without a reason; one that is taken from its worker ends with one.
        let is_taken = |logged: &Logged| match logged.kind.as_str() {
            "run.returned" => true,
            "run.started" => logged.body["attempt"].as_u64() > Some(attempt.into()),
            "run.ended" => !logged.body["reason"].is_null(),
            _ => false,
        };
        Fate {
            is_on_lost_tail: self.log.all_epochs.iter().skip(1).any(|(_, since)| *since > at),
            is_taken: last.is_none()
                || behind.iter().any(|logged| logged.body["run"] == run && is_taken(logged))
                || self.is_begun_again(run, (attempt, execution)),
        }
    }

    /// Whether the start of an execution was lost, and another one has its number.
    fn is_begun_again(&self, run: &str, (attempt, execution): Execution) -> bool {
        let counts = self.tokens.get(run).into_iter().flat_map(BTreeMap::keys);
        counts.into_iter().any(|other| other.0 == attempt && other.1 != execution)
    }
}

/// Why tokens may be gone.
struct Fate {
    /// A tail that was lost may have had what comes behind the last token that is left.
    is_on_lost_tail: bool,
    /// The run was taken from this execution: it is not there to write them again.
    is_taken: bool,
}

/// Something that was asked for under one id.
struct Put<'a> {
    name: &'a str,
    text: &'a str,
    /// Where it stands by the last answer, and what that promises.
    acked: Option<(Place, Level)>,
    /// The same by the first answer.
    first: Option<(Place, Level)>,
}

/// Compares what askers and workers were told with the logs.
pub(super) fn check(events: &[Event], logs: &BTreeMap<&str, &Log>, promise: Promise, verdict: &mut Verdict) {
    let indexes: BTreeMap<&str, Index<'_>> =
        logs.iter().map(|(session, log)| (*session, Index::of(log))).collect();
    let mut puts: BTreeMap<(&str, &str), Put<'_>> = BTreeMap::new();
    let mut confirmed: BTreeMap<(&str, &str, Execution, Level), u64> = BTreeMap::new();
    for event in events {
        let Some(index) = session_of(&event.what).and_then(|session| indexes.get(session)) else { continue };
        let session = index.log.session.as_str();
        match &event.what {
            What::Put { id, name, text, .. } => {
                puts.entry((session, id.as_str())).or_insert(Put { name, text, acked: None, first: None });
            }
            What::PutAcked { id, place, run, level, .. } => {
                if let Some(put) = puts.get_mut(&(session, id.as_str())) {
                    put.acked = Some((*place, *level));
                    put.first = put.first.or(put.acked);
                }
                if *level > Level::Accepted && !index.log.is_kept(place.epoch, place.seq) {
                    let text = format!(
                        "{id} was acknowledged at {place:?} as {level:?}, and lost, if only for a while"
                    );
                    verdict.found(Rule::Lost, session, &event.who, text);
                }
                if is_forgiven(index.log, *place, *level, promise) {
                    continue;
                }
                if let Some(run) = run.as_ref().filter(|run| !index.runs.contains(run.as_str())) {
                    verdict.found(Rule::Lost, session, &event.who, format!("run {run} was acknowledged"));
                }
            }
            What::Confirmed { run, attempt, execution, tokens, level, .. } => {
                verdict.looked.add("confirmations", 1);
                let most =
                    confirmed.entry((session, run.as_str(), (*attempt, *execution), *level)).or_default();
                *most = (*most).max(*tokens);
            }
            What::Receipt { control, outcome, level, .. } => {
                verdict.looked.add("receipts", 1);
                // Of an outcome that was lost with a tail another one may have come.
                let outcome = outcome.as_deref().filter(|_| promise == Promise::Kept);
                if !promise.may_lose(*level) {
                    receipt(index, &event.who, control, outcome, verdict);
                }
            }
            _ => {}
        }
    }
    for ((session, id), put) in puts {
        let Some(index) = indexes.get(session) else { continue };
        verdict.looked.add("acknowledged", u64::from(put.acked.is_some()));
        if let Some((place, level)) = put.first {
            let is_there = index.puts.contains_key(put.name);
            let is_moved = !index.log.is_kept(place.epoch, place.seq);
            let kept = verdict.levels.entry(level).or_default();
            kept.acknowledged += 1;
            kept.healed += u64::from(is_there && is_moved);
            kept.gone += u64::from(!is_there);
        }
        if let Some((rule, what)) = wrong(index, &put, promise) {
            verdict.found(rule, session, "asker", format!("{} (request {id}) {what}", put.name));
        }
    }
    for ((session, run, execution, level), tokens) in confirmed {
        let Some(index) = indexes.get(session) else { continue };
        let there = index.tokens.get(run).and_then(|counts| counts.get(&execution)).copied().unwrap_or(0);
        let gone = tokens.saturating_sub(there);
        let kept = verdict.levels.entry(level).or_default();
        (kept.tokens, kept.tokens_gone) = (kept.tokens + tokens, kept.tokens_gone + gone);
        if gone == 0 {
            continue;
        }
        kept.taken += 1;
        let fate = index.fate_of(run, execution);
        if !(promise.may_lose(level) && fate.is_on_lost_tail && fate.is_taken) {
            let attempt = execution.0;
            let whose = if fate.is_taken { "which lost its run" } else { "which kept its run" };
            let text = format!(
                "{tokens} tokens of {run} were confirmed to attempt {attempt}, {whose}; {there} are there"
            );
            verdict.found(Rule::Lost, session, "worker", text);
        }
    }
}

fn session_of(what: &What) -> Option<&str> {
    match what {
        What::Put { session, .. }
        | What::PutAcked { session, .. }
        | What::Confirmed { session, .. }
        | What::Receipt { session, .. } => Some(session),
        _ => None,
    }
}

/// Whether what was acknowledged there may be gone.
fn is_forgiven(log: &Log, place: Place, level: Level, promise: Promise) -> bool {
    promise.may_lose(level) && !log.is_kept(place.epoch, place.seq)
}

/// What is wrong with something that was asked for.
fn wrong(index: &Index<'_>, put: &Put<'_>, promise: Promise) -> Option<(Rule, String)> {
    let found = index.puts.get(put.name).map(Vec::as_slice).unwrap_or_default();
    match (found, put.acked) {
        ([], Some((place, level))) if is_forgiven(index.log, place, level, promise) => None,
        ([], Some((place, level))) => {
            Some((Rule::Lost, format!("was acknowledged at {place:?} as {level:?}")))
        }
        (_, None) => Some((Rule::Unanswered, "was never acknowledged".to_owned())),
        ([one], Some(acked)) => {
            let is_text = one.kind == "x-mark" || one.body["parts"][0]["value"] == put.text;
            // Where the log was lost and has grown again, it may stand elsewhere.
            let is_elsewhere = |(place, _): &(Place, Level)| {
                index.log.is_kept(place.epoch, place.seq)
                    && (one.first > place.seq || one.first + BLOCK_ENTRIES_MAX <= place.seq)
            };
            if !is_text {
                Some((Rule::Lost, format!("has another text: {}", one.body)))
            } else {
                let elsewhere = Some(acked).filter(is_elsewhere);
                elsewhere.map(|(place, _)| {
                    (Rule::Lost, format!("stands at {}, the answer said {place:?}", one.first))
                })
            }
        }
        (several, _) => Some((Rule::Doubled, format!("is there {} times", several.len()))),
    }
}

fn receipt(index: &Index<'_>, who: &str, control: &str, outcome: Option<&str>, verdict: &mut Verdict) {
    let (asked, settled) = index.controls.get(control).copied().unwrap_or_default();
    let session = index.log.session.as_str();
    if asked == 0 {
        verdict.found(Rule::Lost, session, who, format!("control {control} has a receipt"));
    }
    if let Some(outcome) = outcome.filter(|outcome| settled != Some(*outcome)) {
        let text = format!("{control} was said to be {outcome}, the log says {settled:?}");
        verdict.found(Rule::ControlOutcome, session, who, text);
    }
}
