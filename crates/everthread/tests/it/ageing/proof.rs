//! What must be true in the end: all nodes say the same, it is what was acknowledged, and every reader holds it.

use super::fleet::{BURST, Fleet, Kept, Shared};
use super::log::Log;
use super::reader::{Held, Reader};
use super::writers::{check_counting, count};
use crate::node::{Node, PATIENCE};
use serde_json::{Value, json};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What was looked at.
#[derive(Default)]
pub struct Proof {
    entries: u64,
    /// Of them, those that were dropped.
    dropped: u64,
    marks: usize,
    completed: usize,
    lost: usize,
    tokens: u64,
    readers: usize,
}

impl std::fmt::Display for Proof {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { entries, dropped, marks, completed, lost, tokens, readers } = self;
        write!(
            f,
            "entries {entries} ({dropped} dropped), marks {marks}, runs completed {completed}, lost {lost}, "
        )?;
        write!(f, "tokens {tokens}, readers {readers}")
    }
}

/// Checks everything.
pub async fn check(fleet: &Fleet, shared: &Arc<Shared>, readers: &[(usize, Held)]) -> Proof {
    let mut proof = Proof { readers: readers.len(), ..Proof::default() };
    let ends = shared.ends.borrow().clone().unwrap();
    for (number, session) in shared.sessions.iter().enumerate() {
        let log = read(shared, &shared.urls[0], session).await;
        assert_eq!(log.to, ends[number], "{session} went on by itself");
        for node in fleet.nodes() {
            check_node(shared, node, session, &log).await;
            // There and back once more, through the next.
            node.wait_until("archived", async |node: &Node| {
                let answer = node.try_post(&format!("/v1/sessions/{session}/archive"), json!({})).await;
                answer["archived"].is_boolean()
            })
            .await;
        }
        check_counting(&log.view);
        check_marks(shared, number, &log, &mut proof);
        check_kept(shared, number, &log);
        check_runs(shared, number, &log, &mut proof);
        check_order(session, &log);
        for (_, held) in readers.iter().filter(|(of, _)| *of == number) {
            check_reader(session, held, &log);
        }
        check_newcomer(shared, number).await;
        (proof.entries, proof.dropped) = (proof.entries + log.to, proof.dropped + log.floor - 1);
    }
    proof
}

/// A node says what another one says, and its state is what its log comes to.
async fn check_node(shared: &Shared, node: &Node, session: &str, log: &Log) {
    let began = Instant::now();
    loop {
        assert!(began.elapsed() < PATIENCE, "{session} is trimmed for ever");
        let before = read(shared, &node.url, session).await;
        let floor = before.floor.max(log.floor);
        assert_eq!(before.marks(floor), log.marks(floor), "{session}: nodes differ");
        check_same(session, &before.view, &log.view, floor, before.floor == log.floor);
        let state = node.get(&format!("/v1/sessions/{session}/state")).await;
        // What was dropped in between is in one and not in the other.
        if read(shared, &node.url, session).await.floor == before.floor {
            return check_same(session, &state, &before.view, floor, true);
        }
    }
}

/// A log, once nobody kills any more; a trim may still cut an export off.
async fn read(shared: &Shared, url: &str, session: &str) -> Log {
    let began = Instant::now();
    loop {
        assert!(began.elapsed() < PATIENCE, "{session} cannot be exported");
        if let Some(log) = Log::read(shared, url, session).await {
            return log;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Somebody new who begins at the start: base and rest come to exactly what they come to for everybody.
async fn check_newcomer(shared: &Arc<Shared>, session: usize) {
    let name = &shared.sessions[session];
    let began = Instant::now();
    loop {
        assert!(began.elapsed() < PATIENCE, "{name} is trimmed for ever");
        let held = Reader::newcomer(shared.clone(), session).await;
        let log = read(shared, &shared.urls[0], name).await;
        assert_eq!(held.has_base, held.since > 0, "{name}");
        check_reader(name, &held, &log);
        if held.since + 1 == log.floor {
            return;
        }
    }
}

/// Two views of one log are the same; if they do not begin at the same place, from a seq on.
fn check_same(session: &str, one: &Value, other: &Value, from: u64, are_whole: bool) {
    if are_whole {
        assert_eq!(one, other, "{session}");
        return;
    }
    for same in ["seq", "epoch", "session", "values", "events"] {
        assert_eq!(one[same], other[same], "{session}: {same}");
    }
    let list = |view: &Value, what: &str| view[what].as_array().unwrap().clone();
    let (one_has, other_has) = (list(one, "messages"), list(other, "messages"));
    let is_same = one_has.ends_with(&other_has) || other_has.ends_with(&one_has);
    assert!(is_same, "{session}: {one_has:?} and {other_has:?}");
    for (what, seq) in [("messages", "seq"), ("runs", "requested_seq")] {
        let since = |view: &Value| {
            let mut since = list(view, what);
            since.retain(|one| one[seq].as_u64().unwrap() >= from);
            since
        };
        assert_eq!(since(one), since(other), "{session}: {what} from {from} on");
    }
}

/// No mark that was acknowledged is missing, or there twice, or somewhere else.
fn check_marks(shared: &Shared, session: usize, log: &Log, proof: &mut Proof) {
    let marks = log.marks(1);
    let places: HashMap<&str, u64> = marks.iter().map(|(seq, mark)| (mark.as_str(), *seq)).collect();
    assert_eq!(places.len(), marks.len(), "a mark is there twice: {marks:?}");
    let all = &shared.marks.lock().unwrap()[session];
    let kept: Vec<_> = all.iter().filter(|(_, seq)| *seq >= log.floor).collect();
    // Each was written after the one before it was acknowledged.
    let alone: Vec<_> = marks.iter().filter(|(_, mark)| !mark.starts_with("burst")).collect();
    assert_eq!(alone.len(), kept.len());
    for ((seq, mark), (acknowledged, at)) in alone.into_iter().zip(kept) {
        assert_eq!((mark, seq), (acknowledged, at), "{mark} was acknowledged elsewhere");
    }
    for (burst, to) in &shared.bursts.lock().unwrap()[session] {
        for (n, seq) in (to + 1 - BURST..=*to).enumerate().filter(|(_, seq)| *seq >= log.floor) {
            let mark = format!("{burst}-{n}");
            assert_eq!(places.get(mark.as_str()), Some(&seq), "{mark} was acknowledged at {seq}");
        }
    }
    for (seq, first) in marks.iter().filter(|(_, mark)| mark.starts_with("burst") && mark.ends_with("-0")) {
        for n in 0..BURST {
            let mark = format!("{}{n}", first.trim_end_matches('0'));
            assert_eq!(places.get(mark.as_str()), Some(&(seq + n)), "{mark} is not where its burst is");
        }
    }
    proof.marks += marks.len();
}

/// What is kept of values and of events of which only the last counts, whatever was dropped or folded, is what was written last.
fn check_kept(shared: &Shared, session: usize, log: &Log) {
    let Kept { turn, last_mark } = shared.kept.lock().unwrap()[session].clone();
    assert_eq!(log.view["values"].get("turn").and_then(Value::as_u64), turn);
    assert_eq!(log.view["values"]["first"], 1, "{session}: a value is lost");
    assert!(log.view["events"].as_array().unwrap().iter().any(|event| event["name"] == "first"));
    let is_last = |event: &&Value| event["name"] == "last-mark";
    let events: Vec<_> = log.view["events"].as_array().unwrap().iter().filter(is_last).collect();
    let marks = events.iter().map(|event| event["data"].as_str().unwrap().to_owned());
    assert_eq!(marks.collect::<Vec<_>>(), last_mark.into_iter().collect::<Vec<_>>());
}

/// Every run that was asked for is over, and what it has written is what was confirmed.
fn check_runs(shared: &Shared, session: usize, log: &Log, proof: &mut Proof) {
    let (messages, runs) = (log.view["messages"].as_array().unwrap(), log.view["runs"].as_array().unwrap());
    let asked = &shared.asked.lock().unwrap()[session];
    for run in runs {
        assert!(asked.iter().any(|asked| run["run"] == *asked.run), "nobody asked for {run}");
        assert_eq!(run["status"], "ended", "{run}");
    }
    // The request stands behind its message.
    for asked in asked.iter().filter(|asked| asked.to > log.floor) {
        let run = &asked.run;
        let inputs: Vec<_> =
            messages.iter().filter(|m| m["message"] == *asked.message && m["role"] == "user").collect();
        assert_eq!(inputs.len(), 1, "{}", asked.message);
        let state = runs.iter().find(|r| r["run"] == **run).unwrap_or_else(|| panic!("{run} is not there"));
        let of_run = messages.iter().filter(|m| m["run"] == **run);
        let values = of_run.map(|m| m["parts"][0]["value"].as_str().unwrap_or_default().to_owned());
        let tokens = count(&values.collect::<String>());
        let confirmed = shared.confirmed.lock().unwrap().get(run).copied().unwrap_or(0);
        assert!(tokens >= confirmed, "{run}: {confirmed} were confirmed, {tokens} are there");
        let wanted = inputs[0]["parts"][0]["value"].as_str().unwrap().split(' ').next().unwrap();
        match state["outcome"].as_str().unwrap() {
            "completed" => {
                assert_eq!(wanted.parse(), Ok(tokens), "{run} is not whole");
                proof.completed += 1;
            }
            "lost" if shared.besides.has_kills() => proof.lost += 1,
            other => panic!("{run} {other}"),
        }
        proof.tokens += tokens;
    }
}

/// Every run has one end, with nothing after it; nothing stands where something else does.
fn check_order(session: &str, log: &Log) {
    let mut ended: HashMap<String, u64> = HashMap::new();
    let mut seen = HashSet::new();
    for logged in &log.entries {
        let entry = &logged.entry;
        if logged.first == logged.last {
            assert!(seen.insert(logged.first), "{session}: {} is there twice: {entry}", logged.first);
        }
        let is_of_run = entry["type"].as_str().unwrap().starts_with("run.");
        let named = is_of_run.then(|| entry["run"].as_str()).flatten();
        if entry["type"] == "run.ended" {
            let run = entry["run"].as_str().unwrap().to_owned();
            assert!(ended.insert(run, logged.first).is_none(), "{session}: two ends: {entry}");
        } else if let Some(end) = logged.by_run.as_deref().or(named).and_then(|run| ended.get(run)) {
            assert!(logged.first < *end, "{session}: after the end of its run: {} {entry}", logged.first);
        }
    }
}

/// What a reader holds is what the log holds.
fn check_reader(session: &str, held: &Held, log: &Log) {
    let mine = serde_json::to_value(&held.view).unwrap();
    let from = log.floor.max(held.since + 1);
    let is_whole = held.since + 1 == log.floor && (held.has_base || held.since == 0);
    check_same(session, &mine, &log.view, from, is_whole);
    let marks: Vec<_> = held.marks.iter().filter(|(seq, _)| *seq >= from).cloned().collect();
    assert_eq!(marks, log.marks(from), "{session}: a reader has other marks");
}
