//! Branches in a view: what follows what, compared with a tree that is kept by hand.

use everthread_protocol::{Epoch, Record, RunId, Seq};
use everthread_session::view::{Message, View};
use proptest::prelude::*;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// A view that entries are applied to one by one.
#[derive(Default)]
struct Log {
    view: View,
}

impl Log {
    fn write(&mut self, run: Option<&str>, entry: Value) -> u64 {
        let seq = self.view.seq().next();
        let mut block = json!({"by": {"kind": "system", "id": "x"}, "at": 1, "entries": [entry]});
        if let Some(run) = run {
            block["run"] = json!(run);
        }
        let blocks = serde_json::to_vec(&json!([block])).unwrap().into();
        self.view.apply(&Record { epoch: Epoch(1), from: seq, to: seq, blocks }, Seq(1)).unwrap();
        seq.0
    }

    fn put(&mut self, message: &str) -> u64 {
        self.write(None, put(message))
    }

    /// A run with its input.
    fn ask(&mut self, message: &str, run: &str) {
        self.put(message);
        self.request(run, message);
    }

    fn request(&mut self, run: &str, input: &str) {
        self.write(None, json!({"type": "run.requested", "run": run, "agent": "guide", "input": [input]}));
    }

    /// A message of a run.
    fn say(&mut self, run: &str, message: &str) -> u64 {
        self.write(Some(run), json!({"type": "message.start", "message": message, "role": "assistant"}))
    }

    fn end(&mut self, run: &str) {
        self.write(None, json!({"type": "run.ended", "run": run, "outcome": "completed"}));
    }

    fn answer(&mut self, run: &str, message: &str) {
        self.say(run, message);
        self.end(run);
    }

    /// A branch begins that replaces a message.
    fn instead_of(&mut self, reference: &str) {
        let after = self.view.before(self.view.find(reference).unwrap()).0;
        self.write(None, json!({"type": "branch.begun", "after": after}));
    }

    fn select(&mut self, reference: &str) {
        let through = self.view.find(reference).unwrap().seq.0;
        self.write(None, json!({"type": "branch.selected", "through": through}));
    }

    fn branch(&self) -> Vec<&str> {
        ids(self.view.branch())
    }

    fn branch_of(&self, run: &str) -> Vec<&str> {
        ids(self.view.branch_of(&run.parse::<RunId>().unwrap()))
    }

    fn alternatives(&self, reference: &str) -> Vec<&str> {
        ids(self.view.alternatives(self.view.find(reference).unwrap()))
    }
}

fn put(message: &str) -> Value {
    json!({"type": "message.put", "message": message, "role": "user", "parts": []})
}

fn ids(messages: Vec<&Message>) -> Vec<&str> {
    messages.into_iter().map(|message| message.message.as_str()).collect()
}

/// `u1`, `a1`, `u2`, `a2`, of which each follows the one before.
fn talk() -> Log {
    let mut log = Log::default();
    log.write(None, json!({"type": "session.opened", "meta": {}}));
    log.ask("u1", "r1");
    log.answer("r1", "a1");
    log.ask("u2", "r2");
    log.answer("r2", "a2");
    log
}

#[test]
fn without_edits_nothing_about_branches_stands_anywhere() {
    let log = talk();
    assert_eq!(log.branch(), ["u1", "a1", "u2", "a2"]);
    assert_eq!(log.alternatives("u2"), ["u2"]);
    let text = serde_json::to_string(&log.view).unwrap();
    assert!(!text.contains("branches") && !text.contains("tip"), "{text}");
}

#[test]
fn an_edit_stands_beside_the_message_that_it_replaces() {
    let mut log = talk();
    log.instead_of("u2");
    log.ask("u2b", "r3");
    log.answer("r3", "a3");
    assert_eq!(log.branch(), ["u1", "a1", "u2b", "a3"]);
    assert_eq!(log.alternatives("u2"), ["u2", "u2b"]);
    assert_eq!(log.alternatives("u2b"), ["u2", "u2b"]);
    // An edit of the edit is a third one, and an edit of the first message a tree of its own.
    log.instead_of("u2b");
    log.put("u2c");
    assert_eq!(log.alternatives("u2"), ["u2", "u2b", "u2c"]);
    log.instead_of("u1");
    log.put("u1b");
    assert_eq!(log.branch(), ["u1b"]);
    assert_eq!(log.alternatives("u1"), ["u1", "u1b"]);
    assert_eq!(log.alternatives("r2/a2"), ["a2"]);
}

#[test]
fn a_run_that_is_done_again_writes_beside_what_it_wrote_first() {
    let mut log = talk();
    log.instead_of("r1/a1");
    log.request("r3", "u1");
    assert_eq!(log.branch(), ["u1"]);
    assert_eq!(ids(log.view.continuations()), ["a1"]);
    log.say("r3", "a3");
    log.say("r3", "a4");
    assert_eq!(log.branch(), ["u1", "a3", "a4"]);
    assert_eq!(log.alternatives("r1/a1"), ["a1", "a3"]);
    assert_eq!(log.alternatives("r3/a4"), ["a4"]);
    assert!(log.view.continuations().is_empty());
}

#[test]
fn a_branch_is_selected_by_any_of_its_messages_and_goes_on_from_its_end() {
    let mut log = talk();
    log.instead_of("u2");
    log.put("u2b");
    log.select("u2");
    assert_eq!(log.branch(), ["u1", "a1", "u2", "a2"]);
    log.put("u3");
    assert_eq!(log.branch(), ["u1", "a1", "u2", "a2", "u3"]);
    log.select("u2b");
    assert_eq!(log.branch(), ["u1", "a1", "u2b"]);
    log.put("u4");
    assert_eq!(log.branch(), ["u1", "a1", "u2b", "u4"]);
    // Of several through one message it is the newest.
    log.select("u2");
    log.select("u1");
    assert_eq!(log.branch(), ["u1", "a1", "u2b", "u4"]);
}

#[test]
fn a_run_whose_branch_is_left_goes_on_there_and_comes_back_with_it() {
    let mut log = talk();
    log.ask("u3", "r3");
    log.say("r3", "a3");
    log.select("u3");
    log.instead_of("u2");
    log.put("u2b");
    log.say("r3", "a4");
    log.say("r3", "a5");
    assert_eq!(log.branch(), ["u1", "a1", "u2b"]);
    assert_eq!(log.branch_of("r3"), ["u1", "a1", "u2", "a2", "u3", "a3", "a4", "a5"]);
    log.put("u5");
    assert_eq!(log.branch(), ["u1", "a1", "u2b", "u5"]);
    log.select("u3");
    log.say("r3", "a6");
    assert_eq!(log.branch(), ["u1", "a1", "u2", "a2", "u3", "a3", "a4", "a5", "a6"]);
}

#[test]
fn a_run_whose_input_is_on_both_branches_follows_the_current_one() {
    let mut log = talk();
    log.ask("u3", "r3");
    log.put("u4");
    log.instead_of("u4");
    log.put("u4b");
    log.say("r3", "a3");
    assert_eq!(log.branch(), ["u1", "a1", "u2", "a2", "u3", "u4b", "a3"]);
    assert_eq!(log.branch_of("r3"), log.branch());
}

#[test]
fn what_a_run_starts_stays_on_its_branch() {
    let mut log = talk();
    log.ask("u3", "r3");
    log.instead_of("u3");
    log.put("u3b");
    log.write(Some("r3"), put("task"));
    let child = json!({"type": "run.requested", "run": "c", "agent": "helper", "input": ["task"], "parent_run": "r3"});
    log.write(Some("r3"), child);
    log.say("c", "done");
    log.say("r3", "a3");
    assert_eq!(log.branch(), ["u1", "a1", "u2", "a2", "u3b"]);
    assert_eq!(log.branch_of("r3"), ["u1", "a1", "u2", "a2", "u3", "task", "done", "a3"]);
    assert_eq!(log.branch_of("c"), log.branch_of("r3"));
}

#[test]
fn a_steer_that_becomes_a_run_of_its_own_is_answered_where_it_stands() {
    let mut log = talk();
    log.ask("u3", "r3");
    log.put("steer");
    log.write(
        None,
        json!({"type": "control.requested", "control": "c1", "kind": "steer", "target": {"run": "r3"},
            "expires": 9, "message": "steer"}),
    );
    log.instead_of("u2");
    log.put("u2b");
    log.end("r3");
    log.request("r4", "steer");
    log.say("r4", "a4");
    assert_eq!(log.branch(), ["u1", "a1", "u2b"]);
    assert_eq!(log.branch_of("r4"), ["u1", "a1", "u2", "a2", "u3", "steer", "a4"]);
}

#[test]
fn a_reset_of_the_first_message_of_a_branch_leaves_the_branch() {
    let mut log = talk();
    log.instead_of("r2/a2");
    log.request("r3", "u2");
    log.say("r3", "bad");
    log.write(Some("r3"), json!({"type": "run.step", "phase": "reset"}));
    assert_eq!(log.branch(), ["u1", "a1", "u2"]);
    log.say("r3", "good");
    assert_eq!(log.branch(), ["u1", "a1", "u2", "good"]);
    assert_eq!(log.alternatives("r3/good"), ["a2", "good"]);
}

#[test]
fn the_runs_at_work_on_a_message_are_those_that_it_or_its_successors_asked_for() {
    let mut log = talk();
    let at_work = |log: &Log, reference: &str| -> Vec<String> {
        let runs = log.view.runs_at_work_on(log.view.find(reference).unwrap());
        runs.into_iter().map(|run| run.run.to_string()).collect()
    };
    log.ask("u3", "r3");
    log.ask("u4", "r4");
    assert_eq!(at_work(&log, "u2"), ["r3", "r4"]);
    assert_eq!(at_work(&log, "u4"), ["r4"]);
    // A steer is worked on by the run that it is for, before it is taken in and after.
    log.put("s");
    let steer = json!({"type": "control.requested", "control": "c1", "kind": "steer", "target": {"run": "r3"},
        "expires": 9, "message": "s"});
    log.write(None, steer);
    assert_eq!(at_work(&log, "s"), ["r3"]);
    log.write(None, json!({"type": "control.settled", "control": "c1", "outcome": "applied", "run": "r3"}));
    assert_eq!(at_work(&log, "s"), ["r3"]);
    log.instead_of("u3");
    log.ask("u3b", "r5");
    assert_eq!(at_work(&log, "u3"), ["r3", "r4"]);
    assert_eq!(at_work(&log, "u3b"), ["r5"]);
}

#[test]
fn alternatives_are_found_among_the_messages_of_a_snapshot() {
    let mut log = talk();
    log.instead_of("u2");
    log.put("u2b");
    let all = log.view.snapshot(3).unwrap();
    let held =
        View::from_snapshot(log.view.epoch(), log.view.seq(), all.state.get(), all.messages.get()).unwrap();
    // `u2`, `a2`, `u2b`: what they follow is not there.
    assert_eq!(ids(held.branch()), ["u2b"]);
    assert_eq!(ids(held.alternatives(held.find("u2b").unwrap())), ["u2", "u2b"]);
    assert_eq!(ids(held.alternatives(held.find("r2/a2").unwrap())), ["a2"]);
}

/// The same by hand: every message with its parent, and the tip.
#[derive(Default)]
struct Tree {
    parent: BTreeMap<u64, Option<u64>>,
    tip: Option<u64>,
    /// When the branch of a message was last begun or gone on with.
    newest: BTreeMap<u64, u64>,
}

impl Tree {
    fn way(&self, from: Option<u64>) -> Vec<u64> {
        let mut way: Vec<u64> = std::iter::successors(from, |at| self.parent[at]).collect();
        way.reverse();
        way
    }

    fn put(&mut self, seq: u64) {
        self.parent.insert(seq, self.tip);
        self.tip = Some(seq);
        self.newest.insert(seq, seq);
    }

    /// The newest message that has `through` among its ancestors and no children.
    fn select(&mut self, through: u64) {
        let leaf = |seq: &&u64| !self.parent.values().any(|parent| *parent == Some(**seq));
        let mut leaves = self.parent.keys().filter(leaf);
        let found = leaves.rfind(|leaf| self.way(Some(**leaf)).contains(&through)).copied();
        self.tip = found;
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn puts_edits_and_selections_make_the_tree_that_is_meant(
        steps in prop::collection::vec((0u8..4, any::<u8>()), 1..40)
    ) {
        let (mut log, mut tree) = (Log::default(), Tree::default());
        for (n, (what, which)) in steps.into_iter().enumerate() {
            let seqs: Vec<u64> = tree.parent.keys().copied().collect();
            let chosen = seqs.get(usize::from(which) % seqs.len().max(1)).copied();
            match (what, chosen) {
                (2, Some(chosen)) => {
                    let name = log.view.messages().iter().find(|m| m.seq.0 == chosen).unwrap().message.clone();
                    log.instead_of(name.as_str());
                    tree.tip = tree.parent[&chosen];
                    tree.put(log.put(&format!("m{n}")));
                }
                (3, Some(chosen)) => {
                    let name = log.view.messages().iter().find(|m| m.seq.0 == chosen).unwrap().message.clone();
                    log.select(name.as_str());
                    tree.select(chosen);
                }
                _ => tree.put(log.put(&format!("m{n}"))),
            }
            let branch: Vec<u64> = log.view.branch().iter().map(|m| m.seq.0).collect();
            prop_assert_eq!(branch, tree.way(tree.tip));
            for message in log.view.messages() {
                let parent = tree.parent[&message.seq.0];
                let same = tree.parent.iter().filter(|(_, p)| **p == parent).map(|(seq, _)| *seq);
                let found = log.view.alternatives(message).into_iter().map(|m| m.seq.0);
                prop_assert_eq!(found.collect::<Vec<_>>(), same.collect::<Vec<_>>());
                prop_assert_eq!(log.view.is_on_branch(message), tree.way(tree.tip).contains(&message.seq.0));
            }
        }
    }
}
