//! What must be true in the end: all nodes say the same, it is what was acknowledged, and every reader holds it.

use super::fleet::{BURST, Fleet, Shared};
use super::reader::Held;
use super::writers::{check_counting, count};
use crate::node::Node;
use everthread_protocol::frame::Entries;
use everthread_session::fold::numbered;
use everthread_session::view::View;
use serde_json::{Value, json};
use std::collections::{HashMap, HashSet};

/// What was looked at.
#[derive(Default)]
pub struct Proof {
    pub entries: u64,
    marks: usize,
    completed: usize,
    lost: usize,
    tokens: u64,
    readers: usize,
}

impl std::fmt::Display for Proof {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { entries: _, marks, completed, lost, tokens, readers } = self;
        write!(
            f,
            "marks {marks}, runs completed {completed}, lost {lost}, tokens {tokens}, readers {readers}"
        )
    }
}

/// A log as a node tells it.
struct Log {
    /// First and last seq of each entry, and the entry, in the order of the records.
    entries: Vec<(u64, u64, Value, Option<String>)>,
    view: Value,
    to: u64,
}

impl Log {
    /// Reads a session page by page; panics at a gap or an overlap.
    async fn read(node: &Node, session: &str) -> Log {
        let (mut entries, mut view, mut after, mut to) = (Vec::new(), View::new(), "0".to_owned(), 0);
        loop {
            let page = node.get(&format!("/v1/sessions/{session}/entries?limit=500&after={after}")).await;
            for record in page["records"].as_array().unwrap_or_else(|| panic!("{page}")) {
                // A fold since the last page may have taken what stands at its end.
                assert!(record["from"].as_u64().unwrap() <= to + 1, "a gap after {to}: {record}");
                let mut frame = record.clone();
                frame["t"] = "entries".into();
                frame["attachment"] = 1.into();
                let frame = frame.to_string();
                let frame = Entries::decode(frame.as_bytes()).unwrap();
                for block in &frame.blocks {
                    for (first, last, raw) in numbered(block, frame.from).unwrap() {
                        if last.0 > to {
                            let entry = serde_json::from_str(raw.get()).unwrap();
                            let run = block.run.as_ref().map(|run| run.to_string());
                            entries.push((first.0, last.0, entry, run));
                        }
                    }
                }
                view.apply_blocks(&frame).unwrap();
                to = frame.to.0;
            }
            after = page["cursor"].as_str().unwrap().to_owned();
            if page["live"] == true {
                return Log { entries, view: serde_json::to_value(&view).unwrap(), to };
            }
        }
    }

    fn marks(&self) -> Vec<(u64, String)> {
        let marks = self.entries.iter().filter(|(_, _, entry, _)| entry["type"] == "x-mark");
        marks.map(|(seq, _, entry, _)| (*seq, entry["mark"].as_str().unwrap().to_owned())).collect()
    }
}

/// Checks everything.
pub async fn check(fleet: &Fleet, shared: &Shared, readers: &[(usize, Held)]) -> Proof {
    let mut proof = Proof { readers: readers.len(), ..Proof::default() };
    let ends = shared.ends.borrow().clone().unwrap();
    for (number, session) in shared.sessions.iter().enumerate() {
        let first = fleet.nodes().next().unwrap();
        let log = Log::read(first, session).await;
        assert_eq!(log.to, ends[number], "{session} went on by itself");
        for node in fleet.nodes() {
            let other = Log::read(node, session).await;
            assert_eq!(other.view, log.view, "{session}: nodes differ");
            assert_eq!(other.marks(), log.marks(), "{session}: nodes differ");
            let state = node.get(&format!("/v1/sessions/{session}/state")).await;
            assert_eq!(state, log.view, "{session}: the state is not that of the log");
            // There and back once more, through the next.
            node.wait_until("archived", async |node: &Node| {
                let answer = node.try_post(&format!("/v1/sessions/{session}/archive"), json!({})).await;
                answer["archived"].is_boolean()
            })
            .await;
        }
        check_acknowledged(shared, number, &log, &mut proof);
        check_order_of_runs(session, &log);
        for (_, held) in readers.iter().filter(|(of, _)| *of == number) {
            check_reader(session, held, &log);
        }
        proof.entries += log.to;
    }
    proof
}

/// Nothing that was acknowledged is missing, or there twice.
fn check_acknowledged(shared: &Shared, session: usize, log: &Log, proof: &mut Proof) {
    let marks = log.marks();
    let places: HashMap<&str, u64> = marks.iter().map(|(seq, mark)| (mark.as_str(), *seq)).collect();
    assert_eq!(places.len(), marks.len(), "a mark is there twice: {marks:?}");
    let acknowledged = &shared.marks.lock().unwrap()[session];
    for (mark, seq) in acknowledged {
        assert_eq!(places.get(mark.as_str()), Some(seq), "{mark} was acknowledged at {seq}");
    }
    // Each was written after the one before it was acknowledged.
    let in_order: Vec<&str> = acknowledged.iter().map(|(mark, _)| mark.as_str()).collect();
    let alone = marks.iter().map(|(_, mark)| mark.as_str()).filter(|mark| !mark.starts_with("burst"));
    assert_eq!(alone.collect::<Vec<_>>(), in_order);
    for burst in &shared.bursts.lock().unwrap()[session] {
        assert!(places.contains_key(format!("{burst}-0").as_str()), "{burst} was acknowledged");
    }
    for (seq, first) in marks.iter().filter(|(_, mark)| mark.starts_with("burst") && mark.ends_with("-0")) {
        for n in 0..BURST {
            let mark = format!("{}{n}", first.trim_end_matches('0'));
            assert_eq!(places.get(mark.as_str()), Some(&(seq + n)), "{mark} is not where its burst is");
        }
    }
    proof.marks += marks.len();

    check_counting(&log.view);
    let messages = log.view["messages"].as_array().unwrap();
    let runs = log.view["runs"].as_array().unwrap();
    let asked = &shared.asked.lock().unwrap()[session];
    assert_eq!(runs.len(), asked.len(), "runs that nobody asked for");
    for (message, run) in asked {
        let puts = messages.iter().filter(|m| m["message"] == **message && m["role"] == "user");
        assert_eq!(puts.count(), 1, "{message}");
        let state = runs.iter().find(|r| r["run"] == **run).unwrap_or_else(|| panic!("{run} is not there"));
        assert_eq!(state["status"], "ended", "{state}");
        let of_run = messages.iter().filter(|m| m["run"] == **run);
        let values = of_run.map(|m| m["parts"][0]["value"].as_str().unwrap_or_default().to_owned());
        let tokens = count(&values.collect::<String>());
        let confirmed = shared.confirmed.lock().unwrap().get(run).copied().unwrap_or(0);
        assert!(tokens >= confirmed, "{run}: {confirmed} were confirmed, {tokens} are there");
        let input = messages.iter().find(|m| m["message"] == **message && m["role"] == "user").unwrap();
        let wanted = input["parts"][0]["value"].as_str().unwrap().split(' ').next().unwrap();
        match state["outcome"].as_str().unwrap() {
            "completed" => {
                assert_eq!(wanted.parse(), Ok(tokens), "{run} is not whole");
                proof.completed += 1;
            }
            "lost" if shared.tally.of("kills") > 0 => proof.lost += 1,
            other => panic!("{run} {other}"),
        }
        proof.tokens += tokens;
    }
}

/// Every run has one end, with nothing after it; nothing stands where something else does.
fn check_order_of_runs(session: &str, log: &Log) {
    let mut ended: HashMap<String, u64> = HashMap::new();
    for (first, _, entry, by_run) in &log.entries {
        let named =
            entry["type"].as_str().unwrap().starts_with("run.").then(|| entry["run"].as_str()).flatten();
        if entry["type"] == "run.ended" {
            let run = entry["run"].as_str().unwrap().to_owned();
            assert!(ended.insert(run, *first).is_none(), "{session}: two ends: {entry}");
        } else if let Some(end) = by_run.as_deref().or(named).and_then(|run| ended.get(run)) {
            assert!(first < end, "{session}: after the end of its run: {first} {entry}");
        }
    }
    let single = log.entries.iter().filter(|(first, last, ..)| first == last);
    let mut seen = HashSet::new();
    for (seq, _, entry, _) in single {
        assert!(seen.insert(seq), "{session}: {seq} is there twice: {entry}");
    }
}

/// What a reader holds is what the log holds.
fn check_reader(session: &str, held: &Held, log: &Log) {
    let mine = serde_json::to_value(&held.view).unwrap();
    if held.since == 0 {
        assert_eq!(mine, log.view, "{session}: a reader holds something else");
    } else {
        let (mine, all) = (mine["messages"].as_array().unwrap(), log.view["messages"].as_array().unwrap());
        assert!(all.ends_with(mine), "{session}: a reader holds other messages: {mine:?}");
    }
    let marks: Vec<_> = log.marks().into_iter().filter(|(seq, _)| *seq > held.since).collect();
    assert_eq!(held.marks, marks, "{session}: a reader has other marks");
}
